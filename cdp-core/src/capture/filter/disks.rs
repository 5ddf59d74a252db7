//! Disks that join, change their size and leave, while the others go on.
//!
//! A change waits for what it has to wait for and holds nobody: what is cut off, and a disk that leaves, take no op from the
//! order on, and the record is made when the last one that was taken is over; what a disk has grown by is read first, beyond
//! its end, where no guest sees it. So each of these records is a moment that can be restored.

use super::{Filter, Life};
use crate::capture::options::{DiskSpec, FilterOptions, OptionsError, SLOTS_MAX, check_disk};
use crate::capture::output::Event;
use crate::frame::{Note, Part, RecordKind, ResyncReason};
use crate::mistakes::{self, Mistake};
use crate::types::{DISKS_MAX, DiskId, Extent, Lsn, Now};
use std::collections::BTreeMap;

/// Something that becomes of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    /// It joined and is being copied.
    Copy,
    /// It is larger; what is new is read when the replica has everything up to `after`.
    Grow { to: u64, after: Lsn, doubtful: Option<Vec<Extent>> },
    /// It is cut as soon as nothing runs beyond `to`.
    Cut { to: u64 },
    /// It leaves as soon as nothing runs on it.
    Leave,
}

/// What becomes of the disks. As many as the filter has places for disks.
#[derive(Debug, Default)]
pub(super) struct Changes {
    of: BTreeMap<usize, Change>,
    /// With the LSN at which it went.
    gone: BTreeMap<usize, Lsn>,
    /// Disks that were cut: at which LSN last, and the smallest size that they had since the last cut that is durable.
    cut: BTreeMap<usize, (Lsn, u64)>,
    /// Disks whose copy ended, and at which LSN.
    copied: BTreeMap<usize, Lsn>,
}

impl Changes {
    /// Whether a disk is gone.
    pub(super) fn is_gone(&self, disk: usize) -> bool {
        self.gone.contains_key(&disk)
    }

    /// Whether a disk takes no ops any more.
    pub(super) fn is_leaving(&self, disk: usize) -> bool {
        self.of.get(&disk) == Some(&Change::Leave)
    }

    /// Whether a disk is being copied for the first time.
    pub(super) fn is_copied(&self, disk: usize) -> bool {
        self.of.get(&disk) == Some(&Change::Copy)
    }

    /// Beyond which byte a disk takes no ops, `size` bytes long as it is.
    pub(super) fn limit(&self, disk: usize, size: u64) -> u64 {
        if let Some(Change::Cut { to }) = self.of.get(&disk) { size.min(*to) } else { size }
    }

    /// Whether what a disk has grown by is being read.
    pub(super) fn reads(&self) -> bool {
        self.of.values().any(|change| matches!(change, Change::Grow { doubtful: None, .. }))
    }

    /// Up to which byte what a disk is to grow by is being read, if it is.
    fn grows_to(&self, disk: usize) -> Option<u64> {
        if let Some(Change::Grow { to, doubtful: None, .. }) = self.of.get(&disk) { Some(*to) } else { None }
    }

    /// Whether something is still to be recorded of a disk, but for the end of a copy.
    pub(super) fn is_pending(&self) -> bool {
        self.of.values().any(|change| *change != Change::Copy)
    }
}

impl Filter {
    /// A disk joins the group: from here on its ops are taken. The driver copies it, with what it writes meanwhile being
    /// recorded, and says [`Filter::disk_seeded`]. `facts` are kept for the next start.
    ///
    /// # Errors
    /// When it cannot be a disk of this group.
    pub fn add_disk(&mut self, now: Now, disk: DiskSpec, facts: Option<Vec<u8>>) -> Result<Lsn, OptionsError> {
        self.check_running()?;
        check_disk(&disk)?;
        if self.disks.iter().any(|known| known.id == disk.id) {
            return Err(OptionsError::DuplicateDisk { disk: disk.id });
        }
        let count = self.disks.len() - self.changes.gone.len() + 1;
        if count > DISKS_MAX {
            return Err(OptionsError::DiskCount { count });
        }
        if self.disks.len() == SLOTS_MAX {
            return Err(OptionsError::Slots);
        }
        let at = self.disks.len();
        self.activity.add_disk(disk.id, disk.size);
        facts.into_iter().for_each(|facts| self.activity.writer_mut().add_facts(disk.id, facts));
        self.mend.add_disk(disk.size);
        self.disks.push(disk);
        self.kicked = true;
        Ok(self.announce(now, at))
    }

