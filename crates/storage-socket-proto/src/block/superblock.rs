//! The superblock (§3.2): what a pool is, on each of its devices twice.

use crate::{
    block::{
        header::{FORMAT_VERSION, Magic, NO_SLOT, Place, Stamp, TagKey, Unchecked, begin, seal},
        wire::{put_name, put_u16, put_u32, put_u64, take_name, take_u16, take_u32, take_u64},
    },
    error::FormatError,
    geometry::{Geometry, Timeouts},
    types::{Block, Counter, DeviceIndex, Name, PoolId, UnitIndex},
};
use std::time::Duration;

/// What a device says of itself and its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: PoolId,
    /// The pool's name, for people.
    pub name: Name,
    /// This device's index.
    pub device: DeviceIndex,
    /// How many devices the pool has.
    pub device_count: u16,
    /// Blocks of 4096 bytes of this device when the pool was made.
    pub blocks: u64,
    /// Bytes of this device's logical block when the pool was made.
    pub logical_block: u32,
    /// Slots of the pool.
    pub slots: u32,
    /// The first unit of the data area.
    pub data_start: UnitIndex,
    /// The first unit after this device's data area.
    pub data_end: UnitIndex,
    /// The pool's time-outs.
    pub timeouts: Timeouts,
}

impl Superblock {
    /// The superblock of one device of a new pool; `None` if the geometry has no such device.
    #[must_use]
    pub fn of(geometry: &Geometry, name: Name, device: DeviceIndex) -> Option<Self> {
        let placed = geometry.devices().get(usize::from(device.0))?;
        Some(Self {
            pool: geometry.pool(),
            name,
            device,
            device_count: u16::try_from(geometry.devices().len()).ok()?,
            blocks: placed.blocks,
            logical_block: placed.logical_block,
            slots: geometry.slots(),
            data_start: geometry.data_start(),
            data_end: placed.data_end,
            timeouts: geometry.timeouts(),
        })
    }

    /// Reads a superblock from the first or last block of a device whose pool isn't known yet.
    ///
    /// # Errors
    /// Says what was found instead. A newer format is told apart from damage: its tag is checked first.
    pub fn parse(bytes: Unchecked<'_>) -> Result<Self, FormatError> {
        bytes.check_format(Magic::Superblock)?;
        bytes.check_tag(&TagKey::public())?;
        let found = bytes.place();
        let raw = bytes.bytes();
        let readable_from = take_u16(raw, 146);
        if bytes.version() > FORMAT_VERSION && readable_from > FORMAT_VERSION {
            return Err(FormatError::NewerFormat {
                got: bytes.version(),
                readable_from,
                supported: FORMAT_VERSION,
            });
        }
        let superblock = Self {
            pool: found.pool,
            name: take_name(raw, 80),
            device: found.device,
            device_count: take_u16(raw, 144),
            logical_block: take_u32(raw, 148),
            blocks: take_u64(raw, 152),
            slots: take_u32(raw, 160),
            data_start: UnitIndex(take_u32(raw, 164)),
            data_end: UnitIndex(take_u32(raw, 168)),
            timeouts: take_timeouts(raw),
        };
        if superblock.device.0 >= superblock.device_count {
            return Err(FormatError::BadField {
                field: "device index",
                got: u64::from(superblock.device.0),
            });
        }
        Ok(superblock)
    }

    /// The block's bytes, the same for both copies.
    #[must_use]
    pub fn encode(&self) -> Box<Block> {
        let place = Place {
            pool: self.pool,
            device: self.device,
            slot: NO_SLOT,
        };
        let stamp = Stamp {
            counter: Counter(1),
            writer: 0,
        };
        let mut block = begin(Magic::Superblock, &place, stamp);
        put_name(&mut block, 80, &self.name);
        put_u16(&mut block, 144, self.device_count);
        put_u16(&mut block, 146, FORMAT_VERSION);
        put_u32(&mut block, 148, self.logical_block);
        put_u64(&mut block, 152, self.blocks);
        put_u32(&mut block, 160, self.slots);
        put_u32(&mut block, 164, self.data_start.0);
        put_u32(&mut block, 168, self.data_end.0);
        for (index, span) in spans(&self.timeouts).into_iter().enumerate() {
            let millis = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
            put_u32(&mut block, 176 + 4 * index, millis);
        }
        seal(block, &TagKey::public())
    }

    /// The first field that devices of one pool have in common and these two don't.
    #[must_use]
    pub fn contradiction(&self, other: &Self) -> Option<&'static str> {
        [
            (self.name == other.name, "pool name"),
            (self.device_count == other.device_count, "device count"),
            (self.slots == other.slots, "slots"),
            (self.data_start == other.data_start, "data start"),
            (self.timeouts == other.timeouts, "time-outs"),
        ]
        .into_iter()
        .find_map(|(same, field)| (!same).then_some(field))
    }
}

fn spans(timeouts: &Timeouts) -> [Duration; 8] {
    [
        timeouts.heartbeat,
        timeouts.route_leave,
        timeouts.dead,
        timeouts.fence,
        timeouts.io_deadline,
        timeouts.stale,
        timeouts.claim,
        timeouts.linger,
    ]
}

fn take_timeouts(raw: &[u8]) -> Timeouts {
    let span = |index: usize| Duration::from_millis(u64::from(take_u32(raw, 176 + 4 * index)));
    Timeouts {
        heartbeat: span(0),
        route_leave: span(1),
        dead: span(2),
        fence: span(3),
        io_deadline: span(4),
        stale: span(5),
        claim: span(6),
        linger: span(7),
    }
}
