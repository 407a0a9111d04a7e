//! Which pack holds which blob.
//!
//! Memory: 48 bytes for each blob and 36 for each pack, and while it is being built at most as much again.

use std::collections::HashSet;
use std::fmt;

use backlane_proto::ObjectId;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::error::Damage;
use crate::seal::SEAL_BYTES;

/// The SHA-256 that names a blob: a piece of a file, or a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobKind {
    /// A piece of a file.
    Data,
    /// A directory.
    Tree,
}

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobPlace {
    /// The blob.
    pub id: BlobId,
    /// What it holds.
    pub kind: BlobKind,
    /// The pack that holds it.
    pub pack: ObjectId,
    /// Its first sealed byte in the pack.
    pub offset: u32,
    /// Sealed bytes.
    pub length: u32,
    /// Plain bytes.
    pub plain_length: u32,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// The index of a repository, in memory.
#[derive(Default)]
pub struct Index {
    packs: Vec<PackRow>,
    /// Sorted by blob, then kind.
    rows: Vec<Row>,
}

/// In how many packs blobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// Each in one.
    One,
    /// Some in several.
    Several,
}

#[derive(Clone, Copy)]
struct PackRow {
    id: ObjectId,
    /// Where its last blob ends.
    blobs_end: u32,
}

/// 48 bytes; the kind shares a word with the pack.
#[derive(Clone, Copy)]
struct Row {
    id: BlobId,
    pack_and_kind: u32,
    offset: u32,
    length: u32,
    /// Zero when the blob is not compressed.
    plain_length: u32,
}

const _: () = assert!(size_of::<Row>() == 48 && size_of::<PackRow>() == 36);

const TREE_BIT: u32 = 1 << 31;

/// No piece of a file is larger than the largest pack that restic makes; the format's own are of 8 MiB at most. Readers
/// hold a few whole ones in memory.
const DATA_BYTES_MAX: u32 = 128 << 20;

/// No directory takes more than this: two million entries, about.
pub(crate) const TREE_BYTES_MAX: u32 = 1 << 30;

impl Index {
    /// Where a blob lies, if any index knows it.
    #[must_use]
    pub fn find(&self, kind: BlobKind, id: BlobId) -> Option<BlobPlace> {
        let at = self
            .rows
            .binary_search_by(|row| (row.id, row.kind()).cmp(&(id, kind)))
            .ok()?;
        Some(self.place(&self.rows[at]))
    }

