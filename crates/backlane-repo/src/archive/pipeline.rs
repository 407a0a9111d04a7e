//! The pipeline: the walk on the caller's thread, everything else on as many threads as there are cores.
//!
//! The walk compares what it comes by with the parent, and hands in what has to be read. A thread that takes a file reads
//! it, cuts it, and hands in its pieces; one that takes a piece hashes it, and compresses and packs what isn't known. Who
//! finds a file or a directory whole carries on with the directory that it is in, up to the root.
//!
//! Invariants: an entry that the source gave is in its directory's list, or a warning names it; after the first error
//! nothing is begun any more; memory is bounded by the number of threads, whatever is backed up, but for the lists of
//! directories that are open and what is known of blobs.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::chunker::{BYTES_MIN, Cut, Gear};
use super::compress::Compressor;
use super::known::Known;
use super::node::{Draft, Leads};
use super::order::{Order, parts};
use super::pack::{Blob, Packer};
use super::pool::{Job, Pool};
use super::previous::{Previous, is_unchanged};
use super::read::{Buffer, Buffers, Content, STEP_BYTES};
use super::trees::{Before, Ended, Own, Place, Trees, Whole};
use super::{Cancel, DryRun};
use crate::error::RepoError;
use crate::index::{BlobId, BlobKind};
use crate::node::{FileKind, Metadata};
use crate::reader::Reader;
use crate::seal::sha256;
use crate::source::{Entry, OpenFile, Source, Warning, WarningKind};

/// What the directories above what is backed up are like where the source doesn't say.
const MODE_UNKNOWN: u32 = 0o755;

/// A backup under way.
pub(crate) struct Pipeline<'a> {
    source: &'a dyn Source,
    cancel: &'a Cancel,
    reader: &'a Reader,
    threads: usize,
    level: Option<i32>,
    gear: Gear,
    known: Known<'a>,
    trees: Trees,
    pool: Pool<Box<File>, Piece, Box<Whole>>,
    buffers: Buffers,
    pub(crate) packer: Packer<'a>,
    pub(crate) counts: Counts,
    warnings: AtomicU64,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    root: Option<BlobId>,
    error: Option<RepoError>,
}

/// What was counted.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) files: ByChange,
    pub(crate) directories: ByChange,
    /// Of all files.
    pub(crate) bytes: AtomicU64,
    /// Of all directories' lists.
    pub(crate) list_bytes: AtomicU64,
}

#[derive(Default)]
pub(crate) struct ByChange {
    pub(crate) new: AtomicU64,
    pub(crate) changed: AtomicU64,
    pub(crate) unmodified: AtomicU64,
}

impl ByChange {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        let counts = [&self.new, &self.changed, &self.unmodified];
        counts
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum()
    }
}

/// A file that has to be read.
struct File {
    path: Vec<u8>,
    open: Option<Box<dyn OpenFile>>,
    entry: Unread,
}

/// An entry whose content isn't known yet.
struct Unread {
    draft: Draft,
    place: Place,
    change: Change,
}

#[derive(Clone, Copy)]
enum Change {
    New,
    Changed,
    Unmodified,
}

/// A file of more than one piece.
struct Large(Mutex<LargeState>);

struct LargeState {
    /// What isn't known yet is `None`.
    content: Vec<Option<BlobId>>,
    unknown: usize,
    bytes: u64,
    reading: Reading,
    entry: Option<Unread>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    GoesOn,
    Ended,
    Failed,
}

/// A piece of a large file.
struct Piece {
    of: Arc<Large>,
    number: usize,
    buffer: Buffer,
}

/// A directory that the walk is in.
struct Open {
    /// Its path, without a slash at the beginning; nothing for the root.
    path: Vec<u8>,
    number: u64,
    previous: Previous,
}

