//! What a process has spent and asked for, up to a moment.

use crate::{IoStats, Pool};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{fs, time::Instant};

/// The counters of a process at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds of a clock of its own.
    pub seconds: f64,
    /// Bytes that its streams have received.
    pub received: u64,
    /// CPU seconds, in user and system mode.
    pub cpu_seconds: f64,
    /// Bytes that it has read from and written to each device.
    pub device_bytes: Vec<u64>,
    /// Bytes of the buffers that its streams have for frames.
    pub buffer_bytes: u64,
    /// Bytes of memory that are resident now, and were at most.
    pub resident_bytes: [u64; 2],
}

/// What a process has spent between two moments.
#[derive(Clone, Debug)]
pub struct Spent {
    /// Seconds that went by.
    pub seconds: f64,
    /// Bytes that its streams received.
    pub received: u64,
    /// CPU seconds.
    pub cpu_seconds: f64,
    /// Bytes that it read from and wrote to each device.
    pub device_bytes: Vec<u64>,
}

impl Sample {
    /// Counts now; `start` is where the clock began.
    pub(super) fn take(pool: &Pool, start: Instant, streams: (u64, u64)) -> Self {
        let (received, buffer_bytes) = streams;
        let both = |stats: &IoStats| stats.bytes_read + stats.bytes_written;
        Self {
            seconds: start.elapsed().as_secs_f64(),
            received,
            cpu_seconds: cpu_seconds(),
            device_bytes: pool.io_stats_by_device().iter().map(both).collect(),
            buffer_bytes,
            resident_bytes: resident_bytes(),
        }
    }

    /// What was spent since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Spent {
        let devices = self.device_bytes.iter().zip(&before.device_bytes);
        Spent {
            seconds: self.seconds - before.seconds,
            received: self.received - before.received,
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            device_bytes: devices.map(|(now, before)| now - before).collect(),
        }
    }
}

/// CPU time of this process, in user and system mode.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// Memory of this process that is resident now, and was at most; zero where the system doesn't say.
fn resident_bytes() -> [u64; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
        kibibytes
            .and_then(|count| count.parse().ok())
            .unwrap_or(0_u64)
            * 1024
    })
}
