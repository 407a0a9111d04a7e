//! `job-bench`: backup and restore of one tree by storage and by the shaped network, in one run, with the ratios.
//!
//! Needs root and a release build of `backlane` beside it: `cargo build --release --workspace`, then
//! `target/release/job-bench`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Client, Job, Setup, System, Wire, plant, ready, same};
use clap::Parser;
use serde_json::{Value, json};

/// Backup and restore by storage and by the network, on this machine's disk and a wire of a given rate.
#[derive(Debug, Parser)]
struct Arguments {
    /// How much to move, in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// What the wire carries, in megabits a second each way.
    #[arg(long, default_value_t = 1000)]
    mbit: u32,
    /// Size of the pool, in MiB.
    #[arg(long, default_value_t = 1024)]
    pool_mib: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What one job did.
struct Row {
    route: &'static str,
    job: &'static str,
    bytes_per_second: f64,
    of_the_wire: f64,
    wire_bytes: u64,
    device_bytes: u64,
    peak_memory_bytes: u64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if !ready() {
        return Ok(ExitCode::FAILURE);
    }
    let wire = Wire {
        mbit: Some(arguments.mbit),
    };
    let system = System::new(&Setup {
        wire,
        pool_bytes: arguments.pool_mib << 20,
        ..Setup::default()
    })?;
    let source = system.path("source");
    plant(&source, arguments.mib << 20, 1)?;
    let mut rows = Vec::new();
    for (host, route) in [("by-storage", "require-storage"), ("by-network", "network")] {
        let client = system.client(host)?;
        rows.extend(measure(
            &system,
            &client,
            route,
            &source,
            arguments.mib << 20,
            wire,
        )?);
    }
    if arguments.json {
        println!("{}", document(&arguments, &rows));
    } else {
        print(&arguments, &rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// Backs up and restores by one route, and makes sure that the same came back.
fn measure(
    system: &System,
    client: &Client,
    route: &'static str,
    source: &Path,
    bytes: u64,
    wire: Wire,
) -> Result<Vec<Row>> {
    let target = system.path(format!("target-{route}"));
    let backup = system
        .backup(client, source, &["--route", route])?
        .success()?;
    let restore = system
        .restore(client, source, &target, &["--route", route])?
        .success()?;
    same(source, &target)?;
    std::fs::remove_dir_all(&target)?;
    let wire = wire.bytes_per_second().context("the wire is limited")? as f64;
    let row = |job, done: &Job| {
        let bytes_per_second = bytes as f64 / done.ended.elapsed.as_secs_f64();
        Row {
            route,
            job,
            bytes_per_second,
            of_the_wire: bytes_per_second / wire,
            wire_bytes: done.wire_bytes,
            device_bytes: done.device_bytes,
            peak_memory_bytes: done.ended.peak_memory_bytes,
        }
    };
    let rows = vec![row("backup", &backup), row("restore", &restore)];
    let by_storage = route == "require-storage";
    for row in &rows {
        ensure!(
            by_storage == (row.wire_bytes < bytes),
            "{} took the other route",
            row.job
        );
    }
    Ok(rows)
}

fn print(arguments: &Arguments, rows: &[Row]) {
    println!(
        "{} MiB that can't be compressed; a wire of {} Mbit/s; whole jobs, from start to end",
        arguments.mib, arguments.mbit
    );
    println!(
        "{:<18}{:<9}{:>10}{:>16}{:>16}{:>16}{:>12}",
        "route", "job", "MB/s", "of the wire", "MiB on wire", "MiB on disk", "memory MiB"
    );
    for row in rows {
        println!(
            "{:<18}{:<9}{:>10.1}{:>15.2}x{:>16.1}{:>16.1}{:>12}",
            row.route,
            row.job,
            row.bytes_per_second / 1e6,
            row.of_the_wire,
            row.wire_bytes as f64 / 1_048_576.0,
            row.device_bytes as f64 / 1_048_576.0,
            row.peak_memory_bytes >> 20,
        );
    }
    for (job, ratio) in ratios(rows) {
        println!("{job}: storage is {ratio:.2} times as fast as the network");
    }
}

/// How much faster storage was than the network, for each job.
fn ratios(rows: &[Row]) -> Vec<(&'static str, f64)> {
    let (storage, network) = rows.split_at(rows.len() / 2);
    let pairs = storage.iter().zip(network);
    pairs
        .map(|(s, n)| (s.job, s.bytes_per_second / n.bytes_per_second))
        .collect()
}

fn document(arguments: &Arguments, rows: &[Row]) -> Value {
    let jobs: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "route": row.route, "job": row.job, "bytes_per_s": row.bytes_per_second,
                "ratio_to_wire": row.of_the_wire, "wire_bytes": row.wire_bytes,
                "device_bytes": row.device_bytes, "peak_memory_bytes": row.peak_memory_bytes,
            })
        })
        .collect();
    let ratios: serde_json::Map<_, _> = ratios(rows)
        .into_iter()
        .map(|(job, ratio)| (job.to_owned(), json!(ratio)))
        .collect();
    json!({ "schema": 1, "mib": arguments.mib, "mbit": arguments.mbit, "jobs": jobs, "storage_to_network": ratios })
}
