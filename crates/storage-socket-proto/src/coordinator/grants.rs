//! Requests, grants and their return: what the coordinator makes of the members' pages.

use crate::{
    allocator::HoldId,
    block::{
        Answer, Grant, MemberEntry, MemberPage, MemberState, Place, Request, SegmentGroup, Stamp,
        TagKey, Unchecked,
    },
    coordinator::{
        Coordinator, CoordinatorEvent, Phase,
        slots::{Rest, Slot},
    },
    geometry::FRAME_UNITS_MAX,
    io::{IoId, IoOutcome, IoRequest},
    pair::PairOutcome,
    reasons::{RefusalReason, ResetReason},
    types::{
        BLOCK_BYTES, ConnectionId, Counter, DeviceIndex, DeviceMask, ENTRIES, Generation,
        Incarnation, Port, SlotIndex, Tick, UnitCount,
    },
};

/// A granted connection whose segments are not free yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) grant: Grant,
    /// Its place in the member's page.
    entry: usize,
    hold: HoldId,
    /// This side's machine is drained.
    drained: bool,
    /// The member uses it no more, or is dead.
    let_go: bool,
    /// The driver was told that the member has let go.
    told: bool,
    /// In its listener's backlog.
    backlog: Option<Port>,
}

impl Held {
    pub(super) fn leave_backlog(&mut self) -> Option<Port> {
        self.backlog.take()
    }

    pub(super) fn is_released(&self) -> bool {
        self.drained && self.let_go
    }
}

impl Coordinator {
    /// Takes the member pages of a run of slots on one device.
    pub(super) fn read_pages(&mut self, now: Tick, at: usize, first: SlotIndex, bytes: &[u8]) {
        match self.phase {
            Phase::Serving | Phase::Stopping => {}
            Phase::Claiming => return self.look_for_followers(now, at, first, bytes),
            Phase::Ended => return,
        }
        let device = self.areas.devices[at].index();
        let mut end = first.0;
        let mut illegible = Vec::new();
        for (pair, index) in bytes.chunks(2 * BLOCK_BYTES).zip(first.0..) {
            let slot = SlotIndex(index);
            let seen = self
                .slots
                .get(&slot)
                .map_or(Counter(0), |slot| slot.known(device));
            let place = Place {
                pool: self.config.geometry.pool(),
                device,
                slot,
            };
            let public = TagKey::public();
            let known = self.allowed.get(&slot).or(self.revoked.get(&slot));
            let newest = newest_page(pair, seen, &place, known.unwrap_or(&public));
            end = index + 1;
            // Of a slot that nobody may use, and where nothing rests, nothing is kept, and nothing is answered there.
            let is_known = self.is_known(slot);
            if let Some((stamp, page)) = newest.filter(|_| is_known) {
                self.take_page(now, at, slot, stamp, page);
            } else if let Some(stamp) = self.ignored_page(pair, &place) {
                if let Some(slot) = self.slots.get_mut(&slot) {
                    slot.ignore(stamp);
                }
                illegible.push(slot);
            } else if pair.iter().any(|&byte| byte != 0) {
                illegible.push(slot);
            }
            self.watch(now, device, slot);
        }
        self.note_scanned(now, at, (first.0, end), illegible);
    }

    /// A valid page of another writer than the one that is known in its slot, below that one's counter.
    fn ignored_page(&self, pair: &[u8], place: &Place) -> Option<Stamp> {
        let slot = self.slots.get(&place.slot)?;
        let known = self.allowed.get(&place.slot);
        let key = known.or(self.revoked.get(&place.slot))?;
        pair.chunks(BLOCK_BYTES)
            .filter_map(|copy| Unchecked::new(copy).ok())
            .filter(|block| slot.is_strange(block.claimed_stamp()))
            .find_map(|block| MemberPage::parse(block, place, key).ok())
            .map(|(stamp, _)| stamp)
    }

