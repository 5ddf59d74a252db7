//! Changes of the group while it is protected: a disk joins, gets another size, leaves.
//!
//! What records may follow is in the manifest before there are any; what was recorded is written there when it is durable. So a
//! crash at any moment leaves either the group as it was, or records that the next start goes on from.

use super::Shared;
use super::copies::CopyOrder;
use super::sources::{Held, OpenSource};
use crate::device::Device;
use crate::far::{DisksEdit, NewDisk, Reach, SizeOf};
use crate::host::place::replica_around;
use crate::report::{Disk, DiskChanged, DiskVerb, Problem, ProblemClass};
use crate::source::{Source, SourceKind, identity};
use cdp_core::capture::{DiskSpec, Filter, OptionsError};
use cdp_core::replica::base::is_zero;
use cdp_core::types::{DISKS_MAX, DiskId, Extent, Lsn, Now};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};

/// Bytes of one read where a disk is searched for data.
const PIECE: u64 = 1 << 20;
/// Runs of holes and data that are asked for at once.
const RUNS: usize = 64;

fn refused(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Refused, code, message)
}

fn unreadable(error: &std::io::Error, held: &Held) -> Problem {
    Problem::new(ProblemClass::Failed, "source", format!("cannot read {}: {error}", held.source.path().display()))
}

/// Why the filter does not take a change.
fn not_taken(error: &OptionsError, name: &str) -> Problem {
    match error {
        OptionsError::LastDisk { .. } => {
            refused("last-disk", format!("{name:?} is the group's last disk")).hint("stop `cdp protect` instead")
        }
        OptionsError::Changing { .. } => {
            refused("disk-busy", format!("the disk {name:?} is still being copied or changed"))
                .hint("`cdp status` says when it is complete")
        }
        error => refused("disk", error.to_string()),
    }
}

