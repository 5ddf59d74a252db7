//! A replica's catalogue as the documents that scripts read.

use crate::report::{
    At, Gap, Point, PointKind, PointPolicy, Points, Policy, Problem, ProblemClass, Range, RangeKind, State,
    TimelineEntry, TimelineRole, TimelineState, WhenFull,
};
use cdp_core::journal::{self, OpenError, PointsMode, ReadError, SessionKind};
use cdp_core::media::{MediaError, MediaErrorKind};
use cdp_core::replica::base::BaseError;
use cdp_core::replica::catalogue::{self, Branch, LossReason, Moment, Role};
use cdp_core::replica::{NotRestorable, Replica, ReplicaError, ResolveError};
use cdp_core::trust::KeyError;
use cdp_core::types::{Lsn, WallTime};

/// Points in one answer when nobody says how many.
const LIMIT: usize = 1000;

/// A moment.
#[must_use]
pub fn at(replica: &Replica, moment: &Moment) -> At {
    let point = replica.catalogue().branch(moment.timeline).and_then(|branch| {
        let points = branch.points();
        let found = points.binary_search_by_key(&moment.lsn, |point| point.id.lsn).ok()?;
        Some(points[found].id.into())
    });
    At { timeline: moment.timeline.into(), lsn: moment.lsn, time: moment.stamp.time, point }
}

/// Why a moment was not found, with its neighbours.
#[must_use]
pub fn unresolved(replica: &Replica, error: &ResolveError) -> Problem {
    match error {
        ResolveError::NotRestorable(NotRestorable { what, nearest, unknown }) => {
            let message = what.to_string();
            let sides = [nearest.before, nearest.after];
            let nearest: Vec<_> = sides.iter().flatten().map(|moment| at(replica, moment)).collect();
            let hint = if nearest.is_empty() {
                "nothing can be restored yet: the first copy of the disks is not complete"
            } else if *unknown {
                "`cdp points` lists what there is"
            } else {
                "take one of the nearest moments, or let --nearest before|after do it"
            };
            Problem::new(ProblemClass::NotRestorable, "not-restorable", message).hint(hint).nearest(nearest)
        }
        ResolveError::Damaged { damage, nearest } => {
            let sides = [nearest.before, nearest.after];
            let nearest = sides.iter().flatten().map(|moment| at(replica, moment)).collect();
            damaged(damage.to_string()).nearest(nearest)
        }
        ResolveError::Ambiguous { .. } => Problem::new(ProblemClass::Usage, "ambiguous", error.to_string()),
        ResolveError::Replica(error) => unreadable(error),
    }
}

/// What it means that a replica cannot be read: damage is told apart from everything else.
#[must_use]
pub fn unreadable(error: &ReplicaError) -> Problem {
    let damage = match error {
        ReplicaError::Base(error) => is_base_damage(error),
        ReplicaError::Open(OpenError::Segment(error)) | ReplicaError::Journal(error) => is_damage(error),
        ReplicaError::Open(error) => matches!(error, OpenError::Damaged(_) | OpenError::Manifest { .. }),
        _ => false,
    };
    if damage {
        return damaged(error.to_string());
    }
    if let Some(error) = key_error(error) {
        return locked(error);
    }
    if is_without_room(error) {
        return Problem::new(ProblemClass::Failed, "no-space", error.to_string()).hint("make room on that disk");
    }
    Problem::new(ProblemClass::Failed, "unreadable", error.to_string())
}

fn is_without_room(error: &ReplicaError) -> bool {
    match error {
        ReplicaError::Media(error) | ReplicaError::Open(OpenError::Media(error)) => error.is_no_space(),
        _ => false,
    }
}

fn key_error(error: &ReplicaError) -> Option<&KeyError> {
    match error {
        ReplicaError::Open(OpenError::AtRest { source, .. }) | ReplicaError::Base(BaseError::AtRest { source, .. }) => {
            Some(source)
        }
        ReplicaError::Open(OpenError::Segment(error)) | ReplicaError::Journal(error) => key_error_of_read(error),
        _ => None,
    }
}

fn key_error_of_read(error: &ReadError) -> Option<&KeyError> {
    match error {
        ReadError::AtRest { source, .. } => Some(source),
        ReadError::Below { source, .. } => match source.downcast_ref::<BaseError>() {
            Some(BaseError::AtRest { source, .. }) => Some(source),
            _ => source.downcast_ref::<ReadError>().and_then(key_error_of_read),
        },
        _ => None,
    }
}

