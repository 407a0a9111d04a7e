//! Transfers on behalf of machines: which one is whose, until when, and with which buffer.
//!
//! Every request is answered once: with its outcome, or with `TimedOut` at its deadline. What comes later only brings
//! the buffer back.

use crate::{inbox::IoCounters, promise::locked};
use direct_io::{
    AlignedBuf, BufferPool, Completion, Device, Engine, Loss, Operation, Request, boottime,
};
use rustix::io::Errno;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use storage_socket_proto::{
    BLOCK_BYTES, Block, ConnectionId, DeviceIndex, IoFailure, IoId, Lba, Sequence, Tick,
};

/// The present tick of the clock that goes on during suspension.
pub(crate) fn tick() -> Tick {
    Tick::from_micros(u64::try_from(boottime().as_micros()).unwrap_or(u64::MAX))
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The member or coordinator machine.
    Machine,
    Connection(ConnectionId),
}

/// What kind of transfer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    ReadFrame(Sequence),
    WriteFrame(Sequence),
}

/// Where and what for a transfer is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) owner: Owner,
    pub(crate) id: IoId,
    pub(crate) kind: Kind,
    pub(crate) device: DeviceIndex,
    pub(crate) lba: Lba,
    pub(crate) bytes: usize,
    pub(crate) started: Tick,
}

/// What became of a transfer.
pub(crate) struct Finished {
    pub(crate) task: Task,
    pub(crate) buf: AlignedBuf,
    pub(crate) result: Result<(), IoFailure>,
    /// Its machine was told `TimedOut` before: only the buffer counts.
    pub(crate) is_late: bool,
}

/// A transfer that took too long.
pub(crate) struct Expired {
    pub(crate) task: Task,
    /// Brings the buffer back, if the transfer was never begun.
    pub(crate) withdrawn: Option<Finished>,
}

pub(crate) struct Io {
    engine: Engine,
    devices: Vec<Arc<Device>>,
    tasks: Vec<Option<Pending>>,
    vacant: Vec<usize>,
    deadlines: VecDeque<(Tick, usize, u64)>,
    deadline: Duration,
    serial: u64,
    done: Vec<Completion>,
    small: BufferPool,
    large: BufferPool,
    last_failures: Mutex<Vec<Option<String>>>,
    counters: Arc<IoCounters>,
}

struct Pending {
    task: Task,
    serial: u64,
    is_late: bool,
    /// It was never submitted: see [`Io::park`].
    is_parked: bool,
}

/// Reads of up to this many bytes, which is what a scan of members' pages takes, share the buffers of `large`: fresh memory
/// for each would cost more than the read. The few larger ones get some of their own.
const LARGE_BYTES: usize = 512 << 10;

impl Io {
    pub(crate) fn new(
        engine: Engine,
        devices: Vec<Arc<Device>>,
        deadline: Duration,
        counters: Arc<IoCounters>,
    ) -> Self {
        Self {
            engine,
            last_failures: Mutex::new(vec![None; devices.len()]),
            devices,
            tasks: Vec::new(),
            vacant: Vec::new(),
            deadlines: VecDeque::new(),
            deadline,
            serial: 0,
            done: Vec::new(),
            small: BufferPool::new(BLOCK_BYTES, 1024),
            large: BufferPool::new(LARGE_BYTES, 32),
            counters,
        }
    }

