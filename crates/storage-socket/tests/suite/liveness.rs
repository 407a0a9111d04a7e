//! Who counts as dead when nothing is heard through the devices, and who doesn't.

use crate::{
    devices::Freezer,
    media::{directory, options},
    work::{Ground, PATIENCE, checked, pair},
};
use std::{
    io::{Read, Write},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};
use storage_socket::{
    Error, FormatOptions, Pool, PoolOptions, ResetReason, Role, SlotIndex, Timeouts, format,
};

/// A write that hangs is given up long after its writer could count as dead.
fn slow_to_give_up() -> Timeouts {
    let millis = Duration::from_millis;
    Timeouts {
        heartbeat: millis(50),
        dead: millis(2400),
        fence: millis(300),
        io_deadline: millis(2000),
        stale: millis(50),
        claim: millis(100),
        linger: millis(1500),
        route_leave: millis(1000),
    }
}

/// A pool on a file system that can be frozen: counters stand still then, and can still be read.
fn frozen_ground(directory: &tempfile::TempDir) -> Option<(Freezer, Ground)> {
    let freezer = Freezer::new(directory.path())?;
    let devices = vec![freezer.mount.join("device")];
    let how = FormatOptions {
        timeouts: slow_to_give_up(),
        ..options(32 << 20)
    };
    format(&devices, &how).unwrap();
    Some((freezer, Ground::over(devices)))
}

/// Joins, and tells whom it suspects.
fn join(ground: &Ground, role: Role, suspects: Sender<SlotIndex>) -> Pool {
    let mut options = PoolOptions::new(role, "host", &ground.locks());
    options.suspicion = Some(Arc::new(move |slot| {
        // Nobody may be listening.
        let _ = suspects.send(slot);
    }));
    let pool = Pool::open(&ground.devices, options).unwrap();
    pool.wait_ready(PATIENCE).unwrap();
    pool
}

fn both(ground: &Ground) -> [(Pool, Receiver<SlotIndex>); 2] {
    let slots = [SlotIndex(3)];
    let coordinator = Role::Coordinator {
        slots: slots.into(),
    };
    let member = Role::Member {
        slots: slots.into(),
    };
    [coordinator, member].map(|role| {
        let (told, suspects) = channel();
        (join(ground, role, told), suspects)
    })
}

#[test]
fn peer_that_answers_over_the_network_is_not_dead() {
    let directory = directory();
    let Some((freezer, ground)) = frozen_ground(&directory) else {
        return;
    };
    let [(server, suspected), (client, suspects)] = both(&ground);
    let (mut accepted, mut connected) = pair(&server, &client, &checked());
    freezer.set("--freeze");
    // Each suspicion comes after half of the time-out: the third is past it.
    thread::scope(|scope| {
        for (pool, suspects) in [(&server, suspected), (&client, suspects)] {
            scope.spawn(move || {
                for _ in 0..3 {
                    let slot = suspects.recv_timeout(PATIENCE).unwrap();
                    assert_eq!(slot, SlotIndex(3));
                    pool.vouch(slot);
                }
            });
        }
    });
    let members = server.members().unwrap();
    assert!(members[0].alive, "{members:?}");
    freezer.set("--unfreeze");
    connected.write_all(b"after").unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn peer_that_is_silent_everywhere_is_dead() {
    let directory = directory();
    let Some((freezer, ground)) = frozen_ground(&directory) else {
        return;
    };
    let [(server, suspects), (client, _)] = both(&ground);
    let (mut accepted, mut connected) = pair(&server, &client, &checked());
    freezer.set("--freeze");
    assert_eq!(suspects.recv_timeout(PATIENCE).unwrap(), SlotIndex(3));
    let deadline = Instant::now() + PATIENCE;
    while server.members().unwrap()[0].alive {
        assert!(
            Instant::now() < deadline,
            "the member is not taken for dead"
        );
        thread::yield_now();
    }
    for (stream, why) in [
        (&mut accepted, ResetReason::PeerDead),
        (&mut connected, ResetReason::CoordinatorGone),
    ] {
        let error = stream.read(&mut [0; 1]).unwrap_err();
        let found: &Error = error.get_ref().unwrap().downcast_ref().unwrap();
        assert!(
            matches!(found, Error::Reset { reason, .. } if *reason == why),
            "{found}"
        );
    }
    freezer.set("--unfreeze");
}
