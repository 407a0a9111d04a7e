//! Backup: from a source to a snapshot.
//!
//! ```text
//! walk ─► compare with parent ─► read ─► cut ─► hash ─► known? ─► compress ─► seal ─► pack ─► window
//! ```
//!
//! The snapshot is written when the source has come to its end, everything is durable that it refers to, and nothing
//! failed. It then says how many warnings there were.

pub(crate) mod chunker;
pub(crate) mod compress;
mod known;
mod level;
mod list;
pub(crate) mod node;
mod order;
mod pack;
mod pipeline;
mod pool;
mod previous;
mod read;
mod trees;

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use backlane_proto::{ObjectId, ObjectKind};
pub use level::Compression;
use level::Configured;
use pipeline::{Pipeline, Setting};
use rustic_core::repofile::{SnapshotFile, SnapshotId, SnapshotSummary};
use rustic_core::{Id, SnapshotOptions, TreeId};
use serde::Serialize;

use crate::engine;
use crate::error::RepoError;
use crate::index::BlobId;
use crate::reader::Reader;
use crate::repository::{Inner, Repository, name};
use crate::resume::Continued;
use crate::seal::sha256;
use crate::snapshot::{EXTRA_FIELD, Extra, SnapshotInfo, as_optional_text, as_text};
use crate::source::{Source, Warning, WarningKind};

/// What a backup is to be called, and what it is compared with.
#[derive(Clone, Debug, Default)]
pub struct ArchiveOptions {
    /// The host that the files are of.
    pub host: String,
    /// What is backed up, for display and for finding the parent. Bytes that aren't UTF-8 are replaced.
    pub paths: Vec<Vec<u8>>,
    /// The snapshot's time; now when `None`.
    pub time: Option<SystemTime>,
    /// Its tags.
    pub tags: Vec<String>,
    /// What to say of it.
    pub description: Option<String>,
    /// The command, for the record; it must hold no secret.
    pub command: String,
    /// What to compare with.
    pub parent: Parent,
    /// Whether to write at all.
    pub dry_run: DryRun,
    /// What tells that a file has changed.
    pub signs: Signs,
    /// How contents are compressed, where the source has no rule for a file.
    pub compression: Compression,
    /// On how many threads it works; as many as there are cores when `None`.
    pub threads: Option<NonZero<usize>>,
    /// What the process may take of memory, apart from what is known of blobs: it works on no more threads than this
    /// suffices for, but on one. Less than [`MEMORY_BYTES_MIN`] can't be kept to.
    pub memory_bytes: Option<u64>,
    /// Ends the backup early.
    pub cancel: Cancel,
}

/// What a process takes that backs up on one thread, at most: see the table in docs/design/backup.md.
pub const MEMORY_BYTES_MIN: u64 = 224 << 20;

/// What it takes for another thread: four buffers of 8 MiB for pieces, and two packs of twice that.
const THREAD_MEMORY_BYTES: u64 = 4 * (8 << 20) + 2 * (16 << 20);

impl ArchiveOptions {
    fn threads(&self) -> usize {
        let threads = self.threads.map_or_else(cores, NonZero::get);
        let more = |memory: u64| memory.saturating_sub(MEMORY_BYTES_MIN) / THREAD_MEMORY_BYTES;
        let most = self.memory_bytes.map(more).unwrap_or(u64::MAX);
        threads.min(
            usize::try_from(most)
                .unwrap_or(usize::MAX)
                .saturating_add(1),
        )
    }
}

/// The snapshot that a backup is compared with: a file whose size, times and inode are alike is not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Parent {
    /// The newest one of the same host and paths.
    #[default]
    Newest,
    /// None: every file is read.
    None,
    /// This one.
    Snapshot(ObjectId),
}

/// What tells that a file has changed, beside its kind, its size and its time of modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    /// The time of change (ctime), which a program can't set back. On some file systems it changes by itself.
    pub ctime: bool,
    /// The inode, which a file that was replaced by another has anew. On some network file systems it changes by itself.
    pub inode: bool,
}

impl Default for Signs {
    fn default() -> Self {
        Self {
            ctime: true,
            inode: true,
        }
    }
}

/// Whether a call only says what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DryRun {
    /// Do it.
    #[default]
    No,
    /// Only say it.
    Yes,
}