/// A replica that is sealed at rest, and its key is not there or another one.
#[must_use]
pub fn locked(error: &KeyError) -> Problem {
    match error {
        KeyError::Damaged { .. } => Problem::new(ProblemClass::Damage, "key-damaged", error.to_string()),
        KeyError::Missing => Problem::new(ProblemClass::Refused, "key-missing", error.to_string())
            .hint("it was looked for in --key-file and in the environment variable CDP_KEY"),
        KeyError::Malformed { .. } => Problem::new(ProblemClass::Usage, "key-malformed", error.to_string()),
        _ => Problem::new(ProblemClass::Refused, "key-wrong", error.to_string()),
    }
}

/// Damage, where only the fact is known.
#[must_use]
pub fn damaged(message: String) -> Problem {
    let hint = "`cdp verify` says what is damaged and which moments are still good";
    Problem::new(ProblemClass::Damage, "damaged", message).hint(hint)
}

/// Whether stored bytes are not what was stored (else the media did not give them).
#[must_use]
pub fn is_damage(error: &ReadError) -> bool {
    match error {
        ReadError::Format { .. } | ReadError::Frame { .. } => true,
        ReadError::Index { .. } | ReadError::Dangling { .. } => true,
        // Below a session lies another view.
        ReadError::Below { source, .. } => {
            source.downcast_ref::<BaseError>().is_some_and(is_base_damage)
                || source.downcast_ref::<ReadError>().is_some_and(is_damage)
        }
        ReadError::Media(error) => is_missing(error),
        ReadError::AtRest { source, .. } => matches!(source, KeyError::Damaged { .. }),
        ReadError::NotWritten { .. } | ReadError::GivenUp { .. } => false,
    }
}

/// Whether a file that the manifest names, or its end, is not there.
fn is_missing(error: &MediaError) -> bool {
    matches!(error.kind, MediaErrorKind::Short | MediaErrorKind::NotFound)
}

fn is_base_damage(error: &BaseError) -> bool {
    match error {
        BaseError::Media(error) => is_missing(error),
        BaseError::Table { .. } | BaseError::Length { .. } | BaseError::Page { .. } | BaseError::Block { .. } => true,
        BaseError::NotOpened { .. } => true,
        BaseError::AtRest { source, .. } => matches!(source, KeyError::Damaged { .. }),
    }
}

/// What is known to be missing or damaged of a replica without reading it through.
pub(super) fn damage_of(replica: &Replica) -> Option<String> {
    let base = || replica.bases().check().err().map(|error| error.to_string());
    replica.damage().map(ToString::to_string).or_else(base)
}

/// Everything that can be restored, newest first; points between two times, at most so many.
#[must_use]
pub fn points(replica: &Replica, since: Option<WallTime>, until: Option<WallTime>, limit: Option<u32>) -> Points {
    let catalogue = replica.catalogue();
    let mut document = Points {
        group: replica.manifest().name.clone(),
        disks: super::disks_now(replica).into_iter().map(|disk| disk.name).collect(),
        damaged: damage_of(replica),
        ..Points::default()
    };
    let limit = limit.map_or(LIMIT, |limit| limit as usize);
    let branches: Vec<_> = catalogue.branches().into_iter().rev().collect();
    for branch in &branches {
        document.timelines.push(timeline(branch));
        let ranges = branch.ranges().iter().rev().filter(|range| overlaps(range, since, until));
        document.ranges.extend(ranges.map(|found| range(branch, found)));
        let gaps = branch.gaps().iter().rev().filter(|gap| lies_in(branch, gap, (since, until)));
        document.gaps.extend(gaps.map(|found| gap(branch, found)));
    }
    // One more than is shown says that there are more.
    let points = newest(&branches, (since, until), limit.saturating_add(1));
    document.next = points.get(limit).map(|point| point.stamp.time);
    document.points = points.into_iter().take(limit).map(|found| point(replica, found)).collect();
    if let Some(next) = document.next {
        // Moments of periods are as many as points: those of the next page are on it.
        let of_next =
            |found: &Range| found.kind == RangeKind::Only && found.to_time <= next && !is_kept(replica, found);
        document.ranges.retain(|found| !of_next(found));
    }
    document
}

