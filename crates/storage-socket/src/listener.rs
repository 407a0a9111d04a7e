//! Listeners: connections that members asked for on a port of the coordinator.

use crate::{
    Error, Pool, Stream, StreamOptions,
    error::StopReason,
    flow::OwnedFlow,
    inbox::{Command, Inbox},
    pool::PoolHandle,
    promise::{Promise, locked, promise},
};
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io, iter,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use storage_socket_proto::{
    Cipher, ConnectionId, Grant, Incarnation, ListenOptions, ListenProtection, PoolId, Port,
    SlotIndex,
};

/// Connections that may wait to be accepted.
const BACKLOG_MAX: usize = 128;
/// How long the driver may take for a command.
const DRIVER_GRACE: Duration = Duration::from_secs(5);

/// Takes connections on a storage port.
#[derive(Debug)]
pub struct Listener {
    /// Before the pool: given back while the driver still lives.
    bound: Bound,
    backlog: Arc<Backlog>,
    pool: Arc<PoolHandle>,
}

/// Where a listener takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    /// The pool.
    pub pool: PoolId,
    /// The storage port.
    pub port: Port,
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pool, self.port)
    }
}

/// A connection that was asked for and waits to be accepted or refused; dropping it refuses.
#[derive(Debug)]
pub struct Incoming {
    grant: Grant,
    pool: Arc<PoolHandle>,
    is_answered: bool,
}

