//! Jobs that are killed in the middle and run again: what was done is not done once more.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Job, Process, Scene, Setup, same, until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// What a job that was killed may have sent for nothing.
const SENT_AGAIN_BYTES_MAX: u64 = 64 * MIB;

/// What is read or written beside the content: trees, index, snapshots, headers of packs.
const BESIDE_BYTES_MAX: u64 = 2 * MIB;

const PLENTY_BYTES: u64 = 240 * MIB;

const HALF_BYTES: u64 = PLENTY_BYTES / 2;

fn start(scene: &Scene, arguments: &[&str]) -> Result<Process> {
    scene.system.start(&scene.client, arguments)
}

fn start_backup(scene: &Scene, more: &[&str]) -> Result<Process> {
    let source = scene.source.to_str().context("a plain path")?;
    start(scene, &[&["backup", source], more].concat())
}

/// Bytes of all packs that the server has.
fn stored(scene: &Scene) -> Result<u64> {
    scene.system.stored_bytes(&scene.client)
}

fn until_stored(scene: &Scene, job: &mut Process, want: u64) -> Result<()> {
    until("so much is stored", || {
        ensure!(job.is_running()?, "it ended too soon: {}", job.said());
        Ok(stored(scene)? >= want)
    })
}

/// Expects of a backup that it has used all that the server had before, of which an interrupted one had left the last
/// `left` bytes, and sent nothing of it again.
fn went_on(scene: &Scene, backup: &Job, before: u64, left: u64) -> Result<()> {
    let after = stored(scene)?;
    let [used, sent] = ["bytes_continued", "bytes_sent"].map(|name| backup.number(name));
    let (used, sent) = (used?, sent?);
    println!("{before} bytes were stored, {used} are used, {sent} were sent, {after} are stored");
    ensure!(used >= left, "{used} of {left}: {}", backup.ended);
    // A body may have been on its way when it was counted.
    let before = before - left + used;
    ensure!(
        sent <= after - before + BESIDE_BYTES_MAX,
        "{sent} sent, {before} of {after} were there: {}",
        backup.ended
    );
    // Nothing is there twice.
    ensure!(after <= PLENTY_BYTES + BESIDE_BYTES_MAX, "{after}");
    scene.restore("require-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    scene.system.check(&scene.client)
}

#[test]
fn backups_that_are_killed_send_little_again_by_network() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), PLENTY_BYTES)? else {
        return Ok(());
    };
    let route = ["--route", "network"];
    let (mut before, mut new) = (0, 0);
    for round in 1..=3 {
        let carried = scene.system.lane.bytes()?;
        let mut backup = start_backup(&scene, &route)?;
        until_stored(&scene, &mut backup, round * 60 * MIB)?;
        backup.signal(Signal::KILL)?;
        assert_eq!(backup.wait()?.code(), 137);
        let carried = scene.system.lane.bytes()? - carried;
        new = stored(&scene)? - before;
        before += new;
        println!("{carried} bytes on the wire, {new} of packs");
        // With all that TLS and TCP add.
        ensure!(carried < new + SENT_AGAIN_BYTES_MAX, "{carried}, {new}");
    }
    let backup = scene
        .system
        .backup(&scene.client, &scene.source, &route)?
        .success()?;
    went_on(&scene, &backup, before, new)?;
    let most = PLENTY_BYTES - before + SENT_AGAIN_BYTES_MAX;
    ensure!(backup.wire_bytes < most, "{}", backup.wire_bytes);
    Ok(())
}

#[test]
fn a_backup_that_is_killed_sends_little_again_by_storage() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), PLENTY_BYTES)? else {
        return Ok(());
    };
    let carried = scene.system.device_bytes()?;
    let mut backup = start_backup(&scene, &["--route", "require-storage"])?;
    until_stored(&scene, &mut backup, HALF_BYTES)?;
    backup.signal(Signal::KILL)?;
    assert_eq!(backup.wait()?.code(), 137);
    // Each byte is written by one side and read by the other.
    let carried = (scene.system.device_bytes()? - carried) / 2;
    let before = stored(&scene)?;
    println!("{carried} bytes through the pool, {before} of packs");
    ensure!(carried < before + SENT_AGAIN_BYTES_MAX, "{carried}");
    let backup = scene.backup("require-storage")?.success()?;
    went_on(&scene, &backup, before, before)
}

#[test]
fn a_backup_whose_server_was_killed_is_gone_on_with_by_the_next() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), PLENTY_BYTES)? else {
        return Ok(());
    };
    let more = ["--route", "require-storage", "--route-wait", "1s"];
    let mut backup = start_backup(&scene, &more)?;
    until_stored(&scene, &mut backup, HALF_BYTES)?;
    scene.system.kill_server()?;
    let ended = backup.wait()?;
    assert_eq!(ended.code(), 1, "{ended}");
    let before = stored(&scene)?;
    scene.system.start_server()?;
    let backup = scene.backup("require-storage")?.success()?;
    went_on(&scene, &backup, before, before)
}

