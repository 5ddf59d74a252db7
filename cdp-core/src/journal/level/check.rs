//! Verifying runs: every byte, and that they say what the footers of their segments say.

use super::codec::{Top, check_trailer};
use super::cursor::{Input, Merged};
use super::read::{broken, field};
use super::{BLOCKS_AT, RunInfo, block_at, regions_of};
use crate::journal::index::Entry;
use crate::journal::layout::FIXED_BYTES;
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::Snapshot;
use crate::types::DiskId;
use std::sync::Arc;

/// Bytes of nobody's behind a file's end that are looked at.
const REST_MAX: u64 = 1 << 20;

impl Reader {
    /// Reads all of a run and compares it with its segments; gives the bytes that were read. A segment whose footer cannot be
    /// read is not compared: that is a finding of its own.
    pub(in crate::journal) fn verify_run(&self, snapshot: &Snapshot, run: &Arc<RunInfo>) -> Result<u64, ReadError> {
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
        self.verify_entries(run)?;
        self.compare(snapshot, run)?;
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

    /// That fences and tops say what is in their blocks, that nothing lies between them, and that everything is in order.
    fn verify_entries(&self, run: &RunInfo) -> Result<(), ReadError> {
        let tables = self.run_tables(run)?;
        let (mut next, mut entries, mut last) = (run.totals.blocks[0], 0, None);
        for top in &tables.tops {
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
        Ok(())
    }

    fn verify_entry(&self, run: &RunInfo, top: &Top, entry: &Entry, block: u32) -> Result<(), ReadError> {
        let (first, last) = regions_of(entry);
        let touches = |disk| [first, last].into_iter().all(|region| run.touches(disk, region.into()));
        if entry.disk != top.disk || !DiskId::new(entry.disk).is_some_and(touches) {
            return Err(field(run, block_at(block), "disk", entry.disk.into()));
        }
        Ok(())
    }

    /// That the run has exactly the entries of the segments that are left of it.
    fn compare(&self, snapshot: &Snapshot, run: &Arc<RunInfo>) -> Result<(), ReadError> {
        let tables = self.run_tables(run)?;
        let segments = snapshot.segments();
        let (mut left, mut inputs) = (vec![false; tables.segments.len()], Vec::new());
        for (row, is_left) in tables.segments.iter().zip(&mut left) {
            let Ok(at) = segments.binary_search_by_key(&row.number, |segment| segment.number) else { continue };
            if segments[at].id != row.id {
                return Err(field(run, block_at(0), "segment", row.number));
            }
            *is_left = true;
            inputs.push((Input::Segment(Arc::clone(&segments[at])), row.first_chunk));
        }
        let mut footers = Merged::new(inputs);
        let mut run_entries = Merged::new([(Input::Run(Arc::clone(run)), 0)]);
        for wide in [false, true] {
            run_entries.start(self, wide)?;
            if footers.start(self, wide).is_err() {
                return Ok(());
            }
            loop {
                let found = loop {
                    let next = run_entries.next(self)?.map(|(entry, _)| entry);
                    let Some(entry) = next else { break None };
                    let Some((at, _)) = tables.segment_of(&entry) else {
                        return Err(field(run, block_at(0), "chunk", entry.chunk.into()));
                    };
                    if left[at] {
                        break Some(entry);
                    }
                };
                let Ok(expected) = footers.next(self) else { return Ok(()) };
                match (found, expected) {
                    (None, None) => break,
                    (Some(found), Some((expected, _))) if found == expected => {}
                    (found, expected) => {
                        let lsn = found.map_or(0, |entry| entry.lsn).max(expected.map_or(0, |(entry, _)| entry.lsn));
                        return Err(field(run, block_at(0), "entry at LSN", lsn));
                    }
                }
            }
        }
        Ok(())
    }
}

fn zeros(run: &RunInfo, bytes: &[u8], offset: u64) -> Result<(), ReadError> {
    match bytes.iter().position(|byte| *byte != 0) {
        Some(at) => Err(field(run, offset + at as u64, "zeros", bytes[at].into())),
        None => Ok(()),
    }
}
