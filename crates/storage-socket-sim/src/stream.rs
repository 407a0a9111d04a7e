//! What a stream carries in a simulation: bytes that follow from the grant, the direction and the place, so that the
//! reader can tell every wrong, missing or foreign byte without having seen the writer.

use crate::rng::mix;
use storage_socket_proto::{ConnectionId, Direction, Grant, Sequence};

/// What the users of a connection do with it. It is told in the connection's id, so that both sides know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Both directions are filled, wrap their rings three times, and are finished.
    Full,
    /// The same with a reader that gives buffers back late.
    Slow,
    /// This direction alone carries something.
    OneWay(Direction),
    /// The side that sends this direction aborts in the midst of it.
    Abort(Direction),
    /// The side that sends this direction closes, and the other never finishes.
    Linger(Direction),
}

impl Intent {
    /// Whether it has to come to a good end.
    #[must_use]
    pub fn is_goal(self) -> bool {
        !matches!(self, Self::Abort(_) | Self::Linger(_))
    }

    /// The id of a connection with this intent.
    #[must_use]
    pub fn mark(self, mut id: [u8; 16]) -> ConnectionId {
        let direction = |base: u8, direction: Direction| base + direction as u8;
        id[8] = match self {
            Self::Full => 0,
            Self::Slow => 1,
            Self::OneWay(way) => direction(2, way),
            Self::Abort(by) => direction(4, by),
            Self::Linger(by) => direction(6, by),
        };
        ConnectionId(id)
    }

    /// The intent that an id tells.
    #[must_use]
    pub fn of(connection: ConnectionId) -> Self {
        let direction = if connection.0[8].is_multiple_of(2) {
            Direction::ToCoordinator
        } else {
            Direction::ToMember
        };
        match connection.0[8] {
            0 => Self::Full,
            1 => Self::Slow,
            2 | 3 => Self::OneWay(direction),
            4 | 5 => Self::Abort(direction),
            _ => Self::Linger(direction),
        }
    }
}

/// The frames of one direction of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    seed: u64,
    payload_max: u64,
    /// How many there are.
    pub(crate) frames: u64,
}

impl Content {
    /// What is sent in `direction` of what was granted.
    pub(crate) fn new(grant: &Grant, direction: Direction, payload_max: u64) -> Self {
        let ring = grant.group.ring(direction).map_or(1, |ring| ring.frames());
        let laps = ring * RING_LAPS + 2;
        let frames = match Intent::of(grant.connection) {
            Intent::OneWay(way) if way != direction => 0,
            Intent::Full | Intent::Slow | Intent::OneWay(_) => laps,
            Intent::Abort(_) | Intent::Linger(_) => ring + 1,
        };
        let mut low = [0; 8];
        low.copy_from_slice(&grant.connection.0[..8]);
        let grant = mix(grant.group.generation.0 ^ grant.epoch.0);
        Self {
            seed: mix(u64::from_le_bytes(low) ^ grant ^ (direction as u64 + 1)),
            payload_max: payload_max.max(1),
            frames,
        }
    }

    /// The payload bytes of a frame.
    pub(crate) fn length(&self, sequence: Sequence) -> usize {
        let length = mix(self.seed ^ sequence.0) % self.payload_max + 1;
        usize::try_from(length).unwrap_or(1)
    }

    /// Puts the payload of a frame down.
    pub(crate) fn fill(&self, sequence: Sequence, payload: &mut [u8]) {
        let mut word = self.first_word(sequence);
        let (words, rest) = payload.as_chunks_mut();
        for bytes in words {
            *bytes = word.to_le_bytes();
            word = next_word(word);
        }
        rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
    }

    /// Whether this is the payload of a frame.
    fn is(&self, sequence: Sequence, payload: &[u8]) -> bool {
        let mut word = self.first_word(sequence);
        let (words, rest) = payload.as_chunks();
        let mut differs = 0;
        for bytes in words {
            differs |= u64::from_le_bytes(*bytes) ^ word;
            word = next_word(word);
        }
        let is_rest = *rest == word.to_le_bytes()[..rest.len()];
        payload.len() == self.length(sequence) && differs == 0 && is_rest
    }

    fn first_word(&self, sequence: Sequence) -> u64 {
        mix(self.seed.wrapping_add(sequence.0))
    }
}

fn next_word(word: u64) -> u64 {
    word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1)
}

/// What is delivered of a direction, compared with what was sent.
#[derive(Debug)]
pub(crate) struct Checker {
    content: Content,
    frames: u64,
}

impl Checker {
    pub(crate) fn new(content: Content) -> Self {
        Self { content, frames: 0 }
    }

    /// Compares what was delivered with what was sent.
    ///
    /// # Errors
    /// Says where they differ.
    pub(crate) fn take(&mut self, sequence: Sequence, payload: &[u8]) -> Result<(), String> {
        if sequence.0 != self.frames {
            let frames = self.frames;
            return Err(format!("frame {sequence} delivered after {frames} frames"));
        }
        if self.is_complete() {
            return Err(format!("frame {sequence} delivered, and there is none"));
        }
        if !self.content.is(sequence, payload) {
            return Err(format!("frame {sequence} has foreign bytes"));
        }
        self.frames += 1;
        Ok(())
    }

    /// Frames delivered.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether everything was delivered.
    pub(crate) fn is_complete(&self) -> bool {
        self.frames == self.content.frames
    }
}

/// How often a stream goes round its ring.
pub const RING_LAPS: u64 = 3;
