//! What the machines are held to, by what is seen from outside: bytes, grants, requests and time.

use super::{World, hosts::Wish};
use crate::{
    broken::{Broken, Promise},
    coverage::Transition,
    endpoint::{DEPTH, Endpoint},
    host::{CLONES, Host, HostIndex, Machine, Owner, is_server, slot_of},
};
use std::{fmt::Write as _, time::Duration};
use storage_socket_proto::{
    ConnectionId, ENTRIES, Fence, Grant, Incarnation, Segment, Sequence, SlotIndex, Tick,
};

impl World {
    /// A frame slot is written only after what was there was delivered.
    pub(super) fn check_overwrite(
        &self,
        index: HostIndex,
        connection: ConnectionId,
        sequence: Sequence,
    ) -> Result<(), Broken> {
        let Some(endpoint) = self.peer(index, connection) else {
            return Ok(());
        };
        if self.cloned_epoch == Some(endpoint.connection.grant().epoch) {
            return Ok(());
        }
        let frames = endpoint.peer_frames();
        let delivered = endpoint.delivered();
        if sequence.0 >= delivered + frames {
            let what = format!(
                "frame {sequence} overwrites an unread one: {delivered} delivered, {frames} in the ring"
            );
            return Err(Promise::Unread.broken(what));
        }
        Ok(())
    }

    /// The other end of a connection, if it is there. Of two servers without a device in common each may have granted one
    /// request, and the member speaks with one of them.
    fn peer(&self, index: HostIndex, connection: ConnectionId) -> Option<&Endpoint> {
        let epoch = |endpoint: &Endpoint| endpoint.connection.grant().epoch;
        let own = epoch(self.hosts.get(&index)?.connections.get(&connection)?);
        let other = |&(&other, _): &(&HostIndex, &Host)| is_server(other) != is_server(index);
        let ends = self.hosts.iter().filter(other);
        let mut ends = ends.filter_map(|(_, host)| host.connections.get(&connection));
        ends.find(|end| epoch(end) == own)
    }

    /// The host where the other end of a connection is.
    pub(super) fn peer_host(
        &self,
        index: HostIndex,
        connection: ConnectionId,
    ) -> Option<HostIndex> {
        if is_server(index) {
            let grant = self.hosts.get(&index)?.connections.get(&connection)?;
            let slot = grant.connection.grant().slot;
            let host = slot.0 + crate::host::MEMBERS;
            let has = |host: &HostIndex| {
                let host = self.hosts.get(host);
                host.is_some_and(|host| host.connections.contains_key(&connection))
            };
            return [host, host + CLONES].into_iter().find(has);
        }
        let has = |(_, host): &(&HostIndex, &Host)| host.connections.contains_key(&connection);
        self.hosts
            .range(..crate::host::MEMBERS)
            .find(has)
            .map(|(&host, _)| host)
    }

    /// No unit is granted that someone may still write to under another grant.
    pub(super) fn check_grant(&mut self, by: HostIndex, grant: &Grant) -> Result<(), Broken> {
        let segments = |grant: &Grant| [grant.group.to_coordinator, grant.group.to_member];
        for (&index, host) in &self.hosts {
            if host.paused.is_some() || host.fence == Fence::Closed || host.is_stopping {
                continue;
            }
            let used = host.connections.values();
            for endpoint in used.filter(|endpoint| !endpoint.is_gone) {
                let other = endpoint.connection.grant();
                let is_same = other.connection == grant.connection && other.epoch == grant.epoch;
                let shares = !other.group.devices.and(grant.group.devices).is_empty();
                let is_contested = (self.contested.contains(&other.slot) && index != by)
                    || self.cloned_epoch == Some(other.epoch);
                // Each takes the other for its own predecessor, which the lock of one host would have kept from living.
                let are_clones = self.cloned_epoch.is_some() && is_server(index) && index != by;
                if is_same || !shares || is_contested || are_clones {
                    continue;
                }
                let overlaps = |mine: &Segment| {
                    let mut others = segments(other).into_iter();
                    others.any(|other| other.overlaps(*mine))
                };
                if segments(grant).iter().any(overlaps) {
                    let what =
                        format!("host {index} uses {other:?}, and host {by} grants {grant:?}");
                    return Err(Promise::Grants.broken(what));
                }
            }
        }
        Ok(())
    }

