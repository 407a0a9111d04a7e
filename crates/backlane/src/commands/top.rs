//! `backlane top`: the server and the jobs of this machine, as they stand now, again and again.
//!
//! It finds them by the sockets below the state directories of client and server, and asks each of them. Invariant: it
//! shows what was said and measured: a process that can't be asked is named with the cause, never left out.

mod screen;

use super::status::{self, ProcessDocument};
use crate::{
    Context,
    cli::TopArgs,
    config,
    failure::Advise,
    output::{Outcome, SCHEMA, json_line, write_stdout},
};
use anyhow::{Context as _, Result, bail};
use backlane_server::ServerConfig;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Time from one view to the next, unless somebody says otherwise.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a process may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// What a document may have: a server of the most sessions says less than a tenth.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// What was found at one time.
#[derive(Debug, Serialize)]
struct View {
    processes: Vec<ProcessDocument>,
    /// What could not be asked.
    troubles: Vec<Trouble>,
    /// The directories of sockets.
    looked_in: Vec<PathBuf>,
}

/// A process, or a directory of them, that could not be asked.
#[derive(Clone, Debug, Serialize)]
struct Trouble {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    what: String,
}

/// Shows the processes.
///
/// # Errors
/// When it isn't known where to look. That there are none is no error but what is shown.
pub(crate) fn run(args: &TopArgs, context: &Context) -> Result<Outcome> {
    let places = Places::new(args, context)?;
    let is_terminal = io::stdout().is_terminal();
    let goes_on = !args.once && (args.interval.is_some() || is_terminal);
    let interval = args.interval.unwrap_or(INTERVAL);
    context.runtime.block_on(async {
        let mut before = None;
        let mut view = look(&places).await;
        // Rates are what changed between two views.
        let is_first = !goes_on && !context.output.is_json() && !view.processes.is_empty();
        if is_first && !is_over(interval, context).await {
            before = Some(view);
            view = look(&places).await;
        }
        loop {
            let printed = if context.output.is_json() {
                json_line(&view)?
            } else {
                let text = screen::text(&view, before.as_ref());
                match goes_on && is_terminal {
                    true => screen::redrawn(&text, before.is_none()).into_bytes(),
                    false => text.into_bytes(),
                }
            };
            write_stdout(&printed)?;
            if !goes_on || is_over(interval, context).await {
                break;
            }
            before = Some(view);
            view = look(&places).await;
        }
        Ok(Outcome::from_warnings(view.troubles.len() as u64))
    })
}

/// Waits for the next view; tells whether the user wants no more of them.
async fn is_over(interval: Duration, context: &Context) -> bool {
    tokio::select! {
        () = sleep(interval) => false,
        () = context.cancel.wait() => true,
    }
}

/// Where the sockets of this machine's processes are.
struct Places {
    directories: Vec<PathBuf>,
    /// Configurations that can't be read.
    troubles: Vec<Trouble>,
}

impl Places {
    fn new(args: &TopArgs, context: &Context) -> Result<Self> {
        match &context.config {
            _ if !args.states.is_empty() => Ok(Self::of_states(args.states.clone())),
            Some(config) => Ok(Self::of_states(vec![state_of(config)?])),
            None => Self::of_configs(&[
                config::path(None),
                backlane_server::config::CONFIG_PATH.into(),
            ]),
        }
    }

    /// By the usual configurations, of those that there are.
    fn of_configs(configs: &[PathBuf]) -> Result<Self> {
        let there: Vec<_> = configs.iter().filter(|it| it.exists()).collect();
        if there.is_empty() {
            let names: Vec<_> = configs.iter().map(|it| it.display().to_string()).collect();
            return Err(anyhow::anyhow!(
                "there is neither {}, which say where processes are found",
                names.join(" nor ")
            ))
            .advise("--config names another configuration, --state a state directory");
        }
        let (mut states, mut unread) = (Vec::new(), Vec::new());
        for config in there {
            match state_of(config) {
                Ok(state) => states.push(state),
                Err(error) => unread.push((config, error)),
            }
        }
        // Where nothing can be looked at, nothing can be said.
        if states.is_empty()
            && let Some((_, error)) = unread.pop()
        {
            return Err(error);
        }
        let mut places = Self::of_states(states);
        let troubles = unread.into_iter().map(|(config, error)| Trouble {
            path: config.clone(),
            pid: None,
            what: format!("{error:#}"),
        });
        places.troubles.extend(troubles);
        Ok(places)
    }

