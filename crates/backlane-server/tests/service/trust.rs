//! What the server trusts a host with: its own repository, in the role of a backup; more by permission, for a time.

use crate::common::{
    HOST, audit, config, denied, get, join, name_of, open, put, put_pack, server, session,
};
use backlane_net::service::{Service, ServiceError, VerifiedHost};
use backlane_proto::{ByteRange, ObjectKind, PackContents, SessionFor};
use backlane_server::{
    ExclusiveRepository, HostName, Leave, Removal, Scrubbed, ServerConfig, ServerError, ServerState,
};
use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

const HOUR: Duration = Duration::from_secs(3600);

fn host() -> HostName {
    HOST.parse().unwrap()
}

/// A server whose host may not restore.
async fn strict(directory: &Path) -> ServerState {
    let state = server(directory).await;
    assert_eq!(
        state.revoke_leave(&host(), Leave::Restore).await.unwrap(),
        1
    );
    state
}

#[tokio::test]
async fn a_backup_reads_what_it_needs_and_no_file_contents() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let session = session(&state).await;
    for kind in [
        ObjectKind::Key,
        ObjectKind::Config,
        ObjectKind::Index,
        ObjectKind::Snapshot,
    ] {
        let name = put(&*session, kind, b"what a backup needs").await.unwrap();
        get(&*session, name, None).await.unwrap();
    }
    let trees = put_pack(&*session, PackContents::Trees, b"trees").await;
    get(&*session, trees, None).await.unwrap();
    let data = put_pack(&*session, PackContents::Data, b"file contents").await;
    let refused = denied(get(&*session, data, None).await);
    assert!(refused.contains("allow-restore web1"), "{refused}");
    // What was said first of a pack stays: to put it again as trees opens nothing.
    put_pack(&*session, PackContents::Trees, b"file contents").await;
    denied(get(&*session, data, None).await);
    let part = ByteRange {
        offset: 0,
        length: 1,
    };
    denied(get(&*session, data, Some(part)).await);
    assert_eq!(audit(&state, "call-refused").len(), 1, "once a session");
}

#[tokio::test]
async fn of_a_data_pack_a_backup_reads_the_header_and_not_a_byte_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let session = session(&state).await;
    let mut pack = b"file contents, sealed".to_vec();
    let start = pack.len() as u64;
    pack.extend(b"header");
    pack.extend(6_u32.to_le_bytes());
    let pack = put_pack(&*session, PackContents::Data, &pack).await;
    let read = async |offset, length| {
        let range = ByteRange { offset, length };
        get(&*session, pack, Some(range)).await
    };
    assert_eq!(read(start, 6).await.unwrap(), b"header");
    assert_eq!(read(start + 6, 4).await.unwrap(), 6_u32.to_le_bytes());
    denied(read(start - 1, 7).await);
    denied(read(0, start).await);
    // A header that claims more than there is opens nothing.
    let mut pack = b"file contents, sealed".to_vec();
    pack.extend(u32::MAX.to_le_bytes());
    let pack = put_pack(&*session, PackContents::Data, &pack).await;
    let range = ByteRange {
        offset: 0,
        length: 21,
    };
    denied(get(&*session, pack, Some(range)).await);
}

#[tokio::test]
async fn a_permission_opens_file_contents_until_it_ends_and_its_use_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let session = session(&state).await;
    let data = put_pack(&*session, PackContents::Data, b"file contents").await;
    for wrong in [Duration::ZERO, HOUR * 24 * 31] {
        state.allow_restore(&host(), &[], wrong).await.unwrap_err();
    }
    denied(get(&*session, data, None).await);
    state.allow_restore(&host(), &[], HOUR).await.unwrap();
    for _ in 0..3 {
        assert_eq!(get(&*session, data, None).await.unwrap(), b"file contents");
    }
    assert_eq!(audit(&state, "restore-used").len(), 1);
    // It ends in running sessions too, by word or by time.
    assert_eq!(
        state.revoke_leave(&host(), Leave::Restore).await.unwrap(),
        1
    );
    denied(get(&*session, data, None).await);
    state
        .allow_restore(&host(), &[], Duration::from_millis(300))
        .await
        .unwrap();
    get(&*session, data, None).await.unwrap();
    while get(&*session, data, None).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(audit(&state, "restore-used").len(), 2);
    assert_eq!(audit(&state, "restore-allowed").len(), 3);
}

