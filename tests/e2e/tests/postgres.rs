//! Base backups of PostgreSQL clusters whose servers run, and what comes back of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    Client, Cluster, Clusters, Ended, Process, Setup, System, output, ready_for_postgresql, until,
};
use rustix::process::Signal;
use serde_json::Value;

/// A system with a client, and room for clusters.
struct World {
    system: System,
    client: Client,
    clusters: Arc<Clusters>,
}

impl World {
    fn new() -> Result<Option<Self>> {
        if !ready_for_postgresql() {
            return Ok(None);
        }
        let system = System::new(&Setup::default())?;
        let client = system.client("alpha")?;
        Ok(Some(Self {
            system,
            client,
            clusters: Clusters::new()?,
        }))
    }

    fn run(&self, arguments: &[&str]) -> Result<Ended> {
        Ok(self.system.run(&self.client, arguments)?.ended)
    }

    fn backup(&self, cluster: &Cluster, more: &[&str]) -> Result<Ended> {
        let connection = cluster.connection();
        let arguments = ["backup", "--postgres", &connection, "--checkpoint", "fast"];
        self.run(&[&arguments[..], more].concat())
    }

    fn restore(&self, name: &str, more: &[&str]) -> Result<Ended> {
        let target = self.clusters.path(name);
        let target = target.to_str().context("a path that is no text")?;
        let arguments = ["restore", "latest", "--postgres", "--target", target];
        self.run(&[&arguments[..], more].concat())
    }

    /// Restores into a new cluster's directory, and has PostgreSQL's own tool compare it with the manifest.
    fn restored(&self, name: &str, more: &[&str], wal: &[&str]) -> Result<Cluster> {
        self.restore(name, more)?.success()?;
        let restored = self.clusters.restored(name);
        let mut verify = self.clusters.program("pg_verifybackup");
        output(verify.args(wal).arg(&restored.data))?;
        Ok(restored)
    }

    /// The newest snapshot.
    fn snapshot(&self) -> Result<Value> {
        let mut document = self.run(&["snapshots"])?.success()?.json()?;
        let snapshots = document["snapshots"].as_array_mut().and_then(Vec::pop);
        snapshots.context("no snapshot")
    }
}

/// Pages have checksums.
const CHECKSUMS: &[&str] = &["--data-checksums"];

/// Where the WAL of these tests comes from, which is not from this system's archive.
const NO_ARCHIVE: &str = "restore_command=false";

const SUMS: &str = "\
SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers)
 AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)
 AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";

#[test]
fn a_cluster_that_is_written_to_comes_back_whole() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", CHECKSUMS)?;
    cluster.start(&[])?;
    output(cluster.program("pgbench").args(["-i", "-q", "-s", "2"]))?;
    let fast = world.clusters.directory("fast")?;
    cluster.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        fast.display()
    ))?;
    cluster.sql(
        "CREATE UNLOGGED TABLE gone AS SELECT generate_series(1, 1000) AS number;
         CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) AS number",
    )?;
    let busy = cluster.pgbench(&["-c", "4"], "")?;
    // Files come and go all the time.
    let churn = "CREATE TABLE brief AS SELECT generate_series(1, 1000);
         CREATE TEMP TABLE own AS SELECT generate_series(1, 1000);
         DROP TABLE own; TRUNCATE gone; DROP TABLE brief;";
    let churning = cluster.pgbench(&["-f", "-"], churn)?;
    cluster.says("SELECT count(*) > 100 FROM pgbench_history", "t")?;
    let backup = world.backup(&cluster, &["--wal", "include"])?.success()?;
    drop((busy, churning));
    cluster.stop()?;

    let document = backup.json()?;
    let snapshot = world.snapshot()?;
    ensure!(
        snapshot["tags"] == serde_json::json!(["postgresql"]),
        "{snapshot}"
    );
    let said = snapshot["description"].as_str().context("no description")?;
    for field in [
        "system",
        "version",
        "start_lsn",
        "stop_lsn",
        "timeline",
        "start_wal",
        "began",
        "ended",
    ] {
        let value = &document["postgres"][field];
        ensure!(
            !value.is_null() && said.contains(&format!("\"{field}\":{value}")),
            "{field}: {said}"
        );
    }

    let elsewhere = world.clusters.path("slow");
    let tablespace = format!("fast={}", elsewhere.display());
    let mut restored = world.restored("restored", &["--tablespace", &tablespace], &[])?;
    let links = fs::read_dir(restored.data.join("pg_tblspc"))?;
    let links = links.map(|link| Ok(fs::read_link(link?.path())?));
    ensure!(links.collect::<Result<Vec<_>>>()? == [elsewhere]);
    for left_out in ["postmaster.pid", "tablespace_map", "recovery.signal"] {
        ensure!(
            !restored.data.join(left_out).exists(),
            "{left_out} is there"
        );
    }
    restored.start(&[])?;
    ensure!(restored.sql(SUMS)? == "t", "the sums differ");
    ensure!(restored.sql("SELECT count(*) FROM gone")? == "0");
    ensure!(restored.sql("SELECT count(*) FROM there")? == "1000");
    let mut check = restored.program("pg_amcheck");
    output(check.args(["--install-missing", "--all", "--heapallindexed"]))?;
    restored.stop()?;
    output(
        world
            .clusters
            .program("pg_checksums")
            .arg("--check")
            .arg(&restored.data),
    )?;
    Ok(())
}

