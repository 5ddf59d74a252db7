//! What can be restored: a fold over the records that say so, per timeline.
//!
//! A *bracket* is open from a gap-begin or resync-begin to the resync-end that closes it; no LSN inside is restorable. Outside
//! of brackets every LSN is, as far as it is durable and settled (the *frontier*), but for *periods*: from a period-begin on only the LSN
//! that closes it is, and it only when that is behind the frontier. A bracket ends a period without closing it. Times are the source's; each restorable
//! range is cut into *spans* of one clock epoch, inside which times are ordered.

mod disks;
mod nearest;
mod past;
mod periods;

pub use self::disks::{DiskChange, DiskFact};
pub use self::nearest::Neighbours;
use self::nearest::{first_after, last_before};
use crate::frame::{GapReason, Mark, Note, RecordKind, ResyncReason};
use crate::journal::Event;
use crate::types::{ClockEpoch, Lsn, PointId, Stamp, Timeline, WallTime};
use std::collections::BTreeMap;

/// What a timeline is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The history of the protected disks.
    Trunk,
    /// Writes of somebody who works on a restored moment.
    Session,
}

/// A run of LSNs of one clock epoch, all restorable; both ends belong to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Inside it times are ordered.
    pub epoch: ClockEpoch,
    /// First restorable LSN.
    pub from: Lsn,
    /// Last restorable LSN.
    pub to: Lsn,
    /// Stamp of the first.
    pub from_time: WallTime,
    /// Stamp of the last durable record.
    pub to_time: WallTime,
}

/// A run of LSNs without a gap: each can be restored. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// One per clock epoch, in order.
    pub spans: Vec<Span>,
    /// A single moment: the point of a period, or kept though its neighbours are merged. Both ends are it.
    pub only: bool,
    /// It is kept though its neighbours are merged.
    kept: bool,
}

impl Range {
    /// Whether it is the one moment of a period: there may be as many as there are points.
    #[must_use]
    pub fn is_of_period(&self) -> bool {
        self.only && !self.kept
    }
    /// First restorable LSN.
    #[must_use]
    pub fn from(&self) -> Lsn {
        self.spans[0].from
    }
    /// Last restorable LSN.
    #[must_use]
    pub fn to(&self) -> Lsn {
        self.spans[self.spans.len() - 1].to
    }
    /// Stamp of the first.
    #[must_use]
    pub fn from_stamp(&self) -> Stamp {
        Stamp { epoch: self.spans[0].epoch, time: self.spans[0].from_time }
    }
    /// Stamp of the last.
    #[must_use]
    pub fn to_stamp(&self) -> Stamp {
        let last = self.spans[self.spans.len() - 1];
        Stamp { epoch: last.epoch, time: last.to_time }
    }
}

/// Why a run of history cannot be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LossReason {
    /// Writes were not recorded.
    Gap(GapReason),
    /// The replica was being made equal to the source again.
    Resync(ResyncReason),
}

impl LossReason {
    /// The reason as it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap(reason) => reason.as_str(),
            Self::Resync(_) => "resync",
        }
    }
}

/// A run of LSNs that cannot be restored; both ends belong to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// First LSN that is not restorable.
    pub from: Lsn,
    /// Last one so far.
    pub to: Lsn,
    /// Stamp of what lies before.
    pub from_time: WallTime,
    /// Stamp of what ended it, or of the newest record while it is open.
    pub to_time: WallTime,
    /// Why.
    pub reason: LossReason,
    /// It has not ended.
    pub open: bool,
}

/// A moment somebody wanted to be able to go back to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its name for ever.
    pub id: PointId,
    /// When it was closed.
    pub stamp: Stamp,
    /// What for.
    pub mark: Mark,
}

/// How far a timeline's records are safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frontier {
    /// Everything up to here is durable, whole and settled.
    pub lsn: Lsn,
    /// Stamp of the last such record.
    pub stamp: Option<Stamp>,
}

