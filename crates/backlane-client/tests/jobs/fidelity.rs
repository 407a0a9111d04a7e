//! Everything that a file system holds comes back: backup and restore of real trees, judged by rsync and by lstat.

use crate::support::{self, World, run};
use backlane_client::RestoreOptions;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    },
    path::Path,
};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make(path: &Path, file_type: FileType, rdev: u64) {
    mknodat(CWD, path, file_type, Mode::RUSR | Mode::WUSR, rdev).unwrap();
}

/// One of each thing.
fn zoo(base: &Path) {
    fs::write(base.join("empty"), "").unwrap();
    fs::write(base.join("small"), "x").unwrap();
    let noise: Vec<u8> = (0..750_000u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(base.join("large"), &noise).unwrap();
    fs::create_dir(base.join("empty dir")).unwrap();
    fs::write(base.join(OsStr::from_bytes(b"not \xff utf8 \xc3")), "1").unwrap();
    fs::write(base.join("new\nline \\ \" ' \t"), "2").unwrap();
    fs::write(base.join("n".repeat(255)), "3").unwrap();
    fs::create_dir(base.join("links")).unwrap();
    for (target, name) in [
        ("../small", "good"),
        ("nowhere", "dangling"),
        ("loop", "loop"),
    ] {
        symlink(target, base.join("links").join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(b"raw \xff"), base.join("links/raw")).unwrap();
    fs::hard_link(base.join("small"), base.join("links/hard")).unwrap();
    fs::hard_link(
        base.join("links/dangling"),
        base.join("links/hard-dangling"),
    )
    .unwrap();
    make(&base.join("fifo"), FileType::Fifo, 0);
    fs::hard_link(base.join("fifo"), base.join("hard-fifo")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap());
    if is_root() {
        make(
            &base.join("null"),
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        );
        make(
            &base.join("block"),
            FileType::BlockDevice,
            rustix::fs::makedev(259, 70_000),
        );
    }
    sparse(base);
    metadata(base);
    set_time(base, 1_600_000_000, 123_456_789);
}

fn sparse(base: &Path) {
    let file = File::create(base.join("sparse")).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(&[7; 8192], 1 << 20).unwrap();
    file.write_all_at(&[0; 65536], 4 << 20).unwrap();
    file.write_all_at(b"end", (10 << 20) - 3).unwrap();
    file.sync_all().unwrap();
    File::create(base.join("hole"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    fs::write(base.join("zeros"), vec![0; 1 << 20]).unwrap();
}

fn metadata(base: &Path) {
    let dir = base.join("meta");
    fs::create_dir(&dir).unwrap();
    for mode in [0o000, 0o444, 0o4755, 0o2755, 0o1777, 0o7777] {
        let path = dir.join(format!("{mode:o}"));
        fs::write(&path, "m").unwrap();
        if is_root() {
            chown(&path, Some(mode + 1000), Some(mode + 2000)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let path = dir.join(format!("dir-{mode:o}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("in it"), "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    symlink("x", dir.join("owned link")).unwrap();
    if is_root() {
        lchown(dir.join("owned link"), Some(4_000_000_000), Some(7)).unwrap();
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let file = dir.join("attributes");
    fs::write(&file, "a").unwrap();
    run(
        "setfattr",
        &["-n", "user.comment", "-v", "0x00ff41", &text(&file)],
    );
    run("setfattr", &["-n", "user.empty", &text(&file)]);
    run("setfattr", &["-n", "user.on dir", "-v", "1", &text(&dir)]);
    run("setfacl", &["-m", "u:1234:rw,g:99:r", &text(&file)]);
    run("setfacl", &["-d", "-m", "u:1234:rwx", &text(&dir)]);
    if is_root() {
        run("setcap", &["cap_net_raw+ep", &text(&file)]);
        let link = text(&dir.join("owned link"));
        run(
            "setfattr",
            &["-h", "-n", "trusted.on_link", "-v", "1", &link],
        );
    }
    for (name, seconds, nanoseconds) in [
        ("epoch", 0, 0),
        ("nanoseconds", 1_700_000_000, 1),
        ("1969", -1, 999_999_999),
        ("1902", -2_145_916_800, 5),
        ("2040", 2_208_988_800, 6),
        ("2400", 13_569_465_600, 7),
    ] {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        set_time(&path, seconds, nanoseconds);
    }
    set_time(&dir.join("owned link"), -7, 8);
    set_time(&dir, -1_000_000, 9);
}

fn used(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn one_of_each_thing_comes_back_as_it_was() {
    let world = World::new();
    zoo(&world.source);
    let backed_up = world.back_up();
    assert_eq!(backed_up.warnings.total(), 0, "{:?}", backed_up.warnings);
    let restored = world.restore_with(&RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    });
    let restored = restored.unwrap();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert_eq!(restored.files_verified, restored.files_restored);
    assert_eq!(restored.hard_links, 3);
    world.assert_same();

    for name in ["sparse", "hole", "zeros"] {
        let (old, new) = (world.source.join(name), world.target.join(name));
        assert_eq!(used(&old), used(&new), "{name}");
    }
    assert_eq!(used(&world.target.join("hole")), 0);
    let inode = |name: &str| world.target.join(name).symlink_metadata().unwrap().ino();
    assert_eq!(inode("links/dangling"), inode("links/hard-dangling"));
    assert_eq!(inode("fifo"), inode("hard-fifo"));
}

#[test]
fn the_witness_finds_no_difference_in_a_tree_of_everything() {
    let world = World::new();
    let options = fidelity::TreeOptions {
        xattr_names_not_utf8: true,
        written_zeros: true,
        ..fidelity::TreeOptions::default()
    };
    fidelity::make_tree(&world.source, &options).unwrap();
    let backed_up = world.back_up();
    assert_eq!(backed_up.warnings.total(), 0, "{:?}", backed_up.warnings);
    for kept in [false, true] {
        let restored = world.restore();
        assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
        assert_eq!(restored.files_kept > 0, kept);
        let differences = fidelity::compare(&world.source, &world.target).unwrap();
        assert_eq!(differences, []);
    }
    for tree in [&world.source, &world.target] {
        run("rm", &["-r", "--", tree.to_str().unwrap()]);
    }
}

#[test]
fn restoring_again_keeps_everything_and_changes_nothing() {
    let world = World::new();
    zoo(&world.source);
    world.back_up();
    let first = world.restore();
    let inode = || world.target.join("large").metadata().unwrap().ino();
    let before = inode();
    let second = world.restore();
    assert_eq!(second.files_restored, 0);
    assert_eq!(second.files_kept, first.files_restored);
    assert_eq!(second.bytes_fetched, 0);
    assert_eq!(second.warnings.total(), 0, "{:?}", second.warnings);
    assert_eq!(inode(), before);
    world.assert_same();
}

#[test]
fn files_that_became_one_in_the_target_are_two_again() {
    let world = World::new();
    for (name, link, seconds) in [("a", "a too", 1_500_000_000), ("b", "b too", 1_600_000_000)] {
        let path = world.source.join(name);
        fs::write(&path, "the same in both").unwrap();
        set_time(&path, seconds, 0);
        fs::hard_link(&path, world.source.join(link)).unwrap();
    }
    world.back_up();
    world.restore();
    for gone in ["a too", "b", "b too"] {
        fs::remove_file(world.target.join(gone)).unwrap();
    }
    fs::hard_link(world.target.join("a"), world.target.join("b")).unwrap();
    let again = world.restore();
    assert_eq!((again.files_kept, again.files_restored), (1, 1));
    world.assert_same();
}

/// Batches of a restore have 8,192 files; one runs while the next is planned.
#[test]
fn what_takes_several_batches_comes_back_with_links_and_times_across_them() {
    let world = World::new();
    let dir = |base: &Path, dir: usize| base.join(format!("{dir:03}"));
    for number in 0..170 {
        let here = dir(&world.source, number);
        fs::create_dir(&here).unwrap();
        for file in 0..100 {
            fs::write(here.join(format!("{file}")), format!("{number} {file}")).unwrap();
        }
        let another = dir(&world.source, number / 2).join(format!("{}", number % 100));
        fs::hard_link(another, here.join("link")).unwrap();
        set_time(&here, 1_500_000_000 + i64::try_from(number).unwrap(), 7);
    }
    world.back_up();
    let first = world.restore();
    assert_eq!(first.warnings.total(), 0, "{:?}", first.warnings);
    assert_eq!((first.files_restored, first.hard_links), (17_000, 170));
    world.assert_same();

    // What isn't in the snapshot, what differs and what stands in the way, in each batch.
    for number in (0..170).step_by(7) {
        let here = dir(&world.target, number);
        fs::create_dir(here.join("surplus")).unwrap();
        fs::write(here.join("surplus/file"), "s").unwrap();
        fs::write(here.join("3"), "another").unwrap();
        fs::remove_file(here.join("4")).unwrap();
        fs::create_dir(here.join("4")).unwrap();
    }
    let again = world.restore_with(&RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    });
    let again = again.unwrap();
    assert_eq!(again.warnings.total(), 0, "{:?}", again.warnings);
    assert_eq!(again.files_restored, 2 * 25);
    world.assert_same();
}

#[test]
fn paths_longer_than_the_system_takes_come_back() {
    let world = World::new();
    let deepest = |base: &Path| {
        let name = "d".repeat(250);
        let mut dir = rustix::fs::open(base, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut names = vec![];
        for _ in 0..100 {
            names.push(name.clone());
            let _ = rustix::fs::mkdirat(&dir, &name, Mode::RWXU);
            let flags = rustix::fs::OFlags::DIRECTORY;
            dir = rustix::fs::openat(&dir, &name, flags, Mode::empty()).unwrap();
        }
        dir
    };
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
    let dir = deepest(&world.source);
    let made = rustix::fs::openat(&dir, "leaf", flags, Mode::RUSR | Mode::WUSR).unwrap();
    File::from(made).write_all_at(b"deep", 0).unwrap();
    let summary = world.back_up();
    assert_eq!(summary.warnings.total(), 0, "{:?}", summary.warnings);
    let restored = world.restore();
    assert_eq!((restored.files_restored, restored.failed), (1, 0));
    let dir = deepest(&world.target);
    let found = rustix::fs::openat(
        &dir,
        "leaf",
        flags - rustix::fs::OFlags::CREATE,
        Mode::empty(),
    );
    let content = std::io::read_to_string(File::from(found.unwrap())).unwrap();
    assert_eq!(content, "deep");
    // The standard library can't remove such trees; rm can.
    for tree in [&world.source, &world.target] {
        run("rm", &["-r", "--", tree.to_str().unwrap()]);
    }
}

#[test]
fn directories_above_the_paths_keep_their_metadata() {
    let world = World::new();
    let inner = world.source.join("a/b");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("file"), "1").unwrap();
    fs::write(world.source.join("other"), "2").unwrap();
    fs::set_permissions(world.source.join("a"), Permissions::from_mode(0o751)).unwrap();
    set_time(&world.source.join("a"), 1_000_000_000, 5);
    let mut options = world.options();
    options.paths = vec![
        inner.clone(),
        world.source.join("other"),
        inner.join("file"),
    ];
    world.back_up_with(&options).unwrap();
    world
        .restore_path(None, &RestoreOptions::default())
        .unwrap();
    let restored = world.target.join(world.source.strip_prefix("/").unwrap());
    let meta = restored.join("a").metadata().unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
        (0o751, 1_000_000_000, 5)
    );
    assert_eq!(support::rsync_differences(&world.source, &restored), "");
}

#[test]
fn stock_restic_restores_the_same_tree() {
    let world = World::new();
    zoo(&world.source);
    // What restic 0.14 can't restore: sockets at all, link targets that aren't UTF-8, hard links of other things than
    // files.
    for name in [
        "meta/2400",
        "meta/owned link",
        "socket",
        "links/raw",
        "links/hard-dangling",
        "hard-fifo",
    ] {
        fs::remove_file(world.source.join(name)).unwrap();
    }
    set_time(&world.source, 5, 5);
    set_time(&world.source.join("links"), 6, 6);
    set_time(&world.source.join("meta"), 7, 7);
    world.back_up();
    let restic = |args: &[&str]| {
        let output = std::process::Command::new("restic")
            .args(["--no-lock", "--no-cache", "-r"])
            .arg(&world.store.0)
            .args(args)
            .env("RESTIC_PASSWORD", support::PASSWORD)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    restic(&["check", "--read-data"]);
    let out = world.dir.path().join("by-restic");
    restic(&["restore", "latest", "--target", out.to_str().unwrap()]);
    let restored = out.join(world.source.strip_prefix("/").unwrap());
    assert_eq!(support::rsync_differences(&world.source, &restored), "");
}

/// How much of a file the system has in memory.
fn resident(file: &Path) -> u64 {
    let mut fincore = std::process::Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--output", "RES"]);
    let printed = fincore.arg(file).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    printed.trim().parse().unwrap()
}

#[test]
fn what_the_system_has_in_memory_of_files_stays_and_no_more_comes() {
    const BYTES: usize = 16 << 20;
    let world = World::new();
    let [cold, warm] = ["cold", "warm"].map(|name| world.source.join(name));
    for (seed, file) in [(1, &cold), (2, &warm)] {
        fs::write(file, fidelity::Random::new(seed).bytes(BYTES)).unwrap();
        let file = fs::File::open(file).unwrap();
        file.sync_all().unwrap();
        if seed == 1 {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let dont_cache = rustix::io::ReadWriteFlags::from_bits_retain(0x80);
        let mut byte = [0];
        let byte = &mut [std::io::IoSliceMut::new(&mut byte)];
        if let Err(error) = rustix::io::preadv2(&file, byte, 0, dont_cache) {
            eprintln!("this kernel or file system can't read around its memory: {error}");
            return;
        }
    }
    world.back_up();
    assert!(resident(&cold) < BYTES as u64 / 4, "{}", resident(&cold));
    assert_eq!(resident(&warm), BYTES as u64);
}
