//! What hosts have announced and not brought yet: room is taken for it on the disk, so it counts against their quotas, and
//! each body has a file open. There are bounds for all sessions of a host together.

use crate::{HostName, ServerError, repository::OBJECT_BYTES_MAX};
use backlane_proto::calls::CALLS_MAX;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How much a host may have under way, in all of its sessions: two of the largest objects, or the windows of a hundred jobs.
const UNDER_WAY_BYTES_MAX: u64 = 2 * OBJECT_BYTES_MAX;

/// How many bodies: all calls of four jobs.
const UNDER_WAY_BODIES_MAX: u64 = 4 * CALLS_MAX as u64;

/// What is under way, by host.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<HashMap<HostName, Load>>);

/// What a host has under way.
#[derive(Debug, Default)]
struct Load {
    bytes: u64,
    bodies: u64,
}

/// A host's body that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Announced {
    under_way: Arc<UnderWay>,
    host: HostName,
    bytes: u64,
    /// How much of the host was under way before.
    pub(crate) before: u64,
}

impl UnderWay {
    /// Notes a body.
    ///
    /// # Errors
    /// [`ServerError::UnderWay`] when it is one too many.
    pub(crate) fn begin(
        self: &Arc<Self>,
        host: &HostName,
        bytes: u64,
    ) -> Result<Announced, ServerError> {
        let mut hosts = self.hosts();
        let of_host = hosts.entry(host.clone()).or_default();
        let before = of_host.bytes;
        let refused = |count, what, most| {
            let host = host.to_string();
            Err(ServerError::UnderWay {
                host,
                count,
                what,
                most,
            })
        };
        let after = before.saturating_add(bytes);
        if after > UNDER_WAY_BYTES_MAX {
            return refused(before, "bytes", UNDER_WAY_BYTES_MAX);
        }
        if of_host.bodies == UNDER_WAY_BODIES_MAX {
            return refused(of_host.bodies, "bodies", UNDER_WAY_BODIES_MAX);
        }
        of_host.bytes = after;
        of_host.bodies += 1;
        Ok(Announced {
            under_way: Arc::clone(self),
            host: host.clone(),
            bytes,
            before,
        })
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<HostName, Load>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let mut hosts = self.under_way.hosts();
        if let Some(of_host) = hosts.get_mut(&self.host) {
            of_host.bytes -= self.bytes;
            of_host.bodies -= 1;
            if of_host.bodies == 0 {
                hosts.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_so_much_under_way_and_no_more_and_nobody_else_waits_for_it() {
        let under_way = Arc::new(UnderWay::default());
        let [one, two] = ["web1", "web2"].map(|name| name.parse().unwrap());
        let first = under_way.begin(&one, UNDER_WAY_BYTES_MAX - 1).unwrap();
        let second = under_way.begin(&one, 1).unwrap();
        assert_eq!((first.before, second.before), (0, UNDER_WAY_BYTES_MAX - 1));
        let refused = under_way.begin(&one, 1).unwrap_err();
        assert!(matches!(refused, ServerError::UnderWay { .. }), "{refused}");
        drop(under_way.begin(&two, 1).unwrap());
        drop(second);
        under_way.begin(&one, 1).unwrap();
        under_way.begin(&one, 2).unwrap_err();
        drop(first);
        assert!(under_way.hosts().is_empty());
    }

    #[test]
    fn a_host_has_so_many_bodies_under_way_and_no_more_however_small_they_are() {
        let under_way = Arc::new(UnderWay::default());
        let [one, two] = ["web1", "web2"].map(|name| name.parse().unwrap());
        let bodies = (0..UNDER_WAY_BODIES_MAX).map(|_| under_way.begin(&one, 0).unwrap());
        let mut bodies: Vec<_> = bodies.collect();
        let refused = under_way.begin(&one, 0).unwrap_err().to_string();
        assert!(refused.contains("announced 256 bodies"), "{refused}");
        drop(under_way.begin(&two, 0).unwrap());
        bodies.pop();
        bodies.push(under_way.begin(&one, 0).unwrap());
        under_way.begin(&one, 0).unwrap_err();
        drop(bodies);
        assert!(under_way.hosts().is_empty());
    }
}