    /// Every blob, in the order of its hashes.
    pub fn blobs(&self) -> impl Iterator<Item = BlobPlace> + '_ {
        self.rows.iter().map(|row| self.place(row))
    }

    /// How many blobs it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many packs it knows.
    #[must_use]
    pub fn packs(&self) -> usize {
        self.packs.len()
    }

    /// The bytes of memory that it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>() + self.packs.capacity() * size_of::<PackRow>()
    }

    /// Where the last blob of a blob's pack ends: what must be read to have all its blobs.
    pub(crate) fn blobs_end(&self, kind: BlobKind, id: BlobId) -> Option<u32> {
        let at = self
            .rows
            .binary_search_by(|row| (row.id, row.kind()).cmp(&(id, kind)))
            .ok()?;
        Some(self.packs[self.rows[at].pack()].blobs_end)
    }

    /// Numbers of blobs for [`Index::at`], those of one pack together and in the order of their places.
    pub(crate) fn rows_by_pack(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        rows.sort_unstable_by_key(|&at| (self.rows[at].pack(), self.rows[at].offset));
        rows
    }

    /// The blob of a number.
    pub(crate) fn at(&self, row: usize) -> BlobPlace {
        self.place(&self.rows[row])
    }

    fn place(&self, row: &Row) -> BlobPlace {
        let compressed = row.plain_length != 0;
        let plain_length = if compressed {
            row.plain_length
        } else {
            row.length - SEAL_BYTES
        };
        BlobPlace {
            id: row.id,
            kind: row.kind(),
            pack: self.packs[row.pack()].id,
            offset: row.offset,
            length: row.length,
            plain_length,
            compressed,
        }
    }

    /// Takes in one index object's JSON, or nothing of it if it is damaged. [`Index::finish`] must follow the last.
    pub(crate) fn add_json(&mut self, json: &[u8]) -> Result<(), Damage> {
        let (packs, rows) = (self.packs.len(), self.rows.len());
        self.try_add_json(json).inspect_err(|_| {
            self.packs.truncate(packs);
            self.rows.truncate(rows);
        })
    }

    fn try_add_json(&mut self, json: &[u8]) -> Result<(), Damage> {
        let content = |what: String| Damage::Content { what };
        let file: IndexJson =
            serde_json::from_slice(json).map_err(|error| content(error.to_string()))?;
        for pack in file.packs.unwrap_or_default() {
            let number = u32::try_from(self.packs.len())
                .ok()
                .filter(|number| number & TREE_BIT == 0)
                .ok_or_else(|| content("too many packs".to_owned()))?;
            let mut blobs_end = 0;
            for blob in &pack.blobs {
                let end = blob.offset.checked_add(blob.length);
                let Some(end) = end.filter(|_| blob.has_possible_size()) else {
                    let id = BlobId(blob.id.0);
                    return Err(content(format!(
                        "blob {id} has an impossible place or size"
                    )));
                };
                blobs_end = blobs_end.max(end);
                self.rows.push(blob.row(number));
            }
            self.packs.push(PackRow {
                id: ObjectId(pack.id.0),
                blobs_end,
            });
        }
        Ok(())
    }

    /// Sorts what was taken in.
    pub(crate) fn sort(&mut self) -> Places {
        self.rows
            .sort_unstable_by_key(|row| (row.id, row.kind(), row.pack_and_kind));
        let mut pairs = self.rows.windows(2);
        match pairs.any(|pair| (pair[0].id, pair[0].kind()) == (pair[1].id, pair[1].kind())) {
            true => Places::Several,
            false => Places::One,
        }
    }

    /// Of the places of each blob, those in packs that are there come first.
    pub(crate) fn prefer(&mut self, there: &HashSet<ObjectId>) {
        let gone: Vec<bool> = self.packs.iter().map(|p| !there.contains(&p.id)).collect();
        self.rows
            .sort_unstable_by_key(|row| (row.id, row.kind(), gone[row.pack()], row.pack_and_kind));
    }

    /// Leaves out what is in some packs.
    pub(crate) fn leave_out(&mut self, gone: impl Fn(ObjectId) -> bool) {
        let gone: Vec<bool> = self.packs.iter().map(|pack| gone(pack.id)).collect();
        self.rows.retain(|row| !gone[row.pack()]);
    }

    /// What was sorted is ready. A blob that is in several packs keeps its first place.
    pub(crate) fn finish(&mut self) {
        self.rows.dedup_by_key(|row| (row.id, row.kind()));
        self.rows.shrink_to_fit();
        self.packs.shrink_to_fit();
    }
}

impl Row {
    fn kind(&self) -> BlobKind {
        if self.pack_and_kind & TREE_BIT == 0 {
            BlobKind::Data
        } else {
            BlobKind::Tree
        }
    }

    fn pack(&self) -> usize {
        (self.pack_and_kind & !TREE_BIT) as usize
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&ObjectId(self.0), f)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BlobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Tree => "tree",
        })
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("packs", &self.packs.len())
            .field("blobs", &self.rows.len())
            .finish()
    }
}

/// The packs that objects of the index name.
#[derive(Default)]
pub(crate) struct NamedPacks {
    /// Those in use.
    pub(crate) in_use: HashSet<ObjectId>,
    /// Those that a prune has marked for deletion.
    pub(crate) marked: HashSet<ObjectId>,
}

