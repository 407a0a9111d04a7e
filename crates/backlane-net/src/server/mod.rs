//! The server's side: accepts sessions and enrolments, and hands calls to the [`Service`].
//!
//! Invariants: nobody without a certificate of the authority gets further than an enrolment; what a peer can make the
//! server hold is bounded (handshakes, sessions, calls, chunks of each body) and bounded in time until it has proved who
//! it is; the bodies of answers are routed by the same function as those of requests.

mod calls;
mod connection;
mod link;
mod probe;
mod session;
mod storage;

use crate::{
    Authority, Error, Identity,
    service::Service,
    status::{ServerStatus, SessionStatus},
    tls::ServerTls,
};
use backlane_proto::{
    RoutePolicy,
    message::{SessionId, SessionSecret},
};
use session::Session;
use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use storage::Storage;
use storage_socket::{EngineChoice, EngineKind};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use uuid::Uuid;

/// Connections that may be between their first byte and the end of their first exchange.
const HANDSHAKES_MAX: usize = 128;
/// Enrolments that the service is asked for at once: anybody may ask, and must not take its time from sessions.
const ENROLMENTS_MAX: usize = 3;
/// How long a shutdown waits for sessions to end.
const FAREWELL_WAIT: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a server listens.
pub struct ServerOptions {
    /// The designated TCP port: control, events and enrolment.
    pub listen: SocketAddr,
    /// The server's key and certificate; the certificate carries [`crate::identity::SERVER_NAME`].
    pub identity: Identity,
    /// The authority that signs hosts.
    pub authority: Authority,
    /// What does the work.
    pub service: Arc<dyn Service>,
    /// The pool that the server coordinates.
    pub pool: Option<ServerPool>,
    /// Where data connections are accepted.
    pub data_ports: DataPorts,
    /// Sessions at once, over all hosts.
    pub sessions_max: usize,
    /// Sessions at once of one host, so that none can keep the others out.
    pub sessions_per_host_max: usize,
    /// How long nothing may come of a body that was announced, while its route is well.
    pub body_idle: Duration,
    /// What is left of each session's policy is what this one allows as well.
    pub route_ceiling: RoutePolicy,
    /// Name and version of this program, for clients' logs.
    pub software: String,
}

/// The pool that a server coordinates.
#[derive(Clone, Debug)]
pub struct ServerPool {
    /// The pool; devices of another are refused. `None` takes what the devices say.
    pub uuid: Option<Uuid>,
    /// Paths of all of its devices, in any order.
    pub devices: Vec<PathBuf>,
    /// Directory of the lock file that keeps a second server of this host from the pool.
    pub lock_dir: PathBuf,
    /// What does the I/O.
    pub engine: EngineChoice,
}

/// Where network data connections are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum DataPorts {
    /// On any port that the system gives.
    #[default]
    Any,
    /// On the first free port of a range, for firewalls.
    Range(RangeInclusive<u16>),
    /// On the designated port itself.
    Designated,
}

/// A server that listens, and isn't running yet.
pub struct Server {
    core: Arc<Core>,
    designated: TcpListener,
    /// Where data connections come, unless it is the designated port.
    data: Option<TcpListener>,
    local_addr: SocketAddr,
}

/// How a server stands, as long as there is one.
#[derive(Clone)]
pub struct ServerView(Weak<Core>);

/// What all connections of a server share.
pub(crate) struct Core {
    tls: ServerTls,
    service: Arc<dyn Service>,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    sessions_max: usize,
    sessions_per_host_max: usize,
    body_idle: Duration,
    route_ceiling: RoutePolicy,
    data_port: u16,
    software: String,
    storage: Option<Arc<Storage>>,
    enrolments: Semaphore,
    stopping: watch::Sender<bool>,
}

/// Which port a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// The designated one, of TCP or of the pool.
    Designated,
    /// That for network data alone.
    Data,
}

