//! The bound of what is not durable: its stages, and what is lent when it is reached.
//!
//! Where a proxy has synced frames, the source need not keep them too. It does as long as it can: a proxy may be lost. Only when
//! an op would pass the bound the oldest of them are *lent*: they leave the queue, the driver may drop them, and their ranges are
//! kept until everything that is lent is durable. If the proxy is lost first, [`Filter::fork`] reads exactly those again.

use super::{Filter, Room};
use crate::capture::options::{OptionsError, check_queue};
use crate::capture::status::Stage;
use crate::types::{Lsn, Now};

/// What is lent at once, at least, in bytes of the queue: so that not every op of a full queue lends.
const LEND_BYTES: u64 = 1 << 20;

impl Filter {
    /// A proxy has synced everything up to `lsn`. It is what one has *now*: less than before, where another took its place. That
    /// what is lent is lost then is for the driver to see ([`crate::capture::Status::lent`]) and to say ([`Filter::fork`]).
    pub fn stored(&mut self, lsn: Lsn) {
        self.stored = lsn.min(self.last_lsn).max(self.durable);
        self.gather.stored(self.stored);
        if self.gap.is_some() && !self.paused && self.detached.is_none() && self.room == Room::Ok {
            // The bound was reached, and what is lent now ends the gap sooner.
            self.lend(self.gather.queued().saturating_sub(self.limits.queue_bytes() / 2));
        }
        self.kicked = true;
    }

    /// The last LSN that is lent, if any is.
    #[must_use]
    pub fn lent(&self) -> Option<Lsn> {
        self.lent.through()
    }

    /// What was recorded and is neither durable nor lent, in bytes of the queue.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.gather.queued()
    }

    /// Other bounds of memory and spool, in bytes of the queue. Where more is queued already, the next op is lent room or tracked.
    ///
    /// # Errors
    /// When the memory is less than [`crate::capture::QUEUE_BYTES_MIN`].
    pub fn set_bounds(&mut self, memory_bytes: u64, spool_bytes: u64) -> Result<(), OptionsError> {
        check_queue(memory_bytes)?;
        (self.limits.memory_bytes, self.limits.spool_bytes) = (memory_bytes, spool_bytes);
        self.kicked = true;
        Ok(())
    }

    /// An op of this cost would pass the bound: lends what it can, else writes are tracked from here on.
    #[cold]
    pub(super) fn reach_bound(&mut self, now: Now, cost: u64) {
        let bound = self.limits.queue_bytes();
        let excess = |queued: u64| (queued + cost).saturating_sub(bound);
        self.lend(excess(self.gather.queued()).max(LEND_BYTES));
        if excess(self.gather.queued()) > 0 {
            self.begin_gap(now);
        }
    }

    fn lend(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let (disks, lent) = (&self.disks, &mut self.lent);
        let through = self.gather.lend(bytes, |(id, extent)| {
            if let Some(at) = disks.iter().position(|disk| disk.id == id) {
                lent.mark(at, disks[at].size, extent);
            }
        });
        if let Some(through) = through {
            self.lent.reach(through);
            self.lend_due = Some(through);
            self.kicked = true;
        }
    }

    /// Something more is durable.
    pub(super) fn look_lent(&mut self) {
        if !self.gather.has_lent() {
            self.lent.clear();
        }
    }

    /// Memory and spool, each as if the one before were filled first.
    pub(super) fn stages(&self) -> [Stage; 2] {
        let queued = self.gather.queued();
        let (memory, bound) = (self.limits.memory_bytes, self.limits.queue_bytes());
        let lasts = |room: u64| self.rates.lasts_ns(room);
        // What can be lent is room before tracking begins, and none before the spool does.
        let until_tracking = match self.gap {
            Some(_) => Some(0),
            None => lasts(bound.saturating_sub(queued) + self.gather.lendable()),
        };
        let until_spool = match self.limits.spool_bytes {
            0 => until_tracking,
            _ if queued >= memory => Some(0),
            _ => lasts(memory - queued),
        };
        let spooled = queued.saturating_sub(memory);
        [
            Stage { bytes: queued - spooled, bytes_max: memory, time_until_full_ns: until_spool },
            Stage { bytes: spooled, bytes_max: self.limits.spool_bytes, time_until_full_ns: until_tracking },
        ]
    }
}
