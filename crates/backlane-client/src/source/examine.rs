//! What there is to know of one name in a directory, and what a directory lists.
//!
//! Invariants: what is found is a function of the file system and of what all parts of the walk share, so that it doesn't
//! matter who looks, nor when; each name is looked at once, and nothing is looked at that the backup leaves out. What
//! this leaves to others: the order.

use super::{
    AccessTimes, Detail, FileSystems, Shared,
    database::{Database, in_use},
    read::Expected,
};
use crate::{
    carry,
    fs::{
        self, Facts, Identity, Inode,
        descent::Held,
        extents::{Extent, Layout},
        xattrs,
    },
};
use backlane_repo::{FileKind, Metadata, Warning, WarningKind};
use rustix::fs::{FileType, StatxAttributes};
use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Each so many bytes make what was found count as one more.
const COST_BYTES: usize = 1024;

/// A directory of the walk, held open.
pub(crate) struct Directory {
    pub(super) handle: OwnedFd,
    pub(super) path: PathBuf,
    /// The device of the root that it is below.
    pub(super) device: u64,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Held for Directory {
    fn above(&self, handle: OwnedFd) -> Self {
        Self {
            handle,
            path: self.path.parent().unwrap_or(&self.path).to_owned(),
            device: self.device,
        }
    }
}

/// What is under a name that belongs into the backup.
pub(super) struct Found {
    /// When it was looked at.
    pub(super) since: Instant,
    pub(super) path: PathBuf,
    pub(super) name: OsString,
    /// What is to be said before the entry.
    pub(super) warnings: Vec<Warning>,
    /// `None` where it is left out.
    pub(super) kept: Option<(FileKind, Metadata)>,
    /// Of a regular file.
    pub(super) content: Option<Expected>,
    /// A directory whose names belong into the backup, and that nobody has listed.
    pub(super) unlisted: Option<Identity>,
}

/// A directory, and the names in it that are to be looked at.
pub(super) struct Listing {
    pub(super) directory: Arc<Directory>,
    pub(super) identity: Identity,
    pub(super) names: Vec<OsString>,
}

/// Looks at a name; `None` where the backup leaves it out.
pub(super) fn look(shared: &Shared, dir: &Directory, name: OsString) -> Option<Found> {
    let path = dir.path.join(&name);
    // Before it is looked at: such files come and go while a database is in use.
    if shared.copies.is_companion(&path) {
        return None;
    }
    #[cfg(test)]
    shared.watch(super::Doing::Looks, &path);
    let mut found = Found::nothing(path, name);
    if let Err(error) = found.look(shared, dir)? {
        let reason = format!("it can't be examined: {error}");
        found.warn_of_itself(WarningKind::LeftOut, reason);
    }
    Some(found)
}

impl Found {
    /// What is found at a path, as long as nobody has looked.
    pub(super) fn nothing(path: PathBuf, name: OsString) -> Self {
        Self {
            since: Instant::now(),
            path,
            name,
            warnings: Vec::new(),
            kept: None,
            content: None,
            unlisted: None,
        }
    }

    /// `None` where the backup leaves it out.
    fn look(&mut self, shared: &Shared, dir: &Directory) -> Option<io::Result<()>> {
        let facts = match Facts::of(dir, &self.name) {
            Ok(facts) => facts,
            Err(error) => return Some(Err(error)),
        };
        let is_dir = facts.file_type == FileType::Directory;
        if shared.excluder.excludes(&self.path, is_dir) {
            return None;
        }
        let kept = self.keep(shared, dir, &facts);
        let is_foreign = facts.identity.device != dir.device;
        if is_foreign && shared.file_systems == FileSystems::One {
            self.stays_unlisted();
        }
        Some(kept)
    }

    /// All that is kept of what `facts` tell of.
    pub(super) fn keep(
        &mut self,
        shared: &Shared,
        dir: impl AsFd,
        facts: &Facts,
    ) -> io::Result<()> {
        let kind = kind(&dir, &self.name, facts)?;
        let is_file = kind == FileKind::File;
        let mut meta = metadata(facts, shared.access_times);
        let copy = shared.copies.of(&self.path).filter(|_| is_file);
        if let Some(copy) = copy {
            // Never what an earlier snapshot has: what was written since may be in a file beside it.
            (meta.size, meta.modified) = (copy.bytes, Some(copy.made_at));
        }
        if shared.detail == Detail::Full {
            match xattrs::read_all(Inode::Named(dir.as_fd(), &self.name)) {
                Ok(found) => meta.xattrs = found,
                Err(error) => {
                    let reason = format!("its extended attributes can't be read: {error}");
                    self.warn_of_itself(WarningKind::Incomplete, reason);
                }
            }
            let holes = if is_file && copy.is_none() && facts.is_sparse() {
                self.holes(&dir, facts)
            } else {
                None
            };
            carry::pack(&mut meta, holes.as_deref());
            if copy.is_some() {
                carry::mark_sqlite(&mut meta);
            }
            self.warn_of_flags(facts);
        }
        self.content = is_file.then(|| Expected::of(facts));
        self.unlisted = (kind == FileKind::Directory).then_some(facts.identity);
        self.kept = Some((kind, meta));
        Ok(())
    }

