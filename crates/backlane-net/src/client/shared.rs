//! What the parts of a client's session share: calls under way, routes, counters, and how it ended.
//!
//! Invariants: whoever waits for a call holds its channel, and losing the session, its line or a route wakes every one of
//! them; numbers of calls grow over all lines, so that nothing of one line is taken for something of the next;
//! the first cause of the end is the one that everyone is told.

use super::{RouteDown, RouteStatus, account::Account, storage::Hand};
use crate::{
    Error, SessionStatus,
    framed::{Chunk, queued},
    pace::{Limits, Pace},
    status::Waiters,
};
use backlane_proto::{
    Answer, CallId, Calls, Decision, Event, Fate, FromClient, Health, Reason, Refusal, Request,
    Route, RoutePolicy, ServerRoutes, Violation, calls::Expected,
};
use bytes::BytesMut;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, broadcast, mpsc, oneshot, watch},
    time::Instant,
};

/// Events kept for readers that lag.
pub(super) const EVENTS_KEPT_MAX: usize = 256;

/// The session's heart, held by the session and by each of its tasks.
pub(super) struct Shared {
    pub(super) server: String,
    pub(super) host: String,
    pub(super) policy: RoutePolicy,
    pub(super) permits: Arc<Semaphore>,
    pub(super) events: broadcast::Sender<Event>,
    /// Rung when the server asks for a sign of life.
    pub(super) asked: Notify,
    /// The pool, while the session has it.
    pub(super) pool: Arc<Hand>,
    /// What was carried, and how the routes changed.
    pub(super) account: Account,
    /// How long a call waits for a route that it may take.
    pub(super) route_wait: Duration,
    network_pace: Pace,
    storage_pace: Pace,
    /// Sent to when a route or a line comes or goes.
    pub(super) changes: watch::Sender<()>,
    /// Set once, when the session is over.
    pub(super) over: watch::Sender<bool>,
    /// The client has asked for its end.
    closing: AtomicBool,
    /// Calls that wait for what they need to be made.
    pub(super) waiters: Waiters,
    state: Mutex<State>,
}

/// What a session is held under.
pub(super) struct Terms {
    pub(super) server: String,
    pub(super) host: String,
    pub(super) policy: RoutePolicy,
    pub(super) calls_max: usize,
    pub(super) route_wait: Duration,
    pub(super) limits: Limits,
}

struct State {
    last_call: u64,
    /// To the writer of the line, while there is one. Bounded by the permits: a call sends two messages at most.
    line: Option<mpsc::UnboundedSender<FromClient>>,
    /// When the server was last heard on the line.
    heard: Instant,
    calls: Calls,
    pending: HashMap<CallId, Pending>,
    network: RouteState,
    storage: RouteState,
    end: Option<Error>,
}

/// A route, as the sender of bodies sees it.
enum RouteState {
    Up(Way),
    Down(RouteDown),
}

/// The way of bodies to the server by one pair.
struct Way {
    chunks: mpsc::Sender<Chunk>,
    /// Ends the pair.
    leave: oneshot::Sender<RouteDown>,
}

struct Pending {
    news: mpsc::UnboundedSender<News>,
    /// The route of a body on its way out.
    put: Option<Route>,
    /// Whether a body comes in.
    incoming: bool,
    /// What came of it; taken while a chunk is being read into it.
    body: Option<BytesMut>,
    /// Whether it is complete, or was given up.
    received: bool,
}

/// What a call is told.
#[derive(Debug)]
pub(super) enum News {
    Answer(Answer),
    BodyComplete(BytesMut),
    BodyAborted,
    RouteFailed(Route, RouteDown),
}

/// A call that was registered.
pub(super) struct Registered {
    pub(super) id: CallId,
    pub(super) news: mpsc::UnboundedReceiver<News>,
}

/// Where a chunk's payload goes.
pub(super) enum Target {
    /// Behind these bytes, to be given back with [`Shared::payload_read`].
    Body(BytesMut, Fate),
    /// Nowhere.
    Nowhere,
}