    /// Nobody is dead who lives, was not suspended, isn't fenced, and can be heard: has a device in common with the
    /// coordinator, for two that lost different ones can't tell each other of it.
    pub(super) fn check_death(
        &self,
        by: HostIndex,
        slot: SlotIndex,
        incarnation: Incarnation,
    ) -> Result<(), Broken> {
        if self.contested.contains(&slot) {
            return Ok(());
        }
        let dead = crate::scenario::timeouts().dead;
        let epoch = match self.hosts.get(&by).map(|host| &host.machine) {
            Some(Machine::Coordinator(coordinator)) => Some(coordinator.epoch()),
            _ => None,
        };
        let meets = |member: &Host| {
            let coordinator = self.hosts.get(&by);
            self.all_devices().iter().any(|device| {
                let had = |host: &Host| host.had(self.now, device, dead);
                coordinator.is_some_and(had) && had(member)
            })
        };
        // One that has left for another coordinator is down for the first, and not dead.
        let lives = self.hosts.iter().find(|(index, host)| {
            !is_server(**index)
                && slot_of(**index) == slot
                && host.incarnation == incarnation
                && !epoch.is_some_and(|epoch| host.left.contains(&epoch))
                && host.paused.is_none()
                && host.fence == Fence::Open
                && self.now.since(host.woke) > dead
                && meets(host)
        });
        match lives {
            Some((index, _)) => {
                let what = format!("host {by} takes host {index} for dead, which lives unfenced");
                Err(Promise::Liveness.broken(what))
            }
            None => Ok(()),
        }
    }

    /// Who was told that its peer is gone writes no more: its units may be another's by now.
    pub(super) fn check_gone(&self, index: HostIndex, owner: Owner) -> Result<(), Broken> {
        let Owner::Connection(id) = owner else {
            return Ok(());
        };
        let endpoint = self
            .hosts
            .get(&index)
            .and_then(|host| host.connections.get(&id));
        if endpoint.is_some_and(|endpoint| endpoint.is_gone) {
            let what = format!("host {index} writes for {id}, which it was told is gone");
            return Err(Promise::Grants.broken(what));
        }
        Ok(())
    }

    /// No more I/O is under way than the design allows.
    pub(super) fn check_depth(
        &self,
        index: HostIndex,
        owner: Owner,
        count: usize,
    ) -> Result<(), Broken> {
        let Some(host) = self.hosts.get(&index) else {
            return Ok(());
        };
        let devices = self.devices.len();
        let slots = usize::try_from(self.geometry.slots()).unwrap_or(0);
        let most = match (&owner, &host.machine) {
            // Frames both ways, the own control pair, the peer's.
            (Owner::Connection(_), _) => 2 * DEPTH + 2,
            // A pair, three places read, and a probe.
            (Owner::Machine, Machine::Member(_)) => 5 * devices,
            // The block's pair and its read, a run of pages, a probe, and the pairs of all answers.
            (Owner::Machine, Machine::Coordinator(_)) => (4 + slots) * devices,
        };
        if count > most {
            let what = format!("{owner:?} of host {index} has {count} I/Os under way, not {most}");
            return Err(Promise::Bounds.broken(what));
        }
        if host.connections.len() > ENTRIES * slots {
            let what = format!("host {index} has {} connections", host.connections.len());
            return Err(Promise::Bounds.broken(what));
        }
        Ok(())
    }

    /// Looks round: for clones that nobody notices, for two coordinators, and for what hangs.
    pub(super) fn audit(&mut self) -> Result<(), Broken> {
        self.audit_clones()?;
        self.audit_coordinators()?;
        if self.faults_over {
            self.audit_progress()?;
            self.is_settled = self.is_settled();
        }
        Ok(())
    }

