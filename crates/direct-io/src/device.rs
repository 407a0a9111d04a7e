//! A block device or regular file, opened for direct I/O.
//!
//! Knows its size and logical block, and refuses transfers that do not fit the latter. Nothing here caches.

use crate::{AlignedBuf, BLOCK_BYTES, Error, Loss, Operation};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fallocate, fstat,
    ftruncate, ioctl_blksszget, open, seek, statx,
};
use rustix::io::Errno;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// STATX_DIOALIGN of linux/stat.h, which rustix has no name for.
const STATX_DIOALIGN: u32 = 0x2000;

/// What a device is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing.
    #[default]
    ReadWrite,
    /// Reading alone.
    ReadOnly,
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions {
    /// Reading and writing, or reading alone.
    pub access: Access,
    /// Refuse a block device that anything else on this host holds (O_EXCL). Without meaning for files.
    pub exclusive: bool,
    /// Create the regular file if nothing stands at the path.
    pub create: bool,
}

/// An open device. Shared freely: it has no position and no state that changes.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
    path: PathBuf,
    is_block: bool,
    bytes: u64,
    logical_block_bytes: u32,
    identity: (u64, u64),
}

impl Device {
    /// Opens `path` with O_DIRECT.
    ///
    /// # Errors
    /// What is there is neither a block device nor a file, has no direct I/O, has blocks over 4096 bytes, is in use
    /// (when `exclusive`), or the system refuses.
    pub fn open(path: &Path, options: DeviceOptions) -> Result<Self, Error> {
        let (file, is_block) = open_direct(path, options)?;
        let stat = fstat(&file).map_err(os(path, "look at it"))?;
        let bytes = if is_block {
            seek(&file, SeekFrom::End(0)).map_err(os(path, "tell its size"))?
        } else {
            u64::try_from(stat.st_size).expect("sizes of files are not negative")
        };
        let logical_block_bytes = if is_block {
            ioctl_blksszget(&file).map_err(os(path, "tell its logical block size"))?
        } else {
            file_block_bytes(&file, path)?
        };
        let most = u32::try_from(BLOCK_BYTES).expect("4096 fits");
        if logical_block_bytes > most || !most.is_multiple_of(logical_block_bytes) {
            return Err(Error::BlockTooLarge {
                path: path.to_owned(),
                found: logical_block_bytes,
                most,
            });
        }
        let identity = if is_block {
            (u64::MAX, stat.st_rdev)
        } else {
            (stat.st_dev, stat.st_ino)
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            is_block,
            bytes,
            logical_block_bytes,
            identity,
        })
    }

    /// Makes a regular file `bytes` long with every block allocated, so that a full file system can't surprise a
    /// later write.
    ///
    /// # Errors
    /// The device is no file, or the file system is full or can't allocate.
    pub fn allocate(&mut self, bytes: u64) -> Result<(), Error> {
        if self.is_block {
            return Err(os(&self.path, "resize a block device")(Errno::INVAL));
        }
        ftruncate(&self.file, bytes).map_err(os(&self.path, "set its size"))?;
        fallocate(&self.file, FallocateFlags::empty(), 0, bytes)
            .map_err(os(&self.path, "allocate its blocks"))?;
        self.bytes = bytes;
        Ok(())
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device; otherwise it is a regular file.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.is_block
    }

    /// Its size in bytes when it was opened or allocated.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its logical block: the unit of direct I/O and of atomicity, a divisor of 4096.
    #[must_use]
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Whether both are the same device or file on this host, whatever their paths.
    #[must_use]
    pub fn is_same_as(&self, other: &Device) -> bool {
        self.identity == other.identity
    }

    /// Reads into the whole of `buf` from `offset`, waiting for it.
    ///
    /// # Errors
    /// [`Error::Unaligned`], or [`Error::DeviceLost`] for an error or a short read.
    pub fn read_exact_at(&self, buf: &mut AlignedBuf, offset: u64) -> Result<(), Error> {
        let bytes = buf.len();
        self.transfer(Operation::Read, buf, bytes, offset)
    }

    /// Writes the whole of `buf` at `offset`, waiting for it.
    ///
    /// # Errors
    /// [`Error::Unaligned`], or [`Error::DeviceLost`] for an error or a short write.
    pub fn write_all_at(&self, buf: &mut AlignedBuf, offset: u64) -> Result<(), Error> {
        let bytes = buf.len();
        self.transfer(Operation::Write, buf, bytes, offset)
    }

    /// Makes the device's own volatile cache durable.
    ///
    /// # Errors
    /// The device reports a failure.
    pub fn sync(&self) -> Result<(), Error> {
        rustix::fs::fdatasync(&self.file).map_err(os(&self.path, "sync it"))
    }

    /// Transfers the first `bytes` bytes of `buf`, waiting for it.
    pub(crate) fn transfer(
        &self,
        operation: Operation,
        buf: &mut AlignedBuf,
        bytes: usize,
        offset: u64,
    ) -> Result<(), Error> {
        self.check_aligned(operation, buf.len(), bytes, offset)?;
        let moved = loop {
            let result = match operation {
                Operation::Read => rustix::io::pread(&self.file, &mut buf[..bytes], offset),
                Operation::Write => rustix::io::pwrite(&self.file, &buf[..bytes], offset),
            };
            match result {
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => break other,
            }
        };
        self.judge(operation, bytes, offset, moved.map_err(io::Error::from))
    }

    /// A whole transfer is a success; anything else is a lost device.
    pub(crate) fn judge(
        &self,
        operation: Operation,
        bytes: usize,
        offset: u64,
        moved: io::Result<usize>,
    ) -> Result<(), Error> {
        let loss = match moved {
            Ok(moved) if moved == bytes => return Ok(()),
            Ok(moved) => Loss::Short { moved },
            Err(error) => Loss::Os(error),
        };
        Err(Error::DeviceLost {
            path: self.path.clone(),
            operation,
            offset,
            bytes,
            loss,
        })
    }

    pub(crate) fn check_aligned(
        &self,
        operation: Operation,
        buffer_bytes: usize,
        bytes: usize,
        offset: u64,
    ) -> Result<(), Error> {
        let block = u64::from(self.logical_block_bytes);
        let whole = offset.is_multiple_of(block)
            && (bytes as u64).is_multiple_of(block)
            && bytes > 0
            && bytes <= buffer_bytes
            && u32::try_from(bytes).is_ok();
        if whole {
            return Ok(());
        }
        Err(Error::Unaligned {
            path: self.path.clone(),
            operation,
            offset,
            bytes,
            block_bytes: self.logical_block_bytes,
        })
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn os(path: &Path, action: &'static str) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |error| Error::Os {
        path,
        action,
        source: error.into(),
    }
}

