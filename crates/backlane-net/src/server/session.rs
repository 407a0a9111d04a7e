//! One session at the server: its control connection, its calls, and what its other connections share.
//!
//! The control connection is the session: when it ends, every call is stopped, every other connection is closed, and
//! the repository is let go. A client that lost it begins another session in the place of this one.

use super::{
    Core, calls,
    connection::{Connection, Peer, failure, farewell, protocol, reason_name},
    storage::Met,
};
use crate::{
    RouteDown,
    framed::{Chunk, DEAD_AFTER, PING_AFTER, ReadError, queued, read_message_while, write_message},
    pool::is_time_to_vouch,
    service::{ObjectService, VerifiedHost},
    status::{Meter, SessionStatus},
    tls::{self, Key, KeyUse},
};
use backlane_proto::{
    Answer, Call, CallId, Calls, Decision, ErrorCode, Event, Failure, Features, FromClient,
    FromServer, Health, Opened, Reason, Refusal, Request, Route, RoutePolicy, VersionRange,
    message::{Hello, LogLevel, SessionId, SessionSecret, Welcome},
    report::{ByRoute, Change},
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use storage_socket::{Doorbell, Pool, SlotIndex};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

/// Answers that wait for the control connection; calls wait beyond that.
const ANSWERS_QUEUED_MAX: usize = 64;
/// Calls in memory: those that may be open, and as many again that are over and wait to give their last answer.
const TASKS_MAX: usize = 2 * backlane_proto::calls::CALLS_OPEN_MAX as usize;
/// Events that wait for the events connection; more are dropped, as a slow reader must not slow the work.
const EVENTS_QUEUED_MAX: usize = 256;
/// How long the last answers of a session may take.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(3);

/// A session, shared by its connections and calls.
pub(super) struct Session {
    pub(super) host: String,
    /// Whose it is, by the certificate that it was opened with.
    pub(super) certificate: VerifiedHost,
    pub(super) policy: RoutePolicy,
    pub(super) proof_key: Key,
    pub(super) seal_key: Key,
    pub(super) id: SessionId,
    secret: SessionSecret,
    answers: mpsc::Sender<FromServer>,
    /// Held by the call whose listing is in memory.
    pub(super) listing: tokio::sync::Mutex<()>,
    pub(super) events: Mutex<Option<mpsc::Receiver<Event>>>,
    to_events: mpsc::Sender<Event>,
    /// Rung when the pool has news for the client.
    pub(super) doorbell: Arc<Notify>,
    /// The member that the client says it is, until it has proved that.
    pub(super) met: Mutex<Option<Met>>,
    /// The member that the client has proved to be, and how it is rung for.
    ringing: Mutex<Ringing>,
    /// Rung when another session takes the place of this one.
    replaced: Notify,
    over: watch::Sender<bool>,
    /// The repository, until the session lets go of it.
    objects: watch::Sender<Option<Arc<dyn ObjectService>>>,
    /// The route of requests and answers.
    control: Route,
    pub(super) meter: Meter,
    state: Mutex<State>,
}

/// The pool's doorbell: it is there while a member is proved and the events connection stands.
#[derive(Default)]
struct Ringing {
    member: Option<(Pool, SlotIndex)>,
    attached: bool,
    /// When the driver was last told that the client lives.
    vouched: Option<Instant>,
}

struct State {
    calls: Calls,
    open: HashMap<CallId, Open>,
    ledger: ByRoute,
    network: Result<mpsc::Sender<Chunk>, RouteDown>,
    storage: Result<mpsc::Sender<Chunk>, RouteDown>,
    breach: Option<String>,
}

/// A call under way.
struct Open {
    cancel: Arc<Notify>,
    pieces: Option<mpsc::Sender<Piece>>,
}

/// A part of a body on its way to a call.
pub(super) enum Piece {
    Data(Bytes),
    Last,
    Abort,
}

/// Runs a session from its hello to its end.
pub(super) async fn serve(
    core: Arc<Core>,
    mut stream: Connection,
    (peer, route): (Peer, Route),
    hello: Hello,
) {
    let (session, welcome, to_write) = match open(&core, &stream, route, hello).await {
        Ok(opened) => opened,
        Err(refusal) => {
            tracing::info!(%peer, reason = reason_name(&refusal), ?refusal, "session refused");
            return farewell(&mut stream, &refusal, &peer).await;
        }
    };
    let host = session.host.clone();
    tracing::info!(%peer, %host, policy = %session.policy, control = %route, "session begins");
    // Registered before the welcome, so that the other connections find it.
    let id = session.id;
    let registered = Registered { core: &core, id };
    if let Err(error) = write_message(&mut stream, &Opened::Welcome(welcome).encode()).await {
        tracing::info!(%peer, %host, %error, "session ended before its welcome");
        return;
    }
    let (from, to) = tokio::io::split(stream);
    let writer = tokio::spawn(write_answers(to, to_write));
    let mut tasks = JoinSet::new();
    let end = match session.objects() {
        Some(objects) => tokio::select! {
            end = converse(&core, &session, &mut tasks, from) => end,
            why = objects.distrusted() => End::Distrusted(why),
        },
        None => End::Closed,
    };
    session.over.send_replace(true);
    tasks.shutdown().await;
    session.objects.send_replace(None);
    drop(registered);
    let member = session.ringing().member.take();
    drop(member);
    tracing::info!(%peer, %host, %end, "session ended");
    last_words(session, end, writer).await;
}

/// Takes the session out of the list of sessions, however it ends.
struct Registered<'a> {
    core: &'a Core,
    id: SessionId,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.core.sessions().remove(&self.id) {
            session.over.send_replace(true);
        }
    }
}

