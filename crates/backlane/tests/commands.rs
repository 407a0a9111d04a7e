//! Commands on a repository that the demo left behind: the real binary against a real server.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
};

fn backlane(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_backlane"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a command that is to succeed, and takes its document.
#[track_caller]
fn document(config: &Path, arguments: &[&str]) -> Value {
    let output = backlane(config, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a command that is to do what can be done and exit with `code`, and takes its document and what it said.
#[track_caller]
fn warned(config: &Path, arguments: &[&str], code: i32) -> (Value, String) {
    let output = backlane(config, &[&["--json"], arguments].concat());
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    let said = String::from_utf8(output.stderr).unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

/// Runs a command that is to fail, and takes what it says.
#[track_caller]
fn refusal(config: &Path, arguments: &[&str]) -> String {
    let output = backlane(config, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A server that ends when this is dropped.
struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Server {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_backlane"))
            .arg("--config")
            .arg(config)
            .args(["server", "run", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("serving on "), "{line}");
        let stdin = child.stdin.take();
        Self { child, stdin }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stdin.take();
        let status = self.child.wait().unwrap();
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

/// What a demo with `--keep` leaves in `directory`.
fn kept_demo(directory: &Path) -> PathBuf {
    let output = Command::new(env!("CARGO_BIN_EXE_backlane"))
        .args([
            "demo",
            "--keep",
            "--size",
            "2M",
            "--pool-size",
            "64M",
            "--dir",
        ])
        .arg(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read_dir(directory)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

#[test]
fn kept_demo_can_be_looked_around_in_and_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let (server, client) = (kept.join("server.toml"), kept.join("client.toml"));
    let running = Server::start(&server);
    let old = look_around(&client, &kept);
    drop(running);
    // Nothing answers any more, and the failure says where nothing did.
    let said = refusal(&client, &["snapshots"]);
    assert!(
        said.contains("127.0.0.1:") && said.contains("server run"),
        "{said}"
    );
    maintain(&server, &kept, &old);
}

/// Every command that reads; returns the older of the two snapshots.
fn look_around(client: &Path, kept: &Path) -> String {
    let source = kept.join("source");
    let source = source.to_str().unwrap();
    let listed = document(client, &["snapshots"]);
    let snapshots = listed["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 2, "{listed}");
    let old = snapshots[0]["id"].as_str().unwrap();
    let entries = document(client, &["ls", &format!("latest:{source}/mail/0")]);
    let names: Vec<_> = entries["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["path"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&format!("{source}/mail/0/new").as_str()),
        "{names:?}"
    );
    assert!(
        !names.contains(&format!("{source}/mail/0/1").as_str()),
        "{names:?}"
    );

    let found = document(client, &["find", "today.log"]);
    assert_eq!(found["matches"].as_array().unwrap().len(), 1, "{found}");
    let changes = document(client, &["diff", old, "latest"]);
    let change = |path: &str| {
        let path = format!("{source}/{path}");
        let mut all = changes["changes"].as_array().unwrap().iter();
        all.find(|change| change["path"] == path.as_str())
            .map(|change| change["change"].clone())
    };
    assert_eq!(change("mail/0/new").unwrap(), "added", "{changes}");
    assert_eq!(change("mail/0/1").unwrap(), "removed", "{changes}");
    assert_eq!(change("media/0.bin").unwrap(), "content", "{changes}");

    let dumped = backlane(
        client,
        &["dump", &format!("latest:{source}/logs/today.log")],
    );
    assert_eq!(
        dumped.stdout,
        fs::read(kept.join("source/logs/today.log")).unwrap()
    );
    assert_eq!(document(client, &["check", "--read-data"])["clean"], true);

    let said = refusal(
        client,
        &["restore", "latest:/nowhere", "--target", "/nonexistent"],
    );
    assert!(
        said.contains("/nowhere") && said.contains("hint: "),
        "{said}"
    );
    let said = refusal(
        client,
        &[
            "snapshots",
            "--route",
            "require-storage",
            "--config",
            "/x.toml",
        ],
    );
    assert!(said.contains("/x.toml"), "{said}");
    old.to_owned()
}

/// Removal, by the server's administrator.
fn maintain(server: &Path, kept: &Path, old: &str) {
    let key = kept.join("client/repository.key");
    let key = key.to_str().unwrap();
    let maintain = ["--host", "demo-host", "--key-file", key];
    let forgotten = document(
        server,
        &[&["forget", old, "--prune"], &maintain[..]].concat(),
    );
    assert_eq!(
        forgotten["decisions"].as_array().unwrap().len(),
        1,
        "{forgotten}"
    );
    assert_eq!(forgotten["decisions"][0]["keep"], false);
    let pruned = document(server, &[&["prune"], &maintain[..]].concat());
    assert_eq!(pruned["dry_run"], false);
    let wrong = kept.join("wrong.key");
    fs::copy(key, &wrong).unwrap();
    fs::write(&wrong, "not the key\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    let said = refusal(
        server,
        &["prune", "--host", "demo-host", "--key-file", wrong],
    );
    assert!(said.contains("demo-host") && said.contains("key"), "{said}");
    let hosts = document(server, &["server", "hosts"]);
    assert_eq!(hosts["hosts"][0]["name"], "demo-host", "{hosts}");
}

#[test]
fn keys_are_added_removed_and_put_in_escrow_by_the_servers_administrator() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let server = kept.join("server.toml");
    let path = |name: &str| kept.join(name).to_str().unwrap().to_owned();
    let (old, new, third) = (
        path("client/repository.key"),
        path("new.key"),
        path("third.key"),
    );
    let with = |words: &[&str], file: Option<&str>| -> Vec<String> {
        let key_file = file.map(|file| ["--key-file", file]);
        let all = words.iter().chain(&["--host", "demo-host"]);
        let all = all.copied().chain(key_file.into_iter().flatten());
        all.map(str::to_owned).collect()
    };
    let done = |words: &[&str], file: Option<&str>| {
        let all = with(words, file);
        document(&server, &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = |words: &[&str], file: Option<&str>, told: &[&str]| {
        let all = with(words, file);
        let said = refusal(&server, &all.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(told.iter().all(|word| said.contains(word)), "{said}");
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;

    for words in [&["prune"][..], &["key", "list"]] {
        refused(words, None, &["demo-host", "--key-file", "key escrow"]);
    }
    let listed = done(&["key", "list"], Some(&old));
    let first = listed["keys"][0]["id"].as_str().unwrap();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(
        (&listed["escrow"], &listed["keys"][0]["is_open"]),
        (&false.into(), &true.into())
    );
    refused(
        &["key", "remove", first],
        Some(&old),
        &["the only one", "key add"],
    );

    let added = done(&["key", "add", "--new-key-file", &new], Some(&old));
    let second = added["key"].as_str().unwrap();
    assert_eq!(mode(Path::new(&new)), 0o600);
    assert_ne!(fs::read(&new).unwrap(), fs::read(&old).unwrap());
    refused(
        &["key", "add", "--new-key-file", &new],
        Some(&old),
        &["new.key", "exists"],
    );
    let listed = done(&["key", "list"], Some(&new));
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2, "{listed}");
    refused(
        &["key", "remove", second],
        Some(&new),
        &["opened with", "key add"],
    );
    assert_eq!(done(&["key", "remove", first], Some(&new))["key"], first);
    refused(&["key", "list"], Some(&old), &["wrong password"]);

    // Only what opens the repository is kept, and then nothing has to be named.
    refused(&["key", "escrow"], Some(&old), &["wrong password"]);
    let escrowed = done(&["key", "escrow"], Some(&new));
    let place = Path::new(escrowed["path"].as_str().unwrap());
    assert_eq!((mode(place), mode(place.parent().unwrap())), (0o600, 0o700));
    refused(&["key", "escrow"], Some(&new), &["exists", "--remove"]);
    assert_eq!(done(&["key", "list"], None)["escrow"], true);
    assert_eq!(done(&["prune"], None)["dry_run"], false);
    assert_eq!(
        done(&["forget", "--keep-last", "1"], None)["dry_run"],
        false
    );

    done(&["key", "add", "--new-key-file", &third], None);
    let all = with(&["key", "remove", second], Some(&third));
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let (_, said) = warned(&server, &all, 3);
    assert!(said.contains("escrow --remove"), "{said}");
    refused(&["prune"], None, &["key escrow"]);
    assert_eq!(done(&["key", "escrow", "--remove"], None)["escrow"], false);
    refused(&["prune"], None, &["--key-file", "key escrow"]);
    refused(
        &["key", "escrow", "--remove"],
        None,
        &["demo-host", "escrow"],
    );
    done(&["prune"], Some(&third));
}

/// Waits until a file is there, for a minute.
fn wait_for(file: &Path) {
    for _ in 0..600 {
        if file.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{} never came", file.display());
}

/// The snapshots that there are.
fn count(client: &Path) -> usize {
    document(client, &["snapshots"])["snapshots"]
        .as_array()
        .unwrap()
        .len()
}

/// A command that is silent, and one that has closed its output and goes on, are left at a signal to this program alone.
fn leave_silent_commands(client: &Path, mark: &Path) {
    for script in [
        "touch \"$0\"; exec sleep 600",
        "touch \"$0\"; exec sleep 600 >&-",
    ] {
        let mut words = vec!["--config", client.to_str().unwrap()];
        words.extend([
            "backup",
            "--command",
            "x",
            "--",
            "sh",
            "-c",
            script,
            mark.to_str().unwrap(),
        ]);
        let mut backup = Command::new(env!("CARGO_BIN_EXE_backlane"));
        backup
            .args(words)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let backup = backup.spawn().unwrap();
        wait_for(mark);
        let pid = Pid::from_child(&backup);
        kill_process(pid, Signal::INT).unwrap();
        let output = backup.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        fs::remove_file(mark).unwrap();
    }
}

#[test]
fn what_a_command_writes_is_backed_up_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let client = kept.join("client.toml");
    let _running = Server::start(&kept.join("server.toml"));
    let before = count(&client);
    let output = |script: &str| {
        let words = ["backup", "--command", "app.sql", "--", "sh", "-c", script];
        words.map(str::to_owned).to_vec()
    };
    let said = |words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refusal(&client, &words)
    };
    // More than is in flight, and then a failure of each kind; some write nothing at all.
    for (script, word) in [
        ("head -c 20000000 /dev/urandom; exit 7", "exit status: 7"),
        ("head -c 20000000 /dev/zero; kill -9 $$", "signal: 9"),
        ("exit 1", "exit status: 1"),
    ] {
        let said = said(output(script));
        assert!(said.contains(word) && said.contains("sh failed"), "{said}");
        assert_eq!(count(&client), before, "{script} left a snapshot");
    }
    leave_silent_commands(&client, &kept.join("mark"));
    assert_eq!(count(&client), before, "a command that was left");
    let missing = ["backup", "--command", "x", "--", "/no/such/program"];
    let missing = refusal(&client, &missing);
    assert!(missing.contains("/no/such/program"), "{missing}");
    let path = said(
        ["backup", "--command", "a/b", "--", "true"]
            .map(str::to_owned)
            .to_vec(),
    );
    assert!(path.contains("a/b"), "{path}");

    let file = kept.join("stream");
    let script = format!("head -c 5000000 /dev/urandom | tee {}", file.display());
    let words = output(&script);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = document(&client, &words);
    assert!(done["bytes"] == 5_000_000 && done["files"] == 1, "{done}");
    let written = fs::read(&file).unwrap();
    assert_eq!(
        backlane(&client, &["dump", "latest:/app.sql"]).stdout,
        written
    );
    let taken = kept.join("taken");
    let take = format!("cat > {}", taken.display());
    let into = |script: &str| {
        let words = ["dump", "latest:/app.sql", "--", "sh", "-c", script];
        backlane(&client, &words)
    };
    let fed = into(&take);
    assert!(fed.status.success(), "{fed:?}");
    assert_eq!(fs::read(&taken).unwrap(), written);
    for (script, word) in [
        ("cat > /dev/null; exit 9", "exit status: 9"),
        ("exit 0", "before"),
    ] {
        let failed = into(script);
        let said = String::from_utf8(failed.stderr).unwrap();
        assert!(
            failed.status.code() == Some(1) && said.contains(word),
            "{said}"
        );
    }
    // A stream that breaks off never comes to its end for the command.
    let packs = objects(&kept, "demo-host/data").into_iter();
    let newest = packs.max_by_key(|pack| fs::metadata(pack).unwrap().modified().unwrap());
    let pack = newest.unwrap();
    spoil(&pack, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let mark = kept.join("mark");
    let failed = into(&format!("cat > /dev/null; touch {}", mark.display()));
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(!mark.exists(), "half of it was taken for all");
}

fn objects(kept: &Path, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![kept.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            } else if directory.ancestors().any(|above| above.ends_with(folder)) {
                found.push(path);
            }
        }
    }
    found
}

/// Changes an object where it lies, as a bad disk would.
fn spoil(object: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(object).unwrap();
    change(&mut bytes);
    fs::remove_file(object).unwrap();
    fs::write(object, bytes).unwrap();
}

#[test]
fn a_damaged_object_stops_no_command_that_does_not_need_it() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let (server, client) = (kept.join("server.toml"), kept.join("client.toml"));
    let running = Server::start(&server);
    let listed = document(&client, &["snapshots"]);
    assert_eq!(listed["damaged"].as_array().unwrap().len(), 0, "{listed}");
    let id = |at: usize| listed["snapshots"][at]["id"].as_str().unwrap();
    let (old, rotten) = (id(0), id(1));
    let mut snapshots = objects(&kept, "demo-host/snapshots");
    snapshots.retain(|path| path.ends_with(rotten));
    spoil(&snapshots[0], |bytes| bytes[30] ^= 1);
    use_what_is_left(&client, &kept, old, rotten);
    restore_what_is_left(&client, &kept, old);
    drop(running);
    forget_what_is_damaged(&server, &kept, rotten);
}

/// Every command that chooses among snapshots, and a backup.
fn use_what_is_left(client: &Path, kept: &Path, old: &str, rotten: &str) {
    let named = format!("snapshot {rotten}");
    let (listed, said) = warned(client, &["snapshots"], 3);
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["snapshots"][0]["id"], old);
    assert_eq!(listed["damaged"][0]["object"], named.as_str(), "{listed}");
    assert!(said.contains(&named), "{said}");

    let (entries, said) = warned(client, &["ls", "latest"], 3);
    assert_eq!(entries["snapshot"], old);
    assert!(said.contains(&named) && said.contains("newer"), "{said}");
    assert_eq!(document(client, &["ls", old])["snapshot"], old);
    let (found, said) = warned(client, &["find", "0.bin"], 3);
    assert_eq!(found["matches"].as_array().unwrap().len(), 1, "{found}");
    assert!(said.contains(&named), "{said}");
    let (changes, _) = warned(client, &["diff", old, "latest"], 3);
    assert_eq!(changes["changes"].as_array().unwrap().len(), 0, "{changes}");

    let target = kept.join("target");
    let restore = ["restore", "latest", "--target", target.to_str().unwrap()];
    let (restored, said) = warned(client, &restore, 3);
    assert_eq!(restored["snapshot"], old);
    assert_eq!(restored["warnings"]["kinds"]["repository"], 1, "{restored}");
    assert!(said.contains(&named), "{said}");
    // What is newer than the newest readable snapshot is not deleted for it.
    let said = refusal(client, &[&restore[..], &["--delete"]].concat());
    assert!(
        said.contains(&old[..8]) && said.contains("by its id"),
        "{said}"
    );
    let said = refusal(client, &["ls", rotten]);
    assert!(
        said.contains("damaged") && said.contains("backlane forget"),
        "{said}"
    );
    let (report, _) = warned(client, &["check"], 1);
    let errors = report["errors"].as_array().unwrap();
    let names = |error: &&Value| error.as_str().unwrap().contains(&named);
    assert_eq!(errors.iter().filter(names).count(), 1, "{report}");

    let source = kept.join("source");
    let backup = ["backup", source.to_str().unwrap()];
    let done = document(client, &backup);
    assert_eq!(done["parent"], old, "{done}");
}

/// A pack that was cut off at the server costs files, which are named, and not the restore.
fn restore_what_is_left(client: &Path, kept: &Path, old: &str) {
    let mut packs = objects(kept, "demo-host/data");
    packs.sort_by_key(|pack| fs::metadata(pack).unwrap().len());
    let pack = packs.last().unwrap();
    let whole = fs::read(pack).unwrap();
    spoil(pack, |bytes| bytes.truncate(100));
    let id = pack.file_name().unwrap().to_str().unwrap();
    let target = kept.join("what is left");
    let restore = ["restore", old, "--target", target.to_str().unwrap()];
    let (restored, said) = warned(client, &restore, 3);
    let failed = restored["failed"].as_u64().unwrap();
    assert_eq!(
        restored["warnings"]["kinds"]["not-restored"], failed,
        "{restored}"
    );
    assert!(
        failed > 0 && restored["directories"].as_u64().unwrap() > 0,
        "{restored}"
    );
    let named = format!("pack {id} is damaged where it is stored");
    assert!(said.contains(&named), "{said}");
    let (report, _) = warned(client, &["check"], 1);
    let errors = report["errors"].as_array().unwrap();
    let named = |error: &&Value| error.as_str().unwrap().contains(&format!("of pack {id}"));
    assert!(errors.iter().any(|error| named(&error)), "{report}");
    spoil(pack, |bytes| *bytes = whole);
    assert_eq!(warned(client, &restore, 0).0["failed"], 0);
}

/// The server's administrator gets rid of the damaged snapshot, and of nothing else.
fn forget_what_is_damaged(server: &Path, kept: &Path, rotten: &str) {
    let key = kept.join("client/repository.key");
    let on_it = ["--host", "demo-host", "--key-file", key.to_str().unwrap()];
    let command = |words: &[&'static str]| [words, &on_it[..]].concat();
    let named = format!("snapshot {rotten}");
    let (kept_all, said) = warned(
        server,
        &command(&["forget", "--keep-last", "1", "--prune"]),
        3,
    );
    assert_eq!(
        kept_all["damaged"][0]["object"],
        named.as_str(),
        "{kept_all}"
    );
    assert!(kept_all["prune"].is_null(), "{kept_all}");
    assert!(
        said.contains(&named) && said.contains("nothing was pruned"),
        "{said}"
    );
    let said = refusal(server, &command(&["prune"]));
    assert!(
        said.contains(&named) && said.contains("backlane forget"),
        "{said}"
    );
    // A part of its id is not enough: nobody can look at what goes.
    let said = refusal(server, &[&["forget", &rotten[..12]], &on_it[..]].concat());
    assert!(said.contains("hint: ") && said.contains(rotten), "{said}");
    let forgotten = document(server, &[&["forget", rotten], &on_it[..]].concat());
    assert_eq!(forgotten["damaged_forgotten"][0], rotten, "{forgotten}");
    let pruned = document(server, &command(&["prune"]));
    assert_eq!(pruned["dry_run"], false);
    // Without the trees nobody knows what is needed.
    for pack in objects(kept, "demo-host/data") {
        spoil(&pack, |bytes| bytes.truncate(20));
    }
    let said = refusal(server, &command(&["prune"]));
    let told = said.contains("is damaged where it is stored") && said.contains("backlane check");
    assert!(told, "{said}");
}

#[test]
fn a_prune_that_can_not_tell_what_wal_is_needed_leaves_it_and_ends_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let (server, client) = (kept.join("server.toml"), kept.join("client.toml"));
    let running = Server::start(&server);
    let listed = document(&client, &["snapshots"]);
    let old = listed["snapshots"][0]["id"].as_str().unwrap();
    // A base backup by its tag, that doesn't say where it began.
    let source = kept.join("source");
    let backup = ["backup", "--tag", "postgresql", source.to_str().unwrap()];
    let done = document(&client, &backup);
    let unclear = done["snapshot"].as_str().unwrap();
    drop(running);
    let wal = kept.join("server/repositories/demo-host/wal/7/00000001");
    fs::create_dir_all(&wal).unwrap();
    let wal = wal.join("000000010000000000000001");
    fs::write(&wal, "a segment").unwrap();

    let key = kept.join("client/repository.key");
    let on_it = ["--host", "demo-host", "--key-file", key.to_str().unwrap()];
    for words in [&["forget", old, "--prune"][..], &["prune"]] {
        let (told, said) = warned(&server, &[words, &on_it].concat(), 3);
        let why = told["wal_stays"].as_str().unwrap();
        assert!(why.contains(unclear) && said.contains(why), "{told} {said}");
        assert!(told["wal"].is_null() && wal.exists(), "{told}");
    }
    let words = ["forget", unclear, "--prune"];
    let told = document(&server, &[&words[..], &on_it].concat());
    assert!(told["wal_stays"].is_null(), "{told}");
    assert_eq!(told["wal"]["files"], 0, "{told}");
}

#[test]
fn a_backup_runs_between_what_makes_its_ground_and_what_takes_it_away() {
    let directory = tempfile::tempdir().unwrap();
    let kept = kept_demo(directory.path());
    let client = kept.join("client.toml");
    let _running = Server::start(&kept.join("server.toml"));
    let ground = kept.join("ground");
    let log = kept.join("log");
    let (path, log_path) = (ground.display(), log.display());
    let make = format!("echo made; mkdir {path} && echo content > {path}/file");
    let take_away = format!("rm -r {path}; echo $BACKLANE_RESULT $BACKLANE_SNAPSHOT >> {log_path}");
    let backup = |before: &str, after: &str, path: &Path| {
        let words = ["--json", "backup", "--before", before, "--after", after];
        backlane(&client, &[&words[..], &[path.to_str().unwrap()]].concat())
    };
    let said = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();

    // Standard output is the document's alone.
    let done = backup(&make, &take_away, &ground);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let document: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(document["files"], 1);
    assert!(said(&done).contains("made"), "{done:?}");
    let snapshot = document["snapshot"].as_str().unwrap();
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        format!("done {snapshot}\n")
    );
    assert!(!ground.exists());

    // What fails half-way is taken away as well; nothing is backed up.
    let before = count(&client);
    let half = backup(&format!("{make}; exit 5"), &take_away, &ground);
    assert_eq!(half.status.code(), Some(1), "{half:?}");
    assert!(said(&half).contains("exit status: 5"), "{half:?}");
    let missing = backup("true", &take_away, Path::new("/no/such/path"));
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert_eq!(count(&client), before);
    let logged = fs::read_to_string(&log).unwrap();
    assert_eq!(logged, format!("done {snapshot}\nfailed\nfailed\n"));
    assert!(!ground.exists());

    // One that can't take it away is a warning, for the snapshot is there.
    let left = backup(&make, "exit 6", &ground);
    assert_eq!(left.status.code(), Some(3), "{left:?}");
    let document: Value = serde_json::from_slice(&left.stdout).unwrap();
    assert_eq!(document["warnings"]["kinds"]["hook"], 1);
    assert!(said(&left).contains("exit status: 6"), "{left:?}");
    assert_eq!(count(&client), before + 1);

    // A dry run runs nothing; the configuration's commands are taken where none are given.
    fs::write(&log, "").unwrap();
    let mut text = fs::read_to_string(&client).unwrap();
    let section = format!(
        "[backup]\nbefore = \"echo before >> {log_path}\"\nafter = \"echo after >> {log_path}\"\n"
    );
    assert!(text.contains("[backup]"), "{text}");
    text = text.replace("[backup]\n", &section);
    fs::write(&client, text).unwrap();
    let path = ground.to_str().unwrap();
    self::document(&client, &["backup", "--dry-run", path]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    self::document(&client, &["backup", path]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "before\nafter\n");
}
