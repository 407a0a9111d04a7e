//! What a running server, or a running job of a client, says of itself, and the socket that it says it by.
//!
//! Each serves `status/PID.sock` below its state directory, for its own user alone: whoever connects gets one document
//! and the end. Invariants: nobody who connects holds the process up, whatever he does: what he may take, and for how
//! long, is bounded; a process that can't serve its status says so in its log and goes on.

use super::{reasons::DownDocument, server::time, summary::Change};
use crate::{Context, output::SCHEMA};
use backlane_net::{RouteDown, RouteUse, Session, SessionStatus, StreamStats};
use backlane_proto::{PoolStatus, Route};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::AsyncWriteExt,
    net::UnixListener,
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Readers that are served at once; the others wait with the kernel.
const READERS_MAX: usize = 4;
/// How long one may take to read.
const READER_WAIT: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A process. What it doesn't know is absent, here and below.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ProcessDocument {
    pub(super) schema: u32,
    /// `server`, or the command of a client.
    pub(super) role: String,
    pub(super) pid: u32,
    pub(super) version: String,
    /// When it began to serve, or its session began.
    pub(super) since: String,
    /// The server's address: where it listens itself, or where the client's server is.
    pub(super) server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pool: Option<PoolDocument>,
    pub(super) sessions: Vec<SessionDocument>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PoolDocument {
    pub(super) uuid: String,
    /// Why the server can't use it, if it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) down: Option<DownDocument>,
    /// The slot that the client has taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) slot: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SessionDocument {
    /// The client's host.
    pub(super) host: String,
    /// Its number at the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<String>,
    /// How long it has lasted.
    pub(super) seconds: f64,
    pub(super) policy: String,
    /// What carries requests and answers, while anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) control: Option<String>,
    /// Calls under way.
    pub(super) calls: usize,
    /// Calls that wait for their turn, a connection or a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) calls_waiting: Option<usize>,
    /// Bodies that were begun once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) objects_repeated: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes_repeated: Option<u64>,
    pub(super) routes: Vec<RouteDocument>,
    /// What was lost and taken back, the newest last.
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RouteDocument {
    pub(super) route: String,
    pub(super) up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) down: Option<DownDocument>,
    /// For how long it has been up, or down.
    pub(super) seconds: f64,
    pub(super) objects_sent: u64,
    pub(super) bytes_sent: u64,
    pub(super) objects_received: u64,
    pub(super) bytes_received: u64,
    /// Chunks of bodies that wait for the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chunks_queued: Option<usize>,
    /// The stream through the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stream: Option<StreamDocument>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamDocument {
    /// Frames that the peer has not acknowledged yet.
    pub(super) frames_outstanding: u64,
    /// Frames that may be sent before it does.
    pub(super) credits: u64,
    pub(super) frames_sent: u64,
    pub(super) frames_received: u64,
    /// Frames sent again because the peer asked.
    pub(super) frames_resent: u64,
    /// Frames that the peer was asked to send again.
    pub(super) resends_requested: u64,
}

impl ProcessDocument {
    /// A process without sessions.
    pub(super) fn new(role: &str, server: String) -> Self {
        Self {
            schema: SCHEMA,
            role: role.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: time(SystemTime::now()),
            server,
            pool: None,
            sessions: Vec::new(),
        }
    }
}

impl From<&PoolStatus> for PoolDocument {
    fn from(pool: &PoolStatus) -> Self {
        let down = pool.down.as_ref().map(|(reason, detail)| RouteDown {
            reason: *reason,
            detail: detail.clone(),
        });
        Self {
            uuid: pool.uuid.to_string(),
            down: down.as_ref().map(DownDocument::from),
            slot: None,
        }
    }
}

impl From<&SessionStatus> for SessionDocument {
    fn from(session: &SessionStatus) -> Self {
        Self {
            host: session.host.clone(),
            session: session.id.map(|id| hex::encode(id.0)),
            seconds: session.age.as_secs_f64(),
            policy: session.policy.to_string(),
            control: session.control.map(|route| route.to_string()),
            calls: session.calls,
            calls_waiting: session.calls_waiting,
            objects_repeated: session.repeated.map(|it| it.objects),
            bytes_repeated: session.repeated.map(|it| it.bytes),
            routes: vec![
                RouteDocument::new(Route::Storage, &session.storage),
                RouteDocument::new(Route::Network, &session.network),
            ],
            changes: session.changes.iter().map(Change::from).collect(),
        }
    }
}

impl RouteDocument {
    fn new(route: Route, stands: &RouteUse) -> Self {
        Self {
            route: route.to_string(),
            up: stands.down.is_none(),
            down: stands.down.as_ref().map(DownDocument::from),
            seconds: stands.since.as_secs_f64(),
            objects_sent: stands.sent.objects,
            bytes_sent: stands.sent.bytes,
            objects_received: stands.received.objects,
            bytes_received: stands.received.bytes,
            chunks_queued: stands.queued,
            stream: stands.stream.as_ref().map(StreamDocument::from),
        }
    }
}

