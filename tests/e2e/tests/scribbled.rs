//! A neighbour on the shared disk that writes over the pool for as long as jobs run: what is stored and restored is right
//! all the same, nobody dies of it, and afterwards storage is taken again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    CHAIN, Ended, Job, Malice, Medium, Scene, Scribbler, Setup, Side, System, commit_seed, output,
    plant, ready_with, same, until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Another seed than that of the commit.
const SEED_VARIABLE: &str = "BACKLANE_SCRIBBLE_SEED";

/// So small that much of what is written there meets what is on its way.
const POOL_BYTES: u64 = 32 * MIB;

/// Megabits a second of the disk: frames stand there for a while before they are read.
const PACE_MBIT: u32 = 240;

/// What a job moves.
const TREE_BYTES: u64 = 24 * MIB;

/// What the server may take: with one session it has half of it.
const SERVER_BYTES_MAX: u64 = 512 * MIB;

/// Fails where a program panicked or was ended by a signal.
fn in_good_order(ended: &Ended) -> Result<()> {
    ensure!((0..=4).contains(&ended.code()), "{ended}");
    ensure!(!ended.text().contains("panicked"), "{ended}");
    Ok(())
}

/// A backup and a restore while somebody scribbles; every byte of what they moved is right. Returns what took storage.
fn jobs(scene: &Scene, round: u64) -> Result<u64> {
    std::fs::remove_dir_all(&scene.source)?;
    plant(&scene.source, TREE_BYTES, round)?;
    let by_storage = |job: &Job| {
        let document = job.ended.json()?;
        let bytes = document["bytes_storage"].as_u64();
        bytes.with_context(|| format!("no bytes_storage in {document}"))
    };
    let [backup, restore] = scene.round_trip("prefer-storage")?;
    // This one may fail.
    let more = ["--route", "require-storage", "--route-wait", "3s"];
    let target = scene.system.path("required");
    let required = scene
        .system
        .restore(&scene.client, &scene.source, &target, &more)?;
    for job in [&backup, &restore, &required] {
        in_good_order(&job.ended)?;
        println!("{} after {:.1?}", job.ended.code(), job.ended.elapsed);
    }
    if required.ended.code() == 0 {
        same(&scene.source, &target)?;
    }
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    Ok(by_storage(&backup)? + by_storage(&restore)?)
}

/// The server is what it was, and answers.
fn server_is_well(scene: &mut Scene) -> Result<()> {
    scene.system.administer(&["hosts"])?;
    scene
        .system
        .run(&scene.client, ["snapshots", "--route", "network"])?
        .success()?;
    let server = scene.system.server()?;
    ensure!(server.is_running()?, "{}", server.said());
    ensure!(!server.said().contains("panicked"), "{}", server.said());
    let most = server.peak_memory_bytes();
    println!("the server held {} MiB", most / MIB);
    ensure!(most <= SERVER_BYTES_MAX, "the server held {most} bytes");
    Ok(())
}

/// Puts another value in the place of a configuration's.
fn set(config: &Path, name: &str, value: &Value) -> Result<()> {
    let text = std::fs::read_to_string(config)?;
    let begin = format!("{name} = ");
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let line = lines.iter_mut().find(|line| line.starts_with(&begin));
    *line.with_context(|| format!("no {name} in {}", config.display()))? =
        format!("{begin}{value}");
    Ok(std::fs::write(config, lines.join("\n"))?)
}

/// Makes the pool anew, as the guide says.
fn make_anew(scene: &mut Scene) -> Result<()> {
    let system = &mut scene.system;
    in_good_order(&system.stop_server()?)?;
    let mut create = system.command(Side::Server);
    create
        .args(["--json", "pool", "create", "--force", "--name", "test"])
        .args(system.at_server());
    let made: Value = serde_json::from_str(&output(&mut create)?)?;
    let config = system.path("server.toml");
    set(&config, "uuid", &made["uuid"])?;
    let mut add_slots = system.server_command();
    add_slots
        .args(["--json", "pool", "add-slots"])
        .args(system.at_server())
        .args(["--host", &scene.client.host, "--count", "4"]);
    let added: Value = serde_json::from_str(&output(&mut add_slots)?)?;
    let client = &scene.client.config;
    set(client, "uuid", &made["uuid"])?;
    set(client, "slots", &added["slots_added"])?;
    system.start_server()
}

/// Waits until a small job finds storage again.
fn storage_is_taken_again(system: &System, scene: &Scene, round: u64) -> Result<()> {
    let source = system.small_source(round);
    plant(&source, MIB, round)?;
    until("storage is taken again", || {
        let more = ["--route", "require-storage", "--route-wait", "30s"];
        let job = system.backup(&scene.client, &source, &more)?;
        in_good_order(&job.ended)?;
        Ok(job.ended.code() == 0)
    })
}

#[test]
fn a_neighbour_that_scribbles_over_the_pool_spoils_nothing_and_kills_nobody() -> Result<()> {
    if !ready_with(&CHAIN) || !ready_with(&["restic"]) {
        return Ok(());
    }
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().context(SEED_VARIABLE)?,
        Err(_) => commit_seed()?,
    };
    println!("{SEED_VARIABLE}={seed} writes the same again, as far as it finds the same");
    let setup = Setup {
        pool_bytes: POOL_BYTES,
        medium: Medium::Breakable,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::new(&setup, MIB)? else {
        return Ok(());
    };
    let disk = scene.system.devices[0].file().to_owned();
    for side in [Side::Server, Side::Client] {
        scene.system.devices[0].chain(side)?.set_rate(PACE_MBIT)?;
    }
    for (round, malice) in (0..).zip([Malice::Rubbish, Malice::Everything]) {
        let scribbler = Scribbler::start(&disk, seed + round, malice)?;
        let stored = jobs(&scene, round);
        let deeds = scribbler.stop()?;
        println!("{malice:?}: {deeds:?}");
        let by_storage = stored.with_context(|| {
            let server = scene.system.server().map(|server| server.said());
            format!("{malice:?}\nthe server:\n{}", server.unwrap_or_default())
        })?;
        println!("{malice:?}: {} MiB took storage", by_storage / MIB);
        deeds.covers(malice)?;
        if malice == Malice::Rubbish {
            // It did meet what was on its way, and storage was not simply left.
            ensure!(deeds.resent > 0 && by_storage > 0, "{deeds:?}");
        }
        scene
            .system
            .restic(&scene.client, &["check", "--read-data"])?
            .success()?;
        server_is_well(&mut scene)?;
        if malice == Malice::Everything {
            make_anew(&mut scene)?;
        }
        storage_is_taken_again(&scene.system, &scene, 100 + round)?;
    }
    scene.next_one_works()?;
    server_is_well(&mut scene)?;
    Ok(())
}
