//! Reads and writes that leave the page cache of the host as it was, where kernel and file system can.

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read},
    os::unix::fs::FileExt,
};

/// `RWF_DONTCACHE` (Linux 6.14): pages that a call brings into the cache go again, and what was there stays. What is
/// written is on its way to the disk at once.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Shorter writes are left to the system, which puts neighbours together.
const WRITE_BYTES_MIN: usize = 256 * 1024;

/// Reads what comes next.
pub(crate) fn read(mut file: &File, out: &mut [u8]) -> io::Result<usize> {
    let position = u64::MAX;
    match preadv2(file, &mut [IoSliceMut::new(out)], position, DONT_CACHE) {
        Err(errno) if is_impossible(errno) => file.read(out),
        read => Ok(read?),
    }
}

pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while bytes.len() >= WRITE_BYTES_MIN {
        match pwritev2(file, &[IoSlice::new(bytes)], offset, DONT_CACHE) {
            Ok(written) if written > 0 => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            // The ordinary call says what it is.
            _ => break,
        }
    }
    file.write_all_at(bytes, offset)
}

/// Whether an older kernel, or a file system, can't.
fn is_impossible(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
}
