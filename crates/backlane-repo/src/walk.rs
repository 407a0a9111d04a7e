//! Walking snapshots: list, find, compare, and copy a file out.
//!
//! No recursion: a tree may be as deep as it likes.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::io::Write;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;
use std::vec::IntoIter;

use globset::{GlobBuilder, GlobMatcher};

use crate::error::RepoError;
use crate::index::{BlobId, BlobKind};
use crate::node::{FileKind, Metadata, Node};
use crate::reader::{READ_BYTES_MAX, Reader};

/// What a visitor wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// Go on, into the directory if it is one.
    Continue,
    /// Go on, but not into this directory.
    SkipTree,
    /// Stop.
    Stop,
}

/// A directory that a walk could not look into, since a part of the repository is damaged. Damage never ends a walk:
/// everything else is visited.
#[derive(Debug)]
pub struct Unread {
    /// Its path.
    pub path: Vec<u8>,
    /// What is damaged.
    pub error: RepoError,
}

/// A difference between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path, from the root of both.
    pub path: Vec<u8>,
    /// What is different.
    pub kind: ChangeKind,
    /// The older node; `None` when it was added.
    pub old: Option<Node>,
    /// The newer node; `None` when it was removed.
    pub new: Option<Node>,
}

/// How two nodes of one path differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// Only the newer one is there.
    Added,
    /// Only the older one is there.
    Removed,
    /// They are different kinds of thing, or point elsewhere.
    Type,
    /// The content differs, and maybe the metadata.
    Content,
    /// Only the metadata differs. Access time, inode and device don't count.
    Metadata,
}

impl Reader {
    /// The node at a path below a root tree; `/` and the empty path are the root itself, a directory without a name.
    ///
    /// # Errors
    /// [`RepoError::PathNotFound`], [`RepoError::NotADirectory`], or when a tree can't be read.
    pub fn node_at(&self, root: BlobId, path: &[u8]) -> Result<Node, RepoError> {
        let mut node = Node {
            name: Vec::new(),
            kind: FileKind::Directory,
            meta: Metadata::default(),
            content: Vec::new(),
            subtree: Some(root),
        };
        let names = path.split(|byte| *byte == b'/');
        for name in names.filter(|name| !name.is_empty()) {
            let path = || path.to_vec();
            let tree = node
                .subtree
                .ok_or_else(|| RepoError::NotADirectory { path: path() })?;
            let found = self.tree(tree)?.nodes.into_iter().find(|n| n.name == name);
            node = found.ok_or_else(|| RepoError::PathNotFound { path: path() })?;
        }
        Ok(node)
    }

