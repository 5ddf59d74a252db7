//! What is lent: recorded, synced by a proxy, not durable, and kept nowhere at the source. A fork reads it again.
//!
//! One [`DirtyMap`] for each disk of which anything is lent: 2 MiB + 32 KiB per TiB, allocated when the first of it is lent and
//! given back when everything that is lent is durable. In between it only grows: it may name more than is still lent.

use super::dirty::DirtyMap;
use crate::types::{Extent, Lsn};
use std::collections::BTreeMap;

/// The ranges that are lent.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// As many as the filter has places for disks.
    maps: BTreeMap<usize, DirtyMap>,
    through: Lsn,
}

impl Lent {
    /// Marks a range of a disk of `size` bytes.
    pub(super) fn mark(&mut self, disk: usize, size: u64, extent: Extent) {
        let map = self.maps.entry(disk).or_insert_with(|| DirtyMap::new(size));
        // It may have grown since, or be about to.
        map.grow(extent.end());
        map.mark(extent);
    }

    /// Everything up to here is lent, or durable.
    pub(super) fn reach(&mut self, through: Lsn) {
        self.through = through;
    }

    /// The last LSN that is lent; `None`: nothing is.
    pub(super) fn through(&self) -> Option<Lsn> {
        (self.through > Lsn::ZERO).then_some(self.through)
    }

    /// Bytes that may be lent, in whole blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.maps.values().map(DirtyMap::dirty_bytes).sum()
    }

    /// Nothing is lent any more. Returns what was, in runs.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (usize, Extent)> {
        let maps = std::mem::take(self).maps;
        maps.into_iter().flat_map(|(disk, map)| {
            let mut from = 0;
            std::iter::from_fn(move || {
                let run = map.next_run(from, u64::MAX)?;
                from = run.end();
                Some((disk, run))
            })
        })
    }

    /// Everything that was lent is durable.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::DIRTY_BLOCK;

    #[test]
    fn what_is_lent_costs_nothing_before_and_after_and_comes_back_in_runs() {
        let mut lent = Lent::default();
        assert!(lent.maps.is_empty() && lent.through().is_none());
        lent.mark(1, 1 << 30, Extent::new(0, 512));
        lent.mark(1, 1 << 30, Extent::new(DIRTY_BLOCK, 512));
        lent.mark(0, 512, Extent::new(8 << 20, 4096));
        lent.reach(Lsn(9));
        assert_eq!((lent.through(), lent.bytes()), (Some(Lsn(9)), 3 * DIRTY_BLOCK));
        let runs: Vec<_> = lent.take().collect();
        assert_eq!(runs, [(0, Extent::new(8 << 20, 4096)), (1, Extent::new(0, 2 * DIRTY_BLOCK))]);
        assert!(lent.maps.is_empty() && lent.through().is_none());
    }
}
