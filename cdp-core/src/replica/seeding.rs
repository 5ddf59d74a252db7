//! First copies that go on after the source began a new timeline: what of them has to be compared, and how fast they may go.
//!
//! `journal/FORMAT.md`, section 6, says why. In short: a copy goes on where it was, and what of it can be wrong is found by comparing hashes
//! ([`super::compare`]) when the base is named, before the resync ends. That is what was copied in an older timeline, and what records of older timelines
//! lie over: they are older than the bytes below. What differs is recorded as a repair, above both.

mod pace;

pub use self::pace::{Pace, Progress};

use super::{Replica, ReplicaError};
use crate::journal::{Manifest, Origin, View};
use crate::types::{DiskId, Extent};

/// Ranges that are to be compared, at most; where there would be more, near ones are taken together.
pub const COMPARED_MAX: usize = 1 << 16;
/// What ranges are widened to, in bytes, unless there are too many: a block of the filter's dirty map.
const GRAIN: u64 = 64 << 10;
/// How much of a disk is looked at at once, in bytes.
const STRIDE: u64 = 64 << 20;
/// Memory for region maps, in bytes: the disk is gone through once, region by region.
const REGIONS_BYTES: u64 = 16 << 20;

/// Whether any first copy came so far that it is worth going on with. A group that has no complete disk and no such copy is begun anew.
#[must_use]
pub fn is_begun(manifest: &Manifest) -> bool {
    manifest.seeding.iter().any(|seeding| seeding.point.done > 0)
}

impl Replica {
    /// What of a disk has to be compared with the source before the resync ends, when its first copy is made or goes on in the trunk's newest
    /// timeline: ascending and apart, at most [`COMPARED_MAX`]. Asked when that timeline is open, before more is copied; asked again later
    /// it says no less. Of an image that was there before, all of it. Nothing where the disk has its base, or no copy was begun.
    ///
    /// # Errors
    /// When the journal's index cannot be read or does not verify.
    pub fn to_compare(&self, disk: DiskId) -> Result<Vec<Extent>, ReplicaError> {
        let (Some(info), Some(trunk)) = (self.manifest().seeding_of(disk), self.catalogue().trunk()) else {
            return Ok(Vec::new());
        };
        let mut ranges = Ranges::new(info.size);
        let mut at = match info.adopted {
            // Of another time, or another disk.
            true => info.size,
            false if info.since == trunk.timeline => 0,
            false => info.point.done,
        };
        ranges.add(Extent::new(0, at));
        let Some(parent) = trunk.parent else { return Ok(ranges.ranges) };
        let view = View::open(&self.path(parent, trunk.fork)?, REGIONS_BYTES).map_err(ReplicaError::Journal)?;
        while at < info.size {
            let stride = Extent::new(at, STRIDE.min(info.size - at));
            let pieces = view.resolve(disk, stride).map_err(ReplicaError::Journal)?;
            for piece in pieces.into_iter().filter(|piece| !matches!(piece.origin, Origin::Below)) {
                ranges.add(piece.extent);
            }
            at = stride.end();
        }
        Ok(ranges.ranges)
    }
}

/// Ranges that are added in ascending order.
#[derive(Debug)]
struct Ranges {
    size: u64,
    grain: u64,
    ranges: Vec<Extent>,
}

impl Ranges {
    fn new(size: u64) -> Self {
        Self { size, grain: GRAIN, ranges: Vec::new() }
    }

    fn add(&mut self, extent: Extent) {
        self.join(extent);
        while self.ranges.len() > COMPARED_MAX {
            self.grain *= 2;
            let ranges = std::mem::take(&mut self.ranges);
            ranges.into_iter().for_each(|range| self.join(range));
        }
    }

    fn join(&mut self, extent: Extent) {
        let disk = Extent::new(0, self.size);
        let range = extent.intersect(&disk).and_then(|inside| inside.widen(self.grain).intersect(&disk));
        let Some(range) = range else { return };
        match self.ranges.last_mut().filter(|last| last.end() >= range.offset) {
            Some(last) => last.length = last.end().max(range.end()) - last.offset,
            None => self.ranges.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_hold_what_was_added_and_are_apart(steps in prop::collection::vec((0..3000u64, 1..3000u64), 0..40), cut in 1..60_000u64) {
            let size = cut * 512;
            let (mut ranges, mut at, mut added) = (Ranges::new(size), 0, Vec::new());
            for (gap, length) in steps {
                let extent = Extent::new((at + gap) * 512, length * 512);
                at += gap + length;
                added.extend(extent.intersect(&Extent::new(0, size)));
                ranges.add(extent);
            }
            prop_assert!(ranges.ranges.windows(2).all(|pair| pair[0].end() < pair[1].offset));
            let grains = |range: &Extent| range.offset.is_multiple_of(GRAIN) && (range.end().is_multiple_of(GRAIN) || range.end() == size);
            prop_assert!(ranges.ranges.iter().all(grains));
            prop_assert!(added.iter().all(|extent| ranges.ranges.iter().any(|range| range.contains(extent))));
            let needed = |range: &Extent| added.iter().any(|extent| extent.overlaps(range));
            prop_assert!(ranges.ranges.iter().all(needed));
        }
    }

    #[test]
    fn more_ranges_than_are_kept_are_taken_together() {
        let mut ranges = Ranges::new(1 << 50);
        for at in 0..COMPARED_MAX as u64 + 1 {
            ranges.add(Extent::new(at * 2 * GRAIN, 512));
        }
        assert_eq!(ranges.ranges, [Extent::new(0, (COMPARED_MAX as u64 + 1) * 2 * GRAIN)]);
        for at in 1..COMPARED_MAX as u64 {
            ranges.add(Extent::new((1 << 45) + (at << 20), 512));
        }
        assert_eq!(ranges.ranges.len(), COMPARED_MAX, "as many as there may be");
    }
}
