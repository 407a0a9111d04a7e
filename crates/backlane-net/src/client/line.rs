//! The line of a session: the connection that carries its requests and answers, and what hangs on it.
//!
//! A session has one line at a time, by network or through the pool; one that is lost is replaced for as long as the
//! session is patient. To the server each is a session of its own, which takes the place of the one before: what was
//! under way is asked for again, and what was stored stays. A session goes on only if nothing was removed from the
//! repository meanwhile, for while it had no line nothing kept objects from being removed.

use super::{
    ClientConfig, RouteDown,
    link::{read_control, run_events, run_pair, watch_control, write_control},
    shared::Shared,
    storage::{self, Hand},
};
use crate::{
    Error,
    dial::{Dialed, Dialer},
    pauses::Pauses,
    tls::{self, Key, KeyUse},
};
use backlane_proto::{
    ErrorCode, Features, Opened, Opening, Reason, Refusal, Route, RoutePolicy, SessionFor,
    VersionRange,
    message::{Attach, Continues, Hello, Purpose, Welcome},
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

/// How long the network alone is tried for a line, before the pool is tried as well.
pub(super) const HEAD_START: Duration = Duration::from_secs(2);

/// A line that was lost sooner is not replaced at once.
const FLAP: Duration = Duration::from_secs(1);

/// How long an attempt may take for which there is no patience left.
const LAST_ATTEMPT: Duration = Duration::from_secs(4);

/// Keys of a session, from the TLS of its line.
pub(super) struct Keys {
    pub(super) proof: Key,
    pub(super) seal: Key,
}

/// A line to the server, and the session that it stands for there.
pub(super) struct Line {
    /// The mechanism that it takes.
    pub(super) route: Route,
    pub(super) welcome: Welcome,
    control: Dialed,
    keys: Keys,
}

/// What opens lines.
pub(super) struct Liner {
    dialer: Dialer,
    server: String,
    policy: RoutePolicy,
    session_for: SessionFor,
    software: String,
    hand: Arc<Hand>,
}

/// What is told when the first attempts at the data routes have come to an end.
pub(super) struct Tried {
    pub(super) network: oneshot::Sender<()>,
    pub(super) storage: oneshot::Sender<()>,
}

impl Liner {
    pub(super) fn new(config: &ClientConfig, hand: &Arc<Hand>) -> Result<Self, Error> {
        Ok(Self {
            dialer: Dialer {
                config: Arc::new(tls::client(&config.identity, &config.authority)?),
                patience: config.connect_timeout,
            },
            server: config.server.clone(),
            policy: config.policy,
            session_for: config.session_for,
            software: config.software.clone(),
            hand: Arc::clone(hand),
        })
    }

    /// Opens a line: by network where that is allowed and answers soon, through the pool otherwise. After a line that
    /// was lost to silence both are tried at once.
    pub(super) async fn open(
        &self,
        before: Option<Continues>,
        head_start: Duration,
    ) -> Result<Line, Error> {
        let by_storage = self.policy.allows_control(Route::Storage) && self.hand.is_there();
        if !self.policy.allows_control(Route::Network) {
            self.hand.want();
            return self.by_storage(before).await;
        }
        let mut network = pin!(self.by_network(before));
        if !by_storage {
            return network.await;
        }
        let failed = match timeout(head_start, &mut network).await {
            Ok(Err(error)) if !is_final(&error) => Some(error),
            Ok(done) => return done,
            Err(_) => None,
        };
        let (route, reason) = (Route::Network, Reason::Unreachable.name());
        let error = failed.as_ref().map(tracing::field::display);
        tracing::info!(server = %self.server, %route, reason, error, waited = ?head_start, "requests try the pool as well");
        self.hand.want();
        let mut storage = pin!(self.by_storage(before));
        if let Some(failed) = failed {
            return storage.await.map_err(|error| both(failed, error));
        }
        tokio::select! {
            line = &mut network => match line {
                Err(error) if !is_final(&error) => {
                    storage.await.map_err(|by_storage| both(error, by_storage))
                }
                done => done,
            },
            line = &mut storage => match line {
                Err(error) => network.await.map_err(|by_network| both(by_network, error)),
                done => done,
            },
        }
    }

    pub(super) async fn by_network(&self, before: Option<Continues>) -> Result<Line, Error> {
        let control = self.dialer.dial(&self.server).await?;
        self.hello(control, Route::Network, before).await
    }

    pub(super) async fn by_storage(&self, before: Option<Continues>) -> Result<Line, Error> {
        let no_route = |down: RouteDown| {
            let (policy, reason) = (self.policy, down.reason);
            Error::no_route(Refusal { policy, reason }, down.detail)
        };
        if !self.hand.is_there() {
            return Err(no_route(RouteDown::new(Reason::NoPool, "")));
        }
        let by = async |stream| {
            let peer = format!("{} through the pool", self.server);
            let control = self.dialer.shake(&peer, Box::new(stream)).await?;
            self.hello(control, Route::Storage, before).await
        };
        if let Some(standing) = self.hand.standing().await {
            match by(standing).await {
                // What stood there may have ended long ago.
                Err(error) if !is_final(&error) => {}
                done => return done,
            }
        }
        by(self.hand.designated().await.map_err(no_route)?).await
    }

    async fn hello(
        &self,
        mut control: Dialed,
        route: Route,
        before: Option<Continues>,
    ) -> Result<Line, Error> {
        let hello = Opening::Hello(Hello {
            versions: VersionRange::SPOKEN,
            features: Features::default(),
            policy: self.policy,
            software: self.software.clone(),
            continues: before,
            session_for: self.session_for,
        });
        let peer = control.peer.clone();
        let Opened::Welcome(welcome) = self.dialer.open(&mut control, &hello).await? else {
            return Err(Error::protocol(peer, "its answer to a hello is no welcome"));
        };
        if !VersionRange::SPOKEN.contains(welcome.version) {
            let what = format!(
                "it chose version {}, which was not offered",
                welcome.version.0
            );
            return Err(Error::protocol(peer, what));
        }
        if self.policy.under(welcome.policy) != Some(welcome.policy) {
            let (asked, policy) = (self.policy, welcome.policy);
            let what = format!("it made {policy} of {asked}, which allows less");
            return Err(Error::protocol(peer, what));
        }
        let tls = control.stream.get_ref().1;
        let export = |key_use| {
            tls::export(tls, key_use, &welcome.session.0).map_err(|error| Error::Tls {
                peer: control.peer.clone(),
                why: error.to_string(),
            })
        };
        let keys = Keys {
            proof: export(KeyUse::PoolProof)?,
            seal: export(KeyUse::StorageSeal)?,
        };
        Ok(Line {
            route,
            welcome,
            control,
            keys,
        })
    }

    /// Nothing came of an attempt for so long.
    fn unanswered(&self, waited: Duration) -> Error {
        let doing = "connecting again";
        if self.policy.allows_control(Route::Network) {
            let peer = self.server.clone();
            return Error::Silent {
                peer,
                doing,
                waited,
            };
        }
        let (policy, reason) = (self.policy, Reason::NoAnswer);
        Error::no_route(Refusal { policy, reason }, format!("{waited:?}, {doing}"))
    }

    /// Adds a connection by network to the session of a line.
    async fn attach(
        &self,
        address: &str,
        line: Continues,
        purpose: Purpose,
    ) -> Result<Dialed, Error> {
        let mut dialed = self.dialer.dial(address).await?;
        let attach = Opening::Attach(Attach {
            session: line.session,
            secret: line.secret,
            purpose,
        });
        match self.dialer.open(&mut dialed, &attach).await? {
            Opened::Attached => Ok(dialed),
            _ => Err(Error::protocol(
                dialed.peer,
                "its answer to an attachment is of another kind",
            )),
        }
    }
}

/// Keeps a line for the session until it is closed, fails for good, or can't be had again in time.
pub(super) async fn keep(shared: Arc<Shared>, liner: Arc<Liner>, first: Line, tried: Tried) {
    let (mut line, mut tried) = (first, Some(tried));
    let removals = line.welcome.removals;
    let mut pauses = Pauses::new();
    let ended = loop {
        let (route, before) = (line.route, line.id());
        let begun = Instant::now();
        let (lost, mut hung) = run(&shared, &liner, line, tried.take()).await;
        if shared.is_ending() || is_final(&lost) {
            break lost;
        }
        let reason = Reason::ControlLost.name();
        tracing::warn!(server = %shared.server, %route, reason, error = %lost, "requests have no way to the server");
        shared.line_lost(route, &lost);
        // Nothing of it may act on the next line.
        hung.shutdown().await;
        shared.nothing_is_up(&lost);
        if begun.elapsed() < FLAP {
            pauses.pause().await;
        }
        line = match again(&shared, &liner, before, &lost, &mut pauses).await {
            Ok(next) => next,
            Err(error) => break error,
        };
        let server = shared.server.clone();
        if line.welcome.removals != removals {
            break Error::Removed { server };
        }
        if line.welcome.policy != shared.policy {
            break Error::Refused {
                server,
                code: ErrorCode::Route,
                text: format!(
                    "it allows {} now, and the job began under {}",
                    line.welcome.policy, shared.policy
                ),
            };
        }
    };
    shared.fail(ended);
}

/// Opens another line, for as long as the session is patient.
async fn again(
    shared: &Shared,
    liner: &Liner,
    before: Continues,
    lost: &Error,
    pauses: &mut Pauses,
) -> Result<Line, Error> {
    let deadline = Instant::now() + shared.route_wait;
    let mut head_start = match lost {
        Error::Silent { .. } => Duration::ZERO,
        _ => HEAD_START,
    };
    loop {
        // Even one that has no patience tries once.
        let opening = liner.open(Some(before), head_start);
        let failed = match timeout_at(deadline.max(Instant::now() + LAST_ATTEMPT), opening).await {
            Ok(Err(error)) if !is_final(&error) => error,
            Ok(done) => return done,
            Err(_) => liner.unanswered(LAST_ATTEMPT.max(shared.route_wait)),
        };
        if Instant::now() >= deadline {
            let why = format!(
                "{lost}; for {:?} there was no other connection",
                shared.route_wait
            );
            return Err(match failed {
                // The policy leaves requests nothing but the pool.
                Error::NoRoute {
                    policy,
                    reason,
                    detail,
                } => {
                    let detail = format!("{detail}; {why}");
                    Error::no_route(Refusal { policy, reason }, detail)
                }
                failed => Error::Lost {
                    server: shared.server.clone(),
                    why: format!("{why}: {failed}"),
                },
            });
        }
        tracing::debug!(server = %shared.server, error = %failed, "no way to the server yet");
        // A pause may outlast the patience; the last attempt comes at its end.
        let _ = timeout_at(deadline, pauses.pause()).await;
        head_start = HEAD_START;
    }
}

/// Runs a line, and what hangs on it, until it ends; what hangs on it has to end then.
async fn run(
    shared: &Arc<Shared>,
    liner: &Arc<Liner>,
    line: Line,
    tried: Option<Tried>,
) -> (Error, JoinSet<()>) {
    tracing::info!(server = %shared.server, route = %line.route, "requests have a way to the server");
    let id = line.id();
    let (requests, to_send) = mpsc::unbounded_channel();
    shared.line_up(line.route, requests);
    let (network_tried, storage_tried) = match tried {
        Some(tried) => (Some(tried.network), Some(tried.storage)),
        None => (None, None),
    };
    // They end with this set.
    let mut hung = JoinSet::new();
    if shared.policy.allows_control(Route::Network) {
        hung.spawn(keep_events(Arc::clone(shared), Arc::clone(liner), id));
    }
    if shared.policy.allows(Route::Network) {
        hung.spawn(keep_network(
            Arc::clone(shared),
            Arc::clone(liner),
            (id, line.welcome.data_port),
            network_tried,
        ));
    } else {
        drop(network_tried);
        let down = RouteDown::new(Reason::Policy, shared.policy);
        shared.route_down(Route::Network, &down);
    }
    let terms = storage::Terms {
        session: line.welcome.session,
        server_pool: line.welcome.pool,
        keys: line.keys,
        carries_control: line.route == Route::Storage,
    };
    hung.spawn(storage::keep(Arc::clone(shared), terms, storage_tried));
    let (from, to) = tokio::io::split(line.control.stream);
    let lost = tokio::select! {
        error = read_control(shared, from) => error,
        error = write_control(shared, to, to_send) => error,
        error = watch_control(shared, line.route) => error,
    };
    (lost, hung)
}

impl Line {
    fn id(&self) -> Continues {
        Continues {
            session: self.welcome.session,
            secret: self.welcome.secret,
        }
    }
}

/// Keeps an events connection, and opens another when it ends: the session goes on meanwhile, slower.
async fn keep_events(shared: Arc<Shared>, liner: Arc<Liner>, line: Continues) {
    let mut pauses = Pauses::new();
    loop {
        match liner.attach(&shared.server, line, Purpose::Events).await {
            Ok(events) => run_events(&shared, events.stream).await,
            Err(error) => {
                tracing::debug!(server = %shared.server, %error, "no events connection");
            }
        }
        pauses.pause().await;
    }
}

/// Keeps the network data connection, and opens another when it ends; tells `tried` when the first attempt has come to
/// an end.
async fn keep_network(
    shared: Arc<Shared>,
    liner: Arc<Liner>,
    (line, port): (Continues, u16),
    mut tried: Option<oneshot::Sender<()>>,
) {
    let host = shared.server.rsplit_once(':');
    let host = host.map_or(shared.server.as_str(), |split| split.0);
    let address = format!("{host}:{port}");
    let mut pauses = Pauses::new();
    let mut told = None;
    loop {
        let down = match liner.attach(&address, line, Purpose::Data).await {
            Ok(data) => {
                tracing::info!(server = %shared.server, route = %Route::Network, "network is used");
                told = None;
                let (ready, running) = oneshot::channel();
                let (from, to) = tokio::io::split(data.stream);
                let pair = run_pair(Arc::clone(&shared), Route::Network, from, to, ready);
                tokio::join!(pair, tell_when(running, &mut tried)).0
            }
            Err(error) => {
                let down = RouteDown::new(Reason::NetworkDown, error);
                shared.route_down(Route::Network, &down);
                down
            }
        };
        if shared.is_ending() {
            // The end of the session, which is not the route's failure.
            return;
        }
        if told.as_ref() != Some(&down) {
            let reason = down.reason.name();
            tracing::warn!(server = %shared.server, route = %Route::Network, reason, %down, "network is not used");
            told = Some(down);
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

/// Whether another attempt would come to the same.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Closed
        | Error::Tls { .. }
        | Error::Version { .. }
        | Error::Protocol { .. }
        | Error::Unsupported { .. }
        | Error::Denied { .. }
        | Error::Removed { .. }
        | Error::Identity(_) => true,
        // It may be on its way out, or full.
        Error::Refused { code, .. } => !matches!(
            code,
            ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::Failed | ErrorCode::Session
        ),
        _ => false,
    }
}

/// Neither mechanism leads to the server; what is final counts.
fn both(by_network: Error, by_storage: Error) -> Error {
    if is_final(&by_storage) || is_final(&by_network) {
        return if is_final(&by_network) {
            by_network
        } else {
            by_storage
        };
    }
    let why = |why: String| format!("{why}; nor through the pool: {by_storage}");
    match by_network {
        Error::Connect { server, why: text } => Error::Connect {
            server,
            why: why(text),
        },
        Error::Lost { server, why: text } => Error::Lost {
            server,
            why: why(text),
        },
        Error::Silent { ref peer, .. } => Error::Connect {
            server: peer.clone(),
            why: why(by_network.to_string()),
        },
        error => error,
    }
}
