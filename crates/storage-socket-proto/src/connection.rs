//! The connection machine: two directed rings, their credits, resends and ends.
//!
//! Invariants: a frame slot is used again only after its frame was acknowledged; what is delivered is a prefix of what
//! was sent; receiving never waits for sending; every retry has a bound, and past it the stream is reset.
//! Frame bytes stay with the driver: it seals and opens them, the machine says when and where they go.

use crate::{
    block::{Grant, TagKey},
    error::UsageError,
    geometry::Timeouts,
    io::{IoFailure, IoId, IoOutcome, IoRequest},
    reasons::ResetReason,
    seal::{FrameVerdict, StreamIdentity},
    types::{BlockCount, Direction, KeyEpoch, PoolId, Sequence, Tick},
};

/// Whether a doorbell tells of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// The peer can be rung and rings: the device is polled rarely.
    Present,
    /// Nothing but the device: it is polled as often as pays.
    Absent,
}

/// How many I/Os a connection has under way at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths {
    /// Frames being written.
    pub write: usize,
    /// Frames being read, or read and not yet released by [`Connection::release`].
    pub read: usize,
}

impl Default for Depths {
    fn default() -> Self {
        Self { write: 8, read: 8 }
    }
}

/// What a connection is made of.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// The pool.
    pub pool: PoolId,
    /// What was granted.
    pub grant: Grant,
    /// The direction that this side sends: `ToCoordinator` for the member.
    pub sends: Direction,
    /// The pool's time-outs.
    pub timeouts: Timeouts,
    /// Tags this side's control blocks: `protection.control_key(&identity, sends)`.
    pub own_key: TagKey,
    /// Tags the peer's: `protection.control_key(&identity, sends.opposite())`.
    pub peer_key: TagKey,
    /// How many I/Os may be under way.
    pub depths: Depths,
    /// Whether a doorbell tells of news.
    pub doorbell: Doorbell,
}

impl ConnectionConfig {
    /// What makes this connection's frames its own.
    #[must_use]
    pub fn identity(pool: PoolId, grant: &Grant) -> StreamIdentity {
        StreamIdentity {
            pool,
            connection: grant.connection,
            generation: grant.group.generation,
            frame_blocks: BlockCount(
                grant
                    .group
                    .frame_units
                    .0
                    .saturating_mul(crate::types::UNIT_BLOCKS),
            ),
        }
    }
}

/// A place in the ring that was taken for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameTicket {
    /// The frame's sequence: seal it under this.
    pub sequence: Sequence,
    /// The key epoch that its header will name.
    pub key_epoch: KeyEpoch,
    /// Blocks that will be written.
    pub blocks: BlockCount,
}

/// What a connection has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// Frames below this were acknowledged: their buffers are free once no write of them is under way.
    Acknowledged {
        /// The first frame that was not.
        below: Sequence,
    },
    /// The ring has room again after [`Connection::reserve`] found none.
    Writable,
    /// The next frame, in order; hand its payload on, and call [`Connection::release`] when its buffer is free.
    Delivered {
        /// The frame.
        sequence: Sequence,
        /// Bytes of payload.
        payload_bytes: usize,
    },
    /// The peer finished its direction and every frame of it was delivered.
    PeerFinished,
    /// The peer has received this side's direction to its end.
    FinishAcknowledged,
    /// The stream was reset; nothing more is delivered.
    Reset {
        /// Why.
        reason: ResetReason,
        /// By whom.
        by: ResetBy,
        /// The failed I/O behind it, if there is one.
        failure: Option<IoFailure>,
    },
    /// The machine is drained: no I/O is under way, and none will be asked for. Say `close` to member or coordinator.
    Closed {
        /// Why; `None` if both directions were finished.
        reason: Option<ResetReason>,
    },
}

/// Who reset a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetBy {
    /// This side.
    Us,
    /// The peer, by its control block or its page.
    Peer,
}

