//! An object's file on its way out.

use super::{
    ByteSource,
    local::{NOT_A_FILE, foreign},
};
use crate::{ServerError, error::io_error};
use backlane_proto::ObjectName;
use bytes::Bytes;
use rustix::{
    buffer::spare_capacity,
    io::{Errno, pread},
};
use std::{fs::File, io, path::PathBuf};

/// An object's file, open to be read.
pub(super) struct LocalSource {
    file: File,
    length: u64,
    path: PathBuf,
}

impl LocalSource {
    /// Opens the file of an object, in its place or on a shelf.
    pub(super) fn open(path: PathBuf, name: ObjectName) -> Result<Self, ServerError> {
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ServerError::NotFound { name },
            _ => io_error("open", &path)(error),
        })?;
        let metadata = file.metadata().map_err(io_error("look at", &path))?;
        if !metadata.is_file() {
            return Err(foreign(path, NOT_A_FILE));
        }
        Ok(Self {
            file,
            length: metadata.len(),
            path,
        })
    }

    fn failed(&self, error: io::Error) -> ServerError {
        io_error("read", &self.path)(error)
    }
}

impl ByteSource for LocalSource {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, ServerError> {
        let mut piece = Vec::with_capacity(bytes);
        while piece.len() < bytes {
            let at = offset + piece.len() as u64;
            match pread(&self.file, spare_capacity(&mut piece), at) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
        piece.truncate(bytes);
        Ok(piece.into())
    }
}
