//! WAL of a real PostgreSQL that is received as it is written: what was acknowledged comes back whoever is killed, the
//! growing segment of its pieces or not at all, and what nothing needs goes with the base backups that needed it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    Client, Cluster, Clusters, Ended, Process, System, output, start_spooler, until, wal_host,
};
use rustix::process::Signal;
use serde_json::Value;

/// A host with a repository, whose spooler runs, and a cluster that archives nothing itself.
struct Scene {
    // Ended before the system goes.
    receive: Option<Process>,
    _spooler: Process,
    cluster: Cluster,
    system: System,
    client: Client,
    clusters: Arc<Clusters>,
    /// As the clusters' user may run it.
    backlane: PathBuf,
}

impl Scene {
    /// `None` where this machine can't run it; that was said then.
    fn new() -> Result<Option<Self>> {
        let Some((system, client, clusters)) = wal_host()? else {
            return Ok(None);
        };
        // So that there are many segments soon.
        let mut cluster = clusters.cluster("main", &["--wal-segsize=1"])?;
        cluster.start(&[])?;
        cluster.sql("CREATE TABLE rows (n int, content text)")?;
        let spooler = start_spooler(&system, &client, &clusters)?;
        Ok(Some(Self {
            receive: None,
            _spooler: spooler,
            cluster,
            backlane: clusters.backlane()?,
            system,
            client,
            clusters,
        }))
    }

    fn start_receive(&mut self) -> Result<()> {
        let mut receive = self.system.client_command(&self.client);
        receive.args(["--verbose", "wal", "receive", "--synchronous"]);
        receive.args(["--every", "200ms", "--postgres", &self.cluster.connection()]);
        receive.arg("--socket").arg(self.clusters.path("wal.sock"));
        receive.arg("--spool").arg(self.spool());
        if let Some(program) = self.clusters.of_another_version("pg_receivewal") {
            receive.arg("--program").arg(program);
        }
        self.receive = Some(Process::start(&mut receive, &self.system.path(""), None)?);
        Ok(())
    }

    fn spool(&self) -> PathBuf {
        self.system.path("spool")
    }

    fn end_receive(&mut self, signal: Signal) -> Result<Ended> {
        let receive = self.receive.take().context("nothing receives")?;
        receive.signal(signal)?;
        receive.wait()
    }

    fn is_streaming(&self) -> Result<()> {
        let streaming =
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'";
        self.cluster.says(streaming, "1")
    }

    fn run(&self, arguments: &[&str]) -> Result<Ended> {
        Ok(self.system.run(&self.client, arguments)?.ended)
    }

    fn back_up(&self) -> Result<String> {
        let cluster = self.cluster.connection();
        let backup = ["backup", "--postgres", &cluster, "--checkpoint", "fast"];
        let done = self.run(&[&backup[..], &["--wal", "include"]].concat())?;
        let done = done.success()?.json()?;
        Ok(done["snapshot"].as_str().context("a snapshot")?.to_owned())
    }

    /// What PostgreSQL would start, started by hand.
    fn fetch(&self, more: &[&str]) -> Result<Ended> {
        let mut command = self.cluster.program(&self.backlane);
        command.args(["wal", "fetch"]).args(more);
        command.env("BACKLANE_WAL_SOCKET", self.clusters.path("wal.sock"));
        Process::start(&mut command, &self.system.path(""), Some(""))?.wait()
    }

    /// Maintenance on the server's machine.
    fn keyed(&self, words: &[&str], more: &[&str]) -> Result<Value> {
        let mut command = self.system.server_command();
        command.arg("--json").args(words);
        command.args(["--host", "alpha", "--key-file"]);
        command.arg(&self.client.key_file).args(more);
        let ended = Process::start(&mut command, &self.system.path(""), Some(""))?.wait()?;
        ended.success()?.json()
    }

