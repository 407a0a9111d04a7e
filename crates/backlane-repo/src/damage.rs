//! What damage costs: which blobs can't be had, and which files and directories need them.
//!
//! The engine's check ends its walk at the first tree that it can't read, and panics over some content. What is here goes
//! on after every damaged object, and names all that it costs.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use backlane_proto::{ByteRange, ObjectId, ObjectKind};
use rustic_core::{ProgressBars, ProgressType};

use crate::error::RepoError;
use crate::index::{BlobId, BlobKind, BlobPlace};
use crate::node::{FileKind, Node};
use crate::parallel;
use crate::reader::{READ_BYTES_MAX, Reader};
use crate::repository::name;
use crate::snapshot::SnapshotInfo;
use crate::walk::Visit;

/// What is damaged in the packs of a repository.
#[derive(Default)]
pub(crate) struct PackDamage {
    /// Each pack or blob, and what is wrong with it.
    pub(crate) findings: Vec<String>,
    /// Blobs that the index knows and that can't be had.
    lost: HashSet<(BlobKind, BlobId)>,
}

impl Reader {
    /// The blobs of packs that are missing, or end before the index says that the blob does. Reads no pack.
    pub(crate) fn cut_off(&self) -> Result<PackDamage, RepoError> {
        let bytes = self.pack_bytes()?;
        let cut_off = |place: &BlobPlace| {
            let has = bytes.get(&place.pack);
            has.is_none_or(|has| *has < end_of(place))
        };
        let mut damage = PackDamage::default();
        let lost = self.index().blobs().filter(cut_off);
        damage.lost.extend(lost.map(|place| (place.kind, place.id)));
        Ok(damage)
    }

    /// Reads every pack of the index whole, and opens every blob. Goes on after whatever is damaged.
    pub(crate) fn read_packs(&self) -> Result<PackDamage, RepoError> {
        let bytes = self.pack_bytes()?;
        let rows = self.index().rows_by_pack();
        let pack_of = |row: &usize| self.index().at(*row).pack;
        let packs: Vec<&[usize]> = rows.chunk_by(|a, b| pack_of(a) == pack_of(b)).collect();
        let all = self.cut_off()?;
        let progress = ProgressType::Bytes;
        let progress = self
            .inner
            .progress
            .progress(progress, "reading pack data...");
        progress.set_length(bytes.values().sum());
        let all = Mutex::new(all);
        parallel::for_each(&packs, |rows| {
            let pack = pack_of(&rows[0]);
            // One that is missing has cost all its blobs, and the engine names it.
            let Some(size) = bytes.get(&pack) else {
                return Ok(());
            };
            let found = self.read_through(pack, rows, *size)?;
            progress.inc(*size);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.findings.extend(found.findings);
            all.lost.extend(found.lost);
            Ok(())
        })?;
        progress.finish();
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn pack_bytes(&self) -> Result<HashMap<ObjectId, u64>, RepoError> {
        let listed = self.inner.store.list(ObjectKind::Pack)?;
        Ok(listed.iter().map(|info| (info.id, info.bytes)).collect())
    }

    /// Reads a pack from its beginning to its end.
    fn read_through(
        &self,
        pack: ObjectId,
        rows: &[usize],
        size: u64,
    ) -> Result<PackDamage, RepoError> {
        let mut damage = PackDamage::default();
        let mut hash = Context::new(&SHA256);
        let places = rows.iter().map(|row| self.index().at(*row));
        let mut reached = 0;
        let (in_line, overlapping): (Vec<_>, Vec<_>) = places
            .filter(|place| end_of(place) <= size)
            .partition(|place| {
                let follows = u64::from(place.offset) >= reached;
                reached = reached.max(end_of(place));
                follows
            });
        let mut rest = in_line.as_slice();
        let mut at = 0;
        while at < size {
            let (blobs, end) = next_part(rest, at, size);
            rest = &rest[blobs.len()..];
            let range = ByteRange {
                offset: at,
                length: end - at,
            };
            match self.read_pack(pack, range) {
                Ok(sealed) => {
                    hash.update(&sealed);
                    for place in blobs {
                        let start = usize::try_from(u64::from(place.offset) - at)
                            .expect("a blob begins within what was read for it");
                        let part = &sealed[start..start + place.length as usize];
                        damage.note(place, self.open_blob(place, part).map(drop))?;
                    }
                }
                Err(error) => {
                    damage.note_part(error)?;
                    // A bad place of the disk may spare some of them.
                    self.open_each(blobs, &mut damage)?;
                }
            }
            at = end;
        }
        // No program writes such packs, but an index may say so.
        self.open_each(&overlapping, &mut damage)?;
        let found = hash.finish();
        if damage.findings.is_empty() && found.as_ref() != pack.0 {
            let name = name(ObjectKind::Pack, pack);
            let what =
                "its content does not have its name's SHA-256, though every blob in it is whole";
            damage.findings.push(format!("{name}: {what}"));
        }
        Ok(damage)
    }

    fn open_each(&self, places: &[BlobPlace], damage: &mut PackDamage) -> Result<(), RepoError> {
        places.iter().try_for_each(|place| {
            let read = self.read_blobs(std::slice::from_ref(place));
            damage.note(place, read.map(drop))
        })
    }

    /// Names every file and directory of some snapshots that can't be restored whole, each in one of the snapshots that
    /// have it.
    pub(crate) fn costs(
        &self,
        snapshots: &[SnapshotInfo],
        damage: &PackDamage,
    ) -> Result<Vec<String>, RepoError> {
        let mut costs = Vec::new();
        let mut seen: HashSet<BlobId> = HashSet::new();
        for snapshot in snapshots {
            let short = &snapshot.id.to_string()[..8];
            let cost = |path: &[u8], what: &dyn std::fmt::Display| {
                format!("in snapshot {short}, {}: {what}", path.escape_ascii())
            };
            if !seen.insert(snapshot.tree) {
                continue;
            }
            let mut here = Vec::new();
            let unread = self.walk(snapshot.tree, b"", &mut |path, node| {
                if let Some(what) = self.cost_of(node, damage) {
                    here.push(cost(path, &what));
                }
                match node.subtree {
                    Some(tree) if !seen.insert(tree) => Visit::SkipTree,
                    _ => Visit::Continue,
                }
            });
            costs.append(&mut here);
            match unread {
                Ok(unread) => {
                    let lost = unread.iter().map(|one| cost(&one.path, &one.error));
                    costs.extend(lost);
                }
                Err(error) if error.is_damage() => costs.push(cost(b"/", &error)),
                Err(error) => return Err(error),
            }
        }
        Ok(costs)
    }

    /// What a file lacks, if it lacks something.
    fn cost_of(&self, node: &Node, damage: &PackDamage) -> Option<String> {
        if node.kind != FileKind::File {
            return None;
        }
        let kind = BlobKind::Data;
        let lost = |id: &&BlobId| {
            damage.lost.contains(&(kind, **id)) || self.index().find(kind, **id).is_none()
        };
        let mut lost = node.content.iter().filter(lost);
        let first = lost.next()?;
        let place = match self.index().find(kind, *first) {
            Some(place) => format!("of {}", name(ObjectKind::Pack, place.pack)),
            None => "which is in no index".to_owned(),
        };
        let more = match lost.count() {
            0 => String::new(),
            count => format!(", and {count} more of its blobs"),
        };
        Some(format!(
            "its {kind} blob {first}, {place}, can't be had{more}"
        ))
    }
}

impl PackDamage {
    /// Notes a blob that can't be had; what is no damage is passed on.
    fn note(&mut self, place: &BlobPlace, read: Result<(), RepoError>) -> Result<(), RepoError> {
        if let Err(error) = read {
            self.note_part(error)?;
            self.lost.insert((place.kind, place.id));
        }
        Ok(())
    }

