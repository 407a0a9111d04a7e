//! A lost device is looked at again, ever more rarely: what came back may be granted again.

use crate::{
    geometry::{Geometry, Timeouts},
    io::{IoId, IoIds, IoRequest},
    types::{BlockCount, DeviceIndex, Tick},
};
use std::time::Duration;

/// The probes of one device while it is lost.
#[derive(Debug)]
pub(crate) struct Probe {
    at: Tick,
    pause: Duration,
    pause_max: Duration,
    under_way: Option<IoId>,
}

impl Probe {
    /// The device was lost at `now`: it is looked at after the time in which a route is left, and at least once in the
    /// time in which a peer dies.
    pub(crate) fn new(now: Tick, timeouts: &Timeouts) -> Self {
        Self {
            at: now + timeouts.route_leave,
            pause: timeouts.route_leave,
            pause_max: timeouts.dead.max(timeouts.route_leave),
            under_way: None,
        }
    }

    /// The device was lost again soon after it was found: what is probed answers there, and what is needed doesn't. It is
    /// looked at half as often as before.
    pub(crate) fn again(now: Tick, timeouts: &Timeouts, pause: Duration) -> Self {
        let mut probe = Self::new(now, timeouts);
        probe.pause = (pause * 2).clamp(timeouts.route_leave, probe.pause_max);
        probe.at = now + probe.pause;
        probe
    }

    /// The pause before the last probe.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    /// When the next probe is due.
    pub(crate) fn at(&self) -> Option<Tick> {
        self.under_way.is_none().then_some(self.at)
    }

    pub(crate) fn owns(&self, id: IoId) -> bool {
        self.under_way == Some(id)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.is_none()
    }

    /// A read of the coordinator's blocks, if a probe is due.
    pub(crate) fn poll(
        &mut self,
        now: Tick,
        ids: &mut IoIds,
        device: DeviceIndex,
    ) -> Option<IoRequest> {
        if self.under_way.is_some() || now < self.at {
            return None;
        }
        let id = ids.fresh();
        self.under_way = Some(id);
        let lba = Geometry::COORDINATOR;
        Some(IoRequest::read(id, device, lba, BlockCount(2)))
    }

    /// The probe failed.
    pub(crate) fn failed(&mut self, now: Tick) {
        self.under_way = None;
        self.pause = (self.pause * 2).min(self.pause_max);
        self.at = now + self.pause;
    }
}
