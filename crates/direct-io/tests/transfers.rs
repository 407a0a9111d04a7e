//! Real transfers: over a file and loop devices of both block sizes, by both engines.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use direct_io::{
    Access, AlignedBuf, BufferPool, Completion, Device, DeviceOptions, Engine, EngineChoice,
    EngineKind, EngineOptions, Error, Loss, Operation, Request, boottime,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const DEVICE_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A file on disk, and perhaps a loop device over it; both go away with it, and with the process.
struct Medium {
    path: PathBuf,
    _directory: tempfile::TempDir,
    /// Detached already, a loop device lives as long as it is open.
    _loop_device: Option<std::fs::File>,
}

impl Medium {
    fn file() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("device");
        let options = DeviceOptions {
            create: true,
            ..Default::default()
        };
        let mut device = Device::open(&path, options).unwrap();
        device.allocate(DEVICE_BYTES).unwrap();
        Self {
            path,
            _directory: directory,
            _loop_device: None,
        }
    }

    /// `None`, loudly, where loop devices can't be made.
    fn looped(block_bytes: u32) -> Option<Self> {
        let mut medium = Self::file();
        let made = Command::new("losetup")
            .args([
                "--find",
                "--show",
                "--direct-io=on",
                &format!("--sector-size={block_bytes}"),
            ])
            .arg(&medium.path)
            .output();
        match made {
            Ok(output) if output.status.success() => {
                medium.path = String::from_utf8(output.stdout).unwrap().trim().into();
                medium._loop_device = Some(std::fs::File::open(&medium.path).unwrap());
                let detached = Command::new("losetup").arg("-d").arg(&medium.path).status();
                assert!(detached.unwrap().success());
                Some(medium)
            }
            other => {
                eprintln!("SKIPPED: no loop device of {block_bytes} bytes: {other:?}");
                None
            }
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        [Some(Self::file()), Self::looped(512), Self::looped(4096)]
            .into_iter()
            .flatten()
    }

    fn open(&self) -> Device {
        Device::open(&self.path, DeviceOptions::default()).unwrap()
    }
}

fn engine(devices: Vec<Arc<Device>>, choice: EngineChoice) -> Option<Engine> {
    let options = EngineOptions {
        choice,
        depth: 8,
        ..Default::default()
    };
    match Engine::new(devices, options) {
        Ok(engine) => Some(engine),
        Err(Error::RingRefused { source }) => {
            eprintln!("SKIPPED: io_uring is not available: {source}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn complete(engine: &mut Engine, wanted: usize) -> Vec<Completion> {
    let deadline = boottime() + PATIENCE;
    let mut done = Vec::new();
    while done.len() < wanted {
        assert!(
            boottime() < deadline,
            "{} of {wanted} completed",
            done.len()
        );
        engine
            .wait(Some(Duration::from_millis(100)), &mut done)
            .unwrap();
    }
    done
}

fn pattern(token: u64, bytes: &mut [u8]) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&(token << 32 | index as u64).to_le_bytes()[..chunk.len()]);
    }
}

/// Writes many buffers, more than the depth, reads them back in another order, and compares.
fn round_trip(path: &Path, choice: EngineChoice, buffer_bytes: usize) {
    let device = Arc::new(Device::open(path, DeviceOptions::default()).unwrap());
    let Some(mut engine) = engine(vec![device], choice) else {
        return;
    };
    let count = (DEVICE_BYTES as usize / buffer_bytes).min(20);
    let pool = BufferPool::new(buffer_bytes, count);
    for token in 0..count as u64 {
        let mut buf = pool.take().unwrap().unwrap();
        pattern(token, &mut buf);
        engine.submit(Request {
            operation: Operation::Write,
            device: 0,
            offset: token * buffer_bytes as u64,
            bytes: buffer_bytes,
            buf,
            token,
        });
    }
    for completion in complete(&mut engine, count) {
        completion.result.unwrap();
    }
    assert_eq!(engine.in_flight(), 0);
    for token in (0..count as u64).rev() {
        let mut buf = pool.take().unwrap().unwrap();
        buf.fill(0xee);
        engine.submit(Request {
            operation: Operation::Read,
            device: 0,
            offset: token * buffer_bytes as u64,
            bytes: buffer_bytes,
            buf,
            token,
        });
    }
    let mut expected = vec![0; buffer_bytes];
    for completion in complete(&mut engine, count) {
        completion.result.unwrap();
        pattern(completion.request.token, &mut expected);
        assert!(completion.request.buf[..] == expected[..]);
    }
}

