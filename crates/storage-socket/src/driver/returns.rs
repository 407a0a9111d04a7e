//! Devices that were lost and may come back: their paths are opened again, ever more rarely, until the machine has found
//! them.
//!
//! The descriptor of a device that was pulled stays dead when the device returns. Where it doesn't even read any more,
//! one that is opened anew takes its place, if its superblock says that it is this device of this pool. Opening may
//! hang, so it is done in a thread of its own, one for a device at a time.

use super::Driver;
use crate::{Error, format::look_again, inbox::Command};
use direct_io::Device;
use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};
use storage_socket_proto::{DeviceIndex, Tick, Timeouts};

/// The devices that are lost.
pub(crate) struct Returns {
    lost: BTreeMap<DeviceIndex, Absence>,
    pause_min: Duration,
    pause_max: Duration,
}

struct Absence {
    at: Tick,
    pause: Duration,
    is_looking: bool,
    /// Why it was not taken last.
    refused: Option<String>,
}

impl Returns {
    /// Looks after a heartbeat first, so that the machine's own probes find what has come back, and at least once in
    /// the time in which a peer dies.
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self {
            lost: BTreeMap::new(),
            pause_min: timeouts.heartbeat,
            pause_max: timeouts.dead,
        }
    }

    pub(crate) fn lost(&mut self, now: Tick, device: DeviceIndex) {
        let absence = Absence {
            at: now + self.pause_min,
            pause: self.pause_min,
            is_looking: false,
            refused: None,
        };
        self.lost.entry(device).or_insert(absence);
    }

    /// The devices that are to be looked for now.
    fn due(&mut self, now: Tick) -> Vec<DeviceIndex> {
        let due = |absence: &Absence| !absence.is_looking && absence.at <= now;
        let lost = self.lost.iter_mut();
        lost.filter(|(_, absence)| due(absence))
            .map(|(device, absence)| {
                absence.is_looking = true;
                *device
            })
            .collect()
    }

    /// A look has ended; the next one comes later.
    fn looked(&mut self, now: Tick, device: DeviceIndex) -> Option<&mut Absence> {
        let most = self.pause_max;
        let absence = self.lost.get_mut(&device)?;
        absence.is_looking = false;
        absence.at = now + absence.pause;
        absence.pause = (absence.pause * 2).min(most);
        Some(absence)
    }

    pub(crate) fn next_timeout(&self) -> Option<Tick> {
        let waiting = self.lost.values().filter(|absence| !absence.is_looking);
        waiting.map(|absence| absence.at).min()
    }
}

impl Driver {
    /// Looks for lost devices whose time has come.
    pub(super) fn look_for_lost(&mut self, now: Tick) {
        if self.stop.is_some() || self.ended.is_some() {
            self.returns.lost.clear();
            return;
        }
        for device in self.returns.due(now) {
            let geometry = self.geometry.clone();
            let (inbox, devices) = (self.inbox.clone(), self.io.devices().to_vec());
            let looking = thread::Builder::new()
                .name("storage-return".to_owned())
                .spawn(move || {
                    let found = look_again(&geometry, &devices, device);
                    let found = found.map(|found| found.map(Arc::new));
                    inbox.send(Command::LookedFor { device, found });
                });
            if let Err(error) = looking {
                tracing::warn!(%error, "no thread to look for a lost device");
                self.returns.looked(now, device);
            }
        }
    }

    /// A lost device was looked for.
    pub(super) fn looked_for(
        &mut self,
        now: Tick,
        device: DeviceIndex,
        found: Result<Option<Arc<Device>>, Error>,
    ) {
        let Some(absence) = self.returns.looked(now, device) else {
            return;
        };
        let taken = match found {
            Ok(Some(found)) => self.io.replace(device, found).map_err(Error::from),
            Ok(None) => Ok(()),
            Err(refused) => Err(refused),
        };
        match taken {
            Ok(()) => absence.refused = None,
            Err(error) => {
                let said = error.to_string();
                if absence.refused.as_ref() != Some(&said) {
                    tracing::warn!(%error, %device, "a lost device has not come back");
                }
                absence.refused = Some(said);
            }
        }
    }

    /// A lost device answers again.
    pub(super) fn find_device(&mut self, device: DeviceIndex) {
        self.returns.lost.remove(&device);
        let path = self.io.device(device).map(|device| device.path());
        let path = path.unwrap_or("".as_ref());
        tracing::info!(device = %path.display(), "device found again");
    }
}
