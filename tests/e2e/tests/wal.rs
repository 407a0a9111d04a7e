//! WAL of a real PostgreSQL: archived while everything that takes part is killed, recovered to the last committed row, and
//! never mistaken for the end of the archive where it merely can't be had.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    CHAIN, Client, Cluster, Clusters, Ended, Fault, Medium, Process, Setup, Side, System, Wire,
    ready_with, start_spooler, until, wal_host_of,
};
use rustix::process::Signal;
use serde_json::Value;

/// A host with a repository, whose spooler runs.
struct Scene {
    // Ended before the system goes.
    spooler: Option<Process>,
    system: System,
    client: Client,
    cluster: Cluster,
    clusters: Arc<Clusters>,
    /// As the clusters' user may run it.
    backlane: PathBuf,
}

impl Scene {
    /// `None` where this machine can't run it; that was said then.
    fn new() -> Result<Option<Self>> {
        Self::over(&Setup::default())
    }

    /// The same over a system of some kind.
    fn over(setup: &Setup) -> Result<Option<Self>> {
        let Some((system, client, clusters)) = wal_host_of(setup)? else {
            return Ok(None);
        };
        let mut scene = Self {
            spooler: None,
            // So that there are many segments soon.
            cluster: clusters.cluster("main", &["--wal-segsize=1"])?,
            backlane: clusters.backlane()?,
            clusters,
            system,
            client,
        };
        scene.start_spooler()?;
        let [push, fetch] = ["push %p", "fetch %f %p"].map(|what| scene.wal_command(what));
        scene.cluster.configure(&format!(
            "archive_mode = on\narchive_command = '{push}'\nrestore_command = '{fetch}'\n\
             max_wal_size = 8MB\nmin_wal_size = 2MB\nwal_keep_size = 8MB\n"
        ))?;
        Ok(Some(scene))
    }

    fn socket(&self) -> PathBuf {
        self.clusters.path("wal.sock")
    }

    fn start_spooler(&mut self) -> Result<()> {
        let spooler = start_spooler(&self.system, &self.client, &self.clusters)?;
        self.spooler = Some(spooler);
        Ok(())
    }

    fn kill_spooler(&mut self) -> Result<Ended> {
        let spooler = self.spooler.take().context("no spooler runs")?;
        spooler.signal(Signal::KILL)?;
        spooler.wait()
    }

    /// What a cluster is told to start.
    fn wal_command(&self, what: &str) -> String {
        let (backlane, socket) = (self.backlane.display(), self.socket());
        format!("{backlane} wal {what} --socket {}", socket.display())
    }

    /// What PostgreSQL would start, started by hand.
    fn wal(&self, arguments: &[&str]) -> Result<Ended> {
        let mut command = self.cluster.program(&self.backlane);
        command.arg("wal").args(arguments);
        command.env("BACKLANE_WAL_SOCKET", self.socket());
        Process::start(&mut command, &self.system.path(""), Some(""))?.wait()
    }

    fn list(&self) -> Result<Value> {
        let ended = self.system.run(&self.client, ["wal", "list"])?.ended;
        ended.success()?.json()
    }

    /// The name of the last segment in the archive, which has one range on one timeline.
    fn last_archived(&self) -> Result<String> {
        let listed = self.list()?;
        let ranges = &listed["clusters"][0]["timelines"][0]["ranges"];
        let last = ranges[0]["last"].as_str();
        Ok(last
            .with_context(|| format!("no segments in {listed}"))?
            .to_owned())
    }

    fn check(&self) -> Result<Value> {
        let ended = self.system.run(&self.client, ["wal", "check"])?.ended;
        ended.success()?.json()
    }

    /// Recovers a base backup from the archive, to its end; it runs then.
    fn recover(&self, base: &Cluster, name: &str) -> Result<Cluster> {
        let mut recovered = base.recovering(name)?;
        recovered.start(&[])?;
        recovered.says("SELECT pg_is_in_recovery()", "f")?;
        Ok(recovered)
    }
}

