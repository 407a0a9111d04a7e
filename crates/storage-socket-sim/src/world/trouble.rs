//! What happens to devices, hosts and slots, besides what happens to single I/Os.

use super::{Happening, World, fixed};
use crate::{
    broken::Broken,
    coverage::Fault,
    host::{CLONES, HostIndex, Machine, RIVAL, SERVER, slot_of},
    scenario::{Damage, Rates},
};
use std::time::Duration;
use storage_socket_proto::{Epoch, SlotIndex, Tick};

/// Something that goes wrong at some time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    DeviceHangs(usize),
    DeviceGone(usize, Fault),
    PathHangs(HostIndex, usize),
    PathGone(HostIndex, usize),
    Crash(HostIndex),
    Pause(HostIndex),
    Stop(HostIndex),
    Rivals(Fault),
    Clone(HostIndex, Fault),
    Revoke(SlotIndex),
}

/// What is out of order: for all hosts, or on one host's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outage {
    Hangs(usize),
    Gone(usize),
    PathHangs(HostIndex, usize),
    PathGone(HostIndex, usize),
}

impl World {
    pub(super) fn begin(&mut self, trouble: Trouble) -> Result<(), Broken> {
        if self.faults_over {
            return Ok(());
        }
        self.note(|| format!("{trouble:?}"));
        match trouble {
            Trouble::DeviceHangs(device) => {
                self.hit.fault(Fault::DeviceHangs);
                self.take_out(Outage::Hangs(device), 700);
            }
            Trouble::DeviceGone(device, fault) => {
                self.hit.fault(fault);
                self.take_out(Outage::Gone(device), 900);
            }
            Trouble::PathHangs(host, device) => {
                self.hit.fault(Fault::PathHangs);
                self.take_out(Outage::PathHangs(host, device), 1500);
            }
            Trouble::PathGone(host, device) => {
                self.hit.fault(Fault::PathGone);
                self.take_out(Outage::PathGone(host, device), 1500);
            }
            Trouble::Crash(host) => {
                let fault = if host == SERVER {
                    Fault::CoordinatorCrash
                } else {
                    Fault::MemberCrash
                };
                if self.hosts.contains_key(&host) {
                    self.hit.fault(fault);
                    // Half of the servers come back late, so that a rival finds the pool free.
                    let is_long = host == SERVER && self.rng.chance(300_000);
                    let most = if is_long { 2500 } else { 100 };
                    let rest = self
                        .rng
                        .span(Duration::from_millis(5), Duration::from_millis(most));
                    self.crash(host, Some(rest));
                }
            }
            Trouble::Pause(host) => self.pause(host),
            Trouble::Stop(host) => return self.stop(host),
            Trouble::Rivals(fault) => {
                self.hit.fault(fault);
                self.is_rivalled = true;
                let epoch = self.rng.bits() | 1;
                if fault == Fault::RivalClone {
                    self.cloned_epoch = Some(Epoch(epoch));
                    self.shared_epoch = Some((epoch, [SERVER, RIVAL].into()));
                }
                self.part_rivals();
                for host in [SERVER, RIVAL] {
                    let after = self.rng.below(3000) * self.rng.below(2);
                    self.schedule(Duration::from_micros(after), Happening::Start(host));
                }
            }
            Trouble::Clone(host, fault) => {
                let is_there = self.hosts.contains_key(&host);
                if is_there && !self.hosts.contains_key(&(host + CLONES)) {
                    self.hit.fault(fault);
                    self.contested.insert(slot_of(host));
                    self.wishes
                        .insert(host + CLONES, vec![super::hosts::Wish::clone_of_one()]);
                    self.clones_incarnation = (fault == Fault::CloneRunning)
                        .then(|| self.hosts.get(&host).map(|host| host.incarnation))
                        .flatten();
                    return self.start(host + CLONES);
                }
            }
            Trouble::Revoke(slot) => {
                self.hit.fault(Fault::Revoked);
                self.revoked.insert(slot);
                let after = self
                    .rng
                    .span(Duration::from_millis(20), Duration::from_millis(400));
                self.schedule(after, Happening::Allow(slot));
                return self.tell_slots();
            }
        }
        Ok(())
    }

