//! Servers of MariaDB that are brought back to a moment, begun again, and read by the keys of the machine that restores them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{MARIADB_TABLES, MariadbWorld, Process, Server, output, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Makes a table for what is written at which moment.
const LOG: &str = "CREATE DATABASE app; CREATE TABLE app.log (id INT PRIMARY KEY)";

/// Which rows it has.
fn log(server: &Server) -> Result<String> {
    server.sql("SELECT coalesce(group_concat(id ORDER BY id), '') FROM app.log")
}

/// A backup of a server, which has the first row then; its snapshot.
fn backup(world: &MariadbWorld, server: &Server) -> Result<String> {
    let document = world.backup(server, "--mariadb")?.success()?.json()?;
    let id = document["snapshot"].as_str().context("no snapshot")?;
    Ok(id.to_owned())
}

fn insert(server: &Server, id: u8) -> Result<()> {
    let row = format!("INSERT INTO app.log VALUES ({id})");
    server.sql(&row).map(drop)
}

/// A second, as a moment to come to.
fn time(second: i64) -> Result<String> {
    let at = format!("@{second}");
    let time = output(Command::new("date").args(["-u", "-d", &at, "+%F %TZ"]))?;
    Ok(format!("time={}", time.trim()))
}

#[test]
fn one_command_brings_a_restored_server_to_a_moment() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(LOG)?;
    insert(&server, 1)?;
    let snapshot = backup(&world, &server)?;
    insert(&server, 2)?;
    world.backup(&server, "--mariadb-binlogs")?.success()?;
    insert(&server, 3)?;
    // The second that begins after this row and before the next one.
    let noon: i64 = server.sql("SELECT unix_timestamp() + 1")?.parse()?;
    server.says(&format!("SELECT unix_timestamp() >= {noon}"), "1")?;
    insert(&server, 4)?;
    let status = server.sql("SHOW MASTER STATUS")?;
    let place: Vec<_> = status.split('\t').take(2).collect();
    let place = format!("position={}", place.join(":"));
    insert(&server, 5)?;
    server.sql("FLUSH BINARY LOGS")?;
    insert(&server, 6)?;
    world.backup(&server, "--mariadb-binlogs")?.success()?;
    server.stop()?;

    for (until, rows, count) in [
        (time(noon)?.as_str(), "1,2,3", 3),
        (&place, "1,2,3,4", 2),
        ("latest", "1,2,3,4,5,6", 3),
    ] {
        let name = format!("to-{rows}");
        let mut restored = world.restored(&snapshot, &name)?;
        ensure!(log(&restored)? == "1");
        let done = world.mariadb(&restored, &["replay", &snapshot, "--until", until])?;
        let done = done.success()?.json()?;
        ensure!(log(&restored)? == rows, "{until}: {done}");
        let files = done["files"].as_array().map(Vec::len);
        ensure!(files == Some(count), "{until}: {done}");
        restored.check()?;
        restored.stop()?;
    }
    Ok(())
}

#[test]
fn a_moment_is_one_in_the_order_of_what_was_written() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&["--max-binlog-size=4096"])?;
    server.sql(LOG)?;
    server.sql("CREATE TABLE app.long_ones (content TEXT)")?;
    insert(&server, 1)?;
    let snapshot = backup(&world, &server)?;
    // The next binary log begins with this one's end, and says that it was begun when this one was.
    let long = server.client(
        "INSERT INTO app.long_ones SELECT repeat('x', 8000) FROM (SELECT sleep(5)) AS slept",
    )?;
    server.says(
        "SELECT count(*) FROM information_schema.processlist WHERE state = 'User sleep'",
        "1",
    )?;
    let noon: i64 = server.sql("SELECT unix_timestamp() + 1")?.parse()?;
    server.says(&format!("SELECT unix_timestamp() >= {noon}"), "1")?;
    insert(&server, 2)?;
    long.wait()?.success()?;
    insert(&server, 3)?;
    server.sql("FLUSH BINARY LOGS")?;
    world.backup(&server, "--mariadb-binlogs")?.success()?;
    server.stop()?;

    let mut restored = world.restored(&snapshot, "restored")?;
    let until = time(noon)?;
    world
        .mariadb(&restored, &["replay", &snapshot, "--until", &until])?
        .success()?;
    ensure!(log(&restored)? == "1");
    restored.stop()
}