impl Shared {
    pub(super) fn new(terms: Terms, hand: &Arc<Hand>) -> Self {
        let down = |reason| {
            RouteState::Down(RouteDown {
                reason,
                detail: String::new(),
            })
        };
        Self {
            server: terms.server,
            host: terms.host,
            policy: terms.policy,
            account: Account::new(),
            route_wait: terms.route_wait,
            network_pace: terms.limits.pace(Route::Network),
            storage_pace: terms.limits.pace(Route::Storage),
            changes: watch::Sender::new(()),
            permits: Arc::new(Semaphore::new(terms.calls_max)),
            events: broadcast::Sender::new(EVENTS_KEPT_MAX),
            asked: Notify::new(),
            pool: Arc::clone(hand),
            over: watch::Sender::new(false),
            closing: AtomicBool::new(false),
            waiters: Waiters::default(),
            state: Mutex::new(State {
                last_call: 0,
                line: None,
                heard: Instant::now(),
                calls: Calls::new(),
                pending: HashMap::new(),
                network: down(Reason::NetworkDown),
                storage: down(Reason::Pending),
                end: None,
            }),
        }
    }

    /// That of bodies by this route, both ways.
    pub(super) fn pace(&self, route: Route) -> &Pace {
        match route {
            Route::Network => &self.network_pace,
            Route::Storage => &self.storage_pace,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this lock can only be a bug of this module; what it guards is counted state, still usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a call and sends its request.
    pub(super) fn begin(
        &self,
        request: Request,
        expected: Option<Expected>,
    ) -> Result<Registered, Error> {
        let (sender, news) = mpsc::unbounded_channel();
        let mut state = self.state();
        if let Some(error) = &state.end {
            return Err(error.clone());
        }
        if state.line.is_none() {
            return Err(self.gone_error());
        }
        state.last_call += 1;
        let id = CallId(state.last_call);
        let begun = state.calls.begin(id);
        begun.map_err(|violation| Error::protocol("this client", violation))?;
        let put = match &request {
            Request::Put { route, .. } => Some(*route),
            Request::Probe(probe) if expected.is_none() => Some(probe.route),
            _ => None,
        };
        if let Some(expected) = expected {
            state.calls.expect(id, expected);
        }
        let pending = Pending {
            news: sender,
            put,
            incoming: expected.is_some(),
            body: expected.map(|_| BytesMut::new()),
            received: false,
        };
        state.pending.insert(id, pending);
        // Under the lock, so that requests leave in the order of their numbers.
        state.send(id, request);
        Ok(Registered { id, news })
    }

    /// Sends a message on the line; without one there is nobody to send to.
    pub(super) fn send(&self, call: CallId, request: Request) {
        self.state().send(call, request);
    }

    /// There is a line.
    pub(super) fn line_up(&self, route: Route, line: mpsc::UnboundedSender<FromClient>) {
        let mut state = self.state();
        state.line = Some(line);
        state.heard = Instant::now();
        self.account.control(route);
        drop(state);
        self.changes.send_replace(());
    }

    /// The line was lost, and with it everything that was under way and all that hung on it.
    pub(super) fn line_lost(&self, route: Route, error: &Error) {
        let mut state = self.state();
        state.line = None;
        let down = RouteDown::new(Reason::ControlLost, error);
        self.account.control_lost(route, &down);
        for route in [Route::Network, Route::Storage] {
            self.set_down(&mut state, route, &down, true);
        }
        // Whoever waits for an answer learns it from the end of its channel.
        state.pending.clear();
        drop(state);
        // Nobody answers what was said meanwhile.
        if self.closing.load(Ordering::SeqCst) {
            self.fail(error.clone());
        }
    }

    /// A pair that came up while the line ended is none, and nor is a place that was made known for the next.
    pub(super) fn nothing_is_up(&self, error: &Error) {
        self.pool.unbind();
        let down = RouteDown::new(Reason::ControlLost, error);
        for route in [Route::Network, Route::Storage] {
            self.route_down(route, &down);
        }
    }

    /// The server was heard on the line.
    pub(super) fn heard(&self) {
        self.state().heard = Instant::now();
        self.pool.heard(false);
    }

    /// Whether the server owes an answer.
    pub(super) fn waits(&self) -> bool {
        !self.state().pending.is_empty()
    }

    /// When the server was last heard on the line.
    pub(super) fn heard_at(&self) -> Instant {
        self.state().heard
    }

    /// How many calls are under way.
    pub(super) fn calls(&self) -> usize {
        self.state().pending.len()
    }

    /// How all of it stands.
    pub(super) fn status(&self) -> SessionStatus {
        let report = self.account.report();
        let (network, storage, calls) = {
            let state = self.state();
            let way = |route| self.account.meter.route(route, state.route(route).queued());
            let calls = state.pending.len();
            (way(Route::Network), way(Route::Storage), calls)
        };
        SessionStatus {
            host: self.host.clone(),
            id: None,
            policy: self.policy,
            age: self.account.meter.age(),
            control: report.control,
            calls,
            calls_waiting: Some(self.waiters.count()),
            repeated: Some(report.repeated),
            network,
            storage,
            changes: self.account.meter.changes(),
        }
    }

    /// The session has no line at present.
    fn gone_error(&self) -> Error {
        Error::Lost {
            server: self.server.clone(),
            why: "its connection was lost".to_owned(),
        }
    }

    /// Ready when there is a line, or the session is over.
    pub(super) async fn has_line(&self) -> Result<(), Error> {
        let mut changes = self.changes.subscribe();
        loop {
            {
                let state = self.state();
                match &state.end {
                    Some(error) => return Err(error.clone()),
                    None if state.line.is_some() => return Ok(()),
                    None => {}
                }
            }
            // The sender lives in the session.
            let _ = changes.changed().await;
        }
    }

    pub(super) fn end_call(&self, call: CallId) {
        let mut state = self.state();
        state.calls.end(call);
        state.pending.remove(&call);
    }

    /// Why the session is over.
    pub(super) fn end_error(&self) -> Error {
        self.state().end.clone().unwrap_or(Error::Closed)
    }

    /// Why a call's channel ended: the session is over, or its line was lost.
    pub(super) fn call_error(&self) -> Error {
        self.failure().unwrap_or_else(|| self.gone_error())
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.state().end.clone()
    }

    /// Ends the session for everyone; the first cause stays.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        let down = RouteDown {
            reason: Reason::NetworkDown,
            detail: error.to_string(),
        };
        for route in [Route::Network, Route::Storage] {
            // An end that was asked for is no loss.
            self.set_down(&mut state, route, &down, !matches!(error, Error::Closed));
        }
        state.end = Some(error);
        state.line = None;
        state.pending.clear();
        drop(state);
        self.permits.close();
        self.over.send_replace(true);
    }

