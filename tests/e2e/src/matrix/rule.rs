//! What has to come of a cell: the one place that knows.

use std::time::Duration;

use super::{Cell, Policy, Span};
use crate::fault::Fault;

/// What has to come of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The job is done, within these bounds.
    Done(Bounds),
    /// The job fails for want of a route that its policy allows, its message has this word, and the next job goes on.
    Fails(&'static str),
}

/// What a job that is done may have cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The longest time, from the fault on, in which nothing arrived.
    pub stall_max: Duration,
    /// Bytes of bodies that were begun once more.
    pub repeated_bytes_max: u64,
    /// Bytes of bodies on the network.
    pub network_bytes_max: u64,
}

/// A route is left after 5 s without progress.
const ROUTE_LEAVE: Duration = Duration::from_secs(5);

/// For a machine that does other things as well.
const MARGIN: Duration = Duration::from_secs(2);

/// From the end of a fault until the route that it took is in use again: the pauses before it is tried anew double, and
/// the last was as long as the fault at most.
const TAKEN_BACK: Duration = Duration::from_secs(20);

/// What may be under way when a route is lost.
const IN_FLIGHT_BYTES_MAX: u64 = 128 << 20;

/// How long faults are that pass.
pub(super) fn passes_after(fault: Fault) -> Duration {
    match fault {
        _ if fault.is_momentary() => Duration::ZERO,
        Fault::ServerPaused => Duration::from_secs(20),
        _ => Duration::from_secs(8),
    }
}

/// For how long a fault is made, under a policy: for good where another route is left.
pub(super) fn spans(fault: Fault, policy: Policy) -> &'static [Span] {
    match fault {
        _ if fault.is_momentary() => &[Span::Passing],
        _ if leaves_a_route(fault, policy) => &[Span::Lasting],
        Fault::ServerLosesDisk | Fault::ClientLosesDisk => &[Span::Passing, Span::Lasting],
        _ => &[Span::Passing],
    }
}

/// What has to come of a cell.
#[must_use]
pub fn expected(cell: Cell) -> Expected {
    let Cell {
        fault,
        span,
        policy,
        ..
    } = cell;
    let leaves_a_route = leaves_a_route(fault, policy);
    if span == Span::Lasting && !leaves_a_route {
        return Expected::Fails("storage");
    }
    let stall_max = match fault {
        // It goes on, or moves.
        _ if leaves_a_route || fault.is_momentary() => ROUTE_LEAVE,
        _ => passes_after(fault) + TAKEN_BACK,
    };
    let network_bytes_max = match policy {
        Policy::Prefer => u64::MAX,
        Policy::Require | Policy::Only => 0,
    };
    Expected::Done(Bounds {
        stall_max: stall_max + MARGIN,
        repeated_bytes_max: IN_FLIGHT_BYTES_MAX,
        network_bytes_max,
    })
}

/// Whether a job can go on while the fault lasts.
fn leaves_a_route(fault: Fault, policy: Policy) -> bool {
    match fault {
        Fault::ServerLosesDisk | Fault::ClientLosesDisk | Fault::IoErrors | Fault::HangingIo => {
            policy == Policy::Prefer
        }
        Fault::CableCut | Fault::AddressGone | Fault::AnswersLost => true,
        Fault::SlowIo
        | Fault::DiskOverwritten
        | Fault::ConnectionsReset
        | Fault::ServerKilled
        | Fault::ServerPaused => false,
    }
}
