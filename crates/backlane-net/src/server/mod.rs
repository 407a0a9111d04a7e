//! The server's side: accepts sessions and enrolments, and hands calls to the [`Service`].

use crate::{Authority, Error, Identity, service::Service};
use std::{future::Future, net::SocketAddr, ops::RangeInclusive, path::PathBuf, sync::Arc};
use uuid::Uuid;

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
pub struct Server {}

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
            sessions_max: 64,
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
        let _ = options;
        unimplemented!()
    }

    /// The designated address, with the port that the system gave where port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Serves until `shutdown` is ready; then ends every session with a word of farewell and returns.
    ///
    /// # Errors
    /// When the server can't go on.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let _ = shutdown.await;
        unimplemented!()
    }
}
