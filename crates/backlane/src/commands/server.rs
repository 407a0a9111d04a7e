//! `backlane server`: set up, run, enrol hosts.

use super::{
    adopt,
    documents::EnrollDocument,
    maintain, pool,
    status::{self, PoolDocument, ProcessDocument, SessionDocument},
    trust,
};
use crate::{
    Context,
    cli::{AuditCommand, EnrollArgs, ServerCommand, ServerInitArgs, ServerRunArgs},
    failure::{Advise, Usage},
    output::{Outcome, bytes, table},
};
use anyhow::{Context as _, Result};
use backlane_net::{Authority, Identity, Server, ServerOptions, ServerPool, identity::SERVER_NAME};
use backlane_server::{HostInfo, HostName, Leave, PoolConfig, ServerConfig, ServerState};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use serde::Serialize;
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// Runs one of the server's commands.
///
/// # Errors
/// When it can't be done.
pub(crate) fn run(command: &ServerCommand, context: &Context) -> Result<Outcome> {
    match command {
        ServerCommand::Init(args) => init(args, context),
        ServerCommand::Run(args) => serve(args, context),
        ServerCommand::Enroll(args) => enroll(args, context),
        ServerCommand::Hosts => hosts(context),
        ServerCommand::AllowRestore(args) => trust::allow_restore(args, context),
        ServerCommand::RevokeRestore(host) => trust::revoke_leave(host, Leave::Restore, context),
        ServerCommand::AllowMaintenance(args) => {
            trust::allow(&args.host, Leave::Maintenance, Some(args.length), context)
        }
        ServerCommand::RevokeMaintenance(host) => {
            trust::revoke_leave(host, Leave::Maintenance, context)
        }
        ServerCommand::AllowWal(args) => trust::allow(&args.host, Leave::Wal, args.length, context),
        ServerCommand::RevokeWal(host) => trust::revoke_leave(host, Leave::Wal, context),
        ServerCommand::Revoke(args) => trust::revoke(args, context),
        ServerCommand::Quota(args) => trust::quota(args, context),
        ServerCommand::Scrub(args) => trust::scrub(args, context),
        ServerCommand::Undelete(args) => maintain::undelete(args, context),
        ServerCommand::Adopt(args) => adopt::adopt(args, context),
        ServerCommand::Audit(AuditCommand::Verify) => trust::verify_audit(context),
    }
}

/// Opens the state of the server on this machine.
///
/// # Errors
/// When there is none.
pub(super) async fn open_state(context: &Context) -> Result<ServerState> {
    let path = config_path(context);
    let config = ServerConfig::read(&path)
        .advise("is a server set up on this machine? `backlane server init` does it")?;
    ServerState::open(config)
        .await
        .with_context(|| format!("cannot open the server of {}", path.display()))
}

fn config_path(context: &Context) -> PathBuf {
    let default = || backlane_server::config::CONFIG_PATH.into();
    context.config.clone().unwrap_or_else(default)
}

#[derive(Serialize)]
struct InitDocument {
    config: PathBuf,
    state: PathBuf,
    repositories: PathBuf,
    address: String,
    listen: SocketAddr,
    authority: String,
    pool: Option<String>,
}

