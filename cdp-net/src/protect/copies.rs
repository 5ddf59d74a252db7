//! First copies: of the whole group when it is new, and of disks that join later.

use super::Shared;
use super::seed::{self, Seed};
use crate::far::{DisksEdit, NOT_SEEDED, SeedBegin, SeedHandle, Seeded, SizeOf};
use crate::threads::step_back;
use cdp_core::types::{DiskId, Lsn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// How long a manifest that could not be written is left alone.
const MANIFEST_RETRY: Duration = Duration::from_millis(500);

/// What the thread is to do.
pub(super) enum CopyOrder {
    /// Copy all disks of a new group.
    Group,
    /// Copy a disk that joined. It has a base only when the records up to this LSN are durable, which say that it is not complete.
    Disk(DiskId, Lsn),
    /// Write down the sizes that a start found, when everything up to this LSN is durable.
    Sizes(Lsn, Vec<SizeOf>),
}

/// Copies, one disk after the other, until nobody orders anything any more. At most one order for each disk waits.
pub(super) fn run(shared: &Shared, orders: &Receiver<CopyOrder>) {
    step_back();
    for order in orders {
        match order {
            CopyOrder::Group => {
                if copy(shared, shared.sources.disks(), Lsn::ZERO).is_some() {
                    shared.engine.with(|filter, _| filter.seed_done());
                }
            }
            CopyOrder::Disk(disk, announced) => {
                if copy(shared, vec![disk], announced).is_some() {
                    // One that left meanwhile is not waited for.
                    let _ = shared.engine.with(|filter, now| filter.disk_seeded(now, disk));
                }
            }
            CopyOrder::Sizes(lsn, sizes) => {
                if shared.wait_for_durable(lsn).is_ok() {
                    // Where this cannot be stored the next start finds the records and does it.
                    let _ = shared.far.edit_disks(DisksEdit::Sizes(sizes));
                }
            }
        }
    }
}

/// Has the bases of disks made and named. `None`: it was ended, or failed and said so.
fn copy(shared: &Shared, disks: Vec<DiskId>, announced: Lsn) -> Option<()> {
    let seeded = Seeded { disks };
    loop {
        let before = shared.progress.done.load(Ordering::Relaxed);
        make(shared, &seeded.disks)?;
        shared.wait_for_durable(announced).ok()?;
        if name(shared, &seeded)? {
            return Some(());
        }
        // Who keeps the replica was replaced before it was written down that they are whole.
        shared.progress.done.store(before, Ordering::Relaxed);
    }
}

/// Has the bases of disks made, one after the other.
fn make(shared: &Shared, disks: &[DiskId]) -> Option<()> {
    let settled = || shared.engine.with(|filter, now| filter.status(now)).settled;
    for disk in disks {
        let held = shared.sources.get(*disk)?;
        let begin = |size| {
            let handle = SeedHandle { stop: Arc::clone(&held.stop), done: Arc::clone(&shared.progress.done) };
            shared.far.seed(&SeedBegin { disk: *disk, size, first: 0 }, handle)
        };
        let (source, progress) = (held.device.as_ref(), &shared.progress);
        let seed = Seed { source, lsn: &settled, begin: &begin, progress, stop: &held.stop };
        match seed::run(&seed) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                shared.failure.set(&format!("the first copy of disk {disk} failed: {error}"));
                return None;
            }
        }
    }
    Some(())
}

/// The copies are complete and durable; only the manifest has to say so. Where it cannot yet, it is asked again. Whether it does: else
/// they are not complete after all.
fn name(shared: &Shared, seeded: &Seeded) -> Option<bool> {
    while !shared.is_over() {
        match shared.far.seeded(seeded) {
            Ok(()) => return Some(true),
            Err(problem) if problem.code == NOT_SEEDED => return Some(false),
            Err(_) => std::thread::sleep(MANIFEST_RETRY),
        }
    }
    None
}