/// Four clients with 2,000 small transactions a second.
const BENCH: &[&str] = &["--client=4", "--rate=2000", "--file=-"];
const INSERT: &str = "INSERT INTO rows (content) VALUES (repeat(md5(random()::text), 16));\n";

fn count(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.sql("SELECT count(*) FROM rows")?.parse()?)
}

/// Waits until a column of PostgreSQL's statistics about archiving has grown.
fn archiver(cluster: &Cluster, column: &str, by: u64) -> Result<()> {
    let number = || -> Result<u64> {
        let number = cluster.sql(&format!("SELECT {column} FROM pg_stat_archiver"))?;
        Ok(number.parse()?)
    };
    let before = number()?;
    until(column, || Ok(number()? >= before + by))
}

/// Waits until files are archived that are written from now on.
fn archives(cluster: &Cluster) -> Result<()> {
    archiver(cluster, "archived_count", 3)
}

/// Waits until files can't be archived.
fn fails(cluster: &Cluster) -> Result<()> {
    archiver(cluster, "failed_count", 1)
}

/// Kills one process whose command line has all of these words; waits until there is one.
fn kill_one(words: &[&str]) -> Result<()> {
    until("there is something to kill", || {
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Ok(line) = fs::read(path.join("cmdline")) else {
                continue;
            };
            let parts: Vec<_> = line
                .split(|byte| *byte == 0)
                .map(String::from_utf8_lossy)
                .collect();
            let has = |word: &&str| parts.iter().any(|part| part == word);
            let name = path.file_name().and_then(|name| name.to_str());
            if words.iter().all(has)
                && let Some(pid) = name
            {
                let killed = Command::new("kill").args(["-KILL", pid]).status()?;
                if killed.success() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    })
}

#[test]
fn whoever_is_killed_every_committed_row_comes_back() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.cluster.start(&[])?;
    scene
        .cluster
        .sql("CREATE TABLE rows (number bigserial, content text)")?;
    let base = scene.cluster.base_backup("base")?;
    let bench = scene.cluster.pgbench(BENCH, INSERT)?;
    archives(&scene.cluster)?;

    scene.kill_spooler()?;
    fails(&scene.cluster)?;
    scene.start_spooler()?;
    archives(&scene.cluster)?;
    let socket = scene.socket();
    let socket = socket.to_str().context("a path of text")?;
    for _ in 0..3 {
        kill_one(&["wal", "push", socket])?;
        archives(&scene.cluster)?;
    }
    // It goes on through the pool.
    scene.system.lane.cut()?;
    archives(&scene.cluster)?;
    scene.system.lane.mend()?;
    scene.system.kill_server()?;
    fails(&scene.cluster)?;
    scene.system.start_server()?;
    archives(&scene.cluster)?;

    // The clients of the database end with it.
    scene.cluster.kill()?;
    drop(bench);
    scene.cluster.start(&[])?;
    let bench = scene.cluster.pgbench(BENCH, INSERT)?;
    archives(&scene.cluster)?;
    drop(bench);
    // The last transactions have to end.
    let running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
    scene.cluster.says(running, "0")?;
    let rows = count(&scene.cluster)?;
    scene.cluster.all_is_archived()?;
    scene.cluster.stop()?;

    let checked = scene.check()?;
    ensure!(checked["clean"] == true, "{checked}");
    let recovered = scene.recover(&base, "recovered")?;
    ensure!(
        count(&recovered)? == rows,
        "{} of {rows} rows",
        count(&recovered)?
    );
    eprintln!("{rows} rows in {} segments", checked["segments"]);
    Ok(())
}

