//! PostgreSQL clusters with a real server, each in a directory of its own. Everything is gone when it is dropped.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Ended, Process, output, until};

/// The server refuses to run as root.
const USER: &str = "nobody";

/// What the server is told that makes it quick and keeps it off the network.
const SETTINGS: &str = "\
listen_addresses = ''
fsync = off
shared_buffers = 16MB
max_wal_senders = 4
max_connections = 20
";

/// Whether pages have checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// They have.
    On,
    /// They don't.
    Off,
}

/// A directory for clusters and what belongs to them, which their user may write to.
#[derive(Debug)]
pub struct Clusters {
    dir: tempfile::TempDir,
    programs: PathBuf,
}

/// A cluster, and its server if that runs.
#[derive(Debug)]
pub struct Cluster<'a> {
    all: &'a Clusters,
    server: Option<Process>,
    /// Its directory.
    pub data: PathBuf,
}

impl Clusters {
    /// Makes the directory. `None` where this machine has no server; that was said then.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new() -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            eprintln!(
                "******** SKIPPED: no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql ********"
            );
            return Ok(None);
        };
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("pg")))
            .tempdir_in(crate::sweep::base())?;
        let all = Self { dir, programs };
        all.give(all.dir.path())?;
        Ok(Some(all))
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
        fs::create_dir_all(&path)?;
        self.give(&path)?;
        Ok(path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let number = output(Command::new("id").args(["-u", USER]))?;
        let group = output(Command::new("id").args(["-g", USER]))?;
        let [user, group] = [number, group].map(|text| text.trim().parse().ok());
        chown(path, user, group)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// One of PostgreSQL's programs, as the clusters' user runs it.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={USER}"))
            .args(["--regid=nogroup", "--clear-groups"])
            .arg(self.programs.join(name))
            .current_dir(self.dir.path())
            .env("PGHOST", self.dir.path())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// Makes a cluster.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn cluster(&self, name: &str, checksums: Checksums) -> Result<Cluster<'_>> {
        let data = self.path(name);
        let mut make = self.program("initdb");
        make.args([
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
        ]);
        make.arg("--pgdata").arg(&data);
        if checksums == Checksums::On {
            make.arg("--data-checksums");
        }
        output(&mut make)?;
        let config = data.join("postgresql.conf");
        let own = format!(
            "unix_socket_directories = '{}'\n{SETTINGS}",
            self.dir.path().display()
        );
        fs::write(&config, fs::read_to_string(&config)? + &own)?;
        Ok(self.restored(name))
    }

    /// A cluster that is there already.
    #[must_use]
    pub fn restored(&self, name: &str) -> Cluster<'_> {
        Cluster {
            all: self,
            server: None,
            data: self.path(name),
        }
    }
}

impl Cluster<'_> {
    /// The port, by which clusters in one directory are told apart: none is on the network.
    fn port(&self) -> String {
        let name = self.data.as_os_str().as_encoded_bytes();
        let sum = name
            .iter()
            .fold(0_u32, |sum, byte| (sum * 31 + u32::from(*byte)) % 10_000);
        (20_000 + sum).to_string()
    }

    /// How to connect.
    #[must_use]
    pub fn connection(&self) -> String {
        let directory = self.all.dir.path().display();
        format!(
            "postgresql:///postgres?host={directory}&port={}&user=postgres",
            self.port()
        )
    }

    /// One of PostgreSQL's programs, on this cluster's server.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = self.all.program(name);
        command.env("PGPORT", self.port());
        command
    }

    /// Starts a program on this cluster's server, to be killed or waited for.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_program(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.program(name);
        Process::start(command.args(arguments), self.all.dir.path(), Some(""))
    }

    /// Starts the server with some settings more, and returns when it answers.
    ///
    /// # Errors
    /// When it ends before.
    pub fn start(&mut self, settings: &[&str]) -> Result<()> {
        let mut command = self.all.program("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &self.port()]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let mut server = Process::start(&mut command, self.all.dir.path(), None)?;
        until("the server answers", || {
            ensure!(server.is_running()?, "the server ended: {}", server.said());
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
        let mut command = self.all.program("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &self.port()]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        Process::start(&mut command, self.all.dir.path(), None)?.wait()
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
        until(question, || Ok(self.sql(question)? == answer))
    }

    /// Asks the server to stop, and waits until it has.
    ///
    /// # Errors
    /// When none runs, or it doesn't.
    pub fn stop(&mut self) -> Result<()> {
        let server = self.server.take().context("no server runs")?;
        server.signal(Signal::INT)?;
        server.wait()?.success().map(drop)
    }
}

/// Where the newest server's programs are.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let versions = versions.flatten().filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let programs = version.path().join("bin");
        programs
            .join("initdb")
            .exists()
            .then_some((number, programs))
    });
    versions.max().map(|(_, programs)| programs)
}
