//! Measures a storage socket between two processes, and what the same devices do raw with the same engine.
//!
//! The calling process is the coordinator and receives; a child process that the caller starts runs [`child`] as the
//! member and sends. Raw is reads and writes at once, at the frame size and depth of the stream, half of the sum: a
//! byte of a stream is written once and read once. What a machine can do changes from second to second, so a caller
//! alternates [`run`] with [`raw`], or with a yardstick of its own, and compares neighbours.
#![expect(
    clippy::cast_precision_loss,
    reason = "figures for people: 53 bits of precision are plenty"
)]

use crate::{
    Error, FormatOptions, Listener, Pool, PoolOptions, Role, Stream, StreamOptions, format,
};
use direct_io::{
    BufferPool, Completion, Device, DeviceOptions, Engine, EngineChoice, EngineKind, EngineOptions,
    Operation, Request,
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use storage_socket_proto::{ListenProtection, Port, Protection, SlotIndex, StreamSecret, Timeouts};

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Which engine.
    pub engine: EngineChoice,
    /// Whether frames are sealed with AES-256-GCM; a checksum otherwise.
    pub sealed: bool,
    /// Bytes of a frame slot.
    pub frame_bytes: usize,
    /// Bytes of the ring.
    pub window_bytes: u64,
    /// Frames under way.
    pub depth: usize,
    /// How long each of the parts runs.
    pub duration: Duration,
    /// Messages of 4 KiB for the latency.
    pub messages: usize,
    /// How the devices are formatted; what is on them is lost.
    pub format: FormatOptions,
}

impl BenchOptions {
    /// Sealed frames of 1 MiB for three seconds.
    #[must_use]
    pub fn new() -> Self {
        let millis = Duration::from_millis;
        let timeouts = Timeouts {
            stale: millis(200),
            claim: millis(200),
            heartbeat: millis(500),
            ..Timeouts::default()
        };
        Self {
            engine: EngineChoice::Auto,
            sealed: true,
            frame_bytes: 1 << 20,
            window_bytes: 64 << 20,
            depth: 8,
            duration: Duration::from_secs(3),
            messages: 1000,
            format: FormatOptions {
                timeouts,
                slots: 4,
                ..FormatOptions::new("bench")
            },
        }
    }

    fn stream(&self) -> StreamOptions {
        // The secret protects nothing here: it costs what a real one costs.
        let protection = if self.sealed {
            Protection::Aes256Gcm(StreamSecret::new([1; 32]))
        } else {
            Protection::Checksum
        };
        StreamOptions {
            protection,
            frame_bytes: self.frame_bytes,
            window_bytes: self.window_bytes,
            depth: self.depth,
        }
    }
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// Which engine ran.
    pub engine: EngineKind,
    /// Bytes a second through the socket.
    pub throughput_bytes_per_s: f64,
    /// CPU seconds that the sending process spent for a GiB.
    pub cpu_seconds_per_gib_sender: f64,
    /// CPU seconds that the receiving process spent for a GiB.
    pub cpu_seconds_per_gib_receiver: f64,
    /// Bytes that both processes read and wrote for a byte through the socket; two would be ideal.
    pub device_bytes_per_byte: f64,
    /// Half of a round trip of 4 KiB, in microseconds: the median.
    pub latency_us_p50: f64,
    /// The same, exceeded by one in a hundred.
    pub latency_us_p99: f64,
}

/// What the child process has to be told, and gives to [`child`].
#[derive(Clone, Debug)]
pub struct Errand {
    /// The devices.
    pub devices: Vec<PathBuf>,
    /// The directory of locks.
    pub lock_dir: PathBuf,
    /// The port to connect to.
    pub port: u16,
}

