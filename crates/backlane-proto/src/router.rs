//! The router: one pure function that says which route a call takes, and why.
//!
//! Both sides ask it: the client for the bodies that it puts, the server for the bodies that it answers with. Under
//! [`RoutePolicy::RequireStorage`] it never names the network for a body, whatever its size.

use crate::{ObjectKind, Route, RoutePolicy};
use std::fmt;

/// Largest body that counts as small, in bytes.
pub const SMALL_BODY_BYTES_MAX: u64 = 64 * 1024;

/// Small bodies take the network only while all that it carries stays below one part in so many of what storage
/// carries. The promise to users is 1 in 50; the rest is room for requests, doorbells and TLS.
pub const SMALL_SHARE_DIVISOR: u64 = 200;

/// A call, as far as the router cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub kind: CallKind,
    /// Length of its body in bytes; zero where there is none.
    pub bytes: u64,
}

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// Names and sizes of objects; no object's bytes.
    List,
    /// Removes an object; no object's bytes.
    Remove,
    /// A body on its way to the client.
    Get(ObjectKind),
    /// A body on its way to the server.
    Put(ObjectKind),
}

/// Whether each route can take a body now, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The network data connection.
    pub network: Result<(), Reason>,
    /// The storage data connection.
    pub storage: Result<(), Reason>,
}

impl Health {
    /// Both routes can take bodies.
    pub const WELL: Self = Self {
        network: Ok(()),
        storage: Ok(()),
    };

    /// What holds where the other side sees the routes like this: a route is up when both have it. What this side knows
    /// to be wrong is the reason to tell, unless all that it knows is that the other has not come yet.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let both = |own: Result<(), Reason>, other: Result<(), Reason>| match (own, other) {
            (Ok(()) | Err(Reason::Pending | Reason::NoAnswer), Err(theirs)) => Err(theirs),
            (own, _) => own,
        };
        Self {
            network: both(self.network, other.network),
            storage: both(self.storage, other.storage),
        }
    }
}

/// Bytes of bodies that each route has carried in this session, in the direction that is decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Carried {
    /// Bytes by network.
    pub network: u64,
    /// Bytes by storage.
    pub storage: u64,
}

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Through the pool.
    Storage,
    /// Over the network, for this reason.
    Network(Reason),
}

/// No route may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no route for the call under {policy}: {reason}")]
pub struct Refusal {
    /// The policy that was in force.
    pub policy: RoutePolicy,
    /// What keeps the call from the route that it would have had to take.
    pub reason: Reason,
}

/// Why a call took the network, or why a route can't be used.
///
/// The numbers travel between hosts and stand in recorded reports; none is ever given a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A reason that this version doesn't know.
    Unknown,
    /// The call has no body.
    NoBody,
    /// The body is small.
    Small,
    /// The policy rules the other route out.
    Policy,
    /// This host has no pool configured.
    NoPool,
    /// The server has no pool.
    ServerHasNoPool,
    /// The pool's devices were not found or could not be opened.
    PoolNotFound,
    /// Client and server have different pools.
    OtherPool,
    /// The server does not allow this host that slot.
    SlotRefused,
    /// All slots of this host are in use.
    SlotsBusy,
    /// A challenge written to the device by one side was not seen by the other.
    ChallengeNotSeen,
    /// No answer came through the pool in time.
    NoAnswer,
    /// The pool has no coordinator, or it is busy.
    CoordinatorBusy,
    /// The pool has no segments left.
    NoFreeSegments,
    /// A device failed.
    DeviceError,
    /// The other side's counter in the pool stands still.
    LivenessLost,
    /// The storage connection was reset or ended.
    StreamReset,
    /// The storage connection is being established.
    Pending,
    /// The other side does not speak of storage in a way known here.
    Unsupported,
    /// The network data connection is not open.
    NetworkDown,
    /// The connection that carries requests and answers was lost.
    ControlLost,
    /// There is no connection for requests and answers.
    Unreachable,
    /// The server can be reached, and client and server don't agree on a session.
    Refused,
    /// The body is a probe of the network.
    Probe,
    /// A device has not the size or the blocks that the pool was made with.
    Geometry,
}

