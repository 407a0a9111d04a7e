//! Gives something below the target the metadata that the snapshot has for it.
//!
//! Order: owner first, because that takes setuid bits and capabilities away; then attributes and times, while the mode
//! still permits access; the mode last, which changes neither. What can't be set is a warning of its own each, and the
//! rest is still set; only setuid and setgid bits are not given to a file that belongs to somebody else than it should.

use crate::{
    fs::{Facts, Inode, xattrs},
    progress::{Reporter, WarningKind},
};
use backlane_repo::{FileKind, Metadata, Time, Xattr};
use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmod, chownat, fchmod,
        fchown, futimens, openat, utimensat,
    },
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

/// One thing below the target.
pub(crate) struct Subject<'a> {
    pub(crate) inode: Inode<'a>,
    /// The path to show to people.
    pub(crate) path: &'a Path,
    pub(crate) reporter: &'a Reporter,
}

/// What lets a program run with the rights of its owner or group.
const SET_ID_BITS: u32 = 0o6000;

/// Whose something is after its owner and group were to be set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owned {
    AsWanted,
    ByAnother,
}

impl Subject<'_> {
    /// Makes its metadata that of the snapshot.
    pub(crate) fn apply(&self, kind: &FileKind, wanted: &Metadata) {
        let facts = match Facts::of_inode(self.inode) {
            Ok(facts) => facts,
            Err(error) => return self.warn(WarningKind::NotRestored, "it is gone", &error),
        };
        let owned = self.apply_owner(&facts, wanted);
        self.apply_xattrs(&wanted.xattrs);
        if let Err(error) = self.apply_times(wanted) {
            self.warn(WarningKind::Times, "its times can't be set", &error);
        }
        if !matches!(kind, FileKind::Symlink { .. })
            && let Some(mode) = wanted.mode
        {
            let of_directory = *kind == FileKind::Directory;
            self.apply_mode(mode, if of_directory { Owned::AsWanted } else { owned });
        }
    }

    fn apply_mode(&self, wanted: u32, owned: Owned) {
        let mut mode = wanted;
        if owned == Owned::ByAnother && mode & SET_ID_BITS != 0 {
            // It would run with the rights of whoever restores it.
            mode &= !SET_ID_BITS;
            let what = format!(
                "its mode is {mode:04o} instead of {wanted:04o}, since its owner or group can't be set"
            );
            self.reporter.warn(WarningKind::Mode, self.path, what);
        }
        if let Err(error) = set_mode(self.inode, mode) {
            let what = format!("its mode {mode:04o} can't be set");
            self.warn(WarningKind::Mode, &what, &error);
        }
    }

    fn warn(&self, kind: WarningKind, what: &str, error: &io::Error) {
        self.reporter
            .warn(kind, self.path, format!("{what}: {error}"));
    }

    fn apply_owner(&self, facts: &Facts, wanted: &Metadata) -> Owned {
        let uid = wanted.uid.filter(|uid| *uid != facts.uid);
        let gid = wanted.gid.filter(|gid| *gid != facts.gid);
        if uid.is_none() && gid.is_none() {
            return Owned::AsWanted;
        }
        let set = |uid: Option<u32>, gid: Option<u32>| {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            match self.inode {
                Inode::Named(dir, name) => chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
                Inode::Open(file) => fchown(file, uid, gid),
            }
        };
        let Err(mut error) = set(uid, gid) else {
            return Owned::AsWanted;
        };
        let mut missing = format!("owner {} and group {}", show(wanted.uid), show(wanted.gid));
        // Who is not root may still give a file to a group of theirs.
        if uid.is_some() && gid.is_some() {
            match set(None, gid) {
                Ok(()) => missing = format!("owner {}", show(wanted.uid)),
                Err(second) => error = second,
            }
        }
        let what = format!("its {missing} can't be set");
        self.warn(WarningKind::Owner, &what, &error.into());
        Owned::ByAnother
    }

    fn apply_xattrs(&self, wanted: &[Xattr]) {
        let present = match xattrs::read_all(self.inode) {
            Ok(present) => present,
            Err(error) => {
                let what = "its extended attributes can't be read";
                return self.warn(WarningKind::Xattr, what, &error);
            }
        };
        for old in &present {
            let stays = wanted.iter().any(|new| new.name == old.name);
            if !stays
                && is_ours_to_remove(&old.name)
                && let Err(error) = xattrs::remove(self.inode, &old.name)
            {
                let what = format!("attribute {} can't be removed", old.name.escape_ascii());
                self.warn(WarningKind::Xattr, &what, &error);
            }
        }
        for new in wanted.iter().filter(|new| !present.contains(new)) {
            if let Err(error) = xattrs::set(self.inode, new) {
                let what = format!("attribute {} can't be set", new.name.escape_ascii());
                self.warn(WarningKind::Xattr, &what, &error);
            }
        }
    }

    fn apply_times(&self, wanted: &Metadata) -> io::Result<()> {
        let times = Timestamps {
            last_access: timespec(wanted.accessed),
            last_modification: timespec(wanted.modified),
        };
        match self.inode {
            Inode::Named(dir, name) => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            Inode::Open(file) => futimens(file, &times),
        }?;
        // A file system that can't hold a time takes the nearest that it can, in silence.
        let beyond_32_bits = |time: &Time| i32::try_from(time.seconds).is_err();
        if let Some(modified) = wanted.modified.filter(beyond_32_bits)
            && Facts::of_inode(self.inode)?.mtime != modified
        {
            return Err(io::Error::other("the file system can't hold them"));
        }
        Ok(())
    }
}

/// Sets the permissions. To have a symbolic link is an error.
pub(crate) fn set_mode(inode: Inode<'_>, mode: u32) -> io::Result<()> {
    let wanted = Mode::from_raw_mode(mode);
    let opened;
    let it = match inode {
        Inode::Open(file) => {
            fchmod(file, wanted)?;
            file
        }
        Inode::Named(dir, name) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            opened = openat(dir, name, flags, Mode::empty())?;
            // There is no fchmod for such a handle; its name in /proc leads to the very inode, and a link is refused.
            let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
            match chmod(path, wanted) {
                Err(Errno::OPNOTSUPP) => return Err(io::Error::other("it is a symbolic link")),
                other => other?,
            }
            opened.as_fd()
        }
    };
    // The kernel drops setgid in silence where the caller is not in the group.
    if mode & 0o7000 != 0 && Facts::of_open(it)?.mode != mode {
        return Err(io::Error::other("the system dropped some of its bits"));
    }
    Ok(())
}

/// What a directory or an earlier restore may have left on a file. Labels of security modules stay: the system's policy
/// puts them there.
fn is_ours_to_remove(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"system.posix_acl_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == b"security.capability"
}

fn timespec(time: Option<Time>) -> Timespec {
    match time {
        Some(time) => Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
    }
}

fn show(id: Option<u32>) -> String {
    id.map_or_else(|| "unknown".to_owned(), |id| id.to_string())
}
