//! PostgreSQL clusters with a real server, below one directory. Everything is gone when the last of them is dropped.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Ended, Process, binary, output, until};

/// Where Debian's packages have the programs of each version.
const PROGRAMS: &str = "/usr/lib/postgresql";

/// Whom Debian's packages run the server as, with a group of the same name; it refuses to run as root.
const USER: &str = "postgres";

/// What the server is told that makes it quick and keeps it off the network.
const SETTINGS: &str = "\
listen_addresses = ''
fsync = off
shared_buffers = 16MB
max_wal_senders = 4
max_connections = 20
";

/// A directory for clusters and what belongs to them, which their user may write to.
#[derive(Debug)]
pub struct Clusters {
    dir: tempfile::TempDir,
    programs: PathBuf,
    next_port: AtomicU16,
}

/// A cluster, and its server if that runs.
#[derive(Debug)]
pub struct Cluster {
    // Ended before the directory goes.
    server: Option<Process>,
    all: Arc<Clusters>,
    /// By which the servers in one directory are told apart: none is on the network.
    port: u16,
    /// Its directory.
    pub data: PathBuf,
}

/// What is missing for PostgreSQL to run, if anything is.
pub(crate) fn missing() -> Option<String> {
    let user = || output(Command::new("id").arg(USER));
    let why = programs().and_then(|_| user()).err()?;
    Some(format!(
        "no PostgreSQL ({why:#}): `apt-get install postgresql` has it"
    ))
}

/// Names another version's programs.
const PROGRAMS_VARIABLE: &str = "BACKLANE_E2E_POSTGRESQL";

/// Where the newest server's programs are.
fn programs() -> Result<PathBuf> {
    if let Some(programs) = std::env::var_os(PROGRAMS_VARIABLE) {
        return Ok(programs.into());
    }
    let versions = fs::read_dir(PROGRAMS).with_context(|| format!("listing {PROGRAMS}"))?;
    let versions = versions.flatten().filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let programs = version.path().join("bin");
        let is_whole = ["initdb", "pgbench"].map(|name| programs.join(name).exists()) == [true; 2];
        is_whole.then_some((number, programs))
    });
    let (_, newest) = versions
        .max()
        .context("no version with initdb and pgbench")?;
    Ok(newest)
}

impl Clusters {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it can't be made, or there is no PostgreSQL.
    pub fn new() -> Result<Arc<Self>> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("pg")))
            .tempdir_in(crate::sweep::base())?;
        let all = Self {
            dir,
            programs: programs()?,
            next_port: AtomicU16::new(20_000),
        };
        all.directory("")?;
        Ok(Arc::new(all))
    }

    /// A program of another version than Debian's newest, if its tests are run.
    #[must_use]
    pub fn of_another_version(&self, name: &str) -> Option<PathBuf> {
        let programs = std::env::var_os(PROGRAMS_VARIABLE)?;
        Some(Path::new(&programs).join(name))
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory for the clusters' user.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let mut make = Command::new("install");
        make.args(["-d", "-m", "755", "-o", USER, "-g", USER]);
        output(make.arg(&path))?;
        Ok(path)
    }

    /// Copies the program under test to where the clusters' user may run it.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn backlane(&self) -> Result<PathBuf> {
        let copy = self.path("backlane");
        fs::copy(binary()?, &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        Ok(copy)
    }

    /// One of PostgreSQL's programs, or the one at an absolute path, as the clusters' user runs it.
    pub fn program(&self, name: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--clear-groups"])
            .arg(self.programs.join(name))
            .current_dir(self.dir.path())
            .env_remove("BACKLANE_CONFIG")
            .env("PGHOST", self.dir.path())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// Makes a cluster, with some arguments of initdb more.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn cluster(self: &Arc<Self>, name: &str, more: &[&str]) -> Result<Cluster> {
        let cluster = self.restored(name);
        let mut make = self.program("initdb");
        make.args([
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
        ]);
        output(make.args(more).arg("--pgdata").arg(&cluster.data))?;
        let sockets = self.dir.path().display();
        cluster.configure(&format!(
            "unix_socket_directories = '{sockets}'\n{SETTINGS}"
        ))?;
        Ok(cluster)
    }

    /// A cluster that is there already.
    #[must_use]
    pub fn restored(self: &Arc<Self>, name: &str) -> Cluster {
        Cluster {
            server: None,
            all: Arc::clone(self),
            port: self.next_port.fetch_add(1, Ordering::Relaxed),
            data: self.path(name),
        }
    }
}

