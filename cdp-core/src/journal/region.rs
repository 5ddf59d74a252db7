//! What 8 MiB of a disk read as at one moment: runs that do not overlap, found newest first.

use super::index::{Entry, What};
use crate::types::{Extent, SECTOR};
use std::collections::BTreeMap;

/// Bytes of a disk that the manifest says of a run whether it has anything in them.
pub(super) const REGION: u64 = 64 << 20;
/// Bytes of a disk that one map stands for: so few that the first read does not wait for what the others need.
pub(super) const MAP: u64 = 8 << 20;
/// Sectors of a map.
const SECTORS: u64 = MAP / SECTOR;

const _: () = assert!(REGION.is_multiple_of(MAP));
/// What one run takes in memory, about.
pub(super) const SPAN_BYTES: u64 = 96;

/// What a run of sectors reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// First sector of the region after it.
    end: u32,
    /// Which of the view's segments.
    pub(super) source: u32,
    /// The entry it comes from, whole.
    pub(super) entry: Entry,
}

/// A stretch of a disk at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct RegionMap {
    spans: BTreeMap<u32, Span>,
}

impl RegionMap {
    /// What the map takes in memory, about, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        256 + self.spans.len() as u64 * SPAN_BYTES
    }

    /// Lays an entry over everything that is there.
    pub(super) fn cover(&mut self, region: u64, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(region, entry) else { return };
        if let Some((_, before)) = self.spans.range_mut(..start).next_back().filter(|(_, span)| span.end > start) {
            let rest = *before;
            before.end = start;
            if rest.end > end {
                self.spans.insert(end, rest);
            }
        }
        while let Some((&first, &under)) = self.spans.range(start..end).next() {
            self.spans.remove(&first);
            if under.end > end {
                self.spans.insert(end, under);
            }
        }
        self.spans.insert(start, Span { end, source, entry: *entry });
    }

    /// Calls `each` for the runs inside `range` (bytes of the disk, inside the region) in order, gaps too.
    pub(super) fn pieces(&self, region: u64, range: Extent, mut each: impl FnMut(Extent, Option<&Span>)) {
        let base = region * MAP;
        let (from, to) = (((range.offset - base) / SECTOR) as u32, (range.end() - base).div_ceil(SECTOR) as u32);
        let bytes = |start: u32, end: u32| {
            let whole = Extent::new(base + u64::from(start) * SECTOR, u64::from(end - start) * SECTOR);
            whole.intersect(&range)
        };
        let mut at = from;
        let before = self.spans.range(..from).next_back().filter(|(_, span)| span.end > from);
        for (&start, span) in before.into_iter().chain(self.spans.range(from..to)) {
            let (start, end) = (start.max(from), span.end.min(to));
            bytes(at, start.max(at)).into_iter().for_each(|gap| each(gap, None));
            bytes(start, end).into_iter().for_each(|run| each(run, Some(span)));
            at = end;
        }
        bytes(at, to.max(at)).into_iter().for_each(|gap| each(gap, None));
    }
}

impl Span {
    pub(super) fn what(&self) -> What {
        self.entry.what
    }
}

/// Makes a map from entries, the newest first: each fills only what none before it has.
#[derive(Debug)]
pub(super) struct RegionBuilder {
    number: u64,
    entries: Vec<(u32, Entry)>,
    /// By sector: which of `entries` has it, counted from 1.
    owner: Vec<u32>,
    /// By sector: one that is not behind the next free sector. Keeps long entries under others from costing their length.
    next: Vec<u32>,
    left: u64,
}

impl RegionBuilder {
    pub(super) fn new(number: u64) -> Self {
        let (owner, next) = (vec![0; SECTORS as usize], (0..=SECTORS as u32).collect());
        Self { number, entries: Vec::new(), owner, next, left: SECTORS }
    }

