//! Processes that end in the middle of a job, by force or by request, and jobs beside each other.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Client, Process, Setup, System, plant, ready, same, until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// So much that no machine is done with it before it was noticed that it has begun.
const PLENTY_BYTES: u64 = 384 * MIB;

/// Starts a backup of [`PLENTY_BYTES`] and returns once some of it has gone through the disk.
fn underway(system: &System, client: &Client, source: &Path) -> Result<Process> {
    let before = system.device.bytes()?;
    let arguments = [
        "backup".as_ref(),
        source.as_os_str(),
        "--route".as_ref(),
        "require-storage".as_ref(),
    ];
    let mut backup = system.start(client, arguments)?;
    until("the backup is under way", || {
        ensure!(
            backup.is_running()?,
            "the backup ended too soon: {}",
            backup.said()
        );
        Ok(system.device.bytes()? - before > 32 * MIB)
    })?;
    Ok(backup)
}

/// Expects that the interrupted backup can be done now, whole, and that the repository is sound.
fn next_one_works(system: &System, client: &Client, source: &Path) -> Result<()> {
    let target = system.path("after");
    system
        .backup(client, source, &["--route", "require-storage"])?
        .success()?;
    system.restore(client, source, &target, &[])?.success()?;
    same(source, &target)?;
    system.check(client)
}

/// Waits until no living process holds a connection through the pool.
fn connections_are_gone(system: &System) -> Result<()> {
    until("no member has a connection", || {
        let document = system.members()?;
        let members = document["members"].as_array().context("no members")?;
        Ok(members
            .iter()
            .all(|member| member["state"] != "alive" || member["connections"] == 0))
    })
}

#[test]
fn killed_clients_leave_nothing_that_hinders_the_next() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    // So small a pool that segments of the dead would be missed.
    let system = System::new(&Setup {
        pool_bytes: 96 << 20,
        ..Setup::default()
    })?;
    let client = system.client("alpha")?;
    let source = system.path("source");
    plant(&source, PLENTY_BYTES, 7)?;
    for _ in 0..3 {
        let backup = underway(&system, &client, &source)?;
        backup.signal(Signal::KILL)?;
        assert_eq!(backup.wait()?.code(), 137);
    }
    next_one_works(&system, &client, &source)?;
    connections_are_gone(&system)
}

#[test]
fn killed_server_ends_the_job_and_the_next_server_goes_on() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let source = system.path("source");
    plant(&source, PLENTY_BYTES, 7)?;
    let backup = underway(&system, &client, &source)?;
    system.kill_server()?;
    let ended = backup.wait()?;
    assert_eq!(ended.code(), 1, "{ended}");
    assert!(
        ended.text().contains("10.77.0.1"),
        "the server isn't named: {ended}"
    );
    system.start_server()?;
    next_one_works(&system, &client, &source)
}

#[test]
fn interrupted_client_ends_cleanly_and_gives_its_segments_back() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup {
        pool_bytes: 96 << 20,
        ..Setup::default()
    })?;
    let client = system.client("alpha")?;
    let source = system.path("source");
    plant(&source, PLENTY_BYTES, 7)?;
    for signal in [Signal::INT, Signal::TERM] {
        let backup = underway(&system, &client, &source)?;
        backup.signal(signal)?;
        let ended = backup.wait()?;
        assert_eq!(ended.code(), 1, "{ended}");
        assert!(ended.text().contains("interrupted"), "{ended}");
        connections_are_gone(&system)?;
        let snapshots = system.run(&client, ["snapshots"])?.success()?;
        let listed = snapshots.ended.json()?;
        assert_eq!(
            listed["snapshots"].as_array().map(Vec::len),
            Some(0),
            "{listed}"
        );
    }
    next_one_works(&system, &client, &source)
}

#[test]
fn stopped_server_says_goodbye_to_nobody_and_starts_again() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let ended = system.stop_server()?;
    assert_eq!(ended.code(), 0, "{ended}");
    let source = system.path("source");
    plant(&source, 4 * MIB, 1)?;
    let refused = system.backup(&client, &source, &[])?;
    assert_eq!(refused.ended.code(), 1, "{}", refused.ended);
    assert!(
        refused.ended.text().contains("10.77.0.1"),
        "{}",
        refused.ended
    );
    system.start_server()?;
    next_one_works(&system, &client, &source)
}

#[test]
fn two_clients_work_at_once_each_in_its_own_repository() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let clients = [system.client("alpha")?, system.client("beta")?];
    let sources = ["source-alpha", "source-beta"].map(|name| system.path(name));
    let mut running = Vec::new();
    for (seed, (client, source)) in (1..).zip(clients.iter().zip(&sources)) {
        plant(source, 96 * MIB, seed)?;
        let arguments = [
            "backup".as_ref(),
            source.as_os_str(),
            "--route".as_ref(),
            "require-storage".as_ref(),
        ];
        running.push(system.start(client, arguments)?);
    }
    for job in running {
        job.wait()?.success()?;
    }
    let mut running = Vec::new();
    let targets = ["target-alpha", "target-beta"].map(|name| system.path(name));
    for ((client, source), target) in clients.iter().zip(&sources).zip(&targets) {
        let snapshot = format!("latest:{}", source.display());
        let arguments = [
            "restore".as_ref(),
            snapshot.as_ref(),
            "--target".as_ref(),
            target.as_os_str(),
        ];
        running.push(system.start(client, arguments)?);
    }
    for job in running {
        job.wait()?.success()?;
    }
    for (source, target) in sources.iter().zip(&targets) {
        same(source, target)?;
    }
    // Neither sees the other's snapshots.
    for client in &clients {
        let listed = system.run(client, ["snapshots"])?.success()?.ended.json()?;
        assert_eq!(
            listed["snapshots"].as_array().map(Vec::len),
            Some(1),
            "{listed}"
        );
    }
    Ok(())
}

#[test]
fn first_jobs_at_once_make_one_repository() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let source = system.path("source");
    plant(&source, 4 * MIB, 1)?;
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(system.start(&client, ["backup".as_ref(), source.as_os_str()])?);
    }
    for job in running {
        job.wait()?.success()?;
    }
    // A second key would be one of another repository: stock tools try one and give up.
    let keys = std::fs::read_dir(system.repository(&client)?.join("keys"))?;
    assert_eq!(keys.count(), 1);
    next_one_works(&system, &client, &source)
}
