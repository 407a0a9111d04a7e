//! What leads to a repository that isn't a directory of the client's: Backlane's server, an SSH server, a REST server.
//!
//! Each has its keys, settings and logs in the directory of its [`Place`], and dies with the process that started it.

use super::tools::{Place, Transport};
use anyhow::{Context, Result, ensure};
use backlane_e2e::{Process, Side, output, until};
use serde_json::Value;
use std::{ffi::OsStr, fs, process::Command};

/// sshd starts itself anew by its whole path.
pub(super) const SSHD: &str = "/usr/sbin/sshd";
/// What the client's SSH calls the server.
pub(super) const SSH_HOST: &str = "server";
const FIRST_PORT: u16 = 48_701;

/// Starts what the place's tool needs.
pub(super) fn start(place: &Place<'_>) -> Result<Option<Process>> {
    match place.tool.transport {
        Transport::Directory => return Ok(None),
        Transport::Pool => start_backlane(place),
        Transport::Ssh => start_ssh(place),
        Transport::Rest => start_rest(place),
    }
    .map(Some)
}

/// SSH's client, with all that it has to know.
pub(super) fn ssh(place: &Place<'_>) -> String {
    format!("ssh -F '{}'", place.path("ssh_config").display())
}

pub(super) fn allow_restore(place: &Place<'_>) -> Result<()> {
    let mut allow = backlane(place, Side::Server);
    output(allow.args(["server", "allow-restore", "client", "--for", "1h"])).map(drop)
}

impl Place<'_> {
    /// The server's, which no other place has.
    pub(super) fn port(&self) -> u16 {
        FIRST_PORT + 4 * self.tool.transport as u16 + self.tool.program as u16
    }

    fn address(&self) -> String {
        format!("{}:{}", self.site.address(), self.port())
    }
}

/// A program at the server's end that dies with this process.
fn bound(place: &Place<'_>, program: impl AsRef<OsStr>) -> Command {
    let mut command = place.site.command(Side::Server, "setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Starts a server and waits until it says that it serves.
fn serve(place: &Place<'_>, command: &mut Command, says: &str) -> Result<Process> {
    let mut server = Process::start(command, &place.path(""), None)?;
    until("the server serves", || {
        ensure!(server.is_running()?, "the server ended: {}", server.said());
        Ok(server.said().contains(says))
    })?;
    Ok(server)
}

/// Backlane as the administrator of one end runs it.
fn backlane(place: &Place<'_>, side: Side) -> Command {
    let config = match side {
        Side::Server => "server.toml",
        Side::Client => "client.toml",
    };
    let mut command = place.site.command(side, &place.site.bin);
    command.arg("--config").arg(place.path(config));
    command
}

fn start_backlane(place: &Place<'_>) -> Result<Process> {
    let pool = place.pool();
    let mut fallocate = Command::new("fallocate");
    output(fallocate.args(["--length", "1G"]).arg(&pool))?;
    let mut create = backlane(place, Side::Server);
    output(create.args(["pool", "create", "--name", "lane"]).arg(&pool))?;
    let mut init = backlane(place, Side::Server);
    init.args(["server", "init", "--address", &place.address()]);
    init.arg("--state").arg(place.path("server"));
    init.arg("--objects").arg(place.path("repository"));
    output(init.arg("--pool").arg(&pool))?;
    let mut run = bound(place, &place.site.bin);
    run.arg("--config").arg(place.path("server.toml"));
    let server = serve(place, run.args(["server", "run"]), "serving")?;

    let mut enroll = backlane(place, Side::Server);
    let printed = output(enroll.args(["server", "enroll", "client", "--json"]))?;
    let document: Value = serde_json::from_str(&printed)?;
    let token = document["token"].as_str().context("no token")?;
    let mut join = backlane(place, Side::Client);
    join.args(["join", "--token-file", "-", "--state"]);
    join.arg(place.path("client")).arg("--device").arg(&pool);
    Process::start(&mut join, &place.path(""), Some(token))?
        .wait()?
        .success()?;
    Ok(server)
}

fn start_ssh(place: &Place<'_>) -> Result<Process> {
    for key in ["host_key", "client_key"] {
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        output(make.arg(place.path(key)))?;
    }
    let directory = place.path("");
    let directory = directory.display();
    let (address, port) = (place.site.address(), place.port());
    let path = std::env::var("PATH").unwrap_or_default();
    fs::write(
        place.path("sshd_config"),
        format!(
            "ListenAddress {address}:{port}\nPidFile none\nUsePAM no\n\
             HostKey \"{directory}host_key\"\nStrictModes no\n\
             AuthorizedKeysFile \"{directory}client_key.pub\"\nPermitRootLogin prohibit-password\n\
             SetEnv \"PATH={path}\" \"BORG_BASE_DIR={directory}server\"\nSubsystem sftp internal-sftp\n"
        ),
    )?;
    fs::write(
        place.path("ssh_config"),
        format!(
            "Host {SSH_HOST}\nHostName {address}\nPort {port}\nUser root\nBatchMode yes\n\
             IdentityFile \"{directory}client_key\"\nIdentitiesOnly yes\n\
             UserKnownHostsFile \"{directory}known_hosts\"\nStrictHostKeyChecking accept-new\n"
        ),
    )?;
    // sshd insists on it; else its service makes it.
    fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
    let mut run = bound(place, SSHD);
    run.args(["-D", "-e", "-f"]).arg(place.path("sshd_config"));
    serve(place, &mut run, "listening on")
}

fn start_rest(place: &Place<'_>) -> Result<Process> {
    let mut run = bound(place, "rclone");
    run.args(["serve", "restic", "--config", ""]);
    run.args(["--addr", &place.address()]);
    serve(place, run.arg(place.path("repository")), "Serving restic")
}
