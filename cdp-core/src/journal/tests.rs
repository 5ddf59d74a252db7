//! Decoders of the journal's fixed blocks: what was put comes back, everything else is an error and never a panic.

use super::bytes::{Put, Take};
use super::footer::{self, FENCE_BYTES, Fence};
use super::index::{CHUNK_ROW_BYTES, ChunkRow, ENTRY_BYTES, Entry, FRAME_ROW_BYTES, FrameRow, What};
use super::layout::*;
use super::{event, scan};
use crate::media::{Memory, Storage};
use crate::types::*;
use proptest::prelude::*;

fn id() -> SegmentId {
    SegmentId::new([9; 16]).unwrap()
}

fn entry() -> impl Strategy<Value = Entry> {
    let narrow = (1u64..=64, any::<u32>(), any::<u32>(), 0u8..128);
    let what = prop_oneof![Just(What::Data), Just(What::Zero), Just(What::Discard)];
    let wide = 65u64..1 << 41;
    (0u64..1 << 41, 0u64..1 << 40, narrow, wide, any::<bool>(), what).prop_map(
        |(sector, lsn, narrow, wide, is_wide, what)| {
            let (sectors, crc, chunk, at) = narrow;
            let lsn = 1000 + lsn;
            match is_wide {
                // No part is that long.
                true if what != What::Data => {
                    Entry { disk: 3, sector, lsn, sectors: wide, crc: 0, chunk: 0, at: 0, what }
                }
                _ => Entry { disk: 3, sector, lsn, sectors, crc, chunk, at, what },
            }
        },
    )
}

proptest! {
    #[test]
    fn entries_come_back(entry in entry()) {
        let mut put = Put::default();
        entry.put(&mut put, 1000);
        prop_assert_eq!(put.0.len(), ENTRY_BYTES);
        let back = Entry::take(&mut Take::new("entry", &put.0), 3, 1000, entry.is_wide()).unwrap();
        prop_assert_eq!(back, entry);
    }

    #[test]
    fn garbage_is_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = SegmentHeader::decode(&bytes);
        let _ = Opening::decode(&bytes);
        let _ = Envelope::decode(&bytes);
        let _ = decode_trailer(&bytes);
        let _ = event::decode(&bytes);
        let _ = Entry::take(&mut Take::new("entry", &bytes), 1, u64::MAX, true);
        let _ = ChunkRow::take(&mut Take::new("row", &bytes));
        let _ = FrameRow::take(&mut Take::new("row", &bytes));
        let _ = Fence::take(&mut Take::new("fence", &bytes));
    }

    /// The same behind a right prefix and checksum: fields alone decide.
    #[test]
    fn garbage_fields_are_an_error_or_a_value(fields in prop::collection::vec(any::<u8>(), 496), which in 0usize..5) {
        let whole = |magic: [u8; 8], length: usize| {
            let mut put = Put::begin(magic, VERSION, 0);
            put.bytes(&fields[..fields.len().min(length - 16)]);
            put.finish(length)
        };
        let magic = [*b"CDPSEGM\x01", *b"CDPOPEN\x01", *b"CDPENVL\x01", *b"CDPTRLR\x01", *b"CDPBLOK\x01"][which];
        match which {
            0 => drop(SegmentHeader::decode(&whole(magic, 512))),
            1 => drop(Opening::decode(&whole(magic, 512))),
            2 => drop(Envelope::decode(&whole(magic, 64))),
            3 => drop(decode_trailer(&whole(magic, 512))),
            _ => {
                let block = whole(magic, BLOCK_BYTES);
                let _ = footer::decode_entries(&block, id(), 0, false, 5);
                let _ = decode_block(&block, id(), 0, BlockKind::Chunks, CHUNK_ROW_BYTES);
                let _ = decode_block(&block, id(), 0, BlockKind::Frames, FRAME_ROW_BYTES);
                let _ = decode_block(&block, id(), 0, BlockKind::Fences, FENCE_BYTES);
            }
        }
    }

    /// A segment file that is garbage behind a right opening is scanned to an end.
    #[test]
    fn garbage_segments_are_scanned_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..3000), right in any::<bool>()) {
        let storage = Memory::new();
        let file = storage.create("a").unwrap();
        file.set_len(16 << 10).unwrap();
        let (group, timeline) = (GroupId::new([1; 16]).unwrap(), Timeline::new([2; 16]).unwrap());
        let (prev_lsn, prev_segment, prev_frames, durable) = (Lsn(0), None, 0, Lsn(7));
        let opening = Opening { id: id(), group, timeline, prev_lsn, prev_segment, prev_frames, durable };
        file.write_all_at(OPENING_AT, &opening.encode()).unwrap();
        file.write_all_at(if right { FRAMES_AT } else { OPENING_AT + 20 }, &bytes).unwrap();
        let scan = scan::scan(file.as_ref(), (1, id()), scan::Depth::Bodies, scan::AtRest::Plain).unwrap();
        prop_assert!(scan.runs.is_empty());
    }
}

