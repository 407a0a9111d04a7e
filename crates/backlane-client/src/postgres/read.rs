//! Reads a file of a cluster while the server writes to it.
//!
//! Invariants: a reader yields exactly as many bytes as the file had when it was opened; what it yields is what the
//! manifest's sum is of. That a file grows, shrinks or changes meanwhile is no matter: the WAL repairs it.

use super::{Held, Run};
use backlane_source::postgres::{Content, Pages, relation};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What one call reads: whole pages, whatever their size.
const READ_BYTES: usize = 256 * 1024;

/// How often a page is read again that may have been read in the middle of a write, and the pause before each.
const READ_AGAIN: u32 = 5;
const PAUSE: Duration = Duration::from_millis(5);

/// The content of a file.
pub(super) struct Reader {
    held: Held,
    file: File,
    /// Its path below the cluster's directory.
    path: PathBuf,
    listing: Listing,
    /// How its pages are checked, and the number of the first one.
    pages: Option<(Pages, u32)>,
    size: u64,
    /// How much was read.
    at: u64,
    content: Content,
    buffer: Box<[u8]>,
    /// The part of `buffer` that wasn't given out.
    start: usize,
    end: usize,
}

/// Whether a file is in the manifest.
#[derive(Clone, Copy)]
pub(super) enum Listing {
    /// It is, with this time of its last change.
    Listed { modified_seconds: i64 },
    /// It isn't.
    Not,
}

impl Reader {
    pub(super) fn new(
        run: &Arc<Run>,
        file: File,
        path: &Path,
        size: u64,
        listing: Listing,
    ) -> Self {
        let directory = path.parent().and_then(Path::to_str);
        let name = path.file_name().and_then(OsStr::to_str);
        let relation = directory
            .zip(name)
            .and_then(|(directory, name)| relation(directory, name));
        let is_listed = matches!(listing, Listing::Listed { .. });
        let pages = run.pages.zip(relation).filter(|_| is_listed);
        Self {
            held: Held::new(run),
            file,
            path: path.to_owned(),
            listing,
            pages: pages.map(|(pages, relation)| {
                let first = relation.segment.wrapping_mul(pages.in_segment);
                (pages, first)
            }),
            size,
            at: 0,
            content: Content::default(),
            buffer: Box::default(),
            start: 0,
            end: 0,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let want = left.min(READ_BYTES);
        if self.buffer.is_empty() {
            self.buffer = vec![0; want].into_boxed_slice();
        }
        let mut end = 0;
        while end < want {
            match self.file.read(&mut self.buffer[end..want]) {
                Ok(0) => {
                    // It has become shorter, as the WAL says too.
                    self.buffer[end..want].fill(0);
                    end = want;
                }
                Ok(bytes) => end += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.check_pages(end)?;
        self.content.update(&self.buffer[..end]);
        (self.start, self.end) = (0, end);
        self.at += end as u64;
        self.held.0.reporter.progress.advanced(0, end as u64);
        Ok(())
    }

    /// Checks the pages in the buffer, which begins with a whole one.
    fn check_pages(&mut self, end: usize) -> io::Result<()> {
        let Some((pages, first)) = self.pages else {
            return Ok(());
        };
        for (index, page) in self.buffer[..end].chunks_exact_mut(pages.bytes).enumerate() {
            let at = self.at + (index * pages.bytes) as u64;
            let block = u32::try_from(at / pages.bytes as u64).unwrap_or(u32::MAX);
            let block = first.wrapping_add(block);
            let mut tries = 0;
            while !pages.is_right(page, block) && tries < READ_AGAIN {
                std::thread::sleep(PAUSE);
                match self.file.read_exact_at(page, at) {
                    // It is no longer in the file.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => page.fill(0),
                    read => read?,
                }
                tries += 1;
            }
            if !pages.is_right(page, block) {
                self.held.0.damaged(&self.path, block);
            }
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && self.at < self.size {
            self.refill().inspect_err(|error| {
                let error = io::Error::new(error.kind(), error.to_string());
                self.held.0.fail_reading(&self.path, error);
            })?;
        }
        let bytes = (self.end - self.start).min(out.len());
        out[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        Ok(bytes)
    }
}

impl Drop for Reader {
    /// Enters what was read into the manifest, before the file counts as closed.
    fn drop(&mut self) {
        if let Listing::Listed { modified_seconds } = self.listing
            && self.at == self.size
        {
            let content = std::mem::take(&mut self.content);
            self.held.0.enter(&self.path, modified_seconds, content);
        }
        self.held.0.reporter.progress.advanced(1, 0);
    }
}
