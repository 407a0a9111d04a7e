//! What each route carried, for a job's summary.

use crate::{Decision, Reason, Route, router::Carried};
use std::{collections::BTreeMap, time::Duration};

/// Bodies carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Traffic {
    /// How many bodies.
    pub objects: u64,
    /// How many bytes of bodies, without headers and sealing.
    pub bytes: u64,
}

/// Bodies carried by each route in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ByRoute {
    /// Over TCP.
    pub network: Traffic,
    /// Through the pool.
    pub storage: Traffic,
}

/// Bodies by route and direction as the client counts them, and why the network was taken.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RouteReport {
    /// From the client to the server.
    pub sent: ByRoute,
    /// From the server to the client.
    pub received: ByRoute,
    /// Every body that took the network, by reason, both directions together.
    pub reasons: BTreeMap<Reason, Traffic>,
    /// Bodies that were begun once more, because their route failed under them.
    pub repeated: Traffic,
    /// The routes that were lost and taken back, and where requests went, the oldest first; after [`CHANGES_KEPT_MAX`] of them the newest are
    /// only counted.
    pub changes: Vec<RouteChange>,
    /// How many changes were not kept.
    pub changes_left_out: u64,
    /// What carries requests and answers, while anything does.
    pub control: Option<Route>,
}

/// Something that moved in the middle of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// How long the session had lasted.
    pub after: Duration,
    /// What moved.
    pub change: Change,
}

/// What can move. A loss has its reason, and the facts, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A route takes bodies no more.
    Lost(Route, Reason, String),
    /// It does again.
    TakenBack(Route),
    /// The connection for requests and answers, which took this route, was lost.
    ControlLost(Route, Reason, String),
    /// There is another, by this route.
    Control(Route),
}

/// Changes of routes that a report keeps.
pub const CHANGES_KEPT_MAX: usize = 100;

impl Traffic {
    /// Counts one body.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl ByRoute {
    /// Counts one body on the route that was decided.
    pub fn add(&mut self, route: Route, bytes: u64) {
        match route {
            Route::Network => self.network.add(bytes),
            Route::Storage => self.storage.add(bytes),
        }
    }

    /// What the router wants to know.
    #[must_use]
    pub const fn carried(&self) -> Carried {
        Carried {
            network: self.network.bytes,
            storage: self.storage.bytes,
        }
    }
}

impl RouteReport {
    /// Counts a body that was sent whole.
    pub fn sent(&mut self, decision: Decision, bytes: u64) {
        self.sent.add(decision.route(), bytes);
        self.reason(decision, bytes);
    }

    /// Counts a body that was received whole.
    pub fn received(&mut self, decision: Decision, bytes: u64) {
        self.received.add(decision.route(), bytes);
        self.reason(decision, bytes);
    }

    fn reason(&mut self, decision: Decision, bytes: u64) {
        if let Decision::Network(reason) = decision {
            self.reasons.entry(reason).or_default().add(bytes);
        }
    }

    /// A body has to be begun once more.
    pub fn repeated(&mut self, bytes: u64) {
        self.repeated.add(bytes);
    }

    /// A route was lost or taken back.
    pub fn changed(&mut self, change: RouteChange) {
        if self.changes.len() < CHANGES_KEPT_MAX {
            self.changes.push(change);
        } else {
            self.changes_left_out += 1;
        }
    }

    /// Both directions of the network together.
    #[must_use]
    pub fn network(&self) -> Traffic {
        self.sent.network.plus(self.received.network)
    }

    /// Both directions of storage together.
    #[must_use]
    pub fn storage(&self) -> Traffic {
        self.sent.storage.plus(self.received.storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_body_has_its_reason() {
        let mut report = RouteReport::default();
        report.sent(Decision::Storage, 1000);
        report.sent(Decision::Network(Reason::Small), 3);
        report.received(Decision::Network(Reason::DeviceError), 70);
        assert_eq!(
            report.storage(),
            Traffic {
                objects: 1,
                bytes: 1000
            }
        );
        assert_eq!(
            report.network(),
            Traffic {
                objects: 2,
                bytes: 73
            }
        );
        let reasons = report
            .reasons
            .values()
            .fold(Traffic::default(), |sum, t| sum.plus(*t));
        assert_eq!(reasons, report.network());
    }
}
