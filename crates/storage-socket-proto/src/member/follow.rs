//! What a member makes of what it reads: its own slot, the coordinator's block, and the answers.

use crate::{
    block::{
        Answer, AnswerEntry, AnswerPage, CoordinatorBlock, CoordinatorState, Grant, MemberEntry,
        MemberPage, Request, SegmentGroup, Stamp, Unchecked,
    },
    error::FormatError,
    geometry::{Geometry, Timeouts},
    liveness::Silence,
    member::{
        FOREIGN_ADVANCES_MAX, Member, MemberEvent, Phase, StopReason, device::MemberReads,
        entries::Entry,
    },
    reasons::{RefusalReason, ResetReason},
    types::{BLOCK_BYTES, Counter, DeviceMask, Direction, ENTRIES, Epoch, Incarnation, Name, Tick},
};

/// The coordinator that a member follows.
#[derive(Debug)]
pub(super) struct Followed {
    epoch: Option<Epoch>,
    host: Name,
    state: CoordinatorState,
    counter: Counter,
    answered: Counter,
    /// Dead or stopped, until it shows a sign of life.
    lost: bool,
    joined: bool,
    pub(super) silence: Silence,
    /// The devices on which it reads this member's page.
    pub(super) devices: DeviceMask,
    offer: Option<Offer>,
    rival: Option<Rival>,
}

/// Another coordinator than the one that is followed, as it shows on one device.
#[derive(Clone, Copy, Debug)]
struct Rival {
    epoch: Epoch,
    counter: Counter,
    advances: u32,
}

/// Answers that grant something: they may be a dead coordinator's last words, which landed after its successor had looked
/// for them. They are taken once its block was read again on each device, and no other epoch was found (§4.4).
#[derive(Debug)]
struct Offer {
    epoch: Epoch,
    answers: [AnswerEntry; ENTRIES],
}

impl Followed {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self {
            epoch: None,
            host: Name::default(),
            state: CoordinatorState::Stopped,
            counter: Counter(0),
            answered: Counter(0),
            lost: false,
            joined: false,
            silence: Silence::new(timeouts.heartbeat),
            devices: DeviceMask::NONE,
            offer: None,
            rival: None,
        }
    }

    /// The epoch of a coordinator that claims or serves and isn't lost.
    pub(super) fn known(&self) -> Option<Epoch> {
        self.epoch.filter(|_| !self.lost)
    }

    /// The epoch of a coordinator that serves and isn't lost.
    pub(super) fn serving(&self) -> Option<Epoch> {
        let serves = self.state == CoordinatorState::Serving && !self.lost;
        self.epoch.filter(|_| serves)
    }
}

impl Member {
    /// Looks at its own slot for its predecessor, for ghosts, and for a clone of this host.
    pub(super) fn read_own(&mut self, _now: Tick, at: usize, bytes: &[u8]) {
        let place = self.place(self.areas.devices[at].index());
        for copy in bytes.chunks(BLOCK_BYTES) {
            let Ok(block) = Unchecked::new(copy) else {
                continue;
            };
            if self.phase != Phase::Starting && self.areas.is_harmless(at, block, copy) {
                continue;
            }
            let Ok((stamp, _)) = MemberPage::parse(block, &place, &self.config.page_key) else {
                continue;
            };
            if self.phase == Phase::Starting {
                self.areas.inherit(stamp.counter);
                self.foreign.0 = self.foreign.0.max(stamp.counter);
                continue;
            }
            if self.is_anothers(at, stamp, copy) {
                self.end(StopReason::ClonedHost {
                    slot: self.config.slot,
                    found: Incarnation(stamp.writer),
                });
                return;
            }
            if !self.areas.is_own(stamp) {
                self.areas.devices[at].repair();
            }
        }
    }

    /// Whether what was found in this member's slot was written by another living process.
    fn is_anothers(&mut self, at: usize, stamp: Stamp, copy: &[u8]) -> bool {
        if self.areas.is_cloned(at, stamp, copy) || self.areas.is_succeeded_by(stamp) {
            return true;
        }
        if self.areas.is_own(stamp) {
            return false;
        }
        self.is_foreign_alive(stamp.counter)
    }

    /// Takes note of a counter that another process reached in this slot without having seen this one: a predecessor's
    /// ghost, whose very first pages land after this member has read its slot, or a process that lives. Ghosts are few.
    fn is_foreign_alive(&mut self, counter: Counter) -> bool {
        let (highest, advances) = &mut self.foreign;
        if counter > *highest {
            *highest = counter;
            *advances += 1;
            self.areas.outdo(counter);
        }
        *advances > FOREIGN_ADVANCES_MAX
    }

