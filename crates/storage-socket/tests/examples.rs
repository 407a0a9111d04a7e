//! The examples run as their heads say, each end in a process of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A program beside this one, as cargo lays them out.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let program = target.join("examples").join(name);
    assert!(program.exists(), "{} isn't built", program.display());
    Command::new(program)
}

/// A server that is ended with the test.
struct Server(Child);

impl Server {
    /// Starts it and waits until it listens.
    fn start(command: &mut Command) -> (Self, BufReader<std::process::ChildStdout>) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line}");
        (Self(child), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn ground() -> (tempfile::TempDir, PathBuf, PathBuf) {
    // Not the system's: that may be in memory and refuse direct I/O.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (device, locks) = (
        directory.path().join("pool"),
        directory.path().join("locks"),
    );
    (directory, device, locks)
}

#[test]
fn echo_server_answers_clients_in_other_processes() {
    let (_directory, device, locks) = ground();
    let mut serve = example("echo");
    let (_server, _said) = Server::start(serve.arg("serve").args([&device, &locks]));
    for words in [&["through", "the", "disk"][..], &["again"]] {
        let mut ask = example("echo");
        let answer = output(ask.arg("ask").args([&device, &locks]).args(words));
        assert_eq!(answer.trim_end(), words.join(" "));
    }
    #[cfg(feature = "tokio")]
    {
        let mut ask = example("echo_tokio");
        let answers = output(ask.args([&device, &locks]).args(["one", "two", "three"]));
        let mut answers: Vec<&str> = answers.lines().collect();
        answers.sort_unstable();
        assert_eq!(answers, ["one", "three", "two"]);
    }
}

#[test]
fn a_file_is_copied_from_one_process_to_another() {
    let (directory, device, locks) = ground();
    let at = |name: &str| directory.path().join(name);
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(at("source"), &content).unwrap();
    fs::write(at("secret"), [9; 32]).unwrap();
    let mut receive = example("copy");
    receive.arg("receive").args([&device, &locks]);
    let (mut receiver, _said) = Server::start(receive.args([at("secret"), at("target")]));
    let mut send = example("copy");
    send.arg("send").args([&device, &locks]);
    let sent = output(send.args([at("secret"), at("source")]));
    assert_eq!(sent.trim_end(), "20000000 bytes");
    assert!(receiver.0.wait().unwrap().success());
    assert!(fs::read(at("target")).unwrap() == content);
}