#[test]
fn a_replay_that_would_go_wrong_is_refused_before_it_begins() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(LOG)?;
    server.sql(
        "CREATE USER few@localhost IDENTIFIED BY 'secret'; GRANT ALL ON app.* TO few@localhost",
    )?;
    insert(&server, 1)?;
    let before: i64 = server.sql("SELECT unix_timestamp() - 60")?.parse()?;
    let snapshot = backup(&world, &server)?;
    insert(&server, 2)?;
    insert(&server, 3)?;
    world.backup(&server, "--mariadb-binlogs")?.success()?;
    let later = backup(&world, &server)?;

    let mut restored = world.restored(&snapshot, "restored")?;
    let replay = |server: &Server, snapshot: &str, until: &str| {
        world.mariadb(server, &["replay", snapshot, "--until", until])
    };
    replay(&server, &snapshot, "latest")?.refused(&["was not restored by", "--socket"])?;
    replay(&restored, &later, "latest")?.refused(&["was restored from snapshot", &snapshot])?;
    replay(&restored, &snapshot, "time=2099-01-01 00:00:00Z")?
        .refused(&["don't come to", "in no backup yet"])?;
    replay(&restored, &snapshot, &time(before)?)?
        .refused(&["before the backup", "older backup"])?;
    let few = world.system.path("few.cnf");
    let socket = restored.socket();
    let socket = socket.display();
    fs::write(
        &few,
        format!("[client]\nuser=few\npassword=secret\nsocket={socket}\n"),
    )?;
    let few = few.display().to_string();
    let words = ["mariadb", "replay", &snapshot, "--until", "latest"];
    world
        .run(&[&words[..], &["--defaults-file", &few]].concat())?
        .refused(&["mariadb failed", "BINLOG REPLAY"])?;

    // None of these has begun. Where a statement fails nothing after it is done, and none is done again.
    ensure!(log(&restored)? == "1");
    insert(&restored, 3)?;
    // Whatever its option files say.
    let forced = world.system.path("forced.cnf");
    fs::write(
        &forced,
        format!("[client]\nsocket={socket}\n[mysql]\nforce\n"),
    )?;
    let forced = forced.display().to_string();
    world
        .run(&[&words[..], &["--defaults-file", &forced]].concat())?
        .refused(&["mariadb failed", "Duplicate entry"])?;
    ensure!(log(&restored)? == "1,2,3");
    replay(&restored, &snapshot, "latest")?.refused(&["did not end", "empty directory again"])?;
    restored.stop()?;
    let mut restored = world.restored(&snapshot, "again")?;
    replay(&restored, &snapshot, "latest")?.success()?;
    replay(&restored, &snapshot, "latest")?.refused(&["replayed", "before", "which ended"])?;
    restored.stop()?;
    server.stop()
}