/// How a session came to its end.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the client")]
    Closed,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the client goes on in another session")]
    Replaced,
    #[error("{0}")]
    Distrusted(String),
    #[error(transparent)]
    Lost(ReadError),
    #[error("the client broke the protocol: {0}")]
    Breach(String),
}

/// Tells the client how the session ended, where it can still hear it.
async fn last_words(session: Arc<Session>, end: End, writer: JoinHandle<()>) {
    let text = end.to_string();
    let failed = |code| {
        let reason = None;
        Answer::Failed(Failure { code, text, reason })
    };
    let answer = match end {
        End::Closed => Answer::Done,
        End::ShuttingDown => failed(ErrorCode::ShuttingDown),
        End::Distrusted(_) => failed(ErrorCode::Denied),
        End::Breach(_) => failed(ErrorCode::Protocol),
        End::Lost(ReadError::Codec(_)) => failed(ErrorCode::Protocol),
        End::Lost(_) | End::Replaced => return writer.abort(),
    };
    let abort = writer.abort_handle();
    let said = async {
        session.answer(CallId::SESSION, answer).await;
        drop(session);
        // The writer ends when the last sender is gone; other connections let go of the session at its end.
        let _ = writer.await;
    };
    if timeout(LAST_WORDS_WAIT, said).await.is_err() {
        abort.abort();
    }
}

