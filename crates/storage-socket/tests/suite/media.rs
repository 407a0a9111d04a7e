//! Where tests keep their files, and the pools they make of them.

pub(crate) use crate::devices::Loop;
use std::time::Duration;
use storage_socket::{FormatOptions, Timeouts};

/// Where tests keep their files: on disk, for tmpfs may have no direct I/O.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
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
