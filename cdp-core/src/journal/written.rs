//! When what lies below, or an older record, is not seen any more because later records were written over it.

use super::index::Entry;
use super::level::RunInfo;
use super::reader::{ReadError, Reader};
use super::region::MAP;
use super::snapshot::{SegmentView, Snapshot};
use crate::types::{DiskId, Extent, Lsn, SECTOR, Timeline};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many pieces of a disk are looked at though something of one of them is left: of what reaches over the end of a piece, each
/// side is judged by what was written there.
const PIECES: usize = 4;

/// Of each sector of a piece of a disk the first record that was written over it. Memory: eight bytes for each sector of [`MAP`].
struct FirstOver {
    /// Where the piece begins, in sectors.
    at: u64,
    first: Vec<u64>,
    range: (Lsn, Lsn),
}

impl FirstOver {
    fn new(piece: Extent, range: (Lsn, Lsn)) -> Self {
        let (at, end) = sectors(piece);
        Self { at, first: vec![u64::MAX; (end - at) as usize], range }
    }

    /// A record, in any order.
    fn add(&mut self, entry: &Entry) {
        let (after, upto) = self.range;
        if entry.lsn <= after.0 || entry.lsn > upto.0 {
            return;
        }
        let place = |sector: u64| (sector.max(self.at) - self.at).min(self.first.len() as u64) as usize;
        let (from, to) = (place(entry.sector), place(entry.end()));
        self.first[from..to].iter_mut().for_each(|first| *first = entry.lsn.min(*first));
    }

    fn of(&self, extent: &Extent) -> &[u64] {
        let (from, to) = sectors(*extent);
        &self.first[(from - self.at) as usize..(to - self.at) as usize]
    }

    /// With which record the last sector of the extents was written over, if all were.
    fn all(&self, extents: &[Extent]) -> Option<Lsn> {
        let last = extents.iter().flat_map(|extent| self.of(extent)).max().copied().unwrap_or(0);
        (last < u64::MAX).then_some(Lsn(last))
    }

    /// What nothing was written over.
    fn left(&self, extents: &[Extent], left: &mut Vec<Extent>) {
        for extent in extents {
            let mut at = extent.offset;
            for same in self.of(extent).chunk_by(|a, b| (*a == u64::MAX) == (*b == u64::MAX)) {
                let end = ((at / SECTOR + same.len() as u64) * SECTOR).min(extent.end());
                if same[0] == u64::MAX {
                    left.push(Extent::new(at, end - at));
                }
                at = end;
            }
        }
    }
}

/// The first sector of an extent, and the one behind its last.
fn sectors(extent: Extent) -> (u64, u64) {
    (extent.offset / SECTOR, extent.end().div_ceil(SECTOR))
}

/// What has entries of a part of a timeline.
enum Source<'a> {
    Run(&'a RunInfo),
    Segment(&'a SegmentView),
}

impl Source<'_> {
    fn first_lsn(&self) -> Lsn {
        match self {
            Self::Run(run) => run.first_lsn,
            Self::Segment(segment) => segment.first_lsn,
        }
    }
}

