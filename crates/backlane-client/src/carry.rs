//! What the restic format has no place for, and how it travels all the same.
//!
//! It is put into extended attributes whose names begin with `backlane.`, which is no name space of Linux: other tools
//! can't set them and pass over them, and Backlane turns them back into what they were (docs/fidelity.md).

use crate::fs::extents::{self, Extent};
use backlane_repo::{Metadata, Time, Xattr};

/// How the names of carrying attributes begin.
const CARRIER: &[u8] = b"backlane.";

/// Carries where a file holds data.
const CARRIER_HOLES: &[u8] = b"backlane.holes";

/// Carries a modification time outside [`SECONDS_MIN`] to [`SECONDS_MAX`].
const CARRIER_MODIFIED: &[u8] = b"backlane.mtime";

/// Says that a file is the copy of a SQLite database, and needs nothing that lies beside it.
const CARRIER_SQLITE: &[u8] = b"backlane.sqlite";

/// Says that nobody looked into a directory: what belongs there is not known.
const CARRIER_UNLISTED: &[u8] = b"backlane.unlisted";

/// Followed by the name in hexadecimal, carries an attribute whose name is not UTF-8.
const CARRIER_XATTR: &[u8] = b"backlane.xattr.";

/// Early in year 1: the format writes times with four digits for the year, in any time zone.
const SECONDS_MIN: i64 = -62_135_000_000;

/// Late in year 9999.
const SECONDS_MAX: i64 = 253_402_000_000;

/// Makes metadata fit for the format: what has no place in it becomes a carrier.
pub(crate) fn pack(metadata: &mut Metadata, holes: Option<&[Extent]>) {
    for attribute in &mut metadata.xattrs {
        if std::str::from_utf8(&attribute.name).is_err() {
            let mut name = CARRIER_XATTR.to_vec();
            name.extend_from_slice(to_hex(&attribute.name).as_bytes());
            attribute.name = name;
        }
    }
    let mut carry = |name: &[u8], value| {
        let name = name.to_vec();
        metadata.xattrs.push(Xattr { name, value });
    };
    if let Some(extents) = holes {
        carry(CARRIER_HOLES, extents::encode(extents));
    }
    if let Some(time) = metadata.modified
        && clamped(time) != time
    {
        let text = format!("{} {}", time.seconds, time.nanoseconds);
        carry(CARRIER_MODIFIED, text.into_bytes());
    }
    for time in [
        &mut metadata.modified,
        &mut metadata.accessed,
        &mut metadata.changed,
    ] {
        *time = time.map(clamped);
    }
    metadata.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
}

/// What carriers said beside metadata.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The extents that hold data, of a file with holes.
    pub(crate) holes: Option<Vec<Extent>>,
    /// Whether nobody looked into the directory.
    pub(crate) unlisted: bool,
}

/// Marks a directory into which the backup could not or should not look.
pub(crate) fn mark_unlisted(metadata: &mut Metadata) {
    mark(metadata, CARRIER_UNLISTED);
}

/// Marks the copy of a SQLite database.
pub(crate) fn mark_sqlite(metadata: &mut Metadata) {
    mark(metadata, CARRIER_SQLITE);
}

/// Whether it is marked as the copy of a SQLite database.
pub(crate) fn is_sqlite(metadata: &Metadata) -> bool {
    let attributes = &metadata.xattrs;
    attributes.iter().any(|one| one.name == CARRIER_SQLITE)
}

fn mark(metadata: &mut Metadata, name: &[u8]) {
    metadata.xattrs.push(Xattr {
        name: name.to_vec(),
        value: Vec::new(),
    });
    metadata.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Takes carriers out of the attributes again, and gives what else they say. A carrier that can't be understood is
/// nothing. `bytes` is the file's size.
pub(crate) fn unpack(metadata: &mut Metadata, bytes: u64) -> Carried {
    let mut carried = Carried::default();
    let mut modified = metadata.modified;
    metadata.xattrs.retain_mut(|attribute| {
        if let Some(hex) = attribute.name.strip_prefix(CARRIER_XATTR) {
            let name = from_hex(hex);
            let understood = name.is_some();
            attribute.name = name.unwrap_or_default();
            return understood;
        }
        if attribute.name == CARRIER_HOLES {
            carried.holes = extents::decode(&attribute.value, bytes);
        } else if attribute.name == CARRIER_UNLISTED {
            carried.unlisted = true;
        } else if attribute.name == CARRIER_MODIFIED {
            modified = parse_time(&attribute.value).or(modified);
        }
        !attribute.name.starts_with(CARRIER)
    });
    metadata.modified = modified;
    metadata.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    carried
}

fn clamped(time: Time) -> Time {
    let seconds = time.seconds.clamp(SECONDS_MIN, SECONDS_MAX);
    if seconds == time.seconds {
        return time;
    }
    Time {
        seconds,
        nanoseconds: 0,
    }
}

fn parse_time(value: &[u8]) -> Option<Time> {
    let (seconds, nanoseconds) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let time = Time {
        seconds: seconds.parse().ok()?,
        nanoseconds: nanoseconds.parse().ok()?,
    };
    (time.nanoseconds < 1_000_000_000).then_some(time)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // can't fail on a string
        text
    })
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_format_has_no_place_for_survives_as_carriers() {
        let xattr = |name: &[u8], value: &[u8]| Xattr {
            name: name.to_vec(),
            value: value.to_vec(),
        };
        let metadata = Metadata {
            modified: Some(Time {
                seconds: i64::MIN / 2,
                nanoseconds: 999_999_999,
            }),
            xattrs: vec![xattr(b"user.a", b"\0\xff"), xattr(b"user.\xff\n", b"")],
            ..Metadata::default()
        };
        let extents = [Extent {
            start: 4096,
            end: 8192,
        }];
        let mut packed = metadata.clone();
        pack(&mut packed, Some(&extents));
        assert_eq!(packed.modified.unwrap().seconds, SECONDS_MIN);
        assert!(packed.xattrs.iter().all(|x| x.name.is_ascii()));
        mark_unlisted(&mut packed);
        let carried = Carried {
            holes: Some(extents.to_vec()),
            unlisted: true,
        };
        assert_eq!(unpack(&mut packed, 1 << 20), carried);
        assert_eq!(packed, metadata);
    }

    #[test]
    fn carriers_that_mean_nothing_are_dropped() {
        let names = [
            "backlane.holes",
            "backlane.mtime",
            "backlane.xattr.0",
            "backlane.new",
        ];
        let mut metadata = Metadata {
            modified: Some(Time::default()),
            xattrs: names
                .map(|name| Xattr {
                    name: name.into(),
                    value: b"\xff".to_vec(),
                })
                .to_vec(),
            ..Metadata::default()
        };
        assert_eq!(unpack(&mut metadata, 10), Carried::default());
        assert_eq!(metadata.xattrs, []);
        assert_eq!(metadata.modified, Some(Time::default()));
    }
}
