//! Reading trees and blobs: what a restore stands on.
//!
//! Blobs are fetched by ranges of their pack, neighbours together. Small packs of trees are fetched whole when they are
//! wanted a second time, because a walk wants most of their trees one after the other.
//!
//! Memory: the index (see [`Index::memory_bytes`]) and at most [`TREE_CACHE_BYTES_MAX`] of packs of trees.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use backlane_proto::{ByteRange, ObjectId};
use bytes::Bytes;

use crate::convert::tree_from_json;
use crate::error::RepoError;
use crate::index::{BlobId, BlobKind, BlobPlace, Index};
use crate::node::Tree;
use crate::repository::{Inner, damaged_pack};

/// Sealed bytes of packs of trees that are kept.
pub const TREE_CACHE_BYTES_MAX: usize = 32 << 20;

/// Larger packs of trees are not fetched whole.
const TREE_PACK_BYTES_MAX: u32 = 8 << 20;

/// Blobs no further apart than this are read together: about what a round trip costs in bytes.
pub const READ_GAP_BYTES_MAX: u32 = 128 << 10;

/// Blobs are read together up to this size; a single blob may be larger.
pub const READ_BYTES_MAX: u32 = 16 << 20;

/// Access to the content of snapshots. Calls may come from many threads at once.
pub struct Reader {
    pub(crate) inner: Arc<Inner>,
    index: Index,
    index_damage: Vec<RepoError>,
    trees: Mutex<TreeCache>,
}

/// Packs of trees that were fetched whole, the oldest first.
#[derive(Default)]
struct TreeCache {
    packs: VecDeque<(ObjectId, Bytes)>,
    bytes: usize,
    seen: HashSet<ObjectId>,
}

impl Reader {
    pub(crate) fn new(inner: Arc<Inner>, index: Index, index_damage: Vec<RepoError>) -> Self {
        Self {
            inner,
            index,
            index_damage,
            trees: Mutex::default(),
        }
    }

    /// Which pack holds which blob.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What was wrong with objects of the index. Blobs that only they knew can't be found.
    #[must_use]
    pub fn index_damage(&self) -> &[RepoError] {
        &self.index_damage
    }

    /// Where a blob lies.
    ///
    /// # Errors
    /// [`RepoError::BlobNotIndexed`].
    pub fn place(&self, kind: BlobKind, id: BlobId) -> Result<BlobPlace, RepoError> {
        let place = self.index.find(kind, id);
        place.ok_or(RepoError::BlobNotIndexed { kind, id })
    }

    /// Reads a directory. Its nodes' names are as the repository has them: see [`crate::name_is_plain`].
    ///
    /// # Errors
    /// When the tree is in no index, can't be read, or is damaged.
    pub fn tree(&self, id: BlobId) -> Result<Tree, RepoError> {
        let place = self.place(BlobKind::Tree, id)?;
        let sealed = self.sealed_tree(&place)?;
        let json = self.open_blob(&place, &sealed)?;
        tree_from_json(&json).map_err(|damage| damaged_pack(place.pack, damage))
    }

    /// The list of a directory, opened and neither decompressed nor held against its hash.
    pub(crate) fn opened_tree(&self, place: &BlobPlace) -> Result<Vec<u8>, RepoError> {
        let sealed = self.sealed_tree(place)?;
        let opened = self.inner.key.open(&sealed);
        opened.map_err(|damage| damaged_pack(place.pack, damage))
    }

