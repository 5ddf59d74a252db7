//! Changes of the group's disks: by the protection that is going on, or written down for the next one.

use super::place::replica_around;
use super::{Host, lock};
use crate::report::{Disk, DiskChanged, DiskVerb, Problem, ProblemClass};
use crate::source::{Source, SourceError, identity};
use cdp_core::journal::{DiskInfo, ResizeInfo};
use cdp_core::replica::is_unseeded;
use cdp_core::types::{DISKS_MAX, DiskId, NAME_MAX, is_name};
use std::path::Path;

fn refused(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Refused, code, message)
}

/// Whether a disk can be called so.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    if !is_name(name) {
        let message = format!("{name:?} is no name of a disk: it has 1 to {NAME_MAX} bytes, and no slash");
        return Err(Problem::new(ProblemClass::Usage, "name", message));
    }
    Ok(())
}

/// Why a source cannot be a disk.
pub(crate) fn not_opened(error: &SourceError) -> Problem {
    match error {
        SourceError::Locked { .. } => refused("source-in-use", error.to_string()),
        SourceError::InReplica { .. } => refused("source-in-replica", error.to_string()),
        error => Problem::new(ProblemClass::Failed, "source", error.to_string()),
    }
}

impl Host {
    /// A disk joins the group.
    pub(super) fn add_disk(&self, name: &str, path: &Path) -> Result<DiskChanged, Problem> {
        if let Some(live) = self.live() {
            return live.add_disk(name, path);
        }
        // One at a time: of two, the second sees what the first did.
        let _changing = lock(&self.changing);
        self.refuse_unseeded()?;
        let (id, added) = {
            let replica = self.replica();
            let manifest = replica.manifest();
            check_name(name)?;
            let disks = replica.disks();
            if disks.iter().any(|disk| disk.name == name) {
                return Err(refused("disk-exists", format!("the group has a disk {name:?} already"))
                    .hint("give the new one another name with NAME=SOURCE"));
            }
            if disks.len() >= DISKS_MAX {
                return Err(refused("disks", format!("a group has at most {DISKS_MAX} disks")));
            }
            let free = manifest.free_disk();
            let id = free.ok_or_else(|| refused("disks", "the group has used up its numbers of disks".into()))?;
            (id, replica.snapshot().written().next())
        };
        if let Some(around) = replica_around(path) {
            let message = format!("{} lies inside the replica {}", path.display(), around.display());
            return Err(refused("source-in-replica", message).hint("restore that replica to a file and add that"));
        }
        self.refuse_known(path)?;
        let size = Source::open(path).map_err(|error| not_opened(&error))?.size();
        let (name, source) = (name.to_owned(), path.display().to_string());
        let disk = Disk { name: name.clone(), size, incomplete: true, ..Disk::default() };
        self.edit(Box::new(move |manifest| {
            let (removed, stopped, base) = (None, None, None);
            manifest.disks.push(DiskInfo { id, name, size, source, added, removed, stopped, base });
        }))?;
        Ok(DiskChanged { verb: DiskVerb::Added, disk, lsn: None })
    }

    /// Refuses what is another disk's source, as far as that is where it was last seen.
    fn refuse_known(&self, path: &Path) -> Result<(), Problem> {
        let replica = self.replica();
        let current: Vec<_> = replica.disks().into_iter().map(|disk| disk.id).collect();
        let same = |known: &&DiskInfo| {
            let both = (identity(path), identity(Path::new(&known.source)));
            current.contains(&known.id) && matches!(both, (Ok(new), Ok(known)) if new == known)
        };
        let Some(known) = replica.manifest().disks.iter().find(same) else { return Ok(()) };
        let message = format!("{} is the source of the disk {:?}", path.display(), known.name);
        Err(refused("source-twice", message).hint("give each disk once"))
    }

    /// Of a group that was never copied to the end nothing is kept: the next start begins it anew, with the disks that it is given.
    fn refuse_unseeded(&self) -> Result<(), Problem> {
        if !is_unseeded(self.replica().manifest()) {
            return Ok(());
        }
        let message = "the group's first copy was never completed: nothing can be restored";
        Err(refused("seeding", message.into()).hint("give all disks to `cdp protect`, which begins it anew"))
    }

    fn find_disk(&self, name: &str) -> Result<(DiskId, u64), Problem> {
        let disks = self.replica().disks();
        let found = disks.iter().find(|disk| disk.name == name).map(|disk| (disk.id, disk.size));
        found.ok_or_else(|| {
            let names: Vec<_> = disks.into_iter().map(|disk| disk.name).collect();
            let message = format!("the group has no disk {name:?}; it has: {}", names.join(", "));
            Problem::new(ProblemClass::Usage, "no-disk", message)
        })
    }

    /// A disk leaves the group.
    pub(super) fn remove_disk(&self, name: &str) -> Result<DiskChanged, Problem> {
        if let Some(live) = self.live() {
            return live.remove_disk(name);
        }
        let _changing = lock(&self.changing);
        self.refuse_unseeded()?;
        let (id, size) = self.find_disk(name)?;
        let (disks, end) = {
            let replica = self.replica();
            (replica.disks().len(), replica.snapshot().written().next())
        };
        if disks < 2 {
            return Err(refused("last-disk", format!("{name:?} is the group's last disk")));
        }
        self.edit(Box::new(move |manifest| {
            manifest.resizing.retain(|resizing| resizing.disk != id);
            manifest.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.removed = Some(end));
        }))?;
        let disk = Disk { name: name.to_owned(), size, ..Disk::default() };
        Ok(DiskChanged { verb: DiskVerb::Removed, disk, lsn: None })
    }

    /// A disk gets another size.
    pub(super) fn resize_disk(&self, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem> {
        if let Some(live) = self.live() {
            return live.resize_disk(name, size, force);
        }
        let _changing = lock(&self.changing);
        self.refuse_unseeded()?;
        let (id, from) = self.find_disk(name)?;
        let Some(to) = size.filter(|to| *to < from) else {
            let message =
                "nobody protects this replica now: the next `cdp protect` finds a source that has grown by itself";
            return Err(
                refused("not-protecting", message.into()).hint("let the source grow, then start `cdp protect` with it")
            );
        };
        if to == 0 || !to.is_multiple_of(cdp_core::types::SECTOR) {
            let message = format!("no disk has {to} bytes: it takes whole sectors of 512");
            return Err(Problem::new(ProblemClass::Usage, "size", message));
        }
        if !force {
            let message = format!("what the disk {name:?} holds beyond {to} bytes would be lost at the source");
            return Err(refused("data-would-be-lost", message)
                .hint("--force lets the next `cdp protect` take the source cut to that size"));
        }
        self.edit(Box::new(move |manifest| {
            manifest.resizing.retain(|resizing| resizing.disk != id);
            manifest.resizing.push(ResizeInfo { disk: id, size: to });
        }))?;
        let disk = Disk { name: name.to_owned(), size: to, ..Disk::default() };
        Ok(DiskChanged { verb: DiskVerb::Cut, disk, lsn: None })
    }
}
