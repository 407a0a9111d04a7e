//! Removes what stands below the target and should not: whole trees, by open directories.
//!
//! Invariants: a symbolic link is removed, never followed; nothing on another device than the start is touched.

use crate::fs::{
    self, Facts, Inode,
    descent::{Descent, Step},
};
use rustix::{
    fs::{AtFlags, FileType, unlinkat},
    io::Errno,
};
use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

/// What a removal came to.
#[derive(Default)]
pub(crate) struct Removed {
    /// How many entries are gone.
    pub(crate) count: u64,
    /// What stayed, relative to where it began, and why.
    pub(crate) stayed: Vec<(PathBuf, io::Error)>,
}

/// Removes `name` in `dir` with all below it that lies on `device`.
pub(crate) fn remove_tree(dir: &OwnedFd, name: &OsStr, device: u64) -> Removed {
    let mut removal = Removal {
        device,
        done: Removed::default(),
        path: PathBuf::new(),
        descent: Descent::default(),
    };
    removal.visit(dir, name);
    loop {
        match removal.descent.step() {
            Step::Name(dir, name) => removal.visit(&*dir, &name),
            Step::Up { .. } => removal.leave(dir),
            Step::End => return removal.done,
        }
    }
}

struct Removal {
    device: u64,
    done: Removed,
    path: PathBuf,
    descent: Descent,
}

impl Removal {
    /// Removes what is no directory, and enters what is one.
    fn visit(&mut self, dir: impl AsFd, name: &OsStr) {
        self.path.push(name);
        match self.try_visit(dir, name) {
            Ok(Visited::Entered) => return,
            Ok(Visited::Removed) => self.done.count += 1,
            Err(error) => self.done.stayed.push((self.path.clone(), error)),
        }
        self.path.pop();
    }

    fn try_visit(&mut self, dir: impl AsFd, name: &OsStr) -> io::Result<Visited> {
        let facts = Facts::of(&dir, name)?;
        if facts.identity.device != self.device {
            return Err(io::Error::other("another file system is mounted there"));
        }
        if facts.file_type != FileType::Directory {
            unlinkat(dir, name, AtFlags::empty())?;
            return Ok(Visited::Removed);
        }
        let handle = open_for_removal(&dir, name)?;
        if Facts::of_open(&handle)?.identity != facts.identity {
            return Err(io::Error::other("it was replaced"));
        }
        let names = fs::names(&handle)?;
        self.descent.enter(handle, facts.identity, names);
        Ok(Visited::Entered)
    }

    /// Removes the directory that was just left. `start` is where the first of all is.
    fn leave(&mut self, start: &OwnedFd) {
        let name = self.path.file_name().unwrap_or_default();
        let result = if self.descent.is_at_end() {
            unlinkat(start, name, AtFlags::REMOVEDIR)
        } else {
            match self.descent.current() {
                Some(above) => unlinkat(&*above, name, AtFlags::REMOVEDIR),
                None => Err(Errno::NOENT),
            }
        };
        match result {
            Ok(()) => self.done.count += 1,
            // What stayed in it has been named.
            Err(Errno::NOTEMPTY) if !self.done.stayed.is_empty() => {}
            Err(error) => self.done.stayed.push((self.path.clone(), error.into())),
        }
        self.path.pop();
    }
}

enum Visited {
    Removed,
    Entered,
}

/// Who is not root may own a directory that they may not list.
fn open_for_removal(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    fs::open_dir(&dir, name).or_else(|error| {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(error);
        }
        super::metadata::set_mode(Inode::Named(dir.as_fd(), name), 0o700)?;
        fs::open_dir(&dir, name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkdirat};

    #[test]
    fn a_tree_deeper_than_any_path_goes_and_what_a_link_points_to_stays() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("precious"), "x").unwrap();
        let top = tempfile::tempdir().unwrap();
        let top = fs::open_dir(CWD, top.path().as_os_str()).unwrap();
        let mut dir = rustix::io::dup(&top).unwrap();
        let name = "d".repeat(200);
        for _ in 0..200 {
            mkdirat(&dir, &name, Mode::RWXU).unwrap();
            rustix::fs::symlinkat(outside.path(), &dir, "link").unwrap();
            dir = fs::open_dir(&dir, name.as_ref()).unwrap();
        }
        let device = Facts::of_open(&top).unwrap().identity.device;
        let removed = remove_tree(&top, name.as_ref(), device);
        assert_eq!((removed.count, removed.stayed.len()), (399, 0));
        assert!(outside.path().join("precious").exists());
        assert_eq!(fs::names(&top).unwrap(), ["link"]);
    }
}
