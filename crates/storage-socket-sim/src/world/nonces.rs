//! No nonce seals twice under one key, however often streams, members and coordinators begin anew.
//!
//! Keys and nonces are the machines' own, and nobody tells them here. They are told by the keystream, which is what was
//! written without what it says: two frames of one keystream were sealed under one key and one nonce, and have to be the
//! same bytes. All streams of a run share one secret, so that it depends on nothing else that keys differ.

use crate::{
    broken::{Broken, Promise},
    device::Written,
};
use std::collections::HashMap;
use storage_socket_proto::FRAME_HEADER_BYTES;

/// Bytes of keystream that tell one from another, as many as a block of the cipher: shorter payloads aren't looked at.
pub(crate) const KEYSTREAM_BYTES: usize = 16;

/// Where the tag stands, at the end of the header: it stands for all bytes of the frame.
const TAG_AT: usize = 112;

/// The tags of all frames that were written, by the beginnings of their keystreams.
#[derive(Debug, Default)]
pub(super) struct Nonces(HashMap<[u8; KEYSTREAM_BYTES], [u8; 16]>);

impl Nonces {
    /// Takes in a sealed frame, whose payload begins with `payload`.
    pub(super) fn check(
        &mut self,
        frame: &Written,
        payload: [u8; KEYSTREAM_BYTES],
    ) -> Result<(), Broken> {
        let (header, sealed) = frame.split_at(FRAME_HEADER_BYTES);
        let mut keystream = payload;
        for (byte, sealed) in keystream.iter_mut().zip(sealed) {
            *byte ^= sealed;
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&header[TAG_AT..]);
        if *self.0.entry(keystream).or_insert(tag) == tag {
            return Ok(());
        }
        let what = "a nonce has sealed two frames under one key";
        Err(Promise::Nonces.broken(what))
    }
}
