//! Calls at the server: each is a task that asks the service and answers.
//!
//! Every call gets exactly one last answer, whatever happens: a body whole, a word of success, or a failure with its
//! code. What comes of a body after its put has failed is read and thrown away, so that the pair stays in step.

use super::{
    Core,
    connection::failure,
    probe::{Nowhere, Zeros},
    session::{Piece, Session},
};
use crate::{
    RouteDown,
    framed::{Chunk, chunk_bytes},
    service::{BodySink, BodySource, ServiceError},
};
use backlane_proto::{
    Answer, ByteRange, Call, CallId, CallKind, ChunkFlag, ChunkHeader, Decision, ErrorCode,
    Failure, Health, ObjectKind, ObjectName, PackContents, Probe, ProbeDirection, Reason, Refusal,
    Request, Route, ServerRoutes,
    codec::BODY_BYTES_MAX,
    message::{LISTING_PAGE_ENTRIES, PROBE_BYTES_MAX},
};
use bytes::Bytes;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

/// Serves one call.
pub(super) async fn run(
    core: Arc<Core>,
    session: Arc<Session>,
    call: CallId,
    request: Request,
    cancel: Arc<Notify>,
) {
    let mut serving = Serving {
        session,
        body_idle: core.body_idle,
        call,
        asked: asked(&request),
        cancel,
        answered: false,
    };
    let served = serving.serve(&core, request).await;
    if let Err(failed) = served {
        serving.note(&failed);
        serving.last(Answer::Failed(failed.into())).await;
    }
}

/// A call being served; dropped, it ends the call, with an answer if there was none.
struct Serving {
    session: Arc<Session>,
    body_idle: Duration,
    call: CallId,
    /// What was asked for, for the log.
    asked: String,
    cancel: Arc<Notify>,
    answered: bool,
}

/// Why a call fails.
enum Failed {
    Service(ServiceError),
    Route(Refusal),
    /// The storage route can't be had.
    Storage(RouteDown),
    /// The pair of this route ended under the body.
    RouteEnded(Route),
    Cancelled,
    /// Nothing came of the body for so long.
    Idle(Duration),
    SessionOver,
    BodyTooLarge {
        bytes: u64,
        most: u64,
    },
    /// The service gave more or fewer bytes than it said.
    Length {
        said: u64,
        gave: u64,
    },
}

impl Serving {
    async fn serve(&mut self, core: &Arc<Core>, request: Request) -> Result<(), Failed> {
        match request {
            Request::List(kind) => self.list(kind).await,
            Request::Get {
                name,
                range,
                routes,
            } => self.get(name, range, routes).await,
            Request::Put {
                name,
                contents,
                bytes,
                route,
            } => self.put(name, contents, bytes, route).await,
            Request::Remove(name) => {
                let objects = self.session.objects().ok_or(Failed::SessionOver)?;
                self.or_cancelled(objects.remove(name)).await??;
                self.last(Answer::Done).await;
                Ok(())
            }
            Request::Meet {
                pool,
                slot,
                incarnation,
            } => {
                let member = (pool, slot, incarnation);
                let answer = match &core.storage {
                    Some(storage) => storage.meet(core, &self.session, member).await,
                    None => Err(RouteDown::new(Reason::ServerHasNoPool, "")),
                };
                self.last(answer.map_err(Failed::Storage)?).await;
                Ok(())
            }
            Request::Prove { member, proofs } => {
                let answer = match &core.storage {
                    Some(storage) => storage.prove(&self.session, member, proofs).await,
                    None => Err(RouteDown::new(Reason::ServerHasNoPool, "")),
                };
                self.last(answer.map_err(Failed::Storage)?).await;
                Ok(())
            }
            Request::Probe(probe) => self.probe(probe).await,
            Request::Routes => {
                let routes = ServerRoutes {
                    health: self.session.health(),
                    pool: core.storage.as_ref().map(|storage| storage.status()),
                };
                self.last(Answer::Routes(routes)).await;
                Ok(())
            }
            Request::Renew { csr_pem } => {
                let host = &self.session.certificate;
                let renewed = self.or_cancelled(core.service.renew(host, csr_pem));
                let certificate_pem = renewed.await??;
                self.last(Answer::Renewed { certificate_pem }).await;
                Ok(())
            }
            Request::Arrivals { kind, after } => {
                let objects = self.session.objects().ok_or(Failed::SessionOver)?;
                // One more tells whether there is another page.
                let asked = objects.arrivals(kind, after, LISTING_PAGE_ENTRIES + 1);
                let mut entries = self.or_cancelled(asked).await??;
                let more = entries.len() > LISTING_PAGE_ENTRIES;
                entries.truncate(LISTING_PAGE_ENTRIES);
                self.last(Answer::Arrivals { entries, more }).await;
                Ok(())
            }
            // Pings, closings and cancellations are no calls; the rest is of a later version.
            Request::Ping | Request::Close | Request::Cancel | Request::Unsupported => {
                let what = format!("the request of call {}", self.call);
                self.last(Answer::Unsupported(what)).await;
                Ok(())
            }
        }
    }

