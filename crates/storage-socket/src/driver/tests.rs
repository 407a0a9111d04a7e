//! What a driver does with what comes when it has ended, and when it has slept.

use super::*;
use crate::{
    Protection,
    format::OpenPool,
    format::format,
    inbox::Command,
    listener::{Backlog, Bound},
    promise::promise,
};
use direct_io::{Access, AlignedBuf, EngineOptions};
use storage_socket_proto::{
    BLOCK_BYTES, Cipher, DeviceMask, Epoch, Generation, Grant, Incarnation, IoId, ListenOptions,
    ListenProtection, Segment, SegmentGroup, Sequence, UnitIndex,
};

/// A coordinator's driver on a file, whose thread is the test.
pub(super) fn driver(directory: &std::path::Path, timeouts: Timeouts) -> Driver {
    let devices = [directory.join("device")];
    let mut options = crate::FormatOptions::new("test");
    options.slots = 8;
    options.timeouts = timeouts;
    options.file_bytes = Some(16 << 20);
    format(&devices, &options).unwrap();
    let opened = OpenPool::open(&devices, Access::ReadWrite, None).unwrap();
    let engine = Engine::new(opened.devices.clone(), EngineOptions::default()).unwrap();
    let inbox = Arc::new(Inbox::new(
        opened.geometry.pool(),
        opened.devices.len(),
        engine.waker(),
    ));
    let parts = Parts {
        geometry: Arc::new(opened.geometry),
        identity: Identity::Coordinator(Epoch(7)),
        predecessor: None,
        host_name: "host".to_owned(),
        role: Role::Coordinator {
            slots: [SlotIndex(0)].into(),
        },
        polling: Polling::Adaptive,
        doorbell: None,
        suspicion: None,
        devices: opened.devices,
    };
    Driver::new(parts, engine, inbox)
}

/// A grant whose segments begin at a unit.
pub(crate) fn grant(port: Port, start: u32) -> Grant {
    let segment = |first| Segment {
        first: UnitIndex(first),
        units: UnitCount(9),
    };
    Grant {
        connection: ConnectionId([1; 16]),
        port,
        slot: SlotIndex(0),
        incarnation: Incarnation(3),
        epoch: Epoch(7),
        group: SegmentGroup {
            generation: Generation(1),
            devices: DeviceMask::only(DeviceIndex(0)),
            cipher: Cipher::Checksum,
            frame_units: UnitCount(1),
            to_coordinator: segment(start),
            to_member: segment(start + 9),
        },
    }
}

/// Listens on port 5, and hands over what the listener keeps.
fn bind(driver: &mut Driver, backlog: &Arc<Backlog>) -> Bound {
    let (reply, bound) = promise();
    driver.command(
        tick(),
        Command::Bind {
            port: Port(5),
            options: ListenOptions {
                backlog: 8,
                protection: ListenProtection::Checksum,
            },
            backlog: backlog.clone(),
            reply,
        },
    );
    bound.wait(Duration::ZERO).unwrap().unwrap()
}

fn accept(driver: &mut Driver, grant: Grant) -> Result<OwnedFlow, Error> {
    let (reply, accepted) = promise();
    let options = StreamOptions::new(Protection::Checksum);
    driver.command(
        tick(),
        Command::Accept {
            grant: Box::new(grant),
            options: Box::new(options),
            reply,
        },
    );
    accepted.wait(Duration::ZERO).unwrap()
}

/// A listener, and a stream that it was asked for.
pub(super) fn connected(driver: &mut Driver) -> (Bound, OwnedFlow) {
    let bound = bind(driver, &Arc::default());
    let grant = grant(Port(5), driver.geometry.data_start().0);
    driver.apply(tick(), MachineEvent::Granted(grant));
    let flow = accept(driver, grant).unwrap();
    (bound, flow)
}

#[test]
fn nothing_begins_after_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path(), Timeouts::default());
    let (now, backlog) = (tick(), Arc::new(Backlog::default()));
    let _bound = bind(&mut driver, &backlog);
    let grant = grant(Port(5), driver.geometry.data_start().0);
    let why = StopReason::Devices("pulled".to_owned());
    driver.apply(now, MachineEvent::Granted(grant));
    assert_eq!(driver.unaccepted.len(), 1);
    driver.apply(now, MachineEvent::Ended(why.clone()));
    let stopped = |error: Option<Error>| match error {
        Some(Error::Stopped { why: found, .. }) => found == why,
        _ => false,
    };
    assert!(stopped(accept(&mut driver, grant).err()));
    driver.apply(now, MachineEvent::Granted(grant));
    assert!(stopped(accept(&mut driver, grant).err()));
    assert!(driver.conns.is_empty() && driver.unaccepted.is_empty());
    assert!(backlog.take_all().is_empty());
}

#[test]
fn a_driver_that_does_not_answer_has_not_ended() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path(), Timeouts::default());
    let inbox = driver.inbox.clone();
    let slow = inbox.unanswered("listening");
    assert!(matches!(slow, Error::TimedOut { what: "listening" }));
    drop(driver);
    let over = inbox.unanswered("listening");
    assert!(matches!(over, Error::Stopped { .. }));
}

#[test]
fn after_a_long_sleep_nothing_is_written_before_the_fence_is_down() {
    let millis = Duration::from_millis;
    let timeouts = Timeouts {
        heartbeat: millis(50),
        fence: millis(500),
        stale: millis(50),
        claim: millis(50),
        ..Timeouts::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path(), timeouts);
    while !driver.ready.is_ready {
        assert_eq!(driver.turn(None), Turn::Goes);
    }
    let (_bound, flow) = connected(&mut driver);
    assert_eq!(driver.turn(Some(Duration::ZERO)), Turn::Goes);
    let frame = vec![7u8; flow.payload_bytes_max];
    assert_eq!(flow.try_write(&frame).unwrap(), frame.len());

    std::thread::sleep(timeouts.fence * 2);
    let now = tick();
    let landed = Finished {
        task: Task {
            owner: Owner::Connection(flow.addr.connection),
            id: IoId(u64::MAX),
            kind: Kind::ReadFrame(Sequence(0)),
            device: DeviceIndex(0),
            lba: Lba(0),
            bytes: WORTH_STARTING_BYTES,
            started: now,
        },
        buf: AlignedBuf::new(BLOCK_BYTES).unwrap(),
        result: Ok(()),
        is_late: false,
    };
    let written = driver.inbox.io.stats();
    driver.read_on(now, &[landed]).unwrap();
    assert_eq!(driver.inbox.io.stats(), written);
    driver.run_timers(now);
    driver.pump(now);
    assert_eq!(driver.fence, Fence::Closed);
}
