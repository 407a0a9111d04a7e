//! What both sides of a session do with the pool: proofs, the data pair's options, and why storage can't be used.

use crate::{
    RouteDown,
    framed::ReadError,
    tls::{KEY_BYTES, Key},
};
use aws_lc_rs::hmac;
use backlane_proto::{
    Reason, Route,
    message::SessionId,
    proof::{CHALLENGE_BYTES, Member, Proof, Seen, Side, transcript},
};
use std::{io, time::Duration};
use storage_socket::{
    Error as PoolError, Pool, Port, Protection, RefusalReason, ResetReason, StreamOptions,
    StreamSecret,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout},
};

/// The storage port that servers listen on.
pub const DESIGNATED_STORAGE_PORT: u16 = 1;

/// How long the parts of the storage route may take, each.
pub(crate) const STORAGE_STEP_WAIT: Duration = Duration::from_secs(10);

/// Challenges of one side by device index; `None` where a device has none.
pub(crate) type Challenges = Vec<Option<[u8; CHALLENGE_BYTES]>>;

/// The designated port's stream is small: its work is to be answered.
const DESIGNATED_FRAME_BYTES: usize = 64 * 1024;
const DESIGNATED_WINDOW_BYTES: u64 = 256 * 1024;

pub(crate) fn designated_port() -> Port {
    Port(DESIGNATED_STORAGE_PORT)
}

/// What the stream on the designated port is made with.
pub(crate) fn designated_options() -> StreamOptions {
    StreamOptions {
        frame_bytes: DESIGNATED_FRAME_BYTES,
        window_bytes: DESIGNATED_WINDOW_BYTES,
        depth: 1,
        ..StreamOptions::new(Protection::Checksum)
    }
}

/// What the data pair is made with: sealed with the secret that TLS gave.
pub(crate) fn data_options(seal: &Key) -> StreamOptions {
    StreamOptions::new(Protection::Aes256Gcm(StreamSecret::new(**seal)))
}

/// One side's proofs for every device on which both challenges were seen.
pub(crate) fn prove(
    key: &Key,
    side: Side,
    member: Member,
    client: &Challenges,
    server: &Challenges,
) -> Vec<Proof> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key[..KEY_BYTES]);
    seen(client, server)
        .map(|seen| {
            let tag = hmac::sign(&key, &transcript(side, member, seen));
            let mut mac = [0; backlane_proto::proof::MAC_BYTES];
            mac.copy_from_slice(tag.as_ref());
            let device = seen.device;
            Proof { device, mac }
        })
        .collect()
}

/// The devices whose proofs of the other side hold.
pub(crate) fn proved(
    key: &Key,
    side: Side,
    member: Member,
    challenges: (&Challenges, &Challenges),
    proofs: &[Proof],
) -> Vec<u32> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key[..KEY_BYTES]);
    let holds = |seen: &Seen| {
        let proof = proofs.iter().find(|proof| proof.device == seen.device);
        proof.is_some_and(|proof| {
            hmac::verify(&key, &transcript(side, member, *seen), &proof.mac).is_ok()
        })
    };
    seen(challenges.0, challenges.1)
        .filter(holds)
        .map(|seen| seen.device)
        .collect()
}

fn seen(client: &Challenges, server: &Challenges) -> impl Iterator<Item = Seen> {
    let pairs = client.iter().zip(server).zip(0..);
    pairs.filter_map(|((client, server), device)| {
        Some(Seen {
            device,
            client: (*client)?,
            server: (*server)?,
        })
    })
}

/// Which end of the data pair greets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    Second,
}

/// Greets over a fresh data pair, so that both sides know that bytes arrive, and of which session.
pub(crate) async fn greet<R, W>(
    turn: Turn,
    session: SessionId,
    from: &mut R,
    to: &mut W,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let exchange = async {
        if turn == Turn::First {
            to.write_all(&session.0).await?;
            to.flush().await?;
        }
        let mut got = SessionId([0; _]);
        from.read_exact(&mut got.0).await?;
        if got != session {
            return Err(io::Error::other("the data pair belongs to another session"));
        }
        if turn == Turn::Second {
            to.write_all(&session.0).await?;
            to.flush().await?;
        }
        Ok(())
    };
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    timeout(STORAGE_STEP_WAIT, exchange)
        .await
        .unwrap_or_else(late)
}

/// Why a pair of this route ended.
pub(crate) fn pair_ended(route: Route, error: &ReadError) -> RouteDown {
    match (route, error) {
        (Route::Storage, ReadError::Io(error)) => stream_failed(error),
        (Route::Storage, error) => RouteDown::new(Reason::StreamReset, error),
        (Route::Network, error) => RouteDown::new(Reason::NetworkDown, error),
    }
}

/// What became of a pair of this route that one of its ends has closed.
pub(crate) fn pair_closed(route: Route, why: impl ToString) -> RouteDown {
    let reason = match route {
        Route::Storage => Reason::StreamReset,
        Route::Network => Reason::NetworkDown,
    };
    RouteDown::new(reason, why)
}

/// Why a stream failed.
pub(crate) fn stream_failed(error: &io::Error) -> RouteDown {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(inner) => pool_failed(inner),
        None if error.kind() == io::ErrorKind::TimedOut => RouteDown::new(Reason::NoAnswer, error),
        None => RouteDown::new(Reason::StreamReset, error),
    }
}

