//! Archived WAL: who may do what with it, and what is stored under a name.

use crate::common::{HOST, audit, denied, get, join, open, put, put_as, repository, server};
use aws_lc_rs::digest::{SHA256, digest};
use backlane_net::service::{ObjectService, Service, ServiceError};
use backlane_proto::{
    ByteRange, ObjectKind, ObjectName, PackContents, SessionFor, WalHeader, WalName,
    wal::SUMMED_BYTES,
};
use backlane_server::{ExclusiveRepository, HostName, Leave, Removal, ServerState};
use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

const SYSTEM: u64 = 7_000_000_000_000_000_001;
const SEGMENT: &str = "00000001000000000000000A";

fn host() -> HostName {
    HOST.parse().unwrap()
}

fn name(file: &str) -> ObjectName {
    ObjectName {
        kind: ObjectKind::Wal,
        id: WalName::from_file_name(SYSTEM, file).unwrap().id(),
    }
}

/// A body as a host makes it, as far as the server can tell: of a file with this digest, sealed to these bytes.
fn body(file: &str, digest_of_file: u8, sealed: &[u8]) -> Vec<u8> {
    let header = WalHeader {
        plain_bytes: 16 << 20,
        nonce: [1; 12],
        name: WalName::from_file_name(SYSTEM, file).unwrap(),
        digest: [digest_of_file; 32],
        sum: [0; 32],
    };
    let summed = [&header.encode()[..SUMMED_BYTES], sealed].concat();
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, &summed).as_ref());
    let header = WalHeader { sum, ..header };
    [&header.encode()[..], sealed].concat()
}

async fn session(state: &ServerState) -> Arc<dyn ObjectService> {
    let certificate = join(state, HOST).await;
    Service::open(state, &certificate, SessionFor::Wal)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_file_put_twice_is_stored_once_and_another_of_its_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let first = body(SEGMENT, 1, b"sealed");
    put_as(&*session, name(SEGMENT), &first).await.unwrap();
    // The same file, sealed with another nonce.
    let again = body(SEGMENT, 1, b"sealed again");
    put_as(&*session, name(SEGMENT), &again).await.unwrap();
    let other = body(SEGMENT, 2, b"sealed");
    let refused = denied(put_as(&*session, name(SEGMENT), &other).await);
    assert!(
        refused.contains("another segment is archived under this name"),
        "{refused}"
    );
    assert!(
        refused.contains(SEGMENT) && refused.contains(HOST),
        "{refused}"
    );

    let listed = session.list(ObjectKind::Wal).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].id, listed[0].bytes),
        (name(SEGMENT).id, first.len() as u64)
    );
    let path = format!("wal/{SYSTEM}/00000001/{SEGMENT}");
    let stored = repository(directory.path()).join(path);
    assert_eq!(fs::read(&stored).unwrap(), first);
    // What rotted since is not acknowledged.
    let mut rotten = first.clone();
    rotten[70] ^= 1;
    fs::write(stored, rotten).unwrap();
    let put = put_as(&*session, name(SEGMENT), &first).await;
    assert!(matches!(put, Err(ServiceError::Damaged(_))), "{put:?}");
}

