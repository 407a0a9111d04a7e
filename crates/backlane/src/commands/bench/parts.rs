//! The parts of a bench of storage sockets: each takes turns with its yardstick, and brings figures.

use super::{
    Bench,
    figure::{Figure, Target, Turn, median},
    fio::RawShape,
    series::{Distribution, FramePoint},
    tls,
    units::Unit,
};
use crate::cli::BenchPart;
use anyhow::Result;
use storage_socket::bench::{FlowReport, News, Pair, Seal, Shape, Way};

const MIB: usize = 1 << 20;
const SEALS: [(Seal, &str); 2] = [(Seal::Checksum, "CRC"), (Seal::Aes256Gcm, "AES-256-GCM")];
const WAYS: [(Way, &str); 3] = [
    (Way::ToCoordinator, "to the coordinator"),
    (Way::ToMember, "to the member"),
    (Way::Both, "both ways, sum"),
];

/// How raw is taken for a stream: as many jobs that read and that write as the stream has directions, with its
/// transfers under way and its ring. Each direction writes and reads every byte once, so half of the sum of all jobs
/// is what both directions together could do.
pub(super) fn raw_shape(shape: &Shape, way: Way) -> RawShape {
    RawShape {
        frame_bytes: shape.frame_bytes,
        depth: shape.depth,
        window_bytes: shape.window_bytes,
        jobs: if way == Way::Both { 2 } else { 1 },
    }
}

/// Throughput in all ways, for both protections, at 1 and 4 MiB.
pub(super) fn throughput(bench: &mut Bench<'_>) -> Result<()> {
    for frame_bytes in [MIB, 4 * MIB] {
        for (way, way_name) in WAYS {
            let shapes = SEALS.map(|(seal, _)| Shape::with_frames(seal, frame_bytes));
            let mut turns = [Vec::new(), Vec::new()];
            let mut pair = bench.pair(News::Polled)?;
            for round in 0..bench.rounds {
                // Raw lies between both, and each of them is first in every other round.
                let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
                let first = pair.flow(&shapes[order[0]], way, bench.slice)?;
                let yardstick = bench.raw(&raw_shape(&shapes[0], way))?;
                let second = pair.flow(&shapes[order[1]], way, bench.slice)?;
                for (index, report) in order.into_iter().zip([first, second]) {
                    turns[index].push(Turn {
                        value: report.bytes_per_s(),
                        yardstick,
                    });
                }
            }
            pair.finish()?;
            for (index, (seal, seal_name)) in SEALS.into_iter().enumerate() {
                let least = match seal {
                    Seal::Aes256Gcm if frame_bytes == MIB => 0.85,
                    _ => 0.90,
                };
                let what = format!("{seal_name}, {} MiB frames, {way_name}", frame_bytes / MIB);
                bench.add(
                    Figure::of_turns(
                        BenchPart::Throughput,
                        what,
                        Unit::BytesPerSecond,
                        &turns[index],
                        bench.raw_name(),
                    )
                    .aiming(Target::RatioAtLeast(least)),
                );
            }
        }
    }
    Ok(())
}

/// CPU seconds for a GiB of both processes, beside TLS over TCP.
pub(super) fn cpu(bench: &mut Bench<'_>) -> Result<()> {
    let shape = Shape::new(Seal::Aes256Gcm);
    let mut turns = Vec::new();
    let mut device_bytes = Vec::new();
    let mut pair = bench.pair(News::Polled)?;
    for _ in 0..bench.rounds {
        let report = pair.flow(&shape, Way::ToCoordinator, bench.slice)?;
        let tls = tls::measure(bench.slice, &mut bench.command("tls-child"))?;
        turns.push(Turn {
            value: report.cpu_seconds_per_gib(),
            yardstick: tls.cpu_seconds_per_gib,
        });
        device_bytes.push(report.device_bytes_per_byte());
    }
    pair.finish()?;
    let yardstick = "TLS 1.3 over loopback TCP";
    bench.add(
        Figure::of_turns(
            BenchPart::Cpu,
            "sender and receiver, AES-256-GCM",
            Unit::CpuSecondsPerGib,
            &turns,
            yardstick,
        )
        .aiming(Target::RatioAtMost(0.60)),
    );
    bench.add(Figure::alone(
        BenchPart::Cpu,
        "bytes of the devices for each byte (2 would be ideal)",
        Unit::Part,
        median(device_bytes),
    ));
    Ok(())
}

