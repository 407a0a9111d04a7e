//! A way down a directory tree of any depth with few directories open.
//!
//! At most [`LEVELS_OPEN_MAX`] are open at once. The handle of one further up is closed, and got again by `..` on the
//! way back, where it has to be the same inode as before.

use super::{Facts, Identity, open_dir};
use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    vec,
};

/// How many directories of the current path are held open.
const LEVELS_OPEN_MAX: usize = 64;

/// A directory that is held open.
pub(crate) trait Held: AsFd {
    /// The one above it, by that one's handle.
    fn above(&self, handle: OwnedFd) -> Self;
}

impl Held for OwnedFd {
    fn above(&self, handle: OwnedFd) -> Self {
        handle
    }
}

/// The directories from the first down to the current one.
pub(crate) struct Descent<D = OwnedFd> {
    levels: Vec<Level<D>>,
}

struct Level<D> {
    /// `None` while it is too far up to be held open, or can't be reached any more.
    handle: Option<Arc<D>>,
    identity: Identity,
    names: vec::IntoIter<OsString>,
}

/// What comes next on the way.
pub(crate) enum Step<D = OwnedFd> {
    /// A name in the current directory.
    Name(Arc<D>, OsString),
    /// The current directory has no more names: it has been left.
    Up {
        /// Why the rest of the directory above can't be reached, if it can't.
        lost: Option<io::Error>,
    },
    /// The first directory was left before.
    End,
}

impl<D> Default for Descent<D> {
    fn default() -> Self {
        Self { levels: Vec::new() }
    }
}

impl<D: Held> Descent<D> {
    /// Makes `handle` the current directory, of which `names` are to be visited.
    pub(crate) fn enter(
        &mut self,
        handle: impl Into<Arc<D>>,
        identity: Identity,
        names: Vec<OsString>,
    ) {
        self.levels.push(Level {
            handle: Some(handle.into()),
            identity,
            names: names.into_iter(),
        });
        if let Some(far) = self.levels.len().checked_sub(LEVELS_OPEN_MAX + 1) {
            self.levels[far].handle = None;
        }
    }

    /// The current directory, unless it can't be reached any more or none has been entered.
    pub(crate) fn current(&self) -> Option<Arc<D>> {
        self.levels.last()?.handle.clone()
    }

    /// Whether no directory is entered.
    pub(crate) fn is_at_end(&self) -> bool {
        self.levels.is_empty()
    }

    /// The next name, or the way up.
    pub(crate) fn step(&mut self) -> Step<D> {
        let Some(level) = self.levels.last_mut() else {
            return Step::End;
        };
        if let (Some(handle), Some(name)) = (&level.handle, level.names.next()) {
            return Step::Name(Arc::clone(handle), name);
        }
        let left = self.levels.pop().and_then(|level| level.handle);
        let lost = match self.levels.last_mut() {
            Some(above) if above.handle.is_none() => above.reopen(left).err(),
            _ => None,
        };
        Step::Up { lost }
    }
}

impl<D: Held> Level<D> {
    fn reopen(&mut self, below: Option<Arc<D>>) -> io::Result<()> {
        let below = below.ok_or(io::ErrorKind::NotFound)?;
        let handle = open_dir(&below, OsStr::new(".."))?;
        if Facts::of_open(&handle)?.identity != self.identity {
            return Err(io::Error::other("it was moved"));
        }
        self.handle = Some(Arc::new(below.above(handle)));
        Ok(())
    }
}
