//! What is left of timelines when their oldest records are merged: everything from a moment on, and single moments before it.

use super::{Branch, Catalogue, Point, Range, Role, Span};
use crate::frame::Mark;
use crate::journal::{KeptInfo, StampedMoment};
use crate::types::{Lsn, PointId, Stamp, Timeline};
use std::collections::BTreeSet;

impl Range {
    /// One moment that is kept apart from its neighbours.
    fn only(moment: &StampedMoment) -> Self {
        Self { only: true, kept: true, ..Self::of(moment) }
    }

    fn of(moment: &StampedMoment) -> Self {
        let StampedMoment { lsn, stamp: Stamp { epoch, time }, .. } = *moment;
        Self {
            spans: vec![Span { epoch, from: lsn, to: lsn, from_time: time, to_time: time }],
            only: false,
            kept: false,
        }
    }
}

impl Branch {
    /// What lies before the moment cannot be restored any more, and the moment itself can: it is in the bases.
    pub fn begin_at(&mut self, moment: &StampedMoment) {
        let lsn = moment.lsn;
        self.ranges.retain(|range| range.kept || range.to() >= lsn);
        self.gaps.retain(|gap| gap.to >= lsn);
        self.points.retain(|point| point.id.lsn >= lsn);
        self.pending.retain(|event| event.lsn > lsn);
        let kept = self.ranges.iter().take_while(|range| range.kept).count();
        match self.ranges.get_mut(kept).filter(|range| range.from() <= lsn) {
            Some(range) => {
                range.spans.retain(|span| span.to >= lsn);
                match range.spans.first_mut().filter(|span| span.from <= lsn) {
                    Some(span) if span.from < lsn => (span.from, span.from_time) = (lsn, moment.stamp.time),
                    Some(_) => {}
                    // The clock stepped right behind it.
                    None => range.spans.insert(0, Range::of(moment).spans[0]),
                }
            }
            None => self.ranges.insert(kept, Range::of(moment)),
        }
        if self.frontier.lsn < lsn {
            self.frontier = super::Frontier { lsn, stamp: Some(moment.stamp) };
        }
    }

    /// All of it is in the bases: only moments that are kept can be restored.
    fn end(&mut self) {
        self.ranges.clear();
        self.gaps.clear();
        self.points.clear();
        self.pending.clear();
    }

    /// These moments before its beginning, and no others, are kept.
    fn keep(&mut self, kept: &[KeptInfo]) {
        self.ranges.retain(|range| !range.kept);
        let begin = self.ranges.first().map_or(Lsn(u64::MAX), Range::from);
        self.points.retain(|point| point.id.lsn >= begin);
        let own = kept.iter().filter(|kept| kept.moment.timeline == self.timeline && kept.moment.lsn < begin);
        self.ranges.splice(0..0, own.clone().map(|kept| Range::only(&kept.moment)));
        let points = own.filter_map(|kept| {
            let id = PointId { timeline: self.timeline, lsn: kept.moment.lsn };
            Some(Point { id, stamp: kept.moment.stamp, mark: kept.point.clone()? })
        });
        self.points.splice(0..0, points.collect::<Vec<_>>());
    }
}

impl Catalogue {
    /// Nothing before `oldest` can be restored but what is `kept`.
    pub fn begin_at(&mut self, oldest: Option<&StampedMoment>, kept: &[KeptInfo]) {
        if let Some(oldest) = oldest {
            for merged in self.before(oldest.timeline) {
                self.branches.get_mut(&merged).into_iter().for_each(Branch::end);
            }
            self.branches.get_mut(&oldest.timeline).into_iter().for_each(|branch| branch.begin_at(oldest));
        }
        let trunk = self.branches.values_mut().filter(|branch| branch.role == Role::Trunk);
        trunk.for_each(|branch| branch.keep(kept));
    }

    /// At the oldest moment a point was made; the record that says so may be merged.
    pub(in crate::replica) fn begin_with(&mut self, oldest: &StampedMoment, mark: &Mark) {
        let Some(branch) = self.branches.get_mut(&oldest.timeline) else { return };
        let id = PointId { timeline: oldest.timeline, lsn: oldest.lsn };
        if let Err(at) = branch.points.binary_search_by_key(&id.lsn, |point| point.id.lsn) {
            branch.points.insert(at, Point { id, stamp: oldest.stamp, mark: mark.clone() });
        }
    }

    /// The timelines that lie wholly before one.
    pub(in crate::replica) fn before(&self, timeline: Timeline) -> BTreeSet<Timeline> {
        self.path(timeline).into_iter().skip(1).map(|(branch, _)| branch.timeline).collect()
    }
}
