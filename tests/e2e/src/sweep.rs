//! Names that no other test has, and the removal of what a killed test left behind.
//!
//! Each name carries the number of the process that made it; what belongs to a process that is gone is nobody's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "bl-";

/// A name of at most 40 characters that nothing else on this machine has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{what}", std::process::id())
}

/// Where the tests make their directories (`BACKLANE_E2E_DIR`, or `/var/tmp`): on a disk rather than in memory, for direct I/O.
pub fn base() -> PathBuf {
    std::env::var_os("BACKLANE_E2E_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Removes, once in a process, what dead tests left. What can't be removed is somebody else's trouble or is tried
/// again by the next test.
pub(crate) fn sweep() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        let namespaces = crate::output(Command::new("ip").args(["netns", "list"]));
        for line in namespaces.unwrap_or_default().lines() {
            let name = line.split_whitespace().next().unwrap_or_default();
            if is_orphan(name) {
                let _ = crate::output(Command::new("ip").args(["netns", "del", name]));
            }
        }
        let loops = crate::output(Command::new("losetup").args(["-nlO", "NAME,BACK-FILE"]));
        for line in loops.unwrap_or_default().lines() {
            if let Some((name, file)) = line.split_once(char::is_whitespace)
                && Path::new(file.trim())
                    .iter()
                    .any(|part| is_orphan(&part.to_string_lossy()))
            {
                let _ = crate::output(Command::new("losetup").args(["-d", name]));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(at)
                .iter()
                .any(|part| is_orphan(&part.to_string_lossy()))
            {
                let _ = crate::output(Command::new("umount").args(["-l", at]));
            }
        }
        for entry in std::fs::read_dir(base()).into_iter().flatten().flatten() {
            if is_orphan(&entry.file_name().to_string_lossy()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    });
}

/// Whether a name is one of ours and its maker is gone.
fn is_orphan(name: &str) -> bool {
    let number = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    let maker = number.and_then(|number| number.parse::<u32>().ok());
    maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_living_are_no_orphans() {
        let name = unique("test");
        assert_ne!(name, unique("test"));
        assert!(name.len() <= 40, "{name}");
        assert!(!is_orphan(&name));
        // No process can have this number: it is above the kernel's greatest, 2^22.
        assert!(is_orphan("bl-4194999-1-test"));
        assert!(!is_orphan("bl-x-1-test"));
        assert!(!is_orphan("other-4194999-1-test"));
    }
}