    /// The records that a disk joins with.
    fn announce(&mut self, now: Now, at: usize) -> Lsn {
        let DiskSpec { id, name, size } = self.disks[at].clone();
        let from = self.control(now, RecordKind::DiskAdded, Some(id), Note::DiskAdded { name, size });
        self.say_incomplete(now, id, from);
        self.changes.of.insert(at, Change::Copy);
        from
    }

    /// The record that a disk is being copied, and not complete.
    fn say_incomplete(&mut self, now: Now, disk: DiskId, from: Lsn) {
        let note = Note::ResyncBegin { from, reason: ResyncReason::Seeding };
        self.control(now, RecordKind::ResyncBegin, Some(disk), note);
    }

    /// The copy of a disk that joined is complete and durable at the replica: from the record that is made now on the disk can
    /// be restored.
    ///
    /// # Errors
    /// When no such disk is being copied.
    pub fn disk_seeded(&mut self, now: Now, disk: DiskId) -> Result<Lsn, OptionsError> {
        self.check_running()?;
        let at = self.find_disk(disk).filter(|at| self.changes.is_copied(*at));
        let at = at.ok_or(OptionsError::UnknownDisk { disk })?;
        self.changes.of.remove(&at);
        let note = Note::ResyncEnd { bytes_read: self.disks[at].size, bytes_changed: 0 };
        let lsn = self.control(now, RecordKind::ResyncEnd, Some(disk), note);
        self.changes.copied.insert(at, lsn);
        self.events.push_back(Event::DiskComplete { disk, lsn });
        self.kicked = true;
        Ok(lsn)
    }

    /// The disk gets another size; [`Event::DiskResized`] tells when it has it. A larger one: what is new is read first where
    /// it is `doubtful`, which is all that may differ from zeros at the source or at the replica. A smaller one: nothing beyond
    /// is taken any more, and what was taken is waited for.
    ///
    /// # Errors
    /// When it has that size, cannot have it, or an earlier change of it is not through.
    pub fn resize_disk(
        &mut self,
        now: Now,
        disk: DiskId,
        size: u64,
        doubtful: Vec<Extent>,
    ) -> Result<(), OptionsError> {
        self.check_running()?;
        let at = self.find_disk(disk).ok_or(OptionsError::UnknownDisk { disk })?;
        check_disk(&DiskSpec { size, ..self.disks[at].clone() })?;
        let from = self.disks[at].size;
        if size == from {
            return Err(OptionsError::SameSize { disk, size });
        }
        if self.changes.of.contains_key(&at) {
            return Err(OptionsError::Changing { disk });
        }
        let change = if size > from {
            let new = Extent::new(from, size - from);
            let doubtful = doubtful.iter().filter_map(|extent| extent.intersect(&new)).collect();
            self.activity.grow(at, size);
            self.mend.grow(at, size);
            // A replica that never hears of a cut still has what was cut off.
            if let Some((cut, least)) = self.changes.cut.get(&at).filter(|(cut, _)| *cut > self.durable) {
                let doubtful = Extent::new(*least, size - least);
                self.activity.mark_hot(at, doubtful, now.mono);
                self.activity.touched(at, doubtful, *cut, now.mono);
            }
            Change::Grow { to: size, after: self.last_lsn, doubtful: Some(doubtful) }
        } else {
            Change::Cut { to: size }
        };
        self.changes.of.insert(at, change);
        self.kicked = true;
        Ok(())
    }

