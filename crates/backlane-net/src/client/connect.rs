//! How a session begins: network and storage in parallel, then the wait for the routes that the policy wants.

use super::{
    ClientConfig, RouteDown,
    line::{self, Line, Liner, Tried},
    shared::{Shared, Terms},
    storage::{Hand, Keeper},
};
use crate::Error;
use backlane_proto::{Refusal, Route, RoutePolicy};
use std::{future::Future, sync::Arc};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

/// Connects; the session's tasks run from here on.
pub(super) async fn connect(config: ClientConfig) -> Result<Arc<Shared>, Error> {
    let start = Start::new(config)?;
    let line = start.liner.open(None, line::HEAD_START).await?;
    let shared = start.session(line).await;
    usable(&shared).inspect_err(|error| shared.fail(error.clone()))?;
    Ok(shared)
}

/// A session before its first line.
pub(super) struct Start {
    config: ClientConfig,
    pub(super) liner: Arc<Liner>,
    hand: Arc<Hand>,
    /// Ends with this set, until the session holds it.
    keeping: JoinSet<()>,
}

impl Start {
    /// Goes for the pool at once, beside the network.
    pub(super) fn new(mut config: ClientConfig) -> Result<Self, Error> {
        let pool = config.pool.take();
        let pool = pool.filter(|_| config.policy.allows(Route::Storage));
        let hand = Hand::new(pool.is_some());
        let mut keeping = JoinSet::new();
        if let Some(choice) = pool {
            keeping.spawn(Keeper::new(choice, config.identity.name(), &hand).run());
        }
        Ok(Self {
            liner: Arc::new(Liner::new(&config, &hand)?),
            config,
            hand,
            keeping,
        })
    }

    /// A session on this line, with whatever routes there are after the first attempts.
    pub(super) async fn session(self, line: Line) -> Arc<Shared> {
        let Self {
            config,
            liner,
            hand,
            mut keeping,
        } = self;
        let calls_max = usize::try_from(line.welcome.calls_max).unwrap_or(1);
        let terms = Terms {
            server: config.server,
            host: line.welcome.host.clone(),
            policy: line.welcome.policy,
            calls_max: calls_max.clamp(1, backlane_proto::calls::CALLS_MAX as usize),
            route_wait: config.route_wait,
            limits: config.limits,
        };
        let shared = Arc::new(Shared::new(terms, &hand));
        let mut abandoned = Abandoned(Some(Arc::clone(&shared)));
        shared.spawn(async move { while keeping.join_next().await.is_some() {} });
        let (network, network_tried) = oneshot::channel();
        let (storage, storage_tried) = oneshot::channel();
        let tried = Tried { network, storage };
        shared.spawn(line::keep(Arc::clone(&shared), liner, line, tried));
        let storage = timeout(config.storage_wait, storage_tried);
        // Whatever storage came to by then stands in the routes.
        let _ = tokio::join!(network_tried, storage);
        shared.account.start();
        abandoned.0 = None;
        shared
    }
}

/// Ends a session whose beginning nobody waits for any more.
struct Abandoned(Option<Arc<Shared>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.fail(Error::Closed);
        }
    }
}

/// Whether bodies can be carried as the policy wants it.
fn usable(shared: &Shared) -> Result<(), Error> {
    if let Some(error) = shared.failure() {
        return Err(error);
    }
    let routes = shared.routes();
    let policy = shared.policy;
    let down = match (policy, routes.network, routes.storage) {
        (RoutePolicy::Network, Err(down), _) => down,
        (RoutePolicy::PreferStorage, Err(network), Err(storage)) => RouteDown {
            reason: storage.reason,
            detail: format!("{}; network: {network}", storage.detail),
        },
        (RoutePolicy::RequireStorage | RoutePolicy::StorageOnly, _, Err(down)) => down,
        _ => return Ok(()),
    };
    let reason = down.reason;
    Err(Error::no_route(Refusal { policy, reason }, down.detail))
}

impl Shared {
    /// Runs a task until it ends or the session is over.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut over = self.over.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = over.wait_for(|over| *over) => {}
            }
        });
    }
}
