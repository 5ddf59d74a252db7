//! Replication out of the guest's path and back, by order or because it is stuck.
//!
//! Detached, an op passes: no copy, no record, no LSN, no mark, no wait; it keeps its place in the table of ops only so that later
//! ones know what still runs. That is honest once whoever finds the activity log compares everything: the log says so in both
//! headers, or its file is removed. Until then ops are tracked as in any gap, and wait for the log no longer than ever. What was
//! recorded before stays queued and goes on its way.
//!
//! Where nobody polls, nothing can be written and nothing removed: ops pass at once, and a kill in that state leaves a log that
//! marks too little. The first poll says that it is lost and removes it.
//!
//! Where a driver cannot get at the filter at all, it removes the log's file itself, lets ops run past, and says so afterwards: see
//! [`Filter::passed_by`].

use super::{Filter, Life, Wait};
use crate::capture::order::Stage;
use crate::capture::output::{Detached, Event, Health, Stuck, Ticket};
use crate::types::{Extent, MonoTime, Now};

/// Events of one kind and cause that wait to be fetched: beyond so many in all, those that only repeat what a status says too are
/// not told.
const EVENTS_MAX: usize = 1024;

impl Filter {
    /// Takes replication out of the guest's path until [`Filter::attach`]. The gap is recorded, and what was recorded before goes
    /// on its way.
    pub fn detach(&mut self, now: Now) {
        self.leave(now, Detached::Ordered);
    }

    /// The driver's word on its side: where something there waits for longer than `stuck_ns_max`, replication is stuck and is
    /// detached. Returns why, if it is.
    pub fn watchdog(&mut self, now: Now, health: &Health) -> Option<Stuck> {
        let stuck = match *health {
            Health { ended: true, .. } => Stuck::Ended,
            Health { untaken_ns: waited_ns, .. } if waited_ns >= self.limits.stuck_ns_max => {
                Stuck::Untaken { waited_ns }
            }
            _ => return None,
        };
        self.leave(now, Detached::Stuck(stuck));
        Some(stuck)
    }

    /// Ops ran, or run, at the source and the filter does not know of them: the driver could not get at it for so long. Called before
    /// anything else once it can, so that nothing is said of a time in which they ran: the filter is detached since before the first
    /// of them, and ops pass. Those that it does know of are completed as ever, also those that were held and went all the same.
    ///
    /// `last` is the time of the last call before: the gap begins there, since whatever ran past is younger, and nothing of the time
    /// since can be restored.
    ///
    /// # The contract
    /// * Before the first of them went nobody would have believed the log any more: its file was removed, or that could not be waited for.
    /// * Whoever was in the filter meanwhile did what he did with the time that he came with.
    /// * [`Filter::attach`] is not called before all ops that ran past are done.
    pub fn passed_by(&mut self, last: Now, waited_ns: u64) {
        if matches!(self.life, Life::Closed { .. }) {
            // Its last word was removed with the log, and what is said from here on must not be that the stop was a clean one.
            self.life = Life::Closed { clean: false, told: false };
            self.doubt_everything();
        }
        self.leave(last, Detached::Stuck(Stuck::Lock { waited_ns }));
        // Also where ops pass already: what was removed then is a log that was begun since, and nobody finds what is written to it.
        self.activity.give_up(last.mono);
        self.look_detached();
        self.kicked = true;
    }

    /// Replication is in the guest's path again: writes are tracked until the queue is half empty, then recorded, and everything
    /// is compared. Says whether it was detached.
    pub fn attach(&mut self, now: Now) -> bool {
        if matches!(self.life, Life::Closed { .. }) || self.detached.take().is_none() {
            return false;
        }
        self.passing = false;
        self.stuck_at = MonoTime(u64::MAX);
        self.doubt_everything();
        self.compare_floor = self.last_lsn;
        self.compare_wait = Some(Wait::Wanted);
        self.overtaken = self.last_lsn;
        // Disks that are being copied too: the copy may have read what an op that passed changed later.
        for at in (0..self.disks.len()).filter(|at| !self.changes.is_gone(*at)) {
            self.mend.mark(at, Extent::new(0, self.disks[at].size));
            self.activity.want_flush(at);
        }
        self.events.push_back(Event::Attached);
        self.timer_due = self.timer_due.min(now.mono);
        self.kicked = true;
        true
    }

    fn leave(&mut self, now: Now, why: Detached) {
        if matches!(self.life, Life::Closed { .. }) {
            return;
        }
        if let Some(before) = self.detached {
            // Everything else comes back, or is taken back. What has ended does not, whatever it was detached for.
            let ended = Detached::Stuck(Stuck::Ended);
            if why == ended && before != ended {
                self.detached = Some(why);
                self.events.push_back(Event::Detached(why));
                self.kicked = true;
            }
            return;
        }
        self.detached = Some(why);
        self.doubt_everything();
        if self.gap.is_none() {
            self.begin_gap(now);
        }
        self.events.push_back(Event::Detached(why));
        self.kicked = true;
    }

    /// Ops pass as soon as no start believes the log.
    pub(super) fn look_detached(&mut self) {
        if self.detached.is_some() && !self.passing && self.activity.writer().says_all_unknown() {
            self.passing = true;
            // None is left that an op which passes would overtake: one that is recorded later must not run beside it.
            while let Some(ticket) = self.order.release_any() {
                self.passed(ticket);
                self.ready.push_back(ticket);
            }
        }
    }

    /// Whether an op passes. Called for each; whether anybody polls is looked at here, by the time of the ops.
    pub(super) fn passes(&mut self, now: Now) -> bool {
        if self.stuck_at.0 == u64::MAX {
            self.stuck_at = now.mono.after(self.limits.stuck_ns_max);
        } else if now.mono >= self.stuck_at {
            self.nobody_polls(now);
        }
        self.passing
    }

    #[cold]
    fn nobody_polls(&mut self, now: Now) {
        let waited_ns = now.mono.since(self.stuck_at) + self.limits.stuck_ns_max;
        self.leave(now, Detached::Stuck(Stuck::Outputs { waited_ns }));
        self.pass_at_once(now);
    }

    /// Detached, nothing is waited for: not the log's word either, which the next poll has removed.
    fn pass_at_once(&mut self, now: Now) {
        if self.detached.is_some() && !self.passing {
            self.activity.give_up(now.mono);
            self.look_detached();
        }
        self.kicked = true;
    }

    /// Lets an op pass.
    pub(super) fn pass(&mut self, disk: usize, extent: Extent) -> Ticket {
        let ticket = self.order.insert(disk, extent, Stage::Going { recorded: false });
        self.passed(ticket);
        ticket
    }

    /// An op that has its place in the table passes.
    pub(super) fn passed(&mut self, ticket: Ticket) {
        self.order.passed(ticket);
        self.counters.ops_passed += 1;
    }

    /// Tells what a status says too.
    pub(super) fn mention(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }
}
