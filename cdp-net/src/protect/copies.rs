//! First copies: of the whole group when it is new, and of disks that join later.

use super::Shared;
use super::seed::{self, Seed};
use cdp_core::journal::Manifest;
use cdp_core::media::Storage;
use cdp_core::replica::sidecar::Root;
use cdp_core::types::{DiskId, Lsn, ReplicaId};
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
    Sizes(Lsn, Vec<(DiskId, u64)>),
}

/// Copies, one disk after the other, until nobody orders anything any more. At most one order for each disk waits.
pub(super) fn run(shared: &Shared, storage: &Arc<dyn Storage>, replica: ReplicaId, orders: &Receiver<CopyOrder>) {
    for order in orders {
        match order {
            CopyOrder::Group => {
                let disks = shared.sources.disks();
                if copy(shared, storage, replica, &disks, Lsn::ZERO).is_some() {
                    shared.engine.with(|filter, _| filter.seed_done());
                }
            }
            CopyOrder::Disk(disk, announced) => {
                if copy(shared, storage, replica, &[disk], announced).is_some() {
                    // One that left meanwhile is not waited for.
                    let _ = shared.engine.with(|filter, now| filter.disk_seeded(now, disk));
                }
            }
            CopyOrder::Sizes(lsn, sizes) => {
                if shared.wait_for_durable(lsn).is_ok() {
                    // Where this cannot be stored the next start finds the records and does it.
                    let _ = shared.host.edit(Box::new(move |manifest| {
                        sizes.iter().for_each(|(disk, size)| super::disks::name_size(manifest, *disk, *size));
                    }));
                }
            }
        }
    }
}

/// Makes the bases of disks and names them in the manifest. `None`: it was ended, or failed and said so.
fn copy(
    shared: &Shared,
    storage: &Arc<dyn Storage>,
    replica: ReplicaId,
    disks: &[DiskId],
    announced: Lsn,
) -> Option<()> {
    let settled = || shared.engine.with(|filter, now| filter.status(now)).settled;
    let quota_left = || shared.host.quota_left();
    let mut bases = Vec::new();
    let keys = Arc::clone(shared.host.replica().keys());
    for disk in disks {
        let held = shared.sources.get(*disk)?;
        let seed = Seed {
            replica,
            disk: *disk,
            source: held.device.as_ref(),
            lsn: &settled,
            quota_left: &quota_left,
            reserve: shared.host.replica().manifest().policy.reserve_bytes,
            keys: Some(&keys).filter(|keys| !keys.is_empty()),
            progress: &shared.progress,
            stop: &held.stop,
        };
        match seed::run(storage, &seed) {
            Ok(Some(root)) => bases.push((*disk, root)),
            Ok(None) => return None,
            Err(error) => {
                shared.failure.set(&format!("the first copy of disk {disk} failed: {error}"));
                return None;
            }
        }
    }
    shared.wait_for_durable(announced).ok()?;
    name(shared, &bases)
}

/// The copies are complete and durable; only the manifest has to say so. Where it cannot yet, it is asked again.
fn name(shared: &Shared, bases: &[(DiskId, Root)]) -> Option<()> {
    while !shared.stop.load(Ordering::Relaxed) && shared.failure.get().is_none() {
        let named = bases.to_vec();
        let name_bases = move |manifest: &mut Manifest| {
            for (id, root) in named {
                if let Some(disk) = manifest.disks.iter_mut().find(|disk| disk.id == id) {
                    // A base may hold more than the records up to its LSN; those above are applied over it again.
                    disk.base = Some(root.named(disk.added));
                }
            }
        };
        let stored = shared.host.edit(Box::new(name_bases));
        shared.progress.lack.clear();
        if stored.is_ok() {
            return Some(());
        }
        if let Some(bytes) = shared.pump.ask(|writer| writer.lacks(), MANIFEST_RETRY).ok().flatten() {
            shared.progress.lack.set(bytes);
        }
        std::thread::sleep(MANIFEST_RETRY);
    }
    None
}
