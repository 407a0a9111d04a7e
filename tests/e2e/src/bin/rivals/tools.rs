//! The tools, and what a run of one takes.

use super::server;
use anyhow::{Context, Result, bail, ensure};
use backlane_e2e::{Lane, Process, Side, output, until};
use serde_json::Value;
use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    pub(super) seconds: f64,
    /// Of all processes.
    pub(super) cpu_seconds: f64,
    pub(super) client_cpu_seconds: f64,
    /// Of the client.
    pub(super) peak_mib: f64,
    /// What the repository has, when it is over.
    pub(super) stored_mib: f64,
    /// Both ways together.
    pub(super) wire_mib: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Program {
    Backlane,
    Restic,
    Rustic,
    Borg,
}

/// How a program reaches its repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    /// It is a directory.
    Directory,
    /// By Backlane's server and a pool that is a file.
    Pool,
    /// By an SSH server: restic by SFTP, borg by a borg that the server starts.
    Ssh,
    /// By restic's REST protocol over plain HTTP.
    Rest,
}

/// A program that reaches its repository in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) program: Program,
    pub(super) transport: Transport,
}

const fn tool(name: &'static str, program: Program, transport: Transport) -> Tool {
    Tool {
        name,
        program,
        transport,
    }
}

const ON_THIS_MACHINE: &[Tool] = &[
    tool("backlane", Program::Backlane, Transport::Pool),
    tool("restic", Program::Restic, Transport::Directory),
    tool("rustic", Program::Rustic, Transport::Directory),
    tool("borg", Program::Borg, Transport::Directory),
];

const OVER_A_WIRE: &[Tool] = &[
    tool("backlane", Program::Backlane, Transport::Pool),
    tool("restic-sftp", Program::Restic, Transport::Ssh),
    tool("restic-rest", Program::Restic, Transport::Rest),
    tool("rustic-rest", Program::Rustic, Transport::Rest),
    tool("borg-ssh", Program::Borg, Transport::Ssh),
];

/// Where the tools run: on this machine, or at both ends of a wire.
pub(super) struct Site {
    /// Backlane's binary.
    pub(super) bin: PathBuf,
    pub(super) lane: Option<Lane>,
    /// Where Backlane's pool is, if not beside its repository.
    pub(super) pool: Option<PathBuf>,
}

/// A repository of a tool, and a server where it has one.
pub(super) struct Place<'a> {
    pub(super) tool: Tool,
    pub(super) site: &'a Site,
    directory: PathBuf,
    server: Option<Process>,
}

const PASSWORD: &str = "correct horse battery staple";
const MIB: f64 = 1_048_576.0;

impl Site {
    /// A command that will run at one end.
    pub(super) fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        match &self.lane {
            Some(lane) => lane.command(side, program),
            None => Command::new(program),
        }
    }

    /// Where clients find servers.
    pub(super) fn address(&self) -> &'static str {
        match &self.lane {
            Some(_) => Side::Server.address(),
            None => "127.0.0.1",
        }
    }

    /// The tools that are wanted, by the name of the tool or of its program, or all that are there.
    pub(super) fn tools(&self, wanted: &[String]) -> Result<Vec<Tool>> {
        let all = match &self.lane {
            Some(_) => OVER_A_WIRE,
            None => ON_THIS_MACHINE,
        };
        let is_called = |tool: &Tool, name: &str| [tool.name, tool.program.name()].contains(&name);
        for name in wanted {
            let names: Vec<_> = all.iter().map(|tool| tool.name).collect();
            ensure!(
                all.iter().any(|tool| is_called(tool, name)),
                "there is no tool {name} here; give some of {}",
                names.join(", ")
            );
        }
        let mut tools = Vec::new();
        for tool in all {
            if !wanted.is_empty() && !wanted.iter().any(|name| is_called(tool, name)) {
                continue;
            }
            match tool.missing() {
                None => tools.push(*tool),
                Some(what) if wanted.is_empty() => {
                    eprintln!("{} is left out: {what} is not installed", tool.name);
                }
                Some(what) => bail!("{} needs {what}, which is not installed", tool.name),
            }
        }
        Ok(tools)
    }
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Backlane => "backlane",
            Self::Restic => "restic",
            Self::Rustic => "rustic",
            Self::Borg => "borg",
        }
    }

    pub(super) fn is_installed(self) -> bool {
        self == Self::Backlane || is_there(self.name())
    }
}

