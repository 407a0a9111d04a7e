//! One device as a coordinator uses it: its block written there, its block and the members' pages read.

use crate::{
    geometry::{Geometry, Timeouts},
    io::{IoFailure, IoId, IoIds, IoOp, IoOutcome, IoRequest},
    pair::{PairOutcome, PairWriter},
    probe::Probe,
    types::{Block, BlockCount, DeviceIndex, Lba, SlotIndex, Tick},
};
use std::collections::VecDeque;

/// Reads that may fail in a row before the device counts as lost.
const READ_FAILURES_MAX: u32 = 3;
/// Slots whose pages are read in one go at most: 512 KiB.
const SLOTS_READ_MAX: u32 = 64;

/// What a coordinator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// Its own block, A and B.
    Block,
    /// Answer pages that an earlier coordinator left, from this slot on.
    OldAnswers(SlotIndex),
    /// Member pages, from this slot on.
    Pages(SlotIndex),
}

/// What an outcome meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceOutcome {
    Pair(PairOutcome),
    /// It was read; the read was begun at this tick.
    Read(Area, Tick),
    /// The read failed and will be made again.
    Again,
    Lost(IoFailure),
    /// A lost device answers again.
    Found,
}

/// A run of slots: the first and how many.
pub(super) type SlotRun = (SlotIndex, u32);

#[derive(Debug)]
pub(super) struct Device {
    index: DeviceIndex,
    pair: PairWriter,
    lost: Option<Probe>,
    member_pages: Lba,
    answer_pages: Lba,
    block_wanted: bool,
    block_read: Option<(IoId, Tick)>,
    /// Runs of pages that are still to be read.
    runs: VecDeque<(Area, u32)>,
    run_read: Option<(IoId, Tick, Area, u32)>,
    block_known: bool,
    failures: u32,
    beat: bool,
    write_began: Tick,
    writing: u64,
    written: Option<u64>,
}

impl Device {
    pub(super) fn new(index: DeviceIndex, geometry: &Geometry) -> Self {
        let first = Geometry::COORDINATOR;
        let mut device = Self {
            index,
            pair: PairWriter::new(index, [first, first + BlockCount(1)]),
            lost: None,
            member_pages: geometry.member_page(SlotIndex(0)),
            answer_pages: geometry.answer_page(SlotIndex(0)),
            block_wanted: true,
            block_read: None,
            runs: VecDeque::new(),
            run_read: None,
            block_known: false,
            failures: 0,
            beat: false,
            write_began: Tick::default(),
            writing: 0,
            written: None,
        };
        device.want_old_answers(geometry.slots());
        device
    }

