//! What all parts of a restore share: where it reads and writes, what it counts, and which errors end it.

use super::{
    RestoreOptions,
    files::TemporaryNames,
    places::{PlaceId, Places},
};
use crate::{
    error::Error,
    fs::Identity,
    progress::{Reporter, WarningKind},
};
use backlane_repo::{Reader, RepoError};
use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// How many threads read, check and write.
pub(crate) const WORKERS: usize = 4;

/// A restore under way.
pub(crate) struct Job<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) places: &'a Places,
    pub(crate) names: &'a TemporaryNames,
    pub(crate) reporter: &'a Reporter,
    pub(crate) options: &'a RestoreOptions,
    pub(crate) counts: Counts,
    /// What stood there and is kept, of what has several names: another file that is the same there is restored.
    kept: Mutex<HashSet<Identity>>,
    /// A batch has failed: nothing more is planned.
    pub(crate) has_failed: AtomicBool,
}

/// What was done so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) files_restored: AtomicU64,
    pub(crate) files_kept: AtomicU64,
    pub(crate) files_verified: AtomicU64,
    pub(crate) directories: AtomicU64,
    pub(crate) others: AtomicU64,
    pub(crate) hard_links: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) bytes_restored: AtomicU64,
    pub(crate) bytes_kept: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl<'a> Job<'a> {
    pub(crate) fn new(
        reader: &'a Reader,
        places: &'a Places,
        names: &'a TemporaryNames,
        reporter: &'a Reporter,
        options: &'a RestoreOptions,
    ) -> Self {
        Self {
            reader,
            places,
            names,
            reporter,
            options,
            counts: Counts::default(),
            kept: Mutex::default(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Ends the job if it was asked to stop, or a part of it has failed.
    pub(crate) fn check_cancelled(&self) -> Result<(), Error> {
        if self.reporter.cancel.is_cancelled() || self.has_failed.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    /// Keeps what stands there, unless it was kept for another file.
    pub(crate) fn keeps_alone(&self, identity: Identity) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(identity)
    }

    /// Names what can't be restored. A full file system ends the job: everything else would fail too.
    pub(crate) fn fail(&self, path: PathBuf, what: &str, source: io::Error) -> Result<(), Error> {
        if is_full(&source) {
            return Err(Error::NoSpace { path, source });
        }
        self.warn(&path, format!("{what}: {source}"));
        Ok(())
    }

    /// Names what can't be restored because of the repository. Damage stays with what it hits; a store that fails ends
    /// the job.
    pub(crate) fn fail_by_repository(&self, path: &Path, error: RepoError) -> Result<(), Error> {
        if !is_local_damage(&error) {
            return Err(error.into());
        }
        self.warn(path, error.to_string());
        Ok(())
    }

    /// Names what is not restored.
    pub(crate) fn warn(&self, path: &Path, what: impl Into<String>) {
        self.reporter.warn(WarningKind::NotRestored, path, what);
    }

    /// The path of `name` in a directory, to be shown to people.
    pub(crate) fn path(&self, place: PlaceId, name: &OsStr) -> PathBuf {
        self.places.path_of(place, name)
    }

    /// Calls `work` with each number below `count` on several threads, until one fails or the job is cancelled.
    pub(crate) fn in_parallel(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let run = || -> Result<(), Error> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                self.check_cancelled()
                    .and_then(|()| work(index))
                    .inspect_err(|_| next.store(count, Ordering::Relaxed))?;
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS.min(count)).map(|_| scope.spawn(run)).collect();
            let mut result = Ok(());
            for thread in threads {
                let one = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(one);
            }
            result
        })
    }
}

/// Whether an error says that a file system is full, or a quota is used up.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// Whether an error concerns some content alone, and not the way to the repository.
pub(crate) fn is_local_damage(error: &RepoError) -> bool {
    error.is_damage()
}
