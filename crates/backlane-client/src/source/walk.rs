//! The walk itself: down from each path by open directories, one entry after the other.

use super::{
    Shared,
    ahead::{Ahead, Next},
    examine::{Directory, Found, look},
    read::Pending,
};
use crate::fs::{
    self, Facts, Identity,
    descent::{Descent, Step},
};
use backlane_repo::{Entry, OpenFile, Warning, WarningKind};
use std::{
    collections::VecDeque,
    ffi::OsStr,
    io,
    num::NonZero,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    vec,
};

/// A walk under way.
pub(crate) struct Walk {
    shared: Arc<Shared>,
    roots: vec::IntoIter<PathBuf>,
    /// The directory above the previous root; it and those above it have been given out.
    above: Option<PathBuf>,
    /// Found, and not yet given out.
    queue: VecDeque<Result<Entry, Warning>>,
    /// The rest of the current root.
    pub(super) ahead: Ahead,
    /// The way down to the current directory. The names are in `ahead`.
    descent: Descent<Directory>,
    /// The current directory.
    path: PathBuf,
}

impl Walk {
    pub(crate) fn new(
        roots: Vec<PathBuf>,
        shared: Arc<Shared>,
        threads: Option<NonZero<usize>>,
    ) -> Self {
        Self {
            ahead: Ahead::new(Arc::clone(&shared), threads),
            shared,
            roots: roots.into_iter(),
            above: None,
            queue: VecDeque::new(),
            descent: Descent::default(),
            path: PathBuf::new(),
        }
    }

    fn warn(&mut self, kind: WarningKind, path: &Path, reason: String) {
        self.queue.push_back(Err(Warning {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            reason,
        }));
    }

    /// Queues a root, and the directories above it that haven't been given out.
    fn begin_root(&mut self, root: &Path) {
        if let Err(error) = self.try_begin_root(root) {
            let reason = format!("it can't be opened: {error}");
            self.warn(WarningKind::LeftOut, root, reason);
        }
    }

