//! Which route the bulk takes: what the program says is compared with what the kernel counted.

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    CHAIN, Engine, Fault, Job, Medium, Process, Scene, Sector, Setup, Side, System, Wire, plant,
    ready, ready_with, same, until,
};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// What control and events may cost at the start and the end of a session, however little the job moves.
const CONTROL_BYTES_MAX: u64 = 256 << 10;

#[test]
fn wire_carries_less_than_two_percent_of_what_storage_carries() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 192 * MIB)? else {
        return Ok(());
    };
    let jobs = scene.round_trip("prefer-storage")?;
    for (name, done) in ["backup", "restore"].iter().zip(&jobs) {
        let storage = done.number("bytes_storage")?;
        assert!(storage > 192 * MIB * 99 / 100, "{}", done.ended);
        // Written by one side and read by the other.
        assert!(
            done.device_bytes > 2 * storage,
            "{} of {storage}",
            done.device_bytes
        );
        assert!(
            done.wire_bytes * 50 < storage,
            "{} on the wire, {storage} by storage",
            done.wire_bytes
        );
        assert_reasons_add_up(done)?;
        report(name, Wire::GIGABIT, done)?;
    }
    Ok(())
}

#[test]
fn require_storage_puts_no_body_on_the_wire() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 64 * MIB)? else {
        return Ok(());
    };
    // With bodies of every size: packs of trees, index, snapshot, config and key are small ones.
    let small = scene.source.join("small");
    std::fs::create_dir(&small)?;
    fidelity::make_tree(&small, &fidelity::TreeOptions::default())?;
    let jobs = scene.round_trip("require-storage")?;
    for done in &jobs {
        assert_only_storage(done)?;
        assert_eq!(done.number("bytes_network")?, 0);
        assert_eq!(done.number("objects_network")?, 0);
        let carried = done.number("bytes_storage")?;
        assert!(carried > 64 * MIB, "{}", done.ended);
        assert!(
            done.device_bytes > 2 * carried,
            "{} of {carried}",
            done.device_bytes
        );
        assert_reasons_add_up(done)?;
    }
    let more = ["check", "--read-data", "--route", "require-storage"];
    assert_only_storage(&scene.system.run(&scene.client, more)?.success()?)
}

/// By the kernel's counters alone: all of the 64 MiB went through the disks, and nothing like it over the wire.
fn assert_only_storage(done: &Job) -> Result<()> {
    println!(
        "{}: {} bytes on the wire, {} on the disk",
        done.ended.shown, done.wire_bytes, done.device_bytes
    );
    ensure!(
        done.wire_bytes < CONTROL_BYTES_MAX,
        "{} on the wire",
        done.wire_bytes
    );
    ensure!(
        done.device_bytes > 2 * 64 * MIB,
        "{} on the disk",
        done.device_bytes
    );
    Ok(())
}

#[test]
fn jobs_are_far_faster_than_the_wire_could_carry_them() -> Result<()> {
    for (sector, pool_bytes) in [(Sector::B512, 64 * MIB), (Sector::B4096, 1024 * MIB)] {
        let setup = Setup {
            wire: Wire::SLOW,
            sector,
            pool_bytes,
            ..Setup::default()
        };
        let Some(scene) = Scene::new(&setup, 128 * MIB)? else {
            return Ok(());
        };
        let jobs = scene.round_trip("require-storage")?;
        for (name, done) in ["backup", "restore"].iter().zip(&jobs) {
            let ratio = report(name, Wire::SLOW, done)?;
            assert!(
                ratio > 2.0,
                "the bulk can't have taken another way than the wire: {ratio}"
            );
            assert_eq!(done.number("bytes_network")?, 0);
        }
    }
    Ok(())
}

#[test]
fn three_devices_carry_their_shares() -> Result<()> {
    for (sector, pool_bytes) in [(Sector::B4096, 64 * MIB), (Sector::B512, 1024 * MIB)] {
        let setup = Setup {
            devices: 3,
            sector,
            pool_bytes,
            ..Setup::default()
        };
        let Some(scene) = Scene::new(&setup, 192 * MIB)? else {
            return Ok(());
        };
        for done in scene.round_trip("require-storage")? {
            let third = 2 * done.number("bytes_storage")? / 3;
            println!("{:?} bytes, a third is {third}", done.each_device_bytes);
            let [first, others @ ..] = done.each_device_bytes.as_slice() else {
                anyhow::bail!("no devices")
            };
            // Frames take turns, and the last of each body is short. Most bodies here have nine: while none comes between, the
            // short ones all go to one device, which carries up to a quarter less. The first has the control blocks as well,
            // which are read far more often than they are written.
            let least = third * 3 / 4;
            assert!(*first > least, "{first} of {third}: {}", done.ended);
            assert_eq!(others.len(), 2);
            for bytes in others {
                let share = least..third * 6 / 5;
                assert!(share.contains(bytes), "{bytes} of {third}: {}", done.ended);
            }
        }
    }
    Ok(())
}

