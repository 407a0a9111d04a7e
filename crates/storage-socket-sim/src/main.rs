//! Runs seeds of the simulator; `cargo xtask sim` builds and calls it.
//!
//! `storage-socket-sim [--seed N] [--seeds N] [--threads N] [--failures N] [--coverage] [--quiet] [--trace]` exits with 1 at a seed that
//! fails, of which it prints the seed, the replay and a shrunken log; with `--coverage` also if a kind of fault or a
//! transition was never hit. `--trace` prints what happened last in a single run.

use std::process::ExitCode;
use storage_socket_sim::{
    Broken, Run, Scenario, World,
    fleet::{Fleet, Total, threads},
    run_world,
    shrink::shrink,
};

#[derive(Clone, Copy)]
struct Options {
    fleet: Fleet,
    coverage: bool,
    quiet: bool,
    trace: bool,
}

fn main() -> ExitCode {
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!(
            "usage: storage-socket-sim [--seed N] [--seeds N] [--threads N] [--failures N] [--coverage] [--quiet] [--trace]"
        );
        return ExitCode::from(2);
    };
    if options.trace {
        return trace(options.fleet.seed);
    }
    let total = options.fleet.sail();
    print_total(options.fleet.seed, &total);
    for (seed, broken) in total.failed.iter().skip(1) {
        println!("seed {seed} as well: {broken}");
    }
    if let Some((seed, broken)) = total.failed.first() {
        print_failure(*seed, broken, options.quiet);
        return ExitCode::FAILURE;
    }
    if options.coverage {
        for (name, count) in total.sum.hit.rows() {
            println!("{count:>12}  {name}");
        }
        let missing = total.sum.hit.missing();
        if !missing.is_empty() {
            println!("never hit: {}", missing.join("; "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        fleet: Fleet {
            seed: 0,
            seeds: 100,
            threads: threads(),
            failures_max: 1,
        },
        coverage: false,
        quiet: false,
        trace: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next()?.parse::<u64>().ok();
        match argument.as_str() {
            "--seed" => options.fleet.seed = value()?,
            "--seeds" => options.fleet.seeds = value()?,
            "--threads" => options.fleet.threads = usize::try_from(value()?).ok()?,
            "--failures" => options.fleet.failures_max = usize::try_from(value()?).ok()?,
            "--coverage" => options.coverage = true,
            "--quiet" => options.quiet = true,
            "--trace" => options.trace = true,
            _ => return None,
        }
    }
    Some(options)
}

/// Prints what happened last in one run.
fn trace(seed: u64) -> ExitCode {
    let mut world = World::new(seed, Scenario::from_seed(seed));
    world.trace();
    let ended = run_world(&mut world);
    world
        .take_trace()
        .iter()
        .for_each(|line| println!("{line}"));
    println!("{:?}", Scenario::from_seed(seed));
    match ended {
        Ok(Run { report, .. }) => {
            println!("{report:?}");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("{broken}");
            ExitCode::FAILURE
        }
    }
}

fn print_total(first: u64, total: &Total) {
    let seconds = total.took.as_secs_f64();
    let report = &total.sum.report;
    println!(
        "{} seeds from {first} in {seconds:.1} s ({:.0} a second): {} streams finished, {} frames delivered, {} damaged reads, {} resends",
        total.runs,
        f64::from(u32::try_from(total.runs).unwrap_or(u32::MAX)) / seconds.max(0.001),
        report.finished,
        report.frames,
        report.damaged,
        report.resends
    );
    println!(
        "{} I/Os, {} virtual seconds; settled {} virtual ms after the last fault at the latest",
        report.ios,
        report.millis / 1000,
        report.settled_max
    );
    println!(
        "streams reset on the way: {:?}; requests refused: {:?}",
        report.reset, report.refused
    );
}

fn print_failure(seed: u64, broken: &Broken, quiet: bool) {
    println!("seed {seed}: {broken}");
    println!("replay: cargo xtask sim --seed {seed} --seeds 1");
    if !quiet {
        let shrunken = shrink(seed, Scenario::from_seed(seed), broken.clone());
        print!("{}", shrunken.describe());
        println!("seed {seed}: {broken}");
        println!("replay: cargo xtask sim --seed {seed} --seeds 1");
    }
}
