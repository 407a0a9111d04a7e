//! What a member reads on one device: its own page, the coordinator's block, and the answers to it.

use crate::{
    areas::{ReadDone, ReadEnd, Reads},
    geometry::Geometry,
    io::{IoId, IoIds, IoRequest},
    types::{BlockCount, Challenge, DeviceIndex, Epoch, Lba, SlotIndex, Tick},
};

/// A place that a member reads: two blocks, A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Own,
    Coordinator,
    Answer,
}

#[derive(Debug)]
pub(super) struct MemberReads {
    places: [Reading; 3],
    /// The coordinator whose block was read here last.
    pub(super) sees: Option<Epoch>,
    pub(super) challenge_seen: Option<Challenge>,
    /// Whether the coordinator's block was read since it was last wanted afresh, and the read that was under way then.
    is_block_fresh: bool,
    old_block_read: Option<IoId>,
}

#[derive(Debug)]
struct Reading {
    area: Area,
    lba: Lba,
    wanted: bool,
    under_way: Option<(IoId, Tick)>,
    known: bool,
}

impl MemberReads {
    pub(super) fn new(geometry: &Geometry, slot: SlotIndex) -> Self {
        let reading = |area, lba| Reading {
            area,
            lba,
            wanted: true,
            under_way: None,
            known: false,
        };
        Self {
            places: [
                reading(Area::Own, geometry.member_page(slot)),
                reading(Area::Coordinator, Geometry::COORDINATOR),
                reading(Area::Answer, geometry.answer_page(slot)),
            ],
            sees: None,
            challenge_seen: None,
            is_block_fresh: false,
            old_block_read: None,
        }
    }

    /// Everything is to be read again.
    pub(super) fn want_all(&mut self) {
        for reading in &mut self.places {
            reading.wanted = true;
        }
    }

    /// The coordinator's block is to be read, by a read that is begun from now on.
    pub(super) fn want_fresh_block(&mut self) {
        let reading = &mut self.places[1];
        reading.wanted = true;
        self.is_block_fresh = false;
        self.old_block_read = reading.under_way.map(|(id, _)| id);
    }

    pub(super) fn is_block_fresh(&self) -> bool {
        self.is_block_fresh
    }

    /// The answers are to be read; false if they are being read already.
    pub(super) fn want_answer(&mut self) -> bool {
        let reading = &mut self.places[2];
        let free = reading.under_way.is_none();
        reading.wanted |= free;
        free
    }

    pub(super) fn is_reading_answer(&self) -> bool {
        self.places[2].under_way.is_some()
    }
}

impl Reads for MemberReads {
    type Area = Area;

    fn poll(&mut self, now: Tick, ids: &mut IoIds, device: DeviceIndex) -> Option<IoRequest> {
        let free = |reading: &&mut Reading| reading.wanted && reading.under_way.is_none();
        let reading = self.places.iter_mut().find(free)?;
        let id = ids.fresh();
        reading.wanted = false;
        reading.under_way = Some((id, now));
        Some(IoRequest::read(id, device, reading.lba, BlockCount(2)))
    }

    fn owns(&self, id: IoId) -> bool {
        self.places.iter().any(|reading| reading.is(id))
    }

    fn ended(&mut self, id: IoId, end: ReadEnd) -> Option<ReadDone<Area>> {
        let reading = self.places.iter_mut().find(|reading| reading.is(id))?;
        let (_, started) = reading.under_way.take()?;
        let is_awaited = !reading.known;
        reading.known |= end == ReadEnd::Whole;
        // Until a place was read once it is read again at once; afterwards the next heartbeat does that.
        reading.wanted |= !reading.known;
        if reading.area == Area::Coordinator && end == ReadEnd::Whole {
            self.is_block_fresh |= self.old_block_read != Some(id);
        }
        Some(ReadDone {
            area: reading.area,
            started,
            is_awaited,
        })
    }

    fn is_known(&self) -> bool {
        self.places.iter().all(|reading| reading.known)
    }

    fn is_quiet(&self) -> bool {
        let mut places = self.places.iter();
        places.all(|reading| reading.under_way.is_none())
    }

    fn lost(&mut self) {
        self.sees = None;
        self.challenge_seen = None;
    }
}

impl Reading {
    fn is(&self, id: IoId) -> bool {
        self.under_way.is_some_and(|(known, _)| known == id)
    }
}