#[tokio::test]
async fn a_permission_for_a_snapshot_opens_nothing_that_arrived_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let session = session(&state).await;
    let pause = || tokio::time::sleep(Duration::from_millis(5));
    let old = put_pack(&*session, PackContents::Data, b"old").await;
    let snapshot = put(&*session, ObjectKind::Snapshot, b"one").await.unwrap();
    pause().await;
    let new = put_pack(&*session, PackContents::Data, b"new").await;
    let id = snapshot.id.to_string();
    for wrong in ["", "zz", "ffffffff", "%"] {
        let refused = state
            .allow_restore(&host(), &[wrong.to_owned()], HOUR)
            .await;
        assert!(refused.unwrap_err().to_string().contains(HOST), "{wrong}");
    }
    state
        .allow_restore(&host(), &[id[..8].to_owned()], HOUR)
        .await
        .unwrap();
    get(&*session, old, None).await.unwrap();
    denied(get(&*session, new, None).await);
    // To put the old one again makes it no newer.
    put_pack(&*session, PackContents::Data, b"old").await;
    get(&*session, old, None).await.unwrap();
}

#[tokio::test]
async fn a_revoked_host_opens_no_session_and_loses_those_that_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let certificate = join(&state, HOST).await;
    let other = join(&state, "web2").await;
    let session = Service::open(&state, &certificate, SessionFor::Jobs)
        .await
        .unwrap();
    let slots = Service::all_slots(&state).await.unwrap();
    let token = state.enroll(&host(), HOUR).await.unwrap();
    state.allow_restore(&host(), &[], HOUR).await.unwrap();
    for leave in [Leave::Maintenance, Leave::Wal] {
        state.allow(&host(), leave, Some(HOUR)).await.unwrap();
    }
    assert!(state.revoke(&host()).await.unwrap() >= 1);
    let why = tokio::time::timeout(Duration::from_secs(30), session.distrusted());
    assert!(why.await.unwrap().contains("revoked"));
    let refused = denied(
        Service::open(&state, &certificate, SessionFor::Jobs)
            .await
            .map(drop),
    );
    assert!(
        refused.contains("revoked") && refused.contains(HOST),
        "{refused}"
    );
    denied(Service::renew(&state, &certificate, "x".to_owned()).await);
    // Nor does a token that was given out before, nor does the pool serve its slots.
    let used = crate::common::enroll_with(&state, HOST, &token).await;
    assert!(matches!(used, Err(ServiceError::Token(_))), "{used:?}");
    let left = Service::all_slots(&state).await.unwrap();
    assert_eq!(left.len(), slots.len() - 4);
    assert_eq!(audit(&state, "host-revoked").len(), 1);
    assert_eq!(audit(&state, "session-refused").len(), 1);
    // Other hosts are what they were; this one may be enrolled again, and has its repository then, and no permission.
    Service::open(&state, &other, SessionFor::Jobs)
        .await
        .unwrap();
    open(&state, HOST).await.unwrap();
    for leave in [Leave::Restore, Leave::Maintenance, Leave::Wal] {
        let in_force = state.revoke_leave(&host(), leave).await.unwrap();
        assert_eq!(in_force, 0, "{leave:?}");
    }
}

