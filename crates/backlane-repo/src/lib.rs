//! The repository: rustic_core behind one crate, and its backend over a blocking trait.
//!
//! Repositories have the restic format, version 2. This is the only crate that names rustic_core, and none of its types
//! appears in an interface. What rustic_core does: init, keys, check, forget, prune. What is done here, in the same
//! format: backup ([`Repository::archive`]), and what restore stands on, index, trees and blobs ([`Reader`]).
//!
//! Invariants:
//! - A write that was acknowledged early is durable before anything that refers to it is written, and visible to every
//!   reading and listing call in between.
//! - After one failed write the handle stays failed.
//! - No byte of a blob is handed out whose SHA-256 is not the blob's name.
//! - A backup that ended early for whatever reason leaves no snapshot.

pub mod archive;
pub mod error;
pub mod headers;
pub mod keys;
pub mod maintain;
pub mod node;
pub mod progress;
pub mod reader;
pub mod repository;
pub mod snapshot;
pub mod source;
#[doc(hidden)]
pub mod stages;
pub mod store;
pub mod wal;

mod backend;
mod convert;
mod damage;
mod engine;
mod index;
mod missing;
mod parallel;
mod resume;
mod seal;
mod walk;
mod window;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use archive::{
    ArchiveOptions, ArchiveSummary, Cancel, Compression, DryRun, MEMORY_BYTES_MIN, Parent, Signs,
};
pub use error::{Damage, RepoError};
pub use headers::PackKinds;
pub use index::{BlobId, BlobKind, BlobPlace, Index};
pub use keys::KeyInfo;
pub use maintain::{
    Arrivals, CheckOptions, CheckReport, Flood, ForgetDecision, Forgotten, KeepPolicy, PruneDelete,
    PruneOptions, PruneSummary, Repack,
};
pub use node::{FileKind, Metadata, Node, Time, Tree, Xattr, name_is_plain};
pub use progress::{Progress, Unit};
pub use reader::Reader;
pub use repository::{InitOptions, Repository};
pub use snapshot::{SnapshotInfo, SnapshotSummary};
pub use source::{Closing, Entries, Entry, OpenFile, Source, Warning, WarningKind};
pub use store::{ObjectStore, StoreError};
pub use wal::WalKey;
pub use walk::{Change, ChangeKind, Unread, Visit};