#[test]
fn recovery_goes_across_a_promotion() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.cluster.start(&[])?;
    scene
        .cluster
        .sql("CREATE TABLE rows (number bigserial, content text)")?;
    let base = scene.cluster.base_backup("base")?;
    let fill = "INSERT INTO rows (content) SELECT repeat(md5(n::text), 16) FROM generate_series(1, 5000) n";
    scene.cluster.sql(fill)?;
    scene.cluster.all_is_archived()?;
    scene.cluster.stop()?;

    let mut promoted = scene.recover(&base, "promoted")?;
    ensure!(count(&promoted)? == 5000, "{}", count(&promoted)?);
    promoted.sql(fill)?;
    promoted.all_is_archived()?;
    promoted.stop()?;
    let checked = scene.check()?;
    ensure!(checked["clean"] == true, "{checked}");
    let listed = scene.list()?;
    let timelines = listed["clusters"][0]["timelines"]
        .as_array()
        .context("timelines")?;
    ensure!(
        timelines.len() == 2 && timelines[1]["parent"] == 1,
        "{listed}"
    );

    let across = scene.recover(&base, "across")?;
    ensure!(count(&across)? == 10_000, "{}", count(&across)?);
    Ok(())
}

#[test]
fn a_base_backup_and_the_archive_bring_back_all_rows_or_those_before_a_time() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.system.administer(&["revoke-restore", "alpha"])?;
    let run = |scene: &Scene, arguments: &[&str]| -> Result<Ended> {
        Ok(scene.system.run(&scene.client, arguments)?.ended)
    };
    let batch = |scene: &Scene, batch| {
        let rows = format!("INSERT INTO rows SELECT {batch}, n FROM generate_series(1, 5000) n");
        scene.cluster.sql(&rows)
    };
    scene.cluster.start(&[])?;
    scene.cluster.sql("CREATE TABLE rows (batch int, n int)")?;
    batch(&scene, 0)?;
    let cluster = scene.cluster.connection();
    let backup = ["--checkpoint", "fast", "--wal", "archive"];
    let backup = [&["backup", "--postgres", &cluster][..], &backup].concat();
    run(&scene, &backup)?.success()?;
    batch(&scene, 1)?;
    let between = format!("time={}", scene.cluster.sql("SELECT clock_timestamp()")?);
    batch(&scene, 2)?;
    scene.cluster.all_is_archived()?;
    scene.cluster.stop()?;

    let status = run(&scene, &["postgres", "status"])?.success()?.json()?;
    let sole = |list: &Value| -> Result<Value> {
        let list = list.as_array().filter(|list| list.len() == 1);
        Ok(list.with_context(|| format!("not one each: {status}"))?[0].clone())
    };
    let told = sole(&status["clusters"])?;
    let [window, backup] = [sole(&told["windows"])?, sole(&told["backups"])?];
    let last = scene.last_archived()?;
    ensure!(
        window["last_wal"] == last.as_str() && told["newest_wal"]["file"] == last.as_str(),
        "{last} is the newest: {status}"
    );
    ensure!(
        backup["restorable"] == true && window["snapshot"] == backup["snapshot"],
        "{status}"
    );

    let fetch = format!("restore_command={}", scene.wal_command("fetch %f %p"));
    let restore = |scene: &Scene, name: &str, more: &[&str]| -> Result<Ended> {
        let target = scene.clusters.path(name).display().to_string();
        let arguments = ["restore", "latest", "--postgres", "--target", &target];
        run(scene, &[&arguments[..], more].concat())
    };
    restore(&scene, "all", &[])?.refused(&["allow-restore alpha"])?;
    scene.system.administer(&["allow-restore", "alpha"])?;
    let early = ["--recovery-target", &between, "--recovery-action"];
    let early = [&early[..], &["promote"]].concat();
    for (name, more, rows) in [
        ("all", &[][..], "0|5000\n1|5000\n2|5000"),
        ("early", &early, "0|5000\n1|5000"),
    ] {
        restore(&scene, name, more)?.success()?;
        let mut restored = scene.clusters.restored(name);
        // The next one finds the archive as it was.
        restored.start(&[&fetch, "archive_mode=off"])?;
        restored.says("SELECT pg_is_in_recovery()", "f")?;
        let found = restored.sql("SELECT batch, count(*) FROM rows GROUP BY 1 ORDER BY 1")?;
        ensure!(found == rows, "{name}: {found}");
        restored.stop()?;
    }
    Ok(())
}

/// What wire and disk carry, so that there is a middle of a backup.
const PACE_MBIT: u32 = 240;

