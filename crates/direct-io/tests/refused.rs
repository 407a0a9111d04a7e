//! A host that forbids io_uring, as containers do: by a filter that holds for one thread.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "a filter is installed by a raw system call; a test fails by panicking"
)]

use direct_io::{
    AlignedBuf, Device, DeviceOptions, Engine, EngineChoice, EngineKind, EngineOptions, Error,
    Operation, Request,
};
use std::{sync::Arc, thread};

/// From here on this thread, and threads that it starts, get EPERM for io_uring_setup.
fn forbid_io_uring() {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let eperm = u32::try_from(libc::EPERM).unwrap();
    let mut is_setup = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number);
    is_setup.jf = 1;
    let mut filter = [
        // The number of the system call is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        is_setup,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | eperm),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0);
    // SAFETY: `program` and the filter behind it live until the call returns, and the kernel copies them.
    let filtered = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(filtered, 0);
}

#[test]
fn engine_falls_back_to_threads_and_tells_why() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("device");
    let create = DeviceOptions {
        create: true,
        ..Default::default()
    };
    let mut device = Device::open(&path, create).unwrap();
    device.allocate(1 << 20).unwrap();
    let devices = vec![Arc::new(device)];
    let forbidden = thread::spawn(move || {
        forbid_io_uring();
        let options = |choice| EngineOptions {
            choice,
            ..Default::default()
        };
        let demanded = Engine::new(devices.clone(), options(EngineChoice::IoUring));
        assert!(matches!(demanded, Err(Error::RingRefused { .. })));
        let mut engine = Engine::new(devices, options(EngineChoice::Auto)).unwrap();
        assert_eq!(engine.kind(), EngineKind::ThreadPool);
        let refusal = engine.refusal().unwrap();
        assert_eq!(refusal.kind(), std::io::ErrorKind::PermissionDenied);
        engine.submit(Request {
            operation: Operation::Write,
            device: 0,
            offset: 0,
            bytes: 4096,
            buf: AlignedBuf::new(4096).unwrap(),
            token: 7,
        });
        let mut done = Vec::new();
        while done.is_empty() {
            engine.wait(None, &mut done).unwrap();
        }
        done.remove(0).result.unwrap();
    });
    forbidden.join().unwrap();
}
