//! What survives when the server's process is killed, or its disk is full; and what stock tools say of the result.

use crate::common::{HOST, audit, config, get, name_of, put, put_as, repository, server, session};
use backlane_net::service::ServiceError;
use backlane_proto::{ObjectKind, ObjectName};
use backlane_server::{Leave, ServerState};
use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Set for the process that is killed: the directory of its server.
const CHILD: &str = "BACKLANE_TEST_CRASH_CHILD";
/// Set for the process that is traced: the directory of its server.
const TRACED_CHILD: &str = "BACKLANE_TEST_TRACED_CHILD";
const KILLS: u32 = 8;

/// Object number `n` of a run; sizes differ, so that kills hit every stage.
fn body(run: u32, n: u32) -> Vec<u8> {
    let mut body = vec![0; usize::try_from(n % 7).unwrap() * 60_000 + 10];
    body[..8].copy_from_slice(&(u64::from(run) << 32 | u64::from(n)).to_le_bytes());
    body
}

/// The process that is killed: puts objects for ever, from four tasks, and says which it was told are done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_that_puts_until_it_is_killed() {
    let Ok(child) = env::var(CHILD) else {
        return; // Started by the test runner: there is nothing to do.
    };
    let (run, directory) = child.split_once(':').unwrap();
    let run: u32 = run.parse().unwrap();
    let config = config(Path::new(directory));
    let state = std::sync::Arc::new(ServerState::open(config).await.unwrap());
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let state = std::sync::Arc::clone(&state);
            tokio::spawn(async move {
                let session = session(&state).await;
                for n in (task..).step_by(4) {
                    let name = put(&*session, ObjectKind::Pack, &body(run, n))
                        .await
                        .unwrap();
                    let line = format!("done {n} {}\n", name.id);
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Runs the child until it has acknowledged `acknowledged` objects, kills it, and returns all that it acknowledged.
fn run_and_kill(directory: &Path, run: u32, acknowledged: usize) -> Vec<u32> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::child_that_puts_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD, format!("{run}:{}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut done = Vec::new();
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test runner's own words share the line of the first.
        if let Some((_, rest)) = line.split_once("done ") {
            let (n, id) = rest.split_once(' ').unwrap();
            let n = n.parse().unwrap();
            assert_eq!(id, name_of(ObjectKind::Pack, &body(run, n)).id.to_string());
            done.push(n);
        }
        if done.len() >= acknowledged && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    assert!(killed, "the child ended by itself");
    child.wait().unwrap();
    done
}

#[tokio::test]
async fn kill_at_any_point_leaves_whole_objects_and_all_that_were_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    drop(server(directory.path()).await);
    let mut acknowledged: Vec<ObjectName> = Vec::new();
    for run in 0..KILLS {
        let done = run_and_kill(directory.path(), run, usize::try_from(run * 3).unwrap() + 1);
        acknowledged.extend(
            done.iter()
                .map(|n| name_of(ObjectKind::Pack, &body(run, *n))),
        );
        let temporary = || {
            fs::read_dir(repository(directory.path()).join("tmp"))
                .unwrap()
                .count()
        };
        println!(
            "run {run}: {} acknowledged, {} temporary",
            done.len(),
            temporary()
        );

        let state = ServerState::open(config(directory.path())).await.unwrap();
        let session = session(&state).await;
        assert_eq!(temporary(), 0, "opening has swept");
        let listed = session.list(ObjectKind::Pack).await.unwrap();
        for object in &listed {
            let name = ObjectName {
                kind: ObjectKind::Pack,
                id: object.id,
            };
            let found = get(&*session, name, None).await.unwrap();
            assert_eq!(name_of(ObjectKind::Pack, &found), name);
        }
        for name in &acknowledged {
            assert!(
                listed.iter().any(|object| object.id == name.id),
                "{name} is lost"
            );
        }
    }
}

/// The process that is traced: puts two objects.
#[tokio::test]
async fn child_that_puts_two_objects() {
    let Ok(directory) = env::var(TRACED_CHILD) else {
        return; // Started by the test runner: there is nothing to do.
    };
    let config = config(Path::new(&directory));
    let state = ServerState::open(config).await.unwrap();
    let session = session(&state).await;
    // The database syncs its log when it begins one, whatever it does later: the second put is the witness.
    put(&*session, ObjectKind::Pack, b"first").await.unwrap();
    put(&*session, ObjectKind::Pack, b"traced").await.unwrap();
    fs::write(Path::new(&directory).join("acknowledged"), b"").unwrap();
}

#[tokio::test]
async fn object_is_acknowledged_after_file_record_name_and_directory_are_durable() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    drop(session(&state).await); // Makes the directories, so that their syncs are not seen below.
    drop(state);
    let trace = directory.path().join("trace");
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=fsync,fdatasync,renameat2,openat,open",
            "-o",
        ])
        .arg(&trace)
        .arg(env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_puts_two_objects"])
        .env(TRACED_CHILD, directory.path())
        .output();
    if !matches!(&output, Ok(output) if output.status.success()) {
        eprintln!("SKIPPED: strace can't trace here: {output:?}");
        return;
    }
    let trace = fs::read_to_string(trace).unwrap();
    let first = name_of(ObjectKind::Pack, b"first").id.to_string();
    let name = name_of(ObjectKind::Pack, b"traced").id.to_string();
    let shard = format!("data/{}>", &name[..2]);
    let mut lines = trace.lines();
    let mut next = |what: &str, parts: &[&str]| {
        let found = lines.find(|line| parts.iter().all(|part| line.contains(part)));
        assert!(
            found.is_some(),
            "{what} is missing, or comes too early:\n{trace}"
        );
    };
    next("rename of the first", &["renameat2(", &first]);
    next("sync of the file", &["fsync(", "web1/tmp/"]);
    next("sync of the record", &["sync(", "server.db-wal>"]);
    next("rename", &["renameat2(", &name, "RENAME_NOREPLACE"]);
    next("sync of the directory", &["fsync(", &shard]);
    next("acknowledgement", &["open", "acknowledged"]);
}

