//! Which archived files no recovery needs that is still possible (`docs/design/wal.md` §6).
//!
//! Invariant: of a cluster of which nothing says what is needed, everything is.

use crate::Error;
use backlane_proto::{WalFile, WalName, wal::SegmentPlace};
use backlane_source::postgres::BaseBackup;
use std::collections::{BTreeMap, BTreeSet};

/// From which segment on each cluster's files are needed, on whatever timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed(BTreeMap<u64, SegmentPlace>);

impl Needed {
    /// What base backups need: of each cluster from the oldest one's start.
    ///
    /// # Errors
    /// When one doesn't say where it began.
    pub fn by<'a>(backups: impl IntoIterator<Item = &'a BaseBackup>) -> Result<Self, Error> {
        let mut needed = Self::default();
        for backup in backups {
            needed.add(&format!("{}/{}", backup.system, backup.start_wal))?;
        }
        Ok(needed)
    }

    fn add(&mut self, start: &str) -> Result<(), Error> {
        let (name, place) = segment(start)?;
        let from = self.0.entry(name.system).or_insert(place);
        *from = place.min(*from);
        Ok(())
    }

    /// Everything from a segment on (`SYSTEM/SEGMENT`) of its cluster.
    ///
    /// # Errors
    /// When that names no segment, or a base backup needs older ones.
    pub fn from_segment(&self, start: &str) -> Result<Self, Error> {
        let (name, place) = segment(start)?;
        match self.0.get(&name.system) {
            Some(from) if *from < place => Err(Error::WalFile {
                path: start.into(),
                why: format!(
                    "a base backup that is kept needs what comes before it, from log {:08X}, segment {:08X} on; forget its snapshot first",
                    from.log, from.segment
                ),
            }),
            _ => Ok(Self(BTreeMap::from([(name.system, place)]))),
        }
    }

    /// What of an archive nothing needs any more: what comes before the first segment that is needed, and the pieces of
    /// segments that are there whole.
    #[must_use]
    pub fn expired(&self, archive: &[WalName]) -> Vec<WalName> {
        let whole: BTreeSet<WalName> = archive.iter().copied().collect();
        let is_superseded = |name: &WalName| match name.file {
            WalFile::Piece(place, _) => whole.contains(&WalName {
                file: WalFile::Segment(place),
                ..*name
            }),
            _ => false,
        };
        let names = archive.iter().copied();
        names
            .filter(|name| self.is_expired(*name) || is_superseded(name))
            .collect()
    }

    /// Whether it comes before all that is needed. Histories of timelines are small, and always needed.
    fn is_expired(&self, name: WalName) -> bool {
        let place = match name.file {
            WalFile::Segment(place)
            | WalFile::Partial(place)
            | WalFile::Backup(place, _)
            | WalFile::Piece(place, _) => place,
            WalFile::History => return false,
        };
        self.0.get(&name.system).is_some_and(|from| place < *from)
    }
}

fn segment(start: &str) -> Result<(WalName, SegmentPlace), Error> {
    let parse = || {
        let (system, name) = start.split_once('/')?;
        let name = WalName::from_file_name(system.parse().ok()?, name)?;
        match name.file {
            WalFile::Segment(place) => Some((name, place)),
            _ => None,
        }
    };
    parse().ok_or_else(|| Error::WalFile {
        path: start.into(),
        why: "it doesn't name a segment of a cluster, as SYSTEM/SEGMENT".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(needed: &Needed, system: u64, file: &str) -> bool {
        needed.is_expired(WalName::from_file_name(system, file).unwrap())
    }

    fn needed(starts: &[&str]) -> Needed {
        let mut needed = Needed::default();
        starts.iter().for_each(|start| needed.add(start).unwrap());
        needed
    }

    #[test]
    fn what_comes_before_the_oldest_base_backup_is_expired_on_every_timeline() {
        let needed = needed(&[
            "7/000000020000000100000003",
            "7/000000010000000100000002",
            "8/000000010000000000000001",
        ]);
        for file in [
            "000000010000000100000001",
            "0000000100000000000000FF",
            "000000020000000100000001.partial",
            "000000010000000100000001.00000028.backup",
        ] {
            assert!(expired(&needed, 7, file), "{file}");
            assert!(!expired(&needed, 8, "000000010000000000000001"), "{file}");
        }
        for file in [
            "000000010000000100000002",
            "000000020000000100000002",
            "000000010000000100000002.00000028.backup",
            "00000002.history",
        ] {
            assert!(!expired(&needed, 7, file), "{file}");
        }
        assert!(!expired(&needed, 9, "000000010000000000000001"));
        Needed::default().add("7/nothing").unwrap_err();
    }

    #[test]
    fn pieces_go_once_their_segment_is_there_whole_and_no_sooner() {
        let name = |file| WalName::from_file_name(7, file).unwrap();
        let pieces = [
            "000000010000000000000005.00000000.piece",
            "000000010000000000000005.00000400.piece",
        ]
        .map(name);
        let others = [
            "000000010000000000000006.00000000.piece",
            "000000020000000000000005.00000000.piece",
        ]
        .map(name);
        let whole = name("000000010000000000000005");
        let archive = [&pieces[..], &others[..]].concat();
        assert_eq!(Needed::default().expired(&archive), []);
        let archive = [&archive[..], &[whole]].concat();
        assert_eq!(Needed::default().expired(&archive), pieces);
        let needed = needed(&["7/000000010000000000000006"]);
        let before = [&pieces[..], &others[1..], &[whole]].concat();
        assert_eq!(needed.expired(&archive), before);
    }

    #[test]
    fn a_segment_that_is_named_must_leave_every_base_backup_what_it_needs() {
        let needed = needed(&["7/000000010000000000000005"]);
        let error = needed
            .from_segment("7/000000010000000000000006")
            .unwrap_err();
        assert!(error.to_string().contains("segment 00000005"), "{error}");
        let named = needed.from_segment("7/000000010000000000000005").unwrap();
        assert!(expired(&named, 7, "000000010000000000000004"));
        let other = needed.from_segment("9/000000010000000000000002").unwrap();
        assert!(expired(&other, 9, "000000010000000000000001"));
        assert!(!expired(&other, 7, "000000010000000000000001"));
        needed.from_segment("7/00000002.history").unwrap_err();
        needed.from_segment("000000010000000000000006").unwrap_err();
    }
}
