//! The engine over io_uring.
//!
//! Each device has an equal share of the slots, so that one that hangs takes none from the others; what doesn't fit
//! waits in its device's lane. `slots[n]` owns the request, and with it the buffer, from its submission until its completion is reaped. Regions of
//! buffers are registered when first seen, as far as the memory-lock limit goes; from the first refusal on, transfers
//! go unregistered, which costs some CPU and nothing else.
#![expect(
    unsafe_code,
    reason = "the ring is handed addresses whose owners wait in `slots`"
)]

use crate::{
    Completion, Device, Operation, Request, Waker,
    buffer::Region,
    engine::{DROP_WAIT, EngineOptions, EngineUsers, check},
    error::Error,
};
use io_uring::{
    IoUring, opcode, squeue,
    types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec},
};
use rustix::process::{Resource, getrlimit};
use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// `user_data` of the poll for wakes; transfers have their index in `slots`.
const WAKE: u64 = u64::MAX;

/// Transfers in flight at least, and one for each device.
const DEPTH_MIN: u32 = 8;
/// Transfers in flight at most.
const DEPTH_MAX: u32 = 4096;

/// Regions that can be registered at once.
const REGISTERED_REGIONS_MAX: u32 = 1024;

pub(crate) struct Ring {
    ring: IoUring,
    devices: Vec<Arc<Device>>,
    /// Descriptors that were replaced, by device, while transfers with them may be under way.
    replaced: Vec<(usize, Arc<Device>)>,
    files_registered: bool,
    registered: Option<Registered>,
    slots: Vec<Option<Request>>,
    vacant: Vec<usize>,
    lanes: Vec<Lane>,
    /// Slots that the transfers to one device may take.
    share: usize,
    rejected: Vec<Completion>,
    waker: Waker,
    wake_armed: bool,
}

/// What one device has to do.
#[derive(Default)]
struct Lane {
    backlog: VecDeque<Request>,
    flying: usize,
}

/// The table of registered regions, by their process-wide ids.
struct Registered {
    entries: HashMap<u64, Entry>,
    /// Bytes that may be registered still.
    budget: u64,
    refused: bool,
}

/// A region in the kernel's table.
struct Entry {
    index: u16,
    bytes: u64,
    region: Weak<Region>,
}

