//! Reads a file to its end, however little each call gives, and keeps the buffers that pieces are in.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

/// How much a buffer grows by, and what is read at once at most.
pub(crate) const STEP_BYTES: usize = 256 << 10;

/// A buffer that is used again and again: only what is filled of it counts.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Keeps the beginning, and puts the rest into another one.
    pub(crate) fn split_into(&mut self, at: usize, other: &mut Self) {
        other.filled = 0;
        let rest = &self.bytes[at..self.filled];
        other.room(rest.len())[..rest.len()].copy_from_slice(rest);
        other.filled = rest.len();
        self.filled = at;
    }

    /// What follows what is filled.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.filled + bytes;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_multiple_of(STEP_BYTES), 0);
        }
        &mut self.bytes[self.filled..end]
    }
}

/// Buffers that nobody uses now.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Buffer>>);

impl Buffers {
    pub(crate) fn take(&self) -> Buffer {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&self, mut buffer: Buffer) {
        buffer.filled = 0;
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
    }
}

/// The content of a file that is open.
pub(crate) struct Content {
    file: Box<dyn Read + Send>,
    /// How much of the announced size is left; `None` when none was announced.
    left: Option<u64>,
    has_ended: bool,
}

impl Content {
    /// `size` is what was announced; zero if nothing was.
    pub(crate) fn new(file: Box<dyn Read + Send>, size: u64) -> Self {
        Self {
            file,
            left: (size > 0).then_some(size),
            has_ended: false,
        }
    }

    /// Whether everything was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Reads until there is so much more, or all. By how much the file is shorter than it should be.
    pub(crate) fn fill(&mut self, buffer: &mut Buffer, more: usize) -> io::Result<Option<u64>> {
        let left = self.left.unwrap_or(u64::MAX);
        let want = usize::try_from(left).map_or(more, |left| left.min(more));
        let room = buffer.room(want);
        let mut got = 0;
        while got < want {
            match self.file.read(&mut room[got..]) {
                Ok(0) => break,
                Ok(bytes) => got += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.filled += got;
        self.has_ended = got < more;
        let Some(left) = &mut self.left else {
            return Ok(None);
        };
        *left -= got as u64;
        self.has_ended |= *left == 0;
        Ok((got < want).then_some(*left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, and is interrupted before each.
    struct Slow(u8, bool);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.0 += 1;
            buffer[0] = self.0;
            Ok(1)
        }
    }

    #[test]
    fn a_buffer_is_filled_up_to_the_announced_size() {
        let mut content = Content::new(Box::new(Slow(0, false)), 7);
        let mut buffer = Buffer::default();
        assert_eq!(content.fill(&mut buffer, 4).unwrap(), None);
        assert_eq!(buffer.filled(), [1, 2, 3, 4]);
        assert!(!content.has_ended());
        assert_eq!(content.fill(&mut buffer, 4).unwrap(), None);
        assert_eq!(buffer.filled(), [1, 2, 3, 4, 5, 6, 7]);
        assert!(content.has_ended());
        let mut rest = Buffer::default();
        buffer.split_into(5, &mut rest);
        assert_eq!(
            (buffer.filled(), rest.filled()),
            (&[1, 2, 3, 4, 5][..], &[6, 7][..])
        );
    }

    #[test]
    fn a_file_may_be_shorter_than_announced_or_of_no_announced_size() {
        let mut buffer = Buffer::default();
        let mut short = Content::new(Box::new(&b"12345"[..]), 7);
        assert_eq!(short.fill(&mut buffer, 100).unwrap(), Some(2));
        assert!(short.has_ended());
        let mut unknown = Content::new(Box::new(&b"678"[..]), 0);
        assert_eq!(unknown.fill(&mut buffer, 3).unwrap(), None);
        assert!(!unknown.has_ended());
        assert_eq!(unknown.fill(&mut buffer, 3).unwrap(), None);
        assert!(unknown.has_ended());
        assert_eq!(buffer.filled(), b"12345678");
    }
}
