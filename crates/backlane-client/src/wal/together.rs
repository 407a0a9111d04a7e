//! Segments that a recovery has put together of pieces (`docs/design/wal.md` §7): beside each there is a mark, by which a push
//! knows it.
//!
//! Invariant: no push of such a segment sends it: it would be archived under the name of the whole one, which may still come
//! and be refused then. A file with another content is pushed, whatever the marks say.

use super::file::ReadyFile;
use aws_lc_rs::digest::{SHA256, digest};
use backlane_proto::WalName;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the names of marks end with: PostgreSQL leaves such files in `pg_wal` alone.
const SUFFIX: &str = ".backlane-pieces";

/// Where the mark of a segment is that is fetched to, or lies at, a path.
pub(super) fn path(beside: &Path, name: WalName) -> PathBuf {
    beside.with_file_name(name.file_name() + SUFFIX)
}

/// What it says: the segment's SHA-256.
pub(super) fn mark(file: &[u8]) -> Vec<u8> {
    hex::encode(digest(&SHA256, file)).into_bytes()
}

/// Whether a file at a path is the one that its mark tells of.
pub(super) fn is_it(at: &Path, file: &ReadyFile) -> bool {
    let found = fs::read(path(at, file.name));
    found.is_ok_and(|found| found == mark(&file.bytes))
}
