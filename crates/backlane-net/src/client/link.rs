//! The connections of a client's session at work.

use super::{
    RouteDown,
    shared::{Shared, Target},
    storage::Hand,
};
use crate::{
    Error,
    dial::read_failed,
    framed::{
        CHUNKS_QUEUED_MAX, DEAD_AFTER, PING_AFTER, ReadError, read_chunk_header, read_message,
        read_message_while, read_payload, write_chunks, write_message,
    },
    pool::{pair_closed, pair_ended},
};
use backlane_proto::{
    Answer, CallId, ErrorCode, Event, FromClient, FromServer, Request, Route, Violation,
};
use bytes::BytesMut;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

/// How long an answer is waited for before the server is asked whether it lives.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// How long a server that owes an answer may say nothing at all before the line is left, if there may be another.
const LEAVE_AFTER: Duration = Duration::from_secs(4);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Reads answers until the line ends.
pub(super) async fn read_control<R: AsyncRead + Unpin>(shared: &Shared, mut from: R) -> Error {
    let server = shared.server.as_str();
    loop {
        let raw = match read_message_while(&mut from, || shared.pool.is_server_alive()).await {
            Ok(raw) => raw,
            Err(error) => return lost(server, error),
        };
        let message = match FromServer::decode(&raw) {
            Ok(message) => message,
            Err(error) => return Error::protocol(server, error),
        };
        shared.heard();
        match (message.call, message.answer) {
            (_, Answer::Ping) => {}
            (CallId::SESSION, Answer::Failed(failure)) => {
                return match failure.code {
                    ErrorCode::ShuttingDown => Error::Lost {
                        server: server.to_owned(),
                        why: failure.text,
                    },
                    // This host is trusted no more.
                    ErrorCode::Denied => Error::Refused {
                        server: server.to_owned(),
                        code: failure.code,
                        text: failure.text,
                    },
                    _ => Error::protocol("this client", failure.text),
                };
            }
            // The confirmation of a close.
            (CallId::SESSION, Answer::Done) => return Error::Closed,
            // Unasked: its end of a pair is gone.
            (CallId::SESSION, Answer::Routes(routes)) => shared.server_lost(routes),
            (call, answer) => {
                if let Err(violation) = shared.answered(call, answer) {
                    return Error::protocol(server, violation);
                }
            }
        }
    }
}

/// Looks whether the server says anything while it owes an answer. One that is silent is asked; the line is left when
/// there may be another way: that it is silent here says little of the server.
pub(super) async fn watch_control(shared: &Shared, route: Route) -> Error {
    let (mut last, mut waited) = (shared.heard_at(), Duration::ZERO);
    loop {
        sleep(LOOK_EVERY).await;
        // What counts is how often it was looked for in vain: this process may have stood still.
        let heard = shared.heard_at();
        if heard != last || !shared.waits() {
            (last, waited) = (heard, Duration::ZERO);
            continue;
        }
        waited += LOOK_EVERY;
        if waited < ASK_AFTER {
            continue;
        }
        shared.pool.suspicion.notify_one();
        let other = match route {
            Route::Network => shared.pool.is_server_alive().await,
            Route::Storage => shared.policy.allows_control(Route::Network),
        };
        if waited >= LEAVE_AFTER && other {
            return Error::Silent {
                peer: shared.server.clone(),
                doing: "waiting for an answer",
                waited: LEAVE_AFTER,
            };
        }
    }
}

/// Writes requests, and a sign of life when there are none, or when the server shows none on storage: it answers.
pub(super) async fn write_control<W: AsyncWrite + Unpin>(
    shared: &Shared,
    mut to: W,
    mut requests: mpsc::UnboundedReceiver<FromClient>,
) -> Error {
    loop {
        let next = tokio::select! {
            next = timeout(PING_AFTER, requests.recv()) => next.ok(),
            () = shared.pool.suspicion.notified() => None,
        };
        let message = match next {
            Some(Some(message)) => message,
            // The session is over, which ends this.
            Some(None) => std::future::pending().await,
            None => FromClient {
                call: CallId::SESSION,
                request: Request::Ping,
            },
        };
        if let Err(error) = write_message(&mut to, &message.encode()).await {
            return lost(&shared.server, ReadError::Io(error));
        }
    }
}

/// Runs an events connection until it ends.
pub(super) async fn run_events<S>(shared: &Shared, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from, to) = tokio::io::split(stream);
    let _attached = Attached::new(&shared.pool);
    tokio::select! {
        () = read_events(shared, from) => {}
        () = write_events(shared, to) => {}
    }
}

/// The events connection stands, until this is dropped.
struct Attached<'a>(&'a Hand);