#[test]
fn recovery_ends_where_it_is_told_to() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let archive = world.clusters.directory("archive")?;
    let archive = archive.display();
    let mut cluster = world.clusters.cluster("main", &[])?;
    let archived = format!("archive_command=cp %p {archive}/%f");
    cluster.start(&["archive_mode=on", &archived])?;
    cluster.sql("CREATE TABLE steps (step int)")?;
    world.backup(&cluster, &[])?.success()?;
    let step = |more: &str| cluster.sql(&format!("INSERT INTO steps VALUES (1) {more}"));
    step("")?;
    let lsn = format!("lsn={}", cluster.sql("SELECT pg_current_wal_lsn()")?);
    let xid = format!("xid={}", step("RETURNING pg_current_xact_id()")?);
    step("")?;
    cluster.sql("SELECT pg_create_restore_point('it''s three')")?;
    step("")?;
    let time = format!("time={}", cluster.sql("SELECT clock_timestamp()")?);
    step("")?;
    cluster.stop()?;

    let fetched = format!("restore_command=cp {archive}/%f %p");
    for (target, more, steps) in [
        ("latest", &[][..], "5"),
        ("immediate", &[], "0"),
        (&lsn, &["--recovery-timeline", "current"], "1"),
        (&xid, &[], "2"),
        (&xid, &["--recovery-exclusive"], "1"),
        ("name=it's three", &[], "3"),
        (&time, &[], "4"),
    ] {
        let how = [
            "--recovery-target",
            target,
            "--recovery-action",
            "promote",
            "--delta",
        ];
        let mut restored = world.restored("restored", &[&how[..], more].concat(), &["-n"])?;
        let settings = fs::read_to_string(restored.data.join("postgresql.auto.conf"))?;
        ensure!(
            settings.matches("wal fetch --pieces %f").count() == 1,
            "{settings}"
        );
        restored.start(&[&fetched])?;
        restored.says("SELECT pg_is_in_recovery()", "f")?;
        let found = restored.sql("SELECT count(*) FROM steps")?;
        ensure!(
            found == steps,
            "{target} {more:?}: {found} instead of {steps}"
        );
        restored.stop()?;
    }
    Ok(())
}

