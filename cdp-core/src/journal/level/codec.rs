//! A run's fixed blocks and rows as bytes; `FORMAT.md` has the tables.

use super::{LEVEL_MAX, RUN_SEGMENTS_MAX, RegionRange, RunInfo, RunTotals};
use crate::journal::bytes::{FormatError, Put, Take};
use crate::journal::footer::{FENCE_BYTES, per_block};
use crate::journal::index::LSN_SPAN;
use crate::journal::layout::{FIXED_BYTES, VERSION, fixed, foreign};
use crate::journal::region::REGION;
use crate::types::{DISK_MAX, DiskId, Lsn, ReplicaId, SegmentId, Timeline};

pub(in crate::journal) const HEADER_MAGIC: [u8; 8] = *b"CDPRUNH\x01";
pub(in crate::journal) const TRAILER_MAGIC: [u8; 8] = *b"CDPRUNT\x01";
/// Bytes of a row of the table of segments.
pub(super) const SEGMENT_ROW_BYTES: usize = 48;
/// Bytes of a top.
pub(super) const TOP_BYTES: usize = 32;
/// The most bytes of events in a run: those of more points than a catalogue can hold.
const EVENTS_MAX: u64 = 1 << 40;
/// The most ranges of regions: one for each of more disks than a manifest lists.
const RANGES_READ_MAX: usize = 1 << 13;

/// A segment of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::journal) struct SegmentRow {
    pub(in crate::journal) number: u64,
    pub(in crate::journal) id: SegmentId,
    pub(in crate::journal) last_lsn: Lsn,
    /// Number of its first chunk in the run.
    pub(in crate::journal) first_chunk: u32,
    pub(in crate::journal) chunks: u32,
    /// Bytes of its events, and their CRC32C.
    pub(in crate::journal) events_bytes: u32,
    pub(in crate::journal) events_crc: u32,
}

impl SegmentRow {
    pub(super) fn put(&self, put: &mut Put) {
        put.u64(self.number).bytes(self.id.bytes()).u64(self.last_lsn.0).u32(self.first_chunk).u32(self.chunks);
        put.u32(self.events_bytes).u32(self.events_crc);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            number: take.u64_if("number", |value| value != 0)?,
            id: take.id("segment", SegmentId::new)?,
            last_lsn: Lsn(take.u64()?),
            first_chunk: take.u32()?,
            chunks: take.u32()?,
            events_bytes: take.u32()?,
            events_crc: take.u32()?,
        })
    }
}

/// What a block of fences holds: neighbouring index blocks of one disk and kind, and how far their entries reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::journal) struct Top {
    pub(in crate::journal) disk: u16,
    pub(in crate::journal) wide: bool,
    /// Index blocks; they stand right before the block of their fences.
    pub(in crate::journal) count: u16,
    /// Number of the block of fences.
    pub(in crate::journal) fences: u32,
    /// First sector of the first entry.
    pub(in crate::journal) first: u64,
    /// First sector after all entries.
    pub(in crate::journal) end: u64,
}

impl Top {
    pub(super) fn put(&self, put: &mut Put) {
        put.u16(self.disk).u8(1 + u8::from(self.wide)).u8(0).u16(self.count).u16(0).u32(self.fences).u32(0);
        put.u64(self.first).u64(self.end);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let disk = take.u16()?;
        let wide = take.kind("wide", |number| (1..=2).contains(&number).then_some(number == 2))?;
        let _ = take.u8()?;
        let count = take.u16()?;
        let _ = take.u16()?;
        let fences = take.u32()?;
        let _ = take.u32()?;
        let most = per_block(FENCE_BYTES);
        if count == 0 || usize::from(count) > most || u32::from(count) > fences {
            return Err(take.field("count", u64::from(count)));
        }
        Ok(Self { disk, wide, count, fences, first: take.u64()?, end: take.u64()? })
    }
}

