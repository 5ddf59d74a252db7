//! Reading runs: tables, fences and index blocks, each verified where it is read.

use super::codec::{SEGMENT_ROW_BYTES, SegmentRow, TOP_BYTES, Top, check_header};
use super::{RunInfo, block_at, run_name};
use crate::journal::bytes::{FormatError, Take};
use crate::journal::footer::{self, FENCE_BYTES, Fence};
use crate::journal::index::{ENTRY_BYTES, Entry};
use crate::journal::layout::{BLOCK_BYTES, BlockKind, FIXED_BYTES};
use crate::journal::reader::{ReadError, Reader};
use crate::media::{self, File};
use crate::types::{DiskId, Extent, SECTOR};
use std::sync::{Arc, PoisonError, Weak};

/// The segments of a run: what is read of it before anything else.
#[derive(Debug)]
pub(in crate::journal) struct Tables {
    pub(in crate::journal) segments: Vec<SegmentRow>,
}

pub(super) fn broken(run: &RunInfo, offset: u64) -> impl Fn(FormatError) -> ReadError {
    let run = run.number;
    move |source| ReadError::Index { run, offset, source }
}

pub(super) fn field(run: &RunInfo, offset: u64, field: &'static str, value: u64) -> ReadError {
    broken(run, offset)(FormatError::Field { what: "index run", field, value })
}

impl Reader {
    /// Opens a run's file and checks that it is the one meant. It is open as long as somebody holds what this gives: a run
    /// that was replaced is removed, and takes no room once the last view that began with it is gone.
    pub(in crate::journal) fn run_file(&self, run: &RunInfo) -> Result<Arc<dyn File>, ReadError> {
        // Every step under this lock leaves the table whole.
        let files = || self.run_files.lock().unwrap_or_else(PoisonError::into_inner);
        let open = files().get(&run.id).and_then(Weak::upgrade);
        if let Some(file) = open {
            return Ok(file);
        }
        let file = self.storage.open(&media::join(&self.directory, &run_name(run.number)), false)?;
        let mut bytes = [0; FIXED_BYTES];
        file.read_exact_at(0, &mut bytes)?;
        check_header(&bytes, run).map_err(broken(run, 0))?;
        // Before the manifest's counts say how much is read of it.
        let (expected, found) = (run.totals.file_bytes, file.len()?);
        if found < expected {
            return Err(broken(run, found)(FormatError::Short { what: "index run", expected, found }));
        }
        let mut files = files();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(run.id, Arc::downgrade(&file));
        Ok(file)
    }

    /// The run that holds a segment's index now, by the manifest that stands on the media.
    pub(in crate::journal) fn run_of_now(&self, segment: u64) -> Option<Arc<RunInfo>> {
        let manifest = crate::journal::read_manifest(self.storage.as_ref()).ok()?;
        manifest.run_of(segment).cloned()
    }