    fn try_begin_root(&mut self, root: &Path) -> io::Result<()> {
        let slash = OsStr::new("/");
        let mut handle = fs::open_dir_as_place(rustix::fs::CWD, slash)?;
        self.path = PathBuf::from(slash);
        let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
            let facts = Facts::of_open(&handle)?;
            let mut found = Found::nothing(self.path.clone(), slash.to_owned());
            found.unlisted = Some(facts.identity);
            self.give_root(handle, facts.identity, found);
            return Ok(());
        };
        for component in parent.components().skip(1) {
            let component = component.as_os_str();
            let path = self.path.join(component);
            let known = |above: &PathBuf| above.starts_with(&path);
            let next = fs::open_dir_as_place(&handle, component)?;
            if !self.above.as_ref().is_some_and(known) {
                let facts = Facts::of_open(&next)?;
                let found = self.keep(&handle, path.clone(), &facts)?;
                self.queue(None, found);
                // At once: should the next one be gone, the next root must not give this one again.
                self.above = Some(path.clone());
            }
            handle = next;
            self.path = path;
        }
        self.above = Some(parent.to_owned());
        let facts = Facts::of(&handle, name)?;
        let found = self.keep(&handle, root.to_owned(), &facts)?;
        self.give_root(handle, facts.identity, found);
        Ok(())
    }

    fn keep(&mut self, dir: &OwnedFd, path: PathBuf, facts: &Facts) -> io::Result<Found> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let mut found = Found::nothing(path, name);
        let kept = found.keep(&self.shared, dir, facts);
        kept.map(|()| found)
    }

    fn give_root(&mut self, above: OwnedFd, root: Identity, found: Found) {
        let above = Directory {
            handle: above,
            path: self.path.clone(),
            device: root.device,
        };
        self.give(&Arc::new(above), found);
    }

    /// Queues what was found in a directory, and goes into it if it is a directory that nobody has listed.
    fn give(&mut self, dir: &Arc<Directory>, mut found: Found) {
        if let Some(listing) = found.list(&self.shared, dir, usize::MAX) {
            self.ahead.enter(&listing.directory, listing.names);
            self.enter(listing.directory, listing.identity);
        }
        self.queue(Some(dir), found);
    }

    /// Queues what was found; a file's directory is given.
    fn queue(&mut self, dir: Option<&Arc<Directory>>, found: Found) {
        self.queue.extend(found.warnings.into_iter().map(Err));
        let Some((kind, meta)) = found.kept else {
            return;
        };
        let content = found.content.zip(dir).map(|(expected, dir)| {
            self.copy(&found.path).unwrap_or_else(|| {
                let (dir, shared) = (Arc::clone(dir), Arc::clone(&self.shared));
                Box::new(Pending::new(dir, found.name, expected, shared))
            })
        });
        self.queue.push_back(Ok(Entry {
            path: found.path.into_os_string().into_vec(),
            kind,
            meta,
            open: content,
        }));
    }

    /// The copy that stands for a file.
    fn copy(&self, path: &Path) -> Option<Box<dyn OpenFile>> {
        let copy = self.shared.copies.of(path)?;
        let (content, bytes) = (copy.reader(), copy.bytes);
        let reporter = Arc::clone(&self.shared.reporter);
        let open = move || {
            reporter.progress.advanced(1, bytes);
            Ok(content)
        };
        Some(Box::new(open))
    }

    fn enter(&mut self, directory: Arc<Directory>, identity: Identity) {
        self.path.clone_from(&directory.path);
        self.descent.enter(directory, identity, Vec::new());
    }

    fn leave(&mut self) {
        let Step::Up { lost } = self.descent.step() else {
            return;
        };
        self.path.pop();
        if let Some(error) = lost {
            let reason = format!("the rest of its entries can't be reached: {error}");
            let path = self.path.clone();
            self.warn(WarningKind::Incomplete, &path, reason);
            self.ahead.drop_current();
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Entry, Warning>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.shared.reporter.cancel.is_cancelled() {
                return None;
            }
            if let Some(found) = self.queue.pop_front() {
                return Some(found);
            }
            let current = self.descent.current();
            match (self.ahead.next(current.as_ref()), current) {
                (Next::Name(name), Some(dir)) => {
                    if let Some(found) = look(&self.shared, &dir, name) {
                        self.give(&dir, found);
                    }
                }
                (Next::Found(found), Some(dir)) => self.give(&dir, found),
                (Next::Directory(found, directory, identity), _) => {
                    self.enter(directory, identity);
                    self.queue(None, found);
                }
                (Next::Up, _) => self.leave(),
                (Next::End, _) => {
                    let root = self.roots.next()?;
                    self.begin_root(&root);
                }
                // What was in a directory that can't be reached any more was dropped.
                (Next::Name(_) | Next::Found(_), None) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Detail, Source, SourceOptions, WalkOptions};
    use super::*;
    use crate::progress::Reporter;
    use std::collections::HashSet;

    #[test]
    fn a_parent_that_vanished_leaves_the_other_paths_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let paths = ["p/gone/file", "p/stays/file"].map(|path| base.join(path));
        for path in &paths {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let reporter = Arc::new(Reporter::new(
            Arc::new(()),
            backlane_repo::Cancel::default(),
        ));
        let options = SourceOptions::default();
        let walk = WalkOptions {
            detail: Detail::Full,
            copies: Arc::default(),
            threads: None,
        };
        let source = Source::new(&paths, &options, walk, reporter).unwrap();
        std::fs::remove_dir_all(base.join("p/gone")).unwrap();
        let mut seen = HashSet::new();
        let mut left_out = Vec::new();
        for found in source.walk() {
            match found {
                Ok(entry) => assert!(seen.insert(entry.path)),
                Err(warning) => left_out.push(warning.path),
            }
        }
        assert!(seen.contains(paths[1].as_os_str().as_bytes()));
        assert_eq!(left_out, [paths[0].as_os_str().as_bytes()]);
    }
}
