//! Names for the numbers: one newtype for each index, count, identity and time, so that none is taken for another.
//!
//! Nothing here reads a clock or makes a random value: ticks and identities are given by the caller.

use std::{fmt, ops::Add, time::Duration};
use uuid::Uuid;

/// Bytes in a block, the unit of addressing on every device whatever its logical block size (§2).
pub const BLOCK_BYTES: usize = 4096;
/// Blocks in a unit, the grain of grants: 64 KiB (§2).
pub const UNIT_BLOCKS: u32 = 16;
/// Bytes in a unit.
pub const UNIT_BYTES: u64 = UNIT_BLOCKS as u64 * BLOCK_BYTES as u64;
/// Devices in a pool at most: a mask of them is 32 bits wide.
pub const DEVICES_MAX: u16 = 32;
/// Slots in a pool at most, so that the fixed areas stay below 256 MiB.
pub const SLOTS_MAX: u32 = 16_384;
/// Connections of one member at most: the entries of its page (§3.4).
pub const ENTRIES: usize = 32;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! random_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

number!(
    /// Index of a device within its pool.
    DeviceIndex(u16)
);
number!(
    /// Index of a slot within a pool.
    SlotIndex(u32)
);
number!(
    /// Address of a block on a device, in blocks of 4096 bytes from its start.
    Lba(u64)
);
number!(
    /// A number of blocks of 4096 bytes.
    BlockCount(u32)
);
number!(
    /// Index of a unit (64 KiB) on a device, counted from the start of the device.
    UnitIndex(u32)
);
number!(
    /// A number of units (64 KiB).
    UnitCount(u32)
);
number!(
    /// A storage port: below 1024 designated, from 1024 dynamic.
    Port(u16)
);
number!(
    /// The number of a frame in its direction, from 0; it never wraps.
    Sequence(u64)
);
number!(
    /// Orders what one writer, and its successors in the same place, wrote into a fixed block.
    Counter(u64)
);
number!(
    /// Tells grants apart; never used twice within an epoch.
    Generation(u64)
);
number!(
    /// Which of a direction's successive keys sealed a frame.
    KeyEpoch(u32)
);
number!(
    /// Which key tags a fixed block; 0 is the public constant, 1 a stream's own key (§3.1).
    KeyId(u32)
);
random_number!(
    /// A member's random number, new at each start.
    Incarnation
);
random_number!(
    /// A coordinator's random number, new at each claim.
    Epoch
);

impl Port {
    /// The first dynamic port.
    pub const DYNAMIC_FIRST: Self = Self(1024);
}

impl Sequence {
    /// The sequence after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Counter {
    /// The counter after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many successions came before it: who is of no later one than another hasn't seen it (§3.1).
    #[must_use]
    pub fn successions(self) -> u64 {
        self.0 >> 32
    }

    /// Where a writer starts that found `self` in its place: far above every ghost of its predecessors (§3.1).
    #[must_use]
    pub fn succession(self) -> Self {
        Self((self.0 | 0xffff_ffff).saturating_add(1))
    }
}

impl BlockCount {
    /// Bytes in so many blocks.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0 as usize * BLOCK_BYTES
    }

    /// The blocks that `bytes` bytes fill or begin.
    #[must_use]
    pub fn covering(bytes: usize) -> Self {
        Self(u32::try_from(bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX))
    }
}

impl UnitIndex {
    /// The first block of this unit.
    #[must_use]
    pub fn lba(self) -> Lba {
        Lba(u64::from(self.0) * u64::from(UNIT_BLOCKS))
    }
}

impl Add<BlockCount> for Lba {
    type Output = Self;
    fn add(self, blocks: BlockCount) -> Self {
        Self(self.0 + u64::from(blocks.0))
    }
}

/// The identity of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub Uuid);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random identity of a connection, made by the side that requests it. All zero means none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub [u8; 16]);

impl ConnectionId {
    /// No connection.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A random challenge that a session writes to one device, to prove that its peer sees the same device.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Challenge(pub [u8; 32]);

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// One of a connection's two byte streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Written by the member, read by the coordinator.
    ToCoordinator = 0,
    /// Written by the coordinator, read by the member.
    ToMember = 1,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::ToCoordinator => Self::ToMember,
            Self::ToMember => Self::ToCoordinator,
        }
    }
}

/// A set of a pool's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceMask(pub u32);

impl DeviceMask {
    /// No device.
    pub const NONE: Self = Self(0);

    /// The first `count` devices.
    #[must_use]
    pub fn first(count: u16) -> Self {
        if count >= 32 {
            Self(u32::MAX)
        } else {
            Self((1 << count) - 1)
        }
    }

    /// Only `device`; none if its index is out of range.
    #[must_use]
    pub fn only(device: DeviceIndex) -> Self {
        Self(1_u32.checked_shl(u32::from(device.0)).unwrap_or(0))
    }

    /// Whether `device` is in the set.
    #[must_use]
    pub fn contains(self, device: DeviceIndex) -> bool {
        self.0 & Self::only(device).0 != 0
    }

    /// The devices in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The devices in either set.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `device`.
    #[must_use]
    pub fn without(self, device: DeviceIndex) -> Self {
        Self(self.0 & !Self::only(device).0)
    }

    /// How many devices are in the set.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The devices of the set, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = DeviceIndex> {
        (0..DEVICES_MAX)
            .map(DeviceIndex)
            .filter(move |&device| self.contains(device))
    }
}

/// A point in time by the caller's clock, in microseconds from a start of the caller's choice.
///
/// The clock has to go on while the machine is suspended (`CLOCK_BOOTTIME`) and never go back. Ticks of different hosts are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u64);

impl Tick {
    /// The tick `micros` microseconds after the clock's start.
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The tick `millis` milliseconds after the clock's start.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Microseconds from the clock's start.
    #[must_use]
    pub fn as_micros(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this tick; zero if it isn't earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// One block's bytes, aligned so that direct I/O can take them as they are.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    /// A block of zeros.
    #[must_use]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES]))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:02x?}…)", &self.0[..8])
    }
}

const _: () = assert!(size_of::<Block>() == BLOCK_BYTES);

/// A short text stored in a fixed field: at most 63 bytes of UTF-8, without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Bytes of the field that holds a name.
    pub const FIELD_BYTES: usize = 64;

    /// Takes `text`, cut to 63 bytes at a character's boundary and with control characters replaced.
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars() {
            let c = if c.is_control() { '?' } else { c };
            if name.len() + c.len_utf8() >= Self::FIELD_BYTES {
                break;
            }
            name.push(c);
        }
        Self(name)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