    fn note_part(&mut self, error: RepoError) -> Result<(), RepoError> {
        if !error.is_damage() {
            return Err(error);
        }
        self.findings.push(error.to_string());
        Ok(())
    }

    /// Whether nothing is damaged.
    pub(crate) fn is_empty(&self) -> bool {
        self.findings.is_empty() && self.lost.is_empty()
    }
}

/// What of a pack is read next, from `at` on: the blobs that come whole with it, and where it ends. `rest` are blobs
/// that follow one another.
fn next_part(rest: &[BlobPlace], at: u64, size: u64) -> (&[BlobPlace], u64) {
    let full = at.saturating_add(READ_BYTES_MAX.into());
    let Some(first) = rest.first() else {
        return (&[], full.min(size));
    };
    if u64::from(first.offset) > at {
        return (&[], full.min(first.offset.into()));
    }
    let fits = |place: &&BlobPlace| end_of(place) <= full;
    let count = rest.iter().take_while(fits).count().max(1);
    let end = rest[..count].iter().map(end_of).max().unwrap_or(full);
    (&rest[..count], end)
}

fn end_of(place: &BlobPlace) -> u64 {
    u64::from(place.offset) + u64::from(place.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u32, length: u32) -> BlobPlace {
        BlobPlace {
            id: BlobId([0; 32]),
            kind: BlobKind::Data,
            pack: ObjectId([1; 32]),
            offset,
            length,
            plain_length: 0,
            compressed: false,
        }
    }

    /// Ends of the parts in which a pack is read, and how many blobs come with each.
    fn parts(mut rest: &[BlobPlace], size: u64) -> Vec<(u64, usize)> {
        let (mut at, mut parts) = (0, Vec::new());
        while at < size {
            let (blobs, end) = next_part(rest, at, size);
            assert!(end > at);
            rest = &rest[blobs.len()..];
            parts.push((end, blobs.len()));
            at = end;
        }
        assert!(rest.is_empty());
        parts
    }

    #[test]
    fn a_pack_is_read_whole_in_parts_that_cut_no_blob() {
        let max = READ_BYTES_MAX;
        let most = u64::from(max);
        assert_eq!(parts(&[], 0), []);
        assert_eq!(parts(&[], most + 1), [(most, 0), (most + 1, 0)]);
        let blobs = [place(0, 100), place(100, max - 100), place(max, 40)];
        assert_eq!(
            parts(&blobs, most + 90),
            [(most, 2), (most + 40, 1), (most + 90, 0)]
        );
        // One that is larger than a part comes alone, and what lies between blobs is read too.
        let blobs = [place(10, max + 7), place(max + 17, 40)];
        let ends = [(10, 0), (most + 17, 1), (most + 57, 1), (most + 60, 0)];
        assert_eq!(parts(&blobs, most + 60), ends);
    }
}
