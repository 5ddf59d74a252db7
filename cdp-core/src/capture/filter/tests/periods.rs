//! Periods of per-point restore, as the filter makes them.

use super::*;
use crate::capture::{Closing, Drained};
use crate::types::PointsMode;
use RecordKind::{GapBegin, Mark as Point, PeriodBegin, PeriodEnd, ResyncBegin, ResyncEnd};

/// Seeded, durable, and every point a period.
fn per_point() -> Rig {
    let mut rig = Rig::new(FilterOptions { points: PointsMode::PerPoint, ..options() });
    rig.filter.seed_done();
    rig.pass(60 * MS);
    rig.durable();
    assert_eq!(rig.kinds()[rig.kinds().len() - 2..], [ResyncEnd, PeriodBegin]);
    rig.frames.clear();
    rig.events.clear();
    rig
}

fn restorable(rig: &Rig) -> Lsn {
    rig.filter.status(rig.now()).restorable
}

fn lsns(rig: &Rig, kind: RecordKind) -> Vec<Lsn> {
    let parts = rig.frames.iter().flat_map(|frame| &frame.parts);
    parts.filter(|part| part.kind == kind).map(|part| part.lsn).collect()
}

fn written(rig: &mut Rig, offset: u64) {
    let ticket = rig.go(write(offset, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(30 * MS);
    rig.durable();
}

#[test]
fn nothing_of_a_period_can_be_restored_before_its_point_which_the_next_one_follows_at_once() {
    let mut rig = per_point();
    let before = restorable(&rig);
    written(&mut rig, 0);
    written(&mut rig, 4096);
    assert_eq!(restorable(&rig), before, "durable, and of no moment");
    rig.pass(4 * S);
    rig.durable();
    let (points, begins) = (lsns(&rig, Point), lsns(&rig, PeriodBegin));
    assert_eq!((points.len(), restorable(&rig)), (1, points[0]));
    assert_eq!(begins, [points[0].next()]);
    let together = |frame: &&RawFrame| frame.parts.iter().any(|part| part.lsn == points[0]);
    let frame = rig.frames.iter().find(together).expect("it was sent");
    assert!(frame.parts.iter().any(|part| part.lsn == begins[0]), "nothing lies in between");
    assert!(rig.has(&Event::PointDurable { lsn: points[0] }));
}

#[test]
fn where_points_are_durable_in_time_the_rpo_holds() {
    let mut rig = per_point();
    for second in 0..40 {
        written(&mut rig, second * 4096);
        rig.pass(S);
        rig.durable();
        let age = rig.filter.status(rig.now()).rpo_ns.expect("something can be restored");
        assert!(age <= 5 * S, "{age} ns after {second} s");
    }
    assert!(!rig.events.iter().any(|event| matches!(event, Event::RpoViolated { .. })), "{:?}", rig.events);
    // The replica stalls.
    rig.pass(9 * S);
    assert!(rig.events.iter().any(|event| matches!(event, Event::RpoViolated { .. })));
}

#[test]
fn a_gap_begins_behind_a_moment_and_the_next_period_behind_its_resync() {
    let mut rig = per_point();
    written(&mut rig, 0);
    rig.filter.pause(rig.now());
    rig.drain();
    rig.durable();
    let kinds = rig.kinds();
    assert_eq!(kinds[kinds.len() - 2..], [PeriodEnd, GapBegin]);
    assert_eq!(restorable(&rig), lsns(&rig, GapBegin)[0], "what was recorded is a moment");
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.filter.resume();
    rig.pass(100 * MS);
    for reread in std::mem::take(&mut rig.rereads) {
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
    }
    rig.pass(100 * MS);
    rig.durable();
    let kinds = rig.kinds();
    assert_eq!(kinds[kinds.len() - 2..], [ResyncEnd, PeriodBegin]);
    assert_eq!(restorable(&rig), lsns(&rig, ResyncEnd)[0]);
}

#[test]
fn a_failed_write_takes_its_period_with_it() {
    let mut rig = per_point();
    let before = restorable(&rig);
    written(&mut rig, 0);
    let ticket = rig.go(write(8192, 4096));
    rig.complete(ticket, Err(EIO));
    rig.pass(100 * MS);
    rig.durable();
    assert!(!lsns(&rig, ResyncBegin).is_empty() && lsns(&rig, PeriodEnd).is_empty());
    assert_eq!(restorable(&rig), before);
    // Inside of the resync nothing is left out: what is read again can be compared with what is durable.
    let begun = lsns(&rig, ResyncBegin)[0];
    assert!(rig.filter.durable >= begun && rig.filter.periods.exact(rig.filter.durable) == rig.filter.durable);
    assert!(rig.rereads.iter().all(|reread| reread.compare_at.is_none_or(|at| at <= before || at >= begun)));
}

#[test]
fn what_is_read_again_inside_a_period_is_compared_only_at_its_begin() {
    let mut rig = per_point();
    let begun = rig.filter.periods.open().expect("one is open");
    written(&mut rig, 0);
    assert_eq!(rig.filter.periods.exact(rig.filter.durable), begun.prev());
    rig.filter.set_points(rig.now(), PointsMode::EveryWrite);
    rig.pass(30 * MS);
    rig.durable();
    assert_eq!(rig.filter.periods.exact(rig.filter.durable), rig.filter.durable);
}

#[test]
fn a_drain_closes_the_period_and_the_stop_is_clean() {
    let mut rig = per_point();
    written(&mut rig, 0);
    rig.filter.request_drain();
    assert_eq!(rig.filter.drained(), Drained::NotYet);
    rig.pass(30 * MS);
    rig.durable();
    rig.pass(60 * MS);
    rig.durable();
    assert_eq!((rig.filter.drained(), lsns(&rig, PeriodEnd).len()), (Drained::Safe, 1));
    assert_eq!(restorable(&rig), rig.filter.status(rig.now()).lsn);
    assert_eq!(rig.filter.close(Vec::new()), Closing::Clean);
}

#[test]
fn the_policy_may_change_at_any_time() {
    let mut rig = Rig::protecting();
    rig.filter.set_points(rig.now(), PointsMode::PerPoint);
    rig.filter.set_points(rig.now(), PointsMode::PerPoint);
    written(&mut rig, 0);
    rig.filter.set_points(rig.now(), PointsMode::EveryWrite);
    written(&mut rig, 0);
    assert_eq!((lsns(&rig, PeriodBegin).len(), lsns(&rig, PeriodEnd).len()), (1, 1));
    assert_eq!(restorable(&rig), rig.settled());
    // While writes are tracked none begins, and none is ended.
    rig.filter.pause(rig.now());
    rig.filter.set_points(rig.now(), PointsMode::PerPoint);
    rig.filter.set_points(rig.now(), PointsMode::EveryWrite);
    rig.drain();
    assert_eq!((lsns(&rig, PeriodBegin).len(), lsns(&rig, PeriodEnd).len()), (1, 1));
}

/// Nothing becomes durable, and somebody makes points all the time.
#[test]
fn the_list_of_periods_has_a_bound() {
    let mut rig = per_point();
    for _ in 0..5000 {
        rig.filter.set_points(rig.now(), PointsMode::EveryWrite);
        rig.filter.set_points(rig.now(), PointsMode::PerPoint);
    }
    rig.pass(100 * MS);
    assert!(lsns(&rig, PeriodBegin).len() <= 1024 + 64, "{}", lsns(&rig, PeriodBegin).len());
    rig.durable();
    assert_eq!(restorable(&rig), rig.settled());
}
