//! Writing a double-buffered block (§1.2): two copies, written in turn, so that a torn write leaves the other readable.
//!
//! Invariants: one write is under way at a time; after a write to one copy failed or timed out, the other isn't touched
//! until the first was rewritten and read back. Retries wait [`RETRY_DELAY`] and are bounded by [`FAILURES_MAX`].

use crate::{
    io::{IoFailure, IoId, IoIds, IoOp, IoOutcome, IoRequest},
    types::{BLOCK_BYTES, Block, BlockCount, DeviceIndex, Lba, Tick},
};
use std::time::Duration;

/// Failures in a row after which the device counts as lost.
pub(crate) const FAILURES_MAX: u32 = 3;
/// How long a writer waits after a failure.
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The writer of one pair of copies on one device.
#[derive(Debug)]
pub(crate) struct PairWriter {
    device: DeviceIndex,
    copies: [Lba; 2],
    /// The copy that is written next.
    turn: usize,
    /// The last write of `turn` failed: what the copy holds is unknown.
    suspect: bool,
    failures: u32,
    not_before: Tick,
    state: State,
    last: Option<Box<Block>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Writing(IoId),
    /// Rewritten, to be read back.
    Unproved,
    ReadingBack(IoId),
}

/// What an outcome meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairOutcome {
    /// The block was written.
    Written,
    /// The rewritten copy was read back: as it should be, or not.
    ReadBack,
    /// The I/O failed; the content has to be written again.
    Failed(IoFailure),
    /// The I/O failed once too often.
    Lost(IoFailure),
}

impl PairWriter {
    pub(crate) fn new(device: DeviceIndex, copies: [Lba; 2]) -> Self {
        Self {
            device,
            copies,
            turn: 0,
            suspect: false,
            failures: 0,
            not_before: Tick::default(),
            state: State::Idle,
            last: None,
        }
    }

    /// Whether a write may begin.
    pub(crate) fn is_ready(&self, now: Tick) -> bool {
        self.state == State::Idle && now >= self.not_before
    }

    /// Whether the copy that was written last has to be written again whatever there is to say.
    pub(crate) fn needs_rewrite(&self) -> bool {
        self.suspect && self.state == State::Idle
    }

    /// When a writer that isn't ready for its delay becomes so.
    pub(crate) fn ready_at(&self) -> Option<Tick> {
        (self.state == State::Idle).then_some(self.not_before)
    }

    /// Whether no I/O is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.state, State::Idle | State::Unproved)
    }

    /// The device came back: what this writer's last write left is unknown still.
    pub(crate) fn forgive(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn owns(&self, id: IoId) -> bool {
        self.state == State::Writing(id) || self.state == State::ReadingBack(id)
    }

    /// The block that was written last, to recognise it.
    pub(crate) fn last(&self) -> Option<&Block> {
        self.last.as_deref()
    }

    /// Begins to write; the writer has to be ready.
    pub(crate) fn write(&mut self, ids: &mut IoIds, block: Box<Block>) -> IoRequest {
        debug_assert!(self.state == State::Idle, "one write at a time");
        let id = ids.fresh();
        self.state = State::Writing(id);
        match &mut self.last {
            Some(last) => last.0.copy_from_slice(&block.0),
            None => self.last = Some(block.clone()),
        }
        IoRequest {
            id,
            device: self.device,
            lba: self.copies[self.turn],
            blocks: BlockCount(1),
            op: IoOp::Write(block),
        }
    }

    /// The read that proves a rewritten copy, when one is due.
    pub(crate) fn poll_read_back(&mut self, ids: &mut IoIds, now: Tick) -> Option<IoRequest> {
        if self.state != State::Unproved || now < self.not_before {
            return None;
        }
        let id = ids.fresh();
        self.state = State::ReadingBack(id);
        let lba = self.copies[self.turn];
        Some(IoRequest::read(id, self.device, lba, BlockCount(1)))
    }

    /// Takes the outcome of an I/O that this writer owns.
    pub(crate) fn handle(&mut self, now: Tick, outcome: IoOutcome<'_>) -> PairOutcome {
        let was = std::mem::replace(&mut self.state, State::Idle);
        match (was, outcome) {
            (State::Writing(_), IoOutcome::Written) => {
                self.failures = 0;
                if self.suspect {
                    self.state = State::Unproved;
                } else {
                    self.turn = 1 - self.turn;
                }
                PairOutcome::Written
            }
            (State::ReadingBack(_), IoOutcome::Read(bytes)) => {
                let found = bytes.get(..BLOCK_BYTES);
                if found.is_some() && found == self.last().map(|block| &block.0[..]) {
                    self.suspect = false;
                    self.turn = 1 - self.turn;
                } else {
                    // Stale, lost or overwritten by a ghost: once more.
                    self.not_before = now + RETRY_DELAY;
                }
                PairOutcome::ReadBack
            }
            (_, outcome) => {
                let failure = match outcome {
                    IoOutcome::Failed(failure) => failure,
                    IoOutcome::Read(_) | IoOutcome::Written => IoFailure::Error,
                };
                self.suspect = true;
                self.failures += 1;
                self.not_before = now + RETRY_DELAY;
                if self.failures >= FAILURES_MAX || failure == IoFailure::DeviceGone {
                    PairOutcome::Lost(failure)
                } else {
                    PairOutcome::Failed(failure)
                }
            }
        }
    }
}