#[test]
fn a_second_backup_and_a_restore_over_what_is_left_move_little() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", CHECKSUMS)?;
    cluster.start(&[])?;
    output(cluster.program("pgbench").args(["-i", "-q", "-s", "3"]))?;
    let wal = ["--wal", "include"];
    let moved = |backup: Ended| -> Result<u64> {
        let document = backup.success()?.json()?;
        document["bytes_packed"].as_u64().context("no bytes_packed")
    };
    let first = moved(world.backup(&cluster, &wal)?)?;
    cluster.sql("UPDATE pgbench_accounts SET abalance = 1 WHERE aid = 5")?;
    let second = moved(world.backup(&cluster, &wal)?)?;
    ensure!(second * 4 < first, "{second} bytes after {first}");
    let table = cluster.sql("SELECT pg_relation_filepath('pgbench_accounts')")?;
    let index = cluster.sql("SELECT pg_relation_filepath('pgbench_accounts_pkey')")?;

    let restored = world.restored("restored", &[], &[])?;
    let [table, index] = [table, index].map(|path| restored.data.join(path));
    let mut content = fs::read(&table)?;
    content[100_000..200_000].fill(7);
    fs::write(&table, content)?;
    fs::remove_file(&index)?;
    fs::write(restored.data.join("base/77"), "no file of the backup")?;
    // As an interrupted restore leaves it.
    fs::remove_file(restored.data.join("global/pg_control"))?;
    let document = world.restore("restored", &["--delta"])?.success()?.json()?;
    let [written, kept] = ["bytes_restored", "bytes_kept"].map(|field| document[field].as_u64());
    // The table, its index, and the WAL.
    ensure!(
        kept > written.map(|bytes| bytes / 4) && document["deleted"].as_u64() >= Some(1),
        "{document}"
    );
    let mut restored = world.restored("restored", &["--delta"], &[])?;
    restored.start(&[])?;
    ensure!(restored.sql("SELECT abalance FROM pgbench_accounts WHERE aid = 5")? == "1");

    // Stock tools do it as well.
    let stock = world.clusters.path("stock").display().to_string();
    let restic = ["restore", "latest", "--target", &stock];
    world.system.restic(&world.client, &restic)?.success()?;
    let system = world.snapshot()?["paths"][0].as_str().map(str::to_owned);
    let name = format!("stock{}/data", system.context("no path")?);
    let top = world.clusters.path(&name).with_file_name("top/.");
    output(
        Command::new("cp")
            .arg("-a")
            .arg(top)
            .arg(world.clusters.path(&name)),
    )?;
    for directory in ["stock", "stock/postgresql"] {
        world.clusters.directory(directory)?;
    }
    let mut stock = world.clusters.restored(&name);
    output(
        Command::new("chmod")
            .arg("755")
            .arg(stock.data.with_file_name("")),
    )?;
    stock.start(&[])?;
    ensure!(stock.sql("SELECT abalance FROM pgbench_accounts WHERE aid = 5")? == "1");
    stock.stop()?;

    // What must not be restored into.
    let running = world.restore("restored", &["--delta"])?;
    running.refused(&["a postgresql server runs on", "stop the server"])?;
    restored.stop()?;
    world
        .restore("restored", &[])?
        .refused(&["is not empty", "--delta"])?;
    world.clusters.cluster("other", &[])?;
    let other = world.restore("other", &["--delta"])?;
    other.refused(&["not the cluster of the backup", "its system identifier is"])?;
    let files = world.clusters.directory("files")?;
    fs::write(files.join("precious"), "x")?;
    world
        .restore("files", &["--delta"])?
        .refused(&["no cluster is there"])?;
    ensure!(fs::read_dir(files)?.count() == 1);
    let early = world.restore("new", &["--recovery-target", "lsn=0/100"])?;
    early.refused(&["0/100", "where the backup ends"])
}

#[test]
fn tablespaces_of_others_are_left_alone() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", &[])?;
    cluster.start(&[])?;
    let fast = world.clusters.directory("fast")?;
    cluster.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        fast.display()
    ))?;
    cluster.sql("CREATE TABLE there TABLESPACE fast AS SELECT 1")?;
    world.backup(&cluster, &["--wal", "include"])?.success()?;
    let place = format!("fast={}", fast.display());
    let place = ["--tablespace", &place];
    // The cluster itself has it still.
    for more in [&[][..], &["--delta"]] {
        let refused = world.restore("restored", &[&place[..], more].concat())?;
        refused.refused(&["tablespace fast belongs into", "--tablespace"])?;
        let refused = world.restore("restored", more)?;
        refused.refused(&["`fast`, which was in", "--tablespace"])?;
    }
    let unknown = ["--tablespace", "slow=/srv/slow"];
    let unknown = world.restore("restored", &[place, unknown].concat())?;
    unknown.refused(&["`slow` is not in the backup", "fast"])?;
    ensure!(!world.clusters.path("restored").exists());
    ensure!(cluster.sql("SELECT count(*) FROM there")? == "1");
    cluster.stop()?;
    // In place, once nobody uses it.
    let delta = ["--delta"];
    world
        .restore("main", &[&place[..], &delta].concat())?
        .success()?;
    cluster.start(&[])?;
    ensure!(cluster.sql("SELECT count(*) FROM there")? == "1");
    cluster.stop()
}

