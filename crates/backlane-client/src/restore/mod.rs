//! Restore: from the trees of a snapshot to files below a target directory.
//!
//! Invariants: nothing outside the target is written, changed or deleted, whatever the snapshot or the target holds;
//! under a file's own name there is the old thing or the whole new one; every byte written was checked against its
//! blob's hash. What can't be restored, and each property that can't be set, is a warning that names it. A restore can
//! be repeated over what an earlier one left: what is right is kept, of half-written files as well.

mod batch;
mod content;
mod descend;
mod files;
mod job;
mod metadata;
mod places;
mod remove;
mod standing;
mod unfinished;

#[cfg(test)]
mod tests;

pub use files::Holes;

use crate::{
    error::Error,
    fs,
    progress::{Progress, Reporter, WarningKind, Warnings},
};
use backlane_repo::{Cancel, FileKind, Metadata, Node, Reader, SnapshotInfo, Tree};
use descend::{Descender, Reach};
use files::TemporaryNames;
use job::Job;
use places::{PlaceId, Places};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, openat},
    io::Errno,
};
use serde::Serialize;
use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Deletes what stands below the target and is not in the snapshot, within what was backed up; never across a
    /// mount. Wherever a SQLite database is restored, what SQLite left beside it goes too.
    pub delete: bool,
    /// Deletes even where the snapshot says that its backup had warnings, so that what it lacks may only have been
    /// unreadable.
    pub delete_despite_warnings: bool,
    /// Changes nothing, and counts what would be done.
    pub dry_run: bool,
    /// Reads every written file again and compares its hashes.
    pub verify: bool,
    /// Where files get holes.
    pub holes: Holes,
}

/// What a restore did, or in a dry run would do.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreSummary {
    /// The snapshot.
    pub snapshot: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Files that were written.
    pub files_restored: u64,
    /// Files that stood there already, whose content was read and is right.
    pub files_kept: u64,
    /// Files that were read again after they were written, and are right.
    pub files_verified: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, devices, fifos and sockets.
    pub others: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// What was deleted; in a dry run, without counting what is in deleted directories.
    pub deleted: u64,
    /// Bytes that were written.
    pub bytes_restored: u64,
    /// Bytes that stood there already and are right: of files that were kept, of those that were changed, and of those that
    /// an interrupted restore had begun.
    pub bytes_kept: u64,
    /// Bytes that were read from the repository's packs of data.
    pub bytes_fetched: u64,
    /// How many things are not restored, or differ when read again.
    pub failed: u64,
    /// What did not go as it should.
    pub warnings: Warnings,
    /// How long it took.
    pub seconds: f64,
}

