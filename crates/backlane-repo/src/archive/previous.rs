//! The parent's directories beside those of the walk.

use crate::error::RepoError;
use crate::index::BlobId;
use crate::node::{FileKind, Metadata, Node};
use crate::reader::Reader;

/// A directory of the parent, read on as the walk goes on. Both are sorted by name.
pub(crate) struct Previous {
    nodes: std::iter::Peekable<std::vec::IntoIter<Node>>,
}

impl Previous {
    fn of(nodes: Vec<Node>) -> Self {
        Self {
            nodes: nodes.into_iter().peekable(),
        }
    }

    /// A directory that the parent doesn't have.
    pub(crate) fn nothing() -> Self {
        Self::of(Vec::new())
    }

    /// Reads a directory; `None` if it can't be read, which costs a comparison and nothing else.
    pub(crate) fn read(reader: &Reader, id: BlobId) -> Result<Option<Self>, RepoError> {
        match reader.tree(id) {
            Ok(tree) => Ok(Some(Self::of(tree.nodes))),
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "a directory of the parent is lost: what is in it is read again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What had this name.
    pub(crate) fn take(&mut self, name: &[u8]) -> Option<Node> {
        while self
            .nodes
            .next_if(|node| node.name.as_slice() < name)
            .is_some()
        {}
        self.nodes.next_if(|node| node.name == name)
    }
}

/// Whether a file is what it was, by all that tells without reading it.
pub(crate) fn is_unchanged(before: &Node, kind: &FileKind, now: &Metadata) -> bool {
    let was = &before.meta;
    let differ = |was: u64, now: u64| was != 0 && now != 0 && was != now;
    before.kind == *kind
        && was.size == now.size
        && was.modified == now.modified
        && was
            .changed
            .zip(now.changed)
            .is_none_or(|(was, now)| was == now)
        && !differ(was.inode, now.inode)
}
