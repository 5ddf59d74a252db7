//! Per-point periods: each begins with a record of its own and closes with a point, or without one before a gap and at a stop.
//! Inside of one the replica's content at a durable LSN is of no moment: proxies may have left out what is written again later.

use super::{Filter, Life};
use crate::capture::points::PENDING_POINTS_MAX;
use crate::frame::{Note, Part, RecordKind};
use crate::types::{Extent, Lsn, MonoTime, Now, PointsMode};
use std::collections::VecDeque;

/// Periods that are closed and not yet restorable, at most. Where there are more, none is begun until the next point: then every
/// write can be restored for a while, which is more than was asked for.
const PENDING_PERIODS_MAX: usize = PENDING_POINTS_MAX + 64;

/// One period.
#[derive(Clone, Copy, Debug)]
struct Period {
    /// Of its period-begin, and when that was made: directly behind the last record before it.
    from: Lsn,
    begun: MonoTime,
    /// Of the record that ended it, and when that was made; none while it is open.
    end: Option<(Lsn, MonoTime)>,
}

/// The periods that are not yet behind what can be restored, oldest first; the last one may be open.
#[derive(Debug)]
pub(super) struct Periods {
    pub(super) mode: PointsMode,
    pending: VecDeque<Period>,
}

impl Periods {
    pub(super) fn new(mode: PointsMode) -> Self {
        Self { mode, pending: VecDeque::new() }
    }

    /// Where the open period begins.
    pub(super) fn open(&self) -> Option<Lsn> {
        self.pending.back().filter(|period| period.end.is_none()).map(|period| period.from)
    }

    fn begin(&mut self, from: Lsn, begun: MonoTime) {
        self.pending.push_back(Period { from, begun, end: None });
    }

    /// The record with this LSN ends the open period; it is the last one of it that may be coalesced.
    pub(super) fn end(&mut self, lsn: Lsn, now: MonoTime) {
        if let Some(period) = self.pending.back_mut().filter(|period| period.end.is_none()) {
            period.end = Some((lsn, now));
        }
    }

    /// Another timeline begins, and none of them is in it.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
    }

    /// The last LSN up to `lsn` at which the content is that of a moment.
    pub(super) fn exact(&self, lsn: Lsn) -> Lsn {
        let inside = |period: &&Period| period.from <= lsn && period.end.is_none_or(|(end, _)| end > lsn);
        self.pending.iter().find(inside).map_or(lsn, |period| period.from.prev())
    }

    /// Forgets the periods that ended up to `restorable`: when the last of their ends was made, or the record before a period where it is that.
    pub(super) fn closed(&mut self, restorable: Lsn) -> Option<MonoTime> {
        let mut made = None;
        let over = |period: &mut Period| period.end.is_some_and(|(end, _)| end <= restorable);
        while let Some(period) = self.pending.pop_front_if(over) {
            made = period.end.map(|(_, made)| made);
        }
        let next = self.pending.binary_search_by_key(&restorable.next(), |period| period.from);
        made.max(next.ok().map(|at| self.pending[at].begun))
    }
}

impl Filter {
    /// Which moments can be restored from now on. What is open of a period closes here.
    pub fn set_points(&mut self, now: Now, mode: PointsMode) {
        if self.periods.mode == mode || matches!(self.life, Life::Closed { .. }) {
            return;
        }
        self.periods.mode = mode;
        match mode {
            PointsMode::EveryWrite => self.end_period(now),
            PointsMode::PerPoint => self.begin_period(now),
        }
        self.kicked = true;
    }

    /// Begins a period where one is due.
    pub(super) fn begin_period(&mut self, now: Now) {
        let wanted = self.periods.mode == PointsMode::PerPoint && self.life == Life::Running;
        let room = self.periods.pending.len() < PENDING_PERIODS_MAX;
        if !wanted || !room || !self.is_protecting() || self.periods.open().is_some() {
            return;
        }
        // A stamp may make a time record: the period begins behind it.
        self.stamp(now);
        let from = self.last_lsn.next();
        let lsn = self.control(now, RecordKind::PeriodBegin, None, Note::PeriodBegin { from });
        self.periods.begin(lsn, now.mono);
    }

    /// Closes the open period without a point: this moment can be restored, and what follows is in none.
    pub(super) fn end_period(&mut self, now: Now) {
        if self.periods.open().is_none() {
            return;
        }
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        self.gather(now, Part::plain(RecordKind::PeriodEnd, None, Extent::new(0, 0), lsn, time));
        self.periods.end(lsn, now.mono);
    }

    /// How old the last restorable record may be when a period of the RPO ends, in nanoseconds: where only points can be restored, the
    /// one before has to be durable, which may have closed in the last quarter of its period.
    pub(super) fn age_allowed_ns(&self) -> u64 {
        let rpo_ns = self.limits.rpo_ns;
        match self.periods.mode {
            PointsMode::EveryWrite => rpo_ns,
            PointsMode::PerPoint => rpo_ns.saturating_add(rpo_ns / 4),
        }
    }
}