impl Shared {
    /// One change at a time, and none while a new group is copied.
    fn begin_change(&self) -> Result<MutexGuard<'_, ()>, Problem> {
        if self.far.group()?.seeding {
            let message = "the group's first copy is not complete: nothing can be restored yet";
            return Err(refused("seeding", message.into()).hint("wait until `cdp status` says protecting"));
        }
        match self.changing.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(refused("disk-busy", "another disk is being changed just now".into())
                .hint("try again when that is done")),
        }
    }

    /// Whether nothing comes to anything any more.
    pub(super) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failure().is_some()
    }

    fn ended(&self) -> Problem {
        let message = "the protection ended before the change was through; the next start goes on from there";
        Problem::new(ProblemClass::Failed, "not-durable", message)
    }

    /// Calls the filter; not where somebody hangs in it when the end has come.
    fn turn<T>(&self, call: impl FnOnce(&mut Filter, Now) -> T) -> Result<T, Problem> {
        self.engine.with_before_end(call).ok_or_else(|| self.ended())
    }

    /// Waits until `done` gives something.
    fn wait_until<T>(&self, mut done: impl FnMut(&mut Filter) -> Option<T>) -> Result<T, Problem> {
        loop {
            if let Some(found) = self.turn(|filter, _| done(filter))? {
                return Ok(found);
            }
            if self.is_over() {
                return Err(self.ended());
            }
            std::thread::sleep(super::LOOK);
        }
    }

    /// Waits until everything up to `lsn` is durable and settled.
    pub(super) fn wait_for_durable(&self, lsn: Lsn) -> Result<(), Problem> {
        self.far.sync();
        while !self.far.reach(Reach { lsn }).reached {
            if self.is_over() {
                return Err(self.ended());
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<(DiskId, Arc<Held>), Problem> {
        self.sources.named(name).ok_or_else(|| {
            let names: Vec<_> = self.sources.exports().into_iter().map(|export| export.name).collect();
            let message = format!("the group has no disk {name:?}; it has: {}", names.join(", "));
            Problem::new(ProblemClass::Usage, "no-disk", message)
        })
    }

    /// A disk joins: it is served from now on, and copied while the others go on.
    pub(super) fn add_disk(&self, name: &str, path: &Path) -> Result<DiskChanged, Problem> {
        let _changing = self.begin_change()?;
        let id = self.check_new(name, path)?;
        let source = Source::open(path).map_err(|error| crate::host::disks::not_opened(&error))?;
        let failed = |error: std::io::Error| {
            Problem::new(ProblemClass::Failed, "source", format!("cannot open {}: {error}", path.display()))
        };
        let facts = source.found().map(|facts| facts.to_bytes().to_vec());
        let open = OpenSource::new(name, source).map_err(failed)?;
        // What is copied must not be lost at the source by a power cut: nobody would compare it.
        open.device.flush().map_err(failed)?;
        let spec = DiskSpec { id, name: name.to_owned(), size: open.device.size() };
        self.far.edit_disks(DisksEdit::Joins(NewDisk {
            id,
            name: name.to_owned(),
            size: spec.size,
            source: path.display().to_string(),
            added: self.turn(|filter, now| filter.status(now))?.lsn.next(),
        }))?;
        let size = spec.size;
        self.sources.insert(id, open, &self.engine);
        let added = self.turn(|filter, now| {
            let lsn = filter.add_disk(now, spec, facts)?;
            Ok((lsn, filter.status(now).lsn))
        })?;
        let (lsn, last) = added.map_err(|error: OptionsError| {
            self.sources.remove(id);
            // Nothing of it was recorded. Where this cannot be stored the next start asks for the disk.
            let _ = self.far.edit_disks(DisksEdit::Forget(id));
            not_taken(&error, name)
        })?;
        self.wait_for_durable(last)?;
        self.progress.total.fetch_add(size, Ordering::Relaxed);
        self.order_copy(CopyOrder::Disk(id, last));
        let disk = Disk { name: name.to_owned(), size, incomplete: true, ..Disk::default() };
        Ok(DiskChanged { verb: DiskVerb::Added, disk, lsn: Some(lsn.0) })
    }

    /// The number of a disk that may join.
    fn check_new(&self, name: &str, path: &Path) -> Result<DiskId, Problem> {
        crate::host::disks::check_name(name)?;
        if self.sources.named(name).is_some() {
            return Err(refused("disk-exists", format!("the group has a disk {name:?} already"))
                .hint("give the new one another name with NAME=SOURCE"));
        }
        if self.sources.disks().len() >= DISKS_MAX {
            return Err(refused("disks", format!("a group has at most {DISKS_MAX} disks")));
        }
        if let Some(around) = replica_around(path) {
            let message = format!("{} lies inside the replica {}", path.display(), around.display());
            return Err(refused("source-in-replica", message).hint("restore that replica to a file and add that"));
        }
        let same = |held: &Arc<Held>| matches!((identity(path), identity(held.source.path())), (Ok(new), Ok(known)) if new == known);
        let held = self.sources.disks().into_iter().filter_map(|disk| self.sources.get(disk)).find(same);
        if let Some(held) = held {
            let message = format!("{} is the source of the disk {:?}", path.display(), held.name);
            return Err(refused("source-twice", message).hint("give each disk once"));
        }
        let free = self.far.group()?.free_disk;
        free.ok_or_else(|| refused("disks", "the group has used up its numbers of disks".into()))
    }

    /// A disk leaves: it is not served any more; moments before stay what they were.
    pub(super) fn remove_disk(&self, name: &str) -> Result<DiskChanged, Problem> {
        let _changing = self.begin_change()?;
        let (id, held) = self.find(name)?;
        let size = held.device.size();
        self.turn(|filter, _| filter.remove_disk(id))?.map_err(|error| not_taken(&error, name))?;
        held.stop.store(true, Ordering::Relaxed);
        self.sources.remove(id);
        drop(held);
        let lsn = self.wait_until(|filter| filter.disk_left(id))?;
        self.wait_for_durable(lsn)?;
        self.far.edit_disks(DisksEdit::Left { disk: id, lsn })?;
        let disk = Disk { name: name.to_owned(), size, ..Disk::default() };
        Ok(DiskChanged { verb: DiskVerb::Removed, disk, lsn: Some(lsn.0) })
    }

    /// A disk gets the size of its source, or the one that is asked for.
    pub(super) fn resize_disk(&self, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem> {
        let _changing = self.begin_change()?;
        let (id, held) = self.find(name)?;
        let there = held.source.current_size().map_err(|error| unreadable(&error, &held))?;
        let from = self.turn(|filter, _| filter.disk_size(id))?.unwrap_or_default();
        let to = size.unwrap_or(there);
        self.check_size(name, &held, (from, to, there), force)?;
        self.far.edit_disks(DisksEdit::Announce(SizeOf { disk: id, size: to }))?;
        let doubtful = if to > from {
            held.device.flush().map_err(|error| unreadable(&error, &held))?;
            self.doubtful(id, &held, Extent::new(from, to - from))?
        } else {
            Vec::new()
        };
        self.turn(|filter, now| filter.resize_disk(now, id, to, doubtful))?.map_err(|error| not_taken(&error, name))?;
        self.wait_until(|filter| (filter.disk_size(id) == Some(to)).then_some(()))?;
        if there > to {
            // Else the next start would find it grown.
            held.file.file().set_len(to).map_err(|error| {
                let message = format!("the disk is cut, and {} cannot be: {error}", held.source.path().display());
                Problem::new(ProblemClass::Failed, "source", message)
            })?;
        }
        held.file.refresh_size().map_err(|error| unreadable(&error, &held))?;
        let lsn = self.turn(|filter, now| filter.status(now))?.lsn;
        self.wait_for_durable(lsn)?;
        self.far.edit_disks(DisksEdit::Sizes(vec![SizeOf { disk: id, size: to }]))?;
        let disk = Disk { name: name.to_owned(), size: to, ..Disk::default() };
        let verb = if to > from { DiskVerb::Grown } else { DiskVerb::Cut };
        Ok(DiskChanged { verb, disk, lsn: Some(lsn.0) })
    }

    fn check_size(
        &self,
        name: &str,
        held: &Held,
        (from, to, there): (u64, u64, u64),
        force: bool,
    ) -> Result<(), Problem> {
        let path = held.source.path().display();
        if to == from {
            return Err(refused("same-size", format!("the disk {name:?} has {from} bytes already"))
                .hint("let its source grow first, such as with `truncate -s` or `lvextend`"));
        }
        if to == 0 || !to.is_multiple_of(cdp_core::types::SECTOR) || to > cdp_core::types::DISK_MAX {
            return Err(Problem::new(
                ProblemClass::Usage,
                "size",
                format!("no disk has {to} bytes: it takes whole sectors of 512"),
            ));
        }
        if to > there {
            return Err(refused("source-smaller", format!("{path} has {there} bytes, which is less than {to}"))
                .hint("let the source grow first, such as with `truncate -s` or `lvextend`"));
        }
        // What lies behind a smaller size is cut off at the source too: of an image that only grew nothing may be lost.
        if to < there && (to > from || held.source.kind() == SourceKind::BlockDevice) {
            return Err(refused("source-larger", format!("{path} has {there} bytes, and the disk is to have {to}"))
                .hint("leave --size out, or make the source that large first: the disk takes its size"));
        }
        if to < from && !force {
            let lost = Extent::new(to, there.max(from) - to);
            // What the source has lost already cannot be looked at.
            let data =
                there < from || has_data(held.device.as_ref(), lost).map_err(|error| unreadable(&error, held))?;
            if data {
                let message = format!("the disk {name:?} holds data beyond {to} bytes, which the source would lose");
                return Err(refused("data-would-be-lost", message)
                    .hint("--force cuts it; moments before can still be restored with all of it"));
            }
        }
        Ok(())
    }

    /// What of a range that is new may differ between source and replica: all but holes where the replica has zeros.
    fn doubtful(&self, disk: DiskId, held: &Held, range: Extent) -> Result<Vec<Extent>, Problem> {
        // The replica's tail may hold what an earlier growth that was never through left there.
        if !self.far.is_zero(disk, range) {
            return Ok(vec![range]);
        }
        data_of(held.device.as_ref(), range).map_err(|error| unreadable(&error, held))
    }
}

/// The runs of a range that are not known to be zeros.
fn data_of(device: &dyn Device, range: Extent) -> std::io::Result<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut at = range.offset;
    while at < range.end() {
        for run in device.block_status(at, range.end() - at, RUNS)? {
            let extent = Extent::new(at, run.length.min(range.end() - at));
            at = extent.end();
            match found.last_mut().filter(|last| last.end() == extent.offset) {
                _ if run.zero => {}
                Some(last) => last.length += extent.length,
                None => found.push(extent),
            }
        }
    }
    Ok(found)
}

/// Whether anything but zeros is in a range.
fn has_data(device: &dyn Device, range: Extent) -> std::io::Result<bool> {
    let mut buffer = vec![0; PIECE as usize];
    for run in data_of(device, range)? {
        let mut at = run.offset;
        while at < run.end() {
            let length = (run.end() - at).min(PIECE) as usize;
            device.read(at, &mut buffer[..length])?;
            if !is_zero(&buffer[..length]) {
                return Ok(true);
            }
            at += length as u64;
        }
    }
    Ok(false)
}
