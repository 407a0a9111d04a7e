//! `backlane wal run`, `receive`, `push`, `fetch`, `list`, `check`, `expire`: the write-ahead log of PostgreSQL, archived at
//! the server (`docs/design/wal.md`).

pub(super) mod expire;
mod receive;

use super::{
    server::time,
    session::{self, Client},
};
use crate::{
    Context,
    cli::{WalCommand, WalFetchArgs, WalPushArgs, WalReadArgs, WalRunArgs},
    config::{self, ClientFile},
    failure::Advise,
    output::{Outcome, bytes, table},
    signals::Cancel,
};
use anyhow::{Context as _, Result, bail};
use backlane_client::wal::{
    self, Archive, Fetched, Partly, Spooler,
    archive::{self, ArchivedSystem, ArchivedTimeline, Gap},
};
use backlane_net::Session;
use backlane_proto::{ObjectId, ObjectKind, WalName};
use backlane_source::postgres::{Control, Lsn};
use rustix::fs::Mode;
use sd_notify::NotifyState;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::chown,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Pause before another session is tried.
const SESSION_PAUSE: Duration = Duration::from_secs(2);
/// How often the log tells by which routes WAL went, where any did.
const ROUTES_TOLD_EVERY: Duration = Duration::from_secs(60);
/// What only its owner and its group may use.
const SOCKET_MASK: Mode = Mode::from_raw_mode(0o117);
/// Exit code of a program that PostgreSQL asked to end, as shells know it (128 + SIGTERM).
const TERMINATED: i32 = 143;

/// Runs one of the commands.
///
/// # Errors
/// When it can't be done.
pub(super) fn run(command: &WalCommand, context: &Context) -> Result<Outcome> {
    match command {
        WalCommand::Run(args) => serve(args, context),
        WalCommand::Receive(args) => receive::receive(args, context),
        WalCommand::Push(args) => push(args, context),
        WalCommand::Fetch(args) => fetch(args, context),
        WalCommand::List(args) => list(args, context),
        WalCommand::Check(args) => check(args, context),
        WalCommand::Expire(args) => expire::expire(args, context),
    }
}

fn serve(args: &WalRunArgs, context: &Context) -> Result<Outcome> {
    // What can't get better by waiting is said at once.
    let config = ClientFile::read(&config::path(context.config.as_deref()))?;
    config::read_key(&config.repository_key())?;
    let socket = &args.socket.socket;
    let listener = listen(socket, args.group.as_deref())?;
    let spooler = Spooler::new();
    let serving = Arc::clone(&spooler);
    std::thread::spawn(move || serving.serve(&listener));
    tracing::info!(socket = %socket.display(), server = config.server, "serving");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "whoever supervises this process can't be told how it is");
    }
    while !context.cancel.is_set() {
        let held = session::wal("wal run", context, &args.route, |client| {
            hold(client, &spooler, context)
        });
        if let Err(error) = held
            && !context.cancel.is_set()
        {
            tracing::warn!(error = format!("{error:#}"), "no session; trying again");
            spooler.set_archive(Err(format!("{error:#}")));
        }
        context.runtime.block_on(async {
            tokio::select! {
                () = context.cancel.wait() => {}
                () = tokio::time::sleep(SESSION_PAUSE) => {}
            }
        });
    }
    fs::remove_file(socket).with_context(|| format!("cannot remove {}", socket.display()))?;
    Ok(Outcome::Done)
}

/// Lets the spooler use a session until that is over.
fn hold(client: &Client, spooler: &Spooler, context: &Context) -> Result<()> {
    let key = client.repository()?.wal_key();
    spooler.set_archive(Ok(Archive {
        store: client.store(),
        key,
    }));
    let session = client.session();
    context
        .runtime
        .block_on(watch(session, context.cancel.clone()));
    let why = match session.failure() {
        Some(error) => error.to_string(),
        None => "`backlane wal run` is stopping".to_owned(),
    };
    // The session ends with its last user.
    spooler.set_archive(Err(why.clone()));
    bail!(why)
}

