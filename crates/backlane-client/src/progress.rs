//! How a job is watched and stopped: progress, warnings, cancellation.
//!
//! A warning always names what it is about. Every one is counted; the first [`WARNINGS_KEPT_MAX`] are kept for the
//! summary, and all of them go to the [`Progress`] as they happen.

use backlane_repo::Cancel;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// How many warnings a summary keeps; the others are counted.
pub const WARNINGS_KEPT_MAX: usize = 10_000;

/// Watches a job. Methods are called from several threads and must not block for long.
pub trait Progress: Send + Sync {
    /// How much there is to do, once it is known; may be corrected.
    fn total(&self, items: u64, bytes: u64) {
        let _ = (items, bytes);
    }

    /// So much more was done.
    fn advanced(&self, items: u64, bytes: u64) {
        let _ = (items, bytes);
    }

    /// What is being worked on.
    fn current(&self, path: &Path) {
        let _ = path;
    }

    /// Something did not go as it should; the job goes on.
    fn warning(&self, warning: &Warning) {
        let _ = warning;
    }
}

/// Nobody watches.
impl Progress for () {}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WarningKind {
    /// It is not in the snapshot.
    LeftOut,
    /// It is in the snapshot, and something of it is not as it was on disk.
    Incomplete,
    /// It is an object of the repository, and is damaged. What is not restored because of it is named too; a backup has
    /// stored again what it needs of it.
    Repository,
    /// It was not restored.
    NotRestored,
    /// Its owner or group could not be set.
    Owner,
    /// Its permissions could not be set.
    Mode,
    /// An extended attribute, ACL or capability could not be set or removed.
    Xattr,
    /// Its times could not be set.
    Times,
    /// It should have been deleted, and was not.
    NotDeleted,
    /// It was restored, and differs when read again.
    Differs,
}

/// One thing that did not go as it should.
#[derive(Clone, Debug, Serialize)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// The file or directory.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What happened, in words.
    pub what: String,
}

/// The warnings of a job: how many of each kind, and the first of them in full.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Warnings {
    /// How many of each kind.
    pub counts: BTreeMap<WarningKind, u64>,
    /// The first [`WARNINGS_KEPT_MAX`].
    pub first: Vec<Warning>,
}

impl Warnings {
    /// How many in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How many of one kind.
    #[must_use]
    pub fn count(&self, kind: WarningKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

/// Where the threads of a job report to.
pub(crate) struct Reporter {
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) cancel: Cancel,
    warnings: Mutex<Warnings>,
}

impl Reporter {
    pub(crate) fn new(progress: Arc<dyn Progress>, cancel: Cancel) -> Self {
        Self {
            progress,
            cancel,
            warnings: Mutex::default(),
        }
    }

    /// Names, counts and passes on a warning.
    pub(crate) fn warn(&self, kind: WarningKind, path: &Path, what: impl Into<String>) {
        let warning = Warning {
            kind,
            path: path.to_owned(),
            what: what.into(),
        };
        self.progress.warning(&warning);
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        *warnings.counts.entry(kind).or_default() += 1;
        if warnings.first.len() < WARNINGS_KEPT_MAX {
            warnings.first.push(warning);
        }
    }

    /// The warnings so far.
    pub(crate) fn warnings(&self) -> Warnings {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
