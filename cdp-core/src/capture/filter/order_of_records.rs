//! The one place where LSNs and stamps are given, and the control records: time, points, gaps and resyncs.

use super::{Bracket, Doubt, Filter, Gap, Life, Window};
use crate::capture::options::MarkError;
use crate::capture::output::Event;
use crate::frame::{GapReason, Mark, Note, Part, PointKinds, RecordKind, ResyncReason};
use crate::mistakes::{self, Mistake};
use crate::set::{Place, Refusal, SetPoint};
use crate::types::{DiskId, Lsn, MonoTime, NAME_MAX, Now, SET_LABEL_MAX, WallTime};

/// How long settling may stay untold when no frame is open, in nanoseconds; then a time record carries it.
const TELL_NS: u64 = 50_000_000;

impl Filter {
    /// The next place in the order.
    pub(super) fn give_lsn(&mut self, now: Now) -> Lsn {
        self.last_lsn = self.last_lsn.next();
        if self.last_lsn >= self.renew_at {
            self.renew_at = self.activity.writer_mut().reserve(self.last_lsn);
            if self.activity.writer().is_ready() && !self.activity.writer().may_give(self.last_lsn) {
                self.activity.lose(now.mono);
            }
            self.kicked = true;
        }
        self.last_lsn
    }

    /// The stamp of a record made now; a step of the wall clock begins an epoch first.
    pub(super) fn stamp(&mut self, now: Now) -> WallTime {
        if self.clock.stepped(now) {
            self.gather.close(self.clock.epoch(), &self.order);
            self.clock.begin_epoch(now);
            self.events.push_back(Event::ClockStepped { epoch: self.clock.epoch() });
            self.time_record(now);
        }
        self.clock.stamp(now)
    }

    /// Puts a part into the open frame.
    pub(super) fn gather(&mut self, now: Now, part: Part) {
        if self.gather.opened().is_none() {
            self.timer_due = self.timer_due.min(now.mono.after(self.limits.frame_age_ns_max));
        }
        self.gather.push(now, self.clock.epoch(), &self.order, part);
    }

    /// Makes a record without data.
    pub(super) fn control(&mut self, now: Now, kind: RecordKind, disk: Option<DiskId>, note: Note) -> Lsn {
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        self.gather(now, Part::noted(kind, disk, lsn, time, note));
        lsn
    }

    /// Makes a time record: both clocks as they are now.
    pub(super) fn time_record(&mut self, now: Now) {
        let time = self.clock.stamp(now);
        self.clock.told(now);
        let lsn = self.give_lsn(now);
        self.gather(now, Part::noted(RecordKind::Time, None, lsn, time, Note::Time { mono: now.mono }));
    }

    pub(super) fn close_frame(&mut self) {
        self.gather.close(self.clock.epoch(), &self.order);
    }

    pub(super) fn arm_tell(&mut self, now: Now) {
        let at = now.mono.after(TELL_NS);
        self.tell_due = Some(at);
        self.timer_due = self.timer_due.min(at);
    }

    /// A point, asked for by a person or a program. Its frame closes at once.
    ///
    /// # Errors
    /// When this moment could not be restored, or the label is too long, or too many points wait for the replica.
    pub fn mark(&mut self, now: Now, mark: Mark) -> Result<Lsn, MarkError> {
        if matches!(self.life, Life::Closed { .. }) {
            return Err(MarkError::Closed);
        }
        if mark.label.len() > NAME_MAX {
            return Err(MarkError::Label { bytes: mark.label.len() });
        }
        if !self.is_protecting() {
            return Err(MarkError::NotRestorable { state: self.state() });
        }
        if !self.points.has_room() {
            return Err(MarkError::TooMany);
        }
        let lsn = self.point(now, mark);
        self.close_frame();
        self.kicked = true;
        Ok(lsn)
    }