async fn open(
    core: &Core,
    stream: &Connection,
    route: Route,
    hello: Hello,
) -> Result<(Arc<Session>, Welcome, mpsc::Receiver<FromServer>), Opened> {
    let tls = stream.get_ref().1;
    let refuse = |code, text: String| {
        let reason = None;
        Opened::Refused(Failure { code, text, reason })
    };
    let host = tls::peer_host(tls).ok_or_else(|| protocol("the certificate names no host"))?;
    if let Some(before) = hello.continues
        && let Some(before) = core.session_of(Some(&host.name), before.session, &before.secret)
    {
        before.replaced.notify_one();
        // What it held is free for this one.
        let _ = timeout(LAST_WORDS_WAIT, before.let_go()).await;
    }
    let version = VersionRange::SPOKEN
        .common(hello.versions)
        .map_err(|none| refuse(ErrorCode::Version, none.to_string()))?;
    let policy = policy_of(core, route, hello.policy).map_err(Opened::Refused)?;
    let objects = core.service.open(&host, hello.session_for).await;
    let objects = objects.map_err(|error| Opened::Refused(failure(&error)))?;
    // Held from here on, the repository loses nothing.
    let removals = objects.removals().await;
    let removals = removals.map_err(|error| Opened::Refused(failure(&error)))?;
    if let Some(storage) = &core.storage {
        let slots = core.service.slots(&host.name).await;
        storage.allow(&slots.map_err(|error| Opened::Refused(failure(&error)))?);
    }
    let (id, secret) = random().map_err(|error| refuse(ErrorCode::Failed, error))?;
    let key = |key_use| tls::export(tls, key_use, &id.0);
    let no_key = |error: rustls::Error| refuse(ErrorCode::Failed, error.to_string());
    let (answers, to_write) = mpsc::channel(ANSWERS_QUEUED_MAX);
    let (to_events, events) = mpsc::channel(EVENTS_QUEUED_MAX);
    let pool = core.storage.as_ref().map(|storage| storage.uuid());
    let down = |reason| Err(RouteDown::new(reason, ""));
    let session = Arc::new(Session {
        host: host.name.clone(),
        certificate: host.clone(),
        policy,
        proof_key: key(KeyUse::PoolProof).map_err(no_key)?,
        seal_key: key(KeyUse::StorageSeal).map_err(no_key)?,
        id,
        secret,
        answers,
        listing: tokio::sync::Mutex::new(()),
        events: Mutex::new(Some(events)),
        to_events,
        doorbell: Arc::new(Notify::new()),
        met: Mutex::new(None),
        ringing: Mutex::default(),
        replaced: Notify::new(),
        over: watch::Sender::new(false),
        objects: watch::Sender::new(Some(objects)),
        control: route,
        meter: Meter::new(),
        state: Mutex::new(State {
            calls: Calls::new(),
            open: HashMap::new(),
            ledger: ByRoute::default(),
            network: down(match policy.allows(Route::Network) {
                true => Reason::NetworkDown,
                false => Reason::Policy,
            }),
            storage: down(match pool {
                _ if !policy.allows(Route::Storage) => Reason::Policy,
                Some(_) => Reason::Pending,
                None => Reason::ServerHasNoPool,
            }),
            breach: None,
        }),
    });
    register(core, &session).map_err(|text| refuse(ErrorCode::Busy, text))?;
    let welcome = Welcome {
        version,
        features: Features::default().common(hello.features),
        session: id,
        secret,
        data_port: core.data_port,
        calls_max: backlane_proto::calls::CALLS_MAX,
        pool,
        software: core.software.clone(),
        host: host.name,
        removals,
        policy,
    };
    Ok((session, welcome, to_write))
}

/// Takes a session into the list, if there is room for it.
fn register(core: &Core, session: &Arc<Session>) -> Result<(), String> {
    let mut sessions = core.sessions();
    if sessions.len() >= core.sessions_max {
        return Err(format!(
            "the server has {} sessions already",
            sessions.len()
        ));
    }
    let own = sessions.values().filter(|it| it.host == session.host);
    let own = own.count();
    if own >= core.sessions_per_host_max {
        let host = &session.host;
        return Err(format!("host {host} has {own} sessions here already"));
    }
    sessions.insert(session.id, Arc::clone(session));
    Ok(())
}

/// What is left of a client's policy under the server's ceiling, for a session whose requests take this route.
fn policy_of(core: &Core, route: Route, asked: RoutePolicy) -> Result<RoutePolicy, Failure> {
    let policy = asked.under(core.route_ceiling);
    let policy = policy.filter(|policy| policy.allows_control(route));
    policy.ok_or_else(|| {
        let text = format!(
            "this server allows {} (its route-ceiling), which leaves nothing of {asked} for a session by {route}",
            core.route_ceiling
        );
        let (code, reason) = (ErrorCode::Route, Some(Reason::Policy));
        Failure { code, text, reason }
    })
}

fn random() -> Result<(SessionId, SessionSecret), String> {
    let (mut id, mut secret) = (SessionId([0; _]), SessionSecret([0; _]));
    getrandom::fill(&mut id.0).map_err(|error| error.to_string())?;
    getrandom::fill(&mut secret.0).map_err(|error| error.to_string())?;
    Ok((id, secret))
}

