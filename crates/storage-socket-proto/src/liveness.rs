//! Liveness by counting (§1.3): how long a peer has been silent by the observer's own successful reads.
//!
//! Invariant: silence grows only between two successful reads that found the same counter, and by no more than
//! the time that one poll may take; an observer that was suspended, or whose device hung, learns nothing from that.

use crate::types::{Counter, Tick};
use std::time::Duration;

/// The silence of one peer.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    counter: Counter,
    silent: Duration,
    read_at: Option<Tick>,
    gap_max: Duration,
    suspected: bool,
}

impl Silence {
    /// Counts gaps of two heartbeats at most.
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self {
            counter: Counter(0),
            silent: Duration::ZERO,
            read_at: None,
            gap_max: heartbeat * 2,
            suspected: false,
        }
    }

    /// A read succeeded; the newest valid counter is `counter`. Returns whether that is a sign of life.
    pub(crate) fn observe(&mut self, now: Tick, counter: Counter) -> bool {
        if self.read_at.is_none() || counter > self.counter {
            self.counter = self.counter.max(counter);
            self.read_at = Some(now);
            self.reset();
            return true;
        }
        if let Some(before) = self.read_at.replace(now) {
            self.silent += now.since(before).min(self.gap_max);
        }
        false
    }

    /// The peer was heard of by another way.
    pub(crate) fn reset(&mut self) {
        self.silent = Duration::ZERO;
        self.suspected = false;
    }

    pub(crate) fn silent(&self) -> Duration {
        self.silent
    }

    /// Whether the peer is dead.
    pub(crate) fn is_dead(&self, dead: Duration) -> bool {
        self.silent >= dead
    }

    /// Whether the peer has become suspect: true once per silence.
    pub(crate) fn take_suspicion(&mut self, dead: Duration) -> bool {
        let suspect = !self.suspected && self.silent >= dead / 2;
        self.suspected |= suspect;
        suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_counted_only_between_successful_reads() {
        let mut silence = Silence::new(HEARTBEAT);
        let mut now = Tick::from_millis(5);
        silence.observe(now, Counter(7));
        for _ in 0..10 {
            now = now + HEARTBEAT;
            silence.observe(now, Counter(7));
        }
        assert_eq!(silence.silent(), HEARTBEAT * 10);
        // The observer is suspended for an hour.
        now = now + Duration::from_secs(3600);
        silence.observe(now, Counter(7));
        assert_eq!(silence.silent(), HEARTBEAT * 12);
        assert!(!silence.is_dead(Duration::from_secs(60)));
    }

    #[test]
    fn only_a_greater_counter_is_a_sign_of_life() {
        let mut silence = Silence::new(HEARTBEAT);
        silence.observe(Tick::from_millis(0), Counter(7));
        silence.observe(Tick::from_millis(1000), Counter(6));
        silence.observe(Tick::from_millis(2000), Counter(7));
        assert_eq!(silence.silent(), HEARTBEAT * 2);
        assert!(silence.observe(Tick::from_millis(3000), Counter(8)));
        assert_eq!(silence.silent(), Duration::ZERO);
    }

    #[test]
    fn suspicion_comes_once_at_half_the_time_out_and_again_after_a_sign_of_life() {
        let mut silence = Silence::new(HEARTBEAT);
        let dead = HEARTBEAT * 4;
        silence.observe(Tick::from_millis(0), Counter(1));
        silence.observe(Tick::from_millis(1000), Counter(1));
        assert!(!silence.take_suspicion(dead));
        silence.observe(Tick::from_millis(2000), Counter(1));
        assert!(silence.take_suspicion(dead) && !silence.take_suspicion(dead));
        silence.reset();
        silence.observe(Tick::from_millis(4000), Counter(1));
        assert!(silence.take_suspicion(dead));
    }
}