#[test]
fn what_was_written_is_read_back_by_every_engine_on_every_medium() {
    for medium in Medium::all() {
        for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
            for buffer_bytes in [4096, 12 << 10, 1 << 20] {
                round_trip(&medium.path, choice, buffer_bytes);
            }
        }
    }
}

#[test]
fn read_past_the_end_is_a_lost_device() {
    for medium in Medium::all() {
        for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
            let Some(mut engine) = engine(vec![Arc::new(medium.open())], choice) else {
                continue;
            };
            // The first transfer is cut short, the second finds nothing at all.
            for (token, offset) in [(1, DEVICE_BYTES - 4096), (2, DEVICE_BYTES)] {
                engine.submit(Request {
                    operation: Operation::Read,
                    device: 0,
                    offset,
                    bytes: 8192,
                    buf: AlignedBuf::new(8192).unwrap(),
                    token,
                });
            }
            for completion in complete(&mut engine, 2) {
                let moved_wanted = if completion.request.token == 1 {
                    4096
                } else {
                    0
                };
                match completion.result.unwrap_err() {
                    Error::DeviceLost {
                        path,
                        loss: Loss::Short { moved },
                        ..
                    } => {
                        assert_eq!(path, medium.path);
                        assert_eq!(moved, moved_wanted);
                    }
                    other => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn unaligned_transfers_come_back_with_their_buffer() {
    for medium in Medium::all() {
        for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
            let device = Arc::new(medium.open());
            let block = device.logical_block_bytes() as usize;
            let Some(mut engine) = engine(vec![device], choice) else {
                continue;
            };
            for (offset, bytes) in [(7, block), (0, block - 1), (0, 8192), (0, 0)] {
                engine.submit(Request {
                    operation: Operation::Write,
                    device: 0,
                    offset,
                    bytes,
                    buf: AlignedBuf::new(4096).unwrap(),
                    token: 0,
                });
                let completion = complete(&mut engine, 1).remove(0);
                assert!(matches!(completion.result, Err(Error::Unaligned { .. })));
                assert_eq!(completion.request.buf.len(), 4096);
            }
        }
    }
}

#[test]
fn loop_devices_report_their_block_size_and_refuse_less() {
    for block_bytes in [512, 4096] {
        let Some(medium) = Medium::looped(block_bytes) else {
            continue;
        };
        let device = medium.open();
        assert!(device.is_block());
        assert_eq!(device.bytes(), DEVICE_BYTES);
        assert_eq!(device.logical_block_bytes(), block_bytes);
    }
}

#[test]
fn synchronous_transfers_round_trip() {
    for medium in Medium::all() {
        let device = medium.open();
        let mut buf = AlignedBuf::new(8192).unwrap();
        pattern(9, &mut buf);
        device.write_all_at(&mut buf, 4096).unwrap();
        device.sync().unwrap();
        let mut back = AlignedBuf::new(8192).unwrap();
        device.read_exact_at(&mut back, 4096).unwrap();
        assert!(back[..] == buf[..]);
        assert!(matches!(
            device.read_exact_at(&mut back, DEVICE_BYTES),
            Err(Error::DeviceLost { .. })
        ));
    }
}

#[test]
fn failed_write_is_a_lost_device() {
    let medium = Medium::file();
    let options = DeviceOptions {
        access: Access::ReadOnly,
        ..Default::default()
    };
    for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
        let device = Arc::new(Device::open(&medium.path, options).unwrap());
        let Some(mut engine) = engine(vec![device], choice) else {
            continue;
        };
        engine.submit(Request {
            operation: Operation::Write,
            device: 0,
            offset: 0,
            bytes: 4096,
            buf: AlignedBuf::new(4096).unwrap(),
            token: 0,
        });
        let completion = complete(&mut engine, 1).remove(0);
        assert!(completion.result.unwrap_err().is_device_lost());
    }
}

#[test]
fn waker_ends_an_endless_wait() {
    let medium = Medium::file();
    for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
        let Some(mut engine) = engine(vec![Arc::new(medium.open())], choice) else {
            continue;
        };
        for _ in 0..3 {
            let waker = engine.waker();
            let waking = std::thread::spawn(move || waker.wake());
            engine.wait(None, &mut Vec::new()).unwrap();
            waking.join().unwrap();
        }
    }
}

#[test]
fn transfers_go_to_the_descriptor_that_took_a_devices_place() {
    let [before, after] = [Medium::file(), Medium::file()];
    for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
        let old = Arc::new(before.open());
        let Some(mut engine) = engine(vec![old.clone()], choice) else {
            continue;
        };
        let write = |engine: &mut Engine, byte| {
            let mut buf = AlignedBuf::new(4096).unwrap();
            buf.fill(byte);
            engine.submit(Request {
                operation: Operation::Write,
                device: 0,
                offset: 0,
                bytes: 4096,
                buf,
                token: 0,
            });
            complete(engine, 1).remove(0).result.unwrap();
        };
        write(&mut engine, 1);
        engine.replace(0, Arc::new(after.open())).unwrap();
        write(&mut engine, 2);
        for (medium, byte) in [(&before, 1), (&after, 2)] {
            let mut found = AlignedBuf::new(4096).unwrap();
            medium.open().read_exact_at(&mut found, 0).unwrap();
            assert!(found.iter().all(|at| *at == byte));
        }
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&old) > 1 {
            assert!(Instant::now() < deadline, "the old descriptor stays open");
            std::thread::yield_now();
        }
    }
}

