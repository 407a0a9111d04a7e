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

mod counters;
mod latency;
mod raw;
mod throughput;

pub use raw::{prepare, raw};
pub use throughput::{child, run};

use crate::{FormatOptions, StreamOptions};
use direct_io::{EngineChoice, EngineKind};
use std::{path::PathBuf, time::Duration};
use storage_socket_proto::{Protection, StreamSecret, Timeouts};

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

const PATIENCE: Duration = Duration::from_secs(30);