/// A message of 4 KiB one way, beside a raw write and read.
pub(super) fn latency(bench: &mut Bench<'_>) -> Result<()> {
    let messages = bench.messages();
    let shape = Shape::new(Seal::Aes256Gcm);
    let kinds = [
        (News::Rung, "with doorbells", Some(1.2)),
        (News::PolledHot, "polling without a pause", Some(1.0)),
        (News::Polled, "polling that backs off", None),
    ];
    let mut all = kinds.map(|_| Vec::new());
    let mut turns = kinds.map(|_| Vec::new());
    for _ in 0..bench.rounds {
        for (index, (news, _, _)) in kinds.into_iter().enumerate() {
            let mut pair = bench.pair(news)?;
            let halves = pair.latency(&shape, messages)?;
            pair.finish()?;
            let yardstick = bench
                .raw_latency()?
                .map_or(f64::NAN, |raw| raw.write + raw.read);
            turns[index].push(Turn {
                value: median(halves.clone()),
                yardstick,
            });
            all[index].extend(halves);
        }
    }
    for (index, (_, name, most)) in kinds.into_iter().enumerate() {
        let distribution = Distribution::new(name, std::mem::take(&mut all[index]));
        let yardstick = "raw write + read of 4 KiB, p50";
        let unit = Unit::Microseconds;
        let what = format!("p50, {name}");
        let figure = if bench.has_fio() {
            Figure::of_turns(BenchPart::Latency, what, unit, &turns[index], yardstick)
        } else {
            Figure::alone(BenchPart::Latency, what, unit, distribution.at(0.5))
        };
        bench.raw_us = figure.yardstick.as_ref().map(|yard| yard.value);
        bench.add(match most {
            // What is added to so fast a device counts, not the ratio.
            Some(_) if bench.is_ram() => figure.aiming(Target::ExcessAtMost(10.0)),
            Some(most) => figure.aiming(Target::RatioAtMost(most)),
            None => figure,
        });
        bench.latencies.push(distribution);
    }
    for index in 0..bench.latencies.len() {
        for (share, label) in [(0.9, "p90"), (0.99, "p99"), (0.999, "p99.9")] {
            let distribution = &bench.latencies[index];
            let what = format!("{label}, {}", distribution.name);
            let us = distribution.at(share);
            bench.add(Figure::alone(
                BenchPart::Latency,
                what,
                Unit::Microseconds,
                us,
            ));
        }
    }
    Ok(())
}

/// Memory for frames, beside what a stream of these options takes at most.
pub(super) fn memory(bench: &mut Bench<'_>) -> Result<()> {
    let devices = bench.options.devices.len();
    for frame_bytes in [MIB, 4 * MIB] {
        let shape = Shape::with_frames(Seal::Aes256Gcm, frame_bytes);
        // Processes of its own: what was resident before would be counted with it.
        let mut pair = bench.pair(News::Polled)?;
        let report = pair.flow(&shape, Way::Both, bench.slice)?;
        pair.finish()?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "bytes of memory, far below 2^53"
        )]
        let turn = Turn {
            value: report.buffer_bytes as f64,
            yardstick: 2.0 * shape.options().buffer_bytes_max(devices) as f64,
        };
        let what = format!(
            "buffers of both ends, {} MiB frames, both ways",
            frame_bytes / MIB
        );
        bench.add(
            Figure::of_turns(BenchPart::Memory, what, Unit::Bytes, &[turn], "bound")
                .aiming(Target::RatioAtMost(1.0)),
        );
        #[expect(
            clippy::cast_precision_loss,
            reason = "bytes of memory, far below 2^53"
        )]
        let resident = report.resident_bytes_max[1] as f64;
        let what = format!(
            "resident at most, member's process, {} MiB frames",
            frame_bytes / MIB
        );
        bench.add(Figure::alone(
            BenchPart::Memory,
            what,
            Unit::Bytes,
            resident,
        ));
    }
    Ok(())
}