impl NamedPacks {
    /// Takes in those of one index object's JSON.
    pub(crate) fn add_json(&mut self, json: &[u8]) -> Result<(), Damage> {
        let file: NamesJson = serde_json::from_slice(json).map_err(unreadable)?;
        let names = |list: Option<Vec<NameJson>>| {
            let list = list.into_iter().flatten();
            list.map(|pack| ObjectId(pack.id.0))
        };
        self.in_use.extend(names(file.packs));
        self.marked.extend(names(file.packs_to_delete));
        Ok(())
    }
}

/// An index object's JSON without some packs, and how many others it names; `None` where it names none of them.
pub(crate) fn without_packs(
    json: &[u8],
    gone: &HashSet<ObjectId>,
) -> Result<Option<(Vec<u8>, usize)>, Damage> {
    let mut file: serde_json::Value = serde_json::from_slice(json).map_err(unreadable)?;
    let packs = file.get_mut("packs").and_then(|packs| packs.as_array_mut());
    let Some(packs) = packs else {
        return Ok(None);
    };
    let before = packs.len();
    packs.retain(|pack| {
        let id = pack["id"].as_str().and_then(ObjectId::from_hex);
        id.is_none_or(|id| !gone.contains(&id))
    });
    let in_use = packs.len();
    if in_use == before {
        return Ok(None);
    }
    let marked = file
        .get("packs_to_delete")
        .and_then(|packs| packs.as_array());
    let left = in_use + marked.map_or(0, Vec::len);
    Ok(Some((file.to_string().into_bytes(), left)))
}

fn unreadable(error: serde_json::Error) -> Damage {
    Damage::Content {
        what: error.to_string(),
    }
}

/// An index object's JSON that names these packs.
pub(crate) fn to_json(packs: Vec<PackJson>) -> serde_json::Result<Vec<u8>> {
    let packs = Some(packs);
    serde_json::to_vec(&IndexJson { packs })
}

/// 32 bytes written as hexadecimal digits.
#[derive(Clone, Copy)]
pub(crate) struct HexId(pub(crate) [u8; 32]);

impl Serialize for HexId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for HexId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl Visitor<'_> for Hex {
            type Value = HexId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<HexId, E> {
                let id = ObjectId::from_hex(text).ok_or_else(|| E::custom("not an identity"))?;
                Ok(HexId(id.0))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

/// Only what is in use: packs that a prune has marked for deletion are listed elsewhere in the object.
#[derive(serde::Deserialize, serde::Serialize)]
struct IndexJson {
    packs: Option<Vec<PackJson>>,
}

/// A pack in an index.
#[derive(serde::Deserialize, serde::Serialize)]
pub(crate) struct PackJson {
    pub(crate) id: HexId,
    pub(crate) blobs: Vec<BlobJson>,
}

/// A blob in an index.
#[derive(serde::Deserialize, serde::Serialize)]
pub(crate) struct BlobJson {
    pub(crate) id: HexId,
    #[serde(rename = "type")]
    pub(crate) kind: KindJson,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// `None` when the blob is not compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uncompressed_length: Option<u32>,
}

#[derive(Clone, Copy, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindJson {
    Data,
    Tree,
}

/// An index object without its blobs.
#[derive(serde::Deserialize)]
struct NamesJson {
    packs: Option<Vec<NameJson>>,
    packs_to_delete: Option<Vec<NameJson>>,
}

#[derive(serde::Deserialize)]
struct NameJson {
    id: HexId,
}

impl BlobJson {
    /// Whether its seal fits in, and it may be held in memory, sealed and plain.
    fn has_possible_size(&self) -> bool {
        let most = match self.kind {
            KindJson::Data => DATA_BYTES_MAX,
            KindJson::Tree => TREE_BYTES_MAX,
        };
        let largest = self.length.max(self.uncompressed_length.unwrap_or(0));
        self.length >= SEAL_BYTES && largest <= most
    }

