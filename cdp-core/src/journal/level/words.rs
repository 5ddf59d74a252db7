//! A run's file in words, for people who look at it.

use super::codec::{SEGMENT_ROW_BYTES, SegmentRow, decode_header, decode_trailer};
use super::{BLOCKS_AT, RunInfo, RunTotals};
use crate::journal::footer::decode_rows;
use crate::journal::layout::{BLOCK_BYTES, BlockKind, FIXED_BYTES};
use crate::media::{File, MediaError};
use std::fmt::Write;

/// The longest table of segments that is written out, in blocks.
const TABLE_MAX: u32 = 64;

/// Describes a run whose first bytes are `front`.
pub(in crate::journal) fn describe(
    file: &dyn File,
    front: &[u8],
    out: &mut String,
) -> Result<std::fmt::Result, MediaError> {
    let length = file.len()?;
    let (replica, info) = match decode_header(front) {
        Ok(found) => found,
        Err(error) => return Ok(writeln!(out, "index run, {length} bytes: {error}")),
    };
    let mut bytes = vec![0; FIXED_BYTES];
    let found = file.read_at(length.saturating_sub(FIXED_BYTES as u64), &mut bytes)?;
    bytes.truncate(found);
    let trailer = decode_trailer(&bytes);
    let mut table =
        vec![0; trailer.as_ref().map_or(0, |(_, totals)| totals.blocks[0].min(TABLE_MAX)) as usize * BLOCK_BYTES];
    let found = file.read_at(BLOCKS_AT, &mut table)?;
    table.truncate(found);
    let mut write = || -> std::fmt::Result {
        writeln!(out, "index run {} {} of replica {replica}, {length} bytes", info.number, info.id)?;
        write_run(&info, out)?;
        for (number, block) in (0..).zip(table.chunks_exact(BLOCK_BYTES)) {
            match decode_rows(block, info.id, number, BlockKind::Segments, SEGMENT_ROW_BYTES, SegmentRow::take) {
                Ok(rows) => rows.iter().try_for_each(|row| {
                    let SegmentRow { number, id, last_lsn, first_chunk, chunks, events_bytes, .. } = row;
                    writeln!(
                        out,
                        "  segment {number} {id}, to LSN {last_lsn}, {chunks} chunks from {first_chunk}, {events_bytes} bytes of events"
                    )
                })?,
                Err(error) => writeln!(out, "  segments: {error}")?,
            }
        }
        match &trailer {
            Ok((id, totals)) if *id == info.id => {
                writeln!(out, "trailer: whole")?;
                write_totals(totals, out)
            }
            Ok((id, _)) => writeln!(out, "trailer: of run {id}"),
            Err(error) => writeln!(out, "trailer: {error}"),
        }
    };
    Ok(write())
}

/// What a run holds.
pub(in crate::journal) fn write_run(info: &RunInfo, out: &mut String) -> std::fmt::Result {
    let RunInfo { level, timeline, segments, first_segment, last_segment, first_lsn, last_lsn, chunks, .. } = info;
    writeln!(
        out,
        "  level {level}, timeline {}, {segments} segments, {first_segment} to {last_segment}, LSN {first_lsn} to {last_lsn}, \
         {chunks} chunks",
        timeline.short()
    )
}

/// What a run takes.
pub(in crate::journal) fn write_totals(totals: &RunTotals, out: &mut String) -> std::fmt::Result {
    let RunTotals { file_bytes, entries, blocks: [segments, narrow, wide, fences, tops], events_bytes, .. } = totals;
    writeln!(
        out,
        "  {entries} entries in {narrow} narrow and {wide} wide blocks, {fences} blocks of fences, {tops} of tops, {segments} of \
         segments, {events_bytes} bytes of events, {file_bytes} bytes"
    )
}
