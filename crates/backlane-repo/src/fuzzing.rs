//! What parses sealed content, for the tests with random input: whatever somebody with the key has sealed, none of it falls
//! over, and what it hands on holds what its readers count on.

use crate::{
    Index, convert::tree_from_json, headers::parse_header, index::NamedPacks, name_is_plain,
    seal::SEAL_BYTES, snapshot::Snapshot,
};
use backlane_proto::ObjectId;
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

/// What sealed bytes are taken for.
#[derive(Clone, Copy, Debug)]
pub enum Sealed {
    /// A directory.
    Tree,
    /// A part of the index.
    Index,
    /// A snapshot.
    Snapshot,
    /// The header of a pack.
    Header,
}

/// Parses bytes that were opened.
///
/// # Panics
/// When what was parsed breaks a promise to its readers.
pub fn parse(what: Sealed, bytes: &[u8]) {
    match what {
        Sealed::Tree => {
            let Ok(tree) = tree_from_json(bytes) else {
                return;
            };
            for node in &tree.nodes {
                // A plain name is one component of a path, and no other than the one that it says.
                if name_is_plain(&node.name) {
                    let path = Path::new(OsStr::from_bytes(&node.name));
                    let parts: Vec<_> = path.components().collect();
                    let is_one = matches!(parts[..], [Component::Normal(it)] if it == path);
                    assert!(is_one && !node.name.contains(&0), "{:?}", node.name);
                }
            }
        }
        Sealed::Index => {
            let mut whole = Index::default();
            if whole.add_json(bytes).is_ok() {
                for blob in whole.blobs() {
                    let end = blob.offset.checked_add(blob.length);
                    assert!(blob.length >= SEAL_BYTES && end.is_some());
                }
            }
            let _ = NamedPacks::default().add_json(bytes);
        }
        Sealed::Snapshot => drop(Snapshot::parse(ObjectId([7; 32]), bytes)),
        Sealed::Header => {
            let Some(blobs) = parse_header(bytes) else {
                return;
            };
            let end = blobs.last();
            let end = end.map_or(0, |last| u64::from(last.offset) + u64::from(last.length));
            let sum: u64 = blobs.iter().map(|blob| u64::from(blob.length)).sum();
            assert_eq!(sum, end);
        }
    }
}