#[test]
fn dropping_an_engine_gives_pooled_buffers_back() {
    let medium = Medium::file();
    for choice in [EngineChoice::IoUring, EngineChoice::ThreadPool] {
        let Some(mut engine) = engine(vec![Arc::new(medium.open())], choice) else {
            continue;
        };
        let pool = BufferPool::new(1 << 20, 16);
        for token in 0..16 {
            engine.submit(Request {
                operation: Operation::Read,
                device: 0,
                offset: token << 20,
                bytes: 1 << 20,
                buf: pool.take().unwrap().unwrap(),
                token,
            });
        }
        engine.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        drop(engine);
        assert_eq!(pool.available(), 16);
    }
}

#[test]
fn exclusive_open_names_a_device_in_use() {
    let Some(medium) = Medium::looped(512) else {
        return;
    };
    let options = DeviceOptions {
        exclusive: true,
        ..Default::default()
    };
    let first = Device::open(&medium.path, options).unwrap();
    match Device::open(&medium.path, options) {
        Err(Error::InUse { path }) => assert_eq!(path, medium.path),
        other => panic!("{other:?}"),
    }
    // Without the wish for exclusivity a second opener is welcome: that is how two processes share a device.
    let second = medium.open();
    assert!(first.is_same_as(&second));
}

#[test]
fn what_is_no_device_is_refused_by_name() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let refused = |path: &Path| Device::open(path, DeviceOptions::default()).unwrap_err();
    assert!(matches!(
        refused(directory.path()),
        Error::NotADevice { .. }
    ));
    assert!(matches!(
        refused(Path::new("/dev/null")),
        Error::NotADevice { .. }
    ));
    let missing = directory.path().join("missing");
    assert!(refused(&missing).to_string().contains("missing"));
}

#[test]
fn engine_reports_its_kind_and_threads_can_be_forced() {
    let medium = Medium::file();
    let forced = engine(vec![Arc::new(medium.open())], EngineChoice::ThreadPool).unwrap();
    assert_eq!(forced.kind(), EngineKind::ThreadPool);
    assert!(forced.refusal().is_none());
    let auto = engine(vec![Arc::new(medium.open())], EngineChoice::Auto).unwrap();
    assert_eq!(
        auto.refusal().is_some(),
        auto.kind() == EngineKind::ThreadPool
    );
}
