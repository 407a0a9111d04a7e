//! Compares two trees, with no code in common with backup and restore.
//!
//! Types, modes, times of modification to the nanosecond, sizes, contents, targets of symbolic links, groups of hard
//! links, extended attributes (ACLs are among them), device numbers, and owners where this process may set them. What
//! can't be read counts as a difference: nothing that wasn't seen is called equal.

use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Differences that are kept with their text; further ones are counted.
const DIFFERENCES_KEPT_MAX: usize = 50;
const PIECE_BYTES: usize = 256 << 10;
/// Longest list of names, and longest value, of extended attributes that Linux allows.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Files, directories and the rest that were compared.
    pub(super) entries: u64,
    /// Bytes of file content that were compared.
    pub(super) bytes: u64,
    /// Differences found in all.
    pub(super) differences: u64,
    /// The first of them in words.
    pub(super) examples: Vec<String>,
}

/// Compares the directory or file `left` with `right`.
pub(super) fn compare(left: &Path, right: &Path) -> Comparison {
    let mut walk = Walk {
        left: left.to_owned(),
        right: right.to_owned(),
        owners: rustix::process::geteuid().is_root(),
        links: HashMap::new(),
        found: Comparison::default(),
    };
    // A loop rather than recursion: a tree may be deeper than a stack.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        walk.entry(&path, &mut pending);
    }
    walk.found
}

struct Walk {
    left: PathBuf,
    right: PathBuf,
    owners: bool,
    /// Which inode on the right a hard-linked inode on the left was found to be.
    links: HashMap<(u64, u64), (u64, u64)>,
    found: Comparison,
}

impl Walk {
    fn entry(&mut self, path: &Path, pending: &mut Vec<PathBuf>) {
        let left = join(&self.left, path);
        let right = join(&self.right, path);
        let (old, new) = match (left.symlink_metadata(), right.symlink_metadata()) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(error), _) => return self.differ(path, format_args!("source: {error}")),
            (_, Err(error)) => return self.differ(path, format_args!("restored: {error}")),
        };
        self.found.entries += 1;
        self.metadata(path, &old, &new);
        self.hard_links(path, &old, &new);
        match (xattrs(&left), xattrs(&right)) {
            (Ok(old), Ok(new)) if old == new => {}
            (Ok(old), Ok(new)) => {
                let names = |map: &BTreeMap<OsString, Vec<u8>>| format!("{:?}", map.keys());
                let (old, new) = (names(&old), names(&new));
                self.differ(path, format_args!("extended attributes {old} became {new}"));
            }
            (Err(error), _) | (_, Err(error)) => {
                self.differ(path, format_args!("extended attributes: {error}"));
            }
        }
        let kind = old.file_type();
        if kind != new.file_type() {
            return; // Said already.
        }
        if kind.is_dir() {
            self.directory(path, &left, &right, pending);
        } else if kind.is_symlink() {
            match (fs::read_link(&left), fs::read_link(&right)) {
                (Ok(old), Ok(new)) if old == new => {}
                (old, new) => self.differ(path, format_args!("target {old:?} became {new:?}")),
            }
        } else if kind.is_file() {
            match same_content(&left, &right) {
                Ok((true, bytes)) => self.found.bytes += bytes,
                Ok((false, _)) => self.differ(path, format_args!("the contents differ")),
                Err(error) => self.differ(path, format_args!("contents: {error}")),
            }
        }
    }

    fn metadata(&mut self, path: &Path, old: &Metadata, new: &Metadata) {
        let mut check = |what: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
            let (old, new) = (old.to_string(), new.to_string());
            if old != new {
                self.differ(path, format_args!("{what} {old} became {new}"));
            }
        };
        check(
            "mode",
            &format!("{:o}", old.mode()),
            &format!("{:o}", new.mode()),
        );
        let time = |m: &Metadata| format!("{}.{:09}", m.mtime(), m.mtime_nsec());
        check("mtime", &time(old), &time(new));
        if old.is_file() {
            check("size", &old.len(), &new.len());
        }
        let kind = old.file_type();
        if kind.is_block_device() || kind.is_char_device() {
            check("device number", &old.rdev(), &new.rdev());
        }
        if self.owners {
            let owner = |m: &Metadata| format!("{}:{}", m.uid(), m.gid());
            let (old, new) = (owner(old), owner(new));
            if old != new {
                self.differ(path, format_args!("owner {old} became {new}"));
            }
        }
    }

    fn hard_links(&mut self, path: &Path, old: &Metadata, new: &Metadata) {
        if old.is_dir() || old.nlink() < 2 {
            return;
        }
        let (from, to) = ((old.dev(), old.ino()), (new.dev(), new.ino()));
        if *self.links.entry(from).or_insert(to) != to {
            self.differ(
                path,
                format_args!("is no longer a hard link to the same file"),
            );
        }
    }

    fn directory(&mut self, path: &Path, left: &Path, right: &Path, pending: &mut Vec<PathBuf>) {
        let (old, new) = match (names(left), names(right)) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(error), _) | (_, Err(error)) => {
                return self.differ(path, format_args!("cannot list: {error}"));
            }
        };
        for name in new.difference(&old) {
            self.differ(&path.join(name), format_args!("is not in the source"));
        }
        for name in old.difference(&new) {
            self.differ(&path.join(name), format_args!("was not restored"));
        }
        pending.extend(old.intersection(&new).map(|name| path.join(name)));
    }

    fn differ(&mut self, path: &Path, what: fmt::Arguments<'_>) {
        self.found.differences += 1;
        if self.found.examples.len() < DIFFERENCES_KEPT_MAX {
            let path = join(&self.left, path);
            self.found.examples.push(format!("{path:?}: {what}"));
        }
    }
}