/// Why a pool can't be used.
pub(crate) fn pool_failed(error: &PoolError) -> RouteDown {
    let reason = match error {
        PoolError::SlotsTaken { .. } => Reason::SlotsBusy,
        PoolError::NoSuchSlot { .. } => Reason::SlotRefused,
        PoolError::Foreign { .. } => Reason::OtherPool,
        PoolError::Truncated { .. }
        | PoolError::OtherBlocks { .. }
        | PoolError::MixedBlocks { .. }
        | PoolError::Unfit { .. }
        | PoolError::Geometry(_) => Reason::Geometry,
        PoolError::TimedOut { .. } => Reason::NoAnswer,
        PoolError::Stopped { .. } => Reason::DeviceError,
        PoolError::Refused { reason, .. } => match reason {
            RefusalReason::NoSegments => Reason::NoFreeSegments,
            RefusalReason::NotEnrolled => Reason::SlotRefused,
            RefusalReason::Busy | RefusalReason::ShuttingDown | RefusalReason::NoListener => {
                Reason::CoordinatorBusy
            }
            RefusalReason::NoCommonDevice => Reason::ChallengeNotSeen,
            _ => Reason::Unsupported,
        },
        PoolError::Reset { reason, .. } => match reason {
            ResetReason::PeerDead => Reason::LivenessLost,
            ResetReason::DeviceLost | ResetReason::Medium => Reason::DeviceError,
            ResetReason::CoordinatorGone => Reason::CoordinatorBusy,
            _ => Reason::StreamReset,
        },
        PoolError::ShutDown | PoolError::WrongRole { .. } | PoolError::Usage(_) => {
            Reason::StreamReset
        }
        _ => Reason::PoolNotFound,
    };
    RouteDown::new(reason, error)
}

/// How often the driver is told at most that the other side was heard of: each time wakes it.
const VOUCH_EVERY: Duration = Duration::from_millis(250);

/// Whether the last word to the driver is so old that another is due, which is noted.
pub(crate) fn is_time_to_vouch(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let is_due = last.is_none_or(|last| now.duration_since(last) >= VOUCH_EVERY);
    if is_due {
        *last = Some(now);
    }
    is_due
}

/// Leaves a pool on a thread of its own: it waits for the driver, which a task must not.
pub(crate) fn leave(pool: Pool) {
    let left = std::thread::Builder::new()
        .name("leave-pool".to_owned())
        .spawn(move || pool.close());
    if let Err(error) = left {
        // The pool was dropped with the closure, here: slow, and done.
        tracing::warn!(%error, "no thread to leave the pool on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framed::chunk_bytes;
    use backlane_proto::codec::CHUNK_HEADER_BYTES;
    use uuid::Uuid;
    use zeroize::Zeroizing;

    const MEMBER: Member = Member {
        pool: Uuid::from_u128(5),
        slot: 3,
        incarnation: 7,
        epoch: 9,
    };

    #[test]
    fn each_device_is_proved_by_its_own_challenges_alone() {
        let key = Zeroizing::new([1; KEY_BYTES]);
        let client = vec![Some([1; 32]), Some([2; 32]), None];
        let server = vec![Some([4; 32]), Some([5; 32]), Some([6; 32])];
        let proofs = prove(&key, Side::Client, MEMBER, &client, &server);
        let holds = |key: &Key, side, client: &Challenges, server: &Challenges| {
            proved(key, side, MEMBER, (client, server), &proofs)
        };
        assert_eq!(holds(&key, Side::Client, &client, &server), [0, 1]);
        // One device shows something else to the other side.
        let mut stale = client.clone();
        stale[1] = Some([9; 32]);
        assert_eq!(holds(&key, Side::Client, &stale, &server), [0]);
        // Sent back to its maker, or under another key, nothing holds.
        assert!(holds(&key, Side::Server, &client, &server).is_empty());
        let other = Zeroizing::new([2; KEY_BYTES]);
        assert!(holds(&other, Side::Client, &client, &server).is_empty());
    }

    #[test]
    fn a_device_that_has_changed_is_told_from_one_that_is_missing() {
        let path = std::path::PathBuf::from("/dev/lun7");
        let (found, expected) = (4096, 512);
        for (error, reason) in [
            (
                PoolError::OtherBlocks {
                    path: path.clone(),
                    found,
                    expected,
                },
                Reason::Geometry,
            ),
            (
                PoolError::Truncated {
                    path: path.clone(),
                    found: 512,
                    expected: 4096,
                },
                Reason::Geometry,
            ),
            (
                PoolError::Os {
                    path,
                    action: "open",
                    source: io::ErrorKind::NotFound.into(),
                },
                Reason::PoolNotFound,
            ),
        ] {
            assert_eq!(pool_failed(&error).reason, reason, "{error}");
        }
    }

    #[test]
    fn a_chunk_fills_a_frame() {
        let frame = data_options(&Zeroizing::new([1; KEY_BYTES])).payload_bytes_max();
        let chunk = chunk_bytes(Route::Storage) + CHUNK_HEADER_BYTES;
        assert_eq!(chunk, frame);
    }

    #[tokio::test]
    async fn a_pair_of_another_session_is_not_greeted() {
        let (near, far) = tokio::io::duplex(64);
        let (mut near_from, mut near_to) = tokio::io::split(near);
        let (mut far_from, mut far_to) = tokio::io::split(far);
        let (one, other) = (SessionId([1; _]), SessionId([2; _]));
        let (first, second) = tokio::join!(
            async {
                let greeted = greet(Turn::First, one, &mut near_from, &mut near_to).await;
                drop((near_from, near_to));
                greeted
            },
            async {
                let greeted = greet(Turn::Second, other, &mut far_from, &mut far_to).await;
                drop((far_from, far_to));
                greeted
            },
        );
        assert!(first.is_err() && second.is_err());
    }
}