#[test]
fn a_damaged_page_is_named_and_marks_the_snapshot() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", CHECKSUMS)?;
    cluster.start(&[])?;
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n")?;
    let table = cluster.sql("SELECT pg_relation_filepath('t')")?;
    cluster.stop()?;
    let path = cluster.data.join(&table);
    let mut content = fs::read(&path)?;
    content[3 * 8192 + 5000] ^= 1;
    fs::write(&path, content)?;
    cluster.start(&[])?;
    let backup = world.backup(&cluster, &["--wal", "include"])?;
    ensure!(backup.code() == 3, "{backup}");
    let warnings = backup.json()?["warnings"].to_string();
    ensure!(
        warnings.contains(&table) && warnings.contains("block 3 is damaged"),
        "{warnings}"
    );
    ensure!(warnings.matches("is damaged").count() == 1, "{warnings}");
    let tags = world.snapshot()?["tags"].to_string();
    ensure!(tags.contains("postgresql-damaged-pages"), "{tags}");
    cluster.stop()
}

#[test]
fn a_backup_that_does_not_end_well_leaves_the_cluster_out_of_backup_mode() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", &[])?;
    cluster.start(&[])?;
    // The slot goes with the session, as the backup does.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backlane'";
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let connection = cluster.connection();
    for end in ["kill", "interrupt", "terminate"] {
        let arguments = [
            "backup",
            "--postgres",
            &connection,
            "--wal",
            "include",
            "--checkpoint",
            "fast",
        ];
        let job = world.system.start(&world.client, arguments)?;
        cluster.says(slots, "1")?;
        match end {
            "kill" => job.signal(Signal::KILL)?,
            "interrupt" => job.signal(Signal::INT)?,
            _ => {
                let all = sessions.replace("count(*)", "count(pg_terminate_backend(pid))");
                cluster.sql(&all)?;
            }
        }
        let ended = job.wait()?;
        ensure!(ended.code() != 0, "{end}: {ended}");
        if end == "terminate" {
            ended.refused(&["terminating connection"])?;
        }
        cluster.says(sessions, "0")?;
        cluster.says(slots, "0")?;
    }
    let snapshots = world.run(&["snapshots"])?.success()?.json()?;
    ensure!(
        snapshots["snapshots"] == serde_json::json!([]),
        "{snapshots}"
    );
    cluster.stop()
}

#[test]
fn a_backup_that_waits_for_the_archive_ends_when_it_is_told_to() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", &[])?;
    cluster.start(&["archive_mode=on", "archive_command=false"])?;
    let connection = cluster.connection();
    let backup = ["backup", "--postgres", &connection, "--checkpoint", "fast"];
    let job = world.system.start(&world.client, backup)?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'BackupWaitWalArchive'";
    cluster.says(waiting, "1")?;
    job.signal(Signal::INT)?;
    let ended = job.wait()?;
    ensure!(ended.code() != 0, "{ended}");
    cluster.says(waiting, "0")?;
    // It was told to, and did not merely notice that nobody is there any more.
    until("the server says so", || {
        Ok(cluster
            .said()
            .contains("canceling statement due to user request"))
    })?;
    // Nothing was archived meanwhile.
    cluster.kill()
}

#[test]
fn a_standby_is_made_of_a_backup_and_backed_up_itself() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", CHECKSUMS)?;
    cluster.start(&[])?;
    output(cluster.program("pgbench").args(["-i", "-q", "-s", "1"]))?;
    world.backup(&cluster, &["--wal", "include"])?.success()?;
    let mut standby = world.restored("standby", &["--standby"], &[])?;
    let follow = format!("primary_conninfo={}", cluster.connection());
    standby.start(&[&follow, NO_ARCHIVE])?;
    let busy = cluster.pgbench(&["-c", "2"], "")?;
    standby.says("SELECT count(*) > 100 FROM pgbench_history", "t")?;
    let refused = world.backup(&standby, &[])?;
    refused.refused(&["archive_mode", "--wal include"])?;
    let backup = world.backup(&standby, &["--wal", "include"])?.success()?;
    ensure!(
        backup.json()?["postgres"]["origin"] == "standby",
        "{backup}"
    );
    drop(busy);
    let mut restored = world.restored("restored", &[], &[])?;
    restored.start(&[])?;
    ensure!(restored.sql("SELECT pg_is_in_recovery()")? == "f");
    ensure!(restored.sql(SUMS)? == "t", "the sums differ");
    restored.stop()?;
    standby.stop()?;
    cluster.stop()
}

