//! The parts of a bench with many members at once: silent ones, and ones that all send.

use super::{
    Bench,
    figure::{Figure, Target, Turn, median},
    parts::raw_shape,
    units::Unit,
};
use crate::cli::BenchPart;
use anyhow::Result;
use storage_socket::{
    Timeouts,
    bench::{IdleOptions, Seal, Shape, ShareReport, Way, idle as watch, share as flood},
};

const MEMBERS: u32 = 64;
const CLIENTS: u32 = 32;
/// Processes that the clients are in.
const PROCESSES: usize = 4;

/// What a listener costs whose members have no network and are silent, and how soon it hears one of them.
pub(super) fn idle(bench: &mut Bench<'_>) -> Result<()> {
    let mut options = bench.options.clone();
    // With a shorter one, an idle pool would cost more than it does.
    options.format.timeouts.heartbeat = Timeouts::default().heartbeat;
    options.format.force = true;
    let mut shape = Shape::with_frames(Seal::Aes256Gcm, 64 << 10);
    shape.window_bytes = 1 << 20;
    let how = IdleOptions {
        members: MEMBERS,
        watch: bench.slice * 20,
        calls: bench.rounds,
        rest: bench.slice * 4,
    };
    let report = watch(&options, &shape, &how, &mut bench.command("fleet-child"))?;
    let part = BenchPart::Idle;
    let add = |bench: &mut Bench<'_>, what: &str, unit, value, target: Option<f64>| {
        let figure = Figure::alone(part, what, unit, value);
        bench.add(match target {
            Some(most) => figure.aiming(Target::ValueAtMost(most)),
            None => figure,
        });
    };
    let what = format!("listener with {MEMBERS} silent members, of a core");
    let percent = report.core_share * 100.0;
    add(bench, &what, Unit::PercentOfCore, percent, Some(0.5));
    add(
        bench,
        "its reads of the devices",
        Unit::PerSecond,
        report.reads_per_s,
        None,
    );
    for (what, seconds) in [
        (
            "first byte after a rest, there and back, slowest",
            &report.answer_seconds,
        ),
        (
            "connect after a rest, first byte, and back, slowest",
            &report.call_seconds,
        ),
    ] {
        let slowest = seconds.iter().copied().fold(0.0, f64::max);
        add(
            bench,
            what,
            Unit::Milliseconds,
            slowest * 1000.0,
            Some(100.0),
        );
    }
    Ok(())
}

/// Clients that send to the coordinator at once.
pub(super) fn share(bench: &mut Bench<'_>) -> Result<()> {
    let mut options = bench.options.clone();
    options.format.force = true;
    let raw = raw_shape(&Shape::new(Seal::Aes256Gcm), Way::ToCoordinator);
    let mut shape = Shape::new(Seal::Aes256Gcm);
    // Two rings a client, on half of the devices.
    let smallest = bench
        .facts
        .iter()
        .map(|facts| facts.bytes)
        .min()
        .unwrap_or(0);
    let window = smallest / 4 / u64::from(CLIENTS);
    shape.window_bytes = (window >> 20 << 20).clamp(1 << 20, 16 << 20);
    shape.depth = shape.depth.min(4);
    let mut turns = Vec::new();
    let mut furthest = Vec::new();
    for _ in 0..bench.rounds {
        let yardstick = bench.raw(&raw)?;
        let mut children = [(); PROCESSES].map(|()| bench.command("fleet-child"));
        let times = (bench.slice * 2, bench.slice * 6);
        let report = flood(&options, &shape, CLIENTS, times, &mut children)?;
        turns.push(Turn {
            value: report.total(),
            yardstick,
        });
        furthest.push(furthest_from_equal(&report));
    }
    let what = format!("{CLIENTS} clients at once, together");
    let unit = Unit::BytesPerSecond;
    bench.add(
        Figure::of_turns(BenchPart::Share, what, unit, &turns, bench.raw_name())
            .aiming(Target::RatioAtLeast(0.85)),
    );
    bench.add(
        Figure::alone(
            BenchPart::Share,
            "furthest from an equal share, of it",
            Unit::Part,
            median(furthest),
        )
        .aiming(Target::ValueAtMost(0.20)),
    );
    Ok(())
}

fn furthest_from_equal(report: &ShareReport) -> f64 {
    let [least, greatest] = report.extremes();
    (1.0 - least).max(greatest - 1.0)
}
