//! The yardstick for CPU: TLS 1.3 with AES-256-GCM over TCP on the loopback network, between two processes.
//!
//! It does what a stream does: large writes of the same bytes by one side, large reads by the other. As with streams,
//! both are counted once everything is warm.

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    version::TLS13,
};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use storage_socket::bench::cpu_seconds;

/// Bytes of a write and of a read, as of a frame.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces before anything is counted.
const WARM_PIECES: usize = 64;
const NAME: &str = "localhost";

/// What the other process is told.
#[derive(Serialize, Deserialize)]
struct Errand {
    port: u16,
    certificate: Vec<u8>,
    slice: Duration,
}

/// What the other process has spent.
#[derive(Serialize, Deserialize)]
struct Spent {
    bytes: f64,
    cpu_seconds: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct TlsReport {
    pub(super) cpu_seconds_per_gib: f64,
}

/// Receives from `child`, which has to call [`child`](self::child).
pub(super) fn measure(slice: Duration, child: &mut Command) -> Result<TlsReport> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let certificate = made.cert.der().clone();
    let errand = Errand {
        port: listener.local_addr()?.port(),
        certificate: certificate.to_vec(),
        slice,
    };
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the other process")?;
    let mut told = child.stdin.take().context("it was piped")?;
    serde_json::to_writer(&mut told, &errand)?;
    drop(told);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
        )?;
    // Nobody would read them.
    config.send_tls13_tickets = 0;
    let (tcp, _) = listener.accept()?;
    tcp.set_nodelay(true)?;
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config))?, tcp);
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..WARM_PIECES {
        tls.read_exact(&mut piece)?;
    }
    let cpu = cpu_seconds();
    while tls.read(&mut piece)? > 0 {}
    let own = cpu_seconds() - cpu;
    let suite = tls
        .conn
        .negotiated_cipher_suite()
        .map(|suite| suite.suite());
    ensure!(
        suite == Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384),
        "TLS took another cipher"
    );
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the other process: {}", output.status);
    }
    let sender: Spent = serde_json::from_slice(&output.stdout)?;
    Ok(TlsReport {
        cpu_seconds_per_gib: (own + sender.cpu_seconds) * f64::from(1 << 30) / sender.bytes,
    })
}

/// The sending process.
pub(super) fn child() -> Result<()> {
    let errand: Errand = serde_json::from_reader(io::stdin().lock())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(errand.certificate))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, errand.port))?;
    tcp.set_nodelay(true)?;
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME)?)?;
    // A write is taken whole, and leaves in as few system calls as possible.
    connection.set_buffer_limit(None);
    let mut tls = StreamOwned::new(connection, tcp);
    let piece = vec![0x5a; PIECE_BYTES];
    for _ in 0..WARM_PIECES {
        tls.write_all(&piece)?;
    }
    let (start, cpu, mut bytes) = (Instant::now(), cpu_seconds(), 0.0);
    while bytes == 0.0 || start.elapsed() < errand.slice {
        tls.write_all(&piece)?;
        bytes += 1_048_576.0;
    }
    let cpu_seconds = cpu_seconds() - cpu;
    tls.conn.send_close_notify();
    tls.flush()?;
    serde_json::to_writer(io::stdout().lock(), &Spent { bytes, cpu_seconds })?;
    Ok(())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..aws_lc_rs::default_provider()
    })
}
