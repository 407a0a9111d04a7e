//! Threads of users that wait for a stream, and what the driver knows of them.

use super::Flow;
use crate::{driver::wheel::AtWheel, inbox::Inbox, promise::locked};
use std::sync::atomic::{AtomicUsize, Ordering};
use storage_socket_proto::Polling;

impl Flow {
    /// A thread is about to wait to read: it does for as long as it keeps what this returns.
    pub(crate) fn waits_to_read(&self) -> Waits<'_> {
        Waits::begin(self, &self.reading)
    }

    /// A thread is about to wait for room.
    pub(crate) fn waits_to_write(&self) -> Waits<'_> {
        Waits::begin(self, &self.writing)
    }

    /// The driver, if it is lent to whoever waits and nobody has it.
    pub(crate) fn wheel(&self) -> Option<AtWheel<'_>> {
        let at_wheel = self.inbox.wheel.take();
        if let Some(at_wheel) = &at_wheel {
            at_wheel.hush();
        }
        at_wheel
    }

    /// For the driver: whether a thread waits to read.
    pub(crate) fn is_read(&self) -> bool {
        self.reading.load(Ordering::SeqCst) > 0
    }

    /// For the driver: the thread that waits to read is to look around.
    pub(crate) fn tell_reader(&self) {
        drop(locked(&self.receive));
        self.receive_changed.notify_all();
    }

    /// Somebody waits: a driver that polls without a pause while that is so has to know.
    pub(super) fn urge(&self) {
        if self.polling == Polling::Hot && !self.is_hot.load(Ordering::SeqCst) {
            self.touch();
        }
    }

    /// For the driver: whether anybody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.is_read()
            || self.writing.load(Ordering::SeqCst) > 0
            || locked(&self.receive).waker.is_some()
            || locked(&self.send).waker.is_some()
    }

    /// For the driver: says whether it polls without a pause. Whoever begins to wait while it does leaves it alone.
    pub(crate) fn set_hot(&self, is_hot: bool) {
        self.is_hot.store(is_hot, Ordering::SeqCst);
    }
}

/// A thread that waits.
pub(crate) struct Waits<'a> {
    inbox: &'a Inbox,
    count: &'a AtomicUsize,
}

impl<'a> Waits<'a> {
    fn begin(flow: &'a Flow, count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        flow.inbox.begin_wait();
        flow.urge();
        let inbox = &flow.inbox;
        Self { inbox, count }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        self.inbox.end_wait();
    }
}
