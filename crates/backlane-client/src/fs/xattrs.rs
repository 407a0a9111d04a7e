//! Extended attributes, raw: POSIX ACLs and file capabilities are attributes like any other and come along as bytes.
//!
//! The calls for attributes know no directory handles, so that an entry is named through `/proc/self/fd` (see
//! [`proc_path`]); symbolic links are not followed.

use super::proc_path;
use backlane_repo::Xattr;
use rustix::{fs::XattrFlags, io::Errno};
use std::{ffi::OsStr, io, os::fd::AsFd};

/// The kernel's own limit for a value and for a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// The first guess for a value's size: enough for almost all.
const XATTR_BYTES_LIKELY: usize = 1024;

/// All attributes of `name` in `dir`, sorted by name. What a file system doesn't support it doesn't have.
pub(crate) fn read_all(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<Xattr>> {
    let path = proc_path(dir, name);
    let mut found = Vec::new();
    for name in list(&path)? {
        match grown(|buffer| rustix::fs::lgetxattr(path.as_slice(), name.as_slice(), buffer)) {
            Ok(value) => found.push(Xattr { name, value }),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Sets one attribute of `name` in `dir`.
pub(crate) fn set(dir: impl AsFd, name: &OsStr, attribute: &Xattr) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        proc_path(dir, name).as_slice(),
        attribute.name.as_slice(),
        &attribute.value,
        XattrFlags::empty(),
    )?)
}

/// Removes one attribute of `name` in `dir`; one that isn't there is a success.
pub(crate) fn remove(dir: impl AsFd, name: &OsStr, attribute: &[u8]) -> io::Result<()> {
    match rustix::fs::lremovexattr(proc_path(dir, name).as_slice(), attribute) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn list(path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let names = match grown(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// Calls with a small buffer, and once more with the largest that can be needed.
fn grown(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; XATTR_BYTES_LIKELY];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(XATTR_BYTES_MAX, 0);
            call(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}
