//! The receiving half: reads of frames, their order, and what is done about frames that arrive damaged.
//!
//! Invariants: a frame is delivered once, whole, and in order; a frame is read ahead of its announcement by its first
//! blocks alone, and finding nothing then means "not yet"; an announced frame that doesn't open is read again before it
//! is asked for again, and asked for at most [`ATTEMPTS_MAX`] times.

use super::Depths;
use crate::{
    block::{LENGTHS_MAX, RESENDS_MAX, Resend},
    geometry::{Ring, Timeouts},
    io::{IoFailure, IoId, IoIds, IoOp, IoRequest},
    seal::FrameVerdict,
    types::{BlockCount, Sequence, Tick},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How often one frame is asked for again before the stream is reset.
pub(crate) const ATTEMPTS_MAX: u32 = 6;
/// Reads of a frame that failed its check before it is asked for again: the medium may have answered stale or torn.
const REREADS_MAX: u32 = 3;
/// The pause before the first of them; it doubles.
const REREAD_DELAY: Duration = Duration::from_millis(1);
/// The longest pause between two reads of a frame that is waited for.
const REREAD_DELAY_MAX: Duration = Duration::from_millis(100);
/// What is read ahead of an announcement at least: a message of a block and its header.
const AHEAD_BLOCKS_MIN: BlockCount = BlockCount(2);
/// What is read ahead at most: as much as the frame before had, if it was a small one.
const AHEAD_BLOCKS_MAX: BlockCount = BlockCount(16);
/// Failed reads of one frame before its device counts as lost.
const READ_FAILURES_MAX: u32 = 3;
/// The pause after a failed read.
const RETRY_DELAY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct RecvHalf {
    ring: Ring,
    depths: Depths,
    timeouts: Timeouts,
    /// Frames below this were delivered.
    consumed: Sequence,
    /// Frames below this are in `slots` or were delivered.
    next_read: Sequence,
    announced: Sequence,
    fin: Option<Sequence>,
    lengths: Box<[u16; LENGTHS_MAX]>,
    slots: BTreeMap<Sequence, Slot>,
    in_flight: BTreeMap<IoId, Sequence>,
    /// Those of them that the device has done, and whose verdict is to come.
    landed: BTreeSet<IoId>,
    /// Delivered frames whose buffers were not released.
    lent: BTreeSet<Sequence>,
    /// A read ahead of the announcement is due.
    probe: bool,
    /// Its length.
    ahead: BlockCount,
}

#[derive(Debug)]
struct Slot {
    state: SlotState,
    blocks: BlockCount,
    failures: u32,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Reading { announced: bool },
    Waiting { until: Tick },
    Whole { payload_bytes: usize },
}

/// The history of an announced frame that doesn't open.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Tick,
    /// Reads since then, or since the last attempt was served.
    rereads: u32,
    attempt: u32,
    asked: Tick,
    served: bool,
}

/// What the end of a read changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvProgress {
    /// The frame is whole; [`RecvHalf::deliver`] may have something.
    Whole,
    /// More of the frame is to be read.
    More,
    /// The read ran ahead and found nothing.
    Early,
    /// An announced frame didn't open; whether it is now asked for again.
    Damaged(Asked),
    /// Resends didn't help.
    Hopeless,
    /// The read failed and will be tried again.
    Retry,
    /// The device is lost.
    Lost(IoFailure),
    /// Nobody waits for this read.
    Nothing,
}

/// Whether a frame is now asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Yes,
    No,
}

/// The peer announced what can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadAnnouncement;

