//! The index: which part of which chunk holds what a range of a disk was, LSN by LSN.
//!
//! A frame's entries are made once, when it is appended or scanned, and shared by all who look. Small runs are merged into
//! larger ones as they come, so that a snapshot is a short list whatever the segment holds, and a lookup a few binary
//! searches. When the segment is sealed all of it goes to the footer and out of memory.

use super::bytes::{FormatError, Put, Take};
use super::event::Event;
use super::layout::{FRAMES_AT, SEGMENT_MAX};
use crate::frame::{ChunkInfo, FRAME_BYTES_MAX, FrameHead, Note, RecordKind};
use crate::types::{DiskId, Extent, Lsn, SECTOR, Stamp, WallTime};
use std::sync::Arc;

/// Bytes of an index entry in a footer.
pub(super) const ENTRY_BYTES: usize = 20;
/// Bytes of a chunk's row.
pub(super) const CHUNK_ROW_BYTES: usize = 24;
/// Bytes of a frame's row.
pub(super) const FRAME_ROW_BYTES: usize = 64;
/// Longest entry of a narrow block, in sectors: one part.
pub(super) const NARROW_SECTORS: u64 = 64;
/// LSNs of one segment span less than this: an entry has 40 bits for them.
pub(super) const LSN_SPAN: u64 = 1 << 40;

/// What a range reads as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum What {
    /// Bytes of a part.
    Data = 1,
    /// Zeros that stay allocated.
    Zero = 2,
    /// Zeros that need not be kept.
    Discard = 3,
}

/// One part, zero or discard. The order of the fields is that of the index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    pub(super) disk: u16,
    pub(super) sector: u64,
    pub(super) lsn: u64,
    pub(super) sectors: u64,
    /// CRC32C of the part's plain bytes, masked in a segment that is sealed at rest.
    pub(super) crc: u32,
    /// Number of the chunk in the segment, from 0.
    pub(super) chunk: u32,
    /// Where in the chunk's plain bytes, in sectors.
    pub(super) at: u8,
    pub(super) what: What,
}

impl Entry {
    pub(super) fn end(&self) -> u64 {
        self.sector + self.sectors
    }
    /// The order of the index as one number: disk, sector (41 bits), LSN. Entries that share it do not exist.
    pub(super) fn key(&self) -> u128 {
        u128::from(self.disk) << 105 | u128::from(self.sector) << 64 | u128::from(self.lsn)
    }
    /// The order of the index but for the LSN.
    fn place(&self) -> u64 {
        u64::from(self.disk) << 41 | self.sector
    }
    pub(super) fn is_wide(&self) -> bool {
        self.sectors > NARROW_SECTORS
    }

    /// 41 bits sector, 7 bits place in the chunk, 6 bits length less one, 2 bits what, 40 bits LSN; then chunk and checksum,
    /// or, in wide blocks, the length.
    pub(super) fn put(&self, put: &mut Put, base: u64) {
        let delta = self.lsn - base;
        let length = if self.is_wide() { 0 } else { self.sectors - 1 };
        let packed =
            self.sector | u64::from(self.at) << 41 | length << 48 | (self.what as u64) << 54 | delta >> 32 << 56;
        put.u64(packed).u32(delta as u32);
        if self.is_wide() {
            put.u64(self.sectors);
        } else {
            put.u32(self.chunk).u32(self.crc);
        }
    }

    pub(super) fn take(take: &mut Take<'_>, disk: u16, base: u64, wide: bool) -> Result<Self, FormatError> {
        // At once, and then without looking for the end: there are millions of them.
        let bytes: [u8; ENTRY_BYTES] = take.array()?;
        let [packed, low, last] = [&bytes[..8], &bytes[8..12], &bytes[12..]].map(|field| {
            let mut whole = [0; 8];
            whole[..field.len()].copy_from_slice(field);
            u64::from_le_bytes(whole)
        });
        let delta = packed >> 56 << 32 | low;
        let what = match packed >> 54 & 3 {
            1 => What::Data,
            2 => What::Zero,
            3 => What::Discard,
            other => return Err(take.field("what", other)),
        };
        let lsn = base.checked_add(delta).ok_or(take.field("lsn", delta))?;
        let sector = packed & ((1 << 41) - 1);
        let mut entry = Self { disk, sector, lsn, sectors: 0, crc: 0, chunk: 0, at: (packed >> 41 & 127) as u8, what };
        if wide {
            if last <= NARROW_SECTORS || last > (1 << 41) {
                return Err(take.field("sectors", last));
            }
            if what == What::Data {
                return Err(take.field("what", what as u64));
            }
            entry.sectors = last;
        } else {
            entry.sectors = (packed >> 48 & 63) + 1;
            (entry.chunk, entry.crc) = (last as u32, (last >> 32) as u32);
        }
        Ok(entry)
    }
}

