//! Lives that are made up, in a form that shrinks.

use super::super::points::step::{After, Kind, Record, Step};
use proptest::prelude::*;

/// A life.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) sealed: bool,
    /// Disks have several pages of checksums.
    pub(super) large: bool,
    pub(super) ops: Vec<Op>,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Do(Step),
    /// The power will go, after so many more changes of the media.
    Cut {
        after: u8,
    },
    /// The replica is stopped, cleanly or by a power cut, and started again.
    Restart {
        clean: bool,
    },
    /// Every moment is looked at.
    Look,
}

fn record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![
        6 => any::<u8>().prop_map(Kind::Data),
        1 => Just(Kind::Zero),
        1 => Just(Kind::Discard),
        1 => Just(Kind::Mark),
    ];
    (any::<u8>(), any::<u16>(), 1..48u8, kind).prop_map(|(disk, sector, sectors, kind)| Record {
        disk,
        sector,
        sectors,
        kind,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let records = prop::collection::vec(record(), 1..6);
    let after = prop_oneof![Just(After::Open), Just(After::Closed), Just(After::Left)];
    let writes = prop::collection::vec(any::<(u8, u8)>(), 0..4);
    prop_oneof![
        12 => (records, any::<bool>(), any::<bool>())
            .prop_map(|(records, roll, wait)| Step::Write { records, roll, wait }),
        4 => any::<u16>().prop_map(Step::Pin),
        2 => any::<u8>().prop_map(Step::Unpin),
        2 => Just(Step::Layer),
        1 => Just(Step::Expire),
        4 => (any::<u16>(), prop::option::weighted(0.25, 0..4u8)).prop_map(|(to, pieces)| Step::Merge { to, pieces }),
        2 => Just(Step::Index),
        4 => (0..3u8, any::<u16>(), writes, any::<bool>(), after)
            .prop_map(|(which, fork, writes, flush, after)| Step::Session { which, fork, writes, flush, after }),
        1 => any::<u8>().prop_map(Step::Drop),
        2 => (any::<u8>(), 8..120u16).prop_map(|(disk, sectors)| Step::Resize { disk, sectors }),
        2 => (2..8u8).prop_map(|blocks| Step::Add { blocks }),
        4 => (1..8u8).prop_map(|blocks| Step::Copy { blocks }),
        1 => any::<u8>().prop_map(Step::Remove),
        1 => Just(Step::Rotate),
    ]
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let op = prop_oneof![
        40 => step().prop_map(Op::Do),
        1 => (0..80u8).prop_map(|after| Op::Cut { after }),
        2 => any::<bool>().prop_map(|clean| Op::Restart { clean }),
        2 => Just(Op::Look),
    ];
    let ops = prop::collection::vec(op, 1..70);
    (any::<bool>(), prop::bool::weighted(0.05), ops).prop_map(|(sealed, large, ops)| Case { sealed, large, ops })
}
