//! Snapshots: listing them, naming them, and what they say.

use std::sync::{Mutex, PoisonError};

use backlane_proto::{ObjectId, ObjectKind};
use rustic_core::repofile::{SnapshotFile, SnapshotId};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::RepoError;
use crate::index::BlobId;
use crate::repository::{Inner, Repository, name, unreadable};

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotInfo {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub id: ObjectId,
    /// When it was made: RFC 3339 with the offset of the host that made it.
    pub time: String,
    /// The same in seconds since 1970 UTC.
    pub unix_seconds: i64,
    /// The host that it is of.
    pub host: String,
    /// What was backed up; bytes that aren't UTF-8 appear replaced.
    pub paths: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The root of its trees.
    #[serde(serialize_with = "as_text")]
    pub tree: BlobId,
    /// The snapshot that it was compared with.
    #[serde(serialize_with = "as_optional_text")]
    pub parent: Option<ObjectId>,
    /// What its maker said of it.
    pub description: Option<String>,
    /// The program that made it.
    pub program: String,
    /// How many warnings there were; `None` when another program made it, which doesn't record them.
    pub warnings: Option<u64>,
    /// What the backup did; `None` when its maker doesn't record it.
    pub summary: Option<SnapshotSummary>,
}

/// What the backup did that made a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotSummary {
    /// Files that the parent didn't have.
    pub files_new: u64,
    /// Files that the parent had differently.
    pub files_changed: u64,
    /// Files that the parent had alike.
    pub files_unmodified: u64,
    /// Bytes of all files.
    pub bytes_processed: u64,
    /// Plain bytes that were new to the repository.
    pub bytes_added: u64,
    /// The same, compressed and sealed.
    pub bytes_packed: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A snapshot in the engine's form, with what only we record.
pub(crate) struct Snapshot {
    pub(crate) file: SnapshotFile,
    pub(crate) id: ObjectId,
    warnings: Option<u64>,
}

/// What we record beside what the format knows; other programs pass over it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Extra {
    pub(crate) warnings: u64,
}

/// The field of a snapshot that holds [`Extra`].
pub(crate) const EXTRA_FIELD: &str = "backlane";

#[derive(Deserialize)]
struct WithExtra {
    backlane: Option<Extra>,
}

impl Repository {
    /// Every snapshot, oldest first.
    ///
    /// # Errors
    /// When one can't be read, or is damaged.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>, RepoError> {
        let snapshots = self.inner.snapshots()?;
        Ok(snapshots.iter().map(Snapshot::info).collect())
    }

    /// Every snapshot that can be read, oldest first, and what is wrong with the others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn readable_snapshots(&self) -> Result<(Vec<SnapshotInfo>, Vec<RepoError>), RepoError> {
        let (snapshots, damage) = self.inner.readable_snapshots()?;
        Ok((snapshots.iter().map(Snapshot::info).collect(), damage))
    }

    /// Finds the snapshot that a user names: `latest`, `latest:HOST`, or the first digits of its name. With digits, no
    /// other snapshot is read; without, one that is damaged might be the one that is meant.
    ///
    /// # Errors
    /// [`RepoError::SnapshotNotFound`], [`RepoError::SnapshotAmbiguous`], or when one that must be read can't be.
    pub fn resolve(&self, wanted: &str) -> Result<SnapshotInfo, RepoError> {
        if let Some(rest) = wanted.strip_prefix("latest") {
            return latest(self.snapshots()?, wanted, rest);
        }
        let id = self.snapshot_named(wanted)?;
        Ok(self.inner.snapshot(id)?.info())
    }

    /// As [`Repository::resolve`], but `latest` is the newest of the snapshots that can be read. What is wrong with the
    /// others comes beside it: any of them might be newer.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; where no snapshot is left that could be meant, what is wrong with one that can't be
    /// read.
    pub fn resolve_readable(
        &self,
        wanted: &str,
    ) -> Result<(SnapshotInfo, Vec<RepoError>), RepoError> {
        let Some(rest) = wanted.strip_prefix("latest") else {
            return Ok((self.resolve(wanted)?, Vec::new()));
        };
        let (readable, mut damage) = self.readable_snapshots()?;
        match latest(readable, wanted, rest) {
            Ok(found) => Ok((found, damage)),
            Err(error) => Err(damage.pop().unwrap_or(error)),
        }
    }

    /// The name of the snapshot that begins with these digits. Nothing is read, so that it may be damaged.
    ///
    /// # Errors
    /// [`RepoError::SnapshotNotFound`], [`RepoError::SnapshotAmbiguous`], or when the list can't be had.
    pub fn snapshot_named(&self, digits: &str) -> Result<ObjectId, RepoError> {
        let listed = self.inner.store.list(ObjectKind::Snapshot)?;
        named(listed.iter().map(|info| info.id), digits)
    }
}

fn latest(
    snapshots: Vec<SnapshotInfo>,
    wanted: &str,
    rest: &str,
) -> Result<SnapshotInfo, RepoError> {
    let host = rest.strip_prefix(':');
    let means_something = rest.is_empty() || host.is_some_and(|host| !host.is_empty());
    let of_host = |info: &SnapshotInfo| host.is_none_or(|host| info.host == host);
    let found = snapshots.into_iter().rfind(of_host);
    let wanted = wanted.to_owned();
    let found = found.filter(|_| means_something);
    found.ok_or(RepoError::SnapshotNotFound { wanted })
}

