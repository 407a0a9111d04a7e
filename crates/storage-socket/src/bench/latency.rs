//! How long a small message takes, one way.

use crate::Stream;
use std::{
    io::{self, Read, Write},
    time::Instant,
};

/// Bytes of a message.
pub const MESSAGE_BYTES: usize = 4096;

/// Half of each round trip of so many messages, in microseconds, in the order in which they went.
pub(super) fn ping(mut stream: Stream, messages: usize) -> io::Result<Vec<f64>> {
    let mut message = vec![1; MESSAGE_BYTES];
    let mut halves = Vec::with_capacity(messages);
    for _ in 0..messages {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        halves.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    Ok(halves)
}

/// Sends every message back.
pub(super) fn echo(mut stream: Stream, messages: usize) -> io::Result<()> {
    let mut message = vec![0; MESSAGE_BYTES];
    for _ in 0..messages {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
    Ok(())
}
