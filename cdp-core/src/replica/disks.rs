//! The disks of a group at a moment: which were there, how large, and which of them can be restored.

use super::catalogue::{Catalogue, Moment, Neighbours};
use super::files::{BASE_DIRECTORY, BaseFile};
use super::{Replica, ViewDisk};
use crate::journal::{DiskInfo, Manifest};
use crate::media::{MediaError, Storage};
use crate::types::{DiskId, Lsn, Timeline};

/// A disk that was there at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskAt {
    /// As the moment has it.
    pub disk: ViewDisk,
    /// Its first copy was through: it can be restored.
    pub complete: bool,
}

impl Replica {
    /// The disks of the group now.
    #[must_use]
    pub fn disks(&self) -> Vec<ViewDisk> {
        let Some(trunk) = self.catalogue.trunk() else { return Vec::new() };
        let (timeline, end) = (trunk.timeline, Lsn(u64::MAX));
        self.disks_at(timeline, end).into_iter().map(|found| found.disk).collect()
    }

    /// The disks that were there at a moment, in the order of their numbers.
    #[must_use]
    pub fn disks_at(&self, timeline: Timeline, lsn: Lsn) -> Vec<DiskAt> {
        at(&self.manifest, &self.catalogue, timeline, lsn)
    }

    /// Writes into a manifest what records say of disks, before they are merged: then nothing else says it.
    pub fn note_disks(&self, manifest: &mut Manifest) {
        let Some(trunk) = self.catalogue.trunk() else { return };
        for disk in &mut manifest.disks {
            if disk.removed.is_none() {
                disk.removed = self.catalogue.disk_end(trunk.timeline, disk.id);
            }
            let size = self.catalogue.disk_size(trunk.timeline, Lsn(u64::MAX), disk.id);
            disk.size = size.unwrap_or(disk.size);
        }
    }

    /// The disks that can be restored as they were at a moment.
    #[must_use]
    pub fn complete_disks(&self, timeline: Timeline, lsn: Lsn) -> Vec<ViewDisk> {
        let complete = self.disks_at(timeline, lsn).into_iter().filter(|found| found.complete);
        complete.map(|found| found.disk).collect()
    }

    /// The restorable moments next to one at which no complete disk has this name, at which one has.
    #[must_use]
    pub fn nearest_with_disk(&self, name: &str, moment: &Moment) -> Neighbours {
        let Moment { timeline, lsn, .. } = *moment;
        let mut nearest = Neighbours::default();
        for disk in self.manifest.disks.iter().filter(|disk| disk.name == name) {
            let from = self.catalogue.disk_complete_after(timeline, lsn, disk.id);
            if let Some(from) = from.or((disk.added > lsn).then_some(disk.added)) {
                let after = self.catalogue.neighbours(timeline, from.prev()).after;
                nearest.after = nearest.after.into_iter().chain(after).min_by_key(|moment| moment.lsn);
            }
            let end = self.catalogue.disk_end(timeline, disk.id).or(disk.removed).filter(|end| *end <= lsn);
            if let Some(end) = end {
                let before = self.catalogue.neighbours(timeline, end).before;
                nearest.before = nearest.before.into_iter().chain(before).max_by_key(|moment| moment.lsn);
            }
        }
        let has = |found: &Moment| {
            let disks = self.complete_disks(found.timeline, found.lsn);
            disks.iter().any(|disk| disk.name == name)
        };
        Neighbours { before: nearest.before.filter(has), after: nearest.after.filter(has) }
    }
}

/// Whether the first copy of the group was never completed: then it restores nothing. Disks that joined later do not count.
#[must_use]
pub fn is_unseeded(manifest: &Manifest) -> bool {
    let copied = |disk: &DiskInfo| disk.added > Lsn::ZERO || disk.base.is_some() || disk.removed.is_some();
    !manifest.disks.iter().all(copied)
}

/// The last LSN up to which may be merged: below every disk that has no base yet, since its records have nowhere to go.
/// `None`: no disk sets a limit.
#[must_use]
pub fn merge_limit(manifest: &Manifest) -> Option<Lsn> {
    let waiting = manifest.disks.iter().filter(|disk| disk.base.is_none() && disk.removed.is_none());
    waiting.map(|disk| disk.added.prev()).min()
}

