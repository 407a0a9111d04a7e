//! Which members' pages are read when: all that may ask for something as often as pays, those that ring only when they
//! rang, and each of them once a heartbeat.

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
/// Slots that nobody may use are looked at as well, so many each heartbeat: who asks there is told why not.
const STRANGERS: u32 = 64;

impl Coordinator {
    /// Says whether the member of a slot can be rung and rings. Its page is read when it rang and once a heartbeat then;
    /// without a doorbell it is read as often as pays.
    pub fn set_doorbell(&mut self, now: Tick, slot: SlotIndex, doorbell: Doorbell) {
        self.doorbells.insert(slot, doorbell);
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
        if self.config.geometry.has_slot(slot) {
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
            self.rung.clear();
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

    /// What a heartbeat reads: each slot that is used or may be, and some of the others by turns.
    pub(super) fn beat_slots(&mut self) -> Vec<SlotRun> {
        let all = self.config.geometry.slots();
        let first = self.strangers;
        let end = first.saturating_add(STRANGERS).min(all);
        self.strangers = if end < all { end } else { 0 };
        let mut slots: BTreeSet<SlotIndex> = (first..end).map(SlotIndex).collect();
        slots.extend(self.allowed.keys());
        slots.extend(self.revoked.keys());
        slots.extend(self.rests.keys());
        slots.extend(self.slots.keys());
        self.runs(slots)
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
