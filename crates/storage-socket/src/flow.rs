//! What the users of a stream and the driver thread share: frames on their way out, frames that came in, and the end.
//!
//! Users seal in their own threads, so the long lock (`writer`) is theirs and the driver only tries it; the locks that
//! both take are held for moments, and whoever waits is woken after they were let go of: a waker is anybody's code.
//! Sequences are given out here: one frame after another, below the limit that the
//! driver sets from the room in the ring.

mod waits;

use crate::{Error, StreamStats, error::StopReason, inbox::Inbox, promise::locked};
use direct_io::{AlignedBuf, BufferPool};
use std::{
    collections::VecDeque,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, TryLockError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
};
use storage_socket_proto::{
    ConnectionId, ConnectionStats, FRAME_HEADER_BYTES, FrameSealer, Incarnation, Polling, PoolId,
    Port, ResetReason, Sequence, SlotIndex,
};

/// Who is at the other end of a stream, and by which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAddr {
    /// The pool.
    pub pool: PoolId,
    /// The member's slot, whichever end this is.
    pub slot: SlotIndex,
    /// The member's incarnation.
    pub incarnation: Incarnation,
    /// The storage port.
    pub port: Port,
    /// The connection.
    pub connection: ConnectionId,
}

pub(crate) struct Flow {
    pub(crate) addr: StreamAddr,
    pub(crate) payload_bytes_max: usize,
    pub(crate) counters: Counters,
    sealer: FrameSealer,
    buffers: Buffers,
    writer: Mutex<Writer>,
    reader: Mutex<Option<Arrived>>,
    pub(crate) send: Mutex<Send>,
    pub(crate) send_changed: Condvar,
    pub(crate) receive: Mutex<Receive>,
    pub(crate) receive_changed: Condvar,
    inbox: Arc<Inbox>,
    is_touched: AtomicBool,
    pub(crate) polling: Polling,
    /// The driver polls without a pause at present.
    is_hot: AtomicBool,
    /// Threads that wait to read.
    reading: AtomicUsize,
    /// Threads that wait for room.
    writing: AtomicUsize,
}

/// Where a stream's frames are.
pub(crate) struct Buffers {
    pub(crate) sends: BufferPool,
    pub(crate) receives: BufferPool,
}

/// What a stream counts besides its machine.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) writes_blocked: AtomicU64,
    pub(crate) reads_blocked: AtomicU64,
    pub(crate) doorbells_rung: AtomicU64,
    pub(crate) doorbells_heard: AtomicU64,
}

/// The frame that is being filled, and the sequence that it will have.
struct Writer {
    open: Option<(AlignedBuf, usize)>,
    next: u64,
}

/// A frame that is sealed and waits for the driver.
pub(crate) struct Sealed {
    pub(crate) sequence: Sequence,
    pub(crate) payload_bytes: usize,
    pub(crate) bytes: usize,
    pub(crate) buf: AlignedBuf,
}

/// What the driver takes over from the user.
pub(crate) struct Handover {
    pub(crate) ready: VecDeque<Sealed>,
    /// The user sends nothing after these.
    pub(crate) is_finished: bool,
    /// The user is gone besides.
    pub(crate) is_closed: bool,
    /// The user has finished, but a writer is in between: ask again.
    pub(crate) is_writer_busy: bool,
}

/// A frame that was opened and waits for the reader.
pub(crate) struct Arrived {
    pub(crate) sequence: Sequence,
    pub(crate) buf: AlignedBuf,
    pub(crate) at: usize,
    pub(crate) end: usize,
}

#[derive(Default)]
pub(crate) struct Send {
    /// Frames below this sequence have room in the ring.
    pub(crate) limit: u64,
    pub(crate) ready: VecDeque<Sealed>,
    /// Frames sealed and not yet written to the device.
    pub(crate) unwritten: usize,
    /// Whether a frame is open that holds bytes.
    has_tail: bool,
    /// The user sends nothing more.
    pub(crate) finish: bool,
    /// The user is gone.
    pub(crate) close: bool,
    /// The peer has received everything up to the end.
    pub(crate) finish_acknowledged: bool,
    pub(crate) end: Option<End>,
    pub(crate) waker: Option<Waker>,
    /// Advances whenever a writer may find something new.
    pub(crate) changes: u64,
}