/// The disks that were there at a moment.
pub(super) fn at(manifest: &Manifest, catalogue: &Catalogue, timeline: Timeline, lsn: Lsn) -> Vec<DiskAt> {
    let merged = manifest.oldest().is_some_and(|oldest| lsn < oldest.lsn);
    if let Some(kept) = manifest.kept_at(timeline, lsn).filter(|_| merged) {
        let disk = |(id, size): &(DiskId, u64)| {
            let name = manifest.disk(*id)?.name.clone();
            Some(DiskAt { disk: ViewDisk { id: *id, name, size: *size }, complete: true })
        };
        return kept.disks.iter().filter_map(disk).collect();
    }
    manifest.disks.iter().filter_map(|disk| disk_at(disk, catalogue, timeline, lsn)).collect()
}

fn disk_at(disk: &DiskInfo, catalogue: &Catalogue, timeline: Timeline, lsn: Lsn) -> Option<DiskAt> {
    let recorded = catalogue.disk_end(timeline, disk.id);
    let gone = [recorded, disk.removed].into_iter().flatten().any(|end| end <= lsn);
    if gone || disk.added > lsn {
        return None;
    }
    let complete = catalogue.is_disk_complete(timeline, lsn, disk.id).unwrap_or(disk.base.is_some());
    let size = catalogue.disk_size(timeline, lsn, disk.id).unwrap_or(disk.size);
    Some(DiskAt { disk: ViewDisk { id: disk.id, name: disk.name.clone(), size }, complete })
}

/// The disks that no moment has any more: they can be dropped from the manifest, and then their files can be removed
/// ([`remove_bases`]).
pub(super) fn expired(manifest: &Manifest) -> Vec<DiskId> {
    let Some(oldest) = manifest.retention.oldest else { return Vec::new() };
    let kept = |id: DiskId| manifest.kept.iter().any(|kept| kept.disks.iter().any(|(disk, _)| *disk == id));
    let expired = manifest.disks.iter().filter(|disk| disk.removed.is_some_and(|end| end <= oldest.lsn));
    expired.map(|disk| disk.id).filter(|id| !kept(*id)).collect()
}

/// Removes the files of bases whose disks the manifest does not name; that manifest is durable.
///
/// # Errors
/// When the media fail.
pub fn remove_bases(storage: &dyn Storage, manifest: &Manifest) -> Result<(), MediaError> {
    remove_bases_but(storage, |disk| manifest.disk(disk).is_some())
}

/// The same beside who changes the manifest. It is asked only when the files have been listed: those of a disk that joins are made
/// when the manifest has it, and no disk gets the number of another.
///
/// # Errors
/// When the media fail.
pub fn remove_bases_but(storage: &dyn Storage, is_named: impl Fn(DiskId) -> bool) -> Result<(), MediaError> {
    let names = match storage.list(BASE_DIRECTORY) {
        Err(error) if error.is_not_found() => return Ok(()),
        names => names?,
    };
    for file in names.iter().filter_map(|name| BaseFile::of(name)) {
        if file.disk().is_some_and(|id| !is_named(id)) {
            storage.remove(&file.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Memory;

    #[test]
    fn the_files_of_a_disk_that_joins_meanwhile_stay() {
        let storage = Memory::new();
        let [gone, joins] = [1, 2].map(|number| DiskId::new(number).unwrap());
        storage.create(&BaseFile::Image(gone).path()).unwrap();
        let is_named = |disk: DiskId| {
            // Somebody makes it while others are removed, and this has not heard of it.
            let _ = storage.create(&BaseFile::Image(joins).path());
            assert_eq!(disk, gone, "it was there when files were listed");
            false
        };
        remove_bases_but(&storage, is_named).unwrap();
        assert!(storage.length(&BaseFile::Image(gone).path()).is_err());
        assert!(storage.length(&BaseFile::Image(joins).path()).is_ok());
    }
}
