//! Names and headers of archived WAL (`docs/design/wal.md` §1, §2): what client and server must agree on without a key.
//!
//! Invariants: a [`WalName`] is one that PostgreSQL gives; id and path are made of it and lead back to it alone.

use crate::ObjectId;
use std::{fmt, ops::Range, str::FromStr};

/// Bytes of a body before what is sealed.
pub const HEADER_BYTES: usize = 128;
/// The part of the header that the SHA-256 in it covers, with everything behind the header.
pub const SUMMED_BYTES: usize = 96;

/// PostgreSQL's largest segments have so many bytes: the offset of a piece is below.
const SEGMENT_BYTES_MAX: u32 = 1 << 30;
/// Segments of a log of the smallest segments that PostgreSQL makes, 1 MiB.
const SEGMENTS_MAX: u32 = 4096;
const MAGIC: [u8; 8] = *b"BKLNWAL\0";
const VERSION: u32 = 1;

/// The name of a file that PostgreSQL archives, or of a piece of one, with the cluster that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalName {
    /// The cluster's system identifier.
    pub system: u64,
    /// The timeline.
    pub timeline: u32,
    /// Which of its files.
    pub file: WalFile,
}

/// A file of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A segment.
    Segment(SegmentPlace),
    /// A segment that was being written when its timeline ended.
    Partial(SegmentPlace),
    /// Says that a base backup began in a segment, at an offset.
    Backup(SegmentPlace, u32),
    /// What was written of a segment from an offset on, while it was growing.
    Piece(SegmentPlace, u32),
    /// Where the timeline comes from.
    History,
}

/// A segment's place in its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentPlace {
    /// The upper 32 bits of its address.
    pub log: u32,
    /// Which segment within those.
    pub segment: u32,
}

/// The clear beginning of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Length of the file.
    pub plain_bytes: u64,
    /// What it was sealed with beside the key.
    pub nonce: [u8; 12],
    /// Whose body it is.
    pub name: WalName,
    /// The keyed digest of the file.
    pub digest: [u8; 32],
    /// The SHA-256 of the rest.
    pub sum: [u8; 32],
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// There is less than a header.
    #[error("it has only {0} bytes")]
    Short(usize),
    /// It begins with something else.
    #[error("it does not begin as archived WAL does")]
    Magic,
    /// A later version.
    #[error("it is of version {0} of the format")]
    Version(u32),
    /// The name in it is none.
    #[error("it has no name of a WAL file")]
    Name,
}

impl WalName {
    /// Parses a name as PostgreSQL gives it, of a file of the cluster `system`.
    #[must_use]
    pub fn from_file_name(system: u64, name: &str) -> Option<Self> {
        let (first, rest) = name.split_at_checked(8)?;
        let timeline = hex(first)?;
        let file = if rest == ".history" {
            WalFile::History
        } else {
            let (place, rest) = rest.split_at_checked(16)?;
            let place = SegmentPlace {
                log: hex(&place[..8])?,
                segment: hex(place.get(8..)?)?,
            };
            match rest {
                "" => WalFile::Segment(place),
                ".partial" => WalFile::Partial(place),
                _ => {
                    let (offset, kind) = rest.strip_prefix('.')?.split_once('.')?;
                    match kind {
                        "backup" => WalFile::Backup(place, hex(offset)?),
                        "piece" => WalFile::Piece(place, hex(offset)?),
                        _ => return None,
                    }
                }
            }
        };
        let name = Self {
            system,
            timeline,
            file,
        };
        name.is_sound().then_some(name)
    }

    /// Parses an id.
    #[must_use]
    pub fn from_id(id: ObjectId) -> Option<Self> {
        let place = SegmentPlace {
            log: number(id, 12..16),
            segment: number(id, 16..20),
        };
        let name = Self {
            system: u64::from(number(id, 0..4)) << 32 | u64::from(number(id, 4..8)),
            timeline: number(id, 8..12),
            file: match id.0[20] {
                0 => WalFile::Segment(place),
                1 => WalFile::Partial(place),
                2 => WalFile::Backup(place, number(id, 21..25)),
                3 => WalFile::History,
                4 => WalFile::Piece(place, number(id, 21..25)),
                _ => return None,
            },
        };
        // What the name doesn't say has to be zero.
        (name.is_sound() && name.id() == id).then_some(name)
    }

