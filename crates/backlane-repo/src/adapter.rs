//! The engine's source over a [`Source`] of ours.
//!
//! The engine drops an entry that fails with no more than a line in a log. So everything that fails is counted here
//! before the engine sees it, and what the engine archived is compared with what it was given. The engine's reader grows
//! slow after a short read, so reads fill their buffer. A failed write or a cancellation ends the walk at once: the
//! engine itself would first read the whole source.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustic_core::{
    ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult,
};

use crate::archive::Cancel;
use crate::convert::node_to_engine;
use crate::error::RepoError;
use crate::node::{FileKind, name_is_plain};
use crate::source::{Closing, Entries, Entry, OpenFile, Source, Warning, WarningKind};
use crate::window::Window;

/// The source as the engine wants it.
pub(crate) struct Adapter {
    shared: Arc<Shared>,
}

/// What all parts of one backup's source share.
pub(crate) struct Shared {
    source: Arc<dyn Source>,
    window: Window,
    cancel: Cancel,
    counts: Counts,
    broken: Mutex<Option<RepoError>>,
}

#[derive(Default)]
struct Counts {
    given: AtomicU64,
    dropped: AtomicU64,
    warnings: AtomicU64,
}

impl Adapter {
    pub(crate) fn new(source: Arc<dyn Source>, window: Window, cancel: Cancel) -> Self {
        let shared = Shared {
            source,
            window,
            cancel,
            counts: Counts::default(),
            broken: Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What of this backup went wrong in the source.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    /// How many warnings there were.
    pub(crate) fn warnings(&self) -> u64 {
        let told = self.counts.warnings.load(Ordering::Acquire);
        self.source.warnings(told)
    }

    /// What the source says of the snapshot at the end.
    pub(crate) fn closing(&self) -> Closing {
        self.source.closing()
    }

    /// How many entries other than directories must be in the snapshot.
    pub(crate) fn expected(&self) -> u64 {
        let given = self.counts.given.load(Ordering::Acquire);
        given.saturating_sub(self.counts.dropped.load(Ordering::Acquire))
    }

    /// What ended the walk early, apart from a failed write.
    pub(crate) fn ended_early(&self) -> Option<RepoError> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let cancelled = || self.cancel.is_cancelled().then_some(RepoError::Cancelled);
        broken.take().or_else(cancelled)
    }

    fn must_end(&self) -> bool {
        self.cancel.is_cancelled() || self.window.failed()
    }

    fn warn(&self, warning: &Warning) {
        self.counts.warnings.fetch_add(1, Ordering::AcqRel);
        self.source.warn(warning);
    }

    fn warn_of(&self, path: &[u8], kind: WarningKind, reason: String) {
        let path = path.to_vec();
        self.warn(&Warning { path, kind, reason });
    }

    fn drop_entry(&self, path: &[u8], reason: String) {
        self.counts.dropped.fetch_add(1, Ordering::AcqRel);
        self.warn_of(path, WarningKind::LeftOut, reason);
    }
}

impl ReadSource for Adapter {
    type Open = Opener;
    type Iter = Walk;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(self.shared.source.bytes_total())
    }

    fn entries(&self) -> Walk {
        Walk {
            entries: self.shared.source.entries(),
            order: Order::default(),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The engine's walk.
pub(crate) struct Walk {
    entries: Entries,
    order: Order,
    shared: Arc<Shared>,
}

impl Iterator for Walk {
    type Item = RusticResult<ReadSourceEntry<Opener>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.shared.must_end() {
                return None;
            }
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(warning) => {
                    self.shared.warn(&warning);
                    continue;
                }
            };
            if let Err(what) = self.order.admit(&entry) {
                let path = entry.path;
                let mut broken = self
                    .shared
                    .broken
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                broken.get_or_insert(RepoError::BadSource { path, what });
                return None;
            }
            if entry.path == b"/" {
                continue;
            }
            return Some(Ok(self.converted(entry)));
        }
    }
}

impl Walk {
    fn converted(&self, entry: Entry) -> ReadSourceEntry<Opener> {
        let name = OsStr::from_bytes(parts(&entry.path).last().unwrap_or_default());
        let (node, lost) = node_to_engine(name, &entry.kind, &entry.meta);
        for what in lost {
            self.shared
                .warn_of(&entry.path, WarningKind::Incomplete, what);
        }
        if entry.kind != FileKind::Directory {
            self.shared.counts.given.fetch_add(1, Ordering::AcqRel);
        }
        let open = (entry.kind == FileKind::File).then(|| Opener {
            file: entry.open,
            path: entry.path.clone(),
            size: entry.meta.size,
            shared: Arc::clone(&self.shared),
        });
        let path = PathBuf::from(std::ffi::OsString::from_vec(entry.path));
        ReadSourceEntry { path, node, open }
    }
}

/// Checks that the entries come as trees need them.
#[derive(Default)]
struct Order {
    last: Vec<u8>,
    last_was_directory: bool,
}

