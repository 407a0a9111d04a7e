//! What a coordinator reads on one device: its own block, the members' pages, and the answers of its predecessors.

use crate::{
    areas::{ReadDone, ReadEnd, Reads},
    geometry::Geometry,
    io::{IoId, IoIds, IoRequest},
    types::{BlockCount, DeviceIndex, Lba, SlotIndex, Tick},
};
use std::collections::VecDeque;

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

/// A run of slots: the first and how many.
pub(super) type SlotRun = (SlotIndex, u32);

#[derive(Debug)]
pub(super) struct CoordinatorReads {
    member_pages: Lba,
    answer_pages: Lba,
    block_wanted: bool,
    block_read: Option<(IoId, Tick)>,
    block_known: bool,
    /// Runs of pages that are still to be read.
    runs: VecDeque<(Area, u32)>,
    run_read: Option<(IoId, Tick, Area, u32)>,
    /// The claim waits for nothing any more.
    is_settled: bool,
    /// The last read of old answers failed.
    has_old_failed: bool,
}

impl CoordinatorReads {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let mut reads = Self {
            member_pages: geometry.member_page(SlotIndex(0)),
            answer_pages: geometry.answer_page(SlotIndex(0)),
            block_wanted: true,
            block_read: None,
            block_known: false,
            runs: VecDeque::new(),
            run_read: None,
            is_settled: false,
            has_old_failed: false,
        };
        reads.want_old_answers(geometry.slots());
        reads
    }

    /// All answer pages are to be read, whoever wrote them.
    pub(super) fn want_old_answers(&mut self, slots: u32) {
        self.push_runs(&[(SlotIndex(0), slots)], Area::OldAnswers);
    }

    /// The claim is settled: a read of old answers, which a device that is found brings, may fail once.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }

    pub(super) fn want_block(&mut self) {
        self.block_wanted = true;
    }

    /// The pages of `slots` are to be read; false if pages are being read already.
    pub(super) fn want_scan(&mut self, slots: &[SlotRun]) -> bool {
        let is_free = !self.is_scanning();
        if is_free {
            self.push_runs(slots, Area::Pages);
        }
        is_free
    }

    /// Whether answers of predecessors are still to be read.
    pub(super) fn is_reading_old(&self) -> bool {
        let is_old = |area| matches!(area, Area::OldAnswers(_));
        self.run_read.is_some_and(|(_, _, area, _)| is_old(area))
            || self.runs.iter().any(|&(area, _)| is_old(area))
    }

    pub(super) fn is_scanning(&self) -> bool {
        self.run_read.is_some() || !self.runs.is_empty()
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
}

impl Reads for CoordinatorReads {
    type Area = Area;

    fn poll(&mut self, now: Tick, ids: &mut IoIds, device: DeviceIndex) -> Option<IoRequest> {
        if self.block_wanted && self.block_read.is_none() {
            self.block_wanted = false;
            let id = ids.fresh();
            self.block_read = Some((id, now));
            let lba = Geometry::COORDINATOR;
            return Some(IoRequest::read(id, device, lba, BlockCount(2)));
        }
        if self.run_read.is_some() {
            return None;
        }
        let (area, count) = self.runs.pop_front()?;
        let id = ids.fresh();
        self.run_read = Some((id, now, area, count));
        let (base, first) = match area {
            Area::Block => (Geometry::COORDINATOR, SlotIndex(0)),
            Area::OldAnswers(first) => (self.answer_pages, first),
            Area::Pages(first) => (self.member_pages, first),
        };
        let lba = base + BlockCount(2 * first.0);
        Some(IoRequest::read(id, device, lba, BlockCount(2 * count)))
    }

    fn owns(&self, id: IoId) -> bool {
        self.block_read.is_some_and(|(known, _)| known == id)
            || self.run_read.is_some_and(|(known, ..)| known == id)
    }

    fn ended(&mut self, id: IoId, end: ReadEnd) -> Option<ReadDone<Area>> {
        let (area, started, count) = match (self.block_read, self.run_read) {
            (Some((known, started)), _) if known == id => {
                self.block_read = None;
                (Area::Block, started, 1)
            }
            (_, Some((known, started, area, count))) if known == id => {
                self.run_read = None;
                (area, started, count)
            }
            _ => return None,
        };
        let is_old = matches!(area, Area::OldAnswers(_));
        let may_fail = self.is_settled && !self.has_old_failed;
        let is_awaited = !self.block_known || (is_old && !may_fail);
        if is_old {
            self.has_old_failed = end == ReadEnd::Failed;
        }
        match (end, area) {
            (ReadEnd::Whole, Area::Block) => self.block_known = true,
            (ReadEnd::Failed, Area::Block) => self.block_wanted |= !self.block_known,
            (ReadEnd::Failed, Area::OldAnswers(_)) => self.runs.push_back((area, count)),
            (_, Area::OldAnswers(_) | Area::Pages(_)) => {}
        }
        Some(ReadDone {
            area,
            started,
            is_awaited,
        })
    }

    fn is_known(&self) -> bool {
        self.block_known && !self.is_scanning()
    }

    fn is_quiet(&self) -> bool {
        self.block_read.is_none() && self.run_read.is_none()
    }

    fn lost(&mut self) {
        self.runs.clear();
        self.has_old_failed = false;
    }
}