    /// All answer pages are to be read, whoever wrote them.
    pub(super) fn want_old_answers(&mut self, slots: u32) {
        if self.lost.is_none() {
            self.push_runs(&[(SlotIndex(0), slots)], Area::OldAnswers);
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
        self.runs.clear();
    }

    /// Whether what an earlier coordinator left was read, or never will be.
    pub(super) fn is_known(&self) -> bool {
        self.lost.is_some() || (self.block_known && self.runs.is_empty() && self.run_read.is_none())
    }

    pub(super) fn is_quiet(&self) -> bool {
        let probe = self.lost.as_ref().is_none_or(Probe::is_quiet);
        probe && self.pair.is_quiet() && self.block_read.is_none() && self.run_read.is_none()
    }

    pub(super) fn has_written(&self, revision: u64) -> bool {
        self.lost.is_some() || self.written >= Some(revision)
    }

    /// The block that was written here last.
    pub(super) fn last(&self) -> Option<&Block> {
        self.pair.last()
    }

    /// A heartbeat: the block is written and read, and the pages of all `slots` are read.
    pub(super) fn beat(&mut self, slots: &[SlotRun]) {
        self.beat = true;
        self.block_wanted = true;
        self.want_scan(slots);
    }

    pub(super) fn want_block(&mut self) {
        self.block_wanted = true;
    }

    pub(super) fn repair(&mut self) {
        self.beat = true;
    }

    /// The pages of `slots` are to be read; false if pages are being read already.
    pub(super) fn want_scan(&mut self, slots: &[SlotRun]) -> bool {
        if self.is_scanning() || self.lost.is_some() {
            return false;
        }
        self.push_runs(slots, Area::Pages);
        true
    }

    pub(super) fn is_scanning(&self) -> bool {
        self.run_read.is_some() || !self.runs.is_empty()
    }

    pub(super) fn owns(&self, id: IoId) -> bool {
        let probes = self.lost.as_ref().is_some_and(|probe| probe.owns(id));
        probes
            || self.pair.owns(id)
            || self.block_read.is_some_and(|(known, _)| known == id)
            || self.run_read.is_some_and(|(known, ..)| known == id)
    }

    pub(super) fn poll_read(&mut self, now: Tick, ids: &mut IoIds) -> Option<IoRequest> {
        if let Some(probe) = &mut self.lost {
            return probe.poll(now, ids, self.index);
        }
        if let Some(request) = self.pair.poll_read_back(ids, now) {
            return Some(request);
        }
        if self.block_wanted && self.block_read.is_none() {
            self.block_wanted = false;
            let id = ids.fresh();
            self.block_read = Some((id, now));
            return Some(self.read(id, Geometry::COORDINATOR, 2));
        }
        if self.run_read.is_none()
            && let Some((area, count)) = self.runs.pop_front()
        {
            let id = ids.fresh();
            self.run_read = Some((id, now, area, count));
            let (base, first) = match area {
                Area::Block => (Geometry::COORDINATOR, SlotIndex(0)),
                Area::OldAnswers(first) => (self.answer_pages, first),
                Area::Pages(first) => (self.member_pages, first),
            };
            return Some(self.read(id, base + BlockCount(2 * first.0), 2 * count));
        }
        None
    }

    pub(super) fn wants_write(&self, now: Tick, revision: u64) -> bool {
        self.lost.is_none() && self.pair.is_ready(now) && self.has_to_write(revision)
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

    /// The block was written; returns when that was begun.
    pub(super) fn written(&mut self) -> Tick {
        self.written = Some(self.writing);
        self.write_began
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
            return DeviceOutcome::Found;
        }
        if self.pair.owns(id) {
            return DeviceOutcome::Pair(self.pair.handle(now, outcome));
        }
        let (area, started, count) = match (self.block_read, self.run_read) {
            (Some((known, started)), _) if known == id => {
                self.block_read = None;
                (Area::Block, started, 1)
            }
            (_, Some((known, started, area, count))) if known == id => {
                self.run_read = None;
                (area, started, count)
            }
            _ => return DeviceOutcome::Again,
        };
        match outcome {
            IoOutcome::Read(_) => {
                self.failures = 0;
                self.block_known |= area == Area::Block;
                DeviceOutcome::Read(area, started)
            }
            IoOutcome::Failed(failure) => {
                self.failures += 1;
                // A claim isn't held up by a device that hangs: it is found again later.
                let is_new = !self.block_known || matches!(area, Area::OldAnswers(_));
                let hangs = failure == IoFailure::TimedOut && is_new;
                match area {
                    Area::Block => self.block_wanted |= !self.block_known,
                    Area::OldAnswers(_) => self.runs.push_back((area, count)),
                    Area::Pages(_) => {}
                }
                let gone = failure == IoFailure::DeviceGone;
                if gone || hangs || self.failures >= READ_FAILURES_MAX {
                    DeviceOutcome::Lost(failure)
                } else {
                    DeviceOutcome::Again
                }
            }
            IoOutcome::Written => DeviceOutcome::Again,
        }
    }

    fn has_to_write(&self, revision: u64) -> bool {
        self.beat || self.pair.needs_rewrite() || self.written < Some(revision)
    }

    fn push_runs(&mut self, slots: &[SlotRun], area: impl Fn(SlotIndex) -> Area) {
        for &(first, count) in slots {
            let mut at = 0;
            while at < count {
                let part = (count - at).min(SLOTS_READ_MAX);
                self.runs.push_back((area(SlotIndex(first.0 + at)), part));
                at += part;
            }
        }
    }

    fn read(&self, id: IoId, lba: Lba, blocks: u32) -> IoRequest {
        IoRequest {
            id,
            device: self.index,
            lba,
            blocks: BlockCount(blocks),
            op: IoOp::Read,
        }
    }
}
