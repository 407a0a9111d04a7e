//! The calls of a session that have a body on the way in, and what may arrive for them: the receiving half of the
//! session machine, the same on both sides.
//!
//! Invariants: call ids of requests only grow; a body is taken only for a call that expects one, only on the route
//! that was named for it, and never beyond or short of its announced length; the number of calls is bounded. A server
//! treats a chunk for a call it doesn't know as a breach, a client skips what belongs to a call that it gave up.

use crate::{ChunkFlag, ChunkHeader, Route};
use std::{collections::BTreeMap, fmt};

/// Calls that a client may have under way.
pub const CALLS_MAX: u32 = 64;
/// Calls that a session may have open. A client begins a call anew when its route has failed; until the server has
/// noticed that as well, the old one is open there.
pub const CALLS_OPEN_MAX: u32 = 2 * CALLS_MAX;

/// Number of a call within its session; zero stands for the session itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What a side does with a chunk that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It belongs to the body; more follows.
    Take,
    /// It belongs to the body and completes it.
    Complete,
    /// The sender gave the body up.
    Aborted,
    /// It belongs to a call that is over; skip its payload.
    Skip,
}

/// The peer broke the rules of calls and bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A request has a number that isn't greater than those before it.
    #[error("call {call} does not follow call {last}")]
    CallOutOfOrder {
        /// The number given.
        call: CallId,
        /// The greatest so far.
        last: CallId,
    },
    /// More calls under way than agreed.
    #[error("more than {CALLS_OPEN_MAX} calls at once")]
    TooManyCalls,
    /// A chunk for a call that expects no body.
    #[error("body for call {call}, which expects none")]
    UnexpectedBody {
        /// The call.
        call: CallId,
    },
    /// A chunk on another route than the one named for its call.
    #[error("body of call {call} came by {got} and was expected by {want}")]
    WrongRoute {
        /// The call.
        call: CallId,
        /// The route that was named.
        want: Route,
        /// The route it came by.
        got: Route,
    },
    /// A body longer than announced.
    #[error("body of call {call} is longer than its {want} bytes")]
    BodyTooLong {
        /// The call.
        call: CallId,
        /// The announced length.
        want: u64,
    },
    /// A body shorter than announced.
    #[error("body of call {call} ends after {got} of {want} bytes")]
    BodyTooShort {
        /// The call.
        call: CallId,
        /// The announced length.
        want: u64,
        /// What came.
        got: u64,
    },
}

/// What is known of a body on its way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The route named for it; `None` while the header that names it, where the caller didn't, is still on another
    /// connection.
    pub route: Option<Route>,
    /// Its length, or the most that it may have while the header isn't here.
    pub bytes_max: u64,
    /// Whether `bytes_max` is the exact length.
    pub exact: bool,
}

/// Bookkeeping of the calls of one session at the side that receives bodies.
#[derive(Debug, Default)]
pub struct Calls {
    last: CallId,
    open: BTreeMap<CallId, Option<Incoming>>,
}

#[derive(Clone, Copy, Debug)]
struct Incoming {
    expected: Expected,
    received: u64,
    route_seen: Option<Route>,
    end: Option<End>,
}

/// How a body came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Aborted,
}

impl Calls {
    /// No calls yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request begins.
    ///
    /// # Errors
    /// When its number doesn't grow or too many are under way.
    pub fn begin(&mut self, call: CallId) -> Result<(), Violation> {
        if call <= self.last {
            let last = self.last;
            return Err(Violation::CallOutOfOrder { call, last });
        }
        if self.open.len() >= CALLS_OPEN_MAX as usize {
            return Err(Violation::TooManyCalls);
        }
        self.last = call;
        self.open.insert(call, None);
        Ok(())
    }

    /// From now on the call takes a body. Does nothing for a call that is over.
    pub fn expect(&mut self, call: CallId, expected: Expected) {
        if let Some(slot) = self.open.get_mut(&call) {
            *slot = Some(Incoming {
                expected,
                received: 0,
                route_seen: None,
                end: None,
            });
        }
    }

