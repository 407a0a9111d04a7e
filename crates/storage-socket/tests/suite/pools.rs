//! Making, showing, checking and destroying pools on real files and loop devices.

use crate::{
    devices::Loop,
    media::{directory, options, patient},
    work::Ground,
};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use storage_socket::{
    EngineChoice, Error, FormatOptions, Pool, PoolOptions, Role, SlotIndex, check, destroy, format,
    inspect, members,
};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 16 * MIB;

fn names(directory: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| directory.join(name)).collect()
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// The devices of a pool over loop devices of each block size, and of one over files.
fn each_medium(count: usize, mut test: impl FnMut(&Path, Vec<PathBuf>)) {
    let all = ["a", "b", "c"];
    for block_bytes in [0, 512, 4096] {
        let directory = directory();
        let mut loops = Vec::new();
        if block_bytes == 0 {
            test(directory.path(), names(directory.path(), &all[..count]));
            continue;
        }
        for name in &all[..count] {
            loops.extend(Loop::new(directory.path(), name, POOL_BYTES, block_bytes));
        }
        if loops.len() == count {
            let paths = loops.iter().map(|device| device.path.clone()).collect();
            test(directory.path(), paths);
        }
    }
}

#[test]
fn pool_is_what_was_made_whatever_the_order_of_devices() {
    each_medium(3, |_, mut devices| {
        let made = format(&devices, &options(POOL_BYTES)).unwrap();
        assert_eq!(made.devices.len(), 3);
        assert_eq!(made.name, "test");
        assert_eq!(made.timeouts, patient());
        devices.rotate_left(1);
        assert_eq!(inspect(&devices).unwrap(), made);
        let (checked, damage) = check(&devices).unwrap();
        assert_eq!(checked, made);
        assert!(damage.is_empty(), "{damage:?}");
        let found = members(&devices).unwrap();
        assert!(found.coordinator.is_none() && found.members.is_empty());
    });
}

#[test]
fn existing_pool_is_refused_by_name_unless_forced_and_gone_after_destroy() {
    each_medium(1, |_, devices| {
        let first = format(&devices, &options(POOL_BYTES)).unwrap();
        let refusal = format(&devices, &options(POOL_BYTES)).unwrap_err();
        assert!(
            matches!(&refusal, Error::Signature { found, offset: 0, .. } if found.contains(&first.uuid.to_string())),
            "{refusal}"
        );
        let forced = FormatOptions {
            force: true,
            ..options(POOL_BYTES)
        };
        let second = format(&devices, &forced).unwrap();
        assert_ne!(first.uuid, second.uuid);
        assert_eq!(destroy(&devices, false).unwrap(), second.uuid);
        assert!(matches!(inspect(&devices), Err(Error::NotAPool { .. })));
        format(&devices, &options(POOL_BYTES)).unwrap();
    });
}

#[test]
fn foreign_signatures_are_named() {
    let makers: [(&str, &[&str]); 3] = [
        ("ext4", &["mkfs.ext4", "-q", "-F"]),
        ("swap", &["mkswap", "-q"]),
        ("dos", &["sfdisk", "-q"]),
    ];
    for (kind, command) in makers {
        let directory = directory();
        let path = directory.path().join("device");
        File::create(&path).unwrap().set_len(POOL_BYTES).unwrap();
        let script = format!("echo ',,L' | {} {}", command.join(" "), path.display());
        match Command::new("sh").args(["-c", &script]).output() {
            Ok(output) if output.status.success() => {}
            other => {
                eprintln!("SKIPPED: can't make {kind}: {other:?}");
                continue;
            }
        }
        let refusal = format(std::slice::from_ref(&path), &options(POOL_BYTES)).unwrap_err();
        assert!(
            matches!(&refusal, Error::Signature { found, path: named, .. } if found.contains(kind) && *named == path),
            "{refusal}"
        );
    }
}

#[test]
fn byte_in_the_first_or_last_mebibyte_is_refused_and_named() {
    each_medium(1, |_, devices| {
        for offset in [4096, MIB - 1, POOL_BYTES - MIB, POOL_BYTES - 1] {
            if !devices[0].starts_with("/dev") {
                File::create(&devices[0])
                    .unwrap()
                    .set_len(POOL_BYTES)
                    .unwrap();
            }
            write_at(&devices[0], offset, &[7]);
            let refusal = format(&devices, &options(POOL_BYTES)).unwrap_err();
            assert!(
                matches!(refusal, Error::NotBlank { offset: at, byte: 7, .. } if at == offset),
                "{refusal}"
            );
            write_at(&devices[0], offset, &[0]);
        }
        // In between there may be anything.
        write_at(&devices[0], 5 * MIB, &[7]);
        format(&devices, &options(POOL_BYTES)).unwrap();
    });
}

