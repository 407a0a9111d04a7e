//! Measures storage sockets between two processes.
//!
//! The calling process is the coordinator; a child process that it starts runs [`child`], joins as the member and does
//! what it is told through a pipe ([`Pair`]). A stream runs in its steady state: what moved is counted by its receiver
//! between two looks, after the rings have gone round, so that neither connecting nor closing is measured.
//!
//! What a machine can do changes from second to second. So a caller alternates each measurement with a yardstick, such
//! as [`raw`], and compares neighbours.
#![expect(
    clippy::cast_precision_loss,
    reason = "figures for people: 53 bits of precision are plenty"
)]

mod counters;
mod doorbell;
mod fleet;
mod flow;
mod idle;
mod latency;
mod pair;
mod raw;
mod share;

pub use counters::{Sample, Spent, cpu_seconds};
pub use fleet::fleet_child;
pub use flow::{FlowReport, Way};
pub use idle::{IdleOptions, IdleReport, idle};
pub use latency::MESSAGE_BYTES;
pub use pair::{News, Pair, child};
pub use raw::{RawOptions, fill, raw};
pub use share::{ShareReport, share};

use crate::{FormatOptions, StreamOptions};
use direct_io::EngineChoice;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use storage_socket_proto::{ListenProtection, Protection, StreamSecret, Timeouts};

/// Which devices, and how they are used.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The devices. What is on them is lost.
    pub devices: Vec<PathBuf>,
    /// Where the processes keep their locks.
    pub lock_dir: PathBuf,
    /// Which engine.
    pub engine: EngineChoice,
    /// How the devices are formatted.
    pub format: FormatOptions,
}

impl BenchOptions {
    /// Four slots and short time-outs, so that a pool is ready at once.
    #[must_use]
    pub fn new(devices: Vec<PathBuf>, lock_dir: PathBuf) -> Self {
        let millis = Duration::from_millis;
        let timeouts = Timeouts {
            stale: millis(200),
            claim: millis(200),
            heartbeat: millis(500),
            ..Timeouts::default()
        };
        Self {
            devices,
            lock_dir,
            engine: EngineChoice::Auto,
            format: FormatOptions {
                timeouts,
                slots: 4,
                ..FormatOptions::new("bench")
            },
        }
    }
}

/// What a measured stream is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// How frames are protected.
    pub seal: Seal,
    /// Bytes of a frame slot.
    pub frame_bytes: usize,
    /// Bytes of the ring of each direction on each device.
    pub window_bytes: u64,
    /// Frames under way.
    pub depth: usize,
}

/// How the frames of a measured stream are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// A checksum.
    Checksum,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Seal {
    pub(super) fn listens(self) -> ListenProtection {
        match self {
            Self::Checksum => ListenProtection::Checksum,
            Self::Aes256Gcm => ListenProtection::Sealed,
        }
    }

    fn protection(self) -> Protection {
        match self {
            Self::Checksum => Protection::Checksum,
            // The secret protects nothing here: it costs what a real one costs.
            Self::Aes256Gcm => Protection::Aes256Gcm(StreamSecret::new([1; 32])),
        }
    }
}

impl Shape {
    /// The sizes that streams have by default.
    #[must_use]
    pub fn new(seal: Seal) -> Self {
        Self::of(seal, &StreamOptions::new(seal.protection()))
    }

    /// The sizes that go with frames of `frame_bytes`.
    #[must_use]
    pub fn with_frames(seal: Seal, frame_bytes: usize) -> Self {
        let options = StreamOptions::new(seal.protection()).with_frame_bytes(frame_bytes);
        Self::of(seal, &options)
    }

    fn of(seal: Seal, options: &StreamOptions) -> Self {
        Self {
            seal,
            frame_bytes: options.frame_bytes,
            window_bytes: options.window_bytes,
            depth: options.depth,
        }
    }

    /// The options of a stream of this shape.
    #[must_use]
    pub fn options(&self) -> StreamOptions {
        StreamOptions {
            protection: self.seal.protection(),
            frame_bytes: self.frame_bytes,
            window_bytes: self.window_bytes,
            depth: self.depth,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