/// Begins a base backup of rows that the repository doesn't have, and returns in its middle.
fn half_a_base_backup(scene: &Scene, more: &[&str]) -> Result<Process> {
    scene.cluster.sql(
        "DROP TABLE IF EXISTS much; CREATE TABLE much AS SELECT n, (SELECT \
         string_agg(md5(random()::text || g), '') FROM generate_series(1, 30) g WHERE n > 0) AS content \
         FROM generate_series(1, 60000) n",
    )?;
    let before = scene.system.stored_bytes(&scene.client)?;
    let connection = scene.cluster.connection();
    let backup = ["backup", "--postgres", &connection, "--checkpoint", "fast"];
    let job = scene
        .system
        .start(&scene.client, [&backup[..], more].concat())?;
    let middle = before + (4 << 20);
    until("a part of it is stored", || {
        Ok(scene.system.stored_bytes(&scene.client)? > middle)
    })?;
    Ok(job)
}

/// What a backup has of a cluster while it runs.
const BACKUPS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backlane'";

#[test]
fn a_base_backup_outlives_either_route_and_leaves_a_healthy_cluster_without_both() -> Result<()> {
    if !ready_with(&CHAIN) {
        return Ok(());
    }
    let setup = Setup {
        wire: Wire {
            mbit: Some(PACE_MBIT),
        },
        medium: Medium::Breakable,
        ..Setup::default()
    };
    let Some(mut scene) = Scene::over(&setup)? else {
        return Ok(());
    };
    for side in [Side::Server, Side::Client] {
        scene.system.devices[0].chain(side)?.set_rate(PACE_MBIT)?;
    }
    scene.cluster.start(&[])?;
    scene
        .cluster
        .sql("CREATE TABLE rows (n serial, content text)")?;
    let row = "INSERT INTO rows (content) VALUES ('row')";
    for cut in [Fault::CableCut, Fault::IoErrors] {
        let job = half_a_base_backup(&scene, &[])?;
        cut.begin(&mut scene.system)?;
        scene.cluster.sql(row)?;
        let ended = job.wait()?;
        cut.end(&mut scene.system)?;
        ended.success().with_context(|| cut.name())?;
        scene.cluster.says(BACKUPS, "0")?;
    }
    // The one that has lost the server by both, which can't archive WAL either, and the one that is killed.
    let job = half_a_base_backup(&scene, &["--route-wait", "3s"])?;
    Fault::ServerKilled.begin(&mut scene.system)?;
    scene.cluster.sql(row)?;
    let ended = job.wait()?;
    ensure!(matches!(ended.code(), 1 | 4), "{ended}");
    Fault::ServerKilled.end(&mut scene.system)?;
    scene.cluster.says(BACKUPS, "0")?;
    let job = half_a_base_backup(&scene, &[])?;
    job.signal(Signal::KILL)?;
    job.wait()?;
    scene.cluster.says(BACKUPS, "0")?;

    scene.cluster.sql(row)?;
    let next = half_a_base_backup(&scene, &[])?;
    next.wait()?.success()?;
    scene.cluster.sql(row)?;
    scene.cluster.all_is_archived()?;
    let sums = "SELECT (SELECT count(*) FROM rows), (SELECT md5(string_agg(content, '' ORDER BY n)) FROM much)";
    let before = scene.cluster.sql(sums)?;
    ensure!(before.starts_with("5|"), "{before}");
    scene.cluster.stop()?;
    let checked = scene.check()?;
    ensure!(checked["clean"] == true, "{checked}");
    let snapshots = scene
        .system
        .run(&scene.client, ["snapshots", "--tag", "postgresql"])?;
    let snapshots = snapshots.ended.success()?.json()?;
    ensure!(
        snapshots["snapshots"]
            .as_array()
            .is_some_and(|all| all.len() == 3),
        "{snapshots}"
    );

    let target = scene.clusters.path("restored").display().to_string();
    let restore = ["restore", "latest", "--postgres", "--target", &target];
    scene.system.run(&scene.client, restore)?.success()?;
    let mut restored = scene.clusters.restored("restored");
    let fetch = format!("restore_command={}", scene.wal_command("fetch %f %p"));
    restored.start(&[&fetch, "archive_mode=off"])?;
    restored.says("SELECT pg_is_in_recovery()", "f")?;
    ensure!(restored.sql(sums)? == before);
    Ok(())
}

