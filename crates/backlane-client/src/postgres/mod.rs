//! Base backups of PostgreSQL clusters, and their restore.
//!
//! A snapshot has a cluster below `/postgresql/SYSTEM`: `data` is its directory, `tablespaces/OID` are its tablespaces,
//! `config` has configuration files that are elsewhere; `top` has what is known only when all else was read, and belongs
//! over `data`. docs/design/postgres.md tells why.

mod read;
mod restore;
mod walk;

pub use restore::{PostgresRestore, restore_postgres};

use crate::{
    backup::{BackupOptions, BackupSummary, summary, warn},
    error::Error,
    progress::{Progress, Reporter, WarningKind},
};
use backlane_repo::{Cancel, Closing, Entries, Parent, RepoError, Repository, Warning};
use backlane_source::postgres::{
    BaseBackup, Begun, Checkpoint, Cluster, Content, Manifest, Pages, Session, TAG, TAG_DAMAGED,
    WalMode,
};
use jiff::Timestamp;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use walk::Walk;

/// How often the end of a backup looks whether it was cancelled, while files are read.
const LOOK: Duration = Duration::from_millis(100);

/// Which cluster to back up, and how.
#[derive(Clone, Debug)]
pub struct PostgresBackup {
    /// The connection string, without a password.
    pub connection: String,
    /// Where the cluster's directory is here; where the server has it when `None`.
    pub data_directory: Option<PathBuf>,
    /// How the backup begins.
    pub checkpoint: Checkpoint,
    /// Where the WAL is that it needs.
    pub wal: WalMode,
}

/// Backs up a cluster whose server runs on this machine. Blocks until the snapshot is durable. Of `options` paths and
/// what concerns them are not looked at.
///
/// # Errors
/// As [`backup`](crate::backup), and [`Error::Postgres`]; there is no snapshot then, and the cluster is not in backup mode.
/// A file that can't be read is an error. A damaged page is a warning.
pub fn backup_postgres(
    repository: &Repository,
    postgres: &PostgresBackup,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<(BackupSummary, BaseBackup), Error> {
    // What fails in the source ends the job by this.
    let cancel = cancel.part();
    let is_cancelled = || cancel.is_cancelled();
    let mut session = Session::open(&postgres.connection, &is_cancelled)?;
    let cluster = Cluster::ask(&mut session, &is_cancelled)?;
    if postgres.wal == WalMode::Archive {
        cluster.check_archive()?;
    }
    let directory = postgres.data_directory.as_ref();
    let directory = directory.unwrap_or(&cluster.data_directory).clone();
    let control = cluster.check_directory(&directory)?;
    let how = (postgres.checkpoint, postgres.wal);
    let began = Timestamp::now();
    let begun = Begun::begin(&mut session, &cluster, how, &is_cancelled)?;
    let pages = cluster.has_checksums().then_some(Pages {
        bytes: cluster.page_bytes,
        in_segment: cluster.segment_pages,
        start: begun.start,
    });
    let root = BaseBackup::root(cluster.system);
    let reporter = Arc::new(Reporter::new(progress, cancel.clone()));
    let run = Arc::new(Run {
        reporter: Arc::clone(&reporter),
        cluster,
        directory,
        pages,
        wal: postgres.wal,
        began,
        state: Mutex::default(),
        closed: Condvar::new(),
        damaged: AtomicU64::new(0),
    });
    let walk = Walk::new(Arc::clone(&run), session, begun, control)?;
    let mut archive = options.archive(vec![root.as_os_str().as_encoded_bytes().to_vec()], cancel);
    // Whether a file is unchanged, its times don't tell: they advance in steps, in which the server writes often.
    archive.parent = Parent::None;
    let source = Source {
        walk: Mutex::new(Some(walk)),
        run: Arc::clone(&run),
    };
    let archived = ended_by_failed_writes(repository, &run.reporter.cancel, || {
        repository.archive(&archive, Arc::new(source))
    });
    let mut state = run.state();
    // After a failed write the walk was cancelled, and that write is what is reported.
    let failure = state.failure.take().filter(|_| !repository.failed());
    if let Some(error) = failure {
        return Err(error);
    }
    let backup = state.backup.take();
    drop(state);
    let summary = summary(archived, options, &[root], &reporter)?;
    let backup = backup.ok_or(RepoError::Cancelled)?;
    Ok((summary, backup))
}

/// Does some work, and cancels it once a write has failed: a walk that waits for the server, until its WAL is archived say,
/// would learn nothing of that, and the cluster be kept waiting for a backup that can't be any more.
fn ended_by_failed_writes<T>(
    repository: &Repository,
    cancel: &Cancel,
    work: impl FnOnce() -> T,
) -> T {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                if repository.failed() {
                    return cancel.cancel();
                }
                thread::park_timeout(LOOK);
            }
        });
        // However it ends.
        let _done = Done(&is_done, watcher.thread());
        work()
    })
}

