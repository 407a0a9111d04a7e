//! Who is in a pool: the coordinator and the members, by their own fixed blocks, without joining.
//!
//! Whoever is alive advances a counter, so that two looks some heartbeats apart tell the living from the dead. Nothing
//! is written.

use super::{Numbered, OpenPool, numbered};
use crate::{
    Error,
    patience::{OPEN_PATIENCE, within},
};
use direct_io::{Access, AlignedBuf, Device};
use std::{path::PathBuf, sync::Arc, thread};
use storage_socket_proto::{
    BLOCK_BYTES, FormatError, Geometry, Lba, Place, SlotIndex, Stamp, TagKey, Unchecked,
    block::{AnswerPage, CoordinatorBlock, CoordinatorState, MemberEntry, MemberPage, MemberState},
};
use uuid::Uuid;

/// Who was found in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The pool.
    pub uuid: Uuid,
    /// The last coordinator, if there ever was one.
    pub coordinator: Option<CoordinatorInfo>,
    /// The last member of each slot that ever had one.
    pub members: Vec<MemberInfo>,
}

/// What is known of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorInfo {
    /// Its host's name.
    pub host: String,
    /// Whether it ended in order.
    pub stopped: bool,
    /// Whether its counter advanced while it was watched.
    pub alive: bool,
}

/// What is known of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its slot.
    pub slot: u32,
    /// Its host's name.
    pub host: String,
    /// Whether it ended in order.
    pub stopped: bool,
    /// Whether its counter advanced while it was watched.
    pub alive: bool,
    /// Connections that it asks for or uses.
    pub connections: usize,
}

/// Tells who is in the pool on `paths`; takes about three heartbeats of the pool.
///
/// # Errors
/// As for opening the pool, or a device fails.
pub fn members(paths: &[PathBuf]) -> Result<Members, Error> {
    let opened = OpenPool::open(paths, Access::ReadOnly, None)?;
    look_twice(&opened)
}

/// The stamp of the last coordinator's block, if there ever was one and every device tells of it: one that can't be read might
/// know of a later one.
pub(crate) fn newest_coordinator(opened: &OpenPool) -> Option<Stamp> {
    match look(opened) {
        Ok(found) => found.coordinator.map(|(stamp, _)| stamp),
        Err(error) => {
            tracing::warn!(%error, "the pool's last coordinator is not known");
            None
        }
    }
}

/// Refuses a pool that somebody uses.
pub(super) fn check_quiet(opened: &OpenPool) -> Result<(), Error> {
    let found = look_twice(opened)?;
    let coordinator = found.coordinator.filter(|found| found.alive);
    let member = found.members.into_iter().find(|member| member.alive);
    let by = match (coordinator, member) {
        (Some(coordinator), _) => format!("its coordinator runs on {}", coordinator.host),
        (None, Some(member)) => format!("slot {} is used by {}", member.slot, member.host),
        (None, None) => return Ok(()),
    };
    Err(Error::InUse {
        path: opened.devices[0].path().to_owned(),
        by,
    })
}