    async fn list(&mut self, kind: ObjectKind) -> Result<(), Failed> {
        let objects = self.session.objects().ok_or(Failed::SessionOver)?;
        // Held until the last page is taken: a client that takes none makes the server hold one listing and no more.
        let session = Arc::clone(&self.session);
        let _turn = self.or_cancelled(session.listing.lock()).await?;
        let entries = self.or_cancelled(objects.list(kind)).await??;
        let mut pages = entries.chunks(LISTING_PAGE_ENTRIES).peekable();
        while let Some(page) = pages.next() {
            let entries = page.to_vec();
            let more = pages.peek().is_some();
            let answer = Answer::Listing { entries, more };
            if more {
                self.session.answer(self.call, answer).await;
            } else {
                self.last(answer).await;
            }
        }
        if entries.is_empty() {
            let more = false;
            self.last(Answer::Listing { entries, more }).await;
        }
        Ok(())
    }

    async fn get(
        &mut self,
        name: ObjectName,
        range: Option<ByteRange>,
        routes: Health,
    ) -> Result<(), Failed> {
        let objects = self.session.objects().ok_or(Failed::SessionOver)?;
        let mut source = self.or_cancelled(objects.get(name, range)).await??;
        let bytes = source.length();
        fits(bytes, BODY_BYTES_MAX)?;
        let kind = CallKind::Get(name.kind);
        let way = self.session.route_out(Call { kind, bytes }, routes);
        self.give(&mut *source, way.map_err(Failed::Route)?).await
    }

    /// Answers with a body.
    async fn give(
        &mut self,
        source: &mut dyn BodySource,
        (decision, chunks): (Decision, mpsc::Sender<Chunk>),
    ) -> Result<(), Failed> {
        let bytes = source.length();
        let answer = Answer::Body { bytes, decision };
        self.session.answer(self.call, answer).await;
        let route = decision.route();
        let sent = self.send_body(source, bytes, route, &chunks).await;
        match &sent {
            Ok(()) => self.answered = true,
            Err(Failed::RouteEnded(_)) => {}
            // A pair that is gone needs no abort.
            Err(_) => drop(chunks.send(Chunk::abort(self.call)).await),
        }
        sent
    }

