//! Re-reading the source: for resyncs, failed writes and full checks.
//!
//! Where the filter allows it, what was read is compared with the replica, and only blocks that differ are recorded.

use super::engine::Engine;
use super::sources::Sources;
use crate::device::Device;
use crate::host::Host;
use bytes::Bytes;
use cdp_core::capture::{Failed, Reread};
use cdp_core::frame::Payload;
use cdp_core::replica::{Bases, ReplicaView};
use cdp_core::types::{BLOCK, Lsn};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Carries out re-reads until the queue is closed.
pub(super) fn run(sources: &Sources, host: &Host, engine: &Engine, queue: &Receiver<Reread>) {
    let mut view = None;
    for reread in queue {
        let result = match sources.get(reread.disk) {
            Some(held) => read(held.device.as_ref(), host, &reread, &mut view),
            None => Err(Failed { errno: libc::ENODEV }),
        };
        let done = engine.with(|filter, now| filter.reread_done(now, reread.token, result));
        debug_assert!(done.is_ok(), "{done:?}");
    }
}

/// The replica at a durable LSN; kept while that LSN is good enough and the bases are those it was opened on.
struct Kept {
    at: Lsn,
    bases: Arc<Bases>,
    view: ReplicaView,
}

type KeptView = Option<Kept>;

fn read(source: &dyn Device, host: &Host, reread: &Reread, view: &mut KeptView) -> Result<Vec<Payload>, Failed> {
    let mut data = vec![0; reread.extent.length as usize];
    let failed = |error: std::io::Error| Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) };
    // From the disk, not from a cache that may hold what a failed flush did not bring down.
    source.read_media(reread.extent.offset, &mut data).map_err(failed)?;
    let data = Bytes::from(data);
    let offset = reread.extent.offset;
    let known = reread.compare_at.and_then(|lsn| replica_of(host, reread, lsn, view));
    let runs = match known {
        Some(replica) => differing(&data, &replica),
        // Not comparable, or the replica cannot be read there: everything is recorded, which is always right.
        None => std::iter::once(0..data.len()).collect(),
    };
    let payload = |run: std::ops::Range<usize>| Payload::new(offset + run.start as u64, data.slice(run)).ok();
    Ok(runs.into_iter().filter_map(payload).collect())
}

/// What the replica holds of the range at `lsn` or later; `None` where that is not known, as for a disk whose first copy is
/// not complete: below the journal there is nothing to compare with.
fn replica_of(host: &Host, reread: &Reread, lsn: Lsn, kept: &mut KeptView) -> Option<Vec<u8>> {
    let replica = host.replica();
    replica.bases().get(reread.disk)?;
    let usable = |kept: &Kept| kept.at >= lsn && Arc::ptr_eq(&kept.bases, replica.bases());
    if !kept.as_ref().is_some_and(usable) {
        let trunk = replica.catalogue().trunk()?.timeline;
        let durable = replica.snapshot().durable().lsn();
        // While a disk is seeded its base is not in the view yet, and what it will hold would pass for zeros.
        let seeded = replica.manifest().disks.iter().any(|disk| disk.id == reread.disk && disk.base.is_some());
        if durable < lsn || !seeded {
            return None;
        }
        let view = replica.view(trunk, durable).ok()?;
        *kept = Some(Kept { at: durable, bases: Arc::clone(replica.bases()), view });
    }
    drop(replica);
    let Kept { view, .. } = kept.as_ref()?;
    let mut held = vec![0; reread.extent.length as usize];
    view.read(reread.disk, reread.extent.offset, &mut held).ok()?;
    Some(held)
}

/// Runs of blocks that differ.
fn differing(data: &[u8], replica: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let block = BLOCK as usize;
    for (number, (source, kept)) in data.chunks(block).zip(replica.chunks(block)).enumerate() {
        if source == kept {
            continue;
        }
        let (start, end) = (number * block, number * block + source.len());
        match runs.last_mut().filter(|run| run.end == start) {
            Some(run) => run.end = end,
            None => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_differ_are_named() {
        let replica = vec![7; 5 * 4096 + 512];
        let mut data = replica.clone();
        assert!(differing(&data, &replica).is_empty());
        data[4096] = 1;
        data[2 * 4096 + 5] = 1;
        data[5 * 4096 + 511] = 1;
        assert_eq!(differing(&data, &replica), [4096..3 * 4096, 5 * 4096..5 * 4096 + 512]);
    }
}
