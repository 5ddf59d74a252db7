//! Disks of several strides, that hold little: what happens at the seams.

use super::*;
use crate::types::SECTOR;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

/// Sectors that hold something, each full of one byte.
#[derive(Clone, Debug)]
struct Sparse {
    size: u64,
    sectors: BTreeMap<u64, u8>,
}

impl Sparse {
    fn sector(&self, number: u64) -> u8 {
        let there = number * SECTOR < self.size;
        self.sectors.get(&number).copied().filter(|_| there).unwrap_or(0)
    }
}

impl Content for Sparse {
    type Error = Infallible;

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Infallible> {
        assert!(offset + out.len() as u64 <= self.size, "behind the end");
        for (number, sector) in (offset / SECTOR..).zip(out.chunks_mut(SECTOR as usize)) {
            sector.fill(self.sector(number));
        }
        Ok(())
    }

    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Infallible> {
        assert!(range.end() <= self.size && !range.is_empty(), "behind the end");
        let (mut at, mut runs) = (range.offset, Vec::new());
        for number in self.sectors.range(range.offset / SECTOR..range.end() / SECTOR).map(|(number, _)| *number) {
            if at < number * SECTOR {
                runs.push((Extent::new(at, number * SECTOR - at), true));
            }
            runs.push((Extent::new(number * SECTOR, SECTOR), false));
            at = (number + 1) * SECTOR;
        }
        if at < range.end() {
            runs.push((Extent::new(at, range.end() - at), true));
        }
        Ok(runs)
    }
}

fn changes(from: &Sparse, to: &Sparse) -> Vec<Change> {
    let (mut diff, mut found) = (Diff::new(from, to), Vec::new());
    while diff.step(&mut |change| found.push(change)).unwrap() {}
    found
}

/// Sector by sector, of the blocks that hold anything.
fn naive(from: &Sparse, to: &Sparse) -> Vec<Change> {
    const SECTORS: u64 = BLOCK / SECTOR;
    let size = from.size.max(to.size);
    let blocks: BTreeSet<_> = from.sectors.keys().chain(to.sectors.keys()).map(|sector| sector / SECTORS).collect();
    let mut found: Vec<Change> = Vec::new();
    for block in blocks.into_iter().filter(|block| block * BLOCK < size) {
        let sectors = block * SECTORS..(block + 1) * SECTORS;
        if sectors.clone().all(|sector| from.sector(sector) == to.sector(sector)) {
            continue;
        }
        let zero = sectors.clone().all(|sector| to.sector(sector) == 0);
        let extent = Extent::new(block * BLOCK, BLOCK.min(size - block * BLOCK));
        match found.last_mut().filter(|last| last.zero == zero && last.extent.end() == extent.offset) {
            Some(last) => last.extent.length += extent.length,
            None => found.push(Change { extent, zero }),
        }
    }
    found
}

/// Three strides and a bit; what is in them lies around the seams and the ends.
fn disk() -> impl Strategy<Value = Sparse> {
    let size = (0..=20u64).prop_map(|cut| 3 * STRIDE + (10 - cut.min(10)) * SECTOR - cut / 11 * STRIDE);
    let near = prop_oneof![Just(STRIDE), Just(2 * STRIDE), Just(3 * STRIDE), Just(PIECE)];
    let sector = (near, 0..64u64).prop_map(|(near, by)| near / SECTOR - 32 + by);
    let sectors = prop::collection::btree_map(sector, 0..3u8, 0..80);
    (size, sectors).prop_map(|(size, mut sectors)| {
        sectors.retain(|sector, _| sector * SECTOR < size);
        Sparse { size, sectors }
    })
}

proptest! {
    #[test]
    fn seams_and_ends_are_not_seen(from in disk(), to in disk(), alike: bool) {
        // Half of the time most of it is the same.
        let mut to = to;
        if alike {
            let more = from.sectors.iter().filter(|(sector, _)| **sector * SECTOR < to.size).map(|(sector, fill)| (*sector, *fill));
            let more: Vec<_> = more.skip(3).collect();
            to.sectors.extend(more);
        }
        prop_assert_eq!(changes(&from, &to), naive(&from, &to));
        prop_assert_eq!(changes(&from, &from), []);
    }
}

#[test]
fn a_run_over_a_seam_is_one() {
    let empty = Sparse { size: 2 * STRIDE, sectors: BTreeMap::new() };
    let sectors = (STRIDE / SECTOR - 8..STRIDE / SECTOR + 8).map(|sector| (sector, 7)).collect();
    let full = Sparse { size: 2 * STRIDE, sectors };
    let run = |zero| Change { extent: Extent::new(STRIDE - BLOCK, 2 * BLOCK), zero };
    assert_eq!(changes(&empty, &full), [run(false)]);
    assert_eq!(changes(&full, &empty), [run(true)]);
}

#[test]
fn a_disk_that_is_not_there_counts_as_zeros() {
    let none = Sparse { size: 0, sectors: BTreeMap::new() };
    let some = Sparse { size: 3 * SECTOR, sectors: BTreeMap::from([(1, 9)]) };
    let run = |zero| Change { extent: Extent::new(0, 3 * SECTOR), zero };
    assert_eq!(changes(&none, &some), [run(false)]);
    assert_eq!(changes(&some, &none), [run(true)]);
    assert_eq!(changes(&none, &none), []);
}
