//! The member page (§3.4): a member's sign of life and what it asks of the coordinator.

use crate::{
    block::{
        header::{Magic, Place, Stamp, TagKey, Unchecked, begin, seal},
        wire::{
            put, put_name, put_u16, put_u32, put_u64, take, take_name, take_u16, take_u32, take_u64,
        },
    },
    error::FormatError,
    reasons::ResetReason,
    seal::Cipher,
    types::{
        Block, Challenge, ConnectionId, DeviceMask, ENTRIES, Epoch, Generation, Name, Port,
        UnitCount,
    },
};

/// What a member says; its incarnation is the stamp's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPage {
    /// What it is at.
    pub state: MemberState,
    /// The devices on which it sees its coordinator's current blocks and can write.
    pub devices: DeviceMask,
    /// The epoch that it follows: nothing granted by another is written to any more.
    pub confirmed: Epoch,
    /// The challenge for this device.
    pub challenge: Challenge,
    /// Its host, for people.
    pub host: Name,
    /// Its connections, by place; answers stand in the same places.
    pub entries: [MemberEntry; ENTRIES],
}

/// What a member is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It runs.
    Running = 1,
    /// It ended in order.
    Stopped = 2,
}

/// One connection, as its member sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberEntry {
    /// No connection.
    #[default]
    Empty,
    /// Wants a connection.
    Request(Request),
    /// Uses the grant of this generation.
    Open {
        /// The connection.
        connection: ConnectionId,
        /// The grant it uses.
        generation: Generation,
    },
    /// Uses nothing of this connection's grant any more.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Why it ended; `None` if both directions were finished.
        reason: Option<ResetReason>,
    },
}

/// What a member wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The connection's random identity.
    pub connection: ConnectionId,
    /// The storage port.
    pub port: Port,
    /// How frames are to be protected.
    pub cipher: Cipher,
    /// Units of a frame slot.
    pub frame_units: UnitCount,
    /// Units per device wanted for the member's direction.
    pub window_to_coordinator: UnitCount,
    /// Units per device wanted for the other direction.
    pub window_to_member: UnitCount,
    /// The devices it may use.
    pub devices: DeviceMask,
}

impl MemberEntry {
    /// The connection, if there is one.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Empty => None,
            Self::Request(request) => Some(request.connection),
            Self::Open { connection, .. } | Self::Closed { connection, .. } => Some(*connection),
        }
    }
}

impl MemberPage {
    /// Reads the page.
    ///
    /// # Errors
    /// Says what was found instead.
    pub fn parse(
        bytes: Unchecked<'_>,
        place: &Place,
        key: &TagKey,
    ) -> Result<(Stamp, Self), FormatError> {
        let (stamp, raw) = bytes.check(Magic::Member, place, key)?;
        let state = match raw[80] {
            1 => MemberState::Running,
            2 => MemberState::Stopped,
            other => {
                return Err(FormatError::BadField {
                    field: "member state",
                    got: u64::from(other),
                });
            }
        };
        let mut entries = [MemberEntry::Empty; ENTRIES];
        for (entry, found) in entries
            .iter_mut()
            .zip(raw[ENTRIES_AT..].chunks(ENTRY_BYTES))
        {
            *entry = parse_entry(found)?;
        }
        let page = Self {
            state,
            devices: DeviceMask(take_u32(raw, 84)),
            confirmed: Epoch(take_u64(raw, 88)),
            challenge: Challenge(take(raw, 96)),
            host: take_name(raw, 128),
            entries,
        };
        Ok((stamp, page))
    }

    /// The page's bytes.
    #[must_use]
    pub fn encode(&self, place: &Place, stamp: Stamp, key: &TagKey) -> Box<Block> {
        let mut block = begin(Magic::Member, place, stamp);
        block.0[80] = self.state as u8;
        put_u32(&mut block, 84, self.devices.0);
        put_u64(&mut block, 88, self.confirmed.0);
        put(&mut block, 96, &self.challenge.0);
        put_name(&mut block, 128, &self.host);
        for (index, entry) in self.entries.iter().enumerate() {
            put_entry(&mut block, ENTRIES_AT + index * ENTRY_BYTES, entry);
        }
        seal(block, key)
    }
}

fn parse_entry(raw: &[u8]) -> Result<MemberEntry, FormatError> {
    let connection = ConnectionId(take(raw, 0));
    match raw[16] {
        0 => Ok(MemberEntry::Empty),
        1 => Ok(MemberEntry::Request(Request {
            connection,
            cipher: Cipher::from_code(raw[17]).ok_or(FormatError::BadField {
                field: "request cipher",
                got: u64::from(raw[17]),
            })?,
            port: Port(take_u16(raw, 18)),
            frame_units: UnitCount(take_u32(raw, 20)),
            window_to_coordinator: UnitCount(take_u32(raw, 24)),
            window_to_member: UnitCount(take_u32(raw, 28)),
            devices: DeviceMask(take_u32(raw, 32)),
        })),
        2 => Ok(MemberEntry::Open {
            connection,
            generation: Generation(take_u64(raw, 40)),
        }),
        3 => Ok(MemberEntry::Closed {
            connection,
            reason: ResetReason::from_code(take_u16(raw, 36)),
        }),
        other => Err(FormatError::BadField {
            field: "connection state",
            got: u64::from(other),
        }),
    }
}

fn put_entry(block: &mut Block, at: usize, entry: &MemberEntry) {
    if let Some(connection) = entry.connection() {
        put(block, at, &connection.0);
    }
    match entry {
        MemberEntry::Empty => {}
        MemberEntry::Request(request) => {
            block.0[at + 16] = 1;
            block.0[at + 17] = request.cipher.code();
            put_u16(block, at + 18, request.port.0);
            put_u32(block, at + 20, request.frame_units.0);
            put_u32(block, at + 24, request.window_to_coordinator.0);
            put_u32(block, at + 28, request.window_to_member.0);
            put_u32(block, at + 32, request.devices.0);
        }
        MemberEntry::Open { generation, .. } => {
            block.0[at + 16] = 2;
            put_u64(block, at + 40, generation.0);
        }
        MemberEntry::Closed { reason, .. } => {
            block.0[at + 16] = 3;
            put_u16(block, at + 36, reason.map_or(0, ResetReason::code));
        }
    }
}

/// Where the entries begin in member and answer pages.
pub(crate) const ENTRIES_AT: usize = 256;
/// Bytes of an entry in member and answer pages.
pub(crate) const ENTRY_BYTES: usize = 64;
const _: () = assert!(ENTRIES_AT + ENTRIES * ENTRY_BYTES <= crate::types::BLOCK_BYTES);
