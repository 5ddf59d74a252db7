//! The rules of a member, one by one.

use crate::set::*;
use crate::types::{GroupId, Lsn, MonoTime, SetId, StartId, Timeline};

const MS: u64 = 1_000_000;

fn cut(taker: u8, number: u64) -> CutId {
    CutId { taker: StartId::new([taker; 16]).expect("not zero"), number }
}

fn order(cut: CutId, kind: OrderKind) -> Order {
    Order { set: SetId::new([9; 16]).expect("not zero"), cut, kind }
}

fn member() -> Member<u32> {
    let (set, group) = (SetId::new([9; 16]).expect("not zero"), GroupId::new([1; 16]).expect("not zero"));
    Member::new(set, group, StartId::new([2; 16]).expect("not zero"))
}

fn at(lsn: u64) -> Place {
    Place { timeline: Timeline::new([3; 16]).expect("not zero"), lsn: Lsn(lsn) }
}

fn keep(lsn: u64) -> OrderKind {
    OrderKind::Keep { members: 2, start: StartId::new([2; 16]).expect("not zero"), place: at(lsn) }
}

fn drain(member: &mut Member<u32>, now: u64) -> Vec<Output<u32>> {
    std::iter::from_fn(|| member.poll(MonoTime(now))).collect()
}

fn kinds(outputs: &[Output<u32>]) -> Vec<ReportKind> {
    outputs
        .iter()
        .filter_map(|output| if let Output::Report(report) = output { Some(report.kind) } else { None })
        .collect()
}

fn releases(outputs: &[Output<u32>]) -> Vec<u32> {
    outputs
        .iter()
        .filter_map(|output| if let Output::Release(ticket) = output { Some(*ticket) } else { None })
        .collect()
}

/// Withholding since `now` for the cut, which is at LSN 10.
fn prepared(member: &mut Member<u32>, now: u64, id: CutId) {
    member.handle(MonoTime(now), order(id, OrderKind::Prepare));
    assert_eq!(drain(member, now), [Output::Cut(id)]);
    member.cut_at(MonoTime(now), id, Ok(at(10)));
    assert_eq!(kinds(&drain(member, now)), [ReportKind::Prepared(at(10))]);
}

#[test]
fn without_a_cut_nothing_is_held() {
    let mut member = member();
    assert_eq!(member.complete(MonoTime(5), 1, Lsn(1)), Completion::Release);
    assert_eq!((member.next_deadline(), member.poll(MonoTime(5))), (None, None));
}

#[test]
fn what_is_above_the_cut_waits_for_go_and_what_is_below_does_not() {
    let (mut member, id) = (member(), cut(1, 1));
    member.handle(MonoTime(0), order(id, OrderKind::Prepare));
    // Before the cut is known everything waits.
    assert_eq!(member.complete(MonoTime(0), 1, Lsn(9)), Completion::Hold);
    assert_eq!(member.complete(MonoTime(0), 2, Lsn(11)), Completion::Hold);
    assert_eq!(drain(&mut member, 0), [Output::Cut(id)]);
    member.cut_at(MonoTime(1), id, Ok(at(10)));
    let outputs = drain(&mut member, 1);
    assert_eq!((releases(&outputs), kinds(&outputs)), (vec![1], vec![ReportKind::Prepared(at(10))]));
    assert_eq!(member.complete(MonoTime(2), 3, Lsn(10)), Completion::Release);
    assert_eq!(member.complete(MonoTime(2), 4, Lsn(12)), Completion::Hold);
    member.handle(MonoTime(3), order(id, OrderKind::Go));
    let outputs = drain(&mut member, 3);
    let said = ReportKind::Released { how: How::Go, place: Some(at(10)) };
    assert_eq!((releases(&outputs), kinds(&outputs)), (vec![2, 4], vec![said]));
    assert_eq!(member.complete(MonoTime(4), 5, Lsn(13)), Completion::Release);
}

