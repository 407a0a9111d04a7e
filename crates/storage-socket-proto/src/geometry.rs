//! Where everything lies on a pool's devices (§2): pure functions of the superblock's figures.

use crate::{
    block::Superblock,
    error::GeometryError,
    types::{
        BlockCount, DEVICES_MAX, DeviceIndex, DeviceMask, Lba, PoolId, SLOTS_MAX, SlotIndex,
        UNIT_BLOCKS, UnitCount, UnitIndex,
    },
};
use std::time::Duration;

/// The time-outs of a pool, from its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How often members and coordinator advance their counters.
    pub heartbeat: Duration,
    /// After how long without progress a session leaves a route.
    pub route_leave: Duration,
    /// After how long a silence a peer is dead.
    pub dead: Duration,
    /// After how long without a written counter a member stops writing data.
    pub fence: Duration,
    /// When an I/O without answer counts as failed.
    pub io_deadline: Duration,
    /// For how long a read may return older content.
    pub stale: Duration,
    /// How long a claimant waits before it reads again.
    pub claim: Duration,
    /// How long closing may take.
    pub linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(1000),
            route_leave: Duration::from_millis(5000),
            dead: Duration::from_millis(60_000),
            fence: Duration::from_millis(20_000),
            io_deadline: Duration::from_millis(30_000),
            stale: Duration::from_millis(5000),
            claim: Duration::from_millis(5000),
            linger: Duration::from_millis(10_000),
        }
    }
}

impl Timeouts {
    /// Silence, on every device, after which what a dead member was granted is let go of: it has to be told for so long
    /// that it read the news, or its page would have been read, had it woken before they stood there.
    pub(crate) fn absent(&self) -> Duration {
        self.dead + self.stale * 2 + self.heartbeat * 4
    }

    /// Checks that a peer is declared dead only after it must have stopped writing, and that nothing is zero.
    ///
    /// # Errors
    /// [`GeometryError::Timeouts`] names the broken rule.
    pub fn check(&self) -> Result<(), GeometryError> {
        let all = [
            self.heartbeat,
            self.route_leave,
            self.dead,
            self.fence,
            self.io_deadline,
            self.stale,
            self.claim,
            self.linger,
        ];
        let rule = if all.iter().any(|span| span.as_millis() == 0) {
            Some("each is at least a millisecond")
        } else if all
            .iter()
            .any(|span| span.as_millis() > u128::from(u32::MAX))
        {
            Some("each is below 2^32 milliseconds")
        } else if self.dead <= self.fence + self.io_deadline + self.stale {
            Some("dead > fence + io_deadline + stale")
        } else if self.fence <= self.heartbeat * 2 {
            Some("fence > 2 × heartbeat")
        } else if self.claim < self.stale {
            Some("claim >= stale")
        } else {
            None
        };
        match rule {
            Some(rule) => Err(GeometryError::Timeouts { rule }),
            None => Ok(()),
        }
    }
}

/// What `pool create` says of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSize {
    /// Blocks of 4096 bytes.
    pub blocks: u64,
    /// Bytes of a logical block: 512 or 4096, as a rule.
    pub logical_block: u32,
}

/// One device's part of the geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGeometry {
    /// Blocks of 4096 bytes.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub logical_block: u32,
    /// The first unit after the data area.
    pub data_end: UnitIndex,
}

/// Where everything lies in one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    pool: PoolId,
    slots: u32,
    data_start: UnitIndex,
    devices: Vec<DeviceGeometry>,
    timeouts: Timeouts,
}

impl Geometry {
    /// The first block of a device: the superblock.
    pub const SUPERBLOCK: Lba = Lba(0);
    /// The coordinator's blocks, A and B.
    pub const COORDINATOR: Lba = Lba(2);
    /// Slot 0's member page A.
    pub const MEMBER_PAGES: Lba = Lba(16);

