//! Many reads and writes in flight, driven by one thread.
//!
//! The engine has two bodies behind one face: io_uring, and a pool of threads for hosts that forbid io_uring. The
//! choice is made when it is made, and can be asked for.

use crate::{AlignedBuf, Device, Error, Operation, Waker, ring::Ring, threads::Threads};
use std::{sync::Arc, time::Duration};

/// Which engine a caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the kernel grants it, threads elsewhere.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// Threads.
    ThreadPool,
}

/// Which engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// A few threads for each device.
    ThreadPool,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EngineKind::IoUring => "io_uring",
            EngineKind::ThreadPool => "threads",
        })
    }
}

/// How an engine is made.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Which engine.
    pub choice: EngineChoice,
    /// Transfers that the kernel is given at once, to each device an equal share of them (but at least one): what
    /// hangs on one device takes nothing from the others. More wait in the engine, in order.
    pub depth: u32,
    /// Threads for each device, where threads serve.
    pub threads_per_device: usize,
    /// Which threads use the engine.
    pub users: EngineUsers,
}

/// Which threads use an engine. It takes one at a time in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineUsers {
    /// One for ever: the kernel may leave what has come until that thread asks for it.
    #[default]
    One,
    /// One after another: what has come is there for the next, whatever the one that began it does meanwhile. A thread
    /// that ends waits in the kernel for what it began.
    Several,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            choice: EngineChoice::Auto,
            depth: 256,
            threads_per_device: 4,
            users: EngineUsers::One,
        }
    }
}

/// One transfer, with its buffer.
#[derive(Debug)]
pub struct Request {
    /// Which way.
    pub operation: Operation,
    /// Index of the device in the list that the engine was made with.
    pub device: usize,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes to move, from the start of the buffer.
    pub bytes: usize,
    /// The memory; it comes back with the completion.
    pub buf: AlignedBuf,
    /// The caller's name for the transfer.
    pub token: u64,
}

/// The end of one transfer.
#[derive(Debug)]
pub struct Completion {
    /// The request, buffer included.
    pub request: Request,
    /// Whole, or an error that names the device.
    pub result: Result<(), Error>,
}

/// Keeps transfers to a list of devices in flight. Used by one thread at a time; [`Waker`]s reach it from others.
pub struct Engine {
    body: Body,
    refusal: Option<std::io::Error>,
    waker: Waker,
}

enum Body {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Engine {
    /// Makes an engine for `devices`; requests name them by their index.
    ///
    /// # Errors
    /// [`Error::RingRefused`] when io_uring was demanded and is not to be had, [`Error::Engine`] when the system
    /// refuses even threads.
    pub fn new(devices: Vec<Arc<Device>>, options: EngineOptions) -> Result<Self, Error> {
        let waker = Waker::new().map_err(|source| Error::Engine {
            action: "make an eventfd",
            source,
        })?;
        let (body, refusal) = match options.choice {
            EngineChoice::ThreadPool => (None, None),
            EngineChoice::IoUring | EngineChoice::Auto => {
                match Ring::new(devices.clone(), &options, waker.clone()) {
                    Ok(ring) => (Some(Body::Ring(Box::new(ring))), None),
                    Err(source) if options.choice == EngineChoice::IoUring => {
                        return Err(Error::RingRefused { source });
                    }
                    Err(source) => (None, Some(source)),
                }
            }
        };
        let body = match body {
            Some(body) => body,
            None => Body::Threads(Threads::new(
                &devices,
                options.threads_per_device,
                waker.clone(),
            )?),
        };
        Ok(Self {
            body,
            refusal,
            waker,
        })
    }

    /// Which engine runs.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self.body {
            Body::Ring(_) => EngineKind::IoUring,
            Body::Threads(_) => EngineKind::ThreadPool,
        }
    }

    /// Why io_uring was not to be had, if it was wanted.
    #[must_use]
    pub fn refusal(&self) -> Option<&std::io::Error> {
        self.refusal.as_ref()
    }

    /// A handle that wakes [`wait`](Self::wait) from another thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Takes a transfer. It starts at the latest with the next [`wait`](Self::wait); a request that does not fit its
    /// device comes back from there with [`Error::Unaligned`].
    ///
    /// # Panics
    /// When the request names a device that the engine wasn't made with.
    pub fn submit(&mut self, request: Request) {
        match &mut self.body {
            Body::Ring(ring) => ring.submit(request),
            Body::Threads(threads) => threads.submit(request),
        }
    }

    /// Takes back a transfer that waits in the engine and was never begun; `None` if it is with the device already, and
    /// will be completed.
    pub fn withdraw(&mut self, device: usize, token: u64) -> Option<Request> {
        match &mut self.body {
            Body::Ring(ring) => ring.withdraw(device, token),
            Body::Threads(threads) => threads.withdraw(device, token),
        }
    }

    /// Gives a device's place to another descriptor: what is submitted or begun from now on goes there. Transfers that
    /// were begun go on with the old one, which is closed after the last of them, and count against the device's share.
    ///
    /// # Errors
    /// [`Error::Engine`] when the system refuses threads; the old descriptor stays then.
    ///
    /// # Panics
    /// When the engine wasn't made with such a device.
    pub fn replace(&mut self, device: usize, by: Arc<Device>) -> Result<(), Error> {
        match &mut self.body {
            Body::Ring(ring) => {
                ring.replace(device, by);
                Ok(())
            }
            Body::Threads(threads) => threads.replace(device, by),
        }
    }

    /// Starts what was submitted and waits for the first completion, a wake, or the end of `timeout` (`None`: as long
    /// as it takes), then appends every completion there is to `done`.
    ///
    /// # Errors
    /// [`Error::Engine`]: the engine is broken and will not complete what is in flight.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        match &mut self.body {
            Body::Ring(ring) => ring.wait(timeout, done),
            Body::Threads(threads) => threads.wait(timeout, done),
        }
    }

    /// Starts what was submitted, without a wait: for a caller that has other work to do first.
    ///
    /// # Errors
    /// As [`Engine::wait`].
    pub fn start(&mut self) -> Result<(), Error> {
        match &mut self.body {
            Body::Ring(ring) => ring.start_submitted(),
            // They start at once.
            Body::Threads(_) => Ok(()),
        }
    }

    /// Transfers that have not been completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match &self.body {
            Body::Ring(ring) => ring.in_flight(),
            Body::Threads(threads) => threads.in_flight(),
        }
    }
}

/// How long dropping an engine waits for what is in flight before it leaks the buffers.
pub(crate) const DROP_WAIT: Duration = Duration::from_secs(1);

/// The completion of a request that never started because it does not fit its device.
pub(crate) fn check(device: &Device, request: Request) -> Result<Request, Box<Completion>> {
    let fits = device.check_aligned(
        request.operation,
        request.buf.len(),
        request.bytes,
        request.offset,
    );
    match fits {
        Ok(()) => Ok(request),
        Err(error) => Err(Box::new(Completion {
            request,
            result: Err(error),
        })),
    }
}
