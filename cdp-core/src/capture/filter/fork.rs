//! Going on under another timeline while guests write: the far side cannot continue the order.
//!
//! What was not durable at the fork is lost there, or may be: frames that are queued or lent, and whatever the replica forgot.
//! Nothing of it is sent again under its old LSNs. The order begins anew above every LSN that was given, with the records that a
//! start would make, and a resync is open until what was lost is read again. Ops that run keep running: they have no place in the
//! new order, so their ranges are read when they complete, and the resync stays open as long. Those that are held go later, as if
//! nothing had happened.
//!
//! No record of the new timeline leaves before the activity log names it, in both headers.

use super::{Doubt, Filter, Life, Window};
use crate::capture::options::DiskSpec;
use crate::capture::output::Event;
use crate::frame::{Note, RecordKind, ResyncReason};
use crate::mistakes::{self, Mistake};
use crate::types::{Extent, Lsn, Now, Timeline};

/// What was lost on the far side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// Nothing that was durable: a proxy was lost with what was lent to it, or the order broke off on the way.
    Lent,
    /// Something that was durable, or another replica took over: everything is compared.
    Acknowledged,
}

/// Why the filter does not fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ForkError {
    /// It writes that one.
    #[error("the filter writes timeline {timeline} already; a fork needs a new one")]
    SameTimeline {
        /// The timeline.
        timeline: Timeline,
    },
    /// The fork lies behind everything that was ever given.
    #[error("LSN {at} is no place to fork: the last that was given is {last}")]
    Beyond {
        /// Where to fork.
        at: Lsn,
        /// The last LSN.
        last: Lsn,
    },
    /// That would lose what the replica acknowledged.
    #[error("a fork at LSN {at} loses what was durable up to {durable}: say so, and everything is compared")]
    BelowDurable {
        /// Where to fork.
        at: Lsn,
        /// Up to where the replica was durable.
        durable: Lsn,
    },
    /// After `close`.
    #[error("the filter is closed")]
    Closed,
}

impl Filter {
    /// Goes on under `timeline`, a new one that the replica has opened with this one, or one before it, as its parent and `at` as its fork: the last
    /// LSN that is durable there. `known` are the disks as the replica has them at `at`, complete or being copied. The driver
    /// throws away every frame of the timeline before, and acknowledges only the new one's from here on. Returns the first LSN.
    ///
    /// # Errors
    /// When it cannot be; nothing has changed then.
    pub fn fork(
        &mut self,
        now: Now,
        timeline: Timeline,
        at: Lsn,
        lost: Fork,
        known: &[DiskSpec],
    ) -> Result<Lsn, ForkError> {
        self.check_fork(timeline, at, lost)?;
        if lost == Fork::Lent {
            self.durable(at);
        }
        let parent = std::mem::replace(&mut self.timeline, timeline);
        self.forget_sent(timeline, at, lost);
        // As at a start: nothing says that the far side's newest epoch was this one.
        let stepped = self.clock.stepped(now);
        self.clock.begin_epoch(now);
        if stepped {
            self.events.push_back(Event::ClockStepped { epoch: self.clock.epoch() });
        }
        self.rates.restart(now.mono.0);
        self.first_lsn = self.last_lsn.next();
        self.activity.writer_mut().fork(now.mono, timeline, at);
        let first =
            self.control(now, RecordKind::TimelineStart, None, Note::TimelineStart { parent: Some(parent), fork: at });
        self.time_record(now);
        self.tell_disks(now, at, known);
        let reason = if lost == Fork::Lent { ResyncReason::LentLost } else { ResyncReason::AcknowledgedLost };
        self.open_bracket(now, first, reason);
        if self.gap.take().is_some() {
            self.events.push_back(Event::GapEnded { lsn: first });
        }
        if self.paused || self.detached.is_some() {
            self.begin_gap(now);
        }
        self.close_frame();
        self.counters.forks += 1;
        self.events.push_back(Event::Forked { timeline, fork: at, first });
        self.kicked = true;
        Ok(first)
    }

    fn check_fork(&self, timeline: Timeline, at: Lsn, lost: Fork) -> Result<(), ForkError> {
        if matches!(self.life, Life::Closed { .. }) {
            return Err(ForkError::Closed);
        }
        if timeline == self.timeline {
            return Err(ForkError::SameTimeline { timeline });
        }
        if at > self.last_lsn {
            return Err(ForkError::Beyond { at, last: self.last_lsn });
        }
        if lost == Fork::Lent && at < self.durable {
            return Err(ForkError::BelowDurable { at, durable: self.durable });
        }
        Ok(())
    }

    /// What is not durable is dirty, and what is only known of this timeline is not known any more.
    fn forget_sent(&mut self, timeline: Timeline, at: Lsn, lost: Fork) {
        let ranges = self.gather.fork(timeline);
        let lent: Vec<(usize, Extent)> = self.lent.take().collect();
        match (lost, ranges) {
            (Fork::Acknowledged, _) => self.distrust_everything(),
            (Fork::Lent, Some(ranges)) => {
                for (id, extent) in ranges {
                    if let Some(disk) = self.find_disk(id) {
                        self.mend.mark(disk, extent);
                    }
                }
                if !mistakes::is(Mistake::LentForgotten) {
                    lent.into_iter().for_each(|(disk, extent)| self.mend.mark(disk, extent));
                }
            }
            // Repairs have no LSN of their own in the log, and what is compared need not be marked there.
            (Fork::Lent, None) if self.doubt.is_some() => self.distrust_everything(),
            (Fork::Lent, None) => {
                let after = self.window.is_none().then_some(at);
                for disk in (0..self.disks.len()).filter(|disk| !self.changes.is_gone(*disk)).collect::<Vec<_>>() {
                    let hot = self.activity.hot_after(disk, after);
                    hot.into_iter().for_each(|extent| self.mend.mark(disk, extent));
                }
            }
        }
        if matches!(self.doubt, Some(Doubt::Ended { .. })) {
            self.doubt = Some(Doubt::Open);
        }
        self.order.disown();
        while let Some(lsn) = self.points.next_lost(Lsn::ZERO) {
            self.events.push_back(Event::PointLost { lsn });
        }
        self.periods.forget();
        (self.durable, self.stored, self.settled_durable) = (at, at, Lsn::ZERO);
        self.restorable = self.restorable.min(at);
        self.bracket = None;
        // Of what lies between nothing can be restored.
        self.window = Some(Window { from: self.restorable.next(), end: None });
        (self.awaiting, self.tell_due, self.lend_due) = (None, None, None);
    }

    fn distrust_everything(&mut self) {
        self.doubt_everything();
        for disk in (0..self.disks.len()).filter(|disk| !self.changes.is_gone(*disk)).collect::<Vec<_>>() {
            self.mend.mark(disk, Extent::new(0, self.disks[disk].size));
            self.activity.want_flush(disk);
        }
    }
}
