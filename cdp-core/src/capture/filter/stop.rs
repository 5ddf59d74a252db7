//! Stopping: drain, and the activity log's last word.

use super::{Filter, Life};
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

    /// Whether everything is settled, durable at the replica and flushed at the sources, and nothing is in doubt. Never again
    /// after a flush of a source failed: what it lost is not known.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.no_op_is_open()
            && self.gather.is_settled()
            && self.gather.is_durable()
            && self.is_protecting()
            && self.mend.is_idle()
            && self.doubt.is_none()
            && (0..self.disks.len()).all(|disk| self.activity.is_flushed(disk))
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
        let clean = self.is_drained();
        self.life = Life::Closed { clean, told: false };
        if clean {
            self.activity.clear_all();
            let writer = self.activity.writer_mut();
            writer.set_state(LogState::Clean);
            writer.set_facts(facts);
            writer.end_reservation(self.last_lsn);
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
