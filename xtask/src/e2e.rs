//! Programs of `tests/e2e` that take longer than a test may: built beside the binary that they run, then run.

use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    path::Path,
    process::{Command, ExitCode},
};

#[derive(Args)]
pub(crate) struct ProgramArgs {
    /// Given to the program; --help lists what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds `backlane` and one of the programs by a profile of cargo's, and runs the latter.
///
/// # Errors
/// When either can't be built. What the program finds is told by the exit code.
pub(crate) fn run(
    root: &Path,
    profile: &str,
    program: &str,
    args: &ProgramArgs,
) -> Result<ExitCode> {
    let cargo = |command: &str, package: &str, rest: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([command, "--quiet", "--locked", "--profile", profile]);
        cargo.args(["--package", package]).args(rest);
        let status = cargo.current_dir(root).status();
        status.context("cannot start cargo")
    };
    let is_built = cargo("build", "backlane", &[])?.success();
    ensure!(is_built, "backlane can't be built");
    let mut run = vec!["--bin", program, "--"];
    run.extend(args.rest.iter().map(String::as_str));
    Ok(match cargo("run", "backlane-e2e", &run)?.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
