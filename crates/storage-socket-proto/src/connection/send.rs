//! The sending half: places in the ring, writes of frames, resends, and what the peer has acknowledged.
//!
//! Invariants: a frame slot is taken for a new frame only after its old one was acknowledged, and not written while a
//! write of the old one is under way; only the contiguous prefix of written frames is announced.

use crate::{
    block::{LENGTHS_MAX, RESENDS_MAX, Resend},
    error::UsageError,
    geometry::Ring,
    io::{IoFailure, IoId, IoIds, IoOp, IoRequest},
    types::{BlockCount, Sequence},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Writes of one frame that may fail before its device counts as lost.
const WRITE_FAILURES_MAX: u32 = 3;

#[derive(Debug)]
pub(crate) struct SendHalf {
    ring: Ring,
    depth: usize,
    /// Frames below this were acknowledged.
    acknowledged: Sequence,
    /// Frames below this were written.
    announced: Sequence,
    /// The frames from `acknowledged` on.
    frames: VecDeque<Frame>,
    /// Frames to write, resends included.
    queue: VecDeque<Sequence>,
    /// Writes under way, each with the attempt that was asked for when it began: one that is asked for later may be
    /// asked for because of what this very write left.
    in_flight: BTreeMap<IoId, (Sequence, u32)>,
    /// Frames that the peer asks for in its newest block: of others it needn't know whether they were served.
    wanted: BTreeSet<Sequence>,
    fin: Option<Sequence>,
    starved: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    blocks: BlockCount,
    state: FrameState,
    failures: u32,
    /// The last attempt that the peer asked for.
    asked: u32,
    /// The last attempt that was written.
    served: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameState {
    Reserved,
    Queued,
    Written,
}

/// What an acknowledgement changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// It is new.
    pub(crate) is_news: bool,
    /// Frames whose writes weren't told to be done yet: they are, if the peer has them.
    pub(crate) frames: u64,
    /// Their blocks.
    pub(crate) blocks: u64,
}

/// What a completed write changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendProgress {
    /// A frame was written for the first time: so many blocks.
    Written(BlockCount),
    /// A resend was written.
    Served,
    /// A resend was written, and the peer has acknowledged the frame before that was told.
    ServedInVain,
    /// The write was of a frame that is no longer needed, or will be tried again.
    Nothing,
    /// The device is lost.
    Lost(IoFailure),
}

/// The peer acknowledged or asked for what it can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerBrokeProtocol;

impl SendHalf {
    pub(crate) fn new(ring: Ring, depth: usize) -> Self {
        Self {
            ring,
            depth,
            acknowledged: Sequence(0),
            announced: Sequence(0),
            frames: VecDeque::new(),
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            wanted: BTreeSet::new(),
            fin: None,
            starved: false,
        }
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(crate) fn announced(&self) -> Sequence {
        self.announced
    }

    /// The sequence that is reserved next.
    pub(crate) fn next(&self) -> Sequence {
        Sequence(self.acknowledged.0 + self.frames.len() as u64)
    }

    pub(crate) fn fin(&self) -> Option<Sequence> {
        // FIN is told only together with the frames before it.
        self.fin.filter(|fin| *fin == self.announced)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.fin.is_some()
    }

    pub(crate) fn finish(&mut self) {
        if self.fin.is_none() {
            self.fin = Some(self.next());
        }
    }

    /// Frames that were reserved and not acknowledged.
    pub(crate) fn outstanding(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether every place of the ring is taken.
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding() >= self.ring.frames()
    }

    pub(crate) fn room(&self) -> u64 {
        if self.fin.is_some() {
            return 0;
        }
        self.ring.frames().saturating_sub(self.frames.len() as u64)
    }

    /// Whether writes are under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(crate) fn owns(&self, id: IoId) -> bool {
        self.in_flight.contains_key(&id)
    }

    pub(crate) fn reserve(&mut self, blocks: BlockCount) -> Result<Sequence, UsageError> {
        if self.fin.is_some() {
            return Err(UsageError::Finished);
        }
        if self.room() == 0 {
            self.starved = true;
            return Err(UsageError::RingFull);
        }
        let sequence = self.next();
        self.frames.push_back(Frame {
            blocks,
            state: FrameState::Reserved,
            failures: 0,
            asked: 0,
            served: 0,
        });
        Ok(sequence)
    }