/// Decides which route a call takes, or that none may be used.
///
/// # Errors
/// When the policy and the health of the routes leave no route; a refusal names what keeps the call from storage where
/// storage was asked for.
pub fn decide(
    call: Call,
    policy: RoutePolicy,
    health: Health,
    carried: Carried,
) -> Result<Decision, Refusal> {
    if matches!(call.kind, CallKind::List | CallKind::Remove) {
        return Ok(Decision::Network(Reason::NoBody));
    }
    let by_network = |why: Reason| match health.network {
        Ok(()) => Ok(Decision::Network(why)),
        // Where the network was the way out, the first cause is the one to tell.
        Err(down) => Err(Refusal {
            policy,
            reason: if why == Reason::Policy { down } else { why },
        }),
    };
    match (policy, health.storage) {
        (RoutePolicy::Network, _) => by_network(Reason::Policy),
        (RoutePolicy::RequireStorage | RoutePolicy::StorageOnly, Ok(())) => Ok(Decision::Storage),
        (RoutePolicy::RequireStorage | RoutePolicy::StorageOnly, Err(reason)) => {
            Err(Refusal { policy, reason })
        }
        (RoutePolicy::PreferStorage, Err(reason)) => by_network(reason),
        (RoutePolicy::PreferStorage, Ok(())) => {
            let fits =
                carried.network.saturating_add(call.bytes) <= carried.storage / SMALL_SHARE_DIVISOR;
            if call.bytes <= SMALL_BODY_BYTES_MAX && fits && health.network.is_ok() {
                Ok(Decision::Network(Reason::Small))
            } else {
                Ok(Decision::Storage)
            }
        }
    }
}

/// Decides about a probe, which takes the route that it names or none.
///
/// # Errors
/// When the policy rules that route out for bodies, or it is down.
pub fn decide_probe(
    route: Route,
    policy: RoutePolicy,
    health: Health,
) -> Result<Decision, Refusal> {
    let (up, decision) = match route {
        Route::Network => (health.network, Decision::Network(Reason::Probe)),
        Route::Storage => (health.storage, Decision::Storage),
    };
    let allowed = policy.allows(route).then_some(()).ok_or(Reason::Policy);
    match allowed.and(up) {
        Ok(()) => Ok(decision),
        Err(reason) => Err(Refusal { policy, reason }),
    }
}

impl Decision {
    /// The route.
    #[must_use]
    pub const fn route(self) -> Route {
        match self {
            Self::Storage => Route::Storage,
            Self::Network(_) => Route::Network,
        }
    }

    /// Why the network was taken; `None` for storage.
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Storage => None,
            Self::Network(reason) => Some(reason),
        }
    }
}