/// What is known of a run before it is written.
fn put_facts(put: &mut Put, info: &RunInfo) {
    put.bytes(info.timeline.bytes()).u8(info.level).bytes(&[0; 3]).u32(info.segments);
    put.u64(info.first_segment).u64(info.last_segment).u64(info.first_lsn.0).u64(info.last_lsn.0);
    put.u32(info.chunks).u32(0);
}

fn take_facts(take: &mut Take<'_>, number: u64, id: SegmentId) -> Result<RunInfo, FormatError> {
    let timeline = take.id("timeline", Timeline::new)?;
    let level = take.kind("level", |level| (1..=LEVEL_MAX).contains(&level).then_some(level))?;
    let _ = take.bytes(3)?;
    let segments = take.u32_if("segments", |value| (1..=RUN_SEGMENTS_MAX).contains(&value))?;
    let first_segment = take.u64_if("first_segment", |value| value != 0)?;
    let last_segment = take.u64_if("last_segment", |value| value >= first_segment)?;
    let first_lsn = take.u64_if("first_lsn", |value| value != 0)?;
    let last_lsn = take.u64_if("last_lsn", |value| value >= first_lsn && value - first_lsn < LSN_SPAN)?;
    let chunks = take.u32()?;
    let _ = take.u32()?;
    let (first_lsn, last_lsn) = (Lsn(first_lsn), Lsn(last_lsn));
    let (totals, emptied, regions) = (RunTotals::default(), false, Vec::new());
    Ok(RunInfo {
        number,
        id,
        level,
        timeline,
        segments,
        first_segment,
        last_segment,
        first_lsn,
        last_lsn,
        chunks,
        totals,
        emptied,
        regions,
    })
}

fn put_totals(put: &mut Put, totals: &RunTotals) {
    put.u64(totals.file_bytes).u64(totals.entries);
    totals.blocks.iter().for_each(|count| {
        put.u32(*count);
    });
    put.u32(totals.table_crc).u64(totals.events_bytes);
}

fn take_totals(take: &mut Take<'_>) -> Result<RunTotals, FormatError> {
    let (file_bytes, entries) = (take.u64()?, take.u64()?);
    let mut blocks = [0; 5];
    for count in &mut blocks {
        *count = take.u32()?;
    }
    let table_crc = take.u32()?;
    let events_bytes = take.u64_if("events_bytes", |value| value <= EVENTS_MAX)?;
    let all: u64 = blocks.iter().map(|count| u64::from(*count)).sum();
    if all > u64::from(u32::MAX) || file_bytes != RunTotals::bytes_of(&blocks, events_bytes) {
        return Err(take.field("file_bytes", file_bytes));
    }
    Ok(RunTotals { file_bytes, entries, blocks, table_crc, events_bytes })
}

/// The manifest's entry.
pub(in crate::journal) fn put_info(put: &mut Put, info: &RunInfo) {
    put.u64(info.number).bytes(info.id.bytes());
    put_facts(put, info);
    put_totals(put, &info.totals);
    put.u8(1 + u8::from(info.emptied)).u32(info.regions.len() as u32);
    for range in &info.regions {
        put.u16(range.disk).u32(range.first).u32(range.last);
    }
}

/// Tables are read as a whole: they are as long as segments and groups make them. A group is some index blocks and one block of
/// fences, and has one top.
fn check_tables(take: &Take<'_>, segments: u32, totals: &RunTotals) -> Result<(), FormatError> {
    let blocks_of = |rows: u32, bytes: usize| rows.div_ceil(per_block(bytes) as u32);
    let [of_segments, narrow, wide, fences, tops] = totals.blocks;
    if of_segments != blocks_of(segments, SEGMENT_ROW_BYTES) {
        return Err(take.field("blocks of segments", u64::from(of_segments)));
    }
    // What both are the sum of does not pass 32 bits: that was checked.
    if fences > narrow + wide || blocks_of(narrow + wide, FENCE_BYTES) > fences {
        return Err(take.field("blocks of fences", u64::from(fences)));
    }
    if tops != blocks_of(fences, TOP_BYTES) {
        return Err(take.field("blocks of tops", u64::from(tops)));
    }
    Ok(())
}

