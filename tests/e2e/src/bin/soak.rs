//! `soak`: jobs beside each other while random faults come and go, and what was left of it all.
//!
//! Needs root, and `backlane` beside it; `cargo xtask soak` builds both.

use std::time::Duration;

use anyhow::{Result, ensure};
use backlane_e2e::soak::{Plan, soak};
use backlane_e2e::{CHAIN, commit_seed, ready_with};
use clap::Parser;

/// Jobs beside each other while random faults come and go.
#[derive(Debug, Parser)]
struct Arguments {
    /// For how long; the last jobs and the checks come after that.
    #[arg(long, default_value_t = 20)]
    minutes: u32,
    /// The seed [default: that of the commit].
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        ready_with(&CHAIN) && ready_with(&["restic", "ss"]),
        "this machine can't soak"
    );
    let seed = arguments.seed.map_or_else(commit_seed, Ok)?;
    println!("{} minutes, seed {seed}", arguments.minutes);
    let soaked = soak(Plan {
        seed,
        length: Duration::from_secs(60) * arguments.minutes,
    })?;
    for (what, count) in soaked.outcomes.iter().chain(&soaked.faults) {
        println!("{count:>6}  {what}");
    }
    for (when, footprint, sessions) in [
        ("at half-time", &soaked.footprints[0], soaked.sessions[0]),
        ("at the end", &soaked.footprints[1], soaked.sessions[1]),
    ] {
        println!(
            "{when}, the server holds {} open files, {} threads, {} MiB of memory; the pool has room for {sessions} sessions",
            footprint.open_files(),
            footprint.threads,
            footprint.memory_bytes >> 20
        );
    }
    Ok(())
}