/// Waits until a session is over, and tells meanwhile by which routes WAL goes.
async fn watch(session: &Session, cancel: Cancel) {
    let storage_down = session.routes().storage.err().map(|down| down.to_string());
    tracing::info!(host = session.host(), policy = %session.policy(), storage_down, "session open");
    let mut events = session.events();
    let mut clock = tokio::time::interval(ROUTES_TOLD_EVERY);
    let mut told = session.report();
    let mut tell = || {
        let report = session.report();
        let (storage, network) = (report.storage(), report.network());
        if (storage, network) != (told.storage(), told.network()) {
            tracing::info!(
                objects_storage = storage.objects,
                bytes_storage = storage.bytes,
                objects_network = network.objects,
                bytes_network = network.bytes,
                "carried in this session"
            );
        }
        told = report;
    };
    loop {
        tokio::select! {
            event = events.next() => if event.is_none() { break },
            () = cancel.wait() => break,
            _ = clock.tick() => tell(),
        }
    }
    tell();
}

/// Listens on a socket for its group and owner. One that a killed process left is replaced.
fn listen(socket: &Path, group: Option<&str>) -> Result<UnixListener> {
    let group = group.map(group_number).transpose()?;
    let cannot = || format!("cannot listen on {}", socket.display());
    if UnixStream::connect(socket).is_ok() {
        bail!("{}: another `backlane wal run` serves there", cannot());
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(cannot);
        }
        _ => {}
    }
    let mask = rustix::process::umask(SOCKET_MASK);
    let bound = UnixListener::bind(socket);
    rustix::process::umask(mask);
    let listener = bound.with_context(cannot).advise(
        "--socket names a path in a directory that is there and that PostgreSQL's user may pass",
    )?;
    chown(socket, None, group)
        .with_context(|| format!("cannot give {} to its group", socket.display()))?;
    Ok(listener)
}

/// The number of a group of this machine.
fn group_number(group: &str) -> Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").context("cannot read /etc/group")?;
    let number = |line: &str| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(group);
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    };
    groups
        .lines()
        .find_map(number)
        .with_context(|| format!("there is no group {group} in /etc/group"))
        .advise("--group takes a number as well")
}

fn push(args: &WalPushArgs, context: &Context) -> Result<Outcome> {
    end_when_asked(context);
    wal::push(&args.path, &args.socket.socket)?;
    Ok(Outcome::Done)
}

fn fetch(args: &WalFetchArgs, context: &Context) -> Result<Outcome> {
    end_when_asked(context);
    let system = match args.system {
        Some(system) => system,
        None => {
            Control::read(Path::new("."))
                .advise("run it in the data directory, or name the cluster with --system")?
                .system
        }
    };
    let partly = match args.pieces {
        true => Partly::Pieces,
        false => Partly::Absent,
    };
    match wal::fetch(
        &args.name,
        &args.target,
        system,
        partly,
        &args.socket.socket,
    )? {
        Fetched::Written => Ok(Outcome::Done),
        Fetched::Absent => {
            let name = &args.name;
            context
                .output
                .note(format!("{name} of cluster {system} is not in the archive"));
            Ok(Outcome::Failed)
        }
    }
}

/// PostgreSQL that shuts down doesn't wait for these.
fn end_when_asked(context: &Context) {
    let cancel = context.cancel.clone();
    context.runtime.spawn(async move {
        cancel.wait().await;
        std::process::exit(TERMINATED);
    });
}

#[derive(Serialize)]
struct ArchiveDocument {
    clusters: Vec<ClusterDocument>,
}

#[derive(Serialize)]
struct ClusterDocument {
    /// As text: it is larger than some readers of JSON take for a number.
    system: String,
    segment_bytes: Option<u64>,
    files: u64,
    stored_bytes: u64,
    newest_arrival: Option<String>,
    timelines: Vec<TimelineDocument>,
}

#[derive(Serialize)]
struct TimelineDocument {
    timeline: u32,
    parent: Option<u32>,
    /// Where it left its parent, as PostgreSQL writes it.
    parent_until: Option<String>,
    ranges: Vec<RangeDocument>,
}

#[derive(Serialize)]
struct RangeDocument {
    first: String,
    last: String,
    segments: u64,
    stored_bytes: u64,
}

