//! What this process has spent and asked for.

use crate::Pool;
use rustix::time::{ClockId, clock_gettime};

/// Bytes that this process has asked of the devices.
pub(super) fn device_bytes(pool: &Pool) -> f64 {
    let stats = pool.io_stats();
    (stats.bytes_read + stats.bytes_written) as f64
}

/// CPU time of this process, in user and system mode.
pub(super) fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}
