//! The connection machine: two directed rings, their credits, resends and ends.
//!
//! Invariants: a frame slot is used again only after its frame was acknowledged; what is delivered is a prefix of what
//! was sent; receiving never waits for sending; every retry has a bound, and past it the stream is reset.
//! Frame bytes stay with the driver: it seals and opens them, the machine says when and where they go.

mod control;
mod look;
mod recv;
mod send;
mod types;

use crate::{
    block::{ControlBlock, Grant, Place},
    error::UsageError,
    io::{IoFailure, IoId, IoIds, IoOutcome, IoRequest},
    poll::{Poll, Polling},
    progress::Progress,
    reasons::ResetReason,
    seal::{FrameVerdict, StreamIdentity, frame_blocks},
    types::{DeviceIndex, Direction, Sequence, Tick},
};
use control::{Control, ControlEnds, ControlProgress};
use recv::{Asked, RecvHalf, RecvProgress};
use send::{SendHalf, SendProgress};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
pub use types::{
    ConnectionConfig, ConnectionEvent, ConnectionStats, Depths, Doorbell, Fence, FrameTicket,
    ResetBy,
};

/// The connection machine.
#[derive(Debug)]
pub struct Connection {
    config: ConnectionConfig,
    identity: StreamIdentity,
    ids: IoIds,
    phase: Phase,
    send: SendHalf,
    recv: RecvHalf,
    control: Control,
    /// This connection's I/O on each device of its group.
    progress: BTreeMap<DeviceIndex, Progress>,
    events: VecDeque<ConnectionEvent>,
    fence: Fence,
    poll: Poll,
    polling: Polling,
    /// When a credit or announcement that could wait is to be written.
    lazy_due: Option<Tick>,
    /// When the acknowledgement of a revision is to be written, if nothing else is.
    echo_due: Option<Tick>,
    /// When closing or resetting has taken too long.
    deadline: Option<Tick>,
    /// The peer's page says that it finished both ways.
    peer_done: bool,
    told_peer_finished: bool,
    told_finish_acknowledged: bool,
    ring_after_write: bool,
    ring: bool,
    /// Frames below this were written before the peer was rung.
    rung: Sequence,
    stats: ConnectionStats,
}

/// What stood behind a reset: an I/O that failed, and where.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    failure: Option<IoFailure>,
    device: Option<DeviceIndex>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Both directions are finished; the last words are exchanged.
    Closing,
    /// Reset; the peer is being told.
    Resetting(ResetReason),
    /// Nothing is asked for any more; what is under way has to come back.
    Draining(Option<ResetReason>),
    Closed,
}

/// The shortest time between two polls.
const POLL_MIN: Duration = Duration::from_micros(200);
/// The longest without a doorbell.
const POLL_MAX: Duration = Duration::from_millis(50);
/// Frames that are acknowledged together at most. The loop from a write to its credit is some I/Os long on a device
/// that is busy, so a large ring that told in large portions would gain nothing by its size.
const CREDIT_FRAMES_MAX: u64 = 4;
/// Frames that are announced together at most.
const ANNOUNCE_FRAMES_MAX: u64 = 2;
/// The peer is rung for a frame as soon as it was written, if no more than so many are under way to it: it looks for
/// the next frame where that has to be. Of more it is told by announcements, together.
const RING_FRAMES_MAX: u64 = 4;
/// Whoever was rung and found nothing looks again, with pauses up to this; then a heartbeat has to do.
const ATTENTION_MAX: Duration = Duration::from_millis(8);
/// How long a smaller credit may wait.
const CREDIT_DELAY: Duration = Duration::from_millis(5);
/// How long an announcement may wait: a frame tells of itself, and its announcement that one which isn't seen is damaged.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(1);
/// How long the acknowledgement of a revision may wait.
const ECHO_DELAY: Duration = Duration::from_millis(100);