    /// A disk leaves the group: it takes no ops any more. [`Event::DiskRemoved`] tells when it is gone.
    ///
    /// # Errors
    /// When there is no such disk, it is the last one, or it is leaving already.
    pub fn remove_disk(&mut self, disk: DiskId) -> Result<(), OptionsError> {
        self.check_running()?;
        let at = self.find_disk(disk).ok_or(OptionsError::UnknownDisk { disk })?;
        let stays = |other: usize| other != at && !self.changes.is_gone(other) && !self.changes.is_leaving(other);
        if !(0..self.disks.len()).any(stays) {
            return Err(OptionsError::LastDisk { disk });
        }
        match self.changes.of.get(&at) {
            Some(Change::Leave | Change::Cut { .. }) => return Err(OptionsError::Changing { disk }),
            None | Some(Change::Copy | Change::Grow { .. }) => self.changes.of.insert(at, Change::Leave),
        };
        self.kicked = true;
        Ok(())
    }

    /// Bytes of a disk as it is now; `None` when it is not there.
    #[must_use]
    pub fn disk_size(&self, disk: DiskId) -> Option<u64> {
        self.find_disk(disk).map(|at| self.disks[at].size)
    }

    /// The LSN at which a disk left, if it has since the start.
    #[must_use]
    pub fn disk_left(&self, disk: DiskId) -> Option<Lsn> {
        let at = self.disks.iter().position(|known| known.id == disk)?;
        self.changes.gone.get(&at).copied()
    }

    fn check_running(&self) -> Result<(), OptionsError> {
        if matches!(self.life, Life::Closed { .. }) { Err(OptionsError::Closed) } else { Ok(()) }
    }

    /// Whether nothing has to be read again of what guests see: what disks have grown by may take longer, and fail.
    pub(super) fn is_mended(&self) -> bool {
        let inside = |at: usize| Extent::new(0, self.disks[at].size);
        match self.changes.reads() {
            false => self.mend.is_idle(),
            true => (0..self.disks.len()).all(|at| !self.mend.concerns(at, inside(at))),
        }
    }

    /// Records the changes that wait for nothing any more.
    pub(super) fn settle_disks(&mut self, now: Now) {
        if !self.changes.is_pending() {
            return;
        }
        for (at, change) in std::mem::take(&mut self.changes.of) {
            if let Some(change) = self.settle_disk(now, at, change) {
                self.changes.of.insert(at, change);
            }
        }
    }

    /// What of a change is left to wait for.
    fn settle_disk(&mut self, now: Now, at: usize, change: Change) -> Option<Change> {
        let from = self.disks[at].size;
        let beyond = |to: u64| move |op: Extent| op.end() > to;
        match change {
            Change::Copy => Some(change),
            // The replica is compared with only where it has all that was recorded: a cut before may not have arrived.
            Change::Grow { to, after, doubtful: Some(doubtful) } if self.durable >= after || doubtful.is_empty() => {
                for extent in doubtful.into_iter().filter(|_| !mistakes::is(Mistake::GrowthUnread)) {
                    self.mend.mark(at, extent);
                    self.activity.mark_hot(at, extent, now.mono);
                }
                self.settle_disk(now, at, Change::Grow { to, after, doubtful: None })
            }
            Change::Grow { to, doubtful: None, .. } if !self.mend.concerns(at, Extent::new(from, to - from)) => {
                self.resized(now, at, to);
                None
            }
            Change::Cut { to } if !self.order.open_on(at).any(beyond(to)) || mistakes::is(Mistake::CutUnderOps) => {
                self.mend.cut(at, to);
                self.activity.cut(at, to);
                self.resized(now, at, to);
                None
            }
            Change::Leave if self.order.open_on(at).next().is_none() => {
                self.mend.cut(at, 0);
                self.activity.remove_disk(at);
                let disk = self.disks[at].id;
                let lsn = self.disk_removed(now, disk);
                self.changes.gone.insert(at, lsn);
                self.events.push_back(Event::DiskRemoved { disk, lsn });
                None
            }
            change => Some(change),
        }
    }

