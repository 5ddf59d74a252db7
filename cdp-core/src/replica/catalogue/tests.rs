//! What the fold says of histories whose answer is plain.

mod periods;
mod sets;

use super::*;
use crate::frame::{PointKinds, RecordKind};
use crate::types::{DiskId, MonoTime};

fn timeline(number: u8) -> Timeline {
    Timeline::new([number; 16]).unwrap()
}

fn stamp(epoch: u32, time: u64) -> Stamp {
    Stamp { epoch: ClockEpoch(epoch), time: WallTime(time) }
}

/// A record whose time is ten times its LSN.
fn event(lsn: u64, kind: RecordKind, note: Option<Note>) -> Event {
    Event { timeline: timeline(1), lsn: Lsn(lsn), stamp: stamp(1, lsn * 10), kind, disk: None, note }
}

fn resync_begin(lsn: u64, from: u64, reason: ResyncReason) -> Event {
    event(lsn, RecordKind::ResyncBegin, Some(Note::ResyncBegin { from: Lsn(from), reason }))
}

fn resync_end(lsn: u64) -> Event {
    event(lsn, RecordKind::ResyncEnd, Some(Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 }))
}

fn mark(lsn: u64, label: &str) -> Event {
    let kinds = PointKinds { mark: true, ..PointKinds::default() };
    let mark = Mark { kinds, on_barrier: false, label: label.into() };
    event(lsn, RecordKind::Mark, Some(Note::Mark(mark)))
}

fn seeded(number: u8) -> Branch {
    let mut branch = Branch::new(timeline(number), u32::from(number), None, Lsn::ZERO, Role::Trunk);
    branch.handle(resync_begin(1, 1, ResyncReason::Seeding));
    branch.handle(resync_end(10));
    branch
}

fn ranges(branch: &Branch) -> Vec<(u64, u64)> {
    branch.ranges().iter().map(|range| (range.from().0, range.to().0)).collect()
}

fn gaps(branch: &Branch) -> Vec<(u64, u64, &'static str)> {
    branch.gaps().iter().map(|gap| (gap.from.0, gap.to.0, gap.reason.as_str())).collect()
}

#[test]
fn nothing_is_restorable_before_the_end_of_seeding_is_durable() {
    let mut branch = seeded(1);
    branch.advance(Lsn(9), stamp(1, 90));
    assert!(ranges(&branch).is_empty());
    branch.advance(Lsn(10), stamp(1, 100));
    assert_eq!(ranges(&branch), [(10, 10)]);
    branch.advance(Lsn(25), stamp(1, 250));
    assert_eq!(ranges(&branch), [(10, 25)]);
    assert!(gaps(&branch).is_empty());
    assert!(branch.is_restorable(Lsn(17)) && !branch.is_restorable(Lsn(9)) && !branch.is_restorable(Lsn(26)));
}

/// A write failed, and while it was read again the queue was full: the gap's own record lies between both brackets.
#[test]
fn a_gap_that_begins_inside_a_resync_leaves_no_lsn_of_which_nothing_is_said() {
    let mut branch = seeded(1);
    branch.handle(resync_begin(21, 20, ResyncReason::WriteFailed));
    branch.handle(event(25, RecordKind::GapBegin, Some(Note::GapBegin { from: Lsn(26), reason: GapReason::Overload })));
    branch.handle(resync_end(30));
    branch.advance(Lsn(31), stamp(1, 310));
    assert_eq!(ranges(&branch), [(10, 19), (30, 31)]);
    assert_eq!(gaps(&branch), [(20, 24, "resync"), (25, 29, "overload")]);
}

#[test]
fn a_gap_and_its_resync_are_closed_to_all() {
    let mut branch = seeded(1);
    branch.handle(mark(18, "before"));
    branch.handle(event(21, RecordKind::GapBegin, Some(Note::GapBegin { from: Lsn(21), reason: GapReason::Overload })));
    branch.handle(event(60, RecordKind::GapEnd, None));
    branch.handle(resync_begin(61, 61, ResyncReason::Gap));
    branch.handle(mark(65, "inside"));
    branch.handle(resync_end(70));
    branch.advance(Lsn(30), stamp(1, 300));
    assert_eq!(gaps(&branch), [(21, 30, "overload")]);
    assert!(branch.gaps()[0].open);
    branch.advance(Lsn(80), stamp(1, 800));
    assert_eq!(ranges(&branch), [(10, 20), (70, 80)]);
    assert_eq!(gaps(&branch), [(21, 60, "overload"), (61, 69, "resync")]);
    assert_eq!(branch.points().iter().map(|point| point.mark.label.as_str()).collect::<Vec<_>>(), ["before"]);
}

