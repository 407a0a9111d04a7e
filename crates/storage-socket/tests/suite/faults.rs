//! Devices that go away, or hang, under a running stream.

use crate::{
    devices::{Freezer, Loop},
    media::{directory, hasty, options, patient},
    work::{Ground, PATIENCE, Pattern, checked, pair, sealed},
};
use direct_io::{AlignedBuf, Device, DeviceOptions, Engine, EngineOptions, Operation, Request};
use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read, Write},
    path::Path,
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant},
};
use storage_socket::{
    EngineChoice, Error, FormatOptions, ResetReason, StopReason, StreamOptions, format,
};

fn reason(error: &std::io::Error) -> &Error {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[test]
fn device_that_shrinks_away_resets_the_stream_and_is_named() {
    for engine in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let ground = Ground::new(1, None, 64 << 20, hasty()).unwrap();
        let server = ground.coordinator(engine);
        let client = ground.member(engine);
        let (mut accepted, mut connected) = pair(&server, &client, &sealed());
        connected.write_all(b"before").unwrap();
        accepted.read_exact(&mut [0; 6]).unwrap();
        // Reads past the end of a file come back short, as those of a disk that was pulled.
        let device = &ground.devices[0];
        let file = OpenOptions::new().write(true).open(device).unwrap();
        file.set_len(0).unwrap();
        accepted.set_read_timeout(Some(PATIENCE));
        let error = accepted.read(&mut [0; 1]).unwrap_err();
        match reason(&error) {
            Error::Reset {
                reason: ResetReason::DeviceLost,
                ..
            }
            | Error::Stopped {
                why: StopReason::Devices(_),
                ..
            } => {}
            other => panic!("{other}"),
        }
    }
}

#[test]
fn device_that_hangs_hangs_no_one() {
    let directory = directory();
    let Some(freezer) = Freezer::new(directory.path()) else {
        return;
    };
    for engine in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let devices = vec![freezer.mount.join(format!("{engine:?}"))];
        let how = FormatOptions {
            timeouts: hasty(),
            ..options(32 << 20)
        };
        format(&devices, &how).unwrap();
        let ground = Ground::over(devices);
        let server = ground.coordinator(engine);
        let client = ground.member(engine);
        let (mut accepted, mut connected) = pair(&server, &client, &checked());
        connected.write_all(b"before").unwrap();
        accepted.read_exact(&mut [0; 6]).unwrap();
        freezer.set("--freeze");
        let start = Instant::now();
        let piece = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = connected.write_all(&piece) {
                break error;
            }
        };
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::NotConnected];
        assert!(kinds.contains(&error.kind()), "{error}");
        // What waits for an answer is answered, and leaving does not wait for the device.
        drop((accepted, connected, server, client));
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        freezer.set("--unfreeze");
    }
}

#[test]
fn formatting_gives_a_hanging_device_up_and_names_it() {
    let directory = directory();
    let Some(freezer) = Freezer::new(directory.path()) else {
        return;
    };
    // A file hangs when it is given its blocks, a device behind the frozen file system when it is erased.
    let file = freezer.mount.join("file");
    std::fs::File::create(&file).unwrap();
    let Some(device) = Loop::new(&freezer.mount, "backing", 32 << 20, 512) else {
        return;
    };
    let how = FormatOptions {
        patience: Duration::from_millis(200),
        ..options(32 << 20)
    };
    freezer.set("--freeze");
    let refusals = [file, device.path.clone()].map(|path| {
        let (tell, told) = channel();
        let (at, how) = (path.clone(), how.clone());
        // One that is not given up must not keep the test from thawing what it hangs in.
        thread::spawn(move || drop(tell.send(format(&[at], &how))));
        (path, told.recv_timeout(PATIENCE))
    });
    freezer.set("--unfreeze");
    for (path, refusal) in refusals {
        let error = refusal.unwrap().unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with(path.to_str().unwrap()), "{said}");
        assert!(said.contains("no answer within"), "{said}");
        assert_eq!(std::io::Error::from(error).kind(), ErrorKind::TimedOut);
    }
}

