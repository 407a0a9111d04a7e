//! The promises that the checkers hold the machines to, and what is said when one is broken.

use std::fmt;

/// A promise of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// What is delivered is a prefix of what was sent, and of nothing else.
    Prefix,
    /// Nothing of another pool or device is believed.
    Foreign,
    /// What a nonce seals under a key is always the same bytes.
    Nonces,
    /// Nothing unread is overwritten.
    Unread,
    /// No unit is granted twice, nor lost for ever.
    Grants,
    /// Memory, queues and I/Os under way stay within their bounds.
    Bounds,
    /// After a failed write the other copy of a pair isn't touched until the first was rewritten and read back.
    Pairs,
    /// A fenced host writes nothing.
    Fence,
    /// Whoever obeys is not accused of breaking protocol.
    Protocol,
    /// Nobody is stopped for a clone that isn't there, and a clone is noticed.
    Clones,
    /// Two coordinators don't serve side by side, and none ends without cause.
    OneCoordinator,
    /// Nobody is declared dead who lives, could write and was not suspended.
    Liveness,
    /// Once faults have ended, everything finishes or fails, and nothing hangs in silence.
    Finishes,
    /// Every ring is wrapped three times.
    Wraps,
    /// No input makes a machine panic.
    NoPanic,
}

impl Promise {
    /// Says how it was broken.
    pub fn broken(self, what: impl Into<String>) -> Broken {
        Broken {
            promise: self,
            what: what.into(),
        }
    }
}

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}