    /// The id, which sorts as WAL does.
    #[must_use]
    #[expect(clippy::big_endian_bytes, reason = "ids sort as what they name")]
    pub fn id(self) -> ObjectId {
        let (place, kind, offset) = match self.file {
            WalFile::Segment(place) => (Some(place), 0, 0),
            WalFile::Partial(place) => (Some(place), 1, 0),
            WalFile::Backup(place, offset) => (Some(place), 2, offset),
            WalFile::History => (None, 3, 0),
            WalFile::Piece(place, offset) => (Some(place), 4, offset),
        };
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.system.to_be_bytes());
        id[8..12].copy_from_slice(&self.timeline.to_be_bytes());
        if let Some(place) = place {
            id[12..16].copy_from_slice(&place.log.to_be_bytes());
            id[16..20].copy_from_slice(&place.segment.to_be_bytes());
        }
        id[20] = kind;
        id[21..25].copy_from_slice(&offset.to_be_bytes());
        ObjectId(id)
    }

    /// The file's name as PostgreSQL gives it; that of a piece is Backlane's own.
    #[must_use]
    pub fn file_name(self) -> String {
        let timeline = self.timeline;
        let segment =
            |place: SegmentPlace| format!("{timeline:08X}{:08X}{:08X}", place.log, place.segment);
        match self.file {
            WalFile::Segment(place) => segment(place),
            WalFile::Partial(place) => format!("{}.partial", segment(place)),
            WalFile::Backup(place, offset) => format!("{}.{offset:08X}.backup", segment(place)),
            WalFile::Piece(place, offset) => format!("{}.{offset:08X}.piece", segment(place)),
            WalFile::History => format!("{timeline:08X}.history"),
        }
    }

    fn is_sound(self) -> bool {
        let fits = match self.file {
            WalFile::Segment(place) | WalFile::Partial(place) | WalFile::Backup(place, _) => {
                place.segment < SEGMENTS_MAX
            }
            WalFile::Piece(place, offset) => {
                place.segment < SEGMENTS_MAX && offset < SEGMENT_BYTES_MAX
            }
            WalFile::History => true,
        };
        fits && self.system != 0 && self.timeline != 0
    }
}

/// The path of an object below its repository.
impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (system, timeline, file) = (self.system, self.timeline, self.file_name());
        write!(f, "wal/{system}/{timeline:08X}/{file}")
    }
}

impl FromStr for WalName {
    type Err = NotAWalName;

    fn from_str(path: &str) -> Result<Self, NotAWalName> {
        let parse = || {
            let mut parts = path.strip_prefix("wal/")?.split('/');
            let system = parts.next()?.parse().ok()?;
            let name = Self::from_file_name(system, parts.nth(1)?)?;
            // The timeline in between, and any other spelling, are told by how it is printed.
            (name.to_string() == path).then_some(name)
        };
        parse().ok_or(NotAWalName)
    }
}

/// A path that is none of archived WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a path of archived WAL, wal/SYSTEM/TIMELINE/FILE")]
pub struct NotAWalName;

impl WalHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[20..32].copy_from_slice(&self.nonce);
        bytes[32..64].copy_from_slice(&self.name.id().0);
        bytes[64..96].copy_from_slice(&self.digest);
        bytes[96..].copy_from_slice(&self.sum);
        bytes
    }

    /// Reads a header at the beginning of a body.
    ///
    /// # Errors
    /// When there is none of this version.
    pub fn decode(body: &[u8]) -> Result<Self, BadHeader> {
        let bytes: &[u8; HEADER_BYTES] = body.first_chunk().ok_or(BadHeader::Short(body.len()))?;
        if bytes[..8] != MAGIC {
            return Err(BadHeader::Magic);
        }
        let version = u32::from_le_bytes(part(bytes, 8));
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        Ok(Self {
            plain_bytes: u64::from_le_bytes(part(bytes, 12)),
            nonce: part(bytes, 20),
            name: WalName::from_id(ObjectId(part(bytes, 32))).ok_or(BadHeader::Name)?,
            digest: part(bytes, 64),
            sum: part(bytes, 96),
        })
    }
}

fn part<const N: usize>(header: &[u8; HEADER_BYTES], from: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&header[from..from + N]);
    part
}

fn number(id: ObjectId, at: Range<usize>) -> u32 {
    let of = |number, byte: &u8| number << 8 | u32::from(*byte);
    id.0[at].iter().fold(0, of)
}