#[tokio::test]
async fn what_is_not_under_its_own_name_or_not_whole_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let whole = body(SEGMENT, 1, b"sealed");
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        let put = put_as(&*session, name(SEGMENT), &changed).await;
        assert!(
            matches!(put, Err(ServiceError::BadBody { .. })),
            "byte {at}: {put:?}"
        );
    }
    for short in [&whole[..127], &whole[..128], b""] {
        let put = put_as(&*session, name(SEGMENT), short).await;
        assert!(matches!(put, Err(ServiceError::BadBody { .. })), "{put:?}");
    }
    let elsewhere = put_as(&*session, name("00000001000000000000000B"), &whole).await;
    let error = elsewhere.unwrap_err().to_string();
    assert!(error.contains(SEGMENT), "{error}");
    let bytes = whole.len() as u64;
    let given_up = session.put(name(SEGMENT), PackContents::Data, bytes).await;
    drop(given_up.unwrap());
    assert_eq!(session.list(ObjectKind::Wal).await.unwrap(), []);
    // Names without end, and nothing to them, make no directories without end.
    assert!(!repository(directory.path()).join("wal").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_archives_and_lists_and_reads_back_by_a_permission_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let history = "00000002.history";
    for file in [SEGMENT, history] {
        let body = body(file, 1, b"sealed");
        put_as(&*session, name(file), &body).await.unwrap();
    }
    let part = |offset, length| Some(ByteRange { offset, length });
    // The server's harness permits restores, which opens no WAL.
    let refused = denied(get(&*session, name(SEGMENT), None).await);
    assert!(refused.contains("allow-wal web1"), "{refused}");
    for (offset, length) in [(0, 129), (100, 29), (128, 1), (u64::MAX, 2)] {
        denied(get(&*session, name(SEGMENT), part(offset, length)).await);
    }
    assert_eq!(audit(&state, "call-refused").len(), 1);
    let header = get(&*session, name(SEGMENT), part(0, 128)).await.unwrap();
    assert_eq!(WalHeader::decode(&header).unwrap().plain_bytes, 16 << 20);
    get(&*session, name(history), None).await.unwrap();

    let maintenance = Leave::Maintenance;
    state
        .allow(&host(), maintenance, Some(Duration::from_secs(60)))
        .await
        .unwrap();
    denied(get(&*session, name(SEGMENT), None).await);
    assert_eq!(state.allow(&host(), Leave::Wal, None).await.unwrap(), None);
    for _ in 0..2 {
        get(&*session, name(SEGMENT), None).await.unwrap();
    }
    assert_eq!(audit(&state, "wal-allowed").len(), 1);
    assert_eq!(audit(&state, "wal-used").len(), 1);
    // It opens no file contents.
    assert_eq!(
        state.revoke_leave(&host(), Leave::Restore).await.unwrap(),
        1
    );
    let backups = open(&state, HOST).await.unwrap();
    let pack = put(&*backups, ObjectKind::Pack, b"contents").await.unwrap();
    denied(get(&*backups, pack, None).await);
    assert_eq!(state.revoke_leave(&host(), Leave::Wal).await.unwrap(), 1);
    denied(get(&*session, name(SEGMENT), None).await);
    assert_eq!(audit(&state, "wal-revoked").len(), 1);
    // Nobody but an administrator removes it, and a revocation ends every permission.
    denied(session.remove(name(SEGMENT)).await);
    drop(backups);
    let certificate = join(&state, HOST).await;
    let alone = Service::open(&state, &certificate, SessionFor::Maintenance).await;
    let alone = alone.unwrap();
    denied(alone.remove(name(SEGMENT)).await);
    state.allow(&host(), Leave::Wal, None).await.unwrap();
    state.revoke(&host()).await.unwrap();
    denied(get(&*alone, name(SEGMENT), None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_wal_holds_up_no_maintenance_and_touches_no_backup() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let backups = open(&state, HOST).await.unwrap();
    let key = put(&*backups, ObjectKind::Key, b"key").await.unwrap();
    put(&*backups, ObjectKind::Config, b"config").await.unwrap();
    let pack = put(&*backups, ObjectKind::Pack, b"pack").await.unwrap();
    drop(backups);
    let session = session(&state).await;
    let alone = state
        .exclusive(&host(), Removal::Recoverable)
        .await
        .unwrap();
    tokio::task::spawn_blocking(move || alone.remove(pack).unwrap())
        .await
        .unwrap();
    // It may go on where it was when its connection was lost.
    assert_eq!(session.removals().await.unwrap(), 0);
    put_as(&*session, name(SEGMENT), &body(SEGMENT, 1, b"sealed"))
        .await
        .unwrap();
    assert_eq!(get(&*session, key, None).await.unwrap(), b"key");
    denied(put(&*session, ObjectKind::Key, b"another").await);
    for kind in [ObjectKind::Index, ObjectKind::Snapshot, ObjectKind::Pack] {
        denied(session.list(kind).await);
        denied(put(&*session, kind, b"body").await);
        denied(get(&*session, ObjectName { kind, id: pack.id }, None).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_is_scrubbed_adopted_and_counts_against_a_quota() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let second = "00000001000000000000000B";
    for file in [SEGMENT, second] {
        put_as(&*session, name(file), &body(file, 1, b"sealed"))
            .await
            .unwrap();
    }
    state.set_quota(&host(), Some(2 * 4096)).await.unwrap();
    let third = "00000001000000000000000C";
    let full = put_as(&*session, name(third), &body(third, 1, b"sealed")).await;
    assert!(matches!(full, Err(ServiceError::Quota(_))), "{full:?}");
    drop(session);

    let root = repository(directory.path());
    let wal = root.join(format!("wal/{SYSTEM}/00000001"));
    let mut rotten = fs::read(wal.join(second)).unwrap();
    *rotten.last_mut().unwrap() ^= 1;
    fs::write(wal.join(second), rotten).unwrap();
    let host = host();
    let scrubbed = state.scrub(&host, None, |_| ControlFlow::Continue(()));
    let scrubbed = scrubbed.await.unwrap();
    assert_eq!(scrubbed.objects, 2);
    assert_eq!(scrubbed.damaged.len(), 1);
    assert_eq!(scrubbed.damaged[0].0, name(second));
    assert!(wal.join(SEGMENT).exists() && !wal.join(second).exists());

    // Another server gets the directory.
    fs::write(root.join("config"), b"config").unwrap();
    let moved = tempfile::tempdir().unwrap();
    let other = server(moved.path()).await;
    fs::remove_dir_all(repository(moved.path())).ok();
    fs::rename(&root, repository(moved.path())).unwrap();
    let adopted = other.adopt(&host).await.unwrap();
    assert_eq!(adopted.new.objects, 2);
    let repository = adopted.repository;
    let arrivals = tokio::task::spawn_blocking(move || repository.arrivals(ObjectKind::Wal));
    let arrivals = arrivals.await.unwrap().unwrap();
    assert!(arrivals.contains_key(&name(SEGMENT).id), "{arrivals:?}");
}

/// Does maintenance beside a session for WAL.
async fn maintain<T: Send + 'static>(
    state: &ServerState,
    work: impl FnOnce(&ExclusiveRepository) -> T + Send + 'static,
) -> T {
    let alone = state.exclusive(&host(), Removal::Recoverable).await;
    let alone = alone.unwrap();
    tokio::task::spawn_blocking(move || work(&alone))
        .await
        .unwrap()
}

/// What is in a directory, in the order of the names.
fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_comes_back_over_another_of_its_name_and_neither_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let same = "00000001000000000000000B";
    let [first, second, third] = [1, 2, 3].map(|of_file| body(SEGMENT, of_file, b"sealed"));
    put_as(&*session, name(same), &body(same, 1, b"sealed"))
        .await
        .unwrap();
    // A host that was taken over waits until a segment is removed, and puts others under its name.
    for body in [&first, &second] {
        put_as(&*session, name(SEGMENT), body).await.unwrap();
        maintain(&state, |alone| alone.remove(name(SEGMENT)).unwrap()).await;
    }
    put_as(&*session, name(SEGMENT), &third).await.unwrap();
    // Another comes again as what it was, sealed with another nonce.
    maintain(&state, move |alone| alone.remove(name(same)).unwrap()).await;
    let again = body(same, 1, b"sealed again");
    put_as(&*session, name(same), &again).await.unwrap();

    let back = |alone: &ExclusiveRepository| alone.undelete(SystemTime::UNIX_EPOCH).unwrap();
    let undeleted = maintain(&state, back).await;
    assert_eq!(undeleted.objects, 3);
    assert_eq!(undeleted.displaced, [name(SEGMENT), name(SEGMENT)]);
    let root = repository(directory.path());
    let wal = root.join(format!("wal/{SYSTEM}/00000001"));
    assert_eq!(files(&wal), [first.clone(), again]);
    assert_eq!(files(&root.join("damaged")), [third, second.clone()]);
    assert!(files(&root.join("removed")).is_empty());
    assert_eq!(audit(&state, "object-damaged").len(), 2);

    // What has rotted on the shelf drives nothing away, and is kept.
    maintain(&state, |alone| alone.remove(name(SEGMENT)).unwrap()).await;
    put_as(&*session, name(SEGMENT), &second).await.unwrap();
    let shelf = fs::read_dir(root.join("removed")).unwrap().next().unwrap();
    let mut rotten = first;
    *rotten.last_mut().unwrap() ^= 1;
    fs::write(shelf.unwrap().path(), &rotten).unwrap();
    assert_eq!(maintain(&state, back).await.objects, 0);
    assert_eq!(fs::read(wal.join(SEGMENT)).unwrap(), second);
    assert_eq!(files(&root.join("removed")), [rotten]);
}

#[tokio::test]
async fn a_list_fails_on_what_is_no_wal() {
    for foreign in ["wal/file", "wal/7/file", "wal/7/00000001/file"] {
        let directory = tempfile::tempdir().unwrap();
        let state = server(directory.path()).await;
        let session = session(&state).await;
        let path = repository(directory.path()).join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"x").unwrap();
        let error = session.list(ObjectKind::Wal).await.unwrap_err().to_string();
        assert!(error.contains(foreign), "{error}");
    }
}