/// A file system of 4 MiB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: PathBuf) -> Option<Self> {
        fs::create_dir_all(&directory).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(&directory)
            .status();
        match status {
            Ok(status) if status.success() => Some(Self(directory)),
            found => {
                eprintln!("SKIPPED: a tmpfs can't be mounted here: {found:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

#[tokio::test]
async fn full_disk_is_named_and_the_next_put_that_fits_works() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path().join("data")) else {
        return;
    };
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let is_full = |error: &ServiceError| match error {
        ServiceError::Full(place) => place.starts_with(&disk.0.display().to_string()),
        _ => false,
    };
    let error = put(&*session, ObjectKind::Pack, &vec![1; 5 << 20])
        .await
        .unwrap_err();
    assert!(is_full(&error), "{error}");

    // Room that goes between the announcement and the body is not ours to lose: it was taken when announced.
    let body = vec![2; 1 << 20];
    let name = name_of(ObjectKind::Pack, &body);
    let contents = backlane_proto::PackContents::Data;
    let mut sink = session
        .put(name, contents, body.len() as u64)
        .await
        .unwrap();
    let ballast = disk.0.join("ballast");
    let filled = fs::write(&ballast, vec![0; 4 << 20]);
    assert!(filled.is_err(), "the disk is full now");
    sink.write(body.clone().into()).await.unwrap();
    sink.commit().await.unwrap();

    let error = put(&*session, ObjectKind::Index, &[3; 100_000])
        .await
        .unwrap_err();
    assert!(is_full(&error), "{error}");
    fs::remove_file(ballast).unwrap();
    put(&*session, ObjectKind::Index, &[3; 100_000])
        .await
        .unwrap();
    assert_eq!(get(&*session, name, None).await.unwrap(), body);
    assert_eq!(session.list(ObjectKind::Pack).await.unwrap().len(), 1);
    let temporary = repository(directory.path()).join("tmp");
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0);
}