impl Ring {
    pub(crate) fn new(
        devices: Vec<Arc<Device>>,
        options: &EngineOptions,
        waker: Waker,
    ) -> io::Result<Self> {
        let least = u32::try_from(devices.len()).map_or(DEPTH_MAX, |count| count.max(DEPTH_MIN));
        let depth = options.depth.clamp(least, DEPTH_MAX.max(least));
        let (ring, depth) = set_up(depth, least, options.users)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring is too old (5.11 is needed)",
            ));
        }
        let fds: Vec<_> = devices
            .iter()
            .map(|device| device.as_fd().as_raw_fd())
            .collect();
        let files_registered = ring.submitter().register_files(&fds).is_ok();
        let table = ring
            .submitter()
            .register_buffers_sparse(REGISTERED_REGIONS_MAX);
        let depth = depth as usize;
        Ok(Self {
            ring,
            lanes: devices.iter().map(|_| Lane::default()).collect(),
            share: (depth / devices.len().max(1)).max(1),
            devices,
            replaced: Vec::new(),
            files_registered,
            registered: table.is_ok().then(|| Registered {
                entries: HashMap::new(),
                budget: lockable_bytes(),
                refused: false,
            }),
            slots: (0..depth).map(|_| None).collect(),
            vacant: (0..depth).rev().collect(),
            rejected: Vec::new(),
            waker,
            wake_armed: false,
        })
    }

    pub(crate) fn submit(&mut self, request: Request) {
        match check(&self.devices[request.device], request) {
            Ok(request) => self.lanes[request.device].backlog.push_back(request),
            Err(rejected) => self.rejected.push(*rejected),
        }
    }

    pub(crate) fn withdraw(&mut self, device: usize, token: u64) -> Option<Request> {
        let backlog = &mut self.lanes.get_mut(device)?.backlog;
        let at = backlog.iter().position(|waits| waits.token == token)?;
        backlog.remove(at)
    }

    pub(crate) fn replace(&mut self, device: usize, by: Arc<Device>) {
        let at = u32::try_from(device).expect("devices are few");
        let fd = by.as_fd().as_raw_fd();
        if self.files_registered
            && let Err(error) = self.ring.submitter().register_files_update(at, &[fd])
        {
            tracing::debug!(%error, "files go unregistered from here on");
            self.files_registered = false;
        }
        let before = std::mem::replace(&mut self.devices[device], by);
        self.replaced.push((device, before));
        self.close_replaced();
    }

    /// Closes descriptors that were replaced, where nothing is under way any more.
    fn close_replaced(&mut self) {
        let lanes = &self.lanes;
        self.replaced
            .retain(|(device, _)| lanes[*device].flying > 0);
    }

    pub(crate) fn in_flight(&self) -> usize {
        let waiting: usize = self.lanes.iter().map(|lane| lane.backlog.len()).sum();
        self.slots.len() - self.vacant.len() + waiting + self.rejected.len()
    }

    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        out.append(&mut self.rejected);
        self.push_backlog();
        if !self.wake_armed {
            let event = Fd(self.waker.event().as_raw_fd());
            let entry = opcode::PollAdd::new(event, libc_pollin())
                .build()
                .user_data(WAKE);
            self.wake_armed = self.push(&entry);
        }
        let timeout = if out.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        self.enter(timeout)?;
        self.reap(out);
        Ok(())
    }

    pub(crate) fn start_submitted(&mut self) -> Result<(), Error> {
        self.push_backlog();
        self.enter(Some(Duration::ZERO))
    }

    /// Hands the queue to the kernel and waits for one completion.
    fn enter(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let submitter = self.ring.submitter();
        let entered = match timeout {
            None => submitter.submit_and_wait(1),
            Some(timeout) if timeout.is_zero() => submitter.submit(),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        let Err(source) = entered else { return Ok(()) };
        match rustix::io::Errno::from_io_error(&source) {
            // The wait ended, or completions have to be taken first: both are what the caller does next.
            Some(
                rustix::io::Errno::TIME
                | rustix::io::Errno::INTR
                | rustix::io::Errno::BUSY
                | rustix::io::Errno::AGAIN,
            ) => Ok(()),
            _ => Err(Error::Engine {
                action: "enter the ring",
                source,
            }),
        }
    }

    /// Starts what waits, as far as each device's share goes.
    fn push_backlog(&mut self) {
        for device in 0..self.lanes.len() {
            while self.lanes[device].flying < self.share {
                let Some(request) = self.lanes[device].backlog.pop_front() else {
                    break;
                };
                let slot = self.vacant.pop().expect("the shares fit into the slots");
                self.slots[slot] = Some(request);
                if !self.start(slot) {
                    let request = self.slots[slot].take().expect("it was put there just now");
                    self.lanes[device].backlog.push_front(request);
                    self.vacant.push(slot);
                    return;
                }
                self.lanes[device].flying += 1;
            }
        }
    }

    /// Queues the transfer of `slots[slot]`; `false` when the queue is full.
    fn start(&mut self, slot: usize) -> bool {
        let request = self.slots[slot].as_mut().expect("the slot was filled");
        let address = request.buf.address();
        let bytes = u32::try_from(request.bytes).expect("checked when it was submitted");
        let (operation, device, offset) = (request.operation, request.device, request.offset);
        let region = request.buf.region().clone();
        let fixed = self
            .registered
            .as_mut()
            .and_then(|table| table.index_of(&self.ring, &region));
        let fd = Fd(self.devices[device].as_fd().as_raw_fd());
        let file = Fixed(u32::try_from(device).expect("devices are few"));
        macro_rules! entry {
            ($opcode:ident $(, $index:expr)?) => {
                if self.files_registered {
                    opcode::$opcode::new(file, address, bytes $(, $index)?).offset(offset).build()
                } else {
                    opcode::$opcode::new(fd, address, bytes $(, $index)?).offset(offset).build()
                }
            };
        }
        let entry = match (operation, fixed) {
            (Operation::Read, None) => entry!(Read),
            (Operation::Write, None) => entry!(Write),
            (Operation::Read, Some(index)) => entry!(ReadFixed, index),
            (Operation::Write, Some(index)) => entry!(WriteFixed, index),
        };
        self.push(&entry.user_data(slot as u64))
    }

    /// Puts an entry into the submission queue, making room once if it is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: whatever address the entry holds belongs to a request in `slots`, which keeps the buffer until
            // the completion was reaped; the poll holds none.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return true;
            }
            // What went wrong with making room shows in the next `enter`, which reports it.
            let _shown_later = self.ring.submit();
        }
        false
    }

    fn forget_backlog(&mut self) {
        for lane in &mut self.lanes {
            lane.backlog.clear();
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut again = Vec::new();
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE {
                self.wake_armed = false;
                self.waker.clear();
                continue;
            }
            let slot = usize::try_from(entry.user_data()).expect("an index of `slots`");
            let request = self.slots[slot]
                .take()
                .expect("the kernel completes once what was submitted once");
            self.vacant.push(slot);
            self.lanes[request.device].flying -= 1;
            let moved = match usize::try_from(entry.result()) {
                Ok(moved) => Ok(moved),
                Err(_negative) => Err(io::Error::from_raw_os_error(-entry.result())),
            };
            if matches!(&moved, Err(error) if is_transient(error)) {
                again.push(request);
                continue;
            }
            let result = self.devices[request.device].judge(
                request.operation,
                request.bytes,
                request.offset,
                moved,
            );
            out.push(Completion { request, result });
        }
        if !self.replaced.is_empty() {
            self.close_replaced();
        }
        for request in again {
            self.lanes[request.device].backlog.push_back(request);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.forget_backlog();
        self.rejected.clear();
        let flying = |ring: &Self| ring.slots.len() - ring.vacant.len();
        if flying(self) > 0 {
            let _unsupported = self
                .ring
                .submitter()
                .register_sync_cancel(Some(Timespec::new().nsec(1)), CancelBuilder::any());
            self.wake_armed = false;
        }
        let deadline = Instant::now() + DROP_WAIT;
        let mut late = Vec::new();
        while flying(self) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.enter(Some(left)).is_err() {
                break;
            }
            self.reap(&mut late);
            self.forget_backlog();
            late.clear();
        }
        let leaked = flying(self);
        if leaked > 0 {
            tracing::warn!(leaked, "transfers never returned; their buffers are leaked");
            for slot in &mut self.slots {
                std::mem::forget(slot.take());
            }
        }
    }
}

