//! What a pack says of itself: it ends with its header, a sealed list of its blobs.
//!
//! Invariants: of a pack nothing is believed but a header that the repository's key opens and that adds up to the pack's
//! size. What made the pack has written it, and the pack's name covers it: no index that came later changes it.

use std::sync::{Mutex, PoisonError};

use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind};

use crate::error::{Damage, RepoError};
use crate::index::{BlobJson, HexId, KindJson};
use crate::parallel;
use crate::repository::{Inner, Repository, damaged, name};
use crate::seal::SEAL_BYTES;

/// The largest header that is read, which is restic's limit as well.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The header's length stands behind it.
const LENGTH_BYTES: u64 = 4;

/// What the packs of a repository hold.
#[derive(Debug, Default)]
pub struct PackKinds {
    /// Packs that hold trees and nothing else.
    pub trees: Vec<ObjectId>,
    /// Packs that hold pieces of files.
    pub data: Vec<ObjectId>,
    /// What is wrong with those whose headers can't be read.
    pub damaged: Vec<RepoError>,
}

impl Repository {
    /// Reads of each of `packs` whether it holds trees.
    ///
    /// # Errors
    /// When the store fails; what is wrong with single packs is in the answer.
    pub fn pack_kinds(&self, packs: &[ObjectInfo]) -> Result<PackKinds, RepoError> {
        let kinds = Mutex::new(PackKinds::default());
        parallel::for_each(packs, |pack| {
            let blobs = self.inner.blobs_of(pack);
            let mut kinds = kinds.lock().unwrap_or_else(PoisonError::into_inner);
            match blobs {
                Ok(blobs) if holds_trees(&blobs) => kinds.trees.push(pack.id),
                Ok(_) => kinds.data.push(pack.id),
                Err(error) if error.is_damage() => kinds.damaged.push(error),
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(kinds.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

fn holds_trees(blobs: &[BlobJson]) -> bool {
    let is_tree = |blob: &BlobJson| matches!(blob.kind, KindJson::Tree);
    !blobs.is_empty() && blobs.iter().all(is_tree)
}

impl Inner {
    /// The blobs of a pack, by its header.
    pub(crate) fn blobs_of(&self, pack: &ObjectInfo) -> Result<Vec<BlobJson>, RepoError> {
        let bad = |damage| damaged(name(ObjectKind::Pack, pack.id), damage);
        let no_header = |what: &str| {
            let what = format!("its header {what}");
            bad(Damage::Content { what })
        };
        let last = |bytes: u64| ByteRange {
            offset: pack.bytes - bytes,
            length: bytes,
        };
        if pack.bytes < LENGTH_BYTES {
            return Err(no_header("is missing"));
        }
        // In two steps: the server gives a backup what is in the header, and nothing that stands before it.
        let end = self.read_pack(pack.id, last(LENGTH_BYTES))?;
        let end: [u8; 4] = (&*end).try_into().map_err(|_| no_header("is missing"))?;
        let length = u64::from(u32::from_le_bytes(end));
        if length > HEADER_BYTES_MAX.min(pack.bytes - LENGTH_BYTES) {
            return Err(no_header(&format!("can't have {length} bytes")));
        }
        let range = ByteRange {
            length,
            ..last(length + LENGTH_BYTES)
        };
        let header = self.read_pack(pack.id, range)?;
        let opened = self.key.open(&header).map_err(bad)?;
        let blobs = parse_header(&opened).ok_or_else(|| no_header("can't be understood"))?;
        let end = blobs
            .last()
            .map_or(0, |last| u64::from(last.offset) + u64::from(last.length));
        if end + length + LENGTH_BYTES != pack.bytes {
            return Err(no_header("does not add up to its size"));
        }
        Ok(blobs)
    }
}

/// The blobs that an opened header lists, which lie one behind the other from the pack's beginning; `None` when it is none.
pub(crate) fn parse_header(mut header: &[u8]) -> Option<Vec<BlobJson>> {
    let (mut blobs, mut offset) = (Vec::new(), 0u32);
    while let Some((form, rest)) = header.split_first() {
        header = rest;
        let (kind, is_compressed) = match form {
            0 => (KindJson::Data, false),
            1 => (KindJson::Tree, false),
            2 => (KindJson::Data, true),
            3 => (KindJson::Tree, true),
            _ => return None,
        };
        let length = take_number(&mut header)?;
        let uncompressed_length = match is_compressed {
            true => Some(take_number(&mut header).filter(|length| *length > 0)?),
            false => None,
        };
        let (id, rest) = header.split_first_chunk()?;
        header = rest;
        let end = offset.checked_add(length);
        blobs.push(BlobJson {
            id: HexId(*id),
            kind,
            offset,
            length,
            uncompressed_length,
        });
        offset = end.filter(|_| length >= SEAL_BYTES)?;
    }
    Some(blobs)
}

/// A pack's header, which [`parse_header`] reads: the blobs lie one behind the other.
pub(crate) fn write_header(blobs: &[BlobJson]) -> Vec<u8> {
    let mut header = Vec::with_capacity(blobs.len() * 41);
    for blob in blobs {
        header.push(match (blob.kind, blob.uncompressed_length) {
            (KindJson::Data, None) => 0,
            (KindJson::Tree, None) => 1,
            (KindJson::Data, Some(_)) => 2,
            (KindJson::Tree, Some(_)) => 3,
        });
        header.extend_from_slice(&blob.length.to_le_bytes());
        if let Some(length) = blob.uncompressed_length {
            header.extend_from_slice(&length.to_le_bytes());
        }
        header.extend_from_slice(&blob.id.0);
    }
    header
}

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header's entry: form, length, length before compression, hash.
    fn entry(form: u8, length: u32, plain: Option<u32>, id: u8) -> Vec<u8> {
        let mut bytes = vec![form];
        bytes.extend(length.to_le_bytes());
        bytes.extend(plain.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([id; 32]);
        bytes
    }

    #[test]
    fn a_header_lists_blobs_one_behind_the_other() {
        let header = [
            entry(2, 100, Some(300), 1),
            entry(0, 50, None, 2),
            entry(3, 60, Some(7), 3),
            entry(1, 40, None, 4),
        ]
        .concat();
        let json = serde_json::to_value(parse_header(&header).unwrap()).unwrap();
        let hex = |id: u8| ObjectId([id; 32]).to_string();
        let want = serde_json::json!([
            {"id": hex(1), "type": "data", "offset": 0, "length": 100, "uncompressed_length": 300},
            {"id": hex(2), "type": "data", "offset": 100, "length": 50},
            {"id": hex(3), "type": "tree", "offset": 150, "length": 60, "uncompressed_length": 7},
            {"id": hex(4), "type": "tree", "offset": 210, "length": 40},
        ]);
        assert_eq!(json, want);
        assert_eq!(write_header(&parse_header(&header).unwrap()), header);
        assert!(parse_header(&[]).is_some_and(|blobs| blobs.is_empty()));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let good = entry(2, 100, Some(300), 1);
        for cut in 1..good.len() {
            assert!(parse_header(&good[..cut]).is_none(), "cut at {cut}");
        }
        for bad in [
            entry(4, 100, Some(300), 1),
            entry(2, 100, Some(0), 1),
            entry(0, SEAL_BYTES - 1, None, 1),
            [entry(0, u32::MAX, None, 1), entry(0, 40, None, 2)].concat(),
        ] {
            assert!(parse_header(&bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_pack_that_holds_anything_else_is_none_of_trees() {
        let holds = |header: &[Vec<u8>]| holds_trees(&parse_header(&header.concat()).unwrap());
        let (tree, data) = (entry(1, 40, None, 1), entry(2, 100, Some(300), 2));
        assert!(holds(&[tree.clone(), entry(3, 60, Some(7), 3)]));
        assert!(!holds(&[tree, data.clone()]) && !holds(&[data]) && !holds(&[]));
    }
}
