//! Makes, shows, checks and destroys pools, and opens the devices of one.
//!
//! A pool is made only of devices that nothing uses and that carry nothing, unless that is forced; what was found is
//! named. Devices are known by what their superblocks say, never by their paths or the order in which they are given.

mod check;
mod members;
mod probe;

pub use check::check;
pub(crate) use members::newest_coordinator;
pub use members::{CoordinatorInfo, MemberInfo, Members, members};

use crate::{
    Error,
    patience::{OPEN_PATIENCE, Steps, step_by_step, within},
};
use direct_io::{Access, AlignedBuf, Device, DeviceOptions};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use storage_socket_proto::{
    BLOCK_BYTES, DeviceIndex, DeviceSize, FormatError, Geometry, GeometryError, Lba, Name, PoolId,
    Superblock, Timeouts, UNIT_BYTES, Unchecked,
};
use uuid::Uuid;

/// Slots of a pool unless told otherwise: sixteen hosts with four each.
pub const SLOTS_DEFAULT: u32 = 64;

/// How a pool is made.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Its name, for people.
    pub name: String,
    /// How many slots it has.
    pub slots: u32,
    /// The size of files that are made or still empty.
    pub file_bytes: Option<u64>,
    /// Whether to overwrite whatever the devices carry, even if they are in use.
    pub force: bool,
    /// Its time-outs.
    pub timeouts: Timeouts,
    /// How long a device may take for each step: opening it, looking at what it carries, writing a MiB.
    pub patience: Duration,
}

impl FormatOptions {
    /// A pool with this name and default figures.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            slots: SLOTS_DEFAULT,
            file_bytes: None,
            force: false,
            timeouts: Timeouts::default(),
            patience: OPEN_PATIENCE,
        }
    }
}

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// How many slots it has.
    pub slots: u32,
    /// Its time-outs.
    pub timeouts: Timeouts,
    /// Bytes for data over all devices.
    pub data_bytes: u64,
    /// Its devices, by index.
    pub devices: Vec<DeviceInfo>,
}

/// What one device of a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Where it was found.
    pub path: PathBuf,
    /// Its index in the pool.
    pub index: u16,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of its logical block.
    pub logical_block_bytes: u32,
    /// Whether it is a block device; otherwise a file stands in for one.
    pub is_block: bool,
}

/// Makes a pool of `devices`. Files that do not exist are made, with every block allocated.
///
/// # Errors
/// A device is in use, carries something, is given twice, differs in its logical blocks, is too small or doesn't
/// answer within [`FormatOptions::patience`]; files made by this call are removed again then. What hangs in the kernel
/// is left behind in a thread of its own: the device is no pool then, but a block may still be zeroed late.
pub fn format(devices: &[PathBuf], options: &FormatOptions) -> Result<PoolInfo, Error> {
    let mut made = Vec::new();
    let done = format_devices(devices, options, &mut made);
    if done.is_err() {
        for path in made {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "can't remove a file that was made for the pool");
            }
        }
    }
    done
}

/// Names the device that a figure is wrong of.
fn named(error: GeometryError, paths: &[PathBuf]) -> Error {
    let device = match &error {
        GeometryError::TooSmall { device, .. }
        | GeometryError::TooLarge { device, .. }
        | GeometryError::LogicalBlock { device, .. } => usize::from(device.0),
        _ => return Error::Geometry(error),
    };
    match paths.get(device) {
        Some(path) => Error::Unfit {
            path: path.clone(),
            found: error,
        },
        None => Error::Geometry(error),
    }
}

fn format_devices(
    paths: &[PathBuf],
    options: &FormatOptions,
    made: &mut Vec<PathBuf>,
) -> Result<PoolInfo, Error> {
    let mut devices: Vec<Arc<Device>> = Vec::new();
    for path in paths {
        let device = open_free(path, options, made)?;
        check_companions(&device, &devices)?;
        devices.push(Arc::new(device));
    }
    let sizes: Vec<DeviceSize> = devices
        .iter()
        .map(|device| DeviceSize {
            blocks: device.bytes() / BLOCK_BYTES as u64,
            logical_block: device.logical_block_bytes(),
        })
        .collect();
    let pool = PoolId(Uuid::new_v4());
    let geometry = Geometry::new(pool, options.slots, &sizes, options.timeouts)
        .map_err(|error| named(error, paths))?;
    let name = Name::lossy(&options.name);
    for (index, device) in (0..).map(DeviceIndex).zip(&devices) {
        let superblock = Superblock::of(&geometry, name.clone(), index)
            .expect("the geometry has each device that it was made of");
        erase_fixed((index, device), &geometry, options.patience)?;
        within(device.path(), "write its superblocks", options.patience, {
            let device = device.clone();
            move || write_superblocks(&device, &superblock)
        })?;
    }
    Ok(info(&geometry, &name, &numbered(&devices)))
}

