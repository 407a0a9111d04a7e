//! Is a pool whole? Reads everything fixed, on every device that can be read, and lists what is wrong.

use super::{
    Numbered, PoolInfo, check_among, incomplete, info, members, open_one, read_superblock,
};
use crate::{
    Error,
    patience::{OPEN_PATIENCE, within},
};
use direct_io::{Access, Device};
use std::{path::PathBuf, sync::Arc};
use storage_socket_proto::{DeviceSize, FormatError, Geometry, GeometryError, Lba, Superblock};

/// Like [`inspect`](super::inspect), and reads everything fixed: both superblocks of each device, and every page. What
/// is damaged is listed, and so is every device that can't be read or is none of the pool, each under its path; an
/// empty list means a healthy pool. What the pool is comes from the devices that could be read.
///
/// # Errors
/// No device could be read, or they can be read and are not all of the pool's.
pub fn check(paths: &[PathBuf]) -> Result<(PoolInfo, Vec<Error>), Error> {
    let (mut found, mut damage) = (Vec::new(), Vec::new());
    for path in paths {
        let opened = open_one(path, Access::ReadOnly).and_then(|(device, superblock)| {
            check_among(&device, &superblock, &found, None)?;
            Ok((superblock, Arc::new(device)))
        });
        match opened {
            Ok(opened) => found.push(opened),
            Err(error) => damage.push(error),
        }
    }
    if found.is_empty() && !damage.is_empty() {
        let first = damage.remove(0);
        for error in damage {
            tracing::error!(%error, "nor can this device be checked");
        }
        return Err(first);
    }
    found.sort_by_key(|(superblock, _)| superblock.device);
    let (superblocks, devices): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let geometry = geometry(&superblocks, damage.len())?;
    let devices: Vec<Numbered<'_>> = superblocks
        .iter()
        .map(|superblock| superblock.device)
        .zip(&devices)
        .collect();
    for (superblock, (_, device)) in superblocks.iter().zip(&devices) {
        damage.extend(superblock_damage(device, superblock.blocks));
    }
    damage.extend(members::damage(&geometry, &devices));
    Ok((info(&geometry, &superblocks[0].name, &devices), damage))
}

/// Where things lie on the devices that were found. Up to `unread` of the others are known to be missing.
fn geometry(superblocks: &[Superblock], unread: usize) -> Result<Geometry, Error> {
    let error = match Geometry::from_superblocks(superblocks) {
        Ok(geometry) => return Ok(geometry),
        Err(error) => error,
    };
    let known = superblocks.first().filter(|first| {
        let missing = usize::from(first.device_count) - superblocks.len();
        matches!(error, GeometryError::MissingDevice { .. }) && missing <= unread
    });
    let Some(first) = known else {
        return Err(incomplete(error, superblocks));
    };
    // The fixed areas of a device don't depend on how many others there are.
    let sizes: Vec<_> = superblocks
        .iter()
        .map(|superblock| DeviceSize {
            blocks: superblock.blocks,
            logical_block: superblock.logical_block,
        })
        .collect();
    Ok(Geometry::new(
        first.pool,
        first.slots,
        &sizes,
        first.timeouts,
    )?)
}

/// What is wrong with the superblocks of a device that had so many blocks when its pool was made.
fn superblock_damage(device: &Arc<Device>, blocks: u64) -> Vec<Error> {
    let path = || device.path().to_owned();
    let last = Lba(blocks - 1);
    let (mut good, mut damage) = (Vec::new(), Vec::new());
    for lba in [Geometry::SUPERBLOCK, last] {
        let read: Result<Result<Superblock, FormatError>, Error> =
            within(device.path(), "read its superblocks", OPEN_PATIENCE, {
                let device = device.clone();
                move || read_superblock(&device, lba)
            });
        match read {
            Ok(Ok(superblock)) => good.push(superblock),
            Ok(Err(found)) => damage.push(Error::DamagedSuperblock {
                path: path(),
                lba: lba.0,
                found,
            }),
            Err(unreadable) => damage.push(unreadable),
        }
    }
    if good.len() == 2 && good[0] != good[1] {
        damage.push(Error::SuperblocksDiffer { path: path() });
    }
    damage
}
