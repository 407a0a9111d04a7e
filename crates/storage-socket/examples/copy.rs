//! Copies a file through a shared device, sealed, and without a copy in memory on the side that writes the file.
//!
//! ```text
//! copy receive DEVICE LOCKS SECRET-FILE TARGET    # first: makes a pool of a file that isn't there yet
//! copy send DEVICE LOCKS SECRET-FILE SOURCE
//! ```
//!
//! SECRET-FILE holds 32 bytes that both ends have.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Write},
    net::Shutdown,
    path::Path,
    time::Duration,
};
use storage_socket::{
    FormatOptions, ListenProtection, Listener, Pool, PoolOptions, Port, Protection, Role,
    SlotIndex, Stream, StreamOptions, StreamSecret, format,
};

const PORT: Port = Port(9);
const SLOT: SlotIndex = SlotIndex(0);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, device, locks, secret, file] = &arguments[..] else {
        return Err("copy send|receive DEVICE LOCKS SECRET-FILE FILE".into());
    };
    let secret: [u8; 32] = fs::read(secret)?
        .try_into()
        .map_err(|_| "the secret is not 32 bytes long")?;
    let options = StreamOptions::new(Protection::Aes256Gcm(StreamSecret::new(secret)));
    let (device, locks): (&Path, &Path) = (device.as_ref(), locks.as_ref());
    let bytes = match what.as_str() {
        "receive" => receive(device, locks, options, file.as_ref())?,
        "send" => send(device, locks, options, file.as_ref())?,
        _ => return Err("copy send, or copy receive".into()),
    };
    println!("{bytes} bytes");
    Ok(())
}

fn receive(
    device: &Path,
    locks: &Path,
    options: StreamOptions,
    target: &Path,
) -> Result<u64, Box<dyn Error>> {
    if !device.exists() {
        let mut how = FormatOptions::new("copy");
        how.file_bytes = Some(256 << 20);
        // A file on one host is never stale for long; keep the defaults for a device that two hosts share.
        how.timeouts.stale = Duration::from_millis(100);
        how.timeouts.claim = Duration::from_millis(100);
        format(&[device.to_owned()], &how)?;
    }
    let slots = [SLOT].into();
    let pool = open(device, locks, Role::Coordinator { slots })?;
    let listener = Listener::bind(&pool, PORT, ListenProtection::Sealed)?;
    println!("listening on {}", listener.local_addr());
    let stream = listener.accept()?.accept(options)?;
    let mut file = File::create(target)?;
    let mut bytes = 0;
    while let Some(frame) = stream.read_frame()? {
        file.write_all(&frame)?;
        bytes += frame.len() as u64;
    }
    file.sync_all()?;
    // The sender waits for this: that the stream ended is not yet that the file is safe.
    (&stream).write_all(b"kept")?;
    stream.shutdown(Shutdown::Write)?;
    stream.wait_finished(PATIENCE)?;
    Ok(bytes)
}

fn send(
    device: &Path,
    locks: &Path,
    options: StreamOptions,
    source: &Path,
) -> Result<u64, Box<dyn Error>> {
    let slots = vec![SLOT];
    let pool = open(device, locks, Role::Member { slots })?;
    let mut stream = Stream::connect(&pool, PORT, options, PATIENCE)?;
    let bytes = io::copy(&mut File::open(source)?, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let word = io::read_to_string(&mut stream)?;
    if word != "kept" {
        return Err("the other end did not keep the file".into());
    }
    Ok(bytes)
}

fn open(device: &Path, locks: &Path, role: Role) -> Result<Pool, Box<dyn Error>> {
    let pool = Pool::open(&[device.to_owned()], PoolOptions::new(role, "here", locks))?;
    pool.wait_ready(PATIENCE)?;
    Ok(pool)
}