    /// Takes a page that is newer than the last one read on that device.
    fn take_page(
        &mut self,
        now: Tick,
        at: usize,
        index: SlotIndex,
        stamp: Stamp,
        page: MemberPage,
    ) {
        let device = self.areas.devices[at].index();
        let epoch = self.config.epoch;
        let is_first = !self.slots.contains_key(&index);
        let mask = self.config.geometry.all_devices().and(self.config.devices);
        let geometry = &self.config.geometry;
        let slot = self.slots.entry(index).or_insert_with(|| {
            let mut slot = Slot::new(index, stamp, page.clone(), geometry, mask);
            let devices = self.areas.devices.iter();
            for device in devices.filter(|device| device.is_lost()) {
                slot.lose_device(device.index());
            }
            slot
        });
        if let Some(challenge) = slot.seen_on(device, stamp, page.challenge)
            && stamp.counter >= slot.stamp.counter
        {
            self.events.push_back(CoordinatorEvent::ChallengeSeen {
                slot: index,
                device,
                challenge,
            });
        }
        let is_news = is_first || stamp.counter > slot.stamp.counter;
        if !is_news {
            // The same page on another device: one more that is proved.
            if slot.is_alive() && stamp.writer == slot.stamp.writer {
                self.take_entries(now, index);
            }
            return;
        }
        let before = slot.incarnation();
        let is_other = !is_first && stamp.writer != slot.stamp.writer;
        slot.stamp = stamp;
        let confirms = page.confirmed == epoch;
        let state = page.state;
        let had = std::mem::replace(&mut slot.page, page);
        if had.devices != slot.page.devices {
            slot.changed();
        }
        if is_other {
            self.member_left(index, before, ResetReason::PeerDead, false);
        }
        if !confirms && !is_other && state == MemberState::Running {
            // It follows another coordinator, and writes to nothing that this one granted.
            self.member_left(index, before, ResetReason::PeerClosed, false);
        }
        if self.has_left_predecessors(index)
            && let Some(rest) = self.rests.remove(&index)
        {
            rest.release(&mut self.allocator);
        }
        if !confirms && state == MemberState::Running {
            self.compare_record(index);
        }
        if confirms && state == MemberState::Running {
            self.member_up(index);
            self.take_entries(now, index);
        }
        if state == MemberState::Stopped {
            self.take_entries(now, index);
            let left = Incarnation(stamp.writer);
            self.member_left(index, left, ResetReason::PeerClosed, true);
        }
    }

    /// Before anything is granted: what a member uses that follows a predecessor has to be in its record.
    fn compare_record(&mut self, index: SlotIndex) {
        if self.claiming.is_settled() {
            return;
        }
        let Some(slot) = self.slots.get(&index) else {
            return;
        };
        let entries = slot.page.entries.iter();
        let open = entries.filter_map(|entry| match entry {
            MemberEntry::Open { connection, .. } => Some(*connection),
            _ => None,
        });
        let open: Vec<ConnectionId> = open.collect();
        if open.is_empty() && !self.rests.contains_key(&index) {
            return;
        }
        let timeouts = self.config.geometry.timeouts();
        let rest = self.rests.entry(index);
        let rest = rest.or_insert_with(|| {
            let mut rest = Rest::new(timeouts);
            rest.is_silent();
            rest
        });
        rest.set_open(open);
        if !rest.hold(&mut self.allocator) {
            self.rests.remove(&index);
        }
    }

    fn member_up(&mut self, index: SlotIndex) {
        if let Some(slot) = self.slots.get_mut(&index)
            && !slot.set_alive(true)
        {
            slot.heard();
            self.events.push_back(CoordinatorEvent::MemberUp {
                slot: index,
                incarnation: slot.incarnation(),
                host: slot.host().clone(),
            });
        }
    }

    /// The member is dead, has stopped, or was followed by another: both sides are told to end its connections.
    fn member_down(
        &mut self,
        index: SlotIndex,
        incarnation: Incarnation,
        reason: ResetReason,
        stopped: bool,
    ) {
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        if slot.set_alive(false) {
            self.events.push_back(CoordinatorEvent::MemberDown {
                slot: index,
                incarnation,
                stopped,
            });
        }
        for (_, connection) in self.granted(index, incarnation) {
            self.answer_closed(connection, Some(reason));
            self.tell_closed(connection, Some(reason));
        }
    }

    /// The member writes to nothing any more: what it was granted is let go of.
    fn member_left(
        &mut self,
        index: SlotIndex,
        incarnation: Incarnation,
        reason: ResetReason,
        stopped: bool,
    ) {
        self.member_down(index, incarnation, reason, stopped);
        for (at, connection) in self.granted(index, incarnation) {
            self.let_go(index, at, connection, Some(reason));
        }
        if let Some(slot) = self.slots.get_mut(&index)
            && slot.incarnation() != incarnation
        {
            slot.answers = [None; ENTRIES];
            slot.changed();
        }
    }

    /// What a member was granted, and its place in the member's page.
    fn granted(&self, index: SlotIndex, incarnation: Incarnation) -> Vec<(usize, ConnectionId)> {
        let is_theirs =
            |held: &&Held| held.grant.slot == index && held.grant.incarnation == incarnation;
        let theirs = self.held.values().filter(is_theirs);
        theirs
            .map(|held| (held.entry, held.grant.connection))
            .collect()
    }

