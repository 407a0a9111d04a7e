//! The engine for hosts without io_uring: a few threads for each device, so that a device that hangs holds up no other.
//!
//! A thread owns the buffer of the transfer that it is in; when the engine goes away first, the thread keeps the
//! buffer until the device answers.

use crate::{
    Completion, Device, Error, Request, Waker,
    engine::{DROP_WAIT, check},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub(crate) struct Threads {
    devices: Vec<Arc<Lane>>,
    per_device: usize,
    done: Arc<Done>,
    in_flight: usize,
    waker: Waker,
    rejected: Vec<Completion>,
}

/// The queue of one device.
struct Lane {
    device: Arc<Device>,
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    closed: bool,
}

struct Done {
    completions: Mutex<Vec<Completion>>,
    waker: Waker,
}

impl Threads {
    pub(crate) fn new(
        devices: &[Arc<Device>],
        per_device: usize,
        waker: Waker,
    ) -> Result<Self, Error> {
        let done = Arc::new(Done {
            completions: Mutex::new(Vec::new()),
            waker: waker.clone(),
        });
        let mut threads = Self {
            devices: Vec::new(),
            per_device: per_device.max(1),
            done,
            in_flight: 0,
            waker,
            rejected: Vec::new(),
        };
        for device in devices {
            let lane = threads.lane(device.clone())?;
            threads.devices.push(lane);
        }
        Ok(threads)
    }

    /// A queue for a device, and the threads that serve it.
    fn lane(&self, device: Arc<Device>) -> Result<Arc<Lane>, Error> {
        let lane = Arc::new(Lane {
            device,
            queue: Mutex::default(),
            arrived: Condvar::new(),
        });
        for _ in 0..self.per_device {
            let serving = thread::Builder::new().name("direct-io".to_owned()).spawn({
                let (lane, done) = (lane.clone(), self.done.clone());
                move || lane.serve(&done)
            });
            if let Err(source) = serving {
                lane.close();
                return Err(Error::Engine {
                    action: "start a thread",
                    source,
                });
            }
        }
        Ok(lane)
    }

    /// The threads of the old descriptor may hang in it: the new one gets others.
    pub(crate) fn replace(&mut self, device: usize, by: Arc<Device>) -> Result<(), Error> {
        let lane = self.lane(by)?;
        let before = std::mem::replace(&mut self.devices[device], lane.clone());
        let waiting = before.close();
        locked(&lane.queue).requests = waiting;
        lane.arrived.notify_all();
        Ok(())
    }

    pub(crate) fn submit(&mut self, request: Request) {
        let lane = &self.devices[request.device];
        match check(&lane.device, request) {
            Ok(request) => {
                self.in_flight += 1;
                locked(&lane.queue).requests.push_back(request);
                lane.arrived.notify_one();
            }
            Err(rejected) => self.rejected.push(*rejected),
        }
    }

    pub(crate) fn withdraw(&mut self, device: usize, token: u64) -> Option<Request> {
        let requests = &mut locked(&self.devices.get(device)?.queue).requests;
        let at = requests.iter().position(|waits| waits.token == token)?;
        let request = requests.remove(at)?;
        self.in_flight -= 1;
        Some(request)
    }

    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        out.append(&mut self.rejected);
        let mut wait = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if !out.is_empty() || !locked(&self.done.completions).is_empty() {
            wait = Some(Timespec::default());
        }
        let mut fds = [PollFd::new(self.waker.event(), PollFlags::IN)];
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Error::Engine {
                    action: "wait for an eventfd",
                    source: error.into(),
                });
            }
        }
        // Cleared before the list is emptied: a completion that comes after that wakes the next wait.
        self.waker.clear();
        let mut completions = locked(&self.done.completions);
        self.in_flight -= completions.len();
        out.append(&mut completions);
        Ok(())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight + self.rejected.len()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for lane in &self.devices {
            self.in_flight -= lane.close().len();
        }
        let deadline = Instant::now() + DROP_WAIT;
        let mut late = Vec::new();
        while self.in_flight > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(Some(left), &mut late).is_err() {
                tracing::warn!(
                    left = self.in_flight,
                    "transfers never returned; their threads keep the buffers"
                );
                return;
            }
            late.clear();
        }
    }
}

impl Lane {
    /// Ends the threads, each after its transfer; returns what none of them has begun.
    fn close(&self) -> VecDeque<Request> {
        let mut queue = locked(&self.queue);
        queue.closed = true;
        self.arrived.notify_all();
        std::mem::take(&mut queue.requests)
    }

    /// A thread's life: take a request, do it, report it.
    fn serve(&self, done: &Done) {
        while let Some(mut request) = self.take() {
            let result = self.device.transfer(
                request.operation,
                &mut request.buf,
                request.bytes,
                request.offset,
            );
            locked(&done.completions).push(Completion { request, result });
            done.waker.wake();
        }
    }

    fn take(&self) -> Option<Request> {
        let mut queue = locked(&self.queue);
        loop {
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            if queue.closed {
                return None;
            }
            queue = self
                .arrived
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is whole all the same.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