    pub(crate) fn sealed(&mut self, sequence: Sequence) {
        if let Some(frame) = self.frame(sequence)
            && frame.state == FrameState::Reserved
        {
            frame.state = FrameState::Queued;
            self.queue.push_back(sequence);
        }
    }

    /// Nothing more is written.
    pub(crate) fn abandon(&mut self) {
        self.queue.clear();
    }

    pub(crate) fn poll_io(&mut self, ids: &mut IoIds) -> Option<IoRequest> {
        if self.in_flight.len() >= self.depth {
            return None;
        }
        for _ in 0..self.queue.len() {
            let sequence = self.queue.pop_front()?;
            let Some(Frame { blocks, asked, .. }) = self.frame(sequence).copied() else {
                continue;
            };
            if self.slot_is_busy(sequence) {
                self.queue.push_back(sequence);
                continue;
            }
            let place = self.ring.place(sequence);
            let id = ids.fresh();
            self.in_flight.insert(id, (sequence, asked));
            return Some(IoRequest {
                id,
                device: place.device,
                lba: place.lba,
                blocks,
                op: IoOp::WriteFrame(sequence),
            });
        }
        None
    }

    pub(crate) fn handle_io(&mut self, id: IoId, outcome: Result<(), IoFailure>) -> SendProgress {
        let Some((sequence, attempt)) = self.in_flight.remove(&id) else {
            return SendProgress::Nothing;
        };
        let Some(frame) = self.frame(sequence) else {
            return if attempt > 0 && outcome.is_ok() {
                SendProgress::ServedInVain
            } else {
                SendProgress::Nothing
            };
        };
        if let Err(failure) = outcome {
            frame.failures += 1;
            if failure == IoFailure::DeviceGone || frame.failures >= WRITE_FAILURES_MAX {
                return SendProgress::Lost(failure);
            }
            self.queue.push_back(sequence);
            return SendProgress::Nothing;
        }
        let blocks = frame.blocks;
        frame.served = frame.served.max(attempt);
        let progress = if frame.state == FrameState::Written {
            SendProgress::Served
        } else {
            frame.state = FrameState::Written;
            SendProgress::Written(blocks)
        };
        self.advance_announced();
        progress
    }

    /// Takes the peer's credit.
    pub(crate) fn acknowledge(
        &mut self,
        below: Sequence,
    ) -> Result<Acknowledged, PeerBrokeProtocol> {
        if below < self.acknowledged || below > self.next() {
            return Err(PeerBrokeProtocol);
        }
        let count =
            usize::try_from(below.0 - self.acknowledged.0).map_err(|_| PeerBrokeProtocol)?;
        if self
            .frames
            .iter()
            .take(count)
            .any(|frame| frame.state == FrameState::Reserved)
        {
            return Err(PeerBrokeProtocol);
        }
        let mut acknowledged = Acknowledged {
            is_news: count > 0,
            ..Acknowledged::default()
        };
        for frame in self.frames.drain(..count) {
            if frame.state != FrameState::Written {
                acknowledged.frames += 1;
                acknowledged.blocks += u64::from(frame.blocks.0);
            }
        }
        self.acknowledged = below;
        self.advance_announced();
        Ok(acknowledged)
    }

    /// Whether someone found no room and there is some now; asked once per time.
    pub(crate) fn take_relief(&mut self) -> bool {
        let relieved = self.starved && self.room() > 0;
        self.starved &= !relieved;
        relieved
    }

    /// Takes the peer's wishes for resends. Returns whether any is new.
    pub(crate) fn resend(
        &mut self,
        wanted: &[Resend],
        attempts_max: u32,
    ) -> Result<bool, PeerBrokeProtocol> {
        let mut any = false;
        self.wanted = wanted.iter().map(|resend| resend.sequence).collect();
        for resend in wanted {
            if resend.sequence < self.acknowledged {
                continue;
            }
            if resend.sequence >= self.announced || resend.attempt > attempts_max {
                return Err(PeerBrokeProtocol);
            }
            let Some(frame) = self.frame(resend.sequence) else {
                continue;
            };
            if resend.attempt > frame.asked {
                frame.asked = resend.attempt;
                frame.failures = 0;
                self.queue.push_back(resend.sequence);
                any = true;
            }
        }
        Ok(any)
    }

