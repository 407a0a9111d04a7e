//! A writer's fixed areas on all devices: its block on each, its heartbeat, its fence, and devices that are lost and found.
//!
//! Invariants: the block is written on each device by its own pair of copies, under counters that never repeat (§3.1);
//! a fenced writer is free only after its block was written and its machine has said what it read since (§1.3); a lost
//! device is asked for nothing but a probe (§5.6). What else is read there, and what it means, is the machine's.

use crate::{
    block::{Stamp, Unchecked},
    geometry::{Geometry, Timeouts},
    io::{IoFailure, IoId, IoIds, IoOutcome, IoRequest},
    pair::{PairOutcome, Posting},
    probe::Probe,
    progress::Progress,
    types::{BLOCK_BYTES, Block, Counter, DeviceIndex, DeviceMask, Lba, Tick},
};
use std::time::Duration;

/// Reads that may fail in a row before the device counts as lost.
const READ_FAILURES_MAX: u32 = 3;

/// What a machine reads on one device besides its own block's copies.
pub(crate) trait Reads {
    /// A place that is read.
    type Area: Copy;

    /// The next read that is wanted.
    fn poll(&mut self, now: Tick, ids: &mut IoIds, device: DeviceIndex) -> Option<IoRequest>;
    /// Whether a read is one of these.
    fn owns(&self, id: IoId) -> bool;
    /// Takes the end of a read, which is wanted again if it has to be.
    fn ended(&mut self, id: IoId, end: ReadEnd) -> Option<ReadDone<Self::Area>>;
    /// Whether everything that a start has to know was read.
    fn is_known(&self) -> bool;
    /// Whether no read is under way.
    fn is_quiet(&self) -> bool;
    /// The device is lost.
    fn lost(&mut self);
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadEnd {
    Whole,
    Failed,
}

/// A read that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadDone<A> {
    pub(crate) area: A,
    pub(crate) started: Tick,
    /// A start waits for it: a device that hangs is given up at once, and found again later.
    pub(crate) is_awaited: bool,
}

/// What an outcome meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AreaOutcome<A> {
    /// The own block was written.
    Written(Wrote),
    /// A place was read; the read was begun at this tick.
    Read(A, Tick),
    /// Nothing that matters; what failed is tried again.
    Nothing,
    /// The device is lost from now on.
    Lost(IoFailure),
    /// A device that was lost for its silence is given up: if no other is left, the writer is at its end.
    GivenUp,
    /// A lost device answers again.
    Found,
}

/// What a write of the own block has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrote {
    /// It said something that hadn't been said on that device.
    pub(crate) is_news: bool,
    /// The fence opens once the machine has read what it has to ([`FixedAreas::unfence`]).
    pub(crate) is_proving: bool,
}

/// The next thing to do on a device.
#[derive(Debug)]
pub(crate) enum AreaWork {
    /// A read.
    Request(IoRequest),
    /// The machine is to write its block on the device with this index.
    Write(usize),
}

/// Which works may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AreaWrites {
    Allowed,
    Forbidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceState {
    Open,
    Fenced,
    /// The block was written again at this tick.
    Proving(Tick),
}

/// One device as a writer uses it.
#[derive(Debug)]
pub(crate) struct AreaDevice<R> {
    index: DeviceIndex,
    posting: Posting,
    lost: Option<Probe>,
    /// When it was found last, and how long the probes had paused then.
    found: Option<(Tick, Duration)>,
    /// It is lost for its silence alone, which may end.
    is_silent: bool,
    progress: Progress,
    failures: u32,
    /// The block is to be written, whatever there is to say.
    beat: bool,
    pub(crate) reads: R,
}