fn named(all: impl Iterator<Item = ObjectId>, digits: &str) -> Result<ObjectId, RepoError> {
    let prefix = digits.to_ascii_lowercase();
    let starts = |id: &ObjectId| !prefix.is_empty() && id.to_string().starts_with(&prefix);
    let mut matches: Vec<_> = all.filter(starts).collect();
    let wanted = digits.to_owned();
    match (matches.pop(), matches.is_empty()) {
        (None, _) => Err(RepoError::SnapshotNotFound { wanted }),
        (Some(id), true) => Ok(id),
        (Some(last), false) => {
            matches.push(last);
            Err(RepoError::SnapshotAmbiguous { wanted, matches })
        }
    }
}

impl Inner {
    /// Every snapshot in the engine's form, oldest first. One that is damaged is an error.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, RepoError> {
        let (snapshots, mut damage) = self.readable_snapshots()?;
        damage.pop().map_or(Ok(snapshots), Err)
    }

    /// Every snapshot that can be read, oldest first, and what is wrong with the others.
    pub(crate) fn readable_snapshots(&self) -> Result<(Vec<Snapshot>, Vec<RepoError>), RepoError> {
        let all = Mutex::new(Vec::new());
        let damage = self.for_each_object(ObjectKind::Snapshot, |id, json| {
            let snapshot = Snapshot::parse(id, &json)?;
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(snapshot);
            Ok(())
        })?;
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.sort_by_cached_key(|snapshot: &Snapshot| (snapshot.file.time.timestamp(), snapshot.id));
        Ok((all, damage))
    }

    pub(crate) fn snapshot(&self, id: ObjectId) -> Result<Snapshot, RepoError> {
        Snapshot::parse(id, &self.object(ObjectKind::Snapshot, id)?)
    }
}

impl Snapshot {
    pub(crate) fn parse(id: ObjectId, json: &[u8]) -> Result<Self, RepoError> {
        let bad = |error: &serde_json::Error| unreadable(name(ObjectKind::Snapshot, id), error);
        let mut file: SnapshotFile = serde_json::from_slice(json).map_err(|e| bad(&e))?;
        file.id = SnapshotId::from(rustic_core::Id::new(id.0));
        let extra: WithExtra = serde_json::from_slice(json).map_err(|e| bad(&e))?;
        let warnings = extra.backlane.map(|extra| extra.warnings);
        Ok(Self { file, id, warnings })
    }

    /// What a user sees of it.
    pub(crate) fn info(&self) -> SnapshotInfo {
        let file = &self.file;
        let list = |list: &rustic_core::StringList| list.iter().cloned().collect();
        SnapshotInfo {
            id: self.id,
            time: file.time.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string(),
            unix_seconds: file.time.timestamp().as_second(),
            host: file.hostname.clone(),
            paths: list(&file.paths),
            tags: list(&file.tags),
            tree: BlobId(crate::convert::object_id(&file.tree).0),
            parent: file.parent.map(|id| crate::convert::object_id(&id)),
            description: file.description.clone(),
            program: file.program_version.clone(),
            warnings: self.warnings,
            summary: file.summary.as_ref().map(|summary| SnapshotSummary {
                files_new: summary.files_new,
                files_changed: summary.files_changed,
                files_unmodified: summary.files_unmodified,
                bytes_processed: summary.total_bytes_processed,
                bytes_added: summary.data_added,
                bytes_packed: summary.data_added_packed,
                seconds: summary.backup_duration,
            }),
        }
    }
}

pub(crate) fn as_text<T: ToString, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
pub(crate) fn as_optional_text<T: ToString, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(T::to_string).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: u8, host: &str) -> SnapshotInfo {
        SnapshotInfo {
            id: ObjectId([id; 32]),
            time: String::new(),
            unix_seconds: 0,
            host: host.to_owned(),
            paths: Vec::new(),
            tags: Vec::new(),
            tree: BlobId([0; 32]),
            parent: None,
            description: None,
            program: String::new(),
            warnings: None,
            summary: None,
        }
    }

    fn found(wanted: &str) -> Result<u8, RepoError> {
        let all = vec![
            info(0x11, "a"),
            info(0x12, "b"),
            info(0xab, "a"),
            info(0xcd, "c"),
        ];
        match wanted.strip_prefix("latest") {
            Some(rest) => latest(all, wanted, rest).map(|info| info.id.0[0]),
            None => named(all.iter().map(|info| info.id), wanted).map(|id| id.0[0]),
        }
    }

    #[test]
    fn snapshots_are_named_by_latest_by_host_and_by_prefix() {
        assert_eq!(found("latest").unwrap(), 0xcd);
        assert_eq!(found("latest:a").unwrap(), 0xab);
        assert_eq!(found("latest:b").unwrap(), 0x12);
        assert_eq!(found("ab").unwrap(), 0xab);
        assert_eq!(found("AB").unwrap(), 0xab);
        for missing in ["", "latest:", "latest:x", "latestx", "2", &"1".repeat(65)] {
            let result = found(missing);
            assert!(
                matches!(result, Err(RepoError::SnapshotNotFound { .. })),
                "{missing}"
            );
        }
        match found("1") {
            Err(RepoError::SnapshotAmbiguous { matches, .. }) => assert_eq!(matches.len(), 2),
            other => panic!("{other:?}"),
        }
    }
}