/// Opens one device for formatting, after every question whether it is free.
fn open_free(
    path: &Path,
    options: &FormatOptions,
    made: &mut Vec<PathBuf>,
) -> Result<Device, Error> {
    let is_new = !path.exists();
    if is_new && options.file_bytes.is_none() {
        return Err(Error::SizeMissing {
            path: path.to_owned(),
        });
    }
    let how = DeviceOptions {
        access: Access::ReadWrite,
        exclusive: !options.force,
        create: true,
    };
    let mut device = within(path, "open it", options.patience, {
        let path = path.to_owned();
        move || Ok(Device::open(&path, how)?)
    })?;
    if is_new {
        made.push(path.to_owned());
    } else if !options.force {
        let look = "look at what it carries";
        device = within(path, look, options.patience, move || {
            check_free(&device)?;
            Ok(device)
        })?;
    }
    if !device.is_block() {
        let bytes = match (device.bytes(), options.file_bytes) {
            (0, None) => {
                return Err(Error::SizeMissing {
                    path: path.to_owned(),
                });
            }
            (0, Some(wanted)) => wanted,
            (found, Some(wanted)) if wanted != found && !options.force => {
                return Err(Error::OtherSize {
                    path: path.to_owned(),
                    found,
                    wanted,
                });
            }
            (found, wanted) => wanted.unwrap_or(found),
        };
        let allocate = "allocate its blocks";
        device = within(
            path,
            allocate,
            options.patience * ALLOCATION_STEPS,
            move || {
                device.allocate(bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64)?;
                Ok(device)
            },
        )?;
    }
    Ok(device)
}

/// A file system may have to write a little for each of a large file's extents.
const ALLOCATION_STEPS: u32 = 10;

/// Refuses a device that is used, or carries anything.
fn check_free(device: &Device) -> Result<(), Error> {
    probe::check_unused(device)?;
    check_no_pool(device)?;
    probe::check_signatures(device.path())?;
    probe::check_blank(device)
}

/// Refuses a device that is one of `others`, or has blocks of another size.
fn check_companions(device: &Device, others: &[Arc<Device>]) -> Result<(), Error> {
    for other in others {
        if device.is_same_as(other) {
            return Err(Error::SameDevice {
                path: device.path().to_owned(),
                other: other.path().to_owned(),
            });
        }
        if device.logical_block_bytes() != other.logical_block_bytes() {
            return Err(Error::MixedBlocks {
                path: device.path().to_owned(),
                found: device.logical_block_bytes(),
                other: other.path().to_owned(),
                expected: other.logical_block_bytes(),
            });
        }
    }
    Ok(())
}

/// Refuses a device that belongs to a pool already.
fn check_no_pool(device: &Device) -> Result<(), Error> {
    let Some(last) = (device.bytes() / BLOCK_BYTES as u64).checked_sub(1) else {
        return Ok(());
    };
    for lba in [Geometry::SUPERBLOCK, Lba(last)] {
        let found = match read_superblock(device, lba)? {
            Ok(superblock) => format!("pool \"{}\" ({})", superblock.name, superblock.pool),
            Err(FormatError::NewerFormat { .. }) => "a pool of a newer format".to_owned(),
            Err(_) => continue,
        };
        return Err(Error::Signature {
            path: device.path().to_owned(),
            found,
            offset: lba.0 * BLOCK_BYTES as u64,
        });
    }
    Ok(())
}

/// What the devices say of their pool.
///
/// # Errors
/// As for opening a pool: a device is wrong, missing, a copy, truncated, foreign or of a newer format.
pub fn inspect(paths: &[PathBuf]) -> Result<PoolInfo, Error> {
    let opened = OpenPool::open(paths, Access::ReadOnly, None)?;
    let devices = numbered(&opened.devices);
    Ok(info(&opened.geometry, &opened.name, &devices))
}

/// Erases what makes the devices a pool. Data of streams stays until something overwrites it; it was sealed.
///
/// # Errors
/// A device belongs to no pool, doesn't answer, or (unless forced) the pool has a live coordinator or member. A write
/// that hangs in the kernel is left behind in a thread of its own, and may land late.
pub fn destroy(paths: &[PathBuf], force: bool) -> Result<Uuid, Error> {
    let opened = OpenPool::open(paths, Access::ReadWrite, None)?;
    if !force {
        members::check_quiet(&opened)?;
    }
    for device in numbered(&opened.devices) {
        erase_fixed(device, &opened.geometry, OPEN_PATIENCE)?;
    }
    Ok(opened.geometry.pool().0)
}