impl RecvHalf {
    pub(crate) fn new(ring: Ring, depths: Depths, timeouts: Timeouts) -> Self {
        Self {
            ahead: AHEAD_BLOCKS_MIN.min(ring.frame_blocks()),
            ring,
            depths,
            timeouts,
            consumed: Sequence(0),
            next_read: Sequence(0),
            announced: Sequence(0),
            fin: None,
            lengths: Box::new([0; LENGTHS_MAX]),
            slots: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            landed: BTreeSet::new(),
            lent: BTreeSet::new(),
            probe: false,
        }
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(crate) fn consumed(&self) -> Sequence {
        self.consumed
    }

    /// Whether the peer finished and all of it was delivered.
    pub(crate) fn is_finished(&self) -> bool {
        self.fin == Some(self.consumed)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes what the peer's newest control block says. Returns whether there is anything new.
    pub(crate) fn announce(
        &mut self,
        announced: Sequence,
        fin: Option<Sequence>,
        lengths: &[u16; LENGTHS_MAX],
    ) -> Result<bool, BadAnnouncement> {
        let farthest = self.consumed.0.saturating_add(self.ring.frames());
        if announced < self.announced || announced.0 > farthest {
            return Err(BadAnnouncement);
        }
        if let Some(known) = self.fin
            && fin != Some(known)
        {
            return Err(BadAnnouncement);
        }
        if fin.is_some_and(|fin| fin < self.next_whole_end() || fin != announced) {
            return Err(BadAnnouncement);
        }
        let news = announced > self.announced || fin != self.fin;
        self.announced = announced;
        self.fin = fin;
        self.lengths.copy_from_slice(lengths);
        Ok(news)
    }

    /// Takes which resends were written: those frames are read again at once. Returns whether any is.
    pub(crate) fn served(&mut self, now: Tick, served: &[Resend]) -> bool {
        let mut any = false;
        for resend in served {
            let Some(slot) = self.slots.get_mut(&resend.sequence) else {
                continue;
            };
            let Some(trouble) = &mut slot.trouble else {
                continue;
            };
            if trouble.served || trouble.attempt == 0 || resend.attempt < trouble.attempt {
                continue;
            }
            trouble.served = true;
            trouble.rereads = 0;
            any = true;
            if let SlotState::Waiting { until } = &mut slot.state {
                *until = now;
            }
        }
        any
    }

    /// Frames to ask for again: no more than a control block has room for.
    pub(crate) fn resends(&self) -> Vec<Resend> {
        self.asked().collect()
    }

    fn asked(&self) -> impl Iterator<Item = Resend> {
        self.slots.iter().filter_map(|(&sequence, slot)| {
            let attempt = slot.trouble?.attempt;
            let open = !matches!(slot.state, SlotState::Whole { .. });
            (attempt > 0 && open).then_some(Resend { sequence, attempt })
        })
    }

    /// Whether there are announced frames that were not delivered.
    pub(crate) fn is_behind(&self) -> bool {
        self.consumed < self.announced
    }

    /// A read ahead of the announcement may be made once.
    pub(crate) fn probe(&mut self) {
        self.probe = true;
    }

    pub(crate) fn release(&mut self, sequence: Sequence) {
        self.lent.remove(&sequence);
    }

    /// The next frame in order, if it is whole.
    pub(crate) fn deliver(&mut self) -> Option<(Sequence, usize, BlockCount)> {
        let slot = self.slots.get(&self.consumed)?;
        let SlotState::Whole { payload_bytes } = slot.state else {
            return None;
        };
        let blocks = slot.blocks;
        let sequence = self.consumed;
        self.slots.remove(&sequence);
        self.lent.insert(sequence);
        self.consumed = sequence.next();
        Some((sequence, payload_bytes, blocks))
    }

    /// Nothing more is read.
    pub(crate) fn abandon(&mut self) {
        self.slots.clear();
        self.probe = false;
        self.next_read = Sequence(u64::MAX);
    }

    /// When a frame that is waited for is due to be read again.
    pub(crate) fn next_wait(&self) -> Option<Tick> {
        self.slots
            .values()
            .filter_map(|slot| match slot.state {
                SlotState::Waiting { until } => Some(until),
                SlotState::Reading { .. } | SlotState::Whole { .. } => None,
            })
            .min()
    }

    pub(crate) fn poll_io(&mut self, now: Tick, ids: &mut IoIds) -> Option<IoRequest> {
        if self.next_read.0 == u64::MAX {
            return None;
        }
        let due = self.slots.iter().find_map(|(&sequence, slot)| {
            matches!(slot.state, SlotState::Waiting { until } if until <= now).then_some(sequence)
        });
        if let Some(sequence) = due {
            return Some(self.read(ids, sequence));
        }
        let held = self.slots.len() + self.lent.len();
        let reading = self.in_flight.len() - self.landed.len();
        if reading >= self.depths.read || held >= self.depths.held {
            return None;
        }
        let announced = self.next_read < self.announced;
        let is_next = self.next_read == self.announced.max(self.consumed);
        let probe = self.probe && self.fin.is_none() && is_next;
        if !announced && !probe {
            return None;
        }
        self.probe &= announced;
        let sequence = self.next_read;
        self.next_read = sequence.next();
        let blocks = if announced {
            self.length(sequence)
        } else {
            self.ahead
        };
        let slot = Slot {
            state: SlotState::Waiting { until: now },
            blocks,
            failures: 0,
            trouble: None,
        };
        self.slots.insert(sequence, slot);
        Some(self.read(ids, sequence))
    }

    /// The device has done a read: another one may begin while this one is opened.
    pub(crate) fn handle_landed(&mut self, id: IoId) {
        if self.in_flight.contains_key(&id) {
            self.landed.insert(id);
        }
    }

    pub(crate) fn handle_read(
        &mut self,
        now: Tick,
        id: IoId,
        verdict: &FrameVerdict,
    ) -> RecvProgress {
        self.landed.remove(&id);
        let Some(sequence) = self.in_flight.remove(&id) else {
            return RecvProgress::Nothing;
        };
        let is_announced = sequence < self.announced;
        let most = self.ring.frame_blocks();
        let Some(slot) = self.slots.get_mut(&sequence) else {
            return RecvProgress::Nothing;
        };
        let SlotState::Reading { announced } = slot.state else {
            return RecvProgress::Nothing;
        };
        match verdict {
            FrameVerdict::Whole { payload_bytes } => {
                slot.state = SlotState::Whole {
                    payload_bytes: *payload_bytes,
                };
                slot.blocks = crate::seal::frame_blocks(*payload_bytes);
                let is_small = slot.blocks <= AHEAD_BLOCKS_MAX;
                let guess = if is_small { slot.blocks } else { BlockCount(0) };
                self.ahead = guess.max(AHEAD_BLOCKS_MIN).min(most);
                RecvProgress::Whole
            }
            FrameVerdict::Longer { blocks } if *blocks > slot.blocks && *blocks <= most => {
                slot.blocks = *blocks;
                slot.state = SlotState::Waiting { until: now };
                RecvProgress::More
            }
            FrameVerdict::Failed(failure) => {
                slot.failures += 1;
                slot.state = SlotState::Waiting {
                    until: now + RETRY_DELAY,
                };
                if *failure == IoFailure::DeviceGone || slot.failures >= READ_FAILURES_MAX {
                    RecvProgress::Lost(*failure)
                } else {
                    RecvProgress::Retry
                }
            }
            _ if announced => self.trouble(now, sequence),
            _ if is_announced => {
                // Announced while it was being read: what was found proves nothing.
                slot.state = SlotState::Waiting { until: now };
                RecvProgress::More
            }
            _ => {
                self.slots.remove(&sequence);
                self.next_read = sequence;
                RecvProgress::Early
            }
        }
    }

    /// An announced frame didn't open: read it again, ask for it again, or give up.
    fn trouble(&mut self, now: Tick, sequence: Sequence) -> RecvProgress {
        let Timeouts { stale, dead, .. } = self.timeouts;
        let has_place = self.asked().count() < RESENDS_MAX;
        let Some(slot) = self.slots.get_mut(&sequence) else {
            return RecvProgress::Nothing;
        };
        let trouble = slot.trouble.get_or_insert(Trouble {
            since: now,
            rereads: 0,
            attempt: 0,
            asked: now,
            served: true,
        });
        trouble.rereads += 1;
        let doublings = trouble.rereads.saturating_sub(1).min(10);
        let pause = (REREAD_DELAY * (1 << doublings)).min(REREAD_DELAY_MAX);
        slot.state = SlotState::Waiting { until: now + pause };
        if !trouble.served {
            return if now.since(trouble.asked) > dead {
                RecvProgress::Hopeless
            } else {
                RecvProgress::Damaged(Asked::No)
            };
        }
        if trouble.rereads <= REREADS_MAX {
            return RecvProgress::Damaged(Asked::No);
        }
        // Attempts are spread over the time for which the medium may answer stale, so that staleness alone never
        // exhausts them.
        let due = trouble.since + stale * trouble.attempt / (ATTEMPTS_MAX - 1);
        if now < due {
            return RecvProgress::Damaged(Asked::No);
        }
        if trouble.attempt == 0 && !has_place {
            // The peer can't be told yet, so its time doesn't run.
            return RecvProgress::Damaged(Asked::No);
        }
        if trouble.attempt == ATTEMPTS_MAX {
            return RecvProgress::Hopeless;
        }
        trouble.attempt += 1;
        trouble.asked = now;
        trouble.served = false;
        trouble.rereads = 0;
        RecvProgress::Damaged(Asked::Yes)
    }

    fn read(&mut self, ids: &mut IoIds, sequence: Sequence) -> IoRequest {
        let place = self.ring.place(sequence);
        let id = ids.fresh();
        self.in_flight.insert(id, sequence);
        let announced = sequence < self.announced;
        let mut blocks = BlockCount(1);
        if let Some(slot) = self.slots.get_mut(&sequence) {
            slot.state = SlotState::Reading { announced };
            blocks = slot.blocks;
        }
        IoRequest {
            id,
            device: place.device,
            lba: place.lba,
            blocks,
            op: IoOp::ReadFrame(sequence),
        }
    }

    /// Blocks of an announced frame, by the peer's word; a whole slot if it doesn't say.
    fn length(&self, sequence: Sequence) -> BlockCount {
        let most = self.ring.frame_blocks();
        if sequence.0 + LENGTHS_MAX as u64 <= self.announced.0.saturating_sub(1) {
            return most;
        }
        let index = usize::try_from(sequence.0 % LENGTHS_MAX as u64).unwrap_or(0);
        match u32::from(self.lengths[index]) {
            0 => most,
            blocks => BlockCount(blocks.min(most.0)),
        }
    }

    /// The first sequence that no frame was found whole under, from the highest one down.
    fn next_whole_end(&self) -> Sequence {
        self.slots
            .iter()
            .rev()
            .find(|(_, slot)| matches!(slot.state, SlotState::Whole { .. }))
            .map_or(self.consumed, |(sequence, _)| sequence.next())
    }
}