    /// Takes what stands in the coordinator's place on one device; returns the epoch of the newest copy.
    pub(super) fn read_coordinator(&mut self, now: Tick, at: usize, bytes: &[u8]) -> Option<Epoch> {
        let index = self.areas.devices[at].index();
        let place = CoordinatorBlock::place(self.config.geometry.pool(), index);
        let key = self.config.coordinator_key.clone();
        let newest = newest(bytes, |block| CoordinatorBlock::parse(block, &place, &key));
        let Some((stamp, block)) = newest else {
            self.watch(now, at, Counter(0));
            return None;
        };
        let epoch = Epoch(stamp.writer);
        let seen_here = self.areas.devices[at].reads.sees.replace(epoch);
        let was_lost = self.followed.lost;
        let is_followed = self.followed.epoch.is_none_or(|followed| followed == epoch);
        let is_newer = stamp.counter > self.followed.counter;
        if is_followed || (is_newer && !self.is_unaware(at, stamp)) {
            if is_newer {
                self.followed.counter = stamp.counter;
                self.follow(now, epoch, block);
            }
            self.watch(now, at, stamp.counter);
        } else {
            self.watch_rival(now, at, stamp, block);
            self.watch(now, at, Counter(0));
        }
        let is_new_here = seen_here != Some(epoch);
        if is_new_here || was_lost != self.followed.lost {
            self.changed(now);
        }
        Some(epoch)
    }

    /// Whether the writer of a block is no successor of the coordinator that is followed, for it hasn't seen it, while
    /// that one still stands on another device.
    fn is_unaware(&self, at: usize, stamp: Stamp) -> bool {
        let followed = self.followed.known();
        let stands = self.areas.mask(|reads| reads.sees == followed);
        let stands = stands.without(self.areas.devices[at].index());
        followed.is_some()
            && !stands.is_empty()
            && stamp.counter.successions() <= self.followed.counter.successions()
    }

    /// Another coordinator's block was read. It may be a ghost; one that advances again and again lives. It is followed
    /// only when the present one has gone.
    fn watch_rival(&mut self, now: Tick, at: usize, stamp: Stamp, block: CoordinatorBlock) {
        let epoch = Epoch(stamp.writer);
        let rival = self.followed.rival.filter(|rival| rival.epoch == epoch);
        let mut rival = rival.unwrap_or(Rival {
            epoch,
            counter: stamp.counter,
            advances: 0,
        });
        if stamp.counter > rival.counter {
            rival.counter = stamp.counter;
            rival.advances = rival.advances.saturating_add(1);
            if rival.advances == FOREIGN_ADVANCES_MAX + 1 {
                self.events.push_back(MemberEvent::RivalCoordinator {
                    device: self.areas.devices[at].index(),
                    epoch,
                    host: block.host.clone(),
                    followed: self.followed.epoch.unwrap_or_default(),
                    followed_host: self.followed.host.clone(),
                });
            }
        }
        self.followed.rival = Some(rival);
        let has_gone = self.followed.lost || self.is_out_of_reach();
        if rival.advances > FOREIGN_ADVANCES_MAX && has_gone {
            self.followed.rival = None;
            self.followed.counter = stamp.counter;
            self.follow(now, epoch, block);
        }
    }

    /// Takes what the newest coordinator block says.
    fn follow(&mut self, now: Tick, epoch: Epoch, block: CoordinatorBlock) {
        if self.followed.epoch != Some(epoch) {
            self.lose_coordinator();
            self.followed.epoch = Some(epoch);
            self.followed.devices = DeviceMask::NONE;
            self.followed.answered = Counter(0);
            self.followed.lost = false;
            self.followed.silence = Silence::new(self.config.geometry.timeouts().heartbeat);
            for device in &mut self.areas.devices {
                device.reads.challenge_seen = None;
            }
        }
        let had = self.followed.state;
        self.followed.host = block.host;
        self.followed.state = block.state;
        if block.state == CoordinatorState::Stopped {
            self.lose_coordinator();
        } else if self.followed.lost {
            // Not dead after all.
            self.followed.lost = false;
        }
        if had != block.state {
            self.poll.hasten(now);
        }
        self.confirm(now);
        let serves = self.followed.serving();
        if let Some(epoch) = serves.filter(|_| !self.followed.joined)
            && self.confirmed == epoch
        {
            self.join(epoch);
        }
    }

    fn join(&mut self, epoch: Epoch) {
        self.followed.joined = true;
        self.events.push_back(MemberEvent::Joined {
            epoch,
            host: self.followed.host.clone(),
        });
    }

    /// Whether every device on which the coordinator said last that it reads this member's page is lost.
    fn is_out_of_reach(&self) -> bool {
        let named = self.followed.devices;
        !named.is_empty() && named.and(self.areas.mask(|_| true)).is_empty()
    }

