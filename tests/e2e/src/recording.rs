//! Somebody who listens on the wire: all that crosses it, in the order in which it does.

use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::lane::{Lane, Side};

/// Goes on until it is stopped.
#[derive(Debug)]
pub struct Recording {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<u8>>>,
}

/// Every protocol (`ETH_P_ALL`), in the byte order of the network.
const ALL: NonZero<u32> = NonZero::new(0x0300).expect("it isn't zero");

/// Longer than what the kernel makes of packets that follow one another.
const PACKET_BYTES_MAX: usize = 256 << 10;

/// What may wait for this process, so that nothing is lost.
const WAITING_BYTES_MAX: usize = 256 << 20;

const POLL: Duration = Duration::from_millis(100);

impl Recording {
    /// Listens at one end of a wire.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn start(lane: &Lane, side: Side) -> Result<Self> {
        // A socket belongs to the side that its thread is on.
        let socket = std::thread::scope(|scope| {
            let thread = scope.spawn(|| lane.enter(side).and_then(|()| socket()));
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || record(&socket, &stop));
        Ok(Self { over, thread })
    }

    /// Stops; returns what crossed the wire, packet by packet with their headers.
    ///
    /// # Errors
    /// When the socket failed.
    pub fn stop(self) -> Result<Vec<u8>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

fn socket() -> Result<OwnedFd> {
    let (family, protocol) = (AddressFamily::PACKET, Protocol::from_raw(ALL));
    let socket = socket_with(
        family,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(protocol),
    );
    let socket = socket.context("listening to all packets")?;
    set_socket_recv_buffer_size_force(&socket, WAITING_BYTES_MAX)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(POLL))?;
    Ok(socket)
}

fn record(socket: &OwnedFd, stop: &AtomicBool) -> Result<Vec<u8>> {
    let mut recorded = Vec::new();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        match recv(socket, packet.as_mut_slice(), RecvFlags::empty()) {
            Ok((count, _)) => recorded.extend_from_slice(&packet[..count]),
            // All that was under way has come.
            Err(Errno::AGAIN) if stop.load(Ordering::Relaxed) => return Ok(recorded),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("listening on the wire"),
        }
    }
}