/// Reads requests until the session ends, and starts their calls.
async fn converse<R>(
    core: &Arc<Core>,
    session: &Arc<Session>,
    tasks: &mut JoinSet<()>,
    mut from: R,
) -> End
where
    R: tokio::io::AsyncRead + Unpin,
{
    let mut stopping = core.stopping.subscribe();
    let mut over = session.over.subscribe();
    loop {
        let next = async {
            has_room(tasks).await?;
            read_message_while(&mut from, || session.is_client_alive()).await
        };
        let raw = tokio::select! {
            raw = next => raw,
            _ = stopping.wait_for(|stopping| *stopping) => return End::ShuttingDown,
            () = session.replaced.notified() => return End::Replaced,
            _ = over.wait_for(|over| *over) => {
                let breach = session.state().breach.take();
                return End::Breach(breach.unwrap_or_else(|| "it ended the session".to_owned()));
            }
        };
        let message = match raw {
            Ok(raw) => FromClient::decode(&raw).map_err(ReadError::Codec),
            Err(error) => Err(error),
        };
        let FromClient { call, request } = match message {
            Ok(message) => message,
            Err(error) => return End::Lost(error),
        };
        session.heard(false);
        match request {
            // It may ask because this side shows no sign of life on storage. Where there is no room for an answer,
            // answers are on their way, which are signs of life as well.
            Request::Ping => drop(session.answer_now(CallId::SESSION, Answer::Ping)),
            Request::Close => return End::Closed,
            Request::Cancel => session.cancel(call),
            request => {
                let cancel = Arc::new(Notify::new());
                if let Err(violation) = session.begin(call, &cancel) {
                    return End::Breach(violation.to_string());
                }
                let work = calls::run(Arc::clone(core), Arc::clone(session), call, request, cancel);
                tasks.spawn(work);
            }
        }
        // Keeps the set as small as the number of calls under way.
        while tasks.try_join_next().is_some() {}
    }
}

/// Ready when there is room for another call. A client that takes no answers gets no further, and is given up as one that
/// says nothing is: nothing that it says is read meanwhile.
async fn has_room(tasks: &mut JoinSet<()>) -> Result<(), ReadError> {
    while tasks.len() >= TASKS_MAX {
        let ended = timeout(DEAD_AFTER, tasks.join_next()).await;
        ended.map_err(|_| ReadError::Silent(DEAD_AFTER))?;
    }
    Ok(())
}

