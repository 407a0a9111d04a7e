//! An echo server and its clients, as processes that share a file or a device.
//!
//! ```text
//! echo serve DEVICE LOCKS            # makes a pool of a file that isn't there yet
//! echo ask DEVICE LOCKS WORDS...     # in another process, or on another host that has the same device
//! ```
//!
//! LOCKS is a directory where processes of one host keep their locks. Both ends use a checksum: see `StreamOptions` for
//! ciphers.

use std::{
    error::Error,
    io::{self, Read, Write},
    net::Shutdown,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use storage_socket::{
    FormatOptions, ListenProtection, Listener, Pool, PoolOptions, Port, Protection, Role,
    SlotIndex, Stream, StreamOptions, format,
};

const PORT: Port = Port(7);
const SLOTS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [what, device, locks] if what == "serve" => serve(device.as_ref(), locks.as_ref()),
        [what, device, locks, words @ ..] if what == "ask" => {
            let answer = ask(device.as_ref(), locks.as_ref(), &words.join(" "))?;
            println!("{answer}");
            Ok(())
        }
        _ => Err("echo serve DEVICE LOCKS, or echo ask DEVICE LOCKS WORDS...".into()),
    }
}

fn serve(device: &Path, locks: &Path) -> Result<(), Box<dyn Error>> {
    if !device.exists() {
        let mut how = FormatOptions::new("echo");
        how.file_bytes = Some(64 << 20);
        // A file on one host is never stale for long; keep the defaults for a device that two hosts share.
        how.timeouts.stale = Duration::from_millis(100);
        how.timeouts.claim = Duration::from_millis(100);
        format(&[device.to_owned()], &how)?;
    }
    let slots = (0..SLOTS).map(SlotIndex).collect();
    let pool = open(device, locks, Role::Coordinator { slots })?;
    let listener = Listener::bind(&pool, PORT, ListenProtection::Checksum)?;
    println!("listening on {}", listener.local_addr());
    for incoming in listener.incoming() {
        let stream = incoming?.accept(options())?;
        thread::spawn(move || {
            let peer = stream.peer_addr();
            match io::copy(&mut &stream, &mut &stream) {
                Ok(bytes) => println!("{peer}: {bytes} bytes"),
                Err(error) => eprintln!("{peer}: {error}"),
            }
        });
    }
    Ok(())
}

fn ask(device: &Path, locks: &Path, words: &str) -> Result<String, Box<dyn Error>> {
    let slots = (0..SLOTS).map(SlotIndex).collect();
    let pool = open(device, locks, Role::Member { slots })?;
    let mut stream = Stream::connect(&pool, PORT, options(), PATIENCE)?;
    stream.write_all(words.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn open(device: &Path, locks: &Path, role: Role) -> Result<Pool, Box<dyn Error>> {
    let devices: [PathBuf; 1] = [device.to_owned()];
    let pool = Pool::open(&devices, PoolOptions::new(role, "here", locks))?;
    pool.wait_ready(PATIENCE)?;
    Ok(pool)
}

fn options() -> StreamOptions {
    let mut options = StreamOptions::new(Protection::Checksum).with_frame_bytes(64 << 10);
    options.window_bytes = 4 << 20;
    options
}
