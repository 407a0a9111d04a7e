//! Backup: the engine's archiver over a source of ours.
//!
//! The snapshot is written by us, after the engine has returned: only when the source came to its end, nothing failed,
//! and the engine archived exactly what it was given. It then says how many warnings there were.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use backlane_proto::{ObjectId, ObjectKind};
use rustic_core::repofile::SnapshotFile;
use rustic_core::{BackupOptions, ParentOptions, SnapshotOptions};
use serde::Serialize;

use crate::adapter::Adapter;
use crate::backend::Backend;
use crate::engine;
use crate::error::RepoError;
use crate::index::BlobId;
use crate::reader::Reader;
use crate::repository::{Inner, Repository, name};
use crate::resume::Continued;
use crate::seal::sha256;
use crate::snapshot::{EXTRA_FIELD, Extra, as_optional_text, as_text};
use crate::source::{Source, Warning, WarningKind};
use crate::walk::Visit;

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
    /// Ends the backup early.
    pub cancel: Cancel,
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
    /// [`RepoError::BadSource`]; [`RepoError::EntriesLost`]; or what the store or the engine reports. There is no
    /// snapshot then.
    pub fn archive(
        &self,
        options: &ArchiveOptions,
        source: Arc<dyn Source>,
    ) -> Result<ArchiveSummary, RepoError> {
        let inner = &self.inner;
        let alone = inner.archiving.lock();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        let packs = inner.packs()?;
        let continued = match options.dry_run {
            DryRun::Yes => Continued::default(),
            DryRun::No => inner.continue_interrupted(&packs, source.as_ref(), &options.cancel)?,
        };
        let missing = inner.missing(packs.not_listed)?;
        let (engine, damage) = {
            let _without = inner.without(&missing);
            inner.over_damaged_index("reading the index", || inner.engine()?.to_indexed_ids())?
        };
        for error in &damage {
            source.warn(&Warning {
                path: b"index".to_vec(),
                kind: WarningKind::Repository,
                reason: format!(
                    "{error}; what only it knows is read from the packs, or stored again"
                ),
            });
        }
        let reader = match damage.is_empty() && !missing.has_trees() {
            true => None,
            false => Some(self.reader()?),
        };
        let (snapshot, parent_options) = inner.prepare(options, reader.as_ref())?;
        drop(reader);
        let window = inner.backend.window().clone();
        let adapter = Adapter::new(source, window, options.cancel.clone());

        let mut backup = BackupOptions::default().dry_run(options.dry_run == DryRun::Yes);
        backup.parent_opts = parent_options;
        let paths: Vec<_> = lossy(&options.paths)
            .into_iter()
            .map(PathBuf::from)
            .collect();
        let archived = {
            let _hold = HeldSnapshots::of(&inner.backend);
            engine::guarded(&inner.backend, "backing up", || {
                engine.archive(&backup, &adapter, snapshot, &paths)
            })
        };
        if let Some(error) = adapter.shared().ended_early() {
            return Err(match archived {
                Err(failed @ RepoError::WriteFailed { .. }) => failed,
                _ => error,
            });
        }
        let mut file = archived?;
        let stats = file.summary.clone().unwrap_or_default();
        let (given, archived) = (adapter.shared().expected(), stats.total_files_processed);
        if given != archived {
            return Err(RepoError::EntriesLost { given, archived });
        }
        let closing = adapter.shared().closing();
        for tag in closing.tags {
            file.tags.add(tag);
        }
        file.description = closing.description.or(file.description);
        let warnings = adapter.shared().warnings();
        let snapshot = match options.dry_run {
            DryRun::Yes => None,
            DryRun::No => Some(inner.save_snapshot(&mut file, warnings)?),
        };
        Ok(ArchiveSummary {
            snapshot,
            parent: file.parent.map(|id| crate::convert::object_id(&id)),
            tree: BlobId(crate::convert::object_id(&file.tree).0),
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
    /// The snapshot as it is before the backup, and what to compare with. `damaged` reads what is left where trees may
    /// be lost.
    fn prepare(
        &self,
        options: &ArchiveOptions,
        damaged: Option<&Reader>,
    ) -> Result<(SnapshotFile, ParentOptions), RepoError> {
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
        let parent = match options.parent {
            Parent::None => None,
            Parent::Snapshot(id) => {
                // The engine would go on without a parent that it can't read.
                self.object(ObjectKind::Snapshot, id)?;
                Some(id)
            }
            Parent::Newest => self.newest_alike(options)?,
        };
        let parent = match (parent, damaged) {
            (Some(id), Some(reader)) if !self.trees_are_known(reader, id)? => {
                tracing::warn!(parent = %id, "trees of the parent are lost: every file is read");
                None
            }
            (parent, _) => parent,
        };
        let parent_options = ParentOptions::default()
            // The engine has this switch the wrong way round: so set, it does compare inodes.
            .ignore_inode(true)
            .force(parent.is_none())
            .parents(parent.iter().map(ToString::to_string).collect::<Vec<_>>());
        Ok((snapshot, parent_options))
    }

    /// Whether every directory of a snapshot can be read. The engine takes over a parent's tree by its name, without a
    /// look into the index: a tree that can't be found must not be its parent.
    fn trees_are_known(&self, reader: &Reader, id: ObjectId) -> Result<bool, RepoError> {
        let tree = self.snapshot(id)?.info().tree;
        match reader.walk(tree, b"", &mut |_, _| Visit::Continue) {
            Ok(unread) => Ok(unread.is_empty()),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
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

/// Holds the engine's snapshots back as long as it lives.
struct HeldSnapshots<'a>(&'a Backend);

impl<'a> HeldSnapshots<'a> {
    fn of(backend: &'a Backend) -> Self {
        backend.hold_snapshots(true);
        Self(backend)
    }
}

impl Drop for HeldSnapshots<'_> {
    fn drop(&mut self) {
        self.0.hold_snapshots(false);
    }
}

fn lossy(paths: &[Vec<u8>]) -> Vec<String> {
    let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
    paths.iter().map(text).collect()
}
