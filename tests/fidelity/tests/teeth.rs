//! The witness sees each kind of difference, at its place, and nothing else.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fidelity::{Kind, compare};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

/// Makes one small tree twice, changes the second, and expects the differences `expected`, each as `path: what`. Times
/// of everything but `retimed` are put back, so that a change of time has to be asked for.
fn check(change: impl Fn(&Path), expected: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| scratch.path().join(name));
    for root in [&first, &second] {
        plant(root);
        settle(root);
    }
    assert_eq!(compare(&first, &second).unwrap(), []);
    change(&second);
    settle(&second);
    let seen: Vec<_> = compare(&first, &second)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(seen, expected);
    // The other way round something is seen at the same places.
    let places = |lines: &[String]| -> Vec<String> {
        lines
            .iter()
            .map(|line| line.split(": ").next().unwrap().to_owned())
            .collect()
    };
    let back: Vec<_> = compare(&second, &first)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(places(&back), places(&seen));
}

fn plant(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::write(root.join("file"), b"some content").unwrap();
    fs::write(root.join("dir/other"), b"some content").unwrap();
    fs::write(root.join("link-1"), b"linked").unwrap();
    fs::hard_link(root.join("link-1"), root.join("dir/link-2")).unwrap();
    symlink("file", root.join("symlink")).unwrap();
    node(&root.join("fifo"), FileType::Fifo, (0, 0));
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&[1; 65536], 0).unwrap();
    sparse.set_len(1 << 20).unwrap();
    set_xattr(&root.join("file"), "user.one", b"1");
    set_xattr(&root.join("dir"), "user.two", b"2");
}

/// Gives everything below `root` one time, except what a test marked with a time of its own (before 1980).
fn settle(root: &Path) {
    if fs::symlink_metadata(root).unwrap().is_dir() {
        for entry in fs::read_dir(root).unwrap() {
            settle(&entry.unwrap().path());
        }
    }
    let stat = fs::symlink_metadata(root).unwrap();
    if stat.mtime() > 315_532_800 {
        set_time(root, 1_000_000_000, 5);
    }
}

fn set_time(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, numbers: (u32, u32)) {
    let dev = rustix::fs::makedev(numbers.0, numbers.1);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), dev).unwrap();
}

/// Tests of what only root may make say so where they can't.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

#[test]
fn sees_a_missing_name() {
    check(
        |root| fs::remove_file(root.join("dir/other")).unwrap(),
        &["dir/other: missing"],
    );
    check(
        |root| fs::remove_dir_all(root.join("dir/sub")).unwrap(),
        &["dir/sub: missing"],
    );
}

#[test]
fn sees_an_extra_name() {
    check(
        |root| fs::write(root.join("new\nline\u{ff}"), b"").unwrap(),
        &["new\\nline\\xc3\\xbf: extra"],
    );
}

#[test]
fn sees_another_kind_of_file() {
    check(
        |root| {
            fs::remove_file(root.join("file")).unwrap();
            fs::create_dir(root.join("file")).unwrap();
        },
        &["file: kind RegularFile, now Directory"],
    );
    check(
        |root| {
            fs::remove_file(root.join("fifo")).unwrap();
            node(&root.join("fifo"), FileType::Socket, (0, 0));
        },
        &["fifo: kind Fifo, now Socket"],
    );
}

#[test]
fn sees_another_mode() {
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    check(
        |root| set(&root.join("dir/sub"), 0o1700),
        &["dir/sub: mode 0755, now 1700"],
    );
    check(
        |root| set(&root.join("file"), 0o4644),
        &["file: mode 0644, now 4644"],
    );
    check(|root| set(root, 0o711), &[".: mode 0755, now 0711"]);
}

#[test]
fn sees_another_owner() {
    if !is_root() {
        return;
    }
    let own = |path: &Path, uid, gid| {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    check(
        |root| own(&root.join("symlink"), 7, 0),
        &["symlink: owner (0, 0), now (7, 0)"],
    );
    check(
        |root| own(&root.join("dir/sub"), 0, 9),
        &["dir/sub: owner (0, 0), now (0, 9)"],
    );
}

#[test]
fn sees_one_nanosecond() {
    let change = |path: &Path, seconds, nanoseconds| {
        set_time(path, seconds, nanoseconds);
    };
    for (name, path) in [
        ("symlink", "symlink"),
        ("dir", "dir"),
        (".", ""),
        ("fifo", "fifo"),
    ] {
        let line = format!("{name}: time 1000000000.000000005, now -1.000000006");
        check(|root| change(&root.join(path), -1, 6), &[&line]);
    }
    // Where only the nanosecond differs.
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| scratch.path().join(name));
    for (root, nanoseconds) in [(&first, 5), (&second, 6)] {
        plant(root);
        settle(root);
        set_time(&root.join("file"), 1_000_000_000, nanoseconds);
    }
    let seen = compare(&first, &second).unwrap();
    let kind = Kind::Time {
        first: (1_000_000_000, 5),
        second: (1_000_000_000, 6),
    };
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].path.as_slice(), &seen[0].kind),
        (&b"file"[..], &kind)
    );
}

#[test]
fn sees_another_size() {
    check(
        |root| fs::write(root.join("dir/other"), b"some conten").unwrap(),
        &["dir/other: size 12, now 11"],
    );
}

