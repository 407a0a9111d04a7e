//! What the machines tell, taken as a driver would take it: grants become streams, ends are counted.

use super::{Bell, FOREIGN, Happening, World};
use crate::{
    broken::{Broken, Promise},
    coverage::{Fault, Transition},
    host::{CLONES, HostIndex, MEMBERS, Machine, RIVAL, SERVER, is_server, slot_of},
};
use std::time::Duration;
use storage_socket_proto::{
    ConnectionId, CoordinatorEvent, Direction, EndReason, Epoch, Fence, Grant, MemberEvent,
    RefusalReason, ResetReason, StopReason,
};

impl World {
    /// Takes everything that a machine has to tell. Returns whether there was anything.
    pub(super) fn take_events(&mut self, index: HostIndex) -> Result<bool, Broken> {
        let mut any = false;
        loop {
            let Some(host) = self
                .hosts
                .get_mut(&index)
                .filter(|host| host.paused.is_none())
            else {
                return Ok(any);
            };
            match &mut host.machine {
                Machine::Member(member) => {
                    let ring = member.poll_doorbell();
                    let event = member.poll_event();
                    if ring {
                        for server in self.servers() {
                            self.ring(server, Bell::Machine);
                        }
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
                        self.ring(slot.0 + MEMBERS, Bell::Machine);
                    }
                    let Some(event) = event else {
                        if ring.is_some() {
                            continue;
                        }
                        return Ok(any);
                    };
                    self.note(|| format!("host {index}: {event:?}"));
                    self.coordinator_event(index, event)?;
                }
            }
            any = true;
        }
    }

    fn member_event(&mut self, index: HostIndex, event: MemberEvent) -> Result<(), Broken> {
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let now = host.clock.local(self.now);
        let hit = &mut self.hit;
        match event {
            MemberEvent::Joined { epoch, .. } => {
                hit.transition(Transition::MemberJoined);
                host.left.remove(&epoch);
                if epoch.0 == FOREIGN {
                    let what = format!("host {index} follows a coordinator of another pool");
                    return Err(Promise::Foreign.broken(what));
                }
            }
            MemberEvent::CoordinatorSuspect { .. } => {
                hit.transition(Transition::CoordinatorSuspect);
                if self.answers_on_network(self.main_server()) {
                    self.hit.transition(Transition::CoordinatorVouched);
                    if let Some(host) = self.hosts.get_mut(&index)
                        && let Machine::Member(member) = &mut host.machine
                    {
                        member.handle_vouched(now);
                    }
                }
            }
            MemberEvent::CoordinatorLost { epoch } => {
                hit.transition(Transition::CoordinatorLost);
                host.left.insert(epoch);
            }
            MemberEvent::Connected(grant) => {
                hit.transition(Transition::Connected);
                self.open(index, grant, Direction::ToCoordinator)?;
            }
            MemberEvent::Refused { connection, reason } => {
                *self.report.refused.entry(reason.to_string()).or_default() += 1;
                self.refused(index, connection, reason)?;
            }
            MemberEvent::ConnectTimedOut { connection } => {
                hit.transition(Transition::ConnectTimedOut);
                let reason = "timed out".to_owned();
                *self.report.refused.entry(reason).or_default() += 1;
                self.not_granted(index, connection);
            }
            MemberEvent::Closed { connection, reason } => {
                hit.transition(Transition::MemberTold);
                if let Some(endpoint) = host.touch(connection) {
                    endpoint.handle_peer_gone(now, reason);
                } else if let Machine::Member(member) = &mut host.machine {
                    member.close(now, connection, Some(ResetReason::PeerClosed));
                }
            }
            MemberEvent::Fenced => {
                hit.transition(Transition::MemberFenced);
                host.set_fence(now, Fence::Closed);
            }
            MemberEvent::Unfenced => {
                hit.transition(Transition::MemberUnfenced);
                host.set_fence(now, Fence::Open);
            }
            MemberEvent::DeviceLost { device, .. } => {
                hit.transition(Transition::MemberDeviceLost);
                host.lose(device);
                host.abort(now, ResetReason::DeviceLost, |grant| {
                    grant.group.devices.contains(device)
                });
            }
            MemberEvent::DeviceFound { device } => {
                hit.transition(Transition::MemberDeviceFound);
                host.find(self.now, device);
            }
            MemberEvent::ChallengeSeen { .. } => hit.transition(Transition::ChallengeSeen),
            MemberEvent::Stopped(reason) => self.member_stopped(index, reason)?,
            _ => {}
        }
        Ok(())
    }

