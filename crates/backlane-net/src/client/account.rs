//! What a client's session has done: bodies by route, and how the routes changed.
//!
//! Invariant: a route that was lost and taken back under way is in the report, whatever became of its calls.

use super::RouteDown;
use crate::status::Meter;
use backlane_proto::{
    Decision, Route, RouteReport,
    report::{ByRoute, Change, RouteChange},
    router::Carried,
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// The report while it grows.
pub(super) struct Account {
    began: Instant,
    books: Mutex<Books>,
    /// The same for those who look on: chunk by chunk, and the newest changes.
    pub(super) meter: Meter,
}

#[derive(Default)]
struct Books {
    report: RouteReport,
    /// What was decided about bodies on their way out, for the share of small ones.
    ledger: ByRoute,
    /// The start is over: a route that comes now was missing before.
    started: bool,
}

impl Account {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            books: Mutex::default(),
            meter: Meter::new(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Counters, each right by itself.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self) -> RouteReport {
        self.books().report.clone()
    }

    /// The first connections are made: what changes from now on is a change.
    pub(super) fn start(&self) {
        self.books().started = true;
    }

    pub(super) fn carried(&self) -> Carried {
        self.books().ledger.carried()
    }

    pub(super) fn decided(&self, decision: Decision, bytes: u64) {
        self.books().ledger.add(decision.route(), bytes);
    }

    pub(super) fn sent(&self, decision: Decision, bytes: u64) {
        self.books().report.sent(decision, bytes);
    }

    pub(super) fn received(&self, decision: Decision, bytes: u64) {
        self.books().report.received(decision, bytes);
    }

    pub(super) fn repeated(&self, bytes: u64) {
        self.books().report.repeated(bytes);
    }

    /// A route came up.
    pub(super) fn gained(&self, route: Route) {
        self.changed(Change::TakenBack(route));
    }

    /// A route that was up is not any more.
    pub(super) fn lost(&self, route: Route, down: &RouteDown) {
        self.changed(Change::Lost(route, down.reason, down.detail.clone()));
    }

    /// Requests take this route.
    pub(super) fn control(&self, route: Route) {
        self.books().report.control = Some(route);
        self.changed(Change::Control(route));
    }

    /// Requests have no way to the server.
    pub(super) fn control_lost(&self, route: Route, down: &RouteDown) {
        self.books().report.control = None;
        self.changed(Change::ControlLost(route, down.reason, down.detail.clone()));
    }

    fn changed(&self, change: Change) {
        self.meter.changed(change.clone());
        let after = self.began.elapsed();
        let mut books = self.books();
        if books.started {
            books.report.changed(RouteChange { after, change });
        }
    }
}
