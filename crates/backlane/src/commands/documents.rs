//! The documents of jobs and of enrolment. The demo reads them from the processes that it started.

use super::{
    mariadb::{MariadbDocument, RestoredDocument},
    postgres::PostgresDocument,
    summary::Routes,
};
use backlane_client::{WarningKind, Warnings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `server enroll` prints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EnrollDocument {
    /// The host's name.
    pub(crate) host: String,
    /// The join token.
    pub(crate) token: String,
    /// The slot of the pool to enrol by, if that is how the host gets here.
    pub(crate) slot: Option<u32>,
    /// When it stops working, RFC 3339.
    pub(crate) expires: String,
}

/// What `backup` prints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BackupDocument {
    /// The snapshot's id; none on a dry run.
    pub(crate) snapshot: Option<String>,
    /// The snapshot that it was compared with.
    pub(crate) parent: Option<String>,
    /// Whether nothing was stored.
    pub(crate) dry_run: bool,
    /// Regular files, and whatever else is no directory.
    pub(crate) files: u64,
    /// Those that the parent didn't have.
    pub(crate) files_new: u64,
    /// Those that the parent had differently.
    pub(crate) files_changed: u64,
    /// Directories.
    pub(crate) directories: u64,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Bytes that the repository did not have, before compression.
    pub(crate) bytes_added: u64,
    /// The same, compressed and sealed.
    pub(crate) bytes_packed: u64,
    /// Packs that an interrupted backup had stored, and are used.
    pub(crate) packs_continued: u64,
    /// Their bytes.
    pub(crate) bytes_continued: u64,
    /// Packs that the index names and that are not there.
    pub(crate) packs_missing: u64,
    /// Blobs that only they had.
    pub(crate) blobs_missing: u64,
    /// How many of them are stored again.
    pub(crate) blobs_stored_again: u64,
    /// What it is, where it is of a PostgreSQL cluster.
    pub(crate) postgres: Option<PostgresDocument>,
    /// The same of a MariaDB server or its binary logs.
    pub(crate) mariadb: Option<MariadbDocument>,
    /// How long the job took.
    pub(crate) seconds: f64,
    /// What each route carried.
    #[serde(flatten)]
    pub(crate) routes: Routes,
    /// What went wrong without ending the job.
    pub(crate) warnings: WarningsDocument,
}

/// What `restore` prints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RestoreDocument {
    /// The snapshot's id.
    pub(crate) snapshot: String,
    /// Whether nothing was written.
    pub(crate) dry_run: bool,
    /// Files that were written.
    pub(crate) files_restored: u64,
    /// Files that stood there already, read and found right.
    pub(crate) files_kept: u64,
    /// Files that were read again after they were written, and are right.
    pub(crate) files_verified: u64,
    /// Directories.
    pub(crate) directories: u64,
    /// Symbolic links, devices, fifos and sockets.
    pub(crate) others: u64,
    /// Further names of files.
    pub(crate) hard_links: u64,
    /// What was removed, as the snapshot doesn't have it.
    pub(crate) deleted: u64,
    /// What was not restored, or differed when read again.
    pub(crate) failed: u64,
    /// Bytes of all files that are in place now.
    pub(crate) bytes: u64,
    /// Bytes that were written.
    pub(crate) bytes_restored: u64,
    /// Bytes that stood there already and are right, in files that an interrupted restore had begun as well.
    pub(crate) bytes_kept: u64,
    /// What it is, where it is of a MariaDB server, and what comes next.
    pub(crate) mariadb: Option<RestoredDocument>,
    /// How long the job took.
    pub(crate) seconds: f64,
    /// What each route carried.
    #[serde(flatten)]
    pub(crate) routes: Routes,
    /// What went wrong without ending the job.
    pub(crate) warnings: WarningsDocument,
}

/// The warnings of a job.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct WarningsDocument {
    /// How many in all.
    pub(crate) count: u64,
    /// How many of each kind.
    pub(crate) kinds: BTreeMap<String, u64>,
    /// The first of them.
    pub(crate) first: Vec<WarningDocument>,
}

/// One warning.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WarningDocument {
    /// What it is about.
    pub(crate) kind: String,
    /// The file or directory; bytes that aren't UTF-8 are replaced.
    pub(crate) path: String,
    /// What happened, in words.
    pub(crate) what: String,
}

/// Warnings that a document holds; further ones are counted, and were printed to standard error.
const WARNINGS_MAX: usize = 1000;

impl From<&Warnings> for WarningsDocument {
    fn from(warnings: &Warnings) -> Self {
        let kinds = warnings.counts.iter();
        let first = warnings.first.iter().take(WARNINGS_MAX);
        Self {
            count: warnings.total(),
            kinds: kinds.map(|(kind, count)| (code(*kind), *count)).collect(),
            first: first
                .map(|warning| WarningDocument {
                    kind: code(warning.kind),
                    path: warning.path.to_string_lossy().into_owned(),
                    what: warning.what.clone(),
                })
                .collect(),
        }
    }
}

impl WarningsDocument {
    /// Adds one.
    pub(crate) fn add(&mut self, warning: WarningDocument) {
        self.count += 1;
        *self.kinds.entry(warning.kind.clone()).or_default() += 1;
        self.first.push(warning);
    }

    /// One line with the counts. The warnings themselves were printed as they happened.
    pub(crate) fn text(&self) -> String {
        if self.count == 0 {
            return String::new();
        }
        let kinds: Vec<String> = self
            .kinds
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        format!("{} warnings: {}\n", self.count, kinds.join(", "))
    }
}

/// The kind's name in documents.
fn code(kind: WarningKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(code)) => code,
        _ => format!("{kind:?}"),
    }
}