/// One timeline and what of it can be restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Branch {
    /// Its identity.
    pub timeline: Timeline,
    /// The number that people see, from 1.
    pub number: u32,
    /// The timeline it forked from.
    pub parent: Option<Timeline>,
    /// The last LSN of the parent that belongs to its past.
    pub fork: Lsn,
    /// Whether a writer may still append to it.
    pub open: bool,
    /// What it is for.
    pub role: Role,
    ranges: Vec<Range>,
    gaps: Vec<Gap>,
    points: Vec<Point>,
    /// Of single disks.
    changes: Vec<DiskChange>,
    /// Records that are not yet behind the frontier.
    pending: std::collections::VecDeque<Event>,
    frontier: Frontier,
    bracketed: bool,
    /// Inside a period that did not close yet.
    in_period: bool,
    /// Where the newest period begins: no range goes on over it.
    ends: Lsn,
    /// Stamp of the last restorable record of its past.
    past: Option<Stamp>,
}

impl Branch {
    /// A timeline of which nothing is known yet. The first range opens with the end of its first bracket or, without one, at
    /// its first record.
    #[must_use]
    pub fn new(timeline: Timeline, number: u32, parent: Option<Timeline>, fork: Lsn, role: Role) -> Self {
        Self {
            timeline,
            number,
            parent,
            fork,
            open: true,
            role,
            ranges: Vec::new(),
            gaps: Vec::new(),
            points: Vec::new(),
            changes: Vec::new(),
            pending: std::collections::VecDeque::new(),
            frontier: Frontier::default(),
            bracketed: false,
            in_period: false,
            ends: Lsn::ZERO,
            past: None,
        }
    }

    /// Tells when the past that it forks from ends: a gap at its beginning begins there.
    #[must_use]
    pub fn after(mut self, past: Option<Stamp>) -> Self {
        self.past = past;
        self
    }

    /// Stamp of its last record that is safe: of its past, if it has none of its own.
    #[must_use]
    pub fn last(&self) -> Option<Stamp> {
        self.frontier.stamp.or(self.past)
    }

    /// Takes note of a record; it counts once the frontier has reached it. Records come in LSN order; those before the beginning
    /// are passed over.
    pub fn handle(&mut self, event: Event) {
        // What a moment's disks were is also told by what became of them later.
        if let Some((disk, what)) = DiskFact::of(&event) {
            self.changes.push(DiskChange { lsn: event.lsn, disk, what });
        }
        if event.lsn > self.frontier.lsn {
            self.pending.push_back(event);
        } else if event.lsn == self.frontier.lsn
            && let Some(Note::Mark(mark)) = event.note
        {
            // The oldest moment, at which a point was made.
            self.add_point(event.lsn, event.stamp, mark);
        }
    }

    fn add_point(&mut self, lsn: Lsn, stamp: Stamp, mark: Mark) {
        self.points.push(Point { id: PointId { timeline: self.timeline, lsn }, stamp, mark });
    }

    /// The point at `lsn` is common to a set. One that no longer stands was lost or let go of meanwhile.
    fn common_point(&mut self, lsn: Lsn, label: &str) {
        if let Ok(at) = self.points.binary_search_by_key(&lsn, |point| point.id.lsn) {
            let mark = &mut self.points[at].mark;
            mark.kinds.set = true;
            label.clone_into(&mut mark.label);
        }
    }

    /// The frontier moved: everything up to `lsn` is durable and settled, and `stamp` is that of the last such record.
    pub fn advance(&mut self, lsn: Lsn, stamp: Stamp) {
        // Where nothing of its own is durable yet, what is durable is its past.
        if lsn <= self.frontier.lsn.max(self.fork) {
            return;
        }
        while self.pending.front().is_some_and(|event| event.lsn <= lsn) {
            let Some(event) = self.pending.pop_front() else { break };
            self.fold(&event);
        }
        self.reach(lsn, stamp);
        self.frontier = Frontier { lsn, stamp: Some(stamp) };
    }

