//! One end of a connection, driven as a driver would, and watched from outside.
//!
//! The watch: what is delivered is a prefix of what was sent; the end comes after everything else; no more is kept, held
//! or under way than the ring and the depths allow; between sides that obey, nobody breaks protocol.

use crate::{
    broken::{Broken, Promise},
    coverage::{Coverage, Fault, Transition},
    device::Written,
    stream::{Checker, Content, Intent, RING_LAPS},
    world::KEYSTREAM_BYTES,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    iter::repeat_n,
    rc::Rc,
    time::Duration,
};
use storage_socket_proto::{
    CONTROL_STRIDE, Cipher, Connection, ConnectionConfig, ConnectionEvent, ConnectionStats, Depths,
    Direction, Doorbell, FRAME_HEADER_BYTES, FrameOpener, FrameSealer, FrameTicket, FrameVerdict,
    Grant, IoFailure, IoId, IoRequest, Lba, PoolId, Protection, ResetBy, ResetReason, Sequence,
    StreamSecret, Tick, Timeouts, UsageError,
};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Why; `None` if both directions were finished.
    pub(crate) reason: Option<ResetReason>,
    /// Frames of the other side that were delivered.
    pub(crate) frames: u64,
    /// What the machine counted.
    pub(crate) stats: ConnectionStats,
}

/// One end of a connection, with what drives it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The machine.
    pub(crate) connection: Connection,
    sends: Direction,
    /// Frames that the ring of this side holds, and the other side's.
    frames: u64,
    peer_frames: u64,
    /// Where this side's control blocks are: copy A.
    control: Lba,
    peers: Peers,
    intent: Intent,
    sealer: FrameSealer,
    opener: FrameOpener,
    kept: BTreeMap<Sequence, Written>,
    /// Frames that were opened in the buffers that they were read into, and the bytes of their payloads.
    opened: BTreeMap<Sequence, (Vec<u8>, usize)>,
    /// Buffers of what was delivered, to be read into again.
    pub(crate) spare: Vec<Vec<u8>>,
    /// Frames whose buffers the reader holds, and when it gave one back.
    held: VecDeque<Sequence>,
    released: Tick,
    source: Content,
    sent: u64,
    checker: Checker,
    /// Announced frames that didn't open, and whether a resend was asked for since.
    damaged: BTreeMap<Sequence, bool>,
    failed: BTreeSet<Sequence>,
    before: ConnectionStats,
    /// Set when the machine is drained.
    pub(crate) ended: Option<Ended>,
    /// It was told that its peer is gone: it writes no more, whatever it has under way.
    pub(crate) is_gone: bool,
    /// When it wants to be called.
    pub(crate) due: Option<Tick>,
    /// I/Os under way.
    pub(crate) under_way: usize,
    /// When something was delivered, acknowledged or told last.
    pub(crate) progress: Tick,
    is_starved: bool,
    is_aborted: bool,
    peer_finished: bool,
    finish_acknowledged: bool,
}

/// What an endpoint is made of besides its grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointConfig {
    pub(crate) pool: PoolId,
    pub(crate) timeouts: Timeouts,
    pub(crate) doorbell: Doorbell,
    pub(crate) payload_max: u64,
    /// Whether two cloned servers speak under one epoch: either may be taken for breaking the other's protocol.
    pub(crate) peers: Peers,
}

/// Who speaks under the identity of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    One,
    Cloned,
}

/// I/Os of frames that a connection has under way at most, in each direction.
pub(crate) const DEPTH: usize = 4;

/// How long a slow reader takes to give a buffer back.
const RELEASE_PAUSE: Duration = Duration::from_micros(200);