impl Reader {
    /// The record of a timeline, above `after` and up to `upto`, with which all of `rest` was written over, whether by data, zeros or
    /// discards; without one, `rest` is what they left. `rest` is in ascending order, and nothing in it twice.
    ///
    /// However much was written there, it takes memory for the sectors of 8 MiB of the disk and for the entries of one segment, or of
    /// one block of a run's fences: what is left is marked off in a table, and not gathered. It ends with the first record behind
    /// which nothing is left. Where something of such a piece is left, what lies behind the next few is not looked at, and counts as
    /// left.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn written_over(
        &self,
        snapshot: &Snapshot,
        (timeline, disk): (Timeline, DiskId),
        rest: &mut Vec<Extent>,
        (after, upto): (Lsn, Lsn),
    ) -> Result<Option<Lsn>, ReadError> {
        let mut last = after;
        let mut left = Vec::new();
        let mut todo: VecDeque<Extent> = std::mem::take(rest).into();
        let mut looked = 0;
        while let Some(first) = todo.front().filter(|_| left.is_empty() || looked < PIECES) {
            let end = (first.offset / MAP + 1) * MAP;
            let mut inside = Vec::new();
            while let Some(extent) = todo.pop_front() {
                if extent.offset >= end {
                    todo.push_front(extent);
                    break;
                }
                let to = extent.end().min(end);
                inside.push(Extent::new(extent.offset, to - extent.offset));
                if extent.end() > end {
                    todo.push_front(Extent::new(end, extent.end() - end));
                    break;
                }
            }
            inside.retain(|extent| !extent.is_empty());
            let over = self.first_over(snapshot, (timeline, disk), &inside, (after, upto))?;
            match over.all(&inside) {
                Some(lsn) => last = last.max(lsn),
                None => over.left(&inside, &mut left),
            }
            looked += 1;
        }
        left.extend(todo);
        left.retain(|extent| !extent.is_empty());
        *rest = left;
        Ok(rest.is_empty().then_some(last))
    }

    /// What of a timeline was written over extents that share a region; looks no further than to where all of them are.
    fn first_over(
        &self,
        snapshot: &Snapshot,
        (timeline, disk): (Timeline, DiskId),
        extents: &[Extent],
        (after, upto): (Lsn, Lsn),
    ) -> Result<FirstOver, ReadError> {
        let [first, ..] = extents else { return Ok(FirstOver::new(Extent::new(0, 0), (after, upto))) };
        let end = extents.last().unwrap_or(first).end();
        let range = Extent::new(first.offset, end - first.offset);
        let mut over = FirstOver::new(range, (after, upto));
        let concerns = |first: Lsn, last: Lsn| first <= upto && last > after;
        let runs = snapshot.runs().iter().filter(|run| run.timeline == timeline);
        let runs: Vec<&Arc<RunInfo>> = runs.filter(|run| concerns(run.first_lsn, run.last_lsn)).collect();
        let of_timeline = snapshot.of(timeline).filter(|segment| concerns(segment.first_lsn, segment.last_lsn));
        // A run stands before its own segments: they are only read where it cannot be.
        let mut sources: Vec<Source> = runs.iter().map(|run| Source::Run(run)).collect();
        sources.extend(of_timeline.map(|segment| Source::Segment(segment)));
        sources.sort_by_key(Source::first_lsn);
        let mut read: Vec<&RunInfo> = Vec::new();
        for source in sources {
            // What comes now is later than all that was found.
            if over.all(extents).is_some_and(|last| last < source.first_lsn()) {
                break;
            }
            match source {
                Source::Run(run) => {
                    if self.add_run(snapshot, run, (disk, range), &mut over).is_ok() {
                        read.push(run);
                    }
                }
                Source::Segment(segment) if read.iter().any(|run| run.covers(segment.number)) => {}
                Source::Segment(segment) => {
                    let entries = self.overlapping(segment, disk, range);
                    let entries = entries.or_else(|_| self.rebuilt_overlapping(segment, disk, range))?;
                    entries.iter().for_each(|entry| over.add(entry));
                }
            }
        }
        Ok(over)
    }

    fn add_run(
        &self,
        snapshot: &Snapshot,
        run: &RunInfo,
        (disk, range): (DiskId, Extent),
        over: &mut FirstOver,
    ) -> Result<(), ReadError> {
        let tables = self.run_tables(run)?;
        let is_there =
            |number: u64| snapshot.segments().binary_search_by_key(&number, |segment| segment.number).is_ok();
        // What was dropped is below the base, and over nothing any more.
        let there: Vec<bool> = tables.segments.iter().map(|row| is_there(row.number)).collect();
        self.run_overlapping(run, disk, range, |entry| {
            if tables.segment_of(entry).is_some_and(|(row, _)| there[row]) {
                over.add(entry);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::index::What;

    fn entry(lsn: u64, sector: u64, sectors: u64) -> Entry {
        Entry { disk: 1, sector, sectors, crc: 0, chunk: 0, at: 0, lsn, what: What::Data }
    }

    #[test]
    fn what_was_written_over_first_is_found_in_any_order_and_what_is_left_beside() {
        let piece = Extent::new(10 * SECTOR, 10 * SECTOR);
        let (one, two) = (Extent::new(10 * SECTOR, 4 * SECTOR), Extent::new(16 * SECTOR, 4 * SECTOR));
        let over = |entries: &[Entry]| {
            let mut over = FirstOver::new(piece, (Lsn(3), Lsn(20)));
            entries.iter().for_each(|entry| over.add(entry));
            let mut left = Vec::new();
            over.left(&[one, two], &mut left);
            let left = left.iter().map(|left| (left.offset / SECTOR, left.end() / SECTOR)).collect::<Vec<_>>();
            (over.all(&[one, two]), left)
        };
        let none = || vec![(10, 14), (16, 20)];
        assert_eq!(over(&[]), (None, none()));
        // Beside it, and before or behind the moments.
        assert_eq!(over(&[entry(5, 0, 10), entry(5, 20, 9), entry(3, 0, 30), entry(21, 0, 30)]), (None, none()));
        assert_eq!(over(&[entry(5, 14, 2)]), (None, none()));
        assert_eq!(over(&[entry(9, 0, 12), entry(4, 17, 2)]), (None, vec![(12, 14), (16, 17), (19, 20)]));
        assert_eq!(over(&[entry(9, 0, 30)]), (Some(Lsn(9)), vec![]));
        assert_eq!(
            over(&[entry(15, 18, 9), entry(7, 0, 17), entry(8, 17, 1), entry(20, 0, 30)]),
            (Some(Lsn(15)), vec![])
        );
        assert_eq!(over(&[entry(20, 0, 30), entry(12, 18, 2), entry(7, 0, 18)]), (Some(Lsn(12)), vec![]));
    }
}
