//! Where the frames of a timeline end, to the part: whatever comes next has to continue exactly there. Another record behind the
//! first parts of a write would make it look whole.

use super::footer::decode_rows;
use super::index::{FRAME_ROW_BYTES, FrameRow};
use super::layout::{BLOCK_BYTES, BlockKind, ENVELOPE_BYTES, Summary, foreign};
use super::manifest::{Manifest, SegmentInfo, TimelineState, segment_name};
use super::reader::{ReadError, parse_head};
use super::scan::twice;
use crate::frame::{FrameHead, HEAD_BYTES_MAX};
use crate::media::{self, Storage};
use crate::types::{Lsn, Position};

/// A record of which the first parts are there, and not all: nothing may follow but the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished {
    pub(super) lsn: Lsn,
    /// How many parts are there, and how many the record has.
    pub(super) parts: u16,
    count: u16,
}

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "within LSN {}, of which {} of {} parts are there", self.lsn, self.parts, self.count)
    }
}

impl Unfinished {
    /// What a frame leaves so.
    pub(super) fn left_by(head: &FrameHead) -> Option<Self> {
        let last = head.records.last().filter(|record| record.index + 1 < record.count)?;
        Some(Self { lsn: last.lsn, parts: last.index + 1, count: last.count })
    }

    /// Whether a frame begins with the next part of this very record.
    pub(super) fn is_continued_by(&self, head: &FrameHead) -> bool {
        let begins = |first: &crate::frame::RecordInfo| {
            (first.lsn, first.index, first.count) == (self.lsn, self.parts, self.count)
        };
        head.records.first().is_some_and(begins)
    }
}

/// Where the open timeline of a store ends, and goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Behind this record; behind 0 where nothing of the timeline is there.
    Whole(Lsn),
    /// Within a record.
    Within(Unfinished),
    /// Within this record, and the head that would say where is damaged: only another timeline can follow.
    Lost(Lsn),
}

impl Tail {
    /// The place that the next frame has to continue; none: there is no such frame.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match *self {
            Self::Whole(lsn) => Some(Position::whole(lsn)),
            Self::Within(Unfinished { lsn, parts, .. }) => Some(Position { lsn, parts: parts.into() }),
            Self::Lost(_) => None,
        }
    }

    /// The last LSN with a part there.
    pub(super) fn lsn(&self) -> Lsn {
        match *self {
            Self::Whole(lsn) | Self::Within(Unfinished { lsn, .. }) | Self::Lost(lsn) => lsn,
        }
    }

    /// Of a store whose segments are all sealed. What it takes beside the manifest is read only where a timeline ends within a record.
    ///
    /// # Errors
    /// What the media say, or what does not verify.
    pub(super) fn read(storage: &dyn Storage, directory: &str, manifest: &Manifest) -> Result<Self, ReadError> {
        let open = manifest.timelines.iter().rev().find(|timeline| timeline.state == TimelineState::Open);
        let Some(open) = open else { return Ok(Self::Whole(Lsn::ZERO)) };
        let said = open.last.unwrap_or(Lsn::ZERO);
        let mut summaries = manifest.segments.iter().filter_map(|segment| Some((segment, segment.summary()?)));
        let Some((segment, summary)) = summaries.rfind(|(_, summary)| summary.timeline == open.id) else {
            return Ok(Self::Whole(said));
        };
        if summary.whole_lsn >= summary.last_lsn {
            return Ok(Self::Whole(summary.last_lsn.max(said)));
        }
        twice(|| read_last(storage, directory, segment, summary)).map(Self::Within)
    }

    /// What there is instead where that could not be read.
    pub(super) fn lost(manifest: &Manifest) -> Self {
        let last = manifest.segments.iter().rev().find_map(|segment| segment.summary());
        Self::Lost(last.map_or(Lsn::ZERO, |summary| summary.last_lsn))
    }
}

/// What the last frame of a sealed segment leaves unfinished, by its head.
fn read_last(
    storage: &dyn Storage,
    directory: &str,
    segment: &SegmentInfo,
    summary: &Summary,
) -> Result<Unfinished, ReadError> {
    let failed = |offset: u64| move |source| ReadError::Format { segment: segment.number, offset, source };
    let file = storage.open(&media::join(directory, &segment_name(segment.number)), false)?;
    let (at, number) = summary.block_at(BlockKind::Frames, summary.blocks[BlockKind::Frames as usize - 1].max(1) - 1);
    let mut block = vec![0; BLOCK_BYTES];
    file.read_exact_at(at, &mut block)?;
    let rows = decode_rows(&block, segment.id, number, BlockKind::Frames, FRAME_ROW_BYTES, FrameRow::take);
    let rows = rows.map_err(failed(at))?;
    let none = || failed(at)(foreign("frame rows", "last_lsn", summary.last_lsn, Lsn::ZERO));
    let row = rows.last().ok_or_else(none)?;
    let mut bytes = vec![0; ENVELOPE_BYTES + (row.frame_bytes as usize).min(HEAD_BYTES_MAX)];
    file.read_exact_at(row.offset, &mut bytes)?;
    let (_, head) = parse_head(segment.number, segment.id, row.offset, &bytes)?;
    let left = Unfinished::left_by(&head).filter(|left| left.lsn == summary.last_lsn);
    left.ok_or_else(|| failed(row.offset)(foreign("frame", "last_lsn", summary.last_lsn, head.info.last_lsn)))
}
