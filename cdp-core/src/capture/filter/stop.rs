//! Stopping: drain, and the activity log's last word.

use super::{Doubt, Filter, Life};
use crate::capture::activity::{Facts, LogState};
use crate::types::Now;

/// How a filter was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an open stop has to be said"]
pub enum Closing {
    /// Everything is durable at the replica and flushed at the sources. The log says `clean` when
    /// [`crate::capture::Event::Closed`] comes.
    Clean,
    /// The log stays open: the next start compares what it marks.
    Open {
        /// Ops that were not completed.
        ops_open: usize,
        /// Recorded and not durable, in bytes.
        queued_bytes: u64,
        /// Waiting to be read again, in bytes.
        dirty_bytes: u64,
        /// What the next start compares, in bytes.
        hot_bytes: u64,
    },
}

/// How far a drain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Something is open, not durable at the replica, or not flushed at a source.
    NotYet,
    /// Everything is settled and durable at the replica, and that is all that can be had: a flush of a source failed, and what
    /// it lost only the next start can tell.
    InDoubt,
    /// Everything is settled, durable at the replica and flushed at the sources.
    Safe,
}

impl Filter {
    /// The driver is about to stop: the open frame closes at once, the filter makes no more points and time records of its own
    /// accord, and asks for flushes of the sources. Ops are still taken; end the guests' connections first.
    pub fn request_drain(&mut self) {
        if self.life == Life::Running {
            self.life = Life::Draining;
        }
        self.close_frame();
        self.kicked = true;
    }

    /// How far a drain is.
    #[must_use]
    pub fn drained(&self) -> Drained {
        let mut disks = 0..self.disks.len();
        let doubtful =
            matches!(self.doubt, Some(Doubt::Forever)) || disks.clone().any(|disk| self.activity.has_lost(disk));
        let durable = self.no_op_is_open()
            && self.gather.is_settled()
            && self.gather.is_durable()
            && self.is_protecting()
            && !self.changes.is_pending()
            && self.mend.is_idle()
            && self.periods.open().is_none();
        match durable {
            true if doubtful => Drained::InDoubt,
            true if self.doubt.is_none() && disks.all(|disk| self.activity.is_flushed(disk)) => Drained::Safe,
            _ => Drained::NotYet,
        }
    }

    /// Whether the log says that the stop was clean.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed { clean: true, told: true })
    }

    pub(super) fn no_op_is_open(&self) -> bool {
        self.order.running_count() == 0 && self.order.held_count() == 0
    }

    /// What a drain still lacks and nobody but the filter can ask for.
    pub(super) fn drain(&mut self, now: Now) {
        if self.life != Life::Draining || !self.no_op_is_open() {
            return;
        }
        self.close_frame();
        if self.gather.has_untold(&self.order) {
            self.tell_due = Some(now.mono);
        }
        for disk in 0..self.disks.len() {
            if self.activity.awaits_flush(disk) {
                self.activity.want_flush(disk);
            }
        }
    }

    /// Refuses ops from here on. If the filter is drained the log is written as clean, with `facts` about each source (at most
    /// [`crate::capture::FACTS_MAX`] bytes, longer ones are cut) for the next start to compare. Else it is left open.
    pub fn close(&mut self, facts: Vec<Facts>) -> Closing {
        self.kicked = true;
        if let Life::Closed { clean: true, .. } = self.life {
            return Closing::Clean;
        }
        let clean = self.drained() == Drained::Safe;
        self.life = Life::Closed { clean, told: false };
        if clean {
            self.activity.clear_all();
            let writer = self.activity.writer_mut();
            writer.set_state(LogState::Clean);
            writer.set_facts(facts);
            writer.end_reservation(self.last_lsn);
            writer.hurry();
            return Closing::Clean;
        }
        Closing::Open {
            ops_open: self.order.running_count() + self.order.held_count(),
            queued_bytes: self.gather.queued(),
            dirty_bytes: self.mend.dirty_bytes(),
            hot_bytes: self.activity.hot_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{DiskSpec, Failed, FilterOptions, Output, Start};
    use crate::types::{DiskId, GroupId, MonoTime, Timeline, WallTime};

    /// The log was lost for a moment shortly before the stop; the pause before it is tried again is longer than a stop may be.
    #[test]
    fn a_clean_stop_does_not_wait_for_the_pause_of_a_lost_log() {
        let now = Now { mono: MonoTime(1_000_000_000), wall: WallTime(1_000_000_000) };
        let spec = DiskSpec { id: DiskId::new(1).expect("id"), name: "disk".into(), size: 64 << 20 };
        let (group, timeline) = (GroupId::new([1; 16]).expect("id"), Timeline::new([2; 16]).expect("id"));
        let options = FilterOptions::new(group, timeline, Start::First, vec![spec]);
        let mut filter = Filter::new(options, now).expect("good options");
        let mut fails = true;
        let mut drive = |filter: &mut Filter| {
            while let Some(output) = filter.poll(now) {
                match output {
                    Output::Log(write) => {
                        let result = if std::mem::take(&mut fails) { Err(Failed { errno: 5 }) } else { Ok(()) };
                        filter.log_written(now, write.token, result).expect("open");
                    }
                    Output::RemoveLog => filter.log_removed(now).expect("open"),
                    Output::Flush(_, ticket) => filter.flushed(now, ticket, Ok(())),
                    Output::Frame(frame) => filter.durable(frame.last_lsn()),
                    Output::Reread(_) | Output::Ready(_) | Output::Event(_) | Output::Lend(_) => {}
                }
            }
        };
        drive(&mut filter);
        filter.seed_done();
        drive(&mut filter);
        filter.request_drain();
        drive(&mut filter);
        assert_eq!(filter.close(Vec::new()), Closing::Clean);
        drive(&mut filter);
        assert!(filter.is_closed(), "the log says so");
    }
}