/// Opens the path and tells whether it is a block device.
fn open_direct(path: &Path, options: DeviceOptions) -> Result<(OwnedFd, bool), Error> {
    let kind = match rustix::fs::stat(path) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) if options.create => None,
        Err(error) => return Err(os(path, "open it")(error)),
    };
    let is_block = kind == Some(FileType::BlockDevice);
    if !is_block && !matches!(kind, None | Some(FileType::RegularFile)) {
        return Err(Error::NotADevice {
            path: path.to_owned(),
        });
    }
    let mut flags = OFlags::CLOEXEC | OFlags::DIRECT;
    flags |= match options.access {
        Access::ReadWrite => OFlags::RDWR,
        Access::ReadOnly => OFlags::RDONLY,
    };
    if options.exclusive && is_block {
        flags |= OFlags::EXCL;
    }
    if kind.is_none() {
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    let file = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| match error {
        Errno::INVAL => Error::NotDirect {
            path: path.to_owned(),
            found: "opening with O_DIRECT was refused".to_owned(),
        },
        Errno::BUSY => Error::InUse {
            path: path.to_owned(),
        },
        other => os(path, "open it")(other),
    })?;
    Ok((file, is_block))
}

/// The unit of direct I/O of a regular file: what statx says, or 4096, which every file system with direct I/O takes
/// that has blocks of at most 4096 bytes.
fn file_block_bytes(file: &OwnedFd, path: &Path) -> Result<u32, Error> {
    let wanted = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let found = match statx(file, "", AtFlags::EMPTY_PATH, wanted) {
        Ok(found) => found,
        Err(Errno::NOSYS) => return Ok(4096),
        Err(error) => return Err(os(path, "look at it")(error)),
    };
    if found.stx_mask & STATX_DIOALIGN == 0 {
        return Ok(4096);
    }
    if found.stx_dio_offset_align == 0 {
        return Err(Error::NotDirect {
            path: path.to_owned(),
            found: "the file system says so".to_owned(),
        });
    }
    // Buffers are aligned to 4096 bytes; a file system that wants less in memory and more on disk is served by both.
    Ok(found.stx_dio_offset_align.max(512))
}