/// Formats `devices` and writes once all that [`run`] and [`raw`] use: blocks that were never written are read from no
/// medium.
///
/// # Errors
/// The devices are not free to be formatted, or fail.
pub fn prepare(devices: &[PathBuf], options: &BenchOptions) -> io::Result<()> {
    format(devices, &options.format)?;
    let devices = open(devices)?;
    for half in [Half::Low, Half::High] {
        raw_half(
            devices.clone(),
            Operation::Write,
            half,
            (options, Duration::ZERO),
        )?;
    }
    Ok(())
}

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

/// Half of the round trips of messages, in microseconds: the median, and what one in a hundred exceeds.
fn ping(stream: &mut Stream, messages: usize) -> io::Result<[f64; 2]> {
    let mut message = vec![1; MESSAGE_BYTES];
    let mut halves = Vec::with_capacity(messages);
    for _ in 0..messages {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        halves.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    halves.sort_by(f64::total_cmp);
    let at = |part: usize| halves.get(messages * part / 100).copied().unwrap_or(0.0);
    Ok([at(50), at(99)])
}

fn open(paths: &[PathBuf]) -> Result<Vec<Arc<Device>>, Error> {
    let open = |path: &PathBuf| Ok(Arc::new(Device::open(path, DeviceOptions::default())?));
    paths.iter().map(open).collect()
}

/// Half of the sum of what devices that were prepared read and write at once, in bytes a second.
///
/// # Errors
/// The devices fail.
pub fn raw(devices: &[PathBuf], options: &BenchOptions) -> io::Result<f64> {
    let devices = open(devices)?;
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let both = [(Operation::Read, Half::Low), (Operation::Write, Half::High)];
        let threads = both.map(|(operation, half)| {
            let devices = devices.clone();
            scope.spawn(move || raw_half(devices, operation, half, (options, options.duration)))
        });
        let mut sum = 0;
        for thread in threads {
            sum += thread
                .join()
                .expect("the measuring thread does not panic")?;
        }
        Ok::<_, Error>(sum)
    })?;
    Ok(bytes as f64 / 2.0 / start.elapsed().as_secs_f64())
}

/// Readers and writers keep to different halves of the devices, beyond the fixed areas.
#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

/// Keeps `depth` transfers in flight, round a ring of the size that a stream would use, for a time and at least once.
fn raw_half(
    devices: Vec<Arc<Device>>,
    operation: Operation,
    half: Half,
    (options, duration): (&BenchOptions, Duration),
) -> Result<u64, Error> {
    let frame = options.frame_bytes as u64;
    let smallest = devices
        .iter()
        .map(|device| device.bytes())
        .min()
        .unwrap_or(0);
    let count = devices.len() as u64;
    let slots = (options.window_bytes.min(smallest / 4) / frame).max(1);
    let base = match half {
        Half::Low => 2 << 20,
        Half::High => (smallest / 2).next_multiple_of(frame),
    };
    let choice = EngineOptions {
        choice: options.engine,
        ..Default::default()
    };
    let mut engine = Engine::new(devices, choice)?;
    let pool = BufferPool::new(options.frame_bytes, options.depth);
    let (start, mut next, mut moved) = (Instant::now(), 0, 0);
    let mut done: Vec<Completion> = Vec::new();
    loop {
        let goes_on = start.elapsed() < duration || next < slots * count;
        if !goes_on && engine.in_flight() == 0 {
            return Ok(moved);
        }
        while goes_on && let Some(buf) = pool.take()? {
            engine.submit(Request {
                operation,
                device: usize::try_from(next % count).expect("devices are few"),
                offset: base + (next / count) % slots * frame,
                bytes: options.frame_bytes,
                buf,
                token: next,
            });
            next += 1;
        }
        engine.wait(None, &mut done)?;
        for completion in done.drain(..) {
            completion.result?;
            moved += frame;
        }
    }
}

/// Bytes that this process has asked of the devices.
fn device_bytes(pool: &Pool) -> f64 {
    let stats = pool.io_stats();
    (stats.bytes_read + stats.bytes_written) as f64
}

/// CPU time of this process, in user and system mode.
fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

const MESSAGE_BYTES: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);
