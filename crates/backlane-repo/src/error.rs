//! Why a call on a repository failed.
//!
//! Kept apart: the store failed, the repository's content is damaged, and the caller asked for something that isn't
//! there.

use std::sync::Arc;

use backlane_proto::{ObjectId, ObjectName};

use crate::index::{BlobId, BlobKind};
use crate::store::StoreError;

/// Why a call on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The store failed a call.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A write or removal failed; the handle stays failed and every later call reports the first failure.
    #[error("the repository can no longer be used after a failed write: {cause}")]
    WriteFailed {
        /// The first failure.
        cause: Arc<StoreError>,
    },
    /// The store holds no repository.
    #[error("there is no repository here: {what}")]
    NotARepository {
        /// What is missing.
        what: &'static str,
    },
    /// The store holds a repository already.
    #[error("there is a repository here already")]
    AlreadyExists,
    /// No key of the repository opens with this password.
    #[error("wrong password: none of the repository's {keys} keys opens with it")]
    WrongPassword {
        /// How many keys were tried.
        keys: usize,
    },
    /// No key, or more than one, has that name.
    #[error("`{wanted}` is the beginning of {matches} keys' ids, and must be that of one")]
    KeyNotFound {
        /// What was asked for.
        wanted: String,
        /// How many keys match.
        matches: usize,
    },
    /// Without that key nothing would open the repository.
    #[error("key {id} is the only one: without it the repository could never be opened again")]
    OnlyKey {
        /// The key.
        id: ObjectId,
    },
    /// The repository was opened with that key.
    #[error(
        "key {id} is the one that the repository was opened with: open it with another to remove this one"
    )]
    KeyInUse {
        /// The key.
        id: ObjectId,
    },
    /// The repository's format is newer than what this program knows.
    #[error("the repository has format version {version}; versions 1 and 2 are supported")]
    UnsupportedVersion {
        /// What its config says.
        version: u32,
    },
    /// An object's content is not what it should be.
    #[error("{object} is damaged: {damage}")]
    Damaged {
        /// The object.
        object: ObjectName,
        /// What was found.
        damage: Damage,
    },
    /// A blob that a tree or a snapshot refers to is in no index.
    #[error("{kind} blob {id} is in no index")]
    BlobNotIndexed {
        /// Tree or data.
        kind: BlobKind,
        /// The blob.
        id: BlobId,
    },
    /// No snapshot has that name.
    #[error("no snapshot matches `{wanted}`")]
    SnapshotNotFound {
        /// What was asked for.
        wanted: String,
    },
    /// Several snapshots have that prefix.
    #[error("`{wanted}` matches {} snapshots: {}", matches.len(), short_list(matches))]
    SnapshotAmbiguous {
        /// What was asked for.
        wanted: String,
        /// The snapshots that match.
        matches: Vec<ObjectId>,
    },
    /// A path is not in the snapshot.
    #[error("`{}` is not in the snapshot", path.escape_ascii())]
    PathNotFound {
        /// The path asked for.
        path: Vec<u8>,
    },
    /// A directory was wanted and something else found.
    #[error("`{}` is not a directory", path.escape_ascii())]
    NotADirectory {
        /// The path.
        path: Vec<u8>,
    },
    /// A regular file was wanted and something else found.
    #[error("`{}` is not a regular file", name.escape_ascii())]
    NotAFile {
        /// The node's name.
        name: Vec<u8>,
    },
    /// An entry is of a kind that this program doesn't know.
    #[error("`{}` is of a kind that this version does not know (`{kind}`)", name.escape_ascii())]
    UnknownKind {
        /// The node's name.
        name: Vec<u8>,
        /// What the snapshot calls its kind.
        kind: String,
    },
    /// A glob pattern can't be parsed.
    #[error("bad pattern: {what}")]
    BadPattern {
        /// What is wrong with it.
        what: String,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The source broke its contract.
    #[error("the source gave `{}` {what}", path.escape_ascii())]
    BadSource {
        /// The entry.
        path: Vec<u8>,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No reader takes so long a list of one directory's entries.
    #[error("directory `{}` can't be backed up: the list of its entries, with their attributes, would have more than a GiB", path.escape_ascii())]
    DirectoryTooLarge {
        /// The directory.
        path: Vec<u8>,
    },
    /// A policy that would keep nothing at all.
    #[error("the policy keeps nothing")]
    KeepsNothing,
    /// A time or an option is out of the range that the format can hold.
    #[error("{what} is out of range")]
    OutOfRange {
        /// Which value.
        what: &'static str,
    },
    /// The repository engine reported an error.
    #[error("{doing}: {what}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// The engine's words.
        what: String,
    },
    /// The repository engine panicked: a bug, or content that it can't cope with.
    #[error("{doing}: the repository engine panicked: {what}")]
    EnginePanicked {
        /// What was being done.
        doing: &'static str,
        /// The panic's message.
        what: String,
    },
    /// Output could not be written.
    #[error("can't write the output: {0}")]
    Output(#[source] std::io::Error),
}

/// What is wrong with an object's or blob's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Shorter than the seal's nonce and tag.
    #[error("{bytes} bytes are too short to be sealed")]
    TooShort {
        /// Its length.
        bytes: usize,
    },
    /// The tag doesn't fit: the bytes were changed, or sealed with another key.
    #[error("its tag does not fit")]
    Tag,
    /// Not compressed as it should be, or longer than its index entry says.
    #[error("it can't be decompressed: {what}")]
    Compression {
        /// The decompressor's words.
        what: String,
    },
    /// Not as long as its index entry says.
    #[error("it has {got} bytes instead of {want}")]
    Length {
        /// What the index says.
        want: u64,
        /// What came out.
        got: u64,
    },
    /// A blob whose hash is not its name.
    #[error("blob {want} has the hash {got}")]
    Hash {
        /// The name.
        want: BlobId,
        /// The hash.
        got: BlobId,
    },
    /// Sealed and whole, but not the JSON that was expected.
    #[error("its content can't be read: {what}")]
    Content {
        /// The parser's words.
        what: String,
    },
}

impl RepoError {
    /// Whether it concerns one object or blob alone, and neither the way to the repository nor the rest of it.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::BlobNotIndexed { .. }
                | Self::Store(StoreError::NotFound { .. } | StoreError::Damaged { .. })
        )
    }

    /// The one object that it concerns, where it is about one.
    #[must_use]
    pub fn object(&self) -> Option<ObjectName> {
        match self {
            Self::Damaged { object: name, .. }
            | Self::Store(StoreError::NotFound { name } | StoreError::Damaged { name, .. }) => {
                Some(*name)
            }
            _ => None,
        }
    }
}

fn short_list(ids: &[ObjectId]) -> String {
    let short = |id: &ObjectId| id.to_string()[..8].to_owned();
    ids.iter().map(short).collect::<Vec<_>>().join(", ")
}