impl<R: Reads> AreaDevice<R> {
    pub(crate) fn index(&self) -> DeviceIndex {
        self.index
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether what a start has to know was read here, or never will be.
    pub(crate) fn is_known(&self) -> bool {
        self.is_lost() || self.reads.is_known()
    }

    /// Old content was read where newer was written: the block is written again.
    pub(crate) fn repair(&mut self) {
        self.beat = true;
    }

    fn is_quiet(&self) -> bool {
        let probe = self.lost.as_ref().is_none_or(Probe::is_quiet);
        probe && self.posting.pair.is_quiet() && self.reads.is_quiet()
    }

    fn owns(&self, id: IoId) -> bool {
        let probes = self.lost.as_ref().is_some_and(|probe| probe.owns(id));
        probes || self.posting.pair.owns(id) || self.reads.owns(id)
    }

    fn has_to_write(&self, revision: u64) -> bool {
        self.beat || self.posting.has_to_write(revision)
    }

    fn poll_read(&mut self, now: Tick, ids: &mut IoIds) -> Option<IoRequest> {
        if let Some(probe) = &mut self.lost {
            return probe.poll(now, ids, self.index);
        }
        let read_back = self.posting.pair.poll_read_back(ids, now);
        read_back.or_else(|| self.reads.poll(now, ids, self.index))
    }

    fn wants_write(&self, now: Tick, revision: u64) -> bool {
        !self.is_lost() && self.posting.pair.is_ready(now) && self.has_to_write(revision)
    }

    /// When a write that has to wait, or a probe, may begin.
    fn retry_at(&self, revision: u64) -> Option<Tick> {
        match &self.lost {
            Some(probe) => probe.at(),
            None if self.has_to_write(revision) => self.posting.pair.ready_at(),
            None => None,
        }
    }

    fn handle_probe(&mut self, now: Tick, outcome: IoOutcome<'_>) -> AreaOutcome<R::Area> {
        if !matches!(outcome, IoOutcome::Read(_)) {
            if let Some(probe) = &mut self.lost {
                probe.failed(now);
            }
            self.failures += 1;
            let is_over = self.failures >= READ_FAILURES_MAX;
            return if is_over && std::mem::take(&mut self.is_silent) {
                AreaOutcome::GivenUp
            } else {
                AreaOutcome::Nothing
            };
        }
        self.found = self.lost.take().map(|probe| (now, probe.pause()));
        self.is_silent = false;
        self.failures = 0;
        self.posting.pair.forgive();
        AreaOutcome::Found
    }

    fn handle_read(&mut self, id: IoId, outcome: IoOutcome<'_>) -> AreaOutcome<R::Area> {
        let (end, failure) = match outcome {
            IoOutcome::Read(_) => (ReadEnd::Whole, None),
            IoOutcome::Failed(failure) => (ReadEnd::Failed, Some(failure)),
            IoOutcome::Written => (ReadEnd::Failed, None),
        };
        let Some(done) = self.reads.ended(id, end) else {
            return AreaOutcome::Nothing;
        };
        let Some(failure) = failure else {
            self.failures = 0;
            return AreaOutcome::Read(done.area, done.started);
        };
        self.failures += 1;
        let hangs = failure == IoFailure::TimedOut && done.is_awaited;
        let gone = failure == IoFailure::DeviceGone;
        if gone || hangs || self.failures >= READ_FAILURES_MAX {
            AreaOutcome::Lost(failure)
        } else {
            AreaOutcome::Nothing
        }
    }
}

/// The fixed areas of one writer on the devices that it opened.
#[derive(Debug)]
pub(crate) struct FixedAreas<R> {
    pub(crate) ids: IoIds,
    pub(crate) devices: Vec<AreaDevice<R>>,
    timeouts: Timeouts,
    /// The incarnation of a member, the epoch of a coordinator.
    writer: u64,
    /// The last counter that was written, or that a predecessor left.
    counter: Counter,
    /// This writer's counters are above this.
    inherited: Counter,
    /// Advances with every change of the block's content.
    revision: u64,
    fence: FenceState,
    /// When the last block that was written was begun.
    written_at: Tick,
    beat_at: Tick,
}

impl<R: Reads> FixedAreas<R> {
    /// The areas of `writer`, whose block's copies lie at `copies` on each of `devices`.
    pub(crate) fn new(
        now: Tick,
        geometry: &Geometry,
        devices: DeviceMask,
        (writer, copies): (u64, [Lba; 2]),
        reads: impl Fn() -> R,
    ) -> Self {
        let device = |index| AreaDevice {
            index,
            posting: Posting::new(index, copies),
            lost: None,
            found: None,
            is_silent: false,
            progress: Progress::default(),
            failures: 0,
            beat: false,
            reads: reads(),
        };
        let timeouts = geometry.timeouts();
        let devices = geometry.all_devices().and(devices);
        Self {
            ids: IoIds::default(),
            devices: devices.iter().map(device).collect(),
            timeouts,
            writer,
            counter: Counter(0),
            inherited: Counter(0),
            revision: 1,
            fence: FenceState::Open,
            written_at: now,
            beat_at: now + timeouts.heartbeat,
        }
    }