    /// The driver is told, once, that the other side's end is over.
    fn tell_closed(&mut self, connection: ConnectionId, reason: Option<ResetReason>) {
        if let Some(held) = self.held.get_mut(&connection)
            && !std::mem::replace(&mut held.told, true)
            && !held.drained
        {
            self.events
                .push_back(CoordinatorEvent::Closed { connection, reason });
        }
    }

    /// A slot isn't allowed any more: both sides are told to end its connections. Its units are free once its member has
    /// let go of them, or is dead.
    pub(super) fn revoke(&mut self, index: SlotIndex) {
        let reason = Some(ResetReason::PeerClosed);
        let is_theirs = |held: &&Held| held.grant.slot == index && !held.let_go;
        let theirs = self.held.values().filter(is_theirs);
        let theirs: Vec<ConnectionId> = theirs.map(|held| held.grant.connection).collect();
        for connection in theirs {
            self.answer_closed(connection, reason);
            self.tell_closed(connection, reason);
        }
    }

    /// Counts a slot's silence after its pages were read on a device.
    fn watch(&mut self, now: Tick, device: DeviceIndex, index: SlotIndex) {
        let timeouts = self.config.geometry.timeouts();
        let dead = timeouts.dead;
        let all = self.config.geometry.all_devices().and(self.config.devices);
        let newest = self
            .slots
            .get(&index)
            .map_or(Counter(0), |slot| slot.stamp.counter);
        if let Some(rest) = self.rests.get_mut(&index) {
            rest.watch(now, device, newest, all);
            if rest.is_absent(dead) {
                rest.release(&mut self.allocator);
                self.rests.remove(&index);
            }
        }
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        slot.watch(now, device, &timeouts);
        let incarnation = slot.incarnation();
        if slot.is_absent(&timeouts) {
            self.member_left(index, incarnation, ResetReason::PeerDead, false);
        } else if !slot.is_alive() {
            // Nothing more is learnt of it.
        } else if slot.is_dead(dead) {
            self.member_down(index, incarnation, ResetReason::PeerDead, false);
        } else if slot.take_suspicion(dead) {
            self.events.push_back(CoordinatorEvent::MemberSuspect {
                slot: index,
                incarnation,
            });
        }
    }

    pub(super) fn take_entries(&mut self, now: Tick, index: SlotIndex) {
        let Some(slot) = self.slots.get(&index) else {
            return;
        };
        let (entries, answers) = (slot.page.entries, slot.answers);
        for (at, (entry, answer)) in entries.iter().zip(answers).enumerate() {
            let said = answer.map(|answer| answer.connection());
            if said.is_some() && said == entry.connection() {
                if let MemberEntry::Closed { connection, reason } = *entry {
                    self.let_go(index, at, connection, reason);
                    self.answer(now, index, at, None);
                }
                continue;
            }
            if let Some(connection) = said {
                // The member has moved on without a word.
                self.let_go(index, at, connection, Some(ResetReason::PeerClosed));
                self.answer(now, index, at, None);
            }
            // A fenced one may have been followed by another: the request stands until it is known to be free.
            if let MemberEntry::Request(request) = entry
                && self.areas.is_fence_open()
                && self.claiming.is_settled()
                && self.is_ripe(now, index, at, request)
            {
                let answer = self.decide(now, index, at, request);
                self.answer(now, index, at, Some(answer));
            }
        }
    }

    /// Whether a request is to be answered: not while devices that may be used are still to be proved, for a stream
    /// uses the devices of its grant to its end.
    fn is_ripe(&mut self, now: Tick, index: SlotIndex, at: usize, request: &Request) -> bool {
        let wish = self.areas.mask(|_| true).and(request.devices);
        let patience = self.config.geometry.timeouts().heartbeat * 2;
        let Some(slot) = self.slots.get_mut(&index) else {
            return false;
        };
        let since = slot.since(at, request.connection, now);
        slot.proved().and(wish) == wish || now.since(since) >= patience
    }

    fn answer(&mut self, now: Tick, index: SlotIndex, at: usize, answer: Option<Answer>) {
        if let Some(slot) = self.slots.get_mut(&index) {
            slot.answers[at] = answer;
            slot.changed();
            self.poll.hasten(now);
        }
    }

    fn decide(&mut self, now: Tick, index: SlotIndex, at: usize, request: &Request) -> Answer {
        let connection = request.connection;
        match self.grant(now, index, at, request) {
            Ok(grant) => Answer::Accepted {
                connection,
                port: grant.port,
                group: grant.group,
            },
            Err(reason) => Answer::Refused { connection, reason },
        }
    }

