//! How often a connection looks for news: by whether it is rung for them, and how it was told to poll.

use super::{Connection, Doorbell, POLL_MAX, POLL_MIN};
use crate::{poll::Polling, types::Tick};
use std::time::Duration;

impl Connection {
    /// Whether this side looks for news itself.
    fn looks(&self) -> bool {
        self.config.doorbell == Doorbell::Absent || self.polling == Polling::Hot
    }

    /// More may come soon: whoever isn't rung for it looks more often.
    pub(super) fn hasten(&mut self, now: Tick) {
        if self.looks() {
            self.poll.hasten(now);
        }
    }

    /// What it was rung for was found: whoever is rung rests.
    pub(super) fn relax(&mut self, now: Tick) {
        if !self.looks() {
            self.poll.relax(now, self.poll_max());
        }
    }

    /// More may be there already: whoever isn't rung for it looks.
    pub(super) fn probe(&mut self) {
        if self.looks() {
            self.recv.probe();
        }
    }

    pub(super) fn poll_max(&self) -> Duration {
        let heartbeat = self.config.timeouts.heartbeat;
        if self.polling == Polling::Hot {
            // What is waited for is the next frame, which tells of itself, or room for one.
            return if self.send.is_full() {
                Duration::ZERO
            } else {
                POLL_MIN
            };
        }
        match self.config.doorbell {
            // What a lost ring costs.
            Doorbell::Present => heartbeat,
            Doorbell::Absent => POLL_MAX.min(heartbeat),
        }
    }
}
