//! The tools, and what a run of one takes.

use crate::bench::must;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a run took.
#[derive(Clone, Debug)]
pub(super) struct Spent {
    pub(super) seconds: f64,
    /// Of all processes.
    pub(super) cpu_seconds: f64,
    pub(super) client_cpu_seconds: f64,
    /// Of the client.
    pub(super) peak_mib: f64,
    /// What the repository has, when it is over.
    pub(super) stored_mib: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tool {
    Backlane,
    Restic,
    Rustic,
    Borg,
}

/// A repository of a tool, and a server where it has one.
pub(super) struct Place {
    tool: Tool,
    directory: PathBuf,
    bin: PathBuf,
    server: Option<Child>,
}

const PASSWORD: &str = "correct horse battery staple";
const PORT: u16 = 48_701;
const SERVER_START: Duration = Duration::from_secs(60);

/// The tools that are wanted, or all that are there.
pub(super) fn installed(wanted: &[String]) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    for tool in [Tool::Backlane, Tool::Restic, Tool::Rustic, Tool::Borg] {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|name| name == tool.name());
        let is_there =
            tool == Tool::Backlane || Command::new(tool.name()).arg("--version").output().is_ok();
        match (is_wanted, is_there) {
            (true, true) => tools.push(tool),
            (true, false) if wanted.is_empty() => {
                eprintln!("{} is not installed: left out", tool.name())
            }
            (true, false) => anyhow::bail!("{} is not installed", tool.name()),
            (false, _) => {}
        }
    }
    ensure!(!tools.is_empty(), "no tool of these names");
    Ok(tools)
}

