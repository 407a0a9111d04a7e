//! What a backup reads from.
//!
//! A source gives entries in the order that trees need, opens files, and is told of everything that could not be kept.
//! It knows nothing of repositories.

use std::io::{self, Read};

use crate::archive::Compression;
use crate::node::{FileKind, Metadata};

/// The entries of a source, in order. An error is an entry that could not be read at all: it is counted, and the backup
/// goes on.
pub type Entries = Box<dyn Iterator<Item = Result<Entry, Warning>> + Send>;

/// Where a backup's files come from.
///
/// Order: depth first, a directory before what is in it, entries of a directory sorted by the bytes of their names;
/// which is the order of the paths compared component by component. Every entry comes once. An entry out of order ends
/// the backup. Paths are absolute, or relative without `.` and `..`.
///
/// The parents of what is backed up (`/srv`, when `/srv/data` is) should be given as directory entries of their own, so
/// that their metadata is kept; a parent that is not given appears with mode 0755 and nothing else. The format has no
/// place for the metadata of `/` itself: an entry for it is passed over.
///
/// All calls come from threads of the backup. `entries` is called once.
pub trait Source: Send + Sync + 'static {
    /// Counts what there is, for the progress display alone. Called on a thread of its own, beside a backup that is
    /// compared with nothing, which does not end before it returns: it has to, soon after `is_over` says so.
    fn count(&self, is_over: &dyn Fn() -> bool) {
        let _ = is_over;
    }

    /// Is told instead how many files and bytes the snapshot had that the backup is compared with.
    fn expect(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }

    /// Starts the walk.
    fn entries(&self) -> Entries;

    /// How the content of a file is to be compressed, where that isn't as for all others.
    fn compression(&self, path: &[u8]) -> Option<Compression> {
        let _ = path;
        None
    }

    /// Is told of each warning: what `entries` gave as errors, files that could not be opened or read to their end,
    /// metadata that the format can't carry, and what of the repository is damaged.
    fn warn(&self, warning: &Warning);

    /// What is known of the snapshot only now, after everything was read.
    fn closing(&self) -> Closing {
        Closing::default()
    }

    /// How many warnings about the source there were in all, which the snapshot will say. Called when everything was
    /// read; `told` is how often [`Source::warn`] was called, but for [`WarningKind::Repository`], and a source that
    /// found more by itself adds them.
    fn warnings(&self, told: u64) -> u64 {
        told
    }
}

/// What a source says of the snapshot at the end.
#[derive(Clone, Debug, Default)]
pub struct Closing {
    /// More tags.
    pub tags: Vec<String>,
    /// Another description than the one that was given at the beginning.
    pub description: Option<String>,
}

/// One file, directory or other thing to be backed up.
pub struct Entry {
    /// The whole path under which it appears in the snapshot.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Its metadata.
    pub meta: Metadata,
    /// How to read it; needed for regular files, ignored for all others.
    pub open: Option<Box<dyn OpenFile>>,
}

/// Opens a file once, when its turn to be read has come.
///
/// Closures of the same shape are implementations. The reader may return short reads. Of a file whose size in the
/// metadata is not zero, exactly that many bytes are read: what grows meanwhile is cut, what shrinks is warned of.
pub trait OpenFile: Send {
    /// Opens the file.
    ///
    /// # Errors
    /// When it can't be opened: it is then left out of the snapshot with a warning.
    fn open(self: Box<Self>) -> io::Result<Box<dyn Read + Send>>;
}

impl<F: FnOnce() -> io::Result<Box<dyn Read + Send>> + Send> OpenFile for F {
    fn open(self: Box<Self>) -> io::Result<Box<dyn Read + Send>> {
        self()
    }
}

/// Something that is not in the snapshot as it is on disk, or a part of the repository that is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The path concerned; of an object of the repository, the kind of objects that it belongs to.
    pub path: Vec<u8>,
    /// How much is missing.
    pub kind: WarningKind,
    /// Why, in words.
    pub reason: String,
}

/// How much a warning says is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WarningKind {
    /// The whole entry is missing from the snapshot.
    LeftOut,
    /// The entry is there, but some of its content or metadata is not as it is on disk.
    Incomplete,
    /// It is an object of the repository, and is damaged. The snapshot has everything all the same, and doesn't count
    /// it.
    Repository,
}
