//! Whether a file on disk has the content that the snapshot says: every byte is read and hashed.

use crate::fs::extents::{self, Extent, Layout};
use aws_lc_rs::digest::{Context, SHA256};
use backlane_repo::BlobId;
use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek},
};

/// What one system call reads.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// A piece of a file: its hash and its length in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) id: BlobId,
    pub(crate) length: u64,
}

/// Whether the file consists of exactly these pieces. Reads from its beginning.
pub(crate) fn consists_of(file: &mut File, pieces: &[Piece]) -> io::Result<bool> {
    file.rewind()?;
    let mut buffer = vec![0; READ_BYTES];
    for piece in pieces {
        if !is_piece(file, piece, &mut buffer)? {
            return Ok(false);
        }
    }
    Ok(file.read(&mut buffer[..1])? == 0)
}

/// Whether the piece is what comes next in the file. Reads by way of the buffer.
pub(crate) fn is_piece(file: &mut File, piece: &Piece, buffer: &mut [u8]) -> io::Result<bool> {
    let mut hash = Context::new(&SHA256);
    let mut remaining = piece.length;
    while remaining > 0 {
        let room = usize::try_from(remaining).map_or(buffer.len(), |n| n.min(buffer.len()));
        match file.read(&mut buffer[..room]) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                hash.update(&buffer[..count]);
                remaining -= count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finish().as_ref() == piece.id.0)
}

/// Whether the file of `size` bytes has its holes where the snapshot has them.
pub(crate) fn has_holes(file: &File, size: u64, holes: Option<&[Extent]>) -> io::Result<bool> {
    Ok(match extents::layout(file, size)? {
        Layout::Dense => holes.is_none(),
        Layout::Holes(found) => holes == Some(&found),
        Layout::TooFragmented => false,
    })
}
