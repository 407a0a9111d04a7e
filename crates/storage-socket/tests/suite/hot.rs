//! Pools that poll without a pause: whoever waits drives, and everybody else is served all the same.

use crate::{
    media::{hasty, patient},
    work::{Ground, PATIENCE, exchange, pair, sealed},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};
use storage_socket::{EngineChoice, Polling, Pool, PoolOptions, Role, SlotIndex};

const SLOT: SlotIndex = SlotIndex(1);

fn ends(ground: &Ground, engine: EngineChoice) -> [Pool; 2] {
    let slots = [SLOT];
    let coordinator = Role::Coordinator {
        slots: slots.into(),
    };
    let member = Role::Member {
        slots: slots.into(),
    };
    [coordinator, member].map(|role| {
        let mut options = PoolOptions::new(role, "host", &ground.locks());
        options.engine = engine;
        options.polling = Polling::Hot;
        let pool = Pool::open(&ground.devices, options).unwrap();
        pool.wait_ready(PATIENCE).unwrap();
        pool
    })
}

#[test]
fn messages_go_to_and_fro_and_bulk_goes_both_ways() {
    for engine in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
        let [server, client] = ends(&ground, engine);
        let (mut accepted, mut connected) = pair(&server, &client, &sealed());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut message = [0; 4096];
                for _ in 0..200 {
                    accepted.read_exact(&mut message).unwrap();
                    accepted.write_all(&message).unwrap();
                }
            });
            for number in 0..200 {
                let mut answer = [0; 4096];
                connected.write_all(&[number; 4096]).unwrap();
                connected.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [number; 4096]);
            }
        });
        thread::scope(|scope| {
            scope.spawn(|| exchange(&accepted, ("server", "client"), 16 << 20));
            exchange(&connected, ("client", "server"), 16 << 20);
        });
    }
}

#[test]
fn a_reader_that_drives_keeps_nobody_waiting() {
    let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
    let [server, client] = ends(&ground, EngineChoice::Auto);
    let (mut idle, kept) = pair(&server, &client, &sealed());
    thread::scope(|scope| {
        // Nothing comes on this one until all else is done.
        let waiting = scope.spawn(|| idle.read(&mut [0; 8]).unwrap());
        for _ in 0..20 {
            // Each of these is a question to the driver that the reader has, or a stream that it serves.
            assert_eq!(server.members().unwrap().len(), 1);
            let (mut accepted, mut connected) = pair(&server, &client, &sealed());
            connected.write_all(b"question").unwrap();
            let mut question = [0; 8];
            accepted.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"question");
        }
        drop(kept);
        assert_eq!(waiting.join().unwrap(), 0);
    });
}

#[test]
fn a_reader_that_drives_gives_up_in_time_and_hears_of_the_end() {
    let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
    let [server, client] = ends(&ground, EngineChoice::Auto);
    let (mut accepted, _connected) = pair(&server, &client, &sealed());
    accepted.set_read_timeout(Some(Duration::from_millis(50)));
    for _ in 0..3 {
        let error = accepted.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    accepted.set_read_timeout(None);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| accepted.read(&mut [0; 8]));
        server.close();
        // Whichever of the two it hears of first: its end, or that of the pool.
        assert!(matches!(waiting.join().unwrap(), Ok(0) | Err(_)));
    });
    client.close();
}

#[test]
fn a_reader_that_finds_all_it_reads_keeps_nobody_waiting() {
    const BYTES: usize = 8 << 20;
    let ground = Ground::new(1, None, 64 << 20, hasty()).unwrap();
    let [server, client] = ends(&ground, EngineChoice::Auto);
    let (mut accepted, mut connected) = pair(&server, &client, &sealed());
    thread::scope(|scope| {
        scope.spawn(move || {
            // By then the reader drives.
            thread::sleep(Duration::from_millis(50));
            accepted.write_all(&vec![7; BYTES]).unwrap();
            accepted.shutdown(Shutdown::Write).unwrap();
            accepted.wait_finished(PATIENCE).unwrap();
        });
        // The frame that came first lasts for longer than this.
        let (since, long) = (Instant::now(), hasty().dead * 2);
        let mut count = 0;
        while since.elapsed() < long {
            count += connected.read(&mut [0; 64]).unwrap();
            thread::sleep(Duration::from_micros(500));
        }
        assert!(server.members().unwrap()[0].alive);
        let mut rest = Vec::new();
        count += connected.read_to_end(&mut rest).unwrap();
        assert_eq!(count, BYTES);
    });
}
