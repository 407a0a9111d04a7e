//! `backlane wal receive`: keeps `pg_receivewal` running, and archives what it writes (`docs/design/wal.md` §7).
//!
//! Invariants: one process works on a directory; `pg_receivewal` ends with this process, whatever ends that; what is in
//! the directory is archived whether the database can be reached or not.

use crate::{
    Context,
    cli::WalReceiveArgs,
    config::{self, ClientFile},
    failure::Advise,
    output::Outcome,
};
use anyhow::{Context as _, Result, bail, ensure};
use backlane_client::wal::Receiver;
use backlane_source::postgres::{Session, refuse_password};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use sd_notify::NotifyState;
use std::{
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Pause before `pg_receivewal` is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(2);
/// How long it may take to end when it is asked to.
const END_WAIT: Duration = Duration::from_secs(10);
/// How often is looked whether it has.
const END_LOOK: Duration = Duration::from_millis(50);
/// Seconds for a connection, where the environment says nothing else: meanwhile nothing is archived.
const CONNECT_SECONDS: &str = "10";
/// Where packages have the programs of a version.
const PLACES: [(&str, &str); 2] = [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin")];
const PROGRAM: &str = "pg_receivewal";

/// Receives and archives until it is asked to end.
///
/// # Errors
/// When it can't begin.
pub(super) fn receive(args: &WalReceiveArgs, context: &Context) -> Result<Outcome> {
    refuse_password(&args.postgres)
        .advise("keep the password in .pgpass or a service file, and leave it out here")?;
    ensure!(!args.every.is_zero(), "--every has to be more than nothing");
    let directory = match &args.spool {
        Some(directory) => directory.clone(),
        None => {
            let config = ClientFile::read(&config::path(context.config.as_deref()))?;
            config.state.join("wal-spool").join(&args.slot)
        }
    };
    let _held = hold(&directory)?;
    let mut receiver = Receiver::new(&directory, &args.socket.socket);
    let mut program = Program::new(args, directory);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "whoever supervises this process can't be told how it is");
    }
    loop {
        let is_last = context.cancel.is_set();
        if is_last {
            program.end()?;
        }
        let passed = receiver.pass();
        if is_last {
            passed.advise("what is not archived stays in the spool, and goes on with the next `backlane wal receive`")?;
            return Ok(Outcome::Done);
        }
        if let Err(error) = passed {
            tracing::warn!(%error, "not archived yet; trying again");
        }
        program.keep_running(context);
        context.runtime.block_on(async {
            tokio::select! {
                () = context.cancel.wait() => {}
                () = tokio::time::sleep(args.every) => {}
            }
        });
    }
}

/// Makes the directory where it is missing, and has it alone for as long as the answer lives.
fn hold(directory: &Path) -> Result<File> {
    let cannot = || format!("cannot use {}", directory.display());
    let mut make = DirBuilder::new();
    make.recursive(true).mode(0o700);
    make.create(directory).with_context(cannot)?;
    let held = File::open(directory).with_context(cannot)?;
    flock(&held, FlockOperation::NonBlockingLockExclusive)
        .with_context(cannot)
        .advise(
            "another `backlane wal receive` works there: each slot has a directory of its own",
        )?;
    Ok(held)
}

/// `pg_receivewal`, as long as it lives.
struct Program<'a> {
    args: &'a WalReceiveArgs,
    directory: PathBuf,
    running: Option<Child>,
    /// Not to be started before.
    pause: Option<Instant>,
}

impl<'a> Program<'a> {
    fn new(args: &'a WalReceiveArgs, directory: PathBuf) -> Self {
        Self {
            args,
            directory,
            running: None,
            pause: None,
        }
    }

    /// Starts it where it doesn't run.
    fn keep_running(&mut self, context: &Context) {
        match self.running.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => return,
            Some(Ok(Some(status))) => {
                tracing::warn!(%status, "{PROGRAM} has ended; starting it again");
                self.running = None;
                self.pause = Some(Instant::now() + RESTART_PAUSE);
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "whether {PROGRAM} runs can't be told");
                return;
            }
            None => {}
        }
        if self.pause.is_some_and(|pause| Instant::now() < pause) {
            return;
        }
        match self.start(context) {
            Ok(child) => {
                tracing::info!(slot = self.args.slot, "receiving");
                self.running = Some(child);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "not receiving; trying again");
                self.pause = Some(Instant::now() + RESTART_PAUSE);
            }
        }
    }

    fn start(&self, context: &Context) -> Result<Child> {
        let program = match &self.args.program {
            Some(program) => program.clone(),
            None => self.find(context)?,
        };
        let mut make = self.command(&program);
        let made = make.args(["--create-slot", "--if-not-exists"]).output();
        let made = made.with_context(|| cannot_start(&program))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            bail!("the slot {} can't be made: {said}", self.args.slot);
        }
        let mut receive = self.command(&program);
        receive
            .args(["--no-loop", "--directory"])
            .arg(&self.directory);
        if self.args.synchronous {
            receive.arg("--synchronous");
        }
        receive.spawn().with_context(|| cannot_start(&program))
    }

    /// What ends when the thread ends that starts it, which is this process's first.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        command.args(["--no-password", "--dbname", &self.args.postgres]);
        command.args(["--slot", &self.args.slot]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if std::env::var_os("PGCONNECT_TIMEOUT").is_none() {
            command.env("PGCONNECT_TIMEOUT", CONNECT_SECONDS);
        }
        command
    }

    /// The program of the server's version: an older one may not know its WAL.
    fn find(&self, context: &Context) -> Result<PathBuf> {
        let is_cancelled = || context.cancel.is_set();
        let mut session = Session::open(&self.args.postgres, &is_cancelled)?;
        let major = session.major(&is_cancelled)?;
        let places = PLACES
            .map(|(before, after)| PathBuf::from(format!("{before}{major}{after}")).join(PROGRAM));
        let found = places.into_iter().find(|path| path.exists());
        Ok(found.unwrap_or_else(|| PROGRAM.into()))
    }

    /// Has it write down what it has, and end.
    fn end(&mut self) -> Result<()> {
        let Some(mut child) = self.running.take() else {
            return Ok(());
        };
        let cannot = || format!("cannot end {PROGRAM}");
        if child.try_wait().with_context(cannot)?.is_none() {
            kill_process(Pid::from_child(&child), Signal::TERM).with_context(cannot)?;
        }
        let deadline = Instant::now() + END_WAIT;
        while child.try_wait().with_context(cannot)?.is_none() {
            if Instant::now() > deadline {
                child.kill().with_context(cannot)?;
            }
            std::thread::sleep(END_LOOK);
        }
        Ok(())
    }
}

fn cannot_start(program: &Path) -> String {
    format!("cannot start {} (by setpriv)", program.display())
}
