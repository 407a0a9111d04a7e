//! Streams: what a user of `TcpStream` expects, through a pool.
//!
//! Bytes are sealed and copied in the user's thread; the driver thread moves frames. A stream that is dropped sends
//! what was written and closes in the background, as a TCP stream does.

mod asynchronous;
mod frame;
mod options;
#[cfg(feature = "tokio")]
mod with_tokio;

pub use frame::Frame;
pub use options::StreamOptions;
pub(crate) use options::send_buffers;

use crate::{
    Error, Pool,
    driver::wheel::{AtWheel, Turn},
    flow::{Flow, OwnedFlow, StreamAddr},
    inbox::Command,
    pool::PoolHandle,
    promise::{locked, promise},
};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};
use storage_socket_proto::Port;

/// Added to the patience of a connect before the driver itself is given up on.
const DRIVER_GRACE: Duration = Duration::from_secs(5);

/// A reliable, ordered, two-way byte stream through the devices of a pool. Clones are handles of the same stream.
#[derive(Clone)]
pub struct Stream {
    handle: Arc<Handle>,
}

/// Closes the stream when the last user has dropped it (by its flow), and keeps the pool's driver alive until then.
pub(crate) struct Handle {
    /// Before the pool: closed while the driver still lives.
    pub(crate) flow: OwnedFlow,
    timeouts: Mutex<UserTimeouts>,
    _pool: Arc<PoolHandle>,
}

#[derive(Clone, Copy, Default)]
struct UserTimeouts {
    read: Option<Duration>,
    write: Option<Duration>,
}

/// What a stream counts, for as long as there is one; it closes no later for being looked at.
#[derive(Clone)]
pub struct StreamGauge(Weak<Flow>);

impl StreamGauge {
    /// What was counted so far; `None` once the stream is gone.
    #[must_use]
    pub fn stats(&self) -> Option<StreamStats> {
        self.0.upgrade().map(|flow| flow.stats())
    }
}

impl std::fmt::Debug for StreamGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamGauge")
    }
}

/// What a stream has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Bytes that the user wrote.
    pub bytes_sent: u64,
    /// Bytes that the user read.
    pub bytes_received: u64,
    /// Frames written to devices for the first time.
    pub frames_sent: u64,
    /// Frames written again because the peer asked.
    pub frames_resent: u64,
    /// Frames that this end asked the peer to write again.
    pub resends_requested: u64,
    /// Frames on their way to the peer at present: taken, and not acknowledged yet.
    pub frames_outstanding: u64,
    /// Frames that may be sent at present before the peer acknowledges any more.
    pub credits: u64,
    /// Frames that came in whole.
    pub frames_received: u64,
    /// Reads of announced frames that found them damaged.
    pub damaged_reads: u64,
    /// Reads ahead of the announcement that found nothing.
    pub early_reads: u64,
    /// Control blocks written: announcements and credits.
    pub control_writes: u64,
    /// Control blocks read: polls.
    pub control_reads: u64,
    /// Writes that had to wait for room in the ring.
    pub writes_blocked: u64,
    /// Reads that had to wait for data.
    pub reads_blocked: u64,
    /// Doorbells rung for the peer.
    pub doorbells_rung: u64,
    /// Doorbells heard.
    pub doorbells_heard: u64,
    /// Bytes of the buffers that this end had to take for frames.
    pub buffer_bytes: u64,
}

impl Stream {
    /// Connects to a port of the pool's coordinator, waiting at most `patience`.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] with the coordinator's reason, [`io::ErrorKind::TimedOut`] without an
    /// answer; the inner error is an [`Error`](crate::Error).
    pub fn connect(
        pool: &Pool,
        port: Port,
        options: StreamOptions,
        patience: Duration,
    ) -> io::Result<Self> {
        let (fulfil, reply) = promise();
        pool.handle.inbox.send(Command::Connect {
            port,
            options: Box::new(options),
            patience,
            reply: fulfil,
        });
        let flow = reply.wait(patience + DRIVER_GRACE);
        Self::connected(pool, flow)
    }

    fn connected(pool: &Pool, flow: Option<Result<OwnedFlow, Error>>) -> io::Result<Self> {
        let flow = flow.ok_or_else(|| pool.handle.inbox.unanswered("connecting"))??;
        Ok(Self::new(flow, pool.handle.clone()))
    }

    pub(crate) fn new(flow: OwnedFlow, pool: Arc<PoolHandle>) -> Self {
        Self {
            handle: Arc::new(Handle {
                flow,
                timeouts: Mutex::default(),
                _pool: pool,
            }),
        }
    }

    /// Pool, slot and port of the connection; the slot is the member's at either end.
    #[must_use]
    pub fn peer_addr(&self) -> StreamAddr {
        self.handle.flow.addr
    }

