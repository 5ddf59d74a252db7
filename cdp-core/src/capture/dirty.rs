//! The dirty map: which 64 KiB of a disk may differ from its replica, and nothing else about them.
//!
//! A flat bitmap, one bit per [`DIRTY_BLOCK`], with a summary above it, one bit per 4 MiB (one word of the bitmap), so that
//! looking for the next dirty block skips clean gigabytes. Memory: 2 MiB + 32 KiB per TiB of disk, allocated zeroed and
//! touched only where something is dirty. Order of iteration is the order of offsets.

use crate::types::{ACTIVITY_EXTENT, Extent};

/// How much of a disk one bit of the dirty map stands for, in bytes.
pub const DIRTY_BLOCK: u64 = 64 << 10;

const _: () = assert!(DIRTY_BLOCK * 64 == ACTIVITY_EXTENT, "a word of the map is an extent of the activity log");

/// Which blocks of one disk may differ from the replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirtyMap {
    size: u64,
    /// One bit per block.
    blocks: Vec<u64>,
    /// One bit per word of `blocks` that is not zero.
    summary: Vec<u64>,
    dirty_blocks: u64,
}

/// The bits from `first` to `last` of a word, both included.
fn mask(first: u64, last: u64) -> u64 {
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl DirtyMap {
    /// A clean map of a disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let words = size.div_ceil(ACTIVITY_EXTENT) as usize;
        Self { size, blocks: vec![0; words], summary: vec![0; words.div_ceil(64)], dirty_blocks: 0 }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether nothing is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty_blocks == 0
    }

    /// How many bytes are dirty, in whole blocks.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_blocks * DIRTY_BLOCK
    }

    /// Lets the disk grow; what is new is clean. A smaller size changes nothing.
    pub fn grow(&mut self, size: u64) {
        if size <= self.size {
            return;
        }
        let words = size.div_ceil(ACTIVITY_EXTENT) as usize;
        self.size = size;
        self.blocks.resize(words, 0);
        self.summary.resize(words.div_ceil(64), 0);
    }

    /// The disk is cut; nothing of what is cut off is dirty any more. A larger size changes nothing.
    pub fn cut(&mut self, size: u64) {
        if size >= self.size {
            return;
        }
        self.clear_covered(Extent::new(size.next_multiple_of(DIRTY_BLOCK), self.size));
        let words = size.div_ceil(ACTIVITY_EXTENT) as usize;
        self.size = size;
        self.blocks.truncate(words);
        self.summary.truncate(words.div_ceil(64));
    }

    /// Marks every block that `extent` touches. What lies beyond the disk is ignored.
    pub fn mark(&mut self, extent: Extent) {
        let Some(inside) = extent.intersect(&Extent::new(0, self.size)) else { return };
        self.change(inside.offset / DIRTY_BLOCK, (inside.end() - 1) / DIRTY_BLOCK, true);
    }

    /// Clears the blocks that lie wholly inside `extent` (the disk's last block may be cut short by its end).
    pub fn clear_covered(&mut self, extent: Extent) {
        if self.is_clean() {
            return;
        }
        let first = extent.offset.div_ceil(DIRTY_BLOCK);
        let end = if extent.end() >= self.size { self.size.div_ceil(DIRTY_BLOCK) } else { extent.end() / DIRTY_BLOCK };
        if first < end {
            self.change(first, end - 1, false);
        }
    }

    /// Whether any block that `extent` touches is dirty.
    #[must_use]
    pub fn overlaps(&self, extent: Extent) -> bool {
        let Some(inside) = extent.intersect(&Extent::new(0, self.size)) else { return false };
        !self.is_clean()
            && self.next_block(inside.offset / DIRTY_BLOCK).is_some_and(|at| at * DIRTY_BLOCK < inside.end())
    }

    /// The first run of dirty blocks that ends after `from`, cut to begin at `from`'s block at the earliest, to hold at most
    /// `bytes_max` (at least one block), and to end with the disk.
    #[must_use]
    pub fn next_run(&self, from: u64, bytes_max: u64) -> Option<Extent> {
        if self.is_clean() || from >= self.size {
            return None;
        }
        let first = self.next_block(from / DIRTY_BLOCK)?;
        let limit = first + (bytes_max / DIRTY_BLOCK).max(1);
        let mut end = first + 1;
        while end < limit && self.is_dirty(end) {
            end += 1;
        }
        let offset = first * DIRTY_BLOCK;
        Some(Extent::new(offset, (end * DIRTY_BLOCK).min(self.size) - offset))
    }

    fn is_dirty(&self, block: u64) -> bool {
        self.blocks.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// The first dirty block at or after `block`.
    fn next_block(&self, block: u64) -> Option<u64> {
        let word = (block / 64) as usize;
        let here = self.blocks.get(word)? & (u64::MAX << (block % 64));
        if here != 0 {
            return Some(word as u64 * 64 + u64::from(here.trailing_zeros()));
        }
        let next = word + 1;
        let mut at = next / 64;
        let mut bits = self.summary.get(at)? & (u64::MAX << (next % 64));
        while bits == 0 {
            at += 1;
            bits = *self.summary.get(at)?;
        }
        let word = at * 64 + bits.trailing_zeros() as usize;
        Some(word as u64 * 64 + u64::from(self.blocks[word].trailing_zeros()))
    }

    /// Sets or clears the blocks `first..=last`, keeping summary and count.
    fn change(&mut self, first: u64, last: u64, dirty: bool) {
        for word in first / 64..=last / 64 {
            let bits = mask(first.max(word * 64) % 64, last.min(word * 64 + 63) % 64);
            let at = word as usize;
            let before = self.blocks[at];
            let after = if dirty { before | bits } else { before & !bits };
            self.blocks[at] = after;
            self.dirty_blocks = self.dirty_blocks + u64::from(after.count_ones()) - u64::from(before.count_ones());
            if after == 0 {
                self.summary[at / 64] &= !(1 << (at % 64));
            } else {
                self.summary[at / 64] |= 1 << (at % 64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Op {
        Mark(u64, u64),
        Clear(u64, u64),
        Grow(u64),
        Cut(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let sectors = 0..70_000u64;
        let op = prop_oneof![
            4 => (sectors.clone(), 1..4000u64).prop_map(|(at, n)| Op::Mark(at * 512, n * 512)),
            3 => (sectors, 1..9000u64).prop_map(|(at, n)| Op::Clear(at * 512, n * 512)),
            1 => (1..90_000u64).prop_map(|n| Op::Grow(n * 512)),
            1 => (0..90_000u64).prop_map(|n| Op::Cut(n * 512)),
        ];
        proptest::collection::vec(op, 0..40)
    }

    fn model_runs(model: &BTreeSet<u64>, size: u64, bytes_max: u64) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for &block in model {
            match runs.last_mut() {
                Some(run) if run.end() == block * DIRTY_BLOCK && run.length < bytes_max => run.length += DIRTY_BLOCK,
                _ => runs.push(Extent::new(block * DIRTY_BLOCK, DIRTY_BLOCK)),
            }
        }
        for run in &mut runs {
            run.length = run.length.min(size - run.offset);
        }
        runs
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_blocks(size in 1..70_000u64, ops in ops()) {
            let mut size = size * 512;
            let mut map = DirtyMap::new(size);
            let mut model = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Mark(offset, length) => {
                        map.mark(Extent::new(offset, length));
                        let end = (offset + length).min(size);
                        model.extend((offset < end).then(|| offset / DIRTY_BLOCK..end.div_ceil(DIRTY_BLOCK)).into_iter().flatten());
                    }
                    Op::Clear(offset, length) => {
                        map.clear_covered(Extent::new(offset, length));
                        model.retain(|b| {
                            let (begin, end) = (b * DIRTY_BLOCK, ((b + 1) * DIRTY_BLOCK).min(size));
                            begin < offset || end > offset + length
                        });
                    }
                    Op::Grow(to) => {
                        map.grow(to);
                        size = size.max(to);
                    }
                    Op::Cut(to) => {
                        map.cut(to);
                        size = size.min(to);
                        model.retain(|block| block * DIRTY_BLOCK < size);
                    }
                }
                prop_assert_eq!(map.dirty_bytes(), model.len() as u64 * DIRTY_BLOCK);
                prop_assert_eq!(map.is_clean(), model.is_empty());
            }
            for bytes_max in [DIRTY_BLOCK, 1 << 20] {
                let mut runs = Vec::new();
                let mut at = 0;
                while let Some(run) = map.next_run(at, bytes_max) {
                    at = run.offset + run.length.next_multiple_of(DIRTY_BLOCK);
                    runs.push(run);
                }
                prop_assert_eq!(runs, model_runs(&model, size, bytes_max));
            }
            for block in 0..size.div_ceil(DIRTY_BLOCK) {
                prop_assert_eq!(map.overlaps(Extent::new(block * DIRTY_BLOCK, 512)), model.contains(&block));
            }
        }
    }

    #[test]
    fn the_memory_per_tib_is_what_the_docs_say() {
        let map = DirtyMap::new(1 << 40);
        assert_eq!(map.blocks.len() * 8 + map.summary.len() * 8, (2 << 20) + (32 << 10));
    }
}
