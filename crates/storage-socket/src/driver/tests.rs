//! What a driver does with what comes when it has ended.

use super::*;
use crate::{
    Protection, format::OpenPool, format::format, inbox::Command, listener::Backlog,
    promise::promise,
};
use direct_io::{Access, EngineOptions};
use storage_socket_proto::{
    Cipher, DeviceMask, Epoch, Generation, Grant, Incarnation, ListenOptions, ListenProtection,
    Segment, SegmentGroup, UnitIndex,
};

/// A coordinator's driver on a file, whose thread is the test.
fn driver(directory: &std::path::Path) -> Driver {
    let devices = [directory.join("device")];
    let mut options = crate::FormatOptions::new("test");
    options.slots = 8;
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

#[test]
fn nothing_begins_after_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path());
    let (now, backlog) = (tick(), Arc::new(Backlog::default()));
    let (reply, bound) = promise();
    driver.command(
        now,
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
    let _bound = bound.wait(Duration::ZERO).unwrap().unwrap();
    let grant = grant(Port(5), driver.geometry.data_start().0);
    let accept = |driver: &mut Driver| {
        let (reply, accepted) = promise();
        let options = StreamOptions::new(Protection::Checksum);
        driver.command(
            now,
            Command::Accept {
                grant: Box::new(grant),
                options: Box::new(options),
                reply,
            },
        );
        accepted.wait(Duration::ZERO).unwrap()
    };
    let why = StopReason::Devices("pulled".to_owned());
    driver.apply(now, MachineEvent::Granted(grant));
    assert_eq!(driver.unaccepted.len(), 1);
    driver.apply(now, MachineEvent::Ended(why.clone()));
    let stopped = |error: Option<Error>| match error {
        Some(Error::Stopped { why: found, .. }) => found == why,
        _ => false,
    };
    assert!(stopped(accept(&mut driver).err()));
    driver.apply(now, MachineEvent::Granted(grant));
    assert!(stopped(accept(&mut driver).err()));
    assert!(driver.conns.is_empty() && driver.unaccepted.is_empty());
    assert!(backlog.take_all().is_empty());
}
