//! What is right of a file that stands under the name of one that is to be restored.
//!
//! Invariants: it is never written into. A piece is given out as it was read and hashed, so that nothing which changes
//! there meanwhile gets into the new file.

use super::{
    content::Piece,
    files::{PlannedFile, open_regular},
};
use aws_lc_rs::digest::{SHA256, digest};
use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

/// How many pieces are looked at first.
const SAMPLES: usize = 8;

/// And how many of them have to be right.
const RIGHT_SAMPLES: usize = 2;

/// Pieces that are longer are fetched. Backlane makes none.
const PIECE_BYTES_MAX: u64 = 16 << 20;

/// A file that has something in common with the one that is wanted.
pub(crate) struct Standing {
    file: File,
    buffer: Vec<u8>,
}

impl Standing {
    /// Opens it. `None` where so little of it is right that reading it isn't worth it.
    pub(crate) fn open(dir: impl AsFd, file: &PlannedFile) -> io::Result<Option<Self>> {
        if file.pieces.len() < RIGHT_SAMPLES {
            return Ok(None);
        }
        let mut standing = Self {
            file: open_regular(dir, &file.name)?,
            buffer: Vec::new(),
        };
        let every = file.pieces.len().div_ceil(SAMPLES).max(1);
        let (mut start, mut right) = (0, 0);
        for (at, piece) in file.pieces.iter().enumerate() {
            if at % every == 0 {
                right += usize::from(standing.piece(piece, start).is_some());
            }
            start += piece.length;
        }
        Ok((right >= RIGHT_SAMPLES).then_some(standing))
    }

    /// The piece, if it is at its place. Whatever prevents reading it, it is fetched then.
    pub(crate) fn piece(&mut self, piece: &Piece, start: u64) -> Option<&[u8]> {
        let length = usize::try_from(piece.length.min(PIECE_BYTES_MAX + 1)).ok()?;
        if length as u64 != piece.length {
            return None;
        }
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let bytes = &mut self.buffer[..length];
        self.file.read_exact_at(bytes, start).ok()?;
        (digest(&SHA256, bytes).as_ref() == piece.id.0).then_some(bytes)
    }
}
