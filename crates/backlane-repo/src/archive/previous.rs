//! The parent's directories beside those of the walk.

use std::iter::{self, Peekable};

use super::Signs;
use super::list::LongList;
use crate::error::RepoError;
use crate::index::{BlobId, BlobKind};
use crate::node::{FileKind, Metadata, Node};
use crate::reader::Reader;
use crate::repository::damaged_pack;

/// A list of this size is read one entry at a time.
const LONG_BYTES: u32 = 1 << 20;

/// A directory of the parent, read on as the walk goes on. Both are sorted by name.
pub(crate) struct Previous(Peekable<Box<dyn Iterator<Item = Node>>>);

impl Previous {
    fn of(nodes: impl Iterator<Item = Node> + 'static) -> Self {
        let nodes: Box<dyn Iterator<Item = Node>> = Box::new(nodes);
        Self(nodes.peekable())
    }

    /// A directory that the parent doesn't have.
    pub(crate) fn nothing() -> Self {
        Self::of(iter::empty())
    }

    /// Reads a directory; `None` if it can't be read, which costs a comparison and nothing else.
    pub(crate) fn read(reader: &Reader, id: BlobId) -> Result<Option<Self>, RepoError> {
        match Self::try_read(reader, id) {
            Ok(previous) => Ok(Some(previous)),
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "a directory of the parent is lost: what is in it is read again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn try_read(reader: &Reader, id: BlobId) -> Result<Self, RepoError> {
        let place = reader.place(BlobKind::Tree, id)?;
        if !place.compressed || place.plain_length < LONG_BYTES {
            return Ok(Self::of(reader.tree(id)?.nodes.into_iter()));
        }
        let list = LongList::open(&place, reader.opened_tree(&place)?);
        let mut list = list.map_err(|damage| damaged_pack(place.pack, damage))?;
        Ok(Self::of(iter::from_fn(move || {
            list.next().unwrap_or_else(|damage| {
                tracing::warn!(tree = %id, %damage, "the rest of a directory of the parent is read again");
                None
            })
        })))
    }

    /// What had this name.
    pub(crate) fn take(&mut self, name: &[u8]) -> Option<Node> {
        while self.0.next_if(|node| node.name.as_slice() < name).is_some() {}
        self.0.next_if(|node| node.name == name)
    }
}

/// Whether a file is what it was, by all that tells without reading it.
pub(crate) fn is_unchanged(before: &Node, kind: &FileKind, now: &Metadata, signs: Signs) -> bool {
    let was = &before.meta;
    let times = was.changed.zip(now.changed);
    let ctime_differs = times.is_some_and(|(was, now)| was != now);
    let inode_differs = was.inode != 0 && now.inode != 0 && was.inode != now.inode;
    before.kind == *kind
        && was.size == now.size
        && was.modified == now.modified
        && !(signs.ctime && ctime_differs)
        && !(signs.inode && inode_differs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Time;

    #[test]
    fn each_sign_tells_of_a_change_unless_it_is_left_out() {
        let time = |seconds| {
            Some(Time {
                seconds,
                nanoseconds: 0,
            })
        };
        let was = Metadata {
            size: 1,
            modified: time(2),
            changed: time(3),
            inode: 4,
            ..Metadata::default()
        };
        let before = Node {
            name: b"f".to_vec(),
            kind: FileKind::File,
            meta: was.clone(),
            content: Vec::new(),
            subtree: None,
        };
        let now = |change: fn(&mut Metadata)| {
            let mut now = was.clone();
            change(&mut now);
            // With both signs, without the time of change, without the inode.
            [(true, true), (false, true), (true, false)].map(|(ctime, inode)| {
                is_unchanged(&before, &FileKind::File, &now, Signs { ctime, inode })
            })
        };
        assert_eq!(now(|_| ()), [true; 3]);
        assert_eq!(now(|now| now.size = 9), [false; 3]);
        assert_eq!(now(|now| now.modified = None), [false; 3]);
        assert_eq!(now(|now| now.changed = now.modified), [false, true, false]);
        assert_eq!(now(|now| now.inode = 9), [false, false, true]);
        assert_eq!(now(|now| (now.changed, now.inode) = (None, 0)), [true; 3]);
        assert!(!is_unchanged(
            &before,
            &FileKind::Fifo,
            &was,
            Signs::default()
        ));
    }
}