impl Reason {
    /// Every reason, with its number, its name in JSON and its sentence.
    const TABLE: [(Self, u32, &'static str, &'static str); 25] = [
        (
            Self::Unknown,
            0,
            "unknown",
            "a reason that this version does not know",
        ),
        (
            Self::NoBody,
            1,
            "no_body",
            "the call carries no object's bytes",
        ),
        (Self::Small, 2, "small", "the body is small"),
        (Self::Policy, 3, "policy", "the route policy says so"),
        (
            Self::NoPool,
            4,
            "no_pool",
            "this host has no pool configured",
        ),
        (
            Self::ServerHasNoPool,
            5,
            "server_has_no_pool",
            "the server has no pool",
        ),
        (
            Self::PoolNotFound,
            6,
            "pool_not_found",
            "the devices of the pool could not be found or opened",
        ),
        (
            Self::OtherPool,
            7,
            "other_pool",
            "client and server have different pools",
        ),
        (
            Self::SlotRefused,
            8,
            "slot_refused",
            "the server does not allow this host its slot in the pool",
        ),
        (
            Self::SlotsBusy,
            9,
            "slots_busy",
            "every slot of this host in the pool is in use",
        ),
        (
            Self::ChallengeNotSeen,
            10,
            "challenge_not_seen",
            "what one side wrote to the pool's devices the other did not see",
        ),
        (
            Self::NoAnswer,
            11,
            "no_answer",
            "no answer came through the pool in time",
        ),
        (
            Self::CoordinatorBusy,
            12,
            "coordinator_busy",
            "the pool's coordinator is absent or busy",
        ),
        (
            Self::NoFreeSegments,
            13,
            "no_free_segments",
            "the pool has no free segments",
        ),
        (
            Self::DeviceError,
            14,
            "device_error",
            "a device of the pool failed",
        ),
        (
            Self::LivenessLost,
            15,
            "liveness_lost",
            "the other side shows no sign of life in the pool",
        ),
        (
            Self::StreamReset,
            16,
            "stream_reset",
            "the storage connection was reset",
        ),
        (
            Self::Pending,
            17,
            "pending",
            "the storage connection is still being established",
        ),
        (
            Self::Unsupported,
            18,
            "unsupported",
            "the other side does not offer storage in a way known here",
        ),
        (
            Self::NetworkDown,
            19,
            "network_down",
            "the network data connection is not open",
        ),
        (
            Self::ControlLost,
            20,
            "control_lost",
            "the connection that carries requests and answers was lost",
        ),
        (
            Self::Unreachable,
            21,
            "unreachable",
            "the server could not be reached",
        ),
        (
            Self::Refused,
            22,
            "refused",
            "client and server did not agree on a session",
        ),
        (
            Self::Probe,
            23,
            "probe",
            "the body is a probe of the network",
        ),
        (
            Self::Geometry,
            24,
            "geometry",
            "a device of the pool has not the size or the blocks that the pool was made with",
        ),
    ];