/// Brackets that begin within others, or before them: of every LSN something is said.
#[test]
fn between_two_brackets_nothing_is_left_out() {
    let gap = |lsn, from| {
        event(lsn, RecordKind::GapBegin, Some(Note::GapBegin { from: Lsn(from), reason: GapReason::Overload }))
    };
    let mut branch = seeded(1);
    branch.handle(resync_begin(20, 20, ResyncReason::WriteFailed));
    // Begins behind its own record.
    branch.handle(gap(25, 26));
    // What failed had been written before that.
    branch.handle(resync_begin(30, 18, ResyncReason::Gap));
    branch.handle(resync_end(40));
    branch.advance(Lsn(45), stamp(1, 450));
    assert_eq!(ranges(&branch).last(), Some(&(40, 45)));
    assert_eq!(gaps(&branch), [(18, 24, "resync"), (25, 29, "overload"), (30, 39, "resync")]);
    // A range between two of them that is taken away is the later one's.
    branch.handle(resync_begin(50, 35, ResyncReason::WriteFailed));
    branch.handle(resync_end(55));
    branch.advance(Lsn(60), stamp(1, 600));
    let expected = [(18, 24, "resync"), (25, 29, "overload"), (30, 39, "resync"), (40, 54, "resync")];
    assert_eq!((gaps(&branch), ranges(&branch).last()), (expected.to_vec(), Some(&(55, 60))));
}

#[test]
fn a_failed_write_takes_back_what_followed_it() {
    let mut branch = seeded(1);
    // The write at 15 failed; that was known when 18 had been given.
    branch.handle(resync_begin(19, 15, ResyncReason::WriteFailed));
    branch.handle(resync_end(24));
    branch.advance(Lsn(14), stamp(1, 140));
    branch.advance(Lsn(30), stamp(1, 300));
    assert_eq!(ranges(&branch), [(10, 14), (24, 30)]);
    assert_eq!(gaps(&branch), [(15, 23, "resync")]);
}

#[test]
fn a_new_timeline_goes_on_after_its_resync_and_the_old_one_stays() {
    let mut catalogue = Catalogue::default();
    let mut first = seeded(1);
    first.advance(Lsn(40), stamp(1, 400));
    first.open = false;
    catalogue.insert(first);
    let mut second = Branch::new(timeline(2), 2, Some(timeline(1)), Lsn(40), Role::Trunk).after(Some(stamp(1, 400)));
    // Its first record is no range for the gap to begin behind.
    second.handle(event(1001, RecordKind::TimelineStart, None));
    second.handle(resync_begin(1002, 1001, ResyncReason::UncleanStop));
    second.advance(Lsn(1002), stamp(1, 10_020));
    catalogue.insert(second);
    assert_eq!(catalogue.latest().map(|moment| (moment.timeline, moment.lsn)), Some((timeline(1), Lsn(40))));
    let second = catalogue.branch_mut(timeline(2)).unwrap();
    second.handle(resync_end(1010));
    second.advance(Lsn(1012), stamp(1, 10_120));
    assert_eq!(catalogue.latest().unwrap().lsn, Lsn(1012));
    let gap = catalogue.branch(timeline(2)).unwrap().gaps()[0];
    assert_eq!((gap.from_time, gap.to_time), (WallTime(400), WallTime(10_100)), "the gap begins where the past ends");
    assert_eq!(catalogue.on_path(Lsn(33)).unwrap().timeline, timeline(1));
    assert_eq!(catalogue.on_path(Lsn(1011)).unwrap().timeline, timeline(2));
    let lost = catalogue.neighbours(timeline(2), Lsn(1005));
    assert_eq!(lost.before.map(|moment| moment.lsn), Some(Lsn(40)));
    assert_eq!(lost.after.map(|moment| moment.lsn), Some(Lsn(1010)));
    let AtTime::Outside(lost) = catalogue.at_time(WallTime(5_000)) else { panic!("a time inside the gap") };
    assert_eq!((lost.before.unwrap().lsn, lost.after.unwrap().lsn), (Lsn(40), Lsn(1010)));
}

#[test]
fn a_timeline_of_which_nothing_is_durable_offers_nothing() {
    let mut second = Branch::new(timeline(2), 2, Some(timeline(1)), Lsn(40), Role::Trunk);
    second.handle(event(1001, RecordKind::TimelineStart, None));
    second.advance(Lsn(40), stamp(1, 10_010));
    assert!(second.ranges().is_empty(), "{:?}", second.ranges());
    second.advance(Lsn(1001), stamp(1, 10_010));
    assert_eq!(ranges(&second), [(1001, 1001)]);
}

#[test]
fn a_session_is_not_the_trunk() {
    let mut catalogue = Catalogue::default();
    let mut trunk = seeded(1);
    trunk.advance(Lsn(40), stamp(1, 400));
    catalogue.insert(trunk);
    let mut session = Branch::new(timeline(2), 2, Some(timeline(1)), Lsn(22), Role::Session);
    session.handle(event(900, RecordKind::TimelineStart, None));
    session.advance(Lsn(905), stamp(1, 9_050));
    catalogue.insert(session);
    assert_eq!(catalogue.latest().unwrap().lsn, Lsn(40));
    assert_eq!(catalogue.latest_of(timeline(2)).unwrap().lsn, Lsn(905));
    let path: Vec<_> = catalogue.path(timeline(2)).iter().map(|(branch, upto)| (branch.number, upto.0)).collect();
    assert_eq!(path, [(2, u64::MAX), (1, 22)]);
}

