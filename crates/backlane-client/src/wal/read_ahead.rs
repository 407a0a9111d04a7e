//! Segments that are read before recovery asks for them.
//!
//! Invariants: only what was found is kept, so that a segment which isn't there yet is asked for anew; no more is kept
//! than [`super::AHEAD_MAX`] segments and [`super::AHEAD_BYTES_MAX`] bytes.

use super::ahead;
use backlane_proto::{WalFile, WalName, wal::SegmentPlace};
use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub(super) struct ReadAhead {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    last: Option<WalName>,
    /// `None` where it is on its way.
    segments: BTreeMap<WalName, Option<Vec<u8>>>,
}

impl ReadAhead {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a file that was read ahead; waits for one that is on its way.
    pub(super) fn take(&self, name: WalName) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        loop {
            match inner.segments.get(&name) {
                None => return None,
                Some(Some(_)) => return inner.segments.remove(&name).flatten(),
                Some(None) => {
                    let waited = self.changed.wait(inner);
                    inner = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// A file of so many bytes was fetched; tells which segments to read now.
    pub(super) fn fetched(&self, name: WalName, bytes: usize) -> Vec<WalName> {
        let mut inner = self.lock();
        let before = inner.last.replace(name);
        let is_in_order = before.is_some_and(|before| next(before, bytes) == Some(name));
        let most = if is_in_order { ahead(bytes) } else { 0 };
        let window: Vec<_> = std::iter::successors(next(name, bytes), |name| next(*name, bytes))
            .take(most)
            .collect();
        inner.segments.retain(|name, _| window.contains(name));
        let mut new = Vec::new();
        for name in window {
            inner.segments.entry(name).or_insert_with(|| {
                new.push(name);
                None
            });
        }
        self.changed.notify_all();
        new
    }

    /// What became of a segment that was to be read.
    pub(super) fn came(&self, name: WalName, file: Option<Vec<u8>>) {
        let mut inner = self.lock();
        // Nobody waits for what has left the window.
        if let Some(slot) = inner.segments.get_mut(&name) {
            *slot = file;
            if slot.is_none() {
                inner.segments.remove(&name);
            }
        }
        self.changed.notify_all();
    }
}

/// The segment behind one of so many bytes.
fn next(name: WalName, bytes: usize) -> Option<WalName> {
    let WalFile::Segment(place) = name.file else {
        return None;
    };
    let in_a_log = u32::try_from((1_u64 << 32) / u64::try_from(bytes.max(1)).ok()?).ok()?;
    let next = match place.segment + 1 {
        segment if segment < in_a_log => SegmentPlace { segment, ..place },
        _ => SegmentPlace {
            log: place.log.checked_add(1)?,
            segment: 0,
        },
    };
    Some(WalName {
        file: WalFile::Segment(next),
        ..name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 16 << 20;

    fn segment(file: &str) -> WalName {
        WalName::from_file_name(7, file).unwrap()
    }

    #[test]
    fn segments_are_read_ahead_after_two_in_a_row_and_each_once() {
        let ahead = ReadAhead::default();
        let first = segment("0000000100000000000000FD");
        assert_eq!(ahead.fetched(first, BYTES), []);
        let wanted = ahead.fetched(segment("0000000100000000000000FE"), BYTES);
        assert_eq!(wanted.len(), 8);
        assert_eq!(wanted[0], segment("0000000100000000000000FF"));
        assert_eq!(wanted[1], segment("000000010000000100000000"));
        ahead.came(wanted[0], Some(vec![1]));
        assert_eq!(ahead.take(wanted[0]), Some(vec![1]));
        assert_eq!(ahead.take(wanted[0]), None);
        assert_eq!(ahead.fetched(wanted[0], BYTES).len(), 1);
        // Out of order: what was read is dropped.
        ahead.came(wanted[1], Some(vec![2]));
        assert_eq!(ahead.fetched(first, BYTES), []);
        assert_eq!(ahead.take(wanted[1]), None);
    }

    #[test]
    fn what_was_not_found_is_not_kept() {
        let ahead = ReadAhead::default();
        ahead.fetched(segment("000000010000000000000001"), BYTES);
        let wanted = ahead.fetched(segment("000000010000000000000002"), BYTES);
        for name in &wanted[..2] {
            ahead.came(*name, None);
            assert_eq!(ahead.take(*name), None);
        }
        // The second is to be read again, beside the one that has come into the window.
        let again = ahead.fetched(wanted[0], BYTES);
        assert_eq!(again, [wanted[1], segment("00000001000000000000000B")]);
    }

    #[test]
    fn large_segments_are_few() {
        let ahead = ReadAhead::default();
        for (bytes, few) in [(64 << 20, 2), (1 << 30, 0)] {
            ahead.fetched(segment("000000010000000000000001"), bytes);
            let wanted = ahead.fetched(segment("000000010000000000000002"), bytes);
            assert_eq!(wanted.len(), few, "{bytes}");
        }
    }
}