/// Eight hexadecimal digits in capitals.
fn hex(text: &str) -> Option<u32> {
    let is_digit = |c: u8| matches!(c, b'0'..=b'9' | b'A'..=b'F');
    let is_number = text.len() == 8 && text.bytes().all(is_digit);
    u32::from_str_radix(text, 16).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SYSTEM: u64 = 7_234_567_890_123_456_789;

    fn any_name() -> impl Strategy<Value = WalName> {
        let place = (any::<u32>(), 0..SEGMENTS_MAX)
            .prop_map(|(log, segment)| SegmentPlace { log, segment });
        let file = prop_oneof![
            place.clone().prop_map(WalFile::Segment),
            place.clone().prop_map(WalFile::Partial),
            (place.clone(), any::<u32>()).prop_map(|(place, at)| WalFile::Backup(place, at)),
            (place, 0..SEGMENT_BYTES_MAX).prop_map(|(place, at)| WalFile::Piece(place, at)),
            Just(WalFile::History),
        ];
        (1_u64.., 1_u32.., file).prop_map(|(system, timeline, file)| WalName {
            system,
            timeline,
            file,
        })
    }

    fn parsed(name: &str) -> Option<WalName> {
        WalName::from_file_name(SYSTEM, name)
    }

    #[test]
    fn ids_sort_as_wal_does() {
        let in_order = [
            "00000001000000000000000F",
            "000000010000000000000010",
            "000000010000000000000010.partial",
            "000000010000000000000010.00000028.backup",
            "000000010000000000000010.00000000.piece",
            "000000010000000000000010.0000A028.piece",
            "000000010000000100000000",
            "00000002.history",
            "000000020000000100000000",
        ];
        let ids: Vec<_> = in_order.map(|name| parsed(name).unwrap().id()).into();
        assert!(ids.is_sorted(), "{ids:?}");
        let id = "6466592a6a41811500000002000000010000000000000000000000000000";
        assert_eq!(ids[8].to_string(), format!("{id}0000"));
    }

    #[test]
    fn only_names_that_postgresql_gives_are_names() {
        for bad in [
            "",
            "00000001",
            "00000001000000000000000f",
            "0000000100000000000000F",
            "00000001000000000000000FF",
            "000000000000000000000001",
            "000000010000000000001000",
            "+0000001000000000000000F",
            "000000010000000000000010.Partial",
            "000000010000000000000010.28.backup",
            "000000010000000000000010.28.piece",
            "000000010000000000000010.40000000.piece",
            "000000010000000000000010.00000028.pieces",
            "00000001.history.tmp",
            "00000000.history",
            "0000000100000000000000é",
            "RECOVERYXLOG",
            "../../../etc/passwd",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        assert_eq!(WalName::from_file_name(0, "00000001.history"), None);
    }

    #[test]
    fn only_paths_as_they_are_printed_are_paths() {
        let path = format!("wal/{SYSTEM}/00000001/00000001000000000000000F");
        assert_eq!(path.parse::<WalName>().unwrap().to_string(), path);
        for bad in [
            path.replace("wal/", "wal/0"),
            path.replace("/00000001/", "/00000002/"),
            path.replace("wal/", "wal//"),
            format!("{path}/"),
            format!("/{path}"),
        ] {
            assert_eq!(bad.parse::<WalName>(), Err(NotAWalName), "{bad}");
        }
    }

    #[test]
    fn what_is_no_header_is_told_apart() {
        let header = WalHeader {
            plain_bytes: 5,
            nonce: [1; 12],
            name: parsed("00000002.history").unwrap(),
            digest: [2; 32],
            sum: [3; 32],
        };
        let whole = header.encode();
        assert_eq!(WalHeader::decode(&whole), Ok(header));
        let changed = |at: usize| {
            let mut bytes = whole;
            bytes[at] ^= 0x80;
            WalHeader::decode(&bytes)
        };
        assert_eq!(changed(0), Err(BadHeader::Magic));
        assert_eq!(changed(8), Err(BadHeader::Version(0x81)));
        assert_eq!(changed(63), Err(BadHeader::Name));
        assert_eq!(WalHeader::decode(&whole[1..]), Err(BadHeader::Short(127)));
    }

    proptest! {
        #[test]
        fn names_survive_ids_and_paths(name in any_name()) {
            prop_assert_eq!(WalName::from_id(name.id()), Some(name));
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn an_id_that_is_a_name_is_the_one_of_that_name(name in any_name(), at in 0..32_usize, bits in 1_u8..) {
            let mut id = name.id();
            id.0[at] ^= bits;
            if let Some(other) = WalName::from_id(id) {
                prop_assert_eq!(other.id(), id);
            }
        }

        #[test]
        fn order_of_ids_is_order_of_names(a in any_name(), b in any_name()) {
            // Within one segment and timeline the kinds follow each other.
            if let (WalFile::Segment(_), WalFile::Segment(_)) = (a.file, b.file) {
                prop_assert_eq!(a.cmp(&b), a.id().cmp(&b.id()));
            }
        }
    }
}