    /// The header of a body arrived, perhaps after some of the body. Tells whether the body is complete already.
    ///
    /// # Errors
    /// When what came before does not fit the header.
    pub fn announce(&mut self, call: CallId, route: Route, bytes: u64) -> Result<bool, Violation> {
        let Some(Some(incoming)) = self.open.get_mut(&call) else {
            return Ok(false);
        };
        if let Some(got) = incoming.route_seen.filter(|seen| *seen != route) {
            let want = route;
            return Err(Violation::WrongRoute { call, want, got });
        }
        if let Some(want) = incoming.expected.route.filter(|want| *want != route) {
            let got = route;
            return Err(Violation::WrongRoute { call, want, got });
        }
        if bytes > incoming.expected.bytes_max || incoming.received > bytes {
            let want = bytes.min(incoming.expected.bytes_max);
            return Err(Violation::BodyTooLong { call, want });
        }
        let complete = incoming.end == Some(End::Complete);
        // A body that was given up says nothing of its length.
        if (complete && incoming.received != bytes)
            || (incoming.expected.exact && incoming.expected.bytes_max != bytes)
        {
            let got = incoming.received;
            let want = incoming.expected.bytes_max;
            return Err(Violation::BodyTooShort { call, want, got });
        }
        incoming.expected = Expected {
            route: Some(route),
            bytes_max: bytes,
            exact: true,
        };
        Ok(complete)
    }

    /// A chunk's header arrived by a route.
    ///
    /// # Errors
    /// When no such chunk may come.
    pub fn chunk(&mut self, header: ChunkHeader, got: Route) -> Result<Fate, Violation> {
        let call = header.call;
        let Some(open) = self.open.get_mut(&call) else {
            let known = call <= self.last && call != CallId::SESSION;
            let breach = Violation::UnexpectedBody { call };
            return if known { Ok(Fate::Skip) } else { Err(breach) };
        };
        let incoming = open
            .as_mut()
            .filter(|incoming| incoming.end.is_none())
            .ok_or(Violation::UnexpectedBody { call })?;
        if let Some(want) = incoming
            .expected
            .route
            .or(incoming.route_seen)
            .filter(|want| *want != got)
        {
            return Err(Violation::WrongRoute { call, want, got });
        }
        incoming.route_seen = Some(got);
        let want = incoming.expected.bytes_max;
        let received = incoming.received + u64::from(header.bytes);
        if received > want {
            return Err(Violation::BodyTooLong { call, want });
        }
        incoming.received = received;
        match header.flag {
            ChunkFlag::More => Ok(Fate::Take),
            ChunkFlag::Abort => {
                incoming.end = Some(End::Aborted);
                Ok(Fate::Aborted)
            }
            ChunkFlag::Last if incoming.expected.exact && received != want => {
                let got = received;
                Err(Violation::BodyTooShort { call, want, got })
            }
            ChunkFlag::Last => {
                incoming.end = Some(End::Complete);
                Ok(Fate::Complete)
            }
        }
    }

    /// The call is over.
    pub fn end(&mut self, call: CallId) {
        self.open.remove(&call);
    }

    /// The route that a call's body comes by, as far as that is known.
    #[must_use]
    pub fn route_of(&self, call: CallId) -> Option<Route> {
        let incoming = self.open.get(&call).copied().flatten()?;
        incoming.expected.route.or(incoming.route_seen)
    }

    /// How many calls are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.open.len()
    }
}

impl CallId {
    /// The session itself, where a message belongs to no call.
    pub const SESSION: Self = Self(0);
}