/// What goes to each device, and what the slowest of them costs.
pub(super) fn stripe(bench: &mut Bench<'_>) -> Result<()> {
    let devices = bench.options.devices.clone();
    let shape = Shape::new(Seal::Aes256Gcm);
    let raw = raw_shape(&shape, Way::ToCoordinator);
    let mut turns = Vec::new();
    let mut shares = Vec::new();
    let mut alone = vec![Vec::new(); devices.len()];
    let mut pair = bench.pair(News::Polled)?;
    for _ in 0..bench.rounds {
        let report = pair.flow(&shape, Way::ToCoordinator, bench.slice)?;
        let mut slowest = f64::INFINITY;
        for (device, rates) in devices.iter().zip(&mut alone) {
            let rate = bench.raw_of(device, &raw)?;
            slowest = slowest.min(rate);
            rates.push(rate);
        }
        turns.push(Turn {
            value: report.bytes_per_s(),
            yardstick: slowest * f64::from(u8::try_from(devices.len())?),
        });
        shares.push(least_share(&report));
    }
    pair.finish()?;
    let what = format!("stream over {} devices", devices.len());
    let yardstick = "slowest device alone, × devices";
    bench.add(
        Figure::of_turns(
            BenchPart::Stripe,
            what,
            Unit::BytesPerSecond,
            &turns,
            yardstick,
        )
        .aiming(Target::RatioAtLeast(0.85)),
    );
    bench.add(Figure::alone(
        BenchPart::Stripe,
        "bytes of the device with the least, of an equal share",
        Unit::Part,
        median(shares),
    ));
    for (device, rates) in devices.iter().zip(alone) {
        let what = format!("{} alone, raw", device.display());
        bench.add(Figure::alone(
            BenchPart::Stripe,
            what,
            Unit::BytesPerSecond,
            median(rates),
        ));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn least_share(report: &FlowReport) -> f64 {
    let bytes = report.device_bytes();
    let equal = bytes.iter().sum::<u64>() as f64 / bytes.len() as f64;
    bytes.into_iter().min().unwrap_or(0) as f64 / equal
}

/// Throughput by frame size.
pub(super) fn frames(bench: &mut Bench<'_>) -> Result<()> {
    for shift in 16..=24 {
        let shape = Shape::with_frames(Seal::Aes256Gcm, 1 << shift);
        let mut turns = Vec::new();
        let mut pair: Pair = bench.pair(News::Polled)?;
        for _ in 0..bench.rounds {
            let report = pair.flow(&shape, Way::ToCoordinator, bench.slice)?;
            let yardstick = bench.raw(&raw_shape(&shape, Way::ToCoordinator))?;
            turns.push(Turn {
                value: report.bytes_per_s(),
                yardstick,
            });
        }
        pair.finish()?;
        let size = crate::output::bytes(1 << shift);
        let what = format!("AES-256-GCM, {size} frames, depth {}", shape.depth);
        let figure = Figure::of_turns(
            BenchPart::Frames,
            what,
            Unit::BytesPerSecond,
            &turns,
            bench.raw_name(),
        );
        bench.frames.push(FramePoint {
            frame_bytes: shape.frame_bytes,
            stream: figure.value,
            raw: figure
                .yardstick
                .as_ref()
                .map_or(f64::NAN, |yard| yard.value),
        });
        bench.add(figure);
    }
    Ok(())
}
