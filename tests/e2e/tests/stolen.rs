//! A stolen host with a client of its own: the host's real certificate and key, against the real server, past all that the
//! stock client refuses by itself. Each call that isn't allowed is refused in clear words, and others work beside it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use backlane_e2e::{Client, Lane, Scene, Setup, Side, System, until};
use backlane_net::{Authority, ClientConfig, Error, Identity, Session, identity::SERVER_NAME};
use backlane_proto::{
    ByteRange, CallId, Features, FromClient, ObjectId, ObjectInfo, ObjectKind, ObjectName, Opened,
    Opening, PackContents, Request, Route, RoutePolicy, SessionFor, VersionRange, message::Hello,
};
use bytes::Bytes;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const MIB: u64 = 1 << 20;

/// Sessions that are tried, and how many of them the server may give to one host.
const SESSIONS_TRIED: usize = 200;
const SESSIONS_MAX: usize = 16;

/// Bodies that are announced and never come.
const BODIES_ANNOUNCED: u64 = 200;

/// No refusal takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a program of the attacker's on the clients' side of the wire.
fn attack<T: Send>(lane: &Lane, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            lane.enter(Side::Client)?;
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build()?.block_on(work())
        });
        thread
            .join()
            .map_err(|_| anyhow!("the attacker panicked"))?
    })
}

fn server() -> String {
    format!("{}:4710", Side::Server.address())
}

async fn session(thief: &Client) -> Result<Session, Error> {
    session_for(thief, SessionFor::Jobs).await
}

async fn session_for(thief: &Client, session_for: SessionFor) -> Result<Session, Error> {
    let of = |name: &str| thief.state.join(name);
    let identity = Identity::load(&of("host.pem"), &of("host.key"))?;
    let mut config = ClientConfig::new(server(), identity, Authority::load(&of("ca.pem"))?);
    config.policy = RoutePolicy::Network;
    config.session_for = session_for;
    Session::connect(config).await
}

fn named(kind: ObjectKind, body: &[u8]) -> ObjectName {
    let mut id = [0; 32];
    id.copy_from_slice(digest(&SHA256, body).as_ref());
    let id = ObjectId(id);
    ObjectName { kind, id }
}

/// Fails unless a call was refused in these words.
fn refused<T>(what: &str, result: Result<T, Error>, words: &str) -> Result<()> {
    let Err(error) = result else {
        return Err(anyhow!("{what} was allowed"));
    };
    println!("{what}: {error}");
    ensure!(error.to_string().contains(words), "{what}: {error}");
    Ok(())
}