    fn fold(&mut self, event: &Event) {
        if DiskFact::of(event).is_some() {
            return self.reach(event.lsn, event.stamp);
        }
        match &event.note {
            Some(Note::GapBegin { from, reason }) => self.open_bracket(*from, event, LossReason::Gap(*reason)),
            Some(Note::ResyncBegin { from, reason }) => self.open_bracket(*from, event, LossReason::Resync(*reason)),
            Some(Note::ResyncEnd { .. }) => {
                self.close_bracket(event);
                self.bracketed = false;
                self.reach(event.lsn, event.stamp);
            }
            // A damaged order may have one where none can be.
            Some(Note::PeriodBegin { from }) if !self.bracketed => self.open_period(*from, event),
            Some(Note::Mark(mark)) if !self.bracketed => {
                self.in_period = false;
                self.reach(event.lsn, event.stamp);
                self.add_point(event.lsn, event.stamp, mark.clone());
            }
            Some(Note::SetPoint { lsn, label, .. }) => {
                self.common_point(*lsn, label);
                self.reach(event.lsn, event.stamp);
            }
            _ => {
                self.in_period &= event.kind != RecordKind::PeriodEnd;
                self.reach(event.lsn, event.stamp);
            }
        }
    }

    /// Everything up to `lsn` is restorable unless a bracket or a period is open.
    fn reach(&mut self, lsn: Lsn, stamp: Stamp) {
        if self.bracketed {
            if let Some(gap) = self.gaps.last_mut() {
                (gap.to, gap.to_time) = (gap.to.max(lsn), stamp.time);
            }
            return;
        }
        if self.in_period {
            return;
        }
        let Stamp { epoch, time } = stamp;
        let after_gap = self.gaps.last().map_or(Lsn::ZERO, |gap| gap.to).max(self.ends);
        match self.ranges.last_mut().filter(|range| range.to() > after_gap) {
            Some(range) => match range.spans.last_mut() {
                Some(span) if span.epoch == epoch => (span.to, span.to_time) = (span.to.max(lsn), time),
                before => {
                    // What the frontier jumped over belongs to the epoch before: the clock steps with a record of its own.
                    if let Some(before) = before {
                        before.to = before.to.max(lsn.prev());
                    }
                    range.spans.push(Span { epoch, from: lsn, to: lsn, from_time: time, to_time: time });
                }
            },
            None => {
                let spans = vec![Span { epoch, from: lsn, to: lsn, from_time: time, to_time: time }];
                self.ranges.push(Range { spans, only: false, kept: false });
            }
        }
    }

    fn open_bracket(&mut self, from: Lsn, event: &Event, reason: LossReason) {
        // A range that the bracket takes away, such as a timeline's first record, is not what lies before.
        let before = self.ranges.iter().rev().find(|range| range.from() < from).map(Range::to_stamp);
        let before = before.or(self.past).unwrap_or(event.stamp);
        let from_time = before.time;
        match self.ranges.last().map(Range::to) {
            // What lies between the last record and the bracket is whole.
            Some(to) if !self.bracketed && from > to.next() => self.reach(from.prev(), event.stamp),
            _ => self.cut(from),
        }
        self.close_bracket(event);
        self.in_period = false;
        let from = self.bracket_from(from, from_time, event.lsn);
        let (to, to_time) = (event.lsn, event.stamp.time);
        self.gaps.push(Gap { from, to, from_time, to_time, reason, open: true });
        self.bracketed = true;
    }

    /// Where the bracket begins in the list that a record opened at `lsn`: what earlier ones take away is theirs, and what they do not
    /// reach of it is made theirs, so that nothing lies between them of which nothing is said.
    fn bracket_from(&mut self, from: Lsn, from_time: WallTime, lsn: Lsn) -> Lsn {
        let begin = match self.gaps.last() {
            // The one that was open reaches up to the record.
            _ if self.bracketed => lsn,
            Some(gap) if gap.to >= from => gap.to.next(),
            _ => from,
        };
        let touched = self.gaps.partition_point(|gap| gap.to < from);
        let mut next = begin;
        for gap in self.gaps[touched..].iter_mut().rev() {
            gap.to = next.prev();
            next = gap.from;
        }
        if let Some(gap) = self.gaps.get_mut(touched).filter(|gap| gap.from > from) {
            (gap.from, gap.from_time) = (from, from_time);
        }
        begin
    }