impl Default for CallId {
    fn default() -> Self {
        Self::SESSION
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALL: CallId = CallId(1);

    fn expecting(route: Option<Route>, bytes_max: u64, exact: bool) -> Calls {
        let mut calls = Calls::new();
        calls.begin(CALL).unwrap();
        calls.expect(
            CALL,
            Expected {
                route,
                bytes_max,
                exact,
            },
        );
        calls
    }

    fn chunk(bytes: u32, flag: ChunkFlag) -> ChunkHeader {
        ChunkHeader {
            call: CALL,
            bytes,
            flag,
        }
    }

    #[test]
    fn body_on_another_route_is_a_breach() {
        let mut calls = expecting(Some(Route::Storage), 10, true);
        let got = calls.chunk(chunk(10, ChunkFlag::Last), Route::Network);
        assert!(matches!(got, Err(Violation::WrongRoute { .. })));

        let mut calls = expecting(None, 10, false);
        calls
            .chunk(chunk(5, ChunkFlag::More), Route::Network)
            .unwrap();
        let got = calls.announce(CALL, Route::Storage, 10);
        assert!(matches!(got, Err(Violation::WrongRoute { .. })));
    }

    #[test]
    fn a_header_that_names_another_route_than_the_caller_is_a_breach() {
        let mut calls = expecting(Some(Route::Storage), 10, true);
        let (want, got) = (Route::Storage, Route::Network);
        let breach = Violation::WrongRoute {
            call: CALL,
            want,
            got,
        };
        assert_eq!(calls.announce(CALL, got, 10), Err(breach));
        assert_eq!(calls.announce(CALL, want, 10), Ok(false));
    }

    #[test]
    fn header_and_body_may_come_in_either_order() {
        for header_first in [true, false] {
            let mut calls = expecting(None, 100, false);
            if header_first {
                assert_eq!(calls.announce(CALL, Route::Network, 10), Ok(false));
            }
            assert_eq!(
                calls.chunk(chunk(4, ChunkFlag::More), Route::Network),
                Ok(Fate::Take)
            );
            assert_eq!(
                calls.chunk(chunk(6, ChunkFlag::Last), Route::Network),
                Ok(Fate::Complete)
            );
            if !header_first {
                assert_eq!(calls.announce(CALL, Route::Network, 10), Ok(true));
            }
        }
    }

    #[test]
    fn a_body_given_up_before_its_header_came_is_no_breach() {
        let mut calls = expecting(None, 100, false);
        calls
            .chunk(chunk(4, ChunkFlag::More), Route::Network)
            .unwrap();
        let aborted = calls.chunk(chunk(0, ChunkFlag::Abort), Route::Network);
        assert_eq!(aborted, Ok(Fate::Aborted));
        assert_eq!(calls.announce(CALL, Route::Network, 50), Ok(false));
    }

    #[test]
    fn chunks_for_calls_that_are_over_are_skipped_and_for_calls_never_made_are_a_breach() {
        let mut calls = expecting(Some(Route::Network), 10, true);
        calls.end(CALL);
        assert_eq!(
            calls.chunk(chunk(10, ChunkFlag::Last), Route::Network),
            Ok(Fate::Skip)
        );
        for call in [CallId::SESSION, CallId(2)] {
            let header = ChunkHeader {
                call,
                bytes: 0,
                flag: ChunkFlag::Last,
            };
            let breach = Err(Violation::UnexpectedBody { call });
            assert_eq!(calls.chunk(header, Route::Network), breach);
        }
    }

    #[test]
    fn calls_are_bounded_and_their_numbers_grow() {
        let mut calls = Calls::new();
        for n in 1..=u64::from(CALLS_OPEN_MAX) {
            calls.begin(CallId(n)).unwrap();
        }
        assert_eq!(calls.begin(CallId(1000)), Err(Violation::TooManyCalls));
        calls.end(CallId(7));
        assert!(matches!(
            calls.begin(CallId(7)),
            Err(Violation::CallOutOfOrder { .. })
        ));
        assert_eq!(calls.begin(CallId(1000)), Ok(()));
    }

    proptest! {
        #[test]
        fn a_complete_body_has_its_announced_length(
            bytes in 0..50_u64, chunks in proptest::collection::vec((0..20_u32, any::<bool>()), 0..12), early in any::<bool>(),
        ) {
            let mut calls = expecting(None, 60, false);
            if early {
                calls.announce(CALL, Route::Storage, bytes).unwrap();
            }
            let mut sum = 0;
            for (length, last) in chunks {
                let flag = if last { ChunkFlag::Last } else { ChunkFlag::More };
                let Ok(fate) = calls.chunk(chunk(length, flag), Route::Storage) else { return Ok(()) };
                sum += u64::from(length);
                if fate == Fate::Complete {
                    if early {
                        prop_assert_eq!(sum, bytes);
                    } else {
                        prop_assert_eq!(calls.announce(CALL, Route::Storage, bytes).is_ok(), sum == bytes);
                    }
                    return Ok(());
                }
            }
        }
    }
}
