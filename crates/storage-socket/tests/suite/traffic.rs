//! What streams cost the devices.

use crate::{
    media::patient,
    work::{Ground, PATIENCE, pair, sealed},
};
use std::{
    io::{Read, Write},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};
use storage_socket::{Doorbell, IoStats, Pool, PoolOptions, Role, SlotIndex, StreamOptions};

const SLOT: SlotIndex = SlotIndex(2);
const PIECES: u64 = 40;

/// Both ends; each rings the other, if they ring at all.
fn ends(ground: &Ground, doorbell: Doorbell) -> [Pool; 2] {
    let slots = [SLOT];
    let coordinator = Role::Coordinator {
        slots: slots.into(),
    };
    let member = Role::Member {
        slots: slots.into(),
    };
    let others = [(); 2].map(|()| Arc::new(OnceLock::<Pool>::new()));
    let opened = [(coordinator, &others[1]), (member, &others[0])].map(|(role, other)| {
        let mut options = PoolOptions::new(role, "host", &ground.locks());
        let other = other.clone();
        options.doorbell = Some(Arc::new(move |slot| {
            if let Some(other) = other.get() {
                other.rang(slot);
            }
        }));
        let pool = Pool::open(&ground.devices, options).unwrap();
        pool.wait_ready(PATIENCE).unwrap();
        pool
    });
    for (pool, at) in opened.iter().zip(&others) {
        at.set(pool.clone()).unwrap();
        pool.set_doorbell(SLOT, doorbell);
    }
    opened
}

fn moved(pools: &[Pool; 2]) -> u64 {
    let moved = |stats: IoStats| stats.bytes_read + stats.bytes_written;
    pools.iter().map(|pool| moved(pool.io_stats())).sum()
}

/// Bytes that the devices move for each byte of a stream whose writer pauses after each frame.
fn cost(doorbell: Doorbell, pause: Duration) -> f64 {
    let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
    let pools = ends(&ground, doorbell);
    let how = StreamOptions {
        window_bytes: 16 << 20,
        ..sealed()
    };
    let (mut accepted, mut connected) = pair(&pools[0], &pools[1], &how);
    let piece = vec![7; connected.payload_bytes_max()];
    let bytes = piece.len() as u64 * PIECES;
    let before = moved(&pools);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PIECES {
                connected.write_all(&piece).unwrap();
                thread::sleep(pause);
            }
        });
        let read = std::io::copy(&mut (&mut accepted).take(bytes), &mut std::io::sink());
        assert_eq!(read.unwrap(), bytes);
    });
    let each = (moved(&pools) - before) as f64 / bytes as f64;
    let (theirs, ours) = (connected.stats(), accepted.stats());
    eprintln!("{doorbell:?}: {each:.3}, {ours:?}, {theirs:?}");
    for pool in &pools {
        pool.close();
    }
    each
}

#[test]
fn devices_carry_little_more_than_each_byte_twice() {
    for doorbell in [Doorbell::Absent, Doorbell::Present] {
        let each = cost(doorbell, Duration::ZERO);
        assert!((2.0..2.5).contains(&each), "{doorbell:?}: {each}");
    }
}

#[test]
fn whoever_is_rung_does_not_look_in_between() {
    let each = cost(Doorbell::Present, Duration::from_millis(10));
    assert!((2.0..2.5).contains(&each), "{each}");
}