/// Ends a backup early, from any thread. Clones are one switch.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    above: Option<Box<Self>>,
}

impl Cancel {
    /// Ends it. There is no way back.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Release);
    }

    /// A switch for a part of the work: this one ends it as well, and it ends nothing but the part.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            own: Arc::default(),
            above: Some(Box::new(self.clone())),
        }
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let above = self.above.as_ref();
        self.own.load(Ordering::Acquire) || above.is_some_and(|above| above.is_cancelled())
    }
}

/// What a backup did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArchiveSummary {
    /// The snapshot; `None` in a dry run.
    #[serde(serialize_with = "as_optional_text")]
    pub snapshot: Option<ObjectId>,
    /// The snapshot that it was compared with.
    #[serde(serialize_with = "as_optional_text")]
    pub parent: Option<ObjectId>,
    /// The root of its trees.
    #[serde(serialize_with = "as_text")]
    pub tree: BlobId,
    /// Files that the parent didn't have; what is no directory counts as a file here.
    pub files_new: u64,
    /// Files that the parent had differently.
    pub files_changed: u64,
    /// Files that the parent had alike.
    pub files_unmodified: u64,
    /// Directories that the parent didn't have.
    pub dirs_new: u64,
    /// Directories that the parent had differently.
    pub dirs_changed: u64,
    /// Directories that the parent had alike.
    pub dirs_unmodified: u64,
    /// Bytes of all files.
    pub bytes_processed: u64,
    /// Plain bytes that were new to the repository.
    pub bytes_added: u64,
    /// The same, compressed and sealed.
    pub bytes_packed: u64,
    /// Packs that were in no index, as an interrupted backup leaves them, and are used now.
    pub packs_continued: u64,
    /// Their bytes.
    pub bytes_continued: u64,
    /// Packs that the index names and that are not there.
    pub packs_missing: u64,
    /// Blobs that were in these packs alone.
    pub blobs_missing: u64,
    /// How many of them this backup has stored again.
    pub blobs_stored_again: u64,
    /// How many warnings about the source there were.
    pub warnings: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Repository {
    /// Backs up a source. Blocks until the snapshot is durable.
    ///
    /// What could not be read is told to the source and counted; it is no error. What an earlier backup had stored before
    /// it ended early, however it ended, is used and not stored again. Objects of the index that are damaged, and packs
    /// in no index that can't be used, are told to the source as well. What was in packs that are no longer there is
    /// stored again, as far as it is in the source.
    ///
    /// # Errors
    /// [`RepoError::Cancelled`]; [`RepoError::WriteFailed`] soon after the first failed write;
    /// [`RepoError::BadSource`]; or what the store reports. There is no snapshot then.
    pub fn archive(
        &self,
        options: &ArchiveOptions,
        source: Arc<dyn Source>,
    ) -> Result<ArchiveSummary, RepoError> {
        let began = Instant::now();
        let inner = &self.inner;
        let packs = inner.packs()?;
        let continued = match options.dry_run {
            DryRun::Yes => Continued::default(),
            DryRun::No => inner.continue_interrupted(&packs, source.as_ref(), &options.cancel)?,
        };
        let missing = inner.missing(packs.not_listed)?;
        let (mut index, damage) = inner.index()?;
        index.leave_out(|pack| missing.has(pack));
        for error in &damage {
            source.warn(&Warning {
                path: b"index".to_vec(),
                kind: WarningKind::Repository,
                reason: format!(
                    "{error}; what only it knows is read from the packs, or stored again"
                ),
            });
        }
        let mut file = inner.prepare(options)?;
        let parent = inner.parent(options)?;
        let reader = Reader::new(Arc::clone(inner), index, damage);
        let pipeline = Pipeline::new(&Setting {
            source: source.as_ref(),
            cancel: &options.cancel,
            reader: &reader,
            threads: options.threads(),
            signs: options.signs,
            configured: inner.configured(),
            compression: options.compression,
            dry_run: options.dry_run,
            secret: inner.config.chunker_polynomial.as_bytes(),
        });
        let root = thread::scope(|scope| {
            scope.spawn(|| {
                let is_over = || pipeline.has_ended();
                let expect = || expect(source.as_ref(), parent.as_ref(), &is_over);
                // It serves the progress display alone.
                drop(catch_unwind(AssertUnwindSafe(expect)));
            });
            pipeline.run(parent.as_ref().map(|parent| parent.tree))
        });
        // After a failed write, that is what is reported, whatever else went wrong by it.
        if let Some(cause) = inner.backend.window().first_error() {
            return Err(RepoError::WriteFailed { cause });
        }
        let tree = root?;
        let closing = source.closing();
        for tag in closing.tags {
            file.tags.add(tag);
        }
        file.description = closing.description.or(file.description);
        file.tree = TreeId::from(Id::new(tree.0));
        file.parent = parent
            .as_ref()
            .map(|parent| SnapshotId::from(Id::new(parent.id.0)));
        let stats = pipeline.summary(&file, began);
        let warnings = source.warnings(pipeline.warnings());
        file.summary = Some(stats.clone());
        let snapshot = match options.dry_run {
            DryRun::Yes => None,
            DryRun::No => Some(inner.save_snapshot(&mut file, warnings)?),
        };
        Ok(ArchiveSummary {
            snapshot,
            parent: parent.map(|parent| parent.id),
            tree,
            files_new: stats.files_new,
            files_changed: stats.files_changed,
            files_unmodified: stats.files_unmodified,
            dirs_new: stats.dirs_new,
            dirs_changed: stats.dirs_changed,
            dirs_unmodified: stats.dirs_unmodified,
            bytes_processed: stats.total_bytes_processed,
            bytes_added: stats.data_added,
            bytes_packed: stats.data_added_packed,
            packs_continued: continued.packs,
            bytes_continued: continued.bytes,
            packs_missing: missing.packs(),
            blobs_missing: missing.blobs(),
            blobs_stored_again: inner.found_again(&missing)?,
            warnings,
            seconds: stats.backup_duration,
        })
    }
}