    /// Reads `count` neighbouring blocks and gives what `decode` makes of each.
    pub(super) fn run_blocks<T>(
        &self,
        run: &RunInfo,
        (first, count): (u32, u32),
        decode: impl Fn(&[u8], u32) -> Result<Vec<T>, FormatError>,
    ) -> Result<Vec<T>, ReadError> {
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        self.run_file(run)?.read_exact_at(block_at(first), &mut bytes)?;
        let mut all = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        for (number, bytes) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            all.extend(decode(bytes, number).map_err(broken(run, block_at(number)))?);
        }
        Ok(all)
    }

    fn run_rows<T>(
        &self,
        run: &RunInfo,
        kind: BlockKind,
        blocks: (u32, u32),
        row_bytes: usize,
        take_row: impl Fn(&mut Take<'_>) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, ReadError> {
        self.run_blocks(run, blocks, |bytes, number| {
            footer::decode_rows(bytes, run.id, number, kind, row_bytes, &take_row)
        })
    }

    /// A run's segments: they say of which one everything else is, so they are looked at as a whole.
    pub(in crate::journal) fn run_tables(&self, run: &RunInfo) -> Result<Arc<Tables>, ReadError> {
        self.tables.get_or(run.id, || {
            let segments = run.totals.blocks[0];
            let take = SegmentRow::take;
            let segments = self.run_rows(run, BlockKind::Segments, (0, segments), SEGMENT_ROW_BYTES, take)?;
            let (mut chunks, mut events) = (0u64, 0u64);
            for row in &segments {
                if u64::from(row.first_chunk) != chunks || !run.covers(row.number) {
                    return Err(field(run, block_at(0), "segment", row.number));
                }
                chunks += u64::from(row.chunks);
                events += u64::from(row.events_bytes);
            }
            let ordered = segments.windows(2).all(|pair| pair[0].number < pair[1].number);
            let sums = chunks == u64::from(run.chunks) && events == run.totals.events_bytes;
            if !ordered || segments.len() as u32 != run.segments || !sums {
                return Err(field(run, block_at(0), "segments", segments.len() as u64));
            }
            let bytes = segments.len() * size_of::<SegmentRow>() + 64;
            Ok((Arc::new(Tables { segments }), bytes as u64))
        })
    }

    /// A run's tops: they say where its entries are, and who wants none of those reads none of these.
    pub(in crate::journal) fn run_tops(&self, run: &RunInfo) -> Result<Arc<Vec<Top>>, ReadError> {
        self.tops.get_or(run.id, || {
            let (tops_at, count) = (run.tops_at(), run.totals.blocks[4]);
            let tops = self.run_rows(run, BlockKind::Tops, (tops_at, count), TOP_BYTES, Top::take)?;
            if let Some(top) = tops.iter().find(|top| top.fences >= tops_at) {
                return Err(field(run, block_at(tops_at), "fences", top.fences.into()));
            }
            let bytes = (tops.len() * size_of::<Top>()) as u64 + 64;
            Ok((Arc::new(tops), bytes))
        })
    }

    /// The fences of one group.
    pub(super) fn run_fences(&self, run: &RunInfo, top: &Top) -> Result<Vec<Fence>, ReadError> {
        let fences = self.run_rows(run, BlockKind::Fences, (top.fences, 1), FENCE_BYTES, Fence::take)?;
        let same = |fence: &Fence| (fence.disk, fence.wide) == (top.disk, top.wide);
        if fences.len() != usize::from(top.count) || !fences.iter().all(same) {
            return Err(field(run, block_at(top.fences), "fences", fences.len() as u64));
        }
        Ok(fences)
    }

    /// The entries of `count` neighbouring index blocks.
    pub(super) fn run_entries(&self, run: &RunInfo, blocks: (u32, u32), wide: bool) -> Result<Vec<Entry>, ReadError> {
        self.run_blocks(run, blocks, |bytes, number| {
            footer::decode_entries(bytes, run.id, number, wide, run.first_lsn.0)
        })
    }

    /// Calls `each` for every entry of the disk that shares a byte with `range`; chunks are numbered as the run does.
    pub(in crate::journal) fn run_overlapping(
        &self,
        run: &RunInfo,
        disk: DiskId,
        range: Extent,
        mut each: impl FnMut(&Entry),
    ) -> Result<(), ReadError> {
        let (start, end) = (range.offset / SECTOR, range.end().div_ceil(SECTOR));
        let tops = self.run_tops(run)?;
        let of_disk = |top: &&Top| top.disk == disk.get() && top.first < end && top.end > start;
        for top in tops.iter().filter(of_disk) {
            let fences = self.run_fences(run, top)?;
            let mut number = top.fences - u32::from(top.count);
            for wanted in fences.chunk_by(|a, b| is_in(a, start, end) == is_in(b, start, end)) {
                let count = wanted.len() as u32;
                if is_in(&wanted[0], start, end) {
                    let entries = self.run_entries(run, (number, count), top.wide)?;
                    entries.iter().filter(|entry| entry.sector < end && entry.end() > start).for_each(&mut each);
                }
                number += count;
            }
        }
        Ok(())
    }
}

fn is_in(fence: &Fence, start: u64, end: u64) -> bool {
    fence.first < end && fence.end > start
}

impl Tables {
    /// Which segment an entry is of, as a place in the table, and the chunk's number in it.
    pub(in crate::journal) fn segment_of(&self, entry: &Entry) -> Option<(usize, u32)> {
        // What has no chunk is known by its LSN: of a record in several segments it counts for the first. To whoever reads that is the
        // same, since a segment goes only with the whole of its last record.
        if entry.what != crate::journal::index::What::Data {
            let at = self.segments.partition_point(|row| row.last_lsn.0 < entry.lsn);
            return (at < self.segments.len()).then_some((at, 0));
        }
        let at = self.segments.partition_point(|row| row.first_chunk <= entry.chunk).checked_sub(1)?;
        let chunk = entry.chunk - self.segments[at].first_chunk;
        (chunk < self.segments[at].chunks).then_some((at, chunk))
    }
}
