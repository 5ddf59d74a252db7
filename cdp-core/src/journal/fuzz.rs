//! The journal's blocks for fuzzers.

use super::bytes::{FormatError, PREFIX, Put};
use super::event;
use super::footer::{FENCE_BYTES, Fence, decode_entries, decode_rows};
use super::index::{CHUNK_ROW_BYTES, ChunkRow, FRAME_ROW_BYTES, FrameRow, IndexRun, Place};
use super::layout::*;
use super::manifest::{MANIFEST_MAGIC, Manifest};
use crate::frame::{FrameHead, NOTES_MAX};
use crate::fuzz::Decoder;
use crate::types::{DISK_MAX, DiskId, Extent, SegmentId};

pub(crate) use super::level::fuzz::{run_block, run_header, run_trailer};

/// A value that was read comes back when it is written and read again.
fn same<T: PartialEq + std::fmt::Debug>(
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
    bytes: &[u8],
) -> bool {
    let Ok(found) = decode(bytes) else { return false };
    assert_eq!(decode(&encode(&found)).as_ref(), Ok(&found));
    true
}

pub(crate) fn segment_header(bytes: &[u8]) -> bool {
    same(SegmentHeader::decode, SegmentHeader::encode, bytes)
}

pub(crate) fn opening(bytes: &[u8]) -> bool {
    same(Opening::decode, Opening::encode, bytes)
}

pub(crate) fn envelope(bytes: &[u8]) -> bool {
    same(Envelope::decode, Envelope::encode, bytes)
}

pub(crate) fn trailer(bytes: &[u8]) -> bool {
    let whole = |(_, summary): &(SegmentId, Summary)| {
        let (at, _) = summary.block_at(BlockKind::Frames, 0);
        assert!(at <= summary.events_at() && summary.trailer_at() + FIXED_BYTES as u64 == summary.file_bytes);
    };
    let _ = decode_trailer(bytes).as_ref().map(whole);
    same(decode_trailer, |(id, summary)| encode_trailer(*id, summary), bytes)
}

pub(crate) fn manifest(bytes: &[u8]) -> bool {
    if let Ok(manifest) = Manifest::decode(bytes) {
        manifest.runs.iter().for_each(|run| super::level::fuzz::check_tables(run));
    }
    same(Manifest::decode, Manifest::encode, bytes)
}

/// Id, number and kind of a block, as it says them itself.
pub(super) fn block_says(bytes: &[u8]) -> Option<(SegmentId, u32)> {
    let id = SegmentId::new(bytes.get(PREFIX..PREFIX + 16)?.try_into().ok()?)?;
    Some((id, u32::from_le_bytes(bytes.get(PREFIX + 16..PREFIX + 20)?.try_into().ok()?)))
}

pub(crate) fn footer_block(bytes: &[u8]) -> bool {
    let Some((id, number)) = block_says(bytes) else { return false };
    let entries = [false, true].map(|wide| decode_entries(bytes, id, number, wide, 1000));
    for entry in entries.iter().flatten().flatten() {
        assert!(entry.lsn >= 1000 && entry.end() <= 1 << 42 && entry.sectors > 0);
    }
    let fences = decode_rows(bytes, id, number, BlockKind::Fences, FENCE_BYTES, Fence::take);
    let chunks = decode_rows(bytes, id, number, BlockKind::Chunks, CHUNK_ROW_BYTES, ChunkRow::take);
    for chunk in chunks.iter().flatten() {
        assert!(chunk.offset + u64::from(chunk.stored_length) <= SEGMENT_MAX + (1 << 18));
    }
    let frames = decode_rows(bytes, id, number, BlockKind::Frames, FRAME_ROW_BYTES, FrameRow::take);
    for frame in frames.iter().flatten() {
        assert!(frame.offset + u64::from(frame.frame_bytes) <= SEGMENT_MAX + (1 << 33));
    }
    entries.iter().any(Result::is_ok) || fences.is_ok() || chunks.is_ok() || frames.is_ok()
}

pub(crate) fn events(bytes: &[u8]) -> bool {
    let Ok(found) = event::decode(bytes) else { return false };
    // Frames of which each has its own group; a footer's have one, and grow.
    let grow = found.windows(2).all(|pair| pair[0].lsn < pair[1].lsn && pair[0].stamp <= pair[1].stamp);
    if let (true, Ok(head)) = (grow, FrameHead::parse(bytes)) {
        assert_eq!(event::decode(&event::encode(head.info.group, &found)).as_ref(), Ok(&found));
    }
    true
}

/// The index of a frame that is whole, as a scan makes it.
pub(crate) fn index_of_frame(bytes: &[u8]) -> bool {
    let Ok(head) = FrameHead::parse(bytes) else { return false };
    let place = Place { offset: FRAMES_AT, first_chunk: u32::MAX - (1 << 16) };
    let Ok(events) = event::of_frame(&head, &bytes[head.info.head_bytes as usize..], true) else { return false };
    let run = IndexRun::of_frame(&head, events, place);
    for disk in head.records.iter().filter_map(|record| record.disk).collect::<std::collections::BTreeSet<DiskId>>() {
        let mut found = 0;
        run.overlapping(disk, Extent::new(0, DISK_MAX), |_| found += 1);
        assert!(found <= run.narrow.len() + run.wide.len());
    }
    assert!(run.events.len() <= NOTES_MAX.max(head.records.len()));
    true
}

/// A block of that kind that holds these bytes behind a right prefix.
pub(crate) fn seal(decoder: Decoder, bytes: &[u8]) -> Vec<u8> {
    let (magic, length) = match decoder {
        Decoder::SegmentHeader => (HEADER_MAGIC, FIXED_BYTES),
        Decoder::Opening => (OPENING_MAGIC, FIXED_BYTES),
        Decoder::Envelope => (ENVELOPE_MAGIC, ENVELOPE_BYTES),
        Decoder::FooterBlock | Decoder::RunBlock => (BLOCK_MAGIC, BLOCK_BYTES),
        Decoder::Trailer => (TRAILER_MAGIC, FIXED_BYTES),
        Decoder::RunHeader => (super::level::fuzz::HEADER_MAGIC, FIXED_BYTES),
        Decoder::RunTrailer => (super::level::fuzz::TRAILER_MAGIC, FIXED_BYTES),
        _ => (MANIFEST_MAGIC, bytes.len().max(PREFIX)),
    };
    // A header says by its flag whether it has a key.
    let is_keyed = decoder == Decoder::SegmentHeader && bytes.get(56..60).is_some_and(|key| key != [0; 4]);
    let mut put = Put::begin(magic, VERSION, is_keyed.into());
    put.bytes(bytes.get(PREFIX..).unwrap_or_default());
    put.0.truncate(length);
    put.finish(length)
}