    /// Where this group is cut for its consistency set: at a mark, so that the moment is a point, and a period of per-point restore ends with it.
    ///
    /// # Errors
    /// When this moment could not be restored.
    pub fn cut(&mut self, now: Now) -> Result<Place, Refusal> {
        let kinds = PointKinds { short: true, ..PointKinds::default() };
        let lsn = self.mark(now, Mark { kinds, ..Mark::default() }).map_err(|_| Refusal::NotProtecting)?;
        Ok(Place { timeline: self.timeline, lsn })
    }

    /// Records that the mark at a cut is common to a set. Whether it has its place in the order: not where that is another timeline's by now, or
    /// where nothing is restorable that is recorded now.
    pub fn set_point(&mut self, now: Now, point: &SetPoint, label: &str) -> bool {
        let closed = matches!(self.life, Life::Closed { .. });
        let here = point.place.timeline == self.timeline && point.place.lsn <= self.last_lsn;
        if closed || !here || !self.is_protecting() || label.len() > SET_LABEL_MAX {
            return false;
        }
        let SetPoint { set, cut, place, members } = *point;
        let (taker, cut, lsn, label) = (cut.taker, cut.number, place.lsn, label.to_owned());
        self.control(now, RecordKind::SetPoint, None, Note::SetPoint { set, taker, cut, lsn, members, label });
        self.close_frame();
        self.kicked = true;
        true
    }

    fn point(&mut self, now: Now, mark: Mark) -> Lsn {
        let (kinds, on_barrier) = (mark.kinds, mark.on_barrier);
        let lsn = self.control(now, RecordKind::Mark, None, Note::Mark(mark));
        self.points.add(lsn);
        self.periods.end(lsn, now.mono);
        // In the frame of the point, so that nothing lies in between.
        self.begin_period(now);
        self.events.push_back(Event::PointClosed { lsn, kinds, on_barrier });
        lsn
    }

    /// Closes the period's point.
    pub(super) fn short_point(&mut self, now: Now, on_barrier: bool) {
        let kinds = PointKinds { short: true, ..PointKinds::default() };
        self.point(now, Mark { kinds, on_barrier, label: String::new() });
    }

    /// The queue is full, or somebody paused: from here on writes are tracked.
    pub(super) fn begin_gap(&mut self, now: Now) {
        // A stamp may make a time record; the gap begins behind the record that says so.
        self.stamp(now);
        self.end_period(now);
        let from = self.last_lsn.next().next();
        let reason = self.gap_reason();
        if !mistakes::is(Mistake::GapUnsaid) {
            self.control(now, RecordKind::GapBegin, None, Note::GapBegin { from, reason });
        }
        self.gap = Some(Gap { from, reason });
        if reason == GapReason::Overload {
            self.rest.gap_began(now.mono, self.limits.rpo_ns);
        }
        self.counters.gaps += 1;
        self.shut_window(from);
        self.events.push_back(Event::GapBegan { from, reason });
        self.close_frame();
        self.kicked = true;
    }

    /// Writes are recorded again; what was only tracked is read again.
    pub(super) fn end_gap(&mut self, now: Now) {
        let Some(gap) = self.gap.take() else { return };
        self.rest.gap_ended();
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        let end = crate::types::Extent::new(0, 0);
        self.gather(now, Part::plain(RecordKind::GapEnd, None, end, lsn, time));
        self.events.push_back(Event::GapEnded { lsn });
        // An op from before the gap may still run, and fail: the resync begins no later than it.
        let from = self.order.oldest_lsn().map_or(gap.from, |oldest| oldest.min(gap.from));
        self.open_bracket(now, from, ResyncReason::Gap);
    }