    /// Lays a new pool out.
    ///
    /// # Errors
    /// Says which device or figure makes it impossible.
    pub fn new(
        pool: PoolId,
        slots: u32,
        sizes: &[DeviceSize],
        timeouts: Timeouts,
    ) -> Result<Self, GeometryError> {
        if sizes.is_empty() || sizes.len() > usize::from(DEVICES_MAX) {
            return Err(GeometryError::DeviceCount { got: sizes.len() });
        }
        if slots == 0 || slots > SLOTS_MAX {
            return Err(GeometryError::SlotCount { got: slots });
        }
        timeouts.check()?;
        let data_start = data_start(slots);
        let devices = (0..DEVICES_MAX)
            .map(DeviceIndex)
            .zip(sizes)
            .map(|(device, size)| device_geometry(device, *size, data_start))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            pool,
            slots,
            data_start,
            devices,
            timeouts,
        })
    }

    /// Takes the geometry from the superblocks of all devices, in any order.
    ///
    /// # Errors
    /// Says which device is missing, double, foreign or contradicts the first.
    pub fn from_superblocks(superblocks: &[Superblock]) -> Result<Self, GeometryError> {
        let Some(first) = superblocks.first() else {
            return Err(GeometryError::DeviceCount { got: 0 });
        };
        let count = usize::from(first.device_count);
        if count == 0 || count > usize::from(DEVICES_MAX) {
            return Err(GeometryError::DeviceCount { got: count });
        }
        let mut sizes: Vec<Option<DeviceSize>> = vec![None; count];
        for superblock in superblocks {
            let device = superblock.device;
            if superblock.pool != first.pool {
                return Err(GeometryError::OtherPool {
                    device,
                    want: first.pool,
                    got: superblock.pool,
                });
            }
            if let Some(field) = superblock.contradiction(first) {
                return Err(GeometryError::Contradiction { device, field });
            }
            let Some(size) = sizes.get_mut(usize::from(device.0)) else {
                return Err(GeometryError::Contradiction {
                    device,
                    field: "device index",
                });
            };
            let found = DeviceSize {
                blocks: superblock.blocks,
                logical_block: superblock.logical_block,
            };
            if size.replace(found).is_some() {
                return Err(GeometryError::DuplicateDevice { device });
            }
        }
        let mut complete = Vec::with_capacity(sizes.len());
        for (device, size) in (0..DEVICES_MAX).map(DeviceIndex).zip(&sizes) {
            complete.push(size.ok_or(GeometryError::MissingDevice { device })?);
        }
        let geometry = Self::new(first.pool, first.slots, &complete, first.timeouts)?;
        for superblock in superblocks {
            let placed = &geometry.devices[usize::from(superblock.device.0)];
            if superblock.data_start != geometry.data_start
                || superblock.data_end != placed.data_end
            {
                return Err(GeometryError::Contradiction {
                    device: superblock.device,
                    field: "data area",
                });
            }
        }
        Ok(geometry)
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// How many slots the pool has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The pool's time-outs.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The devices, by index.
    #[must_use]
    pub fn devices(&self) -> &[DeviceGeometry] {
        &self.devices
    }

    /// All devices of the pool.
    #[must_use]
    pub fn all_devices(&self) -> DeviceMask {
        DeviceMask::first(u16::try_from(self.devices.len()).unwrap_or(DEVICES_MAX))
    }

    /// Whether `slot` is a slot of this pool.
    #[must_use]
    pub fn has_slot(&self, slot: SlotIndex) -> bool {
        slot.0 < self.slots
    }

    /// The last block of a device: the superblock's second copy.
    #[must_use]
    pub fn superblock_copy(&self, device: DeviceIndex) -> Option<Lba> {
        self.devices
            .get(usize::from(device.0))
            .map(|device| Lba(device.blocks - 1))
    }

    /// Where a slot's member page A lies; B follows it.
    #[must_use]
    pub fn member_page(&self, slot: SlotIndex) -> Lba {
        Lba(Self::MEMBER_PAGES.0 + 2 * u64::from(slot.0))
    }

    /// Where the answer page A of a slot lies; B follows it.
    #[must_use]
    pub fn answer_page(&self, slot: SlotIndex) -> Lba {
        Lba(Self::MEMBER_PAGES.0 + 2 * u64::from(self.slots) + 2 * u64::from(slot.0))
    }

    /// The first unit of the data area, the same on every device.
    #[must_use]
    pub fn data_start(&self) -> UnitIndex {
        self.data_start
    }

    /// The first unit after the part of the data area that every device of `mask` has.
    #[must_use]
    pub fn data_end(&self, mask: DeviceMask) -> UnitIndex {
        mask.iter()
            .filter_map(|device| self.devices.get(usize::from(device.0)))
            .map(|device| device.data_end)
            .min()
            .unwrap_or(self.data_start)
    }
}

/// The units of one direction, the same on each device of the group (§4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The first unit: the control blocks of the segment's writer.
    pub first: UnitIndex,
    /// How many units, the first included.
    pub units: UnitCount,
}

