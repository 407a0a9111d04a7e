//! How streams share the devices of a pool: by counts.

use crate::{
    media::patient,
    work::{Ground, pair, sealed},
};
use std::{io::Write, net::Shutdown, thread};
use storage_socket::EngineChoice;

#[test]
fn frames_go_to_every_device_in_turn() {
    const DEVICES: usize = 3;
    const FRAMES: u64 = 60;
    let ground = Ground::new(DEVICES, None, 64 << 20, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let (accepted, mut connected) = pair(&server, &client, &sealed());
    let written = || {
        client
            .io_stats_by_device()
            .into_iter()
            .map(|stats| stats.bytes_written)
    };
    let before: Vec<_> = written().collect();
    let sending = thread::spawn(move || {
        let piece = vec![3; connected.payload_bytes_max()];
        for _ in 0..FRAMES {
            connected.write_all(&piece).unwrap();
        }
        connected.shutdown(Shutdown::Write).unwrap();
        connected
    });
    let mut frames = 0;
    while let Some(frame) = accepted.read_frame().unwrap() {
        drop(frame);
        frames += 1;
    }
    assert_eq!(frames, FRAMES);
    let connected = sending.join().unwrap();
    assert_eq!(connected.stats().frames_resent, 0);
    let share = FRAMES / DEVICES as u64 * sealed().frame_bytes as u64;
    for (bytes, before) in written().zip(before) {
        // Beside frames there are control blocks and pages, which are small.
        let more = (bytes - before).checked_sub(share);
        assert!(
            more.is_some_and(|more| more < 1 << 20),
            "{bytes} of {share}"
        );
    }
}
