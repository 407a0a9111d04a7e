//! What the maker and the witness both need of the system: directories by handle, and extended attributes of any kind
//! of file.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

/// Opens the directory `name` below `at`, never through a symbolic link.
pub(crate) fn open_dir(at: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// All names in a directory but `.` and `..`, sorted by their bytes.
pub(crate) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A path of a few bytes that leads to `name` in the directory `at`: what the calls that take no handle are given.
pub(crate) fn proc_path(at: impl AsFd, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", at.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).expect("a name from a CStr has no NUL inside")
}

/// The names and values of all extended attributes, sorted by name. A file system without them has none.
pub(crate) fn xattrs(at: impl AsFd, name: &CStr) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = proc_path(at, name);
    let list = match grown(|buffer| rustix::fs::llistxattr(&path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for attribute in list.split(|&byte| byte == 0).filter(|a| !a.is_empty()) {
        let value = grown(|buffer| rustix::fs::lgetxattr(&path, attribute, buffer))?;
        found.push((attribute.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Calls with a buffer of 64 KiB, the kernel's bound on both a list and a value (`XATTR_SIZE_MAX`).
fn grown(call: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let len = call(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}
