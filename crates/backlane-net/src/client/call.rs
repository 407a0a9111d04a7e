//! Calls, one task each, so that a caller who goes away leaves a call that still ends as the protocol wants it.
//!
//! A task first serves its caller; then it settles the call with the server: it sends what the server waits for (the
//! end of a body, a cancellation), and holds its permit until the server is done with the call too.
//!
//! A call whose route failed under it is made again, on the route that is decided then; where the policy leaves none,
//! it waits for one.

use super::{
    RouteDown,
    shared::{News, Registered, Shared},
};
use crate::{
    Error,
    framed::{Chunk, chunk_bytes},
};
use backlane_proto::{
    Answer, ByteRange, Call, CallId, CallKind, ChunkFlag, ChunkHeader, Decision, ObjectInfo,
    ObjectKind, ObjectName, PackContents, Probe, ProbeDirection, Reason, Request, Route,
    calls::Expected, codec::BODY_BYTES_MAX, message::PROBE_BYTES_MAX,
};
use bytes::{Bytes, BytesMut};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Pause before a call is made again for which there was no route, unless one comes before.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// So many times a route may fail a call; it may be its body that ends each. With the pauses before a route is taken
/// back, that is ten minutes at least.
const FAILURES_MAX: u32 = 32;

/// A call that can be made again: made twice, it does no more than once.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    List(ObjectKind),
    Get(ObjectName, Option<ByteRange>),
    Put(ObjectName, PackContents, Bytes),
    Remove(ObjectName),
}

/// What its caller gets.
#[derive(Debug)]
pub(super) enum Outcome {
    Listing(Vec<ObjectInfo>),
    Body(Bytes),
    Answer(Answer),
    /// The body is where it should be; it, and the answer to it, took so long.
    Done(Duration),
}

impl Wanted {
    /// The body that it has or asks for, in bytes, as far as that is known.
    fn bytes(&self) -> u64 {
        match self {
            Self::List(_) | Self::Remove(_) | Self::Get(_, None) => 0,
            Self::Get(_, Some(range)) => range.length,
            Self::Put(_, _, body) => body.len() as u64,
        }
    }

    fn name(&self) -> Option<ObjectName> {
        match self {
            Self::List(_) => None,
            Self::Get(name, _) | Self::Put(name, _, _) | Self::Remove(name) => Some(*name),
        }
    }
}

/// For the log.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(kind) => write!(f, "list {kind}"),
            Self::Get(name, _) => write!(f, "get {name}"),
            Self::Put(name, ..) => write!(f, "put {name}"),
            Self::Remove(name) => write!(f, "remove {name}"),
        }
    }
}

/// Makes a call; again for as long as its route fails it or none is to be had, until the session's patience is over.
pub(super) async fn make(shared: &Arc<Shared>, wanted: &Wanted) -> Result<Outcome, Error> {
    let bytes = wanted.bytes();
    if let Some(name) = wanted.name().filter(|_| bytes > BODY_BYTES_MAX) {
        let most = BODY_BYTES_MAX;
        return Err(Error::TooLarge { name, bytes, most });
    }
    let mut changes = shared.changes.subscribe();
    let (mut failures, mut deadline) = (0, None);
    // What to tell if nothing is left and there is no time to wait.
    let mut before = None;
    loop {
        changes.mark_unchanged();
        // How long there may be none is the line's business.
        shared.waiters.wait(shared.has_line()).await?;
        let failed = match attempt(shared, wanted).await {
            Err(error @ (Error::RouteFailed { .. } | Error::NoRoute { .. })) => error,
            Err(error @ Error::Lost { .. }) if shared.failure().is_none() => {
                let reason = Reason::ControlLost.name();
                tracing::info!(server = %shared.server, call = %wanted, bytes, reason, %error, "the call is made again");
                if wanted.name().is_some() {
                    shared.account.repeated(bytes);
                }
                before = Some(error);
                continue;
            }
            done => return done,
        };
        match &failed {
            // A route that failed is down here before its calls are told: the next attempt takes what is left, which
            // needs no patience, and what was waited for is over.
            Error::RouteFailed {
                route,
                reason,
                detail,
                ..
            } if failures < FAILURES_MAX => {
                let reason = reason.name();
                tracing::info!(
                    server = %shared.server, call = %wanted, bytes, %route, reason, detail,
                    "its route failed: the call is made again"
                );
                shared.account.repeated(bytes);
                (failures, deadline, before) = (failures + 1, None, Some(failed));
            }
            // Where nothing is left, or the other side alone knows, there is something to wait for.
            Error::NoRoute { reason, detail, .. } => {
                let now = Instant::now();
                if deadline.is_none() && !shared.route_wait.is_zero() {
                    let reason = reason.name();
                    tracing::info!(
                        server = %shared.server, call = %wanted, bytes, policy = %shared.policy, reason, detail,
                        "the call waits for a route"
                    );
                }
                let deadline = *deadline.get_or_insert(now + shared.route_wait);
                if now >= deadline {
                    return Err(before.unwrap_or(failed));
                }
                before = None;
                let next = deadline.min(now + TRY_AGAIN_AFTER);
                // The sender lives in the session.
                let _ = shared
                    .waiters
                    .wait(timeout_at(next, changes.changed()))
                    .await;
            }
            _ => return Err(failed),
        }
    }
}