fn init(args: &ServerInitArgs, context: &Context) -> Result<Outcome> {
    let path = config_path(context);
    let (host, port) = split_address(&args.address)?;
    let listen = args
        .listen
        .unwrap_or_else(|| SocketAddr::from(([0; 16], port)));
    let pool = match &args.pool[..] {
        [] => None,
        devices => Some(pool_config(devices)?),
    };
    let state = absolute(&args.state)?;
    let config = ServerConfig {
        listen,
        address: Some(args.address.clone()),
        data: args
            .objects
            .as_deref()
            .map_or_else(|| Ok(state.clone()), absolute)?,
        state,
        pool,
        ..ServerConfig::default()
    };
    let text = config_text(&config)?;
    let mut names = vec![SERVER_NAME.to_owned(), host];
    names.extend(args.names.iter().cloned());
    names.dedup();
    // First, so that nothing is made for a configuration that can't be kept.
    let mut file = new_file(&path)?;
    let made = context
        .runtime
        .block_on(ServerState::init(config, &names))
        .map_err(anyhow::Error::new)
        .and_then(|state| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(state)
        });
    let state = match made {
        Ok(state) => state,
        Err(error) => {
            // It is empty and ours; a second try must not find it.
            let _ = fs::remove_file(&path);
            return Err(error).context("cannot set up the server");
        }
    };
    let config = state.config();
    let document = InitDocument {
        config: path,
        state: config.state.clone(),
        repositories: config.repositories(),
        address: args.address.clone(),
        listen,
        authority: hex::encode(state.authority().fingerprint()),
        pool: config.pool.as_ref().map(|pool| pool.uuid.to_string()),
    };
    context.output.result(&document, |d| {
        let pool = d.pool.as_deref().unwrap_or("none: every job will take the network");
        format!(
            "server set up\n  configuration  {}\n  state          {}\n  repositories   {}\n  pool           {pool}\n\
             next: `backlane server run`, and `backlane server enroll HOST` for each host\n",
            d.config.display(),
            d.state.display(),
            d.repositories.display(),
        )
    })?;
    Ok(Outcome::Done)
}

fn pool_config(devices: &[PathBuf]) -> Result<PoolConfig> {
    let devices = devices
        .iter()
        .map(|d| absolute(d))
        .collect::<Result<Vec<_>>>()?;
    let pool = pool::inspect(&devices)?;
    Ok(PoolConfig {
        uuid: pool.uuid,
        name: Some(pool.name),
        devices,
        slots: pool.slots,
    })
}

/// The host part, without brackets, and the port.
fn split_address(address: &str) -> Result<(String, u16)> {
    let wrong = || Usage(format!("`{address}` is not of the form HOST:PORT"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let plain = !host.contains(':') || host.parse::<IpAddr>().is_ok();
    if host.is_empty() || !plain || port == 0 {
        return Err(wrong().into());
    }
    Ok((host.to_owned(), port))
}

/// The configuration as a file that a person edits.
fn config_text(config: &ServerConfig) -> Result<String> {
    let text = |path: &Path| -> Result<String> {
        let name = path.to_str().with_context(|| {
            format!(
                "{} is not UTF-8, which a configuration must be",
                path.display()
            )
        })?;
        Ok(quoted(name))
    };
    let mut out = String::from("# Backlane server. What is not said here has its default.\n");
    out.push_str(&format!(
        "listen = {}\n",
        quoted(&config.listen.to_string())
    ));
    if let Some(address) = &config.address {
        out.push_str(&format!("address = {}\n", quoted(address)));
    }
    out.push_str("# Ports for object bodies that can't take storage: \"any\", \"designated\", or \"40000-40099\".\n");
    out.push_str("data-ports = \"any\"\n");
    out.push_str(&format!(
        "state = {}\ndata = {}\n",
        text(&config.state)?,
        text(&config.data)?
    ));
    if let Some(pool) = &config.pool {
        let devices = pool
            .devices
            .iter()
            .map(|d| text(d))
            .collect::<Result<Vec<_>>>()?;
        out.push_str(&format!(
            "\n[pool]\nuuid = {}\n",
            quoted(&pool.uuid.to_string())
        ));
        if let Some(name) = &pool.name {
            out.push_str(&format!("name = {}\n", quoted(name)));
        }
        out.push_str(&format!(
            "devices = [{}]\nslots = {}\n",
            devices.join(", "),
            pool.slots
        ));
    }
    Ok(out)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
}

/// Makes a new file for a configuration, and the directories above it.
pub(super) fn new_file(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    File::create_new(path)
        .with_context(|| format!("cannot make {}", path.display()))
        .advise("an existing configuration is not overwritten; --config names another file")
}

#[derive(Serialize)]
struct ReadyDocument {
    address: SocketAddr,
    pool: Option<String>,
    /// What does the I/O on it.
    engine: Option<String>,
}

/// Lets this process have as many files open as the system allows: each connection is one, and each body under way.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "no more files can be open than that");
    }
}

