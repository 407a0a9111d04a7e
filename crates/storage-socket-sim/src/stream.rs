//! What a stream carries in a simulation: bytes that follow from connection, direction and place, so that the reader
//! can tell every wrong, missing or foreign byte without having seen the writer.

use crate::rng::mix;
use storage_socket_proto::{ConnectionId, Direction, Sequence};

/// Where the bytes of a direction come from.
#[derive(Debug)]
pub struct Source {
    seed: u64,
    at: u64,
    length: u64,
    payload_max: u64,
}

/// What they are compared with at the other side.
#[derive(Debug)]
pub struct Checker {
    seed: u64,
    at: u64,
    length: u64,
    frames: u64,
}

impl Source {
    /// The source of `length` bytes.
    #[must_use]
    pub fn new(connection: ConnectionId, direction: Direction, length: u64, most: u64) -> Self {
        Self {
            seed: seed(connection, direction),
            at: 0,
            length,
            payload_max: most.max(1),
        }
    }

    /// The next frame's payload, of a length that follows from its place.
    #[must_use]
    pub fn peek(&self) -> Option<Vec<u8>> {
        let rest = self.length - self.at;
        if rest == 0 {
            return None;
        }
        let wish = mix(self.seed ^ self.at) % self.payload_max + 1;
        let count = usize::try_from(wish.min(rest)).unwrap_or(1);
        Some(pattern(self.seed, self.at, count))
    }

    /// So many bytes were sent.
    pub fn take(&mut self, count: usize) {
        self.at += count as u64;
    }

    /// Whether everything was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.length
    }
}

impl Checker {
    /// The checker of a direction of `length` bytes.
    #[must_use]
    pub fn new(connection: ConnectionId, direction: Direction, length: u64) -> Self {
        Self {
            seed: seed(connection, direction),
            at: 0,
            length,
            frames: 0,
        }
    }

    /// Compares what was delivered with what was sent.
    ///
    /// # Errors
    /// Says where they differ.
    pub fn take(&mut self, sequence: Sequence, payload: &[u8]) -> Result<(), String> {
        if sequence.0 != self.frames {
            return Err(format!(
                "frame {sequence} delivered after {} frames",
                self.frames
            ));
        }
        if payload != pattern(self.seed, self.at, payload.len()) {
            return Err(format!(
                "frame {sequence} (byte {}) has foreign bytes",
                self.at
            ));
        }
        self.frames += 1;
        self.at += payload.len() as u64;
        if self.at > self.length {
            return Err(format!("{} bytes delivered of {}", self.at, self.length));
        }
        Ok(())
    }

    /// Bytes delivered.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Frames delivered.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether everything was delivered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.at == self.length
    }
}

fn seed(connection: ConnectionId, direction: Direction) -> u64 {
    let mut low = [0; 8];
    low.copy_from_slice(&connection.0[..8]);
    mix(u64::from_le_bytes(low) ^ (direction as u64 + 1))
}

fn pattern(seed: u64, at: u64, count: usize) -> Vec<u8> {
    (at..)
        .take(count)
        .map(|at| (mix(seed ^ (at / 8)) >> (8 * (at % 8))).to_le_bytes()[0])
        .collect()
}
