//! Initialisation, enrolment, and the certificates that come of it.

use crate::common::{HOST, POOL, config, enroll, enroll_with, open, server};
use backlane_net::{
    Authority, Identity,
    identity::{SERVER_NAME, request_for},
    service::{EnrollRequest, Service, ServiceError},
    token::{JoinSecret, JoinToken},
};
use backlane_server::{HostName, ServerConfig, ServerError, ServerState};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

#[tokio::test]
async fn init_overwrites_nothing() {
    let directory = tempfile::tempdir().unwrap();
    drop(server(directory.path()).await);
    let state = directory.path().join("state");
    let key = fs::read(state.join("ca.key")).unwrap();
    for missing in ["", "server.db", "ca.key", "ca.pem", "server.key"] {
        let _ = fs::remove_file(state.join(missing));
        let again = ServerState::init(config(directory.path()), &[]).await;
        let error = again.unwrap_err();
        assert!(
            matches!(error, ServerError::AlreadyInitialised { .. }),
            "{error}"
        );
        if missing == "server.db" {
            assert_eq!(fs::read(state.join("ca.key")).unwrap(), key);
        }
    }
}

#[tokio::test]
async fn keys_are_private_and_a_server_without_init_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let error = ServerState::open(config(directory.path()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ServerError::NotInitialised { .. }),
        "{error}"
    );
    drop(server(directory.path()).await);
    for key in ["ca.key", "server.key", "server.db"] {
        let metadata = fs::metadata(directory.path().join("state").join(key)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{key}");
    }
    assert!(ServerState::open(config(directory.path())).await.is_ok());
}

#[tokio::test]
async fn the_servers_certificate_is_signed_again_for_the_key_and_the_names_that_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let paths = state.authority_paths();
    let load = || Identity::load(&paths.server_certificate, &paths.server_key).unwrap();
    let before = load();
    assert!(before.names().contains(&SERVER_NAME.to_owned()));
    assert!(before.names().contains(&"127.0.0.1".to_owned()));
    let renew = || state.authority().renew_server(&before.names(), &paths);
    renew().unwrap();
    let after = load();
    assert_eq!(after.names(), before.names());
    assert_eq!(after.host().key, before.host().key);
    let soon = |identity: &Identity, days: u64| {
        let later = std::time::SystemTime::now() + Duration::from_secs(days * 86_400);
        identity.expires_soon(later).is_some()
    };
    assert!(!soon(&after, 0) && soon(&after, 3000));
    // A key that others can read is no key to go on with.
    fs::set_permissions(&paths.server_key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(renew().unwrap_err().to_string().contains("server.key"));
}

#[tokio::test]
async fn data_disk_that_is_not_mounted_is_named_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    fs::remove_dir(directory.path().join("data/repositories")).unwrap();
    let opened = open(&state, HOST).await.err().unwrap();
    assert!(opened.to_string().contains("data/repositories"), "{opened}");
    let error = ServerState::open(config(directory.path()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("data/repositories"), "{error}");
    assert!(!directory.path().join("data/repositories").exists());
}

#[tokio::test]
async fn token_carries_the_way_to_the_server_and_pins_its_authority() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let host: HostName = "web2".parse().unwrap();
    let token = state.enroll(&host, Duration::from_secs(60)).await.unwrap();
    let token = JoinToken::decode(&token.encode().unwrap()).unwrap();
    assert_eq!(token.server, "backup.example:4870");
    assert_eq!(token.host, "web2");
    let authority = Authority::load(&state.authority_paths().ca_certificate).unwrap();
    assert_eq!(token.authority, authority.fingerprint());
    let database = fs::read(directory.path().join("state/server.db-wal")).unwrap();
    let secret = token.secret.to_text();
    let kept = database
        .windows(secret.len())
        .any(|window| window == secret.as_bytes());
    assert!(!kept, "the database holds the hash alone");
}

#[tokio::test]
async fn host_gets_the_name_of_its_token_whatever_it_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let host: HostName = "web2".parse().unwrap();
    let token = state.enroll(&host, Duration::from_secs(60)).await.unwrap();
    let asked = request_for("web1").unwrap();
    let request = EnrollRequest {
        secret: token.secret.to_text(),
        csr_pem: asked.csr_pem,
    };
    let grant = Service::enroll(&state, request.clone()).await.unwrap();
    assert_eq!((grant.host.as_str(), grant.pool), ("web2", Some(POOL)));
    assert_eq!(grant.slots, [4, 5, 6, 7]);
    assert_eq!(Service::slots(&state, "web2").await.unwrap(), grant.slots);
    let identity = Identity::from_pem(&grant.certificate_pem, &asked.key_pem).unwrap();
    assert_eq!(identity.name(), "web2");

    let used = Service::enroll(&state, request).await.unwrap_err();
    assert!(
        matches!(&used, ServiceError::Token(why) if why.contains("used before")),
        "{used}"
    );
}

