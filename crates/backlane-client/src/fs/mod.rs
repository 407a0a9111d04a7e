//! The file system by open handles: every call takes an open directory and one name in it, or what is open.
//!
//! Invariants: no call follows a symbolic link, and none takes a path, so that the length of a path has no limit and
//! nothing can be moved under our feet between two components. What this leaves to others: what to do about an error.

pub(crate) mod around;
pub(crate) mod descent;
pub(crate) mod extents;
pub(crate) mod xattrs;

use backlane_repo::Time;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, StatxAttributes, StatxFlags, makedev,
    openat, readlinkat, renameat, renameat_with, statx,
};
use rustix::io::Errno;
use std::{
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

/// How much of a directory is listed by one call.
const LISTING_BYTES: usize = 32 * 1024;

/// Which inode something is, on this machine, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// The device that holds the file system.
    pub(crate) device: u64,
    /// The inode on it.
    pub(crate) inode: u64,
}

/// Something whose metadata is read or set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inode<'a> {
    /// What stands under a name in an open directory; a symbolic link itself, not its target.
    Named(BorrowedFd<'a>, &'a OsStr),
    /// An open file or directory, whatever stands under its name by now.
    Open(BorrowedFd<'a>),
}

/// What the kernel tells of one directory entry.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) identity: Identity,
    pub(crate) file_type: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Space in use, in units of 512 bytes.
    pub(crate) blocks: u64,
    pub(crate) links: u64,
    /// The device that a device node stands for.
    pub(crate) rdev: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Time,
    pub(crate) ctime: Time,
    pub(crate) attributes: StatxAttributes,
}

impl Facts {
    /// What stands under `name` in `dir`; a symbolic link itself, not its target.
    pub(crate) fn of(dir: impl AsFd, name: &OsStr) -> io::Result<Self> {
        Self::read(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// What it is.
    pub(crate) fn of_inode(inode: Inode<'_>) -> io::Result<Self> {
        match inode {
            Inode::Named(dir, name) => Self::of(dir, name),
            Inode::Open(file) => Self::of_open(file),
        }
    }

    /// What an open file or directory is.
    pub(crate) fn of_open(file: impl AsFd) -> io::Result<Self> {
        Self::read(file, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn read(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> io::Result<Self> {
        let stat = statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
        let time = |t: rustix::fs::StatxTimestamp| Time {
            seconds: t.tv_sec,
            nanoseconds: t.tv_nsec,
        };
        Ok(Self {
            identity: Identity {
                device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
            },
            file_type: FileType::from_raw_mode(u32::from(stat.stx_mode)),
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            links: u64::from(stat.stx_nlink),
            rdev: makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            mtime: time(stat.stx_mtime),
            atime: time(stat.stx_atime),
            ctime: time(stat.stx_ctime),
            attributes: stat.stx_attributes,
        })
    }

    /// Whether less space is in use than the size needs: only then a file can have holes.
    pub(crate) fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }
}

/// Opens the directory `name` in `dir` for listing and for calls below it, without a trace in its access time where
/// that is permitted.
pub(crate) fn open_dir(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    open_quietly(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory `name` in `dir` for calls below it alone, which needs no permission to list it.
pub(crate) fn open_dir_as_place(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Opens the regular file `name` in `dir` for reading. A fifo put in its place in the meantime doesn't block.
pub(crate) fn open_file(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    open_quietly(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)
}

fn open_quietly(dir: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // O_NOATIME is for the owner and for root alone.
        Err(Errno::PERM) => Ok(openat(dir, name, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// The names in an open directory, sorted by their bytes; all of them or an error. The handle is read to its end, so
/// this can be called once for each.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    // Never more than that.
    Ok(names_up_to(dir, usize::MAX)?.unwrap_or_default())
}

/// As [`names`]; `None` when there are more than `most`.
pub(crate) fn names_up_to(dir: impl AsFd, most: usize) -> io::Result<Option<Vec<OsString>>> {
    let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
    let mut listing = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            if names.len() == most {
                return Ok(None);
            }
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// Renames within a directory. What stands under the new name is replaced, unless that was free when it was looked at: then
/// something else has come, or the file system takes another entry's name for the same.
pub(crate) fn rename(dir: impl AsFd, from: &OsStr, to: &OsStr, was_free: bool) -> io::Result<()> {
    let dir = dir.as_fd();
    if was_free {
        match renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            // Not every file system knows the flag.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(Errno::EXIST) => {
                let what = "another entry has this name here";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            done => return Ok(done?),
        }
    }
    Ok(renameat(dir, from, dir, to)?)
}

/// Where the symbolic link `name` in `dir` points.
pub(crate) fn link_target(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<u8>> {
    Ok(readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// The path that leads to `name` in an open directory through /proc, for the calls which know no directory handles.
///
/// `/proc/self/fd/N` is the directory itself, not its path, and `name` is the last component, which the callers do not
/// follow: this names the very entry.
pub(crate) fn proc_path(dir: impl AsFd, name: &OsStr) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    path
}
