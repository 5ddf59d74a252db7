//! What the replica holds of a range, for who compares it with the source.
//!
//! A filter in this process has the bytes at hand: they are compared with a view, block by block. Their digests would cost a hash
//! of both sides instead of one pass over them, and say less. Over a network the digests are what is asked for.

use crate::far::Digests;
use crate::host::Host;
use cdp_core::replica::digest::{LeafHash, hash};
use cdp_core::replica::{Bases, ReplicaView};
use cdp_core::types::{BLOCK, DiskId, Extent, Lsn};
use std::sync::{Arc, Mutex, PoisonError};

/// The replica at a durable LSN; kept while that LSN is good enough and the bases are those it was opened on.
#[derive(Clone)]
struct Kept {
    at: Lsn,
    bases: Arc<Bases>,
    view: Arc<ReplicaView>,
}

/// Looks into the replica as it is. Keeps one view, the last one.
pub(super) struct Compare {
    host: Arc<Host>,
    kept: Mutex<Option<Kept>>,
}

impl Compare {
    pub(super) fn new(host: &Arc<Host>) -> Self {
        Self { host: Arc::clone(host), kept: Mutex::default() }
    }

    /// The replica at `lsn` or later; `None` where that is not known, as for a disk whose first copy is not complete: below the
    /// journal there is nothing to compare with.
    fn view(&self, disk: DiskId, lsn: Lsn) -> Option<Kept> {
        let mut held = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let replica = self.host.replica();
        replica.bases().get(disk)?;
        let usable = |kept: &&Kept| kept.at >= lsn && Arc::ptr_eq(&kept.bases, replica.bases());
        if let Some(kept) = held.as_ref().filter(usable) {
            return Some(kept.clone());
        }
        let trunk = replica.catalogue().trunk()?.timeline;
        let durable = replica.snapshot().durable().lsn();
        // While a disk is seeded its base is not in the view yet, and what it will hold would pass for zeros.
        let seeded = replica.manifest().disks.iter().any(|info| info.id == disk && info.base.is_some());
        if durable < lsn || !seeded {
            return None;
        }
        let view = Arc::new(replica.view(trunk, durable).ok()?);
        let kept = Kept { at: durable, bases: Arc::clone(replica.bases()), view };
        *held = Some(kept.clone());
        Some(kept)
    }

    fn read(&self, disk: DiskId, range: Extent, lsn: Lsn) -> Option<(Lsn, Vec<u8>)> {
        let kept = self.view(disk, lsn)?;
        let mut held = vec![0; range.length as usize];
        kept.view.read(disk, range.offset, &mut held).ok()?;
        Some((kept.at, held))
    }

    /// Which blocks of `data`, at `range` of a disk, differ from the replica at `lsn` or later. `None`: that cannot be told.
    pub(super) fn differing(&self, disk: DiskId, range: Extent, lsn: Lsn, data: &[u8]) -> Option<Vec<Extent>> {
        let (_, held) = self.read(disk, range, lsn)?;
        Some(differing(range.offset, data, &held))
    }

    /// The BLAKE3 hashes of a range's blocks, and the LSN that they are as of. `None`: that cannot be told, or too much is asked.
    pub(super) fn digests(&self, asked: &Digests) -> Option<(Lsn, Vec<LeafHash>)> {
        if !asked.is_bounded() {
            return None;
        }
        let (at, held) = self.read(asked.disk, asked.range, asked.at)?;
        Some((at, held.chunks(asked.block as usize).map(hash).collect()))
    }

    /// Whether a range is known to be zeros, as far as everything is durable.
    pub(super) fn is_zero(&self, disk: DiskId, range: Extent) -> bool {
        let replica = self.host.replica();
        let moment = replica.catalogue().trunk().map(|trunk| trunk.timeline);
        let view = moment.and_then(|timeline| replica.view(timeline, replica.snapshot().durable().lsn()).ok());
        drop(replica);
        view.and_then(|view| view.runs(disk, range).ok()).is_some_and(|runs| runs.iter().all(|run| run.zero))
    }
}

/// Runs of blocks that differ, from `offset` on.
fn differing(offset: u64, data: &[u8], replica: &[u8]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    let mut at = offset;
    for (source, kept) in data.chunks(BLOCK as usize).zip(replica.chunks(BLOCK as usize)) {
        let here = Extent::new(at, source.len() as u64);
        at = here.end();
        if source == kept {
            continue;
        }
        match runs.last_mut().filter(|run| run.end() == here.offset) {
            Some(run) => run.length += here.length,
            None => runs.push(here),
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
        assert!(differing(8192, &data, &replica).is_empty());
        data[4096] = 1;
        data[2 * 4096 + 5] = 1;
        data[5 * 4096 + 511] = 1;
        let expected = [Extent::new(8192 + 4096, 8192), Extent::new(8192 + 5 * 4096, 512)];
        assert_eq!(differing(8192, &data, &replica), expected);
    }
}
