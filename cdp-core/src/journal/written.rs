//! When what lies below, or an older record, is not seen any more because later records were written over it.

use super::index::Entry;
use super::level::RunInfo;
use super::reader::{ReadError, Reader};
use super::region::MAP;
use super::snapshot::{SegmentView, Snapshot};
use crate::types::{DiskId, Extent, Lsn, SECTOR, Timeline};
use std::sync::Arc;

impl Reader {
    /// The record of a timeline, above `after` and up to `upto`, with which all of `rest` was written over, whether by data, zeros or
    /// discards; without one, `rest` is what they left. Takes memory for the entries that 8 MiB of the disk have: where something of
    /// such a piece is left, what lies behind it is not looked at, and counts as left.
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
        for extent in std::mem::take(rest) {
            let mut at = extent.offset;
            while at < extent.end() {
                let end = ((at / MAP + 1) * MAP).min(extent.end());
                let mut piece = vec![Extent::new(at, end - at)];
                let mut records = self.records_over(snapshot, (timeline, disk), piece[0], (after, upto))?;
                records.sort_unstable_by_key(|(lsn, extent)| (*lsn, extent.offset));
                for (lsn, over) in records {
                    piece = piece.iter().flat_map(|extent| without(*extent, over)).collect();
                    if piece.is_empty() {
                        last = last.max(Lsn(lsn));
                        break;
                    }
                }
                at = end;
                left.extend(piece);
                if !left.is_empty() {
                    left.push(Extent::new(at, extent.end() - at));
                    break;
                }
            }
        }
        left.retain(|extent| !extent.is_empty());
        *rest = left;
        Ok(rest.is_empty().then_some(last))
    }

    /// LSN and extent of each record of a timeline that shares a byte with `range`.
    fn records_over(
        &self,
        snapshot: &Snapshot,
        (timeline, disk): (Timeline, DiskId),
        range: Extent,
        (after, upto): (Lsn, Lsn),
    ) -> Result<Vec<(u64, Extent)>, ReadError> {
        let mut found = Vec::new();
        let mut add = |entry: &Entry| {
            if entry.lsn > after.0 && entry.lsn <= upto.0 {
                found.push((entry.lsn, Extent::new(entry.sector * SECTOR, entry.sectors * SECTOR)));
            }
        };
        let concerns = |first: Lsn, last: Lsn| first <= upto && last > after;
        let of_timeline = snapshot.of(timeline).filter(|segment| concerns(segment.first_lsn, segment.last_lsn));
        let mut segments: Vec<&Arc<SegmentView>> = of_timeline.collect();
        let runs = snapshot.runs().iter().filter(|run| run.timeline == timeline);
        for run in runs.filter(|run| concerns(run.first_lsn, run.last_lsn)) {
            if let Ok(entries) = self.records_of_run(snapshot, run, disk, range) {
                entries.iter().for_each(&mut add);
                segments.retain(|segment| !run.covers(segment.number));
            }
        }
        for segment in segments {
            let entries = self.overlapping(segment, disk, range);
            let entries = entries.or_else(|_| self.rebuilt_overlapping(segment, disk, range))?;
            entries.iter().for_each(&mut add);
        }
        Ok(found)
    }

    fn records_of_run(
        &self,
        snapshot: &Snapshot,
        run: &RunInfo,
        disk: DiskId,
        range: Extent,
    ) -> Result<Vec<Entry>, ReadError> {
        let tables = self.run_tables(run)?;
        let is_there =
            |number: u64| snapshot.segments().binary_search_by_key(&number, |segment| segment.number).is_ok();
        // What was dropped is below the base, and over nothing any more.
        let there: Vec<bool> = tables.segments.iter().map(|row| is_there(row.number)).collect();
        let mut found = Vec::new();
        self.run_overlapping(run, disk, range, |entry| {
            if tables.segment_of(entry).is_some_and(|(row, _)| there[row]) {
                found.push(*entry);
            }
        })?;
        Ok(found)
    }
}

/// What of an extent lies beside another one: before it, behind it.
fn without(extent: Extent, over: Extent) -> impl Iterator<Item = Extent> {
    let before = Extent::new(extent.offset, over.offset.clamp(extent.offset, extent.end()) - extent.offset);
    let from = over.end().clamp(extent.offset, extent.end());
    let behind = Extent::new(from, extent.end() - from);
    [before, behind].into_iter().filter(|extent| !extent.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_another_extent_is_left() {
        let left = |over: (u64, u64)| {
            let left = without(Extent::new(10, 10), Extent::new(over.0, over.1));
            left.map(|extent| (extent.offset, extent.end())).collect::<Vec<_>>()
        };
        assert_eq!(left((0, 10)), [(10, 20)]);
        assert_eq!(left((0, 12)), [(12, 20)]);
        assert_eq!(left((12, 3)), [(10, 12), (15, 20)]);
        assert_eq!(left((15, 50)), [(10, 15)]);
        assert_eq!(left((20, 5)), [(10, 20)]);
        assert_eq!(left((5, 50)), []);
    }
}
