//! Files and loop devices for tests; they go away with the test, even if it is killed.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use storage_socket::{FormatOptions, Timeouts};

/// Where tests keep their files: on disk, for tmpfs may have no direct I/O.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A loop device over a file.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
    /// Detached already, a loop device lives as long as it is open.
    _device: std::fs::File,
}

impl Loop {
    /// A loop device over a new file; `None`, loudly, where loop devices can't be made.
    pub(crate) fn new(directory: &Path, name: &str, bytes: u64, block_bytes: u32) -> Option<Self> {
        let file = directory.join(name);
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(format!("--sector-size={block_bytes}"))
            .arg(file)
            .output();
        let path: PathBuf = match made {
            Ok(output) if output.status.success() => {
                String::from_utf8(output.stdout).unwrap().trim().into()
            }
            other => {
                eprintln!("SKIPPED: no loop device of {block_bytes} bytes: {other:?}");
                return None;
            }
        };
        let device = std::fs::File::open(&path).unwrap();
        let detached = Command::new("losetup").arg("-d").arg(&path).status();
        assert!(detached.unwrap().success());
        Some(Self {
            path,
            _device: device,
        })
    }
}

/// Options for a small pool whose time-outs suit tests on a busy machine.
pub(crate) fn options(bytes: u64) -> FormatOptions {
    FormatOptions {
        slots: 8,
        file_bytes: Some(bytes),
        timeouts: patient(),
        ..FormatOptions::new("test")
    }
}

/// Long enough that a busy machine seems alive, short enough to start quickly.
pub(crate) fn patient() -> Timeouts {
    let millis = Duration::from_millis;
    Timeouts {
        heartbeat: millis(100),
        route_leave: millis(5000),
        dead: millis(30_000),
        fence: millis(10_000),
        io_deadline: millis(15_000),
        stale: millis(100),
        claim: millis(200),
        linger: millis(3000),
    }
}

/// So short that a death is noticed within the test.
pub(crate) fn hasty() -> Timeouts {
    let millis = Duration::from_millis;
    Timeouts {
        heartbeat: millis(50),
        dead: millis(2500),
        fence: millis(1000),
        io_deadline: millis(1000),
        stale: millis(50),
        claim: millis(100),
        linger: millis(1500),
        route_leave: millis(1000),
    }
}
