//! The answer page (§3.5): what the coordinator says to one member.

use crate::{
    block::{
        header::{Magic, Place, Stamp, TagKey, Unchecked, begin, check_counter, seal},
        member::{ENTRIES_AT, ENTRY_BYTES},
        wire::{put, put_u16, put_u32, put_u64, take, take_u16, take_u32, take_u64},
    },
    error::FormatError,
    geometry::{Ring, Segment},
    reasons::{RefusalReason, ResetReason},
    seal::Cipher,
    types::{
        Block, Challenge, ConnectionId, Counter, DeviceMask, Direction, ENTRIES, Epoch, Generation,
        Incarnation, Port, SlotIndex, UnitCount, UnitIndex,
    },
};

/// What the coordinator says to the member of one slot; its epoch is the stamp's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerPage {
    /// The member that is addressed; another one ignores the page.
    pub incarnation: Incarnation,
    /// The challenge for this device.
    pub challenge: Challenge,
    /// The devices on which the coordinator reads this member's current page.
    pub devices: DeviceMask,
    /// The highest counter that the coordinator saw in this slot: a member whose own pages are unreadable starts above.
    pub seen: Counter,
    /// The answers, in the places of the member's entries.
    pub entries: [AnswerEntry; ENTRIES],
}

/// The answer to one entry of a member page; `None` where nothing is said.
pub type AnswerEntry = Option<Answer>;

/// What the coordinator says of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Granted.
    Accepted {
        /// The connection.
        connection: ConnectionId,
        /// The port it was asked for on.
        port: Port,
        /// Where its frames go.
        group: SegmentGroup,
    },
    /// Not granted.
    Refused {
        /// The connection.
        connection: ConnectionId,
        /// Why.
        reason: RefusalReason,
    },
    /// Was granted and is so no longer.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Why it ended; `None` if both directions were finished.
        reason: Option<ResetReason>,
        /// What was granted: it rests until the member has let go of it.
        group: SegmentGroup,
    },
}

/// The segments of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentGroup {
    /// Tells this grant from every other of the epoch.
    pub generation: Generation,
    /// The devices it is striped over.
    pub devices: DeviceMask,
    /// How frames are protected.
    pub cipher: Cipher,
    /// Units of a frame slot.
    pub frame_units: UnitCount,
    /// The segment that the member writes.
    pub to_coordinator: Segment,
    /// The segment that the coordinator writes.
    pub to_member: Segment,
}

impl SegmentGroup {
    /// The segment of one direction.
    #[must_use]
    pub fn segment(&self, direction: Direction) -> Segment {
        match direction {
            Direction::ToCoordinator => self.to_coordinator,
            Direction::ToMember => self.to_member,
        }
    }

    /// The ring of one direction; `None` if the figures make none.
    #[must_use]
    pub fn ring(&self, direction: Direction) -> Option<Ring> {
        Ring::new(self.segment(direction), self.frame_units, self.devices)
    }
}

/// A connection that was granted, as both ends know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The connection.
    pub connection: ConnectionId,
    /// The port.
    pub port: Port,
    /// The member's slot.
    pub slot: SlotIndex,
    /// The member.
    pub incarnation: Incarnation,
    /// The coordinator.
    pub epoch: Epoch,
    /// The segments.
    pub group: SegmentGroup,
}

impl Answer {
    /// The connection that is spoken of.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        match self {
            Self::Accepted { connection, .. }
            | Self::Refused { connection, .. }
            | Self::Closed { connection, .. } => *connection,
        }
    }
}

impl AnswerPage {
    /// Reads the page.
    ///
    /// # Errors
    /// Says what was found instead.
    pub fn parse(
        bytes: Unchecked<'_>,
        place: &Place,
        key: &TagKey,
    ) -> Result<(Stamp, Self), FormatError> {
        let (stamp, raw) = bytes.check(Magic::Answer, place, key)?;
        let mut entries = [None; ENTRIES];
        for (entry, found) in entries
            .iter_mut()
            .zip(raw[ENTRIES_AT..].chunks(ENTRY_BYTES))
        {
            *entry = parse_entry(found)?;
        }
        let page = Self {
            incarnation: Incarnation(take_u64(raw, 80)),
            challenge: Challenge(take(raw, 88)),
            devices: DeviceMask(take_u32(raw, 120)),
            seen: Counter(take_u64(raw, 128)),
            entries,
        };
        check_counter("seen counter", page.seen)?;
        Ok((stamp, page))
    }

