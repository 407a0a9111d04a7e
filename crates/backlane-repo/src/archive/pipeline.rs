//! The pipeline: the walk on the caller's thread, everything else on as many threads as there are cores.
//!
//! The walk compares what it comes by with the parent, and hands in what has to be read. A thread that takes a file reads
//! it, cuts it, and hands in its pieces; one that takes a piece hashes it, and compresses and packs what isn't known. Who
//! finds a file or a directory whole carries on with the directory that it is in, up to the root.
//!
//! Invariants: an entry that the source gave is in its directory's list, or a warning names it; after the first error
//! nothing is begun any more; memory is bounded by the number of threads, whatever is backed up, but for the lists of
//! directories that are open and what is known of blobs.

mod walk;
mod work;

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::chunker::Gear;
use super::known::Known;
use super::level::{Configured, Levels};
use super::node::Draft;
use super::pack::Packer;
use super::pool::Pool;
use super::read::Buffers;
use super::trees::{Place, Trees, Whole};
use super::{Cancel, Compression, DryRun, Signs};
use crate::error::RepoError;
use crate::index::BlobId;
use crate::reader::Reader;
use crate::source::{OpenFile, Source, Warning, WarningKind};
use work::Piece;

/// A backup under way.
pub(crate) struct Pipeline<'a> {
    source: &'a dyn Source,
    cancel: &'a Cancel,
    reader: &'a Reader,
    threads: usize,
    signs: Signs,
    levels: Levels,
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
    fn add(&self, change: Change) {
        let count = match change {
            Change::New => &self.new,
            Change::Changed => &self.changed,
            Change::Unmodified => &self.unmodified,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

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
    /// The source's rule for it.
    compression: Option<Compression>,
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

/// What a pipeline needs to know.
pub(crate) struct Setting<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) cancel: &'a Cancel,
    pub(crate) reader: &'a Reader,
    pub(crate) threads: usize,
    pub(crate) signs: Signs,
    pub(crate) configured: Configured,
    pub(crate) compression: Compression,
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
            signs,
            configured,
            compression,
            ..
        } = *setting;
        let levels = Levels::new(configured, compression, threads);
        Self {
            source,
            cancel,
            reader,
            threads,
            signs,
            gear: Gear::new(setting.secret),
            known: Known::new(reader),
            trees: Trees::new(levels.of_lists()),
            levels,
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

    /// Whether nothing is begun any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.pool.has_ended()
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
        self.cancel.is_cancelled() || window.failed() || self.has_ended()
    }

    fn warn(&self, path: &[u8], kind: WarningKind, reason: String) {
        let path = path.to_vec();
        self.tell(&Warning { path, kind, reason });
    }

    fn tell(&self, warning: &Warning) {
        self.warnings.fetch_add(1, Ordering::AcqRel);
        self.source.warn(warning);
    }

    fn count(&self, change: Change, bytes: u64) {
        self.counts.files.add(change);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
