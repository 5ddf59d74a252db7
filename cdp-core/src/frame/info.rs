//! What a frame says about itself, as values.

use super::layout::{CHUNK_BYTES, HEADER_BYTES, RECORD_BYTES};
use super::record::{Part, RawFrame};
use crate::types::{ClockEpoch, GroupId, Lsn, Position, Timeline, WallTime};

/// The facts of a frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// Whose write order.
    pub group: GroupId,
    /// Which branch of history.
    pub timeline: Timeline,
    /// The last LSN of the timeline's frame before this one; zero before its first.
    pub prev_lsn: Lsn,
    /// The first LSN that has a part here.
    pub first_lsn: Lsn,
    /// The last LSN that has a part here.
    pub last_lsn: Lsn,
    /// Which part of its record the first part is, from 0.
    pub first_index: u16,
    /// Behind the last part: so many parts of the record at `last_lsn` lie in this and earlier frames.
    pub last_parts: u16,
    /// Whether the record at `last_lsn` ends here.
    pub last_whole: bool,
    /// Every LSN up to here completed well at the source (or lies in an open resync) and is whole in this or earlier frames.
    pub settled: Lsn,
    /// The clock epoch of every stamp here.
    pub epoch: ClockEpoch,
    /// Stamp of the first part.
    pub first_time: WallTime,
    /// Stamp of the last part.
    pub last_time: WallTime,
    /// Entries of the record table.
    pub records: u32,
    /// Bytes of disk data before compression.
    pub plain_bytes: u32,
    /// Bytes of header, record table and chunk table.
    pub head_bytes: u32,
    /// Bytes of all chunks as stored.
    pub body_bytes: u32,
}

impl FrameInfo {
    pub(super) fn of(raw: &RawFrame, group: GroupId, chunks: usize, body_bytes: u32) -> Self {
        Self {
            group,
            timeline: raw.timeline,
            prev_lsn: raw.prev_lsn,
            first_lsn: raw.first_lsn(),
            last_lsn: raw.last_lsn(),
            first_index: raw.parts.first().map_or(0, |part| part.index),
            last_parts: raw.parts.last().map_or(0, |part| part.index + 1),
            last_whole: raw.parts.last().is_none_or(Part::is_last),
            settled: raw.settled,
            epoch: raw.epoch,
            first_time: raw.parts.first().map_or(WallTime(0), |part| part.time),
            last_time: raw.parts.last().map_or(WallTime(0), |part| part.time),
            records: raw.parts.len() as u32,
            plain_bytes: raw.plain_bytes as u32,
            head_bytes: (HEADER_BYTES + raw.parts.len() * RECORD_BYTES + chunks * CHUNK_BYTES) as u32,
            body_bytes,
        }
    }

    /// The place before its first part: what the frame continues. The record before its first one is whole.
    #[must_use]
    pub fn begin(&self) -> Position {
        match self.first_index {
            0 => Position::whole(self.prev_lsn),
            index => Position { lsn: self.first_lsn, parts: index.into() },
        }
    }

    /// The place behind its last part.
    #[must_use]
    pub fn end(&self) -> Position {
        if self.last_whole {
            return Position::whole(self.last_lsn);
        }
        Position { lsn: self.last_lsn, parts: self.last_parts.into() }
    }
}
