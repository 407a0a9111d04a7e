//! A device that was pulled comes back.

use crate::{
    devices::Pulled,
    media::{options, patient},
    work::{Ground, PATIENCE, checked, exchange, pair},
};
use direct_io::{AlignedBuf, Device, DeviceOptions};
use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};
use storage_socket::{EngineChoice, FormatOptions, Pool, Timeouts, format};

const POOL_BYTES: u64 = 32 << 20;

/// Waits until both sides have proved so many devices to each other.
fn wait_proved(server: &Pool, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let members = server.members().unwrap();
        if members
            .iter()
            .all(|member| member.proved.iter().count() == count)
        {
            return;
        }
        assert!(Instant::now() < deadline, "not {count}: {members:?}");
        thread::yield_now();
    }
}

/// How many frames stand on a device.
fn frames_on(path: &Path) -> usize {
    let device = Device::open(path, DeviceOptions::default()).unwrap();
    let mut block = AlignedBuf::new(4096).unwrap();
    let is_frame = |lba: &u64| {
        device.read_exact_at(&mut block, lba * 4096).unwrap();
        block.starts_with(b"BLfr")
    };
    (0..device.bytes() / 4096).filter(is_frame).count()
}

#[test]
fn device_that_returns_carries_new_streams_and_a_stranger_in_its_place_does_not() {
    for engine in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let timeouts = Timeouts {
            route_leave: Duration::from_millis(300),
            ..patient()
        };
        let ground = Ground::new(2, None, POOL_BYTES, timeouts).unwrap();
        let server = ground.coordinator(engine);
        let client = ground.member(engine);
        wait_proved(&server, 2);
        let path = &ground.devices[1];
        let [away, stranger] = ["away", "stranger"].map(|name| ground.directory.path().join(name));
        let how = FormatOptions {
            timeouts,
            ..options(POOL_BYTES)
        };
        format(std::slice::from_ref(&stranger), &how).unwrap();
        let untouched = fs::read(&stranger).unwrap();
        fs::copy(path, &away).unwrap();
        let pulled = Pulled::new(path);
        fs::rename(&stranger, path).unwrap();
        wait_proved(&server, 1);
        let (accepted, connected) = pair(&server, &client, &checked());
        thread::scope(|scope| {
            scope.spawn(|| exchange(&accepted, ("server", "client"), 4 << 20));
            exchange(&connected, ("client", "server"), 4 << 20);
        });
        assert!(
            fs::read(path).unwrap() == untouched,
            "the stranger was written to"
        );
        fs::rename(&away, path).unwrap();
        wait_proved(&server, 2);
        assert_eq!(frames_on(path), 0);
        let (accepted, connected) = pair(&server, &client, &checked());
        thread::scope(|scope| {
            scope.spawn(|| exchange(&accepted, ("server", "client"), 4 << 20));
            exchange(&connected, ("client", "server"), 4 << 20);
        });
        assert!(frames_on(path) > 0, "the device is not used");
        drop(pulled);
    }
}
