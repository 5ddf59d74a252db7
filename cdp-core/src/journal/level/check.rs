//! Verifying runs: every byte, and that they say what the frames of their segments say.

use super::codec::{Top, check_trailer};
use super::read::{Tables, broken, field};
use super::{BLOCKS_AT, RunInfo, RunTotals, block_at, regions_of};
use crate::journal::index::{Entry, EntrySum};
use crate::journal::layout::FIXED_BYTES;
use crate::journal::reader::{ReadError, Reader};
use crate::journal::verify::Seen;
use crate::types::{DiskId, Lsn};
use std::collections::BTreeMap;

/// Bytes of nobody's behind a file's end that are looked at.
const REST_MAX: u64 = 1 << 20;

impl Reader {
    /// Reads all of a run and compares it with what was seen of its segments; gives the bytes that were read. A segment that could
    /// not be read whole is not compared: that is a finding of its own.
    pub(in crate::journal) fn verify_run(&self, run: &RunInfo, seen: &BTreeMap<u64, Seen>) -> Result<u64, ReadError> {
        let file = self.run_file(run)?;
        let mut front = vec![0; BLOCKS_AT as usize];
        file.read_exact_at(0, &mut front)?;
        super::codec::check_header(&front, run).map_err(broken(run, 0))?;
        zeros(run, &front[FIXED_BYTES..], FIXED_BYTES as u64)?;
        let mut trailer = [0; FIXED_BYTES];
        file.read_exact_at(run.trailer_at(), &mut trailer)?;
        check_trailer(&trailer, run).map_err(broken(run, run.trailer_at()))?;
        let end = run.totals.file_bytes;
        let mut rest = vec![0; file.len()?.saturating_sub(end).min(REST_MAX) as usize];
        file.read_exact_at(end, &mut rest)?;
        zeros(run, &rest, end)?;
        self.verify_table(run)?;
        let sums = self.verify_entries(run)?;
        self.verify_events(run, seen)?;
        compare(run, self.run_tables(run)?.as_ref(), &sums, seen)?;
        Ok(end)
    }

    /// That the tables are those whose checksum the manifest has.
    fn verify_table(&self, run: &RunInfo) -> Result<(), ReadError> {
        let file = self.run_file(run)?;
        let [segments, .., tops] = run.totals.blocks;
        let mut crc = 0;
        let mut block = vec![0; crate::journal::layout::BLOCK_BYTES];
        for number in (0..segments).chain(run.tops_at()..run.tops_at() + tops) {
            file.read_exact_at(block_at(number), &mut block)?;
            crc = crc32c::crc32c_append(crc, &block);
        }
        if crc == run.totals.table_crc { Ok(()) } else { Err(field(run, block_at(0), "table_crc", crc.into())) }
    }

    /// That fences and tops say what is in their blocks, that nothing lies between them, and that everything is in order; gives
    /// what there is of each segment.
    fn verify_entries(&self, run: &RunInfo) -> Result<Vec<EntrySum>, ReadError> {
        let tables = self.run_tables(run)?;
        let mut sums = vec![EntrySum::default(); tables.segments.len()];
        let (mut next, mut entries, mut last) = (run.totals.blocks[0], 0, None);
        for top in self.run_tops(run)?.iter() {
            if top.fences - u32::from(top.count) != next {
                return Err(field(run, block_at(top.fences), "fences", top.fences.into()));
            }
            let (mut first, mut end) = (None, 0);
            for fence in self.run_fences(run, top)? {
                let found = self.run_entries(run, (next, 1), top.wide)?;
                let (sector, ends) = (found.first().map(|entry| entry.sector), found.iter().map(Entry::end).max());
                if sector != Some(fence.first) || ends != Some(fence.end) {
                    return Err(field(run, block_at(next), "fence", fence.first));
                }
                for entry in &found {
                    self.verify_entry(run, top, entry, next)?;
                    let of = tables.segment_of(entry);
                    let (at, chunk) = of.ok_or_else(|| field(run, block_at(next), "chunk", entry.chunk.into()))?;
                    sums[at].add(&Entry { chunk, ..*entry });
                    let key = (top.wide, entry.key());
                    if last.replace(key).is_some_and(|last| last > key) {
                        return Err(field(run, block_at(next), "order", entry.lsn));
                    }
                }
                (first, end) = (first.or(sector), end.max(fence.end));
                entries += found.len() as u64;
                next += 1;
            }
            if first != Some(top.first) || end != top.end {
                return Err(field(run, block_at(top.fences), "top", top.first));
            }
            next += 1;
        }
        if next != run.tops_at() || entries != run.totals.entries {
            return Err(field(run, block_at(next), "entries", entries));
        }
        Ok(sums)
    }

