//! The rules of a taker, one by one.

use crate::set::*;
use crate::types::{GroupId, Lsn, MonoTime, SetId, StartId, Timeline};

const MS: u64 = 1_000_000;

fn group(number: u8) -> GroupId {
    GroupId::new([number; 16]).expect("not zero")
}

fn start(number: u8) -> StartId {
    StartId::new([number; 16]).expect("not zero")
}

fn set() -> SetId {
    SetId::new([9; 16]).expect("not zero")
}

fn place(lsn: u64) -> Place {
    Place { timeline: Timeline::new([3; 16]).expect("not zero"), lsn: Lsn(lsn) }
}

fn taker() -> Taker {
    Taker::new(set(), start(77), &[group(1), group(2)], 41).expect("two groups")
}

fn drain(taker: &mut Taker, now: u64) -> Vec<TakerOutput> {
    std::iter::from_fn(|| taker.poll(MonoTime(now))).collect()
}

/// What is sent, to the first bytes of groups.
fn sent(outputs: &[TakerOutput]) -> Vec<(u8, OrderKind)> {
    let sent = |output: &TakerOutput| match output {
        TakerOutput::Send(group, order) => Some((group.bytes()[0], order.kind)),
        TakerOutput::Ended(_) => None,
    };
    outputs.iter().filter_map(sent).collect()
}

fn verdict(outputs: &[TakerOutput]) -> Option<&Verdict> {
    outputs.iter().find_map(|output| if let TakerOutput::Ended(ended) = output { Some(&ended.verdict) } else { None })
}

fn say(taker: &mut Taker, now: u64, cut: CutId, from: u8, kind: ReportKind) {
    taker.handle(MonoTime(now), Report { set: set(), cut, group: group(from), start: start(from), kind });
}

fn on_go(lsn: u64) -> ReportKind {
    ReportKind::Released { how: How::Go, place: Some(place(lsn)) }
}

/// Both are prepared and were told to go.
fn gone() -> (Taker, CutId) {
    let mut taker = taker();
    let cut = taker.begin(MonoTime(0)).expect("idle");
    assert_eq!(sent(&drain(&mut taker, 0)), [(1, OrderKind::Prepare), (2, OrderKind::Prepare)]);
    say(&mut taker, 1, cut, 1, ReportKind::Prepared(place(10)));
    assert_eq!(drain(&mut taker, 1), []);
    say(&mut taker, 2, cut, 2, ReportKind::Prepared(place(20)));
    assert_eq!(sent(&drain(&mut taker, 2)), [(1, OrderKind::Go), (2, OrderKind::Go)]);
    (taker, cut)
}

/// Both released on go and were told to keep the point.
fn kept() -> (Taker, CutId) {
    let (mut taker, cut) = gone();
    say(&mut taker, 3, cut, 2, on_go(20));
    say(&mut taker, 4, cut, 1, on_go(10));
    let keep = |from, lsn| (from, OrderKind::Keep { members: 2, start: start(from), place: place(lsn) });
    assert_eq!(sent(&drain(&mut taker, 4)), [keep(1, 10), keep(2, 20)]);
    (taker, cut)
}

#[test]
fn a_point_is_common_when_all_released_on_go_and_recorded_it() {
    let (mut taker, cut) = kept();
    assert_eq!(cut.number, 42);
    say(&mut taker, 5, cut, 1, ReportKind::Kept { recorded: true });
    assert_eq!(drain(&mut taker, 5), []);
    say(&mut taker, 6, cut, 2, ReportKind::Kept { recorded: true });
    let places = [(group(1), place(10)), (group(2), place(20))].into();
    let ended = Ended { cut, verdict: Verdict::Common(places), prepared_ns: Some(2) };
    assert_eq!(drain(&mut taker, 6), [TakerOutput::Ended(ended)]);
    assert_eq!(taker.counts(), Counts { begun: 1, common: 1, missed: 0 });
    assert_eq!(taker.begin(MonoTime(7)), Err(BeginError::TooSoon { wait_ns: CUTS_APART_NS - 1 }));
    assert_eq!(taker.begin(MonoTime(6 + CUTS_APART_NS)).expect("later").number, 43);
}

#[test]
fn a_release_on_the_timer_misses_the_cut() {
    let (mut taker, cut) = gone();
    say(&mut taker, 3, cut, 1, on_go(10));
    say(&mut taker, 4, cut, 2, ReportKind::Released { how: How::Timer, place: Some(place(20)) });
    let outputs = drain(&mut taker, 4);
    assert_eq!(verdict(&outputs), Some(&Verdict::Missed(Miss::Released(group(2), How::Timer))));
    assert_eq!(sent(&outputs), [(2, OrderKind::Cancel)]);
}