    /// Whether older entries have nothing left to say.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The first free sector from `at` on.
    fn free(&mut self, mut at: u32) -> u32 {
        while self.next[at as usize] != at {
            let over = self.next[self.next[at as usize] as usize];
            self.next[at as usize] = over;
            at = over;
        }
        at
    }

    /// Lays an entry under everything that is there.
    pub(super) fn fill(&mut self, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(self.number, entry) else { return };
        let mut at = self.free(start);
        if at >= end {
            return;
        }
        self.entries.push((source, *entry));
        let owner = self.entries.len() as u32;
        while at < end {
            self.owner[at as usize] = owner;
            self.next[at as usize] = at + 1;
            self.left -= 1;
            at = self.free(at + 1);
        }
    }

    /// Lays entries of any order under everything that is there, the newest of them on top.
    pub(super) fn fill_all(&mut self, entries: &[(u32, Entry)]) {
        // Places are sorted, not entries: they are a quarter as long.
        let mut newest: Vec<_> = entries.iter().zip(0u32..).map(|((_, entry), at)| (entry.lsn, at)).collect();
        newest.sort_unstable_by_key(|(lsn, _)| std::cmp::Reverse(*lsn));
        for (_, at) in newest {
            let (source, entry) = &entries[at as usize];
            self.fill(*source, entry);
        }
    }

    /// The map.
    pub(super) fn finish(self) -> RegionMap {
        let mut at = 0;
        let mut spans = Vec::new();
        for run in self.owner.chunk_by(|a, b| a == b) {
            let end = at + run.len() as u32;
            if run[0] != 0 {
                let (source, entry) = self.entries[run[0] as usize - 1];
                spans.push((at, Span { end, source, entry }));
            }
            at = end;
        }
        RegionMap { spans: spans.into_iter().collect() }
    }
}

/// The sectors of an entry inside a region, counted from its start.
fn clip(region: u64, entry: &Entry) -> Option<(u32, u32)> {
    let base = region * SECTORS;
    let (start, end) = (entry.sector.max(base), entry.end().min(base + SECTORS));
    (start < end).then(|| ((start - base) as u32, (end - base) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(sector: u64, sectors: u64, lsn: u64) -> Entry {
        Entry { disk: 1, sector, lsn, sectors, crc: 0, chunk: 0, at: 0, what: What::Data }
    }

    fn flat(map: &RegionMap) -> Vec<u64> {
        let mut lsns = Vec::new();
        map.pieces(1, Extent::new(MAP, 64 * SECTOR), |run, span| {
            lsns.extend(std::iter::repeat_n(span.map_or(0, |span| span.entry.lsn), (run.length / SECTOR) as usize));
        });
        lsns
    }

    proptest! {
        /// Newest first from below and oldest first from above give the same, which is what an array gives.
        #[test]
        fn filling_and_covering_agree(writes in prop::collection::vec((0u64..70, 1u64..40), 1..40)) {
            let at = |(lsn, (sector, sectors)): (usize, &(u64, u64))| entry(SECTORS - 5 + sector, *sectors, lsn as u64 + 1);
            let entries: Vec<_> = writes.iter().enumerate().map(at).collect();
            let (mut under, mut over) = (RegionBuilder::new(1), RegionMap::default());
            // In two halves, the newer first, as from two runs.
            let (older, newer) = entries.split_at(entries.len() / 2);
            for half in [newer, older] {
                under.fill_all(&half.iter().map(|entry| (0, *entry)).collect::<Vec<_>>());
            }
            let under = under.finish();
            entries.iter().for_each(|entry| over.cover(1, 0, entry));
            let mut array = vec![0u64; 256];
            for entry in &entries {
                (entry.sector..entry.end()).filter_map(|s| s.checked_sub(SECTORS)).for_each(|s| array[s as usize] = entry.lsn);
            }
            prop_assert_eq!(flat(&under), &array[..64]);
            prop_assert_eq!(flat(&over), &array[..64]);
        }
    }
}