    fn verify_entry(&self, run: &RunInfo, top: &Top, entry: &Entry, block: u32) -> Result<(), ReadError> {
        let (first, last) = regions_of(entry);
        let touches = |disk| [first, last].into_iter().all(|region| run.touches(disk, region.into()));
        if entry.disk != top.disk || !DiskId::new(entry.disk).is_some_and(touches) {
            return Err(field(run, block_at(block), "disk", entry.disk.into()));
        }
        Ok(())
    }

    /// Every byte of the events, and that they are those of the segments' footers.
    fn verify_events(&self, run: &RunInfo, seen: &BTreeMap<u64, Seen>) -> Result<(), ReadError> {
        let tables = self.run_tables(run)?;
        let mut at = 0;
        for row in &tables.segments {
            self.run_event_bytes(run, row, at)?;
            let events = seen.get(&row.number).map(|seen| (seen.events_bytes, seen.events_crc));
            if events.is_some_and(|events| events != (row.events_bytes, row.events_crc)) {
                return Err(field(run, block_at(0), "events of segment", row.number));
            }
            at += u64::from(row.events_bytes);
        }
        let end = RunTotals::events_at(&run.totals.blocks) + at;
        let mut padding = vec![0; (run.trailer_at() - end) as usize];
        self.run_file(run)?.read_exact_at(end, &mut padding)?;
        zeros(run, &padding, end)
    }
}

/// That the run has exactly the entries of the segments that were seen.
fn compare(run: &RunInfo, tables: &Tables, sums: &[EntrySum], seen: &BTreeMap<u64, Seen>) -> Result<(), ReadError> {
    let rows = &tables.segments;
    let begins = |lsn: Lsn| rows.partition_point(|row| row.last_lsn < lsn);
    let mut expected: Vec<_> = rows.iter().map(|_| Some(EntrySum::default())).collect();
    for (at, row) in rows.iter().enumerate() {
        match seen.get(&row.number) {
            Some(seen) if seen.id != row.id => return Err(field(run, block_at(0), "segment", row.number)),
            Some(seen) => {
                let (lsn, continued) = &seen.continued;
                expected[at].iter_mut().for_each(|sum| sum.add_all(&seen.entries));
                // They count for the segment in which their record began, or the first one here that has a part of it.
                expected[begins(*lsn).min(at)].iter_mut().for_each(|sum| sum.add_all(continued));
            }
            None => {
                expected[at] = None;
                let before = at.checked_sub(1).map_or(at, |before| begins(rows[before].last_lsn));
                expected[before] = None;
            }
        }
    }
    for ((row, sum), expected) in rows.iter().zip(sums).zip(&expected) {
        if expected.is_some_and(|expected| expected != *sum) {
            return Err(field(run, block_at(0), "entries of segment", row.number));
        }
    }
    Ok(())
}

fn zeros(run: &RunInfo, bytes: &[u8], offset: u64) -> Result<(), ReadError> {
    match bytes.iter().position(|byte| *byte != 0) {
        Some(at) => Err(field(run, offset + at as u64, "zeros", bytes[at].into())),
        None => Ok(()),
    }
}