#[test]
fn the_timer_releases_and_no_go_changes_that() {
    let (mut member, id) = (member(), cut(1, 1));
    prepared(&mut member, 7, id);
    assert_eq!(member.complete(MonoTime(8), 1, Lsn(11)), Completion::Hold);
    assert_eq!(member.next_deadline(), Some(MonoTime(7 + HOLD_NS)));
    assert_eq!(drain(&mut member, 6 + HOLD_NS), []);
    let said = ReportKind::Released { how: How::Timer, place: Some(at(10)) };
    let outputs = drain(&mut member, 7 + HOLD_NS);
    assert_eq!((releases(&outputs), kinds(&outputs)), (vec![1], vec![said]));
    member.handle(MonoTime(8 + HOLD_NS), order(id, OrderKind::Go));
    assert_eq!(kinds(&drain(&mut member, 8 + HOLD_NS)), [said]);
    member.handle(MonoTime(9 + HOLD_NS), order(id, keep(10)));
    assert_eq!(kinds(&drain(&mut member, 9 + HOLD_NS)), [ReportKind::Kept { recorded: false }]);
}

/// A process that was stopped wakes with the go in front of its timer.
#[test]
fn a_go_after_the_hold_is_late_also_where_no_timer_fired() {
    let (mut member, id) = (member(), cut(1, 1));
    prepared(&mut member, 0, id);
    member.handle(MonoTime(HOLD_NS), order(id, OrderKind::Go));
    let said = ReportKind::Released { how: How::Timer, place: Some(at(10)) };
    assert_eq!(kinds(&drain(&mut member, HOLD_NS)), [said, said]);
    assert_eq!(member.counts(), MemberCounts { holds: 1, on_timer: 1, ..MemberCounts::default() });
}

#[test]
fn orders_that_come_twice_are_answered_and_not_done_again() {
    let (mut member, id) = (member(), cut(1, 1));
    prepared(&mut member, 0, id);
    member.handle(MonoTime(1), order(id, OrderKind::Prepare));
    assert_eq!(kinds(&drain(&mut member, 1)), [ReportKind::Prepared(at(10))]);
    let said = ReportKind::Released { how: How::Go, place: Some(at(10)) };
    for now in [2, 3] {
        member.handle(MonoTime(now), order(id, OrderKind::Go));
        assert_eq!(kinds(&drain(&mut member, now)), [said]);
    }
    // A late prepare does not withhold again, and asks for no other place.
    member.handle(MonoTime(4), order(id, OrderKind::Prepare));
    assert_eq!(drain(&mut member, 4).len(), 1);
    assert_eq!(member.complete(MonoTime(4), 1, Lsn(99)), Completion::Release);
    let keep = order(id, keep(10));
    member.handle(MonoTime(5), keep);
    let point = SetPoint { set: keep.set, cut: id, place: at(10), members: 2 };
    assert_eq!(drain(&mut member, 5), [Output::Keep(point)]);
    member.handle(MonoTime(6), keep);
    assert_eq!(drain(&mut member, 6), []);
    member.kept(id, true);
    member.kept(id, true);
    member.handle(MonoTime(7), keep);
    assert_eq!(kinds(&drain(&mut member, 7)), [ReportKind::Kept { recorded: true }; 2]);
}

#[test]
fn a_cancel_that_overtook_its_prepare_finds_nothing_withheld() {
    let (mut member, id) = (member(), cut(1, 1));
    member.handle(MonoTime(0), order(id, OrderKind::Cancel));
    member.handle(MonoTime(1), order(id, OrderKind::Prepare));
    assert_eq!(member.complete(MonoTime(1), 1, Lsn(1)), Completion::Release);
    let said = ReportKind::Released { how: How::Cancelled, place: None };
    assert_eq!(kinds(&drain(&mut member, 1)), [said]);
}

#[test]
fn a_group_that_cannot_be_restored_now_takes_no_part() {
    let (mut member, id) = (member(), cut(1, 1));
    member.handle(MonoTime(0), order(id, OrderKind::Prepare));
    assert_eq!(member.complete(MonoTime(0), 1, Lsn(1)), Completion::Hold);
    member.cut_at(MonoTime(1), id, Err(Refusal::NotProtecting));
    let outputs = drain(&mut member, 1);
    let said = ReportKind::Released { how: How::Refused(Refusal::NotProtecting), place: None };
    assert!(releases(&outputs) == [1] && kinds(&outputs) == [said], "{outputs:?}");
}

#[test]
fn withholding_is_a_twentieth_of_the_time_at_most() {
    let mut member = member();
    prepared(&mut member, 0, cut(1, 1));
    member.handle(MonoTime(MS), order(cut(1, 1), OrderKind::Go));
    drain(&mut member, MS);
    // Also where another taker asks, of another start.
    member.handle(MonoTime(MS + CUTS_APART_NS - 1), order(cut(2, 1), OrderKind::Prepare));
    let said = ReportKind::Released { how: How::Refused(Refusal::TooSoon), place: None };
    assert_eq!(kinds(&drain(&mut member, MS + CUTS_APART_NS - 1)), [said]);
    prepared(&mut member, MS + CUTS_APART_NS, cut(2, 2));
}

