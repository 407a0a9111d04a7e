//! What the machines tell, taken as a driver would take it: grants become streams, ends are counted.

use super::{Bell, Happening, HostIndex, Watched, World};
use crate::{
    host::{Endpoint, Machine},
    scenario::timeouts,
};
use std::time::Duration;
use storage_socket_proto::{
    CoordinatorEvent, Direction, EndReason, Fence, Grant, MemberEvent, ResetReason,
};

impl World {
    pub(super) fn take_events(&mut self, index: HostIndex) -> Result<bool, String> {
        let mut any = false;
        loop {
            let Some(host) = self.hosts.get_mut(&index) else {
                return Ok(any);
            };
            match &mut host.machine {
                Machine::Member(member) => {
                    let ring = member.poll_doorbell();
                    let event = member.poll_event();
                    if ring {
                        self.ring(0, Bell::Machine);
                    }
                    let Some(event) = event else {
                        return Ok(any);
                    };
                    self.note(|| format!("host {index}: {event:?}"));
                    self.member_event(index, event)?;
                }
                Machine::Coordinator(coordinator) => {
                    let ring = coordinator.poll_doorbell();
                    let event = coordinator.poll_event();
                    if let Some(slot) = ring {
                        self.ring(slot.0 + 1, Bell::Machine);
                    }
                    let Some(event) = event else {
                        if ring.is_some() {
                            continue;
                        }
                        return Ok(any);
                    };
                    self.note(|| format!("coordinator: {event:?}"));
                    self.coordinator_event(event)?;
                }
            }
            any = true;
        }
    }

    fn member_event(&mut self, index: HostIndex, event: MemberEvent) -> Result<(), String> {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        match event {
            MemberEvent::Connected(grant) => {
                self.check_grant(&grant)?;
                self.open(index, grant, Direction::ToCoordinator);
            }
            MemberEvent::Refused { reason, .. } => {
                *self.report.refused.entry(reason.to_string()).or_default() += 1;
                self.schedule(Duration::from_millis(40), Happening::Connect(index));
            }
            MemberEvent::ConnectTimedOut { .. } => {
                *self
                    .report
                    .refused
                    .entry("timed out".to_owned())
                    .or_default() += 1;
                self.schedule(Duration::from_millis(40), Happening::Connect(index));
            }
            MemberEvent::Closed { connection, reason } => {
                if let Some(endpoint) = host.connections.get_mut(&connection) {
                    endpoint.connection.handle_peer_gone(now, reason);
                } else if let Machine::Member(member) = &mut host.machine {
                    member.close(now, connection, Some(ResetReason::PeerClosed));
                }
            }
            MemberEvent::Fenced => host.set_fence(now, Fence::Closed),
            MemberEvent::Unfenced => host.set_fence(now, Fence::Open),
            MemberEvent::DeviceLost { device, .. } => {
                host.abort(now, ResetReason::DeviceLost, |grant| {
                    grant.group.devices.contains(device)
                });
            }
            MemberEvent::Stopped(reason) => {
                if !matches!(reason, storage_socket_proto::StopReason::NoDevice) {
                    return Err(format!("host {index} stopped: {reason}"));
                }
                self.crash(index, Duration::from_millis(100));
            }
            _ => {}
        }
        Ok(())
    }

    fn coordinator_event(&mut self, event: CoordinatorEvent) -> Result<(), String> {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&0) else {
            return Ok(());
        };
        match event {
            CoordinatorEvent::Incoming(grant) => {
                if let Machine::Coordinator(coordinator) = &mut host.machine {
                    coordinator.accepted(now, grant.connection);
                }
                self.check_grant(&grant)?;
                self.open(0, grant, Direction::ToMember);
            }
            CoordinatorEvent::Closed { connection, reason } => {
                if let Some(endpoint) = host.connections.get_mut(&connection) {
                    endpoint.connection.handle_peer_gone(now, reason);
                }
            }
            CoordinatorEvent::MemberDown { incarnation, .. } => {
                for watched in &mut self.watched {
                    if watched.grant.incarnation == incarnation {
                        watched.at_member = false;
                    }
                }
            }
            CoordinatorEvent::Fenced => host.set_fence(now, Fence::Closed),
            CoordinatorEvent::Unfenced => host.set_fence(now, Fence::Open),
            CoordinatorEvent::DeviceLost { device, .. } => {
                host.abort(now, ResetReason::DeviceLost, |grant| {
                    grant.group.devices.contains(device)
                });
            }
            CoordinatorEvent::Ended(reason) => {
                if reason != EndReason::NoDevice {
                    return Err(format!("the coordinator ended: {reason}"));
                }
                self.crash(0, Duration::from_millis(100));
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, index: HostIndex, grant: Grant, sends: Direction) {
        let doorbell = self.scenario.doorbell;
        let endpoint = Endpoint::new(
            self.now,
            self.pool,
            timeouts(),
            grant,
            sends,
            doorbell,
            &self.scenario.traffic,
        );
        if let Some(host) = self.hosts.get_mut(&index) {
            let fence = host.fence;
            let endpoint = host.connections.entry(grant.connection).or_insert(endpoint);
            endpoint.connection.set_fenced(self.now, fence);
        }
        let same = |watched: &&mut Watched| {
            watched.grant.connection == grant.connection && watched.grant.epoch == grant.epoch
        };
        let known = self.watched.iter_mut().find(same);
        match known {
            Some(watched) => watched.at_member |= index > 0,
            None => self.watched.push(Watched {
                grant,
                at_coordinator: index == 0,
                at_member: index > 0,
            }),
        }
    }

    /// No unit is in two grants that both may still be written.
    fn check_grant(&self, grant: &Grant) -> Result<(), String> {
        let segments = |grant: &Grant| [grant.group.to_coordinator, grant.group.to_member];
        for watched in &self.watched {
            let is_same =
                watched.grant.connection == grant.connection && watched.grant.epoch == grant.epoch;
            let is_used = watched.at_coordinator || watched.at_member;
            let shares = !watched
                .grant
                .group
                .devices
                .and(grant.group.devices)
                .is_empty();
            if is_same || !is_used || !shares {
                continue;
            }
            for mine in segments(grant) {
                if segments(&watched.grant)
                    .iter()
                    .any(|other| other.overlaps(mine))
                {
                    return Err(format!("granted twice: {grant:?} and {watched:?}"));
                }
            }
        }
        Ok(())
    }
}
