//! Commands on a repository that the demo left behind: the real binary against a real server.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
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