    fn grant(
        &mut self,
        now: Tick,
        index: SlotIndex,
        at: usize,
        request: &Request,
    ) -> Result<Grant, RefusalReason> {
        if self.phase != Phase::Serving {
            return Err(RefusalReason::ShuttingDown);
        }
        if !self.allowed.contains_key(&index) {
            return Err(RefusalReason::NotEnrolled);
        }
        let frame_units = request.frame_units.0.min(self.config.frame_units_max.0);
        let frame_units = UnitCount(frame_units.min(FRAME_UNITS_MAX));
        let least = frame_units.0.saturating_add(1);
        let is_sound = frame_units.0 > 0
            && request.window_to_coordinator.0 >= least
            && request.window_to_member.0 >= least
            && request.connection != ConnectionId::NONE
            && !self.held.contains_key(&request.connection);
        if !is_sound {
            return Err(RefusalReason::Malformed);
        }
        let listener = self
            .ports
            .get(&request.port)
            .ok_or(RefusalReason::NoListener)?;
        if !listener.options.protection.takes(request.cipher) {
            return Err(RefusalReason::Cipher);
        }
        if listener.waiting >= listener.options.backlog {
            return Err(RefusalReason::Busy);
        }
        let slot = self.slots.get(&index).ok_or(RefusalReason::NotEnrolled)?;
        let known = self.areas.mask(|reads| !reads.is_reading_old());
        let proved = slot.proved().and(request.devices).and(known);
        let answering = proved.and(self.areas.answering(now));
        let devices = if answering.is_empty() {
            proved
        } else {
            answering
        };
        if devices.is_empty() {
            return Err(RefusalReason::NoCommonDevice);
        }
        let incarnation = slot.incarnation();
        let share = self.share(index, devices);
        let (hold, segments) = self
            .find_segments(devices, request, least, share)
            .ok_or(RefusalReason::NoSegments)?;
        self.generation = Generation(self.generation.0 + 1);
        let grant = Grant {
            connection: request.connection,
            port: request.port,
            slot: index,
            incarnation,
            epoch: self.config.epoch,
            group: SegmentGroup {
                generation: self.generation,
                devices,
                cipher: request.cipher,
                frame_units,
                to_coordinator: segments[0],
                to_member: segments[1],
            },
        };
        let held = Held {
            grant,
            entry: at,
            hold,
            drained: false,
            let_go: false,
            told: false,
            backlog: Some(request.port),
        };
        self.held.insert(request.connection, held);
        if let Some(listener) = self.ports.get_mut(&request.port) {
            listener.waiting += 1;
        }
        self.events.push_back(CoordinatorEvent::Incoming(grant));
        Ok(grant)
    }

    /// The units that a slot may be granted on `devices` besides those that it has.
    fn share(&self, index: SlotIndex, devices: DeviceMask) -> u64 {
        let has = self
            .held
            .values()
            .map(|held| held.grant)
            .filter(|grant| grant.slot == index && !grant.group.devices.and(devices).is_empty())
            .map(|grant| [grant.group.to_coordinator, grant.group.to_member])
            .map(|segments| segments.map(|segment| u64::from(segment.units.0)))
            .map(|units| units.iter().sum::<u64>())
            .sum();
        u64::from(self.config.slot_units_max.0).saturating_sub(has)
    }

    /// Free segments of the size that is asked for, or of half, a quarter… down to one frame slot a device; in sum no
    /// more than half of what is left of the slot's share, so that its next stream finds something, unless they are of
    /// the least size.
    fn find_segments(
        &mut self,
        devices: DeviceMask,
        request: &Request,
        least: u32,
        share: u64,
    ) -> Option<(HoldId, [crate::geometry::Segment; 2])> {
        let most = self.config.window_max.0.max(least);
        let mut windows = [request.window_to_coordinator.0, request.window_to_member.0];
        windows = windows.map(|units| units.min(most));
        loop {
            let is_least = windows == [least, least];
            let most = if is_least { share } else { share / 2 };
            let is_within = u64::from(windows[0]) + u64::from(windows[1]) <= most;
            if is_within && let Some(found) = self.allocator.grant(devices, windows.map(UnitCount))
            {
                return Some(found);
            }
            if is_least {
                return None;
            }
            windows = windows.map(|units| (units / 2).max(least));
        }
    }

