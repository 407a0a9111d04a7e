//! Processes that end in the middle of a job, by force or by request, wires that are cut, and jobs beside each other.

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Ended, Process, Scene, Setup, Side, System, plant, ready, same};
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

/// Expects that a job ended well, and that its requests lost their way once at least; returns where they went then.
fn moved(ended: &Ended) -> Result<String> {
    ensure!(ended.code() == 0, "{ended}");
    let document = ended.json()?;
    let changes = document["route_changes"].as_array();
    let lost = changes.into_iter().flatten().any(|change| {
        change["what_moved"] == "requests" && change["up"] == false && change["route"] == "network"
    });
    ensure!(lost, "no loss of the control connection in {document}");
    let control = document["control"].as_str();
    Ok(control.context("where requests went")?.to_owned())
}

#[test]
fn a_job_outlives_its_server_and_goes_on_with_the_next() -> Result<()> {
    let Some(mut scene) = plenty()? else {
        return Ok(());
    };
    let backup = scene.underway(BEGUN_BYTES)?;
    scene.system.kill_server()?;
    scene.system.start_server()?;
    let ended = backup.wait()?;
    moved(&ended)?;
    assert_eq!(ended.json()?["bytes_network"], 0, "{ended}");
    scene.restore("require-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    scene.system.check(&scene.client)
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
fn a_job_goes_on_through_the_pool_when_the_wire_is_cut() -> Result<()> {
    let Some(scene) = plenty()? else {
        return Ok(());
    };
    let backup = scene.underway(BEGUN_BYTES)?;
    scene.system.lane.cut()?;
    let ended = backup.wait()?;
    assert_eq!(moved(&ended)?, "storage", "{ended}");
    // Nobody waits for rings that can't come: five and a half seconds where one does.
    let document = ended.json()?;
    let when = |up: bool, what: &str| {
        let mut changes = document["route_changes"].as_array().into_iter().flatten();
        let change = changes.rfind(|change| change["up"] == up && change["what_moved"] == what);
        change.and_then(|change| change["after_seconds"].as_f64())
    };
    let (lost, back) = (when(false, "requests"), when(true, "bodies"));
    let (lost, back) = lost.zip(back).context("no such changes")?;
    assert!(back - lost < 4.0, "{ended}");
    // The next ones begin there.
    let [backup, restore] = scene.round_trip("prefer-storage")?;
    for job in [&backup, &restore] {
        assert_eq!(job.ended.json()?["control"], "storage", "{}", job.ended);
    }
    scene.connections_are_gone()?;
    scene.system.lane.mend()?;
    scene.next_one_works()
}

#[test]
fn storage_only_opens_no_network_socket() -> Result<()> {
    const SOCKETS: &str = "socket,connect,bind,sendto,sendmsg";
    if !backlane_e2e::ready_with(&["strace"]) {
        return Ok(());
    }
    let Some(scene) = Scene::new(&Setup::default(), 16 * MIB)? else {
        return Ok(());
    };
    scene.system.lane.cut()?;
    let trace = scene.system.path("trace");
    let backup = scene.system.client_command(&scene.client);
    let mut traced = scene.system.lane.command(Side::Client, "strace");
    traced.args(["--follow-forks", "--trace", SOCKETS, "--output"]);
    traced
        .arg(&trace)
        .arg(backup.get_program())
        .args(backup.get_args());
    traced.arg("backup").arg(&scene.source);
    traced.args(["--route", "storage-only"]);
    let ended = Process::start(&mut traced, &scene.system.path(""), Some(""))?.wait()?;
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.json()?["control"], "storage", "{ended}");
    let trace = std::fs::read_to_string(trace)?;
    assert!(trace.contains("exited with 0"), "{trace}");
    assert!(!trace.contains("AF_INET"), "{trace}");
    scene.restore("storage-only")?.success()?;
    same(&scene.source, &scene.target)
}

#[test]
fn a_host_without_a_network_enrols_and_works_through_the_pool() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 4 * MIB)? else {
        return Ok(());
    };
    let system = &scene.system;
    let document = system.administer(&["enroll", "beta", "--through-pool"])?;
    system.lane.cut()?;
    // The server's coordinator looks every few seconds whether there are more slots; joining waits for it.
    let (beta, mut join) = system.join_command("beta", &system.at_client())?;
    join.args(["--token-file", "-", "--slot"]);
    join.arg(document["slot"].to_string());
    let token = format!("{}\n", document["token"].as_str().context("no token")?);
    let joined = Process::start(&mut join, &system.path(""), Some(&token))?.wait()?;
    assert_eq!(joined.code(), 0, "{joined}");
    system.administer(&["allow-restore", "beta"])?;
    let slots = joined.json()?["slots"].clone();
    let slots = slots.as_array().context("no slots")?;
    assert!(
        slots.contains(&document["slot"]) && slots.len() == 4,
        "{joined}"
    );
    let backup = system.backup(&beta, &scene.source, &[])?.success()?;
    assert_eq!(
        backup.ended.json()?["control"],
        "storage",
        "{}",
        backup.ended
    );
    system
        .restore(&beta, &scene.source, &scene.target, &[])?
        .success()?;
    same(&scene.source, &scene.target)
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
