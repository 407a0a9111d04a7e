//! How much goes through a stream, and what it costs.

use super::{
    BenchOptions, BenchReport, Errand, PATIENCE,
    counters::{cpu_seconds, device_bytes},
    latency::{MESSAGE_BYTES, ping},
};
use crate::{FormatOptions, Listener, Pool, PoolOptions, Role, Stream, format};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    path::{Path, PathBuf},
    process::Child,
    time::Instant,
};
use storage_socket_proto::{ListenProtection, Port, SlotIndex};

/// Formats `devices`, whatever is on them, and measures a stream. `spawn` starts a process that calls [`child`] with the same options.
///
/// # Errors
/// The devices are in use, or fail; the child does not come or goes.
pub fn run(
    devices: &[PathBuf],
    lock_dir: &Path,
    options: &BenchOptions,
    spawn: impl FnOnce(&Errand) -> io::Result<Child>,
) -> io::Result<BenchReport> {
    let again = FormatOptions {
        force: true,
        ..options.format.clone()
    };
    format(devices, &again)?;
    let slots = [SlotIndex(0)].into();
    let mut how = PoolOptions::new(Role::Coordinator { slots }, "bench", lock_dir);
    how.engine = options.engine;
    let pool = Pool::open(devices, how)?;
    pool.wait_ready(PATIENCE)?;
    let protection = if options.sealed {
        ListenProtection::Sealed
    } else {
        ListenProtection::Checksum
    };
    let listener = Listener::bind(&pool, Port(0), protection)?;
    let mut child = spawn(&Errand {
        devices: devices.to_vec(),
        lock_dir: lock_dir.to_owned(),
        port: listener.port().0,
    })?;
    let measured = receive(&pool, &listener, options);
    let ended = child.wait()?;
    let measured = measured?;
    if !ended.success() {
        return Err(io::Error::other(format!("the sending process: {ended}")));
    }
    let engine = pool.engine().0;
    pool.close();
    let [
        bytes,
        seconds,
        cpu_sender,
        device_sender,
        latency_us_p50,
        latency_us_p99,
    ] = measured.facts;
    let gibibytes = bytes / f64::from(1 << 30);
    Ok(BenchReport {
        engine,
        throughput_bytes_per_s: bytes / seconds,
        cpu_seconds_per_gib_sender: cpu_sender / gibibytes,
        cpu_seconds_per_gib_receiver: measured.cpu_receiver / gibibytes,
        device_bytes_per_byte: (device_sender + measured.device_receiver) / bytes,
        latency_us_p50,
        latency_us_p99,
    })
}

/// The other process: connects, sends for a while, measures the latency, and tells what it found.
///
/// # Errors
/// The pool can't be joined, or the stream is reset.
pub fn child(errand: &Errand, options: &BenchOptions) -> io::Result<()> {
    let slots = vec![SlotIndex(0)];
    let mut how = PoolOptions::new(Role::Member { slots }, "bench", &errand.lock_dir);
    how.engine = options.engine;
    let pool = Pool::open(&errand.devices, how)?;
    pool.wait_ready(PATIENCE)?;
    let mut stream = Stream::connect(&pool, Port(errand.port), options.stream(), PATIENCE)?;
    let piece = vec![0x5a; stream.payload_bytes_max()];
    // Until the ring has gone round once, buffers and extents are new: not what a long job sees.
    let warm = (options.window_bytes * 2).div_ceil(piece.len() as u64);
    stream.write_all(&warm.to_le_bytes())?;
    for _ in 0..warm {
        stream.write_all(&piece)?;
    }
    stream.read_exact(&mut [0; 1])?;
    let (start, cpu, device) = (Instant::now(), cpu_seconds(), device_bytes(&pool));
    let mut bytes = 0.0;
    while start.elapsed() < options.duration {
        stream.write_all(&piece)?;
        bytes += piece.len() as f64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The receiver says when it has everything.
    stream.read_exact(&mut [0; 1])?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let device = device_bytes(&pool) - device;
    let mut second = Stream::connect(&pool, Port(errand.port), options.stream(), PATIENCE)?;
    let [p50, p99] = ping(&mut second, options.messages)?;
    for fact in [bytes, seconds, cpu, device, p50, p99] {
        second.write_all(&fact.to_le_bytes())?;
    }
    second.shutdown(Shutdown::Write)?;
    second.read_to_end(&mut Vec::new())?;
    pool.close();
    Ok(())
}

struct Measured {
    /// Bytes, seconds, the sender's CPU seconds and device bytes, and two latencies.
    facts: [f64; 6],
    cpu_receiver: f64,
    device_receiver: f64,
}

fn receive(pool: &Pool, listener: &Listener, options: &BenchOptions) -> io::Result<Measured> {
    let accept = || listener.accept_timeout(PATIENCE)?.accept(options.stream());
    let mut stream = accept()?;
    let mut buf = vec![0; options.frame_bytes];
    let mut warm = [0; 8];
    stream.read_exact(&mut warm)?;
    let mut left = u64::from_le_bytes(warm) * stream.payload_bytes_max() as u64;
    while left > 0 {
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = stream.read(&mut buf[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= count as u64;
    }
    let (cpu, device) = (cpu_seconds(), device_bytes(pool));
    stream.write_all(&[0])?;
    while stream.read_frame()?.is_some() {}
    stream.write_all(&[0])?;
    let (cpu_receiver, device_receiver) = (cpu_seconds() - cpu, device_bytes(pool) - device);
    let mut second = accept()?;
    for _ in 0..options.messages {
        second.read_exact(&mut buf[..MESSAGE_BYTES])?;
        second.write_all(&buf[..MESSAGE_BYTES])?;
    }
    let mut facts = [0.0; 6];
    for fact in &mut facts {
        let mut bytes = [0; 8];
        second.read_exact(&mut bytes)?;
        *fact = f64::from_le_bytes(bytes);
    }
    Ok(Measured {
        facts,
        cpu_receiver,
        device_receiver,
    })
}
