//! Builds, from a seed, a tree with everything that a file system can hold and a backup can lose.
//!
//! The same options give the same tree, to the nanosecond, whatever the machine, except for what the returned [`Made`]
//! names as left out. All is made below the given directory by handles; the times are set last, by one walk, as making
//! a name changes the time of its directory.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use crate::handle;
use crate::make::{
    GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, acl, create, hard_link, make_dir,
    make_node, set_xattr, write_all_at, write_file,
};
use crate::random::Random;

/// What a tree shall hold. The default is small enough for any test and has every kind of thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeOptions {
    /// Trees of different seeds differ in the content and the times of their files.
    pub seed: u64,
    /// Bytes of the one big file, which has no holes and can't be compressed.
    pub big_file_bytes: u64,
    /// How many small files there are, of up to 16 KiB.
    pub small_files: u32,
    /// A chain of directories whose path is longer than `PATH_MAX` (4,096 bytes); rsync can't walk it.
    pub over_long_paths: bool,
    /// Extended attributes whose names are not UTF-8; the restic format can't name them.
    pub xattr_names_not_utf8: bool,
    /// Symbolic links whose targets are not UTF-8; restic before 0.17 mangles them.
    pub link_targets_not_utf8: bool,
    /// Sockets; restic skips them.
    pub sockets: bool,
    /// Hard links of symbolic links, fifos and device nodes; restic makes them separate files.
    pub hard_links_of_special_files: bool,
    /// A file with blocks of zeros that are no holes; the restic format can't tell them from holes.
    pub written_zeros: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            big_file_bytes: 8 << 20,
            small_files: 300,
            over_long_paths: true,
            xattr_names_not_utf8: false,
            link_targets_not_utf8: true,
            sockets: true,
            hard_links_of_special_files: true,
            written_zeros: false,
        }
    }
}

impl TreeOptions {
    /// A tree of some 150 MiB and 5,000 small files: a real job, done in seconds.
    #[must_use]
    pub fn moderate() -> Self {
        Self {
            big_file_bytes: 128 << 20,
            small_files: 5_000,
            ..Self::default()
        }
    }

    /// The whole size: a file of 5 GiB and 100,000 small ones.
    #[must_use]
    pub fn full() -> Self {
        Self {
            big_file_bytes: 5 << 30,
            small_files: 100_000,
            ..Self::default()
        }
    }
}

/// What became of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// What could not be made, with the reason: without root, say, no device nodes.
    pub left_out: Vec<String>,
}

/// Builds the tree of `options` in `dir`, an empty directory.
///
/// # Errors
/// When `dir` can't be opened or isn't empty, or when anything that needs no privilege can't be made.
pub fn make_tree(dir: &Path, options: &TreeOptions) -> Result<Made> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty())
        .with_context(|| format!("opening {}", dir.display()))?;
    ensure!(
        handle::names(&root)?.is_empty(),
        "{} is not empty",
        dir.display()
    );
    let mut maker = Maker {
        root,
        options,
        made: Made::default(),
    };
    maker.names().context("names")?;
    maker.empty().context("empty files and directories")?;
    maker.links().context("links")?;
    maker.special_files().context("special files")?;
    maker.modes().context("modes")?;
    maker.owners().context("owners")?;
    maker.xattrs().context("extended attributes")?;
    maker.acls().context("ACLs")?;
    maker.capabilities().context("capabilities")?;
    maker.sparse_files().context("sparse files")?;
    maker.small_files().context("small files")?;
    maker.big_file().context("big file")?;
    maker.files_of_times().context("times")?;
    if options.over_long_paths {
        maker.over_long_path().context("over-long path")?;
    }
    let Maker { root, made, .. } = maker;
    rustix::fs::chmodat(&root, c".", Mode::from_raw_mode(0o751), AtFlags::empty())?;
    set_times(&root, options.seed, b"").context("setting times")?;
    set_time(&root, c".", (1_234_567_890, 987_654_321))?;
    Ok(made)
}

