//! A segment that is still being written, archived in pieces (`docs/design/wal.md` §7).
//!
//! Invariants: what is put together are pieces that follow each other from the segment's beginning on, with zeros behind
//! the last of them alone; a segment behind which more is archived is never taken for the last one.

use super::{
    file::first_page,
    spooler::{Archive, object, open},
};
use backlane_proto::{
    ByteRange, ObjectKind, WalFile, WalHeader, WalName,
    wal::{HEADER_BYTES, SegmentPlace},
};
use backlane_repo::ObjectStore;
use std::{fs::File, io, os::unix::fs::FileExt, thread};

/// How many pieces are read at the same time.
const AT_ONCE: usize = 8;

/// How much of a file is looked at in one go.
const LOOK_BYTES: usize = 1 << 20;

/// What the archive has of a segment in pieces, and around it.
#[derive(Default)]
pub(super) struct Around {
    /// It is there whole.
    pub(super) is_whole: bool,
    /// Offsets of its pieces, in their order.
    offsets: Vec<u32>,
    /// What is archived of the same timeline behind the segment.
    later: Option<WalName>,
}

/// Pieces that follow each other from the beginning on.
#[derive(Default)]
pub(super) struct Reached {
    pub(super) last: Option<WalName>,
    pub(super) end: u32,
    /// Why it isn't all of them.
    pub(super) broken: Option<String>,
}

impl Around {
    /// Reads it of a list of everything that is archived.
    pub(super) fn of(segment: WalName, archive: impl IntoIterator<Item = WalName>) -> Self {
        let mut around = Self::default();
        let WalFile::Segment(wanted) = segment.file else {
            return around;
        };
        for name in archive {
            if (name.system, name.timeline) != (segment.system, segment.timeline) {
                continue;
            }
            match name.file {
                WalFile::Segment(place) if place == wanted => around.is_whole = true,
                WalFile::Piece(place, offset) if place == wanted => around.offsets.push(offset),
                WalFile::Piece(place, _) | WalFile::Segment(place) if place > wanted => {
                    around.later = Some(name);
                }
                _ => {}
            }
        }
        around.offsets.sort_unstable();
        around
    }

    /// Asks the server.
    pub(super) fn read(store: &dyn ObjectStore, segment: WalName) -> Result<Self, String> {
        let listed = store.list(ObjectKind::Wal);
        let listed = listed.map_err(|error| error.to_string())?;
        let names = listed.iter().filter_map(|it| WalName::from_id(it.id));
        Ok(Self::of(segment, names))
    }

    /// Up to where its pieces come, by the lengths in their headers.
    pub(super) fn reach(
        &self,
        store: &dyn ObjectStore,
        segment: WalName,
    ) -> Result<Reached, String> {
        let mut reached = Reached::default();
        for offset in &self.offsets {
            let name = piece(segment, *offset)?;
            if let Err(why) = follows(reached.end, name) {
                reached.broken = Some(why);
                break;
            }
            reached.end = after(*offset, piece_bytes(store, name)?)?;
            reached.last = Some(name);
        }
        Ok(reached)
    }

    /// The same, where none is missing.
    pub(super) fn end(&self, store: &dyn ObjectStore, segment: WalName) -> Result<u32, String> {
        let reached = self.reach(store, segment)?;
        reached.broken.map_or(Ok(reached.end), Err)
    }

    /// The segment, with zeros behind its last piece; `None` where there is no piece of it.
    pub(super) fn segment(
        &self,
        archive: &Archive,
        segment: WalName,
    ) -> Result<Option<Vec<u8>>, String> {
        if let (Some(later), false) = (self.later, self.offsets.is_empty()) {
            return Err(format!(
                "only pieces of it are archived, although {} is: the whole segment is missing",
                later.file_name()
            ));
        }
        let read = |offset: u32| {
            let name = piece(segment, offset)?;
            let body = archive.store.read(object(name), None);
            let body = body.map_err(|error| error.to_string())?;
            Ok::<_, String>((offset, open(archive, name, &body)?))
        };
        let mut pieces = Vec::new();
        for some in self.offsets.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let reads: Vec<_> = some
                    .iter()
                    .map(|offset| scope.spawn(|| read(*offset)))
                    .collect();
                for read in reads {
                    let panicked = |_| Err("a read of a piece panicked".to_owned());
                    pieces.push(read.join().unwrap_or_else(panicked)?);
                }
                Ok::<_, String>(())
            })?;
        }
        assemble(segment, &pieces)
    }
}

