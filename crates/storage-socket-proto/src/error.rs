//! What bytes from the medium can be instead of what was expected, and how callers can misuse the machines.

use crate::types::{
    ConnectionId, DeviceIndex, Direction, Generation, KeyEpoch, KeyId, PoolId, Sequence, SlotIndex,
};

/// Why bytes from the medium were not believed. Never the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end before the structure does.
    #[error("{got} bytes where {want} are needed")]
    Truncated {
        /// Bytes needed.
        want: usize,
        /// Bytes there.
        got: usize,
    },
    /// Every byte is zero: nothing was written here yet.
    #[error("nothing was written here")]
    Blank,
    /// The magic number is another.
    #[error("magic number {got:08x} where {want:08x} belongs")]
    BadMagic {
        /// The magic number of the wanted structure.
        want: u32,
        /// The number found.
        got: u32,
    },
    /// Written by a format version that this one can't read.
    #[error(
        "format version {got}, readable from version {readable_from}; this program reads {supported}"
    )]
    NewerFormat {
        /// The version found.
        got: u16,
        /// The oldest version that may read it.
        readable_from: u16,
        /// The version this program reads.
        supported: u16,
    },
    /// Belongs to another pool.
    #[error("belongs to pool {got}, not {want}")]
    OtherPool {
        /// The pool that was opened.
        want: PoolId,
        /// The pool found.
        got: PoolId,
    },
    /// Belongs to another device of the pool.
    #[error("belongs to device {got} of the pool, not {want}")]
    OtherDevice {
        /// The device that was read.
        want: DeviceIndex,
        /// The device found.
        got: DeviceIndex,
    },
    /// Belongs to another slot.
    #[error("belongs to slot {got}, not {want}")]
    OtherSlot {
        /// The slot that was read.
        want: SlotIndex,
        /// The slot found.
        got: SlotIndex,
    },
    /// Belongs to another connection.
    #[error("belongs to connection {got}, not {want}")]
    OtherConnection {
        /// This connection.
        want: ConnectionId,
        /// The connection found.
        got: ConnectionId,
    },
    /// Belongs to another grant.
    #[error("belongs to generation {got}, not {want}")]
    OtherGeneration {
        /// This grant.
        want: Generation,
        /// The grant found.
        got: Generation,
    },
    /// Belongs to the other direction.
    #[error("belongs to the other direction than {want:?}")]
    OtherDirection {
        /// This direction.
        want: Direction,
    },
    /// Another frame: an older one, as a rule.
    #[error("frame {got} where {want} belongs")]
    OtherSequence {
        /// The frame wanted.
        want: Sequence,
        /// The frame found.
        got: Sequence,
    },
    /// Sealed under another key epoch than the sequence calls for, or under one whose key was erased.
    #[error("key epoch {got} where {want} belongs")]
    OtherKeyEpoch {
        /// The epoch that the sequence calls for.
        want: KeyEpoch,
        /// The epoch found.
        got: KeyEpoch,
    },
    /// Sealed with another cipher.
    #[error("cipher number {got} where {want} belongs")]
    OtherCipher {
        /// The number of the agreed cipher.
        want: u8,
        /// The number found.
        got: u8,
    },
    /// Tagged under a key that the reader doesn't hold.
    #[error("tagged with key {got}, not {want}")]
    OtherKey {
        /// The key the reader holds.
        want: KeyId,
        /// The key id found.
        got: KeyId,
    },
    /// The tag doesn't fit the bytes: torn, rotten or forged.
    #[error("the tag does not fit the bytes")]
    BadTag,
    /// The tag fits, and yet a field holds what may not be.
    #[error("{field} holds {got}")]
    BadField {
        /// The field's name in the layout.
        field: &'static str,
        /// Its value.
        got: u64,
    },
    /// The frame is longer than what was read of it.
    #[error("the frame has {blocks} blocks and {read} were read")]
    Longer {
        /// Blocks of the frame.
        blocks: u32,
        /// Blocks read.
        read: u32,
    },
}

