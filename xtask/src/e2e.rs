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

/// Builds `backlane` and one of the programs, and runs the latter.
///
/// # Errors
/// When either can't be built. What the program finds is told by the exit code.
pub(crate) fn run(root: &Path, program: &str, args: &ProgramArgs) -> Result<ExitCode> {
    let cargo = |arguments: &[&str], rest: &[String]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(arguments).args(rest).current_dir(root);
        command.status().context("cannot start cargo")
    };
    let binary = ["build", "--quiet", "--locked", "--package", "backlane"];
    ensure!(cargo(&binary, &[])?.success(), "backlane can't be built");
    let run = [
        "run",
        "--quiet",
        "--locked",
        "--package",
        "backlane-e2e",
        "--bin",
        program,
        "--",
    ];
    Ok(match cargo(&run, &args.rest)?.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
