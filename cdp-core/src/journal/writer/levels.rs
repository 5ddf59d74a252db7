//! Runs of the levelled index in the manifest: others make them, the writer names them and lets go of those they replace.

use super::Writer;
use crate::journal::level::{EmptyTask, IndexMergeError, IndexMergeTask, IndexPlan, RunInfo, run_name};
use crate::journal::manifest::{Generation, SegmentInfo};
use crate::mistakes::{self, Mistake};
use crate::types::SegmentId;
use std::sync::Arc;

impl Writer {
    /// The next merge of the levelled index, if there is one to do: for an [`IndexMerge`](crate::journal::IndexMerge), whose
    /// run comes back by [`Writer::publish_run`]. One at a time: a second one asked for in between would be the same again.
    pub fn next_index_merge(&mut self) -> Option<IndexMergeTask> {
        if self.closing || self.failed.is_some() {
            return None;
        }
        let plan = IndexPlan::next(&self.manifest, &self.unmerged)?;
        let id = loop {
            let Some(id) = SegmentId::new((self.ids)()) else { continue };
            let is_new = self.manifest.segments.iter().all(|segment| segment.id != id);
            if is_new && self.manifest.runs.iter().all(|run| run.id != id) {
                break id;
            }
        };
        // Taken in memory only: of a merge that does not come to its end nothing is named, and a start removes its file.
        let number = self.manifest.next_run;
        self.manifest.next_run += 1;
        let (replica, keep_free_bytes) = (self.manifest.replica, self.options.keep_free_bytes);
        Some(IndexMergeTask { plan, replica, number, id, keep_free_bytes })
    }

    /// Names a run that is durable; the runs that it replaces leave the manifest with it, and the media when that is durable.
    /// None: it is of no use any more, since its segments were dropped or another run holds them; its file is removed.
    pub fn publish_run(&mut self, run: RunInfo) -> Option<Generation> {
        let name = crate::media::join(&self.options.directory, &run_name(run.number));
        let known = |other: &Arc<RunInfo>| other.number == run.number;
        if run.number >= self.manifest.next_run || self.manifest.runs.iter().any(known) {
            return None;
        }
        let (first, last) = (run.first_segment, run.last_segment);
        let overlaps = |other: &Arc<RunInfo>| other.first_segment <= last && other.last_segment >= first;
        let inside = |other: &Arc<RunInfo>| {
            other.level < run.level && other.first_segment >= first && other.last_segment <= last
        };
        let fits = self.manifest.runs.iter().filter(|other| overlaps(other)).all(inside);
        let mut segments = segments_of(&self.manifest.segments, &run).iter().peekable();
        let of_it = |segment: &SegmentInfo| segment.summary().is_some_and(|summary| summary.timeline == run.timeline);
        if !fits || segments.peek().is_none() || !segments.all(of_it) || self.closing || self.failed.is_some() {
            let generation = self.manifest_durable();
            self.catalog.remove_at(generation, name);
            return None;
        }
        let run = Arc::new(run);
        let gone = self.take_runs(overlaps);
        let at = self.manifest.runs.partition_point(|other| other.first_segment < run.first_segment);
        self.manifest.runs.insert(at, Arc::clone(&run));
        let generation = self.catalog.touch(&mut self.manifest);
        gone.into_iter().for_each(|name| self.catalog.remove_at(generation, name));
        self.named.retain(|number, _| self.manifest.runs.iter().any(|run| run.number == *number));
        self.named.insert(run.number, generation);
        self.unemptied.retain(|number| self.manifest.runs.iter().any(|run| run.number == *number));
        Some(generation)
    }

    /// The next footers to be emptied, if there are any: for an [`IndexEmptying`](crate::journal::IndexEmptying), whose end is
    /// told by [`Writer::emptied`]. Only those that a durable manifest names a run for.
    #[must_use]
    pub fn next_emptying(&self) -> Option<EmptyTask> {
        if self.closing || self.failed.is_some() {
            return None;
        }
        let durable = |run: &&Arc<RunInfo>| {
            let named = self.named.get(&run.number);
            named.is_none_or(|generation| *generation <= self.manifest_durable()) || mistakes::is(Mistake::EmptiedEarly)
        };
        let wanted = |run: &&Arc<RunInfo>| !run.emptied && !self.unemptied.contains(&run.number);
        let run = self.manifest.runs.iter().filter(wanted).find(durable)?;
        let index = |info: &SegmentInfo| Some((info.number, info.id, info.key, info.summary()?.index_extent()));
        let segments = segments_of(&self.manifest.segments, run).iter().filter_map(index).collect();
        Some(EmptyTask { run: run.number, segments })
    }

    /// The footers of all segments of a run are emptied, durably: its manifest's entry says so from now on. None: it is not
    /// there any more.
    pub fn emptied(&mut self, number: u64) -> Option<Generation> {
        let run = self.manifest.runs.iter_mut().find(|run| run.number == number)?;
        Arc::make_mut(run).emptied = true;
        Some(self.catalog.touch(&mut self.manifest))
    }

    /// A footer of a run's segments could not be emptied: the run is not asked for again in this writer's life, so that others are,
    /// and merges go on. A run that takes its place is.
    pub fn emptying_failed(&mut self, number: u64) {
        self.unemptied.insert(number);
    }

    /// A merge did not come to its end. A run that cannot be read leaves the manifest, so that its segments are merged again; a
    /// segment that cannot be read, index and frames, is not asked for again in this writer's life: its neighbours are
    /// merged without it. Says whether another merge may go better.
    pub fn merge_failed(&mut self, error: &IndexMergeError) -> bool {
        match error {
            IndexMergeError::Segment { segment, .. } => self.unmerged.insert(*segment),
            IndexMergeError::Run { run, .. } => {
                let gone = self.take_runs(|other| other.number == *run);
                let found = !gone.is_empty();
                if found {
                    let generation = self.catalog.touch(&mut self.manifest);
                    gone.into_iter().for_each(|name| self.catalog.remove_at(generation, name));
                }
                found
            }
            _ => false,
        }
    }

    /// Lets go of runs whose segments were all dropped; gives their files' names.
    pub(super) fn drop_empty_runs(&mut self) -> Vec<String> {
        let segments = std::mem::take(&mut self.manifest.segments);
        let gone = self.take_runs(|run| segments_of(&segments, run).is_empty());
        self.manifest.segments = segments;
        gone
    }

    fn take_runs(&mut self, goes: impl Fn(&Arc<RunInfo>) -> bool) -> Vec<String> {
        let (gone, stay): (Vec<_>, _) = std::mem::take(&mut self.manifest.runs).into_iter().partition(goes);
        self.manifest.runs = stay;
        gone.iter().map(|run| crate::media::join(&self.options.directory, &run_name(run.number))).collect()
    }
}

/// The segments that a run holds and that are still there.
fn segments_of<'a>(segments: &'a [SegmentInfo], run: &RunInfo) -> &'a [SegmentInfo] {
    let first = segments.partition_point(|segment| segment.number < run.first_segment);
    let end = segments.partition_point(|segment| segment.number <= run.last_segment);
    &segments[first..end]
}