    fn of_states(mut states: Vec<PathBuf>) -> Self {
        states.sort();
        states.dedup();
        Self {
            directories: states.iter().map(|it| status::directory(it)).collect(),
            troubles: Vec::new(),
        }
    }
}

/// What the configuration of a client or of a server says about its state directory.
fn state_of(config: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Configuration {
        state: Option<PathBuf>,
    }
    let what = || format!("cannot read the configuration {}", config.display());
    let text = fs::read_to_string(config).with_context(what)?;
    let configuration: Configuration = toml::from_str(&text).with_context(what)?;
    // A client's always says it.
    let state = configuration.state;
    Ok(state.unwrap_or_else(|| ServerConfig::default().state))
}

/// Asks every process that there is.
async fn look(places: &Places) -> View {
    let mut view = View {
        processes: Vec::new(),
        troubles: places.troubles.clone(),
        looked_in: places.directories.clone(),
    };
    let mut asked = JoinSet::new();
    for directory in &places.directories {
        match sockets(directory) {
            Ok(sockets) => {
                for (pid, path) in sockets {
                    asked.spawn(async move { ask(pid, path).await });
                }
            }
            // There was no process yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => view.troubles.push(Trouble {
                path: directory.clone(),
                pid: None,
                what: error.to_string(),
            }),
        }
    }
    while let Some(answer) = asked.join_next().await {
        // One that panicked has said so.
        match answer.unwrap_or(Ok(None)) {
            Ok(process) => view.processes.extend(process),
            Err(trouble) => view.troubles.push(trouble),
        }
    }
    view.processes
        .sort_by_key(|it| (it.role != "server", it.pid));
    view.troubles.sort_by_key(|it| it.pid);
    view
}

fn sockets(directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str());
        let pid = pid.and_then(|name| name.strip_suffix(".sock")?.parse().ok());
        sockets.extend(pid.map(|pid| (pid, path)));
    }
    Ok(sockets)
}

/// Asks a process; one that has ended, or ends meanwhile, says nothing.
async fn ask(pid: u32, path: PathBuf) -> Result<Option<ProcessDocument>, Trouble> {
    let what = match timeout(ANSWER_WAIT, read(&path)).await {
        Ok(Ok(document)) => return Ok(Some(document)),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {ANSWER_WAIT:?}"),
    };
    match UnixStream::connect(&path).await.map_err(|it| it.kind()) {
        Err(io::ErrorKind::NotFound) => Ok(None),
        Err(io::ErrorKind::ConnectionRefused) => {
            // Nobody listens. It was killed, or is about to begin.
            if !Path::new(&format!("/proc/{pid}")).exists() {
                let _ = fs::remove_file(&path);
            }
            Ok(None)
        }
        _ => {
            let pid = Some(pid);
            Err(Trouble { path, pid, what })
        }
    }
}