/// The devices of a pool, complete and in the order of their indices.
pub(crate) struct OpenPool {
    pub(crate) geometry: Geometry,
    pub(crate) name: Name,
    pub(crate) devices: Vec<Arc<Device>>,
}

impl OpenPool {
    /// Opens all devices of the pool that the paths lead to.
    pub(crate) fn open(
        paths: &[PathBuf],
        access: Access,
        expected: Option<PoolId>,
    ) -> Result<Self, Error> {
        let mut found: Vec<(Superblock, Arc<Device>)> = Vec::new();
        for path in paths {
            let (device, superblock) = open_one(path, access)?;
            check_among(&device, &superblock, &found, expected)?;
            found.push((superblock, Arc::new(device)));
        }
        found.sort_by_key(|(superblock, _)| superblock.device);
        let (superblocks, devices): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let geometry = Geometry::from_superblocks(&superblocks)
            .map_err(|error| incomplete(error, &superblocks))?;
        Ok(Self {
            geometry,
            name: superblocks[0].name.clone(),
            devices,
        })
    }
}

/// Opens a device and reads its superblock.
fn open_one(path: &Path, access: Access) -> Result<(Device, Superblock), Error> {
    let options = DeviceOptions {
        access,
        ..Default::default()
    };
    within(path, "open it", OPEN_PATIENCE, {
        let path = path.to_owned();
        move || {
            let device = Device::open(&path, options)?;
            let superblock = superblock_of(&device)?;
            Ok((device, superblock))
        }
    })
}

/// Looks for a device of a pool that is open already. Nothing is opened where the descriptor that there is reads well:
/// the device was away for a while, and the descriptor is none that stays dead.
///
/// # Errors
/// As [`open_again`].
pub(crate) fn look_again(
    geometry: &Geometry,
    devices: &[Arc<Device>],
    index: DeviceIndex,
) -> Result<Option<Device>, Error> {
    let known = superblock_of(&devices[usize::from(index.0)]);
    if known.is_ok_and(|found| found.pool == geometry.pool() && found.device == index) {
        return Ok(None);
    }
    open_again(geometry, devices, index).map(Some)
}

/// Opens a device of a pool that is open already, by the path that it had. Whatever else stands there is refused.
///
/// # Errors
/// It can't be opened or read, or is not this device of this pool.
fn open_again(
    geometry: &Geometry,
    devices: &[Arc<Device>],
    index: DeviceIndex,
) -> Result<Device, Error> {
    let path = devices[usize::from(index.0)].path();
    let device = Device::open(path, DeviceOptions::default())?;
    let superblock = superblock_of(&device)?;
    check_member(&device, &superblock, Some(geometry.pool()))?;
    if superblock.device != index {
        return Err(Error::OtherDevice {
            path: path.to_owned(),
            found: superblock.device,
            expected: index,
        });
    }
    let others = (0..).map(DeviceIndex).zip(devices);
    let twin = others.filter(|(other, _)| *other != index);
    match twin.map(|(_, at)| at).find(|at| at.is_same_as(&device)) {
        Some(at) => Err(Error::SameDevice {
            path: path.to_owned(),
            other: at.path().to_owned(),
        }),
        None => Ok(device),
    }
}

/// Refuses a device that can't be one of the same pool as those that were found.
fn check_among(
    device: &Device,
    superblock: &Superblock,
    found: &[(Superblock, Arc<Device>)],
    expected: Option<PoolId>,
) -> Result<(), Error> {
    let wanted = expected.or(found.first().map(|(first, _)| first.pool));
    check_member(device, superblock, wanted)?;
    for (other, at) in found {
        if at.is_same_as(device) {
            return Err(Error::SameDevice {
                path: device.path().to_owned(),
                other: at.path().to_owned(),
            });
        }
        if other.device == superblock.device {
            return Err(Error::Copied {
                path: device.path().to_owned(),
                other: at.path().to_owned(),
                device: superblock.device,
            });
        }
    }
    Ok(())
}

/// Why these superblocks make no pool.
fn incomplete(error: GeometryError, superblocks: &[Superblock]) -> Error {
    match (error, superblocks.first()) {
        (GeometryError::MissingDevice { device }, Some(first)) => Error::Missing {
            pool: first.pool,
            device,
            count: first.device_count,
        },
        (other, _) => Error::Geometry(other),
    }
}

