//! Messages and chunks on async byte streams.
//!
//! A length is checked before memory is taken for what it announces; a message that has begun must end in time, so that
//! a peer that dribbles holds nothing for long.

use crate::pace::Pace;
use backlane_proto::{
    ChunkFlag, ChunkHeader, CodecError, Route,
    codec::{self, CHUNK_HEADER_BYTES, LENGTH_BYTES},
};
use bytes::{Bytes, BytesMut};
use std::{future::Future, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};

/// Silence after which a peer on the control connection is given up.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(60);
/// Silence after which it is given up even though its process writes signs of life to the shared storage.
pub(crate) const DEAD_ALL_THE_SAME_AFTER: Duration = Duration::from_secs(300);
/// Idle time after which a sign of life is sent.
pub(crate) const PING_AFTER: Duration = Duration::from_secs(10);
/// Chunks that wait in front of a data pair's writer; more would only let large bodies get ahead of small ones.
pub(crate) const CHUNKS_QUEUED_MAX: usize = 2;

/// Chunks of bodies that go by network: short enough that small bodies don't wait long.
const NETWORK_CHUNK_BYTES: usize = 128 * 1024;

/// Chunks of bodies that go by storage: with its header, one fills a frame of the data pair. One byte more would take a
/// second frame, and whole frames would all go to the same devices of a stripe.
const STORAGE_CHUNK_BYTES: usize = (1 << 20) - 128 - CHUNK_HEADER_BYTES;

/// The chunks that are sent on a route, in bytes.
pub(crate) const fn chunk_bytes(route: Route) -> usize {
    match route {
        Route::Network => NETWORK_CHUNK_BYTES,
        Route::Storage => STORAGE_CHUNK_BYTES,
    }
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the connection was closed")]
    Ended,
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// One part of a body on its way out.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) header: ChunkHeader,
    pub(crate) payload: Bytes,
}

impl Chunk {
    /// A body given up.
    pub(crate) fn abort(call: backlane_proto::CallId) -> Self {
        Self {
            header: ChunkHeader {
                call,
                bytes: 0,
                flag: ChunkFlag::Abort,
            },
            payload: Bytes::new(),
        }
    }
}

/// Chunks that wait in front of a pair's writer.
pub(crate) fn queued(chunks: &mpsc::Sender<Chunk>) -> usize {
    chunks.max_capacity() - chunks.capacity()
}

/// Reads a message, waiting at most `patience` for it.
pub(crate) async fn read_message<R>(from: &mut R, patience: Duration) -> Result<Vec<u8>, ReadError>
where
    R: AsyncRead + Unpin,
{
    let read = async {
        let mut prefix = [0; LENGTH_BYTES];
        read_start(from, &mut prefix).await?;
        read_rest(from, prefix).await
    };
    let silent = |_| Err(ReadError::Silent(patience));
    timeout(patience, read).await.unwrap_or_else(silent)
}

/// Reads a message. A peer that is silent for long is asked for on another way before it is given up: as long as
/// `lives` says that it shows signs of life there, it may be silent here for some time longer.
pub(crate) async fn read_message_while<R, F>(
    from: &mut R,
    lives: impl Fn() -> F,
) -> Result<Vec<u8>, ReadError>
where
    R: AsyncRead + Unpin,
    F: Future<Output = bool>,
{
    let mut prefix = [0; LENGTH_BYTES];
    let (mut waited, mut step) = (Duration::ZERO, DEAD_AFTER);
    // A read that is given up has taken nothing.
    let read = loop {
        match timeout(step, from.read(&mut prefix)).await {
            Ok(read) => break read?,
            Err(_) => waited += step,
        }
        if waited >= DEAD_ALL_THE_SAME_AFTER || !lives().await {
            return Err(ReadError::Silent(waited));
        }
        step = PING_AFTER;
    };
    if read == 0 {
        return Err(ReadError::Ended);
    }
    let rest = async {
        from.read_exact(&mut prefix[read..]).await?;
        read_rest(from, prefix).await
    };
    let silent = |_| Err(ReadError::Silent(DEAD_AFTER));
    timeout(DEAD_AFTER, rest).await.unwrap_or_else(silent)
}

