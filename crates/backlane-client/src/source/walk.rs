//! The walk itself: down from each path by open directories, one entry at a time.

use super::{
    AccessTimes, Detail, FileSystems, Shared,
    database::{Database, in_use},
    read::Pending,
};
use crate::{
    carry,
    fs::{
        self, Facts, Identity,
        descent::{Descent, Step},
        extents::{Extent, Layout},
        xattrs,
    },
};
use backlane_repo::{Entry, FileKind, Metadata, OpenFile, Warning, WarningKind};
use rustix::fs::{FileType, StatxAttributes};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
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
    descent: Descent,
    /// The current directory.
    path: PathBuf,
    /// The device of the current root.
    device: u64,
}

impl Walk {
    pub(crate) fn new(roots: Vec<PathBuf>, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            roots: roots.into_iter(),
            above: None,
            queue: VecDeque::new(),
            descent: Descent::default(),
            path: PathBuf::new(),
            device: 0,
        }
    }

    fn warn(&mut self, kind: WarningKind, path: &Path, reason: impl Into<String>) {
        self.queue.push_back(Err(Warning {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            reason: reason.into(),
        }));
    }

    fn leave_out(&mut self, path: &Path, doing: &str, error: &io::Error) {
        self.warn(WarningKind::LeftOut, path, format!("{doing}: {error}"));
    }

    /// Queues a root, and the directories above it that haven't been given out.
    fn begin_root(&mut self, root: &Path) {
        if let Err(error) = self.try_begin_root(root) {
            self.leave_out(root, "it can't be opened", &error);
        }
    }

    fn try_begin_root(&mut self, root: &Path) -> io::Result<()> {
        let slash = fs::open_dir_as_place(rustix::fs::CWD, OsStr::new("/"))?;
        self.path = PathBuf::from("/");
        let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
            let facts = Facts::of_open(&slash)?;
            self.device = facts.identity.device;
            self.descend(&slash, OsStr::new("."), facts.identity);
            return Ok(());
        };
        let mut dir = Arc::new(slash);
        for component in parent.components().skip(1) {
            let component = component.as_os_str();
            let path = self.path.join(component);
            let known = |above: &PathBuf| above.starts_with(&path);
            let next = Arc::new(fs::open_dir_as_place(&dir, component)?);
            if !self.above.as_ref().is_some_and(known) {
                let facts = Facts::of_open(&next)?;
                let entry = self.entry(&dir, component, &path, &facts)?;
                self.queue.push_back(Ok(entry));
                // At once: should the next one be gone, the next root must not give this one again.
                self.above = Some(path.clone());
            }
            dir = next;
            self.path = path;
        }
        self.above = Some(parent.to_owned());
        let facts = Facts::of(&dir, name)?;
        self.device = facts.identity.device;
        let mut entry = self.entry(&dir, name, root, &facts)?;
        if facts.file_type == FileType::Directory && !self.enter(&dir, name, facts.identity) {
            carry::mark_unlisted(&mut entry.meta);
        }
        self.queue.push_back(Ok(entry));
        Ok(())
    }

    /// Looks at a name of the current directory, and queues what belongs into the backup.
    fn visit(&mut self, dir: &Arc<OwnedFd>, name: &OsStr) {
        let path = self.path.join(name);
        // Before it is looked at: such files come and go while a database is in use.
        if self.shared.copies.is_companion(&path) {
            return;
        }
        let facts = match Facts::of(dir, name) {
            Ok(facts) => facts,
            Err(error) => return self.leave_out(&path, "it can't be examined", &error),
        };
        let is_dir = facts.file_type == FileType::Directory;
        if self.shared.excluder.excludes(&path, is_dir) {
            return;
        }
        let mut entry = match self.entry(dir, name, &path, &facts) {
            Ok(entry) => entry,
            Err(error) => return self.leave_out(&path, "it can't be examined", &error),
        };
        let foreign = facts.identity.device != self.device;
        let stays_out = foreign && self.shared.file_systems == FileSystems::One;
        if is_dir && (stays_out || !self.enter(dir, name, facts.identity)) {
            // Its emptiness in the snapshot says nothing of what belongs there.
            carry::mark_unlisted(&mut entry.meta);
        }
        self.queue.push_back(Ok(entry));
    }

    /// Makes `name` the current directory. One that can't be listed stays in the backup, empty, with a warning. Whether
    /// it was listed.
    fn enter(&mut self, dir: &Arc<OwnedFd>, name: &OsStr, identity: Identity) -> bool {
        self.path.push(name);
        let listed = self.descend(dir, name, identity);
        if !listed {
            self.path.pop();
        }
        listed
    }

    fn descend(&mut self, dir: &OwnedFd, name: &OsStr, identity: Identity) -> bool {
        let opened = fs::open_dir(dir, name).and_then(|handle| {
            if Facts::of_open(&handle)?.identity != identity {
                return Err(io::Error::other("it was replaced by another directory"));
            }
            let names = fs::names(&handle)?;
            Ok((handle, names))
        });
        match opened {
            Ok((handle, mut names)) => {
                self.shared.excluder.keep_marker_alone(&mut names);
                self.warn_of_databases(&names);
                self.descent.enter(handle, identity, names);
                true
            }
            Err(error) => {
                let reason = format!("nothing in it is in the backup, it can't be listed: {error}");
                let path = self.path.clone();
                self.warn(WarningKind::Incomplete, &path, reason);
                false
            }
        }
    }

    /// Names the databases of the current directory that are in use and that no copy stands for.
    fn warn_of_databases(&mut self, names: &[OsString]) {
        if self.shared.detail != Detail::Full {
            return;
        }
        for database in in_use(names) {
            let path = match database {
                Database::Sqlite(name) => self.path.join(name),
                Database::Postgres | Database::InnoDb => self.path.clone(),
            };
            let is_copied = self.shared.copies.of(&path).is_some();
            if !is_copied && !self.shared.excluder.excludes(&path, false) {
                self.warn(WarningKind::Incomplete, &path, database.advice());
            }
        }
    }

    /// All that is kept of an entry.
    fn entry(
        &mut self,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        path: &Path,
        facts: &Facts,
    ) -> io::Result<Entry> {
        let full = self.shared.detail == Detail::Full;
        let kind = match facts.file_type {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink {
                target: fs::link_target(dir, name)?,
            },
            FileType::BlockDevice => FileKind::BlockDevice { rdev: facts.rdev },
            FileType::CharacterDevice => FileKind::CharDevice { rdev: facts.rdev },
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::Unknown => return Err(io::Error::other("it is of no known type")),
        };
        let is_file = kind == FileKind::File;
        let mut meta = metadata(facts, self.shared.access_times);
        let copies = Arc::clone(&self.shared.copies);
        let copy = copies.of(path).filter(|_| is_file);
        if let Some(copy) = copy {
            // Never what an earlier snapshot has: what was written since may be in a file beside it.
            (meta.size, meta.modified) = (copy.bytes, Some(copy.made_at));
        }
        if full {
            match xattrs::read_all(dir, name) {
                Ok(found) => meta.xattrs = found,
                Err(error) => {
                    let reason = format!("its extended attributes can't be read: {error}");
                    self.warn(WarningKind::Incomplete, path, reason);
                }
            }
            let holes = if is_file && copy.is_none() && facts.is_sparse() {
                self.holes(dir, name, path, facts)
            } else {
                None
            };
            carry::pack(&mut meta, holes.as_deref());
            self.warn_of_flags(path, facts);
        }
        let pending = is_file.then(|| {
            let shared = Arc::clone(&self.shared);
            Pending::new(Arc::clone(dir), name, path, facts, shared)
        });
        let open = match copy {
            Some(copy) => {
                let (content, bytes) = (copy.reader(), copy.bytes);
                let reporter = Arc::clone(&self.shared.reporter);
                let open = move || {
                    reporter.progress.advanced(1, bytes);
                    Ok(content)
                };
                Some(Box::new(open) as Box<dyn OpenFile>)
            }
            None => pending.map(|pending| Box::new(pending) as _),
        };
        Ok(Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            meta,
            open,
        })
    }

    fn holes(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        facts: &Facts,
    ) -> Option<Vec<Extent>> {
        // If it can't be opened, reading its content tells so.
        let file = fs::open_file(dir, name).ok()?;
        match fs::extents::layout(&file, facts.size) {
            Ok(Layout::Holes(extents)) => return Some(extents),
            Ok(Layout::Dense) => {}
            Ok(Layout::TooFragmented) => {
                let reason = "it has too many holes to keep; they will come back as zeros";
                self.warn(WarningKind::Incomplete, path, reason);
            }
            Err(error) => {
                let reason =
                    format!("its holes can't be asked for, they will come back as zeros: {error}");
                self.warn(WarningKind::Incomplete, path, reason);
            }
        }
        None
    }

    fn warn_of_flags(&mut self, path: &Path, facts: &Facts) {
        for (flag, name) in [
            (StatxAttributes::IMMUTABLE, "immutable"),
            (StatxAttributes::APPEND, "append-only"),
            (StatxAttributes::VERITY, "fs-verity"),
        ] {
            if facts.attributes.contains(flag) {
                let reason = format!("its {name} flag is not kept");
                self.warn(WarningKind::Incomplete, path, reason);
            }
        }
    }
}

