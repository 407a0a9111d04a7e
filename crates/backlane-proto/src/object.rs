//! Names of the objects of a repository.
//!
//! An object of the restic format is named by the SHA-256 of its bytes, but for the config, which has no name and exists
//! once. Archived WAL is named by what it is ([`WalName`]).

use crate::WalName;
use std::fmt;

/// What names an object of its kind: the SHA-256 of its bytes, or a packed [`WalName`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

/// What an object is to the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// The repository's one configuration; not named by its hash.
    Config,
    /// A wrapped master key.
    Key,
    /// A part of the index: which pack holds which blob.
    Index,
    /// One snapshot.
    Snapshot,
    /// A pack of sealed blobs.
    Pack,
    /// A file of PostgreSQL's write-ahead log; not named by its hash, and no part of the restic format.
    Wal,
}

/// What a pack was said to hold when it was put; anything that isn't said to be trees counts as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PackContents {
    /// File contents, or unknown. Also used for objects that are no packs.
    #[default]
    Data,
    /// Directory trees alone.
    Trees,
}

/// The full name of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The kind, which also says where the object is stored.
    pub kind: ObjectKind,
    /// The hash; all zero for [`ObjectKind::Config`], a packed name for [`ObjectKind::Wal`].
    pub id: ObjectId,
}

/// One row of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The object's identity; its kind is the listing's.
    pub id: ObjectId,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A part of an object: `length` bytes from `offset`. A part that reaches past the end is an error, never cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// When an object arrived at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The object's identity; its kind is the listing's.
    pub id: ObjectId,
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: i64,
}

impl ObjectId {
    /// The identity of the config, which has no hash.
    pub const NONE: Self = Self([0; 32]);

    /// Parses 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return None;
        }
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Config,
        Self::Key,
        Self::Index,
        Self::Snapshot,
        Self::Pack,
        Self::Wal,
    ];
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::Index => "index",
            Self::Snapshot => "snapshot",
            Self::Pack => "pack",
            Self::Wal => "wal",
        })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ObjectKind::Config => f.write_str("config"),
            ObjectKind::Wal if let Some(name) = WalName::from_id(self.id) => name.fmt(f),
            kind => write!(f, "{kind} {}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_survives_hex_and_rejects_what_is_not_it() {
        let id = ObjectId(std::array::from_fn(|i| u8::try_from(i * 8).unwrap()));
        assert_eq!(ObjectId::from_hex(&id.to_string()), Some(id));
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(65)] {
            assert_eq!(ObjectId::from_hex(bad), None, "{bad}");
        }
    }
}
