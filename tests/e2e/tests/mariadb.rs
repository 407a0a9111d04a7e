//! Backups of MariaDB servers that are written to, their binary logs, and what comes back of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Ended, MARIADB_TABLES, MariadbWorld, Server, output};
use rustix::process::Signal;
use serde_json::json;

/// Writes one transaction after the other, numbered, until it is told to stop.
const WRITER: &str = "\
DELIMITER //
BEGIN NOT ATOMIC
  DECLARE i INT DEFAULT 0;
  WHILE NOT EXISTS (SELECT * FROM app.stop) DO
    SET i = i + 1;
    START TRANSACTION;
    INSERT INTO app.one VALUES (i, repeat(md5(i), 5));
    INSERT INTO `odd-näme`.`t/wo` VALUES (i);
    COMMIT;
    -- At full speed the server may never come to the checkpoint that a backup begins with.
    DO sleep(0.002);
  END WHILE;
END//
";

/// Makes, renames and drops tables meanwhile.
const CHURN: &str = "\
DELIMITER //
BEGIN NOT ATOMIC
  WHILE NOT EXISTS (SELECT * FROM app.stop) DO
    CREATE TABLE app.brief (id INT PRIMARY KEY);
    INSERT INTO app.brief VALUES (1), (2), (3);
    RENAME TABLE app.brief TO app.late;
    DROP TABLE app.late;
    DO sleep(0.05);
  END WHILE;
END//
";

/// How many transactions there are in both tables, if all up to the last one are.
fn transactions(server: &Server) -> Result<u64> {
    let mut found = Vec::new();
    for table in ["app.one", "`odd-näme`.`t/wo`"] {
        let row = server.sql(&format!("SELECT count(*), max(id) FROM {table}"))?;
        let (count, last) = row.split_once('\t').context("no row")?;
        ensure!(count == last, "{table}: {count} of {last}");
        found.push(count.parse::<u64>()?);
    }
    ensure!(found[0] == found[1], "{found:?}");
    Ok(found[0])
}

#[test]
fn a_server_that_is_written_to_comes_back_at_any_position() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(MARIADB_TABLES)?;
    let writers = [server.client(WRITER)?, server.client(CHURN)?];
    let more_than = |count: u64| format!("SELECT count(*) > {count} FROM app.one");
    server.says(&more_than(500), "1")?;
    let backup = world.backup(&server, "--mariadb")?.success()?.json()?;

    // What is there at a position, while others write on.
    let said = server.sql(
        "FLUSH TABLES WITH READ LOCK; SHOW MASTER STATUS;
         SELECT 'n', count(*) FROM app.one; UNLOCK TABLES",
    )?;
    let (status, count) = said.split_once("\nn\t").context("no count")?;
    let chosen: u64 = count.parse()?;
    let mut status = status.split('\t');
    let stop_file = status.next().context("no file")?;
    let stop_position = status.next().context("no position")?;
    server.says(&more_than(chosen + 100), "1")?;
    // Another file, and more after it.
    let binlogs = world.backup(&server, "--mariadb-binlogs")?.success()?;
    ensure!(
        binlogs.json()?["mariadb"]["last"] == stop_file,
        "{binlogs}: {stop_file}"
    );
    server.sql("INSERT INTO app.stop VALUES (1)")?;
    for writer in writers {
        writer.wait()?.success()?;
    }
    let all = transactions(&server)?;
    server.stop()?;

    let document = world.restore("restored")?.success()?.json()?;
    let ends = &document["mariadb"]["binlog"];
    ensure!(*ends == backup["mariadb"]["binlog"], "{document}");
    let next = document["mariadb"]["next"].to_string();
    ensure!(next.contains("chown") && next.contains("mariadb replay"));
    let mut restored = world.servers.restored("restored");
    restored.own()?;
    restored.start(&["--log-bin=other"])?;
    restored.check()?;
    ensure!(restored.sql("SELECT count(*) FROM app.fixed")? == "1000");
    let begun = transactions(&restored)?;
    ensure!((500..=chosen).contains(&begun), "{begun} of {chosen}");

    // The binary logs are ordinary files in their snapshot.
    let snapshots = world.snapshots()?;
    let of_binlogs = snapshots
        .iter()
        .find(|snapshot| snapshot["tags"] == json!(["mariadb-binlog"]));
    let of_binlogs = of_binlogs.context("no snapshot of binary logs")?;
    let path = of_binlogs["paths"][0].as_str().context("no path")?;
    let wanted = format!("{}:{path}", of_binlogs["id"].as_str().context("no id")?);
    let logs = world.servers.path("logs").display().to_string();
    world
        .run(&["restore", &wanted, "--target", &logs])?
        .success()?;
    let first = ends["file"].as_str().context("no file")?;
    let start = ends["position"].as_u64().context("no position")?;
    let mut names: Vec<_> = fs::read_dir(&logs)?
        .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_>>()?;
    names.sort();
    names.retain(|name| name.as_str() >= first);
    let replay = format!(
        "set -o pipefail; cd {logs}; mariadb-binlog --no-defaults --start-position={start} \
         --stop-position={stop_position} {} | mariadb --no-defaults --socket={}",
        names.join(" "),
        restored.socket().display()
    );
    output(Command::new("bash").args(["-c", &replay]))?;
    ensure!(transactions(&restored)? == chosen, "of {all}");
    ensure!(chosen < all, "nothing was written after {chosen}");
    restored.check()?;
    restored.stop()
}