    /// Nothing from `from` on is restorable until the resync ends. `from` is at or below every op that runs, and above all that
    /// any frame called settled, so that what fails later lies inside and nothing is taken back. No-op while one is open.
    pub(super) fn open_bracket(&mut self, now: Now, from: Lsn, reason: ResyncReason) {
        if self.bracket.is_some() {
            return;
        }
        self.bracket = Some(Bracket { reason, bytes_read: 0, bytes_changed: 0 });
        // Of a period that ends here nothing can be restored, before the resync either.
        self.shut_window(self.periods.open().map_or(from, |begun| begun.min(from)));
        let lsn = self.control(now, RecordKind::ResyncBegin, None, Note::ResyncBegin { from, reason });
        self.periods.end(lsn, now.mono);
        self.counters.resyncs += 1;
        self.events.push_back(Event::ResyncBegan { from, reason });
        self.kicked = true;
    }

    /// Ends the resync when nothing differs any more.
    pub(super) fn try_close_bracket(&mut self, now: Now) {
        let Some(Bracket { bytes_read, bytes_changed, .. }) = self.bracket else { return };
        let tracked = self.order.tracked_count() > 0;
        let mended = self.is_mended() || mistakes::is(Mistake::ResyncEndsEarly);
        if self.gap.is_some() || tracked || !mended {
            return;
        }
        // The attempt was not in vain, however long the first copy still takes.
        self.rest.mended();
        if self.seeding {
            return;
        }
        self.bracket = None;
        let lsn = self.control(now, RecordKind::ResyncEnd, None, Note::ResyncEnd { bytes_read, bytes_changed });
        self.events.push_back(Event::ResyncEnded { lsn, bytes_read, bytes_changed });
        if let Some(window) = &mut self.window {
            window.end = Some(lsn);
        }
        if matches!(self.doubt, Some(Doubt::Open)) {
            self.doubt = Some(Doubt::Ended { lsn, flushes: self.demand_flushes() });
        }
        self.begin_period(now);
    }

    fn demand_flushes(&mut self) -> Vec<u64> {
        (0..self.disks.len()).map(|disk| self.activity.demand_flush(disk)).collect()
    }

    /// LSNs from here on are not restorable; points among them that are not durable yet will not be.
    fn shut_window(&mut self, from: Lsn) {
        let from = self.window.map_or(from, |window| window.from.min(from));
        self.window = Some(Window { from, end: None });
        while let Some(lsn) = self.points.next_lost(from) {
            self.events.push_back(Event::PointLost { lsn });
        }
    }

    /// The replica is durable up to `lsn` ([`crate::types::DurableLsn::lsn`]): the memory of what it covers is free, points
    /// become real, extents can be cleared from the activity log. What lies below this filter's first LSN was durable before it.
    pub fn durable(&mut self, lsn: Lsn) {
        self.kicked = true;
        if lsn < self.first_lsn {
            return;
        }
        self.durable = self.durable.max(lsn.min(self.last_lsn));
        if let Some(reached) = self.gather.durable(self.durable) {
            self.settled_durable = reached.settled;
            self.awaiting.get_or_insert((reached.lsn, reached.made));
            self.advance_restorable(reached.lsn, reached.made);
            self.look_lent();
        }
    }

    fn advance_restorable(&mut self, newest: Lsn, newest_made: MonoTime) {
        let reached = self.durable.min(self.settled_durable);
        if let Some(end) = self.window.and_then(|window| window.end).filter(|end| *end <= reached) {
            self.window = None;
            self.activity.resynced(end);
        }
        let limit = self.window.map_or(reached, |window| window.from.prev().min(reached));
        self.restorable = self.restorable.max(self.periods.exact(limit));
        let mut restorable_made = self.restorable_made.max(self.periods.closed(self.restorable));
        if newest <= self.restorable {
            restorable_made = Some(newest_made);
            self.awaiting = None;
        } else if let Some((lsn, made)) = self.awaiting
            && lsn <= self.restorable
        {
            restorable_made = restorable_made.max(Some(made));
            self.awaiting = Some((newest, newest_made));
        }
        self.restorable_made = restorable_made;
        while let Some(lsn) = self.points.next_durable(self.restorable) {
            self.events.push_back(Event::PointDurable { lsn });
        }
    }
}