#[test]
fn missing_binary_logs_are_named_and_nothing_is_replayed_past_them() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(LOG)?;
    let newest = || -> Result<String> {
        let status = server.sql("SHOW MASTER STATUS")?;
        Ok(status.split('\t').next().context("no file")?.to_owned())
    };
    insert(&server, 1)?;
    let snapshot = &backup(&world, &server)?;
    let status = |server: &Server| -> Result<Value> {
        let mut document = world.mariadb(server, &["status"])?.success()?.json()?;
        Ok(document["servers"][0].take())
    };
    let none = status(&server)?;
    ensure!(
        none["windows"] == json!([]) && none["unarchived"]["files"] == 1,
        "{none}"
    );
    insert(&server, 2)?;
    // What is committed before a second that a backup of them begins after.
    let second = server.sql("SELECT unix_timestamp()")?;
    server.says(&format!("SELECT unix_timestamp() > {second}"), "1")?;
    world.backup(&server, "--mariadb-binlogs")?.success()?;
    let lost = newest()?;
    server.purge_binlogs()?;
    insert(&server, 3)?;
    let gap = world.backup(&server, "--mariadb-binlogs")?;
    ensure!(gap.code() == 3 && gap.text().contains("purged"), "{gap}");
    insert(&server, 4)?;

    let told = status(&server)?;
    ensure!(
        told["missing"] == json!([{ "first": lost, "last": lost, "files": 1 }]),
        "{told}"
    );
    ensure!(
        told["windows"]
            .as_array()
            .is_some_and(|windows| windows.len() == 1),
        "{told}"
    );
    ensure!(
        told["newest_binlog"]["lag_seconds"].as_u64().is_some(),
        "{told}"
    );
    ensure!(told["unarchived"]["files"] == 1, "{told}");
    let to = told["windows"][0]["to"].as_str().context("no end")?;

    let mut restored = world.restored(snapshot, "restored")?;
    for until in ["latest", "time=2099-01-01 00:00:00Z"] {
        world
            .mariadb(&restored, &["replay", snapshot, "--until", until])?
            .refused(&["don't come to", &lost, "is in no backup"])?;
    }
    ensure!(log(&restored)? == "1");
    let until = format!("time={to}");
    world
        .mariadb(&restored, &["replay", snapshot, "--until", &until])?
        .success()?;
    ensure!(log(&restored)? == "1,2");
    // It writes on, and counts its own from the first on: they are no part of what was before.
    let of_restored = restored.data.clone();
    restored.stop()?;
    server.stop()?;
    let unasked = world.mariadb(&server, &["status"])?.success()?.json()?;
    ensure!(
        unasked["not_asked"]
            .as_str()
            .is_some_and(|why| why.contains("mariadb failed")),
        "{unasked}"
    );
    fs::remove_dir_all(&server.data)?;
    fs::rename(of_restored, &server.data)?;
    server.start(&["--log-bin=binlog"])?;
    let anew = world.backup(&server, "--mariadb-binlogs")?;
    ensure!(
        anew.code() == 3 && anew.text().contains("begun its binary logs anew"),
        "{anew}"
    );
    server.stop()
}

#[test]
fn a_restore_that_was_killed_is_begun_again() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let mut server = world.servers.server("main")?;
    server.start(&[])?;
    server.sql(MARIADB_TABLES)?;
    server.sql(
        "USE app; INSERT INTO one SELECT seq, concat(md5(rand()), md5(rand()), md5(rand()))
         FROM seq_1_to_300000",
    )?;
    world.backup(&server, "--mariadb")?.success()?;
    server.stop()?;
    let target = world.servers.path("restored");
    let words = target.display().to_string();
    let start = |path: Option<&str>| {
        let mut command = world.system.client_command(&world.client);
        command.args(["restore", "latest", "--mariadb", "--target", &words]);
        command.envs(path.map(|path| ("PATH", path)));
        world.start(&mut command)
    };
    let kill = |job: Process| -> Result<()> {
        job.signal(Signal::KILL)?;
        job.wait()?;
        ensure!(!target.join("ibdata1").exists(), "it was done already");
        Ok(())
    };

    // While it unpacks.
    let job = start(None)?;
    let unfinished = target.join(".backlane-mariadb");
    until("files are unpacked", || {
        Ok(unfinished.join("ibdata1").exists())
    })?;
    kill(job)?;

    // While mariadb-backup works on them, and when it has done all.
    let programs = world.servers.path("programs");
    fs::create_dir(&programs)?;
    let path = std::env::var("PATH").context("no PATH")?;
    let path = format!("{}:{path}", programs.display());
    let real = output(Command::new("sh").args(["-c", "command -v mariadb-backup"]))?;
    let (real, id) = (real.trim(), world.servers.path("id"));
    for work in [
        format!(
            "echo $$ > {0}.new; mv {0}.new {0}; exec {real} \"$@\"",
            id.display()
        ),
        format!(
            "{real} \"$@\"; echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600",
            id.display()
        ),
    ] {
        let program = programs.join("mariadb-backup");
        let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exit\n{work}\n");
        fs::write(&program, script)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let job = start(Some(&path))?;
        until("mariadb-backup works", || Ok(id.exists()))?;
        kill(job)?;
        // It would write on into what the next one has unpacked.
        let process = format!("/proc/{}/stat", fs::read_to_string(&id)?.trim());
        until("mariadb-backup is gone", || {
            let stat = fs::read_to_string(&process);
            Ok(stat.map_or(true, |stat| stat.contains(") Z ")))
        })?;
        fs::remove_file(&id)?;
        fs::remove_file(&program)?;
    }

    start(None)?.wait()?.success()?;
    let mut restored = world.servers.restored("restored");
    restored.own()?;
    restored.start(&[])?;
    restored.check()?;
    ensure!(restored.sql("SELECT count(*) FROM app.one")? == "300000");
    restored.stop()
}

