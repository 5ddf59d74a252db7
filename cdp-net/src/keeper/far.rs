//! The keeper as the far side of its filter.

use super::begin::{info, noted};
use super::check::{check_edit, check_seed};
use super::pump::Message;
use super::store::LOOK;
use super::{Keeper, Running, lock, seed};
use crate::far::{
    Begin, Close, Closed, Digested, Digests, DisksEdit, Far, Find, Found, Frames, Group, Lends, MarkOrder, NOT_SEEDED,
    Near, Reach, Reached, SeedBegin, SeedHandle, Seeded, Seeding, SizeOf, Standing, Sums, Trust, UNREACHABLE, WAIT_MAX,
};
use crate::report::{History, Lack, Problem, ProblemClass};
use cdp_core::journal::{DiskInfo, Manifest, ResizeInfo, SeedingInfo, Writer, WriterState};
use cdp_core::replica::is_unseeded;
use cdp_core::types::{DiskId, Extent, Lsn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How long the pump may take for an answer before the time is looked at again.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// The same where somebody waits for nothing else.
const LACK_PATIENCE: Duration = Duration::from_secs(10);

/// Writes down sizes that are recorded durably.
fn name_sizes(manifest: &mut Manifest, sizes: &[SizeOf]) {
    for SizeOf { disk, size } in sizes {
        manifest.resizing.retain(|resizing| resizing.disk != *disk);
        manifest.disks.iter_mut().filter(|info| info.id == *disk).for_each(|info| info.size = *size);
    }
}

/// What was checked may have changed: what no reader would take is not written down.
pub(super) fn apply(manifest: &mut Manifest, edit: &DisksEdit) {
    match edit {
        // A call may come twice.
        DisksEdit::Joins(disk) if manifest.disk(disk.id).is_some() => {}
        DisksEdit::Joins(_) if manifest.disks.len() >= Manifest::DISKS_LISTED => {}
        DisksEdit::Joins(disk) => manifest.disks.push(info(disk)),
        DisksEdit::Forget(disk) => manifest.drop_disk(*disk),
        DisksEdit::Left { disk, lsn } => {
            manifest.resizing.retain(|resizing| resizing.disk != *disk);
            manifest.disks.iter_mut().filter(|info| info.id == *disk).for_each(|info| info.removed = Some(*lsn));
        }
        DisksEdit::Announce(SizeOf { disk, .. }) if manifest.disk(*disk).is_none() => {}
        DisksEdit::Announce(SizeOf { disk, size }) => {
            manifest.resizing.retain(|resizing| resizing.disk != *disk);
            manifest.resizing.push(ResizeInfo { disk: *disk, size: *size });
        }
        DisksEdit::Sizes(sizes) => name_sizes(manifest, sizes),
    }
}

fn not_begun() -> Problem {
    Problem::new(ProblemClass::Failed, UNREACHABLE, "the replica has no open timeline yet")
}

impl Running {
    /// Whether the frontier of what is durable and settled has come to `lsn`.
    fn has_reached(&self, lsn: Lsn) -> bool {
        let replica = self.host.replica();
        replica.catalogue().trunk().map_or(Lsn::ZERO, |branch| branch.frontier().lsn) >= lsn
    }

    /// The manifest says that first copies are whole, durably.
    fn name_bases(&self, disks: &[DiskId]) -> Result<(), Problem> {
        let named: Vec<_> = {
            let held = lock(&self.roots);
            disks.iter().filter_map(|disk| Some((*disk, *held.get(disk)?))).collect()
        };
        let is_known = |disk: &DiskId| {
            let is_named = |info: &DiskInfo| info.id == *disk && info.base.is_some();
            named.iter().any(|(id, _)| id == disk) || self.host.replica().manifest().disks.iter().any(is_named)
        };
        if let Some(disk) = disks.iter().find(|disk| !is_known(disk)) {
            let message = format!("the first copy of disk {disk} is not whole");
            return Err(Problem::new(ProblemClass::Failed, NOT_SEEDED, message));
        }
        let stored = self.host.edit(Box::new(move |manifest| {
            for (id, root) in named {
                if let Some(disk) = manifest.disks.iter_mut().find(|disk| disk.id == id) {
                    // A base may hold more than the records up to its LSN; those above are applied over it again.
                    disk.base = Some(root.named(disk.added));
                    manifest.seeding.retain(|seeding| seeding.disk != id);
                }
            }
        }));
        self.seed_lack.clear();
        match stored {
            Ok(()) => {
                let mut held = lock(&self.roots);
                held.retain(|disk, _| !disks.contains(disk));
                Ok(())
            }
            Err(problem) => {
                self.tell_lack();
                Err(problem)
            }
        }
    }

    /// A manifest could not be written for a first copy: what it needs is what the copy waits for.
    fn tell_lack(&self) {
        if let Some(bytes) = self.pump.ask(|writer| writer.lacks(), ASK_PATIENCE).ok().flatten() {
            self.seed_lack.set(bytes);
        }
    }

    /// Has the journal sealed, once.
    fn begin_close(&self, clean: bool) {
        if self.closing.swap(true, Ordering::Relaxed) {
            return;
        }
        // What became durable while it was waited for, too.
        self.host.arrive();
        let write_down = self.host.write_down(self.host.elapsed_ms());
        self.pump.send(Message::Call(Box::new(move |writer| {
            // In the same manifest: the next owner counts on from here, however short this run was.
            writer.edit(|manifest| write_down(&mut manifest.retention));
            writer.close(clean);
        })));
    }

    /// Whether the journal's manifest says durably how it ended.
    fn close(&self, clean: bool) -> Closed {
        self.begin_close(clean);
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            match self.pump.ask(|writer| writer.state(), ASK_PATIENCE) {
                // The pump ends when its writer is closed, or by a failure.
                Err(RecvTimeoutError::Disconnected) if !self.closed.load(Ordering::Acquire) => return Closed::Failed,
                Err(RecvTimeoutError::Disconnected) | Ok(WriterState::Closed) => return Closed::Stored,
                Ok(WriterState::Failed(_)) => return Closed::Failed,
                _ if Instant::now() > deadline => return Closed::NotYet,
                _ => std::thread::sleep(LOOK),
            }
        }
    }
}