async fn read(path: &Path) -> Result<ProcessDocument> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let stream = UnixStream::connect(path).await?;
    let mut text = Vec::new();
    stream
        .take(DOCUMENT_BYTES_MAX)
        .read_to_end(&mut text)
        .await?;
    let Version { schema } = serde_json::from_slice(&text).context("its answer is no status")?;
    if schema != SCHEMA {
        bail!("its status has version {schema}, and this program knows {SCHEMA}");
    }
    serde_json::from_slice(&text).context("its answer is no status")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A state directory, and that of the sockets in it.
    fn of_state(state: &Path) -> (Places, PathBuf) {
        let places = Places::of_states(vec![state.to_owned()]);
        let directory = places.directories[0].clone();
        (places, directory)
    }

    #[tokio::test]
    async fn a_process_that_ends_while_it_is_asked_is_absent_however_it_ends() {
        let state = tempfile::tempdir().unwrap();
        let (places, directory) = of_state(state.path());
        fs::create_dir(&directory).unwrap();
        // One takes its socket away; one is killed, whose number no process has.
        let [ends, killed] = [std::process::id(), u32::MAX].map(|pid| {
            let socket = directory.join(format!("{pid}.sock"));
            let listener = UnixListener::bind(&socket).unwrap();
            (listener, socket)
        });
        let socket = killed.1.clone();
        let ending = std::thread::spawn(move || {
            let asked = ends.0.accept().unwrap();
            fs::remove_file(&ends.1).unwrap();
            drop((asked, ends));
            let asked = killed.0.accept().unwrap();
            drop(killed);
            drop(asked);
        });
        let view = look(&places).await;
        ending.join().unwrap();
        assert!(
            view.processes.is_empty() && view.troubles.is_empty(),
            "{view:?}"
        );
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn a_configuration_that_cannot_be_read_is_named_and_the_other_is_gone_by() {
        let directory = tempfile::tempdir().unwrap();
        let [good, bad, none] = ["good", "bad", "none"].map(|name| directory.path().join(name));
        fs::write(&good, "state = \"/s\"\n").unwrap();
        fs::write(&bad, "state = 7\n").unwrap();
        let view = look(&Places::of_configs(&[bad.clone(), good]).unwrap()).await;
        assert_eq!(view.looked_in, [status::directory(Path::new("/s"))]);
        let [trouble] = &view.troubles[..] else {
            panic!("{view:?}")
        };
        assert_eq!((&trouble.path, trouble.pid), (&bad, None));
        for configs in [[bad, none.clone()], [none.clone(), none]] {
            assert!(Places::of_configs(&configs).is_err());
        }
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_process_is_removed_and_others_are_named_with_the_cause() {
        let state = tempfile::tempdir().unwrap();
        let (places, directory) = of_state(state.path());
        let missing = look(&places).await;
        assert!(missing.processes.is_empty() && missing.troubles.is_empty());
        fs::create_dir(&directory).unwrap();
        let at = |pid: u32| directory.join(format!("{pid}.sock"));
        // No process has the first number; the second is this one's, which has yet to listen.
        let (dead, living, garbled) = (at(u32::MAX), at(std::process::id()), at(1));
        for socket in [&dead, &living] {
            drop(UnixListener::bind(socket).unwrap());
        }
        let speaks = UnixListener::bind(&garbled).unwrap();
        let speaking = std::thread::spawn(move || {
            let (mut to, _) = speaks.accept().unwrap();
            io::Write::write_all(&mut to, b"{\"schema\":1}").unwrap();
            speaks
        });
        let view = look(&places).await;
        drop(speaking.join().unwrap());
        assert!(!dead.exists() && living.exists());
        assert!(view.processes.is_empty());
        let [trouble] = &view.troubles[..] else {
            panic!("{view:?}")
        };
        assert_eq!((&trouble.path, trouble.pid), (&garbled, Some(1)));
        assert!(trouble.what.contains("no status"), "{trouble:?}");
    }

    #[test]
    fn a_configuration_of_either_kind_says_where_its_processes_are() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("some.toml");
        for (text, state) in [
            ("server = \"a:1\"\nstate = \"/c\"\n", "/c"),
            ("listen = \"[::]:1\"\nstate = \"/s\"\n", "/s"),
            ("listen = \"[::]:1\"\n", "/var/lib/backlane"),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(state_of(&file).unwrap(), Path::new(state));
        }
    }
}
