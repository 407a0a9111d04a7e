//! Liveness by counting (§1.3): how long a peer has been silent by the observer's own successful reads.
//!
//! Invariant: silence grows only by rounds in which every device that counts was read and none had a greater counter, and
//! by no more than the time that one poll may take; an observer that was suspended, or whose device hung, learns nothing
//! from that.

use crate::types::{Counter, DeviceIndex, DeviceMask, Tick};
use std::time::Duration;

/// The silence of one peer.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    counter: Counter,
    silent: Duration,
    /// When the last round ended.
    round_at: Option<Tick>,
    /// The devices that were read since.
    read: DeviceMask,
    gap_max: Duration,
    suspected: bool,
}

impl Silence {
    /// Counts rounds of two heartbeats at most.
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self {
            counter: Counter(0),
            silent: Duration::ZERO,
            round_at: None,
            read: DeviceMask::NONE,
            gap_max: heartbeat * 2,
            suspected: false,
        }
    }

    /// A read of `device` succeeded; the newest valid counter is `counter`. A round takes a read of each device of `all`;
    /// if that is none, nothing is learnt but a sign of life. Returns whether there was one.
    pub(crate) fn observe(
        &mut self,
        now: Tick,
        device: DeviceIndex,
        counter: Counter,
        all: DeviceMask,
    ) -> bool {
        if self.round_at.is_none() || counter > self.counter {
            self.counter = self.counter.max(counter);
            self.round_at = Some(now);
            self.read = DeviceMask::NONE;
            self.reset();
            return true;
        }
        self.read = self.read.or(DeviceMask::only(device));
        if !all.is_empty()
            && self.read.and(all) == all
            && let Some(before) = self.round_at.replace(now)
        {
            self.read = DeviceMask::NONE;
            self.silent += now.since(before).min(self.gap_max);
        }
        false
    }

    /// The peer was heard of by another way.
    pub(crate) fn reset(&mut self) {
        self.silent = Duration::ZERO;
        self.suspected = false;
    }

    /// What was counted above `most` doesn't count.
    pub(crate) fn limit(&mut self, most: Duration) {
        self.silent = self.silent.min(most);
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
    const ONE: DeviceMask = DeviceMask(1);
    const BOTH: DeviceMask = DeviceMask(3);

    /// Reads a device at `at` milliseconds.
    fn read(silence: &mut Silence, at: u64, device: u16, counter: u64, all: DeviceMask) -> bool {
        let counter = Counter(counter);
        silence.observe(Tick::from_millis(at), DeviceIndex(device), counter, all)
    }

    #[test]
    fn silence_is_counted_only_between_successful_reads() {
        let mut silence = Silence::new(HEARTBEAT);
        for beat in 0..11 {
            read(&mut silence, 5 + beat * 1000, 0, 7, ONE);
        }
        assert_eq!(silence.silent(), HEARTBEAT * 10);
        // The observer is suspended for an hour.
        read(&mut silence, 3_610_005, 0, 7, ONE);
        assert_eq!(silence.silent(), HEARTBEAT * 12);
        assert!(!silence.is_dead(Duration::from_secs(60)));
    }

    #[test]
    fn only_a_greater_counter_is_a_sign_of_life() {
        let mut silence = Silence::new(HEARTBEAT);
        read(&mut silence, 0, 0, 7, ONE);
        read(&mut silence, 1000, 0, 6, ONE);
        read(&mut silence, 2000, 0, 7, ONE);
        assert_eq!(silence.silent(), HEARTBEAT * 2);
        assert!(read(&mut silence, 3000, 0, 8, ONE));
        assert_eq!(silence.silent(), Duration::ZERO);
    }

    #[test]
    fn silence_counts_only_if_every_device_was_read() {
        let mut silence = Silence::new(HEARTBEAT);
        for beat in 0..10 {
            read(&mut silence, beat * 1000, 0, 7, BOTH);
        }
        assert_eq!(silence.silent(), Duration::ZERO);
        read(&mut silence, 9500, 1, 7, BOTH);
        assert_eq!(silence.silent(), HEARTBEAT * 2, "one round, however long");
        read(&mut silence, 9600, 1, 7, BOTH);
        read(&mut silence, 10_000, 0, 7, BOTH);
        assert_eq!(silence.silent(), HEARTBEAT * 5 / 2);
        assert!(read(&mut silence, 11_000, 1, 8, BOTH));
        assert_eq!(silence.silent(), Duration::ZERO);
    }

    #[test]
    fn nothing_is_learnt_where_the_peer_cannot_be_expected_but_that_it_lives() {
        let mut silence = Silence::new(HEARTBEAT);
        read(&mut silence, 0, 0, 7, ONE);
        read(&mut silence, 1000, 0, 7, ONE);
        read(&mut silence, 2000, 0, 7, DeviceMask::NONE);
        assert_eq!(silence.silent(), HEARTBEAT);
        assert!(read(&mut silence, 3000, 0, 8, DeviceMask::NONE));
        assert_eq!(silence.silent(), Duration::ZERO);
    }

    #[test]
    fn suspicion_comes_once_at_half_the_time_out_and_again_after_a_sign_of_life() {
        let mut silence = Silence::new(HEARTBEAT);
        let dead = HEARTBEAT * 4;
        read(&mut silence, 0, 0, 1, ONE);
        read(&mut silence, 1000, 0, 1, ONE);
        assert!(!silence.take_suspicion(dead));
        read(&mut silence, 2000, 0, 1, ONE);
        assert!(silence.take_suspicion(dead) && !silence.take_suspicion(dead));
        silence.reset();
        read(&mut silence, 4000, 0, 1, ONE);
        assert!(silence.take_suspicion(dead));
    }
}