impl Segment {
    /// The first unit after the segment; 64 bits, for it may lie past the last index.
    #[must_use]
    pub fn end(self) -> u64 {
        u64::from(self.first.0) + u64::from(self.units.0)
    }

    /// Whether the two share a unit.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        u64::from(self.first.0) < other.end() && u64::from(other.first.0) < self.end()
    }

    /// The lba of control block A; B lies [`CONTROL_STRIDE`] blocks further.
    #[must_use]
    pub fn control_block(self) -> Lba {
        self.first.lba()
    }
}

/// Blocks from control block A to control block B: 32 KiB, so that one misdirected or torn write seldom meets both.
pub const CONTROL_STRIDE: BlockCount = BlockCount(8);

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// The device.
    pub device: DeviceIndex,
    /// Its first block.
    pub lba: Lba,
}

/// The slots of one direction's frames over the devices of a group (§4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    segment: Segment,
    frame_units: u32,
    devices: Vec<DeviceIndex>,
    slots_per_device: u64,
}

impl Ring {
    /// The ring in `segment`, striped over the devices of `mask`, with frame slots of `frame_units` units.
    ///
    /// Returns `None` if there is no device, no slot, or the slot size is out of range.
    #[must_use]
    pub fn new(segment: Segment, frame_units: UnitCount, mask: DeviceMask) -> Option<Self> {
        let per_device =
            u64::from(segment.units.0.checked_sub(1)?).checked_div(u64::from(frame_units.0))?;
        if per_device == 0 || mask.is_empty() || frame_units.0 > FRAME_UNITS_MAX {
            return None;
        }
        Some(Self {
            segment,
            frame_units: frame_units.0,
            devices: mask.iter().collect(),
            slots_per_device: per_device,
        })
    }

    /// How many frames the ring holds.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.slots_per_device * self.devices.len() as u64
    }

    /// Blocks of a frame slot.
    #[must_use]
    pub fn frame_blocks(&self) -> BlockCount {
        BlockCount(self.frame_units * UNIT_BLOCKS)
    }

    /// The device that holds the control blocks.
    #[must_use]
    pub fn control_device(&self) -> DeviceIndex {
        self.devices[0]
    }

    /// Where control block A lies; B lies [`CONTROL_STRIDE`] blocks further.
    #[must_use]
    pub fn control_block(&self) -> Lba {
        self.segment.control_block()
    }

    /// Where the frame with this sequence lies.
    #[must_use]
    pub fn place(&self, sequence: crate::types::Sequence) -> FramePlace {
        let count = self.devices.len() as u64;
        let slot = (sequence.0 / count) % self.slots_per_device;
        let index = usize::try_from(sequence.0 % count).unwrap_or(0);
        let first = Lba(self.segment.first.lba().0 + u64::from(UNIT_BLOCKS));
        FramePlace {
            device: self.devices[index],
            lba: Lba(first.0 + slot * u64::from(self.frame_blocks().0)),
        }
    }
}

/// Units of a frame slot at most: 16 MiB.
pub const FRAME_UNITS_MAX: u32 = 256;

/// Units at the end of a device that stay free of data: 1 MiB, which holds the superblock's copy.
const TAIL_UNITS: u64 = 16;

fn data_start(slots: u32) -> UnitIndex {
    let blocks = Geometry::MEMBER_PAGES.0 + 4 * u64::from(slots);
    let mebibytes = blocks.div_ceil(256);
    UnitIndex(u32::try_from(mebibytes * 16).unwrap_or(u32::MAX))
}

fn device_geometry(
    device: DeviceIndex,
    size: DeviceSize,
    data_start: UnitIndex,
) -> Result<DeviceGeometry, GeometryError> {
    if size.logical_block < 512
        || size.logical_block > 4096
        || !size.logical_block.is_power_of_two()
    {
        return Err(GeometryError::LogicalBlock {
            device,
            got: size.logical_block,
        });
    }
    // One MiB of data is the least that is worth a pool.
    let want = (u64::from(data_start.0) + 2 * TAIL_UNITS) * u64::from(UNIT_BLOCKS);
    if size.blocks < want {
        return Err(GeometryError::TooSmall {
            device,
            want,
            got: size.blocks,
        });
    }
    let data_end =
        u32::try_from(size.blocks / u64::from(UNIT_BLOCKS) - TAIL_UNITS).map_err(|_| {
            GeometryError::TooLarge {
                device,
                got: size.blocks,
            }
        })?;
    Ok(DeviceGeometry {
        blocks: size.blocks,
        logical_block: size.logical_block,
        data_end: UnitIndex(data_end),
    })
}