/// A block that is kept up to date on one device: which revision of its content stands there.
#[derive(Debug)]
pub(crate) struct Posting {
    pub(crate) pair: PairWriter,
    began: Tick,
    /// The revision that is being written, and the one that was; 0 before the first.
    writing: u64,
    written: u64,
    was_news: bool,
}

impl Posting {
    pub(crate) fn new(device: DeviceIndex, copies: [Lba; 2]) -> Self {
        Self {
            pair: PairWriter::new(device, copies),
            began: Tick::default(),
            writing: 0,
            written: 0,
            was_news: false,
        }
    }

    /// Whether this revision was written.
    pub(crate) fn has_written(&self, revision: u64) -> bool {
        self.written >= revision
    }

    pub(crate) fn has_to_write(&self, revision: u64) -> bool {
        !self.has_written(revision) || self.pair.needs_rewrite()
    }

    /// Whether this revision stands on the device, and no write to it is under way.
    pub(crate) fn stands(&self, revision: u64) -> bool {
        !self.has_to_write(revision) && self.pair.is_quiet()
    }

    /// What stands on the device is unknown: it is written again.
    pub(crate) fn forget(&mut self) {
        self.written = 0;
    }

    /// Begins to write this revision; the pair has to be ready.
    pub(crate) fn write(
        &mut self,
        now: Tick,
        ids: &mut IoIds,
        block: Box<Block>,
        revision: u64,
    ) -> IoRequest {
        self.began = now;
        self.writing = revision;
        self.pair.write(ids, block)
    }

    /// Takes the outcome of an I/O that the pair owns.
    pub(crate) fn handle(&mut self, now: Tick, outcome: IoOutcome<'_>) -> PairOutcome {
        let outcome = self.pair.handle(now, outcome);
        if outcome == PairOutcome::Written {
            self.was_news = self.written < self.writing;
            self.written = self.writing;
        }
        outcome
    }

    /// When the last write was begun.
    pub(crate) fn began(&self) -> Tick {
        self.began
    }

    /// Whether the last revision that was written hadn't been written before.
    pub(crate) fn was_news(&self) -> bool {
        self.was_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Box<Block> {
        Box::new(Block([byte; BLOCK_BYTES]))
    }

    fn writer() -> (PairWriter, IoIds) {
        let copies = [Lba(2), Lba(3)];
        (PairWriter::new(DeviceIndex(0), copies), IoIds::default())
    }

    #[test]
    fn copies_are_written_in_turn() {
        let (mut pair, mut ids) = writer();
        let mut written = Vec::new();
        for round in 0..4 {
            written.push(pair.write(&mut ids, block(round)).lba);
            pair.handle(Tick::default(), IoOutcome::Written);
        }
        assert_eq!(written, [Lba(2), Lba(3), Lba(2), Lba(3)]);
    }

    #[test]
    fn the_other_copy_is_not_touched_until_the_timed_out_one_was_rewritten_and_read_back() {
        let (mut pair, mut ids) = writer();
        pair.write(&mut ids, block(1));
        pair.handle(Tick::default(), IoOutcome::Written);
        assert_eq!(pair.write(&mut ids, block(2)).lba, Lba(3));
        let failed = IoOutcome::Failed(IoFailure::TimedOut);
        pair.handle(Tick::default(), failed);
        let later = Tick::default() + RETRY_DELAY;
        assert!(pair.needs_rewrite() && !pair.is_ready(Tick::default()) && pair.is_ready(later));
        assert_eq!(pair.write(&mut ids, block(3)).lba, Lba(3));
        pair.handle(later, IoOutcome::Written);
        assert!(!pair.is_ready(later), "not before it was read back");
        let read = pair.poll_read_back(&mut ids, later).unwrap();
        assert_eq!((read.lba, read.op), (Lba(3), IoOp::Read));
        // Stale content comes back: the same copy again.
        pair.handle(later, IoOutcome::Read(&block(2).0));
        let later = later + RETRY_DELAY;
        assert_eq!(pair.write(&mut ids, block(4)).lba, Lba(3));
        pair.handle(later, IoOutcome::Written);
        pair.poll_read_back(&mut ids, later).unwrap();
        pair.handle(later, IoOutcome::Read(&block(4).0));
        assert_eq!(pair.write(&mut ids, block(5)).lba, Lba(2));
    }

    #[test]
    fn failures_in_a_row_lose_the_device_and_a_success_between_does_not() {
        let (mut pair, mut ids) = writer();
        let failed = IoOutcome::Failed(IoFailure::Error);
        let now = Tick::from_millis(1);
        for _ in 1..FAILURES_MAX {
            pair.write(&mut ids, block(1));
            assert_eq!(
                pair.handle(now, failed),
                PairOutcome::Failed(IoFailure::Error)
            );
        }
        pair.write(&mut ids, block(1));
        pair.handle(now, IoOutcome::Written);
        pair.poll_read_back(&mut ids, now + RETRY_DELAY).unwrap();
        pair.handle(now, IoOutcome::Read(&block(1).0));
        for _ in 1..FAILURES_MAX {
            pair.write(&mut ids, block(1));
            assert_eq!(
                pair.handle(now, failed),
                PairOutcome::Failed(IoFailure::Error)
            );
        }
        pair.write(&mut ids, block(1));
        assert_eq!(
            pair.handle(now, failed),
            PairOutcome::Lost(IoFailure::Error)
        );
    }
}