/// Tells a thread that something is done when this goes.
struct Done<'a>(&'a AtomicBool, &'a thread::Thread);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// A backup under way: what its walk and those who read files share.
struct Run {
    reporter: Arc<Reporter>,
    cluster: Cluster,
    /// Where the cluster is here.
    directory: PathBuf,
    /// How pages are checked, where they have checksums.
    pages: Option<Pages>,
    wal: WalMode,
    began: Timestamp,
    state: Mutex<State>,
    closed: Condvar,
    damaged: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The files that were read to their end.
    manifest: Manifest,
    /// How many files are open, or waiting to be read.
    open: usize,
    /// Why the backup can't go on.
    failure: Option<Error>,
    /// What it is, once it is whole.
    backup: Option<BaseBackup>,
}

impl Run {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the backup: a cluster without one of its files is none.
    fn fail(&self, error: Error) {
        self.state().failure.get_or_insert(error);
        self.reporter.cancel.cancel();
    }

    fn fail_reading(&self, path: &Path, source: io::Error) {
        let path = self.directory.join(path);
        self.fail(backlane_source::postgres::Error::Read { path, source }.into());
    }

    /// Waits until every file is closed that was given out.
    fn wait_for_readers(&self) -> Result<(), Error> {
        let mut state = self.state();
        while state.open > 0 {
            if self.reporter.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let waited = self.closed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Names a damaged page.
    fn damaged(&self, path: &Path, block: u32) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        let what = format!("block {block} is damaged: its checksum is wrong");
        let path = self.directory.join(path);
        self.reporter.warn(WarningKind::Incomplete, &path, what);
    }

    fn enter(&self, path: &Path, modified_seconds: i64, content: Content) {
        let path = path.as_os_str().as_encoded_bytes();
        self.state().manifest.enter(path, modified_seconds, content);
    }
}

/// A file that is open, or waiting to be read.
struct Held(Arc<Run>);

impl Held {
    fn new(run: &Arc<Run>) -> Self {
        run.state().open += 1;
        Self(Arc::clone(run))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state().open -= 1;
        self.0.closed.notify_all();
    }
}

/// The cluster as the repository wants it.
struct Source {
    walk: Mutex<Option<Walk>>,
    run: Arc<Run>,
}

impl backlane_repo::Source for Source {
    fn entries(&self) -> Entries {
        let walk = self.walk.lock();
        let walk = walk.unwrap_or_else(PoisonError::into_inner).take();
        Box::new(walk.into_iter().flatten())
    }

    fn warn(&self, warning: &Warning) {
        warn(&self.run.reporter, warning);
    }

    fn warnings(&self, _told: u64) -> u64 {
        let warnings = self.run.reporter.warnings();
        warnings.total() - warnings.count(WarningKind::Repository)
    }

    fn closing(&self) -> Closing {
        let mut tags = vec![TAG.to_owned()];
        if self.run.damaged.load(Ordering::Relaxed) > 0 {
            tags.push(TAG_DAMAGED.to_owned());
        }
        let state = self.run.state();
        let description = state.backup.as_ref().map(BaseBackup::description);
        Closing { tags, description }
    }
}
