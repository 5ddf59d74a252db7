//! The replica's half of what becomes of disks: what its manifest says of them beside the records.

use super::super::calls::{DisksEdit, Given};
use super::ReplicaHost;
use cdp_core::journal::{DiskInfo, Generation, Manifest, ResizeInfo};
use cdp_core::replica::{DiskAt, Replica};
use cdp_core::types::{DiskId, Lsn};

fn info(id: DiskId, size: u64, added: Lsn) -> DiskInfo {
    let (name, source) = (format!("disk{}", id.get() - 1), String::new());
    DiskInfo { id, name, size, source, added, removed: None, stopped: None, base: None }
}

fn apply(manifest: &mut Manifest, edit: DisksEdit) {
    match edit {
        // A call may come twice.
        DisksEdit::Joins { disk, .. } if manifest.disk(disk).is_some() => {}
        DisksEdit::Joins { disk, size, added } => manifest.disks.push(info(disk, size, added)),
        DisksEdit::Left { disk, lsn } => {
            manifest.resizing.retain(|resizing| resizing.disk != disk);
            manifest.disks.iter_mut().filter(|info| info.id == disk).for_each(|info| info.removed = Some(lsn));
        }
        DisksEdit::Announce { disk, size } => {
            manifest.resizing.retain(|resizing| resizing.disk != disk);
            manifest.resizing.push(ResizeInfo { disk, size });
        }
        DisksEdit::Sizes { disk, size } => {
            manifest.resizing.retain(|resizing| resizing.disk != disk);
            manifest.disks.iter_mut().filter(|info| info.id == disk).for_each(|info| info.size = size);
        }
    }
}

/// The first copy of a disk of the group goes on; that of one that joined is begun anew, under another number.
fn goes_on(manifest: &Manifest, found: &DiskAt) -> bool {
    found.complete || manifest.disk(found.disk.id).is_some_and(|info| info.added == Lsn::ZERO)
}

impl ReplicaHost {
    /// Gives the manifest that says so, where this one does not.
    pub(super) fn edit_disks(&mut self, edit: DisksEdit) -> Option<Generation> {
        let mut edited = self.writer.manifest().clone();
        apply(&mut edited, edit);
        let is_new = edited != *self.writer.manifest();
        is_new.then(|| self.writer.edit(|manifest| apply(manifest, edit)))
    }

    /// Writes down what is known of the disks before anything is recorded on a timeline that forks at `fork`.
    pub(super) fn note_disks(&mut self, replica: &Replica, (starts, given): (bool, &[Given]), fork: Lsn) -> Generation {
        let trunk = replica.catalogue().trunk().map(|trunk| trunk.timeline).expect("one is open");
        let found = replica.disks_at(trunk, Lsn(u64::MAX));
        self.writer.edit(|manifest| {
            replica.note_disks(manifest);
            let (mut sizes, mut anew) = (Vec::new(), Vec::new());
            for at in &found {
                let (id, size) = (at.disk.id, at.disk.size);
                match given.iter().find(|given| given.disk == id) {
                    Some(given) if starts && !goes_on(manifest, at) => {
                        manifest.drop_disk(id);
                        anew.push(info(given.anew, given.size, fork.next()));
                    }
                    // A filter that goes on tells of its growth alone.
                    Some(given) if given.size > size || (starts && given.size < size) => {
                        let announced = manifest.resizing.iter().find(|resizing| resizing.disk == id);
                        let announced = announced.map(|resizing| resizing.size);
                        let allowed = given.size > size || announced == Some(given.size);
                        assert!(allowed, "disk {id} has {} of {size} bytes, {announced:?} was announced", given.size);
                        sizes.push(ResizeInfo { disk: id, size: given.size });
                    }
                    Some(_) => {}
                    // Somebody took it out meanwhile.
                    None if starts => {
                        let disks = manifest.disks.iter_mut();
                        disks.filter(|info| info.id == id).for_each(|info| info.removed = Some(fork.next()));
                    }
                    None => {}
                }
            }
            manifest.disks.extend(anew);
            manifest.resizing = sizes;
        })
    }

    /// The disks of the open timeline, as whoever begins finds them, and those that are gone with a start.
    pub(super) fn found(&self, fork: Lsn) -> (Vec<(DiskId, u64)>, Vec<DiskId>) {
        let replica = self.look();
        let manifest = replica.manifest();
        let found = replica.disks_at(self.timeline, Lsn(u64::MAX));
        let disks = found.iter().map(|at| (at.disk.id, at.disk.size)).collect();
        let leaves = |info: &&DiskInfo| {
            let recorded = replica.catalogue().disk_end(self.timeline, info.id);
            recorded.is_none() && info.removed.is_some_and(|removed| removed > fork)
        };
        (disks, manifest.disks.iter().filter(leaves).map(|info| info.id).collect())
    }
}