/// The objects of a repository, as they lie on the server's disk.
fn on_disk(system: &System, client: &Client) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut left = vec![system.repository(client)?];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            match path.is_dir() {
                true => left.push(path),
                false => found.push((path.display().to_string(), fs::read(&path)?)),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A part of an object.
fn part(offset: u64, length: u64) -> Option<ByteRange> {
    Some(ByteRange { offset, length })
}

/// Packs that the host may not read, and how many it may.
async fn closed_packs(session: &Session) -> Result<(Vec<ObjectInfo>, usize)> {
    let (mut closed, mut open) = (Vec::new(), 0);
    for info in session.list(ObjectKind::Pack).await? {
        let name = ObjectName {
            kind: ObjectKind::Pack,
            id: info.id,
        };
        match session.get(name, None).await {
            Ok(_) => open += 1,
            Err(_) => closed.push(info),
        }
    }
    Ok((closed, open))
}

/// Reads that aren't allowed.
async fn reads(thief: &Client) -> Result<()> {
    const ADVICE: &str = "allow-restore alpha";
    let session = session(thief).await?;
    let maintenance = session_for(thief, SessionFor::Maintenance).await;
    refused("maintenance", maintenance, "allow-maintenance alpha")?;
    let (closed, open) = closed_packs(&session).await?;
    ensure!(
        !closed.is_empty() && open > 0,
        "{} closed, {open} open",
        closed.len()
    );
    for info in closed {
        let name = ObjectName {
            kind: ObjectKind::Pack,
            id: info.id,
        };
        refused(
            "a pack of file contents",
            session.get(name, None).await,
            ADVICE,
        )?;
        for (offset, length) in [(0, 1), (info.bytes / 2, 16), (0, info.bytes)] {
            let read = session.get(name, part(offset, length)).await;
            refused("a part of it", read, ADVICE)?;
        }
        // Its header is what a backup may need; what lies behind the end is nobody's.
        session.get(name, part(info.bytes - 4, 4)).await?;
        let read = session.get(name, part(info.bytes - 4, 8)).await;
        refused("a range beyond its end", read, "asked for were")?;
        let read = session.get(name, part(u64::MAX - 1, 1)).await;
        refused("a range beyond every end", read, "asked for were")?;
    }
    Ok(())
}

/// Names are numbers of a kind, and a session has one repository: with a permission to read, and without, nothing leads to
/// an object of another host.
async fn reads_of(thief: &Client, others: ObjectName, words: &str) -> Result<()> {
    let session = session(thief).await?;
    let read = session.get(others, None).await;
    refused("an object of another host", read, words)
}

/// Writes and removals that aren't allowed. `body` is that of a pack which is there.
async fn writes(thief: &Client, body: Vec<u8>) -> Result<()> {
    let session = session(thief).await?;
    let put = async |name, body: &[u8]| {
        let body = Bytes::copy_from_slice(body);
        session.put(name, PackContents::Trees, body).await
    };
    let there = named(ObjectKind::Pack, &body);
    refused(
        "another body under a name that is there",
        put(there, b"other").await,
        "was refused",
    )?;
    // The same one is a success, and doesn't make trees of what was said to be data.
    put(there, &body).await?;
    let read = session.get(there, None).await;
    refused("what was put again as trees", read, "allow-restore alpha")?;
    let config = ObjectName {
        kind: ObjectKind::Config,
        id: ObjectId::NONE,
    };
    refused(
        "another config",
        put(config, b"other").await,
        "administrator",
    )?;
    let key = br#"{"kdf":"scrypt"}"#;
    refused(
        "a key",
        put(named(ObjectKind::Key, key), key).await,
        "administrator",
    )?;
    for kind in [
        ObjectKind::Snapshot,
        ObjectKind::Index,
        ObjectKind::Key,
        ObjectKind::Pack,
    ] {
        for info in session.list(kind).await? {
            let name = ObjectName { kind, id: info.id };
            refused("a removal", session.remove(name).await, "removes")?;
        }
    }
    refused(
        "a removal of the config",
        session.remove(config).await,
        "removes",
    )?;
    Ok(())
}

/// Opens sessions without end; gives those that it got, and what was said to the others.
async fn sessions(thief: &Client) -> Result<(Vec<Session>, Vec<String>)> {
    let (mut open, mut words) = (Vec::new(), Vec::new());
    for _ in 0..SESSIONS_TRIED {
        match session(thief).await {
            Ok(session) => open.push(session),
            Err(error) => words.push(error.to_string()),
        }
    }
    Ok((open, words))
}

/// Announces bodies that never come, until the server has had enough.
async fn announce(thief: &Client) -> Result<()> {
    let mut control = dial(thief).await?;
    let hello = Opening::Hello(Hello {
        versions: VersionRange::SPOKEN,
        features: Features(u64::MAX),
        policy: RoutePolicy::Network,
        software: "of the attacker".into(),
        continues: None,
        session_for: SessionFor::Jobs,
    });
    send(&mut control, &hello.encode()).await?;
    let opened = Opened::decode(&receive(&mut control).await?);
    ensure!(matches!(opened, Ok(Opened::Welcome(_))), "{opened:?}");
    for call in 1..=BODIES_ANNOUNCED {
        let request = Request::Put {
            name: named(ObjectKind::Pack, &call.to_le_bytes()),
            contents: PackContents::Data,
            bytes: 8 * MIB,
            route: Route::Network,
        };
        let message = FromClient {
            call: CallId(call),
            request,
        }
        .encode();
        if send(&mut control, &message).await.is_err() {
            break;
        }
    }
    let ended = async { while receive(&mut control).await.is_ok() {} };
    let ended = tokio::time::timeout(PATIENCE, ended).await;
    ended.context("a session that announces without end goes on")
}

async fn dial(thief: &Client) -> Result<TlsStream<TcpStream>> {
    let read = |name: &str| fs::read(thief.state.join(name));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.pem")?)?)?;
    let chain = CertificateDer::pem_slice_iter(&read("host.pem")?).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&read("host.key")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"backlane/1".to_vec()];
    let tcp = TcpStream::connect(server()).await?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector
        .connect(ServerName::try_from(SERVER_NAME)?, tcp)
        .await?)
}

