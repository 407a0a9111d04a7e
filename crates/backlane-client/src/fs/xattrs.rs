//! Extended attributes, raw: POSIX ACLs and file capabilities are attributes like any other and come along as bytes.
//!
//! The calls for attributes know no directory handles, so that what isn't open is named through `/proc/self/fd` (see
//! [`proc_path`]); symbolic links are not followed.

use super::{Inode, proc_path};
use backlane_repo::Xattr;
use rustix::{
    fs::{
        XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, lgetxattr, llistxattr,
        lremovexattr, lsetxattr,
    },
    io::Errno,
};
use std::io;

/// The kernel's own limit for a value and for a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// The first guess for a value's size: enough for almost all.
const XATTR_BYTES_LIKELY: usize = 1024;

/// All attributes of a file have at most so many bytes, with their names. Most file systems hold less; where each may have
/// [`XATTR_BYTES_MAX`], as on XFS, thousands of them would take all memory.
const ALL_BYTES_MAX: usize = 16 << 20;

/// All attributes, sorted by name. What a file system doesn't support it doesn't have.
///
/// # Errors
/// Also where they have more than [`ALL_BYTES_MAX`].
pub(crate) fn read_all(of: Inode<'_>) -> io::Result<Vec<Xattr>> {
    read_up_to(of, ALL_BYTES_MAX)
}

fn read_up_to(of: Inode<'_>, most: usize) -> io::Result<Vec<Xattr>> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for name in list(of)? {
        let value = grown(|buffer| match of {
            Inode::Named(dir, entry) => {
                lgetxattr(proc_path(dir, entry).as_slice(), name.as_slice(), buffer)
            }
            Inode::Open(file) => fgetxattr(file, name.as_slice(), buffer),
        });
        match value {
            Ok(value) => {
                bytes += name.len() + value.len();
                found.push(Xattr { name, value });
            }
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
        if bytes > most {
            let what = format!("they have more than {} MiB together", most >> 20);
            return Err(io::Error::other(what));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Sets one attribute.
pub(crate) fn set(of: Inode<'_>, attribute: &Xattr) -> io::Result<()> {
    let Xattr { name, value } = attribute;
    let flags = XattrFlags::empty();
    Ok(match of {
        Inode::Named(dir, entry) => lsetxattr(
            proc_path(dir, entry).as_slice(),
            name.as_slice(),
            value,
            flags,
        ),
        Inode::Open(file) => fsetxattr(file, name.as_slice(), value, flags),
    }?)
}

/// Removes one attribute; one that isn't there is a success.
pub(crate) fn remove(of: Inode<'_>, attribute: &[u8]) -> io::Result<()> {
    let removed = match of {
        Inode::Named(dir, entry) => lremovexattr(proc_path(dir, entry).as_slice(), attribute),
        Inode::Open(file) => fremovexattr(file, attribute),
    };
    match removed {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn list(of: Inode<'_>) -> io::Result<Vec<Vec<u8>>> {
    let names = grown(|buffer| match of {
        Inode::Named(dir, entry) => llistxattr(proc_path(dir, entry).as_slice(), buffer),
        Inode::Open(file) => flistxattr(file, buffer),
    });
    let names = match names {
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
    // It would stay as large as the largest.
    buffer.shrink_to_fit();
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_that_are_too_much_together_are_given_up() {
        let file = tempfile::tempfile().unwrap();
        let of = Inode::Open(file.as_fd());
        for name in ["user.a", "user.b"] {
            let (name, value) = (name.into(), vec![b'x'; 100]);
            set(of, &Xattr { name, value }).unwrap();
        }
        let all = read_all(of).unwrap();
        let bytes = all.iter().map(|one| one.name.len() + one.value.len());
        let bytes: usize = bytes.sum();
        assert!(bytes >= 212);
        assert_eq!(read_up_to(of, bytes).unwrap(), all);
        assert!(read_up_to(of, bytes - 1).is_err());
    }
}
