//! Runs of the levelled index for fuzzers.

use super::codec::{SEGMENT_ROW_BYTES, SegmentRow, TOP_BYTES, Top};
use super::codec::{decode_header, decode_trailer, encode_header, encode_trailer};
use super::{BLOCKS_AT, RunInfo};
use crate::journal::footer::decode_rows;
use crate::journal::fuzz::block_says;
use crate::journal::layout::BlockKind;

pub(in crate::journal) use super::codec::{HEADER_MAGIC, TRAILER_MAGIC};

pub(crate) fn run_header(bytes: &[u8]) -> bool {
    let Ok((replica, info)) = decode_header(bytes) else { return false };
    assert_eq!(decode_header(&encode_header(replica, &info)), Ok((replica, info)));
    true
}

pub(crate) fn run_trailer(bytes: &[u8]) -> bool {
    let Ok((id, totals)) = decode_trailer(bytes) else { return false };
    assert_eq!(decode_trailer(&encode_trailer(id, &totals)), Ok((id, totals)));
    assert!(
        totals.file_bytes > BLOCKS_AT
            && totals.blocks.iter().try_fold(0u32, |all, more| all.checked_add(*more)).is_some()
    );
    true
}

pub(crate) fn run_block(bytes: &[u8]) -> bool {
    let Some((id, number)) = block_says(bytes) else { return false };
    let segments = decode_rows(bytes, id, number, BlockKind::Segments, SEGMENT_ROW_BYTES, SegmentRow::take);
    let tops = decode_rows(bytes, id, number, BlockKind::Tops, TOP_BYTES, Top::take);
    for top in tops.iter().flatten() {
        assert!(top.count > 0 && top.fences >= u32::from(top.count));
    }
    segments.is_ok() || tops.is_ok()
}

/// What is read of a run as a whole is no longer than its segments and groups need.
pub(in crate::journal) fn check_tables(info: &RunInfo) {
    let [segments, narrow, wide, fences, tops] = info.totals.blocks;
    assert!(segments <= info.segments && tops <= fences && fences <= narrow.saturating_add(wide), "{info:?}");
}
