//! The witness: walks two trees in step and names everything in which they differ.
//!
//! Compared: which names there are; kind, mode with setuid, setgid and sticky bit, owner, group; size, content and
//! holes of files; targets of symbolic links; numbers of devices; modification times to the nanosecond; every extended
//! attribute with its value (POSIX ACLs and capabilities are such); which names are links of one file. The two roots
//! are compared as well. Left out, because a restore can't set them or they say nothing: access, change and birth
//! times, sizes of directories, link counts (the groups within the tree say it better), inode flags.
//!
//! A file that can't be read is an error, never silence.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

use crate::handle;

/// One thing in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path below the roots, as bytes; empty for the roots themselves.
    pub path: Vec<u8>,
    /// What differs there.
    pub kind: Kind,
}

/// What differs at a path. `first` and `second` are the values in the first and the second tree.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the head of the enum says")]
pub enum Kind {
    /// Only the first tree has the name. What lies below it isn't listed.
    Missing,
    /// Only the second tree has the name. What lies below it isn't listed.
    Extra,
    /// A file against a directory, say. Nothing else is compared at this path.
    FileType { first: FileType, second: FileType },
    /// The twelve bits of the mode.
    Mode { first: u32, second: u32 },
    /// User and group.
    Owner {
        first: (u32, u32),
        second: (u32, u32),
    },
    /// Bytes of a regular file.
    Size { first: u64, second: u64 },
    /// Modification time: seconds and nanoseconds.
    Time {
        first: (i64, u32),
        second: (i64, u32),
    },
    /// Major and minor number of a device node.
    DeviceNumber {
        first: (u32, u32),
        second: (u32, u32),
    },
    /// Where a symbolic link points.
    LinkTarget { first: Vec<u8>, second: Vec<u8> },
    /// The first byte that differs in files of one size.
    Content { offset: u64 },
    /// Bytes that are a hole in the first file and data in the second.
    HoleFilled { bytes: u64 },
    /// Bytes that are data in the first file and a hole in the second.
    HoleAdded { bytes: u64 },
    /// An extended attribute that only the first has.
    XattrMissing { name: Vec<u8> },
    /// An extended attribute that only the second has.
    XattrExtra { name: Vec<u8> },
    /// An extended attribute with another value.
    XattrValue { name: Vec<u8> },
    /// The names, this one among them, that are links of one file.
    HardLinks {
        first: Vec<Vec<u8>>,
        second: Vec<Vec<u8>>,
    },
}

/// Says in what `second` differs from `first`; an empty list means that the witness sees no difference.
///
/// # Errors
/// When either tree can't be read in full; the error names the path.
pub fn compare(first: &Path, second: &Path) -> Result<Vec<Difference>> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("opening {}", path.display()))
    };
    let (first, second) = (open(first)?, open(second)?);
    let mut witness = Witness::default();
    let dot = c".";
    let stats = [stat(first.as_fd(), dot)?, stat(second.as_fd(), dot)?];
    let at = Pair {
        dirs: [first.as_fd(), second.as_fd()],
        name: dot,
    };
    witness
        .attributes(&at, b"", &stats)
        .context("comparing the roots")?;
    witness.directory([&first, &second], &mut Vec::new())?;
    witness.hard_links();
    witness.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(witness.found)
}

/// One name in both trees.
struct Pair<'a> {
    dirs: [BorrowedFd<'a>; 2],
    name: &'a CStr,
}

/// Which file a name leads to: device and inode.
type FileId = (u32, u32, u64);

#[derive(Default)]
struct Witness {
    found: Vec<Difference>,
    /// For each tree, the names of every file that has more than one link.
    links: [HashMap<FileId, Vec<Vec<u8>>>; 2],
    /// Pairs of files with several links whose contents were compared: once is enough.
    compared: HashSet<(FileId, FileId)>,
}

impl Witness {
    fn report(&mut self, path: &[u8], kind: Kind) {
        self.found.push(Difference {
            path: path.to_vec(),
            kind,
        });
    }

    fn differ<T: PartialEq>(
        &mut self,
        path: &[u8],
        values: [T; 2],
        kind: impl FnOnce(T, T) -> Kind,
    ) {
        let [first, second] = values;
        if first != second {
            self.report(path, kind(first, second));
        }
    }

    /// Compares what two directories hold; `path` is theirs, and is given back as it was.
    fn directory(&mut self, dirs: [&OwnedFd; 2], path: &mut Vec<u8>) -> Result<()> {
        let list = |dir: &OwnedFd| -> Result<BTreeSet<CString>> {
            let names = handle::names(dir).with_context(|| format!("listing {}", shown(path)))?;
            Ok(names.into_iter().collect())
        };
        let names = [list(dirs[0])?, list(dirs[1])?];
        for name in names[0].union(&names[1]) {
            let parent = path.len();
            if parent > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            if !names[1].contains(name) {
                self.report(path, Kind::Missing);
            } else if !names[0].contains(name) {
                self.report(path, Kind::Extra);
            } else {
                let at = Pair {
                    dirs: [dirs[0].as_fd(), dirs[1].as_fd()],
                    name,
                };
                self.entry(&at, path)?;
            }
            path.truncate(parent);
        }
        Ok(())
    }

