//! Archiving of PostgreSQL's write-ahead log (`docs/design/wal.md` §4, §5): the spooler, which has the session and the
//! key; what `archive_command` and `restore_command` start, which has neither; and what an archive holds and lacks.
//!
//! Invariants: a push succeeds only after the server has confirmed its file, or the pieces that it was put together of; a
//! fetch says that there is no file only if the server does; nothing is kept here that isn't at the server; memory for
//! files is bounded.

pub mod archive;
pub mod expire;
mod fetch;
mod file;
mod pieces;
mod protocol;
mod push;
mod read_ahead;
mod receive;
mod spooler;
mod together;
mod window;

pub use fetch::{Fetched, Partly, fetch};
pub use push::push;
pub use receive::Receiver;
pub use spooler::{Archive, Spooler};
pub use window::Span;

/// Files that are sent beside the one that was asked for, and segments that are read ahead.
const AHEAD_MAX: usize = 8;
/// The same in bytes: segments may have 1 GiB.
const AHEAD_BYTES_MAX: usize = 128 << 20;

/// How many files of a size may be on the way ahead of the one that was asked for.
fn ahead(bytes: usize) -> usize {
    AHEAD_MAX.min(AHEAD_BYTES_MAX / bytes.max(1))
}