#[derive(Default)]
pub(crate) struct Receive {
    pub(crate) arrived: VecDeque<Arrived>,
    pub(crate) released: Vec<Sequence>,
    pub(crate) finished: bool,
    /// The user reads nothing more.
    discard: bool,
    pub(crate) end: Option<End>,
    pub(crate) waker: Option<Waker>,
    /// Threads that sleep until something changes.
    pub(crate) sleepers: usize,
    pub(crate) machine: ConnectionStats,
}

/// Why a stream is over.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Reset {
        reason: ResetReason,
        device: Option<PathBuf>,
    },
    Stopped(StopReason),
}

impl Receive {
    /// Whether a reader has to wait.
    pub(crate) fn is_idle(&self) -> bool {
        self.arrived.is_empty() && !self.finished && !self.discard && self.end.is_none()
    }
}

impl std::fmt::Display for StreamAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.pool, self.slot, self.port)
    }
}

impl Flow {
    pub(crate) fn new(
        addr: StreamAddr,
        payload_bytes_max: usize,
        sealer: FrameSealer,
        buffers: Buffers,
        (polling, inbox): (Polling, Arc<Inbox>),
    ) -> Self {
        Self {
            addr,
            payload_bytes_max,
            counters: Counters::default(),
            sealer,
            buffers,
            writer: Mutex::new(Writer {
                open: None,
                next: 0,
            }),
            reader: Mutex::new(None),
            send: Mutex::default(),
            send_changed: Condvar::new(),
            receive: Mutex::default(),
            receive_changed: Condvar::new(),
            inbox,
            is_touched: AtomicBool::new(false),
            polling,
            is_hot: AtomicBool::new(false),
            reading: AtomicUsize::new(0),
            writing: AtomicUsize::new(0),
        }
    }

    pub(crate) fn error(&self, end: &End) -> Error {
        match end {
            End::Reset { reason, device } => Error::Reset {
                reason: *reason,
                device: device.clone(),
            },
            End::Stopped(why) => Error::Stopped {
                pool: self.addr.pool,
                why: why.clone(),
            },
        }
    }