fn serve(args: &ServerRunArgs, context: &Context) -> Result<Outcome> {
    raise_open_files();
    if args.until_stdin_closes {
        let cancel = context.cancel.clone();
        // A thread of its own: a read of standard input can't be cancelled, and must not keep the process.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().take(u64::MAX), &mut std::io::sink());
            cancel.set();
        });
    }
    context.runtime.block_on(async {
        let state = open_state(context).await?;
        let paths = state.authority_paths();
        let load = || Identity::load(&paths.server_certificate, &paths.server_key);
        let mut identity = load()?;
        if identity.expires_soon(SystemTime::now()).is_some() {
            state.authority().renew_server(&identity.names(), &paths)?;
            identity = load()?;
            tracing::info!("the server's certificate is renewed");
        }
        let authority = Authority::load(&paths.ca_certificate)?;
        let config = state.config().clone();
        let mut options = ServerOptions::new(config.listen, identity, authority, Arc::new(state));
        options.data_ports = data_ports(config.data_ports);
        options.route_ceiling = config.route_ceiling;
        options.pool = config.pool.as_ref().map(|pool| ServerPool {
            uuid: Some(pool.uuid),
            devices: pool.devices.clone(),
            lock_dir: config.state.join("locks"),
            engine: context.pool_engine,
        });
        // The pool may take a while, as another server may still have it.
        let server = tokio::select! {
            server = Server::bind(options) => server.context("cannot start the server")?,
            () = context.cancel.wait() => return Ok(Outcome::Done),
        };
        let ready = ReadyDocument {
            address: server.local_addr(),
            pool: config.pool.map(|pool| pool.uuid.to_string()),
            engine: server.engine().map(|engine| engine.to_string()),
        };
        let process = ProcessDocument::new("server", ready.address.to_string());
        let view = server.view();
        let _status = status::serve(context, &config.state, move || {
            let mut process = process.clone();
            if let Some(server) = view.status() {
                process.pool = server.pool.as_ref().map(PoolDocument::from);
                process.sessions = server.sessions.iter().map(SessionDocument::from).collect();
            }
            process
        });
        context.output.result(&ready, |ready| match &ready.pool {
            Some(pool) => format!("serving on {}, coordinating pool {pool}\n", ready.address),
            None => format!("serving on {}, without a pool\n", ready.address),
        })?;
        tell_supervisor(NotifyState::Ready);
        let stopping = async {
            context.cancel.wait().await;
            tell_supervisor(NotifyState::Stopping);
        };
        server
            .run(stopping)
            .await
            .context("the server had to stop")?;
        Ok(Outcome::Done)
    })
}

/// Tells systemd, or whatever has started the server and listens, what it is about.
fn tell_supervisor(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "whoever supervises this server can't be told how it is");
    }
}

fn data_ports(ports: backlane_server::DataPorts) -> backlane_net::DataPorts {
    match ports {
        backlane_server::DataPorts::Any => backlane_net::DataPorts::Any,
        backlane_server::DataPorts::Designated => backlane_net::DataPorts::Designated,
        backlane_server::DataPorts::Range { first, last } => {
            backlane_net::DataPorts::Range(first..=last)
        }
    }
}

fn enroll(args: &EnrollArgs, context: &Context) -> Result<Outcome> {
    let host = host_name(&args.host)?;
    let (token, slot) = context.runtime.block_on(async {
        let state = open_state(context).await?;
        let (token, slot) = if args.through_pool {
            let (token, slot) = state.enroll_through_pool(&host, args.expires).await?;
            (token, Some(slot))
        } else {
            (state.enroll(&host, args.expires).await?, None)
        };
        Ok::<_, anyhow::Error>((token.encode()?, slot))
    })?;
    let document = EnrollDocument {
        host: host.to_string(),
        token,
        slot,
        expires: time(SystemTime::now() + args.expires),
    };
    context.output.result(&document, |document| {
        // The token alone, so that it can be sent into a file or to another command.
        format!("{}\n", document.token)
    })?;
    if !context.output.is_json() {
        context.output.note(format!(
            "on {}, run `backlane join{}` and give it this token; it works once, until {}",
            document.host,
            document
                .slot
                .map_or_else(String::new, |slot| format!(" --device PATH… --slot {slot}")),
            document.expires
        ));
    }
    Ok(Outcome::Done)
}

