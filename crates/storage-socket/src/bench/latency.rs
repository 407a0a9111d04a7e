//! How long a small message takes.

use crate::Stream;
use std::{
    io::{self, Read, Write},
    time::Instant,
};

/// Half of the round trips of messages, in microseconds: the median, and what one in a hundred exceeds.
pub(super) fn ping(stream: &mut Stream, messages: usize) -> io::Result<[f64; 2]> {
    let mut message = vec![1; MESSAGE_BYTES];
    let mut halves = Vec::with_capacity(messages);
    for _ in 0..messages {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        halves.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    halves.sort_by(f64::total_cmp);
    let at = |part: usize| halves.get(messages * part / 100).copied().unwrap_or(0.0);
    Ok([at(50), at(99)])
}

pub(super) const MESSAGE_BYTES: usize = 4096;
