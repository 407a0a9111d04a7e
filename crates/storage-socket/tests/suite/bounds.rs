//! What streams take at most, and how they share devices: by counts.

use crate::{
    media::patient,
    work::{Ground, pair, sealed},
};
use std::{io::Write, net::Shutdown, thread, time::Duration};
use storage_socket::{EngineChoice, Stream, StreamOptions};

/// Writes until nothing is taken any more.
fn fill(mut stream: &Stream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(300)));
    let piece = vec![7; stream.payload_bytes_max()];
    let mut taken = 0;
    while stream.write_all(&piece).is_ok() {
        taken += 1;
    }
    taken
}

#[test]
fn buffers_of_streams_whose_readers_stand_still_are_bounded_by_their_options() {
    const STREAMS: usize = 3;
    for devices in [1, 2] {
        let ground = Ground::new(devices, None, 256 << 20, patient()).unwrap();
        let server = ground.coordinator(EngineChoice::Auto);
        let client = ground.member(EngineChoice::Auto);
        for (frame_bytes, depth) in [(1 << 20, 2), (3 << 19, 1), (64 << 10, 4)] {
            let how = StreamOptions {
                frame_bytes,
                depth,
                window_bytes: 6 << 20,
                ..sealed()
            };
            let bound = u64::try_from(how.buffer_bytes_max(devices)).unwrap();
            let ring = how.window_bytes / frame_bytes as u64 * devices as u64;
            let streams: Vec<_> = (0..STREAMS).map(|_| pair(&server, &client, &how)).collect();
            for (accepted, connected) in &streams {
                // Both ways at once: each end has a full ring and all that it reads ahead.
                let taken = thread::scope(|scope| {
                    let other = scope.spawn(|| fill(accepted));
                    [fill(connected), other.join().unwrap()]
                });
                for (end, taken) in [accepted, connected].into_iter().zip(taken) {
                    let buffers = end.stats().buffer_bytes;
                    assert!(buffers <= bound, "{buffers} of {bound}");
                    assert!(taken >= ring, "{taken} frames through a ring of {ring}");
                    assert!(
                        buffers >= ring * frame_bytes as u64,
                        "{buffers}: nothing to bound"
                    );
                }
            }
        }
    }
}

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