/// Whether a moment stands alone because its neighbours are merged.
fn is_kept(replica: &Replica, range: &Range) -> bool {
    let mut branches = replica.catalogue().branches().into_iter();
    let branch = branches.find(|branch| range.timeline == branch.timeline.into());
    let found = branch.and_then(|branch| {
        let at = branch.ranges().partition_point(|one| one.from() < range.from_lsn);
        branch.ranges().get(at)
    });
    found.is_some_and(|found| !found.is_of_period())
}

/// The newest points between two times that can be restored, by their stamps: a list goes on at the time where the one before
/// ended, and where a clock was set back those of an older timeline may be the later ones.
fn newest<'a>(
    branches: &[&'a Branch],
    (since, until): (Option<WallTime>, Option<WallTime>),
    wanted: usize,
) -> Vec<&'a catalogue::Point> {
    let inside = |time: WallTime| since.is_none_or(|since| time >= since) && until.is_none_or(|until| time <= until);
    let of = |branch: &&'a Branch| {
        let branch = *branch;
        branch.points().iter().rev().filter(move |point| inside(point.stamp.time)).map(move |point| (branch, point))
    };
    let mut points: Vec<_> = branches.iter().flat_map(of).collect();
    // Those of one time stay as they are, and most are in order already.
    points.sort_by_key(|(_, point)| std::cmp::Reverse(point.stamp.time));
    let restorable = points.into_iter().filter(|(branch, point)| branch.is_restorable(point.id.lsn));
    restorable.map(|(_, point)| point).take(wanted).collect()
}

/// Whether any of a branch's gap lies between two times. One in which the branch still is has no end.
fn lies_in(branch: &Branch, gap: &catalogue::Gap, (since, until): (Option<WallTime>, Option<WallTime>)) -> bool {
    // A clock may have been set back within.
    let (first, last) = (gap.from_time.min(gap.to_time), gap.from_time.max(gap.to_time));
    let ends_after = since.is_none_or(|since| last >= since || gap.open && branch.open);
    ends_after && until.is_none_or(|until| first <= until)
}

fn overlaps(range: &catalogue::Range, since: Option<WallTime>, until: Option<WallTime>) -> bool {
    let ends_after = since.is_none_or(|since| range.spans.iter().any(|span| span.to_time >= since));
    ends_after && until.is_none_or(|until| range.spans.iter().any(|span| span.from_time <= until))
}

/// Restorable ranges of all timelines, newest first; of the moments of periods the newest, and the oldest. How many were left off.
#[must_use]
pub fn ranges(replica: &Replica) -> (Vec<Range>, u64) {
    let branches = replica.catalogue().branches();
    shortened(&branches)
}

fn shortened(branches: &[&Branch]) -> (Vec<Range>, u64) {
    let all =
        || branches.iter().rev().flat_map(|branch| branch.ranges().iter().rev().map(move |found| (branch, found)));
    let of_periods = all().filter(|(_, found)| found.is_of_period()).count();
    let mut number = 0;
    let shown = all().filter(|(_, found)| {
        number += usize::from(found.is_of_period());
        !found.is_of_period() || number < LIMIT || number == of_periods
    });
    (shown.map(|(branch, found)| range(branch, found)).collect(), of_periods.saturating_sub(LIMIT) as u64)
}

fn timeline(branch: &Branch) -> TimelineEntry {
    TimelineEntry {
        timeline: branch.timeline.into(),
        number: branch.number,
        parent: branch.parent.map(Into::into),
        fork_lsn: branch.fork,
        state: if branch.open { TimelineState::Open } else { TimelineState::Closed },
        role: if branch.role == Role::Trunk { TimelineRole::Trunk } else { TimelineRole::Session },
    }
}

/// Restorable ranges of one timeline, newest first.
#[must_use]
pub fn ranges_of(branch: &Branch) -> Vec<Range> {
    branch.ranges().iter().rev().map(|found| range(branch, found)).collect()
}

fn range(branch: &Branch, range: &catalogue::Range) -> Range {
    Range {
        timeline: branch.timeline.into(),
        kind: if range.only { RangeKind::Only } else { RangeKind::Every },
        from_lsn: range.from(),
        to_lsn: range.to(),
        from_time: range.from_stamp().time,
        to_time: range.to_stamp().time,
    }
}

