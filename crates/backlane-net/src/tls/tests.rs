//! Handshakes in memory, with one side as it is here and the other as an attacker would have it.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
};
use rustls::{
    ClientConnection, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConnection,
    client::ClientSessionMemoryCache,
    server::{Accepted, Acceptor, ServerSessionMemoryCache},
};

/// Both sides of sessions, of one authority.
struct Sides {
    client: ClientConfig,
    server: ServerConfig,
}

impl Sides {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let identity = |name: &str, usage| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            Identity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap()
        };
        let authority = Authority::from_pem(&ca.pem()).unwrap();
        let server = identity(SERVER_NAME, Usage::ServerAuth);
        let server = ServerTls::new(&server, &authority).unwrap().session;
        Self {
            client: client(&identity("alpha", Usage::ClientAuth), &authority).unwrap(),
            server: Arc::unwrap_or_clone(server),
        }
    }

    /// The client keeps whatever may spare it a handshake.
    fn client_resumes(&mut self) {
        let store = Arc::new(ClientSessionMemoryCache::new(8));
        self.client.resumption = Resumption::store(store);
    }

    /// The server gives out tickets, and knows them again.
    fn server_resumes(&mut self) {
        self.server.session_storage = ServerSessionMemoryCache::new(8);
        self.server.send_tls13_tickets = 2;
    }

    fn connect(&self) -> (ClientConnection, ServerConnection) {
        let mut client = self.dial();
        let mut server = ServerConnection::new(Arc::new(self.server.clone())).unwrap();
        // Tickets come behind the handshake.
        for _ in 0..4 {
            let mut sent = Vec::new();
            client.write_tls(&mut sent).unwrap();
            server.read_tls(&mut sent.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut sent = Vec::new();
            server.write_tls(&mut sent).unwrap();
            client.read_tls(&mut sent.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client, server)
    }

    fn dial(&self) -> ClientConnection {
        let name = server_name().unwrap();
        ClientConnection::new(Arc::new(self.client.clone()), name).unwrap()
    }

    /// The kind of a second handshake, and how many tickets the client got in both.
    fn second(&self) -> (HandshakeKind, u32) {
        let first = self.connect().0;
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        let (second, server) = self.connect();
        assert_eq!(second.handshake_kind(), server.handshake_kind());
        let tickets = first.tls13_tickets_received() + second.tls13_tickets_received();
        (second.handshake_kind().unwrap(), tickets)
    }

    /// What the server says to the client's first message after a change of it.
    fn hello(&self, change: impl FnOnce(&mut [u8])) -> Result<(), rustls::Error> {
        let mut hello = Vec::new();
        self.dial().write_tls(&mut hello).unwrap();
        change(&mut hello);
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut hello.as_slice()).unwrap();
        let accepted = acceptor.accept().map_err(|(error, _)| error)?;
        let accepted =
            accepted.map(|it: Accepted| it.into_connection(Arc::new(self.server.clone())));
        accepted
            .expect("a whole message")
            .map(drop)
            .map_err(|(error, _)| error)
    }
}

#[test]
fn no_session_is_resumed_whatever_one_side_would_like() {
    // That it would be, if both sides wanted it: the rest of this test sees it.
    let mut both = Sides::new();
    both.client_resumes();
    both.server_resumes();
    let (kind, tickets) = both.second();
    assert!(kind == HandshakeKind::Resumed && tickets > 0, "{kind:?}");

    let mut greedy_client = Sides::new();
    greedy_client.client_resumes();
    assert_eq!(greedy_client.second(), (HandshakeKind::Full, 0));

    let mut generous_server = Sides::new();
    generous_server.server_resumes();
    let (kind, tickets) = generous_server.second();
    assert!(kind == HandshakeKind::Full && tickets > 0, "{kind:?}");
}

#[test]
fn every_session_has_a_key_exchange_and_keys_of_its_own() {
    let sides = Sides::new();
    let mut keys = Vec::new();
    for _ in 0..3 {
        let (client, server) = sides.connect();
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert!(client.negotiated_key_exchange_group().is_some());
        for key_use in [KeyUse::PoolProof, KeyUse::StorageSeal] {
            // The same name of a session each time: nothing but the handshake tells them apart.
            let key = export(&client, key_use, b"session").unwrap();
            assert_eq!(export(&server, key_use, b"session").unwrap(), key);
            assert!(!keys.contains(&key), "{key_use:?}");
            keys.push(key);
        }
    }
}

/// Gives an extension of a client's first message a number that nobody knows: it is as if it wasn't there.
fn hide(hello: &mut [u8], extension: u16) {
    const UNKNOWN: [u8; 2] = [0x7a, 0x7a];
    let number = |at: usize| u16::from(hello[at]) << 8 | u16::from(hello[at + 1]);
    // Behind the heads of record and message, version and random bytes: session, cipher suites, compression.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(number(at));
    at += 1 + usize::from(hello[at]);
    at += 2;
    while number(at) != extension {
        at += 4 + usize::from(number(at + 2));
    }
    hello[at..at + 2].copy_from_slice(&UNKNOWN);
}

#[test]
fn no_older_version_and_no_handshake_without_a_key_exchange_is_accepted() {
    const SUPPORTED_VERSIONS: u16 = 43;
    const KEY_SHARE: u16 = 51;
    let sides = Sides::new();
    assert_eq!(sides.hello(|_| {}), Ok(()));
    // Without it, it is a hello of TLS 1.2.
    let older = sides.hello(|hello| hide(hello, SUPPORTED_VERSIONS));
    let why = PeerIncompatible::SupportedVersionsExtensionRequired;
    assert_eq!(older, Err(why.into()));
    let without = sides.hello(|hello| hide(hello, KEY_SHARE));
    let why = PeerIncompatible::KeyShareExtensionRequired;
    assert_eq!(without, Err(why.into()));
}
