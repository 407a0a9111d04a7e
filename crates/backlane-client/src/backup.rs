//! Backup: a walk of the file system, handed to the repository.

use crate::{
    error::Error,
    progress::{Progress, Reporter, WarningKind, Warnings},
    source::{Detail, Source, SourceOptions, WalkOptions, resolve_files, sqlite::Copies},
};
use backlane_repo::{
    ArchiveOptions, ArchiveSummary, Cancel, Compression, DryRun, Entries, Parent, RepoError,
    Repository, Signs,
};
use serde::Serialize;
use std::{
    ffi::OsStr,
    num::NonZero,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// What to back up, and how.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// SQLite databases that may be in use: each is backed up as it stands at one moment.
    pub sqlite: Vec<PathBuf>,
    /// Where they are copied to for that; the system's directory for temporary files when `None`.
    pub copies_in: Option<PathBuf>,
    /// What of them is kept.
    pub source: SourceOptions,
    /// The name of this host in the snapshot.
    pub host: String,
    /// The snapshot's time; now when `None`.
    pub time: Option<SystemTime>,
    /// The snapshot's tags.
    pub tags: Vec<String>,
    /// What to say of the snapshot.
    pub description: Option<String>,
    /// The command, for the record.
    pub command: String,
    /// What to compare with.
    pub parent: Parent,
    /// What tells that a file has changed.
    pub signs: Signs,
    /// How files are compressed for which no rule of the source is.
    pub compression: Compression,
    /// On how many threads it works; as many as there are cores when `None`.
    pub threads: Option<NonZero<usize>>,
    /// What it may take of memory, as [`ArchiveOptions::memory_bytes`] has it.
    pub memory_bytes: Option<u64>,
    /// Reads and counts, and writes nothing.
    pub dry_run: bool,
}

/// What a backup did.
#[derive(Clone, Debug, Serialize)]
pub struct BackupSummary {
    /// What was backed up, absolute; bytes that aren't UTF-8 are replaced.
    pub paths: Vec<String>,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// What was read and stored.
    #[serde(flatten)]
    pub archive: ArchiveSummary,
    /// How many entries are not in the snapshot though they should be.
    pub left_out: u64,
    /// What did not go as it should.
    #[serde(rename = "warning_list")]
    pub warnings: Warnings,
}

/// Backs up paths. Blocks until the snapshot is durable.
///
/// # Errors
/// When a path doesn't exist, an exclude pattern is no good, the job is cancelled, or the repository fails; there is no
/// snapshot then. A file that can't be read is a warning.
pub fn backup(
    repository: &Repository,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: Cancel,
) -> Result<BackupSummary, Error> {
    crate::check_proc()?;
    let reporter = Arc::new(Reporter::new(progress, cancel.clone()));
    let databases = resolve_files(&options.sqlite)?;
    let copies_in = options.copies_in.clone().unwrap_or_else(std::env::temp_dir);
    let copies = Arc::new(Copies::make(&databases, &copies_in, &cancel)?);
    let paths = [&options.paths[..], &databases].concat();
    let new = |detail, reporter| {
        let walk = WalkOptions {
            detail,
            copies: Arc::clone(&copies),
            threads: options.threads,
        };
        Source::new(&paths, &options.source, walk, reporter)
    };
    let source = new(Detail::Full, Arc::clone(&reporter))?;
    // What the counting walk can't read, the real one tells.
    let quiet = Reporter::new(Arc::new(()), cancel.clone());
    let counted = new(Detail::Count, Arc::new(quiet))?;
    let roots: Vec<PathBuf> = source.roots().to_vec();
    let paths = roots.iter();
    let paths = paths.map(|root| root.as_os_str().as_bytes().to_vec());
    let archive = options.archive(paths.collect(), cancel);
    let adapter = Adapter {
        source,
        counted,
        copies,
        reporter: Arc::clone(&reporter),
    };
    let archived = repository.archive(&archive, Arc::new(adapter));
    summary(archived, options, &roots, &reporter)
}

impl BackupOptions {
    pub(crate) fn archive(&self, paths: Vec<Vec<u8>>, cancel: Cancel) -> ArchiveOptions {
        ArchiveOptions {
            host: self.host.clone(),
            paths,
            time: self.time,
            tags: self.tags.clone(),
            description: self.description.clone(),
            command: self.command.clone(),
            parent: self.parent,
            signs: self.signs,
            compression: self.compression,
            dry_run: match self.dry_run {
                true => DryRun::Yes,
                false => DryRun::No,
            },
            threads: self.threads,
            memory_bytes: self.memory_bytes,
            cancel,
        }
    }
}

/// What a backup came to.
pub(crate) fn summary(
    archived: Result<ArchiveSummary, RepoError>,
    options: &BackupOptions,
    paths: &[PathBuf],
    reporter: &Reporter,
) -> Result<BackupSummary, Error> {
    let archive = archived.map_err(|error| match error {
        RepoError::Cancelled => Error::Cancelled,
        other => other.into(),
    })?;
    let warnings = reporter.warnings();
    let shown = |path: &PathBuf| path.to_string_lossy().into_owned();
    Ok(BackupSummary {
        paths: paths.iter().map(shown).collect(),
        dry_run: options.dry_run,
        archive,
        left_out: warnings.count(WarningKind::LeftOut),
        warnings,
    })
}

/// Tells a reporter of a repository's warning.
pub(crate) fn warn(reporter: &Reporter, warning: &backlane_repo::Warning) {
    let kind = match warning.kind {
        backlane_repo::WarningKind::LeftOut => WarningKind::LeftOut,
        backlane_repo::WarningKind::Incomplete => WarningKind::Incomplete,
        backlane_repo::WarningKind::Repository => WarningKind::Repository,
    };
    let path = Path::new(OsStr::from_bytes(&warning.path));
    reporter.warn(kind, path, &warning.reason);
}

/// The file system as the repository wants it.
struct Adapter {
    source: Source,
    counted: Source,
    copies: Arc<Copies>,
    reporter: Arc<Reporter>,
}

impl backlane_repo::Source for Adapter {
    fn count(&self, is_over: &dyn Fn() -> bool) {
        let (items, bytes) = self.counted.count(is_over);
        if !is_over() {
            self.reporter.progress.total(items, bytes);
        }
    }

    fn expect(&self, files: u64, bytes: u64) {
        self.reporter.progress.total(files, bytes);
    }

    fn entries(&self) -> Entries {
        let reporter = Arc::clone(&self.reporter);
        Box::new(self.source.walk().inspect(move |found| {
            if let Ok(entry) = found
                && entry.open.is_none()
            {
                reporter.progress.advanced(1, 0);
            }
        }))
    }

    fn compression(&self, path: &[u8]) -> Option<Compression> {
        self.source.compression(Path::new(OsStr::from_bytes(path)))
    }

    fn warn(&self, warning: &backlane_repo::Warning) {
        warn(&self.reporter, warning);
    }

    /// Those about files that changed while they were read are told to the reporter alone. The snapshot lacks nothing
    /// because of a damaged repository.
    fn warnings(&self, _told: u64) -> u64 {
        for path in self.copies.left_out() {
            let what = "the walk did not come by it: is it excluded?";
            self.reporter.warn(WarningKind::LeftOut, path, what);
        }
        let warnings = self.reporter.warnings();
        warnings.total() - warnings.count(WarningKind::Repository)
    }
}
