//! The connections of a client's session at work: one task reads each, another writes it.

use super::{
    RouteDown,
    shared::{Shared, Target},
};
use crate::{
    Error,
    dial::read_failed,
    framed::{
        CHUNKS_QUEUED_MAX, DEAD_AFTER, PING_AFTER, ReadError, read_chunk_header, read_message,
        read_message_while, read_payload, write_chunks, write_message,
    },
    pool::pair_ended,
};
use backlane_proto::{
    Answer, CallId, Event, FromClient, FromServer, Reason, Request, Route, Violation,
};
use bytes::BytesMut;
use std::sync::Arc;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Reads answers until the connection ends, which ends the session.
pub(super) async fn read_control<R: AsyncRead + Unpin>(shared: Arc<Shared>, mut from: R) {
    let error = loop {
        let raw = match read_message_while(&mut from, || shared.pool.is_server_alive()).await {
            Ok(raw) => raw,
            Err(error) => break lost(&shared.server, error),
        };
        let message = match FromServer::decode(&raw) {
            Ok(message) => message,
            Err(error) => break Error::protocol(shared.server.as_str(), error),
        };
        shared.pool.heard(false);
        match (message.call, message.answer) {
            (_, Answer::Ping) => {}
            (CallId::SESSION, Answer::Failed(failure)) => {
                break Error::Lost {
                    server: shared.server.clone(),
                    why: failure.text,
                };
            }
            // The confirmation of a close.
            (CallId::SESSION, Answer::Done) => break Error::Closed,
            (call, answer) => {
                if let Err(violation) = shared.answered(call, answer) {
                    break Error::protocol(shared.server.as_str(), violation);
                }
            }
        }
    };
    shared.fail(error);
}

/// Writes requests, and a sign of life when there are none, or when the server shows none on storage: it answers.
pub(super) async fn write_control<W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    mut to: W,
    mut requests: mpsc::UnboundedReceiver<FromClient>,
) {
    loop {
        let next = tokio::select! {
            next = timeout(PING_AFTER, requests.recv()) => next.ok(),
            () = shared.suspicion.notified() => None,
        };
        let message = match next {
            Some(Some(message)) => message,
            Some(None) => break,
            None => FromClient {
                call: CallId::SESSION,
                request: Request::Ping,
            },
        };
        if let Err(error) = write_message(&mut to, &message.encode()).await {
            shared.fail(lost(&shared.server, ReadError::Io(error)));
            return;
        }
    }
    // The other side learns the end from what was written before; a farewell that fails changes nothing.
    let _ = to.shutdown().await;
}

/// Runs an events connection until it ends.
pub(super) async fn run_events<S>(shared: &Shared, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from, to) = tokio::io::split(stream);
    shared.pool.set_attached(true);
    tokio::select! {
        () = read_events(shared, from) => {}
        () = write_events(shared, to) => {}
    }
    shared.pool.set_attached(false);
}

/// Reads events: doorbells for the pool, the rest for whoever listens.
async fn read_events<R: AsyncRead + Unpin>(shared: &Shared, mut from: R) {
    loop {
        let event = match read_message(&mut from, DEAD_AFTER).await {
            Ok(raw) => Event::decode(&raw).map_err(ReadError::Codec),
            Err(error) => Err(error),
        };
        match event {
            Ok(Event::Ping) => {
                shared.pool.heard(false);
                // Perhaps it asks whether this side lives.
                shared.asked.notify_one();
            }
            Ok(Event::Unknown) => shared.pool.heard(false),
            Ok(Event::Doorbell) => shared.pool.heard(true),
            // Nobody may be listening.
            Ok(event) => drop(shared.events.send(event)),
            Err(error) => {
                let server = &shared.server;
                tracing::debug!(%server, %error, "events connection ended");
                return;
            }
        }
    }
}

/// Sends doorbells, many at once as one, and signs of life, also when asked for one.
async fn write_events<W: AsyncWrite + Unpin>(shared: &Shared, mut to: W) {
    loop {
        let event = tokio::select! {
            rung = timeout(PING_AFTER, shared.doorbell.notified()) => match rung {
                Ok(()) => Event::Doorbell,
                Err(_) => Event::Ping,
            },
            () = shared.asked.notified() => Event::Ping,
        };
        if let Err(error) = write_message(&mut to, &event.encode()).await {
            let server = &shared.server;
            tracing::debug!(%server, %error, "events connection ended");
            return;
        }
    }
}

/// Carries bodies both ways over a data pair until it fails; the route is up from the word `ready` on.
pub(super) async fn run_pair<R, W>(
    shared: Arc<Shared>,
    route: Route,
    from: R,
    to: W,
    ready: oneshot::Sender<()>,
) -> RouteDown
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
    shared.route_up(route, sender);
    // Whoever started the pair may have gone.
    let _ = ready.send(());
    let down = tokio::select! {
        down = read_pair(&shared, route, from) => down,
        written = write_chunks(to, chunks) => match written {
            Ok(()) => RouteDown::new(Reason::StreamReset, "the session is over"),
            Err(error) => pair_ended(route, &ReadError::Io(error)),
        },
    };
    shared.route_down(route, &down);
    down
}

/// Reads chunks until the pair ends or the server breaks the rules; tells why.
async fn read_pair<R: AsyncRead + Unpin>(shared: &Shared, route: Route, mut from: R) -> RouteDown {
    loop {
        match read_chunk(shared, route, &mut from).await {
            Ok(Ok(())) => {}
            Ok(Err(violation)) => {
                shared.fail(Error::protocol(shared.server.as_str(), violation));
                return RouteDown::new(Reason::StreamReset, violation);
            }
            Err(error) => return pair_ended(route, &error),
        }
    }
}

async fn read_chunk<R: AsyncRead + Unpin>(
    shared: &Shared,
    route: Route,
    from: &mut R,
) -> Result<Result<(), Violation>, ReadError> {
    let header = read_chunk_header(from).await?;
    match shared.chunk(header, route) {
        Ok(Target::Body(mut body, fate)) => {
            read_payload(from, header.bytes, &mut body).await?;
            shared.payload_read(header.call, body, fate);
        }
        Ok(Target::Nowhere) => {
            read_payload(from, header.bytes, &mut BytesMut::new()).await?;
        }
        Err(violation) => return Ok(Err(violation)),
    }
    Ok(Ok(()))
}

fn lost(server: &str, error: ReadError) -> Error {
    match read_failed(server, "in session", error) {
        Error::Silent { waited, .. } => Error::Lost {
            server: server.to_owned(),
            why: format!("no sign of life for {waited:?}"),
        },
        error => error,
    }
}