#[tokio::test]
async fn full_disk_of_the_state_refuses_the_object_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path().join("state")) else {
        return;
    };
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let ballast = disk.0.join("ballast");
    assert!(
        fs::write(&ballast, vec![0; 4 << 20]).is_err(),
        "the disk is full now"
    );
    // The log has some room of its own; it is used up soon.
    let mut n = 0_u32;
    let error = loop {
        n += 1;
        assert!(n < 10_000, "the state needs no room");
        if let Err(error) = put(&*session, ObjectKind::Index, &n.to_le_bytes()).await {
            break error;
        }
    };
    let place = disk.0.display().to_string();
    assert!(
        matches!(&error, ServiceError::Full(found) if *found == place),
        "{error}"
    );
    let name = name_of(ObjectKind::Index, &n.to_le_bytes());
    let refused = get(&*session, name, None).await.unwrap_err();
    assert!(matches!(refused, ServiceError::NotFound(_)), "{refused}");
    fs::remove_file(ballast).unwrap();
    put(&*session, ObjectKind::Index, &n.to_le_bytes())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_audit_log_could_not_take_is_not_done_and_is_recorded_the_next_time() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let data = put(&*session, ObjectKind::Pack, b"file contents");
    let data = data.await.unwrap();
    let (log, away) = (
        directory.path().join("state/audit.jsonl"),
        directory.path().join("state/away"),
    );
    // A directory takes no line.
    let close = || {
        fs::rename(&log, &away).unwrap();
        fs::create_dir(&log).unwrap();
    };
    let open = || {
        fs::remove_dir(&log).unwrap();
        fs::rename(&away, &log).unwrap();
    };
    for event in ["restore-used", "call-refused"] {
        close();
        for _ in 0..2 {
            let failed = get(&*session, data, None).await.unwrap_err();
            assert!(matches!(failed, ServiceError::Failed(_)), "{failed}");
        }
        open();
        for _ in 0..2 {
            let read = get(&*session, data, None).await;
            assert_eq!(read.is_ok(), event == "restore-used", "{read:?}");
        }
        assert_eq!(audit(&state, event).len(), 1, "{event}");
        let host = HOST.parse().unwrap();
        state.revoke_leave(&host, Leave::Restore).await.unwrap();
    }
}

/// Runs stock restic on a repository; `None` if there is none on this machine.
fn restic(repository: &Path, cache: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("restic")
        .arg("--repo")
        .arg(repository)
        .args(arguments)
        .env("RESTIC_PASSWORD", "secret")
        .env("RESTIC_CACHE_DIR", cache)
        .output();
    match output {
        Err(error) => {
            eprintln!("SKIPPED: restic can't be run: {error}");
            None
        }
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{arguments:?}: {error}");
            Some(output.stdout)
        }
    }
}

#[tokio::test]
async fn stock_restic_opens_a_repository_whose_objects_were_put_here() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, cache) = (
        directory.path().join("theirs"),
        directory.path().join("cache"),
    );
    let file = directory.path().join("file");
    fs::write(&file, b"some content").unwrap();
    let Some(_) = restic(&theirs, &cache, &["init"]) else {
        return;
    };
    restic(&theirs, &cache, &["backup", file.to_str().unwrap()]).unwrap();

    let state = server(directory.path()).await;
    let session = session(&state).await;
    // Keys come before the config, as every tool that makes a repository has it.
    for (kind, place) in [
        (ObjectKind::Key, "keys"),
        (ObjectKind::Index, "index"),
        (ObjectKind::Snapshot, "snapshots"),
        (ObjectKind::Pack, "data"),
    ] {
        let mut directories = vec![theirs.join(place)];
        let mut objects = 0;
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let body = fs::read(&path).unwrap();
                    let name = name_of(kind, &body);
                    assert!(path.ends_with(name.id.to_string()));
                    put_as(&*session, name, &body).await.unwrap();
                    objects += 1;
                }
            }
        }
        assert_eq!(session.list(kind).await.unwrap().len(), objects);
    }
    let config = fs::read(theirs.join("config")).unwrap();
    put(&*session, ObjectKind::Config, &config).await.unwrap();
    // A session is open and something is being written: stock tools see neither.
    let name = name_of(ObjectKind::Pack, b"later");
    let contents = backlane_proto::PackContents::Data;
    let sink = session.put(name, contents, 5).await.unwrap();
    let ours = repository(directory.path());
    restic(&ours, &cache, &["--no-lock", "check", "--read-data"]).unwrap();
    let path = file.to_str().unwrap();
    let dumped = restic(&ours, &cache, &["--no-lock", "dump", "latest", path]);
    assert_eq!(dumped.unwrap(), b"some content");
    drop(sink);
}
