//! What devices do raw, with the same engine as a stream.

use crate::Error;
use direct_io::{
    BufferPool, Completion, Device, DeviceOptions, Engine, EngineChoice, EngineOptions, Operation,
    Request,
};
use std::{
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// How devices are read and written.
#[derive(Clone, Copy, Debug)]
pub struct RawOptions {
    /// Which engine.
    pub engine: EngineChoice,
    /// Bytes of a transfer.
    pub frame_bytes: usize,
    /// Transfers under way, of each operation.
    pub depth: usize,
    /// Bytes of a device that are gone round, by each operation.
    pub window_bytes: u64,
    /// How long.
    pub duration: Duration,
}

/// Writes once all that streams and [`raw`] use: blocks that were never written are read from no medium.
///
/// # Errors
/// The devices fail.
pub fn fill(devices: &[PathBuf], options: &RawOptions) -> io::Result<()> {
    let once = RawOptions {
        duration: Duration::ZERO,
        ..*options
    };
    let devices = open(devices)?;
    for half in [Half::Low, Half::High] {
        raw_half(devices.clone(), Operation::Write, half, &once)?;
    }
    Ok(())
}

fn open(paths: &[PathBuf]) -> Result<Vec<Arc<Device>>, Error> {
    let open = |path: &PathBuf| Ok(Arc::new(Device::open(path, DeviceOptions::default())?));
    paths.iter().map(open).collect()
}

/// Half of the sum of what devices that were filled read and write at once, in bytes a second.
///
/// # Errors
/// The devices fail.
pub fn raw(devices: &[PathBuf], options: &RawOptions) -> io::Result<f64> {
    let devices = open(devices)?;
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let both = [(Operation::Read, Half::Low), (Operation::Write, Half::High)];
        let threads = both.map(|(operation, half)| {
            let devices = devices.clone();
            scope.spawn(move || raw_half(devices, operation, half, options))
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
    options: &RawOptions,
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
        let goes_on = start.elapsed() < options.duration || next < slots * count;
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