    /// A buffer for a read of a machine.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<AlignedBuf, direct_io::Error> {
        let pooled = if bytes <= BLOCK_BYTES {
            self.small.take()?
        } else if bytes <= LARGE_BYTES {
            self.large.take()?
        } else {
            None
        };
        match pooled {
            Some(buf) => Ok(buf),
            None => AlignedBuf::new(bytes),
        }
    }

    /// A buffer with the block's bytes.
    pub(crate) fn filled(&self, block: &Block) -> Result<AlignedBuf, direct_io::Error> {
        let mut buf = self.buffer(BLOCK_BYTES)?;
        buf[..BLOCK_BYTES].copy_from_slice(&block.0);
        Ok(buf)
    }

    pub(crate) fn start(&mut self, task: Task, buf: AlignedBuf) {
        let index = self.note(task, false);
        let operation = match task.kind {
            Kind::Read | Kind::ReadFrame(_) => Operation::Read,
            Kind::Write | Kind::WriteFrame(_) => Operation::Write,
        };
        self.counters.count(operation, task.device, task.bytes);
        self.engine.submit(Request {
            operation,
            device: usize::from(task.device.0),
            offset: task.lba.0 * BLOCK_BYTES as u64,
            bytes: task.bytes,
            buf,
            token: index as u64,
        });
    }

    /// Takes a transfer that can't be started, for its buffer is away with one that hangs: it expires at its deadline,
    /// and its owner may answer it before.
    pub(crate) fn park(&mut self, task: Task) {
        self.note(task, true);
    }

    /// Notes a transfer and its deadline; returns its index in `tasks`.
    fn note(&mut self, task: Task, is_parked: bool) -> usize {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            self.tasks.len() - 1
        });
        self.serial += 1;
        self.deadlines
            .push_back((task.started + self.deadline, index, self.serial));
        self.tasks[index] = Some(Pending {
            task,
            serial: self.serial,
            is_late: false,
            is_parked,
        });
        index
    }

    /// The transfers whose deadline has passed; their machines are to be told now. Those that never got to the device
    /// are withdrawn: what was given up on is not written later, and a device that hangs gathers no more than its share.
    pub(crate) fn expired(&mut self, now: Tick) -> Vec<Expired> {
        let mut expired = Vec::new();
        while let Some((due, index, serial)) = self.deadlines.front().copied() {
            let pending = self.tasks[index]
                .as_mut()
                .filter(|pending| pending.serial == serial);
            match pending {
                Some(_) if due > now => break,
                Some(pending) => {
                    pending.is_late = true;
                    let task = pending.task;
                    let device = usize::from(task.device.0);
                    let is_parked = pending.is_parked;
                    let withdrawn = if is_parked {
                        None
                    } else {
                        self.note_failure(task.device, "no answer within the deadline".to_owned());
                        self.engine.withdraw(device, index as u64)
                    };
                    if is_parked || withdrawn.is_some() {
                        self.tasks[index] = None;
                        self.vacant.push(index);
                    }
                    let withdrawn = withdrawn.map(|request| Finished {
                        task,
                        buf: request.buf,
                        result: Err(IoFailure::TimedOut),
                        is_late: true,
                    });
                    expired.push(Expired { task, withdrawn });
                }
                None => {}
            }
            self.deadlines.pop_front();
        }
        expired
    }

    /// When [`Io::expired`] has to be called.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.front().map(|(due, _, _)| *due)
    }

    /// Transfers that will come back.
    pub(crate) fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Starts what was submitted, before work that takes its time.
    pub(crate) fn start_submitted(&mut self) -> Result<(), direct_io::Error> {
        self.engine.start()
    }

    /// Starts what was submitted and waits for ends, a wake or the timeout.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Vec<Finished>, direct_io::Error> {
        self.engine.wait(timeout, &mut self.done)?;
        let mut finished = Vec::with_capacity(self.done.len());
        for completion in std::mem::take(&mut self.done) {
            let index = usize::try_from(completion.request.token).expect("an index of `tasks`");
            let pending = self.tasks[index]
                .take()
                .expect("each transfer is completed once");
            self.vacant.push(index);
            let result = completion.result.map_err(|error| {
                self.note_failure(pending.task.device, error.to_string());
                failure_of(&error)
            });
            finished.push(Finished {
                task: pending.task,
                buf: completion.request.buf,
                result,
                is_late: pending.is_late,
            });
        }
        Ok(finished)
    }

    /// What a device failed with last.
    pub(crate) fn last_failure(&self, device: DeviceIndex) -> Option<String> {
        locked(&self.last_failures)
            .get(usize::from(device.0))
            .cloned()
            .flatten()
    }

    /// From now on transfers go to this descriptor of the device: the one before may be dead.
    pub(crate) fn replace(
        &mut self,
        device: DeviceIndex,
        by: Arc<Device>,
    ) -> Result<(), direct_io::Error> {
        let at = usize::from(device.0);
        self.engine.replace(at, by.clone())?;
        self.devices[at] = by;
        Ok(())
    }

    pub(crate) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    pub(crate) fn device(&self, device: DeviceIndex) -> Option<&Arc<Device>> {
        self.devices.get(usize::from(device.0))
    }

    fn note_failure(&self, device: DeviceIndex, failure: String) {
        if let Some(last) = locked(&self.last_failures).get_mut(usize::from(device.0)) {
            *last = Some(failure);
        }
    }
}

/// What a machine is told of an error. A device that was pulled answers writes with ENOSPC and reads with nothing.
fn failure_of(error: &direct_io::Error) -> IoFailure {
    let direct_io::Error::DeviceLost { loss, .. } = error else {
        return IoFailure::Error;
    };
    match loss {
        Loss::Short { .. } => IoFailure::DeviceGone,
        Loss::Os(source) => match Errno::from_io_error(source) {
            Some(Errno::NOSPC | Errno::NODEV | Errno::NXIO | Errno::NOENT) => IoFailure::DeviceGone,
            _ => IoFailure::Error,
        },
    }
}
