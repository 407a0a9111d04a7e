//! An authority, a server and its hosts, all within the test.

use crate::service::Memory;
use backlane_net::{
    Authority, ClientConfig, DataPorts, EngineKind, Identity, Server, ServerOptions, ServerView,
    identity::SERVER_NAME, identity::request_for,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot, watch},
    task::{AbortHandle, JoinHandle},
};

/// A certificate authority.
#[derive(Clone)]
pub(crate) struct Ca {
    pub(crate) pem: String,
    key_pem: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        let key_pem = key.serialize_pem();
        Self { pem, key_pem }
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::from_pem(&self.pem).unwrap()
    }

    pub(crate) fn sign(&self, name: &str, csr_pem: &str, usage: ExtendedKeyUsagePurpose) -> String {
        let key = KeyPair::from_pem(&self.key_pem).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.pem, key).unwrap();
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        csr.params.subject_alt_names = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .subject_alt_names;
        csr.params.extended_key_usages = vec![usage];
        csr.signed_by(&issuer).unwrap().pem()
    }

    pub(crate) fn identity(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Identity {
        let request = request_for(name).unwrap();
        let certificate = self.sign(name, &request.csr_pem, usage);
        Identity::from_pem(&certificate, &request.key_pem).unwrap()
    }

    pub(crate) fn host(&self, name: &str) -> Identity {
        self.identity(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server(&self) -> Identity {
        self.identity(SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth)
    }
}

/// A server that runs.
pub(crate) struct World {
    pub(crate) ca: Ca,
    pub(crate) service: Arc<Memory>,
    pub(crate) addr: SocketAddr,
    /// What does the server's I/O on its pool.
    pub(crate) engine: Option<EngineKind>,
    pub(crate) view: ServerView,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&Ca, &mut ServerOptions)) -> Self {
        let ca = Ca::new();
        let signer = ca.clone();
        let service = Arc::new(Memory {
            stores: Mutex::default(),
            tokens: Mutex::default(),
            sign: Box::new(move |host, csr| {
                Ok(signer.sign(host, csr, ExtendedKeyUsagePurpose::ClientAuth))
            }),
            revoked: Mutex::default(),
            slots: vec![1, 2, 3, 4],
            desk: Semaphore::new(1000),
            at_desk: AtomicUsize::new(0),
        });
        let listen = "127.0.0.1:0".parse().unwrap();
        Self::again(listen, ca.clone(), service, |options| change(&ca, options)).await
    }

    /// A server at an address, with the hosts and objects of one before.
    pub(crate) async fn again(
        listen: SocketAddr,
        ca: Ca,
        service: Arc<Memory>,
        change: impl FnOnce(&mut ServerOptions),
    ) -> Self {
        let service_object = Arc::clone(&service) as _;
        let mut options = ServerOptions::new(listen, ca.server(), ca.authority(), service_object);
        options.data_ports = DataPorts::Any;
        change(&mut options);
        let server = Server::bind(options).await.unwrap();
        let (addr, engine, view) = (server.local_addr(), server.engine(), server.view());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            server.run(async { drop(stopped.await) }).await.unwrap();
        });
        let stop = Some(stop);
        Self {
            ca,
            service,
            addr,
            engine,
            view,
            stop,
            running,
        }
    }

    pub(crate) fn client(&self, host: &str) -> ClientConfig {
        let identity = self.ca.host(host);
        ClientConfig::new(self.addr.to_string(), identity, self.ca.authority())
    }

    /// A word to the server that it should end.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.running).await.unwrap();
    }

    /// The server vanishes with all of its connections.
    pub(crate) async fn kill(self) {
        self.running.abort();
        // The outcome is the cancellation.
        let _ = self.running.await;
    }
}

/// Passes connections on to a server, and cuts those that a test names.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) passed: Arc<Mutex<Vec<AbortHandle>>>,
    listening: AbortHandle,
    frozen: watch::Sender<bool>,
}

static PROXIES: AtomicUsize = AtomicUsize::new(0);

impl Proxy {
    pub(crate) async fn new(to: SocketAddr) -> Self {
        // At another address and the same port, so that an announced port leads here as well.
        let host = 2 + (PROXIES.fetch_add(1, Ordering::Relaxed) % 250) as u8;
        let addr = ([127, 0, 0, host], to.port());
        let listener = TcpListener::bind(SocketAddr::from(addr)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&passed);
        let (frozen, freeze) = watch::channel(false);
        let listening = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut freeze = freeze.clone();
                let passing = tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else {
                        return;
                    };
                    let freezes = async { drop(freeze.wait_for(|frozen| *frozen).await) };
                    let froze = tokio::select! {
                        // However it ends, both ends learn it.
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
                        () = freezes => true,
                    };
                    if froze {
                        // Nobody learns anything.
                        std::future::pending::<()>().await;
                    }
                });
                list.lock().unwrap().push(passing.abort_handle());
            }
        });
        Self {
            addr,
            passed,
            listening: listening.abort_handle(),
            frozen,
        }
    }

    /// Nothing passes any more, and nobody is told.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Nothing passes any more, and whoever tries is told.
    pub(crate) fn close(&self) {
        self.listening.abort();
        for passing in self.passed.lock().unwrap().iter() {
            passing.abort();
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.passed.lock().unwrap().len()
    }
}

/// Waits for a condition that something else brings about.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    in_time(what, poll).await;
}

/// Fails the test when something takes for ever.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not happen in time"),
    }
}
