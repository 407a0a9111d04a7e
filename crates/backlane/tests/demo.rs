//! The demo as an end-to-end test: real processes, real TLS, a real pool in a file.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use serde_json::Value;
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn demo(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlane"));
    command
        .args(["demo", "--json", "--pool-size", "64M", "--dir"])
        .arg(directory)
        .env_remove("BACKLANE_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
fn check(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stderr}\n{stdout}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["verified"], true, "{document}");
    assert!(
        document["verified_entries"].as_u64().unwrap() > 0,
        "{document}"
    );
    document
}

#[test]
fn demo_restores_its_own_tree_through_storage_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let document = check(demo(directory.path()).args(["--size", "12M"]));
    let number = |name: &str| {
        document[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {document}"))
    };
    assert!(number("bytes_storage") > 8 << 20, "{document}");
    assert!(
        number("bytes_network") * 50 < number("bytes_storage"),
        "{document}"
    );
    assert!(number("objects_storage") > 0, "{document}");
    assert!(
        document["backup_seconds"].as_f64().unwrap() > 0.0,
        "{document}"
    );
    assert!(
        document["restore_seconds"].as_f64().unwrap() > 0.0,
        "{document}"
    );
    // Every body by network has its reason.
    let reasons: u64 = document["network_reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| reason["objects"].as_u64().unwrap())
        .sum();
    assert_eq!(reasons, number("objects_network"), "{document}");
    // The second run finds again what the first stored.
    assert!(
        number("second_backup_bytes_sent") * 2 < number("backup_bytes"),
        "{document}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn demo_of_a_users_path_changes_nothing_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a"), "one").unwrap();
    fs::write(path.join("b"), "two").unwrap();
    let work = directory.path().join("work");
    fs::create_dir(&work).unwrap();
    let document = check(demo(&work).arg("--keep").arg(&path));
    assert_eq!(document["verified"], true);
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(fs::read(path.join("a")).unwrap(), b"one");
    // --keep left everything in one directory, with the restored copy in it.
    let kept = fs::read_dir(&work).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(kept.join("restored/0/b")).unwrap(), b"two");
}

#[test]
fn machine_without_a_time_zone_is_not_told_so_for_each_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a"), "one").unwrap();
    let mut demo = demo(directory.path());
    let output = demo.arg(&path).env("TZ", "Nowhere/AtAll").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("time zone"), "{said}");
}

#[test]
fn interrupted_demo_cleans_up_and_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = demo(directory.path())
        .args(["--size", "64M"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // As soon as the server has been started, somewhere in the middle.
    loop {
        let log = fs::read_dir(directory.path())
            .unwrap()
            .filter_map(Result::ok)
            .any(|entry| entry.path().join("server.log").exists());
        if log {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the demo never started its server"
        );
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "{stderr}"
    );
}
