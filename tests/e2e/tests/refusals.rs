//! What must not work doesn't, says why, and leaves the next job in peace.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    Medium, Scene, Sector, Setup, SharedDevice, Side, System, plant, ready, same, until,
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

#[test]
fn wrong_password_is_refused_by_name() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let (alpha, beta) = (system.client("alpha")?, system.client("beta")?);
    system.works(&alpha, 1)?;
    let (own, foreign) = (&alpha.key_file, &beta.key_file);
    let kept = std::fs::read(own)?;
    std::fs::copy(foreign, own)?;
    let source = system.small_source(1);
    system
        .backup(&alpha, &source, &[])?
        .ended
        .refused(&["key", &own.display().to_string()])?;
    system.run(&alpha, ["snapshots"])?.ended.refused(&["key"])?;
    std::fs::write(own, kept)?;
    system.works(&alpha, 2)
}

#[test]
fn token_works_once() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (alpha, first) = system.join("alpha", &token, &system.at_client())?;
    first.success()?;
    let (_, second) = system.join("second", &token, &system.at_client())?;
    second.refused(&["token", "used"])?;
    system.works(&alpha, 1)
}

#[test]
fn token_works_until_it_expires() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &["--expires", "1s"])?;
    let expired = SystemTime::now() + Duration::from_secs(2);
    until("the token expires", || Ok(SystemTime::now() > expired))?;
    let (_, late) = system.join("alpha", &token, &system.at_client())?;
    late.refused(&["token", "expired"])?;
    system.works(&system.client("alpha")?, 1)
}

#[test]
fn mistyped_token_is_told_from_a_refused_one() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (_, cut) = system.join("alpha", &token[..token.len() - 3], &[])?;
    cut.refused(&["token"])?;
    let (_, empty) = system.join("alpha", "", &[])?;
    empty.refused(&["token"])?;
    let (_, joined) = system.join("alpha", &token, &[])?;
    joined.success()?;
    Ok(())
}

#[test]
fn certificate_of_another_authority_is_refused() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let (system, other) = (
        System::new(&Setup::default())?,
        System::new(&Setup::default())?,
    );
    let (own, foreign) = (system.client("alpha")?, other.client("alpha")?);
    system.works(&own, 1)?;
    // Both servers are at one address, each on a wire of its own: here is a client that trusts the other.
    let before = system.lane.bytes()?;
    let ended = system.start(&foreign, ["snapshots"])?.wait()?;
    ended.refused(&["certificate", "10.77.0.1"])?;
    assert!(system.lane.bytes()? - before < 64 << 10);
    // And one that trusts this server, but was enrolled by the other.
    for file in ["host.pem", "host.key"] {
        std::fs::copy(foreign.state.join(file), own.state.join(file))?;
    }
    let ended = system.start(&own, ["snapshots"])?.wait()?;
    ended.refused(&["certificate", "10.77.0.1"])?;
    system.works(&system.client("beta")?, 2)
}

#[test]
fn device_of_another_pool_is_refused_by_name() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    system.works(&client, 1)?;
    let config = std::fs::read_to_string(&client.config)?;
    let other = system.mislead(&client)?;
    let wrong = other.at_client.display().to_string();
    let source = system.small_source(1);
    let required = system.backup(&client, &source, &["--route", "require-storage"])?;
    required
        .ended
        .without_a_route(&["reason: other_pool (7)", &wrong])?;
    let preferred = system
        .backup(&client, &source, &["--route", "prefer-storage"])?
        .success()?;
    assert_eq!(preferred.number("bytes_storage")?, 0);
    std::fs::write(&client.config, config)?;
    system.works(&client, 2)
}

