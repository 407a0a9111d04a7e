//! Memory that devices can read and write directly: aligned buffers, and pools that carve them out of huge pages.
//!
//! Every buffer is the only owner of its range of a mapped region; the region is unmapped when its last buffer (and
//! its pool) is gone. A pooled buffer that is leaked is never handed out again and keeps its region mapped: that is
//! how memory survives under an I/O that never returned.
#![expect(
    unsafe_code,
    reason = "mapped memory is handed out as slices, each range to one owner"
)]

use crate::{BLOCK_BYTES, Error};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Regions from this size on are aligned to it and backed by huge pages: the biggest single gain that was measured
/// (without them a file fell from 1.36 to 0.63 GB/s and cost 1.5 times the CPU).
const HUGE_BYTES: usize = 2 << 20;

/// A buffer aligned to 4096 bytes, zero at first, which dereferences to its bytes.
pub struct AlignedBuf {
    region: Arc<Region>,
    offset: usize,
    len: usize,
    home: Option<Arc<PoolState>>,
}

impl AlignedBuf {
    /// Maps a buffer of its own of `bytes` bytes, rounded up to a multiple of 4096.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system has none.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        let len = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        Ok(Self {
            region: Arc::new(Region::map(len)?),
            offset: 0,
            len,
            home: None,
        })
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The address that the kernel is given.
    pub(crate) fn address(&mut self) -> *mut u8 {
        self.deref_mut().as_mut_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the region spans `offset + len` bytes (established where the buffer was carved) and stays mapped
        // while `self.region` lives.
        let start = unsafe { self.region.base.add(self.offset) };
        // SAFETY: mapped, initialised (anonymous memory is zero), and no other buffer owns this range.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        let start = unsafe { self.region.base.add(self.offset) };
        // SAFETY: as in `deref`; `&mut self` makes this the only borrow of the range.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.lock().free.push((self.region.clone(), self.offset));
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// A bounded supply of equal buffers, carved out of 2 MiB-aligned regions that are mapped when first needed.
#[derive(Clone)]
pub struct BufferPool {
    state: Arc<PoolState>,
}

impl BufferPool {
    /// A pool of at most `buffers_max` buffers of `buffer_bytes` bytes each (rounded up to a multiple of 4096).
    #[must_use]
    pub fn new(buffer_bytes: usize, buffers_max: usize) -> Self {
        let buffer_bytes = buffer_bytes.max(1).next_multiple_of(BLOCK_BYTES);
        Self {
            state: Arc::new(PoolState {
                buffer_bytes,
                buffers_max,
                inner: Mutex::new(PoolInner {
                    free: Vec::new(),
                    carved: 0,
                    mapped_bytes: 0,
                }),
            }),
        }
    }

    /// Takes a buffer, or `None` while all of them are out. Its content is whatever its last user left.
    ///
    /// # Errors
    /// [`Error::Memory`] when a new region is needed and the system has no memory.
    pub fn take(&self) -> Result<Option<AlignedBuf>, Error> {
        let state = &self.state;
        let mut inner = state.lock();
        if inner.free.is_empty() {
            let wanted = state.buffers_max - inner.carved;
            if wanted == 0 {
                return Ok(None);
            }
            let (bytes, holds) = region_size(state.buffer_bytes, state.buffers_max);
            let most = holds.min(wanted);
            let region = Arc::new(Region::map(bytes)?);
            inner.mapped_bytes += bytes;
            inner.carved += most;
            for index in (0..most).rev() {
                inner
                    .free
                    .push((region.clone(), index * state.buffer_bytes));
            }
        }
        let taken = inner.free.pop().map(|(region, offset)| AlignedBuf {
            region,
            offset,
            len: state.buffer_bytes,
            home: Some(state.clone()),
        });
        Ok(taken)
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.state.buffer_bytes
    }

    /// Bytes that were mapped so far. Nothing is given back before the pool and all its buffers are gone.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.state.lock().mapped_bytes
    }

    /// Bytes that will be mapped at most.
    #[must_use]
    pub fn mapped_bytes_max(&self) -> usize {
        let (bytes, holds) = region_size(self.state.buffer_bytes, self.state.buffers_max);
        self.state.buffers_max.div_ceil(holds) * bytes
    }

    /// Buffers that could be taken now.
    #[must_use]
    pub fn available(&self) -> usize {
        let inner = self.state.lock();
        inner.free.len() + self.state.buffers_max - inner.carved
    }
}

/// Bytes of each region of a pool, and the buffers that it holds at most.
fn region_size(buffer_bytes: usize, buffers_max: usize) -> (usize, usize) {
    let whole = buffer_bytes.next_multiple_of(HUGE_BYTES);
    let holds = whole / buffer_bytes;
    // A pool that is worth a huge page gets whole ones; the rest of the last one is never touched.
    if buffer_bytes * buffers_max >= HUGE_BYTES {
        (whole, holds)
    } else {
        let holds = holds.min(buffers_max).max(1);
        (holds * buffer_bytes, holds)
    }
}