    /// Compares one name that both trees have, and what lies below it.
    fn entry(&mut self, at: &Pair<'_>, path: &mut Vec<u8>) -> Result<()> {
        let stats = [stat(at.dirs[0], at.name), stat(at.dirs[1], at.name)];
        let [first, second] = stats.map(|stat| stat.with_context(|| shown(path)));
        let stats = [first?, second?];
        for (links, stat) in self.links.iter_mut().zip(&stats) {
            if stat.stx_nlink > 1 && file_type(stat) != FileType::Directory {
                links.entry(file_id(stat)).or_default().push(path.clone());
            }
        }
        let types = [file_type(&stats[0]), file_type(&stats[1])];
        if types[0] != types[1] {
            self.report(
                path,
                Kind::FileType {
                    first: types[0],
                    second: types[1],
                },
            );
            return Ok(());
        }
        self.attributes(at, path, &stats)
            .with_context(|| shown(path))?;
        match types[0] {
            FileType::Directory => {
                let open = |dir| {
                    handle::open_dir(dir, at.name)
                        .with_context(|| format!("opening {}", shown(path)))
                };
                let dirs = [open(at.dirs[0])?, open(at.dirs[1])?];
                self.directory([&dirs[0], &dirs[1]], path)
            }
            FileType::RegularFile => self.file(at, path, &stats).with_context(|| shown(path)),
            FileType::Symlink => {
                let target =
                    |dir| rustix::fs::readlinkat(dir, at.name, Vec::new()).map(CString::into_bytes);
                let targets = [
                    target(at.dirs[0]).with_context(|| shown(path))?,
                    target(at.dirs[1]).with_context(|| shown(path))?,
                ];
                self.differ(path, targets, |first, second| Kind::LinkTarget {
                    first,
                    second,
                });
                Ok(())
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let numbers = [&stats[0], &stats[1]].map(|s| (s.stx_rdev_major, s.stx_rdev_minor));
                self.differ(path, numbers, |first, second| Kind::DeviceNumber {
                    first,
                    second,
                });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Compares what every kind of file has.
    fn attributes(&mut self, at: &Pair<'_>, path: &[u8], stats: &[Statx; 2]) -> Result<()> {
        let both = [&stats[0], &stats[1]];
        let modes = both.map(|s| u32::from(s.stx_mode) & 0o7777);
        self.differ(path, modes, |first, second| Kind::Mode { first, second });
        let owners = both.map(|s| (s.stx_uid, s.stx_gid));
        self.differ(path, owners, |first, second| Kind::Owner { first, second });
        let times = both.map(|s| (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec));
        self.differ(path, times, |first, second| Kind::Time { first, second });

        let read = |dir| -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
            let list = handle::xattrs(dir, at.name).context("reading extended attributes")?;
            Ok(list.into_iter().collect())
        };
        let [first, second] = [read(at.dirs[0])?, read(at.dirs[1])?];
        for (name, value) in &first {
            match second.get(name) {
                None => self.report(path, Kind::XattrMissing { name: name.clone() }),
                Some(other) if other != value => {
                    self.report(path, Kind::XattrValue { name: name.clone() })
                }
                Some(_) => {}
            }
        }
        for name in second.keys().filter(|name| !first.contains_key(*name)) {
            self.report(path, Kind::XattrExtra { name: name.clone() });
        }
        Ok(())
    }

    /// Compares size, bytes and holes of two regular files.
    fn file(&mut self, at: &Pair<'_>, path: &[u8], stats: &[Statx; 2]) -> Result<()> {
        let sizes = [stats[0].stx_size, stats[1].stx_size];
        if sizes[0] != sizes[1] {
            self.report(
                path,
                Kind::Size {
                    first: sizes[0],
                    second: sizes[1],
                },
            );
            return Ok(());
        }
        let several = stats[0].stx_nlink > 1 && stats[1].stx_nlink > 1;
        if several
            && !self
                .compared
                .insert((file_id(&stats[0]), file_id(&stats[1])))
        {
            return Ok(());
        }
        let open = |dir| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, at.name, flags, Mode::empty()).context("opening")
        };
        let files = [open(at.dirs[0])?, open(at.dirs[1])?];
        if let Some(offset) = first_difference(&files, sizes[0])? {
            self.report(path, Kind::Content { offset });
        }
        let data = [
            data_ranges(&files[0], sizes[0])?,
            data_ranges(&files[1], sizes[1])?,
        ];
        let overlap = overlap(&data[0], &data[1]);
        let only_in = |ranges: &[(u64, u64)]| {
            ranges.iter().map(|(from, to)| to - from).sum::<u64>() - overlap
        };
        match only_in(&data[1]) {
            0 => {}
            bytes => self.report(path, Kind::HoleFilled { bytes }),
        }
        match only_in(&data[0]) {
            0 => {}
            bytes => self.report(path, Kind::HoleAdded { bytes }),
        }
        Ok(())
    }

