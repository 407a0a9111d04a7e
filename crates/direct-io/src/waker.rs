//! Wakes an engine's thread from any other.

use rustix::event::{EventfdFlags, eventfd};
use std::{io, os::fd::OwnedFd, sync::Arc};

/// Ends the current or the next wait of the engine that it came from. Clones wake the same engine.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Wakes the engine. Wakes that come before it looks are merged into one.
    pub fn wake(&self) {
        // The only failure of an open eventfd is a full counter, and then the engine has a wake to see already.
        // The count is in the host's byte order; all ones below the top bit would overflow, eight equal bytes are
        // the same number in either order.
        let _full = rustix::io::write(&*self.event, &[1; 8]);
    }

    /// Takes back every wake so far.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        // Empty (EAGAIN) is as good as cleared.
        let _empty = rustix::io::read(&*self.event, &mut count);
    }

    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }
}