#[tokio::test]
async fn the_token_of_a_host_that_never_joined_is_revoked_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let new: HostName = "web2".parse().unwrap();
    let token = state.enroll(&new, HOUR).await.unwrap();
    assert_eq!(state.revoke(&new).await.unwrap(), 0);
    let used = crate::common::enroll_with(&state, "web2", &token).await;
    assert!(matches!(used, Err(ServiceError::Token(_))), "{used:?}");
    // Now there is nothing of that name.
    let unknown = state.revoke(&new).await;
    assert!(
        matches!(unknown, Err(ServerError::UnknownHost { .. })),
        "{unknown:?}"
    );
    assert_eq!(audit(&state, "host-revoked").len(), 1);
    assert_eq!(state.hosts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_certificate_that_this_server_did_not_issue_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let certificate = join(&state, HOST).await;
    let other = join(&state, "web2").await;
    let serial = vec![7; 16];
    let unknown = VerifiedHost {
        serial,
        ..certificate.clone()
    };
    denied(
        Service::open(&state, &unknown, SessionFor::Jobs)
            .await
            .map(drop),
    );
    // Nor does one host's serial number open another's repository.
    let mixed = VerifiedHost {
        serial: other.serial,
        ..certificate
    };
    denied(
        Service::open(&state, &mixed, SessionFor::Jobs)
            .await
            .map(drop),
    );
}

#[tokio::test]
async fn an_expired_certificate_ends_its_session_and_gets_no_other() {
    let directory = tempfile::tempdir().unwrap();
    drop(server(directory.path()).await);
    let short = ServerConfig {
        certificate_validity: Duration::from_millis(1500),
        ..config(directory.path())
    };
    let state = ServerState::open(short).await.unwrap();
    let (certificate, made) = crate::common::join_with_key(&state, HOST).await;
    let session = Service::open(&state, &certificate, SessionFor::Jobs)
        .await
        .unwrap();
    let why = tokio::time::timeout(Duration::from_secs(30), session.distrusted());
    assert!(why.await.unwrap().contains("expired"));
    denied(
        Service::open(&state, &certificate, SessionFor::Jobs)
            .await
            .map(drop),
    );
    denied(Service::renew(&state, &certificate, made.csr_pem.clone()).await);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_name_that_it_has_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let (certificate, made) = crate::common::join_with_key(&state, HOST).await;
    // Whoever can use the host's key for a moment gets no certificate for a key of his own.
    let strange = backlane_net::identity::request_for(HOST).unwrap();
    denied(Service::renew(&state, &certificate, strange.csr_pem).await);
    let key = rcgen::KeyPair::from_pem(&made.key_pem).unwrap();
    let other_name = rcgen::CertificateParams::new(["web2".to_owned()]).unwrap();
    let request = other_name.serialize_request(&key).unwrap().pem().unwrap();
    let renewed = Service::renew(&state, &certificate, request.clone());
    let renewed = renewed.await.unwrap();
    let renewed = backlane_net::Identity::from_pem(&renewed, &made.key_pem).unwrap();
    assert_eq!(renewed.host().name, HOST);
    Service::open(&state, renewed.host(), SessionFor::Jobs)
        .await
        .unwrap();
    assert_eq!(audit(&state, "certificate-renewed").len(), 1);
    // Not without end.
    let renew = async || {
        let request = request.clone();
        Service::renew(&state, &certificate, request).await
    };
    let mut renewed_again = 0;
    let refused = loop {
        match renew().await {
            Ok(_) => renewed_again += 1,
            refused => break denied(refused),
        }
        assert!(renewed_again < 20);
    };
    assert!(refused.contains("hour"), "{refused}");
    state.revoke(&host()).await.unwrap();
    denied(
        Service::open(&state, renewed.host(), SessionFor::Jobs)
            .await
            .map(drop),
    );
}

