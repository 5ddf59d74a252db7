//! The words between a writer and those who call it.

use crate::frame::{EncodedFrame, FrameError};
use crate::journal::index::IndexRun;
use crate::media::MediaError;
use crate::types::{GroupId, Lsn, SegmentId, Timeline};
use std::sync::Arc;

/// How a writer works. Bytes and nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The directory of the segments inside the storage; empty: the storage's own.
    pub directory: String,
    /// Segments are made this large with their footers: at least 1 MiB, at most 16 GiB.
    pub segment_bytes: u64,
    /// A segment closes at so many records whatever their size: its index is in memory until then.
    pub segment_records: u64,
    /// A sync is issued when so much is written and not synced.
    pub commit_bytes: u64,
    /// A sync is issued when something is not durable for so long.
    pub commit_ns: u64,
    /// Frames are refused for the moment while so much is being written.
    pub in_flight_bytes: u64,
    /// Segments are made only where so much stays free behind them.
    pub keep_free_bytes: u64,
    /// Where there are so many segments the next one is not made: that is a lack of room, which ends when some are forgotten.
    pub segments_max: usize,
    /// Room is asked for again so often.
    pub retry_ns: u64,
}

impl Options {
    /// The most segments of a journal, half of what a reader of the manifest takes: their entries are 100 MB there.
    pub const SEGMENTS_MAX: usize = 1 << 19;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: "journal".to_owned(),
            segment_bytes: 256 << 20,
            segment_records: 1 << 20,
            commit_bytes: 8 << 20,
            commit_ns: 20_000_000,
            in_flight_bytes: 64 << 20,
            keep_free_bytes: 256 << 20,
            segments_max: Self::SEGMENTS_MAX,
            retry_ns: 1_000_000_000,
        }
    }
}

/// Draws 128 random bits; never twice the same.
pub type IdSource = Box<dyn FnMut() -> [u8; 16] + Send>;

/// Why a frame cannot be taken just now. It goes by itself; offer the frame again after the next completion or deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// The next segment is being made.
    Preparing,
    /// As much as allowed is being written.
    Busy,
    /// The media have no room for the next segment.
    NoSpace,
    /// The timeline is not yet durable in the manifest.
    TimelineNotDurable,
}

/// Why a frame is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not now.
    #[error("not now: {0:?}")]
    NotNow(Hold),
    /// The frame does not follow the last one.
    #[error("frame follows LSN {found}, but the journal ends at LSN {expected}")]
    Chain {
        /// The last LSN here.
        expected: Lsn,
        /// `prev_lsn` of the frame, or its first LSN where that is too low.
        found: Lsn,
    },
    /// The frame belongs to a timeline that is closed or unknown here.
    #[error("frame of timeline {found}, which is not the open one")]
    Timeline {
        /// The frame's.
        found: Timeline,
        /// The open one.
        open: Option<Timeline>,
    },
    /// The frame belongs to another group.
    #[error("frame of group {found}, this journal is of group {expected}")]
    Group {
        /// Whose journal this is.
        expected: GroupId,
        /// The frame's.
        found: GroupId,
    },
    /// The frame is not one.
    #[error("frame is damaged: {0}")]
    Damaged(#[from] FrameError),
    /// The store is sealed at rest, and nobody has given the writer a key to seal with.
    #[error("the journal is sealed at rest, and no key to seal with was given")]
    NoKey,
    /// The journal is closed, or closing.
    #[error("the journal is closed")]
    Closed,
    /// A write or sync failed before; nothing is known about what was not durable then.
    #[error("the journal stopped after a failure: {0}")]
    Failed(MediaError),
}

/// A frame that was not taken, given back.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The frame.
    pub frame: EncodedFrame,
    /// Why.
    pub why: Refusal,
}

/// A frame that was taken; what a live view needs to show it at once.
#[derive(Clone, Debug)]
pub struct Appended {
    pub(in crate::journal) segment: u64,
    pub(in crate::journal) id: SegmentId,
    pub(in crate::journal) key: u32,
    pub(in crate::journal) timeline: Timeline,
    pub(in crate::journal) prev_lsn: Lsn,
    pub(in crate::journal) run: Arc<IndexRun>,
    /// The last LSN that is whole with it.
    pub whole: Lsn,
}

/// How the writer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriterState {
    /// Takes frames, or will in a moment.
    Running,
    /// The media have no room for the next segment; frames are taken while the active one has room.
    NoSpace,
    /// [`Writer::close`](super::Writer::close) was called and is not through.
    Closing,
    /// Everything is sealed, durable, and said so in the manifest.
    Closed,
    /// A write or sync failed.
    Failed(MediaError),
}