/// What a set of entries is, whatever their order: how many there are, and the sum of a hash of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct EntrySum {
    count: u64,
    sum: u128,
}

impl EntrySum {
    pub(super) fn add(&mut self, entry: &Entry) {
        let Entry { disk, sector, lsn, sectors, crc, chunk, at, what } = *entry;
        let mut put = Put(Vec::with_capacity(48));
        put.u16(disk).u64(sector).u64(lsn).u64(sectors).u32(crc).u32(chunk).u8(at).u8(what as u8);
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(&put.0).as_bytes()[..16]);
        self.count += 1;
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// Whether a place is behind a segment's fixed blocks and not beyond the longest one: lengths can be added to it.
fn in_segment(offset: u64) -> bool {
    (FRAMES_AT..=SEGMENT_MAX).contains(&offset)
}

/// Where a chunk's stored bytes are in the segment's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkRow {
    pub(super) offset: u64,
    pub(super) stored_length: u32,
    pub(super) plain_length: u32,
    pub(super) crc: u32,
    pub(super) compressed: bool,
    pub(super) notes: bool,
    /// Sealed at rest.
    pub(super) sealed: bool,
}

impl ChunkRow {
    pub(super) fn put(&self, put: &mut Put) {
        put.u64(self.offset).u32(self.stored_length).u32(self.plain_length).u32(self.crc);
        put.u8(1 + u8::from(self.compressed)).u8(1 + u8::from(self.notes)).u8(u8::from(self.sealed)).u8(0);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let offset = take.u64_if("offset", in_segment)?;
        let stored_length = take.u32_if("stored_length", |value| value <= 2 << 16)?;
        let plain_length = take.u32_if("plain_length", |value| value <= 1 << 16)?;
        let crc = take.u32()?;
        let which = |number| (1..=2).contains(&number).then_some(number == 2);
        let (compressed, notes) = (take.kind("codec", which)?, take.kind("content", which)?);
        let sealed = take.kind("flags", |bits| (bits <= 1).then_some(bits == 1))?;
        let _ = take.u8()?;
        Ok(Self { offset, stored_length, plain_length, crc, compressed, notes, sealed })
    }
    /// The row as the frame codec wants it.
    pub(super) fn info(&self) -> ChunkInfo {
        ChunkInfo {
            number: 1,
            offset: 0,
            stored_length: self.stored_length,
            plain_length: self.plain_length,
            crc: self.crc,
            compressed: self.compressed,
            notes: self.notes,
            sealed: self.sealed,
        }
    }
}

/// Where a frame is and what it spans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameRow {
    /// Of its envelope.
    pub(super) offset: u64,
    pub(super) frame_bytes: u32,
    pub(super) records: u32,
    pub(super) first_lsn: Lsn,
    pub(super) last_lsn: Lsn,
    pub(super) settled: Lsn,
    pub(super) first_time: WallTime,
    pub(super) last: Stamp,
}

impl FrameRow {
    pub(super) fn put(&self, put: &mut Put) {
        put.u64(self.offset).u32(self.frame_bytes).u32(self.records);
        put.u64(self.first_lsn.0).u64(self.last_lsn.0).u64(self.settled.0);
        put.u64(self.first_time.0).u64(self.last.time.0).u32(self.last.epoch.0).u32(0);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let offset = take.u64_if("offset", in_segment)?;
        let (frame_bytes, records) =
            (take.u32_if("frame_bytes", |value| value <= FRAME_BYTES_MAX as u32)?, take.u32()?);
        let (first_lsn, last_lsn, settled) = (Lsn(take.u64()?), Lsn(take.u64()?), Lsn(take.u64()?));
        let (first_time, time) = (WallTime(take.u64()?), WallTime(take.u64()?));
        let epoch = crate::types::ClockEpoch(take.u32_if("epoch", |value| value != 0)?);
        let _ = take.u32()?;
        let last = Stamp { epoch, time };
        Ok(Self { offset, frame_bytes, records, first_lsn, last_lsn, settled, first_time, last })
    }
}