impl Order {
    fn admit(&mut self, entry: &Entry) -> Result<(), &'static str> {
        if matches!(entry.kind, FileKind::Unknown { .. }) {
            return Err("which is of no kind that the format has");
        }
        let directory = entry.kind == FileKind::Directory;
        let path = entry.path.as_slice();
        if path == b"/" {
            return if directory && self.last.is_empty() {
                Ok(())
            } else {
                Err("which is no directory, or not first")
            };
        }
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        if !parts(relative).all(name_is_plain) {
            return Err("which is not a plain path");
        }
        if !self.last.is_empty() {
            if parts(path).le(parts(&self.last)) {
                return Err("out of order");
            }
            let below = path.strip_prefix(self.last.as_slice());
            if !self.last_was_directory && below.is_some_and(|rest| rest.starts_with(b"/")) {
                return Err("below something that is no directory");
            }
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        self.last_was_directory = directory;
        Ok(())
    }
}

/// Opens one file for the engine.
pub(crate) struct Opener {
    file: Option<Box<dyn OpenFile>>,
    path: Vec<u8>,
    size: u64,
    shared: Arc<Shared>,
}

impl ReadSourceOpen for Opener {
    type Reader = FullReader;

    fn open(self) -> RusticResult<FullReader> {
        if self.shared.must_end() {
            return Err(ending());
        }
        let missing = || io::Error::other("the source gave no way to open it");
        let opened = self.file.ok_or_else(missing).and_then(OpenFile::open);
        match opened {
            Ok(file) => Ok(FullReader {
                file,
                left: (self.size > 0).then_some(self.size),
                path: self.path,
                shared: self.shared,
            }),
            Err(error) => {
                let reason = format!("can't be opened: {error}");
                self.shared.drop_entry(&self.path, reason.clone());
                Err(RusticError::new(ErrorKind::InputOutput, reason))
            }
        }
    }
}

/// Reads a file so that every read fills its buffer until the end.
pub(crate) struct FullReader {
    file: Box<dyn Read + Send>,
    /// How much of the announced size is left; `None` when none was announced.
    left: Option<u64>,
    path: Vec<u8>,
    shared: Arc<Shared>,
}

impl Read for FullReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.shared.must_end() {
            // Not `Interrupted`, which is tried again.
            return Err(io::Error::other(ending()));
        }
        let left = self.left.unwrap_or(u64::MAX);
        let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let mut got = 0;
        while got < want {
            match self.file.read(&mut buffer[got..want]) {
                Ok(0) => break,
                Ok(bytes) => got += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = format!("can't be read: {error}");
                    self.shared.drop_entry(&self.path, reason);
                    return Err(error);
                }
            }
        }
        self.count(got, want);
        Ok(got)
    }
}

impl FullReader {
    fn count(&mut self, got: usize, want: usize) {
        let Some(left) = &mut self.left else { return };
        *left -= got as u64;
        if got < want {
            let reason = format!("shrank by {left} bytes while it was read");
            self.shared
                .warn_of(&self.path, WarningKind::Incomplete, reason);
            // What follows is the end, and was told.
            *left = 0;
        }
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

fn ending() -> Box<RusticError> {
    RusticError::new(ErrorKind::InputOutput, "the backup is ending early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Metadata;
    use crate::store::ObjectStore;
    use crate::testing::MemoryStore;
    use crate::window::WindowLimits;

    fn entry(path: &str, kind: FileKind) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            meta: Metadata::default(),
            open: None,
        }
    }

    fn order(paths: &[&str]) -> Result<(), &'static str> {
        let mut order = Order::default();
        paths.iter().try_for_each(|path| {
            let kind = if let Some(name) = path.strip_suffix('*') {
                return order.admit(&entry(name, FileKind::File));
            } else {
                FileKind::Directory
            };
            order.admit(&entry(path, kind))
        })
    }

    struct Silent;

    impl Source for Silent {
        fn entries(&self) -> Entries {
            Box::new(std::iter::empty())
        }

        fn warn(&self, _warning: &Warning) {}
    }

    /// Gives one byte at a time, and is interrupted before each.
    struct Slow(u8, bool);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.0 += 1;
            buffer[0] = self.0;
            Ok(1)
        }
    }

    #[test]
    fn every_read_fills_its_buffer_up_to_the_announced_size() {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::default());
        let limits = WindowLimits { packs: 1, bytes: 1 };
        let window = Window::new(store, limits);
        let adapter = Adapter::new(Arc::new(Silent), window, Cancel::default());
        let mut reader = FullReader {
            file: Box::new(Slow(0, false)),
            left: Some(7),
            path: Vec::new(),
            shared: Arc::clone(&adapter.shared),
        };
        let mut buffer = [0; 4];
        assert_eq!(reader.read(&mut buffer).unwrap(), 4);
        assert_eq!(buffer, [1, 2, 3, 4]);
        assert_eq!(reader.read(&mut buffer).unwrap(), 3);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        assert_eq!(adapter.shared().warnings(), 0);
    }

    #[test]
    fn only_the_order_of_trees_is_admitted() {
        for good in [
            &["/", "/a", "/a/b", "/a/b/c*", "/a/c*", "/a.b*", "/b"][..],
            &["a", "a/b*", "b"],
            // By names, component by component: not by the bytes of the whole path.
            &["/a", "/a/z*", "/a b", "/a!"],
        ] {
            assert_eq!(order(good), Ok(()), "{good:?}");
        }
        for bad in [
            &["/b", "/a"][..],
            &["/a", "/a"],
            &["/a!", "/a/z*"],
            &["/a/b", "/a"],
            &["/a", "/"],
            &["/a*", "/a/b*"],
            &["/a/../b"],
            &["/a/"],
            &["."],
            &[""],
        ] {
            assert!(order(bad).is_err(), "{bad:?}");
        }
    }
}
