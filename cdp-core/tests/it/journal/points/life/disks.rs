//! Disks that grow, join and go.

use super::super::super::kit::*;
use super::super::model::{What, content};
use super::{Life, Outcome, said};
use cdp_core::frame::{Note, RecordKind, ResyncReason};
use cdp_core::journal::*;
use cdp_core::replica::base::BaseWriter;
use cdp_core::types::*;
use std::sync::Arc;

impl Life {
    pub(super) fn grow(&mut self) -> Outcome<()> {
        let complete = self.past.at(Lsn(u64::MAX)).into_iter().find(|(_, disk)| disk.complete);
        let Some((number, then)) = complete else { return Ok(()) };
        let from = then.bytes.len() as u64;
        let to = from + (1 + self.dice.below(20)) * SECTOR;
        self.rig.writer.edit(|manifest| manifest.resizing.push(ResizeInfo { disk: disk(number), size: to }));
        self.settle()?;
        self.source.note(RecordKind::Resize, Some(number), Note::Resize { from, to });
        self.log(What::Resize(number, to));
        self.flush()?;
        self.rig.writer.edit(|manifest| {
            manifest.resizing.clear();
            manifest.disks.iter_mut().filter(|info| info.id == disk(number)).for_each(|info| info.size = to);
        });
        self.did("grown");
        self.settle()
    }

    /// The first copy of a disk.
    pub(super) fn copy(&mut self, number: u16, content: &[u8], lsn: Lsn) -> Outcome<BaseInfo> {
        let storage = Arc::clone(&self.rig.storage);
        let (replica, size) = (self.rig.writer.manifest().replica, content.len() as u64);
        let mut copy = BaseWriter::create(storage.as_ref(), replica, disk(number), size).map_err(said)?;
        if self.rig.at_rest.key.is_some() {
            copy = copy.at_rest(&self.rig.keys).map_err(said)?;
        }
        copy.data(content, lsn).map_err(said)?;
        Ok(copy.finish(storage.as_ref(), lsn).map_err(said)?.named(Lsn::ZERO))
    }

    /// A disk joins and is copied, or one that a power cut met in the midst of that is copied anew.
    pub(super) fn add(&mut self) -> Outcome<()> {
        self.flush()?;
        let now = self.past.at(Lsn(u64::MAX));
        let number = match now.iter().find(|(_, disk)| !disk.complete) {
            Some((number, _)) => *number,
            None => {
                if now.len() > 3 {
                    return Ok(());
                }
                let number = self.rig.writer.manifest().free_disk().ok_or("no number is free")?.get();
                let blocks = 2 + self.dice.below(6);
                let content = Arc::new(content(&mut self.dice, blocks * BLOCK + SECTOR));
                let (size, added) = (content.len() as u64, self.source.lsn.next());
                self.rig.writer.edit(|manifest| manifest.disks.push(info(number, size, added, None)));
                self.settle()?;
                let note = Note::DiskAdded { name: format!("disk{number}"), size };
                self.source.note(RecordKind::DiskAdded, Some(number), note);
                self.log(What::Joined(number, content));
                number
            }
        };
        let (from, reason) = (self.source.lsn, ResyncReason::Seeding);
        self.source.note(RecordKind::ResyncBegin, Some(number), Note::ResyncBegin { from, reason });
        self.log(What::Nothing);
        self.flush()?;
        let content = self.past.at(Lsn(u64::MAX)).remove(&number).ok_or("it is there")?.bytes;
        let base = self.copy(number, &content, self.source.lsn)?;
        self.rig.writer.edit(|manifest| {
            manifest.disks.iter_mut().filter(|info| info.id == disk(number)).for_each(|info| info.base = Some(base));
        });
        self.settle()?;
        let note = Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 };
        self.source.note(RecordKind::ResyncEnd, Some(number), note);
        self.log(What::Complete(number));
        self.did("added");
        self.flush()
    }

    pub(super) fn remove(&mut self) -> Outcome<()> {
        let sizes = self.sizes();
        if sizes.len() < 2 {
            return Ok(());
        }
        let number = sizes[self.dice.below(sizes.len() as u64) as usize].0;
        let (extent, zero) = (Extent::new(0, 0), (Lsn(0), WallTime(0)));
        let part = cdp_core::frame::Part::plain(RecordKind::DiskRemoved, Some(disk(number)), extent, zero.0, zero.1);
        let lsn = self.source.plain(part);
        self.log(What::Gone(number));
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