#[test]
fn what_would_be_no_backup_is_refused() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", &[])?;
    // Nobody listens yet.
    world
        .backup(&cluster, &[])?
        .refused(&["connecting", "guide.md"])?;
    cluster.start(&[])?;
    world
        .backup(&cluster, &[])?
        .refused(&["archive_mode is off", "--wal include"])?;
    let connection = cluster
        .connection()
        .replace("user=postgres", "user=postgres&password=secret");
    let refused = world.run(&["backup", "--postgres", &connection])?;
    refused.refused(&["password in it", ".pgpass"])?;
    ensure!(!refused.text().contains("secret"), "{refused}");
    let other = world.clusters.cluster("other", &[])?;
    let directory = other.data.display().to_string();
    let elsewhere = world.backup(&cluster, &["--wal", "include", "--pgdata", &directory])?;
    elsewhere.refused(&["directory of another cluster", "--pgdata"])?;
    let file = world.system.path("file");
    fs::write(&file, "x")?;
    world.system.backup(&world.client, &file, &[])?.success()?;
    world
        .restore("restored", &[])?
        .refused(&["no backup of a postgresql cluster"])?;
    cluster.stop()
}

#[test]
fn credentials_come_from_where_psql_finds_them_and_few_rights_are_enough() -> Result<()> {
    let Some(world) = World::new()? else {
        return Ok(());
    };
    let mut cluster = world.clusters.cluster("main", &[])?;
    let rules = "local postgres backup peer map=backup\nlocal all locked scram-sha-256\n";
    let rules = rules.to_owned() + &fs::read_to_string(cluster.data.join("pg_hba.conf"))?;
    fs::write(cluster.data.join("pg_ident.conf"), "backup root backup\n")?;
    // Outside of the cluster's directory, as on Debian.
    let access = world.clusters.directory("etc")?.join("pg_hba.conf");
    fs::write(&access, rules)?;
    cluster.start(&[&format!("hba_file={}", access.display())])?;
    let version: u32 = cluster
        .sql("SELECT current_setting('server_version_num')::int / 10000")?
        .parse()?;
    let functions = match version {
        ..15 => "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)",
        15.. => "pg_backup_start(text, boolean), pg_backup_stop(boolean)",
    };
    cluster.sql(&format!(
        "CREATE ROLE backup LOGIN REPLICATION;
         GRANT pg_read_all_settings TO backup;
         GRANT EXECUTE ON FUNCTION {functions} TO backup;
         SET password_encryption = 'scram-sha-256';
         CREATE ROLE locked LOGIN REPLICATION PASSWORD 'secret';
         GRANT backup TO locked"
    ))?;
    let more = ["--wal", "include", "--checkpoint", "fast"];
    // By peer authentication.
    let connection = cluster.connection().replace("user=postgres", "user=backup");
    // The directory is known by another name here.
    let directory = world.clusters.path("link");
    symlink(&cluster.data, &directory)?;
    let directory = directory.display().to_string();
    let arguments = ["backup", "--postgres", &connection, "--pgdata", &directory];
    world.run(&[&arguments[..], &more].concat())?.success()?;
    let listed = world.run(&["ls", "latest"])?.success()?;
    for file in [
        "config/pg_hba.conf",
        "data/pg_ident.conf",
        "top/global/pg_control",
    ] {
        ensure!(listed.stdout.contains(file), "{file} is not in {listed}");
    }
    // By a service file, and a password that stands elsewhere.
    let [service, password] = ["service", "password"].map(|name| world.system.path(name));
    let known = cluster
        .connection()
        .replace("postgresql:///postgres?", "[main]\ndbname=postgres&");
    let known = known
        .replace("user=postgres", "user=locked")
        .replace('&', "\n");
    fs::write(&service, known)?;
    fs::write(&password, "*:*:*:locked:secret\n")?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    let backup = |password: &Path| -> Result<Ended> {
        let mut command = world.system.client_command(&world.client);
        command
            .args(["backup", "--postgres", "service=main"])
            .args(more);
        command
            .env("PGSERVICEFILE", &service)
            .env("PGPASSFILE", password);
        Process::start(&mut command, &world.system.path(""), Some(""))?.wait()
    };
    backup(Path::new("/nowhere"))?.refused(&["connecting", "no password supplied"])?;
    backup(&password)?.success()?;
    cluster.stop()
}
