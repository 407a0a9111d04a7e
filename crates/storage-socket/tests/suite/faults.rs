//! Devices that go away under a running stream.

use crate::{
    media::hasty,
    work::{Ground, PATIENCE, pair, sealed},
};
use std::{
    fs::OpenOptions,
    io::{Read, Write},
};
use storage_socket::{EngineChoice, Error, ResetReason};

#[test]
fn device_that_shrinks_away_resets_the_stream_and_is_named() {
    for engine in [EngineChoice::Auto, EngineChoice::ThreadPool] {
        let ground = Ground::new(1, None, 64 << 20, hasty()).unwrap();
        let server = ground.coordinator(engine);
        let client = ground.member(engine);
        let (mut accepted, mut connected) = pair(&server, &client, &sealed());
        connected.write_all(b"before").unwrap();
        accepted.read_exact(&mut [0; 6]).unwrap();
        // Reads past the end of a file come back short, as those of a disk that was pulled.
        let file = OpenOptions::new()
            .write(true)
            .open(&ground.devices[0])
            .unwrap();
        file.set_len(0).unwrap();
        accepted.set_read_timeout(Some(PATIENCE));
        let error = accepted.read(&mut [0; 1]).unwrap_err();
        let found: &Error = error.get_ref().unwrap().downcast_ref().unwrap();
        match found {
            Error::Reset {
                reason: ResetReason::DeviceLost,
                ..
            }
            | Error::Stopped { .. } => {}
            other => panic!("{other}"),
        }
    }
}
