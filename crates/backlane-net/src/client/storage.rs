//! The storage route of a client's session: the pool, the proof that both sides see it, and the data pair through it.

use super::{PoolChoice, RouteDown, connect::Keys, shared::Shared};
use backlane_proto::{Reason, Route};
use std::sync::Arc;
use tokio::sync::oneshot;
use uuid::Uuid;

/// The pool on its way, begun beside the network.
pub(super) enum Start {
    /// The policy allows no storage.
    Never,
    /// This host has no pool configured.
    NoPool,
    /// The pool to open.
    Pool(PoolChoice),
}

/// The storage route of one session.
pub(super) struct Storage {
    shared: Arc<Shared>,
    start: Start,
    server_pool: Option<Uuid>,
    keys: Keys,
}

impl Start {
    /// Begins to open the pool.
    pub(super) fn begin(pool: Option<PoolChoice>) -> Self {
        pool.map_or(Self::NoPool, Self::Pool)
    }
}

impl Storage {
    pub(super) fn new(
        shared: &Arc<Shared>,
        start: Start,
        server_pool: Option<Uuid>,
        keys: Keys,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            start,
            server_pool,
            keys,
        }
    }

    /// What a doorbell of the server rings.
    pub(super) fn ringer(&self) -> impl Fn() + Send + Sync + 'static {
        || {}
    }

    /// Brings the route up and keeps it; tells `tried` when the first attempt has come to an end.
    pub(super) async fn run(self, tried: oneshot::Sender<()>) {
        let down = match (&self.start, self.server_pool) {
            (Start::Never, _) => RouteDown::new(Reason::Policy, ""),
            (Start::NoPool, _) => RouteDown::new(Reason::NoPool, ""),
            (_, None) => RouteDown::new(Reason::ServerHasNoPool, &self.shared.server),
            (Start::Pool(_), Some(_)) => RouteDown::new(Reason::Unsupported, ""),
        };
        let _ = &self.keys;
        self.shared.route_down(Route::Storage, &down);
        let _ = tried.send(());
    }
}
