//! One device as a member uses it: its own page written there, and three places read.

use crate::{
    geometry::{Geometry, Timeouts},
    io::{IoFailure, IoId, IoIds, IoOp, IoOutcome, IoRequest},
    pair::{PairOutcome, PairWriter},
    probe::Probe,
    types::{Block, BlockCount, Challenge, DeviceIndex, Epoch, Lba, SlotIndex, Tick},
};

/// Reads that may fail in a row before the device counts as lost.
const READ_FAILURES_MAX: u32 = 3;

/// A place that a member reads: two blocks, A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Own,
    Coordinator,
    Answer,
}

/// What an outcome meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceOutcome {
    Pair(PairOutcome),
    /// Both copies were read; the read was begun at this tick.
    Read(Area, Tick),
    /// The read failed and will be made again.
    Again,
    Lost(IoFailure),
    /// A lost device answers again.
    Found,
}

#[derive(Debug)]
pub(super) struct Device {
    index: DeviceIndex,
    pair: PairWriter,
    lost: Option<Probe>,
    reads: [Reading; 3],
    failures: u32,
    /// A heartbeat is due.
    beat: bool,
    write_began: Tick,
    /// The revision that is being written, and the one that was.
    writing: u64,
    written: Option<u64>,
    pub(super) sees: Option<Epoch>,
    pub(super) challenge_seen: Option<Challenge>,
}

#[derive(Debug)]
struct Reading {
    area: Area,
    lba: Lba,
    wanted: bool,
    under_way: Option<(IoId, Tick)>,
    known: bool,
}

impl Device {
    pub(super) fn new(index: DeviceIndex, geometry: &Geometry, slot: SlotIndex) -> Self {
        let page = geometry.member_page(slot);
        let reading = |area, lba| Reading {
            area,
            lba,
            wanted: true,
            under_way: None,
            known: false,
        };
        Self {
            index,
            pair: PairWriter::new(index, [page, page + BlockCount(1)]),
            lost: None,
            reads: [
                reading(Area::Own, page),
                reading(Area::Coordinator, Geometry::COORDINATOR),
                reading(Area::Answer, geometry.answer_page(slot)),
            ],
            failures: 0,
            beat: false,
            write_began: Tick::default(),
            writing: 0,
            written: None,
            sees: None,
            challenge_seen: None,
        }
    }

