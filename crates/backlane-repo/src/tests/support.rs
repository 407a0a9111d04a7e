//! Sources, and what jobs need around them.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use backlane_proto::ObjectKind;

use crate::testing::MemoryStore;
use crate::{
    ArchiveOptions, ArchiveSummary, Compression, Entries, Entry, FileKind, InitOptions, Metadata,
    Node, ObjectStore, Reader, RepoError, Repository, Source, Time, Visit, Warning,
};

pub(super) const PASSWORD: &str = "correct horse";

type MakeEntries = dyn Fn() -> Entries + Send + Sync;

/// A source that a test makes up.
pub(super) struct MadeUp {
    entries: Box<MakeEntries>,
    rule: fn(&[u8]) -> Option<Compression>,
    warnings: Mutex<Vec<Warning>>,
}

impl MadeUp {
    pub(super) fn new(
        entries: impl Fn() -> Vec<Result<Entry, Warning>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::streaming(move || Box::new(entries().into_iter()))
    }

    pub(super) fn streaming(entries: impl Fn() -> Entries + Send + Sync + 'static) -> Arc<Self> {
        Self::with_rule(entries, |_| None)
    }

    /// One that says of files how they are compressed.
    pub(super) fn with_rule(
        entries: impl Fn() -> Entries + Send + Sync + 'static,
        rule: fn(&[u8]) -> Option<Compression>,
    ) -> Arc<Self> {
        Arc::new(Self {
            entries: Box::new(entries),
            rule,
            warnings: Mutex::default(),
        })
    }

    pub(super) fn warnings(&self) -> Vec<Warning> {
        self.warnings.lock().unwrap().clone()
    }
}

impl Source for MadeUp {
    fn entries(&self) -> Entries {
        (self.entries)()
    }

    fn compression(&self, path: &[u8]) -> Option<Compression> {
        (self.rule)(path)
    }

    fn warn(&self, warning: &Warning) {
        self.warnings.lock().unwrap().push(warning.clone());
    }
}

pub(super) fn time(seconds: i64) -> Option<Time> {
    Some(Time {
        seconds,
        nanoseconds: 987_654_321,
    })
}

pub(super) fn meta() -> Metadata {
    Metadata {
        mode: Some(0o640),
        uid: Some(1),
        gid: Some(2),
        modified: time(1_600_000_000),
        accessed: time(1_600_000_001),
        changed: time(1_600_000_002),
        inode: 5,
        device: 6,
        links: 1,
        ..Metadata::default()
    }
}

pub(super) fn other(path: &[u8], kind: FileKind) -> Result<Entry, Warning> {
    Ok(Entry {
        path: path.to_vec(),
        kind,
        meta: meta(),
        open: None,
    })
}

pub(super) fn dir(path: &[u8]) -> Result<Entry, Warning> {
    other(path, FileKind::Directory)
}

pub(super) fn file(path: &[u8], content: Vec<u8>) -> Result<Entry, Warning> {
    let size = content.len() as u64;
    read_as(path, size, move || {
        Ok(Box::new(Trickle(io::Cursor::new(content))) as _)
    })
}

/// A file whose reading the test decides.
pub(super) fn read_as(
    path: &[u8],
    size: u64,
    open: impl FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'static,
) -> Result<Entry, Warning> {
    Ok(Entry {
        path: path.to_vec(),
        kind: FileKind::File,
        meta: Metadata { size, ..meta() },
        open: Some(Box::new(open)),
    })
}

/// Gives less than was asked for, as pipes do.
struct Trickle(io::Cursor<Vec<u8>>);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(70_001);
        self.0.read(&mut buffer[..most])
    }
}

/// Bytes that neither compress nor repeat.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[7]
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) fn memory_repository() -> (Arc<MemoryStore>, Repository) {
    let store = Arc::new(MemoryStore::default());
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let repository = Repository::init(shared, PASSWORD, &InitOptions::default()).unwrap();
    (store, repository)
}

pub(super) fn options() -> ArchiveOptions {
    ArchiveOptions {
        host: "here".to_owned(),
        paths: vec![b"/srv/data".to_vec()],
        ..ArchiveOptions::default()
    }
}

pub(super) fn back_up(repository: &Repository, source: Arc<MadeUp>) -> ArchiveSummary {
    repository.archive(&options(), source).unwrap()
}

/// Every path below a snapshot's root, with its node.
pub(super) fn nodes(reader: &Reader, summary: &ArchiveSummary) -> Vec<(Vec<u8>, Node)> {
    let mut found = Vec::new();
    let mut keep = |path: &[u8], node: &Node| {
        found.push((path.to_vec(), node.clone()));
        Visit::Continue
    };
    reader.walk(summary.tree, b"", &mut keep).unwrap();
    found
}

pub(super) fn content(reader: &Reader, node: &Node) -> Result<Vec<u8>, RepoError> {
    let mut bytes = Vec::new();
    reader.dump(node, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn snapshots(store: &MemoryStore) -> usize {
    store.count(ObjectKind::Snapshot)
}