/// The index of one or more neighbouring frames of a segment.
#[derive(Clone, Debug, Default)]
pub(super) struct IndexRun {
    /// Number of the first chunk.
    pub(super) first_chunk: u32,
    pub(super) frames: Vec<FrameRow>,
    pub(super) chunks: Vec<ChunkRow>,
    /// Sorted.
    pub(super) narrow: Vec<Entry>,
    /// Sorted.
    pub(super) wide: Vec<Entry>,
    pub(super) events: Vec<Event>,
}

/// Where a frame stands in its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Of its envelope.
    pub(super) offset: u64,
    /// Number of its first chunk.
    pub(super) first_chunk: u32,
}

impl IndexRun {
    /// The index of one frame as it stands in its segment, and its events.
    pub(super) fn of_frame(head: &FrameHead, events: Vec<Event>, place: Place) -> Self {
        let info = &head.info;
        let frame_bytes = info.head_bytes + info.body_bytes;
        let body_at = place.offset + super::layout::body_at(place.offset, info.head_bytes.into(), frame_bytes.into());
        let frame = FrameRow {
            offset: place.offset,
            frame_bytes,
            records: info.records,
            first_lsn: info.first_lsn,
            last_lsn: info.last_lsn,
            settled: info.settled,
            first_time: info.first_time,
            last: Stamp { epoch: info.epoch, time: info.last_time },
        };
        let chunk_row = |chunk: &ChunkInfo| ChunkRow {
            offset: body_at + u64::from(chunk.offset),
            stored_length: chunk.stored_length,
            plain_length: chunk.plain_length,
            crc: chunk.crc,
            compressed: chunk.compressed,
            notes: chunk.notes,
            sealed: chunk.sealed,
        };
        let mut run = Self {
            first_chunk: place.first_chunk,
            frames: vec![frame],
            chunks: head.chunks.iter().map(chunk_row).collect(),
            narrow: Vec::with_capacity(head.records.len()),
            wide: Vec::new(),
            events,
        };
        for record in &head.records {
            let (Some(kind), Some(disk)) = (record.kind, record.disk) else { continue };
            let what = match kind {
                RecordKind::Write | RecordKind::Repair => What::Data,
                RecordKind::Zero => What::Zero,
                RecordKind::Discard => What::Discard,
                _ => continue,
            };
            run.add(Entry {
                disk: disk.get(),
                sector: record.extent.offset / SECTOR,
                lsn: record.lsn.0,
                sectors: record.extent.length / SECTOR,
                crc: if what == What::Data { record.crc } else { 0 },
                chunk: if what == What::Data { place.first_chunk + u32::from(record.chunk) - 1 } else { 0 },
                at: (u64::from(record.chunk_offset) / SECTOR) as u8 * u8::from(what == What::Data),
                what,
            });
        }
        run.add_shrinks();
        (run.narrow, run.wide) = (by_place(&[&run.narrow]), by_place(&[&run.wide]));
        run
    }

    fn add(&mut self, entry: Entry) {
        if entry.is_wide() { self.wide.push(entry) } else { self.narrow.push(entry) }
    }