    pub(crate) fn position(&self, device: DeviceIndex) -> Option<usize> {
        let mut devices = self.devices.iter();
        devices.position(|known| known.index == device)
    }

    /// The devices that aren't lost and for which `holds` is true.
    pub(crate) fn mask(&self, holds: impl Fn(&R) -> bool) -> DeviceMask {
        let there = self.devices.iter().filter(|device| !device.is_lost());
        there
            .filter(|device| holds(&device.reads))
            .fold(DeviceMask::NONE, |mask, device| {
                mask.or(DeviceMask::only(device.index))
            })
    }

    /// The first device that isn't lost: the one that is polled.
    pub(crate) fn primary(&mut self) -> Option<&mut AreaDevice<R>> {
        self.devices.iter_mut().find(|device| !device.is_lost())
    }

    pub(crate) fn is_primary(&self, holds: impl Fn(&R) -> bool) -> bool {
        let primary = self.devices.iter().find(|device| !device.is_lost());
        primary.is_some_and(|device| holds(&device.reads))
    }

    /// Whether no device is left, nor one that is merely silent.
    pub(crate) fn are_all_given_up(&self) -> bool {
        let mut devices = self.devices.iter();
        devices.all(|device| device.is_lost() && !device.is_silent)
    }

    fn is_any_there(&self) -> bool {
        self.devices.iter().any(|device| !device.is_lost())
    }

    /// The devices that aren't lost and have answered of late, or if there is none, those that aren't lost.
    pub(crate) fn answering(&self, now: Tick) -> DeviceMask {
        let patience = self.timeouts.route_leave;
        let there = self.mask(|_| true);
        let is_silent = |device: &&AreaDevice<R>| device.progress.is_silent(now, patience);
        let answering = self.devices.iter().filter(is_silent);
        let answering = answering.fold(there, |mask, device| mask.without(device.index));
        if answering.is_empty() {
            there
        } else {
            answering
        }
    }

    /// Whether what a start has to know was read on every device that isn't lost.
    pub(crate) fn are_known(&self) -> bool {
        self.is_any_there() && self.devices.iter().all(AreaDevice::is_known)
    }

    pub(crate) fn are_quiet(&self) -> bool {
        self.devices.iter().all(AreaDevice::is_quiet)
    }

    /// There is something new to say.
    pub(crate) fn changed(&mut self) {
        self.revision += 1;
    }

    /// Whether what there is to say stands on every device that isn't lost.
    pub(crate) fn has_said_all(&self) -> bool {
        let mut devices = self.devices.iter();
        self.is_any_there()
            && devices.all(|device| device.is_lost() || device.posting.has_written(self.revision))
    }

    /// Another writer's counter was read.
    pub(crate) fn inherit(&mut self, counter: Counter) {
        self.counter = self.counter.max(counter);
    }

    /// Writing begins, above all that was inherited (§3.1).
    pub(crate) fn succeed(&mut self, now: Tick) {
        self.inherited = self.counter.succession();
        self.counter = self.inherited;
        self.restart_fence(now);
    }

    /// What this writer's counters, and no predecessor's, are above.
    pub(crate) fn inherited(&self) -> Counter {
        self.inherited
    }