#[test]
fn whole_job_works_where_io_uring_is_forbidden() -> Result<()> {
    let setup = Setup {
        engine: Engine::Threads,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::new(&setup, 96 * MIB)? else {
        return Ok(());
    };
    let backup = scene.underway(8 * MIB)?;
    ensure!(!backup.has_io_uring()?, "the client has a ring");
    ensure!(
        !scene.system.server()?.has_io_uring()?,
        "the server has a ring"
    );
    scene.interrupt(backup, Signal::INT)?;
    for done in scene.round_trip("require-storage")? {
        let storage = done.number("bytes_storage")?;
        assert!(done.device_bytes > 2 * storage, "{}", done.device_bytes);
    }
    Ok(())
}

#[test]
fn network_policy_keeps_to_the_wire_and_needs_no_pool() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (client, joined) = system.join("alpha", &token, &[])?;
    joined.success()?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 32 * MIB, 3)?;
    let backup = system
        .backup(&client, &source, &["--route", "network"])?
        .success()?;
    let restore = system
        .restore(&client, &source, &target, &["--route", "network"])?
        .success()?;
    for (job, done) in [("backup", backup), ("restore", restore)] {
        assert!(done.wire_bytes > 32 * MIB, "{}", done.wire_bytes);
        assert_eq!(done.number("bytes_storage")?, 0);
        assert_reasons_add_up(&done)?;
        report(job, Wire::GIGABIT, &done)?;
    }
    same(&source, &target)
}

#[test]
fn prefer_storage_without_a_pool_takes_the_wire_and_says_why() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 16 * MIB)? else {
        return Ok(());
    };
    scene.system.detach_client()?;
    let [backup, _] = scene.round_trip("prefer-storage")?;
    assert_reasons_add_up(&backup)?;
    assert!(
        backup.number("bytes_network")? > 16 * MIB * 99 / 100,
        "{}",
        backup.ended
    );
    Ok(())
}

#[test]
fn require_storage_without_a_pool_fails_and_puts_no_body_on_the_wire() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 16 * MIB)? else {
        return Ok(());
    };
    scene.backup("require-storage")?.success()?;
    scene.system.detach_client()?;
    plant(&scene.source, 16 * MIB, 6)?;
    let backup = scene.backup("require-storage")?;
    let restore = scene.restore("require-storage")?;
    for refused in [backup, restore] {
        let device = scene.system.devices[0].at_client.display().to_string();
        refused.ended.without_a_route(&[
            &device,
            "reason: pool_not_found (6)",
            "hint: check that every device is attached",
        ])?;
        assert!(
            refused.wire_bytes < CONTROL_BYTES_MAX,
            "{} on the wire",
            refused.wire_bytes
        );
    }
    Ok(())
}

