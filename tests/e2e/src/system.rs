//! One server and its clients, from an empty disk to jobs that run.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::data::{plant, same};
use crate::device::{Medium, Sector, SharedDevice, Tmpfs};
use crate::lane::{Lane, Side, Wire};
use crate::process::{Ended, Process, binary, output, until};

/// The server's designated port.
const PORT: u16 = 4710;
/// The numbers of the user and of the disks' group where it is rootless.
const USER: u32 = 64_321;
const GROUP: u32 = 64_322;

/// What a system is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What the wire carries.
    pub wire: Wire,
    /// How many disks the two sides share.
    pub devices: u16,
    /// Size of all shared disks together.
    pub pool_bytes: u64,
    /// Block size of the shared disks.
    pub sector: Sector,
    /// How the two sides reach the shared disks.
    pub medium: Medium,
    /// How many slots the pool has, where it isn't what `pool create` takes by default.
    pub max_members: Option<u32>,
    /// Puts the server's objects on a file system of this size.
    pub objects_bytes: Option<u64>,
    /// What does the I/O on the shared disks, on both sides.
    pub engine: Engine,
    /// Runs the program as a user who is not root, whose group may use the shared disks.
    pub rootless: bool,
}

/// What does a process's I/O on the shared disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// What the program chooses.
    Auto,
    /// Threads, as where `io_uring` is forbidden.
    Threads,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            wire: Wire::GIGABIT,
            devices: 1,
            pool_bytes: 256 << 20,
            sector: Sector::B4096,
            medium: Medium::Plain,
            max_members: None,
            objects_bytes: None,
            engine: Engine::Auto,
            rootless: false,
        }
    }
}

impl Setup {
    /// A pool in which there is room for one session and not for two, even if the second takes the least that it can.
    ///
    /// The pool keeps 3 MiB for itself. A session's stream on the designated port takes 640 KiB, its data pair the
    /// largest of twice 32 MiB, 16, 8… and 64 KiB of control blocks for each direction: 8.1 MiB of 10 here. A second
    /// one wants twice 1 MiB at least, and has less.
    #[must_use]
    pub fn one_session() -> Self {
        Self {
            pool_bytes: 13 << 20,
            ..Self::default()
        }
    }
}

/// A server with its pool, and room for clients. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct System {
    // Dropped in this order: who uses a thing goes before it.
    server: Option<Process>,
    /// The wire.
    pub lane: Lane,
    /// The shared disks.
    pub devices: Vec<SharedDevice>,
    /// The file system of the server's objects, if it has one of its own.
    pub objects: Option<Tmpfs>,
    dir: tempfile::TempDir,
    binary: PathBuf,
    engine: Engine,
    rootless: bool,
}

/// An enrolled host.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name at the server.
    pub host: String,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its keys and certificates.
    pub state: PathBuf,
    /// Its repository's key file, which holds the password that stock tools ask for.
    pub key_file: PathBuf,
}

/// A job that ended, with what the kernel counted meanwhile.
#[derive(Debug)]
pub struct Job {
    /// How the program ended.
    pub ended: Ended,
    /// Bytes that crossed the wire.
    pub wire_bytes: u64,
    /// Bytes that were written to or read from the shared disks together.
    pub device_bytes: u64,
    /// The same of each disk.
    pub each_device_bytes: Vec<u64>,
}

impl System {
    /// Makes everything and starts the server.
    ///
    /// # Errors
    /// When any step fails; the error has what the program said.
    pub fn new(setup: &Setup) -> Result<Self> {
        let mut system = Self::without_server(setup)?;
        system.start_server()?;
        Ok(system)
    }