impl Tool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Backlane => "backlane",
            Self::Restic => "restic",
            Self::Rustic => "rustic",
            Self::Borg => "borg",
        }
    }

    /// Makes an empty repository.
    pub(super) fn prepare(self, directory: &Path, bin: &Path) -> Result<Place> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("password"), PASSWORD)?;
        let mut place = Place {
            tool: self,
            directory: directory.to_owned(),
            bin: bin.to_owned(),
            server: None,
        };
        match self {
            Self::Backlane => place.start_server()?,
            Self::Borg => must(place.command().args(["init", "--encryption=repokey"]))?,
            _ => must(place.command().arg("init"))?,
        }
        Ok(place)
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The tool with what leads it to the repository.
    fn command(&self) -> Command {
        let repository = self.path("repository");
        let program = match self.tool {
            Tool::Backlane => self.bin.as_os_str().to_owned(),
            tool => tool.name().into(),
        };
        let mut command = Command::new(program);
        match self.tool {
            Tool::Backlane => {
                command
                    .arg("--config")
                    .arg(self.path("client.toml"))
                    .arg("--quiet");
            }
            Tool::Restic | Tool::Rustic => {
                let upper = self.tool.name().to_uppercase();
                command
                    .env(format!("{upper}_REPOSITORY"), &repository)
                    .env(format!("{upper}_PASSWORD"), PASSWORD)
                    .env("XDG_CACHE_HOME", self.path("cache"));
            }
            Tool::Borg => {
                command
                    .env("BORG_REPO", &repository)
                    .env("BORG_PASSPHRASE", PASSWORD)
                    .env("BORG_BASE_DIR", self.path("cache"));
            }
        }
        command.stdout(Stdio::null());
        command
    }

    pub(super) fn backup(&self, files: &Path) -> Result<Spent> {
        let mut command = self.command();
        match self.tool {
            Tool::Borg => {
                let name = format!("::{}", self.archives()?);
                command.args(["create", &name]).arg(files)
            }
            _ => command.arg("backup").arg(files),
        };
        self.spend(&command)
    }

    pub(super) fn restore(&self, files: &Path, target: &Path) -> Result<Spent> {
        fs::create_dir_all(target)?;
        let mut command = self.command();
        match self.tool {
            Tool::Backlane => {
                must(
                    Command::new(&self.bin)
                        .arg("--config")
                        .arg(self.path("server.toml"))
                        .args(["server", "allow-restore", "client", "--for", "1h"])
                        .stdout(Stdio::null()),
                )?;
                let mut what = std::ffi::OsString::from("latest:");
                what.push(files);
                command.arg("restore").arg(what).arg("--target").arg(target)
            }
            Tool::Restic => command.args(["restore", "latest", "--target"]).arg(target),
            Tool::Rustic => command.args(["restore", "latest"]).arg(target),
            Tool::Borg => {
                let name = format!("::{}", self.archives()? - 1);
                command.args(["extract", &name]).current_dir(target)
            }
        };
        self.spend(&command)
    }

    /// How many archives there are, by which borg names them.
    fn archives(&self) -> Result<usize> {
        let output = self
            .command()
            .args(["list", "--short"])
            .stdout(Stdio::piped())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count())
    }

    /// Runs a command under time(1).
    fn spend(&self, command: &Command) -> Result<Spent> {
        let report = self.path("time");
        let mut timed = Command::new("/usr/bin/time");
        timed.args(["-f", "%e %U %S %M", "-o"]).arg(&report);
        timed.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                timed.env(name, value);
            }
        }
        if let Some(directory) = command.get_current_dir() {
            timed.current_dir(directory);
        }
        let before = self.server_cpu()?;
        let output = timed.output().context("cannot start /usr/bin/time")?;
        ensure!(
            output.status.success(),
            "{timed:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let server = self.server_cpu()? - before;
        let report = fs::read_to_string(&report)?;
        let numbers: Vec<f64> = report
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [seconds, user, system, peak] = numbers[..] else {
            anyhow::bail!("time(1) said {report:?}");
        };
        Ok(Spent {
            seconds,
            cpu_seconds: user + system + server,
            client_cpu_seconds: user + system,
            peak_mib: peak / 1024.0,
            stored_mib: self.stored()?,
        })
    }

    fn stored(&self) -> Result<f64> {
        let output = Command::new("du")
            .args(["-sk", "--apparent-size"])
            .arg(self.path("repository"))
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let kib: f64 = text
            .split_whitespace()
            .next()
            .context("du says nothing")?
            .parse()?;
        Ok(kib / 1024.0)
    }

    /// The CPU seconds of the server so far.
    fn server_cpu(&self) -> Result<f64> {
        let Some(server) = &self.server else {
            return Ok(0.0);
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.id()))?;
        let after = stat.rsplit_once(") ").context("no stat")?.1;
        let ticks = |at: usize| -> Result<f64> {
            Ok(after
                .split_whitespace()
                .nth(at)
                .context("a short stat")?
                .parse()?)
        };
        // In hundredths of a second on all Linux systems: user and system time are the 14th and 15th field.
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }

    fn start_server(&mut self) -> Result<()> {
        let pool = self.path("pool");
        must(
            Command::new("fallocate")
                .args(["--length", "1G"])
                .arg(&pool),
        )?;
        let bin = self.bin.clone();
        let of = |config: PathBuf| {
            let mut command = Command::new(&bin);
            command.arg("--config").arg(config);
            command
        };
        let (server, client) = (self.path("server.toml"), self.path("client.toml"));
        must(
            of(server.clone())
                .args(["pool", "create", "--name", "lane"])
                .arg(&pool)
                .stdout(Stdio::null()),
        )?;
        must(
            of(server.clone())
                .args([
                    "server",
                    "init",
                    "--address",
                    &format!("127.0.0.1:{PORT}"),
                    "--state",
                ])
                .arg(self.path("server"))
                .arg("--objects")
                .arg(self.path("repository"))
                .arg("--pool")
                .arg(&pool)
                .stdout(Stdio::null()),
        )?;
        let run = of(server.clone())
            .args(["server", "run"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(run.context("cannot start the server")?);
        let began = Instant::now();
        let token = loop {
            let output = of(server.clone())
                .args(["server", "enroll", "client", "--json"])
                .output()?;
            let is_up = std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok();
            if output.status.success() && is_up {
                break String::from_utf8(output.stdout)?;
            }
            ensure!(
                began.elapsed() < SERVER_START,
                "the server doesn't start: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            thread::sleep(Duration::from_millis(200));
        };
        let mut join = of(client)
            .args(["join", "--token-file", "-", "--state"])
            .arg(self.path("client"))
            .arg("--device")
            .arg(&pool)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let token = token.split_once("\"token\"").context("no token")?.1;
        let token = token.split('"').nth(1).context("no token")?;
        join.stdin
            .take()
            .context("no standard input")?
            .write_all(token.as_bytes())?;
        ensure!(join.wait()?.success(), "the client can't join");
        Ok(())
    }

    /// Takes everything away again.
    pub(super) fn remove(mut self) -> Result<()> {
        self.stop();
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop();
    }
}
