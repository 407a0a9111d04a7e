//! What a connection is made of, and what it has to tell.

use crate::{
    block::{Grant, TagKey},
    geometry::Timeouts,
    io::IoFailure,
    reasons::ResetReason,
    seal::StreamIdentity,
    types::{BlockCount, DeviceIndex, Direction, KeyEpoch, PoolId, Sequence},
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
    /// Frames being read.
    pub read: usize,
    /// Frames being read, or read and not yet released by [`Connection::release`]: the buffers that reading takes.
    pub held: usize,
}

impl Default for Depths {
    fn default() -> Self {
        Self {
            write: 8,
            read: 8,
            held: 16,
        }
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
            epoch: grant.epoch,
            incarnation: grant.incarnation,
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
        /// The device that failed it, or that answers nothing.
        device: Option<DeviceIndex>,
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
    /// Frames on their way at present: taken, and not acknowledged by the peer yet.
    pub frames_outstanding: u64,
    /// Frames that the ring has room for at present.
    pub credits: u64,
}

/// Whether a connection may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It may not.
    Closed,
    /// It may.
    Open,
}