/// Compares what a superblock says with the device that it stands on.
fn check_member(
    device: &Device,
    superblock: &Superblock,
    wanted: Option<PoolId>,
) -> Result<(), Error> {
    let path = || device.path().to_owned();
    if let Some(expected) = wanted.filter(|wanted| *wanted != superblock.pool) {
        return Err(Error::Foreign {
            path: path(),
            found: superblock.pool,
            expected,
        });
    }
    // A forged one may say anything.
    let expected = superblock.blocks.saturating_mul(BLOCK_BYTES as u64);
    if device.bytes() < expected {
        return Err(Error::Truncated {
            path: path(),
            found: device.bytes(),
            expected,
        });
    }
    // A file's unit of direct I/O belongs to the file system that a host sees it through, not to the file.
    if device.is_block() && device.logical_block_bytes() != superblock.logical_block {
        return Err(Error::OtherBlocks {
            path: path(),
            found: device.logical_block_bytes(),
            expected: superblock.logical_block,
        });
    }
    Ok(())
}

/// The superblock of a device: the first, or its copy at the end when the first is damaged.
fn superblock_of(device: &Device) -> Result<Superblock, Error> {
    let path = || device.path().to_owned();
    let blocks = device.bytes() / BLOCK_BYTES as u64;
    if blocks == 0 {
        return Err(Error::NotAPool {
            path: path(),
            found: FormatError::Truncated {
                want: BLOCK_BYTES,
                got: usize::try_from(device.bytes()).unwrap_or(usize::MAX),
            },
        });
    }
    let first = read_superblock(device, Geometry::SUPERBLOCK);
    choose_superblock(device.path(), first, || {
        read_superblock(device, Lba(blocks - 1))
    })
}

/// The first superblock; or the copy, when the first can't be read or is damaged.
fn choose_superblock(
    path: &Path,
    first: Result<Result<Superblock, FormatError>, Error>,
    copy: impl FnOnce() -> Result<Result<Superblock, FormatError>, Error>,
) -> Result<Superblock, Error> {
    let path = || path.to_owned();
    let error = match first {
        Ok(Ok(superblock)) => return Ok(superblock),
        Ok(Err(found @ FormatError::NewerFormat { .. })) => {
            return Err(Error::NewerFormat {
                path: path(),
                found,
            });
        }
        Ok(Err(found)) => Error::NotAPool {
            path: path(),
            found,
        },
        Err(unreadable) => unreadable,
    };
    match copy() {
        Ok(Ok(superblock)) => {
            tracing::warn!(path = %path().display(), %error, "the first superblock is of no use; its copy serves");
            Ok(superblock)
        }
        // What is wrong with the first tells more.
        Ok(Err(_)) | Err(_) => Err(error),
    }
}

/// Reads one of a device's superblocks; the inner error tells what is there instead.
fn read_superblock(device: &Device, lba: Lba) -> Result<Result<Superblock, FormatError>, Error> {
    let mut buf = AlignedBuf::new(BLOCK_BYTES)?;
    device.read_exact_at(&mut buf, lba.0 * BLOCK_BYTES as u64)?;
    Ok(Unchecked::new(&buf).and_then(Superblock::parse))
}

/// Zeroes everything before the data area, and the last MiB. The superblocks go first: the copy stands where the device
/// ended when the pool was made, which may have grown since.
fn erase_fixed(
    (index, device): Numbered<'_>,
    geometry: &Geometry,
    patience: Duration,
) -> Result<(), Error> {
    let fixed = u64::from(geometry.data_start().0) * UNIT_BYTES;
    let copy = geometry
        .superblock_copy(index)
        .expect("the geometry has each device of its pool");
    step_by_step(device.path(), ERASING, patience, {
        let device = device.clone();
        move |steps| erase(&device, fixed, copy, steps)
    })
}

const ERASING: &str = "erase its fixed areas";

fn erase(device: &Device, fixed: u64, copy: Lba, steps: &Steps<()>) -> Result<(), Error> {
    const STEP_BYTES: u64 = 1 << 20;
    let block = BLOCK_BYTES as u64;
    let last = device.bytes() / block - 1;
    let mut one = AlignedBuf::new(BLOCK_BYTES)?;
    let mut zeros = AlignedBuf::new(usize::try_from(STEP_BYTES).expect("a MiB fits"))?;
    let write = |offset, buf: &mut AlignedBuf| {
        device.write_all_at(buf, offset)?;
        steps.next(device.path(), ERASING)
    };
    for lba in [0, copy.0, last] {
        write(lba * block, &mut one)?;
    }
    for offset in (0..fixed).step_by(usize::try_from(STEP_BYTES).expect("a MiB fits")) {
        write(offset, &mut zeros)?;
    }
    write((last + 1) * block - STEP_BYTES, &mut zeros)?;
    Ok(device.sync()?)
}

