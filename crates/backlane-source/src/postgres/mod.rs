//! PostgreSQL, versions 13 to 17: physical base backups by the non-exclusive backup API.
//!
//! Invariants: a cluster is in backup mode as long as a [`Session`] lives that began a backup, and no longer: it is a
//! process whose input ends with ours, however we end. What is left out is what PostgreSQL's own pg_basebackup leaves
//! out. Passwords are the client library's business and never come through here. Files are read as a little-endian machine
//! writes them.

mod checksum;
mod cluster;
mod control;
mod exclude;
mod facts;
mod manifest;
mod recovery;
mod session;

pub use checksum::{Pages, RelationFile};
pub use cluster::{Begun, Checkpoint, Cluster, Stopped, Tablespace, WalMode};
pub use control::{Control, running_postmaster};
pub use exclude::{Kept, kept, relation, version_directory};
pub use facts::{BaseBackup, Lsn, Origin, TAG, TAG_DAMAGED, wal_segments};
pub use manifest::{Content, Manifest};
pub use recovery::{Recovery, SettingError, Target, TargetAction, settings};
pub use session::{Session, refuse_password};

use std::{io, path::PathBuf};

/// Why a cluster can't be backed up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection string has a password in it, which every user of the machine can read.
    #[error("the connection string has a password in it")]
    Password,
    /// psql can't be started.
    #[error("psql can't be started: {source}")]
    NoClient {
        /// What the system said.
        source: io::Error,
    },
    /// The server, or the client on the way to it, refused something.
    #[error("{doing}: {said}")]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// What psql said.
        said: String,
    },
    /// The answer is not what was asked for.
    #[error("{doing}: the answer makes no sense ({what})")]
    Answer {
        /// What was asked.
        doing: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The server's version is none that is known.
    #[error("PostgreSQL {version} is not supported: 13 to 17 are")]
    Version {
        /// The version.
        version: String,
    },
    /// The cluster doesn't archive its WAL, without which the backup could not be restored.
    #[error("the cluster doesn't archive its WAL ({why}), and the backup is of no use without it")]
    NoArchive {
        /// The setting that says so.
        why: &'static str,
    },
    /// A directory or file of the cluster can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is not that of the server that was asked.
    #[error("{} is the directory of another cluster: {found} instead of {wanted}", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The system identifier there.
        found: u64,
        /// The server's.
        wanted: u64,
    },
    /// A standby went to another timeline while it was backed up.
    #[error("the standby went from timeline {from} to {to} during the backup")]
    Timeline {
        /// Where the backup began.
        from: u32,
        /// Where it ended.
        to: u32,
    },
    /// The backup was cancelled.
    #[error("cancelled")]
    Cancelled,
}