/// An option file with a key, as servers with encrypted tables have it.
fn key_settings(world: &MariadbWorld, name: &str, key: &str) -> Result<String> {
    let keys = world.servers.path(format!("{name}.keys"));
    fs::write(&keys, format!("1;{key}\n"))?;
    output(Command::new("chown").arg("mysql").arg(&keys))?;
    let settings = world.servers.path(format!("{name}.cnf"));
    let text = format!(
        "[mariadb]\nport=4711\nplugin_load_add=file_key_management\nfile_key_management_filename={}\n",
        keys.display()
    );
    fs::write(&settings, text)?;
    Ok(settings.display().to_string())
}

#[test]
fn compressed_and_encrypted_tables_come_back_by_the_keys_of_the_restoring_machine() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let key = "a7addd9adea9978fda19f21e6be987880e68ac92632ca052e5bb42b1a506939a";
    let theirs = key_settings(&world, "theirs", key)?;
    let ours = key_settings(&world, "ours", key)?;
    let without = key_settings(&world, "without", key)?;
    fs::remove_file(world.servers.path("without.keys"))?;
    let settings = |name: &str| {
        [
            "--plugin-load-add=file_key_management".to_owned(),
            format!(
                "--file-key-management-filename={}",
                world.servers.path(format!("{name}.keys")).display()
            ),
            "--innodb-encrypt-tables=ON".to_owned(),
            "--innodb-encrypt-log=ON".to_owned(),
            "--aria-encrypt-tables=ON".to_owned(),
        ]
    };
    let start = |server: &mut Server, name: &str| {
        let settings = settings(name);
        server.start(&settings.each_ref().map(String::as_str))
    };
    let mut server = world.servers.server("main")?;
    start(&mut server, "theirs")?;
    server.sql(LOG)?;
    server.sql(
        "USE app; INSERT INTO log SELECT seq FROM seq_1_to_1000;
         CREATE TABLE secret (id INT PRIMARY KEY, said TEXT) ENCRYPTED = YES;
         INSERT INTO secret SELECT seq, concat('plain words ', seq) FROM seq_1_to_20000;
         CREATE TABLE small (id INT PRIMARY KEY, said TEXT) PAGE_COMPRESSED = 1;
         INSERT INTO small SELECT seq, repeat(md5(seq), 20) FROM seq_1_to_20000;
         CREATE TABLE closed (said TEXT) ENGINE = Aria ROW_FORMAT = PAGE;
         INSERT INTO closed VALUES ('plain words')",
    )?;
    let sums = "CHECKSUM TABLE app.log, app.secret, app.small, app.closed EXTENDED";
    let before = server.sql(sums)?;
    world.backup(&server, "--mariadb")?.success()?;
    server.stop()?;

    let target = world.servers.path("restored").display().to_string();
    let restore = ["restore", "latest", "--mariadb", "--target", &target];
    // What the backup says of plugins and keys is not believed, and is right here.
    let refused = world.run(&restore)?;
    refused.refused(&["file_key_management", "--key-settings", "plugin_load_add"])?;
    world
        .run(&[&restore[..], &["--key-settings", &world.defaults]].concat())?
        .refused(&["empty.cnf", "names no plugin", "file_key_management"])?;
    world
        .run(&[&restore[..], &["--key-settings", &without]].concat())?
        .refused(&["mariadb-backup failed"])?;
    // The keys are where the restoring machine has them, and not where the backup says.
    fs::remove_file(world.servers.path("theirs.keys"))?;
    fs::remove_file(&theirs)?;
    world
        .run(&[&restore[..], &["--key-settings", &ours]].concat())?
        .success()?;
    let mut restored = world.servers.restored("restored");
    restored.own()?;
    start(&mut restored, "ours")?;
    restored.check()?;
    ensure!(restored.sql(sums)? == before);
    let encrypted = "SELECT encryption_scheme FROM information_schema.innodb_tablespaces_encryption \
        WHERE name = 'app/secret'";
    ensure!(restored.sql(encrypted)? == "1");
    let create = restored.sql("SHOW CREATE TABLE app.small")?;
    // Later versions write it in quotes.
    let create = create.replace('\'', "");
    ensure!(create.contains("`PAGE_COMPRESSED`=1"), "{create}");
    restored.stop()
}

