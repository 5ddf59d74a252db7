//! What records say of single disks: sizes, first copies, ends.
//!
//! A first copy of a disk that joins takes nothing from the other disks' moments, so it is no bracket of the branch.

use super::{Branch, Catalogue};
use crate::frame::{Note, RecordKind};
use crate::journal::Event;
use crate::types::{DiskId, Lsn, Timeline};

/// Something that a record says of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskChange {
    /// From this LSN on.
    pub lsn: Lsn,
    /// Of which disk.
    pub disk: DiskId,
    /// What.
    pub what: DiskFact,
}

/// What a record says of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFact {
    /// It has another size.
    Resized {
        /// Before, in bytes.
        from: u64,
        /// From here on.
        to: u64,
    },
    /// It is being copied for the first time: it is not complete.
    Seeding,
    /// It is complete.
    Complete,
    /// It is gone.
    Removed,
}

impl DiskFact {
    /// What an event says of a disk alone.
    pub(super) fn of(event: &Event) -> Option<(DiskId, Self)> {
        let disk = event.disk?;
        let fact = match (event.kind, &event.note) {
            (_, Some(Note::Resize { from, to })) => Self::Resized { from: *from, to: *to },
            (_, Some(Note::ResyncBegin { .. })) => Self::Seeding,
            (_, Some(Note::ResyncEnd { .. })) => Self::Complete,
            (RecordKind::DiskRemoved, _) => Self::Removed,
            _ => return None,
        };
        Some((disk, fact))
    }
}

impl Branch {
    /// What its records say of disks, oldest first. As many as there were such records.
    #[must_use]
    pub fn disk_changes(&self) -> &[DiskChange] {
        &self.changes
    }
}

impl Catalogue {
    /// What is said of a disk on the way through a timeline, oldest first: before and after any of its moments.
    fn changes_of(&self, timeline: Timeline, disk: DiskId) -> Vec<DiskChange> {
        let trunk = self.trunk().map(|trunk| self.path(trunk.timeline)).unwrap_or_default();
        let on_trunk = trunk.iter().any(|(branch, _)| branch.timeline == timeline);
        let way = if on_trunk { trunk } else { self.path(timeline) };
        let of_disk = |(branch, upto): &(&Branch, Lsn)| {
            let upto = *upto;
            let changes = branch.changes.iter().filter(move |change| change.disk == disk && change.lsn <= upto);
            changes.copied().collect::<Vec<_>>()
        };
        way.iter().rev().flat_map(of_disk).collect()
    }

    /// Bytes of a disk at an LSN, if a record says it; else it never changed as far as is known.
    #[must_use]
    pub fn disk_size(&self, timeline: Timeline, lsn: Lsn, disk: DiskId) -> Option<u64> {
        let mut size = None;
        for change in self.changes_of(timeline, disk) {
            let DiskFact::Resized { from, to } = change.what else { continue };
            if change.lsn > lsn {
                return size.or(Some(from));
            }
            size = Some(to);
        }
        size
    }

    /// Whether a disk is complete at an LSN, if a record says it.
    #[must_use]
    pub fn is_disk_complete(&self, timeline: Timeline, lsn: Lsn, disk: DiskId) -> Option<bool> {
        let changes = self.changes_of(timeline, disk);
        let mut copies = changes.iter().filter(|change| matches!(change.what, DiskFact::Seeding | DiskFact::Complete));
        let before = copies.clone().take_while(|change| change.lsn <= lsn).last();
        match before {
            Some(change) => Some(change.what == DiskFact::Complete),
            None => copies.next().map(|_| false),
        }
    }

    /// The LSN at which a disk ends, if a record says it.
    #[must_use]
    pub fn disk_end(&self, timeline: Timeline, disk: DiskId) -> Option<Lsn> {
        let changes = self.changes_of(timeline, disk);
        changes.iter().find(|change| change.what == DiskFact::Removed).map(|change| change.lsn)
    }

    /// The first LSN above `lsn` from which on a disk is complete, if a record says it.
    #[must_use]
    pub fn disk_complete_after(&self, timeline: Timeline, lsn: Lsn, disk: DiskId) -> Option<Lsn> {
        let changes = self.changes_of(timeline, disk);
        let complete = |change: &&DiskChange| change.lsn > lsn && change.what == DiskFact::Complete;
        changes.iter().find(complete).map(|change| change.lsn)
    }
}
