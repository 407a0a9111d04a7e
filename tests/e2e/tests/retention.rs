//! What the server's administrator removes can be had back, and what rots is found and stored again, with real processes
//! and before stock restic.

use std::{ffi::OsStr, fs};

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Process, Scene, Setup, plant, same};

const MIB: u64 = 1 << 20;

/// Runs a command of the server's administrator that takes the host's key; returns its exit code.
fn maintain(scene: &Scene, arguments: &[&str]) -> Result<i32> {
    let mut command = scene.system.server_command();
    command
        .args(arguments)
        .args(["--host", "alpha", "--key-file"].map(OsStr::new))
        .arg(&scene.client.key_file);
    let ended = Process::start(&mut command, &scene.system.path(""), Some(""))?.wait()?;
    Ok(ended.code())
}

#[test]
fn what_forget_and_prune_removed_comes_back_whole() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    scene.backup("prefer-storage")?.success()?;
    let kept = system.path("kept");
    fs::rename(&scene.source, &kept)?;
    plant(&scene.source, 4 * MIB, 8)?;
    scene.backup("prefer-storage")?.success()?;
    let first = |scene: &Scene| -> Result<Option<String>> {
        let listed = scene.system.run(&scene.client, ["snapshots"])?;
        let document = listed.success()?.ended.json()?;
        let snapshots = document["snapshots"].as_array().context("no snapshots")?;
        let id = snapshots.first().filter(|_| snapshots.len() == 2);
        Ok(id.and_then(|it| it["id"].as_str()).map(str::to_owned))
    };
    let before = first(&scene)?.context("there are not two")?;
    let bytes = || -> Result<u64> {
        let hosts = system.administer(&["hosts"])?;
        hosts["hosts"][0]["bytes"].as_u64().context("no bytes")
    };
    let stored = bytes()?;
    ensure!(maintain(&scene, &["forget", "--keep-last", "1", "--prune"])? == 0);
    ensure!(
        first(&scene)?.is_none() && bytes()? < stored - 3 * MIB,
        "nothing was removed"
    );
    system.check(&scene.client)?;
    let back = system.administer(&["undelete", "alpha"])?;
    ensure!(back["put_back"].as_u64() > Some(2), "{back}");
    ensure!(
        first(&scene)?.as_ref() == Some(&before),
        "the first is not back"
    );
    // Both are whole, for this program and for restic.
    let snapshot = format!("{before}:{}", scene.source.display());
    let target = scene.target.display().to_string();
    system
        .run(&scene.client, ["restore", &snapshot, "--target", &target])?
        .success()?;
    same(&kept, &scene.target)?;
    system.check(&scene.client)?;
    system
        .restic(&scene.client, &["check", "--read-data"])?
        .success()?;
    // For good this time.
    ensure!(
        maintain(
            &scene,
            &["forget", "--keep-last", "1", "--prune", "--break-retention"]
        )? == 0
    );
    let back = system.administer(&["undelete", "alpha"])?;
    ensure!(back["put_back"] == 0, "{back}");
    system.check(&scene.client)
}

#[test]
fn what_rots_is_found_by_a_scrub_and_stored_again_by_the_next_backup() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    scene.backup("prefer-storage")?.success()?;
    let mut packs = Vec::new();
    for directory in fs::read_dir(system.repository(&scene.client)?.join("data"))? {
        for pack in fs::read_dir(directory?.path())? {
            let pack = pack?;
            packs.push((pack.metadata()?.len(), pack.path()));
        }
    }
    let (_, largest) = packs.into_iter().max().context("no packs")?;
    let mut bytes = fs::read(&largest)?;
    bytes[100] ^= 1;
    fs::write(&largest, bytes)?;
    let mut scrub = system.server_command();
    scrub.args(["--json", "server", "scrub", "alpha"]);
    let found = Process::start(&mut scrub, &system.path(""), Some(""))?.wait()?;
    ensure!(found.code() == 1 && !largest.exists(), "{found}");
    let again = scene.backup("prefer-storage")?.success()?;
    let document = again.ended.json()?;
    ensure!(document["packs_missing"] == 1, "{document}");
    ensure!(
        document["blobs_stored_again"].as_u64() > Some(0),
        "{document}"
    );
    scene.restore("prefer-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    system.administer(&["scrub"])?;
    Ok(())
}

#[test]
fn a_host_clears_its_own_repository_up_by_a_permission() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    system.administer(&["revoke-restore", "alpha"])?;
    scene.backup("prefer-storage")?.success()?;
    let kept = system.path("kept");
    fs::rename(&scene.source, &kept)?;
    plant(&scene.source, 4 * MIB, 8)?;
    scene.backup("prefer-storage")?.success()?;
    let forget = |more: &[&str]| {
        let words = ["forget", "--keep-last", "1", "--prune"];
        let words = words.iter().chain(more).copied();
        Ok::<_, anyhow::Error>(system.run(&scene.client, words)?.ended)
    };
    let planned = forget(&["--dry-run"])?.success()?.json()?;
    let decisions = planned["decisions"].as_array().context("no decisions")?;
    ensure!(
        decisions.iter().filter(|it| it["keep"] == false).count() == 1,
        "{planned}"
    );
    forget(&[])?.refused(&["may not remove anything", "allow-maintenance alpha"])?;
    system.administer(&["allow-maintenance", "alpha", "--for", "10min"])?;
    let hosts = system.administer(&["hosts"])?;
    ensure!(hosts["hosts"][0]["maintain_until"].is_string(), "{hosts}");
    let freed = forget(&[])?.success()?.json()?;
    ensure!(
        freed["prune"]["bytes_freed"].as_u64() > Some(3 * MIB),
        "{freed}"
    );
    system.run(&scene.client, ["check"])?.success()?;
    // A pack of file contents that is used in part is read to be written anew, which takes a permission of its own.
    let small = |number: u64| scene.source.join(format!("small-{number:02}"));
    for number in 0..40 {
        plant(&small(number), 100 << 10, 100 + number)?;
    }
    scene.backup("prefer-storage")?.success()?;
    for number in 0..20 {
        fs::remove_dir_all(small(number))?;
    }
    scene.backup("prefer-storage")?.success()?;
    let part = forget(&[])?.success()?;
    ensure!(part.stderr.contains("--repack-data frees them"), "{part}");
    forget(&["--repack-data"])?.refused(&["not permitted", "allow-restore alpha"])?;
    system.administer(&["allow-restore", "alpha", "--for", "10min"])?;
    let freed = forget(&["--repack-data"])?.success()?.json()?;
    ensure!(
        freed["prune"]["bytes_freed"].as_u64() > Some(MIB),
        "{freed}"
    );
    system.check(&scene.client)?;
    let back = system.administer(&["undelete", "alpha"])?;
    ensure!(back["put_back"].as_u64() > Some(3), "{back}");
    system
        .restic(&scene.client, &["check", "--read-data"])?
        .success()?;
    let listed = system
        .run(&scene.client, ["snapshots"])?
        .success()?
        .ended
        .json()?;
    ensure!(
        listed["snapshots"].as_array().map(Vec::len) == Some(4),
        "{listed}"
    );
    system.administer(&["revoke-maintenance", "alpha"])?;
    forget(&[])?.refused(&["allow-maintenance alpha"])
}
