//! How often a device is polled: at once after something happened, and ever less often while nothing does.

use crate::types::Tick;
use std::time::Duration;

/// How a stream looks for news on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// At once after something happened, and ever less often while nothing does; where doorbells tell of news, when they
    /// ring.
    #[default]
    Adaptive,
    /// Without a pause while something is waited for, whether or not there are doorbells: the least latency, for much of
    /// the device and of a core.
    Hot,
}

/// When the device is polled next.
#[derive(Debug)]
pub(crate) struct Poll {
    at: Tick,
    interval: Duration,
    min: Duration,
    wanted: bool,
}

impl Poll {
    /// Polls at `now` first, and never more often than every `min`.
    pub(crate) fn new(now: Tick, min: Duration) -> Self {
        Self {
            at: now,
            interval: min,
            min,
            wanted: false,
        }
    }

    /// Something happened: more may follow soon.
    pub(crate) fn hasten(&mut self, now: Tick) {
        self.interval = self.min;
        self.at = self.at.min(now + self.min);
    }

    /// Nothing more is expected: the next poll comes after `rest`, and those after it as rarely.
    pub(crate) fn relax(&mut self, now: Tick, rest: Duration) {
        self.interval = rest;
        self.at = now + rest;
    }

    /// The pause that follows the next poll.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// A poll is to be made as soon as one can be.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// When the next poll is due.
    pub(crate) fn at(&self) -> Tick {
        self.at
    }

    /// Whether the time has come; the poll is wanted then.
    pub(crate) fn is_due(&mut self, now: Tick) -> bool {
        let due = now >= self.at;
        self.wanted |= due;
        due
    }

    /// A poll begins; the next one comes later, by `most` at most.
    pub(crate) fn begun(&mut self, now: Tick, most: Duration) {
        self.wanted = false;
        self.at = now + self.interval.min(most);
        self.interval = (self.interval * 3 / 2).min(most);
    }
}
