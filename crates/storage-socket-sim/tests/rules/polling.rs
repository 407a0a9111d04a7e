//! Rules of polling: who waits is served as soon as the device can, who doesn't costs little.

use crate::bench::{Bench, End, Machine, ends, reads_frame};
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
