//! The walk: what the source gives, beside what the parent has.

use super::{Change, File, Pipeline, Unread};
use crate::archive::node::{Draft, Leads};
use crate::archive::order::{Order, parts};
use crate::archive::previous::{Previous, is_unchanged};
use crate::archive::trees::{Before, Own};
use crate::error::RepoError;
use crate::index::{BlobId, BlobKind};
use crate::node::{FileKind, Metadata};
use crate::source::{Entry, WarningKind};

/// What the directories above what is backed up are like where the source doesn't say.
const MODE_UNKNOWN: u32 = 0o755;

/// A directory that the walk is in.
struct Open {
    /// Its path, without a slash at the beginning; nothing for the root.
    path: Vec<u8>,
    number: u64,
    previous: Previous,
}

impl Pipeline<'_> {
    pub(super) fn walk(&self, parent: Option<BlobId>) -> Result<(), RepoError> {
        let before = parent.map_or(Before::NotThere, Before::Tree);
        let mut open = vec![self.enter(Vec::new(), None, before)?];
        let mut order = Order::default();
        for found in self.source.entries() {
            if self.must_end() {
                break;
            }
            let entry = match found {
                Ok(entry) => entry,
                Err(warning) => {
                    self.tell(&warning);
                    continue;
                }
            };
            if let Err(what) = order.admit(&entry) {
                let path = entry.path;
                return Err(RepoError::BadSource { path, what });
            }
            if entry.path != b"/" {
                self.trees.wait_for_room(|| self.must_end());
                self.visit(&mut open, entry)?;
            }
        }
        if self.must_end() {
            self.pool.end();
            return Ok(());
        }
        while let Some(last) = open.pop() {
            self.leave(&last);
        }
        Ok(())
    }

    /// Makes a directory the current one.
    fn enter(&self, path: Vec<u8>, own: Option<Own>, before: Before) -> Result<Open, RepoError> {
        let read = match before {
            Before::Tree(id) => Previous::read(self.reader, id)?,
            _ => None,
        };
        let before = match read {
            None if before != Before::NotThere => Before::Different,
            _ => before,
        };
        Ok(Open {
            path,
            number: self.trees.open(own, before),
            previous: read.unwrap_or_else(Previous::nothing),
        })
    }

    fn leave(&self, open: &Open) {
        if let Some(whole) = self.trees.close(open.number) {
            self.pool.push_tree(Box::new(whole));
        }
    }

    /// Puts an entry into its directory, which becomes the current one, or makes it that.
    fn visit(&self, open: &mut Vec<Open>, entry: Entry) -> Result<(), RepoError> {
        let relative = entry
            .path
            .strip_prefix(b"/")
            .unwrap_or(&entry.path)
            .to_vec();
        let relative = relative.as_slice();
        let depth = |open: &Vec<Open>| open.last().map_or(0, |last| last.path.len());
        while open.len() > 1
            && !open
                .last()
                .is_some_and(|last| is_below(relative, &last.path))
        {
            if let Some(last) = open.pop() {
                self.leave(&last);
            }
        }
        let skip = if open.len() > 1 { depth(open) + 1 } else { 0 };
        let mut names = parts(&relative[skip..]).peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return self.add(open, name.to_vec(), entry);
            }
            let meta = Metadata {
                mode: Some(MODE_UNKNOWN),
                ..Metadata::default()
            };
            let draft = Draft {
                name: name.to_vec(),
                kind: FileKind::Directory,
                meta,
            };
            self.add_directory(open, draft)?;
        }
        Ok(())
    }

    fn add_directory(&self, open: &mut Vec<Open>, draft: Draft) -> Result<(), RepoError> {
        let Some(above) = open.last_mut() else {
            return Ok(());
        };
        let before = match above.previous.take(&draft.name) {
            None => Before::NotThere,
            Some(node) => node.subtree.map_or(Before::Different, Before::Tree),
        };
        let mut path = above.path.clone();
        if open.len() > 1 {
            path.push(b'/');
        }
        path.extend_from_slice(&draft.name);
        let place = self
            .trees
            .place(open.last().map_or(0, |above| above.number));
        let own = Own { place, draft };
        open.push(self.enter(path, Some(own), before)?);
        Ok(())
    }

    fn add(&self, open: &mut Vec<Open>, name: Vec<u8>, entry: Entry) -> Result<(), RepoError> {
        let Entry {
            path,
            kind,
            meta,
            open: file,
        } = entry;
        let mut draft = Draft { name, kind, meta };
        for what in draft.purge() {
            self.warn(&path, WarningKind::Incomplete, what);
        }
        if draft.kind == FileKind::Directory {
            return self.add_directory(open, draft);
        }
        let Some(above) = open.last_mut() else {
            return Ok(());
        };
        let before = above.previous.take(&draft.name);
        let place = self.trees.place(above.number);
        let is_there = |id: &BlobId| self.known.was_there(BlobKind::Data, *id);
        let change = match &before {
            None => Change::New,
            Some(before)
                if is_unchanged(before, &draft.kind, &draft.meta, self.signs)
                    && before.content.iter().all(is_there) =>
            {
                Change::Unmodified
            }
            Some(_) => Change::Changed,
        };
        if draft.kind == FileKind::File && !matches!(change, Change::Unmodified) {
            let entry = Unread {
                draft,
                place,
                change,
            };
            self.pool.push_file(Box::new(File {
                compression: self.source.compression(&path),
                path,
                open: file,
                entry,
            }));
            return Ok(());
        }
        let content = before.map_or_else(Vec::new, |before| before.content);
        let leads = match draft.kind {
            FileKind::File => Leads::ToContent(&content),
            _ => Leads::Nowhere,
        };
        self.count(change, draft.meta.size);
        let whole = self.trees.fill(place, Some(draft.json(leads)?))?;
        debug_assert!(whole.is_none(), "the walk is still in it");
        Ok(())
    }
}

/// Whether a path leads to something below a directory.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| rest.starts_with(b"/"))
}
