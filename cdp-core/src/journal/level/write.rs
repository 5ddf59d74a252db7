//! A run's bytes as its entries come, in one pass: index blocks, behind each group of them their fences, the tops last.

use super::codec::{SEGMENT_ROW_BYTES, SegmentRow, TOP_BYTES, Top, encode_header, encode_trailer};
use super::{BLOCKS_AT, RANGES_MAX, RegionRange, RunInfo, RunTotals, regions_of};
use crate::journal::bytes::Put;
use crate::journal::footer::{FENCE_BYTES, Fence, per_block};
use crate::journal::index::{ENTRY_BYTES, Entry};
use crate::journal::layout::{BlockKind, FIXED_BYTES, encode_block};
use crate::types::{ReplicaId, SECTOR};
use bytes::Bytes;

/// Places of the kinds in [`RunTotals::blocks`].
const SEGMENTS: usize = 0;
const NARROW: usize = 1;
const WIDE: usize = 2;
const FENCES: usize = 3;
const TOPS: usize = 4;

/// Makes a run's file from front to back. In memory: one index block, the fences of one group, what was not taken yet, and
/// a top (32 bytes) for each group, which is one for 34,000 entries.
#[derive(Debug)]
pub(super) struct RunBytes {
    info: RunInfo,
    out: Vec<Bytes>,
    /// Bytes of those.
    held: u64,
    number: u32,
    entries: Vec<Entry>,
    fences: Vec<Fence>,
    tops: Vec<Top>,
    narrow: Ranges,
    wide: Ranges,
}

impl RunBytes {
    /// Begins with header and table of segments.
    pub(super) fn begin(replica: ReplicaId, info: RunInfo, segments: &[SegmentRow]) -> Self {
        let header = encode_header(replica, &info);
        let out = vec![header.into(), Bytes::from(vec![0; BLOCKS_AT as usize - FIXED_BYTES])];
        let (entries, fences, tops) = (Vec::new(), Vec::new(), Vec::new());
        let (narrow, wide) = (Ranges::default(), Ranges::default());
        let held = BLOCKS_AT;
        let mut info = info;
        info.totals.events_bytes = segments.iter().map(|row| u64::from(row.events_bytes)).sum();
        let mut run = Self { info, out, held, number: 0, entries, fences, tops, narrow, wide };
        run.table((BlockKind::Segments, SEGMENTS), segments, SEGMENT_ROW_BYTES, SegmentRow::put);
        run
    }

    /// The next entry: narrow ones first, then wide ones, each sorted.
    pub(super) fn add(&mut self, entry: Entry) {
        let next = |other: &Entry| (other.disk, other.is_wide()) != (entry.disk, entry.is_wide());
        let turns = self.entries.last().is_some_and(next);
        if turns || self.entries.len() == per_block(ENTRY_BYTES) {
            self.end_block();
        }
        if turns {
            self.end_group();
        }
        if entry.is_wide() { &mut self.wide } else { &mut self.narrow }.add(&entry);
        self.entries.push(entry);
    }

    fn end_block(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        let Some(first) = entries.first() else { return };
        let mut put = Put::default();
        entries.iter().for_each(|entry| entry.put(&mut put, self.info.first_lsn.0));
        let end = entries.iter().map(Entry::end).max().unwrap_or(0);
        let (disk, wide) = (first.disk, first.is_wide());
        self.fences.push(Fence { disk, wide, first: first.sector, end });
        let kind = if wide { (BlockKind::Wide, WIDE) } else { (BlockKind::Narrow, NARROW) };
        self.block(kind, disk, &put.0, entries.len());
        self.info.totals.entries += entries.len() as u64;
        if self.fences.len() == per_block(FENCE_BYTES) {
            self.end_group();
        }
    }

    fn end_group(&mut self) {
        let fences = std::mem::take(&mut self.fences);
        let Some(first) = fences.first() else { return };
        let mut put = Put::default();
        fences.iter().for_each(|fence| fence.put(&mut put));
        let end = fences.iter().map(|fence| fence.end).max().unwrap_or(0);
        let (disk, wide, count) = (first.disk, first.wide, fences.len() as u16);
        self.tops.push(Top { disk, wide, count, fences: self.number, first: first.first, end });
        self.block((BlockKind::Fences, FENCES), disk, &put.0, fences.len());
    }