    async fn send_body(
        &self,
        source: &mut dyn BodySource,
        said: u64,
        route: Route,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<(), Failed> {
        let most = chunk_bytes(route);
        let mut gave = 0;
        let mut rest = Bytes::new();
        loop {
            if rest.is_empty() && gave < said {
                let piece = self.or_cancelled(source.next(most)).await??;
                rest = piece.ok_or(Failed::Length { said, gave })?;
                continue;
            }
            let payload = rest.split_to(rest.len().min(most));
            gave += payload.len() as u64;
            if gave > said {
                return Err(Failed::Length { said, gave });
            }
            let last = gave == said;
            if last {
                // Whoever reads the last chunk may begin another call.
                self.session.end_call(self.call);
            }
            let header = ChunkHeader {
                call: self.call,
                bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                flag: if last {
                    ChunkFlag::Last
                } else {
                    ChunkFlag::More
                },
            };
            let sent = self.or_cancelled(chunks.send(Chunk { header, payload }));
            sent.await?.map_err(|_| Failed::RouteEnded(route))?;
            if last {
                return Ok(());
            }
        }
    }

    async fn put(
        &mut self,
        name: ObjectName,
        contents: PackContents,
        bytes: u64,
        route: Route,
    ) -> Result<(), Failed> {
        self.within_policy(route)?;
        fits(bytes, BODY_BYTES_MAX)?;
        let objects = self.session.objects().ok_or(Failed::SessionOver)?;
        let sink = self
            .or_cancelled(objects.put(name, contents, bytes))
            .await??;
        self.take(sink, bytes, route).await
    }

    /// A body for nothing but its way.
    async fn probe(&mut self, probe: Probe) -> Result<(), Failed> {
        let Probe {
            direction,
            bytes,
            route,
        } = probe;
        fits(bytes, PROBE_BYTES_MAX)?;
        match direction {
            ProbeDirection::ToServer => {
                self.within_policy(route)?;
                self.take(Box::new(Nowhere), bytes, route).await
            }
            ProbeDirection::ToClient => {
                let way = self.session.route_probe(route).map_err(Failed::Route)?;
                self.give(&mut Zeros::new(bytes), way).await
            }
        }
    }

    fn within_policy(&self, route: Route) -> Result<(), Failed> {
        let policy = self.session.policy;
        let reason = Reason::Policy;
        match policy.allows(route) {
            true => Ok(()),
            false => Err(Failed::Route(Refusal { policy, reason })),
        }
    }

    /// Asks for a body, and takes it.
    async fn take(
        &mut self,
        sink: Box<dyn BodySink>,
        bytes: u64,
        route: Route,
    ) -> Result<(), Failed> {
        let policy = self.session.policy;
        let pieces = self.session.expect(self.call, route, bytes);
        let mut pieces = pieces.map_err(|reason| Failed::Route(Refusal { policy, reason }))?;
        self.session.answer(self.call, Answer::Ready).await;
        let stored = self.store(sink, &mut pieces, route).await;
        let answer = match stored {
            Ok(()) => Answer::Done,
            Err(failed) => {
                self.note(&failed);
                Answer::Failed(failed.into())
            }
        };
        // What still comes of the body after a failure finds the call ended, and is skipped.
        self.last(answer).await;
        Ok(())
    }

    async fn store(
        &self,
        mut sink: Box<dyn BodySink>,
        pieces: &mut mpsc::Receiver<Piece>,
        route: Route,
    ) -> Result<(), Failed> {
        loop {
            let piece = self.or_cancelled(timeout(self.body_idle, pieces.recv()));
            match piece.await?.map_err(|_| Failed::Idle(self.body_idle))? {
                Some(Piece::Data(piece)) => self.or_cancelled(sink.write(piece)).await??,
                // From here a cancellation comes too late: what is whole is made durable.
                Some(Piece::Last) => return Ok(sink.commit().await?),
                Some(Piece::Abort) => return Err(Failed::Cancelled),
                None => return Err(Failed::RouteEnded(route)),
            }
        }
    }

    /// Waits for something, or for the client to give the call up.
    async fn or_cancelled<T>(&self, what: impl Future<Output = T>) -> Result<T, Failed> {
        tokio::select! {
            done = what => Ok(done),
            () = self.cancel.notified() => Err(Failed::Cancelled),
        }
    }

    /// For the log: a call that a route is the trouble of.
    fn note(&self, failed: &Failed) {
        let (route, reason) = match failed {
            Failed::Route(refusal) => (None, refusal.reason),
            // The client asks again within milliseconds; the pool has told it once.
            Failed::Storage(down) if down.reason == Reason::ChallengeNotSeen => return,
            Failed::Storage(down) => (Some(Route::Storage), down.reason),
            Failed::RouteEnded(route) => (Some(*route), Reason::of_ended(*route)),
            _ => return,
        };
        let Session { host, policy, .. } = &*self.session;
        let (route, reason) = (route.map(tracing::field::display), reason.name());
        tracing::info!(%host, call = %self.call, asked = self.asked, %policy, route, reason, "call refused");
    }

    /// Gives the last answer. The call ends before it, so that whoever reads the answer may begin another.
    async fn last(&mut self, answer: Answer) {
        self.session.end_call(self.call);
        self.session.answer(self.call, answer).await;
        self.answered = true;
    }
}

fn asked(request: &Request) -> String {
    match request {
        Request::List(kind) => format!("list {kind}"),
        Request::Get { name, .. } => format!("get {name}"),
        Request::Put { name, route, .. } => format!("put {name} by {route}"),
        Request::Remove(name) => format!("remove {name}"),
        Request::Arrivals { kind, .. } => format!("arrivals of {kind}"),
        Request::Meet { slot, .. } => format!("meet slot {slot}"),
        Request::Prove { member, .. } => format!("prove slot {}", member.slot),
        Request::Probe(probe) => format!("probe {}", probe.route),
        _ => String::new(),
    }
}

fn fits(bytes: u64, most: u64) -> Result<(), Failed> {
    match bytes <= most {
        true => Ok(()),
        false => Err(Failed::BodyTooLarge { bytes, most }),
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.answered {
            // Stopped with the session, or by a panic of the service; without room for an answer the session must end.
            let text = "the call was stopped at the server".to_owned();
            let code = match self.session.is_over() {
                true => ErrorCode::ShuttingDown,
                false => ErrorCode::Failed,
            };
            let reason = None;
            let answer = Answer::Failed(Failure { code, text, reason });
            if !self.session.answer_now(self.call, answer) {
                self.session.breach("a call could not be answered");
            }
        }
        self.session.end_call(self.call);
    }
}

impl From<ServiceError> for Failed {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        let (code, text, reason) = match failed {
            Failed::Service(error) => return failure(&error),
            Failed::Route(refusal) => (ErrorCode::Route, refusal.to_string(), Some(refusal.reason)),
            Failed::Storage(down) => (ErrorCode::Route, down.detail, Some(down.reason)),
            Failed::RouteEnded(route) => {
                let text = format!("the {route} route ended under the body");
                (ErrorCode::Route, text, Some(Reason::of_ended(route)))
            }
            Failed::Cancelled => (
                ErrorCode::Cancelled,
                "the call was given up".to_owned(),
                None,
            ),
            Failed::Idle(waited) => {
                let text = format!("nothing came of the body for {} s", waited.as_secs());
                (ErrorCode::Failed, text, None)
            }
            Failed::SessionOver => (ErrorCode::Failed, "the session is over".to_owned(), None),
            Failed::BodyTooLarge { bytes, most } => {
                let text = format!("a body of {bytes} bytes is more than {most}");
                (ErrorCode::BadBody, text, None)
            }
            Failed::Length { said, gave } => {
                let text = format!("the object has {said} bytes, and {gave} could be read");
                (ErrorCode::Failed, text, None)
            }
        };
        Self { code, text, reason }
    }
}