impl Registered {
    /// The index of a region in the kernel's table, registering it when it is new.
    fn index_of(&mut self, ring: &IoUring, region: &Arc<Region>) -> Option<u16> {
        if let Some(entry) = self.entries.get(&region.id) {
            return Some(entry.index);
        }
        let bytes = region.bytes() as u64;
        if self.refused {
            return None;
        }
        self.strike_off(ring);
        if bytes > self.budget {
            return None;
        }
        let index = self.vacant()?;
        let iovec = libc::iovec {
            iov_base: region.address().cast(),
            iov_len: region.bytes(),
        };
        // SAFETY: the region is mapped; the kernel pins its pages, so they outlive even an early unmapping. Transfers
        // name this index only for buffers of a region with this id, which is never used twice.
        let updated = unsafe {
            ring.submitter()
                .register_buffers_update(u32::from(index), &[iovec], None)
        };
        if let Err(error) = updated {
            tracing::debug!(%error, "buffers go unregistered from here on");
            self.refused = true;
            return None;
        }
        self.budget -= bytes;
        let entry = Entry {
            index,
            bytes,
            region: Arc::downgrade(region),
        };
        self.entries.insert(region.id, entry);
        Some(index)
    }

    /// Strikes regions that are gone off the kernel's table.
    fn strike_off(&mut self, ring: &IoUring) {
        let gone: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.region.strong_count() == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            let gone = self.entries.remove(&id).expect("it was listed just now");
            self.budget += gone.bytes;
            let nothing = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            // SAFETY: an empty entry refers to no memory.
            let struck = unsafe {
                ring.submitter()
                    .register_buffers_update(u32::from(gone.index), &[nothing], None)
            };
            if let Err(error) = struck {
                tracing::debug!(%error, "a dead region stays registered");
                self.refused = true;
            }
        }
    }

    /// A free index of the kernel's table.
    fn vacant(&self) -> Option<u16> {
        let most = u16::try_from(REGISTERED_REGIONS_MAX).expect("1024 fits");
        (0..most).find(|index| self.entries.values().all(|entry| entry.index != *index))
    }
}

/// Sets a ring up. Its own memory counts against the memory-lock limit as well, so that a low limit makes it shallow
/// before it makes it impossible.
fn set_up(mut depth: u32, least: u32, users: EngineUsers) -> io::Result<(IoUring, u32)> {
    let mut builder = IoUring::builder();
    builder.setup_submit_all();
    if users == EngineUsers::One {
        builder.setup_coop_taskrun();
    }
    loop {
        let ring = builder
            .build(depth)
            .or_else(|_older_kernel| IoUring::new(depth));
        match ring {
            Err(error) if depth > least && error.kind() == io::ErrorKind::OutOfMemory => {
                depth = (depth / 2).max(least);
            }
            other => return other.map(|ring| (ring, depth)),
        }
    }
}

/// Bytes that may be registered. The limit is one for all processes of a user, whose rings count against it too:
/// taking it whole would keep the next process from having a ring at all.
fn lockable_bytes() -> u64 {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0);
    if capabilities & CAP_IPC_LOCK != 0 {
        return u64::MAX;
    }
    getrlimit(Resource::Memlock)
        .current
        .map_or(u64::MAX, |limit| limit / 4)
}

/// Errors that mean "again", not "broken".
fn is_transient(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
    )
}

fn libc_pollin() -> u32 {
    u32::try_from(libc::POLLIN).expect("POLLIN is 1")
}
