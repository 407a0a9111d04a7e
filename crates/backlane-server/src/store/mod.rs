//! Where the bytes of one repository are kept: the seam behind which an object store may stand one day.
//!
//! A store knows names and bytes and nothing of hashes, hosts or permissions; those are checked above it. Its calls
//! block, so that one implementation serves sessions (on the blocking threads of the runtime) and maintenance alike.

mod local;
mod shelf;
mod sink;
mod source;
mod wal;

pub(crate) use local::sync_directory;
pub(crate) use local::{Hold, LocalStore};
pub(crate) use shelf::{LaidAside, Shelf};

use crate::{
    ServerError,
    db::{Arrival, Timestamp},
};
use backlane_proto::{ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;

/// Keeps the objects of one repository.
pub(crate) trait ByteStore: Send + Sync + 'static {
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

    /// Begins an object and takes the room for it where that can be done.
    ///
    /// # Errors
    /// [`ServerError::Full`] when there is no room for it.
    fn create(&self, arrival: Arrival) -> Result<Box<dyn ByteSink>, ServerError>;

    /// When an object was written, and what it was said to hold; the latter may be lost where the store can't keep it.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such object.
    fn origin(&self, name: ObjectName) -> Result<Origin, ServerError>;

    /// Removes an object; when this returns, the removal is durable.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such object.
    fn remove(&self, name: ObjectName) -> Result<(), ServerError>;

    /// Takes an object out of the repository and keeps it on a shelf; when this returns, that is durable.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] when there is no such object.
    fn lay_aside(&self, name: ObjectName, shelf: Shelf, at: Timestamp) -> Result<(), ServerError>;

    /// What is on a shelf, in the order in which it was laid aside.
    ///
    /// # Errors
    /// When the list can't be had whole.
    fn shelf(&self, shelf: Shelf) -> Result<Vec<LaidAside>, ServerError>;

    /// The same of something on a shelf.
    ///
    /// # Errors
    /// When it isn't there any more.
    fn shelf_origin(&self, shelf: Shelf, aside: &LaidAside) -> Result<Origin, ServerError>;

    /// Opens something on a shelf to read it.
    ///
    /// # Errors
    /// When it isn't there any more.
    fn open_aside(
        &self,
        shelf: Shelf,
        aside: &LaidAside,
    ) -> Result<Box<dyn ByteSource>, ServerError>;

    /// Puts something back, unless its name is taken: then it stays on the shelf.
    ///
    /// # Errors
    /// When that is not known to be durable.
    fn put_back(&self, shelf: Shelf, aside: &LaidAside) -> Result<Placed, ServerError>;

    /// Deletes something on a shelf.
    ///
    /// # Errors
    /// When it can't be deleted.
    fn discard(&self, shelf: Shelf, aside: &LaidAside) -> Result<(), ServerError>;
}

/// What a store knows itself of how an object came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) written_at: Timestamp,
    pub(crate) contents: Option<PackContents>,
}

/// An object that is open to be read.
pub(crate) trait ByteSource: Send + Sync {
    /// Its size in bytes.
    fn length(&self) -> u64;

    /// Reads exactly `bytes` bytes from `offset`.
    ///
    /// # Errors
    /// When there are fewer bytes, or they can't be read.
    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, ServerError>;
}

/// An object on its way in. Dropped before [`ByteSink::place`] returned, it leaves nothing.
pub(crate) trait ByteSink: Send {
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

/// What [`ByteSink::place`] found, or [`ByteStore::put_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The name was free and is this object's now.
    Created,
    /// The name was taken and what has it was left alone; it is durable.
    Existed,
}