    /// What the server has of WAL, by name, in the order of WAL.
    fn archived(&self) -> Result<Vec<PathBuf>> {
        let mut left = vec![self.system.repository(&self.client)?.join("wal")];
        let mut files = Vec::new();
        while let Some(directory) = left.pop() {
            // There is none yet.
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries {
                let path = entry?.path();
                match path.is_dir() {
                    true => left.push(path),
                    false => files.push(path),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn pieces(&self) -> Result<Vec<PathBuf>> {
        let mut files = self.archived()?;
        files.retain(|path| path.extension().is_some_and(|it| it == "piece"));
        Ok(files)
    }

    fn segments(&self) -> Result<usize> {
        let files = self.archived()?;
        Ok(files.iter().filter(|it| it.extension().is_none()).count())
    }

    /// Waits until the segment that is being written is archived whole.
    fn whole(&self) -> Result<()> {
        let written = "SELECT pg_walfile_name(pg_current_wal_lsn())";
        let emitted = "SELECT pg_logical_emit_message(true, 'test', 'end')";
        self.cluster.sql(emitted)?;
        let name = self.cluster.sql(written)?;
        self.cluster.sql("SELECT pg_switch_wal()")?;
        // The next one has to begin for it to be left.
        self.cluster.sql(emitted)?;
        until("the segment is archived", || {
            Ok(self.archived()?.iter().any(|path| path.ends_with(&name)))
        })
    }

    /// Restores the newest base backup and recovers it to the end of the archive; it runs then.
    fn recover(&self, name: &str) -> Result<Cluster> {
        self.recover_with(name, &[])
    }

    /// The same with some settings more.
    fn recover_with(&self, name: &str, more: &[&str]) -> Result<Cluster> {
        self.system.administer(&["allow-restore", "alpha"])?;
        let target = self.clusters.path(name).display().to_string();
        let restore = ["restore", "latest", "--postgres", "--target", &target];
        let target = ["--recovery-target", "latest"];
        self.run(&[&restore[..], &target].concat())?.success()?;
        let mut restored = self.clusters.restored(name);
        let settings = fs::read_to_string(restored.data.join("postgresql.auto.conf"))?;
        ensure!(settings.contains("wal fetch --pieces %f"), "{settings}");
        let (backlane, socket) = (&self.backlane, self.clusters.path("wal.sock"));
        let fetch = format!(
            "restore_command={} wal fetch --pieces %f %p --socket {}",
            backlane.display(),
            socket.display()
        );
        let settings = [&fetch, "synchronous_standby_names="];
        restored.start(&[&settings[..], more].concat())?;
        restored.says("SELECT pg_is_in_recovery()", "f")?;
        Ok(restored)
    }
}

/// The last row that a client was told to be committed.
fn committed(client: &Process) -> u64 {
    let said = client.stdout();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let last = whole.lines().rev().find_map(|line| line.parse().ok());
    last.unwrap_or(0)
}

#[test]
fn whoever_is_killed_what_was_acknowledged_comes_back() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.start_receive()?;
    scene.is_streaming()?;
    scene
        .cluster
        .sql("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
    scene.cluster.sql("SELECT pg_reload_conf()")?;
    scene.cluster.says("SHOW synchronous_standby_names", "*")?;
    scene.back_up()?;
    let insert =
        |n| format!("INSERT INTO rows SELECT {n}, repeat(md5(random()::text), 30) RETURNING n;\n");
    let script: String = (1..=200_000).map(insert).collect();
    let mut psql = scene.cluster.program("psql");
    // From a file: its standard input would be written before this goes on.
    let file = scene.clusters.path("insert.sql");
    fs::write(&file, script)?;
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(file);
    let client = Process::start(&mut psql, &scene.system.path(""), None)?;
    until("segments are archived", || Ok(scene.segments()? >= 3))?;

    scene.end_receive(Signal::KILL)?;
    let before = scene.segments()?;
    scene.start_receive()?;
    until("segments are archived again", || {
        Ok(scene.segments()? >= before + 3)
    })?;
    scene.cluster.kill()?;
    scene.end_receive(Signal::KILL)?;
    let committed = committed(&client);
    ensure!(committed > 1000, "{committed} rows");

    // What is in the spool is archived although there is no server to receive from.
    scene.start_receive()?;
    let receive = scene.receive.as_ref().context("it was started")?;
    until("it has looked for the server", || {
        Ok(receive.said().contains("not receiving"))
    })?;
    scene.end_receive(Signal::TERM)?.success()?;
    let checked = scene.run(&["wal", "check"])?.success()?.json()?;
    ensure!(checked["clean"] == true, "{checked}");
    let pieces = scene.pieces()?;
    ensure!(!pieces.is_empty(), "no pieces");
    let status = scene.run(&["postgres", "status"])?.success()?.json()?;
    let told = &status["clusters"][0];
    ensure!(
        told["newest_wal"]["lsn"].is_string() && told["missing"] == serde_json::json!([]),
        "{status}"
    );
    let restored = scene.recover("restored")?;
    let rows = restored.sql("SELECT count(*), max(n) FROM rows")?;
    let (count, last) = rows.split_once('|').context("two numbers")?;
    ensure!(
        count == last && last.parse::<u64>()? >= committed,
        "{rows} of {committed}"
    );
    eprintln!("{committed} rows acknowledged, {last} came back");
    Ok(())
}

#[test]
fn a_growing_segment_comes_back_of_its_pieces_or_not_at_all() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.start_receive()?;
    scene.is_streaming()?;
    // From its beginning on.
    scene.whole()?;
    let growing = scene
        .cluster
        .sql("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
    let of_it = |scene: &Scene| -> Result<Vec<PathBuf>> {
        let mut pieces = scene.pieces()?;
        pieces.retain(|path| path.to_string_lossy().contains(&format!("/{growing}.")));
        Ok(pieces)
    };
    for _ in 0..3 {
        let before = of_it(&scene)?.len();
        let row = "INSERT INTO rows SELECT 1, repeat(md5(random()::text), 30)";
        scene.cluster.sql(row)?;
        until(
            "there is a piece more",
            || Ok(of_it(&scene)?.len() > before),
        )?;
    }
    scene.end_receive(Signal::TERM)?.success()?;
    let pieces = of_it(&scene)?;
    let target = scene.clusters.path("target");
    let wanted = target.to_str().context("a path of text")?;
    let whole = scene.fetch(&[&growing, wanted])?;
    ensure!(whole.code() == 1 && !target.exists(), "{whole}");
    let fetch = |scene: &Scene| scene.fetch(&["--pieces", &growing, wanted]);
    fetch(&scene)?.success()?;
    let got = fs::read(&target)?;
    let spooled = fs::read(scene.spool().join(format!("{growing}.partial")))?;
    ensure!(got == spooled, "it is not what was received");
    fs::remove_file(&target)?;

    let failed = |scene: &Scene, word: &str| {
        let ended = fetch(scene)?;
        ensure!(
            ended.code() == 200 && ended.text().contains(word) && !target.exists(),
            "{word}: {ended}"
        );
        Ok(())
    };
    let body = fs::read(&pieces[1])?;
    let mut changed = body.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&pieces[1], changed)?;
    failed(&scene, "damaged")?;
    fs::remove_file(&pieces[1])?;
    failed(&scene, "a piece is missing")?;
    let checked = scene.run(&["wal", "check"])?;
    ensure!(checked.code() == 1, "{checked}");
    let checked = checked.json()?;
    ensure!(checked["gaps"][0]["first"] == growing.as_str(), "{checked}");
    fs::write(&pieces[1], body)?;

    // A later one is there, and the whole of this one isn't.
    scene.start_receive()?;
    scene.whole()?;
    // It may offer it once more.
    scene.end_receive(Signal::TERM)?.success()?;
    let archived = scene.archived()?;
    let path = archived.iter().find(|path| path.ends_with(&growing));
    let path = path.context("the whole segment")?;
    let body = fs::read(path)?;
    fs::remove_file(path)?;
    failed(&scene, "the whole segment is missing")?;
    fs::write(path, body)?;
    fetch(&scene)?.success().map(drop)
}

#[test]
fn a_recovery_that_archives_always_leaves_the_name_of_an_unfinished_segment_to_the_whole_one()
-> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.start_receive()?;
    scene.is_streaming()?;
    scene.back_up()?;
    scene.whole()?;
    let growing = scene
        .cluster
        .sql("INSERT INTO rows VALUES (1, 'last'); SELECT pg_walfile_name(pg_current_wal_lsn())")?;
    // All of it up to the row is in pieces.
    let written = scene.cluster.sql("SELECT pg_current_wal_lsn()")?;
    let archived = |scene: &Scene, name: &str| -> Result<bool> {
        Ok(scene.archived()?.iter().any(|path| path.ends_with(name)))
    };
    until("the row is in a piece", || {
        let status = scene.run(&["postgres", "status"])?.success()?.json()?;
        let lsn = status["clusters"][0]["newest_wal"]["lsn"].as_str();
        let is_there = format!("SELECT '{}'::pg_lsn >= '{written}'", lsn.unwrap_or("0/0"));
        Ok(scene.cluster.sql(&is_there)? == "t")
    })?;
    ensure!(
        !archived(&scene, &growing)?,
        "{growing} is archived already"
    );

    let (backlane, socket) = (&scene.backlane, scene.clusters.path("wal.sock"));
    let push = format!(
        "archive_command={} wal push %p --socket {}",
        backlane.display(),
        socket.display()
    );
    let mut restored = scene.recover_with("restored", &["archive_mode=always", &push])?;
    ensure!(restored.sql("SELECT count(*) FROM rows WHERE content = 'last'")? == "1");
    let done =
        format!("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name = '{growing}.done'");
    restored.says(&done, "1")?;
    ensure!(
        !archived(&scene, &growing)?,
        "a part of {growing} is archived as all of it"
    );
    restored.all_is_archived()?;
    restored.stop()?;

    // The server that wrote it lives on, and ends it.
    scene.cluster.sql("INSERT INTO rows VALUES (2, 'later')")?;
    scene.whole()?;
    ensure!(archived(&scene, &growing)?);
    let restored = scene.recover_with("again", &["recovery_target_timeline=1"])?;
    ensure!(restored.sql("SELECT count(*) FROM rows WHERE content = 'later'")? == "1");
    Ok(())
}

#[test]
fn a_standby_that_is_promoted_is_received_and_recovered_across_its_timelines() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    let mut standby = scene.cluster.base_backup("standby")?;
    standby.configure(&format!(
        "primary_conninfo = '{}'\n",
        scene.cluster.connection()
    ))?;
    output(standby.program("/bin/touch").arg("standby.signal"))?;
    standby.start(&[])?;
    let mut primary = std::mem::replace(&mut scene.cluster, standby);
    scene.start_receive()?;
    scene.is_streaming()?;
    scene.back_up()?;
    let insert = "INSERT INTO rows SELECT n, repeat(md5(n::text), 30) FROM generate_series";
    primary.sql(&format!("{insert}(1, 3000) n"))?;
    scene.cluster.says("SELECT count(*) FROM rows", "3000")?;
    primary.kill()?;
    scene.cluster.sql("SELECT pg_promote()")?;
    scene.cluster.sql(&format!("{insert}(3001, 6000) n"))?;
    scene.whole()?;
    for wanted in ["00000002.history", "00000001", "00000002"] {
        until(
            "a file of each timeline is archived, and the history",
            || {
                Ok(scene.archived()?.iter().any(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name == wanted || name.len() >= 24 && name.starts_with(wanted)
                }))
            },
        )?;
    }
    let checked = scene.run(&["wal", "check"])?.success()?.json()?;
    ensure!(checked["clean"] == true, "{checked}");
    // What the promoted one left of the first timeline is nobody's any more.
    let left = fs::read_dir(scene.spool())?.count();
    scene.end_receive(Signal::TERM)?.success()?;
    let restored = scene.recover("restored")?;
    let rows = restored.sql("SELECT count(*), max(n) FROM rows")?;
    ensure!(rows == "6000|6000", "{rows}");
    ensure!(left <= 3, "{left} files in the spool");
    Ok(())
}

