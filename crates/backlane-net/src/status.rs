//! How a session stands while it runs, as one of its sides sees it.
//!
//! Invariant: whatever is here was counted or seen by this process; what it doesn't know is absent.

use crate::RouteDown;
use backlane_proto::{
    ChunkFlag, ChunkHeader, PoolStatus, Route, RoutePolicy,
    message::SessionId,
    report::{Change, RouteChange, Traffic},
};
use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use storage_socket::{StreamGauge, StreamStats};
use tokio::time::Instant;

/// Losses, and what followed them, that are remembered.
const CHANGES_KEPT_MAX: usize = 8;

/// How a server stands.
#[derive(Clone, Debug)]
pub struct ServerStatus {
    /// The pool, if it has one.
    pub pool: Option<PoolStatus>,
    /// Its sessions, by their hosts, the oldest of a host first.
    pub sessions: Vec<SessionStatus>,
}

/// How a session stands.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// The client's host, as the server knows it.
    pub host: String,
    /// The session's number. At the client there is none: what is a session there may be several at the server, one
    /// after another.
    pub id: Option<SessionId>,
    /// The policy that both sides route by.
    pub policy: RoutePolicy,
    /// How long it has lasted.
    pub age: Duration,
    /// What carries requests and answers, while anything does.
    pub control: Option<Route>,
    /// Calls under way.
    pub calls: usize,
    /// Calls that wait for their turn, for a line or for a route, which the client alone knows.
    pub calls_waiting: Option<usize>,
    /// Bodies that were begun once more, because their route failed under them, which the client alone knows.
    pub repeated: Option<Traffic>,
    /// The network data connection.
    pub network: RouteUse,
    /// The storage data connection.
    pub storage: RouteUse,
    /// What was lost and taken back, the newest last. After a few the oldest are forgotten.
    pub changes: Vec<RouteChange>,
}

/// How a route of a session stands, and what it has carried.
#[derive(Clone, Debug)]
pub struct RouteUse {
    /// Why it can't take bodies, if it can't.
    pub down: Option<RouteDown>,
    /// For how long it has been up, or down.
    pub since: Duration,
    /// Bodies that this side has sent: those that are whole, and the bytes of all.
    pub sent: Traffic,
    /// Bodies that this side has received, counted in the same way.
    pub received: Traffic,
    /// Chunks that wait in front of the connection's writer, while there is one.
    pub queued: Option<usize>,
    /// What the stream through the pool that carries it has counted, while there is one.
    pub stream: Option<StreamStats>,
}

/// What a side of a session counts for those who look at it.
pub(crate) struct Meter {
    began: Instant,
    counts: Mutex<Counts>,
}

struct Counts {
    network: Carried,
    storage: Carried,
    changes: VecDeque<RouteChange>,
}

struct Carried {
    since: Instant,
    sent: Traffic,
    received: Traffic,
    stream: Option<StreamGauge>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let began = Instant::now();
        let carried = || Carried {
            since: began,
            sent: Traffic::default(),
            received: Traffic::default(),
            stream: None,
        };
        Self {
            began,
            counts: Mutex::new(Counts {
                network: carried(),
                storage: carried(),
                changes: VecDeque::new(),
            }),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters, each right by itself.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// A chunk was given to a route's connection.
    pub(crate) fn sent(&self, route: Route, chunk: ChunkHeader) {
        count(&mut self.counts().of(route).sent, chunk);
    }

    /// A chunk came by a route.
    pub(crate) fn received(&self, route: Route, chunk: ChunkHeader) {
        count(&mut self.counts().of(route).received, chunk);
    }

    /// From now on this stream carries the storage route.
    pub(crate) fn watch(&self, stream: StreamGauge) {
        self.counts().storage.stream = Some(stream);
    }

    /// Something was lost, or there is something again.
    pub(crate) fn changed(&self, change: Change) {
        let mut counts = self.counts();
        if let Change::Lost(route, ..) | Change::TakenBack(route) = &change {
            counts.of(*route).since = Instant::now();
        }
        let is_loss = matches!(change, Change::Lost(..) | Change::ControlLost(..));
        // What comes up before anything was lost is the beginning, and no change.
        if is_loss || !counts.changes.is_empty() {
            if counts.changes.len() == CHANGES_KEPT_MAX {
                counts.changes.pop_front();
            }
            let after = self.age();
            counts.changes.push_back(RouteChange { after, change });
        }
    }

    /// How a route stands, of which the session says whether it is up, and what waits for it.
    pub(crate) fn route(&self, route: Route, way: Result<usize, RouteDown>) -> RouteUse {
        let mut counts = self.counts();
        let carried = counts.of(route);
        let gauge = carried.stream.as_ref().filter(|_| way.is_ok());
        RouteUse {
            since: carried.since.elapsed(),
            sent: carried.sent,
            received: carried.received,
            stream: gauge.and_then(StreamGauge::stats),
            queued: way.as_ref().ok().copied(),
            down: way.err(),
        }
    }

    pub(crate) fn changes(&self) -> Vec<RouteChange> {
        self.counts().changes.iter().cloned().collect()
    }
}

impl Counts {
    fn of(&mut self, route: Route) -> &mut Carried {
        match route {
            Route::Network => &mut self.network,
            Route::Storage => &mut self.storage,
        }
    }
}

fn count(traffic: &mut Traffic, chunk: ChunkHeader) {
    traffic.bytes += u64::from(chunk.bytes);
    traffic.objects += u64::from(chunk.flag == ChunkFlag::Last);
}

/// How many wait for something.
#[derive(Default)]
pub(crate) struct Waiters(AtomicUsize);

impl Waiters {
    /// Waits for something, and counts until it is there or given up.
    pub(crate) async fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.0);
        what.await
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_proto::{CallId, Reason};

    fn lost(detail: &str) -> Change {
        Change::Lost(Route::Storage, Reason::DeviceError, detail.to_owned())
    }

    #[test]
    fn a_body_counts_when_it_is_whole_and_its_bytes_as_they_go() {
        let meter = Meter::new();
        for flag in [ChunkFlag::More, ChunkFlag::Last, ChunkFlag::Abort] {
            let (call, bytes) = (CallId(1), 10);
            meter.sent(Route::Storage, ChunkHeader { call, bytes, flag });
        }
        let storage = meter.route(Route::Storage, Ok(2));
        let whole = Traffic {
            objects: 1,
            bytes: 30,
        };
        assert_eq!((storage.sent, storage.queued), (whole, Some(2)));
        assert_eq!(storage.received, Traffic::default());
        let network = meter.route(Route::Network, Ok(0));
        assert_eq!(network.sent, Traffic::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_changes_are_kept_and_the_beginning_is_none() {
        let meter = Meter::new();
        meter.changed(Change::Control(Route::Network));
        meter.changed(Change::TakenBack(Route::Storage));
        assert!(meter.changes().is_empty());
        for second in 1..=CHANGES_KEPT_MAX {
            tokio::time::advance(Duration::from_secs(1)).await;
            meter.changed(lost(&second.to_string()));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        meter.changed(Change::TakenBack(Route::Storage));
        let changes = meter.changes();
        assert_eq!(changes.len(), CHANGES_KEPT_MAX);
        assert_eq!(changes[0].change, lost("2"));
        assert_eq!(changes[0].after, Duration::from_secs(2));
        let newest = changes.last().map(|last| &last.change);
        assert_eq!(newest, Some(&Change::TakenBack(Route::Storage)));
        let since = |route| meter.route(route, Ok(0)).since;
        assert_eq!(since(Route::Storage), Duration::ZERO);
        assert_eq!(since(Route::Network), meter.age());
    }
}
