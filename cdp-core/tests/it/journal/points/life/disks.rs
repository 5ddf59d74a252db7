//! Disks that change their size, join, are copied and go.

use super::super::super::kit::*;
use super::super::model::{What, content};
use super::{Life, Outcome, said};
use cdp_core::frame::{Note, Part, RecordKind, ResyncReason};
use cdp_core::journal::*;
use cdp_core::replica::base::BaseWriter;
use cdp_core::types::*;
use std::sync::Arc;

/// At most so many disks at a time.
const DISKS: usize = 4;

impl Life {
    /// Another size: what a disk has grown by is written first, beyond its end; what is cut off reads as zeros if it comes back.
    /// `apart`: a segment ends between that and the record of the new size.
    pub(crate) fn resize(&mut self, pick: u8, sectors: u64, apart: bool) -> Outcome<()> {
        let sizes = self.sizes();
        let (number, from) = sizes[usize::from(pick) % sizes.len()];
        let unit = if from > 256 << 10 { 16 * SECTOR } else { SECTOR };
        let to = sectors.max(8) * unit;
        if to == from {
            return Ok(());
        }
        self.flush()?;
        self.rig.writer.edit(|manifest| manifest.resizing.push(ResizeInfo { disk: disk(number), size: to }));
        self.settle()?;
        let new = Extent::new(from, to.saturating_sub(from).min(8 * SECTOR));
        if to > from {
            self.source.clear(RecordKind::Zero, number, Extent::new(from, to - from));
            self.log(What::Nothing);
            let fill = self.dice.next() as u8;
            self.source.write(number, new, fill);
            self.log(What::Nothing);
        }
        if apart {
            self.flush()?;
            self.rig.writer.roll();
            self.settle()?;
        }
        self.source.note(RecordKind::Resize, Some(number), Note::Resize { from, to });
        self.log(What::Resize(number, to));
        if to > from {
            self.log_write(number, new);
        }
        self.flush()?;
        self.rig.writer.edit(|manifest| {
            manifest.resizing.clear();
            manifest.disks.iter_mut().filter(|info| info.id == disk(number)).for_each(|info| info.size = to);
        });
        self.did(if to > from { "grown" } else { "cut" });
        self.settle()
    }

    fn base_writer(&self, number: u16, size: u64) -> Outcome<BaseWriter> {
        let (storage, replica) = (self.rig.storage.as_ref(), self.rig.writer.manifest().replica);
        let copy = BaseWriter::create(storage, replica, disk(number), size).map_err(said)?;
        if self.rig.at_rest.key.is_some() { copy.at_rest(&self.rig.keys).map_err(said) } else { Ok(copy) }
    }

    /// The base of a disk with this content.
    pub(super) fn base_of(&mut self, number: u16, content: &[u8], lsn: Lsn) -> Outcome<BaseInfo> {
        let mut copy = self.base_writer(number, content.len() as u64)?;
        copy.data(content, lsn).map_err(said)?;
        Ok(copy.finish(self.rig.storage.as_ref(), lsn).map_err(said)?.named(Lsn::ZERO))
    }

    pub(super) fn add(&mut self, blocks: u64) -> Outcome<()> {
        if self.past.at(Lsn(u64::MAX)).len() == DISKS {
            return Ok(());
        }
        let number = self.rig.writer.manifest().free_disk().ok_or("no number is free")?.get();
        let content = Arc::new(content(&mut self.dice, blocks.max(1) * BLOCK + SECTOR));
        let (size, added) = (content.len() as u64, self.source.lsn.next());
        self.rig.writer.edit(|manifest| manifest.disks.push(info(number, size, added, None)));
        self.settle()?;
        let note = Note::DiskAdded { name: format!("disk{number}"), size };
        self.source.note(RecordKind::DiskAdded, Some(number), note);
        self.log(What::Joined(number, content));
        self.begin_copy(number, size)
    }

    fn begin_copy(&mut self, number: u16, size: u64) -> Outcome<()> {
        let (from, reason) = (self.source.lsn, ResyncReason::Seeding);
        self.source.note(RecordKind::ResyncBegin, Some(number), Note::ResyncBegin { from, reason });
        self.log(What::Incomplete(number));
        self.flush()?;
        let copy = self.base_writer(number, size)?;
        self.copies.insert(number, (copy, size));
        Ok(())
    }

    /// The next blocks of the disks that are not complete, as they are now; a copy that a stop ended begins anew.
    pub(super) fn copy(&mut self, blocks: u64) -> Outcome<()> {
        self.flush()?;
        let now = self.past.at(Lsn(u64::MAX)).into_iter();
        for (number, then) in now.filter(|(_, then)| !then.complete) {
            if !self.copies.contains_key(&number) {
                self.begin_copy(number, then.bytes.len() as u64)?;
            }
            let (mut copy, size) = self.copies.remove(&number).ok_or("it was begun")?;
            // As large as it was when the copy began; what lies behind is in the journal.
            let at = copy.position();
            let end = (at + blocks.max(1) * BLOCK).min(size);
            let mut piece = vec![0; (end - at) as usize];
            let there = then.bytes.get(at as usize..(end as usize).min(then.bytes.len())).unwrap_or_default();
            piece[..there.len()].copy_from_slice(there);
            copy.data(&piece, self.source.lsn).map_err(said)?;
            if end < size {
                self.copies.insert(number, (copy, size));
                continue;
            }
            let root = copy.finish(self.rig.storage.as_ref(), self.source.lsn).map_err(said)?;
            let base = root.named(Lsn::ZERO);
            self.rig.writer.edit(|manifest| {
                manifest
                    .disks
                    .iter_mut()
                    .filter(|info| info.id == disk(number))
                    .for_each(|info| info.base = Some(base));
            });
            self.settle()?;
            self.end_copy(number);
            self.did("added");
            self.flush()?;
        }
        Ok(())
    }

    fn end_copy(&mut self, number: u16) {
        let note = Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 };
        self.source.note(RecordKind::ResyncEnd, Some(number), note);
        self.log(What::Complete(number));
    }

    /// A disk whose base is named is complete: the record that says so may be lost, and is written again.
    pub(super) fn end_copies(&mut self) {
        let copied =
            |number: u16| self.rig.writer.manifest().disk(disk(number)).is_some_and(|info| info.base.is_some());
        let now = self.past.at(Lsn(u64::MAX)).into_iter();
        let ended: Vec<_> =
            now.filter(|(number, then)| !then.complete && copied(*number)).map(|(number, _)| number).collect();
        ended.into_iter().for_each(|number| self.end_copy(number));
    }

    pub(super) fn remove(&mut self, pick: u8) -> Outcome<()> {
        let sizes = self.sizes();
        if sizes.len() < 2 {
            return Ok(());
        }
        let number = sizes[usize::from(pick) % sizes.len()].0;
        let part = Part::plain(RecordKind::DiskRemoved, Some(disk(number)), Extent::new(0, 0), Lsn::ZERO, WallTime(0));
        let lsn = self.source.plain(part);
        self.log(What::Gone(number));
        self.copies.remove(&number);
        self.flush()?;
        self.rig.writer.edit(|manifest| {
            let gone = manifest.disks.iter_mut().filter(|info| info.id == disk(number));
            gone.for_each(|info| info.removed = Some(lsn));
        });
        self.did("removed");
        self.settle()
    }
}

pub(super) fn info(number: u16, size: u64, added: Lsn, base: Option<BaseInfo>) -> DiskInfo {
    let (name, source) = (format!("disk{number}"), String::new());
    DiskInfo { id: disk(number), name, size, source, added, removed: None, stopped: None, base }
}
