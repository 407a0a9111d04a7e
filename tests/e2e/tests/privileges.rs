//! What needs root, and what doesn't: a server and backups do without, and a restore of owners needs some capabilities.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Process, Scene, Setup, Side, System, ready, ready_with, same};

const MIB: u64 = 1 << 20;

/// What a restore needs to bring everything back: owners, modes of others' files, devices, capabilities of files.
const RESTORING: [&str; 7] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "mknod",
    "setfcap",
];

#[test]
fn a_server_and_backups_need_no_root_and_a_restore_few_capabilities() -> Result<()> {
    if !ready_with(&["setpriv"]) {
        return Ok(());
    }
    let setup = Setup {
        rootless: true,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::new(&setup, 4 * MIB)? else {
        return Ok(());
    };
    // Root's own, which nobody else may read.
    let closed = scene.source.join("closed");
    fs::create_dir(&closed)?;
    fs::write(closed.join("secret"), "secret")?;
    fs::set_permissions(closed.join("secret"), fs::Permissions::from_mode(0o4600))?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
    let server = scene.system.server()?.id();
    let status = fs::read_to_string(format!("/proc/{server}/status"))?;
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    scene.backup("require-storage")?.success()?;
    let system = &scene.system;
    // Without the capabilities all contents come back, and what doesn't is told.
    let bare = scene.restore("require-storage")?.ended;
    ensure!(
        bare.code() == 3 && bare.stderr.contains("its owner 0"),
        "{bare}"
    );
    fs::remove_dir_all(&scene.target)?;
    let mut restore = system.command_with(Side::Client, &RESTORING);
    let snapshot = format!("latest:{}", scene.source.display());
    restore.arg("--config").arg(&scene.client.config);
    restore
        .args(["restore", &snapshot, "--target"])
        .arg(&scene.target);
    Process::start(&mut restore, &system.path(""), Some(""))?
        .wait()?
        .success()?;
    same(&scene.source, &scene.target)?;
    // What belongs to the user is no business of others, root's neither: files of root's would be in its way.
    let mut hosts = system.lane.command(Side::Server, system.path("backlane"));
    hosts.arg("--config").arg(system.path("server.toml"));
    hosts.args(["server", "hosts"]);
    let as_root = Process::start(&mut hosts, &system.path(""), Some(""))?.wait()?;
    as_root.refused(&["ca.key", "belongs to user"])
}

#[test]
fn a_server_tells_its_supervisor_when_it_serves() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::without_server(&Setup::default())?;
    let path = system.path("notify");
    let notified = UnixDatagram::bind(&path)?;
    notified.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut command = system.server_command();
    command.args(["server", "run", "--until-stdin-closes"]);
    command.env("NOTIFY_SOCKET", &path);
    let server = Process::start(&mut command, &system.path(""), None)?;
    let told = || -> Result<String> {
        let mut buffer = [0; 256];
        let length = notified.recv(&mut buffer).context("nothing is told")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let first = told()?;
    ensure!(first.contains("READY=1"), "{first}");
    ensure!(server.stdout().contains("serving"), "{}", server.said());
    server.signal(rustix::process::Signal::TERM)?;
    let last = told()?;
    ensure!(last.contains("STOPPING=1"), "{last}");
    server.wait()?.success()?;
    Ok(())
}
