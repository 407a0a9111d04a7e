//! Where the bytes of one repository are kept: the seam behind which an object store may stand one day.
//!
//! A store knows names and bytes and nothing of hashes, hosts or permissions; those are checked above it. Its calls
//! block, so that one implementation serves sessions (on the blocking threads of the runtime) and maintenance alike.

mod local;

pub(crate) use local::sync_directory;
pub use local::{Hold, LocalStore};

use crate::ServerError;
use backlane_proto::{ObjectInfo, ObjectKind, ObjectName};
use bytes::Bytes;

/// Keeps the objects of one repository.
pub trait ByteStore: Send + Sync + 'static {
    /// Lists every object of a kind, in the order of their names.
    ///
    /// # Errors
    /// When the list can't be had whole, or something is found that belongs to no repository.
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, ServerError>;

    /// Opens an object to read it.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such object.
    fn open(&self, name: ObjectName) -> Result<Box<dyn ByteSource>, ServerError>;

    /// Begins an object of `bytes` bytes and takes the room for it where that can be done.
    ///
    /// # Errors
    /// [`ServerError::Full`] when there is no room for it.
    fn create(&self, name: ObjectName, bytes: u64) -> Result<Box<dyn ByteSink>, ServerError>;

    /// Removes an object; when this returns, the removal is durable.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such object.
    fn remove(&self, name: ObjectName) -> Result<(), ServerError>;
}

/// An object that is open to be read.
pub trait ByteSource: Send + Sync {
    /// Its size in bytes.
    fn length(&self) -> u64;

    /// Reads exactly `bytes` bytes from `offset`.
    ///
    /// # Errors
    /// When there are fewer bytes, or they can't be read.
    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, ServerError>;
}

/// An object on its way in. Dropped before [`ByteSink::place`] returned, it leaves nothing.
pub trait ByteSink: Send {
    /// Appends a piece.
    ///
    /// # Errors
    /// [`ServerError::Full`] when there is no more room.
    fn write(&mut self, piece: &[u8]) -> Result<(), ServerError>;

    /// Makes what was written durable, without a name yet.
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn sync(&mut self) -> Result<(), ServerError>;

    /// Gives the object its name, durably, unless the name is taken.
    ///
    /// # Errors
    /// When the name is not known to be durable.
    fn place(self: Box<Self>) -> Result<Placed, ServerError>;
}

/// What [`ByteSink::place`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The name was free and is this object's now.
    Created,
    /// The name was taken and what has it was left alone; it is durable.
    Existed,
}
