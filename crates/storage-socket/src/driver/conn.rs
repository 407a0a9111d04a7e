//! One connection in the driver: its machine, the frames that may have to be sent again, and its users.

use super::io::{Finished, Io, Kind, Owner, Task};
use crate::{
    flow::{Arrived, End, Flow, Handover},
    promise::locked,
};
use direct_io::{AlignedBuf, BufferPool};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use storage_socket_proto::{
    Connection, ConnectionEvent, ConnectionId, DeviceIndex, FRAME_HEADER_BYTES, FrameOpener,
    FrameVerdict, IoFailure, IoOp, IoOutcome, IoRequest, Polling, ResetReason, Sequence, SlotIndex,
    Tick,
};

pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) slot: SlotIndex,
    pub(crate) machine: Connection,
    pub(crate) flow: Arc<Flow>,
    opener: FrameOpener,
    /// Frames that were not acknowledged, or are being written still.
    sent: BTreeMap<Sequence, Sent>,
    /// Writes that were asked for while the frame's buffer is away with one that took too long.
    awaiting: BTreeMap<Sequence, Task>,
    acknowledged: Sequence,
    reserved: u64,
    /// Frames that opened and wait for those before them.
    received: BTreeMap<Sequence, AlignedBuf>,
    buffers: BufferPool,
    is_finish_told: bool,
    is_close_told: bool,
    /// Set once the machine is drained.
    pub(crate) closed: Option<Option<ResetReason>>,
    /// A partly filled frame waits, and its writer was busy.
    pub(crate) tail_waits: bool,
    /// The device whose loss ended the stream.
    lost: Option<PathBuf>,
    /// When a user last waited for something.
    awaited: Tick,
    /// There was no memory for a transfer, and that was said.
    is_short: bool,
}

/// How soon a partly filled frame is looked at again whose writer was busy.
const TAIL_RETRY: Duration = Duration::from_micros(200);

/// Whoever has got something may soon wait for more: a device that is polled without a pause is polled so for as long
/// after the last wait.
const HOT_LINGER: Duration = Duration::from_millis(1);

struct Sent {
    /// Away while it is being written.
    buf: Option<AlignedBuf>,
    bytes: usize,
    is_written: bool,
}

impl Conn {
    pub(crate) fn new(
        machine: Connection,
        flow: Arc<Flow>,
        opener: FrameOpener,
        buffers: BufferPool,
    ) -> Self {
        Self {
            id: flow.addr.connection,
            slot: flow.addr.slot,
            machine,
            flow,
            opener,
            sent: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            acknowledged: Sequence(0),
            reserved: 0,
            received: BTreeMap::new(),
            buffers,
            is_finish_told: false,
            is_close_told: false,
            closed: None,
            tail_waits: false,
            lost: None,
            awaited: Tick::default(),
            is_short: false,
        }
    }

    /// Does everything that can be done now: takes what users left, starts transfers, tells users the news.
    /// Returns whether the peer should be rung.
    pub(crate) fn pump(&mut self, now: Tick, io: &mut Io) -> bool {
        self.flow.untouch();
        self.tail_waits = self.flow.tend_tail();
        self.take_from_users(now);
        self.attend(now);
        loop {
            let mut is_quiet = true;
            while let Some(request) = self.machine.poll_io(now) {
                self.start(now, io, request);
                is_quiet = false;
            }
            is_quiet &= self.tell(now, io);
            if is_quiet {
                break;
            }
        }
        self.tell_users();
        let rings = self.machine.poll_doorbell();
        if rings {
            let counter = &self.flow.counters.doorbells_rung;
            counter.fetch_add(1, Ordering::Relaxed);
        }
        rings
    }

    /// Tells users the news. Returns whether there were none.
    pub(crate) fn tell(&mut self, now: Tick, io: &Io) -> bool {
        // Before the news: whoever they wake finds them counted.
        locked(&self.flow.receive).machine = self.machine.stats();
        let mut is_quiet = true;
        while let Some(event) = self.machine.poll_event() {
            if let ConnectionEvent::Reset {
                device: Some(device),
                ..
            } = &event
                && let Some(device) = io.device(*device)
            {
                self.lost.get_or_insert_with(|| device.path().to_owned());
            }
            self.apply(now, event);
            is_quiet = false;
        }
        is_quiet
    }

    /// Polls without a pause while a user waits, if that is wanted.
    fn attend(&mut self, now: Tick) {
        if self.flow.polling != Polling::Hot {
            return;
        }
        let is_just_now = |conn: &mut Self| {
            if conn.flow.is_awaited() {
                conn.awaited = now;
            }
            now.since(conn.awaited) < HOT_LINGER
        };
        let mut is_hot = is_just_now(self);
        self.flow.set_hot(is_hot);
        if !is_hot && is_just_now(self) {
            // Whoever begins to wait in between relied on what was said before.
            self.flow.set_hot(true);
            is_hot = true;
        }
        let polling = if is_hot {
            Polling::Hot
        } else {
            Polling::Adaptive
        };
        self.machine.set_polling(now, polling);
    }