async fn read_rest<R>(from: &mut R, prefix: [u8; LENGTH_BYTES]) -> Result<Vec<u8>, ReadError>
where
    R: AsyncRead + Unpin,
{
    let mut message = vec![0; codec::message_bytes(prefix)?];
    from.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message and flushes it.
pub(crate) async fn write_message<W>(to: &mut W, message: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut framed = BytesMut::new();
    codec::frame(message, &mut framed).map_err(io::Error::other)?;
    to.write_all(&framed).await?;
    to.flush().await
}

/// Reads a chunk's header.
pub(crate) async fn read_chunk_header<R>(from: &mut R) -> Result<ChunkHeader, ReadError>
where
    R: AsyncRead + Unpin,
{
    let mut raw = [0; CHUNK_HEADER_BYTES];
    read_start(from, &mut raw).await?;
    Ok(ChunkHeader::decode(raw)?)
}

/// Reads a chunk's payload behind what `into` holds.
pub(crate) async fn read_payload<R>(
    from: &mut R,
    bytes: u32,
    into: &mut BytesMut,
) -> Result<(), ReadError>
where
    R: AsyncRead + Unpin,
{
    into.reserve(bytes as usize);
    let mut limited = from.take(u64::from(bytes));
    while limited.limit() > 0 {
        if limited.read_buf(into).await? == 0 {
            return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(())
}

/// Writes the chunks that come at this pace, flushing whenever none waits, until their senders are gone; tells `sent` of
/// each.
pub(crate) async fn write_chunks<W>(
    mut to: W,
    mut chunks: mpsc::Receiver<Chunk>,
    pace: &Pace,
    sent: impl Fn(ChunkHeader),
) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(chunk) = chunks.recv().await {
        let wait = pace.wait(u64::from(chunk.header.bytes));
        if !wait.is_zero() {
            to.flush().await?;
            sleep(wait).await;
        }
        to.write_all(&chunk.header.encode()).await?;
        to.write_all(&chunk.payload).await?;
        sent(chunk.header);
        if chunks.is_empty() {
            to.flush().await?;
        }
    }
    to.flush().await?;
    to.shutdown().await
}

/// Reads what a connection may also end before.
async fn read_start<R>(from: &mut R, into: &mut [u8]) -> Result<(), ReadError>
where
    R: AsyncRead + Unpin,
{
    match from.read(into).await? {
        0 => Err(ReadError::Ended),
        read => {
            from.read_exact(&mut into[read..]).await?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_proto::CallId;

    #[tokio::test]
    async fn giant_length_is_refused_before_its_bytes_come() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let got = read_message(&mut near, DEAD_AFTER).await;
        assert!(matches!(got, Err(ReadError::Codec(_))), "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_dribbles_is_given_up() {
        let (mut near, mut far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            far.write_all(&8_u32.to_le_bytes()).await.unwrap();
            loop {
                tokio::time::sleep(DEAD_AFTER / 3).await;
                if far.write_all(&[0]).await.is_err() {
                    return;
                }
            }
        });
        let got = read_message(&mut near, DEAD_AFTER).await;
        assert!(matches!(got, Err(ReadError::Silent(_))), "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_given_up_only_when_it_is_silent_on_the_other_way_too() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let lives = std::cell::Cell::new(3);
        let ask = || async {
            lives.set(lives.get() - 1);
            lives.get() > 0
        };
        let got = read_message_while(&mut near, ask).await;
        let silent = DEAD_AFTER + PING_AFTER * 2;
        assert!(
            matches!(got, Err(ReadError::Silent(waited)) if waited == silent),
            "{got:?}"
        );
        // Signs of life elsewhere don't make up for words for ever.
        let got = read_message_while(&mut near, || async { true }).await;
        assert!(
            matches!(got, Err(ReadError::Silent(waited)) if waited == DEAD_ALL_THE_SAME_AFTER),
            "{got:?}"
        );
        // What comes in the meantime is read whole, in whatever pieces it comes.
        tokio::spawn(async move {
            for byte in [3, 0, 0, 0, 7, 8, 9] {
                tokio::time::sleep(PING_AFTER / 2).await;
                far.write_all(&[byte]).await.unwrap();
            }
        });
        let got = read_message_while(&mut near, || async { true }).await;
        assert_eq!(got.unwrap(), [7, 8, 9]);
    }

    #[tokio::test]
    async fn a_small_body_overtakes_the_rest_of_a_large_one() {
        let (to, mut from) = tokio::io::duplex(256);
        let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED_MAX);
        tokio::spawn(async move { write_chunks(to, receiver, &Pace::free(), |_| {}).await });
        let send = |sender: mpsc::Sender<Chunk>, call: u64, chunks: u64| async move {
            for n in 1..=chunks {
                let flag = if n == chunks {
                    ChunkFlag::Last
                } else {
                    ChunkFlag::More
                };
                let header = ChunkHeader {
                    call: CallId(call),
                    bytes: 512,
                    flag,
                };
                let payload = Bytes::from(vec![7; 512]);
                sender.send(Chunk { header, payload }).await.unwrap();
            }
        };
        tokio::spawn(send(sender.clone(), 1, 50));
        let first = read_chunk_header(&mut from).await.unwrap();
        assert_eq!(first.call, CallId(1));
        tokio::spawn(send(sender, 2, 1));
        tokio::task::yield_now().await;
        let mut before_small = 1;
        let mut header = first;
        while header.call != CallId(2) {
            read_payload(&mut from, header.bytes, &mut BytesMut::new())
                .await
                .unwrap();
            header = read_chunk_header(&mut from).await.unwrap();
            before_small += 1;
        }
        assert!(
            before_small < 10,
            "{before_small} chunks of the large body came first"
        );
    }
}
