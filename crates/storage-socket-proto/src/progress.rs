//! Whether a device answers: since when I/O waits there and none was answered.
//!
//! An answer is any end but a time-out, an error included. Time that its observer was away (a suspended machine) doesn't
//! count: it says nothing of the device.

use crate::{
    io::{IoFailure, IoId},
    types::Tick,
};
use std::{collections::BTreeMap, time::Duration};

/// The I/O of one machine on one device.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    under_way: BTreeMap<IoId, Tick>,
    /// Since when none was answered though one was asked for; a time-out is no answer.
    silent_since: Option<Tick>,
}

impl Progress {
    /// Whether an I/O is under way here.
    pub(crate) fn owns(&self, id: IoId) -> bool {
        self.under_way.contains_key(&id)
    }

    pub(crate) fn begun(&mut self, now: Tick, id: IoId) {
        self.under_way.insert(id, now);
        self.silent_since.get_or_insert(now);
    }

    /// Takes the end of an I/O. True if it timed out and none was answered since it was begun.
    pub(crate) fn ended(&mut self, now: Tick, id: IoId, failure: Option<IoFailure>) -> bool {
        let Some(begun) = self.under_way.remove(&id) else {
            return false;
        };
        if failure == Some(IoFailure::TimedOut) {
            return self.silent_since.is_some_and(|since| since <= begun);
        }
        self.silent_since = (!self.under_way.is_empty()).then_some(now);
        false
    }

    /// When the device will have been silent for `patience`.
    pub(crate) fn due(&self, patience: Duration) -> Option<Tick> {
        self.silent_since.map(|since| since + patience)
    }

    /// Whether the device has been silent for `patience`.
    pub(crate) fn is_silent(&self, now: Tick, patience: Duration) -> bool {
        self.due(patience).is_some_and(|due| now >= due)
    }

    /// As [`Progress::is_silent`], for an observer that is called when that is due: one that comes more than `slack`
    /// late was away, and counts from now.
    pub(crate) fn is_stalled(&mut self, now: Tick, patience: Duration, slack: Duration) -> bool {
        let is_silent = self.is_silent(now, patience);
        let was_away = is_silent && !self.is_silent_within(now, patience + slack);
        if was_away {
            self.silent_since = Some(now);
        }
        is_silent && !was_away
    }

    fn is_silent_within(&self, now: Tick, most: Duration) -> bool {
        self.due(most).is_some_and(|due| now <= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);
    const SLACK: Duration = Duration::from_millis(10);

    fn at(millis: u64) -> Tick {
        Tick::from_millis(millis)
    }

    #[test]
    fn a_device_is_stalled_when_nothing_was_answered_for_the_patience() {
        let mut progress = Progress::default();
        assert!(
            !progress.is_stalled(at(500), PATIENCE, SLACK),
            "nothing asked"
        );
        progress.begun(at(1000), IoId(1));
        progress.begun(at(1050), IoId(2));
        progress.ended(at(1090), IoId(2), Some(IoFailure::Error));
        assert!(
            !progress.is_stalled(at(1100), PATIENCE, SLACK),
            "one was answered"
        );
        assert_eq!(progress.due(PATIENCE), Some(at(1190)));
        assert!(progress.is_stalled(at(1190), PATIENCE, SLACK));
        progress.ended(at(1200), IoId(1), None);
        assert_eq!(progress.due(PATIENCE), None);
    }

    #[test]
    fn a_time_out_is_no_answer_and_suspects_the_device_unless_another_was_answered() {
        let mut progress = Progress::default();
        progress.begun(at(1000), IoId(1));
        progress.begun(at(1010), IoId(2));
        progress.ended(at(1020), IoId(2), None);
        assert!(!progress.ended(at(1300), IoId(1), Some(IoFailure::TimedOut)));
        progress.begun(at(1310), IoId(3));
        assert!(progress.ended(at(1610), IoId(3), Some(IoFailure::TimedOut)));
        assert!(progress.is_silent(at(1610), PATIENCE));
    }

    #[test]
    fn an_observer_that_was_away_counts_anew() {
        let mut progress = Progress::default();
        progress.begun(at(1000), IoId(1));
        assert!(!progress.is_stalled(at(90_000), PATIENCE, SLACK));
        assert!(!progress.is_stalled(at(90_099), PATIENCE, SLACK));
        assert!(progress.is_stalled(at(90_100), PATIENCE, SLACK));
    }
}
