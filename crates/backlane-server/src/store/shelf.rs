//! Objects that were taken out of a repository and are kept beside it: removed ones for a while, damaged ones until
//! somebody has looked at them (§2).
//!
//! A shelf is a directory; what stands there says in its name when it was laid aside, what it was, and its id, so that a
//! shelf is whole without the state database. Laying aside and putting back are renames: an object is always in one of
//! the two places.

use super::{
    Origin, Placed,
    local::{
        LocalStore, foreign, origin_of, rename_without_replacing, sync_directory, sync_parent,
    },
    sink::existed,
};
use crate::{ServerError, db::Timestamp, error::io_error};
use backlane_proto::{ObjectId, ObjectKind, ObjectName, WalName};
use rustix::io::Errno;
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Why something was laid aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// Maintenance has removed it.
    Removed,
    /// Its content is not what its name says.
    Damaged,
}

/// Something that was laid aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaidAside {
    pub(crate) name: ObjectName,
    pub(crate) at: Timestamp,
    pub(crate) bytes: u64,
}

impl Shelf {
    fn directory(self, root: &Path) -> PathBuf {
        root.join(match self {
            Self::Removed => "removed",
            Self::Damaged => "damaged",
        })
    }
}

impl LaidAside {
    fn file_name(&self) -> String {
        let Self { name, at, .. } = self;
        format!("{}-{}-{}", at.0, name.kind, name.id)
    }

    fn parse(file_name: &str, bytes: u64) -> Option<Self> {
        let mut parts = file_name.splitn(3, '-');
        let at = Timestamp(parts.next()?.parse().ok()?);
        let kind = parts.next()?;
        let kind = ObjectKind::ALL
            .into_iter()
            .find(|it| it.to_string() == kind)?;
        let id = ObjectId::from_hex(parts.next()?)?;
        if kind == ObjectKind::Wal {
            WalName::from_id(id)?;
        }
        let name = ObjectName { kind, id };
        Some(Self { name, at, bytes })
    }
}

impl LocalStore {
    /// Lays an object aside; when this returns, that is durable.
    pub(super) fn lay_aside_file(
        &self,
        name: ObjectName,
        shelf: Shelf,
        at: Timestamp,
    ) -> Result<(), ServerError> {
        let directory = shelf.directory(self.root());
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => sync_directory(self.root())?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", directory)(error)),
        }
        let from = self.path(name);
        let mut aside = LaidAside { name, at, bytes: 0 };
        loop {
            match rename_without_replacing(&from, &directory.join(aside.file_name())) {
                Ok(()) => break,
                // Another file of this name was laid there in this very millisecond.
                Err(Errno::EXIST) => aside.at.0 += 1,
                Err(Errno::NOENT) => return Err(ServerError::NotFound { name }),
                Err(errno) => return Err(io_error("lay aside", &from)(errno.into())),
            }
        }
        // In this order: after a crash it may be in both places, and is never in none.
        sync_directory(&directory)?;
        sync_parent(&from)
    }

    pub(super) fn list_shelf(&self, shelf: Shelf) -> Result<Vec<LaidAside>, ServerError> {
        let directory = shelf.directory(self.root());
        let failed = || io_error("read", &directory);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed())?;
            let bytes = entry.metadata().map_err(failed())?.len();
            let file_name = entry.file_name();
            let parsed = file_name.to_str();
            let parsed = parsed.and_then(|name| LaidAside::parse(name, bytes));
            all.push(parsed.ok_or_else(|| {
                foreign(entry.path(), "nothing that was laid aside has such a name")
            })?);
        }
        all.sort_unstable_by_key(|aside| (aside.at, aside.name));
        Ok(all)
    }

    pub(super) fn shelf_origin(
        &self,
        shelf: Shelf,
        aside: &LaidAside,
    ) -> Result<Origin, ServerError> {
        origin_of(&self.aside_path(shelf, aside))
    }

    pub(super) fn aside_path(&self, shelf: Shelf, aside: &LaidAside) -> PathBuf {
        shelf.directory(self.root()).join(aside.file_name())
    }

    /// Puts something back in its place. What stands there already is left alone, and so is what is on the shelf.
    pub(super) fn put_back_file(
        &self,
        shelf: Shelf,
        aside: &LaidAside,
    ) -> Result<Placed, ServerError> {
        let (from, to) = (self.aside_path(shelf, aside), self.path(aside.name));
        match rename_without_replacing(&from, &to) {
            Ok(()) => {
                sync_parent(&to)?;
                sync_parent(&from)?;
                Ok(Placed::Created)
            }
            Err(Errno::EXIST) => existed(&to),
            Err(errno) => Err(io_error("put back", &from)(errno.into())),
        }
    }

    /// Deletes something for good.
    pub(super) fn discard_file(&self, shelf: Shelf, aside: &LaidAside) -> Result<(), ServerError> {
        let path = self.aside_path(shelf, aside);
        fs::remove_file(&path).map_err(io_error("delete", &path))
    }
}
