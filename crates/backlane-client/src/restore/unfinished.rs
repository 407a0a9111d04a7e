//! Files that an interrupted restore has begun: the next one goes on with them.
//!
//! Invariants: what is gone on with is a file of ours alone, into which nobody else has ever been able to write. A piece
//! of it is kept only if its hash is right and its data and holes lie where they should; all else is as in a new file.

use super::{
    RestoreOptions,
    content::{READ_BYTES, is_piece},
    files::{Holes, PlannedFile},
};
use crate::fs::{
    Facts,
    extents::{self, Extent, Layout},
};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, fallocate, openat};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::fd::OwnedFd,
};

/// What a temporary file is made with. Others can't open it, and so it stays until it gets its metadata.
pub(crate) const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Whether a file with a temporary name can be one that an interrupted restore of this user has begun. Somebody else may
/// have put it there, and have it open still.
pub(crate) fn is_ours(facts: &Facts) -> bool {
    facts.file_type == FileType::RegularFile
        && facts.uid == rustix::process::geteuid().as_raw()
        && facts.mode == MODE.as_raw_mode()
        && facts.links == 1
}

/// Goes on with the file that was begun under the temporary name of `file`: tells of each piece whether it is there, and
/// clears the places of the others. `None` when nothing of it is of use.
pub(crate) fn go_on(
    dir: &OwnedFd,
    file: &PlannedFile,
    options: &RestoreOptions,
) -> io::Result<Option<Vec<bool>>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut begun: File = openat(dir, &file.temporary, flags, Mode::empty())?.into();
    if !is_ours(&Facts::of_open(&begun)?) {
        return Ok(None);
    }
    let there = right_pieces(&mut begun, file, options.holes)?;
    if !there.contains(&true) {
        return Ok(None);
    }
    if !options.dry_run {
        clear(&begun, file, &there)?;
    }
    Ok(Some(there))
}

fn right_pieces(begun: &mut File, file: &PlannedFile, holes: Holes) -> io::Result<Vec<bool>> {
    let whole = |size| Extent {
        start: 0,
        end: size,
    };
    let size = begun.metadata()?.len();
    let found = match extents::layout(&*begun, size)? {
        Layout::Dense => vec![whole(size)],
        Layout::Holes(found) => found,
        Layout::TooFragmented => return Ok(Vec::new()),
    };
    let wanted = match (&file.extents, holes) {
        (Some(wanted), _) => Some(wanted.clone()),
        (None, Holes::Recorded) => Some(vec![whole(file.size)]),
        // Holes are where zeros are.
        (None, Holes::Zeros) => None,
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut start = 0;
    let mut there = Vec::with_capacity(file.pieces.len());
    for piece in &file.pieces {
        let end = start + piece.length;
        let lies_right = wanted.as_ref().is_none_or(|wanted| {
            extents::within(&found, start, end).eq(extents::within(wanted, start, end))
        });
        there.push(
            lies_right && {
                begun.seek(SeekFrom::Start(start))?;
                is_piece(begun, piece, &mut buffer)?
            },
        );
        start = end;
    }
    Ok(there)
}

/// Makes the file as if only the pieces that are there had ever been written: holes are left where nothing is written.
fn clear(begun: &File, file: &PlannedFile, there: &[bool]) -> io::Result<()> {
    let (mut start, mut reached) = (0, 0);
    for (piece, there) in file.pieces.iter().zip(there) {
        if *there {
            // All between two pieces at once: a block that two pieces share would stay otherwise.
            if start > reached {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(begun, flags, reached, start - reached)?;
            }
            reached = start + piece.length;
        }
        start += piece.length;
    }
    begun.set_len(reached)?;
    begun.set_len(file.size)
}
