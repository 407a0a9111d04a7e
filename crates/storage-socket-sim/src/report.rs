//! What a run came to, and what many came to together.

use std::collections::BTreeMap;

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams that were brought to a good end.
    pub finished: u64,
    /// Streams that were reset on the way, by reason.
    pub reset: BTreeMap<String, u64>,
    /// Requests that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Frames written again because the reader asked.
    pub resends: u64,
    /// Reads of announced frames that didn't open.
    pub damaged: u64,
    /// Frames delivered.
    pub frames: u64,
    /// I/Os that were asked for.
    pub ios: u64,
    /// Virtual time, in milliseconds.
    pub millis: u64,
    /// The longest time from the end of faults to the end of a run, in virtual milliseconds.
    pub settled_max: u64,
    /// Steps of the simulation.
    pub happenings: u64,
}

impl Report {
    /// Adds what another run came to.
    pub fn add(&mut self, other: &Self) {
        self.finished += other.finished;
        self.resends += other.resends;
        self.damaged += other.damaged;
        self.frames += other.frames;
        self.ios += other.ios;
        self.millis += other.millis;
        self.settled_max = self.settled_max.max(other.settled_max);
        self.happenings += other.happenings;
        for (mine, others) in [
            (&mut self.reset, &other.reset),
            (&mut self.refused, &other.refused),
        ] {
            for (reason, count) in others {
                *mine.entry(reason.clone()).or_default() += count;
            }
        }
    }
}