impl Inner {
    /// The snapshot as it is before the backup.
    fn prepare(&self, options: &ArchiveOptions) -> Result<SnapshotFile, RepoError> {
        let time = match options.time {
            None => jiff::Zoned::now(),
            Some(time) => jiff::Timestamp::try_from(time)
                .map_err(|_| RepoError::OutOfRange {
                    what: "the snapshot's time",
                })?
                .to_zoned(jiff::tz::TimeZone::system()),
        };
        let snapshot_options = SnapshotOptions::default()
            .host(options.host.clone())
            .time(time)
            .command(options.command.clone());
        let mut snapshot =
            engine::caught("making the snapshot", || snapshot_options.to_snapshot())?;
        snapshot.description.clone_from(&options.description);
        snapshot.program_version = concat!("backlane ", env!("CARGO_PKG_VERSION")).to_owned();
        for tag in &options.tags {
            snapshot.tags.add(tag.clone());
        }
        for path in lossy(&options.paths) {
            snapshot.paths.add(path);
        }
        Ok(snapshot)
    }

    /// The snapshot to compare with.
    fn parent(&self, options: &ArchiveOptions) -> Result<Option<SnapshotInfo>, RepoError> {
        let id = match options.parent {
            Parent::None => None,
            Parent::Snapshot(id) => Some(id),
            Parent::Newest => self.newest_alike(options)?,
        };
        id.map(|id| Ok(self.snapshot(id)?.info())).transpose()
    }

    /// What the config says of compression.
    fn configured(&self) -> Configured {
        match (self.config.version, self.config.compression) {
            (1, _) => Configured::Impossible,
            (_, None) => Configured::Nothing,
            (_, Some(0)) => Configured::Off,
            (_, Some(level)) => Configured::Level(level),
        }
    }

    fn newest_alike(&self, options: &ArchiveOptions) -> Result<Option<ObjectId>, RepoError> {
        let mut paths = lossy(&options.paths);
        paths.sort_unstable();
        paths.dedup();
        let (snapshots, damage) = self.readable_snapshots()?;
        for error in damage {
            // It might have been a better parent, which costs time and nothing else.
            tracing::warn!(%error, "a snapshot is passed over in the choice of a parent");
        }
        let alike = snapshots.iter().rfind(|snapshot| {
            snapshot.file.hostname == options.host && snapshot.file.paths.iter().eq(&paths)
        });
        Ok(alike.map(|snapshot| snapshot.id))
    }