pub(in crate::journal) fn take_info(take: &mut Take<'_>) -> Result<RunInfo, FormatError> {
    let number = take.u64_if("run number", |value| value != 0)?;
    let id = take.id("run", SegmentId::new)?;
    let info = take_facts(take, number, id)?;
    let totals = take_totals(take)?;
    check_tables(take, info.segments, &totals)?;
    let emptied = take.kind("emptied", |number| (1..=2).contains(&number).then_some(number == 2))?;
    let regions = take.list("regions", RANGES_READ_MAX, |take| {
        let disk = take.u16()?;
        let disk = DiskId::new(disk).ok_or_else(|| take.field("disk", u64::from(disk)))?.get();
        let first = take.u32()?;
        let last = take.u32_if("region", |value| value >= first && u64::from(value) < DISK_MAX / REGION)?;
        Ok(RegionRange { disk, first, last })
    })?;
    let sorted = |pair: &[RegionRange]| (pair[0].disk, pair[0].last) < (pair[1].disk, pair[1].first);
    if !regions.windows(2).all(sorted) {
        return Err(take.field("regions", regions.len() as u64));
    }
    Ok(RunInfo { totals, emptied, regions, ..info })
}

/// The first block of a run's file.
pub(super) fn encode_header(replica: ReplicaId, info: &RunInfo) -> Vec<u8> {
    let mut put = Put::begin(HEADER_MAGIC, VERSION, 0);
    put.bytes(replica.bytes()).bytes(info.id.bytes()).u64(info.number);
    put_facts(&mut put, info);
    put.finish(FIXED_BYTES)
}

/// What a run's file says of itself: whose it is, and its facts without what came of it.
pub(super) fn decode_header(bytes: &[u8]) -> Result<(ReplicaId, RunInfo), FormatError> {
    let what = "run header";
    let (mut take, _) = Take::begin(what, fixed(what, bytes)?, HEADER_MAGIC, VERSION, 0)?;
    let replica = take.id("replica", ReplicaId::new)?;
    let id = take.id("run", SegmentId::new)?;
    let number = take.u64_if("number", |value| value != 0)?;
    Ok((replica, take_facts(&mut take, number, id)?))
}

/// Whether a header is that of the run the manifest names.
pub(super) fn check_header(bytes: &[u8], info: &RunInfo) -> Result<(), FormatError> {
    let (_, found) = decode_header(bytes)?;
    let expected = RunInfo { totals: found.totals, emptied: found.emptied, regions: Vec::new(), ..info.clone() };
    if found == expected { Ok(()) } else { Err(foreign("run header", "run", info.id, found.id)) }
}

/// The last block of a run's file.
pub(super) fn encode_trailer(id: SegmentId, totals: &RunTotals) -> Vec<u8> {
    let mut put = Put::begin(TRAILER_MAGIC, VERSION, 0);
    put.bytes(id.bytes());
    put_totals(&mut put, totals);
    put.finish(FIXED_BYTES)
}

pub(super) fn decode_trailer(bytes: &[u8]) -> Result<(SegmentId, RunTotals), FormatError> {
    let what = "run trailer";
    let (mut take, _) = Take::begin(what, fixed(what, bytes)?, TRAILER_MAGIC, VERSION, 0)?;
    let id = take.id("run", SegmentId::new)?;
    Ok((id, take_totals(&mut take)?))
}

/// Whether a trailer is that of the run the manifest names.
pub(super) fn check_trailer(bytes: &[u8], info: &RunInfo) -> Result<(), FormatError> {
    let (id, totals) = decode_trailer(bytes)?;
    if (id, totals) == (info.id, info.totals) { Ok(()) } else { Err(foreign("run trailer", "run", info.id, id)) }
}