    /// Counts the coordinator's silence after its block was read on a device.
    fn watch(&mut self, now: Tick, at: usize, counter: Counter) {
        let device = self.areas.devices[at].index();
        let heard = if self.is_out_of_reach() {
            DeviceMask::NONE
        } else {
            self.areas.mask(|_| true)
        };
        let Some(epoch) = self.followed.epoch.filter(|_| !self.followed.lost) else {
            return;
        };
        let dead = self.config.geometry.timeouts().dead;
        let silence = &mut self.followed.silence;
        silence.observe(now, device, counter, heard);
        if silence.is_dead(dead) {
            self.lose_coordinator();
        } else if self.followed.joined && silence.take_suspicion(dead) {
            self.events
                .push_back(MemberEvent::CoordinatorSuspect { epoch });
        }
    }

    /// The coordinator has gone: so has everything that it granted.
    fn lose_coordinator(&mut self) {
        self.followed.lost = true;
        self.followed.devices = DeviceMask::NONE;
        if std::mem::take(&mut self.followed.joined)
            && let Some(epoch) = self.followed.epoch
        {
            self.events
                .push_back(MemberEvent::CoordinatorLost { epoch });
        }
        for entry in &mut self.entries {
            if let Some(connection) = entry.take_untold() {
                self.events.push_back(MemberEvent::Closed {
                    connection,
                    reason: Some(ResetReason::CoordinatorGone),
                });
            }
        }
    }

    /// Confirms the present epoch once nothing that another one granted is in use.
    pub(super) fn confirm(&mut self, now: Tick) {
        let Some(epoch) = self.followed.epoch else {
            return;
        };
        if self.confirmed == epoch || self.entries.iter().any(|entry| entry.is_foreign(epoch)) {
            return;
        }
        self.confirmed = epoch;
        self.changed(now);
        if self.followed.serving() == Some(epoch) && !self.followed.joined {
            self.join(epoch);
        }
    }

    /// Takes the answers that stand on one device; returns their epoch if they are the followed coordinator's to this
    /// incarnation.
    pub(super) fn read_answer(&mut self, now: Tick, at: usize, bytes: &[u8]) -> Option<Epoch> {
        let place = self.place(self.areas.devices[at].index());
        let key = self.config.coordinator_key.clone();
        let newest = newest(bytes, |block| AnswerPage::parse(block, &place, &key));
        let (stamp, page) = newest?;
        if self.phase == Phase::Starting {
            self.areas.inherit(page.seen);
            return None;
        }
        let is_followed = self.followed.epoch == Some(Epoch(stamp.writer));
        if is_followed && self.areas.is_behind(page.seen) && self.has_lost_slot(&page) {
            // Whatever this slot holds by now: nothing that this member writes would be believed any more.
            self.end(StopReason::ClonedHost {
                slot: self.config.slot,
                found: page.incarnation,
            });
            return None;
        }
        let is_current = is_followed && page.incarnation == self.config.incarnation;
        if !is_current {
            return None;
        }
        let device = &mut self.areas.devices[at];
        if device.reads.challenge_seen != Some(page.challenge) {
            device.reads.challenge_seen = Some(page.challenge);
            let device = device.index();
            self.events.push_back(MemberEvent::ChallengeSeen {
                device,
                challenge: page.challenge,
            });
        }
        if stamp.counter > self.followed.answered {
            self.followed.answered = stamp.counter;
            self.followed.devices = page.devices;
            self.poll.hasten(now);
            let epoch = Epoch(stamp.writer);
            self.followed.offer = None;
            if page.entries.iter().zip(&self.entries).any(is_grant) {
                self.followed.offer = Some(Offer {
                    epoch,
                    answers: page.entries,
                });
                for device in &mut self.areas.devices {
                    device.reads.want_fresh_block();
                }
            } else {
                self.take_answers(now, epoch, &page.entries);
            }
        }
        Some(Epoch(stamp.writer))
    }

    /// Whether the coordinator knows of a counter in this slot that this member must not outdo: its own by another hand, or
    /// that of a later succession. What a predecessor's first pages came to is outdone.
    fn has_lost_slot(&mut self, page: &AnswerPage) -> bool {
        let is_own = page.incarnation == self.config.incarnation;
        let is_later = page.seen.successions() > self.areas.inherited().successions();
        if is_own || is_later || self.is_foreign_alive(page.seen) {
            return true;
        }
        self.areas.beat();
        false
    }

    /// Takes the grants that were read, once the coordinator's block was read after them on each device.
    pub(super) fn take_offer(&mut self, now: Tick) {
        let Some(offer) = &self.followed.offer else {
            return;
        };
        let is_read = self.areas.mask(MemberReads::is_block_fresh) == self.areas.mask(|_| true);
        if self.followed.known() != Some(offer.epoch) {
            self.followed.offer = None;
        } else if is_read && let Some(offer) = self.followed.offer.take() {
            self.take_answers(now, offer.epoch, &offer.answers);
        }
    }