/// A gap.
#[must_use]
pub fn gap(branch: &Branch, gap: &catalogue::Gap) -> Gap {
    Gap {
        timeline: branch.timeline.into(),
        from_lsn: gap.from,
        to_lsn: gap.to,
        from_time: gap.from_time,
        to_time: gap.to_time,
        reason: gap.reason.as_str().to_owned(),
        cause: match gap.reason {
            LossReason::Resync(cause) => Some(cause.as_str().to_owned()),
            LossReason::Gap(_) => None,
        },
        open: gap.open && branch.open,
    }
}

/// What the journal does not say yet, because nothing reaches it: from its end to the last LSN and to now. None where nothing can be
/// restored at all: nothing was lost there.
pub(super) fn open_gap(replica: &Replica, why: State, (to_lsn, to_time): (Lsn, WallTime)) -> Option<Gap> {
    let (trunk, latest) = (replica.catalogue().trunk()?, replica.catalogue().latest()?);
    // A gap that it does say is another one, for another reason.
    let listed = trunk.gaps().last().filter(|gap| gap.open).map(|gap| (gap.to, gap.to_time));
    let (end, from_time) = listed.unwrap_or((latest.lsn, latest.stamp.time));
    (to_lsn > end).then(|| Gap {
        timeline: trunk.timeline.into(),
        from_lsn: end.next(),
        to_lsn,
        from_time,
        to_time,
        reason: why.as_str().to_owned(),
        cause: None,
        open: true,
    })
}

/// A point.
#[must_use]
pub fn point(replica: &Replica, point: &catalogue::Point) -> Point {
    let kinds = point.mark.kinds;
    let named = [
        (kinds.short, PointKind::Short),
        (kinds.long, PointKind::Long),
        (kinds.mark, PointKind::Mark),
        (kinds.app, PointKind::App),
    ];
    let id = point.id;
    let pins = &replica.manifest().pins;
    Point {
        id: id.into(),
        timeline: id.timeline.into(),
        lsn: id.lsn,
        time: point.stamp.time,
        kinds: named.into_iter().filter_map(|(holds, kind)| holds.then_some(kind)).collect(),
        label: (!point.mark.label.is_empty()).then(|| point.mark.label.clone()),
        pinned: pins.iter().any(|pin| (pin.timeline, pin.lsn) == (id.timeline, id.lsn)),
        on_barrier: point.mark.on_barrier,
        set_consistent: kinds.set,
        disks: replica.complete_disks(id.timeline, id.lsn).into_iter().map(|disk| disk.name).collect(),
    }
}

/// A policy.
#[must_use]
pub fn policy(policy: &journal::Policy) -> Policy {
    let points = match policy.points {
        PointsMode::EveryWrite => PointPolicy::EveryWrite,
        PointsMode::PerPoint => PointPolicy::PerPoint,
    };
    let when_full = match policy.when_full {
        journal::WhenFull::Shorten => WhenFull::Shorten,
        journal::WhenFull::Stop => WhenFull::Stop,
    };
    let journal::Policy { rpo_ms, window_ms, max_bytes, reserve_bytes, long_term_ms, keep_ms, quota, .. } = *policy;
    Policy {
        rpo_ms,
        points,
        window_ms,
        max_bytes,
        reserve_bytes,
        long_term_ms,
        keep_ms,
        when_full,
        quota,
        warnings: Vec::new(),
    }
}

