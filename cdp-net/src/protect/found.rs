//! What of the group's disks is found at a start: which sources are theirs, which were given other sizes in between, which joined,
//! left, or were not copied to the end.

use super::open::{ProtectError, SourceOptions};
use crate::source::Source;
use cdp_core::capture::DiskSpec;
use cdp_core::journal::{DiskInfo, Manifest, ResizeInfo};
use cdp_core::replica::Replica;
use cdp_core::types::{DiskId, Lsn};
use std::collections::BTreeSet;

/// The disks of a start.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// All of them, as large as their sources.
    pub(super) disks: Vec<DiskSpec>,
    /// Those that are new with this start.
    pub(super) joining: BTreeSet<DiskId>,
    /// Those that are gone with this start.
    pub(super) leaving: Vec<DiskId>,
    /// Those that have another size, and which one they had.
    pub(super) resized: Vec<(DiskId, u64)>,
    /// Disks whose copy was never complete: nothing of them can be restored.
    dropped: Vec<DiskId>,
    added: Vec<DiskInfo>,
}

fn described(name: &str, size: u64) -> String {
    format!("{name} ({size} bytes)")
}

impl Found {
    /// The disks of a new group.
    pub(super) fn first(manifest: &Manifest) -> Self {
        let spec = |disk: &DiskInfo| DiskSpec { id: disk.id, name: disk.name.clone(), size: disk.size };
        Self { disks: manifest.disks.iter().map(spec).collect(), ..Self::default() }
    }

    /// Matches the sources with the disks of a replica whose records end at `end`.
    ///
    /// # Errors
    /// When they are not those of the replica, or one was cut and nobody allowed that.
    pub(super) fn resumed(
        replica: &Replica,
        end: Lsn,
        sources: &[(&SourceOptions, Source)],
    ) -> Result<Self, ProtectError> {
        let manifest = replica.manifest();
        let mut found = Self::default();
        let Some(trunk) = replica.catalogue().trunk() else { return Ok(Self::first(manifest)) };
        let current = replica.disks_at(trunk.timeline, Lsn(u64::MAX));
        for disk in &manifest.disks {
            let recorded = replica.catalogue().disk_end(trunk.timeline, disk.id);
            if recorded.is_none() && disk.removed.is_some_and(|removed| removed > end) {
                found.leaving.push(disk.id);
            }
        }
        let names: BTreeSet<&str> = current.iter().map(|at| at.disk.name.as_str()).collect();
        let given: BTreeSet<&str> = sources.iter().map(|(options, _)| options.name.as_str()).collect();
        if names != given {
            let known = current.iter().map(|at| described(&at.disk.name, at.disk.size)).collect();
            let given = sources.iter().map(|(options, source)| described(&options.name, source.size())).collect();
            return Err(ProtectError::OtherDisks { known, given });
        }
        let mut free = manifest.free_disk();
        for at in current {
            let Some((_, source)) = sources.iter().find(|(options, _)| options.name == at.disk.name) else { continue };
            let (mut id, size) = (at.disk.id, source.size());
            if at.complete {
                found.resize(manifest, &at.disk, source)?;
            } else {
                found.dropped.push(id);
                // What the first attempt recorded is never mixed with the second: it gets another number.
                id = free.ok_or(ProtectError::DiskNumbers)?;
                free = DiskId::new(id.get().saturating_add(1));
                found.joining.insert(id);
                let (name, source) = (at.disk.name.clone(), source.path().display().to_string());
                let (added, removed, stopped, base) = (end.next(), None, None, None);
                found.added.push(DiskInfo { id, name, size, source, added, removed, stopped, base });
            }
            found.disks.push(DiskSpec { id, name: at.disk.name, size });
        }
        Ok(found)
    }

    fn resize(
        &mut self,
        manifest: &Manifest,
        disk: &cdp_core::replica::ViewDisk,
        source: &Source,
    ) -> Result<(), ProtectError> {
        let size = source.size();
        let allowed = manifest.resizing.iter().any(|resizing| (resizing.disk, resizing.size) == (disk.id, size));
        if size < disk.size && !allowed {
            let path = source.path().display().to_string();
            return Err(ProtectError::Cut { disk: disk.name.clone(), path, known: disk.size, found: size });
        }
        if size != disk.size {
            self.resized.push((disk.id, disk.size));
        }
        Ok(())
    }

    /// Writes down what is known before anything is recorded.
    pub(super) fn note(&self, replica: &Replica, manifest: &mut Manifest) {
        // What was recorded at the end of the last life may not have been written down.
        replica.note_disks(manifest);
        self.dropped.iter().for_each(|disk| manifest.drop_disk(*disk));
        manifest.disks.extend(self.added.iter().cloned());
        manifest.resizing = self.new_sizes().into_iter().map(|(disk, size)| ResizeInfo { disk, size }).collect();
    }

    /// The sizes of the disks that have others than before.
    pub(super) fn new_sizes(&self) -> Vec<(DiskId, u64)> {
        let size = |id: DiskId| self.disks.iter().find(|disk| disk.id == id).map(|disk| disk.size);
        self.resized.iter().filter_map(|(id, _)| Some((*id, size(*id)?))).collect()
    }
}
