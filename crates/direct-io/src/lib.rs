//! Block devices: direct I/O through io_uring or a thread pool, aligned buffers.
//!
//! A [`Device`] is a block device or a regular file, opened so that nothing between the program and the medium
//! caches. An [`Engine`] keeps many reads and writes in flight and belongs to one thread. A buffer moves into the
//! engine with its request and comes back with the completion, so nobody can touch memory that a device is still
//! reading or writing.
//!
//! Invariants: a buffer whose I/O has not returned is never reused and never freed, even when the engine is dropped;
//! every transfer is whole or an error; what may be registered with the kernel, is, and callers can't tell.
//! Deadlines are the caller's: an I/O that hangs stays in flight and hinders no other.

mod buffer;
mod clock;
mod device;
mod engine;
mod error;
mod ring;
mod threads;
mod waker;

pub use buffer::{AlignedBuf, BufferPool};
pub use clock::boottime;
pub use device::{Access, Device, DeviceOptions};
pub use engine::{
    Completion, Engine, EngineChoice, EngineKind, EngineOptions, EngineUsers, Request,
};
pub use error::{Error, Loss, Operation};
pub use waker::Waker;

/// Alignment that suits every device that this crate opens: its blocks are never larger than this.
pub const BLOCK_BYTES: usize = 4096;
