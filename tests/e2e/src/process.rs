//! Programs: run to their end, or kept under watch and killed with the value that stands for them.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How long anything may take before a test gives up: generous, as machines are busy.
const DEADLINE: Duration = Duration::from_secs(180);

/// The same where the jobs are of full scale.
const DEADLINE_OF_FULL_SCALE: Duration = Duration::from_secs(3600);

const POLL: Duration = Duration::from_millis(20);

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it can't be started or fails; the error has the command and what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long anything may take before a test gives up.
fn deadline() -> Duration {
    match std::env::var_os("BACKLANE_E2E_FULL") {
        Some(_) => DEADLINE_OF_FULL_SCALE,
        None => DEADLINE,
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// When it fails, or doesn't hold within three minutes; the error says `what` was waited for.
pub fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline();
    while !condition().with_context(|| format!("waiting until {what}"))? {
        ensure!(Instant::now() < end, "not within {:?}: {what}", deadline());
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A program that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
    peak_memory_bytes: u64,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The command line.
    pub shown: String,
    /// What it said at its end.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// From its start to its end, as seen by a watcher that looks every 20 ms.
    pub elapsed: Duration,
    /// The most memory that it held (`VmHWM`), looked at every 20 ms.
    pub peak_memory_bytes: u64,
}

impl Process {
    /// Starts a program whose output goes to files in `dir`, and which gets `input` and then the end of file. Without
    /// `input` its standard input stays open as long as this value lives.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(command: &mut Command, dir: &Path, input: Option<&str>) -> Result<Self> {
        let mut process = Self::start_with(command, dir, Stdio::piped())?;
        if let Some(input) = input
            && let Some(mut stdin) = process.child.stdin.take()
        {
            // A program that doesn't read its input has no need of it.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(process)
    }

    /// As [`Process::start`], with a standard input of one's own.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start_with(command: &mut Command, dir: &Path, stdin: Stdio) -> Result<Self> {
        let shown = format!("{command:?}");
        let name = crate::sweep::unique("log");
        let [stdout, stderr] = ["out", "err"].map(|end| dir.join(format!("{name}.{end}")));
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("creating {}", path.display()))
        };
        let child = command
            .stdin(stdin)
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {shown}"))?;
        Ok(Self {
            child,
            shown,
            stdout,
            stderr,
            started: Instant::now(),
            peak_memory_bytes: 0,
        })
    }

    /// The process's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has held so far, as far as anybody has looked.
    #[must_use]
    pub fn peak_memory_bytes(&self) -> u64 {
        self.peak_memory_bytes
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("signalling {}", self.shown))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system can't say.
    pub fn is_running(&mut self) -> Result<bool> {
        self.look();
        Ok(self.child.try_wait().context("waiting")?.is_none())
    }

    /// Whether it has ended, as far as it could: a thread that the kernel keeps in an I/O on a device that hangs ends with
    /// that I/O, and until then nobody learns how the program ended.
    ///
    /// # Errors
    /// When the system can't say.
    pub fn has_exited(&mut self) -> Result<bool> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let zombie = status.is_ok_and(|status| status.contains("\nState:\tZ"));
        Ok(zombie || !self.is_running()?)
    }

    /// Whether it does I/O by `io_uring`, as the kernel's list of its open files has it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn has_io_uring(&self) -> Result<bool> {
        let files = format!("/proc/{}/fd", self.id());
        let entries = std::fs::read_dir(&files).with_context(|| format!("listing {files}"))?;
        Ok(entries
            .flatten()
            // A file may be closed before it is looked at.
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|what| what.as_os_str() == "anon_inode:[io_uring]"))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it doesn't come within three minutes; the error has what the program wrote.
    pub fn wait(mut self) -> Result<Ended> {
        let end = Instant::now() + deadline();
        while self.is_running()? {
            if Instant::now() > end {
                let _ = self.child.kill();
                let said = self.said();
                bail!("{} still runs after {:?}: {said}", self.shown, deadline());
            }
            std::thread::sleep(POLL);
        }
        Ok(Ended {
            status: self.child.wait()?,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            elapsed: self.started.elapsed(),
            peak_memory_bytes: self.peak_memory_bytes,
            shown: std::mem::take(&mut self.shown),
        })
    }

    /// What it has written to its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote so far, for an error.
    #[must_use]
    pub fn said(&self) -> String {
        format!(
            "stdout: {}\nstderr: {}",
            read(&self.stdout).trim(),
            read(&self.stderr).trim()
        )
    }

    fn look(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let peak = status.ok().and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak.unwrap_or(0) * 1024);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill, and nothing to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The exit code; a signal that ended the program counts as 128 and its number, as shells have it.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().map(|signal| 128 + signal);
        self.status.code().or(signal).unwrap_or(-1)
    }

    /// Fails unless the exit code is 0.
    ///
    /// # Errors
    /// With all that the program wrote.
    pub fn success(self) -> Result<Self> {
        ensure!(self.code() == 0, "{self}");
        Ok(self)
    }

    /// Fails unless the exit code is 1 and what was written has every one of `words`, whatever their case.
    ///
    /// # Errors
    /// With all that the program wrote.
    pub fn refused(&self, words: &[&str]) -> Result<()> {
        self.ended_with(1, words)
    }

    /// As [`Ended::refused`], of a job that its policy left no route: the exit code is 4, and there are a reason and advice.
    ///
    /// # Errors
    /// With all that the program wrote.
    pub fn without_a_route(&self, words: &[&str]) -> Result<()> {
        self.ended_with(4, words)?;
        self.ended_with(4, &["\nreason: ", "\nhint: "])
    }

    fn ended_with(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code() == code, "another exit code than {code}: {self}");
        let text = self.text();
        for word in words {
            ensure!(text.contains(&word.to_lowercase()), "no `{word}` in {self}");
        }
        Ok(())
    }

    /// The one JSON document on standard output.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON from {self}"))
    }

    /// Both outputs, in lower case: where a test looks for what a message must name.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr).to_lowercase()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ended with {} after {:.1?}\nstdout: {}\nstderr: {}",
            self.shown,
            self.code(),
            self.elapsed,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }
}

/// The binary under test: `BACKLANE_BIN`, or `backlane` in the directory that this test was built into.
///
/// # Errors
/// When it is missing, or older than any source that it was built from.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BACKLANE_BIN") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("the path of this program")?;
    let dirs = this.ancestors().skip(1).take(2);
    let built = dirs
        .map(|dir| dir.join("backlane"))
        .find(|path| path.is_file())
        .context("no backlane beside this test: `cargo build --workspace`, or set BACKLANE_BIN")?;
    let modified = |path: &Path| -> Result<SystemTime> { Ok(path.metadata()?.modified()?) };
    let when = modified(&built)?;
    // What cargo notes beside a program: `program: source source …`.
    let sources = std::fs::read_to_string(built.with_extension("d")).unwrap_or_default();
    for source in sources.split_whitespace().skip(1).map(Path::new) {
        ensure!(
            modified(source).is_ok_and(|source| source <= when),
            "{} is older than {}: `cargo build --workspace`, or set BACKLANE_BIN",
            built.display(),
            source.display()
        );
    }
    Ok(built)
}

fn read(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
