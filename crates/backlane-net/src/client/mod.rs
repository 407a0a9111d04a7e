//! A session, seen from the client: connects, makes calls, reports which route carried what.
//!
//! Invariants: a call returns what the server has confirmed or an error, never a part; under
//! [`RoutePolicy::RequireStorage`] no byte of an object is given to the network; a call that is dropped is cancelled at
//! the server; when the line to the server is lost every call under
//! way is made again on the next one; when the session is lost each fails at once with the same cause.

mod account;
mod blocking;
mod call;
mod connect;
mod line;
mod link;
mod shared;
mod storage;
mod survey;

use crate::{Authority, Error, Identity, Limits, SessionStatus};
use backlane_proto::{
    Answer, Arrived, ByteRange, Event, Health, ObjectInfo, ObjectKind, ObjectName, PackContents,
    Probe, Reason, Request, RoutePolicy, RouteReport, ServerRoutes, SessionFor,
};
pub use blocking::Blocking;
use bytes::Bytes;
use call::{Outcome, Wanted};
use shared::Shared;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
pub(crate) use storage::through_pool;
use storage_socket::{EngineChoice, EngineKind, IoStats};
pub use survey::Survey;
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};
use uuid::Uuid;

/// How long a close waits for the server to let go.
const CLOSE_WAIT: Duration = Duration::from_secs(15);

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
    /// What the session is for.
    pub session_for: SessionFor,
    /// The pool shared with the server, if this host has one configured.
    pub pool: Option<PoolChoice>,
    /// How long connecting, TLS and the first answer may take.
    pub connect_timeout: Duration,
    /// How long the start of the session waits for storage before it goes ahead on the network; under
    /// `require-storage`, before it fails.
    pub storage_wait: Duration,
    /// How long, in the middle of a session, a call waits for a route that the policy allows, and the session for a
    /// connection to the server.
    pub route_wait: Duration,
    /// What bodies may take of each route.
    pub limits: Limits,
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
    /// What does the I/O.
    pub engine: EngineChoice,
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

/// A pool that a session has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The pool.
    pub uuid: Uuid,
    /// The slot that was taken.
    pub slot: u32,
    /// How many devices it has.
    pub devices: usize,
    /// What does the I/O.
    pub engine: EngineKind,
    /// What this process has asked of the devices so far.
    pub io: IoStats,
}

/// A session with a server. Clones share it; it ends with [`Session::close`] or when the last clone is dropped.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

/// Ends the session with its last handle.
struct Inner {
    shared: Arc<Shared>,
}