#[test]
fn a_time_in_two_epochs_means_the_later_and_names_the_other() {
    let mut branch = seeded(1);
    branch.advance(Lsn(40), stamp(1, 400));
    // The wall clock was set back by 20 units: a record says so.
    let step = Event {
        timeline: timeline(1),
        disk: None,
        lsn: Lsn(41),
        stamp: stamp(2, 380),
        kind: RecordKind::Time,
        note: Some(Note::Time { mono: MonoTime(1) }),
    };
    branch.handle(step);
    branch.advance(Lsn(50), stamp(2, 470));
    let mut catalogue = Catalogue::default();
    catalogue.insert(branch);
    let AtTime::Inside { span, also, .. } = catalogue.at_time(WallTime(390)) else { panic!("390 lies in both") };
    assert_eq!((span.epoch, span.from), (ClockEpoch(2), Lsn(41)));
    assert_eq!(also.iter().map(|(_, span)| span.epoch).collect::<Vec<_>>(), [ClockEpoch(1)]);
    let AtTime::Inside { span, also, .. } = catalogue.at_time(WallTime(430)) else { panic!("430 lies in one") };
    assert_eq!((span.epoch, also.len()), (ClockEpoch(2), 0));
    assert!(catalogue.branch(timeline(1)).unwrap().is_restorable(Lsn(41)));
}

#[test]
fn a_label_is_found_only_while_its_point_can_be_restored() {
    let mut branch = seeded(1);
    branch.handle(mark(12, "kept"));
    branch.advance(Lsn(12), stamp(1, 120));
    let mut catalogue = Catalogue::default();
    catalogue.insert(branch);
    assert_eq!(catalogue.labelled("kept")[0].id.to_string(), "0101010101010101-12");
    assert!(catalogue.labelled("lost").is_empty() && catalogue.labelled("").is_empty());
}

fn about(disk: u16, event: Event) -> Event {
    Event { disk: DiskId::new(disk), ..event }
}

fn resized(lsn: u64, disk: u16, from: u64, to: u64) -> Event {
    about(disk, event(lsn, RecordKind::Resize, Some(Note::Resize { from, to })))
}

#[test]
fn what_happens_to_one_disk_takes_no_moment_of_the_others() {
    let mut branch = seeded(1);
    let added = Note::DiskAdded { name: "late".into(), size: 1 << 20 };
    branch.handle(about(2, event(20, RecordKind::DiskAdded, Some(added))));
    branch.handle(about(2, resync_begin(21, 20, ResyncReason::Seeding)));
    branch.handle(resized(25, 1, 4096, 8192));
    branch.handle(about(2, resync_end(30)));
    branch.handle(resized(35, 1, 8192, 512));
    branch.handle(about(2, event(40, RecordKind::DiskRemoved, None)));
    branch.advance(Lsn(50), stamp(1, 500));
    assert_eq!(ranges(&branch), [(10, 50)]);
    assert!(gaps(&branch).is_empty());
    let mut catalogue = Catalogue::default();
    catalogue.insert(branch);
    let (first, late) = (DiskId::new(1).unwrap(), DiskId::new(2).unwrap());
    let size = |lsn| catalogue.disk_size(timeline(1), Lsn(lsn), first);
    assert_eq!([size(10), size(24), size(25), size(34), size(35)].map(Option::unwrap), [4096, 4096, 8192, 8192, 512]);
    assert_eq!(catalogue.disk_size(timeline(1), Lsn(30), late), None, "nothing is said of it");
    let complete = |lsn| catalogue.is_disk_complete(timeline(1), Lsn(lsn), late);
    assert_eq!(
        [complete(12), complete(22), complete(29), complete(30)],
        [Some(false), Some(false), Some(false), Some(true)]
    );
    assert_eq!(catalogue.is_disk_complete(timeline(1), Lsn(12), first), None, "no record says it");
    assert_eq!(catalogue.disk_end(timeline(1), late), Some(Lsn(40)));
    assert_eq!(catalogue.disk_complete_after(timeline(1), Lsn(12), late), Some(Lsn(30)));
}

/// What a timeline recorded behind its end is not what happened; what came later on the way is.
#[test]
fn sizes_are_those_of_the_way_through_the_timelines() {
    let disk = DiskId::new(1).unwrap();
    let mut first = seeded(1);
    first.handle(resized(20, 1, 1024, 2048));
    first.handle(resized(40, 1, 2048, 4096));
    first.advance(Lsn(50), stamp(1, 500));
    let mut second = Branch::new(timeline(2), 2, Some(timeline(1)), Lsn(30), Role::Trunk);
    second.handle(Event { timeline: timeline(2), ..resized(110, 1, 2048, 512) });
    second.advance(Lsn(120), stamp(1, 1200));
    let mut catalogue = Catalogue::default();
    catalogue.insert(first);
    catalogue.insert(second);
    let size = |number, lsn| catalogue.disk_size(timeline(number), Lsn(lsn), disk).unwrap();
    assert_eq!([size(1, 15), size(1, 25), size(2, 105), size(2, 110)], [1024, 2048, 2048, 512]);
}