#[test]
fn what_no_base_backup_needs_is_removed_and_comes_back() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    let segments = |scene: &Scene| -> Result<u64> {
        let checked = scene.check()?;
        ensure!(checked["clean"] == true, "{checked}");
        checked["segments"].as_u64().context("segments")
    };
    let keyed = |scene: &Scene, words: &[&str], more: &[&str]| -> Result<Value> {
        let mut command = scene.system.server_command();
        command
            .arg("--json")
            .args(words)
            .args(["--host", "alpha", "--key-file"]);
        command.arg(&scene.client.key_file).args(more);
        let ended = Process::start(&mut command, &scene.system.path(""), Some(""))?.wait()?;
        ended.success()?.json()
    };
    let expire = |scene: &Scene, more: &[&str]| -> Result<u64> {
        let expired = keyed(scene, &["wal", "expire"], more)?;
        expired["files"].as_u64().context("files")
    };
    let back_up = |scene: &Scene| -> Result<String> {
        let cluster = scene.cluster.connection();
        let backup = ["backup", "--postgres", &cluster, "--checkpoint", "fast"];
        let done = scene
            .system
            .run(&scene.client, backup)?
            .ended
            .success()?
            .json()?;
        Ok(done["snapshot"].as_str().context("a snapshot")?.to_owned())
    };
    scene.cluster.start(&[])?;
    for _ in 0..3 {
        scene.cluster.all_is_archived()?;
    }
    ensure!(expire(&scene, &[])? == 0, "nothing says what is needed");
    let first = back_up(&scene)?;
    for _ in 0..3 {
        scene.cluster.all_is_archived()?;
    }
    let second = back_up(&scene)?;
    let all = segments(&scene)?;
    // The spooler's session is in nobody's way.
    let before_first = expire(&scene, &[])?;
    ensure!(
        before_first >= 3 && segments(&scene)? < all,
        "{before_first}"
    );
    keyed(&scene, &["forget"], &[&first])?;
    let between = expire(&scene, &["--dry-run"])?;
    ensure!(between >= 3 && expire(&scene, &[])? == between, "{between}");
    let status = scene
        .system
        .run(&scene.client, ["postgres", "status"])?
        .ended;
    let status = status.success()?.json()?;
    let backups = &status["clusters"][0]["backups"];
    ensure!(
        backups[0]["snapshot"] == second.as_str() && backups[0]["restorable"] == true,
        "{status}"
    );
    scene.system.administer(&["undelete", "alpha"])?;
    ensure!(segments(&scene)? >= all, "not all came back");
    Ok(())
}

#[test]
fn a_backlog_of_a_thousand_segments_is_archived() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.kill_spooler()?;
    scene.cluster.start(&[])?;
    let segments = "SELECT count(pg_switch_wal()) FROM generate_series(1, 1000) n \
                    WHERE pg_logical_emit_message(false, 'test', repeat(md5(n::text), 10000)) IS NOT NULL";
    scene.cluster.sql(segments)?;
    scene.start_spooler()?;
    let began = Instant::now();
    scene.cluster.all_is_archived()?;
    let elapsed = began.elapsed();
    let checked = scene.check()?;
    let archived = checked["segments"].as_u64().context("segments")?;
    ensure!(checked["clean"] == true && archived >= 1000, "{checked}");
    eprintln!("{archived} segments of 1 MiB in {elapsed:.1?}");
    Ok(())
}

