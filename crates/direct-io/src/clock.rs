//! The clock that goes on while a machine is suspended.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since this machine was started, time spent suspended included (CLOCK_BOOTTIME).
///
/// It never goes back, and it means nothing on another host.
#[must_use]
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the time since boot is not negative");
    let nanos = u32::try_from(now.tv_nsec).expect("nanoseconds are below a thousand million");
    Duration::new(seconds, nanos)
}
