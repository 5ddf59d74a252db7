//! Which merge is next: a pure function of the manifest.

use super::{FAN_OUT, LEVEL_MAX, RunInfo};
use crate::journal::index::LSN_SPAN;
use crate::journal::layout::Summary;
use crate::journal::manifest::Manifest;
use crate::types::{Lsn, Timeline};
use std::collections::BTreeSet;

/// Eight neighbours that become one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexPlan {
    /// Level of the run that comes of it.
    pub level: u8,
    /// Numbers of the segments, if the level is 1, else of the runs that are merged; in their order.
    pub inputs: Vec<u64>,
}

/// Why neighbours cannot be one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// LSNs are kept as distances of 40 bits.
    #[error("LSN {first} to {last} do not fit the 40 bits of one index run")]
    LsnSpan {
        /// The first LSN.
        first: Lsn,
        /// The last LSN.
        last: Lsn,
    },
    /// Chunks are numbered by 32 bits.
    #[error("{chunks} chunks do not fit the 32 bits of one index run")]
    Chunks {
        /// How many there are.
        chunks: u64,
    },
}

/// What a merge takes in, as far as the plan looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) level: u8,
    pub(super) number: u64,
    pub(super) timeline: Timeline,
    pub(super) first_lsn: Lsn,
    pub(super) last_lsn: Lsn,
    pub(super) chunks: u32,
}

impl Item {
    pub(super) fn of_segment(number: u64, summary: &Summary) -> Self {
        let Summary { timeline, first_lsn, last_lsn, chunks, .. } = *summary;
        Self { level: 0, number, timeline, first_lsn, last_lsn, chunks }
    }
    pub(super) fn of_run(run: &RunInfo) -> Self {
        let RunInfo { level, number, timeline, first_lsn, last_lsn, chunks, .. } = *run;
        Self { level, number, timeline, first_lsn, last_lsn, chunks }
    }
}

/// First and last LSN and all chunks of neighbours, if one run can hold them.
pub(super) fn join(items: &[Item]) -> Result<(Lsn, Lsn, u32), PlanError> {
    let first = items.first().map_or(Lsn::ZERO, |item| item.first_lsn);
    let last = items.last().map_or(Lsn::ZERO, |item| item.last_lsn);
    if last.0.saturating_sub(first.0) >= LSN_SPAN {
        return Err(PlanError::LsnSpan { first, last });
    }
    let chunks: u64 = items.iter().map(|item| u64::from(item.chunks)).sum();
    // The last number stays free: it is what a number that is too high ends as.
    let fits = u32::try_from(chunks).ok().filter(|chunks| *chunks < u32::MAX);
    Ok((first, last, fits.ok_or(PlanError::Chunks { chunks })?))
}

impl IndexPlan {
    /// The next merge: of the lowest level that has a whole group of neighbours of one timeline, the oldest group that one run
    /// can hold. None: everything is merged as far as it can be. `without`: segments that no merge can read.
    #[must_use]
    pub fn next(manifest: &Manifest, without: &BTreeSet<u64>) -> Option<Self> {
        let items = items(manifest);
        let alike = |a: &Item, b: &Item| (a.level, a.timeline) == (b.level, b.timeline);
        let readable = |item: &Item| item.level > 0 || !without.contains(&item.number);
        let fits = |items: &&[Item]| items.iter().all(readable) && join(items).is_ok();
        let group = |items: &'_ [Item]| items.windows(FAN_OUT).find(fits).map(<[Item]>::to_vec);
        let groups = items.chunk_by(alike).filter(|items| items[0].level < LEVEL_MAX).filter_map(group);
        let group = groups.min_by_key(|items| items[0].level)?;
        let inputs = group.iter().map(|item| item.number).collect();
        Some(Self { level: group[0].level + 1, inputs })
    }
}

/// Runs, and the segments that are in none, in the order of history.
fn items(manifest: &Manifest) -> Vec<Item> {
    let mut runs = manifest.runs.iter().peekable();
    let mut items: Vec<Item> = Vec::new();
    for segment in &manifest.segments {
        // Numbers only grow here, so what ends before is behind.
        while runs.next_if(|run| run.last_segment < segment.number).is_some() {}
        match (runs.peek(), segment.summary()) {
            (Some(run), _) if run.covers(segment.number) => {
                if items.last().is_none_or(|last| (last.level, last.number) != (run.level, run.number)) {
                    items.push(Item::of_run(run));
                }
            }
            (_, Some(summary)) => items.push(Item::of_segment(segment.number, summary)),
            (_, None) => break,
        }
    }
    items
}
