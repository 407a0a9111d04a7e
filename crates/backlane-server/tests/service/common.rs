//! A server's state in a directory of its own, with one enrolled host.

use aws_lc_rs::digest::{SHA256, digest};
use backlane_net::{
    Identity,
    identity::{KeyRequest, request_for},
    service::{EnrollGrant, EnrollRequest, ObjectService, Service, ServiceError, VerifiedHost},
    token::JoinToken,
};
use backlane_proto::{ByteRange, ObjectId, ObjectKind, ObjectName, PackContents, SessionFor};
use backlane_server::{HostName, PoolConfig, ServerConfig, ServerState};
use bytes::Bytes;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

pub(crate) const HOST: &str = "web1";
pub(crate) const POOL: Uuid = Uuid::from_bytes([5; 16]);

pub(crate) fn config(directory: &Path) -> ServerConfig {
    ServerConfig {
        address: Some("backup.example:4870".into()),
        state: directory.join("state"),
        data: directory.join("data"),
        pool: Some(PoolConfig {
            uuid: POOL,
            name: None,
            devices: vec!["/dev/null".into()],
            slots: 9,
        }),
        ..ServerConfig::default()
    }
}

pub(crate) fn repository(directory: &Path) -> PathBuf {
    directory.join("data/repositories").join(HOST)
}

/// Makes a server and enrols [`HOST`], which may restore.
pub(crate) async fn server(directory: &Path) -> ServerState {
    let state = ServerState::init(config(directory), &["127.0.0.1".into()])
        .await
        .unwrap();
    enroll(&state, HOST).await.unwrap();
    let host = HOST.parse().unwrap();
    let hour = Duration::from_secs(3600);
    state.allow_restore(&host, &[], hour).await.unwrap();
    state
}

pub(crate) async fn enroll(state: &ServerState, host: &str) -> Result<EnrollGrant, ServiceError> {
    let host: HostName = host.parse().unwrap();
    let token = state.enroll(&host, Duration::from_secs(60)).await.unwrap();
    enroll_with(state, host.as_str(), &token).await
}

pub(crate) async fn enroll_with(
    state: &ServerState,
    host: &str,
    token: &JoinToken,
) -> Result<EnrollGrant, ServiceError> {
    let request = EnrollRequest {
        secret: token.secret.to_text(),
        csr_pem: request_for(host).unwrap().csr_pem,
    };
    Service::enroll(state, request).await
}

/// Enrols a host, again if it was before, and opens a session with its certificate.
pub(crate) async fn session(state: &ServerState) -> Arc<dyn ObjectService> {
    open(state, HOST).await.unwrap()
}

pub(crate) async fn open(
    state: &ServerState,
    host: &str,
) -> Result<Arc<dyn ObjectService>, ServiceError> {
    Service::open(state, &join(state, host).await, SessionFor::Jobs).await
}

/// Enrols a host; returns what its certificate says.
pub(crate) async fn join(state: &ServerState, host: &str) -> VerifiedHost {
    join_with_key(state, host).await.0
}

/// The same, and the host's key.
pub(crate) async fn join_with_key(state: &ServerState, host: &str) -> (VerifiedHost, KeyRequest) {
    let name: HostName = host.parse().unwrap();
    let token = state.enroll(&name, Duration::from_secs(60)).await.unwrap();
    let request = request_for(host).unwrap();
    let enroll = EnrollRequest {
        secret: token.secret.to_text(),
        csr_pem: request.csr_pem.clone(),
    };
    let grant = Service::enroll(state, enroll).await.unwrap();
    let identity = Identity::from_pem(&grant.certificate_pem, &request.key_pem).unwrap();
    (identity.host().clone(), request)
}

pub(crate) fn name_of(kind: ObjectKind, body: &[u8]) -> ObjectName {
    let mut id = [0; 32];
    if kind != ObjectKind::Config {
        id.copy_from_slice(digest(&SHA256, body).as_ref());
    }
    ObjectName {
        kind,
        id: ObjectId(id),
    }
}

pub(crate) async fn put(
    session: &dyn ObjectService,
    kind: ObjectKind,
    body: &[u8],
) -> Result<ObjectName, ServiceError> {
    let name = name_of(kind, body);
    put_as(session, name, body).await.map(|()| name)
}

/// Puts a body in pieces, under a name that need not be its own.
pub(crate) async fn put_as(
    session: &dyn ObjectService,
    name: ObjectName,
    body: &[u8],
) -> Result<(), ServiceError> {
    let bytes = body.len() as u64;
    let mut sink = session.put(name, PackContents::Data, bytes).await?;
    for piece in body.chunks(100_000) {
        sink.write(Bytes::copy_from_slice(piece)).await?;
    }
    sink.commit().await
}

/// Puts a pack, as one that holds `contents`.
pub(crate) async fn put_pack(
    session: &dyn ObjectService,
    contents: PackContents,
    body: &[u8],
) -> ObjectName {
    let name = name_of(ObjectKind::Pack, body);
    let mut sink = session
        .put(name, contents, body.len() as u64)
        .await
        .unwrap();
    sink.write(Bytes::copy_from_slice(body)).await.unwrap();
    sink.commit().await.unwrap();
    name
}

pub(crate) async fn get(
    session: &dyn ObjectService,
    name: ObjectName,
    range: Option<ByteRange>,
) -> Result<Vec<u8>, ServiceError> {
    let mut source = session.get(name, range).await?;
    let mut body = Vec::new();
    while let Some(piece) = source.next(1000).await? {
        assert!(piece.len() <= 1000);
        body.extend_from_slice(&piece);
    }
    assert_eq!(body.len() as u64, source.length());
    Ok(body)
}

/// What a call was refused with.
pub(crate) fn denied<T: std::fmt::Debug>(result: Result<T, ServiceError>) -> String {
    match result {
        Err(ServiceError::Denied(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// The lines of the audit log about one kind of event.
pub(crate) fn audit(state: &ServerState, event: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let wanted = format!("\"event\":\"{event}\"");
    state
        .verify_audit(|line| lines.extend(line.contains(&wanted).then(|| line.to_owned())))
        .unwrap();
    lines
}