impl Listener {
    /// Listens on a port; port 0 takes a dynamic one (1024 and above).
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`], the pool isn't this process's own ([`io::ErrorKind::Unsupported`]), was closed or
    /// lost, or [`io::ErrorKind::TimedOut`].
    pub fn bind(pool: &Pool, port: Port, protection: ListenProtection) -> io::Result<Self> {
        let (backlog, reply) = Self::ask(pool, port, protection);
        let bound = reply.wait(DRIVER_GRACE);
        Self::bound(pool, backlog, bound)
    }

    /// Like [`Listener::bind`], for tasks.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn bind_async(
        pool: &Pool,
        port: Port,
        protection: ListenProtection,
    ) -> io::Result<Self> {
        let (backlog, reply) = Self::ask(pool, port, protection);
        Self::bound(pool, backlog, reply.await)
    }

    fn ask(
        pool: &Pool,
        port: Port,
        protection: ListenProtection,
    ) -> (Arc<Backlog>, Promise<Result<Bound, Error>>) {
        let (fulfil, reply) = promise();
        let backlog = Arc::new(Backlog::default());
        pool.handle.inbox.send(Command::Bind {
            port,
            options: ListenOptions {
                backlog: BACKLOG_MAX,
                protection,
            },
            backlog: backlog.clone(),
            reply: fulfil,
        });
        (backlog, reply)
    }

    fn bound(
        pool: &Pool,
        backlog: Arc<Backlog>,
        bound: Option<Result<Bound, Error>>,
    ) -> io::Result<Self> {
        let bound = bound.ok_or_else(|| pool.handle.inbox.unanswered("listening"))??;
        Ok(Self {
            bound,
            backlog,
            pool: pool.handle.clone(),
        })
    }

    /// The port, also if a dynamic one was asked for.
    #[must_use]
    pub fn port(&self) -> Port {
        self.bound.port
    }

    /// The pool and the port.
    #[must_use]
    pub fn local_addr(&self) -> ListenAddr {
        ListenAddr {
            pool: self.pool.inbox.pool,
            port: self.port(),
        }
    }

    /// The connections, one after another, each waited for. It ends with the error that says why no more can come.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<Incoming>> {
        let mut is_over = false;
        iter::from_fn(move || {
            if is_over {
                return None;
            }
            let next = self.accept();
            is_over = next.is_err();
            Some(next)
        })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub fn accept(&self) -> io::Result<Incoming> {
        self.accept_until(None)
    }

    /// Waits for the next connection, at most `patience`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or the pool was closed or lost.
    pub fn accept_timeout(&self, patience: Duration) -> io::Result<Incoming> {
        self.accept_until(Some(Instant::now() + patience))
    }

    /// Waits for the next connection, for tasks.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub async fn accept_async(&self) -> io::Result<Incoming> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    /// Takes the next connection, or registers the task's waker. One task at a time may wait: the waker that was
    /// registered last is the one that is woken.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Incoming>> {
        let waker = context.waker().clone();
        let mut state = locked(&self.backlog.state);
        if let Some(incoming) = self.take(&mut state) {
            return Poll::Ready(incoming);
        }
        // A waker is anybody's code, and its end is too: the one before goes without the lock.
        let before = state.waker.replace(waker);
        drop(state);
        drop(before);
        Poll::Pending
    }

    fn accept_until(&self, deadline: Option<Instant>) -> io::Result<Incoming> {
        let mut state = locked(&self.backlog.state);
        loop {
            if let Some(incoming) = self.take(&mut state) {
                return incoming;
            }
            let changed = &self.backlog.changed;
            state = match deadline {
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::TimedOut { what: "accepting" }.into());
                    }
                    let waited = changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn take(&self, state: &mut Waiting) -> Option<io::Result<Incoming>> {
        if let Some(grant) = state.grants.pop_front() {
            return Some(Ok(Incoming {
                grant,
                pool: self.pool.clone(),
                is_answered: false,
            }));
        }
        let why = state.closed.clone()?;
        let pool = self.pool.inbox.pool;
        Some(Err(Error::Stopped { pool, why }.into()))
    }
}

impl Incoming {
    /// The slot of the member that asks.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.grant.slot
    }

    /// The incarnation of the member that asks.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.grant.incarnation
    }

    /// The connection's random identity.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.grant.connection
    }

    /// How the member wants frames protected: the options for `accept` have to agree.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.grant.group.cipher
    }

    /// Makes a stream of the connection. Sizes in `options` are ignored: the connector chose them.
    ///
    /// # Errors
    /// The protection differs from the connector's, the connection or the pool has ended already, or
    /// [`io::ErrorKind::TimedOut`].
    pub fn accept(self, options: StreamOptions) -> io::Result<Stream> {
        let pool = self.pool.clone();
        let flow = self.answer(options).wait(DRIVER_GRACE);
        let flow = flow.ok_or_else(|| pool.inbox.unanswered("accepting"))??;
        Ok(Stream::new(flow, pool))
    }

    /// Like [`Incoming::accept`], for tasks.
    ///
    /// # Errors
    /// As [`Incoming::accept`].
    pub async fn accept_async(self, options: StreamOptions) -> io::Result<Stream> {
        let pool = self.pool.clone();
        let flow = self.answer(options).await;
        let flow = flow.ok_or_else(|| pool.inbox.unanswered("accepting"))??;
        Ok(Stream::new(flow, pool))
    }

    fn answer(mut self, options: StreamOptions) -> Promise<Result<OwnedFlow, Error>> {
        let (fulfil, reply) = promise();
        self.is_answered = true;
        self.pool.inbox.send(Command::Accept {
            grant: Box::new(self.grant),
            options: Box::new(options),
            reply: fulfil,
        });
        reply
    }

    /// Does not accept the connection, as dropping does: at the member its connect is refused, or its stream reset if
    /// it saw the grant before.
    pub fn refuse(self) {}
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_answered {
            self.pool.inbox.send(Command::Refuse(self.grant.connection));
        }
    }
}

/// A port that a listener holds: whoever drops it gives it back, and the driver refuses what waits there.
#[derive(Debug)]
pub(crate) struct Bound {
    port: Port,
    inbox: Arc<Inbox>,
}

impl Bound {
    pub(crate) fn new(port: Port, inbox: Arc<Inbox>) -> Self {
        Self { port, inbox }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.inbox.send(Command::Unbind(self.port));
    }
}

/// Grants that wait for `accept`.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    grants: VecDeque<Grant>,
    /// Why nothing more comes.
    closed: Option<StopReason>,
    waker: Option<Waker>,
}

impl Backlog {
    pub(crate) fn push(&self, grant: Grant) {
        self.change(|state| state.grants.push_back(grant));
    }

    /// Forgets a connection that ended before it was accepted.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        self.change(|state| state.grants.retain(|grant| grant.connection != connection));
    }

    /// Takes every connection that waits.
    pub(crate) fn take_all(&self) -> Vec<ConnectionId> {
        let mut state = locked(&self.state);
        state
            .grants
            .drain(..)
            .map(|grant| grant.connection)
            .collect()
    }

    /// Nothing more comes, and what waits can't be accepted any more. The first reason stays.
    pub(crate) fn close(&self, why: &StopReason) {
        self.change(|state| {
            state.grants.clear();
            state.closed.get_or_insert_with(|| why.clone());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let waker = {
            let mut state = locked(&self.state);
            change(&mut state);
            state.waker.take()
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
