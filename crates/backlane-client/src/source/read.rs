//! Reads the content of a file that a walk found.
//!
//! Invariants: a reader yields exactly as many bytes as the file had when the walk found it, so that content and size
//! in the snapshot agree; whatever changed in between is a warning. Each read fills its buffer. What the system has in
//! memory of other files stays there, where the kernel can read around it.

use super::{Shared, examine::Directory};
use crate::{
    fs::{self, Facts, Identity, around},
    progress::WarningKind,
};
use backlane_repo::{OpenFile, Time};
use rustix::fs::FileType;
use std::{
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind, Read},
    path::PathBuf,
    sync::Arc,
};

/// The content of a file, not yet opened.
pub(crate) struct Pending {
    dir: Arc<Directory>,
    name: OsString,
    expected: Expected,
    shared: Arc<Shared>,
    opened: bool,
}

/// What the end of reading a file knows of it.
struct Content {
    path: PathBuf,
    expected: Expected,
    shared: Arc<Shared>,
}

/// What a file was when the walk found it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    identity: Identity,
    size: u64,
    mtime: Time,
}

/// The content of a file, open.
pub(crate) struct Reader {
    file: File,
    content: Content,
    /// How many bytes the reader still owes.
    remaining: u64,
    finished: bool,
}

impl Expected {
    pub(super) fn of(facts: &Facts) -> Self {
        Self {
            identity: facts.identity,
            size: facts.size,
            mtime: facts.mtime,
        }
    }
}

impl Content {
    fn warn(&self, what: impl Into<String>) {
        let reporter = &self.shared.reporter;
        reporter.warn(WarningKind::Incomplete, &self.path, what);
    }
}

impl Pending {
    /// The content of `name` in `dir`.
    pub(super) fn new(
        dir: Arc<Directory>,
        name: OsString,
        expected: Expected,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            dir,
            name,
            expected,
            shared,
            opened: false,
        }
    }

    fn open_reader(&mut self) -> io::Result<Reader> {
        self.opened = true;
        let content = Content {
            path: self.dir.path.join(&self.name),
            expected: self.expected,
            shared: Arc::clone(&self.shared),
        };
        content.shared.reporter.progress.current(&content.path);
        let file = fs::open_file(&*self.dir, &self.name)?;
        let facts = Facts::of_open(&file)?;
        if facts.file_type != FileType::RegularFile || facts.identity != content.expected.identity {
            return Err(io::Error::other("it was replaced before it was read"));
        }
        Ok(Reader {
            file: file.into(),
            remaining: content.expected.size,
            content,
            finished: false,
        })
    }
}

impl OpenFile for Pending {
    fn open(mut self: Box<Self>) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.open_reader()?))
    }
}

impl Drop for Pending {
    /// A file whose content is known from an earlier snapshot is never opened, and counts as done.
    fn drop(&mut self) {
        if !self.opened {
            let progress = &self.shared.reporter.progress;
            progress.advanced(1, self.expected.size);
        }
    }
}

impl Reader {
    /// After the last byte: was the file all the time what the walk found?
    fn finish(&mut self) -> io::Result<()> {
        self.finished = true;
        self.content.shared.reporter.progress.advanced(1, 0);
        let facts = Facts::of_open(&self.file)?;
        let expected = self.content.expected;
        if facts.size < expected.size {
            let what = format!(
                "shrank from {} to {} bytes while it was read; zeros stand for the rest",
                expected.size, facts.size
            );
            self.content.warn(what);
        } else if Expected::of(&facts) != expected {
            let what = "changed while it was read";
            self.content.warn(what);
        } else if expected.size == 0 && self.file.read(&mut [0])? > 0 {
            // Files of /proc and the like say that they are empty.
            let what = "yields content though its size is 0; it is kept as an empty file";
            self.content.warn(what);
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.content.shared.reporter.cancel.is_cancelled() {
            return Err(io::Error::other("the backup was cancelled"));
        }
        let room = u64::try_from(out.len()).unwrap_or(u64::MAX);
        let want = usize::try_from(self.remaining.min(room)).unwrap_or(out.len());
        let mut filled = 0;
        while filled < want {
            match around::read(&self.file, &mut out[filled..want]) {
                // It has become too short.
                Ok(0) => {
                    out[filled..want].fill(0);
                    filled = want;
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.remaining -= filled as u64;
        self.content
            .shared
            .reporter
            .progress
            .advanced(0, filled as u64);
        // With the last byte, because callers that know the size never ask for more.
        if self.remaining == 0 && !self.finished {
            self.finish()?;
        }
        Ok(filled)
    }
}
