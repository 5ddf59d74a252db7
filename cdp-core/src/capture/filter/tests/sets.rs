//! The filter's part in the cuts of a consistency set.

use super::*;
use crate::set::{CutId, Place, Refusal, SetPoint};
use crate::types::{PointsMode, SET_LABEL_MAX, SetId, StartId};
use RecordKind::{Mark as Point, PeriodBegin, SetPoint as Common};

fn point(place: Place) -> SetPoint {
    let taker = StartId::new([2; 16]).expect("not zero");
    SetPoint { set: SetId::new([1; 16]).expect("not zero"), cut: CutId { taker, number: 7 }, place, members: 2 }
}

#[test]
fn a_cut_is_a_mark_above_what_was_submitted_and_below_what_comes() {
    let mut rig = Rig::protecting();
    let (before, now) = (rig.go(write(0, 4096)), rig.now());
    let place = rig.filter.cut(now).expect("it protects");
    let after = rig.go(write(8192, 4096));
    let lsn = |rig: &mut Rig, ticket| rig.filter.complete(rig.now(), ticket, Ok(())).expect("it ran");
    let (before, after) = (lsn(&mut rig, before), lsn(&mut rig, after));
    assert!(before < place.lsn && place.lsn < after, "{before} {place:?} {after}");
    assert_eq!(place.timeline, rig.filter.timeline());
    rig.pass(30 * MS);
    let known = Note::SetPoint {
        set: point(place).set,
        taker: point(place).cut.taker,
        cut: 7,
        lsn: place.lsn,
        members: 2,
        label: "shop 7".into(),
    };
    assert!(rig.filter.set_point(rig.now(), &point(place), "shop 7"));
    rig.drain();
    assert_eq!(rig.kinds().last(), Some(&Common), "it waits for no frame's age");
    assert_eq!(rig.note(Common), known);
}

#[test]
fn of_per_point_restore_a_cut_ends_a_period() {
    let mut rig = Rig::new(FilterOptions { points: PointsMode::PerPoint, ..options() });
    rig.filter.seed_done();
    rig.pass(60 * MS);
    rig.frames.clear();
    let now = rig.now();
    let place = rig.filter.cut(now).expect("it protects");
    assert!(rig.filter.set_point(now, &point(place), "shop 7"));
    rig.drain();
    assert_eq!(rig.kinds(), [Point, PeriodBegin, Common]);
}

#[test]
fn nothing_is_cut_or_called_common_where_it_would_not_be_restorable() {
    let mut rig = Rig::protecting();
    let now = rig.now();
    let place = rig.filter.cut(now).expect("it protects");
    let elsewhere = Place { timeline: Timeline::new([9; 16]).expect("not zero"), ..place };
    let ahead = Place { lsn: Lsn(place.lsn.0 + 1000), ..place };
    assert!(!rig.filter.set_point(now, &point(elsewhere), "shop 7"), "another timeline");
    assert!(!rig.filter.set_point(now, &point(ahead), "shop 7"), "what never was");
    assert!(!rig.filter.set_point(now, &point(place), &"x".repeat(SET_LABEL_MAX + 1)));
    rig.filter.pause(now);
    rig.drain();
    assert_eq!(rig.filter.cut(now), Err(Refusal::NotProtecting));
    assert!(!rig.filter.set_point(now, &point(place), "shop 7"), "what is recorded now is not restorable");
    let _ = rig.filter.close(Vec::new());
    assert_eq!(rig.filter.cut(now), Err(Refusal::NotProtecting));
    assert!(!rig.kinds().contains(&Common));
}