impl Tool {
    /// A program that it needs and that isn't there.
    fn missing(self) -> Option<&'static str> {
        if !self.program.is_installed() {
            return Some(self.program.name());
        }
        let more: &[&str] = match self.transport {
            Transport::Directory | Transport::Pool => &[],
            Transport::Ssh => &["ssh", "ssh-keygen", server::SSHD],
            Transport::Rest => &["rclone"],
        };
        more.iter().find(|program| !is_there(program)).copied()
    }

    /// Makes an empty repository.
    pub(super) fn prepare<'a>(self, directory: &Path, site: &'a Site) -> Result<Place<'a>> {
        fs::create_dir_all(directory)?;
        let mut place = Place {
            tool: self,
            site,
            directory: directory.to_owned(),
            server: None,
        };
        place.server = server::start(&place)?;
        let mut init = place.command();
        match self.program {
            // The first job makes it.
            Program::Backlane => return Ok(place),
            Program::Restic | Program::Rustic => init.arg("init"),
            Program::Borg => init.args(["init", "--encryption=repokey"]),
        };
        output(&mut init)?;
        Ok(place)
    }
}

/// Whether there is such a program, in PATH if it isn't a path itself.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Place<'_> {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The pool that Backlane goes through.
    pub(super) fn pool(&self) -> PathBuf {
        let elsewhere = self.site.pool.clone();
        elsewhere.unwrap_or_else(|| self.path("pool"))
    }

    /// The tool under time(1), with what leads it to the repository.
    fn command(&self) -> Command {
        let mut command = self.site.command(Side::Client, "/usr/bin/time");
        command
            .args(["-f", "%e %U %S %M", "-o"])
            .arg(self.path("time"));
        let program = self.tool.program;
        match program {
            Program::Backlane => {
                command.arg(&self.site.bin);
                command.arg("--config").arg(self.path("client.toml"));
                command.arg("--quiet");
            }
            Program::Restic | Program::Rustic => {
                let upper = program.name().to_uppercase();
                command.arg(program.name());
                command
                    .env(format!("{upper}_REPOSITORY"), self.repository())
                    .env(format!("{upper}_PASSWORD"), PASSWORD)
                    .env("XDG_CACHE_HOME", self.path("cache"));
            }
            Program::Borg => {
                command.arg(program.name());
                command
                    .env("BORG_REPO", self.repository())
                    .env("BORG_PASSPHRASE", PASSWORD)
                    .env("BORG_BASE_DIR", self.path("cache"));
            }
        }
        match (self.tool.transport, program) {
            (Transport::Ssh, Program::Borg) => {
                command.env("BORG_RSH", server::ssh(self));
            }
            (Transport::Ssh, _) => {
                let ssh = format!("{} {} -s sftp", server::ssh(self), server::SSH_HOST);
                command.args(["-o", &format!("sftp.command={ssh}")]);
            }
            // A proxy of the user's is not in reach.
            (Transport::Rest, _) => {
                command.env("NO_PROXY", "*");
            }
            (Transport::Directory | Transport::Pool, _) => {}
        }
        command
    }

    /// What a rival calls its repository.
    fn repository(&self) -> OsString {
        let path = self.path("repository").into_os_string();
        let mut url = OsString::from(match (self.tool.transport, self.tool.program) {
            (Transport::Directory | Transport::Pool, _) => return path,
            (Transport::Rest, _) => {
                return format!("rest:http://{}:{}/", self.site.address(), self.port()).into();
            }
            (Transport::Ssh, Program::Borg) => format!("ssh://{}", server::SSH_HOST),
            (Transport::Ssh, _) => format!("sftp:{}:", server::SSH_HOST),
        });
        url.push(path);
        url
    }

    pub(super) fn backup(&self, files: &Path) -> Result<Spent> {
        let mut command = self.command();
        match self.tool.program {
            Program::Backlane => command.args(["backup", "--route", "require-storage"]),
            Program::Restic | Program::Rustic => command.arg("backup"),
            Program::Borg => command.args(["create", &format!("::{}", self.archives()?)]),
        };
        self.spend(command.arg(files))
    }

    pub(super) fn restore(&self, files: &Path, target: &Path) -> Result<Spent> {
        fs::create_dir_all(target)?;
        let mut command = self.command();
        match self.tool.program {
            Program::Backlane => {
                server::allow_restore(self)?;
                let mut what = OsString::from("latest:");
                what.push(files);
                command.args(["restore", "--route", "require-storage"]);
                command.arg(what).arg("--target").arg(target)
            }
            Program::Restic => command.args(["restore", "latest", "--target"]).arg(target),
            Program::Rustic => command.args(["restore", "latest"]).arg(target),
            Program::Borg => {
                let name = format!("::{}", self.archives()? - 1);
                command.args(["extract", &name]).current_dir(target)
            }
        };
        self.spend(&mut command)
    }

    /// How many archives there are, by which borg names them.
    fn archives(&self) -> Result<usize> {
        let listed = output(self.command().args(["list", "--short"]))?;
        Ok(listed.lines().count())
    }

    /// Runs a command of [`Place::command`].
    fn spend(&self, command: &mut Command) -> Result<Spent> {
        let wire = || self.site.lane.as_ref().map_or(Ok(0), Lane::bytes);
        let before = (self.server_cpu()?, wire()?);
        output(command)?;
        let server = self.server_cpu()? - before.0;
        let wire = wire()? - before.1;
        let report = fs::read_to_string(self.path("time"))?;
        let numbers: Vec<f64> = report
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [seconds, user, system, peak] = numbers[..] else {
            bail!("time(1) said {report:?}");
        };
        Ok(Spent {
            seconds,
            cpu_seconds: user + system + server,
            client_cpu_seconds: user + system,
            peak_mib: peak / 1024.0,
            stored_mib: mib_below(&self.path("repository"))?,
            wire_mib: wire as f64 / MIB,
        })
    }

    /// How long all chunks of files are together, before compression; borg counts metadata with them. rustic tells it of
    /// all repositories of its format: `None` where it isn't installed.
    pub(super) fn unique_mib(&self) -> Result<Option<f64>> {
        let number = |document: &Value, at: &str| {
            let found = document.pointer(at).and_then(Value::as_f64);
            found.with_context(|| format!("no {at} in {document}"))
        };
        if self.tool.program == Program::Borg {
            let printed = output(self.command().args(["info", "--json"]))?;
            let bytes = number(&serde_json::from_str(&printed)?, "/cache/stats/unique_size")?;
            return Ok(Some(bytes / MIB));
        }
        if !Program::Rustic.is_installed() {
            return Ok(None);
        }
        let mut count = Command::new(Program::Rustic.name());
        match self.tool.program {
            Program::Backlane => count
                .env(
                    "RUSTIC_REPOSITORY",
                    self.path("repository/repositories/client"),
                )
                .env("RUSTIC_PASSWORD_FILE", self.path("client/repository.key")),
            _ => count
                .env("RUSTIC_REPOSITORY", self.path("repository"))
                .env("RUSTIC_PASSWORD", PASSWORD),
        };
        count.args(["--no-cache", "repoinfo", "--only-index", "--json"]);
        let document: Value = serde_json::from_str(&output(&mut count)?)?;
        let blobs = document.pointer("/index/blobs").and_then(Value::as_array);
        let mut kinds = blobs.into_iter().flatten();
        let data = kinds.find(|kind| kind["blob_type"] == "data");
        let data = data.with_context(|| format!("no data in {document}"))?;
        Ok(Some(number(data, "/data_size")? / MIB))
    }

    /// The CPU seconds of the server so far, and of what it has started for sessions.
    fn server_cpu(&self) -> Result<f64> {
        let Some(server) = &self.server else {
            return Ok(0.0);
        };
        let id = server.id();
        let children = format!("/proc/{id}/task/{id}/children");
        // Their seconds become the server's when it has waited for them.
        until("the server's sessions are over", || {
            Ok(fs::read_to_string(&children)?.trim().is_empty())
        })?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let after = stat.rsplit_once(") ").context("no stat")?.1;
        // In hundredths of a second on all Linux systems: user and system time, its own and its children's, are the 14th
        // to 17th field.
        let ticks = after.split_whitespace().skip(11).take(4);
        let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / 100.0)
    }

    /// Takes everything away again.
    pub(super) fn remove(mut self) -> Result<()> {
        self.end()?;
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }

    /// Ends what runs here, and takes a pool away that is elsewhere.
    pub(super) fn end(&mut self) -> Result<()> {
        self.server = None;
        let pool = self.site.pool.as_ref();
        if let Some(pool) = pool.filter(|_| self.tool.program == Program::Backlane) {
            fs::remove_file(pool)?;
        }
        Ok(())
    }
}

/// How long the files below a directory are together.
pub(super) fn mib_below(directory: &Path) -> Result<f64> {
    let mut sum = 0.0;
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sum += mib_below(&entry.path())?;
        } else if kind.is_file() {
            sum += entry.metadata()?.len() as f64 / MIB;
        }
    }
    Ok(sum)
}