fn list(args: &WalReadArgs, context: &Context) -> Result<Outcome> {
    let (systems, arrivals) = session::wal("wal list", context, &args.route, |client| {
        Ok((read(client)?, client.arrivals(ObjectKind::Wal)?))
    })?;
    let clusters = systems.iter().map(|it| cluster(it, &arrivals));
    let document = ArchiveDocument {
        clusters: clusters.collect(),
    };
    context.output.result(&document, |document| {
        let head = [
            "cluster", "timeline", "from", "first", "last", "segments", "stored",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for cluster in &document.clusters {
            for timeline in &cluster.timelines {
                rows.extend(timeline.ranges.iter().map(|range| {
                    let from = timeline.parent.zip(timeline.parent_until.as_ref());
                    vec![
                        cluster.system.clone(),
                        timeline.timeline.to_string(),
                        from.map_or_else(String::new, |(parent, at)| format!("{parent} at {at}")),
                        range.first.clone(),
                        range.last.clone(),
                        range.segments.to_string(),
                        bytes(range.stored_bytes),
                    ]
                }));
            }
        }
        table(&rows)
    })?;
    Ok(Outcome::Done)
}

fn read(client: &Client) -> Result<Vec<ArchivedSystem>> {
    let key = client.repository()?.wal_key();
    Ok(archive::read(&*client.store(), &key)?)
}

fn cluster(system: &ArchivedSystem, arrivals: &BTreeMap<ObjectId, SystemTime>) -> ClusterDocument {
    let is_its = |id: &ObjectId| WalName::from_id(*id).is_some_and(|it| it.system == system.system);
    let newest = arrivals
        .iter()
        .filter(|(id, _)| is_its(id))
        .map(|(_, at)| *at)
        .max();
    let timelines = system.timelines.iter();
    ClusterDocument {
        system: system.system.to_string(),
        segment_bytes: system.segment_bytes,
        files: system.files,
        stored_bytes: system.stored_bytes,
        newest_arrival: newest.map(time),
        timelines: timelines.map(|it| timeline(system, it)).collect(),
    }
}

fn timeline(system: &ArchivedSystem, timeline: &ArchivedTimeline) -> TimelineDocument {
    let name = |number| {
        let name = system.segment(timeline.timeline, number);
        name.map_or_else(String::new, WalName::file_name)
    };
    let ranges = timeline.ranges.iter().map(|range| RangeDocument {
        first: name(range.first),
        last: name(range.last),
        segments: range.last - range.first + 1,
        stored_bytes: range.stored_bytes,
    });
    TimelineDocument {
        timeline: timeline.timeline,
        parent: timeline.origin.map(|origin| origin.parent),
        parent_until: timeline
            .origin
            .map(|origin| Lsn(origin.address).to_string()),
        ranges: ranges.collect(),
    }
}

#[derive(Serialize)]
struct CheckDocument {
    clean: bool,
    clusters: u64,
    segments: u64,
    gaps: Vec<GapDocument>,
}

#[derive(Serialize)]
struct GapDocument {
    system: String,
    first: String,
    last: String,
    files: u64,
}

fn check(args: &WalReadArgs, context: &Context) -> Result<Outcome> {
    let systems = session::wal("wal check", context, &args.route, read)?;
    let gaps: Vec<Gap> = systems.iter().flat_map(ArchivedSystem::gaps).collect();
    let ranges = systems
        .iter()
        .flat_map(|it| &it.timelines)
        .flat_map(|it| &it.ranges);
    let document = CheckDocument {
        clean: gaps.is_empty(),
        clusters: systems.len() as u64,
        segments: ranges.map(|range| range.last - range.first + 1).sum(),
        gaps: gaps
            .into_iter()
            .map(|gap| GapDocument {
                system: gap.first.system.to_string(),
                first: gap.first.file_name(),
                last: gap.last.file_name(),
                files: gap.files,
            })
            .collect(),
    };
    context.output.result(&document, |document| {
        let clusters = document.clusters;
        let segments = document.segments;
        let mut text = format!("{segments} segments of {clusters} clusters\n");
        for gap in &document.gaps {
            let GapDocument {
                system,
                first,
                last,
                files,
            } = gap;
            text.push_str(&match files {
                1 => format!("missing: {first} of cluster {system}\n"),
                _ => format!("missing: {files} from {first} to {last} of cluster {system}\n"),
            });
        }
        if document.clean {
            text.push_str("nothing is missing\n");
        }
        text
    })?;
    Ok(match document.clean {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}
