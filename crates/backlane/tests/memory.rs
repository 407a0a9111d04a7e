//! What is in a process's memory stays there: no core dump, no look by another process of the same user.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use rustix::process::{Pid, Signal, getuid, kill_process};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

const NOBODY: u32 = 65534;

/// Starts a program in a directory, with core dumps of any size allowed, and returns when it has said something.
fn started(directory: &Path, program: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -c $(ulimit -H -c); exec \"$0\" \"$@\""])
        .arg(program)
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::piped());
    if getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "it said nothing");
    child
}

fn aborted(mut child: Child) -> ExitStatus {
    kill_process(Pid::from_child(&child), Signal::ABORT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    status
}

#[test]
fn memory_is_neither_dumped_nor_shown_to_other_processes_of_the_user() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
    // Where it was built its user may not read it, and the kernel protects the memory of such a program by itself.
    let program = at.join("backlane");
    fs::copy(env!("CARGO_BIN_EXE_backlane"), &program).unwrap();
    let state = at.to_str().unwrap();
    let shown = |child: &Child| {
        let process = format!("/proc/{}", child.id());
        fs::metadata(format!("{process}/environ")).unwrap().uid()
    };

    let other = started(at, Path::new("sh"), &["-c", "echo ready; exec sleep 600"]);
    let user = if getuid().is_root() {
        NOBODY
    } else {
        getuid().as_raw()
    };
    assert_eq!(shown(&other), user, "any other program shows it");
    if !aborted(other).core_dumped() {
        println!("this system writes no core dumps: whether backlane would isn't tested");
    }

    let top = ["top", "--json", "--interval", "1h", "--state", state];
    let backlane = started(at, &program, &top);
    assert_eq!(shown(&backlane), 0, "the kernel has taken it over");
    let limits = fs::read_to_string(format!("/proc/{}/limits", backlane.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
    assert!(!aborted(backlane).core_dumped());
}
