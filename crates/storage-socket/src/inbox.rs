//! What other threads tell a pool's driver thread, and how they wake it.
//!
//! A wake costs a system call, so only the first of several before the driver looks makes one.

use crate::{
    Error,
    driver::wheel::Wheel,
    error::StopReason,
    flow::OwnedFlow,
    listener::{Backlog, Bound},
    promise::{Fulfil, locked},
    stream::StreamOptions,
};
use direct_io::{Device, Operation, Waker};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use storage_socket_proto::{
    Challenge, ConnectionId, DeviceIndex, Doorbell, Grant, ListenOptions, MemberView, PoolId, Port,
    SlotIndex,
};

/// Something that only the driver can do.
pub(crate) enum Command {
    Connect {
        port: Port,
        options: Box<StreamOptions>,
        patience: Duration,
        reply: Fulfil<Result<OwnedFlow, Error>>,
    },
    Bind {
        port: Port,
        options: ListenOptions,
        backlog: Arc<Backlog>,
        reply: Fulfil<Result<Bound, Error>>,
    },
    Unbind(Port),
    Accept {
        grant: Box<Grant>,
        options: Box<StreamOptions>,
        reply: Fulfil<Result<OwnedFlow, Error>>,
    },
    Refuse(ConnectionId),
    Allow(BTreeSet<SlotIndex>),
    Rang(SlotIndex),
    Doorbell(SlotIndex, Doorbell),
    Vouch(SlotIndex),
    SetChallenges {
        slot: SlotIndex,
        challenges: Vec<Challenge>,
        /// Which devices have the challenge durably.
        reply: Fulfil<Vec<bool>>,
    },
    PeerChallenges {
        slot: SlotIndex,
        reply: Fulfil<PeerChallenges>,
    },
    IsPeerAlive {
        slot: SlotIndex,
        reply: Fulfil<bool>,
    },
    /// A device that was lost was looked for by its path.
    LookedFor {
        device: DeviceIndex,
        found: Result<Option<Arc<Device>>, Error>,
    },
    Members(Fulfil<Vec<MemberView>>),
    /// Calls back once the pool is joined or served.
    Ready(Fulfil<Result<(), Error>>),
    Stop,
}

/// The challenges that a peer wrote, as they were read from each device just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChallenges {
    /// The peer's incarnation (of a member) or epoch (of the coordinator); `None` if it was never seen.
    pub writer: Option<u64>,
    /// By device index; `None` where the peer's current page could not be read.
    pub challenges: Vec<Option<[u8; 32]>>,
}

/// What a driver has asked of the devices of its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Reads.
    pub reads: u64,
    /// Bytes of the reads.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of the writes.
    pub bytes_written: u64,
}

/// Counts it, for each device.
#[derive(Debug)]
pub(crate) struct IoCounters {
    devices: Vec<DeviceCounters>,
}

#[derive(Debug, Default)]
struct DeviceCounters {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
}

impl IoCounters {
    fn new(devices: usize) -> Self {
        let devices = (0..devices).map(|_| DeviceCounters::default()).collect();
        Self { devices }
    }

    pub(crate) fn count(&self, operation: Operation, device: DeviceIndex, bytes: usize) {
        let Some(device) = self.devices.get(usize::from(device.0)) else {
            return;
        };
        let (count, sum) = match operation {
            Operation::Read => (&device.reads, &device.bytes_read),
            Operation::Write => (&device.writes, &device.bytes_written),
        };
        count.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// By device index.
    pub(crate) fn stats(&self) -> Vec<IoStats> {
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = |device: &DeviceCounters| IoStats {
            reads: counted(&device.reads),
            bytes_read: counted(&device.bytes_read),
            writes: counted(&device.writes),
            bytes_written: counted(&device.bytes_written),
        };
        self.devices.iter().map(stats).collect()
    }
}

impl std::iter::Sum for IoStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), |sum, more| Self {
            reads: sum.reads + more.reads,
            bytes_read: sum.bytes_read + more.bytes_read,
            writes: sum.writes + more.writes,
            bytes_written: sum.bytes_written + more.bytes_written,
        })
    }
}

/// The mailbox of a driver.
pub(crate) struct Inbox {
    pub(crate) pool: PoolId,
    pub(crate) io: Arc<IoCounters>,
    content: Mutex<Content>,
    is_woken: AtomicBool,
    waker: Waker,
    pub(crate) wheel: Wheel,
    /// Threads of users that wait for something.
    waiting: AtomicUsize,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inbox({})", self.pool)
    }
}

#[derive(Default)]
struct Content {
    commands: VecDeque<Command>,
    /// Streams whose users did something.
    touched: Vec<ConnectionId>,
    stopped: Option<StopReason>,
}

impl Inbox {
    pub(crate) fn new(pool: PoolId, devices: usize, waker: Waker) -> Self {
        Self {
            pool,
            io: Arc::new(IoCounters::new(devices)),
            content: Mutex::default(),
            is_woken: AtomicBool::new(false),
            waker,
            wheel: Wheel::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Leaves a command; it comes to nothing when the driver has ended, and its reply is dropped then.
    pub(crate) fn send(&self, command: Command) {
        let mut content = locked(&self.content);
        if content.stopped.is_none() {
            content.commands.push_back(command);
            drop(content);
            self.wake();
        }
    }

    /// Tells the driver to look at a stream.
    pub(crate) fn touch(&self, connection: ConnectionId) {
        locked(&self.content).touched.push(connection);
        self.wake();
    }

    pub(crate) fn take(&self) -> (VecDeque<Command>, Vec<ConnectionId>) {
        self.is_woken.store(false, Ordering::SeqCst);
        let mut content = locked(&self.content);
        (
            std::mem::take(&mut content.commands),
            std::mem::take(&mut content.touched),
        )
    }

    /// A thread begins to wait for something.
    pub(crate) fn begin_wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wheel.recall();
    }

    /// It waits no more.
    pub(crate) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Ends the wait of whoever drives.
    pub(crate) fn wake_up(&self) {
        self.waker.wake();
    }

    /// Whoever drives looks soon without being woken.
    pub(crate) fn hush(&self) {
        self.is_woken.store(true, Ordering::SeqCst);
    }

    /// Tells the driver to look at a stream: now, or after the short time for which it may stand still.
    pub(crate) fn touch_some_time(&self, connection: ConnectionId) {
        locked(&self.content).touched.push(connection);
        if !self.wheel.is_free() {
            self.wake();
        }
    }

    /// Takes nothing more, and drops what is there.
    pub(crate) fn close(&self, why: StopReason) {
        let dropped = {
            let mut content = locked(&self.content);
            content.stopped.get_or_insert(why);
            std::mem::take(&mut content.commands)
        };
        drop(dropped);
    }

    /// Why the driver ended, as an error.
    pub(crate) fn stopped(&self) -> Error {
        let why = locked(&self.content).stopped.clone();
        Error::Stopped {
            pool: self.pool,
            why: why.unwrap_or(StopReason::Closed),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        locked(&self.content).stopped.is_some()
    }

    /// Why nothing came of `what`: the driver has ended, or takes too long.
    pub(crate) fn unanswered(&self, what: &'static str) -> Error {
        if self.is_stopped() {
            self.stopped()
        } else {
            Error::TimedOut { what }
        }
    }

    fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
        self.wheel.recall();
    }
}