/// The plugin that decompresses pages by LZ4, as a setting of a server, if it is installed.
fn lz4() -> Option<[&'static str; 2]> {
    let directories = ["/usr/lib/mysql/plugin", "/usr/lib64/mysql/plugin"];
    let is_there = |directory: &&str| Path::new(directory).join("provider_lz4.so").exists();
    let found = directories.iter().find(|directory| is_there(directory));
    found.map(|_| {
        [
            "--plugin-load-add=provider_lz4",
            "--innodb-compression-algorithm=lz4",
        ]
    })
}

#[test]
fn plugins_that_decompress_and_undo_files_elsewhere_are_no_hindrance() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let undo = world.servers.directory("undo")?.display().to_string();
    let undo = format!("--innodb-undo-directory={undo}");
    let lz4 = lz4();
    if lz4.is_none() {
        eprintln!("not tried with provider_lz4, which Debian's mariadb-plugin-provider-lz4 has");
    }
    let lz4 = lz4.as_ref().map_or(&[][..], |lz4| &lz4[..]);
    let mut server = world.servers.server("main")?;
    server.start(&[lz4, &[&undo]].concat())?;
    server.sql(LOG)?;
    server.sql(
        "USE app; CREATE TABLE small (id INT PRIMARY KEY, said TEXT) PAGE_COMPRESSED = 1;
         INSERT INTO small SELECT seq, repeat(md5(seq), 20) FROM seq_1_to_20000",
    )?;
    let sums = "CHECKSUM TABLE app.log, app.small EXTENDED";
    let before = server.sql(sums)?;
    world.backup(&server, "--mariadb")?.success()?;
    server.stop()?;
    let target = world.servers.path("restored").display().to_string();
    world
        .run(&["restore", "latest", "--mariadb", "--target", &target])?
        .success()?;
    let mut restored = world.servers.restored("restored");
    restored.own()?;
    restored.start(lz4)?;
    restored.check()?;
    ensure!(restored.sql(sums)? == before);
    restored.stop()
}

#[test]
fn encrypted_binary_logs_are_named_when_they_are_archived() -> Result<()> {
    let Some(world) = MariadbWorld::new()? else {
        return Ok(());
    };
    let key = "a7addd9adea9978fda19f21e6be987880e68ac92632ca052e5bb42b1a506939a";
    key_settings(&world, "keys", key)?;
    let keys = world.servers.path("keys.keys").display().to_string();
    let mut server = world.servers.server("main")?;
    server.start(&[
        "--plugin-load-add=file_key_management",
        &format!("--file-key-management-filename={keys}"),
        "--encrypt-binlog=ON",
    ])?;
    let ended = world.backup(&server, "--mariadb-binlogs")?;
    ensure!(
        ended.code() == 3 && ended.text().contains("encrypt_binlog=off"),
        "{ended}"
    );
    server.stop()
}