    /// When there is something to do, if nothing comes before.
    pub(crate) fn due(&self, now: Tick) -> Option<Tick> {
        let tail = self.tail_waits.then(|| now + TAIL_RETRY);
        self.machine.poll_timeout().into_iter().chain(tail).min()
    }

    /// A device is lost: a group over it can't go on.
    pub(crate) fn lose_device(&mut self, now: Tick, device: DeviceIndex, path: PathBuf) {
        if self.machine.grant().group.devices.contains(device) {
            self.lost.get_or_insert(path);
            self.machine.abort(now, ResetReason::DeviceLost);
        }
    }

    fn take_from_users(&mut self, now: Tick) {
        let Handover {
            ready,
            is_finished,
            is_closed,
            is_writer_busy,
        } = self.flow.take_sealed();
        self.tail_waits |= is_writer_busy;
        for frame in ready {
            match self.machine.reserve(now, frame.payload_bytes) {
                Ok(ticket) => {
                    debug_assert_eq!(ticket.sequence, frame.sequence);
                    self.reserved = ticket.sequence.0 + 1;
                    self.sent.insert(
                        frame.sequence,
                        Sent {
                            buf: Some(frame.buf),
                            bytes: frame.bytes,
                            is_written: false,
                        },
                    );
                    self.machine.handle_sealed(now, frame.sequence);
                }
                // The stream was reset in between; its users learn that from the event.
                Err(error) => tracing::debug!(%error, connection = %self.id, "frame not taken"),
            }
        }
        if is_finished && !self.is_finish_told {
            self.is_finish_told = true;
            self.machine.finish(now);
        }
        if is_closed && !self.is_close_told {
            self.is_close_told = true;
            self.machine.close(now);
        }
        let released = std::mem::take(&mut locked(&self.flow.receive).released);
        for sequence in released {
            self.machine.release(now, sequence);
        }
    }

    fn start(&mut self, now: Tick, io: &mut Io, request: IoRequest) {
        let (kind, buf, bytes) = match &request.op {
            IoOp::Read => {
                let bytes = request.blocks.bytes();
                (Kind::Read, self.taken(io.buffer(bytes)), bytes)
            }
            IoOp::Write(block) => {
                let buf = self.taken(io.filled(block));
                (Kind::Write, buf, request.blocks.bytes())
            }
            IoOp::ReadFrame(sequence) => {
                let buf = self.buffers.take();
                let buf = self.taken(buf).flatten();
                (Kind::ReadFrame(*sequence), buf, request.blocks.bytes())
            }
            IoOp::WriteFrame(sequence) => {
                let sent = self.sent.get_mut(sequence);
                let (buf, bytes) = sent.map_or((None, 0), |sent| (sent.buf.take(), sent.bytes));
                (Kind::WriteFrame(*sequence), buf, bytes)
            }
        };
        let task = Task {
            owner: Owner::Connection(self.id),
            id: request.id,
            kind,
            device: request.device,
            lba: request.lba,
            bytes,
            started: now,
        };
        match (buf, kind) {
            (Some(buf), _) => io.start(task, buf),
            // The write before is not back yet: what becomes of it decides this one as well.
            (None, Kind::WriteFrame(sequence)) if self.sent.contains_key(&sequence) => {
                self.awaiting.insert(sequence, task);
                io.park(task);
            }
            // The buffers are out with transfers that hang, or there is no memory: this one can't start either.
            (None, _) => self.fail(now, &task, IoFailure::TimedOut),
        }
    }

    /// A buffer, unless there is no memory for it. That is said once: the transfer is tried again and again, and at last
    /// its device counts as lost.
    fn taken<T>(&mut self, buf: Result<T, direct_io::Error>) -> Option<T> {
        buf.inspect_err(|error| {
            if !std::mem::replace(&mut self.is_short, true) {
                tracing::error!(%error, connection = %self.id, "no buffer for a transfer of a stream");
            }
        })
        .ok()
    }

    /// Tells the machine that a transfer failed.
    pub(crate) fn fail(&mut self, now: Tick, task: &Task, failure: IoFailure) {
        match task.kind {
            Kind::ReadFrame(_) => {
                let verdict = FrameVerdict::Failed(failure);
                self.machine.handle_frame_read(now, task.id, verdict);
            }
            Kind::Read | Kind::Write | Kind::WriteFrame(_) => {
                let outcome = IoOutcome::Failed(failure);
                self.machine.handle_io(now, task.id, outcome);
            }
        }
    }

