//! Runs seeds of the simulator: `storage-socket-sim [--seed N] [--seeds N]`; exits with 1 at the first that fails.

use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut seed, mut seeds) = (0_u64, 100_u64);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (argument.as_str(), value) {
            ("--seed", Some(value)) => seed = value,
            ("--seeds", Some(value)) => seeds = value,
            _ => {
                eprintln!("usage: storage-socket-sim [--seed N] [--seeds N]");
                return ExitCode::from(2);
            }
        }
    }
    let (mut finished, mut frames, mut resends) = (0, 0, 0);
    for seed in seed..seed.saturating_add(seeds) {
        match storage_socket_sim::run(seed) {
            Ok(report) => {
                finished += report.finished;
                frames += report.frames;
                resends += report.resends;
                if seeds == 1 {
                    println!("seed {seed}: {report:?}");
                }
            }
            Err(what) => {
                eprintln!("{what}");
                return ExitCode::from(1);
            }
        }
    }
    println!(
        "{seeds} seeds: {finished} streams finished, {frames} frames delivered, {resends} resends"
    );
    ExitCode::SUCCESS
}