/// What a connection has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Frames written for the first time.
    pub frames_sent: u64,
    /// Frames written again because the peer asked.
    pub frames_resent: u64,
    /// Frames delivered.
    pub frames_received: u64,
    /// Blocks of frames written.
    pub blocks_sent: u64,
    /// Blocks of frames delivered.
    pub blocks_received: u64,
    /// Reads of frames that were announced and didn't open.
    pub damaged_reads: u64,
    /// Reads ahead of the announcement that found nothing.
    pub early_reads: u64,
    /// Resends asked for.
    pub resends_requested: u64,
    /// Control blocks written.
    pub control_writes: u64,
    /// Control blocks read.
    pub control_reads: u64,
}

/// The connection machine.
#[derive(Debug)]
pub struct Connection {
    config: ConnectionConfig,
}

impl Connection {
    /// A connection over what was granted.
    ///
    /// # Errors
    /// [`UsageError::OutOfRange`] if the grant makes no rings or a depth is zero.
    pub fn new(_now: Tick, config: ConnectionConfig) -> Result<Self, UsageError> {
        Ok(Self { config })
    }

    /// What was granted.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.config.grant
    }

    /// The most that one frame carries.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        0
    }

    /// How many more frames [`Connection::reserve`] would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        0
    }

    /// Takes the next place in the ring for a frame with so many bytes of payload. Seal the frame under the ticket's
    /// sequence, keep it until it is acknowledged, and call [`Connection::handle_sealed`].
    ///
    /// # Errors
    /// [`UsageError::RingFull`], [`UsageError::PayloadLength`] or [`UsageError::Finished`].
    pub fn reserve(
        &mut self,
        _now: Tick,
        _payload_bytes: usize,
    ) -> Result<FrameTicket, UsageError> {
        Err(UsageError::Finished)
    }

    /// The frame is sealed and may be written.
    pub fn handle_sealed(&mut self, _now: Tick, _sequence: Sequence) {}

    /// This side sends nothing after what was reserved.
    pub fn finish(&mut self, _now: Tick) {}

    /// Both directions are to end: finishes this one, discards what comes, and resets with `Linger` if that takes
    /// longer than the linger time.
    pub fn close(&mut self, _now: Tick) {}

    /// Resets the stream.
    pub fn abort(&mut self, _now: Tick, _reason: ResetReason) {}

    /// The peer's page, or the coordinator's answer, says that the peer has let go. What it left is read once more:
    /// a stream that was finished both ways ends well.
    pub fn handle_peer_gone(&mut self, _now: Tick, _reason: Option<ResetReason>) {}

    /// Stops or resumes all writing (`Fenced`, `Unfenced`).
    pub fn set_fenced(&mut self, _now: Tick, _fence: Fence) {}

    /// Says whether a doorbell is there.
    pub fn set_doorbell(&mut self, _now: Tick, _doorbell: Doorbell) {}

    /// The buffer of a delivered frame is free: one more frame may be read.
    pub fn release(&mut self, _now: Tick, _sequence: Sequence) {}

    /// The peer rang: there are news to read.
    pub fn handle_doorbell(&mut self, _now: Tick) {}

    /// Whether the peer should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> bool {
        false
    }

    /// Takes the outcome of a `Read`, `Write` or `WriteFrame`.
    pub fn handle_io(&mut self, _now: Tick, _id: IoId, _outcome: IoOutcome<'_>) {}

    /// Takes the outcome of a `ReadFrame`.
    ///
    /// Unless the verdict is `Whole`, the driver may drop the buffer; if it is, the buffer is kept until `Delivered`
    /// (and then `release`), or until the stream is reset.
    pub fn handle_frame_read(&mut self, _now: Tick, _id: IoId, _verdict: FrameVerdict) {}

    /// The next request for I/O.
    pub fn poll_io(&mut self, _now: Tick) -> Option<IoRequest> {
        None
    }

    /// When [`Connection::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Tick) {}

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        None
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        ConnectionStats::default()
    }
}

/// Whether a connection may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It may not.
    Closed,
    /// It may.
    Open,
}
