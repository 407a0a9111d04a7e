//! What will happen, in the order in which it will: by time, and what comes at one time as it was planned.
//!
//! The order is kept in a heap of small keys, so that what happens isn't moved about to be put in its place.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};
use storage_socket_proto::Tick;

/// When, which number it had when it was planned, and where it is kept.
type Key = Reverse<(Tick, u64, usize)>;

#[derive(Debug)]
pub(super) struct Agenda<T> {
    keys: BinaryHeap<Key>,
    kept: Vec<Option<T>>,
    free: Vec<usize>,
    planned: u64,
}

impl<T> Agenda<T> {
    pub(super) fn new() -> Self {
        Self {
            keys: BinaryHeap::new(),
            kept: Vec::new(),
            free: Vec::new(),
            planned: 0,
        }
    }

    /// Plans something.
    pub(super) fn plan(&mut self, at: Tick, what: T) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.kept.push(None);
            self.kept.len() - 1
        });
        self.kept[index] = Some(what);
        self.planned += 1;
        self.keys.push(Reverse((at, self.planned, index)));
    }

    /// When the next happens.
    pub(super) fn next_at(&self) -> Option<Tick> {
        self.keys.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the next.
    pub(super) fn take(&mut self) -> Option<T> {
        let Reverse((_, _, index)) = PeekMut::pop(self.keys.peek_mut()?);
        self.free.push(index);
        self.kept[index].take()
    }

    /// Plans anew what `to` tells another time for.
    pub(super) fn postpone(&mut self, mut to: impl FnMut(Tick, &mut T) -> Option<Tick>) {
        let mut keys = std::mem::take(&mut self.keys).into_vec();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        for Reverse((at, number, index)) in &mut keys {
            let what = self.kept[*index].as_mut();
            if let Some(later) = what.and_then(|what| to(*at, what)) {
                self.planned += 1;
                (*at, *number) = (later, self.planned);
            }
        }
        self.keys = keys.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_happens_in_order_and_what_is_postponed_later() {
        let at = Tick::from_millis;
        let mut agenda = Agenda::new();
        for (millis, what) in [(7, "c"), (5, "a"), (7, "d"), (5, "b")] {
            agenda.plan(at(millis), what);
        }
        assert_eq!((agenda.next_at(), agenda.take()), (Some(at(5)), Some("a")));
        agenda.postpone(|when, what| (*what == "b").then_some(when + at(2).since(at(0))));
        let rest: Vec<&str> = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(rest, ["c", "d", "b"]);
        assert_eq!(agenda.next_at(), None);
    }
}
