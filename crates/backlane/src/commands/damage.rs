//! What of a repository is damaged and did not stop a command: named on standard error, and in its document.

use super::documents::{WarningDocument, WarningsDocument};
use crate::{
    Context,
    output::{Outcome, Output},
};
use backlane_repo::{Reader, RepoError, Repository, SnapshotInfo, Unread};
use serde::Serialize;

/// What was found to be damaged so far.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Damage {
    found: Vec<DamageDocument>,
    #[serde(skip)]
    output: Output,
}

/// A damaged object, or what can't be read because of one.
#[derive(Serialize)]
struct DamageDocument {
    /// The object, by its kind and whole id; none where it is in no index.
    object: Option<String>,
    /// The directory that can't be read because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// What is wrong, in words.
    what: String,
}

impl Damage {
    /// Nothing yet.
    pub(crate) fn none(context: &Context) -> Self {
        let found = Vec::new();
        Self {
            found,
            output: context.output,
        }
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How a command ends that has done all it could.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::from_warnings(self.found.len() as u64)
    }

    /// Notes and names a damaged object, and what that means here.
    pub(crate) fn note(&mut self, error: &RepoError, meaning: &str) {
        self.push(error, None, format!("{error}; {meaning}"));
    }

    /// Notes and names a directory that can't be read.
    pub(crate) fn note_unread(&mut self, unread: &[Unread]) {
        for Unread { path, error } in unread {
            let path = String::from_utf8_lossy(path).into_owned();
            let what = format!("{path}: what is in it can't be read: {error}");
            self.push(error, Some(path), what);
        }
    }

    fn push(&mut self, error: &RepoError, path: Option<String>, what: String) {
        self.output.warning(&what);
        self.found.push(DamageDocument {
            object: error.object().map(|name| name.to_string()),
            path,
            what,
        });
    }

    /// The snapshot that the user names. Damaged ones stand in nobody's way, unless one of them is named.
    ///
    /// # Errors
    /// When there is no such snapshot, or it is damaged.
    pub(crate) fn resolve(
        &mut self,
        repository: &Repository,
        wanted: &str,
    ) -> Result<SnapshotInfo, RepoError> {
        let (found, damaged) = repository.resolve_readable(wanted)?;
        for error in &damaged {
            let short = &found.id.to_string()[..8];
            let meaning = format!("it may be newer than {short}, which is taken as the latest");
            self.note(error, &meaning);
        }
        Ok(found)
    }

    /// All snapshots that can be read.
    ///
    /// # Errors
    /// When the server fails.
    pub(crate) fn snapshots(
        &mut self,
        repository: &Repository,
    ) -> Result<Vec<SnapshotInfo>, RepoError> {
        let (snapshots, damaged) = repository.readable_snapshots()?;
        for error in &damaged {
            self.note(error, "the other snapshots are not concerned");
        }
        Ok(snapshots)
    }

    /// Reads what is left of the index.
    ///
    /// # Errors
    /// When the server fails.
    pub(crate) fn reader(&mut self, repository: &Repository) -> Result<Reader, RepoError> {
        let reader = repository.reader()?;
        for error in reader.index_damage() {
            self.note(error, "what only it knows can't be found");
        }
        Ok(reader)
    }

    /// Adds it to the warnings of a job.
    pub(crate) fn add_to(self, warnings: &mut WarningsDocument) {
        for one in self.found {
            let kind = "repository".to_owned();
            warnings.count += 1;
            *warnings.kinds.entry(kind.clone()).or_default() += 1;
            warnings.first.push(WarningDocument {
                kind,
                path: one.object.unwrap_or_default(),
                what: one.what,
            });
        }
    }
}