impl ServerOptions {
    /// Options without a pool, with the defaults.
    #[must_use]
    pub fn new(
        listen: SocketAddr,
        identity: Identity,
        authority: Authority,
        service: Arc<dyn Service>,
    ) -> Self {
        Self {
            listen,
            identity,
            authority,
            service,
            pool: None,
            data_ports: DataPorts::default(),
            sessions_max: 256,
            sessions_per_host_max: 16,
            body_idle: Duration::from_secs(600),
            route_ceiling: RoutePolicy::PreferStorage,
            software: concat!("backlane ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Server {
    /// Opens the pool, and listens.
    ///
    /// # Errors
    /// When an address is taken, the identity can't be used, or the pool can't be opened.
    pub async fn bind(options: ServerOptions) -> Result<Self, Error> {
        let tls = ServerTls::new(&options.identity, &options.authority)?;
        let designated = listen(options.listen).await?;
        let local_addr = designated.local_addr().map_err(|error| Error::Listen {
            addr: options.listen,
            why: error.to_string(),
        })?;
        let data = match &options.data_ports {
            DataPorts::Designated => None,
            DataPorts::Any => Some(listen(SocketAddr::new(local_addr.ip(), 0)).await?),
            DataPorts::Range(ports) => Some(listen_in(local_addr, ports.clone()).await?),
        };
        let data_port = data
            .as_ref()
            .and_then(|data| data.local_addr().ok())
            .map_or(local_addr.port(), |addr| addr.port());
        let storage = match options.pool {
            Some(pool) => Some(Storage::open(pool, &*options.service).await?),
            None => None,
        };
        let core = Arc::new(Core {
            tls,
            service: options.service,
            sessions: Mutex::new(HashMap::new()),
            sessions_max: options.sessions_max,
            sessions_per_host_max: options.sessions_per_host_max,
            body_idle: options.body_idle,
            route_ceiling: options.route_ceiling,
            data_port,
            software: options.software,
            storage,
            enrolments: Semaphore::new(ENROLMENTS_MAX),
            stopping: watch::Sender::new(false),
        });
        Ok(Self {
            core,
            designated,
            data,
            local_addr,
        })
    }

    /// The designated address, with the port that the system gave where port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What does the I/O on the pool, if there is one.
    #[must_use]
    pub fn engine(&self) -> Option<EngineKind> {
        self.core.storage.as_ref()?.engine()
    }

    /// A view of the server that is good while it runs.
    #[must_use]
    pub fn view(&self) -> ServerView {
        ServerView(Arc::downgrade(&self.core))
    }

    /// Serves until `shutdown` is ready; then ends every session with a word of farewell and returns.
    ///
    /// # Errors
    /// When the server can't go on.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut connections = JoinSet::new();
        let mut designated = JoinSet::new();
        if let Some(storage) = &self.core.storage {
            let core = Arc::downgrade(&self.core);
            designated.spawn(Arc::clone(storage).keep(core));
        }
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = accept(&self.designated, &handshakes) => {
                    self.serve(&mut connections, Port::Designated, accepted);
                }
                accepted = accept_data(self.data.as_ref(), &handshakes) => {
                    self.serve(&mut connections, Port::Data, accepted);
                }
                // Only reaps; what failed was logged where it happened.
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
        self.core.stopping.send_replace(true);
        let farewells = async {
            while connections.join_next().await.is_some() {}
            while designated.join_next().await.is_some() {}
        };
        if timeout(FAREWELL_WAIT, farewells).await.is_err() {
            tracing::warn!("sessions did not end in {FAREWELL_WAIT:?} and are cut off");
            connections.shutdown().await;
        }
        designated.shutdown().await;
        if let Some(storage) = &self.core.storage {
            storage.close().await;
        }
        Ok(())
    }

    fn serve(
        &self,
        connections: &mut JoinSet<()>,
        port: Port,
        accepted: (TcpStream, SocketAddr, OwnedSemaphorePermit),
    ) {
        let (tcp, peer, permit) = accepted;
        let core = Arc::clone(&self.core);
        connections.spawn(connection::serve_tcp(core, tcp, peer, port, permit));
    }
}

impl ServerView {
    /// How the server stands; `None` once it is gone.
    #[must_use]
    pub fn status(&self) -> Option<ServerStatus> {
        let core = self.0.upgrade()?;
        let sessions: Vec<_> = core.sessions().values().cloned().collect();
        let mut sessions: Vec<SessionStatus> = sessions.iter().map(|it| it.status()).collect();
        sessions.sort_by(|one, other| {
            let by_age = other.age.cmp(&one.age);
            one.host.cmp(&other.host).then(by_age)
        });
        Some(ServerStatus {
            pool: core.storage.as_ref().map(|storage| storage.status()),
            sessions,
        })
    }
}

impl Core {
    /// A session of a host, for whoever knows its secret.
    fn session_of(
        &self,
        host: Option<&str>,
        id: SessionId,
        secret: &SessionSecret,
    ) -> Option<Arc<Session>> {
        let session = self.sessions().get(&id).cloned();
        session.filter(|session| session.knows(secret) && host == Some(&session.host))
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
        // A panic under this lock can only be a bug here; the map stays usable.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts a connection when there is room for its handshake.
async fn accept(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = Arc::clone(handshakes).acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((tcp, peer)) => return (tcp, peer, permit),
            Err(error) => {
                // Out of descriptors, say: what ends soon, and must not become a busy loop.
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept_data(
    listener: Option<&TcpListener>,
    handshakes: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    match listener {
        Some(listener) => accept(listener, handshakes).await,
        None => std::future::pending().await,
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| Error::Listen {
            addr,
            why: error.to_string(),
        })
}

async fn listen_in(like: SocketAddr, ports: RangeInclusive<u16>) -> Result<TcpListener, Error> {
    let mut last = Error::Listen {
        addr: SocketAddr::new(like.ip(), *ports.start()),
        why: "the range of data ports is empty".to_owned(),
    };
    for port in ports {
        match listen(SocketAddr::new(like.ip(), port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}