/// Opens a new file of 1 MiB.
fn file(path: &Path) -> Arc<Device> {
    let create = DeviceOptions {
        create: true,
        ..Default::default()
    };
    let mut device = Device::open(path, create).unwrap();
    device.allocate(1 << 20).unwrap();
    Arc::new(device)
}

#[test]
fn device_that_hangs_takes_only_its_share_of_the_engine() {
    const WRITES: u64 = 64;
    let directory = directory();
    let Some(freezer) = Freezer::new(directory.path()) else {
        return;
    };
    let devices = vec![
        file(&freezer.mount.join("hangs")),
        file(&directory.path().join("healthy")),
    ];
    for choice in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let how = EngineOptions {
            choice,
            depth: 16,
            threads_per_device: 2,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(devices.clone(), how).unwrap();
        let write = |device, token| Request {
            operation: Operation::Write,
            device,
            offset: token % 256 * 4096,
            bytes: 4096,
            buf: AlignedBuf::new(4096).unwrap(),
            token,
        };
        freezer.set("--freeze");
        for token in 0..WRITES {
            engine.submit(write(0, token));
        }
        engine.submit(write(1, WRITES));
        let deadline = Instant::now() + PATIENCE;
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(Instant::now() < deadline, "the healthy device waits");
            let step = Some(Duration::from_millis(100));
            engine.wait(step, &mut done).unwrap();
        }
        assert_eq!(done[0].request.token, WRITES);
        // What never began comes back; nothing of it is written later.
        let begun: Vec<_> = (0..WRITES)
            .filter(|token| engine.withdraw(0, *token).is_none())
            .collect();
        // None, where its threads were slow to begin: then nothing of it was in the way either.
        assert!(begun.len() <= 8, "{begun:?}");
        assert_eq!(engine.in_flight(), begun.len());
        freezer.set("--unfreeze");
        while engine.in_flight() > 0 {
            assert!(Instant::now() < deadline, "the device is thawed");
            let step = Some(Duration::from_millis(100));
            engine.wait(step, &mut done).unwrap();
        }
        assert_eq!(done.len(), begun.len() + 1);
    }
}

#[test]
fn frames_that_rot_on_the_device_are_sent_again() {
    let ground = Ground::new(1, None, 32 << 20, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    for how in [sealed(), checked()] {
        // One frame is read ahead, so that the others wait on the device.
        let how = StreamOptions { depth: 1, ..how };
        let (mut accepted, mut connected) = pair(&server, &client, &how);
        let mut sent = vec![0; connected.payload_bytes_max() * 3 / 8 * 8];
        Pattern::new(b"rot").fill(&mut sent);
        connected.write_all(&sent).unwrap();
        connected.flush().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while connected.stats().frames_sent < 3 {
            assert!(Instant::now() < deadline, "{:?}", connected.stats());
            thread::yield_now();
        }
        let hit = damage_frames(&ground.devices[0]);
        assert!(hit >= 3, "{hit} frames found");
        let mut heard = vec![0; sent.len()];
        accepted.read_exact(&mut heard).unwrap();
        assert!(heard == sent);
        let ours = accepted.stats();
        // The frame may be read before its writer hears that it was written.
        while connected.stats().frames_resent == 0 {
            let theirs = connected.stats();
            assert!(Instant::now() < deadline, "{theirs:?}, {ours:?}");
            thread::yield_now();
        }
        assert!(ours.damaged_reads > 0, "{ours:?}");
        assert!(ours.resends_requested > 0, "{ours:?}");
    }
}

/// Changes a byte in every frame that stands on the device, and tells how many there were.
fn damage_frames(path: &Path) -> usize {
    let how = direct_io::DeviceOptions::default();
    let device = direct_io::Device::open(path, how).unwrap();
    let mut block = direct_io::AlignedBuf::new(4096).unwrap();
    let mut hit = 0;
    for lba in 0..device.bytes() / 4096 {
        device.read_exact_at(&mut block, lba * 4096).unwrap();
        if block.starts_with(b"BLfr") {
            block[4000] ^= 1;
            device.write_all_at(&mut block, lba * 4096).unwrap();
            hit += 1;
        }
    }
    hit
}
