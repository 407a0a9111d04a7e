//! Processes that end in the middle of a job, by force or by request, wires that are cut, and jobs beside each other.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use backlane_e2e::{Process, Scene, Setup, System, plant, ready, same, until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// So much that no machine is done with it before it was noticed that it has begun.
const PLENTY_BYTES: u64 = 256 * MIB;

/// How much of it has passed when a job counts as begun.
const BEGUN_BYTES: u64 = 16 * MIB;

/// A job with plenty to do. In its pool, segments that somebody has kept would be missed at once.
fn plenty() -> Result<Option<Scene>> {
    Scene::new(&Setup::one_session(), PLENTY_BYTES)
}

/// Expects that no snapshot was made of what was interrupted.
fn no_snapshot(scene: &Scene) -> Result<()> {
    let snapshots = scene.system.run(&scene.client, ["snapshots"])?.success()?;
    let listed = snapshots.ended.json()?;
    let count = listed["snapshots"].as_array().map(Vec::len);
    ensure!(count == Some(0), "{listed}");
    Ok(())
}

#[test]
fn killed_clients_leave_nothing_that_hinders_the_next() -> Result<()> {
    let Some(scene) = plenty()? else {
        return Ok(());
    };
    for _ in 0..3 {
        let backup = scene.underway(BEGUN_BYTES)?;
        backup.signal(Signal::KILL)?;
        assert_eq!(backup.wait()?.code(), 137);
    }
    scene.next_one_works()?;
    scene.connections_are_gone()
}

#[test]
fn killed_server_ends_the_job_and_the_next_server_goes_on() -> Result<()> {
    let Some(mut scene) = plenty()? else {
        return Ok(());
    };
    let backup = scene.underway(BEGUN_BYTES)?;
    scene.system.kill_server()?;
    let ended = backup.wait()?;
    assert_eq!(ended.code(), 1, "{ended}");
    assert!(
        ended.text().contains("10.77.0.1"),
        "the server isn't named: {ended}"
    );
    scene.system.start_server()?;
    scene.next_one_works()
}

#[test]
fn interrupted_client_ends_cleanly_and_gives_its_segments_back() -> Result<()> {
    let Some(scene) = plenty()? else {
        return Ok(());
    };
    for signal in [Signal::INT, Signal::TERM] {
        let backup = scene.underway(BEGUN_BYTES)?;
        scene.interrupt(backup, signal)?;
        no_snapshot(&scene)?;
    }
    scene.next_one_works()
}

#[test]
fn cut_wire_ends_the_job_in_time_on_both_sides() -> Result<()> {
    /// After a minute of silence a peer is given up; the rest is for a busy machine.
    const NOTICED_WITHIN: Duration = Duration::from_secs(100);
    let Some(scene) = plenty()? else {
        return Ok(());
    };
    let backup = scene.underway(BEGUN_BYTES)?;
    scene.system.lane.cut()?;
    let cut = Instant::now();
    let ended = backup.wait()?;
    let noticed = cut.elapsed();
    assert_eq!(ended.code(), 1, "{ended}");
    // Who notices first, and says so in its words, is open: the session, the kernel, or the server, which lets go of
    // storage then.
    assert!(ended.text().contains("10.77.0.1"), "{ended}");
    assert!(noticed < NOTICED_WITHIN, "{noticed:?}: {ended}");
    // The server can't be told, and has to find out by itself: only then may anyone else have the repository.
    until("maintenance may begin", || {
        let mut prune = scene.system.server_command();
        prune.args(["prune", "--host", "alpha", "--key-file"]);
        prune.arg(&scene.client.key_file);
        let ended = Process::start(&mut prune, &scene.system.path(""), Some(""))?.wait()?;
        ensure!(
            ended.code() == 0 || ended.text().contains("busy"),
            "{ended}"
        );
        Ok(ended.code() == 0)
    })?;
    scene.connections_are_gone()?;
    scene.system.lane.mend()?;
    no_snapshot(&scene)?;
    scene.next_one_works()
}

#[test]
fn stopped_server_says_goodbye_to_nobody_and_starts_again() -> Result<()> {
    let Some(mut scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let ended = scene.system.stop_server()?;
    assert_eq!(ended.code(), 0, "{ended}");
    let refused = scene.backup("prefer-storage")?.ended;
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.text().contains("10.77.0.1"), "{refused}");
    scene.system.start_server()?;
    scene.next_one_works()
}

#[test]
fn two_clients_work_at_once_each_in_its_own_repository() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let clients = [system.client("alpha")?, system.client("beta")?];
    let sources = ["source-alpha", "source-beta"].map(|name| system.path(name));
    let targets = ["target-alpha", "target-beta"].map(|name| system.path(name));
    for (seed, source) in (1..).zip(&sources) {
        plant(source, 96 * MIB, seed)?;
    }
    let both = |arguments: &dyn Fn(usize) -> Vec<std::ffi::OsString>| -> Result<()> {
        let mut running = Vec::new();
        for (at, client) in clients.iter().enumerate() {
            running.push(system.start(client, arguments(at))?);
        }
        for job in running {
            job.wait()?.success()?;
        }
        Ok(())
    };
    both(&|at| {
        let source = sources[at].clone().into();
        vec![
            "backup".into(),
            source,
            "--route".into(),
            "require-storage".into(),
        ]
    })?;
    both(&|at| {
        let snapshot = format!("latest:{}", sources[at].display());
        let target = targets[at].clone().into();
        vec!["restore".into(), snapshot.into(), "--target".into(), target]
    })?;
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
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let mut running = Vec::new();
    for _ in 0..3 {
        let arguments = ["backup".as_ref(), scene.source.as_os_str()];
        running.push(scene.system.start(&scene.client, arguments)?);
    }
    for job in running {
        job.wait()?.success()?;
    }
    // A second key would be one of another repository: stock tools try one and give up.
    let keys = std::fs::read_dir(scene.system.repository(&scene.client)?.join("keys"))?;
    assert_eq!(keys.count(), 1);
    scene.next_one_works()
}
