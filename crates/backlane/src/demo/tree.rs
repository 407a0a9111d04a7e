//! The tree that the demo backs up when the user names none: mixed files, and a few things that backups get wrong.
//!
//! The content is a pure function of the size, so that two demos can be compared.

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{BufWriter, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

/// Bytes of one large file, unless the whole tree is smaller.
const LARGE_FILE_BYTES: u64 = 48 << 20;
/// Small files are between one and so many KiB.
const SMALL_FILE_KIB_MAX: u64 = 16;
const SMALL_FILES_A_DIRECTORY: u64 = 100;
const SPARSE_FILE_BYTES: u64 = 32 << 20;

/// What [`make`] could not make, because the file system doesn't have it.
pub(super) struct Missing(pub(super) Vec<&'static str>);

/// Makes a tree of about `bytes` bytes in the new directory `root`.
///
/// # Errors
/// When something can't be written; the message names the file.
pub(super) fn make(root: &Path, bytes: u64) -> Result<Missing> {
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let mut random = Random(bytes | 1);
    let small_bytes = bytes / 8;
    let text_bytes = bytes / 4;
    large_files(
        &root.join("media"),
        bytes - small_bytes - text_bytes,
        &mut random,
    )?;
    text_files(&root.join("logs"), text_bytes, &mut random)?;
    small_files(&root.join("mail"), small_bytes, &mut random)?;
    oddities(&root.join("odd"), &mut random)
}

/// Changes a little of what [`make`] made, as a day's work would. Returns how many files were touched.
///
/// # Errors
/// When a file can't be changed; the message names it.
pub(super) fn change(root: &Path) -> Result<u64> {
    let mut random = Random(0x0da7_a0f2);
    let log = root.join("logs/today.log");
    write_file(&log, |file| text(file, 200_000, &mut random))?;
    let large = root.join("media/0.bin");
    let mut file = File::options()
        .write(true)
        .open(&large)
        .with_context(|| format!("cannot open {}", large.display()))?;
    // In the middle of the file, so that what follows has to be found again.
    let middle = file.metadata()?.len() / 2;
    file.seek(SeekFrom::Start(middle))
        .and_then(|_| file.write_all(b"changed in place"))
        .with_context(|| format!("cannot change {}", large.display()))?;
    let gone = root.join("mail/0/1");
    fs::remove_file(&gone).with_context(|| format!("cannot remove {}", gone.display()))?;
    let new = root.join("mail/0/new");
    write_file(&new, |file| noise(file, 5_000, &mut random))?;
    Ok(4)
}

fn large_files(directory: &Path, bytes: u64, random: &mut Random) -> Result<()> {
    make_directory(directory)?;
    let mut left = bytes.max(1);
    let mut number = 0;
    while left > 0 {
        let length = left.min(LARGE_FILE_BYTES);
        let path = directory.join(format!("{number}.bin"));
        write_file(&path, |file| noise(file, length, random))?;
        left -= length;
        number += 1;
    }
    Ok(())
}

fn text_files(directory: &Path, bytes: u64, random: &mut Random) -> Result<()> {
    make_directory(directory)?;
    for number in 0..8 {
        let path = directory.join(format!("day-{number}.log"));
        write_file(&path, |file| text(file, bytes / 8, random))?;
    }
    Ok(())
}

fn small_files(directory: &Path, bytes: u64, random: &mut Random) -> Result<()> {
    make_directory(directory)?;
    let (mut left, mut number) = (bytes, 0);
    // At least three, of which the second is removed later.
    while left > 0 || number < 3 {
        let folder = directory.join((number / SMALL_FILES_A_DIRECTORY).to_string());
        make_directory(&folder)?;
        let length = 1024 + random.next() % ((SMALL_FILE_KIB_MAX - 1) * 1024);
        let path = folder.join(number.to_string());
        write_file(&path, |file| {
            if number % 2 == 0 {
                text(file, length, random)
            } else {
                noise(file, length, random)
            }
        })?;
        left = left.saturating_sub(length);
        number += 1;
    }
    Ok(())
}

/// Links, holes, times, modes and names that a careless backup loses.
fn oddities(directory: &Path, random: &mut Random) -> Result<Missing> {
    make_directory(directory)?;
    let at = |name: &str| directory.join(name);
    write_file(&at("empty"), |_| Ok(()))?;
    make_directory(&at("empty-directory"))?;
    write_file(&at("linked"), |file| text(file, 3_000, random))?;
    fs::hard_link(at("linked"), at("linked-again")).context("cannot make a hard link")?;
    symlink("linked", at("link")).context("cannot make a symbolic link")?;
    symlink("/nowhere/at all", at("dangling")).context("cannot make a symbolic link")?;
    write_file(&at("sparse"), |file| {
        file.write_all(b"begin")?;
        file.seek(SeekFrom::Start(SPARSE_FILE_BYTES))?;
        file.write_all(b"end")
    })?;
    write_file(
        &directory.join(OsStr::from_bytes(b"latin-1-caf\xe9")),
        |file| file.write_all(b"a name that is not UTF-8"),
    )?;
    write_file(&at("name\nwith a newline"), |file| file.write_all(b"x"))?;
    write_file(&at("setuid"), |file| file.write_all(b"#!/bin/true\n"))?;
    fs::set_permissions(at("setuid"), Permissions::from_mode(0o4751))
        .context("cannot set a mode")?;
    let mut missing = Vec::new();
    if rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from(0o640), 0).is_err() {
        missing.push("named pipes");
    }
    let attribute = rustix::fs::lsetxattr(
        at("linked"),
        "user.backlane.demo",
        b"kept \x00 whole",
        XattrFlags::empty(),
    );
    if attribute.is_err() {
        missing.push("extended attributes");
    }
    // Before 1970, and to the nanosecond; last, since everything above changes times.
    set_time(&at("empty"), -86_400, 123_456_789)?;
    set_time(&at("empty-directory"), 981_173_106, 1)?;
    Ok(Missing(missing))
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("cannot set the times of {}", path.display()))
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn write_file(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    File::create(path)
        .map(BufWriter::new)
        .and_then(|mut file| {
            content(&mut file)?;
            file.flush()
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Bytes that nothing can compress.
fn noise(file: &mut impl Write, bytes: u64, random: &mut Random) -> std::io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let word = random.next().to_le_bytes();
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(word.len());
        file.write_all(&word[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// Lines as of a log: they compress about as well as logs do.
fn text(file: &mut impl Write, bytes: u64, random: &mut Random) -> std::io::Result<()> {
    const WORDS: [&str; 8] = [
        "accepted",
        "closed",
        "connection",
        "from",
        "request",
        "served",
        "session",
        "timeout",
    ];
    let mut left = bytes;
    let mut line = String::new();
    while left > 0 {
        let number = random.next();
        line.clear();
        line.push_str(&format!("{:08x}", number >> 32));
        for shift in [0, 3, 6, 9, 12] {
            line.push(' ');
            line.push_str(WORDS[(number >> shift & 7) as usize]);
        }
        line.push('\n');
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(line.len());
        file.write_all(&line.as_bytes()[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// Numbers that look random and are the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
