//! The session for threads that may block, as a repository's are.

use super::{ClientConfig, RouteStatus, Session};
use crate::Error;
use backlane_proto::{
    Arrived, ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents, RouteReport,
};
use bytes::Bytes;
use tokio::runtime::Handle;

/// A session for threads outside an async runtime; every method blocks, many threads may call at once.
///
/// The runtime must have worker threads of its own (`multi_thread`) and outlive the session. Called from one of those
/// threads, the methods panic, as tokio has it.
#[derive(Clone, Debug)]
pub struct Blocking {
    session: Session,
    handle: Handle,
}

impl Blocking {
    /// Wraps a session that runs on the runtime of `handle`.
    #[must_use]
    pub fn new(session: Session, handle: Handle) -> Self {
        Self { session, handle }
    }

    /// Connects as [`Session::connect`] does, on the runtime of `handle`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect(config: ClientConfig, handle: Handle) -> Result<Self, Error> {
        let session = handle.block_on(Session::connect(config))?;
        Ok(Self { session, handle })
    }

    /// The same session, for async callers.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// See [`Session::list`].
    ///
    /// # Errors
    /// As [`Session::list`].
    pub fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, Error> {
        self.handle.block_on(self.session.list(kind))
    }

    /// See [`Session::get`].
    ///
    /// # Errors
    /// As [`Session::get`].
    pub fn get(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, Error> {
        self.handle.block_on(self.session.get(name, range))
    }

    /// See [`Session::put`].
    ///
    /// # Errors
    /// As [`Session::put`].
    pub fn put(&self, name: ObjectName, contents: PackContents, body: Bytes) -> Result<(), Error> {
        self.handle.block_on(self.session.put(name, contents, body))
    }

    /// See [`Session::remove`].
    ///
    /// # Errors
    /// As [`Session::remove`].
    pub fn remove(&self, name: ObjectName) -> Result<(), Error> {
        self.handle.block_on(self.session.remove(name))
    }

    /// See [`Session::arrivals`].
    ///
    /// # Errors
    /// As [`Session::arrivals`].
    pub fn arrivals(&self, kind: ObjectKind) -> Result<Vec<Arrived>, Error> {
        self.handle.block_on(self.session.arrivals(kind))
    }

    /// See [`Session::report`].
    #[must_use]
    pub fn report(&self) -> RouteReport {
        self.session.report()
    }

    /// See [`Session::routes`].
    #[must_use]
    pub fn routes(&self) -> RouteStatus {
        self.session.routes()
    }

    /// See [`Session::close`].
    ///
    /// # Errors
    /// As [`Session::close`].
    pub fn close(self) -> Result<RouteReport, Error> {
        self.handle.block_on(self.session.close())
    }
}