    fn table<T>(&mut self, kind: (BlockKind, usize), rows: &[T], row_bytes: usize, put_row: impl Fn(&T, &mut Put)) {
        for rows in rows.chunks(per_block(row_bytes)) {
            let mut put = Put::default();
            rows.iter().for_each(|row| put_row(row, &mut put));
            let block = self.block(kind, 0, &put.0, rows.len());
            self.info.totals.table_crc = crc32c::crc32c_append(self.info.totals.table_crc, &block);
        }
    }

    fn block(&mut self, (kind, place): (BlockKind, usize), disk: u16, body: &[u8], count: usize) -> Bytes {
        let block = Bytes::from(encode_block(self.info.id, self.number, kind, disk, body, count as u16));
        self.out.push(block.clone());
        self.held += block.len() as u64;
        self.number += 1;
        self.info.totals.blocks[place] += 1;
        block
    }

    /// Bytes that can be written now.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// What can be written now.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.held = 0;
        std::mem::take(&mut self.out)
    }

    /// The last bytes before the events, and what the manifest keeps.
    pub(super) fn finish(mut self) -> (Vec<Bytes>, RunInfo) {
        self.end_block();
        self.end_group();
        let tops = std::mem::take(&mut self.tops);
        self.table((BlockKind::Tops, TOPS), &tops, TOP_BYTES, Top::put);
        self.info.totals.file_bytes = RunTotals::bytes_of(&self.info.totals.blocks, self.info.totals.events_bytes);
        let ranges = [self.narrow, self.wide].into_iter().flat_map(|ranges| ranges.0);
        self.info.regions = joined(ranges.collect(), RANGES_MAX);
        (self.out, self.info)
    }
}

/// What stands behind the events.
pub(super) fn tail(info: &RunInfo) -> Vec<Bytes> {
    let events = info.totals.events_bytes;
    let mut tail = vec![0; (events.next_multiple_of(SECTOR) - events) as usize];
    tail.extend_from_slice(&encode_trailer(info.id, &info.totals));
    vec![tail.into()]
}

/// Ranges of regions, gathered from sorted entries; never more than twice the bound for each disk.
#[derive(Debug, Default)]
struct Ranges(Vec<RegionRange>);

impl Ranges {
    fn add(&mut self, entry: &Entry) {
        let (first, last) = regions_of(entry);
        match self.0.last_mut() {
            Some(range) if range.disk == entry.disk && first <= range.last.saturating_add(1) => {
                range.last = range.last.max(last);
            }
            _ => self.0.push(RegionRange { disk: entry.disk, first, last }),
        }
        if self.0.len() >= RANGES_MAX * 4 {
            self.0 = joined(std::mem::take(&mut self.0), RANGES_MAX * 2);
        }
    }
}

/// The ranges sorted, those that touch as one, and those nearest to each other too until there are at most `most`, or one for
/// each disk.
pub(super) fn joined(mut ranges: Vec<RegionRange>, most: usize) -> Vec<RegionRange> {
    ranges.sort_unstable();
    let mut out: Vec<RegionRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.disk == range.disk && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => out.push(range),
        }
    }
    let gap = |pair: &[RegionRange]| (pair[0].disk == pair[1].disk).then(|| pair[1].first - pair[0].last);
    let mut gaps: Vec<u32> = out.windows(2).filter_map(gap).collect();
    let over = out.len().saturating_sub(most).min(gaps.len());
    if over == 0 {
        return out;
    }
    gaps.sort_unstable();
    // Gaps up to this one go, but of those that are as wide as it only as many as have to.
    let widest = gaps[over - 1];
    let mut as_wide = over - gaps.partition_point(|gap| *gap < widest);
    let mut fewer: Vec<RegionRange> = Vec::with_capacity(most);
    for range in out {
        match fewer.last_mut() {
            Some(last) if last.disk == range.disk && range.first - last.last <= widest => {
                if range.first - last.last < widest || as_wide > 0 {
                    as_wide -= usize::from(range.first - last.last == widest);
                    last.last = range.last;
                } else {
                    fewer.push(range);
                }
            }
            _ => fewer.push(range),
        }
    }
    fewer
}