    /// The most that one frame carries: writes of this size are copied and sealed in one pass.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.handle.flow.payload_bytes_max
    }

    /// Ends one direction or both. What was written before is still sent; what comes in afterwards is thrown away.
    ///
    /// # Errors
    /// None at present; the signature is that of a TCP stream.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.handle.flow.finish();
        }
        if how != Shutdown::Write {
            self.handle.flow.discard();
        }
        Ok(())
    }

    /// Waits until the peer has received everything up to the end of this direction, which has to be shut down.
    ///
    /// # Errors
    /// The stream was reset, or `patience` is over.
    pub fn wait_finished(&self, patience: Duration) -> io::Result<()> {
        let flow = &self.handle.flow;
        let deadline = Instant::now() + patience;
        let _waits = flow.waits_to_write();
        let mut send = locked(&flow.send);
        loop {
            if send.finish_acknowledged {
                return Ok(());
            }
            if let Some(end) = &send.end {
                return Err(flow.error(end).into());
            }
            let what = "waiting for the end to be acknowledged";
            send = sleep(&flow.send_changed, send, Some(deadline), what)?;
        }
    }

    /// How long a read may wait; `None` is for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        locked(&self.handle.timeouts).read = timeout;
    }

    /// How long a write may wait for room; `None` is for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        locked(&self.handle.timeouts).write = timeout;
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.handle.flow.stats()
    }

    /// A view of what is counted that keeps nothing alive.
    #[must_use]
    pub fn gauge(&self) -> StreamGauge {
        StreamGauge(self.handle.flow.downgrade())
    }

    /// Splits the stream into a half that reads and a half that writes; dropping the latter shuts its direction down.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        let read = ReadHalf {
            stream: self.clone(),
        };
        (read, WriteHalf { stream: self })
    }

    /// Waits for what `attempt` finds, at most for the read time-out.
    fn read_when_there<T>(
        &self,
        mut attempt: impl FnMut(&Flow) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let flow = &self.handle.flow;
        let timeout = locked(&self.handle.timeouts).read;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let mut wheel = flow.wheel();
            if let Some(found) = attempt(flow)? {
                return Ok(found);
            }
            flow.counters.reads_blocked.fetch_add(1, Ordering::Relaxed);
            let _waits = flow.waits_to_read();
            if let Some(wheel) = &mut wheel {
                drive(flow, wheel, deadline)?;
                continue;
            }
            let mut receive = locked(&flow.receive);
            if receive.is_idle() {
                receive.sleepers += 1;
                let woken = sleep(&flow.receive_changed, receive, deadline, "reading");
                match woken {
                    Ok(mut receive) => receive.sleepers -= 1,
                    Err(error) => {
                        locked(&flow.receive).sleepers -= 1;
                        return Err(error);
                    }
                }
            }
        }
    }

    fn write_some(&self, data: &[u8]) -> Result<usize, Error> {
        let flow = &self.handle.flow;
        let timeout = locked(&self.handle.timeouts).write;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            // Taken before the attempt: room that is made after it changes the count, and the wait is skipped.
            let mut wheel = flow.wheel();
            let before = locked(&flow.send).changes;
            let count = flow.try_write(data)?;
            if let Some(wheel) = &mut wheel {
                wheel.turn(Some(Duration::ZERO));
            }
            drop(wheel);
            if count > 0 || data.is_empty() {
                return Ok(count);
            }
            flow.counters.writes_blocked.fetch_add(1, Ordering::Relaxed);
            let _waits = flow.waits_to_write();
            let send = locked(&flow.send);
            if send.changes == before {
                let _woken = sleep(&flow.send_changed, send, deadline, "writing")?;
            }
        }
    }
}

/// Makes the driver's turns until there is something to read.
fn drive(flow: &Flow, wheel: &mut AtWheel<'_>, deadline: Option<Instant>) -> Result<(), Error> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Error::TimedOut { what: "reading" });
        }
        let turn = wheel.turn(left);
        if turn == Turn::Over || !locked(&flow.receive).is_idle() {
            return Ok(());
        }
    }
}

/// Waits for a change or the deadline.
fn sleep<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
    what: &'static str,
) -> Result<MutexGuard<'a, T>, Error> {
    let Some(deadline) = deadline else {
        return Ok(changed.wait(guard).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::TimedOut { what });
    }
    let (guard, _) = changed
        .wait_timeout(guard, left)
        .unwrap_or_else(PoisonError::into_inner);
    Ok(guard)
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.handle.flow.addr)
    }
}

impl Read for &Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let room = out.len();
        Ok(self.read_when_there(|flow| {
            flow.try_read(room, |piece| out[..piece.len()].copy_from_slice(piece))
        })?)
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(self.write_some(data)?)
    }

    /// Sends what waits for more in a frame that is only partly filled.
    fn flush(&mut self) -> io::Result<()> {
        Ok(self.handle.flow.flush()?)
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&*self).read(out)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

/// The half of a stream that reads.
#[derive(Debug)]
pub struct ReadHalf {
    stream: Stream,
}

/// The half of a stream that writes; dropping it shuts its direction down.
#[derive(Debug)]
pub struct WriteHalf {
    stream: Stream,
}

impl ReadHalf {
    /// The whole stream.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl WriteHalf {
    /// The whole stream.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.stream.handle.flow.finish();
    }
}

impl Read for ReadHalf {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(out)
    }
}

impl Write for WriteHalf {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&self.stream).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.stream).flush()
    }
}
