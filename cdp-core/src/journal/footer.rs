//! A sealed segment's footer: everything that its readers need besides the chunks, in blocks that verify on their own.

use super::bytes::{FormatError, Put, Take};
use super::event;
use super::index::{CHUNK_ROW_BYTES, ChunkRow, ENTRY_BYTES, Entry, FRAME_ROW_BYTES, FrameRow, IndexRun};
use super::layout::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, BlockKind, FIXED_BYTES, Summary, decode_block, encode_block, encode_trailer,
};
use crate::trust::FileKey;
use crate::types::{GroupId, Lsn, SECTOR, SegmentId, Stamp, Timeline};
use bytes::Bytes;

/// Bytes of a fence.
pub(super) const FENCE_BYTES: usize = 24;
/// Entries of a block with entries of so many bytes.
pub(super) const fn per_block(entry_bytes: usize) -> usize {
    (BLOCK_BYTES - BLOCK_HEADER_BYTES) / entry_bytes
}

/// What an index block holds: the key of its first entry and how far its entries reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fence {
    pub(super) disk: u16,
    pub(super) wide: bool,
    /// First sector of the first entry.
    pub(super) first: u64,
    /// First sector after all entries.
    pub(super) end: u64,
}

impl Fence {
    pub(super) fn put(&self, put: &mut Put) {
        put.u16(self.disk).u8(1 + u8::from(self.wide)).bytes(&[0; 5]).u64(self.first).u64(self.end);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let disk = take.u16()?;
        let wide = take.kind("wide", |number| (1..=2).contains(&number).then_some(number == 2))?;
        let _ = take.bytes(5)?;
        Ok(Self { disk, wide, first: take.u64()?, end: take.u64()? })
    }
}

/// What the footer cannot take from the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) id: SegmentId,
    pub(super) group: GroupId,
    pub(super) timeline: Timeline,
    pub(super) prev_lsn: Lsn,
    /// The last LSN that is whole.
    pub(super) whole_lsn: Lsn,
    /// Where the frames end.
    pub(super) frames_end: u64,
    pub(super) plain_bytes: u64,
}

/// Collects blocks in the order of the footer.
struct Blocks {
    id: SegmentId,
    number: u32,
    out: Vec<Bytes>,
    /// Over what stays when the index is emptied.
    crc: u32,
}

impl Blocks {
    fn add(&mut self, kind: BlockKind, disk: u16, entries: &[u8], count: usize) {
        let block = encode_block(self.id, self.number, kind, disk, entries, count as u16);
        if !kind.is_index() {
            self.crc = crc32c::crc32c_append(self.crc, &block);
        }
        self.number += 1;
        self.out.push(block.into());
    }

    fn add_rows<T>(&mut self, kind: BlockKind, rows: &[T], row_bytes: usize, put_row: impl Fn(&T, &mut Put)) -> u32 {
        let before = self.number;
        for rows in rows.chunks(per_block(row_bytes)) {
            let mut put = Put::default();
            rows.iter().for_each(|row| put_row(row, &mut put));
            self.add(kind, 0, &put.0, rows.len());
        }
        self.number - before
    }

    fn add_entries(&mut self, kind: BlockKind, entries: &[Entry], base: u64, fences: &mut Vec<Fence>) -> u32 {
        let before = self.number;
        for entries in entries.chunk_by(|a, b| a.disk == b.disk) {
            for entries in entries.chunks(per_block(ENTRY_BYTES)) {
                let mut put = Put::default();
                entries.iter().for_each(|entry| entry.put(&mut put, base));
                let end = entries.iter().map(Entry::end).max().unwrap_or(0);
                let (disk, first) = (entries[0].disk, entries[0].sector);
                fences.push(Fence { disk, wide: kind == BlockKind::Wide, first, end });
                self.add(kind, disk, &put.0, entries.len());
            }
        }
        self.number - before
    }
}