    /// Asks the server to end the session; without a line it ends at once.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let state = self.state();
        if state.line.is_some() {
            state.send(CallId::SESSION, Request::Close);
        } else {
            drop(state);
            self.fail(self.gone_error());
        }
    }

    /// Whether a route that ends now ends with the session: the server lets go of storage before it says that all is
    /// over.
    pub(super) fn is_ending(&self) -> bool {
        self.closing.load(Ordering::SeqCst) || *self.over.borrow()
    }

    /// Decides about a body on its way out, and gives the way to it.
    pub(super) fn route_out(
        &self,
        call: backlane_proto::Call,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Error> {
        let state = self.state();
        let (health, carried) = (state.health(), self.account.carried());
        let way = state.way(backlane_proto::decide(call, self.policy, health, carried))?;
        self.account.decided(way.0, call.bytes);
        Ok(way)
    }

    /// The way of a probe to the server.
    pub(super) fn route_probe(
        &self,
        route: Route,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Error> {
        let state = self.state();
        state.way(backlane_proto::decide_probe(
            route,
            self.policy,
            state.health(),
        ))
    }

    /// A route came up; what is given back says when the server has let go of it.
    pub(super) fn route_up(
        &self,
        route: Route,
        chunks: mpsc::Sender<Chunk>,
    ) -> oneshot::Receiver<RouteDown> {
        let (leave, left) = oneshot::channel();
        let mut state = self.state();
        if state.end.is_none() {
            *state.route_mut(route) = RouteState::Up(Way { chunks, leave });
            self.account.gained(route);
            self.changes.send_replace(());
        }
        left
    }

    /// The server has said of a body on this way that its end of the pair is gone, which may take this side long to see.
    pub(super) fn left_there(
        &self,
        route: Route,
        way: Option<&mpsc::Sender<Chunk>>,
        down: RouteDown,
    ) {
        let mut state = self.state();
        let known = state.route_mut(route);
        let is_way = |known: &Way| way.is_none_or(|way| known.chunks.same_channel(way));
        if matches!(known, RouteState::Up(known) if is_way(known)) {
            let before = std::mem::replace(known, RouteState::Down(down.clone()));
            if let RouteState::Up(Way { leave, .. }) = before {
                self.account.lost(route, &down);
                // A pair that has just ended says so itself.
                let _ = leave.send(down);
            }
            self.changes.send_replace(());
        }
    }

    /// The server has lost its end of the storage pair. What it says comes in the order of its answers, so that a pair which
    /// is up here is the one that it means.
    pub(super) fn server_lost(&self, routes: ServerRoutes) {
        if let Err(reason) = routes.health.storage {
            let pool = routes.pool.and_then(|pool| pool.down);
            let detail = pool.map_or_else(String::new, |(_, detail)| detail);
            let detail = self.at_server(&detail);
            self.left_there(Route::Storage, None, RouteDown::new(reason, detail));
        }
    }

    /// What the server said, if anything, with its name.
    pub(super) fn at_server(&self, said: &str) -> String {
        match said {
            "" => format!("server {}", self.server),
            said => format!("server {}: {said}", self.server),
        }
    }

    /// A route can't be used: tells everyone who counted on it.
    pub(super) fn route_down(&self, route: Route, down: &RouteDown) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        self.set_down(&mut state, route, down, !self.is_ending());
        let State { calls, pending, .. } = &*state;
        for (call, pending) in pending {
            let incoming = pending.incoming && !pending.received;
            let waits = incoming && calls.route_of(*call) == Some(route);
            if waits || pending.put == Some(route) {
                let _ = pending.news.send(News::RouteFailed(route, down.clone()));
            }
        }
    }

    fn set_down(&self, state: &mut State, route: Route, down: &RouteDown, is_loss: bool) {
        let before = std::mem::replace(state.route_mut(route), RouteState::Down(down.clone()));
        if is_loss && matches!(before, RouteState::Up(_)) {
            self.account.lost(route, down);
        }
        self.changes.send_replace(());
    }

    /// The routes, as this side sees them.
    pub(super) fn health(&self) -> Health {
        self.state().health()
    }

    pub(super) fn routes(&self) -> RouteStatus {
        let state = self.state();
        RouteStatus {
            network: state.network.status(),
            storage: state.storage.status(),
        }
    }

    /// Why a route is down, if it is.
    pub(super) fn down(&self, route: Route) -> Option<RouteDown> {
        self.state().route(route).status().err()
    }

    /// What this side knows beside a reason for which a route is down here.
    pub(super) fn detail(&self, reason: Reason) -> Option<String> {
        self.state().detail(reason)
    }

    /// Hands an answer to its call; answers to calls that are over are late, and skipped.
    pub(super) fn answered(&self, call: CallId, answer: Answer) -> Result<(), Violation> {
        let mut state = self.state();
        if let Answer::Body { bytes, decision } = &answer {
            state.calls.announce(call, decision.route(), *bytes)?;
            if let Some(body) = state.pending.get_mut(&call).and_then(|p| p.body.as_mut()) {
                let missing = usize::try_from(*bytes).unwrap_or(usize::MAX);
                body.reserve(missing.min(RESERVE_BYTES_MAX).saturating_sub(body.len()));
            }
        }
        if let Some(pending) = state.pending.get(&call) {
            let _ = pending.news.send(News::Answer(answer));
        }
        Ok(())
    }

    /// A chunk's header came: where does its payload go?
    pub(super) fn chunk(
        &self,
        header: backlane_proto::ChunkHeader,
        route: Route,
    ) -> Result<Target, Violation> {
        let mut state = self.state();
        let fate = state.calls.chunk(header, route)?;
        let pending = state.pending.get_mut(&header.call);
        Ok(match pending.and_then(|pending| pending.body.take()) {
            Some(body) if fate != Fate::Skip => Target::Body(body, fate),
            _ => Target::Nowhere,
        })
    }

    /// The payload was read.
    pub(super) fn payload_read(&self, call: CallId, body: BytesMut, fate: Fate) {
        let mut state = self.state();
        let Some(pending) = state.pending.get_mut(&call) else {
            return;
        };
        match fate {
            Fate::Take | Fate::Skip => pending.body = Some(body),
            Fate::Complete => {
                pending.received = true;
                let _ = pending.news.send(News::BodyComplete(body));
            }
            Fate::Aborted => {
                pending.received = true;
                let _ = pending.news.send(News::BodyAborted);
            }
        }
    }
}

