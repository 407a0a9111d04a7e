//! Claiming the pool (§5.2), and watching for another coordinator ever after.

use crate::{
    block::{AnswerPage, CoordinatorBlock, CoordinatorState, MemberState, Place, Stamp, Unchecked},
    coordinator::{Coordinator, EndReason, Phase, grants::newest_page, slots::Rest},
    error::FormatError,
    geometry::Timeouts,
    liveness::Silence,
    types::{
        BLOCK_BYTES, Counter, DeviceIndex, DeviceMask, Epoch, Generation, Name, SlotIndex, Tick,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Heartbeats in which a living member shows itself.
const FOLLOWER_HEARTBEATS: u32 = 3;

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimState {
    /// Reads what an earlier coordinator left.
    Reading,
    /// Another one didn't end in order: watches for its signs of life.
    Watching,
    /// Writes its epoch.
    Writing,
    /// Waits until this tick.
    Waiting(Tick),
    /// Reads again, with reads begun after this tick.
    Rereading(Tick),
    /// Serves, and reads what the members use that predecessors granted.
    Comparing,
    /// Serves.
    Done,
}

#[derive(Debug)]
pub(super) struct Claiming {
    state: ClaimState,
    timeouts: Timeouts,
    /// The newest block of another coordinator, and its counter.
    other: Option<(Epoch, Name, CoordinatorState)>,
    newest: Counter,
    /// Its counter when it was first read: an advance is a sign of life.
    first: Option<Counter>,
    silence: Silence,
    /// The other one has stopped, or is this host's own predecessor, or there is none.
    is_free: bool,
    /// The epoch of this host's own predecessor, which is known to be gone, unless another one came after it.
    predecessor: Option<Epoch>,
    /// Since when nothing speaks against the claim but members that follow another one.
    silent_since: Option<Tick>,
    /// The newest counters of the members' pages, while they are watched.
    pages: BTreeMap<SlotIndex, Counter>,
    /// When a living member showed last that it sees another coordinator, and which.
    follower: Option<(Tick, Epoch)>,
    /// The highest counter that a predecessor had read in each slot, by its answers.
    seen: BTreeMap<SlotIndex, Counter>,
    /// The devices on which the claim was read again.
    reread: DeviceMask,
    /// Up to which slot the members' pages were read on each device since this coordinator serves.
    scanned: BTreeMap<DeviceIndex, u32>,
    /// Slots whose pages are neither blank nor legible.
    illegible: BTreeSet<SlotIndex>,
}

impl Claiming {
    pub(super) fn new(timeouts: Timeouts, predecessor: Option<Stamp>) -> Self {
        Self {
            state: ClaimState::Reading,
            timeouts,
            other: None,
            newest: predecessor.map_or(Counter(0), |stamp| stamp.counter),
            first: None,
            silence: Silence::new(timeouts.heartbeat),
            is_free: false,
            predecessor: predecessor.map(|stamp| Epoch(stamp.writer)),
            silent_since: None,
            pages: BTreeMap::new(),
            follower: None,
            seen: BTreeMap::new(),
            reread: DeviceMask::NONE,
            scanned: BTreeMap::new(),
            illegible: BTreeSet::new(),
        }
    }

    /// Whether all is known that predecessors granted: until then nothing is granted.
    pub(super) fn is_settled(&self) -> bool {
        self.state == ClaimState::Done
    }

    /// Whether every slot's page was read on a device since this coordinator serves.
    pub(super) fn is_scanned(&self, device: DeviceIndex, slots: u32) -> bool {
        self.scanned.get(&device) == Some(&slots)
    }

    /// Whether a member's page is older than what a predecessor had read there: it tells nothing of grants since.
    fn is_outdated(&self, slot: SlotIndex, counter: Counter) -> bool {
        self.seen.get(&slot).is_some_and(|seen| counter < *seen)
    }

    pub(super) fn is_watching(&self) -> bool {
        self.state == ClaimState::Watching
    }

    pub(super) fn writes(&self) -> bool {
        !matches!(self.state, ClaimState::Reading | ClaimState::Watching)
    }

    /// When waiting ends.
    pub(super) fn deadline(&self) -> Option<Tick> {
        match self.state {
            ClaimState::Waiting(until) => Some(until),
            _ => None,
        }
    }
}

impl Coordinator {
    /// Takes what stands in the coordinator's place on one device.
    pub(super) fn read_block(&mut self, now: Tick, at: usize, started: Tick, bytes: &[u8]) {
        let index = self.areas.devices[at].index();
        let place = CoordinatorBlock::place(self.config.geometry.pool(), index);
        let mut newest = Counter(0);
        for copy in bytes.chunks(BLOCK_BYTES) {
            let Ok(found) = Unchecked::new(copy) else {
                continue;
            };
            if self.claiming.writes() && self.areas.is_harmless(at, found, copy) {
                continue;
            }
            let found = CoordinatorBlock::parse(found, &place, &self.config.key);
            let Ok((stamp, block)) = found else {
                continue;
            };
            newest = newest.max(stamp.counter);
            if !self.claiming.writes() {
                if stamp.counter >= self.claiming.newest {
                    self.claiming.newest = stamp.counter;
                    let epoch = Epoch(stamp.writer);
                    self.claiming.other = Some((epoch, block.host, block.state));
                    self.claiming.predecessor.take_if(|known| *known != epoch);
                }
                self.areas.inherit(stamp.counter);
                continue;
            }
            if self.areas.is_cloned(at, stamp, copy) {
                self.end(EndReason::ClonedHost);
                return;
            }
            if self.areas.is_own(stamp) {
                continue;
            }
            if self.areas.is_overtaken_by(stamp) {
                self.end(EndReason::ForeignEpoch {
                    epoch: Epoch(stamp.writer),
                    host: block.host,
                });
                return;
            }
            // A ghost, or a predecessor that will see this coordinator's epoch.
            self.areas.devices[at].repair();
        }
        match self.claiming.state {
            ClaimState::Watching => {
                let there = self.areas.mask(|_| true);
                self.claiming.silence.observe(now, index, newest, there);
            }
            ClaimState::Rereading(since) if started >= since => {
                self.claiming.reread = self.claiming.reread.or(DeviceMask::only(index));
            }
            _ => {}
        }
    }

    /// Takes the grants that an earlier coordinator left: they rest until their members have let go.
    pub(super) fn read_old_answers(&mut self, at: usize, first: SlotIndex, bytes: &[u8]) {
        let serves = self.phase == Phase::Serving;
        if !serves && self.phase != Phase::Claiming {
            return;
        }
        let timeouts = self.config.geometry.timeouts();
        let pool = self.config.geometry.pool();
        let device = self.areas.devices[at].index();
        for (pair, index) in bytes.chunks(2 * BLOCK_BYTES).zip(first.0..) {
            let slot = SlotIndex(index);
            if self.has_left_predecessors(slot) {
                continue;
            }
            let place = Place { pool, device, slot };
            let mut is_used = false;
            let mut found = Vec::new();
            for copy in pair.chunks(BLOCK_BYTES) {
                let page = Unchecked::new(copy)
                    .and_then(|block| AnswerPage::parse(block, &place, &self.config.key));
                match page {
                    Ok(page) => found.push(page),
                    Err(FormatError::Blank) => {}
                    Err(_) => is_used = true,
                }
            }
            if !is_used && found.is_empty() {
                continue;
            }
            let rest = self.rests.entry(slot);
            let rest = rest.or_insert_with(|| Rest::new(timeouts));
            for (stamp, page) in found {
                self.areas.inherit(stamp.counter);
                if self.areas.is_own(stamp) {
                    rest.is_silent();
                } else {
                    let seen = self.claiming.seen.entry(slot).or_default();
                    *seen = page.seen.max(*seen);
                    rest.take(stamp, &page);
                }
            }
            if serves && !rest.hold(&mut self.allocator) {
                self.rests.remove(&slot);
            }
        }
    }

    /// Whether a slot's member uses nothing that predecessors granted: it follows this coordinator, or it has stopped by a
    /// page that is no older than what they read.
    pub(super) fn has_left_predecessors(&self, index: SlotIndex) -> bool {
        let epoch = self.config.epoch;
        self.slots.get(&index).is_some_and(|slot| {
            let is_outdated = self.claiming.is_outdated(index, slot.stamp.counter);
            slot.page.confirmed == epoch || (slot.has_left_all_but(epoch) && !is_outdated)
        })
    }

    /// The members' pages of a run of slots were read; those of `illegible` held something that can't be read. Once every
    /// member that is there has left what predecessors granted, nothing has to be waited for.
    pub(super) fn note_scanned(
        &mut self,
        now: Tick,
        at: usize,
        (first, end): (u32, u32),
        illegible: Vec<SlotIndex>,
    ) {
        if self.claiming.is_settled() || self.phase != Phase::Serving {
            return;
        }
        self.claiming.illegible.extend(illegible);
        let device = self.areas.devices[at].index();
        let scanned = self.claiming.scanned.entry(device).or_insert(0);
        if first <= *scanned {
            *scanned = end.max(*scanned);
        }
        let mut illegible = self.claiming.illegible.iter();
        if self.are_all_scanned()
            && illegible.all(|slot| self.slots.contains_key(slot))
            && self
                .slots
                .keys()
                .all(|&slot| self.has_left_predecessors(slot))
        {
            self.settle(now);
        }
    }

    fn are_all_scanned(&self) -> bool {
        let all = self.config.geometry.slots();
        let mut there = self.areas.mask(|_| true).iter();
        there.all(|device| self.claiming.is_scanned(device, all))
    }

    /// Whether devices of the pool are hidden from this coordinator, on which another one may serve.
    pub(super) fn is_degraded(&self) -> bool {
        self.areas.mask(|_| true) != self.config.geometry.all_devices()
    }

    /// Takes the members' pages of a run of slots before the pool is claimed: a member that advances and sees another
    /// coordinator is that one's sign of life, on devices that this one doesn't see.
    pub(super) fn look_for_followers(
        &mut self,
        now: Tick,
        at: usize,
        first: SlotIndex,
        bytes: &[u8],
    ) {
        let pool = self.config.geometry.pool();
        let device = self.areas.devices[at].index();
        for (pair, index) in bytes.chunks(2 * BLOCK_BYTES).zip(first.0..) {
            let slot = SlotIndex(index);
            let Some(key) = self.allowed.get(&slot) else {
                continue;
            };
            let place = Place { pool, device, slot };
            let known = self.claiming.pages.get(&slot).copied();
            let seen = known.unwrap_or(Counter(0));
            let Some((stamp, page)) = newest_page(pair, seen, &place, key) else {
                continue;
            };
            self.claiming.pages.insert(slot, stamp.counter);
            let is_orphan = self.claiming.predecessor == Some(page.confirmed);
            let sees_another = page.confirmed != Epoch(0) && !page.devices.is_empty() && !is_orphan;
            if known.is_some() && page.state == MemberState::Running && sees_another {
                self.claiming.follower = Some((now, page.confirmed));
            }
        }
    }

    /// The pool's owner is silent, or there is none. A claimant that doesn't see every device looks at the members before
    /// it takes that for granted: they leave a dead owner after the same time.
    fn advance_silent_watch(&mut self, now: Tick) {
        let Timeouts {
            dead, heartbeat, ..
        } = self.claiming.timeouts;
        let since = *self.claiming.silent_since.get_or_insert(now);
        let pause = heartbeat * FOLLOWER_HEARTBEATS;
        if !self.is_degraded() {
            self.begin_claim(now);
            return;
        }
        let follower = self.claiming.follower;
        let follower = follower.filter(|&(seen, _)| now.since(seen) < pause);
        match follower {
            Some((_, epoch)) if now.since(since) >= dead / 2 => {
                let known = self.claiming.other.clone();
                let host = known
                    .filter(|&(known, ..)| known == epoch)
                    .map_or_else(|| Name::lossy("another host"), |(_, host, _)| host);
                self.end(EndReason::Owned { epoch, host });
            }
            None if now.since(since) >= pause => self.begin_claim(now),
            Some(_) | None => {}
        }
    }

    /// All is known that predecessors granted: what was asked meanwhile is answered.
    fn settle(&mut self, now: Tick) {
        self.claiming.state = ClaimState::Done;
        for device in &mut self.areas.devices {
            device.reads.settle();
        }
        let slots = self.slots.iter();
        let alive = slots.filter(|(_, slot)| slot.is_alive());
        let alive: Vec<SlotIndex> = alive.map(|(&index, _)| index).collect();
        for slot in alive {
            self.take_entries(now, slot);
        }
        self.poll.hasten(now);
    }

    pub(super) fn advance_claim(&mut self, now: Tick) {
        match self.claiming.state {
            ClaimState::Reading if self.areas.are_known() => {
                let others = self.claiming.other.as_ref().map(|(_, _, state)| *state);
                let is_free = self.claiming.predecessor.is_some()
                    || others.is_none_or(|state| state == CoordinatorState::Stopped);
                if is_free && !self.is_degraded() {
                    self.begin_claim(now);
                } else {
                    self.claiming.is_free = is_free;
                    self.claiming.first = Some(self.claiming.newest);
                    self.claiming.state = ClaimState::Watching;
                }
            }
            ClaimState::Watching => {
                let newest = self.claiming.newest;
                let other = self.claiming.other.as_ref().map(|&(epoch, ..)| epoch);
                // The last writes of this host's own predecessor are no sign of life.
                let is_orphan = other.is_some() && other == self.claiming.predecessor;
                if !is_orphan && self.claiming.first.is_some_and(|first| newest > first) {
                    if let Some((epoch, host, state)) = self.claiming.other.clone() {
                        if state == CoordinatorState::Stopped {
                            self.begin_claim(now);
                        } else {
                            self.end(EndReason::Owned { epoch, host });
                        }
                    }
                } else if self.claiming.is_free
                    || self.claiming.silence.is_dead(self.claiming.timeouts.dead)
                {
                    self.advance_silent_watch(now);
                }
            }
            // The wait begins when the claim stands on every device.
            ClaimState::Writing if self.areas.has_said_all() => {
                self.claiming.state = ClaimState::Waiting(now + self.claiming.timeouts.claim);
            }
            ClaimState::Waiting(until) if now >= until => {
                self.claiming.state = ClaimState::Rereading(now);
                self.claiming.reread = DeviceMask::NONE;
                let slots = self.config.geometry.slots();
                for device in &mut self.areas.devices {
                    device.reads.want_block();
                    // What was granted until everybody could see the claim rests as well.
                    if !device.is_lost() {
                        device.reads.want_old_answers(slots);
                    }
                }
            }
            ClaimState::Rereading(_) => {
                let reread = self.claiming.reread;
                let mut devices = self.areas.devices.iter();
                let is_any = !self.areas.mask(|_| true).is_empty();
                let is_reread = devices.all(|device| {
                    let is_block_read = reread.contains(device.index());
                    device.is_lost() || (is_block_read && !device.reads.is_reading_old())
                });
                if is_any && is_reread {
                    self.claiming.state = ClaimState::Comparing;
                    if self.phase == Phase::Claiming {
                        self.serve(now);
                    }
                }
            }
            ClaimState::Comparing if self.are_all_scanned() => self.settle(now),
            ClaimState::Reading
            | ClaimState::Writing
            | ClaimState::Waiting(_)
            | ClaimState::Comparing
            | ClaimState::Done => {}
        }
    }

    fn begin_claim(&mut self, now: Tick) {
        // The predecessor's block may have been read as it was before, by reads that were stale.
        self.areas.inherit(self.claiming.newest);
        self.areas.succeed(now);
        // A request that a predecessor granted may be granted again under the same id: its frames are to be foreign then.
        self.generation = Generation(self.areas.inherited().0);
        self.claiming.state = ClaimState::Writing;
        if self.claiming.predecessor.is_some() {
            self.serve(now);
        }
    }
}
