//! Periods of per-point restore: of each only the moment at which it closes can be restored.

use super::Branch;
use crate::journal::Event;
use crate::types::Lsn;

impl Branch {
    /// From `from` on nothing can be restored until the period closes.
    pub(super) fn open_period(&mut self, from: Lsn, event: &Event) {
        if self.ranges.last().is_some_and(|range| from > range.to().next()) {
            // What lies between the last record and the period is whole.
            self.reach(from.prev(), event.stamp);
        }
        self.cut(from);
        self.in_period = true;
        let behind = self.gaps.last().map_or(Lsn::ZERO, |gap| gap.to);
        let before = self.ranges.last_mut().filter(|range| range.to() > behind);
        before.into_iter().for_each(|range| range.only = range.from() == range.to());
        self.ends = from;
    }
}