#[tokio::test]
async fn the_slot_of_a_token_is_kept_for_its_host() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let (beta, short) = ("beta".parse().unwrap(), Duration::from_millis(1));
    let (_, lapsed) = state.enroll_through_pool(&beta, short).await.unwrap();
    tokio::time::sleep(short * 2).await;
    let minute = Duration::from_secs(60);
    let (token, kept) = state.enroll_through_pool(&beta, minute).await.unwrap();
    // What was kept for a token that has lapsed is free again.
    assert_eq!((lapsed, kept), (4, 4));
    // The coordinator serves it already, and no other host gets it.
    let served = Service::all_slots(&state).await.unwrap();
    assert_eq!(served, [0, 1, 2, 3, 4]);
    let other = enroll(&state, "other").await.unwrap();
    assert_eq!(other.slots, [5, 6, 7, 8]);
    // One that has slots gets no other to enrol again.
    let again = "other".parse().unwrap();
    let (_, own) = state.enroll_through_pool(&again, minute).await.unwrap();
    assert_eq!(own, 5);
    let full = enroll_with(&state, "beta", &token).await.unwrap_err();
    assert!(full.to_string().contains("beta"), "{full}");
}

#[tokio::test]
async fn strange_secret_and_bad_request_are_told_apart_and_cost_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let good = request_for("web2").unwrap().csr_pem;
    for secret in [
        JoinSecret::new([1; 32]).to_text(),
        String::new(),
        "?".into(),
    ] {
        let csr_pem = good.clone();
        let error = Service::enroll(&state, EnrollRequest { secret, csr_pem })
            .await
            .unwrap_err();
        assert!(matches!(&error, ServiceError::Token(why) if why.contains("did not issue")));
    }
    let host: HostName = "web2".parse().unwrap();
    let token = state.enroll(&host, Duration::from_secs(60)).await.unwrap();
    let secret = token.secret.to_text();
    for csr_pem in [String::new(), good.replace("MI", "MJ"), "-----BEGIN".into()] {
        let secret = secret.clone();
        let error = Service::enroll(&state, EnrollRequest { secret, csr_pem })
            .await
            .unwrap_err();
        assert!(matches!(error, ServiceError::Denied(_)), "{error}");
    }
    let csr_pem = good;
    let request = EnrollRequest { secret, csr_pem };
    assert!(Service::enroll(&state, request).await.is_ok());
}

#[tokio::test]
async fn expired_token_and_silly_lifetimes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let host: HostName = "web2".parse().unwrap();
    assert!(state.enroll(&host, Duration::ZERO).await.is_err());
    assert!(state.enroll(&host, Duration::MAX).await.is_err());
    let token = state.enroll(&host, Duration::from_millis(1)).await.unwrap();
    let request = EnrollRequest {
        secret: token.secret.to_text(),
        csr_pem: request_for("web2").unwrap().csr_pem,
    };
    // By the server's own clock: wait until it has moved on.
    let issued = std::time::SystemTime::now();
    while issued.elapsed().unwrap_or_default() < Duration::from_millis(2) {
        tokio::task::yield_now().await;
    }
    let error = Service::enroll(&state, request).await.unwrap_err();
    assert!(
        matches!(&error, ServiceError::Token(why) if why.contains("expired")),
        "{error}"
    );
}

#[tokio::test]
async fn a_validity_beyond_the_calendar_issues_no_certificate_and_costs_no_token() {
    let directory = tempfile::tempdir().unwrap();
    drop(server(directory.path()).await);
    let endless = ServerConfig {
        certificate_validity: Duration::from_secs(9999 * 365 * 86_400),
        ..config(directory.path())
    };
    let state = ServerState::open(endless).await.unwrap();
    let host: HostName = "web2".parse().unwrap();
    let token = state.enroll(&host, Duration::from_secs(60)).await.unwrap();
    let error = enroll_with(&state, "web2", &token).await.unwrap_err();
    assert!(matches!(error, ServiceError::Denied(_)), "{error}");
    drop(state);
    let state = ServerState::open(config(directory.path())).await.unwrap();
    enroll_with(&state, "web2", &token).await.unwrap();
}

#[tokio::test]
async fn pool_without_free_slots_refuses_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    enroll(&state, "web2").await.unwrap();
    let error = enroll(&state, "web3").await.unwrap_err();
    assert!(error.to_string().contains("1 of 9 free"), "{error}");
    assert!(Service::slots(&state, "web3").await.is_err());
    let host = "web1".parse().unwrap();
    assert_eq!(state.add_slots(&host, 1).await.unwrap(), [8]);
    assert_eq!(
        Service::slots(&state, "web1").await.unwrap(),
        [0, 1, 2, 3, 8]
    );
    let hosts = state.hosts().await.unwrap();
    assert_eq!(hosts.len(), 2);
    assert_eq!(hosts[0].slots, [0, 1, 2, 3, 8]);
}

#[tokio::test]
async fn certificates_verify_for_their_own_purpose_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let paths = state.authority_paths();
    let client = directory.path().join("client.pem");
    let grant = enroll(&state, "web2").await.unwrap();
    fs::write(&client, grant.certificate_pem).unwrap();
    let identity = Identity::load(&paths.server_certificate, &paths.server_key).unwrap();
    assert_eq!(identity.name(), SERVER_NAME);
    let verified = |purpose: &str, certificate: &Path| {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .args([&paths.ca_certificate, certificate])
            .output();
        match output {
            Ok(output) => Some(output.status.success()),
            Err(error) => {
                eprintln!("SKIPPED: openssl can't be run: {error}");
                None
            }
        }
    };
    for (purpose, certificate, want) in [
        ("sslclient", client.as_path(), true),
        ("sslserver", client.as_path(), false),
        ("sslserver", paths.server_certificate.as_path(), true),
        ("sslclient", paths.server_certificate.as_path(), false),
    ] {
        if let Some(found) = verified(purpose, certificate) {
            assert_eq!(found, want, "{purpose} {}", certificate.display());
        }
    }
}
