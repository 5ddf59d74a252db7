//! The restorable moments of one timeline next to an LSN.

use super::{Branch, Moment};
use crate::types::{Lsn, Stamp};

/// The restorable moments on both sides of one that is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Neighbours {
    /// The last one before.
    pub before: Option<Moment>,
    /// The first one after.
    pub after: Option<Moment>,
}

/// The last one up to it.
pub(super) fn last_before(branch: &Branch, upto: Lsn) -> Option<Moment> {
    let range = branch.ranges.iter().rev().find(|range| range.from() <= upto)?;
    let span = range.spans.iter().rev().find(|span| span.from <= upto)?;
    let stamp = Stamp { epoch: span.epoch, time: if span.to <= upto { span.to_time } else { span.from_time } };
    Some(Moment { timeline: branch.timeline, lsn: span.to.min(upto), stamp })
}

/// The first one behind it.
pub(super) fn first_after(branch: &Branch, lsn: Lsn) -> Option<Moment> {
    let range = branch.ranges.iter().find(|range| range.to() > lsn)?;
    let lsn = range.from().max(lsn.next());
    Some(Moment { timeline: branch.timeline, lsn, stamp: range.from_stamp() })
}
