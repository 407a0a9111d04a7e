//! Enrolment, seen from the new host: redeems a join token for a certificate.
//!
//! The connection is TLS without a client certificate, under an ALPN of its own; the server must show a chain that ends
//! in the authority whose fingerprint the token pins, before the secret is sent.

use crate::{
    Error, PoolChoice,
    client::through_pool,
    dial::{Dialed, Dialer},
    identity, tls,
    token::JoinToken,
};
use backlane_proto::{ErrorCode, Opened, Opening, message::Enroll};
use std::{fmt, sync::Arc, time::Duration};
use uuid::Uuid;
use zeroize::Zeroizing;

/// What an enrolled host keeps.
#[derive(Clone)]
pub struct EnrolledHost {
    /// The name that the host is known under.
    pub host: String,
    /// Its private key, PEM, erased when dropped; see [`crate::identity::write_private`].
    pub key_pem: Zeroizing<String>,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    /// The server's pool, if it has one.
    pub pool: Option<Uuid>,
    /// This host's slots in it.
    pub slots: Vec<u32>,
}

/// Makes a key, and redeems a token for its certificate. `timeout` bounds each step.
///
/// # Errors
/// When the server can't be reached, isn't the one that the token pins, or refuses the token ([`Error::Token`]).
pub async fn enroll(token: &JoinToken, timeout: Duration) -> Result<EnrolledHost, Error> {
    redeem(token, timeout, async |dialer| {
        dialer.dial(&token.server).await
    })
    .await
}

/// The same through the pool, for a host without a network to the server; `pool` names the slot that the administrator
/// gave with the token.
///
/// # Errors
/// As [`enroll`], and when the pool can't be used.
pub async fn enroll_through(
    token: &JoinToken,
    pool: PoolChoice,
    timeout: Duration,
) -> Result<EnrolledHost, Error> {
    through_pool(pool, &token.host, async |stream| {
        let peer = format!("{} through the pool", token.server);
        let dial = async |dialer: &Dialer| dialer.shake(&peer, stream).await;
        redeem(token, timeout, dial).await
    })
    .await
}

async fn redeem(
    token: &JoinToken,
    timeout: Duration,
    dial: impl AsyncFnOnce(&Dialer) -> Result<Dialed, Error>,
) -> Result<EnrolledHost, Error> {
    let request = identity::request_for(&token.host)?;
    let (config, pinned) = tls::enrolling(token.authority)?;
    let dialer = Dialer {
        config: Arc::new(config),
        patience: timeout,
    };
    let mut connection = dial(&dialer).await?;
    let opening = Opening::Enroll(Enroll {
        secret: token.secret.to_text(),
        csr_pem: request.csr_pem,
    });
    let opened = dialer.open(&mut connection, &opening).await;
    let enrolled = match opened {
        Ok(Opened::Enrolled(enrolled)) => enrolled,
        Ok(_) => {
            return Err(Error::protocol(
                connection.peer,
                "no answer to an enrolment",
            ));
        }
        Err(Error::Refused {
            code: ErrorCode::Token,
            text: what,
            ..
        }) => return Err(Error::Token { what }),
        Err(error) => return Err(error),
    };
    let authority = pinned
        .found()
        .ok_or_else(|| Error::protocol(connection.peer, "no authority in its chain"))?;
    Ok(EnrolledHost {
        host: enrolled.host,
        key_pem: request.key_pem,
        certificate_pem: enrolled.certificate_pem,
        authority_pem: identity::to_pem(&authority),
        pool: enrolled.pool,
        slots: enrolled.slots,
    })
}

impl fmt::Debug for EnrolledHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolledHost")
            .field("host", &self.host)
            .field("pool", &self.pool)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}
