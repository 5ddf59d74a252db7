//! What periods leave of a history.

use super::*;

fn begin(lsn: u64) -> Event {
    event(lsn, RecordKind::PeriodBegin, Some(Note::PeriodBegin { from: Lsn(lsn) }))
}

fn end(lsn: u64) -> Event {
    event(lsn, RecordKind::PeriodEnd, None)
}

fn only(branch: &Branch) -> Vec<bool> {
    branch.ranges().iter().map(|range| range.only).collect()
}

fn per_point() -> Branch {
    let mut branch = seeded(1);
    for one in [begin(15), mark(20, "one"), begin(21), mark(30, "two"), begin(31)] {
        branch.handle(one);
    }
    branch
}

#[test]
fn of_a_period_only_its_point_can_be_restored_and_not_before_it_is_safe() {
    let mut branch = per_point();
    branch.advance(Lsn(19), stamp(1, 190));
    assert_eq!((ranges(&branch), only(&branch)), (vec![(10, 14)], vec![false]));
    branch.advance(Lsn(20), stamp(1, 200));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20)]);
    branch.advance(Lsn(36), stamp(1, 360));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20), (30, 30)]);
    assert_eq!(only(&branch), [false, true, true]);
    assert!(branch.gaps().is_empty(), "nothing was lost");
    assert!([14, 20, 30].into_iter().all(|lsn| branch.is_restorable(Lsn(lsn))));
    assert!([15, 19, 21, 29, 31, 36].into_iter().all(|lsn| !branch.is_restorable(Lsn(lsn))));
    assert_eq!(branch.ranges()[1].to_stamp(), stamp(1, 200), "and no later time is it");
    let mut catalogue = Catalogue::default();
    catalogue.insert(branch);
    let latest = catalogue.latest().map(|moment| moment.lsn);
    assert_eq!(latest, Some(Lsn(30)), "what is open of a period is not the latest");
    let near = catalogue.neighbours(timeline(1), Lsn(25));
    assert_eq!((near.before.unwrap().lsn, near.after.unwrap().lsn), (Lsn(20), Lsn(30)));
    let AtTime::Outside(near) = catalogue.at_time(WallTime(255)) else { panic!("no moment is that old") };
    assert_eq!((near.before.unwrap().lsn, near.after.unwrap().lsn), (Lsn(20), Lsn(30)));
    assert!(matches!(catalogue.at_time(WallTime(300)), AtTime::Inside { span, .. } if span.from == Lsn(30)));
    assert_eq!(catalogue.labelled("one").len(), 1);
}

#[test]
fn behind_the_end_of_periods_every_write_can_be_restored_again() {
    let mut branch = per_point();
    branch.handle(end(40));
    branch.handle(begin(61));
    branch.advance(Lsn(55), stamp(1, 550));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20), (30, 30), (40, 55)]);
    branch.advance(Lsn(70), stamp(1, 700));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20), (30, 30), (40, 60)]);
    assert_eq!(only(&branch), [false, true, true, false]);
}

#[test]
fn a_gap_follows_what_was_closed_before_it() {
    let mut branch = per_point();
    branch.handle(end(40));
    branch.handle(event(41, RecordKind::GapBegin, Some(Note::GapBegin { from: Lsn(42), reason: GapReason::Overload })));
    branch.handle(event(60, RecordKind::GapEnd, None));
    branch.handle(resync_begin(61, 61, ResyncReason::Gap));
    branch.handle(resync_end(70));
    branch.handle(begin(71));
    branch.handle(mark(80, "after"));
    branch.advance(Lsn(85), stamp(1, 850));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20), (30, 30), (40, 41), (70, 70), (80, 85)]);
    assert_eq!(gaps(&branch), [(42, 60, "overload"), (61, 69, "resync")]);
}

#[test]
fn a_resync_takes_the_period_that_it_ends_and_points_that_were_not_settled() {
    let mut branch = per_point();
    // The write at 27 failed; that was known when 34 had been given.
    branch.handle(resync_begin(35, 27, ResyncReason::WriteFailed));
    branch.handle(resync_end(44));
    branch.handle(begin(45));
    branch.advance(Lsn(26), stamp(1, 260));
    branch.advance(Lsn(50), stamp(1, 500));
    assert_eq!(ranges(&branch), [(10, 14), (20, 20), (44, 44)]);
    assert_eq!(gaps(&branch), [(27, 43, "resync")]);
    assert!(!branch.is_restorable(Lsn(30)), "its point is lost");
}

/// The fork is the last durable LSN, which nobody may see.
#[test]
fn a_timeline_that_ended_inside_a_period_leads_to_the_next_one_and_shows_nothing_of_it() {
    let mut first = per_point();
    first.advance(Lsn(36), stamp(1, 360));
    let mut second = Branch::new(timeline(2), 2, Some(timeline(1)), Lsn(36), Role::Trunk).after(Some(stamp(1, 360)));
    let of_second = |event: Event| Event { timeline: timeline(2), ..event };
    second.handle(of_second(event(1001, RecordKind::TimelineStart, None)));
    second.handle(of_second(resync_begin(1002, 1001, ResyncReason::UncleanStop)));
    second.advance(Lsn(1003), stamp(1, 10_030));
    let mut catalogue = Catalogue::default();
    catalogue.insert(first);
    catalogue.insert(second);
    assert_eq!(catalogue.latest().map(|moment| (moment.timeline, moment.lsn)), Some((timeline(1), Lsn(30))));
    let branch = catalogue.branch_mut(timeline(2)).unwrap();
    branch.handle(of_second(resync_end(1010)));
    branch.advance(Lsn(1010), stamp(1, 10_100));
    assert_eq!(catalogue.latest().unwrap().lsn, Lsn(1010));
}

#[test]
fn what_is_merged_of_periods_is_gone_and_the_moment_that_it_ends_at_is_not() {
    let mut branch = per_point();
    branch.advance(Lsn(36), stamp(1, 360));
    let moment = crate::journal::StampedMoment { timeline: timeline(1), lsn: Lsn(20), stamp: stamp(1, 200) };
    branch.begin_at(&moment);
    assert_eq!(ranges(&branch), [(20, 20), (30, 30)]);
    // As it is loaded: the beginning first, then what the journal still holds.
    let mut loaded = Branch::new(timeline(1), 1, None, Lsn::ZERO, Role::Trunk);
    loaded.begin_at(&moment);
    for one in [mark(20, "one"), begin(21), mark(30, "two"), begin(31)] {
        loaded.handle(one);
    }
    loaded.advance(Lsn(36), stamp(1, 360));
    assert_eq!((ranges(&loaded), only(&loaded)), (vec![(20, 20), (30, 30)], vec![true, true]));
}
