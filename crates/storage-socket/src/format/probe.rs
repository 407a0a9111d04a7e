//! Is a device free to become part of a pool? Asks the system who uses it and libblkid what it carries.
//!
//! Everything here only reads. A raw database volume and plain dm-crypt have no signature, so a byte other than zero
//! in the first or last MiB counts as data too.

use crate::Error;
use direct_io::{AlignedBuf, Device};
use rustix::fs::{major, minor, stat};
use std::{env, fs, path::Path, process::Command};

/// Bytes at each end that have to be zero.
const ENDS_BYTES: u64 = 1 << 20;

/// Refuses a device that is mounted, swap, or stands behind a loop device.
///
/// # Errors
/// [`Error::InUse`] says by what.
pub(super) fn check_unused(device: &Device) -> Result<(), Error> {
    let path = device.path();
    let user = if device.is_block() {
        mounted_at(path)?.map(|place| format!("mounted at {place}"))
    } else {
        behind_loop(path).map(|name| format!("behind /dev/{name}"))
    };
    let user = user.or_else(|| swapped_on(path).then(|| "swap".to_owned()));
    match user {
        Some(by) => Err(Error::InUse {
            path: path.to_owned(),
            by,
        }),
        None => Ok(()),
    }
}

/// Refuses a device on which libblkid finds a signature.
///
/// # Errors
/// [`Error::Signature`] names the first that was found; [`Error::Os`] when the prober can't run.
pub(super) fn check_signatures(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Os {
        path: "wipefs".into(),
        action: "run it to look for signatures",
        source,
    };
    // Where it stands on most systems is not in everybody's path.
    let path_list = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("wipefs")
        .env("PATH", path_list)
        .args(["--no-act", "--parsable"])
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(std::io::Error::other(said)));
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    match listing.lines().find_map(parse_signature) {
        Some((offset, found)) => Err(Error::Signature {
            path: path.to_owned(),
            found,
            offset,
        }),
        None => Ok(()),
    }
}

/// Refuses a device with a byte other than zero in its first or last MiB.
///
/// # Errors
/// [`Error::NotBlank`] names the first such byte.
pub(super) fn check_blank(device: &Device) -> Result<(), Error> {
    let bytes = device.bytes() / 4096 * 4096;
    let first = ENDS_BYTES.min(bytes);
    for (start, length) in [(0, first), (bytes - first, first)] {
        if length == 0 {
            continue;
        }
        let length = usize::try_from(length).expect("at most a MiB");
        let mut buf = AlignedBuf::new(length)?;
        device.read_exact_at(&mut buf, start)?;
        if let Some(index) = buf.iter().position(|byte| *byte != 0) {
            return Err(Error::NotBlank {
                path: device.path().to_owned(),
                offset: start + index as u64,
                byte: buf[index],
            });
        }
    }
    Ok(())
}

/// A line of `wipefs --parsable`: offset, UUID, label and type, with commas between.
fn parse_signature(line: &str) -> Option<(u64, String)> {
    if line.starts_with('#') {
        return None;
    }
    let (offset, rest) = line.split_once(',')?;
    let offset = u64::from_str_radix(offset.strip_prefix("0x")?, 16).ok()?;
    let mut fields = rest.split(',');
    let uuid = fields.next().unwrap_or_default();
    let kind = fields.next_back().unwrap_or_default();
    let identity = if uuid.is_empty() {
        String::new()
    } else {
        format!(" {uuid}")
    };
    Some((offset, format!("a signature of {kind}{identity}")))
}

/// Where the block device is mounted, by its numbers: it may have several names.
fn mounted_at(path: &Path) -> Result<Option<String>, Error> {
    let mounts = "/proc/self/mountinfo";
    let listing = fs::read_to_string(mounts).map_err(|source| Error::Os {
        path: mounts.into(),
        action: "read what is mounted",
        source,
    })?;
    let found = stat(path).map_err(|error| Error::Os {
        path: path.to_owned(),
        action: "look at it",
        source: error.into(),
    })?;
    let numbers = format!("{}:{}", major(found.st_rdev), minor(found.st_rdev));
    let place = listing
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&numbers.as_str()))
        .and_then(|fields| fields.get(4).map(ToString::to_string));
    Ok(place)
}

/// Whether the path is an active swap device or file.
fn swapped_on(path: &Path) -> bool {
    // Without /proc/swaps the kernel has no swap.
    let listing = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    listing
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(|swap| Path::new(swap) == name)
}

/// The loop device that the file stands behind.
fn behind_loop(path: &Path) -> Option<String> {
    let name = fs::canonicalize(path).ok()?;
    // Without /sys/block there are no loop devices to be seen.
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == name)
            .then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_from_the_probers_lines() {
        let line = "0x438,954151e4-4b06-465c-8f8e-4efa7cf107a1,a,label,ext4";
        let (offset, found) = parse_signature(line).unwrap();
        assert_eq!(offset, 0x438);
        assert_eq!(
            found,
            "a signature of ext4 954151e4-4b06-465c-8f8e-4efa7cf107a1"
        );
        assert_eq!(
            parse_signature("0x1fe,,,dos").unwrap().1,
            "a signature of dos"
        );
        assert!(parse_signature("# offset,uuid,label,type").is_none());
    }
}