/// What a pipeline needs to know.
pub(crate) struct Setting<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) cancel: &'a Cancel,
    pub(crate) reader: &'a Reader,
    pub(crate) threads: usize,
    pub(crate) level: Option<i32>,
    pub(crate) dry_run: DryRun,
    /// What follows from it where files are cut.
    pub(crate) secret: &'a [u8],
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(setting: &Setting<'a>) -> Self {
        let Setting {
            source,
            cancel,
            reader,
            threads,
            level,
            ..
        } = *setting;
        Self {
            source,
            cancel,
            reader,
            threads,
            level,
            gear: Gear::new(setting.secret),
            known: Known::new(reader),
            trees: Trees::new(level),
            pool: Pool::new(threads),
            buffers: Buffers::default(),
            packer: Packer::new(&reader.inner, threads, setting.dry_run),
            counts: Counts::default(),
            warnings: AtomicU64::new(0),
            outcome: Mutex::default(),
        }
    }

    /// Backs up everything that the source gives. The root of its trees, when all that it needs is on its way.
    pub(crate) fn run(&self, parent: Option<BlobId>) -> Result<BlobId, RepoError> {
        thread::scope(|scope| {
            for _ in 0..self.threads {
                let thread = thread::Builder::new().name("backup".to_owned());
                let spawned = thread.spawn_scoped(scope, || self.guard(|| self.work()));
                if let Err(error) = spawned {
                    self.fail(RepoError::Engine {
                        doing: "starting a thread",
                        what: error.to_string(),
                    });
                }
            }
            self.guard(|| self.walk(parent));
        });
        let outcome = mem::take(&mut *self.outcome());
        match outcome {
            Outcome {
                error: Some(error), ..
            } => Err(error),
            _ if self.cancel.is_cancelled() => {
                // What was read need not be read again.
                self.packer.finish()?;
                Err(RepoError::Cancelled)
            }
            Outcome {
                root: Some(root), ..
            } => {
                self.packer.finish()?;
                Ok(root)
            }
            // Only a failed write ends it without a word, and that is told by whoever asks next.
            _ => Err(RepoError::Cancelled),
        }
    }

    /// How many warnings were told.
    pub(crate) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a thread's work: what fails or panics in it ends the backup.
    fn guard(&self, work: impl FnOnce() -> Result<(), RepoError>) {
        let ended = catch_unwind(AssertUnwindSafe(work));
        let panicked = |panic: Box<dyn Any + Send>| {
            Err(RepoError::Engine {
                doing: "backing up",
                what: format!("panicked: {}", crate::engine::panic_text(panic.as_ref())),
            })
        };
        if let Err(error) = ended.unwrap_or_else(panicked) {
            self.fail(error);
        }
    }

    fn fail(&self, error: RepoError) {
        self.outcome().error.get_or_insert(error);
        self.pool.end();
    }

    fn must_end(&self) -> bool {
        let window = self.reader.inner.backend.window();
        self.cancel.is_cancelled() || window.failed() || self.pool.has_ended()
    }

    fn warn(&self, path: &[u8], kind: WarningKind, reason: String) {
        let path = path.to_vec();
        self.tell(&Warning { path, kind, reason });
    }

    fn tell(&self, warning: &Warning) {
        self.warnings.fetch_add(1, Ordering::AcqRel);
        self.source.warn(warning);
    }

    // The walk.

    fn walk(&self, parent: Option<BlobId>) -> Result<(), RepoError> {
        let before = parent.map_or(Before::NotThere, Before::Tree);
        let mut open = vec![self.enter(Vec::new(), None, before)?];
        let mut order = Order::default();
        for found in self.source.entries() {
            if self.must_end() {
                break;
            }
            let entry = match found {
                Ok(entry) => entry,
                Err(warning) => {
                    self.tell(&warning);
                    continue;
                }
            };
            if let Err(what) = order.admit(&entry) {
                let path = entry.path;
                return Err(RepoError::BadSource { path, what });
            }
            if entry.path != b"/" {
                self.trees.wait_for_room(|| self.must_end());
                self.visit(&mut open, entry)?;
            }
        }
        if self.must_end() {
            self.pool.end();
            return Ok(());
        }
        while let Some(last) = open.pop() {
            self.leave(&last);
        }
        Ok(())
    }

    /// Makes a directory the current one.
    fn enter(&self, path: Vec<u8>, own: Option<Own>, before: Before) -> Result<Open, RepoError> {
        let read = match before {
            Before::Tree(id) => Previous::read(self.reader, id)?,
            _ => None,
        };
        let before = match read {
            None if before != Before::NotThere => Before::Different,
            _ => before,
        };
        Ok(Open {
            path,
            number: self.trees.open(own, before),
            previous: read.unwrap_or_else(Previous::nothing),
        })
    }

    fn leave(&self, open: &Open) {
        if let Some(whole) = self.trees.close(open.number) {
            self.pool.push_tree(Box::new(whole));
        }
    }

    /// Puts an entry into its directory, which becomes the current one, or makes it that.
    fn visit(&self, open: &mut Vec<Open>, entry: Entry) -> Result<(), RepoError> {
        let relative = entry
            .path
            .strip_prefix(b"/")
            .unwrap_or(&entry.path)
            .to_vec();
        let relative = relative.as_slice();
        let depth = |open: &Vec<Open>| open.last().map_or(0, |last| last.path.len());
        while open.len() > 1
            && !open
                .last()
                .is_some_and(|last| is_below(relative, &last.path))
        {
            if let Some(last) = open.pop() {
                self.leave(&last);
            }
        }
        let skip = if open.len() > 1 { depth(open) + 1 } else { 0 };
        let mut names = parts(&relative[skip..]).peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return self.add(open, name.to_vec(), entry);
            }
            let meta = Metadata {
                mode: Some(MODE_UNKNOWN),
                ..Metadata::default()
            };
            let draft = Draft {
                name: name.to_vec(),
                kind: FileKind::Directory,
                meta,
            };
            self.add_directory(open, draft)?;
        }
        Ok(())
    }

    fn add_directory(&self, open: &mut Vec<Open>, draft: Draft) -> Result<(), RepoError> {
        let Some(above) = open.last_mut() else {
            return Ok(());
        };
        let before = match above.previous.take(&draft.name) {
            None => Before::NotThere,
            Some(node) => node.subtree.map_or(Before::Different, Before::Tree),
        };
        let mut path = above.path.clone();
        if open.len() > 1 {
            path.push(b'/');
        }
        path.extend_from_slice(&draft.name);
        let place = self
            .trees
            .place(open.last().map_or(0, |above| above.number));
        let own = Own { place, draft };
        open.push(self.enter(path, Some(own), before)?);
        Ok(())
    }

    fn add(&self, open: &mut Vec<Open>, name: Vec<u8>, entry: Entry) -> Result<(), RepoError> {
        let Entry {
            path,
            kind,
            meta,
            open: file,
        } = entry;
        let mut draft = Draft { name, kind, meta };
        for what in draft.purge() {
            self.warn(&path, WarningKind::Incomplete, what);
        }
        if draft.kind == FileKind::Directory {
            return self.add_directory(open, draft);
        }
        let Some(above) = open.last_mut() else {
            return Ok(());
        };
        let before = above.previous.take(&draft.name);
        let place = self.trees.place(above.number);
        let is_there = |id: &BlobId| self.known.was_there(BlobKind::Data, *id);
        let change = match &before {
            None => Change::New,
            Some(before)
                if is_unchanged(before, &draft.kind, &draft.meta)
                    && before.content.iter().all(is_there) =>
            {
                Change::Unmodified
            }
            Some(_) => Change::Changed,
        };
        if draft.kind == FileKind::File && !matches!(change, Change::Unmodified) {
            let entry = Unread {
                draft,
                place,
                change,
            };
            self.pool.push_file(Box::new(File {
                path,
                open: file,
                entry,
            }));
            return Ok(());
        }
        let content = before.map_or_else(Vec::new, |before| before.content);
        let leads = match draft.kind {
            FileKind::File => Leads::ToContent(&content),
            _ => Leads::Nowhere,
        };
        self.count(change, draft.meta.size);
        let whole = self.trees.fill(place, Some(draft.json(leads)?))?;
        debug_assert!(whole.is_none(), "the walk is still in it");
        Ok(())
    }

    fn count(&self, change: Change, bytes: u64) {
        let by = &self.counts.files;
        let count = match change {
            Change::New => &by.new,
            Change::Changed => &by.changed,
            Change::Unmodified => &by.unmodified,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    // The work.

    fn work(&self) -> Result<(), RepoError> {
        let mut compressor = Compressor::new(self.level)?;
        while let Some(job) = self.pool.take() {
            match job {
                Job::File(file) => self.read(&mut compressor, *file)?,
                Job::Piece(piece) => self.store_piece(&mut compressor, piece)?,
                Job::Tree(whole) => self.store_trees(&mut compressor, *whole)?,
            }
            // It may have been given up half-way, and be the last that there was: the others would wait for ever.
            if self.must_end() {
                self.pool.end();
            }
        }
        Ok(())
    }

    fn read(&self, compressor: &mut Compressor, file: File) -> Result<(), RepoError> {
        let File { path, open, entry } = file;
        let missing = || std::io::Error::other("the source gave no way to open it");
        let mut content = match open.ok_or_else(missing).and_then(OpenFile::open) {
            Ok(opened) => Content::new(opened, entry.draft.meta.size),
            Err(error) => {
                let reason = format!("can't be opened: {error}");
                self.warn(&path, WarningKind::LeftOut, reason);
                return self.finish(compressor, entry, None);
            }
        };
        let mut buffer = self.buffers.take();
        if !self.fill(&path, &mut content, &mut buffer, BYTES_MIN) {
            return self.finish(compressor, entry, None);
        }
        if !content.has_ended() {
            return self.read_large(compressor, (&path, entry), content, buffer);
        }
        drop(content);
        let bytes = buffer.filled().len() as u64;
        let mut ids = Vec::new();
        if bytes > 0 {
            ids.push(self.store(compressor, BlobKind::Data, buffer.filled())?);
        }
        self.buffers.give_back(buffer);
        self.finish(compressor, entry, Some((ids, bytes)))
    }

    /// Reads on. Whether that went well; otherwise the source was told.
    fn fill(&self, path: &[u8], content: &mut Content, buffer: &mut Buffer, more: usize) -> bool {
        match content.fill(buffer, more) {
            Ok(None) => true,
            Ok(Some(left)) => {
                let reason = format!("shrank by {left} bytes while it was read");
                self.warn(path, WarningKind::Incomplete, reason);
                true
            }
            Err(_) if self.must_end() => false,
            Err(error) => {
                let reason = format!("can't be read: {error}");
                self.warn(path, WarningKind::LeftOut, reason);
                false
            }
        }
    }

    fn read_large(
        &self,
        compressor: &mut Compressor,
        (path, entry): (&[u8], Unread),
        mut content: Content,
        mut buffer: Buffer,
    ) -> Result<(), RepoError> {
        let large = Arc::new(Large(Mutex::new(LargeState {
            content: Vec::new(),
            unknown: 0,
            bytes: 0,
            reading: Reading::GoesOn,
            entry: Some(entry),
        })));
        let mut cut = Cut::default();
        let reading = loop {
            if self.must_end() {
                return Ok(());
            }
            if let Some(size) = cut.find(&self.gear, buffer.filled()) {
                cut = Cut::default();
                let mut rest = self.buffers.take();
                buffer.split_into(size, &mut rest);
                let whole = mem::replace(&mut buffer, rest);
                self.hand_in(compressor, &large, whole)?;
            } else if content.has_ended() {
                break Reading::Ended;
            } else if !self.fill(path, &mut content, &mut buffer, STEP_BYTES) {
                break Reading::Failed;
            }
        };
        drop(content);
        match reading {
            Reading::Ended if !buffer.filled().is_empty() => {
                self.hand_in(compressor, &large, buffer)?;
            }
            _ => self.buffers.give_back(buffer),
        }
        let mut state = large.state();
        state.reading = reading;
        self.finish_large(compressor, state)
    }

    /// Hands in a piece, or stores it at once.
    fn hand_in(
        &self,
        compressor: &mut Compressor,
        large: &Arc<Large>,
        buffer: Buffer,
    ) -> Result<(), RepoError> {
        let mut state = large.state();
        let number = state.content.len();
        state.content.push(None);
        state.unknown += 1;
        state.bytes += buffer.filled().len() as u64;
        drop(state);
        let of = Arc::clone(large);
        match self.pool.offer(Piece { of, number, buffer }) {
            Ok(()) => Ok(()),
            Err(piece) => self.store_piece(compressor, piece),
        }
    }

    fn store_piece(&self, compressor: &mut Compressor, piece: Piece) -> Result<(), RepoError> {
        let id = self.store(compressor, BlobKind::Data, piece.buffer.filled())?;
        self.buffers.give_back(piece.buffer);
        let mut state = piece.of.state();
        state.content[piece.number] = Some(id);
        state.unknown -= 1;
        self.finish_large(compressor, state)
    }

    /// Ends a file, when all of it is known.
    fn finish_large(
        &self,
        compressor: &mut Compressor,
        mut state: MutexGuard<'_, LargeState>,
    ) -> Result<(), RepoError> {
        if state.reading == Reading::GoesOn || state.unknown > 0 {
            return Ok(());
        }
        let Some(entry) = state.entry.take() else {
            return Ok(());
        };
        let ids = mem::take(&mut state.content)
            .into_iter()
            .flatten()
            .collect();
        let content = (state.reading == Reading::Ended).then_some((ids, state.bytes));
        drop(state);
        self.finish(compressor, entry, content)
    }

    /// Puts an entry into its directory with its content, or drops it.
    fn finish(
        &self,
        compressor: &mut Compressor,
        entry: Unread,
        content: Option<(Vec<BlobId>, u64)>,
    ) -> Result<(), RepoError> {
        let Unread {
            mut draft,
            place,
            change,
        } = entry;
        let json = match content {
            None => None,
            Some((ids, bytes)) => {
                draft.meta.size = bytes;
                self.count(change, bytes);
                Some(draft.json(Leads::ToContent(&ids))?)
            }
        };
        match self.trees.fill(place, json)? {
            Some(whole) => self.store_trees(compressor, whole),
            None => Ok(()),
        }
    }

    /// Stores a directory, and those above that are whole with it.
    fn store_trees(&self, compressor: &mut Compressor, first: Whole) -> Result<(), RepoError> {
        let mut next = Some(first);
        while let Some(whole) = next.take() {
            let id = self.store_list(compressor, whole.list.end()?)?;
            let by = &self.counts.directories;
            let count = match whole.before {
                Before::NotThere => &by.new,
                Before::Tree(before) if before == id => &by.unmodified,
                _ => &by.changed,
            };
            count.fetch_add(1, Ordering::Relaxed);
            let Some(own) = whole.own else {
                self.outcome().root = Some(id);
                self.pool.end();
                return Ok(());
            };
            let json = own.draft.json(Leads::ToTree(id))?;
            next = self.trees.fill(own.place, Some(json))?;
        }
        Ok(())
    }

    fn store_list(&self, compressor: &mut Compressor, list: Ended) -> Result<BlobId, RepoError> {
        let kind = BlobKind::Tree;
        let (id, bytes) = match list {
            Ended::Small(json) => (self.store(compressor, kind, &json)?, json.len() as u64),
            Ended::Large {
                id,
                compressed,
                plain_length,
            } => {
                if self.known.claim(kind, id) {
                    self.packer.add(&Blob {
                        kind,
                        id,
                        stored: &compressed,
                        plain_length,
                        is_compressed: true,
                    })?;
                }
                (id, plain_length.into())
            }
        };
        self.counts.list_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(id)
    }

    /// Stores a blob, if it isn't known.
    fn store(
        &self,
        compressor: &mut Compressor,
        kind: BlobKind,
        plain: &[u8],
    ) -> Result<BlobId, RepoError> {
        let id = BlobId(sha256(plain));
        if self.known.claim(kind, id) {
            let plain_length = u32::try_from(plain.len());
            let (stored, is_compressed) = compressor.compress(plain)?;
            self.packer.add(&Blob {
                kind,
                id,
                stored,
                plain_length: plain_length.unwrap_or(u32::MAX),
                is_compressed,
            })?;
        }
        Ok(id)
    }
}

impl Large {
    fn state(&self) -> MutexGuard<'_, LargeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a path leads to something below a directory.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| rest.starts_with(b"/"))
}
