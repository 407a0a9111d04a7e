//! Routes, and the policy that says which of them a session may use.

use std::{fmt, str::FromStr};

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
    /// Every policy.
    pub const ALL: [Self; 4] = [
        Self::PreferStorage,
        Self::RequireStorage,
        Self::Network,
        Self::StorageOnly,
    ];

    /// What is left of a policy under another's ceiling: the routes that both allow; `None` where that is none.
    #[must_use]
    pub const fn under(self, ceiling: Self) -> Option<Self> {
        match (ceiling, self) {
            (Self::PreferStorage, policy) => Some(policy),
            (Self::RequireStorage, Self::PreferStorage | Self::RequireStorage) => {
                Some(Self::RequireStorage)
            }
            (Self::RequireStorage | Self::StorageOnly, Self::StorageOnly) => {
                Some(Self::StorageOnly)
            }
            (Self::Network, Self::PreferStorage | Self::Network) => Some(Self::Network),
            _ => None,
        }
    }

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

impl FromStr for RoutePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|policy| policy.to_string() == text)
            .ok_or_else(|| {
                let all = Self::ALL.map(|policy| policy.to_string()).join(", ");
                format!("{text:?} is none of {all}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_leaves_no_route_that_either_forbids() {
        for policy in RoutePolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(policy.under(RoutePolicy::PreferStorage), Some(policy));
            for ceiling in RoutePolicy::ALL {
                let routes = [Route::Network, Route::Storage];
                let both = |allows: fn(RoutePolicy, Route) -> bool, route| {
                    allows(policy, route) && allows(ceiling, route)
                };
                match policy.under(ceiling) {
                    Some(left) => {
                        for route in routes {
                            assert_eq!(left.allows(route), both(RoutePolicy::allows, route));
                            let control = both(RoutePolicy::allows_control, route);
                            assert_eq!(left.allows_control(route), control);
                        }
                    }
                    None => assert!(
                        routes
                            .iter()
                            .all(|route| !both(RoutePolicy::allows, *route))
                            || ceiling == RoutePolicy::StorageOnly,
                    ),
                }
            }
        }
    }
}
