//! What of the group's disks is found at a start: which sources are theirs, which were given other sizes in between, which joined,
//! left, or were not copied to the end.

use super::open::{ProtectError, SourceOptions};
use crate::far::{Found, FoundDisk, NewDisk};
use crate::source::Source;
use cdp_core::capture::DiskSpec;
use cdp_core::types::{DiskId, Lsn};
use std::collections::BTreeSet;

/// The disks of a start.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// All of them, as large as their sources.
    pub(super) disks: Vec<DiskSpec>,
    /// Those that are new with this start.
    pub(super) joining: BTreeSet<DiskId>,
    /// Those that are gone with this start.
    pub(super) leaving: Vec<DiskId>,
    /// Those that have another size, and which one they had.
    pub(super) resized: Vec<(DiskId, u64)>,
    /// Disks whose copy was never complete: nothing of them can be restored.
    pub(super) dropped: Vec<DiskId>,
    /// Those that the replica does not know yet.
    pub(super) added: Vec<NewDisk>,
}

fn described(name: &str, size: u64) -> String {
    format!("{name} ({size} bytes)")
}

pub(super) fn new_disk(id: DiskId, name: &str, source: &Source, added: Lsn) -> NewDisk {
    NewDisk { id, name: name.to_owned(), size: source.size(), source: source.path().display().to_string(), added }
}

impl Disks {
    /// The disks of a new group.
    pub(super) fn first(sources: &[(SourceOptions, Source)]) -> Self {
        let numbered = (1..).map_while(DiskId::new).zip(sources);
        let added: Vec<_> =
            numbered.map(|(id, (options, source))| new_disk(id, &options.name, source, Lsn::ZERO)).collect();
        let spec = |disk: &NewDisk| DiskSpec { id: disk.id, name: disk.name.clone(), size: disk.size };
        Self { disks: added.iter().map(spec).collect(), added, ..Self::default() }
    }

    /// Matches the sources with the disks of a replica.
    ///
    /// # Errors
    /// When they are not those of the replica, or one was cut and nobody allowed that.
    pub(super) fn resumed(found: &Found, sources: &[(SourceOptions, Source)]) -> Result<Self, ProtectError> {
        let mut disks = Self { leaving: found.leaving.clone(), ..Self::default() };
        let names: BTreeSet<&str> = found.disks.iter().map(|disk| disk.name.as_str()).collect();
        let given: BTreeSet<&str> = sources.iter().map(|(options, _)| options.name.as_str()).collect();
        if names != given {
            let known = found.disks.iter().map(|disk| described(&disk.name, disk.size)).collect();
            let given = sources.iter().map(|(options, source)| described(&options.name, source.size())).collect();
            return Err(ProtectError::OtherDisks { known, given });
        }
        let mut free = found.free_disk;
        for disk in &found.disks {
            let Some((_, source)) = sources.iter().find(|(options, _)| options.name == disk.name) else { continue };
            let mut id = disk.id;
            if disk.complete {
                disks.resize(disk, source)?;
            } else {
                disks.dropped.push(id);
                // What the first attempt recorded is never mixed with the second: it gets another number.
                id = free.ok_or(ProtectError::DiskNumbers)?;
                free = DiskId::new(id.get().saturating_add(1));
                disks.joining.insert(id);
                disks.added.push(new_disk(id, &disk.name, source, found.durable.next()));
            }
            disks.disks.push(DiskSpec { id, name: disk.name.clone(), size: source.size() });
        }
        Ok(disks)
    }

    fn resize(&mut self, disk: &FoundDisk, source: &Source) -> Result<(), ProtectError> {
        let size = source.size();
        if size < disk.size && disk.announced != Some(size) {
            let path = source.path().display().to_string();
            return Err(ProtectError::Cut { disk: disk.name.clone(), path, known: disk.size, found: size });
        }
        if size != disk.size {
            self.resized.push((disk.id, disk.size));
        }
        Ok(())
    }

    /// The sizes of the disks that have others than before.
    pub(super) fn new_sizes(&self) -> Vec<(DiskId, u64)> {
        let size = |id: DiskId| self.disks.iter().find(|disk| disk.id == id).map(|disk| disk.size);
        self.resized.iter().filter_map(|(id, _)| Some((*id, size(*id)?))).collect()
    }
}
