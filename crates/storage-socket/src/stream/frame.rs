//! Reading without a copy: the payload where the device put it.

use super::{Handle, Stream};
use crate::flow::{Arrived, Next};
use std::{
    io,
    ops::Deref,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

/// The payload of a frame. Its buffer is one of a few that reading has: a stream whose reader keeps frames stands still
/// until some are dropped.
pub struct Frame {
    /// There until it is dropped.
    arrived: Option<Arrived>,
    stream: Arc<Handle>,
}

impl Stream {
    /// Reads the next frame, or the rest of one that was read in part; `None` at the end of the stream.
    ///
    /// # Errors
    /// As reading a stream.
    pub fn read_frame(&self) -> io::Result<Option<Frame>> {
        Ok(self.read_when_there(|flow| Ok(self.lend(flow.try_read_frame()?)))?)
    }

    /// Like [`Stream::read_frame`], for tasks; the waker is registered as [`Stream::poll_read_some`] does it.
    ///
    /// # Errors
    /// As reading a stream; read time-outs don't apply.
    pub fn poll_read_frame(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Frame>>> {
        let flow = &self.handle.flow;
        loop {
            if let Some(frame) = self.lend(flow.try_read_frame()?) {
                return Poll::Ready(Ok(frame));
            }
            if flow.wait_to_read(context.waker()) {
                flow.counters.reads_blocked.fetch_add(1, Ordering::Relaxed);
                return Poll::Pending;
            }
        }
    }

    /// A frame, the end, or nothing at present.
    fn lend(&self, next: Next) -> Option<Option<Frame>> {
        match next {
            Next::Frame(arrived) => Some(Some(Frame {
                arrived: Some(arrived),
                stream: self.handle.clone(),
            })),
            Next::End => Some(None),
            Next::Nothing => None,
        }
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.arrived
            .as_ref()
            .map_or(&[], |arrived| &arrived.buf[arrived.at..arrived.end])
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({} bytes)", self.len())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(Arrived { sequence, buf, .. }) = self.arrived.take() {
            drop(buf);
            self.stream.flow.give_back(sequence);
        }
    }
}