#[test]
fn sees_one_changed_byte() {
    check(
        |root| fs::write(root.join("file"), b"some contenT").unwrap(),
        &["file: content differs from byte 11"],
    );
    let change = |root: &Path| {
        let file = OpenOptions::new()
            .write(true)
            .open(root.join("sparse"))
            .unwrap();
        file.write_all_at(&[2], 65_535).unwrap();
    };
    check(change, &["sparse: content differs from byte 65535"]);
}

#[test]
fn sees_a_changed_byte_beyond_the_first_step() {
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| scratch.path().join(name));
    for (root, last) in [(&first, 0), (&second, 1)] {
        fs::create_dir(root).unwrap();
        let mut content = vec![7; (2 << 20) + 100];
        *content.last_mut().unwrap() = last;
        fs::write(root.join("file"), content).unwrap();
        settle(root);
    }
    let seen = compare(&first, &second).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        seen[0].kind,
        Kind::Content {
            offset: (2 << 20) + 99
        }
    );
}

#[test]
fn sees_a_hole_that_was_filled() {
    let fill = |root: &Path| {
        let file = OpenOptions::new()
            .write(true)
            .open(root.join("sparse"))
            .unwrap();
        file.write_all_at(&[0; 8192], 512 << 10).unwrap();
        file.sync_all().unwrap();
    };
    check(fill, &["sparse: 8192 bytes of holes became data"]);
}

#[test]
fn sees_a_hole_that_was_made() {
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| scratch.path().join(name));
    for root in [&first, &second] {
        fs::create_dir(root).unwrap();
        let file = File::create(root.join("file")).unwrap();
        if root == &first {
            file.write_all_at(&[0; 8192], 0).unwrap();
            file.sync_all().unwrap();
        }
        file.set_len(1 << 20).unwrap();
        settle(root);
    }
    let seen = compare(&first, &second).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].kind, Kind::HoleAdded { bytes: 8192 });
}

#[test]
fn sees_another_link_target() {
    let change = |root: &Path| {
        fs::remove_file(root.join("symlink")).unwrap();
        symlink("fil\u{e9}", root.join("symlink")).unwrap();
    };
    check(change, &["symlink: target file, now fil\\xc3\\xa9"]);
}

#[test]
fn sees_another_device_number() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| scratch.path().join(name));
    for (root, minor) in [(&first, 3), (&second, 5)] {
        fs::create_dir(root).unwrap();
        node(&root.join("device"), FileType::CharacterDevice, (1, minor));
        settle(root);
    }
    let seen = compare(&first, &second).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        seen[0].kind,
        Kind::DeviceNumber {
            first: (1, 3),
            second: (1, 5)
        }
    );
}

#[test]
fn sees_extended_attributes() {
    check(
        |root| rustix::fs::lremovexattr(root.join("file"), "user.one").unwrap(),
        &["file: extended attribute user.one missing"],
    );
    check(
        |root| set_xattr(&root.join("dir/sub"), "user.x\n", b""),
        &["dir/sub: extended attribute user.x\\n extra"],
    );
    check(
        |root| set_xattr(&root.join("dir"), "user.two", b"2\0"),
        &["dir: extended attribute user.two changed"],
    );
    check(
        |root| set_xattr(root, "user.root", b""),
        &[".: extended attribute user.root extra"],
    );
}

#[test]
fn sees_attributes_of_what_cannot_be_opened() {
    if !is_root() {
        return;
    }
    for name in ["symlink", "fifo"] {
        let line = format!("{name}: extended attribute trusted.t extra");
        check(
            |root| set_xattr(&root.join(name), "trusted.t", b"t"),
            &[&line],
        );
    }
}

#[test]
fn sees_acls_and_capabilities() {
    if !is_root() {
        return;
    }
    // Version 2; owner rwx, group r-x, group 99 rwx, mask rwx, others nothing.
    let acl = [
        (1_u16, 7_u16, u32::MAX),
        (4, 5, u32::MAX),
        (8, 7, 99),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in acl {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    check(
        |root| set_xattr(&root.join("dir/sub"), "system.posix_acl_default", &value),
        &["dir/sub: extended attribute system.posix_acl_default extra"],
    );
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    check(
        |root| set_xattr(&root.join("file"), "security.capability", &capability),
        &["file: extended attribute security.capability extra"],
    );
}

#[test]
fn sees_hard_links_that_were_parted() {
    let part = |root: &Path| {
        fs::remove_file(root.join("dir/link-2")).unwrap();
        fs::copy(root.join("link-1"), root.join("dir/link-2")).unwrap();
    };
    check(
        part,
        &[
            "dir/link-2: linked as [dir/link-2, link-1], now [dir/link-2]",
            "link-1: linked as [dir/link-2, link-1], now [link-1]",
        ],
    );
}

#[test]
fn sees_files_that_became_one() {
    let join = |root: &Path| {
        fs::remove_file(root.join("file")).unwrap();
        fs::hard_link(root.join("dir/other"), root.join("file")).unwrap();
        set_xattr(&root.join("file"), "user.one", b"1");
    };
    check(
        join,
        &[
            "dir/other: extended attribute user.one extra",
            "dir/other: linked as [dir/other], now [dir/other, file]",
            "file: linked as [file], now [dir/other, file]",
        ],
    );
}

#[test]
fn refuses_a_tree_that_is_not_there() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("missing");
    let error = compare(scratch.path(), &missing).unwrap_err();
    assert!(format!("{error:#}").contains("missing"), "{error:#}");
}