/// The name of a host as it was typed.
pub(super) fn host_name(text: &str) -> Result<HostName> {
    Ok(text.parse().map_err(|error| Usage(format!("{error}")))?)
}

#[derive(Serialize)]
struct HostsDocument {
    hosts: Vec<HostDocument>,
}

#[derive(Serialize)]
struct HostDocument {
    name: String,
    enrolled: String,
    /// None if all are revoked, or it has none yet.
    certificate_expires: Option<String>,
    /// Until when it may read file contents.
    restore_until: Option<String>,
    /// Until when it may remove what isn't needed any more.
    maintain_until: Option<String>,
    slots: Vec<u32>,
    objects: u64,
    bytes: u64,
    last_arrival: Option<String>,
}

impl From<HostInfo> for HostDocument {
    fn from(host: HostInfo) -> Self {
        Self {
            name: host.name,
            enrolled: time(host.enrolled_at),
            certificate_expires: host.certificate_expires_at.map(time),
            restore_until: host.restore_until.map(time),
            maintain_until: host.maintain_until.map(time),
            slots: host.slots,
            objects: host.objects,
            bytes: host.bytes,
            last_arrival: host.last_arrival_at.map(time),
        }
    }
}

fn hosts(context: &Context) -> Result<Outcome> {
    let hosts = context.runtime.block_on(async {
        let state = open_state(context).await?;
        Ok::<_, anyhow::Error>(state.hosts().await?)
    })?;
    let document = HostsDocument {
        hosts: hosts.into_iter().map(HostDocument::from).collect(),
    };
    context.output.result(&document, |document| {
        let head = [
            "host",
            "certificate until",
            "may restore until",
            "may remove until",
            "slots",
            "objects",
            "bytes",
            "last arrival",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(document.hosts.iter().map(|host| {
            let slots: Vec<String> = host.slots.iter().map(u32::to_string).collect();
            vec![
                host.name.clone(),
                host.certificate_expires
                    .clone()
                    .unwrap_or_else(|| "none".to_owned()),
                host.restore_until.clone().unwrap_or_default(),
                host.maintain_until.clone().unwrap_or_default(),
                slots.join(","),
                host.objects.to_string(),
                bytes(host.bytes),
                host.last_arrival
                    .clone()
                    .unwrap_or_else(|| "never".to_owned()),
            ]
        }));
        table(&rows)
    })?;
    Ok(Outcome::Done)
}

/// A time as RFC 3339, to the second.
pub(super) fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| "beyond the calendar".to_owned(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_has_host_and_port() {
        assert_eq!(
            split_address("a.example:4870").unwrap(),
            ("a.example".to_owned(), 4870)
        );
        assert_eq!(split_address("[::1]:1").unwrap(), ("::1".to_owned(), 1));
        for bad in ["", "a", "a:", ":1", "a:b", "a:0", "a:b:1", "a:70000"] {
            assert!(split_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn written_configuration_is_read_back() {
        let config = ServerConfig {
            address: Some("backup \"one\".example:4870".to_owned()),
            state: "/s\\tate".into(),
            pool: Some(PoolConfig {
                uuid: uuid::Uuid::from_u128(7),
                name: Some("lane".to_owned()),
                devices: vec!["/dev/a".into(), "/dev/b \"c\"".into()],
                slots: 9,
            }),
            ..ServerConfig::default()
        };
        let text = config_text(&config).unwrap();
        assert_eq!(ServerConfig::parse(&text, Path::new("x")).unwrap(), config);
    }
}