impl Connection {
    /// A connection over what was granted.
    ///
    /// # Errors
    /// [`UsageError::OutOfRange`] if the grant makes no rings or a depth is zero.
    pub fn new(now: Tick, config: ConnectionConfig) -> Result<Self, UsageError> {
        let Depths { write, read, held } = config.depths;
        if write == 0 || read == 0 || held == 0 {
            return Err(UsageError::OutOfRange { what: "depth" });
        }
        let ring = |direction| {
            let ring = config.grant.group.ring(direction);
            ring.ok_or(UsageError::OutOfRange { what: "grant" })
        };
        let sends = ring(config.sends)?;
        let receives = ring(config.sends.opposite())?;
        let grant = &config.grant;
        let (own_writer, peer_writer) = match config.sends {
            Direction::ToCoordinator => (grant.incarnation.0, grant.epoch.0),
            Direction::ToMember => (grant.epoch.0, grant.incarnation.0),
        };
        let ends = ControlEnds {
            place: Place {
                pool: config.pool,
                device: sends.control_device(),
                slot: grant.slot,
            },
            own_key: config.own_key.clone(),
            peer_key: config.peer_key.clone(),
            own_writer,
            peer_writer,
        };
        let own = ControlBlock::new(grant.connection, grant.group.generation, config.sends);
        let mut control = Control::new(own, ends, &sends, &receives);
        // The first block tells the peer that this side is there.
        control.mark_changed();
        Ok(Self {
            identity: ConnectionConfig::identity(config.pool, grant),
            ids: IoIds::default(),
            phase: Phase::Open,
            send: SendHalf::new(sends, config.depths.write),
            recv: RecvHalf::new(receives, config.depths, config.timeouts),
            control,
            progress: BTreeMap::new(),
            events: VecDeque::new(),
            fence: Fence::Open,
            poll: Poll::new(now, POLL_MIN),
            polling: Polling::Adaptive,
            lazy_due: None,
            echo_due: None,
            deadline: None,
            peer_done: false,
            told_peer_finished: false,
            told_finish_acknowledged: false,
            ring_after_write: false,
            ring: false,
            rung: Sequence(0),
            stats: ConnectionStats::default(),
            config,
        })
    }