/// Restores a snapshot, or what is below `path` in it, into `target`, which is made if it doesn't exist. A `path` that
/// is a directory becomes the target itself, with its metadata; anything else goes into the target under its name.
///
/// # Errors
/// [`Error::DeleteIncomplete`], [`Error::NotInSnapshot`], [`Error::Target`], [`Error::TargetBusy`], [`Error::NoSpace`], [`Error::Cancelled`], or
/// when the repository fails. What was finished until then stays, and what was not leaves nothing under its name. Unless
/// space ran out, what was begun stays under a temporary name, and the next restore goes on with it.
pub fn restore(
    reader: &Reader,
    snapshot: &SnapshotInfo,
    path: Option<&Path>,
    target: &Path,
    options: &RestoreOptions,
    progress: Arc<dyn Progress>,
    cancel: Cancel,
) -> Result<RestoreSummary, Error> {
    let begun = Instant::now();
    crate::check_proc()?;
    if let Some(warnings) = snapshot.warnings.filter(|warnings| *warnings > 0)
        && options.delete
        && !options.delete_despite_warnings
    {
        let snapshot = snapshot.id.to_string();
        return Err(Error::DeleteIncomplete { snapshot, warnings });
    }
    let start = start(reader, snapshot, path)?;
    let handle = open_target(target, options)?;
    if let Some(summary) = &snapshot.summary
        && path.is_none()
    {
        progress.total(0, summary.bytes_processed);
    }
    let reporter = Reporter::new(progress, cancel);
    for error in reader.index_damage() {
        let what = "a part of the index, without which some content can't be found";
        reporter.warn(
            WarningKind::Repository,
            Path::new("index"),
            format!("{what}: {error}"),
        );
    }
    let at_target = |source| Error::Target {
        path: target.to_owned(),
        source,
    };
    let exists = handle.is_some();
    let handle = match handle {
        Some(handle) => handle,
        // A dry run without a target: nothing is looked up in it.
        None => fs::open_dir(CWD, OsStr::new("/")).map_err(at_target)?,
    };
    let places = Places::new(handle, target).map_err(at_target)?;
    let names = TemporaryNames::new().map_err(at_target)?;
    let job = Job::new(reader, &places, &names, &reporter, options);
    let place = exists.then_some(PlaceId::TARGET);
    Descender::new(&job, &snapshot.paths).run(start.tree, start.meta, place, start.reach)?;
    if exists && !options.dry_run {
        places.sync().map_err(at_target)?;
    }
    let warnings = reporter.warnings();
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let counts = &job.counts;
    Ok(RestoreSummary {
        snapshot: snapshot.id.to_string(),
        dry_run: options.dry_run,
        files_restored: count(&counts.files_restored),
        files_kept: count(&counts.files_kept),
        files_verified: count(&counts.files_verified),
        directories: count(&counts.directories),
        others: count(&counts.others),
        hard_links: count(&counts.hard_links),
        deleted: count(&counts.deleted),
        bytes_restored: count(&counts.bytes_restored),
        bytes_kept: count(&counts.bytes_kept),
        bytes_fetched: count(&counts.bytes_fetched),
        failed: warnings.count(WarningKind::NotRestored) + warnings.count(WarningKind::Differs),
        warnings,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Where in the snapshot a restore begins.
struct Start {
    tree: Tree,
    meta: Option<Metadata>,
    reach: Reach,
}

fn start(reader: &Reader, snapshot: &SnapshotInfo, path: Option<&Path>) -> Result<Start, Error> {
    let mut at = PathBuf::from("/");
    let mut tree = reader.tree(snapshot.tree)?;
    let mut meta = None;
    let parts: Vec<_> = path.into_iter().flat_map(Path::components).collect();
    for (index, part) in parts.iter().enumerate() {
        let name = match part {
            Component::Normal(name) => *name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => OsStr::new(".."),
        };
        at.push(name);
        let not_there = || Error::NotInSnapshot { path: at.clone() };
        let wanted = |node: &Node| node.name == name.as_bytes();
        let mut nodes = tree.nodes.into_iter();
        let node = nodes.find(wanted).ok_or_else(not_there)?;
        if node.kind == FileKind::Directory {
            tree = match node.subtree {
                Some(subtree) => reader.tree(subtree)?,
                None => Tree::default(),
            };
            meta = Some(node.meta);
        } else if index + 1 == parts.len() {
            at.pop();
            return Ok(Start {
                tree: Tree { nodes: vec![node] },
                meta: None,
                // Its neighbours are not looked at.
                reach: Reach::Above(at),
            });
        } else {
            return Err(not_there());
        }
    }
    let reach = Reach::of(at, &snapshot.paths);
    Ok(Start { tree, meta, reach })
}

/// Opens the target, which no other restore may use at the same time. `None` is a dry run that finds none.
fn open_target(target: &Path, options: &RestoreOptions) -> Result<Option<OwnedFd>, Error> {
    let failed = |source| Error::Target {
        path: target.to_owned(),
        source,
    };
    if !options.dry_run {
        std::fs::create_dir_all(target).map_err(failed)?;
    }
    // The target's own path is the user's word, and may lead through links.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = match openat(CWD, target, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) if options.dry_run => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    if !options.dry_run {
        hold_target(&handle, target)?;
    }
    Ok(Some(handle))
}

/// Keeps other restores out of a target, as long as its handle is open.
///
/// # Errors
/// [`Error::TargetBusy`].
pub(crate) fn hold_target(handle: impl AsFd, target: &Path) -> Result<(), Error> {
    match flock(handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::TargetBusy {
            path: target.to_owned(),
        }),
        // Some network file systems lock no directories.
        Err(error) => {
            let error = io::Error::from(error);
            tracing::debug!(target = %target.display(), %error, "the target can't be locked");
            Ok(())
        }
    }
}
