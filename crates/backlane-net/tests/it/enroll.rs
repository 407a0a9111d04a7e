//! Enrolment, and who is let in.

use crate::world::{Ca, World, in_time, until};
use backlane_net::{
    Authority, Error, Identity, IdentityError, Session, enroll,
    identity::{SERVER_NAME, request_for, write_private},
    token::{JoinSecret, JoinToken},
};
use backlane_proto::{ErrorCode, ObjectKind};
use rcgen::ExtendedKeyUsagePurpose;
use std::{os::unix::fs::PermissionsExt, sync::atomic::Ordering, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

fn token(world: &World, host: &str) -> JoinToken {
    let secret = JoinSecret::new([host.len() as u8; 32]);
    let mut tokens = world.service.tokens.lock().unwrap();
    tokens.insert(secret.to_text(), (host.to_owned(), false));
    JoinToken {
        server: world.addr.to_string(),
        authority: world.ca.authority().fingerprint(),
        secret,
        host: host.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_becomes_a_host_once() {
    let world = World::new().await;
    let token = token(&world, "web1");
    let enrolled = enroll(&token, PATIENCE).await.unwrap();
    assert_eq!(enrolled.host, "web1");

    // What was got is all that a session needs, by way of files.
    let dir = tempfile::tempdir().unwrap();
    let (key, chain, ca) = (
        dir.path().join("key"),
        dir.path().join("crt"),
        dir.path().join("ca"),
    );
    write_private(&key, &enrolled.key_pem).unwrap();
    std::fs::write(&chain, &enrolled.certificate_pem).unwrap();
    std::fs::write(&ca, &enrolled.authority_pem).unwrap();
    let mut config = world.client("unused");
    config.identity = Identity::load(&chain, &key).unwrap();
    config.authority = Authority::load(&ca).unwrap();
    let session = Session::connect(config).await.unwrap();
    assert_eq!(session.host(), "web1");

    let again = enroll(&token, PATIENCE).await;
    assert!(
        matches!(&again, Err(Error::Token { what }) if what.contains("used")),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_enrolments_take_turns_and_sessions_do_not_wait_for_them() {
    let world = World::new().await;
    let service = &world.service;
    service
        .desk
        .forget_permits(service.desk.available_permits());
    let mut asking = tokio::task::JoinSet::new();
    for n in 1..=12 {
        let token = token(&world, &"w".repeat(n));
        asking.spawn(async move { enroll(&token, PATIENCE).await });
    }
    until("enrolments at the desk", || {
        service.at_desk.load(Ordering::SeqCst) > 0
    })
    .await;
    let mut most = 0;
    // With sessions as the clock: each takes as many steps as an enrolment, and none of them is held up.
    for _ in 0..10 {
        Session::connect(world.client("db1")).await.unwrap();
        most = most.max(service.at_desk.load(Ordering::SeqCst));
    }
    service.desk.add_permits(12);
    while let Some(enrolled) = in_time("an enrolment", asking.join_next()).await {
        enrolled.unwrap().unwrap();
    }
    assert!(most <= 3, "{most} at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_authority_never_shows_its_secret() {
    let world = World::new().await;
    let mut token = token(&world, "web1");
    token.authority = Ca::new().authority().fingerprint();
    let refused = enroll(&token, PATIENCE).await;
    assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
    let tokens = world.service.tokens.lock().unwrap();
    assert!(tokens.values().all(|(_, used)| !used));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_certificates_are_refused_by_both_sides() {
    let world = World::new().await;
    let other = Ca::new();
    // Ours is of another authority: the server refuses.
    let mut config = world.client("db1");
    config.identity = other.host("db1");
    let refused = Session::connect(config).await;
    assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
    // The server's is of another authority: we refuse.
    let mut config = world.client("db1");
    config.authority = other.authority();
    let refused = Session::connect(config).await;
    assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
    // The server's certificate is none of a client.
    let mut config = world.client("db1");
    config.identity = world.ca.server();
    let refused = Session::connect(config).await;
    assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_can_not_stand_in_for_the_server() {
    for (name, usage) in [
        ("db1", ExtendedKeyUsagePurpose::ServerAuth),
        (SERVER_NAME, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        // Of the authority that the client trusts, and still refused.
        let world = World::with(|ca, options| options.identity = ca.identity(name, usage));
        let world = world.await;
        let refused = Session::connect(world.client("db2")).await;
        assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_revoked_is_told_so() {
    let world = World::new().await;
    world
        .service
        .revoked
        .lock()
        .unwrap()
        .insert("db1".to_owned());
    let refused = Session::connect(world.client("db1")).await;
    let denied = ErrorCode::Denied;
    assert!(
        matches!(&refused, Err(Error::Refused { code, text, .. }) if *code == denied && text.contains("db1")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_revoked_in_mid_session_is_told_so_and_gets_no_other() {
    let world = World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    let revoke = |host: &str| {
        world
            .service
            .revoked
            .lock()
            .unwrap()
            .insert(host.to_owned())
    };
    revoke("db1");
    world.service.store("db1").distrust.notify_one();
    let failed = async {
        loop {
            if let Err(error) = session.list(ObjectKind::Index).await {
                return error;
            }
        }
    };
    let failed = in_time("the end of the session", failed).await;
    let denied = ErrorCode::Denied;
    assert!(
        matches!(&failed, Error::Refused { code, text, .. } if *code == denied && text.contains("revoked")),
        "{failed:?}"
    );
    assert_eq!(world.service.store("db1").held.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_gets_another_certificate_for_the_key_that_it_has() {
    let world = World::new().await;
    let made = request_for("db1").unwrap();
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let first = world.ca.sign("db1", &made.csr_pem, client);
    let mut config = world.client("db1");
    config.identity = Identity::from_pem(&first, &made.key_pem).unwrap();
    let request = config.identity.request().unwrap();
    assert_ne!(request, made.csr_pem);
    let session = Session::connect(config.clone()).await.unwrap();
    let renewed = session.renew(request).await.unwrap();
    // TLS would fail with a certificate of another key.
    config.identity = Identity::from_pem(&renewed, &made.key_pem).unwrap();
    Session::connect(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_takes_no_more_sessions_than_its_share() {
    let world = World::with(|_, options| options.sessions_per_host_max = 2).await;
    let connect = async |host| Session::connect(world.client(host)).await;
    let first = connect("db1").await.unwrap();
    let _second = connect("db1").await.unwrap();
    let refused = connect("db1").await;
    let busy = ErrorCode::Busy;
    assert!(
        matches!(&refused, Err(Error::Refused { code, text, .. }) if *code == busy && text.contains("db1")),
        "{refused:?}"
    );
    connect("db2").await.unwrap();
    first.close().await.unwrap();
    connect("db1").await.unwrap();
}

#[test]
fn a_key_that_others_can_read_is_refused_by_name() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let (key, chain) = (dir.path().join("host.key"), dir.path().join("host.crt"));
    write_private(&key, "no key").unwrap();
    std::fs::write(&chain, &ca.pem).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = Identity::load(&chain, &key).unwrap_err();
    assert!(
        matches!(refused, IdentityError::KeyExposed { mode: 0o640, .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("host.key"), "{refused}");
    // A link to it hides nothing.
    let link = dir.path().join("link.key");
    std::os::unix::fs::symlink(&key, &link).unwrap();
    let linked = Identity::load(&chain, &link).unwrap_err();
    assert!(matches!(
        linked,
        IdentityError::KeyExposed { mode: 0o640, .. }
    ));
    // And what isn't one is named as well.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let refused = Identity::load(&chain, &key).unwrap_err();
    assert!(refused.to_string().contains("host.key"), "{refused}");
    // One that belongs to somebody else, who could change it. Only root can give a file away.
    if std::os::unix::fs::chown(&key, Some(65534), None).is_ok() {
        let refused = Identity::load(&chain, &link).unwrap_err();
        assert!(
            matches!(refused, IdentityError::KeyForeign { owner: 65534, .. }),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("link.key"), "{refused}");
    }
}
