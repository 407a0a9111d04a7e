//! Faults of disks, networks and processes, each made from outside of the programs under test, and taken back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use fidelity::Random;
use rustix::process::Signal;

use crate::chain::Chain;
use crate::lane::Side;
use crate::system::System;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The server's path to the disk is gone; after it there is another device of the same name.
    ServerLosesDisk,
    /// The same of the client's path.
    ClientLosesDisk,
    /// Every read and write of the disk fails, on both sides.
    IoErrors,
    /// The disk answers nobody.
    HangingIo,
    /// The disk carries half a megabyte a second.
    SlowIo,
    /// Another host writes over the disk: member and answer pages, and every second MiB of the frames.
    DiskOverwritten,
    /// The wire is cut.
    CableCut,
    /// The server's address is gone.
    AddressGone,
    /// Every connection is reset.
    ConnectionsReset,
    /// What the server sends is lost, what the client sends arrives.
    AnswersLost,
    /// The server is killed, and started again after the fault.
    ServerKilled,
    /// The server stands still.
    ServerPaused,
}

/// Megabits a second of disks, and of the wire, under jobs that faults are made in.
pub(crate) const PACE_MBIT: u32 = 240;

/// What a slow disk carries: a frame of 1 MiB takes two seconds.
const SLOW_MBIT: u32 = 4;

impl Fault {
    /// Every one.
    pub const ALL: [Self; 12] = [
        Self::ServerLosesDisk,
        Self::ClientLosesDisk,
        Self::IoErrors,
        Self::HangingIo,
        Self::SlowIo,
        Self::DiskOverwritten,
        Self::CableCut,
        Self::AddressGone,
        Self::ConnectionsReset,
        Self::AnswersLost,
        Self::ServerKilled,
        Self::ServerPaused,
    ];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ServerLosesDisk => "server loses the disk",
            Self::ClientLosesDisk => "client loses the disk",
            Self::IoErrors => "I/O errors",
            Self::HangingIo => "hanging I/O",
            Self::SlowIo => "slow I/O",
            Self::DiskOverwritten => "disk overwritten",
            Self::CableCut => "cable cut",
            Self::AddressGone => "server's address gone",
            Self::ConnectionsReset => "connections reset",
            Self::AnswersLost => "answers lost",
            Self::ServerKilled => "server killed",
            Self::ServerPaused => "server paused",
        }
    }

    /// Whether it is over as soon as it has begun.
    #[must_use]
    pub fn is_momentary(self) -> bool {
        matches!(self, Self::DiskOverwritten | Self::ConnectionsReset)
    }

    /// Makes it.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn begin(self, system: &mut System) -> Result<()> {
        match self {
            Self::ServerLosesDisk => chain(system, Side::Server)?.remove(),
            Self::ClientLosesDisk => chain(system, Side::Client)?.remove(),
            Self::IoErrors => on_both(system, |chain| chain.fail()),
            Self::HangingIo => on_both(system, |chain| chain.hang()),
            Self::SlowIo => on_both(system, |chain| chain.set_rate(SLOW_MBIT)),
            Self::DiskOverwritten => overwrite(system.devices[0].file()),
            Self::CableCut => system.lane.cut(),
            Self::AddressGone => system.lane.remove_address(),
            Self::ConnectionsReset => system.lane.reset_connections(),
            Self::AnswersLost => system.lane.lose_answers(),
            Self::ServerKilled => system.kill_server(),
            Self::ServerPaused => system.server()?.signal(Signal::STOP),
        }
    }

    /// Takes it back.
    ///
    /// # Errors
    /// When it can't be taken back.
    pub fn end(self, system: &mut System) -> Result<()> {
        match self {
            Self::ServerLosesDisk => chain(system, Side::Server)?.insert(),
            Self::ClientLosesDisk => chain(system, Side::Client)?.insert(),
            Self::IoErrors => on_both(system, |chain| chain.heal()),
            Self::HangingIo => on_both(system, |chain| chain.resume()),
            Self::SlowIo => on_both(system, |chain| chain.set_rate(PACE_MBIT)),
            Self::DiskOverwritten | Self::ConnectionsReset => Ok(()),
            Self::CableCut => system.lane.mend(),
            Self::AddressGone => system.lane.add_address(),
            Self::AnswersLost => system.lane.deliver_answers(),
            Self::ServerKilled => system.start_server(),
            Self::ServerPaused => system.server()?.signal(Signal::CONT),
        }
    }
}

fn chain(system: &mut System, side: Side) -> Result<&mut Chain> {
    system.devices[0].chain(side)
}

fn on_both(system: &mut System, make: impl Fn(&mut Chain) -> Result<()>) -> Result<()> {
    [Side::Server, Side::Client]
        .into_iter()
        .try_for_each(|side| make(chain(system, side)?))
}

/// Spares the superblocks alone, which nobody reads in the middle of a job, and which a pool can't be opened without.
fn overwrite(file: &Path) -> Result<()> {
    const MIB: u64 = 1 << 20;
    /// Where the coordinator's block begins.
    const FIXED_BEGIN: u64 = 2 * 4096;
    /// Where the frames begin, in a pool of 64 slots.
    const DATA_BEGIN: u64 = 2 * MIB;
    let shown = || format!("writing over {}", file.display());
    let disk = File::options().write(true).open(file).with_context(shown)?;
    let mut random = Random::new(disk.metadata()?.len());
    let fixed = random.bytes(usize::try_from(DATA_BEGIN - FIXED_BEGIN)?);
    disk.write_all_at(&fixed, FIXED_BEGIN).with_context(shown)?;
    let end = disk.metadata()?.len() - MIB;
    for at in (DATA_BEGIN..end).step_by(2 << 20) {
        let noise = random.bytes(1 << 20);
        disk.write_all_at(&noise, at).with_context(shown)?;
    }
    Ok(())
}