#[test]
fn only_the_end_of_the_archive_passes_for_it() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.cluster.start(&[])?;
    scene.cluster.all_is_archived()?;
    scene.cluster.stop()?;
    let first = scene.last_archived()?;
    let first = first.as_str();
    let path = scene.cluster.data.join("pg_wal").join(first);
    let path = path.to_str().context("a path of text")?;
    scene.wal(&["push", path])?.success()?;
    // What another database server would archive under that name.
    let changed = scene.clusters.path(first);
    let mut segment = fs::read(path)?;
    segment[8192] ^= 1;
    fs::write(&changed, segment)?;
    let changed = changed.to_str().context("a path of text")?;
    let words = ["another segment is archived under this name", first];
    scene.wal(&["push", changed])?.refused(&words)?;

    let target = scene.clusters.path("target");
    let wanted = target.to_str().context("a path of text")?;
    let fetch = |scene: &Scene, name| scene.wal(&["fetch", name, wanted]);
    fetch(&scene, first)?.success()?;
    ensure!(
        fs::read(&target)? == fs::read(path)?,
        "another file came back"
    );
    fs::remove_file(&target)?;
    let absent = fetch(&scene, "0000000100000000000000FF")?;
    ensure!(absent.code() == 1, "{absent}");

    let failed = |ended: Ended, word: &str| {
        ensure!(
            ended.code() == 200 && ended.text().contains(word),
            "{word}: {ended}"
        );
        ensure!(!target.exists(), "{word}: a file was left");
        Ok(())
    };
    failed(scene.wal(&["fetch", first])?, "usage")?;
    failed(fetch(&scene, "none")?, "no name")?;
    failed(
        scene.wal(&["fetch", first, wanted, "--system", "x"])?,
        "invalid",
    )?;
    let nowhere = scene.clusters.path("nowhere/target");
    let nowhere = nowhere.to_str().context("a path of text")?;
    failed(scene.wal(&["fetch", first, nowhere])?, "nowhere/target")?;
    scene.system.administer(&["revoke-wal", "alpha"])?;
    failed(fetch(&scene, first)?, "allow-wal alpha")?;
    // Archiving goes on, and what the list needs can be read.
    ensure!(scene.check()?["clean"] == true, "a gap");
    scene
        .system
        .administer(&["allow-wal", "alpha", "--for", "1h"])?;
    fetch(&scene, first)?.success()?;
    fs::remove_file(&target)?;

    let stored = scene.system.repository(&scene.client)?.join("wal");
    let stored = find(&stored, first)?;
    let mut body = fs::read(&stored)?;
    let last = body.len() - 1;
    body[last] ^= 1;
    fs::write(&stored, body)?;
    failed(fetch(&scene, first)?, "damaged")?;
    scene.system.stop_server()?;
    failed(fetch(&scene, first)?, "server")?;
    scene.kill_spooler()?;
    failed(fetch(&scene, first)?, "backlane-wal")?;
    scene.wal(&["push", path])?.refused(&["backlane-wal"])?;

    // A database that can't have its WAL doesn't come up without it.
    let recovered = scene.cluster.recovering("recovered")?;
    let postgres = recovered.run(&[])?;
    ensure!(
        postgres.code() != 0 && postgres.text().contains("exit code 200"),
        "{postgres}"
    );
    Ok(())
}

#[test]
fn a_segment_that_is_missing_is_named() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.cluster.start(&[])?;
    for _ in 0..2 {
        scene.cluster.all_is_archived()?;
    }
    let missing = scene.last_archived()?;
    scene.cluster.all_is_archived()?;
    let stored = scene.system.repository(&scene.client)?.join("wal");
    fs::remove_file(find(&stored, &missing)?)?;
    let ended = scene.system.run(&scene.client, ["wal", "check"])?.ended;
    ensure!(ended.code() == 1, "{ended}");
    let checked = ended.json()?;
    ensure!(checked["gaps"][0]["first"] == missing.as_str(), "{checked}");
    ensure!(checked["gaps"][0]["files"] == 1, "{checked}");
    Ok(())
}

fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            match path.is_dir() {
                true => left.push(path),
                false if path.ends_with(name) => return Ok(path),
                false => {}
            }
        }
    }
    anyhow::bail!("no {name} below {}", directory.display())
}
