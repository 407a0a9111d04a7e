//! The binary as a user meets it: exit codes, documents, messages.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use backlane_net::token::{JoinSecret, JoinToken};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Output, Stdio},
};

const MIB: u64 = 1 << 20;

fn backlane<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_backlane"))
        .args(arguments)
        .env_remove("BACKLANE_CONFIG")
        .env_remove("BACKLANE_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a command that is to end with `code`; returns standard output and standard error.
#[track_caller]
fn check(arguments: &[&str], code: i32) -> (String, String) {
    let output = backlane(arguments);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}\n{stdout}\n{stderr}"
    );
    (stdout, stderr)
}

/// The one document that a command with `--json` prints.
#[track_caller]
fn document(arguments: &[&str], code: i32) -> Value {
    let (stdout, _) = check(&[&["--json"], arguments].concat(), code);
    let mut documents = serde_json::Deserializer::from_str(&stdout).into_iter::<Value>();
    let document = documents.next().expect("a document").unwrap();
    assert!(
        documents.next().is_none(),
        "more than one document: {stdout}"
    );
    assert_eq!(document["schema"], 1, "{document}");
    document
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

#[test]
fn top_without_processes_says_where_it_looked() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(directory.path(), "state");
    let (stdout, _) = check(&["top", "--state", &state], 0);
    let words = format!("no server and no job runs: looked in {state}/status");
    let flat: String = stdout.split_whitespace().collect();
    assert!(flat.contains(&words.replace(' ', "")), "{stdout}");
    let document = document(&["top", "--state", &state], 0);
    assert_eq!(document["processes"], serde_json::json!([]));
    // Nothing was looked at: that is no answer.
    let config = path(directory.path(), "client.toml");
    let (_, stderr) = check(&["top", "--once", "--config", &config], 1);
    assert!(stderr.contains(&config), "{stderr}");
    check(&["top", "--interval", "1ms"], 2);
}

#[test]
fn wrong_usage_exits_2_and_says_so_on_standard_error() {
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["pool"],
        &["--pool-engine", "fast", "snapshots"],
        &["pool", "create", "x"],
        &["pool", "create", "--name", "n"],
        &["pool", "create", "x", "--name", "n", "--size", "many"],
        &["pool", "create", "x", "--name", "n", "--max-members", "0"],
        &["server", "init"],
        &["server", "enroll"],
        &["server", "revoke"],
        &["server", "audit"],
        &["server", "allow-restore", "host", "--for", "ever"],
        &["backup"],
        &["backup", "/etc", "--route", "sideways"],
        &["backup", "/etc", "--time", "yesterday"],
        &["restore", "latest"],
        &["demo", "/etc", "--size", "1G"],
        &["forget", "--host", "h"],
        &["forget", "--keep-last", "0", "--keep-within", "0s"],
        &["dump", "--json", "latest:/etc/hosts"],
    ] {
        let (stdout, stderr) = check(arguments, 2);
        assert!(
            stdout.is_empty() || arguments.contains(&"--json"),
            "{arguments:?}: {stdout}"
        );
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_is_a_document_where_documents_are_asked_for() {
    let failure = document(&["backup"], 2);
    let error = failure["error"].as_str().unwrap();
    assert!(error.contains("required"), "{failure}");
    let failure = document(&["no-such-command"], 2);
    let error = failure["error"].as_str().unwrap();
    assert!(error.contains("no-such-command"), "{failure}");
    // Behind `--` it is a name like any other.
    let (stdout, _) = check(&["no-such-command", "--", "--json"], 2);
    assert!(stdout.is_empty(), "{stdout}");
}

#[test]
fn join_finds_what_it_can_not_write_before_the_token_is_used() {
    let directory = tempfile::tempdir().unwrap();
    // Nobody listens there, so a join that got as far as the server would name it.
    let token = JoinToken {
        server: "127.0.0.1:1".to_owned(),
        authority: [7; 32],
        secret: JoinSecret::new([7; 32]),
        host: "web1".to_owned(),
    };
    let file = path(directory.path(), "token");
    fs::write(&file, token.encode().unwrap()).unwrap();
    let (state, config) = (
        path(directory.path(), "state"),
        path(directory.path(), "config"),
    );
    let join = |state: &str, config: &str| {
        let arguments = [
            "join",
            "--token-file",
            &file,
            "--state",
            state,
            "--config",
            config,
        ];
        check(&arguments, 1).1
    };
    // A file stands where a directory would have to be.
    let below = format!("{file}/below");
    let said = join(&state, &below);
    assert!(
        said.contains(&below) || said.contains("cannot make"),
        "{said}"
    );
    assert!(!said.contains("127.0.0.1"), "{said}");
    let said = join(&below, &config);
    assert!(!said.contains("127.0.0.1"), "{said}");
    // With both in order the server is asked, and what was made for that goes again.
    let said = join(&state, &config);
    assert!(said.contains("127.0.0.1:1"), "{said}");
    assert!(!Path::new(&config).exists());
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

#[test]
fn token_is_no_argument() {
    check(&["join", "backlane-join-AAAA"], 2);
    check(&["join", "--token", "backlane-join-AAAA"], 2);
}

#[test]
fn help_and_version_exit_0() {
    let (help, _) = check(&["--help"], 0);
    for command in [
        "demo", "pool", "server", "join", "backup", "restore", "bench",
    ] {
        assert!(help.contains(command), "{help}");
    }
    let (version, _) = check(&["--version"], 0);
    assert!(version.starts_with("backlane "), "{version}");
}

#[test]
fn pool_of_files_is_made_and_described() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (path(directory.path(), "one"), path(directory.path(), "two"));
    let made = document(
        &[
            "pool",
            "create",
            &one,
            &two,
            "--name",
            "lane",
            "--size",
            "64M",
            "--max-members",
            "8",
        ],
        0,
    );
    assert_eq!(made["name"], "lane");
    assert_eq!(made["slots"], 8);
    assert_eq!(made["devices"].as_array().unwrap().len(), 2);
    assert_eq!(fs::metadata(&one).unwrap().len(), 64 * MIB);
    // In any order.
    let info = document(&["pool", "info", &two, &one], 0);
    assert_eq!(info["uuid"], made["uuid"]);
    assert_eq!(info["name"], "lane");
    let checked = document(&["pool", "check", &one, &two], 0);
    assert_eq!(checked["uuid"], made["uuid"]);
    assert_eq!(checked["damage"].as_array().unwrap().len(), 0);
    let members = document(&["pool", "members", &one, &two], 0);
    assert_eq!(members["members"].as_array().unwrap().len(), 0, "{members}");
    let (text, _) = check(&["pool", "info", &one, &two], 0);
    assert!(text.contains(made["uuid"].as_str().unwrap()), "{text}");
}

#[test]
fn missing_device_of_a_pool_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (path(directory.path(), "one"), path(directory.path(), "two"));
    check(
        &[
            "pool", "create", &one, &two, "--name", "lane", "--size", "64M",
        ],
        0,
    );
    let (_, stderr) = check(&["pool", "info", &one], 1);
    assert!(stderr.contains("device 1 of 2"), "{stderr}");
    let (_, stderr) = check(&["pool", "info", &one, &one], 1);
    assert!(stderr.contains(&one), "{stderr}");
}

