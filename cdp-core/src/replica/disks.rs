//! The disks of a group at a moment: which were there, how large, and which of them can be restored.

use super::base::{file_names, table_name};
use super::catalogue::{Moment, Neighbours};
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
        self.manifest.disks.iter().filter_map(|disk| self.disk_at(disk, timeline, lsn)).collect()
    }

    fn disk_at(&self, disk: &DiskInfo, timeline: Timeline, lsn: Lsn) -> Option<DiskAt> {
        let recorded = self.catalogue.disk_end(timeline, disk.id);
        let gone = [recorded, disk.removed].into_iter().flatten().any(|end| end <= lsn);
        if gone || disk.added > lsn {
            return None;
        }
        let complete = self.catalogue.is_disk_complete(timeline, lsn, disk.id).unwrap_or(disk.base.is_some());
        let size = self.catalogue.disk_size(timeline, lsn, disk.id).unwrap_or(disk.size);
        Some(DiskAt { disk: ViewDisk { id: disk.id, name: disk.name.clone(), size }, complete })
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

/// The disks that no moment from `oldest` on has: they can be dropped from the manifest ([`Manifest::drop_disk`]), and then
/// their files can be removed ([`remove_bases`]).
#[must_use]
pub fn expired_disks(manifest: &Manifest, oldest: Lsn) -> Vec<DiskId> {
    let expired = manifest.disks.iter().filter(|disk| disk.removed.is_some_and(|removed| removed <= oldest));
    expired.map(|disk| disk.id).collect()
}

/// Removes the files of bases whose disks the manifest does not name; that manifest is durable.
///
/// # Errors
/// When the media fail.
pub fn remove_bases(storage: &dyn Storage, manifest: &Manifest) -> Result<(), MediaError> {
    let names = match storage.list("base") {
        Err(error) if error.is_not_found() => return Ok(()),
        names => names?,
    };
    let of = |id: DiskId| {
        let (image, sidecar) = file_names(id);
        [image, sidecar, table_name(id, 0), table_name(id, 1)]
    };
    let kept: Vec<String> = manifest.disks.iter().flat_map(|disk| of(disk.id)).collect();
    let disk_of = |name: &str| DiskId::new(name.split('.').next()?.parse().ok()?);
    for name in names {
        let path = format!("base/{name}");
        let ours = disk_of(&name).is_some_and(|id| of(id).contains(&path));
        if ours && !kept.contains(&path) {
            storage.remove(&path)?;
        }
    }
    Ok(())
}