    /// Nothing from `from` on is restorable.
    fn cut(&mut self, from: Lsn) {
        self.ranges.retain(|range| range.from() < from);
        if let Some(range) = self.ranges.last_mut() {
            range.spans.retain(|span| span.from < from);
            if let Some(span) = range.spans.last_mut() {
                span.to = span.to.min(from.prev());
            }
        }
    }

    /// The bracket that is open ends right before `event`.
    fn close_bracket(&mut self, event: &Event) {
        if let Some(gap) = self.gaps.last_mut().filter(|gap| gap.open) {
            (gap.to, gap.to_time, gap.open) = (event.lsn.prev(), event.stamp.time, false);
        }
    }

    /// Restorable ranges, oldest first.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// What cannot be restored, oldest first. What precedes the first range (seeding) is not listed: nothing was lost there.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        let seeding = self.gaps.first().is_some_and(|gap| gap.reason == LossReason::Resync(ResyncReason::Seeding));
        &self.gaps[usize::from(seeding && self.parent.is_none())..]
    }

    /// Points, oldest first.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// How far its records are safe.
    #[must_use]
    pub fn frontier(&self) -> Frontier {
        self.frontier
    }

    /// Whether `lsn` lies in a restorable range.
    #[must_use]
    pub fn is_restorable(&self, lsn: Lsn) -> bool {
        self.range_of(lsn).is_some()
    }

    fn range_of(&self, lsn: Lsn) -> Option<&Range> {
        let after = self.ranges.partition_point(|range| range.from() <= lsn);
        self.ranges[..after].last().filter(|range| lsn <= range.to())
    }
}

/// A moment that can be restored, and when it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The branch of history.
    pub timeline: Timeline,
    /// Everything up to and with this record.
    pub lsn: Lsn,
    /// Stamp of the range's end nearest to what was asked for, or of the record itself where that is known.
    pub stamp: Stamp,
}

/// Where a time lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AtTime {
    /// Inside a span; `also` are spans of other epochs that hold the same time, newest first.
    Inside {
        /// Whose.
        timeline: Timeline,
        /// The newest span that holds it.
        span: Span,
        /// The others.
        also: Vec<(Timeline, Span)>,
    },
    /// In none.
    Outside(Neighbours),
}

/// All timelines of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Catalogue {
    branches: BTreeMap<Timeline, Branch>,
}

impl Catalogue {
    /// Adds a timeline, or replaces what is known of it.
    pub fn insert(&mut self, branch: Branch) {
        self.branches.insert(branch.timeline, branch);
    }

    /// Forgets a timeline.
    pub fn remove(&mut self, timeline: Timeline) {
        self.branches.remove(&timeline);
    }

    /// Forgets those that `stays` does not hold for.
    pub fn retain(&mut self, stays: impl Fn(&Branch) -> bool) {
        self.branches.retain(|_, branch| stays(branch));
    }

    /// A timeline.
    #[must_use]
    pub fn branch(&self, timeline: Timeline) -> Option<&Branch> {
        self.branches.get(&timeline)
    }

    /// A timeline, to be changed.
    pub fn branch_mut(&mut self, timeline: Timeline) -> Option<&mut Branch> {
        self.branches.get_mut(&timeline)
    }

    /// Every timeline in the order of its number.
    #[must_use]
    pub fn branches(&self) -> Vec<&Branch> {
        let mut branches: Vec<_> = self.branches.values().collect();
        branches.sort_by_key(|branch| branch.number);
        branches
    }

    /// The trunk's newest timeline.
    #[must_use]
    pub fn trunk(&self) -> Option<&Branch> {
        self.branches.values().filter(|branch| branch.role == Role::Trunk).max_by_key(|branch| branch.number)
    }

    /// The way from a timeline back to the first one: each with the last LSN of it that belongs to the way.
    #[must_use]
    pub fn path(&self, timeline: Timeline) -> Vec<(&Branch, Lsn)> {
        let mut path = Vec::new();
        let (mut next, mut upto) = (self.branch(timeline), Lsn(u64::MAX));
        // A damaged catalogue could run in a circle: no path is longer than there are timelines.
        while let Some(branch) = next.filter(|_| path.len() < self.branches.len()) {
            path.push((branch, upto));
            upto = branch.fork;
            next = branch.parent.and_then(|parent| self.branch(parent));
        }
        path
    }

