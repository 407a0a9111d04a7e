//! A slot as its coordinator sees it: the member's page, its signs of life, the answers, and what rests there.

use crate::{
    allocator::{Allocator, HoldId},
    block::{
        Answer, AnswerEntry, AnswerPage, MemberEntry, MemberPage, MemberState, SegmentGroup, Stamp,
    },
    geometry::{Geometry, Timeouts},
    io::{IoId, IoIds, IoOutcome, IoRequest},
    liveness::Silence,
    pair::{PairOutcome, Posting},
    types::{
        Block, BlockCount, Challenge, ConnectionId, Counter, DeviceIndex, DeviceMask, ENTRIES,
        Epoch, Incarnation, Name, SlotIndex, Tick,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// One slot whose member was seen.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) stamp: Stamp,
    pub(super) page: MemberPage,
    /// By the devices that aren't lost.
    silence: Silence,
    /// By every device: it grows only while none is lost.
    absence: Silence,
    alive: bool,
    devices: BTreeMap<DeviceIndex, SlotDevice>,
    pub(super) answers: [AnswerEntry; ENTRIES],
    /// Requests that wait until more devices are proved, and since when.
    waiting: [Option<(ConnectionId, Tick)>; ENTRIES],
    challenges: Vec<Challenge>,
    /// Advances with every change of the answers.
    revision: u64,
    /// The newest page that was passed over: another writer's, below the counter that is known.
    ignored: Stamp,
    /// One was passed over since the last heartbeat.
    is_ignoring: bool,
}

/// One device of a slot.
#[derive(Debug)]
struct SlotDevice {
    lost: bool,
    /// The newest page that was read here.
    stamp: Stamp,
    challenge: Option<Challenge>,
    posting: Posting,
}

impl Slot {
    pub(super) fn new(
        index: SlotIndex,
        stamp: Stamp,
        page: MemberPage,
        geometry: &Geometry,
        devices: DeviceMask,
    ) -> Self {
        let at = geometry.answer_page(index);
        let device = |device| SlotDevice {
            lost: false,
            stamp: Stamp::default(),
            challenge: None,
            posting: Posting::new(device, [at, at + BlockCount(1)]),
        };
        Self {
            stamp,
            page,
            silence: Silence::new(geometry.timeouts().heartbeat),
            absence: Silence::new(geometry.timeouts().heartbeat),
            alive: false,
            devices: devices.iter().map(|index| (index, device(index))).collect(),
            answers: [None; ENTRIES],
            waiting: [None; ENTRIES],
            challenges: Vec::new(),
            revision: 1,
            ignored: Stamp::default(),
            is_ignoring: false,
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(self.stamp.writer)
    }

    pub(super) fn host(&self) -> &Name {
        &self.page.host
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// The member's page was read on a device: what that tells of its life. The last part of its absence counts only once
    /// what it would read if it woke stands on every device.
    pub(super) fn watch(&mut self, now: Tick, device: DeviceIndex, timeouts: &Timeouts) {
        let (newest, named) = (self.stamp.counter, self.page.devices);
        let all = self.devices(|_| true);
        let there = self.devices(|device| !device.lost);
        let is_out_of_reach = !named.is_empty() && named.and(there).is_empty();
        let heard = if is_out_of_reach {
            DeviceMask::NONE
        } else {
            there
        };
        self.silence.observe(now, device, newest, heard);
        self.absence.observe(now, device, newest, all);
        let is_told = self
            .devices
            .values()
            .all(|device| device.posting.stands(self.revision));
        if self.alive || !is_told {
            self.absence.limit(timeouts.dead);
        }
    }

    /// The member was heard of by another way.
    pub(super) fn heard(&mut self) {
        self.silence.reset();
        self.absence.reset();
    }

    pub(super) fn silent(&self) -> Duration {
        self.silence.silent()
    }

    /// Whether the member is dead.
    pub(super) fn is_dead(&self, dead: Duration) -> bool {
        self.silence.is_dead(dead)
    }

    /// Whether the member writes to nothing any more, on a device that was lost neither.
    pub(super) fn is_absent(&self, timeouts: &Timeouts) -> bool {
        self.absence.is_dead(timeouts.absent())
    }

    /// Whether the member has become suspect: true once per silence.
    pub(super) fn take_suspicion(&mut self, dead: Duration) -> bool {
        self.silence.take_suspicion(dead)
    }

    /// The devices for which `holds` is true.
    fn devices(&self, holds: impl Fn(&SlotDevice) -> bool) -> DeviceMask {
        self.devices
            .iter()
            .filter(|(_, device)| holds(device))
            .fold(DeviceMask::NONE, |mask, (&index, _)| {
                mask.or(DeviceMask::only(index))
            })
    }

    /// Whether the member uses nothing that another epoch than this granted, nor will.
    pub(super) fn has_left_all_but(&self, epoch: Epoch) -> bool {
        self.page.confirmed == epoch || self.page.state == MemberState::Stopped
    }

    pub(super) fn set_alive(&mut self, alive: bool) -> bool {
        std::mem::replace(&mut self.alive, alive)
    }

    pub(super) fn is_quiet(&self) -> bool {
        let mut devices = self.devices.values();
        devices.all(|device| device.posting.pair.is_quiet())
    }

    pub(super) fn lose_device(&mut self, device: DeviceIndex) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.lost = true;
            self.revision += 1;
        }
    }

    /// A lost device came back: what is known of the member there has to be proved again.
    pub(super) fn find_device(&mut self, device: DeviceIndex) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.lost = false;
            device.posting.pair.forgive();
            device.posting.forget();
            device.stamp = Stamp::default();
        }
    }

    pub(super) fn changed(&mut self) {
        self.revision += 1;
    }

    pub(super) fn set_challenges(&mut self, challenges: Vec<Challenge>) {
        self.challenges = challenges;
        self.revision += 1;
    }

    pub(super) fn challenge_seen(&self, device: DeviceIndex) -> Option<Challenge> {
        let known = self.devices.get(&device)?;
        known
            .challenge
            .filter(|_| known.stamp.writer == self.stamp.writer)
    }

    /// The counter above which a page on this device is news.
    pub(super) fn known(&self, device: DeviceIndex) -> Counter {
        self.devices
            .get(&device)
            .map_or(Counter(0), |device| device.stamp.counter)
    }

    /// A page newer than the last was read on a device. Returns the challenge if it has changed.
    pub(super) fn seen_on(
        &mut self,
        device: DeviceIndex,
        stamp: Stamp,
        challenge: Challenge,
    ) -> Option<Challenge> {
        let known = self.devices.get_mut(&device)?;
        let is_other_writer = known.stamp.writer != stamp.writer;
        known.stamp = stamp;
        let is_news = is_other_writer || known.challenge != Some(challenge);
        known.challenge = Some(challenge);
        if is_other_writer {
            self.revision += 1;
        }
        is_news.then_some(challenge)
    }

    /// The devices on which the present member's page was read.
    fn visible(&self) -> DeviceMask {
        self.devices(|device| !device.lost && device.stamp.writer == self.stamp.writer)
    }

    /// The devices that both sides have proved.
    pub(super) fn proved(&self) -> DeviceMask {
        self.visible().and(self.page.devices)
    }

    /// Since when a request is known.
    pub(super) fn since(&mut self, at: usize, connection: ConnectionId, now: Tick) -> Tick {
        match self.waiting[at] {
            Some((known, since)) if known == connection => since,
            _ => {
                self.waiting[at] = Some((connection, now));
                now
            }
        }
    }

    /// Whether something was asked that isn't answered, or said that wasn't heard.
    pub(super) fn is_in_talk(&self) -> bool {
        if !self.alive {
            // It may wake, and has to learn then that what it has open was let go of.
            let mut entries = self.page.entries.iter();
            return self.page.state == MemberState::Running
                && entries.any(|entry| matches!(entry, MemberEntry::Open { .. }));
        }
        let mut pairs = self.answers.iter().zip(&self.page.entries);
        pairs.any(|(answer, entry)| {
            // An answer that grants is outstanding as what was granted is.
            let is_said = matches!(answer, Some(Answer::Refused { .. } | Answer::Closed { .. }));
            let is_asked = matches!(entry, MemberEntry::Request(_) | MemberEntry::Closed { .. });
            let is_dropped = answer.is_none() && matches!(entry, MemberEntry::Open { .. });
            is_said || is_asked || is_dropped
        })
    }

    /// Whether a page that isn't news may tell that somebody else writes below the counter that is known here.
    pub(super) fn is_strange(&self, claimed: Stamp) -> bool {
        let (known, ignored) = (self.stamp, self.ignored);
        let is_below = claimed.counter <= known.counter;
        let is_news = claimed.writer != ignored.writer || claimed.counter > ignored.counter;
        is_below && claimed.writer != known.writer && is_news
    }

    /// Such a page was read: who writes it isn't heard, and has to learn that from the answers.
    pub(super) fn ignore(&mut self, stamp: Stamp) {
        self.ignored = stamp;
        self.is_ignoring = true;
    }

    /// What is said was not taken notice of: it is written again.
    pub(super) fn refresh(&mut self) {
        if std::mem::take(&mut self.is_ignoring) {
            self.revision += 1;
            return;
        }
        let is_unheard = |(answer, entry): (&AnswerEntry, &MemberEntry)| {
            let Some(answer) = answer else {
                // A closed entry is free only once answers newer than it are silent of it; one that is open learns from
                // them that it was let go of.
                return matches!(entry, MemberEntry::Closed { .. } | MemberEntry::Open { .. });
            };
            match entry {
                MemberEntry::Request(request) => request.connection == answer.connection(),
                MemberEntry::Open { connection, .. } => {
                    matches!(answer, Answer::Closed { connection: closed, .. } if closed == connection)
                }
                MemberEntry::Empty | MemberEntry::Closed { .. } => false,
            }
        };
        let mut pairs = self.answers.iter().zip(&self.page.entries);
        if self.alive && (self.page.devices.is_empty() || pairs.any(is_unheard)) {
            self.revision += 1;
        }
    }

    /// The device on which the answers have to be written now, and the page for it.
    pub(super) fn answer_due(&self, now: Tick) -> Option<(DeviceIndex, AnswerPage)> {
        let (&index, _) = self
            .devices
            .iter()
            .find(|(_, device)| device.is_due(now, self.revision))?;
        let page = AnswerPage {
            incarnation: self.incarnation(),
            challenge: self
                .challenges
                .get(usize::from(index.0))
                .copied()
                .unwrap_or_default(),
            devices: self.visible(),
            seen: self.stamp.counter,
            entries: self.answers,
        };
        Some((index, page))
    }

    /// Begins to write the present answers on a device.
    pub(super) fn write_answer(
        &mut self,
        now: Tick,
        ids: &mut IoIds,
        device: DeviceIndex,
        block: Box<Block>,
    ) -> Option<IoRequest> {
        let posting = &mut self.devices.get_mut(&device)?.posting;
        Some(posting.write(now, ids, block, self.revision))
    }

    /// The read that proves a rewritten copy, when one is due.
    pub(super) fn poll_read_back(&mut self, ids: &mut IoIds, now: Tick) -> Option<IoRequest> {
        self.devices
            .values_mut()
            .filter(|device| !device.lost)
            .find_map(|device| device.posting.pair.poll_read_back(ids, now))
    }

    /// When answers that have to wait may be written.
    pub(super) fn answer_at(&self) -> Option<Tick> {
        self.devices
            .values()
            .filter(|device| device.has_to_write(self.revision))
            .filter_map(|device| device.posting.pair.ready_at())
            .min()
    }

    pub(super) fn handle_io(
        &mut self,
        now: Tick,
        id: IoId,
        outcome: IoOutcome<'_>,
    ) -> Option<(DeviceIndex, PairOutcome)> {
        let (&index, device) = self
            .devices
            .iter_mut()
            .find(|(_, device)| device.posting.pair.owns(id))?;
        Some((index, device.posting.handle(now, outcome)))
    }
}