/// The footer of a segment with at least one frame: its bytes, from `frames_end` on, and what the manifest keeps of it. The key is
/// that of a segment that is sealed at rest.
pub(super) fn encode(run: &IndexRun, facts: &Facts, key: Option<&FileKey>) -> (Vec<Bytes>, Summary) {
    let (first, last) = (&run.frames[0], &run.frames[run.frames.len() - 1]);
    let base = first.first_lsn.0;
    let mut blocks = Blocks { id: facts.id, number: 0, out: Vec::new(), crc: 0 };
    let mut fences = Vec::new();
    let counts = [
        blocks.add_entries(BlockKind::Narrow, &run.narrow, base, &mut fences),
        blocks.add_entries(BlockKind::Wide, &run.wide, base, &mut fences),
        blocks.add_rows(BlockKind::Fences, &fences, FENCE_BYTES, Fence::put),
        blocks.add_rows(BlockKind::Chunks, &run.chunks, CHUNK_ROW_BYTES, ChunkRow::put),
        blocks.add_rows(BlockKind::Frames, &run.frames, FRAME_ROW_BYTES, FrameRow::put),
    ];
    let mut events = event::encode(facts.group, &run.events);
    if let Some(key) = key.filter(|_| !events.is_empty()) {
        events = key.seal_events(&events);
    }
    let events_bytes = events.len();
    events.resize(events_bytes.next_multiple_of(SECTOR as usize), 0);
    let mut summary = Summary {
        group: facts.group,
        timeline: facts.timeline,
        prev_lsn: facts.prev_lsn,
        first_lsn: first.first_lsn,
        last_lsn: last.last_lsn,
        whole_lsn: facts.whole_lsn,
        settled: last.settled,
        first: Stamp { epoch: first.last.epoch, time: first.first_time },
        last: last.last,
        frames_end: facts.frames_end,
        file_bytes: 0,
        frames: run.frames.len() as u32,
        chunks: run.chunks.len() as u32,
        entries: (run.narrow.len() + run.wide.len()) as u32,
        records: run.frames.iter().map(|frame| u64::from(frame.records)).sum(),
        plain_bytes: facts.plain_bytes,
        blocks: counts,
        events_bytes: events_bytes as u32,
        footer_crc: crc32c::crc32c_append(blocks.crc, &events),
    };
    summary.file_bytes = summary.trailer_at() + FIXED_BYTES as u64;
    let mut out = blocks.out;
    out.push(events.into());
    out.push(encode_trailer(facts.id, &summary).into());
    (out, summary)
}

/// An upper bound for the footer's bytes, from counts.
pub(super) fn bound(entries: u64, chunks: u64, frames: u64, events: u64) -> u64 {
    let blocks = |count: u64, bytes: usize| count.div_ceil(per_block(bytes) as u64);
    // Each disk and each kind may leave one block part-filled.
    let index = blocks(entries, ENTRY_BYTES) + 2 * crate::types::DISKS_MAX as u64;
    let all = index + blocks(index, FENCE_BYTES) + blocks(chunks, CHUNK_ROW_BYTES) + blocks(frames, FRAME_ROW_BYTES);
    // With what sealing adds to the events.
    all * BLOCK_BYTES as u64 + events * EVENT_BYTES_MAX + 3 * SECTOR
}

/// The most bytes of one event: a frame of one record with the longest label.
const EVENT_BYTES_MAX: u64 = 512;

/// The entries of one index block.
pub(super) fn decode_entries(
    bytes: &[u8],
    id: SegmentId,
    number: u32,
    wide: bool,
    base: u64,
) -> Result<Vec<Entry>, FormatError> {
    let kind = if wide { BlockKind::Wide } else { BlockKind::Narrow };
    let (disk, body) = decode_block(bytes, id, number, kind, ENTRY_BYTES)?;
    let mut take = Take::new("index block", body);
    let count = body.len() / ENTRY_BYTES;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(Entry::take(&mut take, disk, base, wide)?);
    }
    Ok(entries)
}

/// The rows of one block of another kind.
pub(super) fn decode_rows<T>(
    bytes: &[u8],
    id: SegmentId,
    number: u32,
    kind: BlockKind,
    row_bytes: usize,
    take_row: impl Fn(&mut Take<'_>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let (_, body) = decode_block(bytes, id, number, kind, row_bytes)?;
    let mut take = Take::new("footer rows", body);
    let count = body.len() / row_bytes;
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        rows.push(take_row(&mut take)?);
    }
    Ok(rows)
}