/// Does maintenance, as a program of its own would.
async fn maintain<T: Send + 'static>(
    state: &ServerState,
    removal: Removal,
    work: impl FnOnce(&ExclusiveRepository) -> T + Send + 'static,
) -> T {
    let alone = state.exclusive(&host(), removal).await.unwrap();
    tokio::task::spawn_blocking(move || work(&alone))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_can_be_had_back_with_all_that_was_known_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let open = session(&state).await;
    let trees = put_pack(&*open, PackContents::Trees, b"trees").await;
    let data = put_pack(&*open, PackContents::Data, b"data").await;
    let snapshot = put(&*open, ObjectKind::Snapshot, b"one").await.unwrap();
    let removals = open.removals().await.unwrap();
    let bytes = state.hosts().await.unwrap()[0].bytes;
    drop(open);
    let before = SystemTime::now();
    let arrived = maintain(&state, Removal::Recoverable, move |alone| {
        let arrived = alone.arrivals(ObjectKind::Snapshot).unwrap();
        for name in [snapshot, trees, data] {
            alone.remove(name).unwrap();
            assert!(alone.read(name, None).is_err());
            assert!(
                alone
                    .list(name.kind)
                    .unwrap()
                    .iter()
                    .all(|it| it.id != name.id)
            );
        }
        assert_eq!(alone.expire().unwrap().objects, 0, "before its time");
        arrived
    });
    let arrived = arrived.await;
    assert_eq!(state.hosts().await.unwrap()[0].bytes, 0);
    let open = session(&state).await;
    assert_eq!(open.removals().await.unwrap(), removals + 1);
    get(&*open, trees, None).await.unwrap_err();
    // One of them arrives again meanwhile.
    put_pack(&*open, PackContents::Data, b"data").await;
    drop(open);
    let alone_path = crate::common::repository(directory.path());
    maintain(&state, Removal::Recoverable, move |alone| {
        // What came again has rotted since.
        let rotten = alone_path.join(format!("data/{:02x}/{}", data.id.0[0], data.id));
        std::fs::write(rotten, b"dat!").unwrap();
        let late = alone.undelete(SystemTime::now() + HOUR).unwrap();
        assert_eq!(late.objects, 0);
        assert_eq!(alone.removed().unwrap().len(), 3);
        assert_eq!(alone.undelete(before).unwrap().objects, 3);
        assert_eq!(alone.removed().unwrap(), []);
        assert_eq!(alone.arrivals(ObjectKind::Snapshot).unwrap(), arrived);
        for (name, body) in [(snapshot, &b"one"[..]), (trees, b"trees"), (data, b"data")] {
            assert_eq!(alone.read(name, None).unwrap(), body);
        }
    })
    .await;
    assert_eq!(state.hosts().await.unwrap()[0].bytes, bytes);
    // What was said of the packs is remembered: trees may be read, data may not.
    let open = session(&state).await;
    get(&*open, trees, None).await.unwrap();
    denied(get(&*open, data, None).await);
    assert_eq!(audit(&state, "objects-removed").len(), 1);
    assert_eq!(audit(&state, "undeleted").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_goes_when_its_time_is_over_or_when_retention_is_broken() {
    let directory = tempfile::tempdir().unwrap();
    drop(server(directory.path()).await);
    let short = ServerConfig {
        keep_removed: Duration::from_millis(1),
        ..config(directory.path())
    };
    let long = ServerState::open(config(directory.path())).await.unwrap();
    let open = session(&long).await;
    let [one, two] = [b"one", b"two"].map(|body| name_of(ObjectKind::Pack, body));
    put_pack(&*open, PackContents::Data, b"one").await;
    put_pack(&*open, PackContents::Data, b"two").await;
    drop(open);
    maintain(&long, Removal::Recoverable, move |alone| {
        alone.remove(one).unwrap();
        assert_eq!(alone.expire().unwrap().objects, 0);
    })
    .await;
    let short = ServerState::open(short).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    maintain(&short, Removal::Recoverable, move |alone| {
        assert_eq!(alone.expire().unwrap().objects, 1);
        assert_eq!(alone.removed().unwrap(), []);
    })
    .await;
    maintain(&long, Removal::Recoverable, move |alone| {
        alone.remove(two).unwrap()
    })
    .await;
    maintain(&long, Removal::Final, move |alone| {
        assert_eq!(alone.expire().unwrap().objects, 1);
        assert_eq!(alone.undelete(SystemTime::UNIX_EPOCH).unwrap().objects, 0);
    })
    .await;
    let expired = audit(&long, "removed-expired");
    assert!(
        expired[0].contains("\"before_its_time\":false"),
        "{expired:?}"
    );
    assert!(
        expired[1].contains("\"before_its_time\":true"),
        "{expired:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_after_a_time_can_be_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let open = session(&state).await;
    let mut names = Vec::new();
    let mut between = SystemTime::UNIX_EPOCH;
    for body in [b"good", b"evil"] {
        for kind in [ObjectKind::Index, ObjectKind::Snapshot] {
            names.push(put(&*open, kind, body).await.unwrap());
        }
        if body == b"good" {
            tokio::time::sleep(Duration::from_millis(5)).await;
            between = SystemTime::now();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(open);
    maintain(&state, Removal::Recoverable, move |alone| {
        assert_eq!(alone.leave_out(between).unwrap().objects, 2);
        for (at, name) in names.iter().enumerate() {
            assert_eq!(alone.read(*name, None).is_ok(), at < 2, "{name}");
        }
        // And back again: it was a removal like any other.
        assert_eq!(alone.undelete(between).unwrap().objects, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_lays_aside_what_is_damaged_and_the_same_object_may_arrive_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let open = session(&state).await;
    let sound = put_pack(&*open, PackContents::Trees, b"sound").await;
    let rotten = put_pack(&*open, PackContents::Trees, b"rotten").await;
    let snapshot = put(&*open, ObjectKind::Snapshot, b"snapshot")
        .await
        .unwrap();
    let id = rotten.id.to_string();
    let root = crate::common::repository(directory.path());
    std::fs::write(root.join("data").join(&id[..2]).join(&id), b"Rotten").unwrap();
    // Beside a session that is open, which learns that it can't rely on what it knows.
    let removals = open.removals().await.unwrap();
    let go_on = |_: &Scrubbed| ControlFlow::Continue(());
    let found = state.scrub(&host(), None, go_on).await.unwrap();
    // The rotten one twice: it may have been the read.
    assert_eq!((found.objects, found.bytes), (3, 5 + 2 * 6 + 8));
    assert!(
        matches!(&found.damaged[..], [(name, _)] if *name == rotten),
        "{found:?}"
    );
    assert_eq!(open.removals().await.unwrap(), removals + 1);
    get(&*open, rotten, None).await.unwrap_err();
    for name in [sound, snapshot] {
        get(&*open, name, None).await.unwrap();
    }
    assert_eq!(audit(&state, "object-damaged").len(), 1);
    put_pack(&*open, PackContents::Trees, b"rotten").await;
    assert_eq!(get(&*open, rotten, None).await.unwrap(), b"rotten");
    let again = state.scrub(&host(), Some(1_000_000), go_on).await.unwrap();
    assert_eq!(again.damaged, []);
    // It can be stopped, and keeps to its pace.
    let began = Instant::now();
    let name = host();
    let stopped = state.scrub(&name, Some(100), |_| ControlFlow::Break(()));
    assert_eq!(stopped.await.unwrap().objects, 1);
    assert!(began.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn a_host_stores_no_more_than_its_quota() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let open = session(&state).await;
    put_pack(&*open, PackContents::Data, &[7; 10_000]).await;
    state.set_quota(&host(), Some(10_005)).await.unwrap();
    let refused = put(&*open, ObjectKind::Pack, b"6 more").await.unwrap_err();
    assert!(
        matches!(&refused, ServiceError::Quota(text) if text.contains("10000 of the 10005")),
        "{refused}"
    );
    // What is announced counts as well, until it has come or is given up.
    let announced = open.put(name_of(ObjectKind::Pack, b"1"), PackContents::Data, 1);
    let announced = announced.await.unwrap();
    let refused = put(&*open, ObjectKind::Pack, b"5 fit").await;
    assert!(
        matches!(refused, Err(ServiceError::Quota(_))),
        "{refused:?}"
    );
    drop(announced);
    put(&*open, ObjectKind::Pack, b"5 fit").await.unwrap();
    state.set_quota(&host(), None).await.unwrap();
    put(&*open, ObjectKind::Pack, b"6 more").await.unwrap();
    // Others have nothing to do with it.
    state.set_quota(&host(), Some(0)).await.unwrap();
    let other = crate::common::open(&state, "web2").await.unwrap();
    put(&*other, ObjectKind::Pack, b"6 more").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_removes_by_a_permission_alone_and_what_it_removes_stays_recoverable() {
    let directory = tempfile::tempdir().unwrap();
    let state = strict(directory.path()).await;
    let open = session(&state).await;
    let key = put(&*open, ObjectKind::Key, b"key").await.unwrap();
    let config = put(&*open, ObjectKind::Config, b"config").await.unwrap();
    let data = put_pack(&*open, PackContents::Data, b"data").await;
    let snapshot = put(&*open, ObjectKind::Snapshot, b"one").await.unwrap();
    denied(open.remove(data).await);
    drop(open);
    let certificate = join(&state, HOST).await;
    let maintain = || Service::open(&state, &certificate, SessionFor::Maintenance);
    // A permission to restore is none to remove, and the other way round.
    state.allow_restore(&host(), &[], HOUR).await.unwrap();
    let refused = denied(maintain().await.map(drop));
    assert!(refused.contains("allow-maintenance web1"), "{refused}");
    assert_eq!(
        state
            .revoke_leave(&host(), Leave::Maintenance)
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        state.revoke_leave(&host(), Leave::Restore).await.unwrap(),
        1
    );
    state
        .allow(&host(), Leave::Maintenance, Some(HOUR))
        .await
        .unwrap();
    let until = state.hosts().await.unwrap().remove(0);
    assert!(until.maintain_until.is_some() && until.restore_until.is_none());

    let open = maintain().await.unwrap();
    let busy = Service::open(&state, &certificate, SessionFor::Jobs).await;
    assert!(matches!(busy, Err(ServiceError::Busy(_))), "it isn't alone");
    denied(get(&*open, data, None).await);
    for foundation in [key, config] {
        denied(open.remove(foundation).await);
    }
    denied(put(&*open, ObjectKind::Key, b"another").await);
    let arrived = open.arrivals(ObjectKind::Snapshot, None, 9).await.unwrap();
    assert_eq!(arrived.len(), 1);
    assert_eq!(arrived[0].id, snapshot.id);
    for name in [snapshot, data] {
        open.remove(name).await.unwrap();
        get(&*open, name, None).await.unwrap_err();
    }
    // The permission ends, and the session with it.
    assert_eq!(
        state
            .revoke_leave(&host(), Leave::Maintenance)
            .await
            .unwrap(),
        1
    );
    let ended = tokio::time::timeout(Duration::from_secs(20), open.distrusted());
    assert!(ended.await.unwrap().contains("allow-maintenance"));
    drop(open);
    denied(maintain().await.map(drop));
    let alone = state.exclusive(&host(), Removal::Recoverable).await;
    let back = tokio::task::spawn_blocking(move || alone.unwrap().undelete(SystemTime::UNIX_EPOCH));
    assert_eq!(back.await.unwrap().unwrap().objects, 2);
    let begun = audit(&state, "maintenance-begun");
    assert!(begun[0].contains("\"by\":\"host\""), "{begun:?}");
    assert_eq!(audit(&state, "objects-removed").len(), 1);
    assert_eq!(audit(&state, "maintenance-allowed").len(), 1);
}