    /// Every reason, in the order of the numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, u32, &'static str, &'static str) {
        Self::TABLE
            .iter()
            .find(|row| row.0 == self)
            .unwrap_or(&Self::TABLE[0])
    }

    /// What is known of a route whose pair ended, where nothing more is.
    #[must_use]
    pub const fn of_ended(route: Route) -> Self {
        match route {
            Route::Network => Self::NetworkDown,
            Route::Storage => Self::StreamReset,
        }
    }

    /// The number that travels between hosts.
    #[must_use]
    pub fn code(self) -> u32 {
        self.row().1
    }

    /// The reason with this number; [`Reason::Unknown`] for a number of a later version.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        Self::TABLE
            .iter()
            .find(|row| row.1 == code)
            .map_or(Self::Unknown, |row| row.0)
    }

    /// The stable name for JSON, in `snake_case`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn any_reason() -> impl Strategy<Value = Reason> {
        proptest::sample::select(Reason::all().collect::<Vec<_>>())
    }

    fn any_health() -> impl Strategy<Value = Health> {
        let route = || prop_oneof![Just(Ok(())), any_reason().prop_map(Err)];
        (route(), route()).prop_map(|(network, storage)| Health { network, storage })
    }

    fn any_body() -> impl Strategy<Value = CallKind> {
        let kind = || proptest::sample::select(ObjectKind::ALL.to_vec());
        prop_oneof![
            kind().prop_map(CallKind::Get),
            kind().prop_map(CallKind::Put)
        ]
    }

    fn any_policy() -> impl Strategy<Value = RoutePolicy> {
        proptest::sample::select(vec![
            RoutePolicy::PreferStorage,
            RoutePolicy::RequireStorage,
            RoutePolicy::Network,
            RoutePolicy::StorageOnly,
        ])
    }

    proptest! {
        #[test]
        fn require_storage_never_names_the_network_for_a_body(
            kind in any_body(), bytes in any::<u64>(), health in any_health(),
            network in any::<u64>(), storage in any::<u64>(), only in any::<bool>(),
        ) {
            let carried = Carried { network, storage };
            let policy = if only { RoutePolicy::StorageOnly } else { RoutePolicy::RequireStorage };
            match decide(Call { kind, bytes }, policy, health, carried) {
                Ok(decision) => prop_assert_eq!(decision, Decision::Storage),
                Err(refusal) => prop_assert_eq!(Err(refusal.reason), health.storage),
            }
        }

        #[test]
        fn no_decision_names_a_route_that_is_down(
            kind in any_body(), bytes in any::<u64>(), health in any_health(), policy in any_policy(),
            network in any::<u64>(), storage in any::<u64>(),
        ) {
            let carried = Carried { network, storage };
            if let Ok(decision) = decide(Call { kind, bytes }, policy, health, carried) {
                let up = match decision.route() {
                    Route::Network => health.network.is_ok(),
                    Route::Storage => health.storage.is_ok(),
                };
                prop_assert!(up);
            }
        }

        #[test]
        fn a_probe_takes_the_route_that_it_names_where_that_is_up_and_within_the_policy(
            by_storage in any::<bool>(), health in any_health(), policy in any_policy(),
        ) {
            let (route, up) = match by_storage {
                true => (Route::Storage, health.storage),
                false => (Route::Network, health.network),
            };
            match decide_probe(route, policy, health) {
                Ok(decision) => {
                    prop_assert!(policy.allows(route) && up.is_ok());
                    prop_assert_eq!(decision.route(), route);
                }
                Err(refusal) if policy.allows(route) => prop_assert_eq!(Err(refusal.reason), up),
                Err(refusal) => prop_assert_eq!(refusal.reason, Reason::Policy),
            }
        }

        #[test]
        fn small_bodies_alone_never_exceed_their_share(sizes in proptest::collection::vec(0..3_000_000_u64, 0..400)) {
            let health = Health { network: Ok(()), storage: Ok(()) };
            let mut carried = Carried::default();
            for bytes in sizes {
                let call = Call { kind: CallKind::Put(ObjectKind::Pack), bytes };
                match decide(call, RoutePolicy::PreferStorage, health, carried).unwrap() {
                    Decision::Storage => carried.storage += bytes,
                    Decision::Network(reason) => {
                        prop_assert_eq!(reason, Reason::Small);
                        carried.network += bytes;
                    }
                }
                prop_assert!(carried.network <= carried.storage / 50);
            }
        }

        #[test]
        fn prefer_storage_serves_while_any_route_is_up(kind in any_body(), bytes in any::<u64>(), health in any_health()) {
            let decided = decide(Call { kind, bytes }, RoutePolicy::PreferStorage, health, Carried::default());
            prop_assert_eq!(decided.is_ok(), health.network.is_ok() || health.storage.is_ok());
        }
    }

    #[test]
    fn a_route_is_up_when_both_sides_have_it_and_the_side_that_knows_more_names_the_reason() {
        let health = |storage| Health {
            storage,
            ..Health::WELL
        };
        let (lost, full) = (Err(Reason::DeviceError), Err(Reason::NoFreeSegments));
        for (own, other, both) in [
            (Ok(()), Ok(()), Ok(())),
            (Ok(()), full, full),
            (lost, Ok(()), lost),
            (lost, full, lost),
            (Err(Reason::Pending), full, full),
            (Err(Reason::NoAnswer), full, full),
            (Err(Reason::Pending), Ok(()), Err(Reason::Pending)),
        ] {
            assert_eq!(health(own).and(health(other)), health(both));
        }
    }

    #[test]
    fn reasons_keep_distinct_numbers_names_and_sentences() {
        let rows = Reason::all().count();
        let distinct =
            |f: fn(Reason) -> String| Reason::all().map(f).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|r| r.code().to_string()), rows);
        assert_eq!(distinct(|r| r.name().to_owned()), rows);
        assert_eq!(distinct(|r| r.to_string()), rows);
        for reason in Reason::all() {
            assert_eq!(Reason::from_code(reason.code()), reason);
        }
        assert_eq!(Reason::from_code(4_000_000), Reason::Unknown);
    }

    #[test]
    fn calls_without_a_body_need_no_data_route() {
        let down = Health {
            network: Err(Reason::NetworkDown),
            storage: Err(Reason::NoPool),
        };
        for kind in [CallKind::List, CallKind::Remove] {
            let call = Call { kind, bytes: 0 };
            let decided = decide(call, RoutePolicy::RequireStorage, down, Carried::default());
            assert_eq!(decided, Ok(Decision::Network(Reason::NoBody)));
        }
    }
}
