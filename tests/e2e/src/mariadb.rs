//! MariaDB servers, below one directory. Everything is gone when the last of them is dropped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::need::ready_for_mariadb;
use crate::process::{Ended, Process, output, until};
use crate::system::{Client, Setup, System};

/// Whom Debian's packages run the server as, with a group of the same name.
const USER: &str = "mysql";

/// The programs that are needed.
const PROGRAMS: &[&str] = &[
    "mariadbd",
    "mariadb-backup",
    "mariadb",
    "mariadb-dump",
    "mariadb-binlog",
    "mariadb-install-db",
];

/// A directory for servers, which their user may write to.
#[derive(Debug)]
pub struct Servers {
    dir: tempfile::TempDir,
}

/// A server's files, and the server if it runs.
#[derive(Debug)]
pub struct Server {
    // Ended before the directory goes.
    server: Option<Process>,
    all: Arc<Servers>,
    name: String,
    /// Where its files are.
    pub data: PathBuf,
}

/// What is missing for MariaDB to run, if anything is.
pub(crate) fn missing() -> Option<String> {
    let is_there = |program: &&&str| Command::new(program).arg("--help").output().is_err();
    let why = match PROGRAMS.iter().find(is_there) {
        Some(program) => format!("{program} can't be started"),
        None => format!("{:#}", output(Command::new("id").arg(USER)).err()?),
    };
    Some(format!(
        "no MariaDB ({why}): `apt-get install mariadb-server mariadb-backup mariadb-client` has it"
    ))
}

impl Servers {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new() -> Result<Arc<Self>> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("my")))
            .tempdir_in(crate::sweep::base())?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let all = Self { dir };
        all.directory("tmp")?;
        Ok(Arc::new(all))
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory for the servers' user.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let mut make = Command::new("install");
        make.args(["-d", "-m", "750", "-o", USER, "-g", USER]);
        output(make.arg(&path))?;
        Ok(path)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups", name]);
        // Servers that run at once are in each other's way in one directory.
        command.env("TMPDIR", self.path("tmp"));
        command
    }

    /// Makes a server, which lets `root` in by the socket, the system's root alone.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn server(self: &Arc<Self>, name: &str) -> Result<Server> {
        let data = self.directory(name)?;
        let mut make = self.program("mariadb-install-db");
        make.args(["--no-defaults", "--skip-test-db", "--skip-log-bin"]);
        make.arg("--auth-root-authentication-method=socket");
        output(make.arg(format!("--datadir={}", data.display())))?;
        Ok(self.restored(name))
    }

    /// A server whose files are there already, or come later.
    #[must_use]
    pub fn restored(self: &Arc<Self>, name: &str) -> Server {
        Server {
            server: None,
            all: Arc::clone(self),
            name: name.to_owned(),
            data: self.path(name),
        }
    }
}

impl Server {
    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // As short as socket paths have to be.
        self.data.join("s")
    }

    /// Gives its files to the servers' user.
    ///
    /// # Errors
    /// When that fails.
    pub fn own(&self) -> Result<()> {
        let owner = format!("{USER}:{USER}");
        output(Command::new("chown").arg("-R").arg(owner).arg(&self.data)).map(drop)
    }

    /// Starts the server with binary logs and some settings more, and returns when it answers.
    ///
    /// # Errors
    /// When it ends before.
    pub fn start(&mut self, settings: &[&str]) -> Result<()> {
        let mut command = self.all.program("mariadbd");
        command.args(["--no-defaults", "--skip-networking", "--server-id=1"]);
        command.args([
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=64M",
        ]);
        command.args(["--innodb-flush-log-at-trx-commit=0", "--log-bin=binlog"]);
        command.arg(format!("--datadir={}", self.data.display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}.pid", self.data.display()));
        let pid = self.all.path(format!("{}.pid", self.name));
        fs::write(&pid, "")?;
        let user = format!("{USER}:{USER}");
        output(Command::new("chown").arg(user).arg(&pid))?;
        let mut server = Process::start(command.args(settings), self.all.dir.path(), None)?;
        until("the server answers", || {
            ensure!(server.is_running()?, "the server ended: {}", server.said());
            Ok(self.sql("SELECT 1").is_ok())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// One of MariaDB's programs, for this server, as root. Option files of this machine have no say.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("--no-defaults");
        command.arg(format!("--socket={}", self.socket().display()));
        command
    }

    /// Asks the server; rows are lines, and columns parted by tabs.
    ///
    /// # Errors
    /// When it refuses.
    pub fn sql(&self, statements: &str) -> Result<String> {
        let mut client = self.program("mariadb");
        client.args(["--batch", "--skip-column-names", "--execute", statements]);
        Ok(output(&mut client)?.trim().to_owned())
    }

    /// Starts a client that reads statements from standard input.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn client(&self, statements: &str) -> Result<Process> {
        let mut client = self.program("mariadb");
        Process::start(&mut client, self.all.dir.path(), Some(statements))
    }

    /// Waits until the server says so.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn says(&self, question: &str, answer: &str) -> Result<()> {
        until(question, || Ok(self.sql(question)? == answer))
    }

    /// Has the server begin another binary log and purge those before it, which it does only some time after.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn purge_binlogs(&self) -> Result<()> {
        self.sql("FLUSH BINARY LOGS")?;
        let status = self.sql("SHOW MASTER STATUS")?;
        let newest = status.split('\t').next().context("no file")?;
        until("the server has purged its binary logs", || {
            self.sql(&format!("PURGE BINARY LOGS TO '{newest}'"))?;
            Ok(self.sql("SHOW BINARY LOGS")?.lines().count() == 1)
        })
    }

    /// Has the server look at all tables, of all databases.
    ///
    /// # Errors
    /// When anything is wrong with one.
    pub fn check(&self) -> Result<()> {
        let tables = "SELECT concat('`', table_schema, '`.`', table_name, '`') FROM \
            information_schema.tables WHERE table_type = 'BASE TABLE' AND table_schema NOT IN \
            ('performance_schema', 'information_schema')";
        let tables = self.sql(tables)?;
        let statements: Vec<_> = tables
            .lines()
            .map(|table| format!("CHECK TABLE {table} EXTENDED"))
            .collect();
        ensure!(statements.len() > 20, "{tables}");
        for line in self.sql(&statements.join(";"))?.lines() {
            let is_clean = line.ends_with("\tOK") || line.contains("doesn't support check");
            ensure!(is_clean, "{line}");
        }
        Ok(())
    }

    /// Asks the server to stop, and waits until it has.
    ///
    /// # Errors
    /// When none runs, or it doesn't.
    pub fn stop(&mut self) -> Result<()> {
        let server = self.server.take().context("no server runs")?;
        server.signal(Signal::TERM)?;
        server.wait()?.success().map(drop)
    }
}

