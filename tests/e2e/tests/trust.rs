//! What a host is trusted with, tried with real processes: restoring by permission, revocation, renewal.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Process, Scene, Setup, System, Wire, ready, same, until};

const MIB: u64 = 1 << 20;

/// Refused reading of file contents by `command`, and told what to do.
fn refused(system: &System, scene: &Scene, command: &[&str]) -> Result<()> {
    let ended = system.run(&scene.client, command)?.ended;
    ended.refused(&["not permitted", "allow-restore alpha"])?;
    ensure!(!ended.to_string().contains("not permitted: not"), "{ended}");
    Ok(())
}

#[test]
fn restoring_takes_a_permission_and_backing_up_takes_none() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    system.administer(&["revoke-restore", "alpha"])?;
    // Everything that a backup host does every day.
    for _ in 0..2 {
        scene.backup("prefer-storage")?.success()?;
    }
    for daily in [
        &["snapshots"][..],
        &["ls", "latest"],
        &["check"],
        &["find", "*"],
    ] {
        system.run(&scene.client, daily)?.success()?;
    }
    let target = system.path("refused").display().to_string();
    refused(system, &scene, &["restore", "latest", "--target", &target])?;
    refused(system, &scene, &["check", "--read-data"])?;
    let allowed = system.administer(&["allow-restore", "alpha", "--for", "10min"])?;
    ensure!(allowed["until"].is_string(), "{allowed}");
    scene.restore("prefer-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    system.administer(&["revoke-restore", "alpha"])?;
    refused(system, &scene, &["check", "--read-data"])?;
    // All of it is in the audit log, whose chain holds; a changed line breaks it.
    let verified = system.administer(&["audit", "verify"])?;
    let log = system.path("server/audit.jsonl");
    let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    for event in [
        "initialised",
        "enrolled",
        "restore-allowed",
        "restore-used",
        "call-refused",
    ] {
        ensure!(
            text.contains(&format!("\"event\":\"{event}\"")),
            "no {event} in {text}"
        );
    }
    ensure!(verified["lines"] == text.lines().count(), "{verified}");
    fs::write(&log, text.replacen("restore-revoked", "restore-allowed", 1))?;
    let broken = system.administer(&["audit", "verify"]);
    let broken = broken.err().context("a changed line was not noticed")?;
    ensure!(
        format!("{broken:#}").contains("breaks the chain"),
        "{broken:#}"
    );
    Ok(())
}

#[test]
fn a_revoked_host_loses_its_running_job_and_begins_no_other() -> Result<()> {
    let slow = Setup {
        wire: Wire { mbit: Some(80) },
        ..Setup::default()
    };
    let Some(scene) = Scene::new(&slow, 256 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    let source = scene.source.display().to_string();
    let backup = ["backup", &source, "--route", "network"];
    let job = system.start(&scene.client, backup)?;
    until("bytes arrive", || {
        Ok(system.administer(&["hosts"])?["hosts"][0]["bytes"].as_u64() > Some(16 * MIB))
    })?;
    system.administer(&["revoke", "alpha"])?;
    let began = Instant::now();
    let ended = job.wait()?;
    ended.refused(&["revoked"])?;
    ensure!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    system
        .run(&scene.client, ["snapshots"])?
        .ended
        .refused(&["alpha", "revoked"])?;
    // Enrolled again under its name it goes on with what it had stored.
    let (key, state) = (system.path("kept.key"), &scene.client.state);
    fs::rename(&scene.client.key_file, &key)?;
    fs::remove_dir_all(state)?;
    fs::remove_file(&scene.client.config)?;
    let (again, mut join) = system.join_command("alpha", &[])?;
    join.args(["--token-file", "-", "--key-file"]).arg(&key);
    let token = format!("{}\n", system.token("alpha", &[])?);
    Process::start(&mut join, &system.path(""), Some(&token))?
        .wait()?
        .success()?;
    let stored = system.backup(&again, &scene.source, &["--route", "network"])?;
    let wire = stored.wire_bytes;
    stored.success()?;
    ensure!(wire < 256 * MIB, "{wire} bytes crossed the wire again");
    Ok(())
}

#[test]
fn a_certificate_that_expires_soon_is_renewed_by_any_job() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut system = System::without_server(&Setup::default())?;
    let config = system.path("server.toml");
    // Before the first section of the file.
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("certificate-validity = \"1h\"\n{text}"))?;
    system.start_server()?;
    let alpha = system.client("alpha")?;
    let (certificate, key) = (alpha.state.join("host.pem"), alpha.state.join("host.key"));
    let before = (fs::read(&certificate)?, fs::read(&key)?);
    system.works(&alpha, 1)?;
    ensure!(fs::read(&certificate)? != before.0, "it is not renewed");
    ensure!(fs::read(&key)? == before.1, "the key has changed");
    system.works(&alpha, 2)?;
    // Where it can't be kept, the job is done and says so.
    fs::create_dir(certificate.with_extension("pem.new"))?;
    let source = system.small_source(2);
    let job = system.backup(&alpha, &source, &[])?.success()?;
    let told = job.ended.to_string();
    ensure!(told.contains("could not be renewed"), "{told}");
    Ok(())
}
