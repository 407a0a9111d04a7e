//! What a base backup says of itself: positions in the WAL, and the description of its snapshot.

use super::cluster::{Tablespace, WalMode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};

/// The tag of snapshots that are base backups.
pub const TAG: &str = "postgresql";

/// The tag of those in which pages are damaged.
pub const TAG_DAMAGED: &str = "postgresql-damaged-pages";

/// What comes before the document in a snapshot's description.
const HEAD: &str = "PostgreSQL ";

/// A position in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let half = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
        let halves = text.split_once('/');
        halves
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| format!("`{text}` is no position in the WAL, which is like 0/3000028"))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a base backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From the server that is written to.
    Primary,
    /// From one that follows it.
    Standby,
}

/// What a base backup is, as its snapshot's description says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseBackup {
    /// The number that a cluster gets when it is made and that its standbys share.
    #[serde(with = "as_text")]
    pub system: u64,
    /// The server's version.
    pub version: String,
    /// What kind of server it was.
    pub origin: Origin,
    /// The timeline that the WAL it needs is on.
    pub timeline: u32,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// Where it may end at the earliest.
    pub stop_lsn: Lsn,
    /// The first segment of the WAL that it needs.
    pub start_wal: String,
    /// The last one.
    pub stop_wal: String,
    /// Where its WAL is.
    pub wal: WalMode,
    /// When it began.
    pub began: Timestamp,
    /// When all was read.
    pub ended: Timestamp,
    /// Where the cluster was.
    pub data_directory: PathBuf,
    /// What of it is elsewhere.
    pub tablespaces: Vec<Tablespace>,
}

impl BaseBackup {
    /// The path in the snapshot that all of it is below.
    #[must_use]
    pub fn root(system: u64) -> PathBuf {
        PathBuf::from(format!("/postgresql/{system}"))
    }

    /// The description of its snapshot.
    #[must_use]
    pub fn description(&self) -> String {
        let document = serde_json::to_string(self).expect("all keys are text");
        format!("{HEAD}{document}")
    }

    /// Understands a description; more may follow in it. `None` of another snapshot's.
    #[must_use]
    pub fn from_description(description: &str) -> Option<Self> {
        let document = description.strip_prefix(HEAD)?;
        let mut documents = serde_json::Deserializer::from_str(document).into_iter();
        documents.next()?.ok()
    }
}

/// Numbers beyond 2^53 are not safe in every reader of JSON.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The names of the WAL's segments from the one with `start` to the last that has anything before `stop`.
#[must_use]
pub fn wal_segments(timeline: u32, start: Lsn, stop: Lsn, segment_bytes: u64) -> Vec<String> {
    let in_file = 0x1_0000_0000 / segment_bytes;
    let first = start.0 / segment_bytes;
    let last = stop.0.saturating_sub(1).max(start.0) / segment_bytes;
    let name = |segment: u64| {
        let (high, low) = (segment / in_file, segment % in_file);
        format!("{timeline:08X}{high:08X}{low:08X}")
    };
    (first..=last).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_as_they_are_written() {
        for text in ["0/3000028", "1F/0", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for bad in ["", "3000028", "0/", "G/0", "1FFFFFFFF/0"] {
            bad.parse::<Lsn>().unwrap_err();
        }
    }

    #[test]
    fn segments_end_with_the_one_that_the_last_byte_is_in() {
        let names = |start, stop, bytes| wal_segments(1, Lsn(start), Lsn(stop), bytes);
        let one = "000000010000000000000003";
        assert_eq!(names(0x300_0028, 0x300_0138, 16 << 20), [one]);
        // The end of a segment is the beginning of the next, in which nothing is needed.
        assert_eq!(names(0x300_0028, 0x400_0000, 16 << 20), [one]);
        assert_eq!(
            names(0xFE00_0028, 0x1_0000_0001, 16 << 20),
            [
                "0000000100000000000000FE",
                "0000000100000000000000FF",
                "000000010000000100000000"
            ]
        );
        assert_eq!(
            names(0x1_4000_0000, 0x1_4000_0001, 1 << 30),
            ["000000010000000100000001"]
        );
    }

    #[test]
    fn a_description_is_understood_with_whatever_follows_it() {
        let backup = BaseBackup {
            system: u64::MAX,
            version: "15.18".to_owned(),
            origin: Origin::Standby,
            timeline: 2,
            start_lsn: Lsn(0x300_0028),
            stop_lsn: Lsn(0x1_0000_0000),
            start_wal: "000000020000000000000003".to_owned(),
            stop_wal: "0000000200000000000000FF".to_owned(),
            wal: WalMode::Include,
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            data_directory: "/srv/pg".into(),
            tablespaces: vec![Tablespace {
                oid: 16_384,
                name: "a \"b\" [2 warnings]".to_owned(),
                location: "/srv/fast".into(),
            }],
        };
        let told = backup.description() + " [2 warnings]";
        assert_eq!(BaseBackup::from_description(&told), Some(backup));
        for other in ["", "PostgreSQL", "PostgreSQL {}", "a note"] {
            assert_eq!(BaseBackup::from_description(other), None);
        }
    }
}