async fn attempt(shared: &Arc<Shared>, wanted: &Wanted) -> Result<Outcome, Error> {
    let permit = permit(shared).await?;
    match wanted {
        Wanted::List(kind) => {
            let task = Task::begin(shared, permit, Request::List(*kind), None)?;
            run(task, Work::List).await
        }
        Wanted::Get(name, range) => {
            let expected = Expected {
                route: None,
                bytes_max: range.map_or(BODY_BYTES_MAX, |range| range.length),
                exact: range.is_some(),
            };
            let request = Request::Get {
                name: *name,
                range: *range,
                routes: shared.health(),
            };
            let mut task = Task::begin(shared, permit, request, Some(expected))?;
            task.name = Some(*name);
            run(task, Work::Get).await
        }
        Wanted::Put(name, contents, body) => {
            let kind = CallKind::Put(name.kind);
            let bytes = body.len() as u64;
            let (decision, chunks) = shared.route_out(Call { kind, bytes })?;
            let request = Request::Put {
                name: *name,
                contents: *contents,
                bytes,
                route: decision.route(),
            };
            let mut task = Task::begin(shared, permit, request, None)?;
            task.name = Some(*name);
            task.way = Some((decision.route(), chunks));
            let body = body.clone();
            run(task, Work::Put { body, decision }).await
        }
        Wanted::Remove(name) => {
            let mut task = Task::begin(shared, permit, Request::Remove(*name), None)?;
            task.name = Some(*name);
            run(task, Work::Ask).await
        }
    }
}

/// Asks what has one answer and no body.
pub(super) async fn ask(shared: &Arc<Shared>, request: Request) -> Result<Answer, Error> {
    let permit = permit(shared).await?;
    let task = Task::begin(shared, permit, request, None)?;
    run(task, Work::Ask).await.map(|outcome| match outcome {
        Outcome::Answer(answer) => answer,
        _ => Answer::Unknown,
    })
}

/// Makes a probe, once: it is not repeated by another route.
pub(super) async fn probe(shared: &Arc<Shared>, probe: Probe) -> Result<Outcome, Error> {
    let permit = permit(shared).await?;
    let (decision, chunks) = shared.route_probe(probe.route)?;
    let request = Request::Probe(probe);
    match probe.direction {
        ProbeDirection::ToServer => {
            let mut task = Task::begin(shared, permit, request, None)?;
            task.way = Some((probe.route, chunks));
            let bytes = usize::try_from(probe.bytes.min(PROBE_BYTES_MAX)).unwrap_or(usize::MAX);
            let body = Bytes::from(vec![0; bytes]);
            run(task, Work::Put { body, decision }).await
        }
        ProbeDirection::ToClient => {
            let expected = Expected {
                route: Some(probe.route),
                bytes_max: probe.bytes,
                exact: true,
            };
            let task = Task::begin(shared, permit, request, Some(expected))?;
            let began = Instant::now();
            run(task, Work::Get).await?;
            Ok(Outcome::Done(began.elapsed()))
        }
    }
}

/// What a task does for its caller.
enum Work {
    List,
    Get,
    Put { body: Bytes, decision: Decision },
    Ask,
}

struct Task {
    shared: Arc<Shared>,
    id: CallId,
    news: mpsc::UnboundedReceiver<News>,
    name: Option<ObjectName>,
    /// The way of a body to the server.
    way: Option<(Route, mpsc::Sender<Chunk>)>,
    /// The server waits for a body.
    ready: bool,
    /// That body was ended, or given up.
    body_ended: bool,
    /// The last answer came.
    answered: bool,
    header: Option<(u64, Decision)>,
    body: Option<BytesMut>,
    failed: Option<(Route, RouteDown)>,
    _permit: OwnedSemaphorePermit,
}

async fn permit(shared: &Arc<Shared>) -> Result<OwnedSemaphorePermit, Error> {
    let permit = Arc::clone(&shared.permits).acquire_owned();
    let permit = shared.waiters.wait(permit).await;
    permit.map_err(|_| shared.end_error())
}

