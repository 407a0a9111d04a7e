//! The same streams for tasks: polls that register a waker, without any runtime.

use super::{Stream, StreamOptions};
use crate::{
    Pool,
    inbox::Command,
    promise::{locked, promise},
};
use std::{
    io,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};
use storage_socket_proto::Port;

impl Stream {
    /// Like [`Stream::connect`], for tasks. `patience` is kept by the driver; a driver that hangs is given up on only
    /// when the pool is closed.
    ///
    /// # Errors
    /// As [`Stream::connect`].
    pub async fn connect_async(
        pool: &Pool,
        port: Port,
        options: StreamOptions,
        patience: Duration,
    ) -> io::Result<Self> {
        let (fulfil, reply) = promise();
        pool.handle.inbox.send(Command::Connect {
            port,
            options: Box::new(options),
            patience,
            reply: fulfil,
        });
        Self::connected(pool, reply.await)
    }

    /// Reads what there is, or registers the task's waker. One task at a time may wait to read: the waker that was
    /// registered last is the one that is woken.
    ///
    /// # Errors
    /// As reading a stream; read time-outs don't apply.
    pub fn poll_read_some(
        &self,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_into(context, out.len(), |piece| {
            out[..piece.len()].copy_from_slice(piece);
        })
    }

    /// Hands what is there, as far as there is room, to `into`.
    pub(super) fn poll_read_into(
        &self,
        context: &mut Context<'_>,
        room: usize,
        mut into: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let flow = &self.handle.flow;
        loop {
            if let Some(count) = flow.try_read(room, &mut into)? {
                return Poll::Ready(Ok(count));
            }
            if flow.wait_to_read(context.waker()) {
                flow.counters.reads_blocked.fetch_add(1, Ordering::Relaxed);
                return Poll::Pending;
            }
        }
    }

    /// Writes what there is room for, or registers the task's waker. One task at a time may wait to write: the waker
    /// that was registered last is the one that is woken.
    ///
    /// # Errors
    /// As writing to a stream; write time-outs don't apply.
    pub fn poll_write_some(
        &self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let flow = &self.handle.flow;
        loop {
            let before = locked(&flow.send).changes;
            let count = flow.try_write(data)?;
            if count > 0 || data.is_empty() {
                return Poll::Ready(Ok(count));
            }
            if flow.wait_to_write(before, context.waker()) {
                flow.counters.writes_blocked.fetch_add(1, Ordering::Relaxed);
                return Poll::Pending;
            }
        }
    }
}