impl State {
    fn send(&self, call: CallId, request: Request) {
        if let Some(line) = &self.line {
            // A writer that has ended ends the line.
            let _ = line.send(FromClient { call, request });
        }
    }

    fn way(
        &self,
        decided: Result<Decision, Refusal>,
    ) -> Result<(Decision, mpsc::Sender<Chunk>), Error> {
        if let Some(error) = &self.end {
            return Err(error.clone());
        }
        let decision = decided.map_err(|refusal| {
            let detail = self.detail(refusal.reason).unwrap_or_default();
            Error::no_route(refusal, detail)
        })?;
        let RouteState::Up(way) = self.route(decision.route()) else {
            return Err(Error::protocol(
                "this client",
                "the router chose a route that is down",
            ));
        };
        Ok((decision, way.chunks.clone()))
    }

    fn route(&self, route: Route) -> &RouteState {
        match route {
            Route::Network => &self.network,
            Route::Storage => &self.storage,
        }
    }

    fn health(&self) -> Health {
        Health {
            network: self.network.health(),
            storage: self.storage.health(),
        }
    }

    fn route_mut(&mut self, route: Route) -> &mut RouteState {
        match route {
            Route::Network => &mut self.network,
            Route::Storage => &mut self.storage,
        }
    }

    /// What is known beside a reason.
    fn detail(&self, reason: Reason) -> Option<String> {
        [&self.storage, &self.network]
            .into_iter()
            .filter_map(|route| route.status().err())
            .find(|down| down.reason == reason)
            .map(|down| down.detail)
    }
}

impl RouteState {
    fn health(&self) -> Result<(), Reason> {
        match self {
            Self::Up(_) => Ok(()),
            Self::Down(down) => Err(down.reason),
        }
    }

    fn status(&self) -> Result<(), RouteDown> {
        self.queued().map(drop)
    }

    /// How many chunks wait for the pair's writer.
    fn queued(&self) -> Result<usize, RouteDown> {
        match self {
            Self::Up(way) => Ok(queued(&way.chunks)),
            Self::Down(down) => Err(down.clone()),
        }
    }
}

/// Memory taken at once for a body that the server announced; what is longer grows as it comes.
const RESERVE_BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
pub(super) mod tests;
