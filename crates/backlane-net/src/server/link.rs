//! The further connections of a session at the server: events and data pairs.

use super::{
    connection::{Connection, Peer, farewell},
    session::{Piece, Session},
};
use crate::{
    RouteDown,
    framed::{
        CHUNKS_QUEUED_MAX, Chunk, DEAD_AFTER, PING_AFTER, ReadError, read_chunk_header,
        read_message, read_payload, write_chunks, write_message,
    },
    pace::Pace,
    pool::{pair_closed, pair_ended},
};
use backlane_proto::{ChunkFlag, ErrorCode, Event, Failure, Opened, Reason, Route, Violation};
use bytes::BytesMut;
use std::sync::Arc;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

/// Serves a session's events connection.
pub(super) async fn events(session: Arc<Session>, mut stream: Connection, peer: Peer) {
    let events = session.events.lock().ok().and_then(|mut slot| slot.take());
    let Some(mut events) = events else {
        let refusal = refuse("the session has an events connection already", None);
        return farewell(&mut stream, &refusal, &peer).await;
    };
    let ended = match write_message(&mut stream, &Opened::Attached.encode()).await {
        Err(error) => ReadError::Io(error),
        Ok(()) => {
            session.set_attached(true);
            let (from, to) = tokio::io::split(stream);
            tokio::select! {
                ended = read_events(&session, from) => ended,
                ended = write_events(&session, to, &mut events) => ended,
                () = session.ended() => return,
            }
        }
    };
    tracing::debug!(%peer, error = %ended, "events connection ended");
    session.set_attached(false);
    // The client may come back.
    if let Ok(mut slot) = session.events.lock() {
        *slot = Some(events);
    }
}

async fn read_events<R: AsyncRead + Unpin>(session: &Session, mut from: R) -> ReadError {
    loop {
        let event = match read_message(&mut from, DEAD_AFTER).await {
            Ok(raw) => Event::decode(&raw).map_err(ReadError::Codec),
            Err(error) => Err(error),
        };
        match event {
            Ok(event) => session.heard(event == Event::Doorbell),
            Err(error) => return error,
        }
    }
}

async fn write_events<W: AsyncWrite + Unpin>(
    session: &Session,
    mut to: W,
    events: &mut mpsc::Receiver<Event>,
) -> ReadError {
    loop {
        let next = async {
            tokio::select! {
                () = session.doorbell.notified() => Event::Doorbell,
                event = events.recv() => event.unwrap_or(Event::Ping),
            }
        };
        let event = timeout(PING_AFTER, next).await.unwrap_or(Event::Ping);
        if let Err(error) = write_message(&mut to, &event.encode()).await {
            return ReadError::Io(error);
        }
    }
}

/// Serves a session's network data connection.
pub(super) async fn network_pair(session: Arc<Session>, mut stream: Connection, peer: Peer) {
    let (route, host) = (Route::Network, &session.host);
    let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let refused = match session.policy.allows(route) {
        false => Some((
            "this session's bodies take storage alone",
            Some(Reason::Policy),
        )),
        true if !session.route_up(route, sender) => {
            Some(("the session has a data connection already", None))
        }
        true => None,
    };
    if let Some((text, reason)) = refused {
        let name = reason.map(Reason::name);
        tracing::info!(%peer, %host, %route, reason = name, text, "network pair refused");
        return farewell(&mut stream, &refuse(text, reason), &peer).await;
    }
    tracing::info!(%peer, %host, %route, "network pair begins");
    let down = match write_message(&mut stream, &Opened::Attached.encode()).await {
        Ok(()) => {
            let (from, to) = tokio::io::split(stream);
            run_pair(&session, route, from, to, chunks).await
        }
        Err(error) => pair_ended(route, &ReadError::Io(error)),
    };
    session.route_down(route, &RouteDown::new(Reason::NetworkDown, &down.detail));
    tracing::info!(%peer, %host, %route, reason = down.reason.name(), %down, "network pair ended");
}

/// Carries bodies both ways over a data pair until it or the session ends; tells why. The route was brought up before.
pub(super) async fn run_pair<R, W>(
    session: &Session,
    route: Route,
    from: R,
    to: W,
    chunks: mpsc::Receiver<Chunk>,
) -> RouteDown
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let sent = |chunk| session.meter.sent(route, chunk);
    let pace = Pace::free();
    tokio::select! {
        ended = read_pair(session, route, from) => ended,
        written = write_chunks(to, chunks, &pace, sent) => match written {
            Ok(()) => pair_closed(route, "the session let go of it"),
            Err(error) => pair_ended(route, &ReadError::Io(error)),
        },
        () = session.ended() => pair_closed(route, "the session ended"),
    }
}

/// How many buffers of payloads are filled in turn: one that the service has let go of by its next turn is used again.
const PAYLOADS_KEPT: usize = 8;

async fn read_pair<R: AsyncRead + Unpin>(
    session: &Session,
    route: Route,
    mut from: R,
) -> RouteDown {
    let mut payloads: [BytesMut; PAYLOADS_KEPT] = Default::default();
    let mut turn = 0;
    loop {
        turn = (turn + 1) % PAYLOADS_KEPT;
        match read_chunk(session, route, &mut from, &mut payloads[turn]).await {
            Ok(Ok(())) => {}
            Ok(Err(violation)) => {
                session.breach(violation);
                return pair_closed(route, violation);
            }
            Err(error) => {
                if let ReadError::Codec(error) = &error {
                    session.breach(error);
                }
                return pair_ended(route, &error);
            }
        }
    }
}

async fn read_chunk<R: AsyncRead + Unpin>(
    session: &Session,
    route: Route,
    from: &mut R,
    payload: &mut BytesMut,
) -> Result<Result<(), Violation>, ReadError> {
    let header = read_chunk_header(from).await?;
    let taker = match session.chunk(header, route) {
        Ok(taker) => taker,
        Err(violation) => return Ok(Err(violation)),
    };
    read_payload(from, header.bytes, payload).await?;
    let payload = payload.split();
    session.meter.received(route, header);
    // Waiting here is the back-pressure: the pair stands still until the service has taken what came before. A call
    // that no longer listens has failed and told its client.
    if let Some(taker) = taker {
        if !payload.is_empty() {
            let _ = taker.send(Piece::Data(payload.freeze())).await;
        }
        match header.flag {
            ChunkFlag::More => {}
            ChunkFlag::Last => drop(taker.send(Piece::Last).await),
            ChunkFlag::Abort => drop(taker.send(Piece::Abort).await),
        }
    }
    Ok(Ok(()))
}

fn refuse(text: &str, reason: Option<Reason>) -> Opened {
    Opened::Refused(Failure {
        code: ErrorCode::Session,
        text: text.to_owned(),
        reason,
    })
}