    /// The page's bytes.
    #[must_use]
    pub fn encode(&self, place: &Place, stamp: Stamp, key: &TagKey) -> Box<Block> {
        let mut block = begin(Magic::Answer, place, stamp);
        put_u64(&mut block, 80, self.incarnation.0);
        put(&mut block, 88, &self.challenge.0);
        put_u32(&mut block, 120, self.devices.0);
        put_u64(&mut block, 128, self.seen.0);
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(answer) = entry {
                put_answer(&mut block, ENTRIES_AT + index * ENTRY_BYTES, answer);
            }
        }
        seal(block, key)
    }
}

fn parse_entry(raw: &[u8]) -> Result<AnswerEntry, FormatError> {
    let connection = ConnectionId(take(raw, 0));
    let code = take_u16(raw, 18);
    Ok(Some(match raw[16] {
        0 => return Ok(None),
        1 => Answer::Accepted {
            connection,
            port: Port(take_u16(raw, 52)),
            group: parse_group(raw)?,
        },
        2 => Answer::Refused {
            connection,
            reason: RefusalReason::from_code(code),
        },
        3 => Answer::Closed {
            connection,
            reason: ResetReason::from_code(code),
            group: parse_group(raw)?,
        },
        other => {
            return Err(FormatError::BadField {
                field: "answer status",
                got: u64::from(other),
            });
        }
    }))
}

fn parse_group(raw: &[u8]) -> Result<SegmentGroup, FormatError> {
    let segment = |at| Segment {
        first: UnitIndex(take_u32(raw, at)),
        units: UnitCount(take_u32(raw, at + 4)),
    };
    let group = SegmentGroup {
        cipher: Cipher::from_code(raw[17]).ok_or(FormatError::BadField {
            field: "grant cipher",
            got: u64::from(raw[17]),
        })?,
        devices: DeviceMask(take_u32(raw, 20)),
        generation: Generation(take_u64(raw, 24)),
        frame_units: UnitCount(take_u32(raw, 32)),
        to_coordinator: segment(36),
        to_member: segment(44),
    };
    for direction in [Direction::ToCoordinator, Direction::ToMember] {
        if group.ring(direction).is_none() {
            return Err(FormatError::BadField {
                field: "segment units",
                got: u64::from(group.segment(direction).units.0),
            });
        }
    }
    Ok(group)
}

fn put_answer(block: &mut Block, at: usize, answer: &Answer) {
    put(block, at, &answer.connection().0);
    match answer {
        Answer::Accepted { port, group, .. } => {
            block.0[at + 16] = 1;
            put_group(block, at, group);
            put_u16(block, at + 52, port.0);
        }
        Answer::Refused { reason, .. } => {
            block.0[at + 16] = 2;
            put_u16(block, at + 18, reason.code());
        }
        Answer::Closed { reason, group, .. } => {
            block.0[at + 16] = 3;
            put_group(block, at, group);
            put_u16(block, at + 18, reason.map_or(0, ResetReason::code));
        }
    }
}

fn put_group(block: &mut Block, at: usize, group: &SegmentGroup) {
    block.0[at + 17] = group.cipher.code();
    put_u32(block, at + 20, group.devices.0);
    put_u64(block, at + 24, group.generation.0);
    put_u32(block, at + 32, group.frame_units.0);
    put_u32(block, at + 36, group.to_coordinator.first.0);
    put_u32(block, at + 40, group.to_coordinator.units.0);
    put_u32(block, at + 44, group.to_member.first.0);
    put_u32(block, at + 48, group.to_member.units.0);
}
