//! Files and directories as a snapshot knows them, in types of our own.
//!
//! The same types describe what a source gives to a backup and what a reader gives to a restore. Names and link targets
//! are bytes; nothing here was checked to be safe to create: see [`name_is_plain`].

use crate::index::BlobId;
use std::time::SystemTime;

/// A point in time. Before 1970 the seconds are negative and the nanoseconds still count forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// Nanoseconds within the second, below 10⁹.
    pub nanoseconds: u32,
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }
}

/// What a directory entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, byte for byte.
        target: Vec<u8>,
    },
    /// A block device.
    BlockDevice {
        /// Its device number, as `st_rdev` has it.
        rdev: u64,
    },
    /// A character device.
    CharDevice {
        /// Its device number, as `st_rdev` has it.
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Something that a program wrote which knows more kinds than this one. It has a name and can't be restored; what
    /// else is said of it isn't looked at.
    Unknown {
        /// What the snapshot calls its kind.
        kind: String,
    },
}

/// An extended attribute; POSIX ACLs and file capabilities are such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name, with its namespace.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// The metadata of a file or directory; `None` is what nobody recorded.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with setuid, setgid and sticky: the lower 12 bits of `st_mode`.
    pub mode: Option<u32>,
    /// The owner's number.
    pub uid: Option<u32>,
    /// The group's number.
    pub gid: Option<u32>,
    /// The owner's name, where it has one.
    pub user: Option<String>,
    /// The group's name, where it has one.
    pub group: Option<String>,
    /// Time of the last change of content.
    pub modified: Option<Time>,
    /// Time of the last access.
    pub accessed: Option<Time>,
    /// Time of the last change of metadata.
    pub changed: Option<Time>,
    /// Inode number: hard links share it, together with the device.
    pub inode: u64,
    /// Number of the device that it lies on.
    pub device: u64,
    /// Number of hard links; zero for directories.
    pub links: u64,
    /// Size in bytes at the time of the stat; zero for what is not a regular file.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, byte for byte as it was on disk. Not checked: see [`name_is_plain`].
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Its metadata.
    pub meta: Metadata,
    /// The blobs of a regular file, in order; their plain lengths add up to its true size.
    pub content: Vec<BlobId>,
    /// The tree of a directory.
    pub subtree: Option<BlobId>,
}

/// A directory's entries, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tree {
    /// The entries.
    pub nodes: Vec<Node>,
}

/// Whether a name can be created in a directory without leaving it: not empty, not `.` or `..`, without `/` and NUL.
#[must_use]
pub fn name_is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stay_in_their_directory_are_plain() {
        for good in [&b"a"[..], b"...", b"a..", b"\xff\n", b".hidden"] {
            assert!(name_is_plain(good), "{}", good.escape_ascii());
        }
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"/etc", b"a\0b"] {
            assert!(!name_is_plain(bad), "{}", bad.escape_ascii());
        }
    }
}
