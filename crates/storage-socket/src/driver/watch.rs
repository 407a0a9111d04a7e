//! Watches the machine's transfers for challenges: when a device holds ours, and when the peer's was read afresh.

use super::io::{Kind, Task};
use crate::{inbox::PeerChallenges, promise::Fulfil};
use std::{collections::BTreeSet, time::Duration};
use storage_socket_proto::{Challenge, DeviceIndex, Geometry, Lba, SlotIndex, Tick};

/// After this a question is answered with what is known: a device may be lost.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Watches {
    own: Vec<OwnWatch>,
    peer: Vec<PeerWatch>,
}

/// Waits until every device holds a challenge of ours.
struct OwnWatch {
    slot: SlotIndex,
    /// The machine was given them; a coordinator's takes them only for a member that it has seen.
    is_set: bool,
    challenges: Vec<Challenge>,
    written: Vec<bool>,
    until: Tick,
    reply: Fulfil<Vec<bool>>,
}

/// Waits until the peer's fixed blocks were read from every device.
struct PeerWatch {
    slot: SlotIndex,
    since: Tick,
    until: Tick,
    unread: BTreeSet<(DeviceIndex, Lba)>,
    reply: Fulfil<PeerChallenges>,
}

impl Watches {
    pub(crate) fn watch_own(
        &mut self,
        now: Tick,
        (slot, challenges): (SlotIndex, Vec<Challenge>),
        reply: Fulfil<Vec<bool>>,
    ) {
        self.own.push(OwnWatch {
            slot,
            is_set: false,
            written: vec![false; challenges.len()],
            challenges,
            until: now + PATIENCE,
            reply,
        });
    }

    /// `page` is where the peer's copy A lies; B follows it.
    pub(crate) fn watch_peer(
        &mut self,
        now: Tick,
        geometry: &Geometry,
        (slot, page): (SlotIndex, Lba),
        reply: Fulfil<PeerChallenges>,
    ) {
        let unread = geometry
            .all_devices()
            .iter()
            .flat_map(|device| [(device, page), (device, Lba(page.0 + 1))])
            .collect();
        self.peer.push(PeerWatch {
            slot,
            since: now,
            until: now + PATIENCE,
            unread,
            reply,
        });
    }

    /// The challenges that the machine can be given now.
    pub(crate) fn take_unset(
        &mut self,
        has_peer: impl Fn(SlotIndex) -> bool,
    ) -> Vec<(SlotIndex, Vec<Challenge>)> {
        self.own
            .iter_mut()
            .filter(|watch| !watch.is_set && has_peer(watch.slot))
            .map(|watch| {
                watch.is_set = true;
                (watch.slot, watch.challenges.clone())
            })
            .collect()
    }

    /// A transfer of the machine went well.
    pub(crate) fn note(&mut self, task: &Task, bytes: &[u8]) {
        let device = usize::from(task.device.0);
        match task.kind {
            Kind::Write => {
                for watch in &mut self.own {
                    if let Some(challenge) = watch.challenges.get(device)
                        && bytes.windows(32).any(|window| window == challenge.0)
                    {
                        watch.written[device] = true;
                    }
                }
            }
            Kind::Read => {
                let end = task.lba.0 + (task.bytes / storage_socket_proto::BLOCK_BYTES) as u64;
                for watch in &mut self.peer {
                    if task.started >= watch.since {
                        watch.unread.retain(|(at, lba)| {
                            *at != task.device || *lba < task.lba || lba.0 >= end
                        });
                    }
                }
            }
            Kind::ReadFrame(_) | Kind::WriteFrame(_) => {}
        }
    }

    /// Answers what can be answered.
    pub(crate) fn settle(&mut self, now: Tick, look: impl Fn(SlotIndex) -> PeerChallenges) {
        for index in (0..self.own.len()).rev() {
            let watch = &self.own[index];
            if watch.until <= now || watch.written.iter().all(|written| *written) {
                let watch = self.own.swap_remove(index);
                watch.reply.fulfil(watch.written);
            }
        }
        for index in (0..self.peer.len()).rev() {
            let watch = &self.peer[index];
            if watch.until <= now || watch.unread.is_empty() {
                let watch = self.peer.swap_remove(index);
                watch.reply.fulfil(look(watch.slot));
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Tick> {
        let own = self.own.iter().map(|watch| watch.until);
        let peer = self.peer.iter().map(|watch| watch.until);
        own.chain(peer).min()
    }
}