#[test]
fn what_is_not_a_pool_is_refused_by_name_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let stranger = path(directory.path(), "stranger");
    fs::write(&stranger, vec![0; 4 * 1024 * 1024]).unwrap();
    let (_, stderr) = check(&["pool", "info", &stranger], 1);
    assert!(stderr.contains(&stranger), "{stderr}");
    assert!(stderr.contains("hint: "), "{stderr}");
    let failure = document(&["pool", "info", &stranger], 1);
    assert!(
        failure["error"].as_str().unwrap().contains(&stranger),
        "{failure}"
    );
    let absent = path(directory.path(), "absent");
    let (_, stderr) = check(&["pool", "info", &absent], 1);
    assert!(stderr.contains(&absent), "{stderr}");
}

#[test]
fn device_with_data_is_formatted_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let device = path(directory.path(), "device");
    let mut content = vec![0; usize::try_from(64 * MIB).unwrap()];
    content[77] = 1;
    fs::write(&device, &content).unwrap();
    let create = ["pool", "create", &device, "--name", "lane"];
    let (_, stderr) = check(&create, 1);
    assert!(
        stderr.contains(&device) && stderr.contains("--force"),
        "{stderr}"
    );
    assert_eq!(
        fs::read(&device).unwrap(),
        content,
        "a refused device was changed"
    );
    check(&[&create[..], &["--force"]].concat(), 0);
    // Now it carries a pool, which is data too.
    let (_, stderr) = check(&create, 1);
    assert!(stderr.contains("pool"), "{stderr}");
}

#[test]
fn pool_is_destroyed_only_when_asked_twice() {
    let directory = tempfile::tempdir().unwrap();
    let device = path(directory.path(), "device");
    check(
        &["pool", "create", &device, "--name", "lane", "--size", "64M"],
        0,
    );
    // Standard input is no terminal, so nobody can be asked.
    let (_, stderr) = check(&["pool", "destroy", &device], 1);
    assert!(stderr.contains("--yes"), "{stderr}");
    check(&["pool", "info", &device], 0);
    check(&["pool", "destroy", &device, "--yes"], 0);
    check(&["pool", "info", &device], 1);
}

#[test]
fn closed_standard_output_is_no_failure_and_hides_none() {
    let directory = tempfile::tempdir().unwrap();
    let device = path(directory.path(), "device");
    check(
        &["pool", "create", &device, "--name", "lane", "--size", "64M"],
        0,
    );
    let unread = |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Command::new(env!("CARGO_BIN_EXE_backlane"))
            .args(["pool", command, &device])
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    };
    let info = unread("info");
    assert_eq!(info.status.code(), Some(0), "{info:?}");
    assert!(info.stderr.is_empty(), "{info:?}");
    assert_eq!(unread("check").status.code(), Some(0));
    // The first superblock goes; its copy says what it was.
    let file = fs::File::options().write(true).open(&device).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    let check = unread("check");
    assert_eq!(check.status.code(), Some(1), "{check:?}");
}

#[test]
fn command_without_configuration_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let config = path(directory.path(), "absent.toml");
    for arguments in [
        &["snapshots"][..],
        &["backup", "/etc/hosts"],
        &["restore", "latest", "--target", "/nowhere"],
        &["server", "run"],
        &["server", "hosts"],
        &["server", "enroll", "host"],
        &["server", "allow-restore", "host"],
        &["server", "revoke", "host"],
        &["server", "audit", "verify"],
    ] {
        let (_, stderr) = check(&[arguments, &["--config", &config]].concat(), 1);
        assert!(
            stderr.contains(&config) && stderr.contains("hint: "),
            "{stderr}"
        );
    }
}