    /// A transfer of this connection has ended.
    pub(crate) fn complete(&mut self, now: Tick, finished: Finished) {
        let Finished {
            task,
            mut buf,
            result,
            is_late,
        } = finished;
        if let Kind::WriteFrame(sequence) = task.kind {
            self.take_back(sequence, buf, result.is_ok());
            let again = self.awaiting.remove(&sequence).map(|again| again.id);
            let asked = if is_late { again } else { Some(task.id) };
            if let Some(id) = asked {
                let outcome = match result {
                    Ok(()) => IoOutcome::Written,
                    Err(failure) => IoOutcome::Failed(failure),
                };
                self.machine.handle_io(now, id, outcome);
            }
            return;
        }
        if is_late {
            return;
        }
        if let Err(failure) = result {
            self.fail(now, &task, failure);
            return;
        }
        match task.kind {
            Kind::ReadFrame(sequence) => {
                let verdict = self.opener.open_in_place(sequence, &mut buf[..task.bytes]);
                if matches!(verdict, FrameVerdict::Whole { .. }) {
                    self.received.insert(sequence, buf);
                }
                self.machine.handle_frame_read(now, task.id, verdict);
            }
            Kind::Read => {
                let outcome = IoOutcome::Read(&buf[..task.bytes]);
                self.machine.handle_io(now, task.id, outcome);
            }
            Kind::Write | Kind::WriteFrame(_) => {
                self.machine.handle_io(now, task.id, IoOutcome::Written);
            }
        }
    }

    /// A frame's buffer came back from a write.
    fn take_back(&mut self, sequence: Sequence, buf: AlignedBuf, is_written: bool) {
        if sequence < self.acknowledged {
            let removed = self.sent.remove(&sequence);
            drop(buf);
            self.flow.change_send(|send| {
                if removed.is_some_and(|sent| !sent.is_written) {
                    send.unwritten = send.unwritten.saturating_sub(1);
                }
            });
        } else if let Some(sent) = self.sent.get_mut(&sequence) {
            sent.buf = Some(buf);
            if is_written && !std::mem::replace(&mut sent.is_written, true) {
                let mut send = locked(&self.flow.send);
                send.unwritten = send.unwritten.saturating_sub(1);
            }
        }
    }

    fn apply(&mut self, now: Tick, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Acknowledged { below } => self.acknowledge(below),
            ConnectionEvent::Delivered {
                sequence,
                payload_bytes,
            } => match self.received.remove(&sequence) {
                Some(buf) => self.flow.deliver(Arrived {
                    sequence,
                    buf,
                    at: FRAME_HEADER_BYTES,
                    end: FRAME_HEADER_BYTES + payload_bytes,
                }),
                None => self.machine.abort(now, ResetReason::Protocol),
            },
            ConnectionEvent::PeerFinished => self.flow.peer_finished(),
            ConnectionEvent::FinishAcknowledged => {
                self.flow
                    .change_send(|send| send.finish_acknowledged = true);
            }
            ConnectionEvent::Reset {
                reason,
                by,
                failure,
                device,
            } => {
                tracing::debug!(connection = %self.id, %reason, ?by, ?failure, ?device, "stream reset");
                self.end(reason);
            }
            ConnectionEvent::Closed { reason } => {
                if let Some(reason) = reason {
                    self.end(reason);
                }
                self.closed = Some(reason);
            }
            // The limit is brought up to date after every pump.
            _ => {}
        }
    }

    fn end(&mut self, reason: ResetReason) {
        self.received.clear();
        self.flow.end(&End::Reset {
            reason,
            device: self.lost.clone(),
        });
    }

    fn acknowledge(&mut self, below: Sequence) {
        self.acknowledged = self.acknowledged.max(below);
        let kept = self.sent.split_off(&below);
        let mut unwritten = 0;
        for (sequence, sent) in std::mem::replace(&mut self.sent, kept) {
            if sent.buf.is_none() {
                // A write of it is under way still: its buffer is dropped when it comes back.
                self.sent.insert(sequence, sent);
            } else if !sent.is_written {
                unwritten += 1;
            }
        }
        if unwritten > 0 {
            let mut send = locked(&self.flow.send);
            send.unwritten = send.unwritten.saturating_sub(unwritten);
        }
    }

    /// Brings what users see up to date.
    fn tell_users(&mut self) {
        let limit = self.reserved + self.machine.room() as u64;
        // Nobody else sets it.
        if locked(&self.flow.send).limit != limit {
            self.flow.change_send(|send| send.limit = limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{
        io::tick,
        tests::{connected, driver},
    };
    use std::sync::atomic::AtomicUsize;
    use storage_socket_proto::{BlockCount, IoId, Lba, Timeouts};
    use tracing::{
        Event, Level, Metadata, Subscriber,
        span::{Attributes, Id, Record},
    };

    /// Counts what is logged as an error.
    struct Errors(Arc<AtomicUsize>);

    impl Subscriber for Errors {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::ERROR
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_lack_of_memory_is_said_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = driver(directory.path(), Timeouts::default());
        let (_bound, flow) = connected(&mut driver);
        let conn = driver.conns.get_mut(&flow.addr.connection).unwrap();
        // More than there are addresses for.
        conn.buffers = BufferPool::new(1 << 60, 1);
        let said = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Errors(said.clone()), || {
            for number in 0..3 {
                let read = IoRequest {
                    id: IoId(u64::MAX),
                    device: DeviceIndex(0),
                    lba: Lba(0),
                    blocks: BlockCount(16),
                    op: IoOp::ReadFrame(Sequence(number)),
                };
                conn.start(tick(), &mut driver.io, read);
            }
        });
        assert_eq!(said.load(Ordering::Relaxed), 1);
    }
}
