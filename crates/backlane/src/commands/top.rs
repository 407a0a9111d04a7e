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
#[derive(Debug, Serialize)]
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
    let directories = directories(args, context)?;
    let is_terminal = io::stdout().is_terminal();
    let goes_on = !args.once && (args.interval.is_some() || is_terminal);
    let interval = args.interval.unwrap_or(INTERVAL);
    context.runtime.block_on(async {
        let mut before = None;
        let mut view = look(&directories).await;
        // Rates are what changed between two views.
        let is_first = !goes_on && !context.output.is_json() && !view.processes.is_empty();
        if is_first && !is_over(interval, context).await {
            before = Some(view);
            view = look(&directories).await;
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
            view = look(&directories).await;
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
fn directories(args: &TopArgs, context: &Context) -> Result<Vec<PathBuf>> {
    let mut states = args.states.clone();
    if states.is_empty() {
        states = match &context.config {
            Some(config) => vec![state_of(config)?],
            None => usual_states()?,
        };
    }
    states.sort();
    states.dedup();
    Ok(states.iter().map(|it| status::directory(it)).collect())
}

/// The state directories of the usual configurations, of those that there are.
fn usual_states() -> Result<Vec<PathBuf>> {
    let configs = [
        config::path(None),
        backlane_server::config::CONFIG_PATH.into(),
    ];
    let there: Vec<_> = configs.iter().filter(|it| it.exists()).collect();
    if there.is_empty() {
        // Nothing was looked at, so that nothing can be said.
        let [client, server] = configs.map(|it| it.display().to_string());
        return Err(anyhow::anyhow!(
            "there is neither {client} nor {server}, which say where processes are found"
        ))
        .advise("--config names another configuration, --state a state directory");
    }
    there.into_iter().map(|it| state_of(it)).collect()
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
async fn look(directories: &[PathBuf]) -> View {
    let mut view = View {
        processes: Vec::new(),
        troubles: Vec::new(),
        looked_in: directories.to_vec(),
    };
    let mut asked = JoinSet::new();
    for directory in directories {
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

/// Asks a process; one that has ended says nothing.
async fn ask(pid: u32, path: PathBuf) -> Result<Option<ProcessDocument>, Trouble> {
    let answer = timeout(ANSWER_WAIT, read(&path)).await;
    let what = match answer {
        Ok(Ok(document)) => return Ok(Some(document)),
        Ok(Err(error)) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => return Ok(None),
            Some(io::ErrorKind::ConnectionRefused) => {
                // Nobody listens. It was killed, or is about to begin.
                if !Path::new(&format!("/proc/{pid}")).exists() {
                    let _ = fs::remove_file(&path);
                }
                return Ok(None);
            }
            _ => format!("{error:#}"),
        },
        Err(_) => format!("no answer within {ANSWER_WAIT:?}"),
    };
    let pid = Some(pid);
    Err(Trouble { path, pid, what })
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

    #[tokio::test]
    async fn a_socket_of_a_dead_process_is_removed_and_others_are_named_with_the_cause() {
        let state = tempfile::tempdir().unwrap();
        let directory = status::directory(state.path());
        let missing = look(std::slice::from_ref(&directory)).await;
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
        });
        let view = look(std::slice::from_ref(&directory)).await;
        speaking.join().unwrap();
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
