//! The levelled index: runs that hold the entries of many segments in one sorted file, so that a region's map is made from
//! few of them however long the journal is.
//!
//! A segment's own footer is level 0; a run of level k holds the entries and events of eight neighbours of level k - 1, all of
//! one timeline. Footers give their entries up once a run has them. Runs only repeat what frames say: one that is missing or
//! damaged costs time, never data.

mod check;
mod codec;
mod cursor;
mod empty;
mod events;
#[cfg(feature = "fuzzing")]
pub(in crate::journal) mod fuzz;
mod merge;
mod plan;
mod read;
mod recover;
#[cfg(test)]
mod tests;
mod words;
mod write;

pub use empty::{EmptyTask, IndexEmptying};
pub use merge::{IndexMerge, IndexMergeError, IndexMergeTask};
pub use plan::{IndexPlan, PlanError};

pub(super) use codec::{SegmentRow, Top, put_info, take_info};
pub(super) use read::Tables;
pub(super) use recover::{Fault, drop_unsound};
pub(super) use words::{describe, write_run, write_totals};

use super::layout::{BLOCK_BYTES, FIXED_BYTES};
use super::region::REGION;
use crate::types::{DiskId, Lsn, SECTOR, SegmentId, Timeline};

/// How many neighbours become one of the next level.
pub(super) const FAN_OUT: usize = 8;
/// The highest level: more segments than a manifest can name.
pub(super) const LEVEL_MAX: u8 = 8;
/// The most segments of a run, those that were dropped since included.
pub(super) const RUN_SEGMENTS_MAX: u32 = 1 << 24;
/// Where the blocks of a run's file begin.
pub(super) const BLOCKS_AT: u64 = 4096;
/// Ranges of regions that the manifest keeps of a run; more only where there are more disks.
pub(super) const RANGES_MAX: usize = 128;

const _: () = assert!(FAN_OUT.pow(LEVEL_MAX as u32) <= RUN_SEGMENTS_MAX as usize);

/// Regions of 64 MiB of a disk that a run has anything in: none outside of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RegionRange {
    /// The disk.
    pub disk: u16,
    /// The first region.
    pub first: u32,
    /// The last region.
    pub last: u32,
}

/// A run of the levelled index, as the manifest names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunInfo {
    /// Its number, which is its file's name in hex.
    pub number: u64,
    /// The file's identity, never used again.
    pub id: SegmentId,
    /// From 1.
    pub level: u8,
    /// The one branch of history that it holds.
    pub timeline: Timeline,
    /// Segments that it was made of; the first of them may have been dropped since.
    pub segments: u32,
    /// Number of the first one.
    pub first_segment: u64,
    /// Number of the last one.
    pub last_segment: u64,
    /// The first LSN with a part in any of them.
    pub first_lsn: Lsn,
    /// The last LSN with a part in any of them.
    pub last_lsn: Lsn,
    /// Chunks of all of them.
    pub chunks: u32,
    /// What was written.
    pub totals: RunTotals,
    /// The footers of its segments have their indexes emptied, durably.
    pub emptied: bool,
    /// Where it has anything, sorted.
    pub regions: Vec<RegionRange>,
}

/// What is known of a run when its last entry is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunTotals {
    /// Length of the file.
    pub file_bytes: u64,
    /// Index entries.
    pub entries: u64,
    /// Blocks of each kind: segments, narrow, wide, fences, tops.
    pub blocks: [u32; 5],
    /// CRC32C over the blocks of segments and of tops.
    pub table_crc: u32,
    /// Bytes of the events, without padding.
    pub events_bytes: u64,
}

impl RunInfo {
    /// Whether it may have an entry in a region. Regions are numbered by their place on the disk.
    pub(super) fn touches(&self, disk: DiskId, region: u64) -> bool {
        let key = (disk.get(), region);
        let at = self.regions.partition_point(|range| (range.disk, u64::from(range.last)) < key);
        self.regions.get(at).is_some_and(|range| range.disk == disk.get() && u64::from(range.first) <= region)
    }

    /// Whether the segment's number is in its range.
    pub(super) fn covers(&self, segment: u64) -> bool {
        (self.first_segment..=self.last_segment).contains(&segment)
    }

    /// Where the trailer stands.
    pub(super) fn trailer_at(&self) -> u64 {
        self.totals.file_bytes - FIXED_BYTES as u64
    }

    /// Number of the first block of tops: they are the last ones.
    pub(super) fn tops_at(&self) -> u32 {
        self.totals.blocks[..4].iter().sum()
    }
}

impl RunTotals {
    /// Where the events begin behind so many blocks.
    pub(super) fn events_at(blocks: &[u32; 5]) -> u64 {
        let count: u64 = blocks.iter().map(|count| u64::from(*count)).sum();
        BLOCKS_AT + count * BLOCK_BYTES as u64
    }

    /// Length of a file with so many blocks and bytes of events.
    pub(super) fn bytes_of(blocks: &[u32; 5], events_bytes: u64) -> u64 {
        Self::events_at(blocks) + events_bytes.next_multiple_of(SECTOR) + FIXED_BYTES as u64
    }
}

/// The file name of a run.
#[must_use]
pub fn run_name(number: u64) -> String {
    format!("{number:016x}.idx")
}

/// Where a block stands in a run's file.
pub(super) fn block_at(number: u32) -> u64 {
    BLOCKS_AT + u64::from(number) * BLOCK_BYTES as u64
}

/// The regions of an entry, first and last.
pub(super) fn regions_of(entry: &super::index::Entry) -> (u32, u32) {
    let sectors = REGION / SECTOR;
    ((entry.sector / sectors) as u32, ((entry.end() - 1) / sectors) as u32)
}
