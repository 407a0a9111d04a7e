//! Messages of a session: no input makes a decoder panic.

use backlane_proto::{
    ChunkHeader,
    codec::{CHUNK_HEADER_BYTES, LENGTH_BYTES, message_bytes},
    message::{Event, FromClient, FromServer, Opened, Opening},
};

/// The first byte picks the message; the rest is its bytes.
pub fn message(data: &[u8]) {
    let Some((&pick, data)) = data.split_first() else {
        return;
    };
    match pick % 7 {
        0 => drop(Opening::decode(data)),
        1 => drop(Opened::decode(data)),
        2 => drop(FromClient::decode(data)),
        3 => drop(FromServer::decode(data)),
        4 => drop(Event::decode(data)),
        5 => {
            if let Some(raw) = data.first_chunk::<CHUNK_HEADER_BYTES>()
                && let Ok(header) = ChunkHeader::decode(*raw)
            {
                let again = ChunkHeader::decode(header.encode());
                assert!(again.is_ok_and(|again| again == header));
            }
        }
        _ => {
            if let Some(raw) = data.first_chunk::<LENGTH_BYTES>() {
                drop(message_bytes(*raw));
            }
        }
    }
}
