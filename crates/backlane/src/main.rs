//! LAN-free backup and restore through a block device that both hosts share.
//!
//! The binary: it turns flags into calls of the libraries, and their results into output and exit codes. Exit codes:
//! 0 done, 1 failed, 2 wrong usage, 3 done with warnings, 4 the policy allowed no route that was left.

mod advice;
mod cli;
mod commands;
mod config;
mod demo;
mod failure;
mod hooks;
mod output;
mod progress;
mod signals;
mod sizes;

use anyhow::{Context as _, Result};
use backlane_net::EngineChoice;
use clap::Parser;
use cli::{Cli, Command, Common, WalCommand};
use failure::{FailureDocument, Usage};
use output::{NO_ROUTE_CODE, Outcome, Output, StdoutClosed};
use rustix::process::{self, DumpableBehavior, Resource, Rlimit};
use signals::Cancel;
use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

/// What every command is given.
pub(crate) struct Context {
    /// Where results go.
    pub(crate) output: Output,
    /// The configuration file that the user named.
    pub(crate) config: Option<PathBuf>,
    /// What does the I/O on pools.
    pub(crate) pool_engine: EngineChoice,
    /// Set when the user interrupts.
    pub(crate) cancel: Cancel,
    /// Drives everything asynchronous; commands themselves run on the main thread and may block.
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Context {
    /// Ends a long command where the user has asked for it.
    ///
    /// # Errors
    /// When the user has.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        anyhow::ensure!(!self.cancel.is_set(), "interrupted");
        Ok(())
    }
}

const USAGE_CODE: u8 = 2;

/// Exit code of a fetch of WAL that failed, in whatever way. PostgreSQL takes low ones for the end of the archive, and ends
/// recovery there; above 125 it stops. Up to 192 shells have meanings for them (`docs/design/wal.md` §4).
const FETCH_FAILED_CODE: u8 = 200;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => refuse(&error),
    };
    let is_fetch = matches!(&cli.command, Command::Wal(WalCommand::Fetch(_)));
    if is_fetch {
        exit_on_panic();
    }
    let code = match checked(cli) {
        Ok(outcome) => return outcome.into(),
        Err(code) => code,
    };
    match is_fetch {
        true => ExitCode::from(FETCH_FAILED_CODE),
        false => code,
    }
}

/// Runs the command; a failure has been told when this returns.
fn checked(cli: Cli) -> Result<Outcome, ExitCode> {
    if let Err(error) = keep_memory_private() {
        eprintln!("error: the system won't keep this process's memory to itself: {error}");
        return Err(ExitCode::FAILURE);
    }
    let output = Output::new(&cli.common);
    start_log(&cli.common);
    run(cli, output).map_err(|error| report(&error, output))
}

/// A panic must not pass for the end of an archive either.
fn exit_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(FETCH_FAILED_CODE.into());
    }));
}

/// Keeps the secrets that will be in memory out of core dumps, and from other processes of the same user. The programs
/// that it starts write no core dumps either.
fn keep_memory_private() -> io::Result<()> {
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    process::setrlimit(Resource::Core, none)?;
    Ok(())
}

/// Ends the process over arguments that can't be understood, or that ask for help.
fn refuse(error: &clap::Error) -> ! {
    let mut arguments = std::env::args_os().take_while(|argument| argument != "--");
    if error.use_stderr() && arguments.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let what = text.lines().next().unwrap_or_default();
        let what = what.strip_prefix("error: ").unwrap_or(what).to_owned();
        print_document(&Usage(what).into());
    }
    let mut words = std::env::args_os().skip_while(|word| word != "wal");
    if error.use_stderr() && words.any(|word| word == "fetch") {
        // Standard error may be closed; there is nowhere left to say so.
        let _ = error.print();
        std::process::exit(FETCH_FAILED_CODE.into());
    }
    error.exit()
}

fn run(cli: Cli, output: Output) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    let context = Context {
        output,
        config: cli.common.config,
        pool_engine: cli.common.pool_engine.into(),
        cancel: Cancel::install(runtime.handle())?,
        runtime,
    };
    let outcome = commands::run(&cli.command, &context);
    // A read of standard input, or of a device that hangs, must not keep the process.
    context.runtime.shutdown_background();
    outcome
}

fn report(error: &anyhow::Error, output: Output) -> ExitCode {
    if error.is::<StdoutClosed>() {
        return ExitCode::SUCCESS;
    }
    if output.is_json() {
        print_document(error);
    }
    eprintln!("{}", failure::explain(error));
    if error.is::<Usage>() {
        ExitCode::from(USAGE_CODE)
    } else if failure::no_route(error).is_some() {
        ExitCode::from(NO_ROUTE_CODE)
    } else {
        ExitCode::FAILURE
    }
}

fn print_document(error: &anyhow::Error) {
    let document = serde_json::to_vec(&FailureDocument::new(error)).unwrap_or_default();
    // Whoever doesn't read it sees the exit code and standard error.
    let _ = output::write_stdout(&[document, b"\n".to_vec()].concat());
}

/// Logs to standard error, so that standard output carries results alone.
fn start_log(common: &Common) {
    // The repository's engine logs each error that it hands to us, and we tell it in our own words. Where a machine has
    // no time zone, as many containers, UTC is as good, and jiff would say so for each time of each file.
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error,rustic_core=off",
        (_, 0) => "warn,rustic_core=off,jiff=error",
        (_, 1) => "info,rustic_core=warn,jiff=error",
        (_, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("BACKLANE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