/// Every fixed block that is neither blank nor valid, and every device whose fixed areas can't be read.
pub(super) fn damage(geometry: &Geometry, devices: &[Numbered<'_>]) -> Vec<Error> {
    let mut damage = Vec::new();
    for &(index, device) in devices {
        let blocks = match Fixed::read(device, geometry) {
            Ok(blocks) => blocks,
            Err(unreadable) => {
                damage.push(unreadable);
                continue;
            }
        };
        let mut note = |what: String, lba: Lba, found: Option<FormatError>| {
            if let Some(found) = found.filter(|found| *found != FormatError::Blank) {
                damage.push(Error::DamagedBlock {
                    path: device.path().to_owned(),
                    what,
                    lba: lba.0,
                    found,
                });
            }
        };
        let key = TagKey::public();
        let place = CoordinatorBlock::place(geometry.pool(), index);
        for lba in pair(Geometry::COORDINATOR) {
            let found = blocks
                .at(lba)
                .and_then(|raw| CoordinatorBlock::parse(raw, &place, &key));
            note("the coordinator's block".to_owned(), lba, found.err());
        }
        for slot in (0..geometry.slots()).map(SlotIndex) {
            let place = Place {
                pool: geometry.pool(),
                device: index,
                slot,
            };
            for lba in pair(geometry.member_page(slot)) {
                let found = blocks
                    .at(lba)
                    .and_then(|raw| MemberPage::parse(raw, &place, &key));
                note(format!("the page of slot {slot}"), lba, found.err());
            }
            for lba in pair(geometry.answer_page(slot)) {
                let found = blocks
                    .at(lba)
                    .and_then(|raw| AnswerPage::parse(raw, &place, &key));
                note(format!("the answers to slot {slot}"), lba, found.err());
            }
        }
    }
    damage
}

/// The newest of what each writer left, over all devices.
struct Look {
    coordinator: Option<(Stamp, CoordinatorBlock)>,
    members: Vec<(SlotIndex, Stamp, MemberPage)>,
}

fn look_twice(opened: &OpenPool) -> Result<Members, Error> {
    let first = look(opened)?;
    let anyone = first
        .coordinator
        .as_ref()
        .is_some_and(|(_, block)| block.state != CoordinatorState::Stopped)
        || first
            .members
            .iter()
            .any(|(_, _, page)| page.state == MemberState::Running);
    let second = if anyone {
        thread::sleep(opened.geometry.timeouts().heartbeat * 3);
        look(opened)?
    } else {
        look(opened)?
    };
    let coordinator = second.coordinator.map(|(stamp, block)| CoordinatorInfo {
        host: block.host.to_string(),
        stopped: block.state == CoordinatorState::Stopped,
        alive: block.state != CoordinatorState::Stopped
            && first.coordinator.is_none_or(|(before, _)| before != stamp),
    });
    let members = second.members.into_iter().map(|(slot, stamp, page)| {
        let before = first.members.iter().find(|(other, _, _)| *other == slot);
        MemberInfo {
            slot: slot.0,
            host: page.host.to_string(),
            stopped: page.state == MemberState::Stopped,
            alive: page.state == MemberState::Running
                && before.is_none_or(|(_, before, _)| *before != stamp),
            connections: page
                .entries
                .iter()
                .filter(|entry| matches!(entry, MemberEntry::Request(_) | MemberEntry::Open { .. }))
                .count(),
        }
    });
    Ok(Members {
        uuid: opened.geometry.pool().0,
        coordinator,
        members: members.collect(),
    })
}

fn look(opened: &OpenPool) -> Result<Look, Error> {
    let (geometry, key) = (&opened.geometry, TagKey::public());
    let mut look = Look {
        coordinator: None,
        members: Vec::new(),
    };
    let mut newest: Vec<Option<(Stamp, MemberPage)>> = Vec::new();
    newest.resize_with(
        usize::try_from(geometry.slots()).expect("slots are few"),
        || None,
    );
    for (index, device) in numbered(&opened.devices) {
        let blocks = Fixed::read(device, geometry)?;
        let place = CoordinatorBlock::place(geometry.pool(), index);
        for lba in pair(Geometry::COORDINATOR) {
            let found = blocks
                .at(lba)
                .and_then(|raw| CoordinatorBlock::parse(raw, &place, &key));
            keep_newest(&mut look.coordinator, found.ok());
        }
        for (slot, newest) in (0..).map(SlotIndex).zip(&mut newest) {
            let place = Place {
                pool: geometry.pool(),
                device: index,
                slot,
            };
            for lba in pair(geometry.member_page(slot)) {
                let found = blocks
                    .at(lba)
                    .and_then(|raw| MemberPage::parse(raw, &place, &key));
                keep_newest(newest, found.ok());
            }
        }
    }
    look.members = (0..)
        .map(SlotIndex)
        .zip(newest)
        .filter_map(|(slot, found)| found.map(|(stamp, page)| (slot, stamp, page)))
        .collect();
    Ok(look)
}

fn keep_newest<T>(newest: &mut Option<(Stamp, T)>, found: Option<(Stamp, T)>) {
    if let Some((stamp, value)) = found
        && newest.as_ref().is_none_or(|(known, _)| *known < stamp)
    {
        *newest = Some((stamp, value));
    }
}

/// Copies A and B of a fixed block.
fn pair(first: Lba) -> [Lba; 2] {
    [first, Lba(first.0 + 1)]
}

/// Everything before the data area of one device.
struct Fixed {
    pieces: Vec<AlignedBuf>,
}

impl Fixed {
    const PIECE_BLOCKS: u64 = 256;

    fn read(device: &Arc<Device>, geometry: &Geometry) -> Result<Self, Error> {
        let end = geometry.data_start().lba();
        within(device.path(), "read its fixed areas", OPEN_PATIENCE, {
            let device = device.clone();
            move || Self::read_below(&device, end)
        })
    }

    fn read_below(device: &Device, Lba(end): Lba) -> Result<Self, Error> {
        let mut pieces = Vec::new();
        for lba in (0..end).step_by(256) {
            let mut piece = AlignedBuf::new(256 * BLOCK_BYTES)?;
            device.read_exact_at(&mut piece, lba * BLOCK_BYTES as u64)?;
            pieces.push(piece);
        }
        Ok(Self { pieces })
    }

    fn at(&self, lba: Lba) -> Result<Unchecked<'_>, FormatError> {
        let index = |number: u64| usize::try_from(number).expect("the fixed areas are small");
        let piece = &self.pieces[index(lba.0 / Self::PIECE_BLOCKS)];
        let at = index(lba.0 % Self::PIECE_BLOCKS) * BLOCK_BYTES;
        Unchecked::new(&piece[at..at + BLOCK_BYTES])
    }
}
