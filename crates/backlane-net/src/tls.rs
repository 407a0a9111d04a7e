//! TLS as this crate uses it: version 1.3 alone, both sides authenticated, no resumption and no early data.
//!
//! A separate ALPN permits enrolment, and nothing else, without a client certificate; there the client pins the
//! authority by its fingerprint. Keys for other uses come from the exporter, each under a label of its own.

use crate::service::VerifiedHost;
use crate::{Authority, Error, Identity, identity, identity::SERVER_NAME};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// ALPN of sessions.
pub(crate) const ALPN_SESSION: &[u8] = b"backlane/1";
/// ALPN of enrolment.
pub(crate) const ALPN_ENROLL: &[u8] = b"backlane-enroll/1";

/// Bytes of an exported key.
pub(crate) const KEY_BYTES: usize = 32;

/// What an exported key is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyUse {
    /// The MAC over the pool's challenges.
    PoolProof,
    /// The secret that seals the storage data pair.
    StorageSeal,
}

/// A key from the exporter, erased when dropped.
pub(crate) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// TLS of the client's side of a session.
pub(crate) fn client(identity: &Identity, authority: &Authority) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| {
            builder
                .with_root_certificates(roots(&authority.certificate)?)
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        })
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS of the client's side of an enrolment, and where the authority that it found will be.
pub(crate) fn enrolling(
    fingerprint: [u8; 32],
) -> Result<(ClientConfig, Arc<PinnedAuthority>), Error> {
    let provider = Arc::new(default_provider());
    let pinned = Arc::new(PinnedAuthority {
        fingerprint,
        provider: Arc::clone(&provider),
        found: Mutex::new(None),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&pinned) as _)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLL.to_vec()];
    config.resumption = Resumption::disabled();
    Ok((config, pinned))
}

/// TLS of the server's side, for sessions and for enrolment.
#[derive(Debug)]
pub(crate) struct ServerTls {
    pub(crate) session: Arc<ServerConfig>,
    pub(crate) enroll: Arc<ServerConfig>,
}

impl ServerTls {
    pub(crate) fn new(identity: &Identity, authority: &Authority) -> Result<Self, Error> {
        let provider = Arc::new(default_provider());
        // Hosts that enrol know the authority by its fingerprint alone, so the chain carries it.
        let mut chain = identity.chain.clone();
        if !chain.contains(&authority.certificate) {
            chain.push(authority.certificate.clone());
        }
        let builder = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])
                .map_err(unusable)
        };
        let roots = Arc::new(roots(&authority.certificate).map_err(unusable)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let session = builder()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), identity.key.clone_key())
            .map_err(unusable)?;
        let enroll = builder()?
            .with_no_client_auth()
            .with_single_cert(chain, identity.key.clone_key())
            .map_err(unusable)?;
        let finish = |mut config: ServerConfig, alpn: &[u8]| {
            config.alpn_protocols = vec![alpn.to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Arc::new(config)
        };
        Ok(Self {
            session: finish(session, ALPN_SESSION),
            enroll: finish(enroll, ALPN_ENROLL),
        })
    }
}

/// The name that clients expect of the server, whatever address they reach it by.
pub(crate) fn server_name() -> Result<ServerName<'static>, Error> {
    ServerName::try_from(SERVER_NAME).map_err(unusable)
}

/// Whom the peer's verified certificate is of.
pub(crate) fn peer_host(tls: &CommonState) -> Option<VerifiedHost> {
    identity::verified(tls.peer_certificates()?.first()?).ok()
}

/// A key for one use, from a TLS connection and the id of its session.
pub(crate) fn export<Data>(
    tls: &rustls::ConnectionCommon<Data>,
    key_use: KeyUse,
    session: &[u8],
) -> Result<Key, rustls::Error> {
    let label: &[u8] = match key_use {
        KeyUse::PoolProof => b"EXPORTER-backlane-pool-proof",
        KeyUse::StorageSeal => b"EXPORTER-backlane-storage-seal",
    };
    let key = Zeroizing::new([0; KEY_BYTES]);
    tls.export_keying_material(key, label, Some(session))
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(roots)
}

fn unusable(error: impl ToString) -> Error {
    Error::Identity(crate::IdentityError::Invalid {
        what: "key and certificates for TLS".to_owned(),
        why: error.to_string(),
    })
}

/// Accepts a server whose chain ends in the authority with a given fingerprint, and keeps that authority.
#[derive(Debug)]
pub(crate) struct PinnedAuthority {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl PinnedAuthority {
    /// The authority, once a handshake has succeeded.
    pub(crate) fn found(&self) -> Option<CertificateDer<'static>> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| identity::fingerprint(certificate) == self.fingerprint)
            .ok_or(CertificateError::UnknownIssuer)?
            .clone()
            .into_owned();
        let roots = Arc::new(roots(&authority)?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
