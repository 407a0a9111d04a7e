//! Memory is bounded by streams and the sizes that they were made with, whatever their users do.

use crate::{
    media::patient,
    work::{Ground, checked, pair},
};
use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};
use storage_socket::{EngineChoice, Stream, StreamOptions};

/// Writes until there is room no more.
fn fill(mut stream: &Stream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(300)));
    let piece = vec![3; stream.payload_bytes_max()];
    let mut written = 0;
    loop {
        match stream.write(&piece) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                return written;
            }
        }
    }
}

#[test]
fn streams_whose_readers_read_nothing_take_no_more_buffers_than_their_rings_and_depths() {
    let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let how = StreamOptions {
        frame_bytes: 256 << 10,
        window_bytes: 2 << 20,
        depth: 2,
        ..checked()
    };
    let most = how.buffer_bytes_max(1) as u64;
    let pairs: Vec<_> = (0..3).map(|_| pair(&server, &client, &how)).collect();
    for (accepted, connected) in &pairs {
        // A ring of eight frames, those that the reader's end holds, and the one that is being filled.
        let written = fill(connected);
        let frames = written.div_ceil(connected.payload_bytes_max());
        assert!((8..=8 + 2 * 2).contains(&frames), "{frames}");
        for end in [accepted, connected] {
            let taken = end.stats().buffer_bytes;
            assert!(0 < taken && taken <= most, "{taken} of {most}");
        }
    }
    // What is taken is used again.
    let (mut accepted, connected) = (&pairs[0].0, &pairs[0].1);
    let before = [accepted, connected].map(|end| end.stats().buffer_bytes);
    let mut sink = vec![0; 8 * accepted.payload_bytes_max()];
    for _ in 0..3 {
        accepted.read_exact(&mut sink).unwrap();
        fill(connected);
    }
    let after = [accepted, connected].map(|end| end.stats().buffer_bytes);
    assert!(
        after.iter().all(|taken| *taken <= most),
        "{before:?} {after:?} {most}"
    );
}