/// What the server tells beside its answers; see [`Session::events`].
#[derive(Debug)]
pub struct Events {
    from: broadcast::Receiver<Event>,
    over: watch::Receiver<bool>,
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
            session_for: SessionFor::default(),
            pool: None,
            connect_timeout: Duration::from_secs(10),
            storage_wait: Duration::from_secs(10),
            route_wait: Duration::from_secs(600),
            limits: Limits::default(),
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
        let shared = connect::connect(config).await?;
        let inner = Arc::new(Inner { shared });
        Ok(Self { inner })
    }

    /// Tries every connection that the policy allows, whatever comes of it, and says what did.
    ///
    /// # Errors
    /// When this host's key or certificate can't be used.
    pub async fn survey(config: ClientConfig) -> Result<Survey, Error> {
        survey::survey(config).await
    }

    /// This host's name as the server knows it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.inner.shared.host
    }

    /// The policy that both sides route by.
    #[must_use]
    pub fn policy(&self) -> RoutePolicy {
        self.inner.shared.policy
    }

    /// Lists every object of a kind.
    ///
    /// # Errors
    /// When the list can't be had whole.
    pub async fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, Error> {
        match self.make(Wanted::List(kind)).await? {
            Outcome::Listing(entries) => Ok(entries),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Reads an object, or exactly the part of it that `range` names.
    ///
    /// # Errors
    /// When it doesn't exist or can't be had whole by a route that the policy allows.
    pub async fn get(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, Error> {
        match self.make(Wanted::Get(name, range)).await? {
            Outcome::Body(body) => Ok(body),
            other => Err(self.unexpected(&other)),
        }
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
        self.make(Wanted::Put(name, contents, body)).await.map(drop)
    }

    /// Removes an object, where the server permits it.
    ///
    /// # Errors
    /// When it doesn't exist, isn't permitted, or failed.
    pub async fn remove(&self, name: ObjectName) -> Result<(), Error> {
        self.make(Wanted::Remove(name)).await.map(drop)
    }

    /// Sends a body to nowhere by a route, or has one sent by it, and says how long it took: to the server, from its word
    /// that the body may come to its answer.
    ///
    /// # Errors
    /// When the policy rules the route out, it is down, or it fails under the body; nothing is repeated.
    pub async fn probe(&self, probe: Probe) -> Result<Duration, Error> {
        match call::probe(&self.inner.shared, probe).await? {
            Outcome::Done(elapsed) => Ok(elapsed),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How the server sees the routes of this session.
    ///
    /// # Errors
    /// When it doesn't say.
    pub async fn server_routes(&self) -> Result<ServerRoutes, Error> {
        match call::ask(&self.inner.shared, Request::Routes).await? {
            Answer::Routes(routes) => Ok(routes),
            other => Err(self.unexpected(&Outcome::Answer(other))),
        }
    }

    /// Asks for another certificate, PEM, for the key of a request ([`Identity::request`]).
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn renew(&self, csr_pem: String) -> Result<String, Error> {
        match call::ask(&self.inner.shared, Request::Renew { csr_pem }).await? {
            Answer::Renewed { certificate_pem } => Ok(certificate_pem),
            other => Err(self.unexpected(&Outcome::Answer(other))),
        }
    }

    /// When every object of a kind arrived at the server, in the order of their ids.
    ///
    /// # Errors
    /// When the list can't be had whole.
    pub async fn arrivals(&self, kind: ObjectKind) -> Result<Vec<Arrived>, Error> {
        let mut all: Vec<Arrived> = Vec::new();
        loop {
            let after = all.last().map(|arrived| arrived.id);
            let page = call::ask(&self.inner.shared, Request::Arrivals { kind, after });
            match page.await? {
                // A page that leads no further would be asked for without end.
                Answer::Arrivals { entries, more } if !more || !entries.is_empty() => {
                    all.extend(entries);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(self.unexpected(&Outcome::Answer(other))),
            }
        }
    }

    async fn make(&self, wanted: Wanted) -> Result<Outcome, Error> {
        call::make(&self.inner.shared, &wanted).await
    }

    /// For what a call's own task rules out.
    fn unexpected(&self, outcome: &Outcome) -> Error {
        let what = format!("{outcome:.60?} does not fit the call");
        Error::protocol(self.inner.shared.server.as_str(), what)
    }

    /// What each route carried so far.
    #[must_use]
    pub fn report(&self) -> RouteReport {
        self.inner.shared.account.report()
    }

    /// Which routes can take bodies now.
    #[must_use]
    pub fn routes(&self) -> RouteStatus {
        self.inner.shared.routes()
    }

    /// What does the I/O on the pool, while this session has one.
    #[must_use]
    pub fn engine(&self) -> Option<EngineKind> {
        self.pool().map(|pool| pool.engine)
    }

    /// The pool, while this session has it.
    #[must_use]
    pub fn pool(&self) -> Option<PoolUse> {
        self.inner.shared.pool.in_use()
    }

    /// How many calls are under way.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.inner.shared.calls()
    }

    /// How the session stands, as this side sees it.
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        self.inner.shared.status()
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.inner.shared.failure()
    }

    /// Log lines and progress from the server, from now on. A reader that lags misses the oldest.
    #[must_use]
    pub fn events(&self) -> Events {
        Events {
            from: self.inner.shared.events.subscribe(),
            over: self.inner.shared.over.subscribe(),
        }
    }

    /// Ends the session: waits until the server has let go of it, so that its segments in the pool are free.
    ///
    /// # Errors
    /// When the session was lost before, or the server doesn't confirm in time.
    pub async fn close(self) -> Result<RouteReport, Error> {
        let shared = &self.inner.shared;
        shared.close();
        let mut over = shared.over.subscribe();
        // What is waited for is let go of at once: its guard is of one thread, and this future may move.
        let waited = timeout(CLOSE_WAIT, over.wait_for(|over| *over))
            .await
            .map(drop);
        if waited.is_err() {
            shared.fail(Error::Closed);
            if let Some(pool) = shared.pool.retire() {
                let _ = tokio::task::spawn_blocking(move || pool.close()).await;
            }
            return Err(Error::Silent {
                peer: shared.server.clone(),
                doing: "closing the session",
                waited: CLOSE_WAIT,
            });
        }
        if let Some(pool) = shared.pool.retire() {
            // Waits for the driver; a panic there is its own bug and was logged.
            let _ = tokio::task::spawn_blocking(move || pool.close()).await;
        }
        match shared.end_error() {
            Error::Closed => Ok(shared.account.report()),
            error => Err(error),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.fail(Error::Closed);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("server", &self.inner.shared.server)
            .field("host", &self.inner.shared.host)
            .finish_non_exhaustive()
    }
}

impl Events {
    /// The next event; `None` when the session is over.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                biased;
                event = self.from.recv() => match event {
                    Ok(event) => return Some(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                _ = self.over.wait_for(|over| *over) => return None,
            }
        }
    }
}

impl RouteStatus {
    /// The same for the router, without the facts.
    #[must_use]
    pub fn health(&self) -> Health {
        let health = |way: &Result<(), RouteDown>| way.as_ref().copied().map_err(|it| it.reason);
        Health {
            network: health(&self.network),
            storage: health(&self.storage),
        }
    }
}

impl RouteDown {
    pub(crate) fn new(reason: Reason, detail: impl ToString) -> Self {
        let detail = detail.to_string();
        Self { reason, detail }
    }
}

impl fmt::Display for RouteDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.as_str() {
            "" => write!(f, "{}", self.reason),
            detail => write!(f, "{} ({detail})", self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only while every future of a session may move between threads.
    #[test]
    fn futures_of_a_session_run_on_any_thread() {
        fn moves<T: Send>(_: fn(ClientConfig, Session, ObjectName) -> T) {}
        moves(|config, _, _| Session::connect(config));
        moves(|config, _, _| Session::survey(config));
        moves(|_, session, _| async move { session.list(ObjectKind::Pack).await });
        moves(|_, session, name| async move { session.get(name, None).await });
        moves(|_, session, name| async move {
            session.put(name, PackContents::Data, Bytes::new()).await
        });
        moves(|_, session, name| async move { session.remove(name).await });
        moves(|_, session, _| session.close());
        moves(|_, session, _| async move { session.events().next().await });
    }
}