    /// Half of the rivals whose paths may go begin without a device in common, so that both come to serve.
    fn part_rivals(&mut self) {
        let may_part = self.devices.len() > 1 && self.scenario.rates.of(Fault::PathGone) > 0;
        if may_part && self.rng.chance(500_000) {
            let theirs = usize::from(self.rng.chance(500_000));
            for device in 0..self.devices.len() {
                let host = if device == theirs { SERVER } else { RIVAL };
                self.hit.fault(Fault::PathGone);
                self.take_out(Outage::PathGone(host, device), 900);
            }
        }
    }

    fn take_out(&mut self, outage: Outage, most: u64) {
        *self.outages.entry(outage).or_default() += 1;
        let (low, high) = (Duration::from_millis(5), Duration::from_millis(most));
        let after = self.rng.span(low, high);
        self.schedule(after, Happening::Return(outage));
    }

    pub(super) fn heal(&mut self, outage: Outage) {
        if let Some(count) = self.outages.get_mut(&outage) {
            *count -= 1;
            self.outages.retain(|_, count| *count > 0);
            self.note(|| format!("{outage:?} is over"));
        }
    }

    pub(super) fn hangs(&self, host: HostIndex, device: usize) -> bool {
        self.outages.contains_key(&Outage::Hangs(device))
            || self
                .outages
                .contains_key(&Outage::PathHangs(host % CLONES, device))
    }

    pub(super) fn is_gone(&self, host: HostIndex, device: usize) -> bool {
        self.outages.contains_key(&Outage::Gone(device))
            || self
                .outages
                .contains_key(&Outage::PathGone(host % CLONES, device))
    }

    /// A host is suspended, for longer than every time-out: what it has under way may land when it wakes.
    fn pause(&mut self, index: HostIndex) {
        let until = self.now + Duration::from_millis(1100 + self.rng.below(1000));
        let Some(host) = self.hosts.get_mut(&index) else {
            return;
        };
        if host.paused.is_some() {
            return;
        }
        host.paused = Some(until);
        let life = host.life;
        let is_member = matches!(host.machine, Machine::Member(_));
        self.hit.fault(if is_member {
            Fault::MemberPause
        } else {
            Fault::CoordinatorPause
        });
        self.hold_back(index, life, until);
        self.schedule(until.since(self.now), Happening::Wake(index, life));
    }

    /// Half of what a host that was just suspended has under way goes out when it wakes.
    fn hold_back(&mut self, index: HostIndex, life: u64, until: Tick) {
        let (seed, now) = (self.seed, self.now);
        self.agenda.postpone(|at, happening| {
            let number = match happening {
                Happening::Land(flight) if flight.is_of(index, life) => flight.number,
                Happening::Answer(answer) if answer.is_of(index, life) => answer.number,
                _ => return None,
            };
            if !fixed(seed, number).is_multiple_of(2) {
                return None;
            }
            if let Happening::Land(flight) = happening {
                flight.is_held = true;
            }
            Some(until + at.since(now))
        });
    }

    pub(super) fn end_faults(&mut self) -> Result<(), Broken> {
        self.note(|| "faults end".to_owned());
        self.faults_over = true;
        self.settled_from = self.now;
        self.faults.rates = Rates::none();
        self.outages.clear();
        if self.scenario.damage == Damage::Heals {
            for device in &mut self.devices {
                device.heal();
            }
        }
        self.revoked.clear();
        // Of two servers one is left; if none serves, the first.
        let serves = |index: HostIndex| self.hosts.get(&index).is_some_and(|host| host.serves);
        let is_cloned = |index: HostIndex| match self.hosts.get(&index).map(|host| &host.machine) {
            Some(Machine::Coordinator(server)) => Some(server.epoch()) == self.cloned_epoch,
            _ => false,
        };
        if is_cloned(SERVER) && is_cloned(RIVAL) {
            // In perfect step they write the same bytes and can't notice each other: the administrator does.
            self.retired = Some(RIVAL);
            self.crash(RIVAL, None);
            self.crash(SERVER, Some(Duration::from_millis(200)));
        } else if self.is_rivalled {
            let loser = if serves(RIVAL) && !serves(SERVER) {
                SERVER
            } else {
                RIVAL
            };
            self.retired = Some(loser);
            self.crash(loser, None);
        }
        self.tell_slots()
    }
}