    /// The time without a written block counts from now.
    pub(crate) fn restart_fence(&mut self, now: Tick) {
        self.written_at = now;
    }

    /// The stamp of the next block.
    pub(crate) fn stamp(&mut self) -> Stamp {
        self.counter = self.counter.next();
        Stamp {
            counter: self.counter,
            writer: self.writer,
        }
    }

    /// Whether `stamp` is this writer's.
    pub(crate) fn is_own(&self, stamp: Stamp) -> bool {
        stamp.writer == self.writer
    }

    /// Whether a counter was seen in this writer's place that it hasn't come to yet.
    pub(crate) fn is_behind(&self, seen: Counter) -> bool {
        seen > self.counter
    }

    /// Another writer's counter was read in this writer's place: what is written next is newer.
    pub(crate) fn outdo(&mut self, counter: Counter) {
        self.counter = self.counter.max(counter);
    }

    /// Whether another writer has taken over in a later succession than this one's (§3.1).
    pub(crate) fn is_succeeded_by(&self, stamp: Stamp) -> bool {
        self.is_overtaken_by(stamp) && stamp.counter.successions() > self.inherited.successions()
    }

    /// Whether another writer has taken over: its counter is above what this one inherited.
    pub(crate) fn is_overtaken_by(&self, stamp: Stamp) -> bool {
        !self.is_own(stamp) && stamp.counter > self.inherited
    }

    /// Whether what was found in this writer's place on a device can be passed over, be it valid or not: by its own word it
    /// is this writer's, and nothing that a clone of it wrote. That spares the check of a tag at each heartbeat.
    pub(crate) fn is_harmless(&self, at: usize, found: Unchecked<'_>, copy: &[u8]) -> bool {
        let stamp = found.claimed_stamp();
        self.is_own(stamp) && !self.is_cloned(at, stamp, copy)
    }

    /// Whether what was found under this writer's own name on a device was written by a clone of it.
    pub(crate) fn is_cloned(&self, at: usize, stamp: Stamp, copy: &[u8]) -> bool {
        if !self.is_own(stamp) {
            return false;
        }
        let last = self.devices[at].posting.pair.last();
        let is_last = last
            .and_then(|block| Unchecked::new(&block.0).ok())
            .is_some_and(|block| block.claimed_stamp() == stamp);
        let differs = last.is_some_and(|block| block.0[..] != copy[..BLOCK_BYTES]);
        stamp.counter > self.counter || (is_last && differs)
    }

    /// Takes the outcome of an I/O of these areas: on which device, and what it meant; `None` if it isn't theirs.
    pub(crate) fn handle_io(
        &mut self,
        now: Tick,
        id: IoId,
        outcome: IoOutcome<'_>,
    ) -> Option<(usize, AreaOutcome<R::Area>)> {
        let at = self.devices.iter().position(|device| device.owns(id))?;
        let device = &mut self.devices[at];
        let failure = match outcome {
            IoOutcome::Failed(failure) => Some(failure),
            IoOutcome::Read(_) | IoOutcome::Written => None,
        };
        let is_silent = device.progress.ended(now, id, failure);
        let probes = device.lost.as_ref().is_some_and(|probe| probe.owns(id));
        let done = if probes {
            device.handle_probe(now, outcome)
        } else if device.posting.pair.owns(id) {
            match device.posting.handle(now, outcome) {
                PairOutcome::Written => AreaOutcome::Written(self.written(now, at)),
                PairOutcome::ReadBack | PairOutcome::Failed(_) => AreaOutcome::Nothing,
                PairOutcome::Lost(failure) => AreaOutcome::Lost(failure),
            }
        } else {
            device.handle_read(id, outcome)
        };
        let done = match (done, failure) {
            (AreaOutcome::Lost(_), _) if !self.lose(now, at) => AreaOutcome::Nothing,
            // Nothing else was answered meanwhile: no more I/O is to wait there for its deadline.
            (AreaOutcome::Nothing, Some(failure)) if is_silent && self.lose(now, at) => {
                AreaOutcome::Lost(failure)
            }
            (done, _) => done,
        };
        if matches!(done, AreaOutcome::Lost(_)) {
            self.devices[at].is_silent = is_silent;
        }
        Some((at, done))
    }

