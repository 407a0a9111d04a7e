//! A member's connection entries: requested, open, closed (§3.4).

use crate::{
    block::{MemberEntry, Request, SegmentGroup},
    error::UsageError,
    geometry::FRAME_UNITS_MAX,
    member::ConnectOptions,
    reasons::ResetReason,
    types::{ConnectionId, ENTRIES, Epoch, Tick},
};

/// One connection of a member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    page: MemberEntry,
    /// When a request is given up.
    deadline: Option<Tick>,
    /// Who granted it.
    epoch: Epoch,
    /// The driver was told that the other side has closed it.
    told: bool,
}

/// Finds a place for a request. Entries that wait for the coordinator's word are taken if it is `forgotten`.
pub(super) fn place<'a>(
    entries: &'a mut [Entry; ENTRIES],
    options: &ConnectOptions,
    forgotten: bool,
) -> Result<&'a mut Entry, UsageError> {
    let connection = options.connection;
    let is_known = |entry: &Entry| entry.page.connection() == Some(connection);
    if connection == ConnectionId::NONE || entries.iter().any(is_known) {
        return Err(UsageError::BadConnectionId(connection));
    }
    if options.frame_units.0 == 0 || options.frame_units.0 > FRAME_UNITS_MAX {
        return Err(UsageError::OutOfRange { what: "frame size" });
    }
    let least = options.frame_units.0 + 1;
    if options.window_to_coordinator.0 < least || options.window_to_member.0 < least {
        return Err(UsageError::OutOfRange { what: "window" });
    }
    let is_free = |entry: &Entry| match entry.page {
        MemberEntry::Empty => true,
        MemberEntry::Closed { .. } => forgotten,
        MemberEntry::Request(_) | MemberEntry::Open { .. } => false,
    };
    let at = entries
        .iter()
        .position(|entry| entry.page == MemberEntry::Empty)
        .or_else(|| entries.iter().position(is_free));
    at.map(|at| &mut entries[at])
        .ok_or(UsageError::TooManyConnections)
}

impl Entry {
    pub(super) fn request(options: &ConnectOptions, deadline: Tick) -> Self {
        Self {
            page: MemberEntry::Request(Request {
                connection: options.connection,
                port: options.port,
                cipher: options.cipher,
                frame_units: options.frame_units,
                window_to_coordinator: options.window_to_coordinator,
                window_to_member: options.window_to_member,
                devices: options.devices,
            }),
            deadline: Some(deadline),
            epoch: Epoch(0),
            told: false,
        }
    }

    pub(super) fn page(&self) -> MemberEntry {
        self.page
    }

    /// When the request is given up, if it is one.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.deadline
    }

    /// Whether the coordinator has to learn of it and hasn't shown that it did.
    pub(super) fn is_in_talk(&self) -> bool {
        matches!(
            self.page,
            MemberEntry::Request(_) | MemberEntry::Closed { .. }
        )
    }

    /// Whether this is the connection, requested or open.
    pub(super) fn is_live(&self, connection: ConnectionId) -> bool {
        let live = matches!(
            self.page,
            MemberEntry::Request(_) | MemberEntry::Open { .. }
        );
        live && self.page.connection() == Some(connection)
    }

    pub(super) fn close(&mut self, reason: Option<ResetReason>) {
        if let Some(connection) = self.page.connection() {
            self.page = MemberEntry::Closed { connection, reason };
            self.deadline = None;
        }
    }

    pub(super) fn close_if_live(&mut self, reason: ResetReason) {
        if let MemberEntry::Request(_) | MemberEntry::Open { .. } = self.page {
            self.close(Some(reason));
        }
    }

    /// Gives the request up if its time is over.
    pub(super) fn give_up(&mut self, now: Tick) -> Option<ConnectionId> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        let connection = self.page.connection();
        self.close(Some(ResetReason::Aborted));
        connection
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn open(&mut self, group: &SegmentGroup, epoch: Epoch) {
        if let Some(connection) = self.page.connection() {
            self.page = MemberEntry::Open {
                connection,
                generation: group.generation,
            };
            self.deadline = None;
            self.epoch = epoch;
        }
    }

    /// Whether what it uses was granted by another coordinator than `epoch`.
    pub(super) fn is_foreign(&self, epoch: Epoch) -> bool {
        matches!(self.page, MemberEntry::Open { .. }) && self.epoch != epoch
    }

    /// The open connection that the driver has to be told of, once.
    pub(super) fn take_untold(&mut self) -> Option<ConnectionId> {
        let MemberEntry::Open { connection, .. } = self.page else {
            return None;
        };
        (!std::mem::replace(&mut self.told, true)).then_some(connection)
    }
}
