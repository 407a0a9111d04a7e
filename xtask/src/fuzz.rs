//! Fuzzing with libFuzzer on the stable toolchain: coverage-guided, without `cargo-fuzz` and without nightly.
//!
//! libFuzzer is built by `libfuzzer-sys`; the compiler's own coverage pass is switched on by flags that are stable. What
//! is missing against `cargo +nightly fuzz` is the address sanitizer alone, and what is fuzzed has no `unsafe` code.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

/// What to fuzz.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
}

/// The targets, as in `fuzz/Cargo.toml`.
const TARGETS: &[&str] = &["fixed_blocks", "frames", "session", "connection"];
/// The target that is built and run only when it is asked for: it takes minutes to build.
const REPOSITORY: &str = "repository";
/// The triple is named, so that build scripts and macros are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Counters at each edge, and comparisons, as `cargo-fuzz` switches them on.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Builds the targets and runs each for a while.
///
/// # Errors
/// When they can't be built or started. What they find is told by the exit code.
pub(crate) fn run(root: &Path, args: &FuzzArgs) -> Result<ExitCode> {
    let targets = match &args.target {
        Some(one) => vec![one.as_str()],
        None => TARGETS.to_vec(),
    };
    let fuzz = root.join("fuzz");
    let target_dir = fuzz.join("target");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--target", TRIPLE])
        .args(
            targets
                .contains(&REPOSITORY)
                .then_some("--features=repository"),
        )
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", FLAGS)
        .current_dir(&fuzz)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the fuzz targets don't build");
    }
    for target in targets {
        let corpus = fuzz.join("corpus").join(target);
        let artifacts = fuzz.join("artifacts").join(target);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        // Inputs that reach far, so that a short run begins there; what a run finds goes to the corpus.
        let seeds = fuzz.join("seeds").join(target);
        println!("== fuzz target {target}");
        let status = Command::new(target_dir.join(TRIPLE).join("release").join(target))
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([
                "-print_final_stats=1",
                "-verbosity=0",
                "-max_len=5000",
                "-timeout=20",
            ])
            .args([&corpus, &seeds])
            .current_dir(&fuzz)
            .status()
            .with_context(|| format!("cannot start the target {target}"))?;
        if !status.success() {
            println!(
                "the fuzz target {target} failed: the input is in {}",
                artifacts.display()
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
