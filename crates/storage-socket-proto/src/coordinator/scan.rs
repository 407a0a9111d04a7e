//! Which members' pages are read when: all that may ask for something as often as pays; those that ring when they rang,
//! and each heartbeat while something is outstanding. So what polling costs grows with what is going on, and a slot that
//! nobody may use costs nothing.

use crate::{
    connection::Doorbell,
    coordinator::{Coordinator, Phase, device::SlotRun},
    types::{SlotIndex, Tick},
};
use std::{collections::BTreeSet, time::Duration};

/// The shortest time between two scans of the members' pages.
pub(super) const SCAN_MIN: Duration = Duration::from_millis(1);
/// The longest between two scans of those that have no doorbell.
const SCAN_MAX: Duration = Duration::from_millis(100);
/// Slots between two runs that are read along, rather than in two reads.
const GAP_MAX: u32 = 8;
/// Heartbeats that read a member's page after it rang: on the devices that aren't polled, and lest a write came late.
const ATTENDED_BEATS: u32 = 3;

impl Coordinator {
    /// Says whether the member of a slot can be rung and rings. Its page is then read when it rang, and once a
    /// heartbeat while something is outstanding; without a doorbell it is read as often as pays.
    pub fn set_doorbell(&mut self, now: Tick, slot: SlotIndex, doorbell: Doorbell) {
        self.doorbells.insert(slot, doorbell);
        self.attended.insert(slot, ATTENDED_BEATS);
        self.poll.hasten(now);
    }

    /// Some member rang: there are news to read.
    pub fn handle_doorbell(&mut self, now: Tick) {
        let allowed = self.allowed.keys().copied();
        self.rung.extend(allowed);
        self.poll.hasten(now);
        self.poll.want();
    }

    /// The member of a slot rang: there are news to read in its page.
    pub fn handle_doorbell_of(&mut self, _now: Tick, slot: SlotIndex) {
        if self.is_known(slot) {
            self.rung.insert(slot);
        }
    }

    /// The slot of a member that should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> Option<SlotIndex> {
        self.rings.pop_front()
    }

    pub(super) fn doorbell(&self, slot: SlotIndex) -> Doorbell {
        let said = self.doorbells.get(&slot).copied();
        said.unwrap_or(self.config.doorbell)
    }

    /// There are news for the member of a slot.
    pub(super) fn ring(&mut self, slot: SlotIndex) {
        if self.doorbell(slot) == Doorbell::Present && !self.rings.contains(&slot) {
            self.rings.push_back(slot);
        }
    }

    /// Wants the pages that are due read on the first device, unless pages are being read there already.
    pub(super) fn scan(&mut self, now: Tick) {
        let is_due = self.poll.is_wanted() || !self.rung.is_empty();
        if self.phase != Phase::Serving || !is_due {
            return;
        }
        let mut due = self.rung.clone();
        if self.poll.is_wanted() {
            due.extend(self.silent());
        }
        let due = self.runs(due);
        if let Some(device) = self.areas.primary()
            && device.reads.want_scan(&due)
        {
            for slot in std::mem::take(&mut self.rung) {
                self.attended.insert(slot, ATTENDED_BEATS);
            }
            if self.poll.is_wanted() {
                let heartbeat = self.config.geometry.timeouts().heartbeat;
                self.poll.begun(now, SCAN_MAX.min(heartbeat));
            }
        }
    }

    /// When the pages of members without doorbells are due.
    pub(super) fn scan_at(&self) -> Option<Tick> {
        let is_free = || self.areas.is_primary(|reads| !reads.is_scanning());
        let is_due = self.phase == Phase::Serving && self.silent().next().is_some();
        (is_due && is_free()).then(|| self.poll.at())
    }

    /// What a heartbeat reads: each slot that is used or may be, unless its member rings and nothing is outstanding.
    pub(super) fn beat_slots(&mut self) -> Vec<SlotRun> {
        let mut slots: BTreeSet<SlotIndex> = self.rests.keys().copied().collect();
        let held = self.held.values().filter(|held| !held.is_released());
        slots.extend(held.map(|held| held.grant.slot));
        let talks = self.slots.iter().filter(|(_, slot)| slot.is_in_talk());
        slots.extend(talks.map(|(&index, _)| index));
        slots.extend(self.attended.keys());
        let known = self.allowed.keys().chain(self.revoked.keys());
        let silent = known.filter(|&&slot| self.doorbell(slot) == Doorbell::Absent);
        slots.extend(silent);
        self.attended.retain(|_, beats| {
            *beats = beats.saturating_sub(1);
            *beats > 0
        });
        self.runs(slots)
    }

    /// Whether anything is kept of a slot's member.
    pub(super) fn is_known(&self, slot: SlotIndex) -> bool {
        self.allowed.contains_key(&slot)
            || self.revoked.contains_key(&slot)
            || self.rests.contains_key(&slot)
            || self.slots.contains_key(&slot)
    }

    pub(super) fn all_slots(&self) -> Vec<SlotRun> {
        vec![(SlotIndex(0), self.config.geometry.slots())]
    }

    /// The slots whose members may ask for something, or where something rests, and that have no doorbell.
    fn silent(&self) -> impl Iterator<Item = SlotIndex> {
        let slots = self.allowed.keys().chain(self.rests.keys()).copied();
        slots.filter(|&slot| self.doorbell(slot) == Doorbell::Absent)
    }

    fn runs(&self, slots: BTreeSet<SlotIndex>) -> Vec<SlotRun> {
        let mut runs: Vec<SlotRun> = Vec::new();
        for SlotIndex(slot) in slots {
            if slot >= self.config.geometry.slots() {
                break;
            }
            match runs.last_mut() {
                Some((first, count)) if slot < first.0 + *count + GAP_MAX => {
                    *count = slot + 1 - first.0;
                }
                _ => runs.push((SlotIndex(slot), 1)),
            }
        }
        runs
    }
}
