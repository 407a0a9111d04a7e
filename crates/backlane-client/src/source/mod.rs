//! What a backup reads: the directories and files below some paths, as a sorted stream of entries.
//!
//! Invariants: entries come depth first, sorted by the bytes of their names, each directory before what it contains,
//! and the directories above the given paths come too, so that their metadata is kept. An entry that can't be read
//! becomes a warning that names it and is left out; nothing is dropped in silence. What this leaves to others:
//! chunking, and where the entries go.

mod ahead;
pub(crate) mod compression;
mod database;
pub(crate) mod examine;
pub mod exclude;
pub(crate) mod read;
pub(crate) mod sqlite;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use crate::{error::Error, progress::Reporter};
use backlane_repo::Compression;
use compression::{CompressionRule, Rules};
use exclude::{Excluder, Excludes};
use sqlite::Copies;
use std::{
    ffi::OsStr,
    num::NonZero,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use walk::Walk;

/// Whether a walk stays on the file system that each path is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystems {
    /// Goes wherever directories lead.
    #[default]
    All,
    /// Keeps a directory on which another file system is mounted, and not what is in it.
    One,
}

/// Whether access times are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessTimes {
    /// The modification time stands for it, so that a file that was only read doesn't make its directory's tree new.
    #[default]
    AsModified,
    /// The real one.
    Kept,
}

/// What of the file system goes into a backup.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// What is left out.
    pub excludes: Excludes,
    /// Whether to cross into other file systems.
    pub file_systems: FileSystems,
    /// Whether access times are kept.
    pub access_times: AccessTimes,
    /// Which files are compressed in another way than all others; the last one that matches counts.
    pub compression: Vec<CompressionRule>,
}

/// How much a walk learns about each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Everything that is kept.
    Full,
    /// Type and size, to know how much there is.
    Count,
}

/// How to walk, whatever it is that is backed up.
pub(crate) struct WalkOptions {
    pub(crate) detail: Detail,
    /// What stands for databases that are in use.
    pub(crate) copies: Arc<Copies>,
    /// How many threads the whole backup may use; `None` leaves it to the walk how many it has.
    pub(crate) threads: Option<NonZero<usize>>,
}

/// What all parts of a walk share.
pub(crate) struct Shared {
    pub(crate) excluder: Excluder,
    pub(crate) file_systems: FileSystems,
    pub(crate) access_times: AccessTimes,
    pub(crate) detail: Detail,
    /// What stands for databases that are in use.
    pub(crate) copies: Arc<Copies>,
    pub(crate) reporter: Arc<Reporter>,
    /// How old may be what is told of an entry that was looked at before its turn.
    pub(crate) fresh_for: Duration,
    /// Is called before a name is looked at or listed.
    #[cfg(test)]
    watch: Option<Watch>,
}

#[cfg(test)]
type Watch = Box<dyn Fn(Doing, &Path) + Send + Sync>;

/// What a walk is about to do with a name.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Looks,
    Lists,
}

#[cfg(test)]
impl Shared {
    fn watch(&self, doing: Doing, path: &Path) {
        if let Some(watch) = &self.watch {
            watch(doing, path);
        }
    }
}

/// The file system below some paths.
pub(crate) struct Source {
    roots: Vec<PathBuf>,
    rules: Rules,
    threads: Option<NonZero<usize>>,
    shared: Arc<Shared>,
}

impl Source {
    /// Prepares a walk of `paths`.
    pub(crate) fn new(
        paths: &[PathBuf],
        options: &SourceOptions,
        walk: WalkOptions,
        reporter: Arc<Reporter>,
    ) -> Result<Self, Error> {
        Ok(Self {
            roots: resolve(paths)?,
            rules: Rules::new(&options.compression)?,
            threads: walk.threads,
            shared: Arc::new(Shared {
                excluder: Excluder::new(&options.excludes)?,
                file_systems: options.file_systems,
                access_times: options.access_times,
                detail: walk.detail,
                copies: walk.copies,
                reporter,
                fresh_for: ahead::FRESH_FOR,
                #[cfg(test)]
                watch: None,
            }),
        })
    }

    /// How many entries and bytes there are, as far as it comes before it is over. Little work beside a backup.
    pub(crate) fn count(&self, is_over: &dyn Fn() -> bool) -> (u64, u64) {
        let entries = self.walk().take_while(|_| !is_over()).flatten();
        entries.fold((0, 0), |(items, bytes), entry| {
            (items + 1, bytes + entry.meta.size)
        })
    }

    /// The paths, absolute, sorted, none within another.
    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// How a file is compressed, where that isn't as all others are.
    pub(crate) fn compression(&self, path: &Path) -> Option<Compression> {
        self.rules.of(path)
    }

    /// Starts to walk.
    pub(crate) fn walk(&self) -> Walk {
        Walk::new(self.roots.clone(), Arc::clone(&self.shared), self.threads)
    }
}

/// What paths of databases come to, as a walk meets them.
pub(crate) fn resolve_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let resolved = paths.iter().map(|path| {
        path.canonicalize().map_err(|source| Error::Path {
            path: path.clone(),
            source,
        })
    });
    resolved.collect()
}

/// Makes paths absolute and free of symbolic links above the last component, which is itself backed up when it is one,
/// unless the path ends in `/`.
fn resolve(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    if paths.is_empty() {
        return Err(Error::NoPaths);
    }
    let mut roots = paths
        .iter()
        .map(|path| {
            resolve_one(path).map_err(|source| Error::Path {
                path: path.clone(),
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    roots.sort();
    // Sorted by components, a path comes right before what lies below it.
    roots.dedup_by(|later, earlier| later.starts_with(earlier));
    Ok(roots)
}

fn resolve_one(path: &Path) -> std::io::Result<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    let through = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b".";
    let Some(name) = path.file_name().filter(|_| !through) else {
        return path.canonicalize();
    };
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str() != OsStr::new("") => parent,
        _ => Path::new("."),
    };
    let resolved = parent.canonicalize()?.join(name);
    resolved.symlink_metadata()?;
    Ok(resolved)
}