    fn refused(
        &mut self,
        index: HostIndex,
        connection: ConnectionId,
        reason: RefusalReason,
    ) -> Result<(), Broken> {
        let passed = match reason {
            RefusalReason::NoListener => Transition::RefusedNoListener,
            RefusalReason::NoSegments => Transition::RefusedNoSegments,
            RefusalReason::NotEnrolled => Transition::RefusedNotEnrolled,
            RefusalReason::Busy => Transition::RefusedBusy,
            RefusalReason::ShuttingDown => Transition::RefusedShuttingDown,
            RefusalReason::NoCommonDevice => Transition::RefusedNoDevice,
            RefusalReason::Cipher => Transition::RefusedCipher,
            other if !self.contested.contains(&slot_of(index)) => {
                let what = format!("host {index}: {connection} is refused: {other}");
                return Err(Promise::Protocol.broken(what));
            }
            _ => {
                self.not_granted(index, connection);
                return Ok(());
            }
        };
        self.hit.transition(passed);
        self.not_granted(index, connection);
        Ok(())
    }

    fn member_stopped(&mut self, index: HostIndex, reason: StopReason) -> Result<(), Broken> {
        let soon = Some(Duration::from_millis(100));
        match reason {
            StopReason::Requested => {
                self.hit.transition(Transition::MemberStopped);
                self.crash(index, soon);
            }
            StopReason::NoDevice => {
                self.hit.transition(Transition::MemberNoDevice);
                self.crash(index, soon);
            }
            StopReason::ClonedHost { slot, .. } => {
                if !self.contested.contains(&slot) && !self.may_be_haunted() {
                    let what = format!("host {index} stopped: {reason}");
                    return Err(Promise::Clones.broken(what));
                }
                self.hit.transition(Transition::MemberCloned);
                // The administrator removes the clone and starts the other again.
                let first = index % CLONES;
                self.crash(first + CLONES, None);
                if index == first {
                    self.crash(first, soon);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn coordinator_event(
        &mut self,
        index: HostIndex,
        event: CoordinatorEvent,
    ) -> Result<(), Broken> {
        let all = self.all_devices();
        let total = u64::from(self.geometry.data_end(all).0 - self.geometry.data_start().0);
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let now = host.clock.local(self.now);
        let hit = &mut self.hit;
        match event {
            CoordinatorEvent::Serving => {
                host.serves = true;
                if let Machine::Coordinator(coordinator) = &host.machine
                    && coordinator.free_units(all) < total
                {
                    host.rested = true;
                    hit.transition(Transition::RestHeld);
                }
                if host.has_claimed {
                    hit.transition(Transition::ClaimServing);
                }
            }
            CoordinatorEvent::MemberUp { incarnation, .. } => {
                hit.transition(Transition::MemberUp);
                if incarnation.0 == FOREIGN {
                    let what = format!("host {index} sees a member of another pool");
                    return Err(Promise::Foreign.broken(what));
                }
            }
            CoordinatorEvent::MemberSuspect { slot, .. } => {
                hit.transition(Transition::MemberSuspect);
                if self.answers_on_network(slot.0 + MEMBERS) {
                    self.hit.transition(Transition::MemberVouched);
                    if let Some(host) = self.hosts.get_mut(&index)
                        && let Machine::Coordinator(coordinator) = &mut host.machine
                    {
                        coordinator.handle_vouched(now, slot);
                    }
                }
            }
            CoordinatorEvent::MemberDown {
                slot,
                incarnation,
                stopped,
            } => {
                hit.transition(if stopped {
                    Transition::MemberLeft
                } else {
                    Transition::MemberDead
                });
                if !stopped {
                    self.check_death(index, slot, incarnation)?;
                }
            }
            CoordinatorEvent::Incoming(grant) => self.incoming(index, grant)?,
            CoordinatorEvent::Closed { connection, reason } => {
                hit.transition(Transition::CoordinatorTold);
                if let Some(endpoint) = host.touch(connection) {
                    endpoint.handle_peer_gone(now, reason);
                }
            }
            CoordinatorEvent::Fenced => {
                hit.transition(Transition::CoordinatorFenced);
                host.set_fence(now, Fence::Closed);
            }
            CoordinatorEvent::Unfenced => {
                hit.transition(Transition::CoordinatorUnfenced);
                host.set_fence(now, Fence::Open);
            }
            CoordinatorEvent::DeviceLost { device, .. } => {
                hit.transition(Transition::CoordinatorDeviceLost);
                host.lose(device);
                host.abort(now, ResetReason::DeviceLost, |grant| {
                    grant.group.devices.contains(device)
                });
            }
            CoordinatorEvent::DeviceFound { device } => {
                hit.transition(Transition::CoordinatorDeviceFound);
                host.find(self.now, device);
            }
            CoordinatorEvent::ChallengeSeen { .. } => hit.transition(Transition::ChallengeSeen),
            CoordinatorEvent::Ended(reason) => self.coordinator_ended(index, &reason)?,
            _ => {}
        }
        Ok(())
    }

    fn incoming(&mut self, index: HostIndex, grant: Grant) -> Result<(), Broken> {
        self.hit.transition(Transition::Granted);
        let window = self.scenario.window;
        let group = grant.group;
        if group.to_coordinator.units.0 < window || group.to_member.units.0 < window {
            self.hit.transition(Transition::GrantedLess);
        }
        let after = self
            .rng
            .span(Duration::from_micros(10), Duration::from_millis(20));
        self.schedule(after, Happening::Accept(index, grant.connection));
        self.open(index, grant, Direction::ToMember)
    }

    fn coordinator_ended(&mut self, index: HostIndex, reason: &EndReason) -> Result<(), Broken> {
        debug_assert!(is_server(index), "members have no coordinator");
        let served = self.hosts.get(&index).is_some_and(|host| host.serves);
        let passed = match reason {
            EndReason::Requested => Transition::CoordinatorStopped,
            EndReason::NoDevice => Transition::CoordinatorNoDevice,
            EndReason::Owned { .. } => Transition::ClaimOwned,
            EndReason::ForeignEpoch { .. } if served => Transition::ServingForeign,
            EndReason::ForeignEpoch { .. } => Transition::ClaimForeign,
            _ => Transition::CoordinatorCloned,
        };
        self.hit.transition(passed);
        if let EndReason::ForeignEpoch { epoch, .. } = *reason
            && !self.is_rivalled
            && !self.may_misread()
            && !self.is_late_claim(index, epoch)
        {
            let what = format!("host {index} ended: {reason}");
            return Err(Promise::OneCoordinator.broken(what));
        }
        if passed == Transition::CoordinatorCloned {
            if self.cloned_epoch.is_none() {
                let what = format!("host {index} ended: {reason}");
                return Err(Promise::Clones.broken(what));
            }
            // The administrator removes the clone and starts the other again.
            self.retired = Some(RIVAL);
            self.crash(RIVAL, None);
            self.crash(SERVER, Some(Duration::from_millis(200)));
            return Ok(());
        }
        // Whoever starts a server again doesn't do so at the same moment everywhere.
        let (low, high) = if passed == Transition::CoordinatorStopped {
            (50, 200)
        } else {
            (200, 900)
        };
        let rest = self
            .rng
            .span(Duration::from_millis(low), Duration::from_millis(high));
        self.crash(index, Some(rest));
        Ok(())
    }

    /// Whether a claim was written by a predecessor of the same host, which is gone, and landed after its successor had looked
    /// for one: that ends the successor, and costs a start.
    fn is_late_claim(&self, index: HostIndex, epoch: Epoch) -> bool {
        let is_own = |epochs: &Vec<Epoch>| epochs.contains(&epoch);
        let was_found = self.found.get(&index).copied().flatten() == Some(epoch);
        self.epochs.get(&index).is_some_and(is_own) && !was_found
    }

    /// Whether the first pages of a predecessor on several devices may land after its successor read the slot, one after
    /// the other: as many as that are taken for a living process, which ends the successor with a clear word and costs a
    /// start. On one device they are too few.
    fn may_be_haunted(&self) -> bool {
        let rates = &self.scenario.rates;
        let may_be_late = [
            Fault::Ghost,
            Fault::Slow,
            Fault::Twice,
            Fault::DeviceHangs,
            Fault::PathHangs,
            Fault::MemberPause,
        ]
        .into_iter()
        .any(|fault| rates.of(fault) > 0);
        (may_be_late && self.devices.len() > 1) || self.may_misread()
    }

    /// Whether a start may have read nothing where something is: what comes to light later looks foreign then, and
    /// ending is right.
    fn may_misread(&self) -> bool {
        let rates = &self.scenario.rates;
        [
            Fault::MisdirectedRead,
            Fault::MisdirectedWrite,
            Fault::Rot,
            Fault::Lost,
            Fault::TornRead512,
            Fault::TornEnd512,
            Fault::TornMiddle512,
        ]
        .into_iter()
        .any(|fault| rates.of(fault) > 0)
    }
}
