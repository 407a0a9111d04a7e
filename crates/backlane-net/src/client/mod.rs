//! A session, seen from the client: connects, makes calls, reports which route carried what.
//!
//! Invariants: a call returns what the server has confirmed or an error, never a part; under
//! [`RoutePolicy::RequireStorage`] no byte of an object is given to the network; a call that is dropped is cancelled at
//! the server; when the session is lost every call under way fails at once with the same cause.

use crate::{Authority, Error, Identity};
use backlane_proto::{
    ByteRange, Event, ObjectInfo, ObjectKind, ObjectName, PackContents, Reason, RoutePolicy,
    RouteReport,
};
use bytes::Bytes;
use std::{path::PathBuf, time::Duration};
use uuid::Uuid;

/// How to reach a server and which routes to use.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the server's designated TCP port.
    pub server: String,
    /// This host's key and certificate.
    pub identity: Identity,
    /// The authority that signed the server's certificate.
    pub authority: Authority,
    /// Which routes bodies may take.
    pub policy: RoutePolicy,
    /// The pool shared with the server, if this host has one configured.
    pub pool: Option<PoolChoice>,
    /// How long connecting, TLS and the first answer may take.
    pub connect_timeout: Duration,
    /// How long the start of the session waits for storage before it goes ahead on the network; under
    /// `require-storage`, before it fails.
    pub storage_wait: Duration,
    /// Name and version of this program, for the server's log.
    pub software: String,
}

/// The pool that a host uses, and as what.
#[derive(Clone, Debug)]
pub struct PoolChoice {
    /// The pool; devices of another are refused. `None` takes what the devices say.
    pub uuid: Option<Uuid>,
    /// Paths of all of its devices, in any order.
    pub devices: Vec<PathBuf>,
    /// The slots that this host may take; one of them is taken for the session.
    pub slots: Vec<u32>,
    /// Directory of the lock files that keep two processes of this host from taking the same slot.
    pub lock_dir: PathBuf,
}

/// Whether each route can take bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    /// The network data connection.
    pub network: Result<(), RouteDown>,
    /// The storage data connection.
    pub storage: Result<(), RouteDown>,
}

/// Why a route can't take bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteDown {
    /// The reason, for programs.
    pub reason: Reason,
    /// The facts, for people; may be empty.
    pub detail: String,
}

/// A session with a server. Clones share it; it ends with [`Session::close`] or when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Session {}

/// What the server tells beside its answers; see [`Session::events`].
#[derive(Debug)]
pub struct Events {}

/// A session for threads outside an async runtime; every method blocks.
#[derive(Clone, Debug)]
pub struct Blocking {
    session: Session,
    handle: tokio::runtime::Handle,
}

impl ClientConfig {
    /// A configuration with the default time-outs, `prefer-storage` and no pool.
    #[must_use]
    pub fn new(server: impl Into<String>, identity: Identity, authority: Authority) -> Self {
        Self {
            server: server.into(),
            identity,
            authority,
            policy: RoutePolicy::default(),
            pool: None,
            connect_timeout: Duration::from_secs(10),
            storage_wait: Duration::from_secs(10),
            software: concat!("backlane ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Session {
    /// Connects: control, events and data by network, and storage through the pool, in parallel.
    ///
    /// # Errors
    /// When the server can't be reached, refuses, or (under `require-storage`) storage can't be had in time.
    pub async fn connect(config: ClientConfig) -> Result<Self, Error> {
        let _ = config;
        unimplemented!()
    }

    /// This host's name as the server knows it.
    #[must_use]
    pub fn host(&self) -> &str {
        unimplemented!()
    }

    /// The policy that both sides route by.
    #[must_use]
    pub fn policy(&self) -> RoutePolicy {
        unimplemented!()
    }

    /// Lists every object of a kind.
    ///
    /// # Errors
    /// When the list can't be had whole.
    pub async fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, Error> {
        let _ = kind;
        unimplemented!()
    }

    /// Reads an object, or exactly the part of it that `range` names.
    ///
    /// # Errors
    /// When it doesn't exist or can't be had whole by a route that the policy allows.
    pub async fn get(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, Error> {
        let _ = (name, range);
        unimplemented!()
    }

    /// Stores an object; returns when it is durable.
    ///
    /// # Errors
    /// When it isn't known to be durable, or no route may be used.
    pub async fn put(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), Error> {
        let _ = (name, contents, body);
        unimplemented!()
    }

    /// Removes an object, where the server permits it.
    ///
    /// # Errors
    /// When it doesn't exist, isn't permitted, or failed.
    pub async fn remove(&self, name: ObjectName) -> Result<(), Error> {
        let _ = name;
        unimplemented!()
    }

    /// What each route carried so far.
    #[must_use]
    pub fn report(&self) -> RouteReport {
        unimplemented!()
    }

    /// Which routes can take bodies now.
    #[must_use]
    pub fn routes(&self) -> RouteStatus {
        unimplemented!()
    }

    /// Log lines and progress from the server, from now on. A reader that lags misses the oldest.
    #[must_use]
    pub fn events(&self) -> Events {
        unimplemented!()
    }

    /// Ends the session: waits until the server has let go of it, so that its segments in the pool are free.
    ///
    /// # Errors
    /// When the session was lost before, or the server doesn't confirm in time.
    pub async fn close(self) -> Result<RouteReport, Error> {
        unimplemented!()
    }
}

impl Events {
    /// The next event; `None` when the session is over.
    pub async fn next(&mut self) -> Option<Event> {
        unimplemented!()
    }
}

impl Blocking {
    /// Connects as [`Session::connect`] does, on the runtime of `handle`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect(config: ClientConfig, handle: tokio::runtime::Handle) -> Result<Self, Error> {
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

    /// See [`Session::report`].
    #[must_use]
    pub fn report(&self) -> RouteReport {
        self.session.report()
    }

    /// See [`Session::close`].
    ///
    /// # Errors
    /// As [`Session::close`].
    pub fn close(self) -> Result<RouteReport, Error> {
        self.handle.block_on(self.session.close())
    }
}