struct PoolState {
    buffer_bytes: usize,
    buffers_max: usize,
    inner: Mutex<PoolInner>,
}

impl PoolState {
    fn lock(&self) -> MutexGuard<'_, PoolInner> {
        // No code panics while it holds this lock, and the list is whole between any two of its steps.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PoolInner {
    free: Vec<(Arc<Region>, usize)>,
    carved: usize,
    mapped_bytes: usize,
}

/// One mapping. Its `id` is never used twice in a process, so that an engine can tell whether it knows it.
pub(crate) struct Region {
    base: NonNull<u8>,
    bytes: usize,
    pub(crate) id: u64,
}

// SAFETY: a region is plain memory; its ranges are owned by one buffer each, and it is unmapped by its last owner.
unsafe impl Send for Region {}
// SAFETY: as above; a shared reference to a region gives no access to its bytes.
unsafe impl Sync for Region {}

impl Region {
    fn map(bytes: usize) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let huge = bytes >= HUGE_BYTES;
        let slack = if huge { HUGE_BYTES } else { 0 };
        let failed = |error: rustix::io::Errno| Error::Memory {
            bytes,
            source: error.into(),
        };
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes + slack,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(failed)?;
        let head = if huge {
            start.addr().next_multiple_of(HUGE_BYTES) - start.addr()
        } else {
            0
        };
        // SAFETY: `head` is below `slack`, so the result lies within the mapping.
        let base = unsafe { start.byte_add(head) };
        if head > 0 {
            // SAFETY: the first `head` bytes of the mapping, which nobody was given.
            unsafe { munmap(start, head) }.map_err(failed)?;
        }
        let tail = slack - head;
        if tail > 0 {
            // SAFETY: `bytes` behind `base` is still within the mapping.
            let end = unsafe { base.byte_add(bytes) };
            // SAFETY: the last `tail` bytes of the mapping, which nobody was given.
            unsafe { munmap(end, tail) }.map_err(failed)?;
        }
        if huge {
            // SAFETY: the range is mapped by us; the advice doesn't change its content.
            let advised = unsafe { madvise(base, bytes, Advice::LinuxHugepage) };
            if let Err(error) = advised {
                tracing::debug!(%error, "huge pages refused; small pages serve");
            }
        }
        Ok(Self {
            base: NonNull::new(base.cast()).expect("mmap returns no null pointer"),
            bytes,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; whoever owned a range held an `Arc` of this region, so nobody does any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping can't fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_a_pool_are_aligned_and_disjoint() {
        let pool = BufferPool::new(1 << 20, 5);
        let mut held: Vec<_> = (0..5).map(|_| pool.take().unwrap().unwrap()).collect();
        assert!(pool.take().unwrap().is_none());
        for (index, buf) in held.iter_mut().enumerate() {
            assert_eq!(buf.address().addr() % (1 << 20), 0);
            buf.fill(u8::try_from(index).unwrap());
        }
        for (index, buf) in held.iter().enumerate() {
            assert!(buf.iter().all(|byte| usize::from(*byte) == index));
        }
        drop(held);
        assert_eq!(pool.available(), 5);
    }

    #[test]
    fn pool_maps_no_more_than_it_says_whatever_the_sizes() {
        for (buffer_bytes, buffers_max) in [
            (4096, 3),
            (1 << 20, 5),
            (3 << 20, 2),
            (1536 << 10, 4),
            (4 << 20, 1),
            (64 << 10, 40),
        ] {
            let pool = BufferPool::new(buffer_bytes, buffers_max);
            let held: Vec<_> = std::iter::from_fn(|| pool.take().unwrap()).collect();
            assert_eq!(held.len(), buffers_max);
            assert_eq!(pool.mapped_bytes(), pool.mapped_bytes_max());
        }
    }

    #[test]
    fn leaked_buffer_is_never_handed_out_again() {
        let pool = BufferPool::new(4096, 2);
        let mut leaked = pool.take().unwrap().unwrap();
        let address = leaked.address();
        std::mem::forget(leaked);
        let mut other = pool.take().unwrap().unwrap();
        assert_ne!(other.address(), address);
        assert!(pool.take().unwrap().is_none());
    }

    #[test]
    fn sizes_are_rounded_up_to_blocks_and_start_zero() {
        let buf = AlignedBuf::new(5000).unwrap();
        assert_eq!(buf.len(), 8192);
        assert!(buf.iter().all(|byte| *byte == 0));
        let big = AlignedBuf::new(3 << 20).unwrap();
        assert_eq!(big.region().address().addr() % HUGE_BYTES, 0);
    }
}