/// Writes the copy at the end first, so that a device with a first superblock is complete.
fn write_superblocks(device: &Device, superblock: &Superblock) -> Result<(), Error> {
    let mut buf = AlignedBuf::new(BLOCK_BYTES)?;
    buf.copy_from_slice(&superblock.encode().0);
    for lba in [superblock.blocks - 1, Geometry::SUPERBLOCK.0] {
        device.write_all_at(&mut buf, lba * BLOCK_BYTES as u64)?;
        device.sync()?;
    }
    Ok(())
}

/// A device and its index in the pool.
type Numbered<'a> = (DeviceIndex, &'a Arc<Device>);

/// All devices of a pool with their indices.
fn numbered(devices: &[Arc<Device>]) -> Vec<Numbered<'_>> {
    (0..).map(DeviceIndex).zip(devices).collect()
}

fn info(geometry: &Geometry, name: &Name, devices: &[Numbered<'_>]) -> PoolInfo {
    let start = geometry.data_start();
    PoolInfo {
        uuid: geometry.pool().0,
        name: name.to_string(),
        slots: geometry.slots(),
        timeouts: geometry.timeouts(),
        data_bytes: geometry
            .devices()
            .iter()
            .map(|device| u64::from(device.data_end.0 - start.0) * UNIT_BYTES)
            .sum(),
        devices: devices
            .iter()
            .map(|(index, device)| DeviceInfo {
                path: device.path().to_owned(),
                index: index.0,
                bytes: device.bytes(),
                logical_block_bytes: device.logical_block_bytes(),
                is_block: device.is_block(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> FormatOptions {
        FormatOptions {
            slots: 8,
            file_bytes: Some(16 << 20),
            ..FormatOptions::new("test")
        }
    }

    /// The only device of a new pool.
    fn member(directory: &tempfile::TempDir) -> Device {
        let path = directory.path().join("device");
        format(std::slice::from_ref(&path), &options()).unwrap();
        Device::open(&path, DeviceOptions::default()).unwrap()
    }

    #[test]
    fn copy_serves_when_the_first_superblock_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let device = member(&directory);
        let good = read_superblock(&device, Geometry::SUPERBLOCK).unwrap();
        // Past the end of the device nothing can be read, as in a bad sector.
        let unreadable = || read_superblock(&device, Lba(1 << 20));
        let served = choose_superblock(device.path(), unreadable(), || Ok(good.clone())).unwrap();
        assert_eq!(served, good.unwrap());
        let refusal = choose_superblock(device.path(), unreadable(), unreadable).unwrap_err();
        assert!(matches!(refusal, Error::Device(_)), "{refusal}");
    }

    #[test]
    fn a_size_that_no_device_has_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let device = member(&directory);
        let superblock = Superblock {
            blocks: 1 << 52,
            ..superblock_of(&device).unwrap()
        };
        let refusal = check_member(&device, &superblock, None).unwrap_err();
        assert!(matches!(refusal, Error::Truncated { .. }), "{refusal}");
    }

    #[test]
    fn only_the_same_device_of_the_same_pool_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let name = |name: &str| directory.path().join(name);
        let devices = [name("a"), name("b")];
        format(&devices, &options()).unwrap();
        format(&[name("foreign")], &options()).unwrap();
        let opened = OpenPool::open(&devices, Access::ReadWrite, None).unwrap();
        let again = || open_again(&opened.geometry, &opened.devices, DeviceIndex(1));
        assert!(again().unwrap().is_same_as(&opened.devices[1]));
        let away = name("away");
        fs::rename(&devices[1], &away).unwrap();
        assert!(matches!(again(), Err(Error::Device(_))));
        fs::copy(&devices[0], &devices[1]).unwrap();
        let other = again();
        assert!(
            matches!(
                other,
                Err(Error::OtherDevice {
                    found: DeviceIndex(0),
                    ..
                })
            ),
            "{other:?}"
        );
        fs::rename(name("foreign"), &devices[1]).unwrap();
        assert!(matches!(again(), Err(Error::Foreign { .. })));
        fs::rename(&away, &devices[1]).unwrap();
        let file = fs::File::options().write(true).open(&devices[1]).unwrap();
        file.set_len(15 << 20).unwrap();
        assert!(matches!(again(), Err(Error::Truncated { .. })));
    }
}