impl SlotDevice {
    fn has_to_write(&self, revision: u64) -> bool {
        !self.lost && self.posting.has_to_write(revision)
    }

    fn is_due(&self, now: Tick, revision: u64) -> bool {
        self.has_to_write(revision) && self.posting.pair.is_ready(now)
    }
}

/// What an earlier epoch granted in one slot: it rests until the slot's member has confirmed this epoch or is dead.
#[derive(Debug)]
pub(super) struct Rest {
    newest: Option<(Stamp, Vec<(ConnectionId, SegmentGroup)>)>,
    is_legible: bool,
    /// What the slot's member has open by the word of its page.
    open: Vec<ConnectionId>,
    holds: Vec<HoldId>,
    silence: Silence,
}

impl Rest {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self {
            newest: None,
            is_legible: false,
            open: Vec::new(),
            holds: Vec::new(),
            silence: Silence::new(timeouts.heartbeat),
        }
    }

    /// Keeps the grants of the newest page.
    pub(super) fn take(&mut self, stamp: Stamp, page: &AnswerPage) {
        self.is_legible = true;
        if self
            .newest
            .as_ref()
            .is_some_and(|(known, _)| *known >= stamp)
        {
            return;
        }
        let groups = page
            .entries
            .iter()
            .flatten()
            .filter_map(|answer| match answer {
                Answer::Accepted { group, .. } | Answer::Closed { group, .. } => {
                    Some((answer.connection(), *group))
                }
                Answer::Refused { .. } => None,
            });
        self.newest = Some((stamp, groups.collect()));
    }

    /// A legible page says nothing of what earlier epochs granted.
    pub(super) fn is_silent(&mut self) {
        self.is_legible = true;
    }

    /// The page of a member that follows an earlier epoch says what it uses.
    pub(super) fn set_open(&mut self, open: Vec<ConnectionId>) {
        self.open = open;
    }

    /// Whether the record is as new as what the member uses: a ghost may have overwritten the newest copy of the page.
    fn is_complete(&self) -> bool {
        let recorded = self.newest.iter().flat_map(|(_, groups)| groups);
        let recorded: BTreeSet<ConnectionId> = recorded.map(|(known, _)| *known).collect();
        self.is_legible && self.open.iter().all(|used| recorded.contains(used))
    }

    /// Holds the units. Returns false if there are none. If no copy of the page could be read, or what the member uses
    /// isn't in it, everything is held.
    pub(super) fn hold(&mut self, allocator: &mut Allocator) -> bool {
        self.release(allocator);
        self.holds.clear();
        if !self.is_complete() {
            self.holds.push(allocator.rest_all());
        }
        for (_, group) in self.newest.iter().flat_map(|(_, groups)| groups) {
            let segments = [group.to_coordinator, group.to_member];
            self.holds.push(allocator.rest(group.devices, segments));
        }
        !self.holds.is_empty()
    }

    pub(super) fn release(&self, allocator: &mut Allocator) {
        for &hold in &self.holds {
            allocator.release(hold);
        }
    }

    /// The slot was read on one of `all` devices, which may be lost; its newest valid page has this counter.
    pub(super) fn watch(
        &mut self,
        now: Tick,
        device: DeviceIndex,
        counter: Counter,
        all: DeviceMask,
    ) {
        self.silence.observe(now, device, counter, all);
    }

    /// Whether the slot's member is dead, and writes on none of the devices.
    pub(super) fn is_absent(&self, dead: Duration) -> bool {
        self.silence.is_dead(dead)
    }
}
