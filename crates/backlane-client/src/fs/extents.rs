//! Holes: which parts of a file hold data, asked of the file system, and their encoding in a snapshot.
//!
//! The encoding (docs/fidelity.md, "Holes"): a version byte 1, then for each extent, in order, the length of the hole
//! before it and its own length, as LEB128 numbers. What is not in an extent is a hole.

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{io, os::fd::AsFd};

/// How many extents a file may have for its holes to be recorded; a file that is more fragmented is kept without.
pub(crate) const EXTENTS_MAX: usize = 16 * 1024;

/// Version of the encoding.
const VERSION: u8 = 1;

/// A part of a file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its first byte.
    pub(crate) start: u64,
    /// The byte after its last.
    pub(crate) end: u64,
}

/// What the file system told of a file's holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// No hole, or a file system that knows none.
    Dense,
    /// The extents that hold data, in order and apart; all else is holes.
    Holes(Vec<Extent>),
    /// More than [`EXTENTS_MAX`] extents.
    TooFragmented,
}

/// Asks the file system for the holes of an open file of `size` bytes. Moves the file's position.
pub(crate) fn layout(file: impl AsFd, size: u64) -> io::Result<Layout> {
    let mut extents = Vec::new();
    let mut from = 0;
    while from < size {
        let start = match seek(&file, SeekFrom::Data(from)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Layout::Dense),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            // Cut off behind our back: the reader notices.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if extents.len() == EXTENTS_MAX {
            return Ok(Layout::TooFragmented);
        }
        extents.push(Extent { start, end });
        from = end;
    }
    let dense = matches!(extents[..], [Extent { start: 0, end }] if end == size) || size == 0;
    Ok(if dense {
        Layout::Dense
    } else {
        Layout::Holes(extents)
    })
}

/// The parts of extents, which are in order and apart, that lie between two bytes of the file.
pub(crate) fn within(extents: &[Extent], start: u64, end: u64) -> impl Iterator<Item = Extent> {
    let first = extents.partition_point(|extent| extent.end <= start);
    let there = extents[first..].iter().take_while(move |e| e.start < end);
    there.map(move |extent| Extent {
        start: extent.start.max(start),
        end: extent.end.min(end),
    })
}

/// Encodes extents which are in order and apart.
pub(crate) fn encode(extents: &[Extent]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let mut at = 0;
    for extent in extents {
        push_number(&mut bytes, extent.start - at);
        push_number(&mut bytes, extent.end - extent.start);
        at = extent.end;
    }
    bytes
}

/// Decodes extents; `None` when the bytes are none or reach past `size`.
pub(crate) fn decode(bytes: &[u8], size: u64) -> Option<Vec<Extent>> {
    let (&VERSION, mut rest) = bytes.split_first()? else {
        return None;
    };
    let mut extents = Vec::new();
    let mut at = 0u64;
    while !rest.is_empty() {
        let start = at.checked_add(take_number(&mut rest)?)?;
        let end = start.checked_add(take_number(&mut rest)?)?;
        if end > size || end == start || extents.len() == EXTENTS_MAX {
            return None;
        }
        extents.push(Extent { start, end });
        at = end;
    }
    Some(extents)
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use std::os::unix::fs::FileExt as _;

    proptest! {
        #[test]
        fn extents_survive_their_encoding(steps in proptest::collection::vec((0u64..1 << 40, 1u64..1 << 40), 0..50)) {
            let mut at = 0;
            let extents: Vec<_> = steps.iter().map(|(gap, length)| {
                let start = at + gap;
                at = start + length;
                Extent { start, end: at }
            }).collect();
            prop_assert_eq!(decode(&encode(&extents), at), Some(extents.clone()));
            if at > 0 {
                prop_assert_eq!(decode(&encode(&extents), at - 1).is_some(), extents.is_empty());
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), size in any::<u64>()) {
            if let Some(extents) = decode(&bytes, size) {
                let mut at = 0;
                for extent in extents {
                    assert!(at <= extent.start && extent.start < extent.end && extent.end <= size);
                    at = extent.end;
                }
            }
        }
    }

    #[test]
    fn extents_are_cut_to_what_lies_between_two_bytes() {
        let extent = |start, end| Extent { start, end };
        let extents = [extent(10, 20), extent(30, 40)];
        let cut = |start, end| within(&extents, start, end).collect::<Vec<_>>();
        assert_eq!(cut(0, 50), extents);
        assert_eq!(cut(15, 35), [extent(15, 20), extent(30, 35)]);
        assert_eq!(cut(12, 13), [extent(12, 13)]);
        assert_eq!(cut(20, 30), []);
        assert_eq!(cut(40, 50), []);
    }

    #[test]
    fn holes_are_told_from_written_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(layout(&file, 1 << 20).unwrap(), Layout::Holes(vec![]));
        file.write_all_at(&[0; 65536], 65536).unwrap();
        file.sync_all().unwrap();
        let extent = Extent {
            start: 65536,
            end: 131_072,
        };
        assert_eq!(layout(&file, 1 << 20).unwrap(), Layout::Holes(vec![extent]));
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        assert_eq!(layout(&file, 1 << 20).unwrap(), Layout::Dense);
    }
}
