//! Backup and restore pipelines and jobs.
//!
//! [`backup`] and [`restore`] are whole jobs: they block, report to a [`Progress`], stop at a [`Cancel`], and return a
//! summary that names and counts whatever did not go as it should. What this leaves to others: the repository's format
//! (backlane-repo), the way to the server (backlane-net), and what is printed.

pub mod backup;
pub mod error;
pub mod mariadb;
pub mod output;
pub mod postgres;
pub mod progress;
pub mod restore;
pub mod source;
pub mod wal;

mod carry;
mod fs;
mod scratch;

pub use backlane_repo::{Cancel, Compression, MEMORY_BYTES_MIN, Parent, Signs};
pub use backup::{BackupOptions, BackupSummary, backup};
pub use error::Error;
pub use mariadb::{backup_binlogs, backup_mariadb, restore_mariadb};
pub use output::{CommandLine, backup_output, feed};
pub use postgres::{PostgresBackup, PostgresRestore, backup_postgres, restore_postgres};
pub use progress::{Progress, Warning, WarningKind, Warnings};
pub use restore::{Holes, RestoreOptions, RestoreSummary, restore};
pub use source::{
    AccessTimes, FileSystems, SourceOptions, compression::CompressionRule, exclude::Excludes,
};

/// Extended attributes are reached through /proc.
fn check_proc() -> Result<(), Error> {
    let there = std::fs::symlink_metadata("/proc/self/fd");
    there.map(drop).map_err(|source| Error::Proc { source })
}