    /// Bytes of the buffers that were needed so far.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffers.sends.mapped_bytes() + self.buffers.receives.mapped_bytes()
    }

    /// What was counted so far.
    pub(crate) fn stats(&self) -> StreamStats {
        let machine = locked(&self.receive).machine;
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StreamStats {
            bytes_sent: counted(&self.counters.bytes_sent),
            bytes_received: counted(&self.counters.bytes_received),
            frames_sent: machine.frames_sent,
            frames_resent: machine.frames_resent,
            resends_requested: machine.resends_requested,
            frames_outstanding: machine.frames_outstanding,
            credits: machine.credits,
            frames_received: machine.frames_received,
            damaged_reads: machine.damaged_reads,
            early_reads: machine.early_reads,
            control_writes: machine.control_writes,
            control_reads: machine.control_reads,
            writes_blocked: counted(&self.counters.writes_blocked),
            reads_blocked: counted(&self.counters.reads_blocked),
            doorbells_rung: counted(&self.counters.doorbells_rung),
            doorbells_heard: counted(&self.counters.doorbells_heard),
            buffer_bytes: self.buffer_bytes() as u64,
        }
    }

    /// Asks the driver to look at this stream.
    fn touch(&self) {
        if !self.is_touched.swap(true, Ordering::SeqCst) {
            self.inbox.touch(self.addr.connection);
        }
    }

    /// The driver looks now: what comes later has to touch again.
    pub(crate) fn untouch(&self) {
        self.is_touched.store(false, Ordering::SeqCst);
    }

    /// Takes as much of `data` as there is room for; 0 when there is none at present.
    pub(crate) fn try_write(&self, data: &[u8]) -> Result<usize, Error> {
        if data.is_empty() {
            return Ok(0);
        }
        let mut writer = locked(&self.writer);
        self.check_writable()?;
        let mut taken = 0;
        while taken < data.len() {
            let rest = &data[taken..];
            let (mut buf, filled) = match writer.open.take() {
                Some(open) => open,
                None => match self.place(&writer)? {
                    Some(buf) => (buf, 0),
                    None => break,
                },
            };
            let count = rest.len().min(self.payload_bytes_max - filled);
            if filled == 0 && count == self.payload_bytes_max {
                self.seal(&mut writer, buf, count, Some(&rest[..count]))?;
            } else {
                let start = FRAME_HEADER_BYTES + filled;
                buf[start..start + count].copy_from_slice(&rest[..count]);
                let filled = filled + count;
                if filled == self.payload_bytes_max {
                    self.seal(&mut writer, buf, filled, None)?;
                } else {
                    writer.open = Some((buf, filled));
                }
            }
            taken += count;
        }
        self.settle_tail(&mut writer)?;
        self.counters
            .bytes_sent
            .fetch_add(taken as u64, Ordering::Relaxed);
        Ok(taken)
    }

    /// Sends what is buffered, if the ring has room; the driver does it later otherwise.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        let mut writer = locked(&self.writer);
        let end = locked(&self.send).end.clone();
        if let Some(end) = end {
            return Err(self.error(&end));
        }
        self.seal_tail(&mut writer)
    }

    fn check_writable(&self) -> Result<(), Error> {
        let send = locked(&self.send);
        match &send.end {
            Some(end) => Err(self.error(end)),
            None if send.finish => Err(Error::ShutDown),
            None => Ok(()),
        }
    }

    /// A buffer for the next frame, if ring and memory have room for it.
    fn place(&self, writer: &Writer) -> Result<Option<AlignedBuf>, Error> {
        if writer.next >= locked(&self.send).limit {
            return Ok(None);
        }
        Ok(self.buffers.sends.take()?)
    }

    /// Seals a frame and gives it to the driver. The payload is already in its place unless it is given.
    fn seal(
        &self,
        writer: &mut Writer,
        mut buf: AlignedBuf,
        payload_bytes: usize,
        payload: Option<&[u8]>,
    ) -> Result<(), Error> {
        let sequence = Sequence(writer.next);
        let blocks = match payload {
            Some(payload) => self.sealer.seal_from(sequence, payload, &mut buf)?,
            None => self
                .sealer
                .seal_in_place(sequence, payload_bytes, &mut buf)?,
        };
        writer.next += 1;
        {
            let mut send = locked(&self.send);
            send.unwritten += 1;
            send.ready.push_back(Sealed {
                sequence,
                payload_bytes,
                bytes: blocks.bytes(),
                buf,
            });
        }
        self.touch();
        Ok(())
    }

    /// After a write: a frame that is only partly filled goes at once when nothing is under way, and otherwise waits
    /// for more until that was written.
    fn settle_tail(&self, writer: &mut Writer) -> Result<(), Error> {
        let waits = {
            let mut send = locked(&self.send);
            send.has_tail = writer.open.is_some();
            send.has_tail && send.unwritten > 0
        };
        if waits {
            Ok(())
        } else {
            self.seal_tail(writer)
        }
    }

    fn seal_tail(&self, writer: &mut Writer) -> Result<(), Error> {
        let Some((buf, filled)) = writer.open.take() else {
            return Ok(());
        };
        locked(&self.send).has_tail = false;
        self.seal(writer, buf, filled, None)
    }

    /// For the driver: seals a tail that waited, unless its writer is at it right now. Returns whether one still
    /// waits.
    pub(crate) fn tend_tail(&self) -> bool {
        let (wanted, finish) = {
            let send = locked(&self.send);
            let idle = send.unwritten == 0 || send.finish;
            (send.has_tail && idle && send.end.is_none(), send.finish)
        };
        if !wanted {
            return false;
        }
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::WouldBlock) => return true,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        if let Err(error) = self.seal_tail(&mut writer) {
            // Only a sequence without a key could do this; the stream can't go on.
            tracing::error!(%error, finish, "can't seal the last frame");
        }
        false
    }

    /// For the driver: takes the frames that are sealed, and tells whether they are the last.
    pub(crate) fn take_sealed(&self) -> Handover {
        // A writer that is at it right now may have looked before the user finished, and may seal one frame more.
        // Once the lock was free after that, nobody does.
        let writer = match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        };
        let mut send = locked(&self.send);
        let is_last = send.finish && !send.has_tail && writer.is_some();
        Handover {
            ready: std::mem::take(&mut send.ready),
            is_finished: is_last,
            is_closed: is_last && send.close,
            is_writer_busy: send.finish && writer.is_none(),
        }
    }

    /// Sends nothing after what was written.
    pub(crate) fn finish(&self) {
        locked(&self.send).finish = true;
        self.touch();
    }

    /// Wants nothing more that comes in.
    pub(crate) fn discard(&self) {
        // The frame that was read in part is given back as well, and before those after it.
        let mut reader = locked(&self.reader);
        let waker = self.edit_receive(|receive| {
            receive.discard = true;
            let half_read = reader.take();
            let dropped: Vec<_> = half_read
                .into_iter()
                .chain(receive.arrived.drain(..))
                .map(|frame| frame.sequence)
                .collect();
            receive.released.extend(dropped);
        });
        drop(reader);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.touch();
    }

    /// The user is gone.
    pub(crate) fn close(&self) {
        {
            let mut send = locked(&self.send);
            send.finish = true;
            send.close = true;
        }
        self.discard();
    }

    /// Hands `into` as much as there is room for; `None` when nothing is there at present, 0 at the end.
    pub(crate) fn try_read(
        &self,
        room: usize,
        into: impl FnOnce(&[u8]),
    ) -> Result<Option<usize>, Error> {
        if room == 0 {
            return Ok(Some(0));
        }
        let mut reader = locked(&self.reader);
        let mut frame = match reader.take() {
            Some(frame) => frame,
            None => match self.next_frame()? {
                Next::Frame(frame) => frame,
                Next::End => return Ok(Some(0)),
                Next::Nothing => return Ok(None),
            },
        };
        let count = room.min(frame.end - frame.at);
        into(&frame.buf[frame.at..frame.at + count]);
        frame.at += count;
        self.counters
            .bytes_received
            .fetch_add(count as u64, Ordering::Relaxed);
        if frame.at < frame.end {
            *reader = Some(frame);
        } else {
            let sequence = frame.sequence;
            drop(frame);
            self.give_back(sequence);
        }
        Ok(Some(count))
    }

    /// The next frame, or what is left of one that was read in part; [`Next::Nothing`] when none is there at present.
    /// It is the caller's until he gives it back.
    pub(crate) fn try_read_frame(&self) -> Result<Next, Error> {
        let mut reader = locked(&self.reader);
        let next = match reader.take() {
            Some(frame) => Next::Frame(frame),
            None => self.next_frame()?,
        };
        if let Next::Frame(frame) = &next {
            let count = (frame.end - frame.at) as u64;
            self.counters
                .bytes_received
                .fetch_add(count, Ordering::Relaxed);
        }
        Ok(next)
    }

    /// The reader is done with a frame, whose buffer is back in its pool: one more may be read.
    pub(crate) fn give_back(&self, sequence: Sequence) {
        locked(&self.receive).released.push(sequence);
        if !self.is_touched.swap(true, Ordering::SeqCst) {
            self.inbox.touch_some_time(self.addr.connection);
        }
    }

    fn next_frame(&self) -> Result<Next, Error> {
        let mut receive = locked(&self.receive);
        if let Some(frame) = receive.arrived.pop_front() {
            return Ok(Next::Frame(frame));
        }
        match &receive.end {
            _ if receive.finished || receive.discard => Ok(Next::End),
            Some(end) => Err(self.error(end)),
            None => Ok(Next::Nothing),
        }
    }

    /// For the driver: a frame has come.
    pub(crate) fn deliver(&self, frame: Arrived) {
        self.change_receive(|receive| {
            if receive.discard {
                receive.released.push(frame.sequence);
            } else {
                receive.arrived.push_back(frame);
            }
        });
    }

    /// For the driver: the peer sends nothing more.
    pub(crate) fn peer_finished(&self) {
        self.change_receive(|receive| receive.finished = true);
    }

    /// For the driver: the stream is over. The first reason stays.
    pub(crate) fn end(&self, end: &End) {
        self.change_send(|send| {
            send.end.get_or_insert_with(|| end.clone());
            send.ready.clear();
        });
        self.change_receive(|receive| {
            receive.end.get_or_insert_with(|| end.clone());
        });
    }

    /// Changes what writers see, and wakes those that wait.
    pub(crate) fn change_send(&self, change: impl FnOnce(&mut Send)) {
        let waker = {
            let mut send = locked(&self.send);
            change(&mut send);
            send.changes += 1;
            send.waker.take()
        };
        // Whoever begins to wait says so before he looks.
        if self.writing.load(Ordering::SeqCst) > 0 {
            self.send_changed.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Changes what readers see, and wakes those that wait.
    fn change_receive(&self, change: impl FnOnce(&mut Receive)) {
        if let Some(waker) = self.edit_receive(change) {
            waker.wake();
        }
    }

    /// Changes what readers see, and returns the task that waits: it is to be woken without any lock.
    fn edit_receive(&self, change: impl FnOnce(&mut Receive)) -> Option<Waker> {
        let mut receive = locked(&self.receive);
        change(&mut receive);
        if receive.sleepers > 0 {
            self.receive_changed.notify_all();
        }
        receive.waker.take()
    }

    /// Registers whom to wake, if a reader has to wait; returns whether it has to.
    pub(crate) fn wait_to_read(&self, waker: &Waker) -> bool {
        // Neither the copy nor the end of the one before is made under the lock.
        let waker = waker.clone();
        let mut receive = locked(&self.receive);
        if !receive.is_idle() {
            return false;
        }
        let before = receive.waker.replace(waker);
        drop(receive);
        drop(before);
        self.urge();
        true
    }

    /// Registers whom to wake, if nothing has changed for writers since the count was `changes`; returns whether it is
    /// registered.
    pub(crate) fn wait_to_write(&self, changes: u64, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut send = locked(&self.send);
        if send.changes != changes {
            return false;
        }
        let before = send.waker.replace(waker);
        drop(send);
        drop(before);
        self.urge();
        true
    }
}

/// A stream on its way to its user, and then in his hands: whoever drops it closes the stream. A reply that nobody
/// waits for any more thus ends what it brings.
pub(crate) struct OwnedFlow(Arc<Flow>);

impl OwnedFlow {
    pub(crate) fn new(flow: Arc<Flow>) -> Self {
        Self(flow)
    }

    pub(crate) fn downgrade(&self) -> Weak<Flow> {
        Arc::downgrade(&self.0)
    }
}

impl Deref for OwnedFlow {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.0
    }
}

