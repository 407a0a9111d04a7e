//! Runs seeds of the simulator: `storage-socket-sim [--seed N] [--seeds N] [--trace]`; exits with 1 at the first that
//! fails. With `--trace` it prints what happened last in each run.

use std::{collections::BTreeMap, process::ExitCode};
use storage_socket_sim::{Report, Scenario, World, failure};

fn main() -> ExitCode {
    let (mut seed, mut seeds, mut trace) = (0_u64, 100_u64, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--trace" {
            trace = true;
            continue;
        }
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (argument.as_str(), value) {
            ("--seed", Some(value)) => seed = value,
            ("--seeds", Some(value)) => seeds = value,
            _ => {
                eprintln!("usage: storage-socket-sim [--seed N] [--seeds N] [--trace]");
                return ExitCode::from(2);
            }
        }
    }
    let mut total = Report::default();
    let mut ends = BTreeMap::<String, u32>::new();
    for seed in seed..seed.saturating_add(seeds) {
        let mut world = World::new(seed, Scenario::from_seed(seed));
        let ended = world.run();
        if trace {
            world.trace.iter().for_each(|line| println!("{line}"));
        }
        if let Err(what) = ended {
            eprintln!("{}", failure(seed, &world, &what));
            return ExitCode::from(1);
        }
        let report = world.report;
        total.finished += report.finished;
        total.frames += report.frames;
        total.resends += report.resends;
        total.damaged += report.damaged;
        for (reason, count) in report.reset.iter().chain(&report.refused) {
            *ends.entry(reason.clone()).or_default() += count;
        }
    }
    let Report {
        finished,
        frames,
        damaged,
        resends,
        ..
    } = total;
    println!(
        "{seeds} seeds: {finished} streams finished, {frames} frames delivered, {damaged} damaged reads, {resends} resends"
    );
    println!("streams reset and requests refused on the way: {ends:?}");
    ExitCode::SUCCESS
}
