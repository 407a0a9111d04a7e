//! What is signed to prove that both hosts see the same storage.
//!
//! Each side writes a challenge of its own to every device and reads the other's there; the MAC over both, under a key
//! exported from the TLS session, proves device by device that what one wrote the other has read, both ways.

use crate::{CodecError, wire};
use uuid::Uuid;

/// Bytes of a challenge.
pub const CHALLENGE_BYTES: usize = 32;
/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;
/// Devices of a pool at most.
pub const DEVICES_MAX: usize = 32;

/// Which side makes a MAC; the two differ, so that neither can be sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// The member that is bound to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The pool.
    pub pool: Uuid,
    /// The member's slot.
    pub slot: u32,
    /// Its incarnation.
    pub incarnation: u64,
    /// The epoch of the coordinator that it sees.
    pub epoch: u64,
}

/// The challenges on one device as one side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The device's index in the pool.
    pub device: u32,
    /// The client's challenge.
    pub client: [u8; CHALLENGE_BYTES],
    /// The server's challenge.
    pub server: [u8; CHALLENGE_BYTES],
}

/// One side's MAC for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The device's index in the pool.
    pub device: u32,
    /// HMAC-SHA256 over [`transcript`].
    pub mac: [u8; MAC_BYTES],
}

/// The bytes under the MAC: a label, the side, the pool, slot u32, incarnation u64, epoch u64, device u32 and both
/// challenges; little-endian, of fixed length throughout.
#[must_use]
pub fn transcript(side: Side, member: Member, seen: Seen) -> Vec<u8> {
    let side: &[u8] = match side {
        Side::Client => b"c",
        Side::Server => b"s",
    };
    [
        b"backlane pool proof 1",
        side,
        member.pool.as_bytes(),
        &member.slot.to_le_bytes(),
        &member.incarnation.to_le_bytes(),
        &member.epoch.to_le_bytes(),
        &seen.device.to_le_bytes(),
        &seen.client,
        &seen.server,
    ]
    .concat()
}

pub(crate) fn to_wire(proofs: &[Proof]) -> Vec<wire::Proof> {
    let proof = |proof: &Proof| wire::Proof {
        device: proof.device,
        mac: proof.mac.to_vec(),
    };
    proofs.iter().map(proof).collect()
}

pub(crate) fn from_wire(proofs: Vec<wire::Proof>) -> Result<Vec<Proof>, CodecError> {
    let bad = CodecError::BadField { field: "proofs" };
    if proofs.len() > DEVICES_MAX {
        return Err(bad);
    }
    let proof = |proof: wire::Proof| {
        let mac = proof.mac.try_into().map_err(|_| bad.clone())?;
        let device = proof.device;
        Ok(Proof { device, mac })
    };
    proofs.into_iter().map(proof).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_fact_changes_the_transcript(
            slot in any::<u32>(), incarnation in any::<u64>(), epoch in any::<u64>(), device in any::<u32>(),
            client in any::<[u8; 32]>(), server in any::<[u8; 32]>(), which in 0..7_usize,
        ) {
            let member = Member { pool: Uuid::from_u128(1), slot, incarnation, epoch };
            let seen = Seen { device, client, server };
            let (mut other, mut others, mut side) = (member, seen, Side::Client);
            match which {
                0 => side = Side::Server,
                1 => other.pool = Uuid::from_u128(2),
                2 => other.slot ^= 1,
                3 => other.incarnation ^= 1 << 63,
                4 => other.epoch ^= 1,
                5 => others.client[31] ^= 1,
                _ => others.server[0] ^= 1,
            }
            prop_assert_ne!(transcript(Side::Client, member, seen), transcript(side, other, others));
        }
    }
}
