//! Which connections have something to do: news, each in the order in which it came, and times.
//!
//! Invariant: what a turn costs grows with the connections that have something to do in it, not with all there are.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use storage_socket_proto::{ConnectionId, Tick};

/// What is to be done for connections.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    news: VecDeque<ConnectionId>,
    /// Those that are in `news`.
    fresh: HashSet<ConnectionId>,
    due: BTreeSet<(Tick, ConnectionId)>,
    /// When those that are in `due` are.
    times: HashMap<ConnectionId, Tick>,
}

impl Agenda {
    /// A connection has news; those that had some before come first.
    pub(super) fn add(&mut self, id: ConnectionId) {
        if self.fresh.insert(id) {
            self.news.push_back(id);
        }
    }

    /// The connections with news, taken.
    pub(super) fn take_news(&mut self) -> VecDeque<ConnectionId> {
        self.fresh.clear();
        std::mem::take(&mut self.news)
    }

    /// The connections with news.
    pub(super) fn news(&self) -> impl Iterator<Item = &ConnectionId> {
        self.news.iter()
    }

    /// Says when a connection has something to do; this replaces what was said before.
    pub(super) fn set_due(&mut self, id: ConnectionId, at: Option<Tick>) {
        let before = match at {
            Some(at) => self.times.insert(id, at),
            None => self.times.remove(&id),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.due.remove(&(before, id));
        }
        if let Some(at) = at {
            self.due.insert((at, id));
        }
    }

    /// A connection whose time has come; it is due no more.
    pub(super) fn pop_due(&mut self, now: Tick) -> Option<ConnectionId> {
        let &(at, id) = self.due.first()?;
        if at > now {
            return None;
        }
        self.set_due(id, None);
        Some(id)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.due.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ConnectionId {
        ConnectionId([number; 16])
    }

    #[test]
    fn news_are_taken_in_the_order_in_which_they_came_and_once() {
        let mut agenda = Agenda::default();
        for number in [3, 1, 3, 2] {
            agenda.add(id(number));
        }
        assert_eq!(agenda.take_news(), [id(3), id(1), id(2)]);
        assert!(agenda.take_news().is_empty());
        agenda.add(id(3));
        assert_eq!(agenda.take_news(), [id(3)]);
    }

    #[test]
    fn a_time_that_is_set_replaces_the_one_before() {
        let mut agenda = Agenda::default();
        let at = Tick::from_millis;
        agenda.set_due(id(1), Some(at(5)));
        agenda.set_due(id(2), Some(at(7)));
        agenda.set_due(id(1), Some(at(9)));
        assert_eq!(agenda.next_due(), Some(at(7)));
        assert_eq!(agenda.pop_due(at(6)), None);
        assert_eq!(agenda.pop_due(at(9)), Some(id(2)));
        assert_eq!(agenda.pop_due(at(9)), Some(id(1)));
        agenda.set_due(id(1), Some(at(3)));
        agenda.set_due(id(1), None);
        assert_eq!((agenda.pop_due(at(9)), agenda.next_due()), (None, None));
    }
}