async fn write_answers<W: AsyncWrite + Unpin>(mut to: W, mut answers: mpsc::Receiver<FromServer>) {
    loop {
        let message = match timeout(PING_AFTER, answers.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => FromServer {
                call: CallId::SESSION,
                answer: Answer::Ping,
            },
        };
        if let Err(error) = write_message(&mut to, &message.encode()).await {
            // The reader of the same connection ends the session.
            tracing::debug!(%error, "answers can't be written any more");
            return;
        }
    }
    // All that matters was written; a client that is gone needs no farewell.
    let _ = to.shutdown().await;
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this lock can only be a bug of this module; the state stays usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn knows(&self, secret: &SessionSecret) -> bool {
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(&self.secret.0, &secret.0);
        equal.is_ok()
    }

    /// Ready when the session is over.
    pub(super) async fn ended(&self) {
        let mut over = self.over.subscribe();
        // The sender lives in the session itself.
        let _ = over.wait_for(|over| *over).await;
    }

    /// Ready when the session has let go of the repository.
    async fn let_go(&self) {
        let mut objects = self.objects.subscribe();
        // The sender lives in the session itself.
        let _ = objects.wait_for(Option::is_none).await;
    }

    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Ends the session because its client broke the rules.
    pub(super) fn breach(&self, what: impl ToString) {
        self.state().breach.get_or_insert(what.to_string());
        self.over.send_replace(true);
    }

    /// Sends an answer; once the control connection is gone there is nobody to answer.
    pub(super) async fn answer(&self, call: CallId, answer: Answer) {
        let _ = self.answers.send(FromServer { call, answer }).await;
    }

    /// As [`Session::answer`] where waiting is impossible.
    pub(super) fn answer_now(&self, call: CallId, answer: Answer) -> bool {
        self.answers.try_send(FromServer { call, answer }).is_ok()
    }

    /// From now on what is heard from the client over the network counts for its slot in the pool.
    pub(super) fn ring_for(&self, pool: &Pool, slot: SlotIndex) {
        let mut ringing = self.ringing();
        ringing.member = Some((pool.clone(), slot));
        ringing.tell();
    }

    /// The pair of this slot is over.
    pub(super) fn ring_no_more(&self, slot: SlotIndex) {
        // Let go of without the lock: whoever leaves a pool last waits for it.
        let member = self.ringing().member.take_if(|(_, of)| *of == slot);
        drop(member);
    }

    /// The events connection came or went. Without it the pool must look by itself.
    pub(super) fn set_attached(&self, attached: bool) {
        let mut ringing = self.ringing();
        ringing.attached = attached;
        ringing.tell();
    }

    fn ringing(&self) -> MutexGuard<'_, Ringing> {
        // Two fields that are set one by one, and right after each.
        self.ringing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client was heard of over the network, and may have said that the pool has news.
    pub(super) fn heard(&self, rang: bool) {
        let mut ringing = self.ringing();
        let vouches = is_time_to_vouch(&mut ringing.vouched);
        if let Some((pool, slot)) = &ringing.member {
            if rang {
                pool.rang(*slot);
            }
            if vouches {
                pool.vouch(*slot);
            }
        }
    }

    /// Whether the client, as the member that it has proved to be, shows signs of life on storage.
    async fn is_client_alive(&self) -> bool {
        let member = self.ringing().member.clone();
        match member {
            Some((pool, slot)) => pool.is_peer_alive_async(slot).await.unwrap_or(false),
            None => false,
        }
    }

    /// What asks the client for a sign of life, which it gives on the events connection.
    pub(super) fn asker(&self) -> mpsc::WeakSender<Event> {
        self.to_events.downgrade()
    }

    /// How all of it stands.
    pub(super) fn status(&self) -> SessionStatus {
        let state = self.state();
        let way = |route| {
            let way = state.route(route).as_ref().map(queued);
            self.meter.route(route, way.map_err(RouteDown::clone))
        };
        SessionStatus {
            host: self.host.clone(),
            id: Some(self.id),
            policy: self.policy,
            age: self.meter.age(),
            control: Some(self.control),
            calls: state.open.len(),
            calls_waiting: None,
            repeated: None,
            network: way(Route::Network),
            storage: way(Route::Storage),
            changes: self.meter.changes(),
        }
    }

    /// Tells the client something beside its calls.
    pub(super) fn log(&self, level: LogLevel, text: String) {
        if self.to_events.try_send(Event::Log { level, text }).is_err() {
            tracing::debug!(host = %self.host, "the client's log is full or closed");
        }
    }

    fn begin(&self, call: CallId, cancel: &Arc<Notify>) -> Result<(), backlane_proto::Violation> {
        let mut state = self.state();
        state.calls.begin(call)?;
        let open = Open {
            cancel: Arc::clone(cancel),
            pieces: None,
        };
        state.open.insert(call, open);
        Ok(())
    }

    pub(super) fn end_call(&self, call: CallId) {
        let mut state = self.state();
        state.calls.end(call);
        state.open.remove(&call);
    }

    fn cancel(&self, call: CallId) {
        // A call that has just ended was answered already.
        if let Some(open) = self.state().open.get(&call) {
            open.cancel.notify_one();
        }
    }

    /// The repository, while the session lasts.
    pub(super) fn objects(&self) -> Option<Arc<dyn ObjectService>> {
        self.objects.borrow().clone()
    }

    /// From now on a body may come for the call; fails where its route can't take one.
    pub(super) fn expect(
        &self,
        call: CallId,
        route: Route,
        bytes: u64,
    ) -> Result<mpsc::Receiver<Piece>, Reason> {
        let mut state = self.state();
        state.route(route).as_ref().map_err(|down| down.reason)?;
        let expected = backlane_proto::calls::Expected {
            route: Some(route),
            bytes_max: bytes,
            exact: true,
        };
        state.calls.expect(call, expected);
        let (sender, pieces) = mpsc::channel(PIECES_QUEUED_MAX);
        if let Some(open) = state.open.get_mut(&call) {
            open.pieces = Some(sender);
        }
        Ok(pieces)
    }

    /// A chunk's header came by a route: who gets its payload, if anyone.
    pub(super) fn chunk(
        &self,
        header: backlane_proto::ChunkHeader,
        route: Route,
    ) -> Result<Option<mpsc::Sender<Piece>>, backlane_proto::Violation> {
        let mut state = self.state();
        let fate = state.calls.chunk(header, route)?;
        let open = state.open.get_mut(&header.call);
        Ok(match fate {
            backlane_proto::Fate::Take => open.and_then(|open| open.pieces.clone()),
            backlane_proto::Fate::Skip => None,
            // The body is over: whoever waits for more learns it from the channel's end.
            backlane_proto::Fate::Complete | backlane_proto::Fate::Aborted => {
                open.and_then(|open| open.pieces.take())
            }
        })
    }

    /// Decides about a body on its way out to a client that sees the routes like this, and gives the way to it.
    pub(super) fn route_out(
        &self,
        call: Call,
        theirs: Health,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Refusal> {
        let mut state = self.state();
        let (policy, health) = (self.policy, state.health().and(theirs));
        let carried = state.ledger.carried();
        let way = state.way(
            policy,
            backlane_proto::decide(call, policy, health, carried)?,
        )?;
        state.ledger.add(way.0.route(), call.bytes);
        Ok(way)
    }

    /// The way of a probe to the client.
    pub(super) fn route_probe(
        &self,
        route: Route,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Refusal> {
        let state = self.state();
        let policy = self.policy;
        state.way(
            policy,
            backlane_proto::decide_probe(route, policy, state.health())?,
        )
    }

    /// The routes, as this side sees them.
    pub(super) fn health(&self) -> Health {
        self.state().health()
    }

    /// A route came up; refused while it is up already.
    pub(super) fn route_up(&self, route: Route, chunks: mpsc::Sender<Chunk>) -> bool {
        let mut state = self.state();
        let slot = state.route_mut(route);
        if slot.is_ok() {
            return false;
        }
        *slot = Ok(chunks);
        self.meter.changed(Change::TakenBack(route));
        true
    }

    /// A route could not be brought up; one that is up, by another pair, stays so.
    pub(super) fn route_failed(&self, route: Route, down: &RouteDown) {
        if let Err(before) = self.state().route_mut(route) {
            *before = down.clone();
        }
    }

    /// A route went down, told by the pair that brought it up alone: calls that wait for a body by it get no more.
    pub(super) fn route_down(&self, route: Route, down: &RouteDown) {
        let mut state = self.state();
        *state.route_mut(route) = Err(down.clone());
        let change = Change::Lost(route, down.reason, down.detail.clone());
        self.meter.changed(change);
        let State { calls, open, .. } = &mut *state;
        for (call, open) in open {
            if calls.route_of(*call) == Some(route) {
                open.pieces = None;
            }
        }
    }
}

impl Ringing {
    fn tell(&self) {
        if let Some((pool, slot)) = &self.member {
            let doorbell = match self.attached {
                true => Doorbell::Present,
                false => Doorbell::Absent,
            };
            pool.set_doorbell(*slot, doorbell);
        }
    }
}

impl State {
    fn health(&self) -> Health {
        let health =
            |route: &Result<_, RouteDown>| route.as_ref().map(drop).map_err(|down| down.reason);
        Health {
            network: health(&self.network),
            storage: health(&self.storage),
        }
    }

    fn way(
        &self,
        policy: RoutePolicy,
        decision: Decision,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Refusal> {
        match self.route(decision.route()) {
            Ok(chunks) => Ok((decision, chunks.clone())),
            Err(RouteDown { reason, .. }) => Err(Refusal {
                policy,
                reason: *reason,
            }),
        }
    }

    fn route(&self, route: Route) -> &Result<mpsc::Sender<Chunk>, RouteDown> {
        match route {
            Route::Network => &self.network,
            Route::Storage => &self.storage,
        }
    }

    fn route_mut(&mut self, route: Route) -> &mut Result<mpsc::Sender<Chunk>, RouteDown> {
        match route {
            Route::Network => &mut self.network,
            Route::Storage => &mut self.storage,
        }
    }
}

/// Parts of one body that wait for the service; with them full, the data pair waits.
const PIECES_QUEUED_MAX: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_given_up_that_takes_no_answers_for_as_long_as_one_may_be_silent() {
        let mut tasks = JoinSet::new();
        // One answer is taken, late, and then none.
        tasks.spawn(tokio::time::sleep(DEAD_AFTER / 2));
        while tasks.len() < TASKS_MAX {
            tasks.spawn(std::future::pending());
        }
        let began = Instant::now();
        has_room(&mut tasks).await.unwrap();
        assert_eq!(began.elapsed(), DEAD_AFTER / 2);
        tasks.spawn(std::future::pending());
        let given_up = timeout(DEAD_AFTER * 10, has_room(&mut tasks)).await;
        assert!(
            matches!(given_up, Ok(Err(ReadError::Silent(DEAD_AFTER)))),
            "{given_up:?}"
        );
        assert_eq!(began.elapsed(), DEAD_AFTER / 2 + DEAD_AFTER);
    }
}