impl Far for Keeper {
    fn find(&self, find: &Find) -> Result<Option<Found>, Problem> {
        // A first copy that was never completed restores nothing: it is begun anew.
        self.find_store(find, |manifest| !is_unseeded(manifest))
    }

    fn begin(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<(), Problem> {
        self.begin_store(begin, near).map(drop)
    }

    fn frames(&self) -> Frames {
        let (pump, backlog) = (self.pump.sender(), Arc::clone(&self.backlog));
        Box::new(move |frame| {
            backlog.add(frame.plain_bytes);
            // A pump that has ended belongs to a keeper that is being dropped.
            let _ = pump.send(Message::Frame(frame));
        })
    }

    fn trust(&self, trust: Trust) -> Result<(), Problem> {
        self.running()?.host.edit(Box::new(move |manifest| {
            manifest.activity_generation = manifest.activity_generation.max(trust.least);
        }))
    }

    fn sync(&self) {
        // A pump that does not answer syncs nothing, and who waits for it finds that out.
        let _ = self.pump.ask(Writer::request_sync, ASK_PATIENCE);
    }

    fn reach(&self, reach: Reach) -> Reached {
        let Ok(running) = self.running() else { return Reached { reached: false } };
        let deadline = Instant::now() + WAIT_MAX;
        while !running.has_reached(reach.lsn) {
            if Instant::now() > deadline {
                return Reached { reached: false };
            }
            std::thread::sleep(LOOK);
        }
        Reached { reached: true }
    }

    fn group(&self) -> Result<Group, Problem> {
        let replica = self.running()?.host.replica();
        let manifest = replica.manifest();
        Ok(Group { seeding: is_unseeded(manifest), free_disk: manifest.free_disk() })
    }

    fn edit_disks(&self, edit: DisksEdit) -> Result<(), Problem> {
        let host = &self.running()?.host;
        check_edit(&edit, &noted(&host.replica()))?;
        host.edit(Box::new(move |manifest| apply(manifest, &edit)))
    }

    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        self.running()?.make_mark(order)
    }

    fn is_zero(&self, disk: DiskId, range: Extent) -> bool {
        self.running().is_ok_and(|running| running.compare.is_zero(disk, range))
    }

    fn differing(&self, disk: DiskId, range: Extent, at: Lsn, data: &[u8]) -> Option<Vec<Extent>> {
        self.running().ok()?.compare.differing(disk, range, at, data)
    }