#[test]
fn pool_without_a_slot_left_refuses_the_host() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let setup = Setup {
        max_members: Some(8),
        ..Setup::default()
    };
    let system = System::new(&setup)?;
    let first = system.client("alpha")?;
    let mut hosts = 1;
    // Each host takes four slots, of eight less the server's own.
    let full = loop {
        let host = format!("host-{hosts}");
        let mut enroll = system.server_command();
        enroll.args(["--json", "server", "enroll", &host]);
        let enrolled =
            backlane_e2e::Process::start(&mut enroll, &system.path(""), Some(""))?.wait()?;
        if enrolled.code() != 0 {
            break enrolled;
        }
        let token = enrolled.json()?["token"]
            .as_str()
            .context("a token")?
            .to_owned();
        let (_, joined) = system.join(&host, &token, &system.at_client())?;
        if joined.code() != 0 {
            break joined;
        }
        hosts += 1;
        assert!(hosts < 8, "more hosts than slots");
    };
    full.refused(&["slot"])?;
    system.works(&first, 1)
}

#[test]
fn disk_too_small_for_a_pool_is_refused() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::without_server(&Setup::default())?;
    let small = SharedDevice::new(&system.path(""), MIB, Sector::B4096, Medium::Plain)?;
    let mut create = system.command(Side::Server);
    create
        .args(["pool", "create", "--name", "small"])
        .arg(&small.at_server);
    let ended = backlane_e2e::Process::start(&mut create, &system.path(""), Some(""))?.wait()?;
    ended.refused(&[&small.at_server.display().to_string(), "needed"])?;
    Ok(())
}

#[test]
fn pool_without_room_for_a_session_is_not_waited_for() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::one_session(), 32 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    let beta = system.client("beta")?;
    let source = system.path("source-beta");
    plant(&source, 8 * MIB, 8)?;
    // All zeros, none of them on the disk: a job that goes on reading until it is told not to.
    let endless = std::fs::File::create(scene.source.join("endless"))?;
    endless.set_len(1 << 42)?;
    let mut first = scene.underway(16 * MIB)?;

    let preferred = system
        .backup(&beta, &source, &["--route", "prefer-storage"])?
        .success()?;
    assert_eq!(preferred.number("bytes_storage")?, 0);
    assert!(preferred.number("bytes_network")? > 8 * MIB * 99 / 100);
    let document = preferred.ended.json()?;
    let reasons = document["network_reasons"].as_array();
    let named = reasons.is_some_and(|all| all.iter().all(|r| r["reason"] == "no_free_segments"));
    assert!(named, "{document}");
    assert_eq!(document["storage_down_reason"], "no_free_segments");
    let down = document["storage_down"].as_str().unwrap_or_default();
    assert!(down.contains("the pool has no free segments"), "{document}");

    let required = system.backup(&beta, &source, &["--route", "require-storage"])?;
    required
        .ended
        .without_a_route(&["require-storage", "reason: no_free_segments (13)"])?;
    assert!(
        required.wire_bytes < MIB,
        "{} on the wire",
        required.wire_bytes
    );

    ensure!(first.is_running()?, "the first job ended: {}", first.said());
    scene.interrupt(first, Signal::INT)?;
    let again = ["--route", "require-storage"];
    let target = system.path("target-beta");
    system.backup(&beta, &source, &again)?.success()?;
    let restored = system.restore(&beta, &source, &target, &again)?.success()?;
    assert!(restored.number("bytes_storage")? > 8 * MIB);
    same(&source, &target)
}

#[test]
fn full_server_disk_fails_the_job_and_room_heals_it() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let setup = Setup {
        objects_bytes: Some(48 * MIB),
        ..Setup::default()
    };
    let system = System::new(&setup)?;
    let client = system.client("alpha")?;
    system.works(&client, 1)?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 96 * MIB, 2)?;
    let full = system.backup(&client, &source, &[])?;
    full.ended.refused(&["space"])?;
    system
        .objects
        .as_ref()
        .context("a file system of its own")?
        .resize(512 * MIB)?;
    system.backup(&client, &source, &[])?.success()?;
    system.restore(&client, &source, &target, &[])?.success()?;
    same(&source, &target)?;
    system.check(&client)
}