/// Seconds and nanoseconds that a backup may get wrong, each with the name of the file that has it.
const HARD_TIMES: [(&CStr, (i64, i64)); 10] = [
    (c"before-1970", (-1_000_000_000, 123_456_789)),
    (c"just-before-1970", (-1, 999_999_999)),
    (c"first-of-1970", (0, 0)),
    (c"one-nanosecond-of-1970", (0, 1)),
    (c"first-of-1902", (-2_145_916_800, 1)),
    (c"last-of-31-bits", (0x7fff_ffff, 999_999_999)),
    (c"after-2038", (0x8000_0000, 1)),
    (c"in-2100", (4_102_444_800, 500_000_000)),
    (c"in-2400", (13_569_465_600, 999_999_999)),
    (c"ends-in-zeros", (1_500_000_000, 100_000_000)),
];

struct Maker<'a> {
    root: OwnedFd,
    options: &'a TreeOptions,
    made: Made,
}

impl Maker<'_> {
    fn dir(&self, name: &CStr) -> Result<OwnedFd> {
        make_dir(&self.root, name)
    }

    fn random(&self, label: &CStr) -> Random {
        Random::labelled(self.options.seed, label.to_bytes())
    }

    /// Notes what was left out if `result` says that this user or file system may not make it.
    fn try_privileged(&mut self, what: &str, result: rustix::io::Result<()>) -> Result<bool> {
        use rustix::io::Errno;
        match result {
            Ok(()) => Ok(true),
            Err(why @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL)) => {
                let line = format!("{what}: {why}");
                if !self.made.left_out.contains(&line) {
                    self.made.left_out.push(line);
                }
                Ok(false)
            }
            Err(why) => Err(why).with_context(|| what.to_owned()),
        }
    }

    fn names(&mut self) -> Result<()> {
        let dir = self.dir(c"names")?;
        let mut random = self.random(c"names");
        let mut names: Vec<Vec<u8>> = [
            &b"plain"[..],
            b"with space",
            b" leading space",
            b"trailing space ",
            b"new\nline",
            b"\n",
            b"tab\t",
            b"carriage\rreturn",
            b"bell\x07",
            b"\x1b[31mred",
            b"\x7f",
            b"-rf",
            b"--delete",
            b"...",
            b".hidden",
            b"~",
            b"#",
            b"*",
            b"?",
            b"[a]",
            b"{a,b}",
            b"a:b",
            b"back\\slash",
            b"\\",
            b"\\n",
            b"\\x41",
            b"\\xff",
            b"\\u0041",
            b"quo\"te",
            b"quo'te",
            b"\"",
            b"$HOME",
            b"`id`",
            b"%s%n",
            b"%2f",
            b"CON",
            b"a.",
            b"a|b<c>d",
            b"\xff",
            b"not utf-8 \xff\xfe",
            b"latin-1 \xe9",
            b"cut utf-8 \xe3\x81",
            b"surrogate \xed\xa0\x80",
            b"overlong slash \xc0\xaf",
        ]
        .map(<[u8]>::to_vec)
        .into();
        names.extend(
            [
                "é composed",
                "e\u{301} decomposed",
                "\u{202e}left",
                "\u{feff}bom",
                "日本語",
                "🦀",
            ]
            .map(Into::into),
        );
        names.push(vec![b'n'; 255]);
        names.push("あ".repeat(85).into_bytes());
        names.push(vec![0xff; 255]);
        for name in names {
            let len = 1 + random.below(300);
            let content = random.text(to_usize(len)?);
            write_file(&dir, &CString::new(name)?, &content)?;
        }
        for name in [&b"dir \xff\xfe\n"[..], &[b'd'; 255], b"dir\\x00"] {
            let sub = make_dir(&dir, &CString::new(name)?)?;
            write_file(&sub, c"in it \xf0", &random.text(100))?;
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<()> {
        let dir = self.dir(c"empty")?;
        write_file(&dir, c"file", b"")?;
        make_dir(&dir, c"directory")?;
        let nested = make_dir(&dir, c"nested")?;
        make_dir(&make_dir(&nested, c"of")?, c"empties")?;
        Ok(())
    }

    fn links(&mut self) -> Result<()> {
        let dir = self.dir(c"links")?;
        let other = make_dir(&dir, c"other")?;
        let mut random = self.random(c"links");
        write_file(&dir, c"file", &random.bytes(70_000))?;
        hard_link(&dir, c"file", &dir, c"file-again")?;
        hard_link(&dir, c"file", &other, c"file-elsewhere")?;
        hard_link(&dir, c"file", &dir, c"0-sorts-first")?;
        write_file(&dir, c"empty", b"")?;
        hard_link(&dir, c"empty", &other, c"empty-elsewhere")?;
        // Twins in content and attributes that are not one file.
        write_file(&dir, c"twin-1", b"twin")?;
        write_file(&dir, c"twin-2", b"twin")?;

        let longest = [b"x/".repeat(2047), b"y".to_vec()].concat();
        let mut targets: Vec<(&CStr, Vec<u8>)> = [
            (c"to-file", &b"file"[..]),
            (c"to-directory", b"other"),
            (c"to-parent", b".."),
            (c"absolute", b"/etc/hostname"),
            (c"dangling", b"no/such/file"),
            (c"loop-to-itself", b"loop-to-itself"),
            (c"loop-1", b"loop-2"),
            (c"loop-2", b"loop-1"),
            (c"odd", b"./other/../file//"),
            (c"newline", b"a\nb"),
            (c"backslash", b"a\\x41b"),
            (c"escaping", b"../../../../../../../../etc/passwd"),
        ]
        .map(|(name, target)| (name, target.to_vec()))
        .into();
        targets.push((c"longest-target", longest));
        if self.options.link_targets_not_utf8 {
            targets.push((c"target-not-utf-8", b"\xff\xfe/\xe9".to_vec()));
        }
        for (name, target) in targets {
            rustix::fs::symlinkat(CString::new(target)?, &dir, name)?;
        }
        if self.options.hard_links_of_special_files {
            hard_link(&dir, c"dangling", &other, c"dangling-again")?;
            make_node(&dir, c"fifo", FileType::Fifo, (0, 0), 0o640)?;
            hard_link(&dir, c"fifo", &other, c"fifo-again")?;
        }
        Ok(())
    }

    fn special_files(&mut self) -> Result<()> {
        let dir = self.dir(c"special")?;
        let node = |name: &CStr, kind, numbers, mode| make_node(&dir, name, kind, numbers, mode);
        node(c"fifo", FileType::Fifo, (0, 0), 0o604)?;
        if self.options.sockets {
            node(c"socket", FileType::Socket, (0, 0), 0o711)?;
        }
        let mut results = Vec::new();
        for (name, kind, numbers) in [
            (c"null", FileType::CharacterDevice, (1, 3)),
            (
                c"wide-character",
                FileType::CharacterDevice,
                (511, 0xf_fff0),
            ),
            (c"block", FileType::BlockDevice, (7, 300)),
            (c"wide-block", FileType::BlockDevice, (300, 70_000)),
        ] {
            results.push(node(name, kind, numbers, 0o620));
        }
        if self.options.hard_links_of_special_files && results.iter().all(Result::is_ok) {
            results.push(rustix::fs::linkat(
                &dir,
                c"null",
                &dir,
                c"null-again",
                AtFlags::empty(),
            ));
        }
        for result in results {
            self.try_privileged("device nodes", result)?;
        }
        Ok(())
    }

    fn modes(&mut self) -> Result<()> {
        let dir = self.dir(c"modes")?;
        let modes = [
            0o000, 0o001, 0o200, 0o444, 0o600, 0o777, 0o1644, 0o2644, 0o2755, 0o4755, 0o4711,
            0o6755, 0o7777,
        ];
        // Without root the owner's own mode keeps a backup, and this crate's witness, out.
        let root = rustix::process::geteuid().is_root();
        if !root {
            self.made
                .left_out
                .push("modes that keep their owner out: not root".to_owned());
        }
        for mode in modes
            .into_iter()
            .filter(|mode| root || mode & 0o700 == 0o700)
        {
            let (file, sub) = (
                CString::new(format!("file-{mode:04o}"))?,
                CString::new(format!("dir-{mode:04o}"))?,
            );
            write_file(&dir, &file, format!("{mode:o}").as_bytes())?;
            make_dir(&dir, &sub)?;
            for name in [&file, &sub] {
                rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            }
        }
        if !root {
            return Ok(());
        }
        // A directory that its owner may not write, with something in it.
        let sub = make_dir(&dir, c"read-only-with-content")?;
        write_file(&sub, c"file", b"content")?;
        rustix::fs::chmodat(
            &dir,
            c"read-only-with-content",
            Mode::from_raw_mode(0o555),
            AtFlags::empty(),
        )?;
        Ok(())
    }

    fn owners(&mut self) -> Result<()> {
        let dir = self.dir(c"owners")?;
        for n in 0..40_u32 {
            let file = CString::new(format!("file-{n:02}"))?;
            let link = CString::new(format!("link-{n:02}"))?;
            let sub = CString::new(format!("dir-{n:02}"))?;
            write_file(&dir, &file, format!("owner {n}").as_bytes())?;
            rustix::fs::symlinkat(&file, &dir, &link)?;
            make_dir(&dir, &sub)?;
            // Users that no machine knows, and the greatest numbers there are.
            let (uid, gid) = if n == 0 {
                (u32::MAX - 1, u32::MAX - 2)
            } else {
                (n * 1009, n * 100_003)
            };
            for (name, mode) in [(&file, Some(0o6751)), (&link, None), (&sub, Some(0o3770))] {
                let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                let result =
                    rustix::fs::chownat(&dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW);
                self.try_privileged("owners", result)?;
                if let Some(mode) = mode {
                    rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
                }
            }
        }
        Ok(())
    }

    fn xattrs(&mut self) -> Result<()> {
        let dir = self.dir(c"xattrs")?;
        let mut random = self.random(c"xattrs");
        write_file(&dir, c"file", b"content")?;
        make_dir(&dir, c"directory")?;
        write_file(&dir, c"full", b"")?;
        rustix::fs::symlinkat(c"file", &dir, c"link")?;
        let mut wanted: Vec<(&CStr, &[u8], Vec<u8>)> = vec![
            (c"full", b"user.big", random.bytes(3_000)),
            (c"link", b"trusted.on-a-link", b"link".to_vec()),
        ];
        for name in [c"file", c"directory"] {
            wanted.push((name, b"user.text", b"text".to_vec()));
            wanted.push((name, b"user.empty", Vec::new()));
            wanted.push((name, b"user.binary", b"\0\xff\n\0".to_vec()));
            wanted.push((name, b"user.odd name=\"1\"\n", b"odd".to_vec()));
            wanted.push((name, "user.ünïcode".as_bytes(), b"1".to_vec()));
            wanted.push((name, b"trusted.by-root", b"root".to_vec()));
            if self.options.xattr_names_not_utf8 {
                wanted.push((name, b"user.\xff\xfe", b"not utf-8".to_vec()));
            }
        }
        for (name, attribute, value) in wanted {
            let result = set_xattr(&dir, name, attribute, &value);
            let space = attribute.split(|&b| b == b'.').next().unwrap_or_default();
            let what = format!("{}.* attributes", space.escape_ascii());
            self.try_privileged(&what, result)?;
        }
        Ok(())
    }

    fn acls(&mut self) -> Result<()> {
        let dir = self.dir(c"acls")?;
        write_file(&dir, c"file", b"content")?;
        make_dir(&dir, c"directory")?;
        let access = acl(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 4, 1_234),
            (USER, 5, 70_000),
            (GROUP_OBJ, 4, NO_ID),
            (GROUP, 6, 4_321),
            (MASK, 4, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        let default = acl(&[
            (USER_OBJ, 7, NO_ID),
            (GROUP_OBJ, 5, NO_ID),
            (GROUP, 7, 99),
            (MASK, 7, NO_ID),
            (OTHER, 1, NO_ID),
        ]);
        for (name, attribute, value) in [
            (c"file", &b"system.posix_acl_access"[..], &access),
            (c"directory", b"system.posix_acl_access", &access),
            (c"directory", b"system.posix_acl_default", &default),
        ] {
            let result = set_xattr(&dir, name, attribute, value);
            self.try_privileged("POSIX ACLs", result)?;
        }
        // Made after the default ACL was set: these inherit, and a restore must not inherit a second time.
        let sub = handle::open_dir(&dir, c"directory")?;
        write_file(&sub, c"heir", b"inherits")?;
        make_dir(&sub, c"heir-directory")?;
        write_file(&sub, c"disinherited", b"has no ACL")?;
        if handle::xattrs(&sub, c"disinherited")?
            .iter()
            .any(|(name, _)| name == b"system.posix_acl_access")
        {
            rustix::fs::lremovexattr(
                handle::proc_path(&sub, c"disinherited"),
                c"system.posix_acl_access",
            )?;
        }
        Ok(())
    }

    fn capabilities(&mut self) -> Result<()> {
        let dir = self.dir(c"capabilities")?;
        // `struct vfs_cap_data`, version 2 with the effective bit: cap_net_bind_service (10) and cap_net_raw (13).
        let mut value = Vec::new();
        for word in [0x0200_0001_u32, (1 << 10) | (1 << 13), 0, 0, 0] {
            value.extend_from_slice(&word.to_le_bytes());
        }
        write_file(&dir, c"program", b"#!/bin/true\n")?;
        rustix::fs::chmodat(
            &dir,
            c"program",
            Mode::from_raw_mode(0o755),
            AtFlags::empty(),
        )?;
        let owner = Some(Uid::from_raw(4_000));
        let owned = rustix::fs::chownat(&dir, c"program", owner, None, AtFlags::empty());
        if self.try_privileged("owners", owned)? {
            let result = set_xattr(&dir, c"program", b"security.capability", &value);
            self.try_privileged("file capabilities", result)?;
        }
        Ok(())
    }

    fn sparse_files(&mut self) -> Result<()> {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let dir = self.dir(c"sparse")?;
        let mut random = self.random(c"sparse");
        type Range = (u64, u64);
        // Name, size, and the ranges that hold data, each as offset and length.
        let files: [(&CStr, u64, &[Range]); 8] = [
            (c"hole-at-start", MIB, &[(512 * KIB, 512 * KIB)]),
            (c"hole-in-middle", 3 * MIB, &[(0, MIB), (2 * MIB, MIB)]),
            (c"hole-at-end", 2 * MIB, &[(0, 64 * KIB)]),
            (c"odd-length-hole-at-end", 2 * MIB + 1, &[(0, 64 * KIB)]),
            (c"all-hole", 10 * MIB, &[]),
            (c"all-hole-one-byte", 1, &[]),
            (c"huge-all-hole", 1 << 40, &[]),
            (
                c"small-islands",
                40 * MIB,
                &[
                    (4 * KIB, 4 * KIB),
                    (1032 * KIB, 4 * KIB),
                    (20 * MIB, 12 * KIB),
                    (40 * MIB - 3, 3),
                ],
            ),
        ];
        for (name, size, ranges) in files {
            // Reading a terabyte of holes is no test of a moderate tree's time.
            let size = size.min(self.options.big_file_bytes.max(64 * MIB));
            let file = create(&dir, name)?;
            for &(offset, len) in ranges {
                write_all_at(&file, &random.bytes(to_usize(len)?), offset)?;
            }
            rustix::fs::ftruncate(&file, size)?;
        }
        if self.options.written_zeros {
            let file = create(&dir, c"zeros-that-are-data")?;
            write_all_at(&file, &vec![0; 4 << 20], 0)?;
            rustix::fs::fsync(&file)?;
        }
        Ok(())
    }

    fn small_files(&mut self) -> Result<()> {
        const FILES_PER_DIRECTORY: u32 = 500;
        let dir = self.dir(c"small")?;
        let mut random = self.random(c"small");
        let mut sub = None;
        for n in 0..self.options.small_files {
            if n % FILES_PER_DIRECTORY == 0 {
                let name = CString::new(format!("{:04}", n / FILES_PER_DIRECTORY))?;
                sub = Some(make_dir(&dir, &name)?);
            }
            let len = to_usize(random.below(16 << 10))?;
            let content = if n % 2 == 0 {
                random.text(len)
            } else {
                random.bytes(len)
            };
            let sub = sub.as_ref().context("the first round made a directory")?;
            write_file(sub, &CString::new(format!("file-{n:06}"))?, &content)?;
        }
        Ok(())
    }

    fn big_file(&mut self) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let file = create(&self.root, c"big")?;
        let mut random = self.random(c"big");
        let mut offset = 0;
        while offset < self.options.big_file_bytes {
            let len = STEP.min(self.options.big_file_bytes - offset);
            write_all_at(&file, &random.bytes(to_usize(len)?), offset)?;
            offset += len;
        }
        Ok(())
    }

    fn files_of_times(&mut self) -> Result<()> {
        let dir = self.dir(c"times")?;
        for (name, _) in HARD_TIMES {
            write_file(&dir, name, name.to_bytes())?;
        }
        Ok(())
    }

    /// A chain of directories, two files on its way, whose paths end beyond `PATH_MAX`.
    fn over_long_path(&mut self) -> Result<()> {
        let mut dir = self.dir(c"deep")?;
        for level in 0..24 {
            let name = CString::new(format!("{level:02}-{}", "deep".repeat(48)))?;
            dir = make_dir(&dir, &name)?;
            if level % 8 == 7 {
                write_file(&dir, c"file", format!("at level {level}").as_bytes())?;
                rustix::fs::symlinkat(c"file", &dir, c"link")?;
            }
        }
        hard_link(&dir, c"file", &dir, c"linked-in-the-deep")
    }
}

/// Sets the time of everything below `dir`, whose path is `path`, the deepest first.
fn set_times(dir: &OwnedFd, seed: u64, path: &[u8]) -> Result<()> {
    for name in handle::names(dir)? {
        let below = [path, b"/", name.to_bytes()].concat();
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            set_times(&handle::open_dir(dir, &name)?, seed, &below)?;
        }
        let hard = HARD_TIMES
            .iter()
            .find(|(hard, _)| below == [b"/times/", hard.to_bytes()].concat());
        let time = if let Some(&(_, time)) = hard {
            time
        } else {
            let mut random = Random::labelled(seed, &below);
            let seconds = 900_000_000 + i64::try_from(random.below(700_000_000))?;
            (seconds, i64::try_from(random.below(1_000_000_000))?)
        };
        set_time(dir, &name, time)?;
    }
    Ok(())
}

fn set_time(dir: &OwnedFd, name: &CStr, (tv_sec, tv_nsec): (i64, i64)) -> Result<()> {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("setting the time of {}", name.to_bytes().escape_ascii()))
}

fn to_usize(len: u64) -> Result<usize> {
    usize::try_from(len).context("a length that this machine can't address")
}
