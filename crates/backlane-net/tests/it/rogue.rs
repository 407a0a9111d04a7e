//! A server that does not keep to the rules, played by hand, and clients that do.

use crate::{
    hostile::{receive, send},
    world::{Ca, in_time, until},
};
use backlane_net::{
    ClientConfig, Error, Session,
    identity::{SERVER_NAME, request_for},
};
use backlane_proto::{
    Features, ObjectKind, Opened, Opening, RoutePolicy, VersionRange,
    calls::CALLS_MAX,
    message::{SessionId, SessionSecret, Welcome},
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Listens as a server that welcomes whoever comes, changes its welcome, and answers nothing; gives what connects to it.
async fn rogue(change: fn(&mut Welcome)) -> ClientConfig {
    let ca = Ca::new();
    let request = request_for(SERVER_NAME).unwrap();
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let pem = ca.sign(SERVER_NAME, &request.csr_pem, usage);
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(request.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"backlane/1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(tcp).await.unwrap();
                let raw = receive(&mut stream).await.unwrap();
                let opened = match Opening::decode(&raw).unwrap().unwrap() {
                    Opening::Hello(hello) => {
                        let mut welcome = welcome(addr.port(), hello.policy);
                        change(&mut welcome);
                        Opened::Welcome(welcome)
                    }
                    _ => Opened::Attached,
                };
                send(&mut stream, &opened.encode()).await;
                while receive(&mut stream).await.is_ok() {}
            });
        }
    });
    let mut config = ClientConfig::new(addr.to_string(), ca.host("db1"), ca.authority());
    config.policy = RoutePolicy::Network;
    config
}

fn welcome(data_port: u16, policy: RoutePolicy) -> Welcome {
    Welcome {
        version: VersionRange::SPOKEN.newest,
        features: Features::default(),
        session: SessionId([1; _]),
        secret: SessionSecret([2; _]),
        data_port,
        calls_max: CALLS_MAX,
        pool: None,
        software: "test".into(),
        host: "db1".into(),
        removals: 0,
        policy,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_not_widen_the_policy_of_its_client() {
    let config = rogue(|welcome| welcome.policy = RoutePolicy::PreferStorage).await;
    let refused = in_time("the refusal", Session::connect(config)).await;
    assert!(
        matches!(&refused, Err(Error::Protocol { what, .. }) if what.contains("prefer-storage of network")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_client_asks_for_no_more_at_once_than_is_agreed_whatever_the_server_offers() {
    let config = rogue(|welcome| welcome.calls_max = u32::MAX).await;
    let session = in_time("the session", Session::connect(config))
        .await
        .unwrap();
    for _ in 0..2 * CALLS_MAX {
        let session = session.clone();
        tokio::spawn(async move { session.list(ObjectKind::Pack).await });
    }
    let most = CALLS_MAX as usize;
    until("calls under way", || session.calls() >= most).await;
    assert_eq!(session.calls(), most);
}