    /// What was granted.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.config.grant
    }

    /// The most that one frame carries.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.identity.payload_bytes_max()
    }

    /// How many more frames [`Connection::reserve`] would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.phase == Phase::Open {
            usize::try_from(self.send.room()).unwrap_or(usize::MAX)
        } else {
            0
        }
    }

    /// Takes the next place in the ring for a frame with so many bytes of payload. Seal the frame under the ticket's
    /// sequence, keep it until it is acknowledged, and call [`Connection::handle_sealed`].
    ///
    /// # Errors
    /// [`UsageError::RingFull`], [`UsageError::PayloadLength`] or [`UsageError::Finished`].
    pub fn reserve(&mut self, now: Tick, payload_bytes: usize) -> Result<FrameTicket, UsageError> {
        if self.phase != Phase::Open {
            return Err(UsageError::Finished);
        }
        let most = self.payload_bytes_max();
        if payload_bytes == 0 || payload_bytes > most {
            return Err(UsageError::PayloadLength {
                most,
                got: payload_bytes,
            });
        }
        let blocks = frame_blocks(payload_bytes);
        let was_idle = self.send.outstanding() == 0;
        let sequence = self.send.reserve(blocks)?;
        // In the midst of bulk, credits are looked for in a hurry only when the ring fills: each look costs the device.
        if was_idle || self.send.outstanding() * 2 >= self.send.ring().frames() {
            self.hasten(now);
        }
        Ok(FrameTicket {
            sequence,
            key_epoch: self.identity.key_epoch(sequence),
            blocks,
        })
    }

    /// The frame is sealed and may be written.
    pub fn handle_sealed(&mut self, _now: Tick, sequence: Sequence) {
        if self.phase == Phase::Open {
            self.send.sealed(sequence);
        }
    }

    /// This side sends nothing after what was reserved.
    pub fn finish(&mut self, now: Tick) {
        if self.phase != Phase::Open || self.send.is_finished() {
            return;
        }
        self.send.finish();
        if self.send.fin().is_some() {
            self.control.mark_changed();
        }
        self.poll.hasten(now);
        self.advance(now);
    }

    /// Both directions are to end: finishes this one, and resets with `Linger` if the peer takes longer than the linger
    /// time to finish the other. Frames that still come are delivered; release them unread.
    pub fn close(&mut self, now: Tick) {
        self.finish(now);
        if self.phase == Phase::Open {
            self.limit(now);
        }
    }

    /// Resets the stream. The peer is told unless the reason says that there is nobody to be told, or nowhere.
    pub fn abort(&mut self, now: Tick, reason: ResetReason) {
        self.reset(now, reason, ResetBy::Us);
        self.advance(now);
    }

    /// The peer's page, or the coordinator's answer, says that the peer has let go of the connection: for `reason`, or
    /// because both directions were finished. In the latter case what it left is read to its end.
    pub fn handle_peer_gone(&mut self, now: Tick, reason: Option<ResetReason>) {
        match reason {
            None if self.send.is_finished() => {
                self.peer_done = true;
                if self.phase == Phase::Open {
                    self.acknowledge(self.send.next());
                    self.tell_finish_acknowledged();
                    self.limit(now);
                    self.poll.want();
                }
            }
            None => self.reset(now, ResetReason::PeerClosed, ResetBy::Peer),
            Some(reason) => self.reset(now, reason, ResetBy::Peer),
        }
        if let Phase::Resetting(reason) = self.phase {
            self.phase = Phase::Draining(Some(reason));
        }
        self.advance(now);
    }

    /// Stops or resumes all writing (`Fenced`, `Unfenced`).
    pub fn set_fenced(&mut self, _now: Tick, fence: Fence) {
        self.fence = fence;
    }

    /// Says whether a doorbell is there.
    pub fn set_doorbell(&mut self, now: Tick, doorbell: Doorbell) {
        self.config.doorbell = doorbell;
        self.poll.hasten(now);
    }

    /// Says how the device is polled from now on. A driver that polls hot says so while a user waits.
    pub fn set_polling(&mut self, now: Tick, polling: Polling) {
        let before = std::mem::replace(&mut self.polling, polling);
        if polling == Polling::Hot && before != polling {
            self.poll.hasten(now);
            self.recv.probe();
        }
    }

    /// The buffer of a delivered frame is free: one more frame may be read.
    pub fn release(&mut self, _now: Tick, sequence: Sequence) {
        self.recv.release(sequence);
    }

    /// The peer rang: there are news to read.
    pub fn handle_doorbell(&mut self, now: Tick) {
        // What it rang for may not be legible yet.
        self.poll.hasten(now);
        self.poll.want();
        self.recv.probe();
    }

    /// Whether the peer should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> bool {
        std::mem::take(&mut self.ring) && self.config.doorbell == Doorbell::Present
    }

    /// Takes the outcome of a `Read`, `Write` or `WriteFrame`.
    pub fn handle_io(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        let failure = match outcome {
            IoOutcome::Failed(failure) => Some(failure),
            IoOutcome::Read(_) | IoOutcome::Written => None,
        };
        let device = self.answered(now, id, failure);
        if self.control.owns(id) {
            match self.control.handle_io(now, id, outcome) {
                ControlProgress::Written => {
                    self.stats.control_writes += 1;
                    self.ring |= std::mem::take(&mut self.ring_after_write);
                }
                ControlProgress::News(block) => self.handle_news(now, *block),
                ControlProgress::Nothing => {}
                ControlProgress::Lost(failure) => self.device_lost(now, failure, device),
            }
        } else if self.send.owns(id) {
            let outcome = match outcome {
                IoOutcome::Written => Ok(()),
                IoOutcome::Failed(failure) => Err(failure),
                IoOutcome::Read(_) => Err(IoFailure::Error),
            };
            match self.send.handle_io(id, outcome) {
                SendProgress::Written(blocks) => {
                    self.stats.frames_sent += 1;
                    self.stats.blocks_sent += u64::from(blocks.0);
                    self.announce(now);
                }
                SendProgress::Served => {
                    self.stats.frames_resent += 1;
                    self.control.mark_changed();
                }
                SendProgress::ServedInVain => self.stats.frames_resent += 1,
                SendProgress::Nothing => {}
                SendProgress::Lost(failure) => self.device_lost(now, failure, device),
            }
        }
        self.advance(now);
    }

    /// The device has done a `ReadFrame`, and its verdict is to come: opening a frame takes its time, in which the device
    /// may read the next.
    pub fn handle_frame_landed(&mut self, id: IoId) {
        self.recv.handle_landed(id);
    }

    /// Takes the outcome of a `ReadFrame`.
    ///
    /// Unless the verdict is `Whole`, the driver may drop the buffer; if it is, the buffer is kept until `Delivered`
    /// (and then `release`), or until the stream is reset.
    pub fn handle_frame_read(&mut self, now: Tick, id: IoId, verdict: FrameVerdict) {
        let failure = match verdict {
            FrameVerdict::Failed(failure) => Some(failure),
            _ => None,
        };
        let device = self.answered(now, id, failure);
        match self.recv.handle_read(now, id, &verdict) {
            RecvProgress::Whole => {
                // More may be there already, announced or not.
                self.probe();
                self.relax(now);
                self.deliver(now);
                if !self.recv.is_behind() {
                    self.hasten(now);
                }
            }
            RecvProgress::Early => {
                self.stats.early_reads += 1;
                if self.polling == Polling::Hot {
                    self.recv.probe();
                }
            }
            RecvProgress::Damaged(asked) => {
                self.stats.damaged_reads += 1;
                if asked == Asked::Yes {
                    self.stats.resends_requested += 1;
                    self.control.mark_changed();
                }
            }
            RecvProgress::Hopeless => self.reset(now, ResetReason::Medium, ResetBy::Us),
            RecvProgress::Lost(failure) => self.device_lost(now, failure, device),
            RecvProgress::More | RecvProgress::Retry | RecvProgress::Nothing => {}
        }
        self.advance(now);
    }

    /// The next request for I/O.
    pub fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
        let request = self.next_io(now)?;
        let progress = self.progress.entry(request.device).or_default();
        progress.begun(now, request.id);
        Some(request)
    }

    fn next_io(&mut self, now: Tick) -> Option<IoRequest> {
        if matches!(self.phase, Phase::Draining(_) | Phase::Closed) {
            return None;
        }
        if let Some(read) = self.control.poll_read_back(&mut self.ids, now) {
            return Some(read);
        }
        if self.fence == Fence::Open {
            if self.control.can_write(now) && self.has_to_say(now) {
                return Some(self.write_control(now));
            }
            if self.phase == Phase::Open
                && let Some(write) = self.send.poll_io(&mut self.ids)
            {
                return Some(write);
            }
        }
        if self.poll.is_wanted() && !self.control.is_reading() {
            self.poll.begun(now, self.poll_max());
            if self.poll.interval() > ATTENTION_MAX {
                self.relax(now);
            }
            self.stats.control_reads += 1;
            return Some(self.control.read(&mut self.ids));
        }
        if self.phase == Phase::Open {
            return self.recv.poll_io(now, &mut self.ids);
        }
        None
    }

    /// When [`Connection::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        if matches!(self.phase, Phase::Draining(_) | Phase::Closed) {
            return None;
        }
        let mut due = self.deadline;
        let mut add = |at: Option<Tick>| {
            due = match (due, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        if !self.control.is_reading() {
            add(Some(self.poll.at()));
        }
        if self.phase == Phase::Open {
            add(self.recv.next_wait());
            let patience = self.config.timeouts.route_leave;
            let silences = self.progress.values();
            add(silences.filter_map(|device| device.due(patience)).min());
        }
        if self.fence == Fence::Open
            && let Some(ready) = self.control.ready_at()
        {
            let wish = if self.control.is_changed() || self.control.needs_rewrite() {
                Some(ready)
            } else {
                let refresh = (!self.control.is_heard()).then(|| self.refresh_at());
                [self.lazy_due, self.echo_due, refresh]
                    .into_iter()
                    .flatten()
                    .min()
            };
            add(wish.map(|at| at.max(ready)));
        }
        due
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.poll.is_due(now) {
            self.recv.probe();
        }
        if self.phase == Phase::Open
            && let Some(device) = self.stalled(now)
        {
            self.device_lost(now, IoFailure::TimedOut, Some(device));
        }
        self.advance(now);
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        self.events.pop_front()
    }

    /// What was counted, and how the ring stands.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        ConnectionStats {
            frames_outstanding: self.send.outstanding(),
            credits: self.room() as u64,
            ..self.stats
        }
    }

    /// Takes note of the end of an I/O: on which device.
    fn answered(&mut self, now: Tick, id: IoId, failure: Option<IoFailure>) -> Option<DeviceIndex> {
        let mut devices = self.progress.iter_mut();
        let (&index, progress) = devices.find(|(_, progress)| progress.owns(id))?;
        progress.ended(now, id, failure);
        Some(index)
    }

    /// A device that has answered nothing for as long as a route without progress is kept.
    fn stalled(&mut self, now: Tick) -> Option<DeviceIndex> {
        let patience = self.config.timeouts.route_leave;
        let slack = self.config.timeouts.heartbeat;
        let mut stalled = None;
        for (&index, progress) in &mut self.progress {
            // Each counts anew if this side was away.
            if progress.is_stalled(now, patience, slack) {
                stalled.get_or_insert(index);
            }
        }
        stalled
    }

    /// Whether something was said in passing that now has to be written, or was said and not heard.
    fn has_to_say(&mut self, now: Tick) -> bool {
        let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
        // A small credit nobody waits for, and for a frame that the peer was rung for it needn't be rung again.
        self.ring_after_write |= self.control.is_changed();
        if is_due(self.lazy_due) {
            self.control.mark_changed();
            self.ring_after_write |= self.send.announced() > self.rung;
        }
        let unheard = !self.control.is_heard() && now >= self.refresh_at();
        self.control.is_changed()
            || self.control.needs_rewrite()
            || is_due(self.echo_due)
            || unheard
    }

    fn write_control(&mut self, now: Tick) -> IoRequest {
        self.lazy_due = None;
        self.echo_due = None;
        let own = &mut self.control.own;
        own.consumed = self.recv.consumed();
        own.fin_seen = self.recv.is_finished();
        own.resends = self.recv.resends();
        own.announced = self.send.announced();
        own.fin = self.send.fin();
        own.served = self.send.served();
        self.send.fill_lengths(&mut own.lengths);
        self.control.write(now, &mut self.ids)
    }

    fn handle_news(&mut self, now: Tick, block: ControlBlock) {
        if !matches!(
            self.phase,
            Phase::Open | Phase::Closing | Phase::Resetting(_)
        ) {
            return;
        }
        self.relax(now);
        self.hasten(now);
        self.control.peer = block;
        if self.control.peer.revision > self.control.written_seen {
            let at = if self.phase == Phase::Open {
                now + ECHO_DELAY
            } else {
                now
            };
            self.echo_due = Some(self.echo_due.map_or(at, |due| due.min(at)));
        }
        if let Some(reason) = self.control.peer.reset {
            self.reset(now, reason, ResetBy::Peer);
        }
        if self.phase == Phase::Open && self.take_news(now).is_none() {
            self.reset(now, ResetReason::Protocol, ResetBy::Us);
        }
    }

    /// Takes what the peer's newest block says; `None` if it can't be.
    fn take_news(&mut self, now: Tick) -> Option<()> {
        let peer = &self.control.peer;
        if peer.fin_seen && !self.send.is_finished() {
            return None;
        }
        let (consumed, fin_seen) = (peer.consumed, peer.fin_seen);
        self.send.resend(&peer.resends, recv::ATTEMPTS_MAX).ok()?;
        self.recv.served(now, &peer.served);
        self.recv
            .announce(peer.announced, peer.fin, &peer.lengths)
            .ok()?;
        self.acknowledge(consumed)?;
        if fin_seen {
            self.tell_finish_acknowledged();
        }
        self.deliver(now);
        Some(())
    }

    fn tell_finish_acknowledged(&mut self) {
        if !std::mem::replace(&mut self.told_finish_acknowledged, true) {
            self.events.push_back(ConnectionEvent::FinishAcknowledged);
        }
    }

    fn acknowledge(&mut self, below: Sequence) -> Option<()> {
        let acknowledged = self.send.acknowledge(below).ok()?;
        self.stats.frames_sent += acknowledged.frames;
        self.stats.blocks_sent += acknowledged.blocks;
        if acknowledged.is_news {
            self.events
                .push_back(ConnectionEvent::Acknowledged { below });
            if self.send.take_relief() {
                self.events.push_back(ConnectionEvent::Writable);
            }
        }
        // The last frame may be acknowledged before its write was told: then it is this that FIN waited for.
        if self.send.fin() != self.control.own.fin {
            self.control.mark_changed();
        }
        Some(())
    }

    /// Frames were written: says so at once if FIN or much is to be told. Of little the peer learns by a ring, or by
    /// looking for it.
    fn announce(&mut self, now: Tick) {
        let told = self.control.own.announced;
        let news = self.send.announced().0.saturating_sub(told.0);
        if news == 0 {
            return;
        }
        if self.send.outstanding() <= RING_FRAMES_MAX && self.send.announced() > self.rung {
            self.rung = self.send.announced();
            self.ring = true;
        }
        let much = (self.send.ring().frames() / 16).clamp(1, ANNOUNCE_FRAMES_MAX);
        if news >= much || self.send.fin().is_some() {
            self.control.mark_changed();
        } else {
            self.be_lazy(now + ANNOUNCE_DELAY);
        }
    }

    /// Delivers what is whole and in order, and gives credit for it.
    fn deliver(&mut self, now: Tick) {
        let mut any = false;
        while let Some((sequence, payload_bytes, blocks)) = self.recv.deliver() {
            any = true;
            self.stats.frames_received += 1;
            self.stats.blocks_received += u64::from(blocks.0);
            self.events.push_back(ConnectionEvent::Delivered {
                sequence,
                payload_bytes,
            });
        }
        if any {
            let credit = self.recv.consumed().0 - self.control.own.consumed.0;
            if credit >= (self.recv.ring().frames() / 8).clamp(1, CREDIT_FRAMES_MAX) {
                self.control.mark_changed();
            } else {
                self.be_lazy(now + CREDIT_DELAY);
            }
        }
        if self.recv.is_finished() && !self.told_peer_finished {
            self.told_peer_finished = true;
            self.control.mark_changed();
            self.events.push_back(ConnectionEvent::PeerFinished);
        }
    }

    fn be_lazy(&mut self, at: Tick) {
        self.lazy_due = Some(self.lazy_due.map_or(at, |due| due.min(at)));
    }

    fn device_lost(&mut self, now: Tick, failure: IoFailure, device: Option<DeviceIndex>) {
        let lost = Lost {
            failure: Some(failure),
            device,
        };
        self.reset_for(now, ResetReason::DeviceLost, ResetBy::Us, lost);
    }

    fn reset(&mut self, now: Tick, reason: ResetReason, by: ResetBy) {
        self.reset_for(now, reason, by, Lost::default());
    }

    fn reset_for(&mut self, now: Tick, reason: ResetReason, by: ResetBy, lost: Lost) {
        if !matches!(self.phase, Phase::Open | Phase::Closing) {
            return;
        }
        if self.phase == Phase::Closing {
            // Both directions were received to their ends: what comes after can't take that back.
            self.phase = Phase::Draining(None);
            return;
        }
        self.send.abandon();
        self.recv.abandon();
        self.events.push_back(ConnectionEvent::Reset {
            reason,
            by,
            failure: lost.failure,
            device: lost.device,
        });
        let is_alone = matches!(
            reason,
            ResetReason::PeerDead | ResetReason::CoordinatorGone | ResetReason::ClonedHost
        );
        if by == ResetBy::Us && is_alone {
            self.phase = Phase::Draining(Some(reason));
            return;
        }
        self.control.own.reset = Some(reason);
        self.control.mark_changed();
        self.phase = Phase::Resetting(reason);
        self.deadline = None;
        self.limit(now);
    }

    fn limit(&mut self, now: Tick) {
        let at = now + self.config.timeouts.linger;
        self.deadline = Some(self.deadline.map_or(at, |due| due.min(at)));
    }

    /// When a block that the peer hasn't heard is written again.
    fn refresh_at(&self) -> Tick {
        self.control.written_at + self.config.timeouts.heartbeat
    }

    /// Passes from phase to phase as what is known allows.
    fn advance(&mut self, now: Tick) {
        let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
        if self.phase == Phase::Open {
            let sent = self.send.is_finished() && (self.control.peer.fin_seen || self.peer_done);
            if sent && self.recv.is_finished() {
                self.phase = Phase::Closing;
                self.deadline = None;
                self.limit(now);
                self.echo_due = Some(now);
                self.poll.hasten(now);
            } else if is_late && self.peer_done {
                self.reset(now, ResetReason::PeerClosed, ResetBy::Peer);
            } else if is_late {
                self.reset(now, ResetReason::Linger, ResetBy::Us);
            }
        }
        let has_answered = self.control.written_seen >= self.control.peer.revision;
        match self.phase {
            Phase::Closing => {
                let is_said = self.control.is_heard() && has_answered;
                if is_said || self.peer_done || is_late {
                    self.phase = Phase::Draining(None);
                }
            }
            Phase::Resetting(reason) => {
                let is_known = self.control.is_heard() || self.control.peer.reset.is_some();
                if (is_known && !self.control.is_unwritten()) || is_late {
                    self.phase = Phase::Draining(Some(reason));
                }
            }
            Phase::Open | Phase::Draining(_) | Phase::Closed => {}
        }
        if let Phase::Draining(reason) = self.phase
            && self.send.is_quiet()
            && self.recv.is_quiet()
            && self.control.is_quiet()
        {
            self.phase = Phase::Closed;
            self.events.push_back(ConnectionEvent::Closed { reason });
        }
    }
}