    /// The member of a slot uses the connection in entry `at` no more. What it says of a connection that wasn't granted
    /// to this very entry is without effect: it may be another member's.
    fn let_go(
        &mut self,
        index: SlotIndex,
        at: usize,
        connection: ConnectionId,
        reason: Option<ResetReason>,
    ) {
        let is_its_own = |held: &&mut Held| held.grant.slot == index && held.entry == at;
        let Some(held) = self.held.get_mut(&connection).filter(is_its_own) else {
            return;
        };
        held.let_go = true;
        self.tell_closed(connection, reason);
        self.release(connection);
    }

    /// This side's machine is drained.
    pub(super) fn drained(
        &mut self,
        now: Tick,
        connection: ConnectionId,
        reason: Option<ResetReason>,
    ) {
        let Some(held) = self.held.get_mut(&connection) else {
            return;
        };
        held.drained = true;
        let port = held.leave_backlog();
        let is_open = !held.let_go;
        self.leave_backlog(port);
        if is_open {
            self.answer_closed(connection, reason);
            self.poll.hasten(now);
        }
        self.release(connection);
    }

    /// Says in the answer that the connection is closed, unless the entry speaks of another one by now.
    fn answer_closed(&mut self, connection: ConnectionId, reason: Option<ResetReason>) {
        let Some(held) = self.held.get(&connection) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&held.grant.slot) else {
            return;
        };
        let answer = &mut slot.answers[held.entry];
        if answer.is_some_and(|answer| answer.connection() == connection) {
            *answer = Some(Answer::Closed {
                connection,
                reason,
                group: held.grant.group,
            });
            slot.changed();
        }
    }

    pub(super) fn leave_backlog(&mut self, port: Option<Port>) {
        if let Some(listener) = port.and_then(|port| self.ports.get_mut(&port)) {
            listener.waiting = listener.waiting.saturating_sub(1);
        }
    }

    /// Gives the segments back once neither side uses them.
    fn release(&mut self, connection: ConnectionId) {
        if self.held.get(&connection).is_some_and(Held::is_released)
            && let Some(held) = self.held.remove(&connection)
        {
            self.allocator.release(held.hold);
        }
    }

    pub(super) fn write_answer(&mut self, now: Tick) -> Option<IoRequest> {
        if !self.areas.is_fence_open() {
            return None;
        }
        for (&index, slot) in &mut self.slots {
            if self.rests.contains_key(&index)
                || !(self.claiming.is_settled() || slot.has_left_all_but(self.config.epoch))
            {
                // The page is the only record of what rests, should this coordinator die as well.
                continue;
            }
            if let Some(request) = slot.poll_read_back(&mut self.areas.ids, now) {
                return Some(request);
            }
            let Some((device, page)) = slot.answer_due(now) else {
                continue;
            };
            let stamp = self.areas.stamp();
            let place = Place {
                pool: self.config.geometry.pool(),
                device,
                slot: index,
            };
            let block = page.encode(&place, stamp, &self.config.key);
            return slot.write_answer(now, &mut self.areas.ids, device, block);
        }
        None
    }

    pub(super) fn answers_due(&self) -> impl Iterator<Item = Tick> {
        let writes =
            matches!(self.phase, Phase::Serving | Phase::Stopping) && self.areas.is_fence_open();
        self.slots
            .iter()
            .filter(move |(index, slot)| {
                let may = self.claiming.is_settled() || slot.has_left_all_but(self.config.epoch);
                writes && may && !self.rests.contains_key(index)
            })
            .filter_map(|(_, slot)| slot.answer_at())
    }

    pub(super) fn handle_answer_written(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        let found = self.slots.iter_mut().find_map(|(&index, slot)| {
            slot.handle_io(now, id, outcome)
                .map(|(device, outcome)| (index, device, outcome))
        });
        match found {
            Some((slot, _, PairOutcome::Written)) => {
                self.ring(slot);
            }
            Some((_, device, PairOutcome::Lost(failure))) => {
                if let Some(at) = self.areas.position(device)
                    && self.areas.lose(now, at)
                {
                    self.lost(at, failure);
                }
            }
            Some((_, _, PairOutcome::ReadBack | PairOutcome::Failed(_))) | None => {}
        }
    }
}

/// The newest legible one of a page's copies whose counter is above `seen`.
pub(super) fn newest_page(
    pair: &[u8],
    seen: Counter,
    place: &Place,
    key: &TagKey,
) -> Option<(Stamp, MemberPage)> {
    pair.chunks(BLOCK_BYTES)
        .filter_map(|copy| Unchecked::new(copy).ok())
        .filter(|block| block.claimed_stamp().counter > seen)
        .filter_map(|block| MemberPage::parse(block, place, key).ok())
        .max_by_key(|(stamp, _)| *stamp)
}