async fn send(to: &mut TlsStream<TcpStream>, message: &[u8]) -> Result<()> {
    to.write_all(&u32::try_from(message.len())?.to_le_bytes())
        .await?;
    to.write_all(message).await?;
    Ok(to.flush().await?)
}

async fn receive(from: &mut TlsStream<TcpStream>) -> Result<Vec<u8>> {
    let length = from.read_u32_le().await?;
    let mut message = vec![0; usize::try_from(length)?];
    from.read_exact(&mut message).await?;
    Ok(message)
}

#[test]
fn a_modified_client_gets_no_further_than_the_stock_one() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 12 * MIB)? else {
        return Ok(());
    };
    let (system, thief) = (&scene.system, &scene.client);
    scene.backup("network")?.success()?;
    let neighbour = system.client("beta")?;
    system.works(&neighbour, 1)?;
    system.administer(&["revoke-restore", "alpha"])?;
    let before = on_disk(system, thief)?;
    let of_neighbour = on_disk(system, &neighbour)?;
    let pack = |objects: &[(String, Vec<u8>)]| {
        let largest = objects.iter().max_by_key(|(_, body)| body.len());
        largest.map(|(_, body)| body.clone()).context("no object")
    };
    let (own, others) = (
        pack(&before)?,
        named(ObjectKind::Pack, &pack(&of_neighbour)?),
    );

    attack(&system.lane, async || reads(thief).await)?;
    let closed = async || reads_of(thief, others, "allow-restore alpha").await;
    attack(&system.lane, closed)?;
    system.administer(&["allow-restore", "alpha", "--for", "1h"])?;
    let missing = async || reads_of(thief, others, "does not exist").await;
    attack(&system.lane, missing)?;
    system.administer(&["revoke-restore", "alpha"])?;
    attack(&system.lane, async || writes(thief, own).await)?;
    ensure!(on_disk(system, thief)? == before, "something has changed");
    ensure!(
        on_disk(system, &neighbour)? == of_neighbour,
        "something has changed"
    );

    // While the thief holds all that it gets, others work.
    attack(&system.lane, async || {
        let (open, words) = sessions(thief).await?;
        println!("{} sessions, then: {}", open.len(), words[0]);
        ensure!(
            (1..=SESSIONS_MAX).contains(&open.len()),
            "{} sessions",
            open.len()
        );
        ensure!(
            words.iter().all(|word| word.contains("sessions")),
            "{words:?}"
        );
        system.works(&neighbour, 2)
    })?;
    attack(&system.lane, async || announce(thief).await)?;
    system.works(&neighbour, 3)?;
    // Nothing of what was announced is kept, and the host's own jobs are as they were.
    until("nothing is under way", || {
        Ok(on_disk(system, thief)? == before)
    })?;
    system.run(thief, ["snapshots"])?.success()?;
    scene.backup("network")?.success()?;

    let log = fs::read_to_string(system.path("server/audit.jsonl"))?;
    let refusals = log
        .lines()
        .filter(|line| line.contains("\"event\":\"call-refused\"") && line.contains("alpha"));
    ensure!(refusals.count() > 0, "{log}");
    system.administer(&["audit", "verify"])?;
    system.restic(thief, &["check", "--read-data"])?.success()?;
    Ok(())
}