    /// Reads blobs of one pack, in the order of `places`, each checked against its hash.
    ///
    /// Neighbours are read together (see [`READ_GAP_BYTES_MAX`], [`READ_BYTES_MAX`]); what is given back lies in memory
    /// at once, so the caller bounds it by what it asks for. Places of other packs are read from there.
    ///
    /// # Errors
    /// When the pack can't be read, or a blob is damaged.
    pub fn read_blobs(&self, places: &[BlobPlace]) -> Result<Vec<Bytes>, RepoError> {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|&at| (places[at].pack, places[at].offset));
        let mut blobs = vec![Bytes::new(); places.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (group, range) = next_read(places, rest);
            rest = &rest[group.len()..];
            let first = &places[group[0]];
            let sealed = self.read_pack(first.pack, range)?;
            for &at in group {
                let place = &places[at];
                let start = (place.offset - first.offset) as usize;
                let part = sealed.slice(start..start + place.length as usize);
                blobs[at] = self.open_blob(place, &part)?;
            }
        }
        Ok(blobs)
    }

    /// Opens a blob that the caller has read itself: decrypts, decompresses, and checks its hash.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn open_blob(&self, place: &BlobPlace, sealed: &[u8]) -> Result<Bytes, RepoError> {
        let opened = self.inner.key.open_blob(place, sealed);
        opened.map_err(|damage| damaged_pack(place.pack, damage))
    }

    /// Reads exactly a range of a pack, sealed as it is.
    ///
    /// # Errors
    /// When it can't be read whole.
    pub fn read_pack(&self, pack: ObjectId, range: ByteRange) -> Result<Bytes, RepoError> {
        self.inner.read_pack(pack, range)
    }

    fn sealed_tree(&self, place: &BlobPlace) -> Result<Bytes, RepoError> {
        let start = place.offset as usize;
        let stop = start + place.length as usize;
        let whole = {
            let mut cache = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
            // Parts of the index may speak of one pack, and each of other blobs: what is kept goes to the end of one part.
            let kept = cache.find(place.pack).filter(|pack| stop <= pack.len());
            if let Some(pack) = kept {
                return Ok(pack.slice(start..stop));
            }
            let end = self.index.blobs_end(place.kind, place.id);
            let small = end.filter(|end| *end <= TREE_PACK_BYTES_MAX);
            small.filter(|_| !cache.seen.insert(place.pack))
        };
        let range = |offset: u32, length: u32| ByteRange {
            offset: offset.into(),
            length: length.into(),
        };
        let Some(end) = whole else {
            return self.read_pack(place.pack, range(place.offset, place.length));
        };
        let pack = self.read_pack(place.pack, range(0, end))?;
        let mut cache = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        cache.keep(place.pack, pack.clone());
        Ok(pack.slice(start..stop))
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("index", &self.index)
            .finish()
    }
}

impl TreeCache {
    fn find(&self, id: ObjectId) -> Option<Bytes> {
        let found = self.packs.iter().find(|(pack, _)| *pack == id);
        found.map(|(_, bytes)| bytes.clone())
    }

    fn keep(&mut self, id: ObjectId, pack: Bytes) {
        if self.find(id).is_some() {
            return;
        }
        self.bytes += pack.len();
        self.packs.push_back((id, pack));
        while self.bytes > TREE_CACHE_BYTES_MAX {
            let Some((_, oldest)) = self.packs.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
    }
}

/// The first places of a sorted list that are read together, and the range that holds them.
fn next_read<'a>(places: &[BlobPlace], order: &'a [usize]) -> (&'a [usize], ByteRange) {
    let first = &places[order[0]];
    let end_of = |place: &BlobPlace| place.offset.saturating_add(place.length);
    let mut end = end_of(first);
    let more = order[1..].iter().take_while(|&&at| {
        let place = &places[at];
        let near = place.pack == first.pack
            && place.offset.saturating_sub(end) <= READ_GAP_BYTES_MAX
            && end_of(place) - first.offset <= READ_BYTES_MAX;
        if near {
            end = end.max(end_of(place));
        }
        near
    });
    let count = 1 + more.count();
    let range = ByteRange {
        offset: first.offset.into(),
        length: (end - first.offset).into(),
    };
    (&order[..count], range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pack: u8, offset: u32, length: u32) -> BlobPlace {
        BlobPlace {
            id: BlobId([0; 32]),
            kind: BlobKind::Data,
            pack: ObjectId([pack; 32]),
            offset,
            length,
            plain_length: 0,
            compressed: false,
        }
    }

    #[test]
    fn neighbours_are_read_together_and_others_apart() {
        let near = READ_GAP_BYTES_MAX;
        let places = [
            place(1, 0, 100),
            place(1, 100 + near, 100),
            place(1, 50, 10),
            place(1, 202 + 2 * near, 7),
            place(2, 209 + 2 * near, 7),
        ];
        let order = [0, 2, 1, 3, 4];
        let (group, range) = next_read(&places, &order);
        assert_eq!(group, [0, 2, 1]);
        assert_eq!((range.offset, range.length), (0, 200 + u64::from(near)));
        let (group, range) = next_read(&places, &order[3..]);
        assert_eq!(group, [3]);
        assert_eq!(range.length, 7);

        let big = [
            place(1, 0, READ_BYTES_MAX + 1),
            place(1, READ_BYTES_MAX + 1, 1),
        ];
        assert_eq!(next_read(&big, &[0, 1]).0, [0]);
    }
}
