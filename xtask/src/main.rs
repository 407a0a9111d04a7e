//! Tasks of the developers: `cargo xtask tidy`, `sim`, `fuzz`, `bench`, `rivals`, `matrix`, `soak` and `ci`.
//!
//! What belongs to one run of the toolchain is here rather than in shell; `./dev` only installs what is missing.

mod bench;
mod ci;
mod e2e;
mod fuzz;
mod sim;
mod tidy;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Tasks of the Backlane developers.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what the compiler doesn't: arrows between crates, module heads, file sizes, left-over markers.
    Tidy,
    /// Simulate storage sockets over faulty devices, from many seeds.
    Sim(sim::SimArgs),
    /// Fuzz the parsers and the connection machine for a while.
    Fuzz(fuzz::FuzzArgs),
    /// Measure storage sockets on four kinds of devices, as root: the figures of docs/performance.md.
    Bench(bench::BenchArgs),
    /// Back up and restore the same files by Backlane, restic, rustic and borg: the tables of docs/performance.md.
    Rivals(e2e::ProgramArgs),
    /// Make every fault at every moment of jobs, as root, and print what comes of them: docs/reliability.md.
    Matrix(e2e::ProgramArgs),
    /// Run jobs for a while as random faults come and go, as root, and look for what was kept: docs/reliability.md.
    Soak(e2e::ProgramArgs),
    /// Everything that a change must pass, with the time of each step.
    Ci,
}

fn main() -> Result<ExitCode> {
    let root = workspace_root()?;
    match Args::parse().task {
        Task::Tidy => {
            let findings = tidy::check(&root)?;
            for finding in &findings {
                eprintln!("{finding}");
            }
            Ok(if findings.is_empty() {
                ExitCode::SUCCESS
            } else {
                eprintln!("tidy: {} findings", findings.len());
                ExitCode::FAILURE
            })
        }
        Task::Sim(args) => sim::run(&root, &args),
        Task::Fuzz(args) => fuzz::run(&root, &args),
        Task::Bench(args) => bench::run(&root, &args),
        Task::Rivals(args) => e2e::run(&root, "release", "rivals", &args),
        Task::Matrix(args) => e2e::run(&root, "dev", "fault-matrix", &args),
        Task::Soak(args) => e2e::run(&root, "dev", "soak", &args),
        Task::Ci => ci::run(&root),
    }
}

fn workspace_root() -> Result<PathBuf> {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(PathBuf::from)
        .context("xtask stands in the workspace's root")
}
