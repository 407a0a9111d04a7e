//! The coordinator block (§3.3): who owns the pool, and its sign of life.

use crate::{
    block::{
        header::{Magic, NO_SLOT, Place, Stamp, TagKey, Unchecked, begin, seal},
        wire::{put_name, take_name},
    },
    error::FormatError,
    types::{Block, DeviceIndex, Name, PoolId},
};

/// What a coordinator says of itself; its epoch is the stamp's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorBlock {
    /// What it is at.
    pub state: CoordinatorState,
    /// Its host, for people.
    pub host: Name,
}

/// What a coordinator is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinatorState {
    /// It waits for the claim time-out.
    Claiming = 1,
    /// It grants.
    Serving = 2,
    /// It ended in order; the pool is free.
    Stopped = 3,
}

impl CoordinatorBlock {
    /// The place of this block on a device.
    #[must_use]
    pub fn place(pool: PoolId, device: DeviceIndex) -> Place {
        Place {
            pool,
            device,
            slot: NO_SLOT,
        }
    }

    /// Reads the block.
    ///
    /// # Errors
    /// Says what was found instead.
    pub fn parse(
        bytes: Unchecked<'_>,
        place: &Place,
        key: &TagKey,
    ) -> Result<(Stamp, Self), FormatError> {
        let (stamp, raw) = bytes.check(Magic::Coordinator, place, key)?;
        let state = match raw[80] {
            1 => CoordinatorState::Claiming,
            2 => CoordinatorState::Serving,
            3 => CoordinatorState::Stopped,
            other => {
                return Err(FormatError::BadField {
                    field: "coordinator state",
                    got: u64::from(other),
                });
            }
        };
        let host = take_name(raw, 88);
        Ok((stamp, Self { state, host }))
    }

    /// The block's bytes.
    #[must_use]
    pub fn encode(&self, place: &Place, stamp: Stamp, key: &TagKey) -> Box<Block> {
        let mut block = begin(Magic::Coordinator, place, stamp);
        block.0[80] = self.state as u8;
        put_name(&mut block, 88, &self.host);
        seal(block, key)
    }
}