    /// Makes everything but does not start the server.
    ///
    /// # Errors
    /// As [`System::new`].
    pub fn without_server(setup: &Setup) -> Result<Self> {
        let lane = Lane::new(setup.wire)?;
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("dir")))
            .tempdir_in(crate::sweep::base())
            .context("making a directory for the test")?;
        // Whole blocks, whatever their size.
        let bytes = setup.pool_bytes / u64::from(setup.devices) / 4096 * 4096;
        let devices = (0..setup.devices)
            .map(|_| SharedDevice::new(dir.path(), bytes, setup.sector, setup.medium))
            .collect::<Result<_>>()?;
        let objects = setup
            .objects_bytes
            .map(|bytes| Tmpfs::new(&dir.path().join("objects"), bytes))
            .transpose()?;
        let mut system = Self {
            server: None,
            lane,
            devices,
            objects,
            dir,
            binary: binary()?,
            engine: setup.engine,
            rootless: setup.rootless,
        };
        if system.rootless {
            system.give_to_user()?;
        }

        let mut create = system.command(Side::Server);
        create
            .args(["pool", "create", "--name", "test"])
            .args(system.at_server());
        if let Some(slots) = setup.max_members {
            create.args(["--max-members", &slots.to_string()]);
        }
        output(&mut create)?;
        system.init_server()?;
        Ok(system)
    }

    /// Sets the server up, over the disks and whatever objects there are.
    ///
    /// # Errors
    /// When it is set up already, or can't be.
    pub fn init_server(&self) -> Result<()> {
        let mut init = self.server_command();
        init.args([
            "server",
            "init",
            "--address",
            &format!("{}:{PORT}", Side::Server.address()),
        ]);
        for device in self.at_server() {
            init.arg("--pool").arg(device);
        }
        init.arg("--state").arg(self.path("server"));
        init.arg("--objects").arg(self.path("objects"));
        output(&mut init).map(drop)
    }

    /// Gives the directory to the user, with a copy of the program, and the shared disks to the group.
    fn give_to_user(&mut self) -> Result<()> {
        let copy = self.path("backlane");
        std::fs::copy(&self.binary, &copy)?;
        self.binary = copy;
        let paths = [self.dir.path()]
            .into_iter()
            .chain(self.objects.iter().map(|it| it.path.as_path()));
        for path in paths {
            chown(path, Some(USER), Some(USER))?;
        }
        for disk in self
            .at_server()
            .chain(self.devices.iter().map(|it| it.at_client.as_path()))
        {
            chown(disk, None, Some(GROUP))?;
            std::fs::set_permissions(disk, Permissions::from_mode(0o660))?;
        }
        Ok(())
    }

    /// A path in the directory that lives as long as the system.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The shared disks as the server sees them.
    pub fn at_server(&self) -> impl Iterator<Item = &Path> {
        self.devices.iter().map(|device| device.at_server.as_path())
    }

    /// The shared disks as the clients see them.
    #[must_use]
    pub fn at_client(&self) -> Vec<&Path> {
        let devices = self.devices.iter();
        devices.map(|device| device.at_client.as_path()).collect()
    }

    /// Bytes read from and written to each shared disk from both sides, by the counters of the block layer.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn each_device_bytes(&self) -> Result<Vec<u64>> {
        self.devices.iter().map(SharedDevice::bytes).collect()
    }

    /// The sum of [`System::each_device_bytes`].
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn device_bytes(&self) -> Result<u64> {
        Ok(self.each_device_bytes()?.iter().sum())
    }

    /// Makes another pool, which nobody serves, and has a client use that instead of this one.
    ///
    /// # Errors
    /// When the pool can't be made, or the client's configuration doesn't name this one.
    pub fn mislead(&self, client: &Client) -> Result<SharedDevice> {
        let other = SharedDevice::new(&self.path(""), 64 << 20, Sector::B4096, Medium::Plain)?;
        let mut create = self.command(Side::Server);
        create.args(["pool", "create", "--name", "other"]);
        output(create.arg(&other.at_server))?;
        let config = std::fs::read_to_string(&client.config)?;
        let [right, wrong] =
            [&self.devices[0].at_client, &other.at_client].map(|path| path.display().to_string());
        ensure!(config.contains(&right), "{config}");
        std::fs::write(&client.config, config.replace(&right, &wrong))?;
        Ok(other)
    }

    /// Takes the disks away from the clients.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach_client(&self) -> Result<()> {
        self.devices
            .iter()
            .try_for_each(SharedDevice::detach_client)
    }

    /// Where the server keeps the objects of a host's repository: the directory that stock tools open.
    ///
    /// # Errors
    /// When there is none, or it isn't clear which.
    pub fn repository(&self, client: &Client) -> Result<PathBuf> {
        let objects = self.path("objects");
        let found = find(&objects, "config")?;
        let mut of_host: Vec<_> = found
            .iter()
            .filter_map(|config| config.parent())
            .filter(|dir| dir.iter().any(|part| part == OsStr::new(&client.host)))
            .collect();
        if of_host.is_empty() && found.len() == 1 {
            of_host.extend(found[0].parent());
        }
        match of_host.as_slice() {
            [one] => Ok(one.to_path_buf()),
            other => bail!(
                "{} repositories of {} in {}",
                other.len(),
                client.host,
                objects.display()
            ),
        }
    }

    /// Bytes of packs that the server has of a host.
    ///
    /// # Errors
    /// When they can't be counted.
    pub fn stored_bytes(&self, client: &Client) -> Result<u64> {
        fn bytes(dir: &Path) -> Result<u64> {
            let mut sum = 0;
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                sum += if meta.is_dir() {
                    bytes(&entry.path())?
                } else {
                    meta.len()
                };
            }
            Ok(sum)
        }
        // Before the first job has made it there is none.
        let repository = self.repository(client);
        repository.map_or(Ok(0), |repository| bytes(&repository.join("data")))
    }

    /// The binary on one side, with its state and its log kept apart from the machine's own.
    #[must_use]
    pub fn command(&self, side: Side) -> Command {
        match side {
            Side::Server => self.command_with(side, &[]),
            // To read what it backs up, and nothing else.
            Side::Client => self.command_with(side, &["dac_read_search"]),
        }
    }

    /// The same with other capabilities, where it is rootless.
    #[must_use]
    pub fn command_with(&self, side: Side, capabilities: &[&str]) -> Command {
        let mut command = match self.rootless {
            false => self.lane.command(side, &self.binary),
            true => {
                let mut command = self.lane.command(side, "setpriv");
                let of = |name: &&str| format!(",+{name}");
                let few = format!("-all{}", capabilities.iter().map(of).collect::<String>());
                command
                    .args([format!("--reuid={USER}"), format!("--regid={USER}")])
                    .args([format!("--groups={GROUP}"), "--no-new-privs".to_owned()])
                    .args(
                        ["--inh-caps", "--ambient-caps", "--bounding-set"]
                            .map(|set| format!("{set}={few}")),
                    )
                    .arg(&self.binary);
                command
            }
        };
        command.env_remove("BACKLANE_CONFIG");
        let engine = match self.engine {
            Engine::Auto => "auto",
            Engine::Threads => "threads",
        };
        command.env("BACKLANE_POOL_ENGINE", engine);
        command
    }

    /// The binary as the server's administrator runs it.
    #[must_use]
    pub fn server_command(&self) -> Command {
        let mut command = self.command(Side::Server);
        command.arg("--config").arg(self.path("server.toml"));
        command
    }

    /// The binary as a client's administrator runs it, with JSON as its output.
    #[must_use]
    pub fn client_command(&self, client: &Client) -> Command {
        let mut command = self.command(Side::Client);
        command.arg("--json").arg("--config").arg(&client.config);
        command
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Errors
    /// When it ends before it does.
    pub fn start_server(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server runs already");
        let mut command = self.server_command();
        // Its standard input closes when this process dies, whatever the way.
        command.args(["--verbose", "server", "run", "--until-stdin-closes"]);
        let mut server = Process::start(&mut command, self.dir.path(), None)?;
        until("the server serves", || {
            ensure!(server.is_running()?, "the server ended: {}", server.said());
            Ok(server.stdout().contains("serving"))
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// The number of the server's process.
    ///
    /// # Errors
    /// When none runs.
    pub fn server_id(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("no server runs")?.id())
    }

    /// The server's process, to watch it.
    ///
    /// # Errors
    /// When none runs.
    pub fn server(&mut self) -> Result<&mut Process> {
        self.server.as_mut().context("no server runs")
    }

    /// Kills the server, without a chance to say goodbye.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_server(&mut self) -> Result<()> {
        let server = self.server.take().context("no server runs")?;
        server.signal(Signal::KILL)?;
        server.wait().map(drop)
    }

    /// Asks the server to stop, and waits until it has.
    ///
    /// # Errors
    /// When none runs, or it doesn't.
    pub fn stop_server(&mut self) -> Result<Ended> {
        let server = self.server.take().context("no server runs")?;
        server.signal(Signal::TERM)?;
        server.wait()
    }

    /// A join token for `host`.
    ///
    /// # Errors
    /// When the server gives none.
    pub fn token(&self, host: &str, more: &[&str]) -> Result<String> {
        let document = self.administer(&[&["enroll", host], more].concat())?;
        let token = document["token"]
            .as_str()
            .context("no token in the document of enroll")?;
        Ok(token.to_owned())
    }

    /// The command by which `host` joins, and what it will be then. The host sees the pool at `devices`. Unless it is
    /// told where to read the token, it asks.
    ///
    /// # Errors
    /// When there is no room for the host's files.
    pub fn join_command(&self, host: &str, devices: &[&Path]) -> Result<(Client, Command)> {
        let home = self.path(format!("client-{host}"));
        std::fs::create_dir_all(&home)?;
        if self.rootless {
            chown(&home, Some(USER), Some(USER))?;
        }
        let client = Client {
            host: host.to_owned(),
            config: home.join("client.toml"),
            state: home.join("state"),
            key_file: home.join("state/repository.key"),
        };
        let mut join = self.client_command(&client);
        join.arg("join").arg("--state").arg(&client.state);
        for device in devices {
            join.arg("--device").arg(device);
        }
        Ok((client, join))
    }

    /// Joins with a token, as a host that sees the pool at `devices`.
    ///
    /// # Errors
    /// When the program can't be run; that it was refused is in what it says.
    pub fn join(&self, host: &str, token: &str, devices: &[&Path]) -> Result<(Client, Ended)> {
        let (client, mut join) = self.join_command(host, devices)?;
        join.args(["--token-file", "-"]);
        let ended =
            Process::start(&mut join, self.dir.path(), Some(&format!("{token}\n")))?.wait()?;
        if ended.code() == 0 {
            self.administer(&["allow-restore", host, "--for", "1day"])?;
        }
        Ok((client, ended))
    }

    /// Runs a command of the server's administrator, which has to succeed; returns its document.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn administer(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.server_command();
        let printed = output(command.args(["--json", "server"]).args(arguments))?;
        serde_json::from_str(&printed).with_context(|| format!("the document of {arguments:?}"))
    }

    /// Enrols a host that sees the shared disks.
    ///
    /// # Errors
    /// When any step fails.
    pub fn client(&self, host: &str) -> Result<Client> {
        let token = self.token(host, &[])?;
        let (client, ended) = self.join(host, &token, &self.at_client())?;
        let document = ended.success()?.json()?;
        let key_file = document["repository_key"].as_str().map(Path::new);
        ensure!(
            key_file == Some(&client.key_file),
            "the key file of {document}"
        );
        Ok(client)
    }

    /// Starts a command of a client.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        client: &Client,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let mut command = self.client_command(client);
        command.args(arguments);
        Process::start(&mut command, self.dir.path(), Some(""))
    }

    /// Runs a command of a client to its end, whatever that is.
    ///
    /// # Errors
    /// When it can't be started or doesn't end.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        client: &Client,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Job> {
        let before = (self.lane.bytes()?, self.each_device_bytes()?);
        let ended = self.start(client, arguments)?.wait()?;
        let after = self.each_device_bytes()?.into_iter();
        let each_device_bytes: Vec<u64> = after
            .zip(before.1)
            .map(|(after, before)| after - before)
            .collect();
        Ok(Job {
            ended,
            wire_bytes: self.lane.bytes()? - before.0,
            device_bytes: each_device_bytes.iter().sum(),
            each_device_bytes,
        })
    }

    /// Backs up `path`.
    ///
    /// # Errors
    /// When it can't be started or doesn't end; a failure is in the job.
    pub fn backup(&self, client: &Client, path: &Path, more: &[&str]) -> Result<Job> {
        let arguments = ["backup".as_ref(), path.as_os_str()];
        self.run(
            client,
            arguments.into_iter().chain(more.iter().map(OsStr::new)),
        )
    }

    /// Restores what `path` was in the latest snapshot to `target`.
    ///
    /// # Errors
    /// As [`System::backup`].
    pub fn restore(
        &self,
        client: &Client,
        path: &Path,
        target: &Path,
        more: &[&str],
    ) -> Result<Job> {
        let mut snapshot = std::ffi::OsString::from("latest:");
        snapshot.push(path);
        let arguments = [
            "restore".as_ref(),
            snapshot.as_os_str(),
            "--target".as_ref(),
            target.as_os_str(),
        ];
        self.run(
            client,
            arguments.into_iter().chain(more.iter().map(OsStr::new)),
        )
    }

    /// Expects that a small job of a client works, whole and through the pool; another `seed` is another job.
    ///
    /// # Errors
    /// When a part of it fails, or what comes back is not what was there.
    pub fn works(&self, client: &Client, seed: u64) -> Result<()> {
        const BYTES: u64 = 1 << 20;
        let source = self.small_source(seed);
        let target = self.path(format!("works-target-{seed}"));
        plant(&source, BYTES, seed)?;
        let route = ["--route", "require-storage"];
        self.backup(client, &source, &route)?.success()?;
        self.restore(client, &source, &target, &route)?.success()?;
        same(&source, &target)
    }

    /// What [`System::works`] backs up.
    pub fn small_source(&self, seed: u64) -> PathBuf {
        self.path(format!("works-source-{seed}"))
    }

    /// Fails unless every byte of a client's repository is as it was written. Packs that an interrupted job left, which
    /// no index names, are no damage.
    ///
    /// # Errors
    /// With what the check found.
    pub fn check(&self, client: &Client) -> Result<()> {
        let ended = self.run(client, ["check", "--read-data"])?.ended;
        let document = ended.json()?;
        ensure!(
            matches!(ended.code(), 0 | 3) && document["clean"] == true,
            "{ended}"
        );
        Ok(())
    }

    /// Runs restic, the stock tool of the format, on a client's repository.
    ///
    /// # Errors
    /// When it can't be started or doesn't end; a failure is in what it returns.
    pub fn restic(&self, client: &Client, arguments: &[&str]) -> Result<Ended> {
        let mut command = Command::new("restic");
        command.arg("--repo").arg(self.repository(client)?);
        command.arg("--password-file").arg(&client.key_file);
        command.args(["--no-lock", "--no-cache"]).args(arguments);
        Process::start(&mut command, self.dir.path(), Some(""))?.wait()
    }

    /// Waits until no living process holds a connection through the pool.
    ///
    /// # Errors
    /// When one goes on to do so.
    pub fn connections_are_gone(&self) -> Result<()> {
        until("no member has a connection", || {
            let document = self.members()?;
            let members = document["members"].as_array();
            ensure!(members.is_some(), "no members in {document}");
            Ok(members
                .into_iter()
                .flatten()
                .all(|member| member["state"] != "alive" || member["connections"] == 0))
        })
    }

    /// The members of the pool, as the server's administrator sees them.
    ///
    /// # Errors
    /// When the pool can't be read.
    pub fn members(&self) -> Result<Value> {
        let mut members = self.command(Side::Server);
        members
            .args(["--json", "pool", "members"])
            .args(self.at_server());
        serde_json::from_str(&output(&mut members)?).context("the document of pool members")
    }
}

impl Job {
    /// Fails unless the exit code is 0.
    ///
    /// # Errors
    /// With all that the program wrote.
    pub fn success(mut self) -> Result<Self> {
        self.ended = self.ended.success()?;
        Ok(self)
    }

    /// A whole number of the job's document.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn number(&self, name: &str) -> Result<u64> {
        let document = self.ended.json()?;
        document[name]
            .as_u64()
            .with_context(|| format!("no number {name} in {document}"))
    }
}

/// Every file of this name below `dir`.
fn find(dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(find(&entry.path(), name)?);
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    Ok(found)
}