    /// Compares, for every name of a file with several links in either tree, the names that share it.
    fn hard_links(&mut self) {
        let [first, second] = std::mem::take(&mut self.links).map(|links| {
            let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
            for group in links.into_values().filter(|group| group.len() > 1) {
                for path in &group {
                    groups.insert(path.clone(), group.clone());
                }
            }
            groups
        });
        let paths: BTreeSet<_> = first.keys().chain(second.keys()).collect();
        for path in paths {
            let alone = vec![path.clone()];
            let groups = [&first, &second].map(|groups| groups.get(path).unwrap_or(&alone).clone());
            self.differ(path, groups, |first, second| Kind::HardLinks {
                first,
                second,
            });
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.path), self.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "missing"),
            Self::Extra => write!(f, "extra"),
            Self::FileType { first, second } => write!(f, "kind {first:?}, now {second:?}"),
            Self::Mode { first, second } => write!(f, "mode {first:04o}, now {second:04o}"),
            Self::Owner { first, second } => write!(f, "owner {first:?}, now {second:?}"),
            Self::Size { first, second } => write!(f, "size {first}, now {second}"),
            Self::Time { first, second } => {
                write!(
                    f,
                    "time {}.{:09}, now {}.{:09}",
                    first.0, first.1, second.0, second.1
                )
            }
            Self::DeviceNumber { first, second } => write!(f, "device {first:?}, now {second:?}"),
            Self::LinkTarget { first, second } => {
                write!(
                    f,
                    "target {}, now {}",
                    first.escape_ascii(),
                    second.escape_ascii()
                )
            }
            Self::Content { offset } => write!(f, "content differs from byte {offset}"),
            Self::HoleFilled { bytes } => write!(f, "{bytes} bytes of holes became data"),
            Self::HoleAdded { bytes } => write!(f, "{bytes} bytes of data became holes"),
            Self::XattrMissing { name } => {
                write!(f, "extended attribute {} missing", name.escape_ascii())
            }
            Self::XattrExtra { name } => {
                write!(f, "extended attribute {} extra", name.escape_ascii())
            }
            Self::XattrValue { name } => {
                write!(f, "extended attribute {} changed", name.escape_ascii())
            }
            Self::HardLinks { first, second } => {
                let list = |paths: &[Vec<u8>]| {
                    let shown: Vec<_> = paths.iter().map(|path| shown(path)).collect();
                    shown.join(", ")
                };
                write!(f, "linked as [{}], now [{}]", list(first), list(second))
            }
        }
    }
}

fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).context("statx")
}

fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

fn file_id(stat: &Statx) -> FileId {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
}

/// A path for the eyes: printable on one line, and cut where it would fill the screen.
fn shown(path: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 300;
    match path.get(..SHOWN_BYTES_MAX) {
        _ if path.is_empty() => ".".to_owned(),
        None => path.escape_ascii().to_string(),
        Some(head) => format!("{}… ({} bytes)", head.escape_ascii(), path.len()),
    }
}

/// The offset of the first byte that differs within the first `size` bytes.
fn first_difference(files: &[OwnedFd; 2], size: u64) -> Result<Option<u64>> {
    const STEP: usize = 1 << 20;
    let mut buffers = [vec![0; STEP], vec![0; STEP]];
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from(size - offset).unwrap_or(STEP).min(STEP);
        for (file, buffer) in files.iter().zip(&mut buffers) {
            read_exact_at(file, &mut buffer[..want], offset)?;
        }
        if buffers[0][..want] != buffers[1][..want] {
            let same = buffers[0]
                .iter()
                .zip(&buffers[1])
                .take_while(|(a, b)| a == b)
                .count();
            return Ok(Some(offset + same as u64));
        }
        offset += want as u64;
    }
    Ok(None)
}

fn read_exact_at(file: &OwnedFd, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
    while !buffer.is_empty() {
        let n = rustix::io::pread(file, &mut *buffer, offset).context("reading")?;
        anyhow::ensure!(n > 0, "the file shrank while it was compared");
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}

/// The ranges of a file that hold data, in order.
fn data_ranges(file: &OwnedFd, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break, // the rest is a hole
            other => other.context("SEEK_DATA")?,
        };
        let to = rustix::fs::seek(file, SeekFrom::Hole(from))
            .context("SEEK_HOLE")?
            .min(size);
        ranges.push((from, to));
        at = to;
    }
    Ok(ranges)
}

/// How many bytes lie in both of two ordered lists of ranges.
fn overlap(mut first: &[(u64, u64)], mut second: &[(u64, u64)]) -> u64 {
    let mut bytes = 0;
    while let (Some(a), Some(b)) = (first.first(), second.first()) {
        bytes += a.1.min(b.1).saturating_sub(a.0.max(b.0));
        if a.1 < b.1 {
            first = &first[1..]
        } else {
            second = &second[1..]
        }
    }
    bytes
}
