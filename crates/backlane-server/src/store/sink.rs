//! An object's file on its way to its name.

use super::{
    ByteSink, Placed,
    local::{rename_without_replacing, sync_parent},
    wal,
};
use crate::{ServerError, error::io_error};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use std::{
    fs::{self, File},
    io::IoSlice,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// `RWF_DONTCACHE` (Linux 6.14): what is written is on its way to the disk at once, and doesn't stay in memory.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A temporary file on its way to its final name.
pub(super) struct LocalSink {
    pub(super) file: File,
    pub(super) temporary: PathBuf,
    pub(super) target: PathBuf,
    /// Its directories are made when it gets its name: nothing of a put that comes to nothing stays.
    pub(super) makes_directories: bool,
    pub(super) written: u64,
    /// What jobs read; contents of files are read by restores alone.
    pub(super) stays_in_memory: bool,
    /// The temporary name is gone.
    pub(super) placed: bool,
}

impl ByteSink for LocalSink {
    fn write(&mut self, piece: &[u8]) -> Result<(), ServerError> {
        let mut rest = piece;
        while !self.stays_in_memory && !rest.is_empty() {
            match pwritev2(&self.file, &[IoSlice::new(rest)], self.written, DONT_CACHE) {
                Ok(written) if written > 0 => {
                    rest = &rest[written..];
                    self.written += written as u64;
                }
                Err(Errno::INTR) => {}
                // An older kernel, or a file system that can't; and what else there is the ordinary call says.
                _ => break,
            }
        }
        self.file
            .write_all_at(rest, self.written)
            .map_err(io_error("write", &self.temporary))?;
        self.written += rest.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ServerError> {
        self.file
            .sync_all()
            .map_err(io_error("sync", &self.temporary))
    }

    fn place(mut self: Box<Self>) -> Result<Placed, ServerError> {
        if self.makes_directories {
            wal::make_directories(&self.target)?;
        }
        match rename_without_replacing(&self.temporary, &self.target) {
            Ok(()) => {
                self.placed = true;
                sync_parent(&self.target)?;
                Ok(Placed::Created)
            }
            Err(Errno::EXIST) => existed(&self.target),
            Err(errno) => Err(io_error("rename to", &self.target)(errno.into())),
        }
    }
}

/// Leaves alone what has the name, and makes it durable: whoever placed it may not have synced it yet, or was a stock
/// tool that never does.
pub(super) fn existed(target: &Path) -> Result<Placed, ServerError> {
    File::open(target)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", target))?;
    sync_parent(target)?;
    Ok(Placed::Existed)
}

impl Drop for LocalSink {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.temporary) {
            let path = self.temporary.display();
            tracing::warn!(%path, %error, "a temporary file stays until the repository is opened again");
        }
    }
}