#[test]
fn devices_that_do_not_fit_together_are_refused() {
    let directory = directory();
    let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
    File::create(&file).unwrap().set_len(POOL_BYTES).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let refusal = format(&[file.clone(), link], &options(POOL_BYTES)).unwrap_err();
    assert!(matches!(refusal, Error::SameDevice { .. }), "{refusal}");

    let missing = directory.path().join("missing");
    let sizeless = FormatOptions {
        file_bytes: None,
        ..options(0)
    };
    let refusal = format(std::slice::from_ref(&missing), &sizeless).unwrap_err();
    assert!(matches!(refusal, Error::SizeMissing { .. }), "{refusal}");
    assert!(!missing.exists());

    let refusal = format(std::slice::from_ref(&missing), &options(MIB)).unwrap_err();
    assert!(
        matches!(&refusal, Error::Unfit { path, .. } if *path == missing),
        "{refusal}"
    );
    assert!(!missing.exists(), "a file that was made for nothing stays");

    let loops =
        [512, 4096].map(|block| Loop::new(directory.path(), &block.to_string(), POOL_BYTES, block));
    if let [Some(small), Some(large)] = &loops {
        let both = [small.path.clone(), large.path.clone()];
        let refusal = format(&both, &options(POOL_BYTES)).unwrap_err();
        assert!(
            matches!(
                refusal,
                Error::MixedBlocks {
                    found: 4096,
                    expected: 512,
                    ..
                }
            ),
            "{refusal}"
        );
    }
}

#[test]
fn devices_in_use_are_refused_with_their_user() {
    let directory = directory();
    let Some(device) = Loop::new(directory.path(), "backing", POOL_BYTES, 512) else {
        return;
    };
    // The file behind a loop device.
    let file = directory.path().join("backing");
    let refusal = format(&[file], &options(POOL_BYTES)).unwrap_err();
    assert!(
        matches!(&refusal, Error::InUse { by, .. } if by.contains(device.path.to_str().unwrap())),
        "{refusal}"
    );
    // Something holds the device exclusively.
    let holder = direct_io::Device::open(
        &device.path,
        direct_io::DeviceOptions {
            exclusive: true,
            ..Default::default()
        },
    );
    let refusal = format(std::slice::from_ref(&device.path), &options(POOL_BYTES)).unwrap_err();
    assert!(
        matches!(refusal, Error::Device(direct_io::Error::InUse { .. })),
        "{refusal}"
    );
    drop(holder);
    format(std::slice::from_ref(&device.path), &options(POOL_BYTES)).unwrap();
}

#[test]
fn wrong_sets_of_devices_are_refused_with_what_was_found() {
    let directory = directory();
    let devices = names(directory.path(), &["a", "b", "c"]);
    let made = format(&devices, &options(POOL_BYTES)).unwrap();
    let refusal = inspect(&devices[..2]).unwrap_err();
    assert!(
        matches!(refusal, Error::Missing { device, count: 3, .. } if device.0 == 2),
        "{refusal}"
    );

    let other = names(directory.path(), &["other"]);
    format(&other, &options(POOL_BYTES)).unwrap();
    let mixed = [devices[0].clone(), other[0].clone(), devices[2].clone()];
    let refusal = inspect(&mixed).unwrap_err();
    assert!(
        matches!(&refusal, Error::Foreign { path, expected, .. } if *path == other[0] && expected.0 == made.uuid),
        "{refusal}"
    );

    let copy = directory.path().join("copy");
    std::fs::copy(&devices[0], &copy).unwrap();
    let copied = [devices[0].clone(), copy.clone(), devices[2].clone()];
    let refusal = inspect(&copied).unwrap_err();
    assert!(
        matches!(&refusal, Error::Copied { path, device, .. } if *path == copy && device.0 == 0),
        "{refusal}"
    );

    let blank = directory.path().join("blank");
    File::create(&blank).unwrap().set_len(POOL_BYTES).unwrap();
    let refusal = inspect(&[blank]).unwrap_err();
    assert!(matches!(refusal, Error::NotAPool { .. }), "{refusal}");

    OpenOptions::new()
        .write(true)
        .open(&devices[1])
        .unwrap()
        .set_len(POOL_BYTES - 4096)
        .unwrap();
    let refusal = inspect(&devices).unwrap_err();
    assert!(
        matches!(&refusal, Error::Truncated { path, found, expected } if *path == devices[1] && *found == POOL_BYTES - 4096 && *expected == POOL_BYTES),
        "{refusal}"
    );
}

#[test]
fn one_good_superblock_is_enough_and_the_damage_is_reported() {
    let directory = directory();
    let devices = names(directory.path(), &["a"]);
    let made = format(&devices, &options(POOL_BYTES)).unwrap();
    for offset in [0, POOL_BYTES - 4096] {
        let mut before = [0; 4096];
        let file = File::open(&devices[0]).unwrap();
        file.read_exact_at(&mut before, offset).unwrap();
        write_at(&devices[0], offset + 100, b"rot");
        let (found, damage) = check(&devices).unwrap();
        assert_eq!(found, made);
        assert!(
            matches!(damage[..], [Error::DamagedSuperblock { lba, .. }] if lba == offset / 4096),
            "{damage:?}"
        );
        write_at(&devices[0], offset, &before);
    }
    write_at(&devices[0], 16 * 4096, b"not a page");
    let (_, damage) = check(&devices).unwrap();
    assert!(
        matches!(damage[..], [Error::DamagedBlock { lba: 16, .. }]),
        "{damage:?}"
    );
}

