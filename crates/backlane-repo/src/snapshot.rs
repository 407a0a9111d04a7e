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

    /// Finds the snapshot that a user names: `latest`, `latest:HOST`, or the first digits of its name.
    ///
    /// # Errors
    /// [`RepoError::SnapshotNotFound`], [`RepoError::SnapshotAmbiguous`], or when one can't be read.
    pub fn resolve(&self, wanted: &str) -> Result<SnapshotInfo, RepoError> {
        resolve(self.snapshots()?, wanted)
    }
}

fn resolve(snapshots: Vec<SnapshotInfo>, wanted: &str) -> Result<SnapshotInfo, RepoError> {
    let mut matches: Vec<_> = if let Some(rest) = wanted.strip_prefix("latest") {
        let host = rest.strip_prefix(':');
        if !rest.is_empty() && host.is_none_or(str::is_empty) {
            Vec::new()
        } else {
            let of_host = |info: &SnapshotInfo| host.is_none_or(|host| info.host == host);
            snapshots.into_iter().rfind(of_host).into_iter().collect()
        }
    } else if wanted.is_empty() {
        Vec::new()
    } else {
        let prefix = wanted.to_ascii_lowercase();
        let starts = |info: &SnapshotInfo| info.id.to_string().starts_with(&prefix);
        snapshots.into_iter().filter(starts).collect()
    };
    let wanted = wanted.to_owned();
    match (matches.pop(), matches.is_empty()) {
        (None, _) => Err(RepoError::SnapshotNotFound { wanted }),
        (Some(info), true) => Ok(info),
        (Some(last), false) => Err(RepoError::SnapshotAmbiguous {
            wanted,
            matches: matches.iter().chain([&last]).map(|info| info.id).collect(),
        }),
    }
}

impl Inner {
    /// Every snapshot in the engine's form, oldest first.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, RepoError> {
        let all = Mutex::new(Vec::new());
        self.for_each_object(ObjectKind::Snapshot, |id, json| {
            let bad = |error: &serde_json::Error| unreadable(name(ObjectKind::Snapshot, id), error);
            let mut file: SnapshotFile = serde_json::from_slice(&json).map_err(|e| bad(&e))?;
            file.id = SnapshotId::from(rustic_core::Id::new(id.0));
            let extra: WithExtra = serde_json::from_slice(&json).map_err(|e| bad(&e))?;
            let warnings = extra.backlane.map(|extra| extra.warnings);
            let snapshot = Snapshot { file, id, warnings };
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(snapshot);
            Ok(())
        })?;
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.sort_by_cached_key(|snapshot| (snapshot.file.time.timestamp(), snapshot.id));
        Ok(all)
    }
}

impl Snapshot {
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
        resolve(all, wanted).map(|info| info.id.0[0])
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
