//! `fault-matrix`: the cells of the fault matrix, one after the other, and a table of what came of them.
//!
//! Needs root, and `backlane` beside it; `cargo xtask matrix` builds both.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use backlane_e2e::matrix::{Cell, Ground, expected, run, table};
use backlane_e2e::{CHAIN, commit_seed, ready_with};
use clap::Parser;

/// Faults in the middle of jobs, and what comes of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cells whose line, as --list shows it, has every one of these texts.
    #[arg(long)]
    only: Vec<String>,
    /// Only so many cells, which follow from the seed.
    #[arg(long)]
    cells: Option<usize>,
    /// The seed [default: that of the commit].
    #[arg(long, requires = "cells")]
    seed: Option<u64>,
    /// Print the cells, and what has to come of each, without running them.
    #[arg(long)]
    list: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut cells = match arguments.cells {
        Some(count) => Cell::sample(arguments.seed.map_or_else(commit_seed, Ok)?, count),
        None => Cell::all(),
    };
    cells.retain(|cell| {
        let line = cell.to_string();
        arguments.only.iter().all(|text| line.contains(text))
    });
    if arguments.list {
        for cell in &cells {
            println!("{cell}: {:?}", expected(*cell));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !ready_with(&CHAIN) || !ready_with(&["restic", "ss"]) {
        return Ok(ExitCode::FAILURE);
    }
    let ground = Ground::new()?;
    let mut rows = Vec::new();
    for (number, cell) in (1..).zip(&cells) {
        let start = Instant::now();
        let seen = run(*cell, &ground).map_err(|why| format!("{why:#}"));
        let elapsed = start.elapsed().as_secs();
        eprint!("{number} of {}, {elapsed} s, {cell}: ", cells.len());
        match &seen {
            Ok(seen) => eprintln!("{seen:?}"),
            Err(why) => eprintln!("unlawful: {why}"),
        }
        rows.push((*cell, seen));
    }
    print!("{}", table(&rows));
    Ok(match rows.iter().all(|(_, seen)| seen.is_ok()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