impl<'a> Attached<'a> {
    fn new(hand: &'a Hand) -> Self {
        hand.set_attached(true);
        Self(hand)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.set_attached(false);
    }
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
            rung = timeout(PING_AFTER, shared.pool.doorbell.notified()) => match rung {
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
    let left = shared.route_up(route, sender);
    // Whoever started the pair may have gone.
    let _ = ready.send(());
    let sent = |chunk| shared.account.meter.sent(route, chunk);
    // Neither goes before the other, which would get no turn while there is always something for the first.
    let carried = async {
        tokio::select! {
            down = read_pair(&shared, route, from) => down,
            written = write_chunks(to, chunks, shared.pace(route), sent) => match written {
                Ok(()) => pair_closed(route, "the session is over"),
                Err(error) => pair_ended(route, &ReadError::Io(error)),
            },
        }
    };
    let down = tokio::select! {
        // What the server says of it goes before what follows from that here.
        biased;
        Ok(down) = left => down,
        down = carried => down,
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
                return pair_closed(route, violation);
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
    shared.pace(route).admit(u64::from(header.bytes)).await;
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
    shared.account.meter.received(route, header);
    Ok(Ok(()))
}

fn lost(server: &str, error: ReadError) -> Error {
    match read_failed(server, "in session", error) {
        Error::Silent { waited, .. } => Error::Lost {
            server: server.to_owned(),
            why: format!("no sign of life for {waited:?}"),
        },
        // Whoever can write to what carries it can do that; a certificate that isn't accepted shows when it begins.
        Error::Tls { why, .. } => Error::Lost {
            server: server.to_owned(),
            why,
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{
            call::{Wanted, make},
            shared::tests::shared,
        },
        framed::Chunk,
    };
    use backlane_proto::{
        ByteRange, ChunkFlag, ChunkHeader, Decision, Health, ObjectId, ObjectKind, ObjectName,
        Reason, ServerRoutes,
    };
    use tokio::{io::AsyncWriteExt, time::Instant};

    const LONG: Duration = Duration::from_secs(1000);

    #[tokio::test(start_paused = true)]
    async fn a_body_is_not_waited_for_any_more_when_the_server_says_that_its_end_of_the_pair_is_gone()
     {
        let (shared, mut requests) = shared();
        let shared = Arc::new(shared);
        // As far as this side sees, the pair is well.
        let (pair, _other_end) = tokio::io::duplex(64);
        let (from, to) = tokio::io::split(pair);
        let (ready, up) = oneshot::channel();
        tokio::spawn(run_pair(
            Arc::clone(&shared),
            Route::Storage,
            from,
            to,
            ready,
        ));
        up.await.unwrap();
        let (control, mut server) = tokio::io::duplex(4096);
        let reader = Arc::clone(&shared);
        tokio::spawn(async move { read_control(&reader, control).await });
        let wanted = Wanted::Get(
            ObjectName {
                kind: ObjectKind::Pack,
                id: ObjectId::NONE,
            },
            Some(ByteRange {
                offset: 0,
                length: 4,
            }),
        );
        let caller = Arc::clone(&shared);
        tokio::spawn(async move { make(&caller, &wanted).await.map(drop) });
        let call = requests.recv().await.unwrap().call;
        let announced = Answer::Body {
            bytes: 4,
            decision: Decision::Storage,
        };
        let health = Health {
            storage: Err(Reason::DeviceError),
            ..Health::WELL
        };
        let gone = Answer::Routes(ServerRoutes { health, pool: None });
        for (call, answer) in [(call, announced), (CallId::SESSION, gone)] {
            let message = FromServer { call, answer }.encode();
            write_message(&mut server, &message).await.unwrap();
        }
        let begun = Instant::now();
        let again = async {
            loop {
                let message = requests.recv().await.unwrap();
                if let Request::Get { routes, .. } = message.request {
                    return routes.storage;
                }
            }
        };
        let storage = timeout(LONG, again).await.unwrap();
        assert_eq!(storage, Err(Reason::DeviceError));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_body_is_sent_while_others_come_without_a_pause() {
        let (shared, _requests) = shared();
        let shared = Arc::new(shared);
        // A body that nobody waits for any more, and far more of it than is read at a time.
        let over = shared.begin(Request::Routes, None).unwrap().id;
        shared.end_call(over);
        let chunk = ChunkHeader {
            call: over,
            bytes: 0,
            flag: ChunkFlag::More,
        };
        let (pair, server) = tokio::io::duplex(1 << 16);
        let (mut from_client, mut to_client) = tokio::io::split(server);
        let many = chunk.encode().repeat(1 << 12);
        tokio::spawn(async move { while to_client.write_all(&many).await.is_ok() {} });
        let (from, to) = tokio::io::split(pair);
        let (ready, up) = oneshot::channel();
        tokio::spawn(run_pair(
            Arc::clone(&shared),
            Route::Storage,
            from,
            to,
            ready,
        ));
        up.await.unwrap();
        let call = backlane_proto::Call {
            kind: backlane_proto::CallKind::Put(ObjectKind::Pack),
            bytes: 0,
        };
        let (_, chunks) = shared.route_out(call).unwrap();
        chunks.send(Chunk::abort(over)).await.unwrap();
        let sent = timeout(Duration::from_secs(10), read_chunk_header(&mut from_client));
        assert_eq!(sent.await.unwrap().unwrap().flag, ChunkFlag::Abort);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_left_for_silence_only_while_the_server_owes_an_answer() {
        let (shared, _requests) = shared();
        // The network may take its place at once.
        let kept = timeout(LONG, watch_control(&shared, Route::Storage)).await;
        assert!(kept.is_err(), "{kept:?}");
        let _call = shared.begin(Request::Routes, None).unwrap();
        let begun = Instant::now();
        let left = timeout(LONG, watch_control(&shared, Route::Storage)).await;
        assert!(matches!(left, Ok(Error::Silent { .. })), "{left:?}");
        assert!(begun.elapsed() < LEAVE_AFTER + ASK_AFTER);
    }
}
