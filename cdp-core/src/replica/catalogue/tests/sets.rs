//! Common points of consistency sets.

use super::*;
use crate::types::{SetId, StartId};

fn set_point(lsn: u64, of: u64) -> Event {
    let (set, taker) = (SetId::new([1; 16]).unwrap(), StartId::new([2; 16]).unwrap());
    let note = Note::SetPoint { set, taker, cut: 7, lsn: Lsn(of), members: 2, label: "shop 7".into() };
    event(lsn, RecordKind::SetPoint, Some(note))
}

fn common(branch: &Branch) -> Vec<(u64, bool, &str)> {
    branch.points().iter().map(|point| (point.id.lsn.0, point.mark.kinds.set, point.mark.label.as_str())).collect()
}

#[test]
fn a_point_is_common_when_the_record_that_says_so_is_durable_and_only_that_one() {
    let mut branch = seeded(1);
    for one in [mark(12, ""), mark(14, "other"), set_point(16, 12), set_point(17, 13)] {
        branch.handle(one);
    }
    branch.advance(Lsn(15), stamp(1, 150));
    assert_eq!(common(&branch), [(12, false, ""), (14, false, "other")]);
    branch.advance(Lsn(17), stamp(1, 170));
    assert_eq!(common(&branch), [(12, true, "shop 7"), (14, false, "other")], "13 is no point");
    assert_eq!(ranges(&branch), [(10, 17)]);
}

#[test]
fn a_period_goes_on_over_what_tells_of_a_common_point() {
    let begin = |lsn| event(lsn, RecordKind::PeriodBegin, Some(Note::PeriodBegin { from: Lsn(lsn) }));
    let mut branch = seeded(1);
    for one in [begin(11), mark(20, ""), begin(21), set_point(25, 20)] {
        branch.handle(one);
    }
    branch.advance(Lsn(30), stamp(1, 300));
    assert_eq!(common(&branch), [(20, true, "shop 7")]);
    assert_eq!(ranges(&branch), [(10, 10), (20, 20)]);
}