    /// The branch of the trunk's path on which `lsn` lies.
    #[must_use]
    pub fn on_path(&self, lsn: Lsn) -> Option<&Branch> {
        let path = self.path(self.trunk()?.timeline);
        path.iter().find(|(branch, upto)| lsn > branch.fork && lsn <= *upto).or(path.last()).map(|(branch, _)| *branch)
    }

    /// The last restorable moment on the path of `timeline`.
    #[must_use]
    pub fn latest_of(&self, timeline: Timeline) -> Option<Moment> {
        self.path(timeline).iter().find_map(|(branch, upto)| last_before(branch, *upto))
    }

    /// The last restorable moment of the trunk.
    #[must_use]
    pub fn latest(&self) -> Option<Moment> {
        self.latest_of(self.trunk()?.timeline)
    }

    /// The nearest restorable moments to an LSN of a timeline, on its own path and, forward, on the trunk's.
    #[must_use]
    pub fn neighbours(&self, timeline: Timeline, lsn: Lsn) -> Neighbours {
        let before = self.path(timeline).iter().find_map(|(branch, upto)| last_before(branch, lsn.prev().min(*upto)));
        let own = self.branch(timeline).into_iter();
        let trunk = self.trunk().map(|trunk| self.path(trunk.timeline)).unwrap_or_default();
        let after = own
            .chain(trunk.iter().rev().map(|(branch, _)| *branch))
            .filter_map(|branch| first_after(branch, lsn))
            .min_by_key(|moment| moment.lsn);
        Neighbours { before, after }
    }

    /// Where a time lies on the trunk's path.
    #[must_use]
    pub fn at_time(&self, time: WallTime) -> AtTime {
        let Some(trunk) = self.trunk() else { return AtTime::Outside(Neighbours::default()) };
        let spans: Vec<(Timeline, Span)> = self
            .path(trunk.timeline)
            .iter()
            .flat_map(|(branch, upto)| {
                let ranges = branch.ranges.iter().rev().filter(|range| range.from() <= *upto);
                ranges.flat_map(|range| range.spans.iter().rev()).map(|span| (branch.timeline, *span))
            })
            .collect();
        let mut inside = spans.iter().filter(|(_, span)| span.from_time <= time && time <= span.to_time);
        if let Some((timeline, span)) = inside.next() {
            return AtTime::Inside { timeline: *timeline, span: *span, also: inside.copied().collect() };
        }
        // Between two epochs of one range nothing was written: the clock jumped, or the protection was stopped cleanly.
        let between = |spans: &[(Timeline, Span)]| {
            let [(later, next), (timeline, span)] = spans else { return None };
            let joined = later == timeline && next.from == span.to.next();
            (joined && span.to_time < time && time < next.from_time).then_some((*timeline, *span))
        };
        if let Some((timeline, span)) = spans.windows(2).find_map(between) {
            return AtTime::Inside { timeline, span, also: Vec::new() };
        }
        let moment = |timeline, lsn, epoch, time| Moment { timeline, lsn, stamp: Stamp { epoch, time } };
        let before = spans
            .iter()
            .filter(|(_, span)| span.to_time < time)
            .max_by_key(|(_, span)| (span.to_time, span.to))
            .map(|(timeline, span)| moment(*timeline, span.to, span.epoch, span.to_time));
        let after = spans
            .iter()
            .filter(|(_, span)| span.from_time > time)
            .min_by_key(|(_, span)| (span.from_time, span.from))
            .map(|(timeline, span)| moment(*timeline, span.from, span.epoch, span.from_time));
        AtTime::Outside(Neighbours { before, after })
    }

    /// The points with this label that still can be restored, newest first.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Vec<&Point> {
        let mut found: Vec<_> = self
            .branches
            .values()
            .flat_map(|branch| branch.points.iter().filter(|point| branch.is_restorable(point.id.lsn)))
            .filter(|point| !label.is_empty() && point.mark.label == label)
            .collect();
        found.sort_by_key(|point| std::cmp::Reverse(point.id.lsn));
        found
    }
}

#[cfg(test)]
mod tests;