/// Why a pool can't be laid out, or its devices don't make a pool together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// No device, or more than a pool can have.
    #[error("a pool has 1 to {} devices, not {got}", crate::types::DEVICES_MAX)]
    DeviceCount {
        /// Devices given.
        got: usize,
    },
    /// No slot, or more than a pool can have.
    #[error("a pool has 1 to {} slots, not {got}", crate::types::SLOTS_MAX)]
    SlotCount {
        /// Slots asked for.
        got: u32,
    },
    /// The device is too small for the fixed areas and some data.
    #[error("device {device} has {got} blocks of 4096 bytes, {want} are needed")]
    TooSmall {
        /// The device.
        device: DeviceIndex,
        /// Blocks needed.
        want: u64,
        /// Blocks there.
        got: u64,
    },
    /// The device is larger than unit numbers reach.
    #[error("device {device} has {got} blocks of 4096 bytes, more than a pool can address")]
    TooLarge {
        /// The device.
        device: DeviceIndex,
        /// Blocks there.
        got: u64,
    },
    /// Logical blocks of a size that 4096 isn't a multiple of.
    #[error("device {device} has logical blocks of {got} bytes")]
    LogicalBlock {
        /// The device.
        device: DeviceIndex,
        /// The size found.
        got: u32,
    },
    /// A device of the pool wasn't given.
    #[error("device {device} of the pool is missing")]
    MissingDevice {
        /// The device that is missing.
        device: DeviceIndex,
    },
    /// Two given devices claim the same index.
    #[error("two devices say that they are device {device}")]
    DuplicateDevice {
        /// The index.
        device: DeviceIndex,
    },
    /// Superblocks of different pools.
    #[error("device {device} belongs to pool {got}, not {want}")]
    OtherPool {
        /// The device's index by its own word.
        device: DeviceIndex,
        /// The pool of the first device.
        want: PoolId,
        /// The pool found.
        got: PoolId,
    },
    /// A device's superblock contradicts the first one's.
    #[error("device {device} and the first device differ in {field}")]
    Contradiction {
        /// The device's index.
        device: DeviceIndex,
        /// The field that differs.
        field: &'static str,
    },
    /// The time-outs contradict each other.
    #[error("time-outs contradict each other: {rule}")]
    Timeouts {
        /// The rule that is broken.
        rule: &'static str,
    },
}

/// How a caller misused a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// All 32 entries of the member's page are taken.
    #[error("a member has {} connections at most", crate::types::ENTRIES)]
    TooManyConnections,
    /// The machine has stopped.
    #[error("the machine has stopped")]
    Stopped,
    /// The port is taken.
    #[error("port {0} is taken")]
    PortTaken(crate::types::Port),
    /// Every dynamic port is taken.
    #[error("every dynamic port is taken")]
    NoPort,
    /// The identity is in use, or all zero.
    #[error("connection id {0} is in use or zero")]
    BadConnectionId(ConnectionId),
    /// The payload is empty or longer than a frame holds.
    #[error("a payload has 1 to {most} bytes, not {got}")]
    PayloadLength {
        /// The most that a frame of this stream holds.
        most: usize,
        /// The length given.
        got: usize,
    },
    /// The ring is full until the peer acknowledges.
    #[error("the ring is full")]
    RingFull,
    /// The direction was finished or the stream was reset.
    #[error("the stream takes no more frames")]
    Finished,
    /// The buffer is too short for the frame.
    #[error("the buffer has {got} bytes, {want} are needed")]
    BufferLength {
        /// Bytes needed.
        want: usize,
        /// Bytes there.
        got: usize,
    },
    /// The key for this epoch was erased, or isn't due by far.
    #[error("there is no key for epoch {0}")]
    NoKey(KeyEpoch),
    /// A parameter is out of its range.
    #[error("{what} is out of range")]
    OutOfRange {
        /// The parameter.
        what: &'static str,
    },
}
