//! What needs a file system of its own: full ones, mounted ones, ones with wide times. Only root can mount.

use crate::support::{World, run};
use backlane_client::{Error, FileSystems, RestoreOptions, WarningKind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// A small file system in memory, as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` without root.
    fn at(path: &Path, size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "none",
                path.to_str().unwrap(),
            ],
        );
        Some(Self(path.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_file_system_is_a_clear_error_and_the_next_restore_works() {
    let world = World::new();
    for name in 0..20u8 {
        fs::write(world.source.join(name.to_string()), vec![name; 1 << 20]).unwrap();
    }
    world.back_up();
    {
        let Some(_small) = Mounted::at(&world.target, "8m") else {
            return;
        };
        let error = world.restore_with(&RestoreOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert!(
            error.to_string().contains(world.target.to_str().unwrap()),
            "{error}"
        );
        for entry in fs::read_dir(&world.target).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), 1 << 20);
            assert!(entry.file_name().to_str().unwrap().parse::<u8>().is_ok());
        }
    }
    world.restore();
    world.assert_same();
}

#[test]
fn nothing_unfinished_stays_where_no_space_is_left() {
    let world = World::new();
    let noise = |seed, bytes| fidelity::Random::new(seed).bytes(bytes);
    // What they begin with is written to all of them, so that many are begun when there is no more space.
    for number in 1..=12 {
        let content = [noise(0, 6 << 20), noise(number, 100_000)].concat();
        fs::write(world.source.join(number.to_string()), content).unwrap();
    }
    world.back_up();
    let Some(_small) = Mounted::at(&world.target, "8m") else {
        return;
    };
    let error = world.restore_with(&RestoreOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(fs::read_dir(&world.target).unwrap().count(), 0);
}

#[test]
fn nothing_is_deleted_any_more_once_no_space_is_left() {
    let world = World::new();
    let write = |base: &Path, path: &str, content: &[u8]| {
        let path = base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    // A batch of files, and what is planned while it runs.
    for number in 0..8200 {
        write(&world.source, &format!("a/{number}"), b"a");
    }
    for number in 0..4000 {
        write(&world.source, &format!("b/{number}/file"), b"b");
    }
    write(&world.source, "c/full", b"c");
    world.back_up();
    let Some(_small) = Mounted::at(&world.target, "8m") else {
        return;
    };
    for number in 0..4000 {
        write(&world.target, &format!("b/{number}/surplus"), b"");
    }
    write(&world.target, "c/full", b"");
    let full = fs::File::create(world.target.join("c/full")).unwrap();
    let mut at = 0;
    while let Ok(written) = full.write_at(&[7; 4096], at) {
        at += written as u64;
    }
    let error = world.restore_with(&RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    let surplus = |number| world.target.join(format!("b/{number}/surplus"));
    let left = (0..4000).filter(|number| surplus(*number).exists()).count();
    assert!(left > 0);
}

#[test]
fn one_file_system_keeps_the_mount_point_and_delete_spares_what_is_mounted() {
    let world = World::new();
    fs::create_dir(world.source.join("inner")).unwrap();
    let Some(mounted) = Mounted::at(&world.source.join("inner/mnt"), "1m") else {
        return;
    };
    fs::write(mounted.0.join("file"), "1").unwrap();
    let mut options = world.options();
    options.source.file_systems = FileSystems::One;
    world.back_up_with(&options).unwrap();
    world.restore();
    assert_eq!(
        fs::read_dir(world.target.join("inner/mnt"))
            .unwrap()
            .count(),
        0
    );
    world.back_up();
    world.restore();
    assert!(world.target.join("inner/mnt/file").exists());

    // In the target something foreign is mounted, in a directory that the snapshot doesn't have.
    let foreign = Mounted::at(&world.target.join("extra/deep"), "1m").unwrap();
    fs::write(foreign.0.join("precious"), "2").unwrap();
    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.warnings.count(WarningKind::NotDeleted), 1);
    assert_eq!(fs::read_to_string(foreign.0.join("precious")).unwrap(), "2");
}

fn delete() -> RestoreOptions {
    RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    }
}

#[test]
fn delete_spares_what_is_mounted_on_a_directory_that_the_snapshot_has_empty() {
    let world = World::new();
    fs::create_dir_all(world.source.join("inner/mnt/sub")).unwrap();
    world.back_up();
    let Some(mounted) = Mounted::at(&world.target.join("inner/mnt"), "1m") else {
        return;
    };
    fs::write(mounted.0.join("precious"), "1").unwrap();
    fs::create_dir(mounted.0.join("sub")).unwrap();
    fs::write(mounted.0.join("sub/precious"), "2").unwrap();
    fs::write(world.target.join("inner/extra"), "goes").unwrap();
    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.deleted, 1);
    // Both directories in which something stays are named.
    assert_eq!(restored.warnings.count(WarningKind::NotDeleted), 2);
    assert_eq!(fs::read_to_string(mounted.0.join("precious")).unwrap(), "1");
    assert!(mounted.0.join("sub/precious").exists());
    assert!(!world.target.join("inner/extra").exists());
}