#[test]
fn a_second_backup_stores_little_and_a_target_in_use_is_refused() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    // Nobody listens yet.
    world
        .backup(&server, "--mariadb")?
        .refused(&["mariadb failed", "socket", "guide.md"])?;
    // All is written out at once, so that the second backup finds no more than what was changed.
    let settings = [
        "--innodb-max-dirty-pages-pct=0",
        "--innodb-max-dirty-pages-pct-lwm=0",
    ];
    server.start(&settings)?;
    server.sql(MARIADB_TABLES)?;
    server.sql(
        "USE app; INSERT INTO one SELECT seq, concat(md5(rand()), md5(rand()), md5(rand()))
         FROM seq_1_to_300000",
    )?;
    let dirty = "SELECT variable_value FROM information_schema.global_status \
        WHERE variable_name = 'Innodb_buffer_pool_pages_dirty'";
    server.says(dirty, "0")?;
    let packed = |backup: Ended| -> Result<u64> {
        let document = backup.success()?.json()?;
        document["bytes_packed"].as_u64().context("no bytes_packed")
    };
    // The redo log since the last checkpoint is what differs most: a stopped server has none.
    server.stop()?;
    server.start(&settings)?;
    let first = packed(world.backup(&server, "--mariadb")?)?;
    server.sql("UPDATE app.one SET filler = 'changed' WHERE id = 77777")?;
    server.says(dirty, "0")?;
    let second = packed(world.backup(&server, "--mariadb")?)?;
    ensure!(second * 4 < first, "{second} bytes after {first}");

    // Tables that are elsewhere come back in the server's directory, and never where they were.
    let elsewhere = world.servers.directory("elsewhere")?;
    server.sql(&format!(
        "CREATE TABLE app.far (id INT PRIMARY KEY) DATA DIRECTORY = '{}' SELECT 7 AS id",
        elsewhere.display()
    ))?;
    world.backup(&server, "--mariadb")?.success()?;
    let restore = world.restore("restored")?;
    ensure!(
        restore.code() == 3 && restore.text().contains("far.isl"),
        "{restore}"
    );
    let mut restored = world.servers.restored("restored");
    restored.own()?;
    // While the first one runs on.
    restored.start(&[])?;
    ensure!(restored.sql("SELECT id FROM app.far")? == "7");
    ensure!(restored.sql("SELECT filler FROM app.one WHERE id = 77777")? == "changed");
    restored.check()?;
    server.sql("INSERT INTO app.far VALUES (8)")?;
    ensure!(restored.sql("SELECT count(*) FROM app.far")? == "1");
    world
        .restore("restored")?
        .refused(&["is not empty", "empty directory"])?;
    restored.stop()?;

    // A server without binary logs has none to back up.
    server.stop()?;
    server.start(&["--skip-log-bin"])?;
    world
        .backup(&server, "--mariadb-binlogs")?
        .refused(&["no binary log", "log_bin"])?;
    server.stop()
}