/// What is kept of an entry, its attributes apart.
pub(crate) fn metadata(facts: &Facts, access_times: AccessTimes) -> Metadata {
    let is_file = facts.file_type == FileType::RegularFile;
    let is_dir = facts.file_type == FileType::Directory;
    let linked = !is_dir && facts.links > 1;
    Metadata {
        mode: Some(facts.mode),
        uid: Some(facts.uid),
        gid: Some(facts.gid),
        modified: Some(facts.mtime),
        accessed: Some(match access_times {
            AccessTimes::AsModified => facts.mtime,
            AccessTimes::Kept => facts.atime,
        }),
        changed: Some(facts.ctime),
        inode: facts.identity.inode,
        // Device numbers change from boot to boot. They are needed for hard links alone, and elsewhere would make
        // every tree new.
        device: if linked { facts.identity.device } else { 0 },
        links: if is_dir { 0 } else { facts.links },
        size: if is_file { facts.size } else { 0 },
        ..Metadata::default()
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
            match self.descent.step() {
                Step::Name(dir, name) => self.visit(&dir, &name),
                Step::Up { lost } => {
                    self.path.pop();
                    if let Some(error) = lost {
                        let reason = format!("the rest of its entries can't be reached: {error}");
                        let path = self.path.clone();
                        self.warn(WarningKind::Incomplete, &path, reason);
                    }
                }
                Step::End => {
                    let root = self.roots.next()?;
                    self.begin_root(&root);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Source, SourceOptions};
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
        let how = (Detail::Full, Arc::default());
        let source = Source::new(&paths, &options, how, reporter).unwrap();
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