/// A late prepare of a taker that is gone must not shut the one out that is there.
#[test]
fn another_taker_misses_the_cut_and_is_obeyed_from_then_on() {
    let mut member = member();
    prepared(&mut member, 0, cut(1, 7));
    for kind in [OrderKind::Go, OrderKind::Cancel, keep(10)] {
        member.handle(MonoTime(1), order(cut(2, 1), kind));
    }
    assert_eq!(kinds(&drain(&mut member, 1)), [ReportKind::Kept { recorded: false }]);
    assert_eq!(member.complete(MonoTime(1), 1, Lsn(11)), Completion::Hold);
    member.handle(MonoTime(2), order(cut(2, 1), OrderKind::Prepare));
    let outputs = drain(&mut member, 2);
    let cancelled = ReportKind::Released { how: How::Cancelled, place: Some(at(10)) };
    let refused = ReportKind::Released { how: How::Refused(Refusal::TooSoon), place: None };
    assert_eq!((releases(&outputs), kinds(&outputs)), (vec![1], vec![cancelled, refused]));
    member.handle(MonoTime(3), order(cut(1, 7), OrderKind::Go));
    assert_eq!(drain(&mut member, 3), []);
    prepared(&mut member, 1_000 * MS, cut(1, 8));
}

#[test]
fn a_keep_of_what_this_start_knows_nothing_of_is_declined() {
    let mut member = member();
    member.handle(MonoTime(0), order(cut(1, 3), OrderKind::Go));
    assert_eq!(drain(&mut member, 0), []);
    member.handle(MonoTime(0), order(cut(1, 3), keep(10)));
    assert_eq!(kinds(&drain(&mut member, 0)), [ReportKind::Kept { recorded: false }]);
}

#[test]
fn the_bound_of_held_completions_releases_all() {
    let (mut member, id) = (member(), cut(1, 1));
    prepared(&mut member, 0, id);
    for ticket in 0..HELD_MAX as u32 {
        assert_eq!(member.complete(MonoTime(1), ticket, Lsn(11)), Completion::Hold);
    }
    assert_eq!(member.complete(MonoTime(1), u32::MAX, Lsn(11)), Completion::Release);
    let outputs = drain(&mut member, 1);
    let said = ReportKind::Released { how: How::Full, place: Some(at(10)) };
    assert_eq!((releases(&outputs).len(), kinds(&outputs)), (HELD_MAX, vec![said]));
}

#[test]
fn a_member_that_stops_lets_go() {
    let mut member = member();
    prepared(&mut member, 0, cut(1, 1));
    assert_eq!(member.complete(MonoTime(1), 1, Lsn(11)), Completion::Hold);
    member.stop(MonoTime(2));
    assert_eq!(releases(&drain(&mut member, 2)), [1]);
}

#[test]
fn words_of_releases_are_read_back() {
    let refused = [Refusal::NotProtecting, Refusal::TooSoon].map(How::Refused);
    for how in [How::Go, How::Timer, How::Cancelled, How::Full].into_iter().chain(refused) {
        assert_eq!(How::from_word(how.as_str()), Some(how));
    }
    assert_eq!(How::from_word("went"), None);
}

/// Seed 51 of the simulation: the member was started again after its release on go, and a prepare and a go of the same cut came once more.
#[test]
fn a_keep_of_another_place_or_start_is_declined() {
    let (mut member, id) = (member(), cut(1, 1));
    prepared(&mut member, 0, id);
    member.handle(MonoTime(1), order(id, OrderKind::Go));
    drain(&mut member, 1);
    let other = OrderKind::Keep { members: 2, start: StartId::new([5; 16]).expect("not zero"), place: at(10) };
    for kind in [keep(9), other] {
        member.handle(MonoTime(2), order(id, kind));
        assert_eq!(kinds(&drain(&mut member, 2)), [ReportKind::Kept { recorded: false }]);
    }
    member.handle(MonoTime(3), order(id, keep(10)));
    assert!(matches!(drain(&mut member, 3)[..], [Output::Keep(_)]));
}
