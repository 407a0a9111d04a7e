//! Regular files on their way to the target.
//!
//! Invariants: a file is written under a temporary name in its own directory, gets its metadata there, and is renamed
//! when its last byte is written: under its own name there is the old thing or the whole new one. What stood there
//! before is never written into, so that its other hard links, and programs that have it open, are not touched. At
//! most [`HANDLES_MAX`] are open, and those that get their metadata just then.
//!
//! The temporary name of a file is made from its own, so that the next run finds what an interrupted one has begun.

use super::{batch::Whole, content::Piece, metadata::Subject, places::Places, unfinished};
use crate::{
    fs::{self, Inode, around, extents::Extent},
    progress::Reporter,
    restore::places::PlaceId,
};
use aws_lc_rs::digest::{SHA256, digest};
use backlane_repo::{FileKind, Metadata};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// How many files are open for writing.
const HANDLES_MAX: usize = 128;

/// Runs of zeros become holes in units of this, if they do.
const ZERO_BLOCK_BYTES: usize = 4096;

/// Where a restored file gets holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holes {
    /// Where it had them, if the snapshot says so; only Backlane's do.
    #[default]
    Recorded,
    /// Also wherever a file whose holes are not recorded has aligned 4 KiB of zeros.
    Zeros,
}

/// A file that is to be restored.
pub(crate) struct PlannedFile {
    pub(crate) place: PlaceId,
    pub(crate) name: OsString,
    /// The name that it has until it is whole.
    pub(crate) temporary: OsString,
    /// Whether an interrupted run has left something under that name.
    pub(crate) begun: bool,
    /// Whether a regular file stands under its own name.
    pub(crate) stands: bool,
    /// Whether nothing does.
    pub(crate) is_free: bool,
    pub(crate) meta: Metadata,
    pub(crate) pieces: Vec<Piece>,
    /// The sum of its pieces.
    pub(crate) size: u64,
    /// Where it holds data, if it has holes.
    pub(crate) extents: Option<Vec<Extent>>,
    /// Pieces that are not written yet.
    pub(crate) remaining: AtomicUsize,
    pub(crate) state: Mutex<FileState>,
    /// Is set when it stands under its name, whole.
    pub(crate) whole: Whole,
}

/// How far a file is.
#[derive(Default)]
pub(crate) struct FileState {
    pub(crate) stage: Stage,
    /// Of each piece, whether the temporary file began with it; empty if with none.
    there: Vec<bool>,
    handle: Option<Arc<File>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// Nothing was done yet.
    #[default]
    Planned,
    /// There is a temporary file.
    Begun,
    /// It stood there already, whole.
    Kept,
    /// It stands under its name, with its metadata.
    Done,
    /// It can't be restored; a warning told why.
    Failed,
}

/// Makes names that nothing else has.
pub(crate) struct TemporaryNames {
    run: String,
    next: AtomicU64,
}

/// How temporary names begin.
const TEMPORARY_PREFIX: &str = ".backlane-";

impl TemporaryNames {
    pub(crate) fn new() -> io::Result<Self> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(io::Error::other)?;
        Ok(Self {
            run: hex::encode(run),
            next: AtomicU64::new(0),
        })
    }

    /// The one that a file of this name has, in every run.
    pub(crate) fn of(name: &OsStr) -> OsString {
        let hash = digest(&SHA256, name.as_bytes());
        format!("{TEMPORARY_PREFIX}{}", hex::encode(&hash.as_ref()[..16])).into()
    }

    /// A new one.
    pub(crate) fn next(&self) -> OsString {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{TEMPORARY_PREFIX}{}-{number}", self.run).into()
    }

    /// Whether an earlier run, which was interrupted, may have made this name.
    pub(crate) fn is_one(name: &OsStr) -> bool {
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(TEMPORARY_PREFIX)) else {
            return false;
        };
        let is_hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        match rest.split_once('-') {
            None => is_hex(rest, 32),
            Some((run, number)) => {
                let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
                is_hex(run, 16) && !number.is_empty() && is_number
            }
        }
    }
}

/// Writes files.
pub(crate) struct FileWriter<'a> {
    pub(crate) places: &'a Places,
    pub(crate) reporter: &'a Reporter,
    pub(crate) holes: Holes,
    /// Files whose handle is kept, the oldest first.
    pub(crate) open: Mutex<VecDeque<usize>>,
}

