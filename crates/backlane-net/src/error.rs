//! Why a session, a call or an enrolment failed, kept apart by who is at fault.

use crate::IdentityError;
use backlane_proto::{
    ErrorCode, Failure, NoCommonVersion, ObjectName, Reason, Refusal, Route, RoutePolicy,
};
use std::{io, net::SocketAddr, time::Duration};

/// What a user of this crate is told.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No TCP connection to the server.
    #[error("can't connect to server {server}: {why}")]
    Connect {
        /// The server's address as configured.
        server: String,
        /// What the system said.
        why: String,
    },
    /// TLS failed: another authority, a wrong or expired certificate, or no TLS at all.
    #[error("TLS with {peer} failed: {why}")]
    Tls {
        /// Address of the other side.
        peer: String,
        /// What TLS said.
        why: String,
    },
    /// The other side did not answer in time.
    #[error("no answer from {peer} within {waited:?} while {doing}")]
    Silent {
        /// Address of the other side.
        peer: String,
        /// What was waited for.
        doing: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The server refused a session or an enrolment.
    #[error("server {server} refused: {text}")]
    Refused {
        /// The server's address as configured.
        server: String,
        /// The kind of refusal.
        code: ErrorCode,
        /// Its text.
        text: String,
    },
    /// The two sides have no version in common.
    #[error("{peer}: {found}")]
    Version {
        /// Address of the other side.
        peer: String,
        /// The two ranges.
        found: NoCommonVersion,
    },
    /// The session ended under a call.
    #[error("session with server {server} was lost: {why}")]
    Lost {
        /// The server's address as configured.
        server: String,
        /// What happened.
        why: String,
    },
    /// Objects were removed from the repository while the session had no connection: what it knew may be wrong.
    #[error(
        "objects were removed from this host's repository at server {server} while the connection to it was lost: start \
         again"
    )]
    Removed {
        /// The server's address as configured.
        server: String,
    },
    /// A call was made after the session was closed.
    #[error("the session was closed")]
    Closed,
    /// There is no such object.
    #[error("{name} does not exist")]
    NotFound {
        /// The object asked for.
        name: ObjectName,
    },
    /// Not permitted by the server.
    #[error("{what}")]
    Denied {
        /// In the server's words.
        what: String,
    },
    /// The object is there, and is damaged or can't be read; others may be well.
    #[error("{what}")]
    Damaged {
        /// The object asked for.
        name: ObjectName,
        /// In the server's words.
        what: String,
    },
    /// The server's disk is full.
    #[error("{what}")]
    Full {
        /// In the server's words.
        what: String,
    },
    /// The repository is in use by something that excludes this.
    #[error("{what}")]
    Busy {
        /// In the server's words.
        what: String,
    },
    /// The join token is unknown, used or expired.
    #[error("{what}")]
    Token {
        /// In the server's words.
        what: String,
    },
    /// The server failed or refused a body.
    #[error("server {server}: {what}")]
    Server {
        /// The server's address as configured.
        server: String,
        /// The kind of failure.
        code: ErrorCode,
        /// In the server's words.
        what: String,
    },
    /// No route may be used for a body.
    #[error("no route under policy {policy}: {reason}{}", in_brackets(.detail))]
    NoRoute {
        /// The policy in force.
        policy: RoutePolicy,
        /// What keeps the body from the route that it would have to take.
        reason: Reason,
        /// The facts: which device or host, and what it said; may be empty.
        detail: String,
    },
    /// The route of a call failed while its body was on the way.
    #[error("server {server}: the {route} route failed under a call: {reason}{}", in_brackets(.detail))]
    RouteFailed {
        /// The server's address as configured.
        server: String,
        /// The route.
        route: Route,
        /// Why it failed.
        reason: Reason,
        /// The facts; may be empty.
        detail: String,
    },
    /// A body is larger than a session carries.
    #[error("{name} has {bytes} bytes, a session carries at most {most}")]
    TooLarge {
        /// The object.
        name: ObjectName,
        /// Its size.
        bytes: u64,
        /// The bound.
        most: u64,
    },
    /// The other side broke the protocol.
    #[error("{peer} broke the protocol: {what}")]
    Protocol {
        /// Address of the other side.
        peer: String,
        /// What it did.
        what: String,
    },
    /// The other side is of a version that doesn't know a message.
    #[error("{peer} does not know {what}")]
    Unsupported {
        /// Address of the other side.
        peer: String,
        /// What it does not know.
        what: String,
    },
    /// Key, certificate or authority can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server can't listen.
    #[error("can't listen on {addr}: {why}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        why: String,
    },
    /// The server's pool can't be used.
    #[error("pool: {why}")]
    Pool {
        /// Which device, and what is wrong with it.
        why: String,
    },
}

fn in_brackets(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

impl Error {
    /// What a server's failure of a call means to the caller.
    pub(crate) fn from_failure(server: &str, name: Option<ObjectName>, failure: Failure) -> Self {
        let what = failure.text;
        match (failure.code, name) {
            (ErrorCode::NotFound, Some(name)) => Self::NotFound { name },
            (ErrorCode::Damaged, Some(name)) => Self::Damaged { name, what },
            (ErrorCode::Denied, _) => Self::Denied { what },
            (ErrorCode::Full, _) => Self::Full { what },
            (ErrorCode::Busy, _) => Self::Busy { what },
            (ErrorCode::Token, _) => Self::Token { what },
            (ErrorCode::ShuttingDown, _) => Self::Lost {
                server: server.to_owned(),
                why: what,
            },
            (code, _) => Self::Server {
                server: server.to_owned(),
                code,
                what,
            },
        }
    }

    pub(crate) fn no_route(refusal: Refusal, detail: String) -> Self {
        Self::NoRoute {
            policy: refusal.policy,
            reason: refusal.reason,
            detail,
        }
    }

    pub(crate) fn protocol(peer: impl Into<String>, what: impl ToString) -> Self {
        Self::Protocol {
            peer: peer.into(),
            what: what.to_string(),
        }
    }

    /// An error of a TLS stream: TLS packs its own errors into those of I/O.
    pub(crate) fn tls(peer: impl Into<String>, error: &io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let why = match inner {
            Some(rustls::Error::AlertReceived(alert)) if refuses_certificate(*alert) => {
                format!("it does not accept the certificate that was shown to it ({alert:?})")
            }
            _ => error.to_string(),
        };
        Self::Tls {
            peer: peer.into(),
            why,
        }
    }
}

/// Whether a peer ends a handshake in this way when a certificate does not satisfy it.
fn refuses_certificate(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            // Signed by a key that is not the one of the authority of that name.
            | Alert::DecryptError
    )
}
