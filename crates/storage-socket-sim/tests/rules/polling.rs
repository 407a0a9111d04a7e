//! Rules of polling: who waits is served as soon as the device can, who doesn't costs little.

use crate::bench::{Bench, End, Machine, ends, reads_frame, writes_frame};
use std::time::Duration;
use storage_socket_proto::{Doorbell, IoRequest, Polling};

/// Performs what an end asks for now, once; returns what it was.
fn turn(bench: &mut Bench, end: &mut End) -> Vec<IoRequest> {
    let requests: Vec<_> = std::iter::from_fn(|| end.poll_io(bench.now)).collect();
    for request in &requests {
        let bytes = match end.bytes(request) {
            Some(bytes) => {
                bench.devices[0].put(request.lba.0, &bytes);
                bytes
            }
            None => bench.devices[0].bytes(request.lba.0, request.blocks.0),
        };
        end.complete(bench.now, request, Ok(bytes));
    }
    end.settle(bench.now);
    requests
}

#[test]
fn a_frame_that_is_waited_for_without_a_pause_is_looked_for_as_soon_as_the_last_look_ended() {
    for doorbell in [Doorbell::Present, Doorbell::Absent] {
        let (mut bench, mut a, mut b) = ends(1, 5, doorbell);
        while !turn(&mut bench, &mut b).is_empty() {}
        b.connection.set_polling(bench.now, Polling::Hot);
        for _ in 0..3 {
            let looks = turn(&mut bench, &mut b);
            assert!(looks.iter().any(|look| reads_frame(look, 0)), "{looks:?}");
        }
        assert!(a.send(bench.now, b"news"));
        turn(&mut bench, &mut a);
        turn(&mut bench, &mut b);
        turn(&mut bench, &mut b);
        assert_eq!(b.received, [b"news"], "announced or not");
        b.connection.set_polling(bench.now, Polling::Adaptive);
        let rest = Duration::from_micros(50);
        turn(&mut bench, &mut b);
        bench.now = bench.now + rest;
        turn(&mut bench, &mut b);
        assert!(turn(&mut bench, &mut b).is_empty(), "nobody waits");
    }
}

/// Lets both ends say what they have to.
fn converse(bench: &mut Bench, ends: &mut [&mut End], span: Duration) {
    let until = bench.now + span;
    while bench.now < until {
        bench.now = bench.now + Duration::from_millis(1);
        for end in &mut *ends {
            end.handle_timeout(bench.now);
            while !turn(bench, end).is_empty() {}
        }
    }
}

#[test]
fn a_message_that_is_rung_for_takes_one_write_and_one_read() {
    let (mut bench, mut a, mut b) = ends(1, 40, Doorbell::Present);
    converse(&mut bench, &mut [&mut a, &mut b], Duration::from_secs(3));
    let rung = |end: &mut End| end.connection.poll_doorbell();
    let _ = (rung(&mut a), rung(&mut b));
    assert!(a.send(bench.now, &[7; 4096]));
    let writes = turn(&mut bench, &mut a);
    assert!(matches!(&writes[..], [write] if writes_frame(write, 0)));
    assert!(rung(&mut a), "as soon as it was written");
    b.connection.handle_doorbell(bench.now);
    let reads = turn(&mut bench, &mut b);
    assert_eq!(
        reads.iter().filter(|read| reads_frame(read, 0)).count(),
        1,
        "{reads:?}"
    );
    assert_eq!(b.received, [[7; 4096]]);
    // The announcement and the credit follow, and nobody is rung for them.
    while !turn(&mut bench, &mut b).is_empty() {}
    converse(
        &mut bench,
        &mut [&mut a, &mut b],
        Duration::from_millis(500),
    );
    assert!(!rung(&mut a) && !rung(&mut b));
}

#[test]
fn whoever_was_rung_and_finds_nothing_looks_again_soon_and_then_once_a_heartbeat() {
    let (mut bench, mut a, mut b) = ends(1, 40, Doorbell::Present);
    converse(&mut bench, &mut [&mut a, &mut b], Duration::from_secs(3));
    b.connection.handle_doorbell(bench.now);
    turn(&mut bench, &mut b);
    let before = b.connection.stats();
    converse(&mut bench, &mut [&mut b], Duration::from_millis(40));
    let soon = b.connection.stats().control_reads - before.control_reads;
    assert!((5..=15).contains(&soon), "{soon}");
    converse(&mut bench, &mut [&mut b], Duration::from_secs(10));
    let later = b.connection.stats().control_reads - before.control_reads - soon;
    assert!((9..=11).contains(&later), "{later}");
}