impl PlannedFile {
    pub(crate) fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self, places: &Places) -> PathBuf {
        places.path_of(self.place, &self.name)
    }

    /// Goes on with a temporary file that has these pieces.
    pub(crate) fn go_on(&self, there: Vec<bool>) {
        let missing = there.iter().filter(|there| !**there).count();
        self.remaining.store(missing, Ordering::Release);
        let mut state = self.state();
        state.stage = Stage::Begun;
        state.there = there;
    }

    /// Of each piece, whether the temporary file has it.
    pub(crate) fn there(&self) -> Vec<bool> {
        let mut there = self.state().there.clone();
        there.resize(self.pieces.len(), false);
        there
    }

    /// Its pieces that are still to be had, and where each belongs; none when it is done or has failed.
    pub(crate) fn wanted(&self) -> Vec<(Piece, u64)> {
        let state = self.state();
        if !matches!(state.stage, Stage::Planned | Stage::Begun) {
            return Vec::new();
        }
        let mut end = 0;
        let placed = self.pieces.iter().map(|piece| {
            end += piece.length;
            (*piece, end - piece.length)
        });
        let is_wanted = |(at, _): &(usize, _)| !state.there.get(*at).is_some_and(|there| *there);
        placed
            .enumerate()
            .filter(is_wanted)
            .map(|(_, it)| it)
            .collect()
    }

    /// Bytes that the temporary file began with.
    pub(crate) fn bytes_there(&self) -> u64 {
        let state = self.state();
        let pieces = self.pieces.iter().zip(&state.there);
        pieces
            .filter(|(_, there)| **there)
            .map(|(piece, _)| piece.length)
            .sum()
    }
}

impl FileWriter<'_> {
    /// Writes a piece of `files[index]`. A file that has failed is passed over.
    pub(crate) fn write(
        &self,
        files: &[PlannedFile],
        index: usize,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let Some(file) = self.handle(files, index)? else {
            return Ok(());
        };
        match &files[index].extents {
            Some(extents) => write_around_holes(&file, offset, bytes, extents),
            None if self.holes == Holes::Zeros => write_around_zeros(&file, offset, bytes),
            None => around::write_all_at(&file, bytes, offset),
        }
    }

    /// Gives a file that is written its metadata and its name.
    pub(crate) fn finish(&self, files: &[PlannedFile], index: usize) -> io::Result<()> {
        let Some(handle) = self.handle(files, index)? else {
            return Ok(());
        };
        let file = &files[index];
        let dir = self.places.handle(file.place)?;
        let mut state = file.state();
        Subject {
            inode: Inode::Open(handle.as_fd()),
            path: &file.path(self.places),
            reporter: self.reporter,
        }
        .apply(&FileKind::File, &file.meta);
        state.handle = None;
        drop(handle);
        fs::rename(&*dir, &file.temporary, &file.name, file.is_free)?;
        state.stage = Stage::Done;
        Ok(())
    }

    /// Gives a file up and removes what was written of it.
    pub(crate) fn abandon(&self, file: &PlannedFile) {
        let mut state = file.state();
        if state.stage == Stage::Begun {
            let removed = self
                .places
                .handle(file.place)
                .and_then(|dir| Ok(unlinkat(&*dir, &file.temporary, AtFlags::empty())?));
            if let Err(error) = removed {
                let name = file.temporary.display();
                tracing::warn!(%name, %error, "a temporary file stays behind");
            }
        }
        state.handle = None;
        if !matches!(state.stage, Stage::Done | Stage::Kept) {
            state.stage = Stage::Failed;
        }
    }

    /// The open file; `None` when it was given up.
    fn handle(&self, files: &[PlannedFile], index: usize) -> io::Result<Option<Arc<File>>> {
        let file = &files[index];
        let mut state = file.state();
        if state.stage == Stage::Failed {
            return Ok(None);
        }
        if let Some(handle) = &state.handle {
            return Ok(Some(Arc::clone(handle)));
        }
        let dir = self.places.handle(file.place)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle: Arc<File>;
        if state.stage == Stage::Begun {
            let opened = openat(&*dir, &file.temporary, flags, Mode::empty())?;
            handle = Arc::new(opened.into());
        } else {
            let flags = flags | OFlags::CREATE | OFlags::EXCL;
            let made = openat(&*dir, &file.temporary, flags, unfinished::MODE)?;
            state.stage = Stage::Begun;
            handle = Arc::new(made.into());
            // What ends in data gets its length by that.
            if file.pieces.len() > 1 || file.extents.is_some() || self.holes == Holes::Zeros {
                handle.set_len(file.size)?;
            }
        }
        state.handle = Some(Arc::clone(&handle));
        drop(state);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(index);
        let oldest = (open.len() > HANDLES_MAX)
            .then(|| open.pop_front())
            .flatten();
        drop(open);
        if let Some(oldest) = oldest.filter(|oldest| *oldest != index) {
            files[oldest].state().handle = None;
        }
        Ok(Some(handle))
    }
}