    /// The resends that were written, of frames that the peer still asks for.
    pub(crate) fn served(&self) -> Vec<Resend> {
        self.frames
            .iter()
            .zip(self.acknowledged.0..)
            .map(|(frame, sequence)| (frame, Sequence(sequence)))
            .filter(|(frame, sequence)| frame.served > 0 && self.wanted.contains(sequence))
            .map(|(frame, sequence)| Resend {
                sequence,
                attempt: frame.served,
            })
            .take(RESENDS_MAX)
            .collect()
    }

    /// The lengths of the announced frames that are not acknowledged yet.
    pub(crate) fn fill_lengths(&self, lengths: &mut [u16; LENGTHS_MAX]) {
        for (frame, sequence) in self.frames.iter().zip(self.acknowledged.0..) {
            if sequence >= self.announced.0 {
                break;
            }
            let index = usize::try_from(sequence % LENGTHS_MAX as u64).unwrap_or(0);
            lengths[index] = u16::try_from(frame.blocks.0).unwrap_or(0);
        }
    }

    fn frame(&mut self, sequence: Sequence) -> Option<&mut Frame> {
        let index = sequence.0.checked_sub(self.acknowledged.0)?;
        self.frames.get_mut(usize::try_from(index).ok()?)
    }

    /// Whether a write to the slot of this frame is under way: of the frame itself, or of one that was there before.
    fn slot_is_busy(&self, sequence: Sequence) -> bool {
        let frames = self.ring.frames();
        self.in_flight
            .values()
            .any(|(other, _)| other.0 % frames == sequence.0 % frames)
    }

    fn advance_announced(&mut self) {
        self.announced = self.announced.max(self.acknowledged);
        while self
            .frame(self.announced)
            .is_some_and(|frame| frame.state == FrameState::Written)
        {
            self.announced = self.announced.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::SegmentGroup,
        geometry::Segment,
        seal::Cipher,
        types::{DeviceMask, Direction, Generation, UnitCount, UnitIndex},
    };

    fn half() -> SendHalf {
        let segment = |first| Segment {
            first: UnitIndex(first),
            units: UnitCount(9),
        };
        let group = SegmentGroup {
            generation: Generation(1),
            devices: DeviceMask(1),
            cipher: Cipher::Checksum,
            frame_units: UnitCount(1),
            to_coordinator: segment(64),
            to_member: segment(80),
        };
        SendHalf::new(group.ring(Direction::ToMember).unwrap(), 4)
    }

    fn write(half: &mut SendHalf, ids: &mut IoIds) {
        let id = half.poll_io(ids).unwrap().id;
        half.handle_io(id, Ok(()));
    }

    fn asks(attempt: u32) -> [Resend; 1] {
        let sequence = Sequence(0);
        [Resend { sequence, attempt }]
    }

    #[test]
    fn a_write_serves_the_attempt_that_was_asked_for_when_it_began() {
        let (mut half, mut ids) = (half(), IoIds::default());
        let sequence = half.reserve(BlockCount(1)).unwrap();
        half.sealed(sequence);
        write(&mut half, &mut ids);
        half.resend(&asks(1), 6).unwrap();
        let under_way = half.poll_io(&mut ids).unwrap().id;
        half.resend(&asks(2), 6).unwrap();
        half.handle_io(under_way, Ok(()));
        assert_eq!(half.served(), asks(1));
        write(&mut half, &mut ids);
        assert_eq!(half.served(), asks(2));
    }

    #[test]
    fn what_is_told_as_served_is_what_the_peer_asks_for_still() {
        let (mut half, mut ids) = (half(), IoIds::default());
        for _ in 0..2 {
            let sequence = half.reserve(BlockCount(1)).unwrap();
            half.sealed(sequence);
            write(&mut half, &mut ids);
        }
        half.resend(&asks(1), 6).unwrap();
        write(&mut half, &mut ids);
        assert_eq!(half.served(), asks(1));
        half.resend(&[], 6).unwrap();
        assert!(half.served().is_empty());
    }
}
