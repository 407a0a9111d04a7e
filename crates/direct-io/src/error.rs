//! What can go wrong between a program and a device, with the facts.

use std::{fmt, io, path::PathBuf};

/// An error of this crate; every variant names the device or file that it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on the device failed before any transfer.
    #[error("{}: can't {action}: {source}", path.display())]
    Os {
        /// The device or file.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file system or device has no direct I/O.
    #[error("{}: has no direct I/O (O_DIRECT): {found}", path.display())]
    NotDirect {
        /// The device or file.
        path: PathBuf,
        /// How that showed.
        found: String,
    },
    /// The path is a directory, a character device or the like.
    #[error("{}: is neither a block device nor a regular file", path.display())]
    NotADevice {
        /// The path as given.
        path: PathBuf,
    },
    /// The device is held by a mount, by swap, by a volume manager or by another program.
    #[error("{}: is in use (mounted, swap, part of a volume, or held by another program)", path.display())]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// The device's logical blocks are larger than what pools are made of.
    #[error("{}: its logical blocks have {found} bytes, more than {most} are not supported", path.display())]
    BlockTooLarge {
        /// The device.
        path: PathBuf,
        /// Bytes of one of its blocks.
        found: u32,
        /// Bytes that are supported.
        most: u32,
    },
    /// Offset or length is no multiple of the device's logical block, or exceeds the buffer.
    #[error("{}: {operation} of {bytes} bytes at {offset} is not aligned to blocks of {block_bytes} bytes, or its buffer is too small", path.display())]
    Unaligned {
        /// The device.
        path: PathBuf,
        /// Read or write.
        operation: Operation,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes of the transfer.
        bytes: usize,
        /// The device's logical block.
        block_bytes: u32,
    },
    /// The device failed a transfer: it counts as lost.
    #[error("{}: device lost: {operation} of {bytes} bytes at {offset} {loss}", path.display())]
    DeviceLost {
        /// The device.
        path: PathBuf,
        /// Read or write.
        operation: Operation,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes of the transfer.
        bytes: usize,
        /// How it failed.
        loss: Loss,
    },
    /// The kernel refused io_uring, and only io_uring would do.
    #[error("io_uring is not available: {source}")]
    RingRefused {
        /// What the kernel said.
        source: io::Error,
    },
    /// The engine itself failed; none of its transfers can be relied on.
    #[error("the I/O engine failed: can't {action}: {source}")]
    Engine {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no memory for buffers.
    #[error("no memory for {bytes} bytes of buffers: {source}")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether the medium failed, as opposed to the caller or the machine.
    #[must_use]
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Error::DeviceLost { .. })
    }

    /// The kind that a user of files expects.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Error::Os { source, .. }
            | Error::Engine { source, .. }
            | Error::RingRefused { source } => source.kind(),
            Error::NotDirect { .. } => io::ErrorKind::Unsupported,
            Error::InUse { .. } => io::ErrorKind::ResourceBusy,
            Error::NotADevice { .. } | Error::BlockTooLarge { .. } | Error::Unaligned { .. } => {
                io::ErrorKind::InvalidInput
            }
            Error::DeviceLost { loss, .. } => match loss {
                Loss::Short { .. } => io::ErrorKind::UnexpectedEof,
                Loss::Os(source) => source.kind(),
            },
            Error::Memory { .. } => io::ErrorKind::OutOfMemory,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// From the device into a buffer.
    Read,
    /// From a buffer to the device.
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Read => "read",
            Operation::Write => "write",
        })
    }
}

/// How a transfer failed. A disk that was pulled answers writes with ENOSPC and reads with 0 bytes, so these are
/// losses as EIO is.
#[derive(Debug)]
pub enum Loss {
    /// Fewer bytes moved than asked for.
    Short {
        /// Bytes that moved.
        moved: usize,
    },
    /// The system reported an error.
    Os(io::Error),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Short { moved } => write!(f, "moved only {moved} bytes"),
            Loss::Os(error) => write!(f, "failed: {error}"),
        }
    }
}