    pub(super) fn index(&self) -> DeviceIndex {
        self.index
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    pub(super) fn set_lost(&mut self, now: Tick, timeouts: &Timeouts) {
        self.lost = Some(Probe::new(now, timeouts));
        self.sees = None;
        self.challenge_seen = None;
    }

    /// Whether each place was read once, or never will be.
    pub(super) fn is_known(&self) -> bool {
        self.lost.is_some() || self.reads.iter().all(|reading| reading.known)
    }

    pub(super) fn is_quiet(&self) -> bool {
        let probe = self.lost.as_ref().is_none_or(Probe::is_quiet);
        let reads = self.reads.iter().all(|reading| reading.under_way.is_none());
        self.pair.is_quiet() && reads && probe
    }

    /// Whether the coordinator's block of `epoch` was read here, and the own page written.
    pub(super) fn sees(&self, epoch: Option<Epoch>) -> bool {
        self.lost.is_none() && epoch.is_some() && self.sees == epoch
    }

    /// Whether this revision was written, or never will be.
    pub(super) fn has_written(&self, revision: u64) -> bool {
        self.lost.is_some() || self.written >= Some(revision)
    }

    /// The block that was written here last.
    pub(super) fn last(&self) -> Option<&Block> {
        self.pair.last()
    }

    /// A heartbeat: everything is read, and the page is written.
    pub(super) fn beat(&mut self) {
        self.beat = true;
        for reading in &mut self.reads {
            reading.wanted = true;
        }
    }

    /// Old content was read where newer was written: the page is written again.
    pub(super) fn repair(&mut self) {
        self.beat = true;
    }

    /// The answers are to be read; false if they are being read already.
    pub(super) fn want_answer(&mut self) -> bool {
        let reading = &mut self.reads[2];
        let free = reading.under_way.is_none();
        reading.wanted |= free;
        free
    }

    pub(super) fn is_reading_answer(&self) -> bool {
        self.reads[2].under_way.is_some()
    }

    pub(super) fn owns(&self, id: IoId) -> bool {
        let probes = self.lost.as_ref().is_some_and(|probe| probe.owns(id));
        probes || self.pair.owns(id) || self.reads.iter().any(|reading| reading.is(id))
    }

    pub(super) fn poll_read(&mut self, now: Tick, ids: &mut IoIds) -> Option<IoRequest> {
        if let Some(probe) = &mut self.lost {
            return probe.poll(now, ids, self.index);
        }
        if let Some(request) = self.pair.poll_read_back(ids, now) {
            return Some(request);
        }
        let device = self.index;
        let free = |reading: &&mut Reading| reading.wanted && reading.under_way.is_none();
        let reading = self.reads.iter_mut().find(free)?;
        let id = ids.fresh();
        reading.wanted = false;
        reading.under_way = Some((id, now));
        Some(IoRequest {
            id,
            device,
            lba: reading.lba,
            blocks: BlockCount(2),
            op: IoOp::Read,
        })
    }

    pub(super) fn wants_write(&self, now: Tick, revision: u64) -> bool {
        self.lost.is_none() && self.pair.is_ready(now) && self.has_to_write(revision)
    }

    fn has_to_write(&self, revision: u64) -> bool {
        self.beat || self.pair.needs_rewrite() || self.written < Some(revision)
    }

    /// When a write that has to wait may begin.
    pub(super) fn retry_at(&self, revision: u64) -> Option<Tick> {
        match &self.lost {
            Some(probe) => probe.at(),
            None if self.has_to_write(revision) => self.pair.ready_at(),
            None => None,
        }
    }

    pub(super) fn write(
        &mut self,
        now: Tick,
        ids: &mut IoIds,
        block: Box<Block>,
        revision: u64,
    ) -> IoRequest {
        self.beat = false;
        self.write_began = now;
        self.writing = revision;
        self.pair.write(ids, block)
    }

    /// The page was written: when that was begun, and whether it said anything new.
    pub(super) fn written(&mut self) -> (Tick, bool) {
        let news = self.written < Some(self.writing);
        self.written = Some(self.writing);
        (self.write_began, news)
    }

    pub(super) fn handle_io(
        &mut self,
        now: Tick,
        id: IoId,
        outcome: IoOutcome<'_>,
    ) -> DeviceOutcome {
        if let Some(probe) = self.lost.as_mut().filter(|probe| probe.owns(id)) {
            if !matches!(outcome, IoOutcome::Read(_)) {
                probe.failed(now);
                return DeviceOutcome::Again;
            }
            self.lost = None;
            self.failures = 0;
            self.pair.forgive();
            self.beat();
            return DeviceOutcome::Found;
        }
        if self.pair.owns(id) {
            return DeviceOutcome::Pair(self.pair.handle(now, outcome));
        }
        let Some(reading) = self.reads.iter_mut().find(|reading| reading.is(id)) else {
            return DeviceOutcome::Again;
        };
        let started = reading.under_way.take().map_or(now, |(_, started)| started);
        match outcome {
            IoOutcome::Read(_) => {
                reading.known = true;
                self.failures = 0;
                DeviceOutcome::Read(reading.area, started)
            }
            IoOutcome::Failed(failure) => {
                // Until a place was read once it is read again at once; afterwards the next heartbeat does that.
                reading.wanted |= !reading.known;
                // A start isn't held up by a device that hangs: it is found again later.
                let hangs = failure == IoFailure::TimedOut && !reading.known;
                let gone = failure == IoFailure::DeviceGone;
                self.failures += 1;
                if gone || hangs || self.failures >= READ_FAILURES_MAX {
                    DeviceOutcome::Lost(failure)
                } else {
                    DeviceOutcome::Again
                }
            }
            IoOutcome::Written => DeviceOutcome::Again,
        }
    }
}

impl Reading {
    fn is(&self, id: IoId) -> bool {
        self.under_way.is_some_and(|(known, _)| known == id)
    }
}
