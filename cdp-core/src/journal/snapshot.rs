//! A journal as it was at one moment: what readers hold while the writer goes on.

use super::index::IndexRun;
use super::layout::Summary;
use super::level::RunInfo;
use super::manifest::{Manifest, SegmentInfo, TimelineInfo};
use crate::types::{DurableLsn, GroupId, Lsn, SegmentId, Timeline};
use std::sync::Arc;

/// Where a segment's index is.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// In the footer.
    Sealed(Summary),
    /// In memory, as far as it was written.
    Active(Vec<Arc<IndexRun>>),
}

/// A segment as it was at one moment.
#[derive(Clone, Debug)]
pub(super) struct SegmentView {
    pub(super) number: u64,
    pub(super) id: SegmentId,
    /// Generation of the replica key that it is sealed by at rest; 0: it is not.
    pub(super) key: u32,
    pub(super) timeline: Timeline,
    pub(super) prev_lsn: Lsn,
    pub(super) first_lsn: Lsn,
    pub(super) last_lsn: Lsn,
    pub(super) content: Content,
}

impl SegmentView {
    pub(super) fn sealed(info: &SegmentInfo) -> Option<Self> {
        info.summary().map(|summary| Self {
            number: info.number,
            id: info.id,
            key: info.key,
            timeline: summary.timeline,
            prev_lsn: summary.prev_lsn,
            first_lsn: summary.first_lsn,
            last_lsn: summary.last_lsn,
            content: Content::Sealed(*summary),
        })
    }

    /// `runs` holds at least one frame; `key` is the generation that it is sealed by.
    pub(super) fn active(
        (number, id, key): (u64, SegmentId, u32),
        timeline: Timeline,
        prev_lsn: Lsn,
        runs: Vec<Arc<IndexRun>>,
    ) -> Self {
        let first_lsn = runs.first().and_then(|run| run.frames.first()).map_or(Lsn::ZERO, |frame| frame.first_lsn);
        let last_lsn = runs.last().and_then(|run| run.frames.last()).map_or(Lsn::ZERO, |frame| frame.last_lsn);
        Self { number, id, key, timeline, prev_lsn, first_lsn, last_lsn, content: Content::Active(runs) }
    }
}

#[derive(Debug)]
struct Inner {
    group: GroupId,
    timelines: Vec<TimelineInfo>,
    segments: Vec<Arc<SegmentView>>,
    runs: Vec<Arc<RunInfo>>,
    /// All that the manifest names.
    named: Vec<Arc<RunInfo>>,
    durable: DurableLsn,
    written: Lsn,
    settled: Lsn,
}

/// A journal as it was at one moment. Clones share it.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Inner>);

impl Snapshot {
    pub(super) fn new(
        manifest: &Manifest,
        segments: Vec<Arc<SegmentView>>,
        durable: DurableLsn,
        written: Lsn,
        settled: Lsn,
    ) -> Self {
        let sealed = segments.iter().filter_map(|segment| match &segment.content {
            Content::Sealed(summary) => Some(summary.settled),
            Content::Active(_) => None,
        });
        let settled = sealed.max().unwrap_or(Lsn::ZERO).max(settled);
        let (group, timelines) = (manifest.group, manifest.timelines.clone());
        // A run is of use where all of its segments are here that the manifest names: what else it held was dropped.
        let named = |number: u64| manifest.segments.partition_point(|segment| segment.number < number);
        let shown = |number: u64| segments.partition_point(|segment| segment.number < number);
        let whole = |run: &&Arc<RunInfo>| {
            let (first, end) = (run.first_segment, run.last_segment.saturating_add(1));
            named(end) - named(first) == shown(end) - shown(first)
        };
        let runs = manifest.runs.iter().filter(whole).cloned().collect();
        let named = manifest.runs.clone();
        Self(Arc::new(Inner { group, timelines, segments, runs, named, durable, written, settled }))
    }

    /// Whose write order.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.0.group
    }

    /// The journal's branches of history.
    #[must_use]
    pub fn timelines(&self) -> &[TimelineInfo] {
        &self.0.timelines
    }

    /// What was durable.
    #[must_use]
    pub fn durable(&self) -> DurableLsn {
        self.0.durable
    }

    /// The last LSN that was whole in what was written: the furthest that a view can look.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.0.written
    }

    /// The filter's word that everything up to here completed well, as far as it was written.
    #[must_use]
    pub fn settled(&self) -> Lsn {
        self.0.settled
    }

    /// First and last LSN with a part in the journal, of one timeline.
    #[must_use]
    pub fn span(&self, timeline: Timeline) -> Option<(Lsn, Lsn)> {
        let mut of = self.of(timeline);
        let first = of.next()?;
        Some((first.first_lsn, of.last().unwrap_or(first).last_lsn))
    }

    pub(super) fn segments(&self) -> &[Arc<SegmentView>] {
        &self.0.segments
    }

    /// Runs of the levelled index, in the order of the segments that they hold; of each all segments are here that were not
    /// dropped.
    pub(super) fn runs(&self) -> &[Arc<RunInfo>] {
        &self.0.runs
    }

    /// The run that holds a segment's index, whether or not all of its segments are here.
    pub(super) fn run_of(&self, segment: u64) -> Option<&Arc<RunInfo>> {
        let at = self.0.named.partition_point(|run| run.last_segment < segment);
        self.0.named.get(at).filter(|run| run.covers(segment))
    }

    pub(super) fn of(&self, timeline: Timeline) -> impl Iterator<Item = &Arc<SegmentView>> {
        self.0.segments.iter().filter(move |segment| segment.timeline == timeline)
    }
}