    /// Lists the directory, if it is one that nobody has listed. One that can't be listed stays in the backup, empty,
    /// with a warning; one with more than `most` names stays unlisted for now.
    pub(super) fn list(
        &mut self,
        shared: &Shared,
        dir: &Directory,
        most: usize,
    ) -> Option<Listing> {
        let identity = self.unlisted?;
        #[cfg(test)]
        shared.watch(super::Doing::Lists, &self.path);
        let opened = fs::open_dir(dir, &self.name).and_then(|handle| {
            if Facts::of_open(&handle)?.identity != identity {
                return Err(io::Error::other("it was replaced by another directory"));
            }
            let names = fs::names_up_to(&handle, most)?;
            Ok(names.map(|names| (handle, names)))
        });
        let (handle, mut names) = match opened {
            Ok(opened) => opened?,
            Err(error) => {
                let reason = format!("nothing in it is in the backup, it can't be listed: {error}");
                self.warn_of_itself(WarningKind::Incomplete, reason);
                self.stays_unlisted();
                return None;
            }
        };
        self.unlisted = None;
        shared.excluder.keep_marker_alone(&mut names);
        self.warn_of_databases(shared, &names);
        let directory = Directory {
            handle,
            path: self.path.clone(),
            device: dir.device,
        };
        Some(Listing {
            directory: Arc::new(directory),
            identity,
            names,
        })
    }

    /// Of a directory: its emptiness in the snapshot says nothing of what belongs there.
    fn stays_unlisted(&mut self) {
        if self.unlisted.take().is_some()
            && let Some((_, meta)) = &mut self.kept
        {
            carry::mark_unlisted(meta);
        }
    }

    /// How much memory it takes, in units of a usual entry.
    pub(super) fn cost(&self) -> usize {
        let attributes = self.kept.iter().flat_map(|(_, meta)| &meta.xattrs);
        let attributes = attributes.map(|one| one.name.len() + one.value.len());
        let paths = self.path.as_os_str().len() * (1 + self.warnings.len());
        1 + (paths + attributes.sum::<usize>()) / COST_BYTES
    }

    fn warn(&mut self, kind: WarningKind, path: &Path, reason: impl Into<String>) {
        self.warnings.push(Warning {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            reason: reason.into(),
        });
    }

    fn warn_of_itself(&mut self, kind: WarningKind, reason: impl Into<String>) {
        let path = self.path.clone();
        self.warn(kind, &path, reason);
    }

    /// Names the databases of a directory that are in use and that no copy stands for.
    fn warn_of_databases(&mut self, shared: &Shared, names: &[OsString]) {
        if shared.detail != Detail::Full {
            return;
        }
        for database in in_use(names) {
            let path = match database {
                Database::Sqlite(name) => self.path.join(name),
                Database::Postgres | Database::InnoDb => self.path.clone(),
            };
            let is_copied = shared.copies.of(&path).is_some();
            if !is_copied && !shared.excluder.excludes(&path, false) {
                self.warn(WarningKind::Incomplete, &path, database.advice());
            }
        }
    }

    fn holes(&mut self, dir: impl AsFd, facts: &Facts) -> Option<Vec<Extent>> {
        // If it can't be opened, reading its content tells so.
        let file = fs::open_file(dir, &self.name).ok()?;
        let reason = match fs::extents::layout(&file, facts.size) {
            Ok(Layout::Holes(extents)) => return Some(extents),
            Ok(Layout::Dense) => return None,
            Ok(Layout::TooFragmented) => {
                "it has too many holes to keep; they will come back as zeros".to_owned()
            }
            Err(error) => {
                format!("its holes can't be asked for, they will come back as zeros: {error}")
            }
        };
        self.warn_of_itself(WarningKind::Incomplete, reason);
        None
    }

    fn warn_of_flags(&mut self, facts: &Facts) {
        for (flag, name) in [
            (StatxAttributes::IMMUTABLE, "immutable"),
            (StatxAttributes::APPEND, "append-only"),
            (StatxAttributes::VERITY, "fs-verity"),
        ] {
            if facts.attributes.contains(flag) {
                let reason = format!("its {name} flag is not kept");
                self.warn_of_itself(WarningKind::Incomplete, reason);
            }
        }
    }
}

fn kind(dir: impl AsFd, name: &OsStr, facts: &Facts) -> io::Result<FileKind> {
    Ok(match facts.file_type {
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
    })
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