#[test]
fn who_is_not_prepared_in_time_misses_the_cut_and_nobody_goes_on_withholding() {
    let mut taker = taker();
    let cut = taker.begin(MonoTime(0)).expect("idle");
    drain(&mut taker, 0);
    say(&mut taker, 1, cut, 1, ReportKind::Prepared(place(10)));
    assert_eq!(sent(&drain(&mut taker, MS)), [(2, OrderKind::Prepare)]);
    assert_eq!(taker.next_deadline(), Some(MonoTime(2 * MS)));
    // Prepared, but as late as the others' timers.
    say(&mut taker, HOLD_NS, cut, 2, ReportKind::Prepared(place(20)));
    let outputs = drain(&mut taker, HOLD_NS);
    assert_eq!(verdict(&outputs), Some(&Verdict::Missed(Miss::NotPrepared(vec![group(2)]))));
    assert_eq!(sent(&outputs), [(1, OrderKind::Cancel), (2, OrderKind::Cancel)]);
}

#[test]
fn a_member_that_was_started_again_misses_the_cut() {
    for kind in [ReportKind::Prepared(place(10)), on_go(10)] {
        let (mut taker, cut) = gone();
        let report = Report { set: set(), cut, group: group(1), start: start(5), kind };
        taker.handle(MonoTime(3), report);
        assert_eq!(verdict(&drain(&mut taker, 3)), Some(&Verdict::Missed(Miss::Changed(group(1)))));
    }
    let (mut taker, cut) = kept();
    let kind = ReportKind::Kept { recorded: true };
    taker.handle(MonoTime(5), Report { set: set(), cut, group: group(1), start: start(5), kind });
    assert_eq!(verdict(&drain(&mut taker, 5)), Some(&Verdict::Missed(Miss::NotKept(vec![group(1)]))));
}

#[test]
fn a_release_of_another_place_misses_the_cut() {
    let (mut taker, cut) = gone();
    say(&mut taker, 3, cut, 1, on_go(11));
    assert_eq!(verdict(&drain(&mut taker, 3)), Some(&Verdict::Missed(Miss::Changed(group(1)))));
}

#[test]
fn silence_after_go_misses_the_cut_after_a_second() {
    let (mut taker, cut) = gone();
    say(&mut taker, 3, cut, 1, on_go(10));
    assert_eq!(sent(&drain(&mut taker, 2 + MS)), [(2, OrderKind::Go)]);
    assert_eq!(verdict(&drain(&mut taker, 1_000 * MS)), None);
    let outputs = drain(&mut taker, 2 + 1_000 * MS);
    assert_eq!(verdict(&outputs), Some(&Verdict::Missed(Miss::NotReleased(vec![group(2)]))));
}

#[test]
fn a_point_that_one_did_not_record_is_not_common() {
    let (mut taker, cut) = kept();
    say(&mut taker, 5, cut, 1, ReportKind::Kept { recorded: true });
    say(&mut taker, 6, cut, 2, ReportKind::Kept { recorded: false });
    assert_eq!(verdict(&drain(&mut taker, 6)), Some(&Verdict::Missed(Miss::NotKept(vec![group(2)]))));
    let (mut taker, cut) = kept();
    say(&mut taker, 5, cut, 1, ReportKind::Kept { recorded: true });
    let outputs = drain(&mut taker, 4 + 5_000 * MS);
    assert_eq!(verdict(&outputs), Some(&Verdict::Missed(Miss::NotKept(vec![group(2)]))));
}

#[test]
fn reports_about_other_cuts_and_of_strangers_are_passed_over() {
    let (mut taker, cut) = gone();
    let other = CutId { number: cut.number - 1, ..cut };
    say(&mut taker, 3, other, 1, ReportKind::Released { how: How::Timer, place: None });
    say(&mut taker, 3, cut, 3, ReportKind::Released { how: How::Timer, place: None });
    say(&mut taker, 3, cut, 1, ReportKind::Kept { recorded: false });
    assert_eq!(verdict(&drain(&mut taker, 3)), None);
}

#[test]
fn members_are_one_to_256_and_each_once() {
    let many: Vec<_> = (0..257u16).map(|n| GroupId::new([1 + (n % 255) as u8; 16]).expect("not zero")).collect();
    let refused = |groups: &[GroupId]| Taker::new(set(), start(1), groups, 0).map(|_| ()).expect_err("refused");
    assert_eq!(refused(&[]), MembersError::Count { found: 0 });
    assert_eq!(refused(&many), MembersError::Count { found: 257 });
    assert_eq!(refused(&[group(1), group(1)]), MembersError::Twice { group: group(1) });
    let (mut taker, cut) = gone();
    assert_eq!(taker.set_members(&[group(1)]), Err(MembersError::Busy { cut }));
    assert_eq!(taker.begin(MonoTime(9)), Err(BeginError::Busy { cut }));
}
