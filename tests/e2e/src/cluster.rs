//! A PostgreSQL of one's own: real server, small segments, reachable by a socket in its directory alone.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Process, binary, output, until};

/// Where Debian's packages have the programs of each version.
const PROGRAMS: &str = "/usr/lib/postgresql";
/// Whom Debian's packages run it as; it refuses to run as root.
const USER: &str = "postgres";

/// A database cluster, and a copy of the program under test that its user may run. Both are gone when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Ended before its directory goes.
    running: Option<Process>,
    dir: tempfile::TempDir,
    data: PathBuf,
}

/// What the programs of PostgreSQL are missing, if they are.
pub(crate) fn missing() -> Option<String> {
    let why = match (programs(), user()) {
        (Ok(_), Ok(_)) => return None,
        (Err(why), _) | (_, Err(why)) => why,
    };
    Some(format!(
        "no PostgreSQL ({why:#}): `apt-get install postgresql` has it"
    ))
}

/// The directory of the newest version's programs.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(PROGRAMS)
        .with_context(|| format!("listing {PROGRAMS}"))?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("pgbench").exists())
        .collect();
    found.sort();
    found.pop().context("no version with initdb and pgbench")
}

/// The numbers of its user and group.
fn user() -> Result<(u32, u32)> {
    let numbers = output(Command::new("getent").args(["passwd", USER]))?;
    let mut fields = numbers.trim().split(':').skip(2);
    let mut number = || fields.next()?.parse().ok();
    number().zip(number()).context("the user's numbers")
}

impl Cluster {
    /// Makes a cluster with segments of 1 MiB, which isn't started.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new() -> Result<Self> {
        let cluster = Self::without_data()?;
        let mut init = cluster.program("initdb")?;
        init.args(["--wal-segsize=1", "--no-sync", "--auth=trust", "--pgdata"]);
        output(init.arg(&cluster.data))?;
        Ok(cluster)
    }

    fn without_data() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("pg")))
            .tempdir_in(crate::sweep::base())
            .context("making a directory for PostgreSQL")?;
        let (uid, gid) = user()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let copy = dir.path().join("backlane");
        fs::copy(binary()?, &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        chown(dir.path(), Some(uid), Some(gid))?;
        let data = dir.path().join("data");
        Ok(Self {
            running: None,
            dir,
            data,
        })
    }

    /// Copies a running cluster by `pg_basebackup`, without any WAL.
    ///
    /// # Errors
    /// When that fails.
    pub fn base_backup(&self) -> Result<Self> {
        let copy = Self::without_data()?;
        let mut backup = self.program("pg_basebackup")?;
        backup.args(["--wal-method=none", "--checkpoint=fast", "--no-sync"]);
        backup.arg("--host").arg(self.dir.path());
        output(backup.arg("--pgdata").arg(&copy.data))?;
        Ok(copy)
    }

    /// A copy of one that isn't running.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn duplicate(&self) -> Result<Self> {
        ensure!(self.running.is_none(), "it runs");
        let copy = Self::without_data()?;
        let mut cp = Command::new("cp");
        output(cp.arg("-a").arg(&self.data).arg(&copy.data))?;
        Ok(copy)
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A path in a directory that its user may write.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program under test, as its user may run it.
    #[must_use]
    pub fn backlane(&self) -> PathBuf {
        self.path("backlane")
    }

    /// Appends lines to its configuration.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn configure(&self, lines: &[String]) -> Result<()> {
        let path = self.data.join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(path)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        Ok(())
    }

    /// Has it recover from the archive when it is started next.
    ///
    /// # Errors
    /// When the mark can't be made.
    pub fn recover(&self) -> Result<()> {
        let (uid, gid) = user()?;
        let signal = self.data.join("recovery.signal");
        File::create(&signal)?;
        Ok(chown(signal, Some(uid), Some(gid))?)
    }

    /// Starts it, and waits until it answers and is no more in recovery.
    ///
    /// # Errors
    /// When it ends before.
    pub fn start(&mut self) -> Result<()> {
        until("PostgreSQL answers", || {
            match &mut self.running {
                None => self.running = Some(self.spawn()?),
                Some(running) => {
                    if !running.is_running()? {
                        // What a killed one has left of shared memory may keep the next one away for a moment.
                        let said = running.said();
                        ensure!(said.contains("shared memory"), "{said}");
                        self.running = None;
                    }
                }
            }
            Ok(self
                .sql("SELECT pg_is_in_recovery()")
                .is_ok_and(|answer| answer == "f"))
        })
    }

    /// Starts it, to see how it ends.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self) -> Result<Process> {
        let mut postgres = self.program("postgres")?;
        postgres.arg("-D").arg(&self.data);
        postgres.arg("-k").arg(self.dir.path());
        postgres.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        Process::start(&mut postgres, self.dir.path(), Some(""))
    }

    /// Kills it, without a chance to say goodbye.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn kill(&mut self) -> Result<()> {
        let running = self.running.take().context("it doesn't run")?;
        running.signal(Signal::KILL)?;
        running.wait().map(drop)
    }

    /// Stops it in good order.
    ///
    /// # Errors
    /// When it doesn't run, or doesn't end.
    pub fn stop(&mut self) -> Result<()> {
        let running = self.running.take().context("it doesn't run")?;
        running.signal(Signal::INT)?;
        running.wait()?.success().map(drop)
    }

    /// Runs a statement; returns its rows as they are.
    ///
    /// # Errors
    /// When it fails.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = self.program("psql")?;
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"]);
        psql.args(["--set", "ON_ERROR_STOP=1", "--command", statement]);
        psql.arg("--host").arg(self.dir.path());
        Ok(output(psql.arg("postgres"))?.trim().to_owned())
    }

    /// Starts clients that run a script of pgbench, 2,000 times a second, until they are killed or lose their connection.
    ///
    /// # Errors
    /// When they can't be started.
    pub fn bench(&self, script: &str) -> Result<Process> {
        let file = self.path("script.sql");
        fs::write(&file, script)?;
        let mut bench = self.program("pgbench")?;
        bench.args([
            "--no-vacuum",
            "--client=4",
            "--rate=2000",
            "--time=600",
            "--file",
        ]);
        bench.arg(&file).arg("--host").arg(self.dir.path());
        Process::start(bench.arg("postgres"), self.dir.path(), Some(""))
    }

    /// Waits until everything that was written so far is archived.
    ///
    /// # Errors
    /// When that doesn't happen.
    pub fn all_is_archived(&self) -> Result<()> {
        // Something has to be in a segment for it to be left.
        self.sql("SELECT pg_logical_emit_message(false, 'test', 'end'), pg_switch_wal()")?;
        let status = self.data.join("pg_wal/archive_status");
        until("everything is archived", || {
            let entries = fs::read_dir(&status)?.collect::<Result<Vec<_>, _>>()?;
            let is_ready = |name: &Path| name.extension().is_some_and(|it| it == "ready");
            Ok(!entries
                .iter()
                .any(|it| is_ready(Path::new(&it.file_name()))))
        })
    }

    fn program(&self, name: &str) -> Result<Command> {
        self.as_user(programs()?.join(name))
    }

    /// A command that its user runs, in the data directory where there is one, as PostgreSQL runs its own.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn as_user(&self, program: impl AsRef<Path>) -> Result<Command> {
        let (uid, gid) = user()?;
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
        command.args(["--clear-groups", "--"]).arg(program.as_ref());
        command.current_dir(match self.data.is_dir() {
            true => &self.data,
            false => self.dir.path(),
        });
        command.env_remove("BACKLANE_CONFIG");
        Ok(command)
    }
}
