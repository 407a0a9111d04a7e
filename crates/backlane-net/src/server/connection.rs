//! One connection from its first byte, by TCP or through the pool: TLS, the first message, and where it goes from there.
//!
//! Until the first message is read a peer is a stranger: it gets little time and little memory. One that enrols stays
//! a stranger until it is answered.

use super::{Core, Port, link, session};
use crate::{
    carrier::Carrier,
    framed::{ReadError, read_message, write_message},
    service::{EnrollRequest, ServiceError},
    socket,
    tls::{self, ALPN_ENROLL, ALPN_SESSION},
};
use backlane_proto::{
    ErrorCode, Failure, Opened, Opening, Reason, Route,
    message::{Attach, Enroll, Enrolled, Purpose},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::OwnedSemaphorePermit, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

/// Time for TLS, and again for the first message.
const STRANGER_WAIT: Duration = Duration::from_secs(10);

/// A TLS connection of a peer.
pub(super) type Connection = TlsStream<Carrier>;

/// Where a connection comes from, for the log.
pub(super) type Peer = Arc<str>;

/// Serves a TCP connection to its end.
pub(super) async fn serve_tcp(
    core: Arc<Core>,
    tcp: TcpStream,
    peer: SocketAddr,
    port: Port,
    permit: OwnedSemaphorePermit,
) {
    match socket::set_up(&tcp) {
        Ok(()) => {
            let peer = peer.to_string().into();
            serve(core, (Box::new(tcp), Route::Network), peer, port, permit).await;
        }
        Err(error) => tracing::debug!(%peer, %error, "connection can't be used"),
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    core: Arc<Core>,
    (carrier, route): (Carrier, Route),
    peer: Peer,
    port: Port,
    permit: OwnedSemaphorePermit,
) {
    let mut stopping = core.stopping.subscribe();
    let greeted = tokio::select! {
        greeted = greet(&core, carrier) => greeted,
        _ = stopping.wait_for(|stopping| *stopping) => return,
    };
    let (mut stream, opening) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            tracing::debug!(%peer, %error, "connection refused before its first message");
            return;
        }
    };
    let enrolling = stream.get_ref().1.alpn_protocol() == Some(ALPN_ENROLL);
    let refusal = match opening {
        Ok(Some(Opening::Enroll(request))) if enrolling => {
            let answer = enroll(&core, request).await;
            drop(permit);
            return farewell(&mut stream, &answer, &peer).await;
        }
        Ok(Some(Opening::Hello(hello))) if !enrolling && port == Port::Designated => {
            drop(permit);
            return session::serve(core, stream, (peer, route), hello).await;
        }
        Ok(Some(Opening::Attach(attach))) if !enrolling && route == Route::Network => {
            if port == Port::Designated || attach.purpose == Purpose::Data {
                drop(permit);
                return attached(core, stream, peer, attach).await;
            }
            protocol("this port takes data connections alone")
        }
        Ok(Some(_)) => protocol("this first message does not fit the connection"),
        Ok(None) => Opened::Unsupported("this first message".to_owned()),
        Err(error) => protocol(&error.to_string()),
    };
    drop(permit);
    tracing::info!(%peer, reason = reason_name(&refusal), ?refusal, "connection refused");
    farewell(&mut stream, &refusal, &peer).await;
}

/// The name of a refusal's reason, if it has one.
pub(super) fn reason_name(refusal: &Opened) -> Option<&'static str> {
    match refusal {
        Opened::Refused(failure) => failure.reason.map(Reason::name),
        _ => None,
    }
}

type FirstMessage = Result<Option<Opening>, ReadError>;

/// TLS, and the first message or what came in its place.
async fn greet(core: &Core, carrier: Carrier) -> io::Result<(Connection, FirstMessage)> {
    let handshake = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), carrier).await?;
        let wants_enroll = start
            .client_hello()
            .alpn()
            .is_some_and(|mut offered| offered.any(|alpn| alpn == ALPN_ENROLL));
        let config = if wants_enroll {
            &core.tls.enroll
        } else {
            &core.tls.session
        };
        let stream = start.into_stream(Arc::clone(config)).await?;
        let alpn = stream.get_ref().1.alpn_protocol();
        if alpn != Some(ALPN_ENROLL) && alpn != Some(ALPN_SESSION) {
            return Err(io::Error::other("no ALPN that is known here"));
        }
        Ok(stream)
    };
    let mut stream = timeout(STRANGER_WAIT, handshake)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let opening = match read_message(&mut stream, STRANGER_WAIT).await {
        Ok(raw) => Opening::decode(&raw).map_err(ReadError::Codec),
        Err(error) => Err(error),
    };
    Ok((stream, opening))
}

async fn enroll(core: &Core, request: Enroll) -> Opened {
    let request = EnrollRequest {
        secret: request.secret,
        csr_pem: request.csr_pem,
    };
    // The semaphore is never closed.
    let _turn = core.enrolments.acquire().await;
    match core.service.enroll(request).await {
        Ok(grant) => {
            if let Some(storage) = &core.storage {
                storage.allow(&grant.slots);
            }
            Opened::Enrolled(Enrolled {
                host: grant.host,
                certificate_pem: grant.certificate_pem,
                pool: grant.pool,
                slots: grant.slots,
            })
        }
        Err(error) => Opened::Refused(failure(&error)),
    }
}

/// Adds a connection to its session.
async fn attached(core: Arc<Core>, mut stream: Connection, peer: Peer, attach: Attach) {
    let host = tls::peer_host(stream.get_ref().1);
    let name = host.as_ref().map(|host| &*host.name);
    let session = core.session_of(name, attach.session, &attach.secret);
    // The core is not held on to: a session may outlive the list that it is found in.
    drop(core);
    let Some(session) = session else {
        let refusal = Opened::Refused(Failure {
            code: ErrorCode::Session,
            text: "no such session of this host, or a wrong secret".to_owned(),
            reason: None,
        });
        return farewell(&mut stream, &refusal, &peer).await;
    };
    match attach.purpose {
        Purpose::Events => link::events(session, stream, peer).await,
        Purpose::Data => link::network_pair(session, stream, peer).await,
    }
}

/// Writes a last message and closes.
pub(super) async fn farewell(stream: &mut Connection, message: &Opened, peer: &Peer) {
    let written = async {
        write_message(stream, &message.encode()).await?;
        stream.shutdown().await
    };
    match timeout(STRANGER_WAIT, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "an answer could not be written"),
        Err(_) => tracing::debug!(%peer, "an answer was not taken"),
    }
}

pub(super) fn protocol(what: &str) -> Opened {
    Opened::Refused(Failure {
        code: ErrorCode::Protocol,
        text: what.to_owned(),
        reason: None,
    })
}

/// A failure of the service, as it travels.
pub(super) fn failure(error: &ServiceError) -> Failure {
    let code = match error {
        ServiceError::NotFound(_) => ErrorCode::NotFound,
        ServiceError::Denied(_) => ErrorCode::Denied,
        ServiceError::BadBody { .. } => ErrorCode::BadBody,
        ServiceError::Damaged(_) => ErrorCode::Damaged,
        ServiceError::Full(_) | ServiceError::Quota(_) => ErrorCode::Full,
        ServiceError::Busy(_) => ErrorCode::Busy,
        ServiceError::Token(_) => ErrorCode::Token,
        ServiceError::Failed(_) => ErrorCode::Failed,
    };
    let text = match error {
        // The code says that much.
        ServiceError::Denied(what) => what.clone(),
        error => error.to_string(),
    };
    let reason = None;
    Failure { code, text, reason }
}
