//! How a session begins: network and storage in parallel, then the wait for the routes that the policy wants.

use super::{
    ClientConfig, RouteDown,
    link::{read_control, run_events, run_pair, write_control},
    shared::{Shared, Terms},
    storage::Starter,
};
use crate::{
    Error,
    dial::{Dialed, Dialer},
    pauses::Pauses,
    tls::{self, Key, KeyUse},
};
use backlane_proto::{
    Features, Opened, Opening, Reason, Refusal, Route, RoutePolicy, VersionRange,
    message::{Attach, Hello, Purpose, Welcome},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

/// Pause before an events connection that ended, or could not be opened, is opened again.
const EVENTS_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Keys of a session, from the TLS of its control connection.
pub(super) struct Keys {
    pub(super) proof: Key,
    pub(super) seal: Key,
}

/// Connects; the session's tasks run from here on.
pub(super) async fn connect(mut config: ClientConfig) -> Result<Arc<Shared>, Error> {
    // Through the pool at once, beside the network.
    let pool = config.pool.take();
    let pool = pool.filter(|_| config.policy != RoutePolicy::Network);
    let starter = Starter::begin(pool, config.identity.name());
    let dialer = Dialer {
        config: Arc::new(tls::client(&config.identity, &config.authority)?),
        patience: config.connect_timeout,
    };
    let server = config.server.as_str();
    let (mut control, mut events) = tokio::try_join!(dialer.dial(server), dialer.dial(server))?;
    let welcome = hello(&dialer, &mut control, &config).await?;
    let keys = keys(&control, &welcome)?;
    let attach = |purpose| {
        Opening::Attach(Attach {
            session: welcome.session,
            secret: welcome.secret,
            purpose,
        })
    };
    attached(&dialer, &mut events, &attach(Purpose::Events)).await?;

    let (requests, to_send) = mpsc::unbounded_channel();
    let calls_max = usize::try_from(welcome.calls_max).unwrap_or(1);
    let terms = Terms {
        server: config.server.clone(),
        host: welcome.host.clone(),
        policy: config.policy,
        calls_max: calls_max.clamp(1, backlane_proto::calls::CALLS_MAX as usize),
        route_wait: config.route_wait,
    };
    let shared = Arc::new(Shared::new(terms, requests, &starter));
    let (storage_tried, storage_first) = oneshot::channel();
    run_links(&shared, control, to_send);
    let again = attach(Purpose::Events);
    shared.spawn(keep_events(
        Arc::clone(&shared),
        dialer.clone(),
        events,
        again,
    ));
    let (session, server_pool) = (welcome.session, welcome.pool);
    shared.spawn(starter.run(
        Arc::clone(&shared),
        session,
        server_pool,
        keys,
        storage_tried,
    ));

    let (network_tried, network) = oneshot::channel();
    if config.policy == RoutePolicy::RequireStorage {
        drop(network_tried);
        let down = RouteDown::new(Reason::Policy, config.policy);
        shared.route_down(Route::Network, &down);
    } else {
        let (port, attach) = (welcome.data_port, attach(Purpose::Data));
        shared.spawn(keep_network(
            Arc::clone(&shared),
            dialer,
            port,
            attach,
            network_tried,
        ));
    }
    let storage = timeout(config.storage_wait, storage_first);
    // Whatever storage came to by then stands in the routes.
    let _ = tokio::join!(network, storage);
    usable(&shared).inspect_err(|error| shared.fail(error.clone()))?;
    shared.account.start();
    Ok(shared)
}

fn run_links(
    shared: &Arc<Shared>,
    control: Dialed,
    to_send: mpsc::UnboundedReceiver<backlane_proto::FromClient>,
) {
    let (from, to) = tokio::io::split(control.stream);
    shared.spawn(read_control(Arc::clone(shared), from));
    shared.spawn(write_control(Arc::clone(shared), to, to_send));
}

/// Runs the events connection, and opens another when it ends: the session goes on meanwhile, slower.
async fn keep_events(shared: Arc<Shared>, dialer: Dialer, first: Dialed, attach: Opening) {
    let mut next = Some(first);
    loop {
        if let Some(dialed) = next.take() {
            run_events(&shared, dialed.stream).await;
        }
        sleep(EVENTS_RETRY_AFTER).await;
        let dialed = async {
            let mut events = dialer.dial(&shared.server).await?;
            attached(&dialer, &mut events, &attach).await?;
            Ok::<_, Error>(events)
        };
        match dialed.await {
            Ok(events) => next = Some(events),
            Err(error) => {
                tracing::debug!(server = %shared.server, %error, "no events connection");
            }
        }
    }
}

async fn hello(
    dialer: &Dialer,
    control: &mut Dialed,
    config: &ClientConfig,
) -> Result<Welcome, Error> {
    let hello = Opening::Hello(Hello {
        versions: VersionRange::SPOKEN,
        features: Features::default(),
        policy: config.policy,
        software: config.software.clone(),
    });
    let peer = control.peer.clone();
    let Opened::Welcome(welcome) = dialer.open(control, &hello).await? else {
        return Err(Error::protocol(peer, "its answer to a hello is no welcome"));
    };
    if !VersionRange::SPOKEN.contains(welcome.version) {
        let what = format!(
            "it chose version {}, which was not offered",
            welcome.version.0
        );
        return Err(Error::protocol(peer, what));
    }
    Ok(welcome)
}

fn keys(control: &Dialed, welcome: &Welcome) -> Result<Keys, Error> {
    let tls = control.stream.get_ref().1;
    let export = |key_use| {
        tls::export(tls, key_use, &welcome.session.0).map_err(|error| Error::Tls {
            peer: control.peer.clone(),
            why: error.to_string(),
        })
    };
    Ok(Keys {
        proof: export(KeyUse::PoolProof)?,
        seal: export(KeyUse::StorageSeal)?,
    })
}

async fn attached(dialer: &Dialer, to: &mut Dialed, attach: &Opening) -> Result<(), Error> {
    let peer = to.peer.clone();
    match dialer.open(to, attach).await? {
        Opened::Attached => Ok(()),
        _ => Err(Error::protocol(
            peer,
            "its answer to an attachment is of another kind",
        )),
    }
}

/// Keeps the network data connection, and opens another when it ends; tells `tried` when the first attempt has come to
/// an end.
async fn keep_network(
    shared: Arc<Shared>,
    dialer: Dialer,
    port: u16,
    attach: Opening,
    tried: oneshot::Sender<()>,
) {
    let host = shared.server.rsplit_once(':');
    let host = host.map_or(shared.server.as_str(), |split| split.0);
    let address = format!("{host}:{port}");
    let mut tried = Some(tried);
    let mut pauses = Pauses::new();
    loop {
        let dialed = async {
            let mut data = dialer.dial(&address).await?;
            attached(&dialer, &mut data, &attach).await?;
            Ok::<_, Error>(data)
        };
        match dialed.await {
            Ok(data) => {
                let (ready, running) = oneshot::channel();
                let (from, to) = tokio::io::split(data.stream);
                let pair = run_pair(Arc::clone(&shared), Route::Network, from, to, ready);
                tokio::join!(pair, tell_when(running, &mut tried));
            }
            Err(error) => {
                let down = RouteDown::new(Reason::NetworkDown, error);
                shared.route_down(Route::Network, &down);
            }
        }
        // Whoever waited may have gone on without.
        if let Some(tried) = tried.take() {
            let _ = tried.send(());
        }
        pauses.pause().await;
    }
}

/// Passes on that a route is up. It only fails to come up when its pair was over before it began; the attempt ends then.
pub(super) async fn tell_when(up: oneshot::Receiver<()>, tried: &mut Option<oneshot::Sender<()>>) {
    if up.await.is_ok()
        && let Some(tried) = tried.take()
    {
        let _ = tried.send(());
    }
}

/// Whether bodies can be carried as the policy wants it.
fn usable(shared: &Shared) -> Result<(), Error> {
    let routes = shared.routes();
    let policy = shared.policy;
    let down = match (policy, routes.network, routes.storage) {
        (RoutePolicy::Network, Err(down), _) => down,
        (RoutePolicy::PreferStorage, Err(network), Err(storage)) => RouteDown {
            reason: storage.reason,
            detail: format!("{}; network: {network}", storage.detail),
        },
        (RoutePolicy::RequireStorage, _, Err(down)) => down,
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