/// The name of a piece of a segment.
pub(super) fn piece(segment: WalName, offset: u32) -> Result<WalName, String> {
    let WalFile::Segment(place) = segment.file else {
        return Err("only segments have pieces".to_owned());
    };
    Ok(WalName {
        file: WalFile::Piece(place, offset),
        ..segment
    })
}

/// How long a piece is, as its header says.
fn piece_bytes(store: &dyn ObjectStore, name: WalName) -> Result<u64, String> {
    let range = ByteRange {
        offset: 0,
        length: HEADER_BYTES as u64,
    };
    let header = store.read(object(name), Some(range));
    let header = header.map_err(|error| error.to_string())?;
    let header = WalHeader::decode(&header).map_err(|bad| format!("{name}: {bad}"))?;
    Ok(header.plain_bytes)
}

/// Whether a piece begins where the ones before it end.
fn follows(end: u32, piece: WalName) -> Result<(), String> {
    match piece.file {
        WalFile::Piece(_, offset) if offset == end => Ok(()),
        WalFile::Piece(_, offset) if offset > end => Err(format!(
            "a piece is missing: those before {} end at offset {end:08X}",
            piece.file_name()
        )),
        _ => Err(format!(
            "{} begins before the piece before it ends, at offset {end:08X}",
            piece.file_name()
        )),
    }
}

/// Where a piece ends.
fn after(offset: u32, bytes: u64) -> Result<u32, String> {
    let end = u64::from(offset).checked_add(bytes);
    let end = end.and_then(|end| u32::try_from(end).ok());
    end.ok_or_else(|| format!("a piece at offset {offset:08X} of {bytes} bytes is none"))
}

fn assemble(segment: WalName, pieces: &[(u32, Vec<u8>)]) -> Result<Option<Vec<u8>>, String> {
    let Some((_, first)) = pieces.first() else {
        return Ok(None);
    };
    let WalFile::Segment(place) = segment.file else {
        return Ok(None);
    };
    follows(0, piece(segment, pieces[0].0)?)?;
    let bytes = segment_bytes(segment.timeline, place, first)?;
    let mut whole = Vec::with_capacity(bytes);
    let mut end = 0;
    for (offset, content) in pieces {
        follows(end, piece(segment, *offset)?)?;
        whole.extend_from_slice(content);
        end = after(*offset, content.len() as u64)?;
    }
    if whole.len() > bytes {
        return Err(format!(
            "its pieces have {} bytes, and its segments have {bytes}",
            whole.len()
        ));
    }
    whole.resize(bytes, 0);
    Ok(Some(whole))
}

/// The size of the segment that begins so.
fn segment_bytes(timeline: u32, place: SegmentPlace, begin: &[u8]) -> Result<usize, String> {
    let page = first_page(begin).ok_or("its first piece does not begin as a segment does")?;
    let bytes = page.segment_bytes as usize;
    page.check(timeline, place, bytes)?;
    Ok(bytes)
}

