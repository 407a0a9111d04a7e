//! The demo's processes: this program itself, started with other arguments.
//!
//! Invariants: no process outlives the demo, however that ends (a server watches its standard input, which closes
//! with the demo); each result is the one JSON document that the command printed.

use crate::signals::Cancel;
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// How long a process gets to end in good order before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server gets until it says that it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Exit code of a command that was done with warnings.
const WARNINGS_CODE: i32 = 3;
/// So much of the end of a server's log is shown when it failed.
const LOG_TAIL_LINES: usize = 15;

/// Starts this program with other arguments.
pub(super) struct Program {
    path: PathBuf,
    cancel: Cancel,
}

/// A server that runs.
pub(super) struct Server {
    child: Child,
    /// Open as long as the demo lives; the server ends when it closes.
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Program {
    /// This program, as it was started.
    ///
    /// # Errors
    /// When the system doesn't tell where it is.
    pub(super) fn itself(cancel: Cancel) -> Result<Self> {
        let path = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self { path, cancel })
    }

    /// Runs a command to its end and reads its document.
    ///
    /// # Errors
    /// When it fails, or the demo is interrupted.
    pub(super) async fn run<T: DeserializeOwned>(
        &self,
        config: &Path,
        arguments: &[OsString],
    ) -> Result<T> {
        let name = name_of(arguments);
        let mut child = self
            .command(config, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let mut stdout = child
            .stdout
            .take()
            .context("standard output was not piped")?;
        let mut document = Vec::new();
        tokio::select! {
            read = stdout.read_to_end(&mut document) => {
                read.with_context(|| format!("cannot read what `{name}` prints"))?;
            }
            () = self.cancel.wait() => {
                end(&mut child).await?;
                bail!("interrupted during `{name}`");
            }
        }
        let status = child
            .wait()
            .await
            .with_context(|| format!("cannot wait for `{name}`"))?;
        if self.cancel.is_set() {
            bail!("interrupted during `{name}`");
        }
        if !status.success() && status.code() != Some(WARNINGS_CODE) {
            return Err(failure(&document, status)).with_context(|| format!("`{name}` failed"));
        }
        serde_json::from_slice(&document)
            .with_context(|| format!("`{name}` printed something else than was expected"))
    }

    /// Starts a server and waits until it says that it serves.
    ///
    /// # Errors
    /// When it ends instead, or takes too long, or the demo is interrupted.
    pub(super) async fn serve(&self, config: &Path, log: &Path) -> Result<Server> {
        let stderr = std::fs::File::create(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let arguments = ["server", "run", "--until-stdin-closes"].map(OsString::from);
        let mut child = self
            .command(config, &arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .context("cannot start `server run`")?;
        let stdin = child.stdin.take();
        let stdout = child
            .stdout
            .take()
            .context("standard output was not piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut server = Server {
            child,
            stdin,
            log: log.to_owned(),
        };
        let ready = tokio::select! {
            line = timeout(READY_TIMEOUT, lines.next_line()) => line,
            () = self.cancel.wait() => {
                // However it ends: it may not have come as far as to end in order.
                let _ = server.stop().await;
                bail!("interrupted while the server started");
            }
        };
        match ready {
            Ok(Ok(Some(line))) if says_ready(&line) => Ok(server),
            Ok(_) => Err(server.lost("the server ended before it served").await),
            Err(_) => Err(server
                .lost("the server did not begin to serve in time")
                .await),
        }
    }

    fn command(&self, config: &Path, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(arguments)
            .arg("--json")
            .arg("--config")
            .arg(config)
            // Ctrl-C at the terminal reaches the demo alone, which then ends the others in order.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

impl Server {
    /// Ends the server in good order.
    ///
    /// # Errors
    /// When it had to be killed or ended with a failure, with the end of its log.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.stdin.take();
        let status = end(&mut self.child).await?;
        if status.success() {
            Ok(())
        } else {
            Err(self.lost("the server did not end in good order").await)
        }
    }

    /// What is known about a server that failed.
    pub(super) async fn lost(&mut self, what: &str) -> anyhow::Error {
        self.stdin.take();
        let ended = match end(&mut self.child).await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        anyhow!("{what} ({ended}); the end of its log:\n{tail}")
    }
}

/// Asks a process to end, and kills it if it doesn't.
async fn end(child: &mut Child) -> Result<ExitStatus> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = id.and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself meanwhile, which is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    match timeout(END_TIMEOUT, child.wait()).await {
        Ok(status) => status.context("cannot wait for a process"),
        Err(_) => {
            child.kill().await.context("cannot kill a process")?;
            child.wait().await.context("cannot wait for a process")
        }
    }
}

/// Whether the server's document says where it listens, rather than why it can't.
fn says_ready(document: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(document)
        .is_ok_and(|document| document.get("address").is_some())
}

/// What a failed command said in its document; standard error was shown already.
fn failure(document: &[u8], status: ExitStatus) -> anyhow::Error {
    let said = serde_json::from_slice::<serde_json::Value>(document)
        .ok()
        .and_then(|document| Some(document.get("error")?.as_str()?.to_owned()));
    anyhow!(said.unwrap_or_else(|| status.to_string()))
}

/// The words of a command before its first path or flag, for messages.
fn name_of(arguments: &[OsString]) -> String {
    let words: Vec<_> = arguments
        .iter()
        .filter_map(|word| word.to_str())
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .take(2)
        .collect();
    words.join(" ")
}
