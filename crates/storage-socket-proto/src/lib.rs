//! Storage sockets as pure code: layout, codec, and the member, coordinator and connection machines.
//!
//! No clock, no randomness, no I/O: time is a [`Tick`] that the caller gives, random numbers are given by the caller,
//! and I/O leaves as [`IoRequest`]s and comes back as outcomes. The bytes are described in
//! `docs/design/storage-socket.md`, whose sections the code cites (§3.2).
//!
//! Each machine is driven the same way: things arrive by `handle_*`; then `poll_io`, `poll_event`, `poll_doorbell` are
//! called until they have nothing more, and `poll_timeout` tells when to call `handle_timeout`. A driver that wakes up
//! serves its member or coordinator first, timeouts included, and connections after that: a fence that came down while
//! the machine slept has to be known to them before they write.

mod allocator;
mod areas;
pub mod block;
mod connection;
mod coordinator;
mod error;
mod geometry;
mod io;
mod liveness;
mod member;
mod pair;
mod poll;
mod probe;
mod progress;
mod reasons;
mod seal;
mod types;

pub use block::{Grant, Place, SegmentGroup, Stamp, Superblock, TagKey, Unchecked};
pub use connection::{
    Connection, ConnectionConfig, ConnectionEvent, ConnectionStats, Depths, Doorbell, Fence,
    FrameTicket, ResetBy,
};
pub use coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorEvent, EndReason, ListenOptions, ListenProtection,
    MemberView,
};
pub use error::{FormatError, GeometryError, UsageError};
pub use geometry::{
    CONTROL_STRIDE, DeviceGeometry, DeviceSize, FRAME_UNITS_MAX, FramePlace, Geometry, Ring,
    Segment, Timeouts,
};
pub use io::{IoFailure, IoId, IoOp, IoOutcome, IoRequest};
pub use member::{ConnectOptions, Member, MemberConfig, MemberEvent, StopReason};
pub use poll::Polling;
pub use reasons::{RefusalReason, ResetReason};
pub use seal::{
    Cipher, FRAME_HEADER_BYTES, FrameOpener, FrameSealer, FrameVerdict, KEY_BYTES_MAX, Protection,
    StreamIdentity, StreamSecret, frame_blocks,
};
pub use types::{
    BLOCK_BYTES, Block, BlockCount, Challenge, ConnectionId, Counter, DEVICES_MAX, DeviceIndex,
    DeviceMask, Direction, ENTRIES, Epoch, Generation, Incarnation, KeyEpoch, KeyId, Lba, Name,
    PoolId, Port, SLOTS_MAX, Sequence, SlotIndex, Tick, UNIT_BLOCKS, UNIT_BYTES, UnitCount,
    UnitIndex,
};
