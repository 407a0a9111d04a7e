//! The small blocking trait through which the repository reaches its objects.
//!
//! A client implements it over a session, the server's maintenance over its own directories, a test in memory.

use backlane_proto::{ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;

/// Where a repository's objects are kept.
///
/// Calls block and may come from many threads at once. An implementation never panics.
pub trait ObjectStore: Send + Sync + 'static {
    /// Lists every object of a kind; an incomplete list is an error.
    ///
    /// # Errors
    /// When the list can't be had whole.
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Reads an object, or exactly the part of it that `range` names.
    ///
    /// # Errors
    /// When the object doesn't exist ([`StoreError::NotFound`]), is shorter than the range or can't be read while others
    /// can ([`StoreError::Damaged`]), or the store fails.
    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError>;

    /// Stores an object and returns when it is durable. The same object put again is a success.
    ///
    /// # Errors
    /// When the object is not known to be durable.
    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError>;

    /// Removes an object.
    ///
    /// # Errors
    /// When this user may not remove ([`StoreError::Denied`]) or the removal failed.
    fn remove(&self, name: ObjectName) -> Result<(), StoreError>;
}

/// Why a call of an [`ObjectStore`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such object.
    #[error("{name} does not exist")]
    NotFound {
        /// The object asked for.
        name: ObjectName,
    },
    /// The object is there, and is damaged or can't be read; others may be well.
    #[error("{name} is damaged where it is stored: {what}")]
    Damaged {
        /// The object asked for.
        name: ObjectName,
        /// What is wrong with it, in the words of whoever found it.
        what: String,
    },
    /// This user may not do that.
    #[error("not permitted: {what}")]
    Denied {
        /// What was refused, in the words of whoever refused it.
        what: String,
    },
    /// The store, or the way to it, failed.
    #[error(transparent)]
    Failed(#[from] Box<dyn std::error::Error + Send + Sync>),
}