/// `root` itself for the empty path, without a slash at its end, which would follow a symbolic link.
fn join(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(path)
    }
}

fn names(path: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn same_content(left: &Path, right: &Path) -> io::Result<(bool, u64)> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut old, mut new) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut bytes = 0;
    loop {
        let (m, n) = (fill(&mut left, &mut old)?, fill(&mut right, &mut new)?);
        if old[..m] != new[..n] {
            return Ok((false, bytes));
        }
        bytes += m as u64;
        if m < PIECE_BYTES {
            return Ok((true, bytes));
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut full = 0;
    while full < buffer.len() {
        match file.read(&mut buffer[full..]) {
            Ok(0) => break,
            Ok(read) => full += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(full)
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    use std::os::unix::ffi::OsStringExt;
    let mut list = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, symlink},
    };

    /// Two equal trees, one of them changed by `change`; returns what was found.
    fn check(change: impl FnOnce(&Path)) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let (left, right) = (
            directory.path().join("left"),
            directory.path().join("right"),
        );
        super::super::tree::make(&left, 200_000).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([&left, &right])
            .status()
            .unwrap();
        assert!(copied.success());
        change(&right);
        compare(&left, &right).examples
    }

    #[test]
    fn equal_trees_have_no_difference() {
        assert_eq!(check(|_| {}), [""; 0]);
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 8] = [
            ("the contents differ", |root| {
                let path = root.join("media/0.bin");
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                let mut content = fs::read(&path).unwrap();
                content[77] ^= 1;
                fs::write(&path, content).unwrap();
                File::open(&path).unwrap().set_modified(time).unwrap();
            }),
            ("was not restored", |root| {
                fs::remove_file(root.join("odd/empty")).unwrap()
            }),
            ("is not in the source", |root| {
                fs::write(root.join("new"), "").unwrap()
            }),
            ("mode", |root| {
                fs::set_permissions(root.join("odd/setuid"), Permissions::from_mode(0o751))
                    .unwrap();
            }),
            ("mtime", |root| {
                let file = File::open(root.join("odd/empty")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("target", |root| {
                fs::remove_file(root.join("odd/link")).unwrap();
                symlink("elsewhere", root.join("odd/link")).unwrap();
            }),
            ("hard link", |root| {
                fs::copy(root.join("odd/linked"), root.join("odd/copy")).unwrap();
                fs::rename(root.join("odd/copy"), root.join("odd/linked-again")).unwrap();
            }),
            ("extended attributes", |root| {
                rustix::fs::lremovexattr(root.join("odd/linked"), "user.backlane.demo").unwrap();
            }),
        ];
        for (what, change) in changes {
            let found = check(change);
            assert!(
                found.iter().any(|line| line.contains(what)),
                "{what}: {found:?}"
            );
        }
    }
}