#[test]
fn wal_goes_with_the_base_backups_that_need_it() -> Result<()> {
    let Some(mut scene) = Scene::new()? else {
        return Ok(());
    };
    scene.start_receive()?;
    scene.is_streaming()?;
    scene.whole()?;
    let first = scene.back_up()?;
    scene.whole()?;
    scene.whole()?;
    scene.back_up()?;
    scene.whole()?;
    scene.end_receive(Signal::TERM)?.success()?;
    let status = scene.run(&["postgres", "status"])?.success()?.json()?;
    let starts = [0, 1].map(|at| {
        let start = status["clusters"][0]["backups"][at]["start_wal"].as_str();
        start.unwrap_or_default().to_owned()
    });
    let names = |scene: &Scene| -> Result<Vec<String>> {
        let files = scene.archived()?.into_iter();
        let name = |path: PathBuf| path.file_name().map(|it| it.to_string_lossy().into_owned());
        Ok(files.filter_map(name).collect())
    };
    let all = names(&scene)?;
    // What stays once everything from a segment on is needed.
    let stays = |start: &str| -> Vec<String> {
        let is_superseded = |name: &String| name.len() > 24 && all.contains(&name[..24].to_owned());
        let needed = all
            .iter()
            .filter(|name| name[..24] >= *start && !is_superseded(name));
        needed.cloned().collect()
    };
    let [both, second] = starts.each_ref().map(|start| stays(start));
    ensure!(
        second.len() + 2 <= both.len() && both.len() < all.len(),
        "{starts:?} {all:?}"
    );
    let files = |document: &Value| document["wal"]["files"].as_u64().context("wal.files");
    let count = |left: &[String]| (all.len() - left.len()) as u64;

    let dry = scene.keyed(&["prune"], &["--dry-run"])?;
    ensure!(
        files(&dry)? == count(&both) && names(&scene)? == all,
        "{dry}"
    );
    let dry = scene.keyed(&["forget"], &[&first, "--prune", "--dry-run"])?;
    ensure!(
        files(&dry)? == count(&second) && names(&scene)? == all,
        "{dry}"
    );
    scene.keyed(&["prune"], &[])?;
    ensure!(names(&scene)? == both, "{:?}", names(&scene)?);
    scene.keyed(&["forget"], &[&first, "--prune"])?;
    ensure!(names(&scene)? == second, "{:?}", names(&scene)?);
    let status = scene.run(&["postgres", "status"])?.success()?.json()?;
    let told = &status["clusters"][0];
    ensure!(
        told["windows"].as_array().is_some_and(|it| it.len() == 1),
        "{status}"
    );
    scene.system.administer(&["undelete", "alpha"])?;
    ensure!(names(&scene)? == all, "not all came back");

    // A host that may maintain removes no WAL, and says so.
    scene.system.administer(&["allow-maintenance", "alpha"])?;
    let helped = scene.run(&["prune"])?.success()?;
    ensure!(
        helped
            .text()
            .contains("files of wal that nothing needs stay")
            && names(&scene)? == all,
        "{helped}"
    );
    Ok(())
}
