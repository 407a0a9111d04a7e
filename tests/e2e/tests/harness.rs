//! The ground that the other tests stand on: the wire carries what it says, the counters count, nothing stays behind.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    Lane, Medium, Process, Sector, SharedDevice, Side, Tmpfs, Wire, output, ready, ready_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` on a thread of this process that lives on one side of the wire.
fn on<T: Send + 'static>(
    lane: &Lane,
    side: Side,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<std::thread::JoinHandle<Result<T>>> {
    let path = Path::new("/run/netns").join(lane.namespace(side));
    let namespace =
        std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    Ok(std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    }))
}

/// Sends `bytes` from the client's side to the server's and returns the time that it took.
fn send(lane: &Lane, bytes: usize) -> Result<Duration> {
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = on(lane, Side::Server, move || {
        let listener = TcpListener::bind((Side::Server.address(), 0))?;
        tell.send(listener.local_addr()?)?;
        let (mut stream, _) = listener.accept()?;
        let mut received = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(received),
                n => received += n,
            }
        }
    })?;
    let address = told.recv()?;
    let start = Instant::now();
    let sender = on(lane, Side::Client, move || {
        TcpStream::connect(address)?.write_all(&vec![7; bytes])?;
        Ok(())
    })?;
    sender.join().expect("the sender doesn't panic")?;
    let received = receiver.join().expect("the receiver doesn't panic")?;
    ensure!(
        received == bytes,
        "{received} of {bytes} bytes came through"
    );
    Ok(start.elapsed())
}

#[test]
fn wire_carries_no_more_than_its_rate_and_its_counters_count() -> Result<()> {
    const BYTES: usize = 4 << 20;
    if !ready() {
        return Ok(());
    }
    let lane = Lane::new(Wire::SLOW)?;
    let before = lane.bytes()?;
    let time = send(&lane, BYTES)?;
    let counted = lane.bytes()? - before;
    // One bucket of 256 KiB goes at once; the rest at the rate.
    let rate = Wire::SLOW
        .bytes_per_second()
        .context("the slow wire is limited")?;
    let least = (BYTES as u64 - (256 << 10)) as f64 / rate as f64;
    assert!(
        time.as_secs_f64() > least * 0.9,
        "{time:?}, though the wire needs {least} s"
    );
    assert!(counted > BYTES as u64, "{counted}");
    assert!(counted < BYTES as u64 * 5 / 4, "{counted}");
    Ok(())
}

/// A connection, seen from the server's side and from the client's; neither waits longer than a second for the other.
fn connected(lane: &Lane) -> Result<[TcpStream; 2]> {
    const PATIENCE: Option<Duration> = Some(Duration::from_secs(1));
    let (tell, told) = std::sync::mpsc::channel();
    let server = on(lane, Side::Server, move || {
        let listener = TcpListener::bind((Side::Server.address(), 0))?;
        tell.send(listener.local_addr()?)?;
        Ok(listener.accept()?.0)
    })?;
    let address = told.recv()?;
    let client = on(lane, Side::Client, move || Ok(TcpStream::connect(address)?))?;
    let ends = [server, client].map(|end| end.join().expect("nobody panics"));
    let [server, client] = ends;
    let ends = [server?, client?];
    for end in &ends {
        end.set_read_timeout(PATIENCE)?;
    }
    Ok(ends)
}

#[test]
fn network_loses_answers_alone_or_everything_until_it_is_mended() -> Result<()> {
    if !ready_with(&["ss"]) {
        return Ok(());
    }
    let lane = Lane::new(Wire::GIGABIT)?;
    let [mut server, mut client] = connected(&lane)?;
    let mut byte = [0];

    lane.lose_answers()?;
    client.write_all(b"q")?;
    server.read_exact(&mut byte)?;
    server.write_all(b"a")?;
    assert!(client.read_exact(&mut byte).is_err());
    lane.deliver_answers()?;
    client.set_read_timeout(None)?;
    client.read_exact(&mut byte)?;

    lane.remove_address()?;
    client.write_all(b"q")?;
    assert!(server.read_exact(&mut byte).is_err());
    lane.add_address()?;
    server.set_read_timeout(None)?;
    server.read_exact(&mut byte)?;

    lane.reset_connections()?;
    let reset = client.read_exact(&mut byte).expect_err("a reset");
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    Ok(())
}

#[test]
fn both_sides_see_one_disk_and_its_counters_count() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let dir = tempfile::tempdir_in(backlane_e2e::base())?;
    for (sector, bytes) in [(Sector::B512, "512"), (Sector::B4096, "4096")] {
        let device = SharedDevice::new(dir.path(), 64 << 20, sector, Medium::Plain)?;
        for path in [&device.at_server, &device.at_client] {
            let shown = output(Command::new("blockdev").arg("--getss").arg(path))?;
            assert_eq!(shown.trim(), bytes);
        }
        let source = dir.path().join("source");
        std::fs::write(&source, fidelity::Random::new(1).bytes(1 << 20))?;
        let copy = |from: &Path, to: &Path, flag: &str| {
            let [from, to] =
                [("if", from), ("of", to)].map(|(name, path)| format!("{name}={}", path.display()));
            output(Command::new("dd").args(["bs=1M", "count=1", flag, &from, &to]))
        };
        let back = dir.path().join("back");
        // Read once first: a cache between the two would now hold zeros.
        copy(&device.at_client, &back, "iflag=direct")?;
        let before = device.bytes()?;
        copy(&source, &device.at_server, "oflag=direct")?;
        copy(&device.at_client, &back, "iflag=direct")?;
        assert_eq!(std::fs::read(&source)?, std::fs::read(&back)?);
        assert!(device.bytes()? - before >= 2 << 20);
        std::fs::remove_file(back)?;
    }
    Ok(())
}