#[test]
fn enlarged_device_is_whole_and_destroy_leaves_no_superblock_there() {
    let directory = directory();
    let devices = names(directory.path(), &["a"]);
    format(&devices, &options(POOL_BYTES)).unwrap();
    let mut how = OpenOptions::new();
    let file = how.read(true).write(true).open(&devices[0]).unwrap();
    file.set_len(2 * POOL_BYTES).unwrap();
    let (_, damage) = check(&devices).unwrap();
    assert!(damage.is_empty(), "{damage:?}");
    destroy(&devices, false).unwrap();
    for offset in [0, POOL_BYTES - 4096] {
        let mut block = [7; 4096];
        file.read_exact_at(&mut block, offset).unwrap();
        assert!(block == [0; 4096], "something stands at {offset}");
    }
}

#[test]
fn devices_that_cannot_be_read_are_listed_and_the_others_checked() {
    let names = ["a", "b", "c"];
    for is_loop in [false, true] {
        let directory = directory();
        let backing = names.map(|name| directory.path().join(name));
        let mut devices = backing.to_vec();
        let mut loops = Vec::new();
        if is_loop {
            loops.extend(names.map(|name| Loop::new(directory.path(), name, POOL_BYTES, 512)));
            devices = loops.iter().flatten().map(|at| at.path.clone()).collect();
        }
        if devices.len() < names.len() {
            return;
        }
        let made = format(&devices, &options(POOL_BYTES)).unwrap();
        write_at(&devices[2], 16 * 4096, b"not a page");
        // Behind a loop device that is EIO; a file without bytes has no superblock.
        let gone = OpenOptions::new().write(true).open(&backing[1]).unwrap();
        gone.set_len(0).unwrap();
        let (found, damage) = check(&devices).unwrap();
        assert_eq!((found.uuid, found.timeouts), (made.uuid, made.timeouts));
        assert_eq!(
            found.devices[..],
            [made.devices[0].clone(), made.devices[2].clone()]
        );
        let said: Vec<_> = damage.iter().map(ToString::to_string).collect();
        assert!(
            said[0].starts_with(devices[1].to_str().unwrap()),
            "{said:?}"
        );
        assert!(
            matches!(&damage[1..], [Error::DamagedBlock { path, lba: 16, .. }] if *path == devices[2]),
            "{said:?}"
        );
        // Nobody is left to tell of the pool.
        let refusal = check(&devices[1..2]).unwrap_err().to_string();
        assert!(
            refusal.starts_with(devices[1].to_str().unwrap()),
            "{refusal}"
        );
    }
}

#[test]
fn pool_is_served_although_a_device_cannot_be_read_beyond_its_superblock() {
    let directory = directory();
    let loops = ["a", "b"].map(|name| Loop::new(directory.path(), name, POOL_BYTES, 512));
    let [Some(a), Some(b)] = &loops else { return };
    let devices = vec![a.path.clone(), b.path.clone()];
    format(&devices, &options(POOL_BYTES)).unwrap();
    let ground = Ground::over(devices.clone());
    ground.coordinator(EngineChoice::Auto).close();
    let backing = OpenOptions::new()
        .write(true)
        .open(directory.path().join("b"));
    backing.unwrap().set_len(16 * 4096).unwrap();
    let (_, damage) = check(&devices).unwrap();
    let is_named = |error: &Error| error.to_string().starts_with(devices[1].to_str().unwrap());
    assert!(
        !damage.is_empty() && damage.iter().all(is_named),
        "{damage:?}"
    );
    ground.coordinator(EngineChoice::Auto).close();
}

#[test]
fn opening_refuses_another_pool_and_slots_that_are_not_there() {
    let directory = directory();
    let devices = names(directory.path(), &["a"]);
    format(&devices, &options(POOL_BYTES)).unwrap();
    let locks = directory.path().join("locks");
    let slots = vec![SlotIndex(8)];
    let options = PoolOptions::new(Role::Member { slots }, "host", &locks);
    let refusal = Pool::open(&devices, options.clone()).unwrap_err();
    assert!(
        matches!(refusal, Error::NoSuchSlot { count: 8, .. }),
        "{refusal}"
    );
    let other = PoolOptions {
        expected: Some(uuid::Uuid::new_v4()),
        ..options
    };
    let refusal = Pool::open(&devices, other).unwrap_err();
    assert!(matches!(refusal, Error::Foreign { .. }), "{refusal}");
}
