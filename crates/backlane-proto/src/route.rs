//! Routes, and the policy that says which of them a session may use.

use std::fmt;

/// One of the two mechanisms that a body can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// TCP with TLS.
    Network,
    /// A storage socket through the shared pool.
    Storage,
}

/// Which routes a session may use for bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RoutePolicy {
    /// Storage wherever it can be used; network otherwise, with a reason for each body.
    #[default]
    PreferStorage,
    /// Storage for every body, whatever its size; no storage means no job.
    RequireStorage,
    /// The network alone.
    Network,
    /// Storage for everything, requests and answers included: no network socket is opened.
    StorageOnly,
}

impl RoutePolicy {
    /// Whether a route may carry bodies.
    #[must_use]
    pub const fn allows(self, route: Route) -> bool {
        match route {
            Route::Network => matches!(self, Self::PreferStorage | Self::Network),
            Route::Storage => !matches!(self, Self::Network),
        }
    }

    /// Whether a route may carry requests and answers.
    #[must_use]
    pub const fn allows_control(self, route: Route) -> bool {
        match route {
            Route::Network => !matches!(self, Self::StorageOnly),
            Route::Storage => !matches!(self, Self::Network),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Storage => "storage",
        })
    }
}

impl fmt::Display for RoutePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreferStorage => "prefer-storage",
            Self::RequireStorage => "require-storage",
            Self::Network => "network",
            Self::StorageOnly => "storage-only",
        })
    }
}