/// Runs a call in a task of its own; dropping the future cancels the call.
async fn run(mut task: Task, work: Work) -> Result<Outcome, Error> {
    let shared = Arc::clone(&task.shared);
    let (mut reply, outcome) = oneshot::channel();
    tokio::spawn(async move {
        let served = tokio::select! {
            served = task.serve(work) => Some(served),
            () = reply.closed() => None,
        };
        match served {
            Some(served) => {
                // Failing to reply means that the caller has just gone; the call is over all the same.
                let _ = reply.send(served);
            }
            None => task.shared.send(task.id, Request::Cancel),
        }
        task.settle().await;
        task.shared.end_call(task.id);
    });
    outcome.await.unwrap_or_else(|_| Err(shared.call_error()))
}

impl Task {
    fn begin(
        shared: &Arc<Shared>,
        permit: OwnedSemaphorePermit,
        request: Request,
        expected: Option<Expected>,
    ) -> Result<Self, Error> {
        let Registered { id, news } = shared.begin(request, expected)?;
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            news,
            name: None,
            way: None,
            ready: false,
            body_ended: false,
            answered: false,
            header: None,
            body: None,
            failed: None,
            _permit: permit,
        })
    }

    async fn serve(&mut self, work: Work) -> Result<Outcome, Error> {
        match work {
            Work::List => self.serve_list().await.map(Outcome::Listing),
            Work::Get => self.serve_get().await.map(Outcome::Body),
            Work::Put { body, decision } => self.serve_put(body, decision).await.map(Outcome::Done),
            Work::Ask => self.answer().await.map(Outcome::Answer),
        }
    }

    async fn serve_list(&mut self) -> Result<Vec<ObjectInfo>, Error> {
        let mut all = Vec::new();
        loop {
            match self.answer().await? {
                Answer::Listing { entries, more } => {
                    all.extend(entries);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    async fn serve_get(&mut self) -> Result<Bytes, Error> {
        loop {
            if let (Some((bytes, decision)), Some(body)) = (self.header, &mut self.body) {
                let body = std::mem::take(body).freeze();
                self.shared.account.received(decision, bytes);
                return Ok(body);
            }
            if let Some(answer) = self.next().await? {
                match answer {
                    Answer::Body { bytes, decision } => {
                        self.note(decision, bytes);
                        self.check_incoming(decision)?;
                    }
                    other => return Err(self.unexpected(&other)),
                }
            }
        }
    }

    /// For the log: which route the body takes, and why.
    fn note(&self, decision: Decision, bytes: u64) {
        let object = self.name.map(tracing::field::display);
        let (route, reason) = (decision.route(), decision.reason().map(Reason::name));
        tracing::debug!(server = %self.shared.server, call = %self.id, object, bytes, %route, reason, "a body takes its route");
    }

    /// What the server decided must be within the policy, and the route must be there.
    fn check_incoming(&mut self, decision: Decision) -> Result<(), Error> {
        let policy = self.shared.policy;
        if !policy.allows(decision.route()) {
            let what = format!("it chose the network for a body under {policy}");
            let error = Error::protocol(self.shared.server.as_str(), what);
            self.shared.fail(error.clone());
            return Err(error);
        }
        if self.body.is_none()
            && let Some(down) = self.shared.down(decision.route())
        {
            self.failed = Some((decision.route(), down));
            return Err(self.route_failed(decision.route()));
        }
        Ok(())
    }

    async fn serve_put(&mut self, body: Bytes, decision: Decision) -> Result<Duration, Error> {
        let bytes = body.len() as u64;
        self.note(decision, bytes);
        match self.answer().await? {
            Answer::Ready => {}
            other => return Err(self.unexpected(&other)),
        }
        let began = Instant::now();
        self.send_body(body).await?;
        match self.answer().await? {
            Answer::Done => {
                self.shared.account.sent(decision, bytes);
                Ok(began.elapsed())
            }
            other => Err(self.unexpected(&other)),
        }
    }

    async fn send_body(&mut self, mut body: Bytes) -> Result<(), Error> {
        let (route, chunks) = self.way.clone().expect("a put begins with its way");
        while !self.body_ended {
            let payload = body.split_to(body.len().min(chunk_bytes(route)));
            let last = body.is_empty();
            let header = ChunkHeader {
                call: self.id,
                bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                flag: if last {
                    ChunkFlag::Last
                } else {
                    ChunkFlag::More
                },
            };
            tokio::select! {
                sent = chunks.send(Chunk { header, payload }) => {
                    self.body_ended = last || sent.is_err();
                    if sent.is_err() {
                        return Err(self.route_failed(route));
                    }
                }
                news = self.news.recv() => {
                    // Nothing but bad news can come before the body has ended.
                    let news = news.ok_or_else(|| self.shared.call_error())?;
                    if let Some(answer) = self.observe(news)? {
                        return Err(self.unexpected(&answer));
                    }
                }
            }
        }
        Ok(())
    }

    /// The next answer of any kind that isn't a failure.
    async fn answer(&mut self) -> Result<Answer, Error> {
        loop {
            if let Some(answer) = self.next().await? {
                return Ok(answer);
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Answer>, Error> {
        let news = self.news.recv().await;
        self.observe(news.ok_or_else(|| self.shared.call_error())?)
    }

    /// Notes what came; failures become errors.
    fn observe(&mut self, news: News) -> Result<Option<Answer>, Error> {
        let answer = match news {
            News::BodyComplete(body) => {
                self.body = Some(body);
                return Ok(None);
            }
            // The answer that says why is on its way.
            News::BodyAborted => return Ok(None),
            News::RouteFailed(route, down) => {
                self.failed = Some((route, down));
                return Err(self.route_failed(route));
            }
            News::Answer(answer) => answer,
        };
        match &answer {
            Answer::Ready => self.ready = true,
            Answer::Body { bytes, decision } => self.header = Some((*bytes, *decision)),
            Answer::Listing { more, .. } => self.answered = !more,
            _ => self.answered = true,
        }
        let server = &self.shared.server;
        match answer {
            Answer::Failed(failure) => match failure.reason {
                Some(reason) if failure.code == backlane_proto::ErrorCode::Route => {
                    Err(match self.body_route() {
                        // The server noticed first.
                        Some(route) => Error::RouteFailed {
                            server: server.clone(),
                            route,
                            reason,
                            detail: failure.text,
                        },
                        None => {
                            // What the server was told by this side, this side knows better.
                            let own = self.shared.detail(reason);
                            let own = own.filter(|own| !own.is_empty());
                            let detail =
                                own.unwrap_or_else(|| self.shared.at_server(&failure.text));
                            if let Some((route, way)) = &self.way {
                                let down = RouteDown::new(reason, &detail);
                                self.shared.left_there(*route, Some(way), down);
                            }
                            Error::NoRoute {
                                policy: self.shared.policy,
                                reason,
                                detail,
                            }
                        }
                    })
                }
                _ => Err(Error::from_failure(server, self.name, failure)),
            },
            Answer::Unsupported(what) => Err(Error::Unsupported {
                peer: server.clone(),
                what,
            }),
            answer => Ok(Some(answer)),
        }
    }

    /// Brings the call to the end that the server expects.
    async fn settle(&mut self) {
        if self.failed.is_some() && !self.answered {
            // The server may not have noticed yet, and would go on for a while.
            self.shared.send(self.id, Request::Cancel);
        }
        loop {
            if self.ready && !self.body_ended {
                self.body_ended = true;
                if let Some((_, chunks)) = &self.way {
                    // A pair that is gone has told the server already.
                    let _ = chunks.send(Chunk::abort(self.id)).await;
                }
            }
            let body_over = self.header.is_some() && (self.body.is_some() || self.failed.is_some());
            if self.answered || body_over {
                return;
            }
            match self.news.recv().await {
                // What went wrong was told to the caller, if there is one still.
                Some(news) => drop(self.observe(news)),
                None => return,
            }
        }
    }

    /// The route of the body, once it is on its way.
    fn body_route(&self) -> Option<Route> {
        let incoming = self.header.map(|(_, decision)| decision.route());
        let outgoing = self.way.as_ref().filter(|_| self.ready);
        incoming.or(outgoing.map(|(route, _)| *route))
    }

    fn route_failed(&mut self, route: Route) -> Error {
        if let Some(error) = self.shared.failure() {
            return error;
        }
        let known = self.failed.take().filter(|(failed, _)| *failed == route);
        let down = known.map(|(_, down)| down);
        // A pair lets go of its chunks a moment before it says why.
        let down = down
            .or_else(|| self.shared.down(route))
            .unwrap_or_else(|| RouteDown::new(Reason::of_ended(route), ""));
        self.failed = Some((route, down.clone()));
        Error::RouteFailed {
            server: self.shared.server.clone(),
            route,
            reason: down.reason,
            detail: down.detail,
        }
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        let what = format!("answer {answer:.60?} does not fit the call");
        Error::protocol(self.shared.server.as_str(), what)
    }
}