#[test]
fn a_move_and_a_refusal_stand_in_what_a_person_reads() -> Result<()> {
    if !ready_with(&CHAIN) {
        return Ok(());
    }
    let setup = Setup {
        medium: Medium::Breakable,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::new(&setup, 128 * MIB)? else {
        return Ok(());
    };
    let device = scene.system.devices[0].at_client.display().to_string();
    let source = scene.source.display().to_string();
    let moved = without_its_disk(
        &mut scene,
        &["backup", &source, "--route", "prefer-storage"],
    )?;
    let moved = moved.success()?;
    let told = |text: &str, words: &[&str]| {
        let told = text
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(told, "no line with {words:?} in {text}");
    };
    told(
        &moved.stdout,
        &["storage was lost after ", "s: device_error: "],
    );
    told(&moved.stdout, &["by network: ", "_error: a device"]);
    told(&moved.stderr, &["network is used", "route=network"]);
    let lost = ["storage is not used", "route=storage", "device_error"];
    told(&moved.stderr, &lost);
    let again = [
        "the call is made again",
        "call=put ",
        "route=storage",
        "device_error",
    ];
    told(&moved.stderr, &again);
    let said = scene.system.server()?.said();
    for pair in [
        &["network pair begins", "route=network"][..],
        &["network pair ended", "reason="],
        &["storage pair ended", "route=storage", "reason="],
    ] {
        told(&said, &[pair, &["host=alpha"]].concat());
    }

    let (snapshot, target) = (
        format!("latest:{source}"),
        scene.target.display().to_string(),
    );
    for policy in ["require-storage", "storage-only"] {
        Fault::ClientLosesDisk.end(&mut scene.system)?;
        let restore = ["restore", &snapshot, "--target", &target];
        let only = ["--route", policy, "--route-wait", "3s"];
        let refused = without_its_disk(&mut scene, &[restore, only].concat())?;
        refused.without_a_route(&[])?;
        let failure = format!("error: no route under policy {policy}: ");
        told(&refused.stderr, &[&failure, &device]);
        if policy == "require-storage" {
            let waits = ["the call waits for a route", "call=get "];
            told(&refused.stderr, &waits);
        }
    }
    let refusal = [
        "call refused",
        "host=alpha",
        "get ",
        "policy=require-storage",
        "reason=",
    ];
    told(&scene.system.server()?.said(), &refusal);
    Ok(())
}

/// Runs a job as a person does, and takes its disk away when some of the job has gone through it.
fn without_its_disk(scene: &mut Scene, arguments: &[&str]) -> Result<backlane_e2e::Ended> {
    for side in [Side::Server, Side::Client] {
        scene.system.devices[0].chain(side)?.set_rate(240)?;
    }
    let before = scene.system.device_bytes()?;
    let mut command = scene.system.command(Side::Client);
    command.arg("--config").arg(&scene.client.config);
    command.arg("--verbose").args(arguments);
    let mut job = Process::start(&mut command, &scene.system.path(""), Some(""))?;
    until("the job is under way", || {
        ensure!(job.is_running()?, "it ended too soon: {}", job.said());
        Ok(scene.system.device_bytes()? - before > 64 * MIB)
    })?;
    Fault::ClientLosesDisk.begin(&mut scene.system)?;
    job.wait()
}

/// Every byte of a body that took the network has a reason, by the job's own document.
fn assert_reasons_add_up(job: &Job) -> Result<()> {
    let document = job.ended.json()?;
    let reasons = document["network_reasons"]
        .as_array()
        .context("no network_reasons")?;
    for count in ["bytes", "objects"] {
        let sum: u64 = reasons
            .iter()
            .filter_map(|reason| reason[count].as_u64())
            .sum();
        assert_eq!(sum, job.number(&format!("{count}_network"))?, "{document}");
    }
    Ok(())
}

/// Prints a job's throughput, and returns it as a multiple of what the wire can carry.
fn report(job: &str, wire: Wire, done: &Job) -> Result<f64> {
    let bytes = done.number("bytes_storage")? + done.number("bytes_network")?;
    let rate = bytes as f64 / done.ended.elapsed.as_secs_f64();
    let ratio = rate / wire.bytes_per_second().context("the wire is limited")? as f64;
    println!(
        "{job}: {:.1} MB/s, {ratio:.2} times what the wire carries; {} bytes on the wire, {} on the disk",
        rate / 1e6,
        done.wire_bytes,
        done.device_bytes,
    );
    Ok(ratio)
}

#[test]
fn a_pool_that_was_written_over_is_used_by_the_next_job() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), 64 * MIB)? else {
        return Ok(());
    };
    let backup = scene.underway(8 * MIB)?;
    backup.signal(Signal::KILL)?;
    backup.wait()?;
    Fault::DiskOverwritten.begin(&mut scene.system)?;
    // It takes the slot of the first, of which nothing can be read any more, and which the server holds for alive.
    scene.round_trip("require-storage")?;
    Ok(())
}

/// Only that a limit holds is looked at: how much faster a job would be without is not.
#[test]
fn a_limit_holds_on_its_route_in_backup_and_restore() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 12 * MIB)? else {
        return Ok(());
    };
    let (system, client) = (&scene.system, &scene.client);
    // 12 MiB at 3 MiB a second, of which one chunk goes at once.
    let least = Duration::from_millis(3600);
    let began = Instant::now();
    let network = ["--route", "network", "--limit-network", "3M"];
    let backup = system.backup(client, &scene.source, &network)?.success()?;
    ensure!(began.elapsed() >= least, "{}", backup.ended);
    let began = Instant::now();
    let storage = ["--route", "require-storage", "--limit-storage", "3M"];
    let restore = system
        .restore(client, &scene.source, &scene.target, &storage)?
        .success()?;
    ensure!(began.elapsed() >= least, "{}", restore.ended);
    same(&scene.source, &scene.target)
}