    fn seed(&self, seed: &SeedBegin, handle: SeedHandle) -> Result<Box<dyn Seeding>, Problem> {
        let running = self.running()?;
        check_seed(seed, &noted(&running.host.replica()))?;
        // What became of an earlier attempt is written over.
        lock(&running.roots).remove(&seed.disk);
        let (keys, reserve, info) = {
            let replica = running.host.replica();
            let Some(trunk) = replica.catalogue().trunk() else { return Err(not_begun()) };
            let fresh = SeedingInfo::new(seed.disk, seed.size, trunk.timeline);
            // In another timeline what was copied would have to be compared first: it is begun anew.
            let known = replica.manifest().seeding_of(seed.disk).filter(|info| info.since == trunk.timeline);
            let reserve = replica.manifest().policy.reserve_bytes;
            (Arc::clone(replica.keys()), reserve, known.copied().unwrap_or(fresh))
        };
        let (host, editor) = (Arc::clone(&running.host), Arc::clone(&running.host));
        let job = seed::Job {
            storage: Arc::clone(&self.storage),
            replica: running.replica,
            disk: seed.disk,
            size: seed.size,
            reserve,
            quota_left: Box::new(move || host.quota_left()),
            keys: Some(keys).filter(|keys| !keys.is_empty()),
            lack: Arc::clone(&running.seed_lack),
            roots: Arc::clone(&running.roots),
            alive: Arc::clone(&running.writers),
            handle,
            info,
            edit: Arc::new(move |edit| editor.edit(edit)),
            sync_every: self.options.seed_sync_bytes,
        };
        // Under the lock under which all are told to end: none begins after that.
        {
            let mut copies = lock(&running.copies);
            if running.near().is_none() {
                return Err(Problem::new(ProblemClass::Failed, UNREACHABLE, "the replica is being let go of"));
            }
            copies.retain(|stop| stop.strong_count() > 0);
            copies.push(Arc::downgrade(&job.handle.stop));
        }
        let begun = seed::begin(job);
        match &begun {
            Err(problem) if problem.code == UNREACHABLE => running.tell_lack(),
            _ => running.seed_lack.clear(),
        }
        begun
    }

    fn seeded(&self, seeded: &Seeded) -> Result<(), Problem> {
        self.running()?.name_bases(&seeded.disks)
    }

    fn patience(&self, _: Duration) {
        // What is waited for in this process has bounds of its own.
    }

    fn quiesce(&self) {
        if let Ok(running) = self.running() {
            running.stop.store(true, Ordering::Relaxed);
            running.host.end();
        }
    }

    fn close(&self, close: &Close) -> Closed {
        let Ok(running) = self.running() else { return Closed::Failed };
        match running.close(close.clean) {
            Closed::Stored if !self.is_in_place() => Closed::Failed,
            closed => closed,
        }
    }

    fn end(&self) {
        self.end_all();
    }

    fn standing(&self) -> Standing {
        let Ok(running) = self.running() else { return Standing::default() };
        Standing { seed_waits: running.seed_lack.get().is_some(), quota: running.is_quota() }
    }

    fn sums(&self) -> Sums {
        let Ok(running) = self.running() else { return Sums::default() };
        // What the writer waits for may be more than what the pump was told last.
        let of_journal = self.pump.ask(|writer| writer.lacks(), LACK_PATIENCE).ok().flatten();
        let needed = of_journal.max(running.seed_lack.get());
        let free = needed.and_then(|_| self.storage.free_bytes().ok());
        let lack = needed.zip(free).map(|(needed_bytes, free_bytes)| Lack { needed_bytes, free_bytes });
        let replica = running.host.replica();
        let points = replica.catalogue().trunk().map_or(0, |branch| branch.points().len() as u64);
        Sums { points, stored_bytes: running.stored.bytes(), lack }
    }

    fn failure(&self) -> Option<String> {
        self.running().ok()?.failure.get()
    }

    fn broken(&self) -> Option<String> {
        // What was handed to it is not lost before it is.
        None
    }

    fn lends(&self) -> Option<Lends> {
        None
    }

    fn trouble(&self) -> Option<String> {
        self.running().ok()?.index.get()
    }

    fn history(&self) -> Option<History> {
        self.running().ok()?.take_history()
    }
}

impl Keeper {
    /// What has to be free before it goes on, and what is: as it is told while it waits.
    #[must_use]
    pub fn lacks(&self) -> Option<Lack> {
        self.running().ok()?.lacks()
    }

    /// Whether the first copy of a disk is whole.
    #[must_use]
    pub fn is_copied(&self, disk: DiskId) -> bool {
        self.running().is_ok_and(|running| {
            let is_named = |info: &DiskInfo| info.id == disk && info.base.is_some();
            lock(&running.roots).contains_key(&disk) || running.host.replica().manifest().disks.iter().any(is_named)
        })
    }

    /// The hashes of a range's blocks, one after the other, for a filter that has the source's: only what differs is sent.
    #[must_use]
    pub fn digests(&self, asked: &Digests) -> (Digested, Vec<u8>) {
        let found = self.running().ok().and_then(|running| running.compare.digests(asked));
        match found {
            Some((at, hashes)) => (Digested { at: Some(at) }, hashes.concat()),
            None => (Digested { at: None }, Vec::new()),
        }
    }
}
