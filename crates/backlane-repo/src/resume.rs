//! What an interrupted backup has left, and the next one goes on from.
//!
//! A backup writes an object of the index every 50,000 blobs or five minutes. One that is killed leaves packs behind which are
//! durable and in no index, so that the next one would store again what is in them. But a pack ends with its header, a
//! sealed list of its blobs: of each pack that no index names the header is read here, and put into an index. A pack
//! without a header that can be believed is named and left alone; nothing is removed.
//!
//! Such a pack may also be one that another job of the same host has put just now. That job names it in its own index as
//! well, which the format allows: of two places for a blob a reader keeps one, and a prune drops the second entry.

use std::mem;
use std::sync::{Mutex, PoisonError};

use backlane_proto::{ObjectId, ObjectInfo, ObjectKind};
use bytes::Bytes;

use crate::archive::Cancel;
use crate::error::RepoError;
use crate::index::{self, HexId, NamedPacks, PackJson};
use crate::parallel;
use crate::repository::{Inner, damaged, name};
use crate::seal::sha256;
use crate::source::{Source, Warning, WarningKind};

/// An index of what was left is closed when it has so many blobs.
const INDEX_BLOBS: usize = 10_000;

/// What of an interrupted backup is used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Continued {
    /// Packs.
    pub(crate) packs: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// The packs of a repository, as a backup finds them.
pub(crate) struct Packs {
    /// Those that are in no index.
    left: Vec<ObjectInfo>,
    /// Those that an index names and that were not there when they were listed.
    pub(crate) not_listed: Vec<ObjectId>,
}

impl Inner {
    /// Lists the packs, and holds them against the index.
    pub(crate) fn packs(&self) -> Result<Packs, RepoError> {
        // Before the index is read: what another job completes in between is in it then.
        let mut left = self.store.list(ObjectKind::Pack)?;
        let mut named = self.named_packs()?;
        left.retain(|pack| {
            let is_named = named.in_use.remove(&pack.id);
            !is_named && !named.marked.contains(&pack.id)
        });
        Ok(Packs {
            left,
            not_listed: named.in_use.into_iter().collect(),
        })
    }

    /// Makes an index of all packs that are in none. The source is told of those that can't be used.
    pub(crate) fn continue_interrupted(
        &self,
        packs: &Packs,
        source: &dyn Source,
        cancel: &Cancel,
    ) -> Result<Continued, RepoError> {
        let found = Mutex::new((Continued::default(), Vec::new()));
        parallel::for_each(&packs.left, |pack| {
            if cancel.is_cancelled() {
                return Err(RepoError::Cancelled);
            }
            match self.blobs_of(pack) {
                Ok(blobs) => {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    let (continued, packs) = &mut *found;
                    continued.packs += 1;
                    continued.bytes += pack.bytes;
                    let id = HexId(pack.id.0);
                    packs.push(PackJson { id, blobs });
                }
                Err(error) if error.is_damage() => source.warn(&Warning {
                    path: b"pack".to_vec(),
                    kind: WarningKind::Repository,
                    reason: format!("{error}; it is in no index, and is not used"),
                }),
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let (continued, packs) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.write_indexes(packs)?;
        Ok(continued)
    }

    /// Every pack that an index names. A damaged index names none: its packs are read like those that were left.
    pub(crate) fn named_packs(&self) -> Result<NamedPacks, RepoError> {
        let named = Mutex::new(NamedPacks::default());
        self.for_each_object(ObjectKind::Index, |id, json| {
            let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
            named
                .add_json(&json)
                .map_err(|damage| damaged(name(ObjectKind::Index, id), damage))
        })?;
        Ok(named.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_indexes(&self, packs: Vec<PackJson>) -> Result<(), RepoError> {
        let (mut part, mut blobs) = (Vec::new(), 0);
        for pack in packs {
            blobs += pack.blobs.len();
            part.push(pack);
            if blobs >= INDEX_BLOBS {
                self.write_index(mem::take(&mut part))?;
                blobs = 0;
            }
        }
        match part.is_empty() {
            true => Ok(()),
            false => self.write_index(part),
        }
    }

    /// Makes an object of the index, and stores it after everything before it.
    pub(crate) fn write_index(&self, packs: Vec<PackJson>) -> Result<(), RepoError> {
        let doing = "writing an index";
        let failed = |what: String| RepoError::Engine { doing, what };
        let json = index::to_json(packs).map_err(|error| failed(error.to_string()))?;
        let sealed = self.sealed(&json, doing)?;
        self.write_sealed_index(sealed)
    }

    /// Stores an object of the index, after everything before it.
    pub(crate) fn write_sealed_index(&self, sealed: Bytes) -> Result<(), RepoError> {
        let name = name(ObjectKind::Index, ObjectId(sha256(&sealed)));
        self.backend
            .write_after_all(name, sealed)
            .map_err(|cause| RepoError::WriteFailed { cause })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::index::{BlobJson, KindJson};
    use crate::testing::MemoryStore;
    use crate::{InitOptions, Repository};

    #[test]
    fn an_index_is_closed_when_it_has_many_blobs() {
        let store = Arc::new(MemoryStore::default());
        let repository =
            Repository::init(Arc::clone(&store) as _, "x", &InitOptions::default()).unwrap();
        let blob = |_| BlobJson {
            id: HexId([1; 32]),
            kind: KindJson::Data,
            offset: 0,
            length: 40,
            uncompressed_length: None,
        };
        let pack = |id: u8| PackJson {
            id: HexId([id; 32]),
            blobs: (0..6000).map(blob).collect(),
        };
        let packs = (1..=5).map(pack).collect();
        repository.inner.write_indexes(packs).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 3);
        assert_eq!(repository.index().unwrap().packs(), 5);
    }
}
