//! The control block (§4.1): credits, announcements, resends, FIN and RST of one side of a connection.

use crate::{
    block::{
        header::{Magic, Place, Stamp, TagKey, Unchecked, begin, seal},
        wire::{put, put_u16, put_u32, put_u64, take, take_u16, take_u32, take_u64},
    },
    error::FormatError,
    reasons::ResetReason,
    types::{Block, ConnectionId, Direction, Generation, Sequence},
};

/// Resend requests, and answers to them, in one control block at most.
pub const RESENDS_MAX: usize = 32;
/// Frames whose length a control block tells: the last that were announced.
pub const LENGTHS_MAX: usize = 512;

/// What one side of a connection says to the other; the newest holds everything that the older ones held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlBlock {
    /// The connection.
    pub connection: ConnectionId,
    /// The grant.
    pub generation: Generation,
    /// The direction that the writer of this block sends.
    pub direction: Direction,
    /// Every frame of the opposite direction below this was received whole.
    pub consumed: Sequence,
    /// Every frame of this direction below this was written.
    pub announced: Sequence,
    /// How many frames this direction has, once it is finished.
    pub fin: Option<Sequence>,
    /// Whether the opposite direction was received to its end.
    pub fin_seen: bool,
    /// Set if the writer has reset the stream.
    pub reset: Option<ResetReason>,
    /// Advances with every change that the peer has to learn.
    pub revision: u64,
    /// The newest revision of the peer that was read.
    pub seen: u64,
    /// Frames of the opposite direction that are asked for again.
    pub resends: Vec<Resend>,
    /// Requests of the peer that were fulfilled.
    pub served: Vec<Resend>,
    /// Blocks of frame n of this direction at n mod 512, for the frames announced last; 0 is unknown.
    pub lengths: Box<[u16; LENGTHS_MAX]>,
}

/// A frame that is asked for again, and for the how-manieth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resend {
    /// The frame.
    pub sequence: Sequence,
    /// Counts from 1.
    pub attempt: u32,
}

impl ControlBlock {
    /// A block that says nothing yet.
    #[must_use]
    pub fn new(connection: ConnectionId, generation: Generation, direction: Direction) -> Self {
        Self {
            connection,
            generation,
            direction,
            consumed: Sequence(0),
            announced: Sequence(0),
            fin: None,
            fin_seen: false,
            reset: None,
            revision: 0,
            seen: 0,
            resends: Vec::new(),
            served: Vec::new(),
            lengths: Box::new([0; LENGTHS_MAX]),
        }
    }

    /// Reads the block that the other side of a connection writes.
    ///
    /// # Errors
    /// Says what was found instead; content of earlier connections is an error as well.
    pub fn parse(
        bytes: Unchecked<'_>,
        place: &Place,
        key: &TagKey,
        want: (ConnectionId, Generation, Direction),
    ) -> Result<(Stamp, Self), FormatError> {
        let (stamp, raw) = bytes.check(Magic::Control, place, key)?;
        let (connection, generation, direction) = want;
        let got = ConnectionId(take(raw, 80));
        if got != connection {
            return Err(FormatError::OtherConnection {
                want: connection,
                got,
            });
        }
        let got = Generation(take_u64(raw, 96));
        if got != generation {
            return Err(FormatError::OtherGeneration {
                want: generation,
                got,
            });
        }
        if raw[104] != direction as u8 {
            return Err(FormatError::OtherDirection { want: direction });
        }
        let mut block = Self::new(connection, generation, direction);
        let flags = raw[105];
        block.consumed = Sequence(take_u64(raw, 112));
        block.announced = Sequence(take_u64(raw, 120));
        block.fin = (flags & FLAG_FIN != 0).then(|| Sequence(take_u64(raw, 128)));
        block.fin_seen = flags & FLAG_FIN_SEEN != 0;
        block.reset = ResetReason::from_code(take_u16(raw, 106));
        block.revision = take_u64(raw, 136);
        block.seen = take_u64(raw, 144);
        block.resends = take_resends(raw, 152, RESENDS_AT, "resend requests")?;
        block.served = take_resends(raw, 154, SERVED_AT, "served resends")?;
        for (index, blocks) in block.lengths.iter_mut().enumerate() {
            *blocks = take_u16(raw, LENGTHS_AT + 2 * index);
        }
        if block.fin.is_some_and(|fin| fin < block.announced) {
            return Err(FormatError::BadField {
                field: "final sequence",
                got: take_u64(raw, 128),
            });
        }
        Ok((stamp, block))
    }

    /// The block's bytes; requests beyond [`RESENDS_MAX`] are left out.
    #[must_use]
    pub fn encode(&self, place: &Place, stamp: Stamp, key: &TagKey) -> Box<Block> {
        let mut block = begin(Magic::Control, place, stamp);
        put(&mut block, 80, &self.connection.0);
        put_u64(&mut block, 96, self.generation.0);
        block.0[104] = self.direction as u8;
        let fin = if self.fin.is_some() { FLAG_FIN } else { 0 };
        let fin_seen = if self.fin_seen { FLAG_FIN_SEEN } else { 0 };
        block.0[105] = fin | fin_seen;
        put_u16(&mut block, 106, self.reset.map_or(0, ResetReason::code));
        put_u64(&mut block, 112, self.consumed.0);
        put_u64(&mut block, 120, self.announced.0);
        put_u64(&mut block, 128, self.fin.unwrap_or_default().0);
        put_u64(&mut block, 136, self.revision);
        put_u64(&mut block, 144, self.seen);
        put_resends(&mut block, 152, RESENDS_AT, &self.resends);
        put_resends(&mut block, 154, SERVED_AT, &self.served);
        for (index, blocks) in self.lengths.iter().enumerate() {
            put_u16(&mut block, LENGTHS_AT + 2 * index, *blocks);
        }
        seal(block, key)
    }
}

fn take_resends(
    raw: &[u8],
    count_at: usize,
    at: usize,
    field: &'static str,
) -> Result<Vec<Resend>, FormatError> {
    let count = usize::from(take_u16(raw, count_at));
    if count > RESENDS_MAX {
        return Err(FormatError::BadField {
            field,
            got: count as u64,
        });
    }
    Ok((0..count)
        .map(|index| Resend {
            sequence: Sequence(take_u64(raw, at + RESEND_BYTES * index)),
            attempt: take_u32(raw, at + RESEND_BYTES * index + 8),
        })
        .collect())
}

fn put_resends(block: &mut Block, count_at: usize, at: usize, resends: &[Resend]) {
    let count = resends.len().min(RESENDS_MAX);
    put_u16(block, count_at, u16::try_from(count).unwrap_or(0));
    for (index, resend) in resends.iter().take(count).enumerate() {
        put_u64(block, at + RESEND_BYTES * index, resend.sequence.0);
        put_u32(block, at + RESEND_BYTES * index + 8, resend.attempt);
    }
}

const FLAG_FIN: u8 = 1;
const FLAG_FIN_SEEN: u8 = 2;
const RESEND_BYTES: usize = 16;
const RESENDS_AT: usize = 160;
const SERVED_AT: usize = RESENDS_AT + RESENDS_MAX * RESEND_BYTES;
const LENGTHS_AT: usize = SERVED_AT + RESENDS_MAX * RESEND_BYTES;
const _: () = assert!(LENGTHS_AT + 2 * LENGTHS_MAX <= crate::types::BLOCK_BYTES);