impl Endpoint {
    /// The end of a granted connection that sends in `sends`.
    pub(crate) fn new(
        now: Tick,
        grant: Grant,
        sends: Direction,
        config: EndpointConfig,
    ) -> Result<Self, Broken> {
        let EndpointConfig { pool, timeouts, .. } = config;
        let protection = protection(grant.group.cipher);
        let identity = ConnectionConfig::identity(pool, &grant);
        let receives = sends.opposite();
        let machine = ConnectionConfig {
            pool,
            grant,
            sends,
            timeouts,
            own_key: protection.control_key(&identity, sends),
            peer_key: protection.control_key(&identity, receives),
            depths: Depths {
                write: DEPTH,
                read: DEPTH,
                held: DEPTH,
            },
            doorbell: config.doorbell,
        };
        let content = |direction| Content::new(&grant, direction, config.payload_max);
        let ring = |direction| {
            let ring = grant.group.ring(direction);
            ring.ok_or_else(|| Promise::Grants.broken(format!("{grant:?}: no ring")))
        };
        let (ring, peer_ring) = (ring(sends)?, ring(receives)?);
        Ok(Self {
            connection: Connection::new(now, machine)
                .map_err(|error| Promise::Grants.broken(format!("{grant:?}: {error}")))?,
            sends,
            frames: ring.frames(),
            peer_frames: peer_ring.frames(),
            control: ring.control_block(),
            peers: config.peers,
            intent: Intent::of(grant.connection),
            sealer: FrameSealer::new(identity, sends, &protection),
            opener: FrameOpener::new(identity, receives, &protection),
            kept: BTreeMap::new(),
            opened: BTreeMap::new(),
            spare: Vec::new(),
            held: VecDeque::new(),
            released: now,
            source: content(sends),
            sent: 0,
            checker: Checker::new(content(receives)),
            damaged: BTreeMap::new(),
            failed: BTreeSet::new(),
            before: ConnectionStats::default(),
            ended: None,
            is_gone: false,
            due: None,
            under_way: 0,
            progress: now,
            is_starved: false,
            is_aborted: false,
            peer_finished: false,
            finish_acknowledged: false,
        })
    }

    /// The bytes that are written for a frame.
    pub(crate) fn frame(&self, sequence: Sequence) -> Option<&Written> {
        self.kept.get(&sequence)
    }

    /// How the payload of a frame of this side begins, if that is sealed.
    pub(crate) fn sealed_payload(&self, sequence: Sequence) -> Option<[u8; KEYSTREAM_BYTES]> {
        let is_sealed = self.connection.grant().group.cipher.is_sealed();
        let has_all = self.source.length(sequence) >= KEYSTREAM_BYTES;
        (is_sealed && has_all).then(|| {
            let mut payload = [0; KEYSTREAM_BYTES];
            self.source.fill(sequence, &mut payload);
            payload
        })
    }

