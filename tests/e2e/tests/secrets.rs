//! No secret is in a process's arguments or environment, nor in a log, however much it is to say.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Ended, Process, Setup, System, Wire, plant, ready};

const MIB: u64 = 1 << 20;

/// Every line of a file with a secret, but for those that say what it is.
fn secret_lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    Ok(lines.map(ToOwned::to_owned).collect())
}

/// Fails where one of the secrets can be seen; says where, and not what.
fn unseen(secrets: &[String], place: &str, bytes: &[u8]) -> Result<()> {
    for (at, secret) in secrets.iter().enumerate() {
        ensure!(secret.len() > 8, "a line of {} letters", secret.len());
        let seen = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        ensure!(!seen, "secret {at} is in {place}");
    }
    Ok(())
}

fn unseen_in_output(secrets: &[String], ended: &Ended) -> Result<()> {
    unseen(secrets, "its standard output", ended.stdout.as_bytes())?;
    unseen(secrets, "its log", ended.stderr.as_bytes())
}

/// What other processes of the machine may see of a process and of those that it started.
fn unseen_in_proc(secrets: &[String], pid: u32) -> Result<()> {
    for what in ["cmdline", "environ"] {
        let path = format!("/proc/{pid}/{what}");
        let bytes = fs::read(&path).with_context(|| path.clone())?;
        ensure!(!bytes.is_empty(), "{path} is empty");
        unseen(secrets, &path, &bytes)?;
    }
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        // A thread may have ended.
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            unseen_in_proc(secrets, child.parse()?)?;
        }
    }
    Ok(())
}

#[test]
fn no_secret_can_be_seen_of_a_running_job_or_in_a_log() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    // So slow that there is time to look.
    let mut system = System::new(&Setup {
        wire: Wire::SLOW,
        ..Setup::default()
    })?;
    let token = system.token("alpha", &[])?;
    let (client, mut join) = system.join_command("alpha", &system.at_client())?;
    join.args(["-vv", "--token-file", "-"]);
    let joined = Process::start(&mut join, &system.path(""), Some(&format!("{token}\n")))?;
    let joined = joined.wait()?.success()?;
    let mut secrets = vec![token];
    secrets.extend(secret_lines(&client.key_file)?);
    for key in [
        client.state.join("host.key"),
        system.path("server/ca.key"),
        system.path("server/server.key"),
    ] {
        secrets.extend(secret_lines(&key)?);
    }
    ensure!(secrets.len() >= 8, "{} secrets", secrets.len());
    unseen_in_output(&secrets, &joined)?;

    let source = system.path("source");
    plant(&source, 16 * MIB, 1)?;
    let words = [
        "-vv",
        "backup",
        &source.to_string_lossy(),
        "--route",
        "network",
    ];
    let before = system.lane.bytes()?;
    let mut job = system.start(&client, words)?;
    backlane_e2e::until("the backup is under way", || {
        ensure!(job.is_running()?, "it ended too soon: {}", job.said());
        Ok(system.lane.bytes()? - before > MIB)
    })?;
    unseen_in_proc(&secrets, job.id())?;
    let server = system.server()?;
    unseen_in_proc(&secrets, server.id())?;
    let done = job.wait()?.success()?;
    // It did say everything.
    ensure!(done.stderr.contains("DEBUG"), "{done}");
    unseen_in_output(&secrets, &done)?;
    let said = system.server()?.said();
    unseen(&secrets, "the server's log", said.as_bytes())
}