    fn audit_clones(&self) -> Result<(), Broken> {
        if !self.faults_over {
            return Ok(());
        }
        for (&index, clone) in self.hosts.range(CLONES..) {
            let Some(host) = self.hosts.get(&(index - CLONES)) else {
                continue;
            };
            let since = [host.started, host.woke, clone.started, clone.woke];
            let since = since.into_iter().fold(self.settled_from, Tick::max);
            let is_paused = host.paused.is_some() || clone.paused.is_some();
            if !is_paused && self.now.since(since) > CLONE_UNNOTICED_MAX {
                let what = format!("host {index} and its clone run side by side since {since}");
                return Err(Promise::Clones.broken(what));
            }
        }
        Ok(())
    }

    fn audit_coordinators(&mut self) -> Result<(), Broken> {
        let serves =
            |host: &&Host| host.serves && host.paused.is_none() && host.fence == Fence::Open;
        let servers = self.hosts.range(..crate::host::MEMBERS);
        let count = servers.filter(|(_, host)| serves(host)).count();
        if count < 2 || self.cloned_epoch.is_some() {
            self.alone_at = self.now;
        } else if self.now.since(self.alone_at) > TWO_SERVE_MAX {
            let what = format!("two coordinators serve since {}", self.alone_at);
            return Err(Promise::OneCoordinator.broken(what));
        }
        Ok(())
    }

    fn audit_progress(&self) -> Result<(), Broken> {
        for (&index, host) in &self.hosts {
            for (id, endpoint) in &host.connections {
                let progress = host.clock.world(endpoint.progress);
                let since = progress.max(self.settled_from).max(host.woke);
                let is_long = self.now.since(since) > SILENT_MAX;
                if is_long && host.paused.is_none() {
                    let what = format!("{id} of host {index} hangs since {since}");
                    return Err(Promise::Finishes.broken(what));
                }
            }
        }
        Ok(())
    }

    /// Whether everything was done, everybody has let go, and every unit is free again.
    fn is_settled(&mut self) -> bool {
        let is_done = self.wishes.values().flatten().all(Wish::is_done)
            && self.hosts.range(CLONES..).next().is_none()
            && self.hosts.values().all(|host| host.connections.is_empty());
        if !is_done {
            return false;
        }
        let all = self.all_devices();
        let total = u64::from(self.geometry.data_end(all).0 - self.geometry.data_start().0);
        let serving = self.hosts.range_mut(..crate::host::MEMBERS);
        for (_, host) in serving.filter(|(_, host)| host.serves) {
            let Machine::Coordinator(coordinator) = &host.machine else {
                continue;
            };
            if coordinator.free_units(all) == total {
                if host.rested {
                    self.hit.transition(Transition::RestReleased);
                }
                self.report.settled_max = millis(self.now.since(self.settled_from));
                return true;
            }
        }
        false
    }

    /// What is not done after all patience.
    pub(super) fn unfinished(&self) -> String {
        let mut what = String::from("not finished:");
        for (host, wishes) in &self.wishes {
            for wish in wishes.iter().filter(|wish| !wish.is_done()) {
                let _ = write!(what, " host {host} {wish:?};");
            }
        }
        for (index, host) in &self.hosts {
            let count = host.connections.len();
            let _ = write!(what, " host {index} has {count} connections");
            if let Machine::Coordinator(coordinator) = &host.machine {
                let free = coordinator.free_units(self.all_devices());
                let _ = write!(what, " and {free} units free, serves: {}", host.serves);
            }
            what.push(';');
        }
        what
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How long a clone may go unnoticed without faults: heartbeats in which each writes, and reads what the other wrote.
const CLONE_UNNOTICED_MAX: Duration = Duration::from_millis(1500);
/// How long two coordinators may serve: until the next heartbeat of one of them was read, with stale and failed reads.
const TWO_SERVE_MAX: Duration = Duration::from_millis(1000);
/// How long a connection may be without any progress once faults have ended.
const SILENT_MAX: Duration = Duration::from_millis(4000);