    /// A device is lost; false if it was before.
    pub(crate) fn lose(&mut self, now: Tick, at: usize) -> bool {
        let device = &mut self.devices[at];
        if device.is_lost() {
            return false;
        }
        let timeouts = &self.timeouts;
        let again = device
            .found
            .filter(|&(found, _)| now.since(found) < timeouts.dead);
        device.lost = Some(match again {
            Some((_, pause)) => Probe::again(now, timeouts, pause),
            None => Probe::new(now, timeouts),
        });
        device.failures = 0;
        device.reads.lost();
        true
    }

    /// What there is to do next.
    pub(crate) fn poll_io(&mut self, now: Tick, writes: AreaWrites) -> Option<AreaWork> {
        for (at, device) in self.devices.iter_mut().enumerate() {
            if let Some(request) = device.poll_read(now, &mut self.ids) {
                device.progress.begun(now, request.id);
                return Some(AreaWork::Request(request));
            }
            if writes == AreaWrites::Allowed && device.wants_write(now, self.revision) {
                return Some(AreaWork::Write(at));
            }
        }
        None
    }

    /// Begins to write the block on a device that [`FixedAreas::poll_io`] has named.
    pub(crate) fn write(&mut self, now: Tick, at: usize, block: Box<Block>) -> IoRequest {
        let device = &mut self.devices[at];
        device.beat = false;
        let revision = self.revision;
        let request = device.posting.write(now, &mut self.ids, block, revision);
        device.progress.begun(now, request.id);
        request
    }

    /// When something here is due.
    pub(crate) fn poll_timeout(&self, writes: AreaWrites) -> Tick {
        self.devices
            .iter()
            .filter(|_| writes == AreaWrites::Allowed)
            .filter_map(|device| device.retry_at(self.revision))
            .fold(self.beat_at, Tick::min)
    }

    /// Whether a heartbeat is due: the block is written on each device then.
    pub(crate) fn is_beat_due(&mut self, now: Tick) -> bool {
        if now < self.beat_at {
            return false;
        }
        self.beat_at = now + self.timeouts.heartbeat;
        self.beat();
        true
    }

    /// The block is to be written on each device, whatever there is to say.
    pub(crate) fn beat(&mut self) {
        for device in &mut self.devices {
            device.beat = true;
        }
    }

    pub(crate) fn is_fence_open(&self) -> bool {
        self.fence == FenceState::Open
    }

    /// When the fence comes down, unless the block is written before.
    pub(crate) fn fence_at(&self) -> Option<Tick> {
        (self.fence == FenceState::Open).then(|| self.written_at + self.timeouts.fence)
    }

    /// Whether the fence comes down now: the block couldn't be written for too long.
    pub(crate) fn is_fenced_now(&mut self, now: Tick) -> bool {
        let is_due = self.fence_at().is_some_and(|at| now >= at);
        if is_due {
            self.fence = FenceState::Fenced;
        }
        is_due
    }

    /// Since when reads count that prove that a fenced writer is believed alive still.
    pub(crate) fn proving_since(&self) -> Option<Tick> {
        match self.fence {
            FenceState::Proving(since) => Some(since),
            FenceState::Open | FenceState::Fenced => None,
        }
    }

    /// The machine has read what it has to.
    pub(crate) fn unfence(&mut self) {
        self.fence = FenceState::Open;
    }

    fn written(&mut self, now: Tick, at: usize) -> Wrote {
        let posting = &self.devices[at].posting;
        self.written_at = self.written_at.max(posting.began());
        let is_proving = self.fence == FenceState::Fenced;
        if is_proving {
            self.fence = FenceState::Proving(now);
        }
        Wrote {
            is_news: posting.was_news(),
            is_proving,
        }
    }
}