/// A session's name as people know it.
#[must_use]
pub fn session_name(session: &cdp_core::journal::SessionInfo) -> Option<String> {
    (session.kind == SessionKind::Named).then(|| session.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::frame::{GapReason, Mark, Note, PointKinds, RecordKind};
    use cdp_core::journal::Event;
    use cdp_core::types::{ClockEpoch, Stamp, Timeline};

    fn stamp(time: u64) -> Stamp {
        Stamp { epoch: ClockEpoch(1), time: WallTime(time) }
    }

    fn event(timeline: Timeline, lsn: u64, time: u64, kind: RecordKind, note: Option<Note>) -> Event {
        Event { timeline, lsn: Lsn(lsn), stamp: stamp(time), kind, disk: None, note }
    }

    /// A timeline with points at these LSNs and times.
    fn branch(number: u8, points: &[(u64, u64)]) -> Branch {
        let timeline = Timeline::new([number; 16]).unwrap();
        let parent = (number > 1).then(|| Timeline::new([number - 1; 16]).unwrap());
        let mut branch = Branch::new(timeline, number.into(), parent, Lsn(points[0].0 - 1), Role::Trunk);
        for (lsn, time) in points {
            let kinds = PointKinds { mark: true, ..PointKinds::default() };
            let mark = Mark { kinds, on_barrier: false, label: lsn.to_string() };
            branch.handle(event(timeline, *lsn, *time, RecordKind::Mark, Some(Note::Mark(mark))));
        }
        let (lsn, time) = points[points.len() - 1];
        branch.advance(Lsn(lsn), stamp(time));
        branch
    }

    /// All points, page by page as a script reads them.
    fn pages(branches: &[&Branch], limit: usize) -> Vec<u64> {
        let (mut until, mut all) = (None, Vec::new());
        loop {
            let found = newest(branches, (None, until), limit + 1);
            all.extend(found.iter().take(limit).map(|point| point.id.lsn.0));
            let Some(next) = found.get(limit) else { return all };
            until = Some(next.stamp.time);
        }
    }

    #[test]
    fn pages_of_points_lose_none_where_a_clock_was_set_back() {
        let old = branch(1, &[(10, 100), (11, 200), (12, 900)]);
        let new = branch(2, &[(20, 300), (21, 400), (22, 500)]);
        for limit in 1..8 {
            assert_eq!(pages(&[&new, &old], limit), [12, 22, 21, 20, 11, 10], "limit {limit}");
        }
        let some = newest(&[&new, &old], (Some(WallTime(200)), Some(WallTime(400))), 9);
        assert_eq!(some.iter().map(|point| point.id.lsn.0).collect::<Vec<_>>(), [21, 20, 11]);
    }

    #[test]
    fn of_many_periods_the_newest_and_the_oldest_are_shown() {
        let mut branch = branch(1, &[(1, 10)]);
        let timeline = branch.timeline;
        let last = 2 * (LIMIT as u64 + 200);
        for lsn in (2..last).step_by(2) {
            let begin = Note::PeriodBegin { from: Lsn(lsn) };
            branch.handle(event(timeline, lsn, lsn * 10, RecordKind::PeriodBegin, Some(begin)));
            branch.handle(event(timeline, lsn + 1, lsn * 10, RecordKind::Mark, Some(Note::Mark(Mark::default()))));
        }
        let begin = Note::PeriodBegin { from: Lsn(last) };
        branch.handle(event(timeline, last, last * 10, RecordKind::PeriodBegin, Some(begin)));
        branch.advance(Lsn(last), stamp(last * 10));
        let all = branch.ranges().len();
        let (shown, left_off) = shortened(&[&branch]);
        assert_eq!((shown.len() + left_off as usize, shown.len()), (all, LIMIT));
        assert_eq!((shown[0].from_lsn, shown[LIMIT - 1].from_lsn), (Lsn(last - 1), Lsn(1)));
        assert!(shown.iter().all(|range| range.kind == RangeKind::Only && range.from_lsn == range.to_lsn));
    }

    #[test]
    fn a_gap_is_listed_for_the_times_in_which_it_lies() {
        let mut branch = branch(1, &[(10, 100), (11, 200)]);
        let timeline = branch.timeline;
        let begin = Note::GapBegin { from: Lsn(12), reason: GapReason::Overload };
        branch.handle(event(timeline, 12, 300, RecordKind::GapBegin, Some(begin)));
        branch.advance(Lsn(13), stamp(400));
        let listed = |branch: &Branch, since: Option<u64>, until: Option<u64>| {
            let gaps = branch.gaps();
            assert_eq!(gaps.len(), 1);
            lies_in(branch, &gaps[0], (since.map(WallTime), until.map(WallTime)))
        };
        assert!(listed(&branch, None, None) && listed(&branch, Some(999), None), "it is open");
        assert!(!listed(&branch, None, Some(99)));
        branch.open = false;
        assert!(!listed(&branch, Some(999), None), "nobody is in it any more");
        let end = Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 };
        branch.handle(event(timeline, 14, 500, RecordKind::ResyncEnd, Some(end)));
        branch.advance(Lsn(20), stamp(600));
        assert!(
            listed(&branch, None, None) && listed(&branch, Some(500), None) && listed(&branch, Some(350), Some(400))
        );
        assert!(!listed(&branch, Some(501), None) && !listed(&branch, None, Some(99)));
    }
}
