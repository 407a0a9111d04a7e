//! Enrolment, seen from the new host: redeems a join token for a certificate.
//!
//! The connection is TLS without a client certificate, under an ALPN of its own; the server must show a chain that ends
//! in the authority whose fingerprint the token pins, before the secret is sent.

use crate::{Error, token::JoinToken};
use std::time::Duration;
use uuid::Uuid;

/// What an enrolled host keeps.
#[derive(Clone)]
pub struct EnrolledHost {
    /// The name that the host is known under.
    pub host: String,
    /// Its private key, PEM; see [`crate::identity::write_private`].
    pub key_pem: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    /// The server's pool, if it has one.
    pub pool: Option<Uuid>,
    /// This host's slots in it.
    pub slots: Vec<u32>,
}

/// Makes a key, and redeems a token for its certificate.
///
/// # Errors
/// When the server can't be reached, isn't the one that the token pins, or refuses the token ([`Error::Token`]).
pub async fn enroll(token: &JoinToken, timeout: Duration) -> Result<EnrolledHost, Error> {
    let _ = (token, timeout);
    unimplemented!()
}