    fn row(&self, pack: u32) -> Row {
        let kind = match self.kind {
            KindJson::Data => 0,
            KindJson::Tree => TREE_BIT,
        };
        Row {
            id: BlobId(self.id.0),
            pack_and_kind: pack | kind,
            offset: self.offset,
            length: self.length,
            plain_length: self.uncompressed_length.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(number: u8) -> String {
        ObjectId([number; 32]).to_string()
    }

    fn json(pack: u8, blobs: &[(u8, &str, u32, u32, Option<u32>)]) -> Vec<u8> {
        let blobs: Vec<_> = blobs
            .iter()
            .map(|(id, kind, offset, length, plain)| {
                serde_json::json!({ "id": hex(*id), "type": kind, "offset": offset,
                    "length": length, "uncompressed_length": plain })
            })
            .collect();
        let packs = serde_json::json!([{ "id": hex(pack), "blobs": blobs }]);
        serde_json::json!({ "packs": packs, "packs_to_delete": [] })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn blobs_are_found_by_kind_and_hash() {
        let mut index = Index::default();
        index
            .add_json(&json(
                200,
                &[(2, "data", 0, 50, Some(99)), (1, "data", 50, 40, None)],
            ))
            .unwrap();
        index
            .add_json(&json(201, &[(1, "tree", 0, 60, Some(77))]))
            .unwrap();
        // The same blob in another pack keeps one place.
        index
            .add_json(&json(202, &[(2, "data", 0, 50, Some(99))]))
            .unwrap();
        assert_eq!(index.sort(), Places::Several);
        index.finish();
        assert_eq!((index.len(), index.packs()), (3, 3));

        let data = index.find(BlobKind::Data, BlobId([1; 32])).unwrap();
        assert_eq!(data.pack, ObjectId([200; 32]));
        assert_eq!((data.offset, data.length), (50, 40));
        assert_eq!((data.plain_length, data.compressed), (8, false));
        let tree = index.find(BlobKind::Tree, BlobId([1; 32])).unwrap();
        assert_eq!(tree.pack, ObjectId([201; 32]));
        assert_eq!((tree.plain_length, tree.compressed), (77, true));
        assert_eq!(index.find(BlobKind::Tree, BlobId([2; 32])), None);
        assert_eq!(index.blobs_end(BlobKind::Data, BlobId([2; 32])), Some(90));
    }

    #[test]
    fn of_two_places_of_a_blob_the_one_that_is_there_is_kept() {
        for there in [200, 201] {
            let mut index = Index::default();
            for pack in [200, 201] {
                let blob = (1, "data", 0, 50, None);
                index.add_json(&json(pack, &[blob])).unwrap();
            }
            assert_eq!(index.sort(), Places::Several);
            index.prefer(&HashSet::from([ObjectId([there; 32])]));
            index.finish();
            let place = index.find(BlobKind::Data, BlobId([1; 32])).unwrap();
            assert_eq!((index.len(), place.pack), (1, ObjectId([there; 32])));
        }
    }

    #[test]
    fn impossible_places_are_errors() {
        for (offset, length) in [(0, 31), (u32::MAX, 40)] {
            let bad = json(1, &[(1, "data", offset, length, None)]);
            assert!(Index::default().add_json(&bad).is_err());
        }
        // What expands to more than may be held, or is longer as it is.
        for (kind, most) in [("data", DATA_BYTES_MAX), ("tree", TREE_BYTES_MAX)] {
            let of = |length, plain| json(1, &[(1, kind, 0, length, plain)]);
            for good in [of(40, Some(most)), of(most, None)] {
                assert_eq!(Index::default().add_json(&good), Ok(()), "{kind}");
            }
            let larger = most + 1;
            for bad in [
                of(40, Some(larger)),
                of(40, Some(u32::MAX)),
                of(larger, None),
            ] {
                assert!(Index::default().add_json(&bad).is_err(), "{kind}");
            }
        }
        let mut index = Index::default();
        let half = json(
            1,
            &[(1, "data", 0, 40, None), (2, "data", u32::MAX, 40, None)],
        );
        assert!(index.add_json(&half).is_err());
        index.finish();
        assert_eq!((index.len(), index.packs()), (0, 0));
        assert!(Index::default().add_json(b"[]").is_err());
        assert!(Index::default().add_json(b"{\"packs\":[{}]}").is_err());
    }
}