impl Drop for OwnedFlow {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(crate) enum Next {
    Frame(Arrived),
    End,
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Protection, driver::tests::grant};
    use direct_io::{Engine, EngineOptions};
    use std::task::Wake;
    use storage_socket_proto::{ConnectionConfig, Direction};

    fn flow() -> Flow {
        let grant = grant(Port(1), 100);
        let identity = ConnectionConfig::identity(PoolId(uuid::Uuid::nil()), &grant);
        let engine = Engine::new(Vec::new(), EngineOptions::default()).unwrap();
        Flow::new(
            StreamAddr {
                pool: identity.pool,
                slot: grant.slot,
                incarnation: grant.incarnation,
                port: grant.port,
                connection: grant.connection,
            },
            1000,
            FrameSealer::new(identity, Direction::ToMember, &Protection::Checksum),
            Buffers {
                sends: BufferPool::new(1 << 16, 8),
                receives: BufferPool::new(1 << 16, 8),
            },
            (
                Polling::Adaptive,
                Arc::new(Inbox::new(identity.pool, 0, engine.waker())),
            ),
        )
    }

    #[test]
    fn end_is_not_told_while_a_writer_may_seal_one_frame_more() {
        let flow = flow();
        locked(&flow.send).limit = 8;
        let writer = locked(&flow.writer);
        flow.finish();
        let handover = flow.take_sealed();
        assert!(!handover.is_finished && handover.is_writer_busy);
        drop(writer);
        let handover = flow.take_sealed();
        assert!(handover.is_finished && !handover.is_writer_busy);
        assert!(matches!(flow.try_write(b"late"), Err(Error::ShutDown)));
    }