/// Up to where a growing file was written, which is behind its last byte that isn't zero. It is written in order, so that
/// everything before that was there by now: what is read of it from here on is what stays.
///
/// # Errors
/// When it can't be read.
pub(super) fn written(file: &File, from: u32) -> io::Result<u32> {
    let from = u64::from(from);
    let mut end = file.metadata()?.len();
    let mut block = vec![0; LOOK_BYTES];
    while end > from {
        let begin = end.saturating_sub(LOOK_BYTES as u64).max(from);
        let length = usize::try_from(end - begin).expect("no more than a block");
        file.read_exact_at(&mut block[..length], begin)?;
        if let Some(last) = block[..length].iter().rposition(|byte| *byte != 0) {
            end = begin + last as u64 + 1;
            break;
        }
        end = begin;
    }
    u32::try_from(end.max(from)).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::file::tests::{SEGMENT_BYTES, SYSTEM, segment};
    use std::io::Write;

    fn name(file: &str) -> WalName {
        WalName::from_file_name(SYSTEM, file).unwrap()
    }

    const WHOLE: &str = "00000001000000000000000F";

    /// What comes of pieces from one offset to another each.
    fn assembled(ranges: &[(u32, u32)]) -> Result<Option<Vec<u8>>, String> {
        let whole = segment(1, 15, 7);
        let piece = |&(from, to): &(u32, u32)| (from, whole[from as usize..to as usize].to_vec());
        let pieces: Vec<_> = ranges.iter().map(piece).collect();
        assemble(name(WHOLE), &pieces)
    }

    #[test]
    fn pieces_that_follow_each_other_are_a_segment_with_zeros_behind() {
        let mut wanted = segment(1, 15, 7);
        wanted[5000..].fill(0);
        let got = assembled(&[(0, 100), (100, 4096), (4096, 5000)]).unwrap();
        assert!(got == Some(wanted), "another segment");
        let whole = assembled(&[(0, SEGMENT_BYTES)]).unwrap();
        assert!(whole == Some(segment(1, 15, 7)), "another segment");
        assert_eq!(assembled(&[]), Ok(None));
    }

    #[test]
    fn no_zeros_stand_for_a_piece_that_is_missing() {
        for (ranges, why) in [
            (&[(100, 5000)][..], "end at offset 00000000"),
            (&[(0, 100), (4096, 5000)], "end at offset 00000064"),
            (&[(0, 100), (50, 200)], "begins before"),
            (&[(0, 20), (20, 200)], "does not begin"),
        ] {
            let error = assembled(ranges).unwrap_err();
            assert!(error.contains(why), "{ranges:?}: {error}");
        }
        let pieces = [(0, segment(1, 15, 7)), (SEGMENT_BYTES, vec![1])];
        let error = assemble(name(WHOLE), &pieces).unwrap_err();
        assert!(error.contains("1048577 bytes"), "{error}");
        let error = assemble(name(WHOLE), &[(0, segment(1, 16, 7))]).unwrap_err();
        assert!(error.contains("its name says"), "{error}");
    }

    #[test]
    fn what_is_archived_behind_a_segment_on_its_timeline_is_seen() {
        let mine = [
            "00000001000000000000000F.00000064.piece",
            "00000001000000000000000F.00000000.piece",
            "00000001000000000000000E",
            "000000020000000000000010",
        ];
        let around = Around::of(name(WHOLE), mine.map(name));
        assert_eq!((around.offsets, around.later), (vec![0, 0x64], None));
        for later in [
            "000000010000000000000010",
            "000000010000000000000011.00000000.piece",
        ] {
            let around = Around::of(name(WHOLE), [name(later)]);
            assert_eq!(around.later, Some(name(later)));
        }
    }

    #[test]
    fn a_file_is_written_up_to_its_last_byte_that_is_not_zero() {
        let mut file = tempfile::tempfile().unwrap();
        let mut content = vec![0; 3 * LOOK_BYTES];
        for (at, from, end) in [
            (0, 0, 1),
            (5, 0, 6),
            (LOOK_BYTES - 1, 0, LOOK_BYTES),
            (LOOK_BYTES, 3, LOOK_BYTES + 1),
            (3 * LOOK_BYTES - 1, 7, 3 * LOOK_BYTES),
        ] {
            content[at] = 1;
            file.set_len(0).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file.write_all(&content).unwrap();
            assert_eq!(written(&file, from).unwrap() as usize, end);
        }
        content.fill(0);
        content[9] = 1;
        file.write_all_at(&content, 0).unwrap();
        // Nothing new.
        assert_eq!(written(&file, 10).unwrap(), 10);
    }
}