/// Opens `name` in `dir` for reading, if it is a regular file.
pub(crate) fn open_regular(dir: impl std::os::fd::AsFd, name: &OsStr) -> io::Result<File> {
    let file: File = fs::open_file(dir, name)?.into();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Leaves out what lies in a hole and is zero. Content wins: what is not zero is written even into a hole.
fn write_around_holes(
    file: &File,
    offset: u64,
    bytes: &[u8],
    extents: &[Extent],
) -> io::Result<()> {
    let end = offset + bytes.len() as u64;
    let first = extents.partition_point(|extent| extent.end <= offset);
    let mut at = offset;
    let mut write = |until: u64, is_hole: bool| -> io::Result<()> {
        let part = |position: u64| usize::try_from(position - offset).expect("within a slice");
        let piece = &bytes[part(at)..part(until)];
        if !(is_hole && is_zero(piece)) {
            around::write_all_at(file, piece, at)?;
        }
        at = until;
        Ok(())
    };
    for extent in extents[first..].iter().take_while(|e| e.start < end) {
        write(extent.start.max(offset), true)?;
        write(extent.end.min(end), false)?;
    }
    write(end, true)
}

/// Leaves out aligned blocks of zeros.
fn write_around_zeros(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let block = ZERO_BLOCK_BYTES as u64;
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let to_border = usize::try_from(block - at % block).expect("at most a block");
        let (piece, after) = rest.split_at(to_border.min(rest.len()));
        // A part of a block belongs to the piece before or behind too: only whole ones are known to be zero.
        if piece.len() < ZERO_BLOCK_BYTES || !is_zero(piece) {
            around::write_all_at(file, piece, at)?;
        }
        at += piece.len() as u64;
        rest = after;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // Word by word: the compiler makes vector code of it.
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::extents::{Layout, layout};
    use std::os::unix::fs::FileExt;

    fn written(len: u64, write: impl FnOnce(&File)) -> (Vec<u8>, Layout) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        write(&file);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (bytes, layout(&file, len).unwrap())
    }

    #[test]
    fn recorded_holes_come_back_and_content_in_them_wins() {
        let extent = |start, end| Extent { start, end };
        let extents = [extent(65_536, 131_072), extent(262_144, 327_680)];
        let mut content = vec![0; 400_000];
        content[70_000] = 1;
        content[390_000] = 2;
        let (bytes, found) = written(400_000, |file| {
            for (index, piece) in content.chunks(50_001).enumerate() {
                write_around_holes(file, index as u64 * 50_001, piece, &extents).unwrap();
            }
        });
        assert!(bytes == content);
        let Layout::Holes(found) = found else {
            panic!("{found:?}");
        };
        assert_eq!(found[..2], extents);
        assert!(found.len() == 3 && found[2].start <= 390_000);
    }

    #[test]
    fn zeros_become_holes_only_in_whole_blocks() {
        let mut content = vec![0; 100_000];
        content[50_000] = 1;
        let (bytes, found) = written(100_000, |file| {
            write_around_zeros(file, 0, &content).unwrap();
        });
        assert!(bytes == content);
        assert!(matches!(found, Layout::Holes(_)), "{found:?}");
        let (_, found) = written(4096, |file| {
            write_around_zeros(file, 0, &[0; 4000]).unwrap();
            write_around_zeros(file, 4000, &[0; 96]).unwrap();
        });
        assert_eq!(found, Layout::Dense);
    }

    #[test]
    fn temporary_names_are_told_from_others() {
        let names = TemporaryNames::new().unwrap();
        assert!(TemporaryNames::is_one(&names.next()));
        assert!(TemporaryNames::is_one(&TemporaryNames::of("a".as_ref())));
        for other in [
            ".backlane-",
            ".backlane-0123456789abcdef0123456789abcdeg",
            ".backlane-0123456789abcdef",
            ".backlane-0-0",
            ".backlane-0123456789abcdef-",
            ".backlane-x",
        ] {
            assert!(!TemporaryNames::is_one(other.as_ref()), "{other}");
        }
    }
}
