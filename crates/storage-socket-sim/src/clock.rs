//! A host's own clock: it starts anywhere, goes a little fast or slow, and never stops.

use std::time::Duration;
use storage_socket_proto::Tick;

/// The clock of one host, in terms of the world's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows when the world's shows zero.
    start: u64,
    /// Its microseconds for a million of the world's.
    rate: u64,
}

impl Clock {
    /// A clock that shows `start` at the world's zero, and goes `rate` microseconds in a million.
    pub(crate) fn new(start: u64, rate: u64) -> Self {
        Self {
            start,
            rate: rate.max(1),
        }
    }

    /// What it shows at the world's `now`.
    pub(crate) fn local(&self, now: Tick) -> Tick {
        Tick::from_micros(self.start + now.as_micros() * self.rate / MILLION)
    }

    /// The world's first tick at which it shows `local` or later.
    pub(crate) fn world(&self, local: Tick) -> Tick {
        let passed = local.as_micros().saturating_sub(self.start);
        Tick::from_micros((passed * MILLION).div_ceil(self.rate))
    }

    /// How much of the world's time passes while this clock goes by `span`.
    pub(crate) fn span(&self, span: Duration) -> Duration {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX / MILLION);
        Duration::from_micros((micros * MILLION).div_ceil(self.rate))
    }
}

const MILLION: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_tick_is_reached_at_its_world_tick_and_not_before() {
        for rate in [950_000, 1_000_000, 1_050_000] {
            let clock = Clock::new(77, rate);
            for micros in (100..5_000_000).step_by(99_991) {
                let at = clock.world(Tick::from_micros(micros));
                assert!(clock.local(at).as_micros() >= micros);
                let before = Tick::from_micros(at.as_micros() - 1);
                assert!(clock.local(before).as_micros() < micros);
            }
        }
    }
}