    fn resized(&mut self, now: Now, at: usize, to: u64) {
        let (disk, from) = (self.disks[at].id, self.disks[at].size);
        self.disks[at].size = to;
        let lsn = self.control(now, RecordKind::Resize, Some(disk), Note::Resize { from, to });
        if to < from {
            let before = self.changes.cut.get(&at).filter(|(cut, _)| *cut > self.durable);
            let least = before.map_or(to, |(_, least)| to.min(*least));
            self.changes.cut.insert(at, (lsn, least));
        }
        self.events.push_back(Event::DiskResized { disk, lsn, size: to });
    }

    /// Tells a replica, durable up to `fork` with the disks that it knows, which ones there are.
    pub(super) fn tell_disks(&mut self, now: Now, fork: Lsn, known: &[DiskSpec]) {
        let find = |id: DiskId| known.iter().find(move |disk| disk.id == id);
        for disk in known.iter().map(|disk| disk.id) {
            if self.find_disk(disk).is_none() {
                self.disk_removed(now, disk);
            }
        }
        for at in 0..self.disks.len() {
            if self.changes.is_gone(at) {
                continue;
            }
            let DiskSpec { id, name, size } = self.disks[at].clone();
            // What was read of what it is about to have grown by may be lost.
            if let Some(to) = self.changes.grows_to(at) {
                self.mend.mark(at, Extent::new(size, to - size));
            }
            let Some(before) = find(id) else {
                if self.changes.is_copied(at) {
                    self.announce(now, at);
                } else {
                    self.control(now, RecordKind::DiskAdded, Some(id), Note::DiskAdded { name, size });
                    // The group's first copy goes on, below what is recorded.
                    if !self.seeding {
                        self.mend.mark(at, Extent::new(0, size));
                    }
                }
                continue;
            };
            // It may know the disk before any record of it, and would take the copy for complete before the record says so.
            if self.changes.is_copied(at) {
                self.say_incomplete(now, id, self.last_lsn.next());
            }
            // What was cut off and came back was discarded at the source, and not there. What was read of what a disk has grown
            // by has no LSN in the log.
            let cut = self.changes.cut.get(&at).filter(|(lsn, _)| *lsn > fork).map_or(size, |(_, least)| *least);
            let doubtful = if self.gather.keeps_ranges() { cut } else { before.size.min(cut) };
            if before.size != size {
                self.control(now, RecordKind::Resize, Some(id), Note::Resize { from: before.size, to: size });
            }
            if doubtful < size {
                self.mend.mark(at, Extent::new(doubtful, size - doubtful));
            }
            if self.changes.copied.get(&at).is_some_and(|lsn| *lsn > fork) {
                let note = Note::ResyncEnd { bytes_read: size, bytes_changed: 0 };
                let lsn = self.control(now, RecordKind::ResyncEnd, Some(id), note);
                self.changes.copied.insert(at, lsn);
            }
        }
    }

    fn disk_removed(&mut self, now: Now, disk: DiskId) -> Lsn {
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        self.gather(now, Part::plain(RecordKind::DiskRemoved, Some(disk), Extent::new(0, 0), lsn, time));
        lsn
    }

    /// What became of the disks since the last stop; says whether something of them has to be read.
    pub(super) fn begin_changes(&mut self, now: Now, options: &FilterOptions) -> bool {
        for disk in &options.leaving {
            self.disk_removed(now, *disk);
        }
        let mut grown = false;
        for (disk, from) in &options.resized {
            let Some(at) = self.find_disk(*disk) else { continue };
            let (from, to) = (*from, self.disks[at].size);
            self.control(now, RecordKind::Resize, Some(*disk), Note::Resize { from, to });
            if to > from {
                grown = true;
                let new = Extent::new(from, to - from);
                self.mend.mark(at, new);
                self.activity.mark_hot(at, new, now.mono);
            }
        }
        for at in options.joining.iter().filter_map(|disk| self.find_disk(*disk)).collect::<Vec<_>>() {
            self.announce(now, at);
        }
        grown
    }
}
