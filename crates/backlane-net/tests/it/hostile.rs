//! Peers that are broken, of another version, or mean harm.

use crate::{
    service::name_of,
    world::{World, in_time, until},
};
use backlane_net::{Session, identity::SERVER_NAME};
use backlane_proto::{
    Answer, CallId, ChunkFlag, ChunkHeader, ErrorCode, Features, FromClient, FromServer, Health,
    ObjectKind, Opened, Opening, PackContents, Reason, Request, Route, RoutePolicy, SessionFor,
    Version, VersionRange,
    codec::MESSAGE_BYTES_MAX,
    message::{Attach, Hello, Purpose, SessionSecret, Welcome},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A peer that speaks TLS well and writes what it likes.
pub(crate) struct Peer(pub(crate) TlsStream<TcpStream>);

impl Peer {
    async fn dial(world: &World, host: Option<&str>, alpn: &[&[u8]]) -> std::io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(world.ca.pem.as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match host {
            None => builder.with_no_client_auth(),
            Some(host) => {
                let request = backlane_net::identity::request_for(host).unwrap();
                let usage = rcgen::ExtendedKeyUsagePurpose::ClientAuth;
                let pem = world.ca.sign(host, &request.csr_pem, usage);
                let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(request.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        let tcp = TcpStream::connect(world.addr).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        Ok(Self(stream))
    }

    pub(crate) async fn host(world: &World, host: &str) -> Self {
        Self::dial(world, Some(host), &[b"backlane/1"])
            .await
            .unwrap()
    }

    async fn send(&mut self, message: &[u8]) {
        send(&mut self.0, message).await;
    }

    async fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        receive(&mut self.0).await
    }

    async fn opened(&mut self) -> Opened {
        let raw = in_time("an answer", self.receive()).await.unwrap();
        Opened::decode(&raw).unwrap()
    }

    pub(crate) async fn answer(&mut self) -> (CallId, Answer) {
        let raw = in_time("an answer", self.receive()).await.unwrap();
        let message = FromServer::decode(&raw).unwrap();
        (message.call, message.answer)
    }

    pub(crate) async fn ask(&mut self, call: u64, request: Request) {
        let call = CallId(call);
        self.send(&FromClient { call, request }.encode()).await;
    }

    pub(crate) async fn welcomed(&mut self, policy: RoutePolicy) -> Welcome {
        self.send(&hello(VersionRange::SPOKEN, policy)).await;
        match self.opened().await {
            Opened::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// The connection ends, whatever is said before.
    async fn ends(mut self) {
        let ended = async { while self.receive().await.is_ok() {} };
        in_time("the end of the connection", ended).await;
    }
}

/// Sends a message to a peer that may have closed on us by now; what it said is read after.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) {
    let length = u32::try_from(message.len()).unwrap();
    let _ = to.write_all(&length.to_le_bytes()).await;
    let _ = to.write_all(message).await;
    let _ = to.flush().await;
}

pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut message = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut message).await?;
    Ok(message)
}

fn hello(versions: VersionRange, policy: RoutePolicy) -> Vec<u8> {
    Opening::Hello(Hello {
        versions,
        features: Features(u64::MAX),
        policy,
        software: "test".into(),
        continues: None,
        session_for: SessionFor::Jobs,
    })
    .encode()
}

fn refused_with(opened: &Opened, code: ErrorCode) {
    assert!(
        matches!(opened, Opened::Refused(failure) if failure.code == code),
        "{opened:?}"
    );
}

async fn still_serves(world: &World) {
    let session = in_time("a good session", Session::connect(world.client("good")))
        .await
        .unwrap();
    session.list(ObjectKind::Pack).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_version_is_told_what_is_spoken() {
    let world = World::new().await;
    let mut peer = Peer::host(&world, "db1").await;
    let range = VersionRange {
        oldest: Version(7),
        newest: Version(9),
    };
    peer.send(&hello(range, RoutePolicy::Network)).await;
    let opened = peer.opened().await;
    refused_with(&opened, ErrorCode::Version);
    assert!(
        format!("{opened:?}").contains("versions 7 to 9"),
        "{opened:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_messages_get_an_answer_and_the_session_goes_on() {
    let world = World::new().await;
    let mut peer = Peer::host(&world, "db1").await;
    // A first message with nothing in it that is known here.
    peer.send(&[0xc2, 0x3e, 1, 1]).await;
    assert!(matches!(peer.opened().await, Opened::Unsupported(_)));

    let mut peer = Peer::host(&world, "db1").await;
    peer.welcomed(RoutePolicy::Network).await;
    peer.ask(1, Request::Unsupported).await;
    let (call, answer) = peer.answer().await;
    assert_eq!(call, CallId(1));
    assert!(matches!(answer, Answer::Unsupported(_)), "{answer:?}");
    peer.ask(2, Request::List(ObjectKind::Key)).await;
    let (call, answer) = peer.answer().await;
    assert!(
        call == CallId(2) && matches!(answer, Answer::Listing { .. }),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_and_strangers_are_turned_away() {
    let world = World::new().await;
    assert!(Peer::dial(&world, Some("db1"), &[b"h2"]).await.is_err());
    // No ALPN at all: TLS lets it pass, the server does not.
    if let Ok(peer) = Peer::dial(&world, Some("db1"), &[]).await {
        peer.ends().await;
    }
    // No certificate, in the protocol that wants one.
    if let Ok(mut peer) = Peer::dial(&world, None, &[b"backlane/1"]).await {
        peer.send(&hello(VersionRange::SPOKEN, RoutePolicy::Network))
            .await;
        assert!(in_time("a refusal", peer.receive()).await.is_err());
    }
    // No certificate, in the protocol that permits enrolment alone.
    let mut peer = Peer::dial(&world, None, &[b"backlane-enroll/1"])
        .await
        .unwrap();
    peer.send(&hello(VersionRange::SPOKEN, RoutePolicy::Network))
        .await;
    refused_with(&peer.opened().await, ErrorCode::Protocol);
    // A certificate does not help: enrolment is all that this protocol has.
    let mut peer = Peer::dial(&world, Some("db1"), &[b"backlane-enroll/1"])
        .await
        .unwrap();
    peer.send(&hello(VersionRange::SPOKEN, RoutePolicy::Network))
        .await;
    refused_with(&peer.opened().await, ErrorCode::Protocol);
    // No TLS.
    let mut tcp = TcpStream::connect(world.addr).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    // Ends with an alert or a reset; that it ends is what counts.
    let _ = in_time("the end", tcp.read_to_end(&mut rest)).await;
    still_serves(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_giant_lengths_end_the_connection_with_a_word() {
    let world = World::new().await;
    let mut peer = Peer::host(&world, "db1").await;
    peer.send(&[0xff; 40]).await;
    refused_with(&peer.opened().await, ErrorCode::Protocol);

    let mut peer = Peer::host(&world, "db1").await;
    peer.0.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    peer.0.flush().await.unwrap();
    refused_with(&peer.opened().await, ErrorCode::Protocol);

    let mut garbage = [0xff; 44];
    garbage[..4].copy_from_slice(&40_u32.to_le_bytes());
    // A length alone is refused before its bytes come.
    let long = u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap();
    for bytes in [&garbage[..], &long.to_le_bytes()] {
        let mut peer = Peer::host(&world, "db1").await;
        peer.welcomed(RoutePolicy::Network).await;
        peer.0.write_all(bytes).await.unwrap();
        peer.0.flush().await.unwrap();
        let (call, answer) = peer.answer().await;
        assert_eq!(call, CallId::SESSION);
        assert!(
            matches!(&answer, Answer::Failed(failure) if failure.code == ErrorCode::Protocol),
            "{answer:?}"
        );
        peer.ends().await;
    }
    still_serves(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_joined_by_their_own_host_with_the_secret_alone() {
    let world = World::new().await;
    let mut control = Peer::host(&world, "db1").await;
    let welcome = control.welcomed(RoutePolicy::Network).await;
    let attach = |secret, purpose| {
        let session = welcome.session;
        Opening::Attach(Attach {
            session,
            secret,
            purpose,
        })
        .encode()
    };
    let mut wrong = welcome.secret;
    wrong.0[0] ^= 1;
    for (host, secret) in [
        ("db1", wrong),
        ("db2", welcome.secret),
        ("db1", SessionSecret([0; 32])),
    ] {
        for purpose in [Purpose::Events, Purpose::Data] {
            let mut peer = Peer::host(&world, host).await;
            peer.send(&attach(secret, purpose)).await;
            refused_with(&peer.opened().await, ErrorCode::Session);
        }
    }
    for purpose in [Purpose::Events, Purpose::Data] {
        let mut peer = Peer::host(&world, "db1").await;
        peer.send(&attach(welcome.secret, purpose)).await;
        assert_eq!(peer.opened().await, Opened::Attached);
        // Once is enough.
        let mut second = Peer::host(&world, "db1").await;
        second.send(&attach(welcome.secret, purpose)).await;
        refused_with(&second.opened().await, ErrorCode::Session);
        // When the first has gone, there is room for another.
        drop(peer);
        let again = async {
            loop {
                let mut peer = Peer::host(&world, "db1").await;
                peer.send(&attach(welcome.secret, purpose)).await;
                if peer.opened().await == Opened::Attached {
                    return;
                }
            }
        };
        in_time("another connection", again).await;
    }
}

async fn with_data(world: &World, policy: RoutePolicy) -> (Peer, Peer) {
    let mut control = Peer::host(world, "db1").await;
    let welcome = control.welcomed(policy).await;
    let mut data = Peer::host(world, "db1").await;
    let (session, secret) = (welcome.session, welcome.secret);
    let purpose = Purpose::Data;
    data.send(
        &Opening::Attach(Attach {
            session,
            secret,
            purpose,
        })
        .encode(),
    )
    .await;
    assert_eq!(data.opened().await, Opened::Attached);
    (control, data)
}

fn chunk(call: u64, bytes: u32, flag: ChunkFlag) -> [u8; 16] {
    let call = CallId(call);
    ChunkHeader { call, bytes, flag }.encode()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_asked_for_end_the_session() {
    let world = World::new().await;
    let mut giant = chunk(1, 0, ChunkFlag::More);
    giant[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut odd = chunk(1, 0, ChunkFlag::More);
    odd[12] = 0xff;
    for header in [chunk(5, 10, ChunkFlag::Last), giant, odd] {
        let (mut control, mut data) = with_data(&world, RoutePolicy::Network).await;
        data.0.write_all(&header).await.unwrap();
        data.0.flush().await.unwrap();
        let (call, answer) = control.answer().await;
        assert_eq!(call, CallId::SESSION);
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
        control.ends().await;
        data.ends().await;
    }
    still_serves(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_longer_or_shorter_than_announced_is_never_stored() {
    let world = World::new().await;
    let store = world.service.store("db1");
    for (bytes, flag) in [(5, ChunkFlag::Last), (11, ChunkFlag::More)] {
        let (mut control, mut data) = with_data(&world, RoutePolicy::Network).await;
        let name = name_of(ObjectKind::Pack, &[0; 10]);
        let contents = PackContents::Data;
        let route = Route::Network;
        control
            .ask(
                1,
                Request::Put {
                    name,
                    contents,
                    bytes: 10,
                    route,
                },
            )
            .await;
        assert_eq!(control.answer().await, (CallId(1), Answer::Ready));
        data.0.write_all(&chunk(1, bytes, flag)).await.unwrap();
        data.0.write_all(&vec![0; bytes as usize]).await.unwrap();
        data.0.flush().await.unwrap();
        control.ends().await;
        until("no sink", || store.open_sinks.load(Ordering::SeqCst) == 0).await;
    }
    assert!(store.objects.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_which_nothing_comes_is_given_up_and_one_that_comes_slowly_is_not() {
    let world = World::with(|_, options| options.body_idle = Duration::from_millis(500)).await;
    let store = world.service.store("db1");
    let (mut control, mut data) = with_data(&world, RoutePolicy::Network).await;
    let body = [7; 10];
    let put = |name| Request::Put {
        name,
        contents: PackContents::Data,
        bytes: 10,
        route: Route::Network,
    };
    let name = name_of(ObjectKind::Pack, &body);
    control.ask(1, put(name)).await;
    assert_eq!(control.answer().await, (CallId(1), Answer::Ready));
    // Slower than the limit as a whole, and never idle for so long.
    for (at, byte) in body.iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let flag = match at == 9 {
            true => ChunkFlag::Last,
            false => ChunkFlag::More,
        };
        data.0.write_all(&chunk(1, 1, flag)).await.unwrap();
        data.0.write_all(&[*byte]).await.unwrap();
        data.0.flush().await.unwrap();
    }
    assert_eq!(control.answer().await, (CallId(1), Answer::Done));
    control
        .ask(2, put(name_of(ObjectKind::Pack, b"another")))
        .await;
    assert_eq!(control.answer().await, (CallId(2), Answer::Ready));
    let (call, answer) = control.answer().await;
    assert_eq!(call, CallId(2));
    assert!(
        matches!(&answer, Answer::Failed(failure) if failure.text.contains("nothing came")),
        "{answer:?}"
    );
    until("no sink", || store.open_sinks.load(Ordering::SeqCst) == 0).await;
    // The session goes on.
    control.ask(3, Request::List(ObjectKind::Pack)).await;
    let (_, answer) = control.answer().await;
    assert!(matches!(&answer, Answer::Listing { entries, .. } if entries.len() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn require_storage_takes_no_body_from_the_network() {
    let world = World::new().await;
    let mut control = Peer::host(&world, "db1").await;
    let welcome = control.welcomed(RoutePolicy::RequireStorage).await;
    let mut data = Peer::host(&world, "db1").await;
    let (session, secret) = (welcome.session, welcome.secret);
    let purpose = Purpose::Data;
    data.send(
        &Opening::Attach(Attach {
            session,
            secret,
            purpose,
        })
        .encode(),
    )
    .await;
    refused_with(&data.opened().await, ErrorCode::Session);

    let body = bytes::Bytes::from_static(b"body");
    let name = name_of(ObjectKind::Pack, &body);
    let store = world.service.store("db1");
    store
        .objects
        .lock()
        .unwrap()
        .insert(name, (PackContents::Data, body));
    let contents = PackContents::Data;
    let route = Route::Network;
    control
        .ask(
            1,
            Request::Put {
                name,
                contents,
                bytes: 4,
                route,
            },
        )
        .await;
    let get = Request::Get {
        name,
        range: None,
        routes: Health::WELL,
    };
    control.ask(2, get).await;
    let mut reasons = Vec::new();
    for _ in 0..2 {
        match control.answer().await {
            (call, Answer::Failed(failed)) if failed.code == ErrorCode::Route => {
                reasons.push((call.0, failed.reason));
            }
            other => panic!("{other:?}"),
        }
    }
    reasons.sort_unstable();
    let want = [
        (1, Some(Reason::Policy)),
        (2, Some(Reason::ServerHasNoPool)),
    ];
    assert_eq!(reasons, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_beyond_the_bound_or_out_of_order_end_the_session() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let mut control = Peer::host(&world, "db1").await;
    control.welcomed(RoutePolicy::Network).await;
    control.ask(2, Request::List(ObjectKind::Key)).await;
    control.ask(1, Request::List(ObjectKind::Key)).await;
    control.ends().await;

    let (mut control, data) = with_data(&world, RoutePolicy::Network).await;
    let name = name_of(ObjectKind::Pack, b"x");
    for call in 1..=u64::from(backlane_proto::calls::CALLS_OPEN_MAX) + 1 {
        let (contents, route) = (PackContents::Data, Route::Network);
        control
            .ask(
                call,
                Request::Put {
                    name,
                    contents,
                    bytes: 1,
                    route,
                },
            )
            .await;
    }
    control.ends().await;
    drop(data);
    until("no sink", || store.open_sinks.load(Ordering::SeqCst) == 0).await;
    until("no session", || store.held.load(Ordering::SeqCst) == 0).await;
    still_serves(&world).await;
}

/// Whether it comes about before another session of the same server has been answered many times: a machine that is
/// slow is slow for both.
async fn comes(others: &Session, condition: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if condition() {
            return true;
        }
        others.list(ObjectKind::Key).await.unwrap();
    }
    condition()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_no_answers_is_not_listened_to() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let others = Session::connect(world.client("db2")).await.unwrap();
    let mut peer = Peer::host(&world, "db1").await;
    peer.welcomed(RoutePolicy::Network).await;
    let name = name_of(ObjectKind::Pack, b"x");
    let mut asked = 0;
    let served = || store.refused.load(Ordering::SeqCst);
    // A few at a time, so that never too many are under way.
    while comes(&others, || served() == asked).await {
        // Many times what lies between the two.
        assert!(asked < 1 << 18, "the server listens after {asked} calls");
        for _ in 0..32 {
            asked += 1;
            peer.ask(asked, Request::Remove(name)).await;
        }
    }
    println!("it is not listened to after {asked} calls");
    // It goes on as soon as its answers are taken.
    for _ in 0..asked {
        let (_, answer) = peer.answer().await;
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_no_answers_has_one_listing_made() {
    const LISTS: u64 = 3;
    let world = World::new().await;
    let store = world.service.store("db1");
    // So many that a listing doesn't fit into what lies between the two.
    for n in 0..700_000_u32 {
        let mut name = name_of(ObjectKind::Pack, b"");
        name.id.0[..4].copy_from_slice(&n.to_le_bytes());
        let object = (PackContents::Data, bytes::Bytes::new());
        store.objects.lock().unwrap().insert(name, object);
    }
    let others = Session::connect(world.client("db2")).await.unwrap();
    let mut peer = Peer::host(&world, "db1").await;
    peer.welcomed(RoutePolicy::Network).await;
    for call in 1..=LISTS {
        peer.ask(call, Request::List(ObjectKind::Pack)).await;
    }
    let listed = || store.listed.load(Ordering::SeqCst);
    until("a list to be made", || listed() > 0).await;
    assert!(!comes(&others, || listed() > 1).await, "{}", listed());
    // Each comes whole as soon as its turn has come.
    let mut whole = 0;
    while whole < LISTS {
        match peer.answer().await {
            (_, Answer::Listing { more, .. }) => whole += u64::from(!more),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listed(), LISTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_keep_nobody_out() {
    let world = World::new().await;
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(world.addr).await.unwrap());
    }
    still_serves(&world).await;
}