#[test]
fn delete_spares_what_lies_where_the_backup_did_not_look() {
    let world = World::new();
    let mount_point = world.source.join("inner/mnt");
    let Some(mounted) = Mounted::at(&mount_point, "1m") else {
        return;
    };
    let mut options = world.options();
    options.source.file_systems = FileSystems::One;
    assert_eq!(world.back_up_with(&options).unwrap().warnings.total(), 0);
    drop(mounted);
    world.restore();
    fs::write(world.target.join("inner/mnt/precious"), "1").unwrap();
    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert!(world.target.join("inner/mnt/precious").exists());
}

#[test]
fn times_beyond_the_format_and_names_beyond_it_come_back() {
    let world = World::new();
    let Some(_source) = Mounted::at(&world.source, "8m") else {
        return;
    };
    let _target = Mounted::at(&world.target, "8m").unwrap();
    for (name, seconds) in [("early", -100_000_000_000), ("late", 300_000_000_000)] {
        let path = world.source.join(name);
        fs::write(&path, name).unwrap();
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 7,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    }
    let attributed = world.source.join("attributed");
    fs::write(&attributed, "").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&attributed, b"user.\xff\x01\n".as_slice(), b"v\0", flags).unwrap();
    let summary = world.back_up();
    assert_eq!(summary.warnings.total(), 0, "{:?}", summary.warnings);
    let restored = world.restore();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    world.assert_same();
    for name in ["early", "late"] {
        let time = |base: &Path| {
            let meta = base.join(name).metadata().unwrap();
            (meta.mtime(), meta.mtime_nsec())
        };
        assert_eq!(time(&world.source), time(&world.target), "{name}");
    }
    let again = world.restore();
    assert_eq!(again.files_restored, 0);
}

#[test]
fn times_that_the_target_cannot_hold_are_named() {
    let world = World::new();
    let Some(_source) = Mounted::at(&world.source, "8m") else {
        return;
    };
    let path = world.source.join("late");
    fs::write(&path, "").unwrap();
    let time = Timespec {
        tv_sec: 300_000_000_000,
        tv_nsec: 7,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    world.back_up();
    let restored = world.restore();
    // Where the temporary directory can hold it, there is nothing to name.
    let holds = world.target.join("late").metadata().unwrap().mtime() == 300_000_000_000;
    assert_eq!(
        restored.warnings.count(WarningKind::Times),
        u64::from(!holds)
    );
}

#[test]
fn an_immutable_file_is_kept_and_its_flag_is_named() {
    let world = World::new();
    let path = world.source.join("immutable");
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let Ok(old) = rustix::fs::ioctl_getflags(&file) else {
        return;
    };
    let flags = old | rustix::fs::IFlags::IMMUTABLE;
    if rustix::fs::ioctl_setflags(&file, flags).is_err() {
        return;
    }
    let summary = world.back_up();
    rustix::fs::ioctl_setflags(&file, old).unwrap();
    assert_eq!(summary.warnings.count(WarningKind::Incomplete), 1);
    assert_eq!(summary.archive.warnings, 1);
    assert!(summary.warnings.first[0].what.contains("immutable"));
    world.restore();
    assert_eq!(fs::read(world.target.join("immutable")).unwrap(), b"x");
}
