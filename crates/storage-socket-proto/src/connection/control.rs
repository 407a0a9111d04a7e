//! The control blocks of one connection: writing one's own pair, reading the peer's.
//!
//! Each side's block carries a revision, and the newest revision of the peer that it has read. So both learn whether
//! what they said has arrived: if it hasn't after a heartbeat's time, it is written again. A mere acknowledgement of a revision
//! is no new revision, so that two idle sides fall silent.

use crate::{
    block::{ControlBlock, Place, Stamp, TagKey, Unchecked},
    geometry::{CONTROL_STRIDE, Ring},
    io::{IoFailure, IoId, IoIds, IoOutcome, IoRequest},
    pair::{PairOutcome, PairWriter},
    types::{BLOCK_BYTES, BlockCount, Counter, DeviceIndex, Lba, Tick},
};

/// Reads of the peer's blocks that may fail in a row before the device counts as lost.
const READ_FAILURES_MAX: u32 = 3;

#[derive(Debug)]
pub(crate) struct Control {
    device: DeviceIndex,
    place: Place,
    own_key: TagKey,
    peer_key: TagKey,
    own_writer: u64,
    peer_writer: u64,
    counter: Counter,
    pair: PairWriter,
    /// What was written last, or is being written.
    pub(crate) own: ControlBlock,
    in_write: bool,
    /// Something that the peer must learn has changed since.
    changed: bool,
    pub(crate) written_revision: u64,
    /// The peer's revision that the last completed write acknowledged.
    pub(crate) written_seen: u64,
    pub(crate) written_at: Tick,
    peer_at: Lba,
    reading: Option<IoId>,
    read_failures: u32,
    peer_counter: Counter,
    pub(crate) peer: ControlBlock,
}

/// What a read of the peer's blocks brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ControlProgress {
    /// Own block written; whether it said something new.
    Written,
    /// The peer's block is newer than the last.
    News(Box<ControlBlock>),
    /// Nothing new.
    Nothing,
    /// The device is lost.
    Lost(IoFailure),
}

/// Who writes and reads the blocks, and under which keys.
#[derive(Clone, Debug)]
pub(crate) struct ControlEnds {
    pub(crate) place: Place,
    pub(crate) own_key: TagKey,
    pub(crate) peer_key: TagKey,
    pub(crate) own_writer: u64,
    pub(crate) peer_writer: u64,
}

impl Control {
    pub(crate) fn new(own: ControlBlock, ends: ControlEnds, sends: &Ring, receives: &Ring) -> Self {
        let device = sends.control_device();
        let first = sends.control_block();
        let peer = ControlBlock::new(own.connection, own.generation, own.direction.opposite());
        Self {
            device,
            place: ends.place,
            own_key: ends.own_key,
            peer_key: ends.peer_key,
            own_writer: ends.own_writer,
            peer_writer: ends.peer_writer,
            counter: Counter(0),
            pair: PairWriter::new(device, [first, first + CONTROL_STRIDE]),
            own,
            in_write: false,
            changed: false,
            written_revision: 0,
            written_seen: 0,
            written_at: Tick::default(),
            peer_at: receives.control_block(),
            reading: None,
            read_failures: 0,
            peer_counter: Counter(0),
            peer,
        }
    }

    /// The peer has to learn of what changed.
    pub(crate) fn mark_changed(&mut self) {
        self.changed = true;
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn can_write(&self, now: Tick) -> bool {
        self.pair.is_ready(now)
    }

    pub(crate) fn needs_rewrite(&self) -> bool {
        self.pair.needs_rewrite()
    }

    pub(crate) fn ready_at(&self) -> Option<Tick> {
        self.pair.ready_at()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.pair.is_quiet() && self.reading.is_none()
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether everything said was written and the peer has read it.
    pub(crate) fn is_heard(&self) -> bool {
        !self.changed && !self.in_write && self.peer.seen >= self.own.revision
    }

    /// Whether a change that the peer has to learn waits to be written or is being written.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.changed || self.in_write
    }

    /// Begins to write `own`, which the caller has brought up to date.
    pub(crate) fn write(&mut self, now: Tick, ids: &mut IoIds) -> IoRequest {
        if self.changed {
            self.own.revision += 1;
            self.changed = false;
        }
        self.own.seen = self.peer.revision;
        self.counter = self.counter.next();
        self.written_at = now;
        self.in_write = true;
        let stamp = Stamp {
            counter: self.counter,
            writer: self.own_writer,
        };
        let block = self.own.encode(&self.place, stamp, &self.own_key);
        self.pair.write(ids, block)
    }

    pub(crate) fn poll_read_back(&mut self, ids: &mut IoIds, now: Tick) -> Option<IoRequest> {
        self.pair.poll_read_back(ids, now)
    }

    /// Reads both of the peer's copies in one go.
    pub(crate) fn read(&mut self, ids: &mut IoIds) -> IoRequest {
        let id = ids.fresh();
        self.reading = Some(id);
        let blocks = BlockCount(CONTROL_STRIDE.0 + 1);
        IoRequest::read(id, self.device, self.peer_at, blocks)
    }

    pub(crate) fn owns(&self, id: IoId) -> bool {
        self.reading == Some(id) || self.pair.owns(id)
    }

    pub(crate) fn handle_io(
        &mut self,
        now: Tick,
        id: IoId,
        outcome: IoOutcome<'_>,
    ) -> ControlProgress {
        if self.pair.owns(id) {
            return match self.pair.handle(now, outcome) {
                PairOutcome::Written => {
                    self.in_write = false;
                    self.written_revision = self.own.revision;
                    self.written_seen = self.own.seen;
                    ControlProgress::Written
                }
                PairOutcome::ReadBack => ControlProgress::Nothing,
                PairOutcome::Failed(_) => {
                    self.in_write = false;
                    // Whether it arrived is unknown: it is said again.
                    self.changed = true;
                    ControlProgress::Nothing
                }
                PairOutcome::Lost(failure) => {
                    self.in_write = false;
                    ControlProgress::Lost(failure)
                }
            };
        }
        self.reading = None;
        match outcome {
            IoOutcome::Read(bytes) => {
                self.read_failures = 0;
                self.newest(bytes)
            }
            IoOutcome::Failed(failure) => {
                self.read_failures += 1;
                if failure == IoFailure::DeviceGone || self.read_failures >= READ_FAILURES_MAX {
                    ControlProgress::Lost(failure)
                } else {
                    ControlProgress::Nothing
                }
            }
            IoOutcome::Written => ControlProgress::Nothing,
        }
    }

    /// Keeps the newest valid copy; what isn't valid, or not newer, is as if nothing was read.
    fn newest(&mut self, bytes: &[u8]) -> ControlProgress {
        let want = (
            self.peer.connection,
            self.peer.generation,
            self.peer.direction,
        );
        let mut news = None;
        for at in [0, CONTROL_STRIDE.bytes()] {
            let Some(copy) = bytes.get(at..at + BLOCK_BYTES) else {
                continue;
            };
            let Ok(block) = Unchecked::new(copy) else {
                continue;
            };
            if block.claimed_stamp().counter <= self.peer_counter {
                continue;
            }
            if let Ok((stamp, block)) =
                ControlBlock::parse(block, &self.place, &self.peer_key, want)
                && stamp.writer == self.peer_writer
            {
                self.peer_counter = stamp.counter;
                news = Some(block);
            }
        }
        match news {
            Some(block) => ControlProgress::News(Box::new(block)),
            None => ControlProgress::Nothing,
        }
    }
}
