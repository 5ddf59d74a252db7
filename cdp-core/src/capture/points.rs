//! When short-term points close: at the first flush barrier in the last quarter of their period, else at its end.
//!
//! Periods lie on a grid of the RPO from the filter's start, so that an early close does not make the next period longer.

use crate::types::{Lsn, MonoTime};
use std::collections::VecDeque;

/// The most points that are closed and not yet durable; more are refused (asked for) or skipped (of the policy).
pub const PENDING_POINTS_MAX: usize = 1024;

/// The schedule of short-term points, and the points that are not durable yet.
#[derive(Debug)]
pub(super) struct Points {
    rpo_ns: u64,
    /// End of the running period.
    end: MonoTime,
    /// Whether the running period's point is closed.
    closed: bool,
    pending: VecDeque<Lsn>,
}

impl Points {
    pub(super) fn new(rpo_ns: u64, now: MonoTime) -> Self {
        Self { rpo_ns, end: now.after(rpo_ns), closed: false, pending: VecDeque::new() }
    }

    /// The period that is open ends after the new length, counted from now.
    pub(super) fn set_rpo(&mut self, rpo_ns: u64, now: MonoTime) {
        (self.rpo_ns, self.end) = (rpo_ns, now.after(rpo_ns));
    }

    /// The end of the running period.
    pub(super) fn due(&self) -> MonoTime {
        self.end
    }

    /// Whether a barrier that completed now closes the period's point.
    pub(super) fn barrier_closes(&self, now: MonoTime) -> bool {
        !self.closed && now.after(self.rpo_ns / 4) >= self.end
    }

    /// The running period has its point.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Moves on to the period that holds `now`; says whether the one that ended is still without a point.
    pub(super) fn period_ended(&mut self, now: MonoTime) -> bool {
        let periods = now.since(self.end) / self.rpo_ns + 1;
        self.end = self.end.after(periods * self.rpo_ns);
        !std::mem::replace(&mut self.closed, false)
    }

    /// Whether another point may wait for its durability.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_POINTS_MAX
    }

    pub(super) fn add(&mut self, lsn: Lsn) {
        self.pending.push_back(lsn);
    }

    /// The next point that is durable now that everything up to `restorable` is.
    pub(super) fn next_durable(&mut self, restorable: Lsn) -> Option<Lsn> {
        self.pending.pop_front_if(|lsn| *lsn <= restorable)
    }

    /// The next point that will never be: it lies at or after `from`.
    pub(super) fn next_lost(&mut self, from: Lsn) -> Option<Lsn> {
        self.pending.pop_back_if(|lsn| *lsn >= from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_closes_only_in_the_last_quarter_and_once() {
        let mut points = Points::new(100, MonoTime(1000));
        assert!(!points.barrier_closes(MonoTime(1074)));
        assert!(points.barrier_closes(MonoTime(1075)));
        points.close();
        assert!(!points.barrier_closes(MonoTime(1080)));
        assert!(!points.period_ended(MonoTime(1100)));
        assert_eq!(points.due(), MonoTime(1200));
        assert!(points.period_ended(MonoTime(1200)), "no barrier came");
    }

    #[test]
    fn periods_that_nobody_saw_are_skipped_on_the_grid() {
        let mut points = Points::new(100, MonoTime(0));
        assert!(points.period_ended(MonoTime(357)));
        assert_eq!(points.due(), MonoTime(400));
    }
}