    fn take_answers(&mut self, now: Tick, epoch: Epoch, answers: &[AnswerEntry]) {
        let mut changed = false;
        for (at, answer) in answers.iter().enumerate() {
            changed |= self.take_answer(at, epoch, answer.as_ref());
        }
        if changed {
            self.changed(now);
        }
    }

    /// Takes the answer to one entry. Returns whether the entry has changed.
    fn take_answer(&mut self, at: usize, epoch: Epoch, answer: Option<&Answer>) -> bool {
        let entry = &mut self.entries[at];
        let page = entry.page();
        let answer = answer.filter(|answer| page.connection() == Some(answer.connection()));
        let event = match (page, answer) {
            (MemberEntry::Request(request), Some(Answer::Accepted { group, port, .. })) => {
                if !is_asked(&request, group) || !is_inside(&self.config.geometry, group) {
                    entry.close(Some(ResetReason::Protocol));
                    MemberEvent::Refused {
                        connection: request.connection,
                        reason: RefusalReason::Malformed,
                    }
                } else {
                    entry.open(group, epoch);
                    MemberEvent::Connected(Grant {
                        connection: request.connection,
                        port: *port,
                        slot: self.config.slot,
                        incarnation: self.config.incarnation,
                        epoch,
                        group: *group,
                    })
                }
            }
            (MemberEntry::Request(request), Some(Answer::Refused { reason, .. })) => {
                entry.clear();
                MemberEvent::Refused {
                    connection: request.connection,
                    reason: *reason,
                }
            }
            (MemberEntry::Request(request), Some(Answer::Closed { .. })) => {
                entry.close(Some(ResetReason::Aborted));
                MemberEvent::Refused {
                    connection: request.connection,
                    reason: RefusalReason::ShuttingDown,
                }
            }
            (MemberEntry::Open { .. }, None | Some(Answer::Closed { .. })) => {
                // Of what was granted here the answers speak until it is closed. If they don't, the coordinator has let go
                // of it, for it read another incarnation's page in this slot.
                let reason = match answer {
                    Some(Answer::Closed { reason, .. }) => *reason,
                    _ if entry.is_foreign(epoch) => return false,
                    _ => Some(ResetReason::PeerClosed),
                };
                let Some(connection) = entry.take_untold() else {
                    return false;
                };
                self.events
                    .push_back(MemberEvent::Closed { connection, reason });
                return false;
            }
            (MemberEntry::Closed { .. }, None) => {
                entry.clear();
                return true;
            }
            _ => return false,
        };
        self.events.push_back(event);
        true
    }
}

/// Whether an answer grants what its entry asks for.
fn is_grant((answer, entry): (&AnswerEntry, &Entry)) -> bool {
    let MemberEntry::Request(request) = entry.page() else {
        return false;
    };
    matches!(answer, Some(Answer::Accepted { connection, .. }) if *connection == request.connection)
}

/// Whether a grant is no more than what was asked for: buffers are made by its figures.
fn is_asked(request: &Request, group: &SegmentGroup) -> bool {
    group.cipher == request.cipher
        && group.devices.and(request.devices) == group.devices
        && group.frame_units <= request.frame_units
        && group.to_coordinator.units <= request.window_to_coordinator
        && group.to_member.units <= request.window_to_member
}

/// Whether a grant lies in the data area of every device that it names.
fn is_inside(geometry: &Geometry, group: &SegmentGroup) -> bool {
    let known = geometry.all_devices();
    group.devices.and(known) == group.devices
        && [Direction::ToCoordinator, Direction::ToMember]
            .into_iter()
            .map(|direction| group.segment(direction))
            .all(|segment| {
                segment.first >= geometry.data_start()
                    && segment.end() <= u64::from(geometry.data_end(group.devices).0)
            })
        && !group.to_coordinator.overlaps(group.to_member)
}

/// The newest valid one of two copies. The one that says it is newer is checked first: the other matters only if that
/// one isn't valid.
pub(crate) fn newest<'a, T>(
    bytes: &'a [u8],
    parse: impl Fn(Unchecked<'a>) -> Result<(Stamp, T), FormatError>,
) -> Option<(Stamp, T)> {
    let mut copies = bytes
        .chunks(BLOCK_BYTES)
        .filter_map(|copy| Unchecked::new(copy).ok());
    let (first, second) = (copies.next()?, copies.next());
    let (newer, older) = match second {
        Some(second) if second.claimed_stamp() > first.claimed_stamp() => (second, Some(first)),
        other => (first, other),
    };
    parse(newer).ok().or_else(|| parse(older?).ok())
}
