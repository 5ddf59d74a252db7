//! What 64 MiB of a disk read as at one moment: runs that do not overlap, found newest first.

use super::index::{Entry, What};
use crate::types::{Extent, SECTOR};
use std::collections::BTreeMap;

/// Bytes of a disk that one map stands for.
pub(super) const REGION: u64 = 64 << 20;
/// Sectors of a region.
const SECTORS: u64 = REGION / SECTOR;
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

/// A region at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct RegionMap {
    spans: BTreeMap<u32, Span>,
    covered: u64,
}

impl RegionMap {
    /// Whether older entries have nothing left to say.
    pub(super) fn is_full(&self) -> bool {
        self.covered == SECTORS
    }

    /// What the map takes in memory, about, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        256 + self.spans.len() as u64 * SPAN_BYTES
    }

    /// Lays an entry under everything that is there: it fills gaps only.
    pub(super) fn fill(&mut self, region: u64, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(region, entry) else { return };
        let mut at = start;
        while at < end {
            if let Some((_, before)) = self.spans.range(..=at).next_back().filter(|(_, span)| span.end > at) {
                at = before.end;
                continue;
            }
            let next = self.spans.range(at..end).next().map_or(end, |(start, _)| *start);
            self.spans.insert(at, Span { end: next, source, entry: *entry });
            self.covered += u64::from(next - at);
            at = next;
        }
    }

    /// Lays an entry over everything that is there.
    pub(super) fn cover(&mut self, region: u64, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(region, entry) else { return };
        if let Some((_, before)) = self.spans.range_mut(..start).next_back().filter(|(_, span)| span.end > start) {
            let rest = *before;
            before.end = start;
            self.covered -= u64::from(rest.end - start);
            if rest.end > end {
                self.covered += u64::from(rest.end - end);
                self.spans.insert(end, rest);
            }
        }
        while let Some((&first, &under)) = self.spans.range(start..end).next() {
            self.spans.remove(&first);
            self.covered -= u64::from(under.end - first);
            if under.end > end {
                self.covered += u64::from(under.end - end);
                self.spans.insert(end, under);
            }
        }
        self.spans.insert(start, Span { end, source, entry: *entry });
        self.covered += u64::from(end - start);
    }

    /// Calls `each` for the runs inside `range` (bytes of the disk, inside the region) in order, gaps too.
    pub(super) fn pieces(&self, region: u64, range: Extent, mut each: impl FnMut(Extent, Option<&Span>)) {
        let base = region * REGION;
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
        map.pieces(1, Extent::new(REGION, 64 * SECTOR), |run, span| {
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
            let (mut under, mut over) = (RegionMap::default(), RegionMap::default());
            entries.iter().rev().for_each(|entry| under.fill(1, 0, entry));
            entries.iter().for_each(|entry| over.cover(1, 0, entry));
            let mut array = vec![0u64; 256];
            for entry in &entries {
                (entry.sector..entry.end()).filter_map(|s| s.checked_sub(SECTORS)).for_each(|s| array[s as usize] = entry.lsn);
            }
            prop_assert_eq!(flat(&under), &array[..64]);
            prop_assert_eq!(flat(&over), &array[..64]);
            prop_assert_eq!(under.covered, over.covered);
        }
    }
}
