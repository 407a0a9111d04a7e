//! The simulator of storage sockets: many seeds, one seed again, or deliberate faults that it has to find.
//!
//! It is built in a profile of its own, as fast as a release and with the machines' assertions. Without `--seed` the
//! first seed follows from the commit: what one run of CI tries is not what the next one tries, and can be tried again.

mod mutants;

use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    path::Path,
    process::{Command, ExitCode},
};

/// What to simulate.
#[derive(Args)]
pub(crate) struct SimArgs {
    /// How many seeds; with --mutants, how many at most for each.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; a number that follows from the commit if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Apply each deliberate fault to a copy of the protocol, and fail if one isn't found.
    #[arg(long)]
    mutants: bool,
    /// With --mutants: only those whose name contains this.
    #[arg(long, requires = "mutants")]
    only: Option<String>,
    /// Print what happened last in one run, whether it failed or not.
    #[arg(long)]
    trace: bool,
}

/// Seeds of a run in CI: enough that every kind of fault and every transition has to be hit.
pub(crate) const SEEDS_OF_CI: &str = "20000";
/// Seeds from which on every kind of fault and every transition has to be hit.
const SEEDS_FOR_COVERAGE: u64 = 10_000;
/// Seeds that a deliberate fault is given.
const SEEDS_FOR_MUTANT: u64 = 4000;

/// Runs what was asked for.
///
/// # Errors
/// When the simulator can't be built or started. What it finds is told by the exit code.
pub(crate) fn run(root: &Path, args: &SimArgs) -> Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => commit_seed(root)?,
    };
    if args.mutants {
        let seeds = args.seeds.unwrap_or(SEEDS_FOR_MUTANT);
        return mutants::run(root, seed, seeds, args.only.as_deref());
    }
    let seeds = args.seeds.unwrap_or(1000);
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--profile", "sim", "--locked"])
        .args(["-p", "storage-socket-sim", "--", "--seed"])
        .arg(seed.to_string())
        .arg("--seeds")
        .arg(seeds.to_string())
        .current_dir(root);
    if seeds >= SEEDS_FOR_COVERAGE {
        command.arg("--coverage");
    }
    if args.trace {
        command.arg("--trace");
    }
    let status = command.status().context("cannot start the simulator")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The seed that follows from the commit that is checked out.
fn commit_seed(root: &Path) -> Result<u64> {
    let output = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!("git rev-parse failed: give a --seed");
    }
    let name = String::from_utf8(output.stdout).context("a commit's name is not UTF-8")?;
    let digits = name.get(..8).context("a commit's name is too short")?;
    Ok(u64::from_str_radix(digits, 16)? * 1_000_000)
}
