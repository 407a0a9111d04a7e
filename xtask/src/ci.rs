//! Everything that a change must pass, step by step; the first failure ends the run.
//!
//! Steps run in the order in which they are cheapest to fail. A tool that is not installed and has a substitute is
//! replaced, and said to be; nothing is skipped in silence.

use anyhow::{Context, Result};
use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// Runs every step and prints the time of each.
///
/// # Errors
/// When a step can't be started. A step that fails is reported by the exit code.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for (name, arguments) in steps(root) {
        println!("== {name}: cargo {}", arguments.join(" "));
        let start = Instant::now();
        let status = Command::new(env!("CARGO"))
            .args(&arguments)
            .current_dir(root)
            .status()
            .with_context(|| format!("cannot start cargo for the step {name}"))?;
        times.push((name, start.elapsed()));
        if !status.success() {
            print_times(&times);
            println!("ci: the step {name} failed ({status})");
            return Ok(ExitCode::FAILURE);
        }
    }
    print_times(&times);
    Ok(ExitCode::SUCCESS)
}

fn steps(root: &Path) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut steps = vec![
        ("format", vec!["fmt", "--all", "--check"]),
        // The fuzz targets have a lock file of their own, which a new dependency of a crate leaves behind.
        (
            "locks",
            vec!["fetch", "--locked", "--manifest-path", "fuzz/Cargo.toml"],
        ),
        ("tidy", vec!["xtask", "tidy"]),
        (
            "clippy",
            vec![
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ],
        ),
    ];
    if installed(root, &["deny", "--version"]) {
        // Advisories need a download and change without a change of ours: the rest is what a change can break.
        steps.push((
            "dependencies",
            vec!["deny", "check", "bans", "licenses", "sources"],
        ));
    } else {
        println!("== dependencies: cargo-deny is not installed, deny.toml is not checked");
    }
    // Tests with the rest: what only they need changes features of dependencies, which would be built twice.
    steps.push(("build", vec!["test", "--workspace", "--locked", "--no-run"]));
    steps.push((
        "doc tests",
        vec!["test", "--workspace", "--locked", "--doc", "--quiet"],
    ));
    steps.push((
        "simulation",
        vec!["xtask", "sim", "--seeds", crate::sim::SEEDS_OF_CI],
    ));
    steps.push(("fuzz", vec!["xtask", "fuzz", "--seconds", "5"]));
    if installed(root, &["nextest", "--version"]) {
        steps.push((
            "tests",
            vec![
                "nextest",
                "run",
                "--workspace",
                "--locked",
                "--no-fail-fast",
            ],
        ));
    } else {
        println!("== tests: cargo-nextest is not installed, cargo test takes its place");
        steps.push((
            "tests",
            vec![
                "test",
                "--workspace",
                "--locked",
                "--lib",
                "--bins",
                "--tests",
            ],
        ));
    }
    steps
}

fn installed(root: &Path, arguments: &[&str]) -> bool {
    Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn print_times(times: &[(&str, Duration)]) {
    println!();
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("{:>8.1} s  in all", total.as_secs_f64());
}
