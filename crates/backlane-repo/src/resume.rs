//! What an interrupted backup has left, and the next one goes on from.
//!
//! The engine writes an index every 50,000 blobs or five minutes. A backup that is killed leaves packs behind which are
//! durable and in no index, so that the next one would store again what is in them. But a pack ends with its header, a
//! sealed list of its blobs: of each pack that no index names the header is read here, and put into an index.
//!
//! Invariants: of a pack nothing is believed but a header that the repository's key opens and that adds up to the pack's
//! size. A pack without one is named and left alone; nothing is removed.
//!
//! Such a pack may also be one that another job of the same host has put just now. That job names it in its own index as
//! well, which the format allows: of two places for a blob a reader keeps one, and a prune drops the second entry.

use std::mem;
use std::sync::{Mutex, PoisonError};

use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind};
use bytes::Bytes;

use crate::archive::Cancel;
use crate::error::{Damage, RepoError};
use crate::index::{self, BlobJson, HexId, KindJson, NamedPacks, PackJson};
use crate::parallel;
use crate::repository::{Inner, damaged, name};
use crate::seal::{SEAL_BYTES, sha256};
use crate::source::{Source, Warning, WarningKind};

/// The largest header that is read, which is restic's limit as well.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The header's length stands behind it.
const LENGTH_BYTES: u64 = 4;

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

    /// The blobs of a pack, by its header.
    fn blobs_of(&self, pack: &ObjectInfo) -> Result<Vec<BlobJson>, RepoError> {
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

    fn write_index(&self, packs: Vec<PackJson>) -> Result<(), RepoError> {
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

/// The blobs that an opened header lists, which lie one behind the other from the pack's beginning; `None` when it is none.
fn parse_header(mut header: &[u8]) -> Option<Vec<BlobJson>> {
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

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::MemoryStore;
    use crate::{InitOptions, Repository};

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
    fn an_index_is_closed_when_it_has_many_blobs() {
        let store = Arc::new(MemoryStore::default());
        let repository =
            Repository::init(Arc::clone(&store) as _, "x", &InitOptions::default()).unwrap();
        let blobs = entry(0, 40, None, 1).repeat(6000);
        let pack = |id: u8| PackJson {
            id: HexId([id; 32]),
            blobs: parse_header(&blobs).unwrap(),
        };
        let packs = (1..=5).map(pack).collect();
        repository.inner.write_indexes(packs).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 3);
        assert_eq!(repository.index().unwrap().packs(), 5);
    }
}