#[test]
fn a_backup_that_does_not_end_well_leaves_no_snapshot() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(MARIADB_TABLES)?;
    let programs = world.servers.path("programs");
    fs::create_dir(&programs)?;
    let path = format!(
        "{}:{}",
        programs.display(),
        std::env::var("PATH").context("no PATH")?
    );
    let real = output(Command::new("sh").args(["-c", "command -v mariadb-backup"]))?;
    let real = real.trim();
    // Each of them has written enough to be taken for a backup by who doesn't look.
    for (script, words) in [
        (
            format!("{real} \"$@\" | head -c 9000000"),
            &["no whole backup", "at byte"][..],
        ),
        (
            format!("{real} \"$@\"; exit 1"),
            &["mariadb-backup failed", "exit status: 1"],
        ),
        (
            format!("{real} \"$@\"; kill -9 $$"),
            &["mariadb-backup failed", "signal: 9"],
        ),
        (
            format!("{real} \"$@\" | tr b c"),
            &["no whole backup", "at byte"],
        ),
        (
            format!("{real} \"$@\" --no-such-option"),
            &["mariadb-backup failed", "no-such-option"],
        ),
    ] {
        let program = programs.join("mariadb-backup");
        fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let mut command = world.backup_command(&server, "--mariadb");
        let ended = world.start(command.env("PATH", &path))?.wait()?;
        ended.refused(words).with_context(|| script)?;
        fs::remove_file(&program)?;
    }
    // It waits for a lock when it is interrupted, whose end the server notices; killed, when it writes on.
    let waiting = "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting%'";
    let connections = |which: &str| {
        format!(
            "SELECT count(*) FROM information_schema.processlist \
             WHERE id <> connection_id() AND user <> 'system user' AND info {which}"
        )
    };
    for signal in [Signal::INT, Signal::KILL] {
        let _locking = server.client("LOCK TABLES app.fixed WRITE; DO sleep(600);")?;
        server.says(&connections("LIKE 'DO sleep%'"), "1")?;
        let job = world.start(&mut world.backup_command(&server, "--mariadb"))?;
        server.says(waiting, "1")?;
        job.signal(signal)?;
        let ended = job.wait()?;
        ensure!(ended.code() != 0, "{ended}");
        if signal == Signal::INT {
            server.says(waiting, "0")?;
        }
        let holder = "SELECT id FROM information_schema.processlist WHERE info LIKE 'DO sleep%'";
        server.sql(&format!("KILL {}", server.sql(holder)?))?;
        server.says(&connections("IS NOT NULL"), "0")?;
    }
    ensure!(world.snapshots()?.is_empty());
    server.stop()
}

#[test]
fn credentials_come_from_option_files_and_few_rights_are_enough() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(MARIADB_TABLES)?;
    server.sql(
        "CREATE USER backup@localhost IDENTIFIED BY 'secret';
         GRANT RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR ON *.* TO backup@localhost",
    )?;
    let options = world.system.path("backup.cnf");
    let backup = |what: &str, password: &str| -> Result<Ended> {
        let socket = server.socket();
        let text = format!(
            "[client]\nuser=backup\npassword={password}\nsocket={}\n",
            socket.display()
        );
        fs::write(&options, text)?;
        fs::set_permissions(&options, Permissions::from_mode(0o600))?;
        let options = options.display().to_string();
        world.run(&["backup", what, "--defaults-file", &options])
    };
    backup("--mariadb", "wrong")?.refused(&["mariadb failed", "access denied"])?;
    for what in ["--mariadb", "--mariadb-binlogs"] {
        let done = backup(what, "secret")?.success()?;
        ensure!(!done.text().contains("secret"), "{done}");
    }
    // What is purged before it is in a backup is missed.
    backup("--mariadb-binlogs", "secret")?.success()?;
    server.purge_binlogs()?;
    let gap = backup("--mariadb-binlogs", "secret")?;
    ensure!(gap.code() == 3 && gap.text().contains("purged"), "{gap}");
    let snapshots = world.snapshots()?;
    ensure!(snapshots.len() == 4 && !format!("{snapshots:?}").contains("secret"));
    server.stop()
}

#[test]
fn a_logical_dump_is_a_commands_output() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(MARIADB_TABLES)?;
    server.sql("USE app; INSERT INTO one SELECT seq, 'x' FROM seq_1_to_100")?;
    let socket = format!("--socket={}", server.socket().display());
    world
        .run(&[
            "backup",
            "--command",
            "app.sql",
            "--",
            "mariadb-dump",
            "--no-defaults",
            &socket,
            "--single-transaction",
            "--databases",
            "app",
        ])?
        .success()?;
    server.sql("DROP DATABASE app")?;
    world
        .run(&[
            "dump",
            "latest:/app.sql",
            "--",
            "mariadb",
            "--no-defaults",
            &socket,
        ])?
        .success()?;
    ensure!(server.sql("SELECT count(*) FROM app.one")? == "100");
    server.stop()
}
