//! The single things that a tree is made of: files, directories, nodes, attributes and ACLs.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};

use crate::handle;

/// Makes a directory with mode 0755, whatever the umask.
pub(crate) fn make_dir(at: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o755);
    let make = || {
        rustix::fs::mkdirat(at, name, mode)?;
        let dir = handle::open_dir(at, name)?;
        rustix::fs::fchmod(&dir, mode)?;
        Ok::<_, rustix::io::Errno>(dir)
    };
    make().with_context(|| format!("making directory {}", name.to_bytes().escape_ascii()))
}

/// Makes a file with mode 0644, whatever the umask, and opens it for writing.
pub(crate) fn create(at: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let make = || {
        let file = rustix::fs::openat(at, name, flags, mode)?;
        rustix::fs::fchmod(&file, mode)?;
        Ok::<_, rustix::io::Errno>(file)
    };
    make().with_context(|| format!("making {}", name.to_bytes().escape_ascii()))
}

/// Makes a fifo, a socket or a device node with this mode, whatever the umask.
pub(crate) fn make_node(
    at: &OwnedFd,
    name: &CStr,
    kind: FileType,
    numbers: (u32, u32),
    mode: u32,
) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::mknodat(
        at,
        name,
        kind,
        mode,
        rustix::fs::makedev(numbers.0, numbers.1),
    )?;
    rustix::fs::chmodat(at, name, mode, AtFlags::empty())
}

/// Makes a file with this content.
pub(crate) fn write_file(at: &OwnedFd, name: &CStr, content: &[u8]) -> Result<()> {
    write_all_at(&create(at, name)?, content, 0)
}

/// Writes all of `content` at `offset`.
pub(crate) fn write_all_at(file: &OwnedFd, mut content: &[u8], mut offset: u64) -> Result<()> {
    while !content.is_empty() {
        let n = rustix::io::pwrite(file, content, offset).context("writing")?;
        content = &content[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Gives the file `name` in `from` the further name `new` in `to`; a symbolic link is linked itself.
pub(crate) fn hard_link(from: &OwnedFd, name: &CStr, to: &OwnedFd, new: &CStr) -> Result<()> {
    rustix::fs::linkat(from, name, to, new, AtFlags::empty())
        .with_context(|| format!("linking {}", new.to_bytes().escape_ascii()))
}

/// Sets an extended attribute of any kind of file.
pub(crate) fn set_xattr(
    at: impl AsFd,
    name: &CStr,
    attribute: &[u8],
    value: &[u8],
) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(
        handle::proc_path(at, name),
        attribute,
        value,
        XattrFlags::empty(),
    )
}

// Tags of the kernel's `struct posix_acl_xattr_entry`.
pub(crate) const USER_OBJ: u16 = 0x01;
pub(crate) const USER: u16 = 0x02;
pub(crate) const GROUP_OBJ: u16 = 0x04;
pub(crate) const GROUP: u16 = 0x08;
pub(crate) const MASK: u16 = 0x10;
pub(crate) const OTHER: u16 = 0x20;
pub(crate) const NO_ID: u32 = u32::MAX;

/// The kernel's form of an ACL: version 2, then tag, permissions and id of each entry.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for &(tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}