    fn save_snapshot(&self, file: &mut SnapshotFile, warnings: u64) -> Result<ObjectId, RepoError> {
        if warnings > 0 {
            let said = file
                .description
                .take()
                .map_or(String::new(), |said| said + " ");
            let noun = if warnings == 1 { "warning" } else { "warnings" };
            file.description = Some(format!("{said}[{warnings} {noun}]"));
        }
        let doing = "writing the snapshot";
        let failed = |what: String| RepoError::Engine { doing, what };
        let extra = serde_json::to_value(Extra { warnings });
        let mut json = serde_json::to_value(&*file).map_err(|error| failed(error.to_string()))?;
        json[EXTRA_FIELD] = extra.map_err(|error| failed(error.to_string()))?;
        let sealed = self.sealed(json.to_string().as_bytes(), doing)?;
        let id = ObjectId(sha256(&sealed));
        self.backend
            .write_after_all(name(ObjectKind::Snapshot, id), sealed)
            .map_err(|cause| RepoError::WriteFailed { cause })?;
        Ok(id)
    }
}

impl Pipeline<'_> {
    /// What the snapshot says of the backup.
    fn summary(&self, file: &SnapshotFile, began: Instant) -> SnapshotSummary {
        let of = |count: &AtomicU64| count.load(Ordering::Acquire);
        let (counts, packer) = (&self.counts, &self.packer);
        let (files, directories) = (&counts.files, &counts.directories);
        let (data, trees) = (&packer.data_added, &packer.trees_added);
        let mut summary = SnapshotSummary::default();
        summary.files_new = of(&files.new);
        summary.files_changed = of(&files.changed);
        summary.files_unmodified = of(&files.unmodified);
        summary.total_files_processed = files.total();
        summary.total_bytes_processed = of(&counts.bytes);
        summary.dirs_new = of(&directories.new);
        summary.dirs_changed = of(&directories.changed);
        summary.dirs_unmodified = of(&directories.unmodified);
        summary.total_dirs_processed = directories.total();
        summary.total_dirsize_processed = of(&counts.list_bytes);
        summary.data_blobs = of(&data.blobs);
        summary.tree_blobs = of(&trees.blobs);
        summary.data_added_files = of(&data.plain_bytes);
        summary.data_added_files_packed = of(&data.packed_bytes);
        summary.data_added_trees = of(&trees.plain_bytes);
        summary.data_added_trees_packed = of(&trees.packed_bytes);
        summary.data_added = summary.data_added_files + summary.data_added_trees;
        summary.data_added_packed =
            summary.data_added_files_packed + summary.data_added_trees_packed;
        summary.command = file
            .summary
            .as_ref()
            .map_or_else(String::new, |old| old.command.clone());
        summary.backup_end = jiff::Zoned::now();
        let took = began.elapsed();
        summary.backup_duration = took.as_secs_f64();
        summary.total_duration = took.as_secs_f64();
        summary.backup_start = summary.backup_end.saturating_sub(took);
        summary
    }
}

/// Tells the source how much there will be to do.
fn expect(source: &dyn Source, parent: Option<&SnapshotInfo>, is_over: &dyn Fn() -> bool) {
    match parent.and_then(|parent| parent.summary.as_ref()) {
        Some(summary) => {
            let files = summary.files_new + summary.files_changed + summary.files_unmodified;
            source.expect(files, summary.bytes_processed);
        }
        None => source.count(is_over),
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn lossy(paths: &[Vec<u8>]) -> Vec<String> {
    let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
    paths.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_threads_as_memory_suffices_for() {
        let threads = |threads, memory: u64| {
            let options = ArchiveOptions {
                threads: NonZero::new(threads),
                memory_bytes: (memory > 0).then_some(memory << 20),
                ..ArchiveOptions::default()
            };
            options.threads()
        };
        assert_eq!(threads(16, 0), 16);
        assert_eq!(threads(16, 224), 1);
        assert_eq!(threads(16, 287), 1);
        assert_eq!(threads(16, 288), 2);
        assert_eq!(threads(16, 1024), 13);
        assert_eq!(threads(4, 1024), 4);
        assert_eq!(threads(4, 1), 1);
    }
}