/// Statements for two tables that every transaction writes to alike, and who is told to stop.
pub const MARIADB_TABLES: &str = "\
CREATE DATABASE app; CREATE DATABASE `odd-näme`; USE app;
CREATE TABLE one (id INT PRIMARY KEY, filler VARCHAR(200));
CREATE TABLE `odd-näme`.`t/wo` (id INT PRIMARY KEY);
CREATE TABLE stop (id INT) ENGINE = Aria;
CREATE TABLE fixed (id INT PRIMARY KEY, filler VARCHAR(200)) ENGINE = MyISAM;
INSERT INTO fixed SELECT seq, md5(seq) FROM seq_1_to_1000";

/// A system with a client, and room for servers.
#[derive(Debug)]
pub struct MariadbWorld {
    /// The system.
    pub system: System,
    /// Its client.
    pub client: Client,
    /// The servers.
    pub servers: Arc<Servers>,
    /// An option file with nothing in it: those of this machine have no say.
    pub defaults: String,
}

impl MariadbWorld {
    /// Makes it; `None` where this machine can't run it, which was said then.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn new() -> Result<Option<Self>> {
        if !ready_for_mariadb() {
            return Ok(None);
        }
        let system = System::new(&Setup::default())?;
        let client = system.client("alpha")?;
        let defaults = system.path("empty.cnf");
        fs::write(&defaults, "")?;
        Ok(Some(Self {
            system,
            client,
            servers: Servers::new()?,
            defaults: defaults.display().to_string(),
        }))
    }

    /// Runs a command of the client.
    ///
    /// # Errors
    /// When it can't be started or doesn't end.
    pub fn run(&self, arguments: &[&str]) -> Result<Ended> {
        Ok(self.system.run(&self.client, arguments)?.ended)
    }

    /// The command that backs a server up, or its binary logs.
    #[must_use]
    pub fn backup_command(&self, server: &Server, what: &str) -> Command {
        let mut command = self.system.client_command(&self.client);
        command.args(["backup", what, "--defaults-file", &self.defaults]);
        command.arg("--socket").arg(server.socket());
        command
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, command: &mut Command) -> Result<Process> {
        Process::start(command, &self.system.path(""), Some(""))
    }

    /// Backs a server up, or its binary logs.
    ///
    /// # Errors
    /// As [`MariadbWorld::run`].
    pub fn backup(&self, server: &Server, what: &str) -> Result<Ended> {
        self.start(&mut self.backup_command(server, what))?.wait()
    }

    /// Restores the latest backup of a server.
    ///
    /// # Errors
    /// As [`MariadbWorld::run`].
    pub fn restore(&self, name: &str) -> Result<Ended> {
        let target = self.servers.path(name).display().to_string();
        self.run(&["restore", "latest", "--mariadb", "--target", &target])
    }

    /// A server that is restored from a snapshot, and runs.
    ///
    /// # Errors
    /// When it can't be restored, or doesn't start.
    pub fn restored(&self, snapshot: &str, name: &str) -> Result<Server> {
        let target = self.servers.path(name).display().to_string();
        let document = self.run(&["restore", snapshot, "--mariadb", "--target", &target])?;
        let document = document.success()?.json()?;
        let next = document["mariadb"]["next"].to_string();
        ensure!(
            next.contains(&format!("mariadb replay {}", &snapshot[..8])),
            "{next}"
        );
        let mut server = self.servers.restored(name);
        server.own()?;
        server.start(&["--log-bin=other"])?;
        Ok(server)
    }

    /// A command about backups of MariaDB, where a server runs.
    ///
    /// # Errors
    /// As [`MariadbWorld::run`].
    pub fn mariadb(&self, server: &Server, arguments: &[&str]) -> Result<Ended> {
        let socket = server.socket().display().to_string();
        let about = ["--defaults-file", &self.defaults, "--socket", &socket];
        let words = [&["mariadb"], arguments, &about].concat();
        self.run(&words)
    }

    /// All snapshots.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn snapshots(&self) -> Result<Vec<Value>> {
        let mut document = self.run(&["snapshots"])?.success()?.json()?;
        let snapshots = document["snapshots"].as_array_mut().map(std::mem::take);
        snapshots.context("no snapshots")
    }
}