    /// Frames of the other side that were delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.checker.frames()
    }

    /// Frames that the other side's ring holds.
    pub(crate) fn peer_frames(&self) -> u64 {
        self.peer_frames
    }

    /// Whether a block of the group's first device is a copy of this side's control block: then, where copy A is.
    pub(crate) fn control_pair(&self, lba: u64) -> Option<u64> {
        let first = self.control.0;
        let is_own = lba == first || lba == first + u64::from(CONTROL_STRIDE.0);
        is_own.then_some(first)
    }

    /// Opens a frame that was read, and hands the verdict on. Returns the buffer if it isn't kept.
    pub(crate) fn handle_frame(
        &mut self,
        now: Tick,
        id: IoId,
        sequence: Sequence,
        read: Result<Vec<u8>, IoFailure>,
        hit: &mut Coverage,
    ) -> Option<Vec<u8>> {
        let mut buffer = None;
        let verdict = match read {
            Err(failure) => {
                hit.transition(Transition::FrameReadFailed);
                FrameVerdict::Failed(failure)
            }
            Ok(mut bytes) => {
                let verdict = self.opener.open_in_place(sequence, &mut bytes);
                match verdict {
                    FrameVerdict::Whole { payload_bytes } => {
                        hit.transition(Transition::FrameWhole);
                        match self.damaged.remove(&sequence) {
                            Some(true) => hit.transition(Transition::FrameHealedByResend),
                            Some(false) => hit.transition(Transition::FrameHealedByRead),
                            None => {}
                        }
                        let before = self.opened.insert(sequence, (bytes, payload_bytes));
                        buffer = before.map(|(bytes, _)| bytes);
                    }
                    FrameVerdict::Longer { .. } => {
                        hit.transition(Transition::FrameLonger);
                        buffer = Some(bytes);
                    }
                    _ => buffer = Some(bytes),
                }
                verdict
            }
        };
        self.connection.handle_frame_read(now, id, verdict);
        let stats = self.connection.stats();
        if stats.damaged_reads > self.before.damaged_reads {
            let asked = stats.resends_requested > self.before.resends_requested;
            *self.damaged.entry(sequence).or_default() |= asked;
        }
        self.count(hit);
        buffer
    }

    /// The write of a frame ended; once more after a failure is a transition.
    pub(crate) fn written(&mut self, sequence: Sequence, is_done: bool) {
        if is_done {
            self.failed.remove(&sequence);
        } else {
            self.failed.insert(sequence);
        }
    }

    /// A frame is about to be written.
    pub(crate) fn writes(&self, sequence: Sequence, hit: &mut Coverage) {
        if self.failed.contains(&sequence) {
            hit.transition(Transition::FrameWriteFailed);
        }
    }

    fn count(&mut self, hit: &mut Coverage) {
        let now = self.connection.stats();
        let was = std::mem::replace(&mut self.before, now);
        for (passed, count) in [
            (Transition::FrameAhead, now.early_reads - was.early_reads),
            (
                Transition::FrameDamaged,
                now.damaged_reads - was.damaged_reads,
            ),
            (
                Transition::FrameAsked,
                now.resends_requested - was.resends_requested,
            ),
            (
                Transition::FrameServed,
                now.frames_resent - was.frames_resent,
            ),
        ] {
            hit.transitions(passed, count);
        }
    }

    /// Does everything that can be done now.
    ///
    /// # Errors
    /// The promise that was broken.
    pub(crate) fn work(
        &mut self,
        now: Tick,
        hit: &mut Coverage,
        mut request: impl FnMut(IoRequest),
    ) -> Result<(), Broken> {
        loop {
            self.pump(now, hit)?;
            let Some(first) = self.connection.poll_io(now) else {
                break;
            };
            request(first);
            while let Some(next) = self.connection.poll_io(now) {
                request(next);
            }
        }
        let release = self.held.front().map(|_| self.released + RELEASE_PAUSE);
        let due = self.connection.poll_timeout();
        self.due = due.into_iter().chain(release).min();
        Ok(())
    }

    /// The peer has let go of the connection.
    pub(crate) fn handle_peer_gone(&mut self, now: Tick, reason: Option<ResetReason>) {
        self.is_gone |= reason.is_some();
        self.connection.handle_peer_gone(now, reason);
    }

    /// Does what is due: in the machine, and in a reader that takes its time.
    pub(crate) fn handle_timeout(&mut self, now: Tick) {
        if self.connection.poll_timeout().is_some_and(|due| due <= now) {
            self.connection.handle_timeout(now);
        }
    }

    /// Sends what there is room for, and takes what the machine has to tell.
    fn pump(&mut self, now: Tick, hit: &mut Coverage) -> Result<(), Broken> {
        self.send(now, hit)?;
        let mut any = false;
        while let Some(event) = self.connection.poll_event() {
            any = true;
            self.take(now, event, hit)?;
        }
        if any {
            self.progress = now;
        }
        self.count(hit);
        // A slow reader gives one buffer back per moment.
        if now >= self.released + RELEASE_PAUSE
            && let Some(sequence) = self.held.pop_front()
        {
            self.released = now;
            self.connection.release(now, sequence);
        }
        let frames = self.frames;
        if self.kept.len() as u64 > frames || self.opened.len() > DEPTH {
            let (kept, opened) = (self.kept.len(), self.opened.len());
            let what = format!("{kept} frames kept, {frames} in the ring, {opened} read");
            return Err(Promise::Bounds.broken(what));
        }
        Ok(())
    }

    fn send(&mut self, now: Tick, hit: &mut Coverage) -> Result<(), Broken> {
        while self.sent < self.source.frames {
            if self.connection.room() == 0 && self.is_starved {
                break;
            }
            let length = self.source.length(Sequence(self.sent));
            let ticket = match self.connection.reserve(now, length) {
                Ok(ticket) => ticket,
                Err(UsageError::RingFull) => {
                    hit.transition(Transition::RingFull);
                    self.is_starved = true;
                    break;
                }
                Err(_) => break,
            };
            if ticket.sequence.0 != self.sent {
                let what = format!("frame {} reserved as {}", self.sent, ticket.sequence);
                return Err(Promise::Prefix.broken(what));
            }
            let frame = self.sealed(ticket)?;
            self.sent += 1;
            self.kept.insert(ticket.sequence, frame);
            self.connection.handle_sealed(now, ticket.sequence);
        }
        let is_sent = self.sent == self.source.frames;
        match self.intent {
            Intent::Abort(by) if by == self.sends => {
                let half = self.source.frames / 2;
                if self.sent > half && self.delivered() >= half / 2 && !self.is_aborted {
                    self.is_aborted = true;
                    hit.fault(Fault::Abort);
                    self.connection.abort(now, ResetReason::Aborted);
                }
            }
            Intent::Abort(_) => {}
            Intent::Linger(by) if by != self.sends => {}
            Intent::Linger(_) if is_sent && !self.is_aborted => {
                self.is_aborted = true;
                hit.fault(Fault::Linger);
                self.connection.close(now);
            }
            _ if is_sent => self.connection.finish(now),
            _ => {}
        }
        Ok(())
    }

    /// The next frame of this side, sealed.
    fn sealed(&self, ticket: FrameTicket) -> Result<Written, Broken> {
        let mut frame: Written = repeat_n(0xaa, ticket.blocks.bytes()).collect();
        let bytes = Rc::get_mut(&mut frame).expect("nobody else has it yet");
        let length = self.source.length(ticket.sequence);
        self.source
            .fill(ticket.sequence, &mut bytes[FRAME_HEADER_BYTES..][..length]);
        self.sealer
            .seal_in_place(ticket.sequence, length, bytes)
            .map_err(|error| Promise::Prefix.broken(format!("can't be sealed: {error}")))?;
        Ok(frame)
    }

    fn take(
        &mut self,
        now: Tick,
        event: ConnectionEvent,
        hit: &mut Coverage,
    ) -> Result<(), Broken> {
        match event {
            ConnectionEvent::Acknowledged { below } => self.kept = self.kept.split_off(&below),
            ConnectionEvent::Writable => {
                self.is_starved = false;
                hit.transition(Transition::RingRelieved);
            }
            ConnectionEvent::Delivered {
                sequence,
                payload_bytes,
            } => {
                let opened = self.opened.remove(&sequence);
                let opened = opened.filter(|(_, length)| *length == payload_bytes);
                let (bytes, length) = opened.ok_or_else(|| {
                    let what = format!("frame {sequence} was delivered and not opened as such");
                    Promise::Prefix.broken(what)
                })?;
                self.checker
                    .take(sequence, &bytes[FRAME_HEADER_BYTES..][..length])
                    .map_err(|what| Promise::Prefix.broken(what))?;
                self.spare.push(bytes);
                if self.intent == Intent::Slow {
                    hit.fault(Fault::SlowReader);
                    self.held.push_back(sequence);
                } else {
                    self.connection.release(now, sequence);
                }
            }
            ConnectionEvent::PeerFinished => {
                hit.transition(Transition::PeerFinished);
                self.peer_finished = true;
                if !self.checker.is_complete() {
                    let what = "the end was reported before everything was delivered";
                    return Err(Promise::Prefix.broken(what));
                }
            }
            ConnectionEvent::FinishAcknowledged => {
                hit.transition(Transition::FinishAcknowledged);
                self.finish_acknowledged = true;
            }
            ConnectionEvent::Reset { reason, by, .. } => {
                hit.transition(match by {
                    ResetBy::Us => Transition::ResetByUs,
                    ResetBy::Peer => Transition::ResetByPeer,
                });
                if reason == ResetReason::Protocol && self.peers == Peers::One {
                    let what = format!("protocol broken, says {by:?}");
                    return Err(Promise::Protocol.broken(what));
                }
                hit_reset(reason, hit);
            }
            ConnectionEvent::Closed { reason } => self.closed(reason, hit)?,
            _ => {}
        }
        Ok(())
    }

    fn closed(&mut self, reason: Option<ResetReason>, hit: &mut Coverage) -> Result<(), Broken> {
        if reason.is_none() {
            let is_sent = self.sent == self.source.frames && self.finish_acknowledged;
            if !(self.peer_finished && is_sent) {
                let what = "closed in order, and not both directions were finished";
                return Err(Promise::Prefix.broken(what));
            }
            hit.transition(Transition::ClosedWell);
            let frames = self.frames;
            if self.source.frames >= frames * RING_LAPS {
                hit.transition(Transition::RingWrapped);
            } else if matches!(self.intent, Intent::Full | Intent::Slow) {
                let what = format!("{} frames round {frames}", self.source.frames);
                return Err(Promise::Wraps.broken(what));
            }
            if matches!(self.intent, Intent::OneWay(_)) {
                hit.fault(Fault::OneWay);
            }
        }
        self.ended = Some(Ended {
            reason,
            frames: self.checker.frames(),
            stats: self.connection.stats(),
        });
        Ok(())
    }
}

fn hit_reset(reason: ResetReason, hit: &mut Coverage) {
    hit.transition(match reason {
        ResetReason::Medium => Transition::ResetMedium,
        ResetReason::DeviceLost => Transition::ResetDeviceLost,
        ResetReason::PeerDead => Transition::ResetPeerDead,
        ResetReason::CoordinatorGone => Transition::ResetCoordinatorGone,
        ResetReason::Aborted => Transition::ResetAborted,
        ResetReason::Linger => Transition::ResetLinger,
        ResetReason::PeerClosed => Transition::ResetPeerClosed,
        _ => return,
    });
}

/// The secret of every stream in the simulation.
fn protection(cipher: Cipher) -> Protection {
    let secret = StreamSecret::new([7; 32]);
    match cipher {
        Cipher::Checksum => Protection::Checksum,
        Cipher::Aes256Gcm => Protection::Aes256Gcm(secret),
        Cipher::ChaCha20Poly1305 => Protection::ChaCha20Poly1305(secret),
    }
}