    /// What a shrink cuts off reads as zeros if the disk grows again. Entries stay in the order of their LSNs.
    fn add_shrinks(&mut self) {
        let before = self.narrow.len() + self.wide.len();
        for at in 0..self.events.len() {
            let event = &self.events[at];
            let (Some(Note::Resize { from, to }), Some(disk)) = (&event.note, event.disk) else { continue };
            if to.div_ceil(SECTOR) < from.div_ceil(SECTOR) {
                let (sector, end) = (to.div_ceil(SECTOR), from.div_ceil(SECTOR));
                let (lsn, disk) = (event.lsn.0, disk.get());
                self.add(Entry {
                    disk,
                    sector,
                    lsn,
                    sectors: end - sector,
                    crc: 0,
                    chunk: 0,
                    at: 0,
                    what: What::Discard,
                });
            }
        }
        if self.narrow.len() + self.wide.len() > before {
            [&mut self.narrow, &mut self.wide].into_iter().for_each(|entries| entries.sort_by_key(|entry| entry.lsn));
        }
    }

    /// Neighbouring runs as one.
    pub(super) fn merge(runs: &[Arc<IndexRun>]) -> Self {
        fn gather<T: Clone>(runs: &[Arc<IndexRun>], of: impl Fn(&IndexRun) -> &Vec<T>) -> Vec<T> {
            let mut all = Vec::with_capacity(runs.iter().map(|run| of(run).len()).sum());
            runs.iter().for_each(|run| all.extend_from_slice(of(run)));
            all
        }
        let sorted = |of: fn(&IndexRun) -> &[Entry]| by_place(&runs.iter().map(|run| of(run)).collect::<Vec<_>>());
        Self {
            first_chunk: runs.first().map_or(0, |run| run.first_chunk),
            frames: gather(runs, |run| &run.frames),
            chunks: gather(runs, |run| &run.chunks),
            narrow: sorted(|run| &run.narrow),
            wide: sorted(|run| &run.wide),
            events: gather(runs, |run| &run.events),
        }
    }

    /// Calls `each` for every entry of the disk that shares a byte with `range`.
    pub(super) fn overlapping(&self, disk: DiskId, range: Extent, mut each: impl FnMut(&Entry)) {
        let disk = disk.get();
        let (start, end) = (range.offset / SECTOR, range.end().div_ceil(SECTOR));
        let from = start.saturating_sub(NARROW_SECTORS);
        let first = self.narrow.partition_point(|entry| (entry.disk, entry.sector) < (disk, from));
        for entry in &self.narrow[first..] {
            if entry.disk != disk || entry.sector >= end {
                break;
            }
            if entry.end() > start {
                each(entry);
            }
        }
        let first = self.wide.partition_point(|entry| entry.disk < disk);
        for entry in &self.wide[first..] {
            if entry.disk != disk || entry.sector >= end {
                break;
            }
            if entry.end() > start {
                each(entry);
            }
        }
    }
}

/// Entries of neighbouring runs in the order of the index. Those of one place are in the order of their LSNs already, and stay so;
/// of runs that are sorted stable sorting makes use. Places are sorted and not entries, which are three times as long.
fn by_place(runs: &[&[Entry]]) -> Vec<Entry> {
    let mut order = Vec::with_capacity(runs.iter().map(|run| run.len()).sum());
    for (run, entries) in (0u32..).zip(runs) {
        order.extend((0u32..).zip(*entries).map(|(at, entry)| (entry.place(), run, at)));
    }
    order.sort_by_key(|(place, ..)| *place);
    order.into_iter().map(|(_, run, at)| runs[run as usize][at as usize]).collect()
}

/// Runs per level before they become one of the next.
const FAN: usize = 64;

/// The index of a segment that is appended to.
#[derive(Clone, Debug, Default)]
pub(super) struct ActiveIndex {
    /// The first level has the single frames, later ones older and longer runs.
    levels: Vec<Vec<Arc<IndexRun>>>,
    pub(super) entries: u64,
    pub(super) events: u64,
}

impl ActiveIndex {
    pub(super) fn push(&mut self, run: Arc<IndexRun>) {
        self.entries += (run.narrow.len() + run.wide.len()) as u64;
        self.events += run.events.len() as u64;
        let mut run = run;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(FAN));
            }
            self.levels[level].push(run);
            if self.levels[level].len() < FAN {
                break;
            }
            run = Arc::new(IndexRun::merge(&std::mem::take(&mut self.levels[level])));
        }
    }

    /// All runs, in order.
    pub(super) fn runs(&self) -> Vec<Arc<IndexRun>> {
        self.levels.iter().rev().flatten().cloned().collect()
    }
}