impl From<&StreamStats> for StreamDocument {
    fn from(stats: &StreamStats) -> Self {
        Self {
            frames_outstanding: stats.frames_outstanding,
            credits: stats.credits,
            frames_sent: stats.frames_sent,
            frames_received: stats.frames_received,
            frames_resent: stats.frames_resent,
            resends_requested: stats.resends_requested,
        }
    }
}

/// Serves the status of a client's job, for as long as the value lives.
pub(super) fn of_client(
    context: &Context,
    state: &Path,
    process: ProcessDocument,
    session: Session,
) -> Option<Served> {
    serve(context, state, move || {
        let mut process = process.clone();
        process.pool = session.pool().map(|pool| PoolDocument {
            uuid: pool.uuid.to_string(),
            down: None,
            slot: Some(pool.slot),
        });
        process.sessions = vec![SessionDocument::from(&session.status())];
        process
    })
}

/// Serves what `process` says, for as long as the value lives.
pub(super) fn serve(
    context: &Context,
    state: &Path,
    process: impl Fn() -> ProcessDocument + Send + 'static,
) -> Option<Served> {
    let _within = context.runtime.enter();
    let directory = directory(state);
    let (listener, socket) = listen(&directory)
        .inspect_err(|error| {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "no socket can be made there: `backlane top` won't see this process");
        })
        .ok()?;
    let document = move || serde_json::to_vec(&process()).unwrap_or_default();
    Some(Served {
        socket,
        serving: tokio::spawn(answer(listener, document)),
    })
}

/// Where the sockets of a state directory are.
pub(super) fn directory(state: &Path) -> PathBuf {
    state.join("status")
}

/// A status that is served until this is dropped.
pub(super) struct Served {
    socket: PathBuf,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whoever finds none knows that the process has ended. One that stays is removed by whoever finds it.
        let _ = fs::remove_file(&self.socket);
        self.serving.abort();
    }
}

fn listen(directory: &Path) -> io::Result<(UnixListener, PathBuf)> {
    make_private(directory)?;
    let socket = directory.join(format!("{}.sock", std::process::id()));
    // One with this number is of a process that is dead.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    Ok((listener, socket))
}

/// Makes a directory that is its user's alone, also of one that is there; what is another's, or a link to it, is refused.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(directory, flags, Mode::empty())?);
    if directory.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it belongs to another user"));
    }
    directory.set_permissions(Permissions::from_mode(0o700))
}

async fn answer(listener: UnixListener, document: impl Fn() -> Vec<u8>) {
    let room = Arc::new(Semaphore::new(READERS_MAX));
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&room).acquire_owned().await;
        match listener.accept().await {
            Ok((mut reader, _)) => {
                let document = document();
                tokio::spawn(async move {
                    // Whoever doesn't take it in time goes without.
                    let _ = timeout(READER_WAIT, reader.write_all(&document)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "nobody can be told the status");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::symlink, time::Instant};
    use tokio::{io::AsyncReadExt, net::UnixStream};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn readers_that_take_nothing_keep_others_waiting_no_longer_than_they_may() {
        const BYTES: usize = 4 << 20;
        let state = tempfile::tempdir().unwrap();
        let directory = directory(state.path());
        let (listener, socket) = listen(&directory).unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&socket)), (0o700, 0o600));
        // More than the kernel keeps for one who doesn't read.
        let serving = tokio::spawn(answer(listener, || vec![b' '; BYTES]));
        let began = Instant::now();
        let mut idle = Vec::new();
        for _ in 0..2 * READERS_MAX {
            idle.push(UnixStream::connect(&socket).await.unwrap());
        }
        let mut got = Vec::new();
        let mut reader = UnixStream::connect(&socket).await.unwrap();
        let reading = timeout(READER_WAIT * 20, reader.read_to_end(&mut got));
        reading.await.unwrap().unwrap();
        assert_eq!(got.len(), BYTES);
        // So many at a time, and each for so long.
        assert!(began.elapsed() >= 2 * READER_WAIT);
        // Those whose places were given to others have lost them in time.
        for mut reader in idle.into_iter().take(READERS_MAX) {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            assert!(got.len() < BYTES);
        }
        serving.abort();
    }

    #[tokio::test]
    async fn no_socket_is_made_in_what_is_another_users_or_a_link_leads_to() {
        let state = tempfile::tempdir().unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let directory = directory(state.path());
        let elsewhere = state.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::set_permissions(&elsewhere, Permissions::from_mode(0o755)).unwrap();
        symlink(&elsewhere, &directory).unwrap();
        assert!(listen(&directory).is_err());
        assert_eq!(mode(&elsewhere), 0o755);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "******** SKIPPED: not root, who alone can give a directory to another user ********"
            );
            return;
        }
        std::os::unix::fs::chown(&elsewhere, Some(1), None).unwrap();
        assert!(listen(&elsewhere).is_err());
        assert_eq!(mode(&elsewhere), 0o755);
    }
}
