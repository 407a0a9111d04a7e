//! Packs that the index names and that are not there: lost with a part of a disk, say, or put aside as damaged.
//!
//! The engine believes the index. So it gets one that doesn't name such packs, and stores again what a backup meets of
//! what was in them; what is elsewhere, too, is not. Nothing is removed before a prune: an older snapshot may still need
//! what such a pack held, and the pack may come back.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use backlane_proto::{ObjectId, ObjectKind, ObjectName};

use crate::backend::{IndexInstead, Shown};
use crate::error::RepoError;
use crate::index::{self, BlobId, BlobKind};
use crate::repository::{Inner, damaged, name};

/// Packs that are named and not there.
#[derive(Default)]
pub(crate) struct Missing {
    packs: HashSet<ObjectId>,
    /// The objects of the index that name them, as they are without them.
    index: IndexInstead,
    /// What is in no other pack.
    blobs: HashSet<(BlobKind, BlobId)>,
}

impl Missing {
    /// How many packs.
    pub(crate) fn packs(&self) -> u64 {
        self.packs.len() as u64
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = ObjectName> {
        let kind = ObjectKind::Pack;
        self.packs.iter().map(move |id| name(kind, *id))
    }

    /// Whether this one is missing.
    pub(crate) fn has(&self, pack: ObjectId) -> bool {
        self.packs.contains(&pack)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// How many blobs were in these packs alone.
    pub(crate) fn blobs(&self) -> u64 {
        self.blobs.len() as u64
    }
}

impl Inner {
    /// Finds packs that are missing, of those that the index `names`.
    pub(crate) fn missing(
        &self,
        names: impl IntoIterator<Item = ObjectId>,
    ) -> Result<Missing, RepoError> {
        let mut packs: HashSet<_> = names.into_iter().collect();
        if packs.is_empty() {
            return Ok(Missing::default());
        }
        // After the index was read: a pack is stored before an index names it.
        for pack in self.store.list(ObjectKind::Pack)? {
            packs.remove(&pack.id);
        }
        if packs.is_empty() {
            return Ok(Missing::default());
        }
        let index = Mutex::new(IndexInstead::new());
        self.for_each_object(ObjectKind::Index, |id, json| {
            let without = index::without_packs(&json, &packs)
                .map_err(|damage| damaged(name(ObjectKind::Index, id), damage))?;
            let Some((json, left)) = without else {
                return Ok(());
            };
            let sealed = match left {
                0 => None,
                _ => Some(self.sealed(&json, "writing an index")?),
            };
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.insert(id, sealed);
            Ok(())
        })?;
        let (all, _) = self.index()?;
        let lost = all.blobs().filter(|place| packs.contains(&place.pack));
        Ok(Missing {
            blobs: lost.map(|place| (place.kind, place.id)).collect(),
            index: index.into_inner().unwrap_or_else(PoisonError::into_inner),
            packs,
        })
    }

    /// Shows the engine an index that doesn't name them, as long as what is returned lives.
    pub(crate) fn without(&self, missing: &Missing) -> Shown<'_> {
        self.backend.show_instead(missing.index.clone())
    }

    /// How many of the blobs that were in missing packs alone are in others now.
    pub(crate) fn found_again(&self, missing: &Missing) -> Result<u64, RepoError> {
        if missing.is_empty() {
            return Ok(0);
        }
        let (index, _) = self.index()?;
        let is_there = |(kind, id): &&(BlobKind, BlobId)| {
            let place = index.find(*kind, *id);
            place.is_some_and(|place| !missing.packs.contains(&place.pack))
        };
        Ok(missing.blobs.iter().filter(is_there).count() as u64)
    }

    /// Writes the index anew without them. Nobody else may have the repository open.
    pub(crate) fn drop_from_index(&self, missing: Missing) -> Result<(), RepoError> {
        let failed = |cause| RepoError::WriteFailed { cause };
        for (id, without) in missing.index {
            if let Some(sealed) = without {
                self.write_sealed_index(sealed)?;
            }
            let old = name(ObjectKind::Index, id);
            self.backend.delete(old).map_err(failed)?;
        }
        Ok(())
    }
}