#[test]
fn a_backup_that_outlives_its_server_sends_little_again() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), PLENTY_BYTES)? else {
        return Ok(());
    };
    let mut running = start_backup(&scene, &["--route", "require-storage"])?;
    until_stored(&scene, &mut running, HALF_BYTES)?;
    scene.system.kill_server()?;
    scene.system.start_server()?;
    let ended = running.wait()?.success()?;
    let document = ended.json()?;
    let [sent, again] = ["bytes_sent", "bytes_repeated"].map(|name| document[name].as_u64());
    let (sent, again) = (sent.context("what was sent")?, again.context("again")?);
    println!("{sent} bytes were sent, {again} of them again");
    ensure!(again <= SENT_AGAIN_BYTES_MAX, "{document}");
    ensure!(
        sent <= stored(&scene)? + SENT_AGAIN_BYTES_MAX,
        "{sent}: {document}"
    );
    ensure!(document["packs_continued"] == 0, "{document}");
    Ok(())
}

/// Every file below `dir` that has its own name, with its bytes.
fn finished(dir: &Path) -> Result<Vec<(std::ffi::OsString, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b".backlane-") {
            found.push((name, entry.metadata()?.len()));
        }
    }
    Ok(found)
}

fn killed_restore_is_gone_on_with(route: &str) -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), HALF_BYTES)? else {
        return Ok(());
    };
    let large = fidelity::Random::new(3).bytes(usize::try_from(HALF_BYTES)?);
    fs::write(scene.source.join("large"), large)?;
    scene.backup("require-storage")?.success()?;

    let carried =
        || -> Result<u64> { Ok(scene.system.lane.bytes()? + scene.system.device_bytes()? / 2) };
    let before = carried()?;
    let snapshot = format!("latest:{}", scene.source.display());
    let target = scene.target.to_str().context("a plain path")?;
    let arguments = ["restore", &snapshot, "--target", target, "--route", route];
    let mut restore = start(&scene, &arguments)?;
    until("half of it has come", || {
        ensure!(restore.is_running()?, "too soon: {}", restore.said());
        Ok(carried()? - before > HALF_BYTES)
    })?;
    restore.signal(Signal::KILL)?;
    assert_eq!(restore.wait()?.code(), 137);
    for (name, bytes) in finished(&scene.target)? {
        let whole = scene.source.join(&name).metadata()?.len();
        ensure!(bytes == whole, "{name:?} has {bytes} bytes of {whole}");
    }

    let again = scene.restore(route)?.success()?;
    let number = |name| again.number(name);
    let (kept, restored, received) = (
        number("bytes_kept")?,
        number("bytes_restored")?,
        number("bytes_received")?,
    );
    println!("{kept} bytes were kept, {restored} written, {received} received");
    assert_eq!(kept + restored, PLENTY_BYTES);
    // All that had come, but for what was in memory.
    ensure!(kept > HALF_BYTES / 2, "{}", again.ended);
    let differs = received.abs_diff(PLENTY_BYTES - kept);
    ensure!(differs < BESIDE_BYTES_MAX, "{differs}: {}", again.ended);
    same(&scene.source, &scene.target)
}

#[test]
fn a_restore_that_is_killed_is_gone_on_with_by_network() -> Result<()> {
    killed_restore_is_gone_on_with("network")
}

#[test]
fn a_restore_that_is_killed_is_gone_on_with_by_storage() -> Result<()> {
    killed_restore_is_gone_on_with("require-storage")
}

#[test]
fn a_restore_whose_server_was_killed_is_gone_on_with() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), PLENTY_BYTES)? else {
        return Ok(());
    };
    scene.backup("require-storage")?.success()?;
    let snapshot = format!("latest:{}", scene.source.display());
    let target = scene.target.to_str().context("a plain path")?.to_owned();
    let route = ["--route", "require-storage", "--route-wait", "1s"];
    let arguments = [&["restore", &snapshot, "--target", &target], &route[..]].concat();
    let before = scene.system.device_bytes()?;
    let mut restore = start(&scene, &arguments)?;
    until("half of it has come", || {
        ensure!(restore.is_running()?, "too soon: {}", restore.said());
        Ok(scene.system.device_bytes()? - before > 2 * HALF_BYTES)
    })?;
    scene.system.kill_server()?;
    assert_eq!(restore.wait()?.code(), 1);
    scene.system.start_server()?;
    let again = scene.restore("require-storage")?.success()?;
    let [kept, received] = ["bytes_kept", "bytes_received"].map(|name| again.number(name));
    let (kept, received) = (kept?, received?);
    println!("{kept} bytes were kept, {received} received");
    ensure!(kept > HALF_BYTES / 2, "{}", again.ended);
    let differs = received.abs_diff(PLENTY_BYTES - kept);
    ensure!(differs < BESIDE_BYTES_MAX, "{differs}: {}", again.ended);
    same(&scene.source, &scene.target)
}
