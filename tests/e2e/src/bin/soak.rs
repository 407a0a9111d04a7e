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
    soak(Plan {
        seed,
        length: Duration::from_secs(60) * arguments.minutes,
    })
}