    /// Notes whether all locks of a flow are free while it is woken, and again when it ends.
    struct Nosy {
        flow: Arc<Flow>,
        free: Arc<Mutex<Vec<bool>>>,
    }

    impl Nosy {
        fn look(&self) {
            let flow = &self.flow;
            let free = flow.writer.try_lock().is_ok()
                && flow.reader.try_lock().is_ok()
                && flow.send.try_lock().is_ok()
                && flow.receive.try_lock().is_ok();
            self.free.lock().unwrap().push(free);
        }
    }

    impl Wake for Nosy {
        fn wake(self: Arc<Self>) {
            self.look();
        }
    }

    impl Drop for Nosy {
        fn drop(&mut self) {
            self.look();
        }
    }

    #[test]
    fn whoever_is_woken_or_replaced_finds_the_locks_free() {
        let flow = Arc::new(flow());
        let free = Arc::new(Mutex::new(Vec::new()));
        let waker = || {
            let (flow, free) = (flow.clone(), free.clone());
            Waker::from(Arc::new(Nosy { flow, free }))
        };
        let end = End::Reset {
            reason: ResetReason::Aborted,
            device: None,
        };
        let arrived = |sequence| Arrived {
            sequence: Sequence(sequence),
            buf: AlignedBuf::new(4096).unwrap(),
            at: 0,
            end: 8,
        };
        // Each has news for a reader, a writer or both.
        let news: [&dyn Fn(); 5] = [
            &|| flow.deliver(arrived(0)),
            &|| flow.peer_finished(),
            &|| flow.change_send(|send| send.limit += 1),
            &|| flow.discard(),
            &|| flow.end(&end),
        ];
        for news in news {
            // The second waker takes the place of the first.
            for _ in 0..2 {
                flow.wait_to_read(&waker());
                let changes = locked(&flow.send).changes;
                assert!(flow.wait_to_write(changes, &waker()));
            }
            news();
            let before = std::mem::take(&mut *locked(&flow.receive));
            drop(before);
        }
        let free = free.lock().unwrap();
        assert!(
            free.len() >= 20 && free.iter().all(|free| *free),
            "{free:?}"
        );
    }

    #[test]
    fn frame_read_in_part_is_given_back_with_the_others() {
        let flow = flow();
        for sequence in [0, 1] {
            flow.deliver(Arrived {
                sequence: Sequence(sequence),
                buf: AlignedBuf::new(4096).unwrap(),
                at: 0,
                end: 8,
            });
        }
        assert_eq!(flow.try_read(3, |_| ()).unwrap(), Some(3));
        flow.discard();
        let released = std::mem::take(&mut locked(&flow.receive).released);
        assert_eq!(released, [Sequence(0), Sequence(1)]);
        assert_eq!(flow.try_read(3, |_| ()).unwrap(), Some(0));
    }
}