impl Cluster {
    /// Copies it, while its server runs, by PostgreSQL's own tool, without any WAL.
    ///
    /// # Errors
    /// When that fails.
    pub fn base_backup(&self, name: &str) -> Result<Self> {
        let copy = self.all.restored(name);
        let mut backup = self.program("pg_basebackup");
        backup.args(["--wal-method=none", "--checkpoint=fast", "--no-sync"]);
        output(backup.arg("--pgdata").arg(&copy.data))?;
        Ok(copy)
    }

    /// Copies it, while no server runs, to one that recovers from the archive when it is started.
    ///
    /// # Errors
    /// When a server runs, or it can't be copied.
    pub fn recovering(&self, name: &str) -> Result<Self> {
        ensure!(self.server.is_none(), "its server runs");
        let copy = self.all.restored(name);
        let mut cp = Command::new("cp");
        output(cp.arg("-a").arg(&self.data).arg(&copy.data))?;
        output(copy.program("/bin/touch").arg("recovery.signal"))?;
        Ok(copy)
    }

    /// Appends lines to its configuration.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let config = self.data.join("postgresql.conf");
        let mut config = OpenOptions::new().append(true).open(config)?;
        Ok(config.write_all(lines.as_bytes())?)
    }

    /// How to connect.
    #[must_use]
    pub fn connection(&self) -> String {
        let directory = self.all.dir.path().display();
        format!(
            "postgresql:///postgres?host={directory}&port={}&user=postgres",
            self.port
        )
    }

    /// One of PostgreSQL's programs, or the one at an absolute path, for this cluster's server: in its directory, where
    /// the server runs its own.
    pub fn program(&self, name: impl AsRef<Path>) -> Command {
        let mut command = self.all.program(name);
        command.current_dir(&self.data);
        command.env("PGPORT", self.port.to_string());
        command
    }

    /// Starts clients, which read a script from standard input where the arguments say so, for ten minutes or until
    /// they lose their connection.
    ///
    /// # Errors
    /// When they can't be started.
    pub fn pgbench(&self, arguments: &[&str], script: &str) -> Result<Process> {
        let mut command = self.program("pgbench");
        command.args(["-n", "-T", "600"]).args(arguments);
        Process::start(&mut command, self.all.dir.path(), Some(script))
    }

    fn spawn(&self, settings: &[&str]) -> Result<Process> {
        let mut command = self.program("postgres");
        command.arg("-D").arg(&self.data);
        command.args(["-p", &self.port.to_string()]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        Process::start(&mut command, self.all.dir.path(), None)
    }

    /// Starts the server with some settings more, and returns when it answers.
    ///
    /// # Errors
    /// When it ends before.
    pub fn start(&mut self, settings: &[&str]) -> Result<()> {
        let mut server = self.spawn(settings)?;
        until("the server answers", || {
            if !server.is_running()? {
                // What a killed one has left of shared memory may keep the next one away for a moment.
                let said = server.said();
                ensure!(said.contains("shared memory"), "the server ended: {said}");
                server = self.spawn(settings)?;
            }
            Ok(self.sql("SELECT 1").is_ok())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// The same of a server that has to end by itself.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn run(&self, settings: &[&str]) -> Result<Ended> {
        self.spawn(settings)?.wait()
    }

    /// Asks the server; rows are lines, and columns parted by `|`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn sql(&self, statements: &str) -> Result<String> {
        let mut psql = self.program("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statements]);
        Ok(output(&mut psql)?.trim().to_owned())
    }

    /// Waits until the server says so.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn says(&self, question: &str, answer: &str) -> Result<()> {
        let server = self.server.as_ref().context("no server runs")?;
        until(question, || {
            let said = self.sql(question).with_context(|| server.said())?;
            Ok(said == answer)
        })
    }

    /// What the server has written to its log so far; nothing where none runs.
    #[must_use]
    pub fn said(&self) -> String {
        self.server.as_ref().map(Process::said).unwrap_or_default()
    }

    /// Waits until everything that was written so far is archived.
    ///
    /// # Errors
    /// When that doesn't happen.
    pub fn all_is_archived(&self) -> Result<()> {
        // Something has to be in a segment for it to be left.
        self.sql("SELECT pg_logical_emit_message(false, 'test', 'end'), pg_switch_wal()")?;
        let left = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
        self.says(left, "0")
    }

    /// Kills the server, without a chance to say goodbye.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL).map(drop)
    }

    /// Asks the server to stop, and waits until it has.
    ///
    /// # Errors
    /// When none runs, or it doesn't.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)?.success().map(drop)
    }

    fn end(&mut self, signal: Signal) -> Result<Ended> {
        let server = self.server.take().context("no server runs")?;
        server.signal(signal)?;
        server.wait()
    }
}