    /// Visits everything below a tree, depth first, a directory before what is in it. Paths begin with `prefix`, which
    /// may be empty, and a `/`. Gives the directories whose content could not be visited.
    ///
    /// # Errors
    /// When the first tree can't be read, or the store fails.
    pub fn walk(
        &self,
        tree: BlobId,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8], &Node) -> Visit,
    ) -> Result<Vec<Unread>, RepoError> {
        let mut unread = Vec::new();
        let mut path = prefix.to_vec();
        let mut stack = vec![(path.len(), self.tree(tree)?.nodes.into_iter())];
        while let Some((base, nodes)) = stack.last_mut() {
            path.truncate(*base);
            let Some(node) = nodes.next() else {
                stack.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&node.name);
            match (visit(&path, &node), node.subtree) {
                (Visit::Stop, _) => return Ok(unread),
                (Visit::Continue, Some(tree)) => match self.tree(tree) {
                    Ok(tree) => stack.push((path.len(), tree.nodes.into_iter())),
                    Err(error) => Unread::keep(&mut unread, &path, error)?,
                },
                _ => {}
            }
        }
        Ok(unread)
    }

    /// Gives every node below a tree that matches a glob pattern. A pattern without `/` is compared with names, any
    /// other with whole paths, where `*` stays within a name and `**` doesn't. Gives the directories that could not be
    /// searched.
    ///
    /// # Errors
    /// [`RepoError::BadPattern`], or when the first tree can't be read, or the store fails.
    pub fn find(
        &self,
        tree: BlobId,
        pattern: &str,
        found: &mut dyn FnMut(&[u8], &Node),
    ) -> Result<Vec<Unread>, RepoError> {
        let matcher = matcher(pattern)?;
        let by_path = pattern.contains('/');
        self.walk(tree, b"", &mut |path, node| {
            let text = if by_path { path } else { &node.name };
            if matcher.is_match(OsStr::from_bytes(text)) {
                found(path, node);
            }
            Visit::Continue
        })
    }

    /// Gives every difference between two trees, in the order of their paths. What lies below an added or removed
    /// directory is given as well. What comes back are the directories that could not be compared.
    ///
    /// # Errors
    /// When one of the two trees can't be read, or the store fails.
    pub fn diff(
        &self,
        old: BlobId,
        new: BlobId,
        found: &mut dyn FnMut(&Change),
    ) -> Result<Vec<Unread>, RepoError> {
        let mut unread = Vec::new();
        let mut path = Vec::new();
        let mut stack = vec![(0, self.pairs(Some(old), Some(new))?)];
        while let Some((base, pairs)) = stack.last_mut() {
            path.truncate(*base);
            let Some((old, new)) = pairs.next() else {
                stack.pop();
                continue;
            };
            path.push(b'/');
            let name = old.as_ref().or(new.as_ref()).map(|node| &node.name);
            path.extend_from_slice(name.map_or(&[], Vec::as_slice));
            let subtree = |node: &Option<Node>| node.as_ref().and_then(|node| node.subtree);
            let below = (subtree(&old), subtree(&new));
            if let Some(kind) = change(old.as_ref(), new.as_ref()) {
                let path = path.clone();
                found(&Change {
                    path,
                    kind,
                    old,
                    new,
                });
            }
            if below.0 != below.1 {
                match self.pairs(below.0, below.1) {
                    Ok(pairs) => stack.push((path.len(), pairs)),
                    Err(error) => Unread::keep(&mut unread, &path, error)?,
                }
            }
        }
        Ok(unread)
    }

    /// Copies a file's content out. Holds no more than about [`READ_BYTES_MAX`] at once, or one blob.
    ///
    /// # Errors
    /// [`RepoError::NotAFile`], [`RepoError::UnknownKind`], [`RepoError::Output`], or when a blob is missing or damaged.
    pub fn dump(&self, node: &Node, out: &mut dyn Write) -> Result<(), RepoError> {
        if let FileKind::Unknown { kind } = &node.kind {
            let (name, kind) = (node.name.clone(), kind.clone());
            return Err(RepoError::UnknownKind { name, kind });
        }
        if node.kind != FileKind::File {
            let name = node.name.clone();
            return Err(RepoError::NotAFile { name });
        }
        let mut rest = node.content.as_slice();
        while !rest.is_empty() {
            let mut places = Vec::new();
            let mut bytes = 0u64;
            for id in rest {
                let place = self.place(BlobKind::Data, *id)?;
                bytes += u64::from(place.plain_length);
                if !places.is_empty() && bytes > u64::from(READ_BYTES_MAX) {
                    break;
                }
                places.push(place);
            }
            for blob in self.read_blobs(&places)? {
                out.write_all(&blob).map_err(RepoError::Output)?;
            }
            rest = &rest[places.len()..];
        }
        out.flush().map_err(RepoError::Output)
    }

    /// The nodes of two directories, side by side by name.
    fn pairs(&self, old: Option<BlobId>, new: Option<BlobId>) -> Result<Pairs, RepoError> {
        let nodes = |tree: Option<BlobId>| {
            let tree = tree.map(|id| self.tree(id)).transpose()?;
            let mut nodes = tree.unwrap_or_default().nodes;
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            Ok::<_, RepoError>(nodes.into_iter().peekable())
        };
        Ok(Pairs {
            old: nodes(old)?,
            new: nodes(new)?,
        })
    }
}

impl Unread {
    /// Notes damage, and passes on what is none.
    fn keep(unread: &mut Vec<Self>, path: &[u8], error: RepoError) -> Result<(), RepoError> {
        if !error.is_damage() {
            return Err(error);
        }
        let path = path.to_vec();
        unread.push(Self { path, error });
        Ok(())
    }
}

struct Pairs {
    old: Peekable<IntoIter<Node>>,
    new: Peekable<IntoIter<Node>>,
}

impl Iterator for Pairs {
    type Item = (Option<Node>, Option<Node>);

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.old.peek(), self.new.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.name.cmp(&new.name),
        };
        let old = order.is_le().then(|| self.old.next()).flatten();
        let new = order.is_ge().then(|| self.new.next()).flatten();
        Some((old, new))
    }
}

fn change(old: Option<&Node>, new: Option<&Node>) -> Option<ChangeKind> {
    let (Some(old), Some(new)) = (old, new) else {
        return Some(if old.is_some() {
            ChangeKind::Removed
        } else {
            ChangeKind::Added
        });
    };
    // Everything but where it lies and when it was looked at.
    let lasting = |meta: &Metadata| Metadata {
        accessed: None,
        inode: 0,
        device: 0,
        ..meta.clone()
    };
    if old.kind != new.kind {
        Some(ChangeKind::Type)
    } else if old.content != new.content {
        Some(ChangeKind::Content)
    } else if lasting(&old.meta) != lasting(&new.meta) {
        Some(ChangeKind::Metadata)
    } else {
        None
    }
}

fn matcher(pattern: &str) -> Result<GlobMatcher, RepoError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(|error| RepoError::BadPattern {
        what: error.to_string(),
    })?;
    Ok(glob.compile_matcher())
}