#[test]
fn the_index_stays_within_its_24_bytes() {
    // 64 records of 4 KiB in a frame: 64 entries, 4 chunks and one of notes now and then, one frame row.
    let per_block = |bytes: usize| footer::per_block(bytes) as f64;
    let block = BLOCK_BYTES as f64;
    let frame = 64.0 * block / per_block(ENTRY_BYTES)
        + 5.0 * block / per_block(CHUNK_ROW_BYTES)
        + block / per_block(FRAME_ROW_BYTES)
        + 64.0 / per_block(ENTRY_BYTES) * FENCE_BYTES as f64;
    assert!(frame / 64.0 <= 24.0, "{}", frame / 64.0);
}

#[test]
fn behind_a_large_frame_the_next_begins_on_a_page() {
    use super::layout::{LARGE_FRAME, body_at, stride};
    for offset in [4096, 4608, 8192 + 3 * 512] {
        for bytes in [200, LARGE_FRAME - 1] {
            let next = offset + stride(offset, 176, bytes);
            assert!(next.is_multiple_of(512) && next - offset - 64 - bytes < 512, "{bytes} at {offset}");
        }
        for bytes in [LARGE_FRAME, 300_000] {
            let next = offset + stride(offset, 176, bytes);
            assert!(next.is_multiple_of(4096) && next - offset - 512 - (bytes - 176) < 4096, "{bytes} at {offset}");
            let at = |head: u64| body_at(offset, head, bytes);
            assert_eq!((at(176), at(448), at(449)), (512, 512, 1024));
        }
        // Whole pages begin on one, and that takes no more room.
        for (head, pages) in [(176, 16), (3864, 64), (4032, 64), (4033, 16)] {
            let bytes = head + pages * 4096;
            let body = offset + body_at(offset, head, bytes);
            assert!(body.is_multiple_of(4096) && body - offset - 64 - head < 4096, "{head} at {offset}");
            assert_eq!(offset + stride(offset, head, bytes), body + pages * 4096);
            let by_sectors = (offset + 64 + head).next_multiple_of(512) + pages * 4096;
            assert_eq!(by_sectors.next_multiple_of(4096), body + pages * 4096);
        }
    }
}

/// All notes of a frame share one chunk: where all labels are long, a full frame of marks is more than that holds.
#[test]
fn any_number_of_events_comes_back_however_long_their_labels_are() {
    use crate::frame::{Mark, Note, RecordKind};
    let (group, timeline) = (GroupId::new([1; 16]).unwrap(), Timeline::new([2; 16]).unwrap());
    for (count, label) in [(1, NAME_MAX), (FRAME_RECORDS_MAX as u64 * 3, 0), (700, 90), (1200, NAME_MAX)] {
        let marked = |lsn: u64| event::Event {
            timeline,
            lsn: Lsn(lsn),
            stamp: Stamp { epoch: ClockEpoch(1), time: WallTime(1_000 + lsn) },
            kind: RecordKind::Mark,
            disk: None,
            note: Some(Note::Mark(Mark { label: "x".repeat(label), ..Mark::default() })),
        };
        let events: Vec<_> = (1..=count).map(marked).collect();
        let back = event::decode(&event::encode(group, &events)).unwrap_or_else(|e| panic!("{count} x {label}: {e}"));
        assert!(back == events, "{count} x {label}");
    }
}

/// Readers add lengths to these: behind a right checksum they went beyond what 64 bits hold.
#[test]
fn rows_that_lie_outside_of_any_segment_are_refused() {
    let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(1) };
    for (offset, right) in
        [(0, false), (FRAMES_AT, true), (SEGMENT_MAX, true), (SEGMENT_MAX + 1, false), (u64::MAX, false)]
    {
        let chunk = ChunkRow {
            offset,
            stored_length: 5,
            plain_length: 9,
            crc: 7,
            compressed: true,
            notes: false,
            sealed: true,
        };
        let mut put = Put::default();
        chunk.put(&mut put);
        assert_eq!(ChunkRow::take(&mut Take::new("row", &put.0)).is_ok(), right, "chunk at {offset}");
        let most = crate::frame::FRAME_BYTES_MAX as u32;
        for (frame_bytes, fits) in [(200, true), (most, true), (most + 1, false)] {
            let (first_lsn, last_lsn, settled, first_time) = (Lsn(1), Lsn(2), Lsn(2), WallTime(1));
            let frame =
                FrameRow { offset, frame_bytes, records: 1, first_lsn, last_lsn, settled, first_time, last: stamp };
            let mut put = Put::default();
            frame.put(&mut put);
            let taken = FrameRow::take(&mut Take::new("row", &put.0));
            assert_eq!(taken.is_ok(), right && fits, "frame of {frame_bytes} at {offset}");
        }
    }
}
