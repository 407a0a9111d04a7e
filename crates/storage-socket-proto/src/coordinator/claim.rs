//! Claiming the pool (§5.2), and watching for another coordinator ever after.

use crate::{
    block::{AnswerPage, CoordinatorBlock, CoordinatorState, Place, Unchecked},
    coordinator::{Claim, Coordinator, EndReason, Phase, slots::Rest},
    error::FormatError,
    geometry::Timeouts,
    liveness::Silence,
    types::{BLOCK_BYTES, Counter, DeviceMask, Epoch, Name, SlotIndex, Tick},
};

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
    /// The devices on which the claim was read again.
    reread: DeviceMask,
}

impl Claiming {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self {
            state: ClaimState::Reading,
            timeouts,
            other: None,
            newest: Counter(0),
            first: None,
            silence: Silence::new(timeouts.heartbeat),
            reread: DeviceMask::NONE,
        }
    }

    pub(super) fn set(&mut self, state: ClaimState) {
        self.state = state;
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
            let found = Unchecked::new(copy)
                .and_then(|block| CoordinatorBlock::parse(block, &place, &self.config.key));
            let Ok((stamp, block)) = found else {
                continue;
            };
            newest = newest.max(stamp.counter);
            if !self.claiming.writes() {
                if stamp.counter >= self.claiming.newest {
                    self.claiming.newest = stamp.counter;
                    self.claiming.other = Some((Epoch(stamp.writer), block.host, block.state));
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
                self.claiming.silence.observe(now, newest);
            }
            ClaimState::Rereading(since) if started >= since => {
                self.claiming.reread = self.claiming.reread.or(DeviceMask::only(index));
            }
            _ => {}
        }
    }

    /// Takes the grants that an earlier coordinator left: they rest until their members have let go.
    pub(super) fn read_old_answers(&mut self, at: usize, first: SlotIndex, bytes: &[u8]) {
        if self.phase != Phase::Claiming {
            return;
        }
        let pool = self.config.geometry.pool();
        let device = self.areas.devices[at].index();
        for (pair, index) in bytes.chunks(2 * BLOCK_BYTES).zip(first.0..) {
            let slot = SlotIndex(index);
            let place = Place { pool, device, slot };
            let mut is_legible = false;
            let mut is_used = false;
            for copy in pair.chunks(BLOCK_BYTES) {
                let found = Unchecked::new(copy)
                    .and_then(|block| AnswerPage::parse(block, &place, &self.config.key));
                match found {
                    Ok((stamp, page)) => {
                        is_legible = true;
                        self.areas.inherit(stamp.counter);
                        let rest = self.rests.entry(slot);
                        rest.or_insert_with(|| Rest::new(self.config.geometry.timeouts()))
                            .take(stamp, &page);
                    }
                    Err(FormatError::Blank) => {}
                    Err(_) => is_used = true,
                }
            }
            if is_used && !is_legible {
                let rest = self.rests.entry(slot);
                rest.or_insert_with(|| Rest::new(self.config.geometry.timeouts()));
            }
        }
    }

    pub(super) fn advance_claim(&mut self, now: Tick) {
        match self.claiming.state {
            ClaimState::Reading if self.areas.are_known() => {
                let others = self.claiming.other.as_ref().map(|(_, _, state)| *state);
                let is_free = others.is_none_or(|state| state == CoordinatorState::Stopped);
                if is_free || self.config.claim == Claim::SameHost {
                    self.begin_claim(now);
                } else {
                    let newest = self.claiming.newest;
                    self.claiming.first = Some(newest);
                    self.claiming.silence.observe(now, newest);
                    self.claiming.state = ClaimState::Watching;
                }
            }
            ClaimState::Watching => {
                let newest = self.claiming.newest;
                if self.claiming.first.is_some_and(|first| newest > first) {
                    if let Some((epoch, host, state)) = self.claiming.other.clone() {
                        if state == CoordinatorState::Stopped {
                            self.begin_claim(now);
                        } else {
                            self.end(EndReason::Owned { epoch, host });
                        }
                    }
                } else if self.claiming.silence.is_dead(self.claiming.timeouts.dead) {
                    self.begin_claim(now);
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
                if is_any
                    && devices.all(|device| {
                        device.is_lost() || (reread.contains(device.index()) && device.is_known())
                    })
                {
                    self.serve(now);
                }
            }
            ClaimState::Reading
            | ClaimState::Writing
            | ClaimState::Waiting(_)
            | ClaimState::Done => {}
        }
    }

    fn begin_claim(&mut self, now: Tick) {
        self.areas.succeed(now);
        if self.config.claim == Claim::SameHost {
            self.serve(now);
        } else {
            self.claiming.state = ClaimState::Writing;
        }
    }
}