#[test]
fn one_side_alone_loses_the_disk_and_gets_it_back() -> Result<()> {
    const BYTES: u64 = 8 << 20;
    if !ready_with(&backlane_e2e::CHAIN) {
        return Ok(());
    }
    let dir = tempfile::tempdir_in(backlane_e2e::base())?;
    let medium = Medium::Breakable;
    let mut device = SharedDevice::new(dir.path(), BYTES, Sector::B4096, medium)?;
    let [server, client] = [&device.at_server, &device.at_client].map(Clone::clone);
    let at_server = |length: u64| read(&server, length);
    let at_client = |length: u64| read(&client, length);
    let written = fidelity::Random::new(1).bytes(usize::try_from(BYTES)?);
    std::fs::write(device.file(), &written)?;

    device.chain(Side::Client)?.fail()?;
    assert!(at_client(4096).is_err());
    assert!(at_server(BYTES)? == written);
    device.chain(Side::Client)?.heal()?;
    assert!(at_client(BYTES)? == written);

    // A program that has the disk open has lost it for ever, another one finds it again.
    let open = std::fs::File::open(&client)?;
    device.chain(Side::Client)?.remove()?;
    assert!((&open).read_exact(&mut [0]).is_err());
    assert!(!client.exists());
    assert!(at_server(BYTES)? == written);
    device.chain(Side::Client)?.insert()?;
    assert!((&open).read_exact(&mut [0]).is_err());
    assert!(at_client(BYTES)? == written);

    device.chain(Side::Client)?.hang()?;
    let hanging = std::thread::spawn(move || read(&client, 4096));
    assert!(at_server(BYTES)? == written);
    assert!(!hanging.is_finished());
    device.chain(Side::Client)?.resume()?;
    assert!(hanging.join().expect("no panic")? == written[..4096]);

    device.chain(Side::Server)?.set_rate(32)?;
    let start = Instant::now();
    assert!(at_server(BYTES)? == written);
    // At the rate it takes two seconds; some may come at once.
    assert!(start.elapsed() > Duration::from_secs(1));
    Ok(())
}

/// The beginning of a device, without the kernel's cache.
fn read(device: &Path, bytes: u64) -> Result<Vec<u8>> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", device.display()))
        .arg(format!("count={}", bytes / 4096))
        .args(["bs=4096", "iflag=direct"]);
    let done = dd.output()?;
    ensure!(done.status.success(), "{done:?}");
    Ok(done.stdout)
}

#[test]
fn nothing_stays_behind_not_even_after_a_panic() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let dir = tempfile::tempdir_in(backlane_e2e::base())?;
    let at = dir.path().to_owned();
    let (tell, told) = std::sync::mpsc::channel();
    let ended = std::thread::spawn(move || {
        let lane = Lane::new(Wire::GIGABIT).expect("a lane");
        let device =
            SharedDevice::new(&at, 1 << 20, Sector::B512, Medium::Plain).expect("a device");
        let tmpfs = Tmpfs::new(&at.join("full"), 1 << 20).expect("a file system");
        let mut sleep = lane.command(Side::Client, "sleep");
        let process = Process::start(sleep.arg("1000"), &at, None).expect("a process");
        let names = [Side::Server, Side::Client].map(|side| lane.namespace(side).to_owned());
        tell.send((
            names,
            device.at_server.clone(),
            tmpfs.path.clone(),
            process.id(),
        ))
        .expect("somebody listens");
        // As a test that fails, but without a message.
        std::panic::resume_unwind(Box::new("failed"))
    })
    .join();
    assert!(ended.is_err());
    let (names, device, tmpfs, process) = told.recv()?;
    let namespaces = output(Command::new("ip").args(["netns", "list"]))?;
    assert!(
        !names.iter().any(|name| namespaces.contains(name)),
        "{namespaces}"
    );
    let loops = output(Command::new("losetup").args(["-nlO", "BACK-FILE"]))?;
    assert!(
        !loops.contains(&dir.path().display().to_string()),
        "{} in {loops}",
        device.display()
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains(&tmpfs.display().to_string()), "{mounts}");
    assert!(!Path::new(&format!("/proc/{process}")).exists());
    Ok(())
}

#[test]
fn file_system_of_a_bounded_size_is_full_when_it_is_full() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let dir = tempfile::tempdir_in(backlane_e2e::base())?;
    let tmpfs = Tmpfs::new(&dir.path().join("full"), 1 << 20)?;
    let file = tmpfs.path.join("file");
    let full = std::fs::write(&file, vec![0; 2 << 20]).expect_err("twice as much as fits");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    tmpfs.resize(4 << 20)?;
    std::fs::write(&file, vec![0; 2 << 20])?;
    Ok(())
}

#[test]
fn process_that_ended_tells_how() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = "read line; echo \"got $line\"; echo oops >&2; exit 3";
    let process = Process::start(
        Command::new("sh").args(["-c", script]),
        dir.path(),
        Some("word\n"),
    )?;
    let ended = process.wait()?;
    assert_eq!(
        (ended.code(), ended.stdout.as_str(), ended.stderr.as_str()),
        (3, "got word\n", "oops\n")
    );
    assert!(ended.success().is_err());
    Ok(())
}
