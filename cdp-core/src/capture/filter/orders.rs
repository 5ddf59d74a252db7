//! Orders from outside: room, pause; and what the filter says about itself.

use super::{Filter, Life, Room};
use crate::capture::output::Event;
use crate::capture::status::{Counters, Status};
use crate::types::Now;

impl Filter {
    /// Another RPO from the next period on.
    pub fn set_rpo(&mut self, now: Now, rpo_ns: u64) {
        if rpo_ns == 0 || rpo_ns == self.limits.rpo_ns {
            return;
        }
        self.limits.rpo_ns = rpo_ns;
        self.clock.set_rpo(rpo_ns);
        self.points.set_rpo(rpo_ns, now.mono);
        self.kicked = true;
    }

    /// How the replica's side can take what is sent, as it was last said.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room
    }

    /// How the replica's side can take frames. Without room the filter goes on recording up to its bound, then tracks; it
    /// records again by itself when there is room and the queue has drained to its half.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
        self.kicked = true;
    }

    /// Stops recording: writes are tracked until [`Filter::resume`].
    pub fn pause(&mut self, now: Now) {
        if self.paused || matches!(self.life, Life::Closed { .. }) {
            return;
        }
        self.paused = true;
        if self.gap.is_none() {
            self.begin_gap(now);
        }
        self.kicked = true;
    }

    /// Records again, as soon as the queue allows.
    pub fn resume(&mut self) {
        self.paused = false;
        self.kicked = true;
    }

    /// The filter as it is now.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let [memory, spool] = self.stages();
        Status {
            state: self.state(),
            gap: self.gap.map(|gap| gap.reason),
            detached: self.detached,
            resync: self.bracket.map(|bracket| bracket.reason),
            lsn: self.last_lsn,
            settled: self.gather.settled(),
            stored: self.stored.max(self.durable),
            lent: self.lent.through(),
            lent_bytes: self.lent.bytes(),
            durable: self.durable,
            restorable: self.restorable,
            queued_bytes: self.gather.queued(),
            queue_bytes_max: self.limits.queue_bytes(),
            memory,
            spool,
            dirty_bytes: self.mend.dirty_bytes(),
            hot_bytes: self.activity.hot_bytes(),
            rpo_ns: self.rpo_ns(now),
            time_until_tracking_ns: spool.time_until_full_ns,
            write_bytes_per_s: self.rates.write_bytes_per_s,
            durable_bytes_per_s: self.rates.durable_bytes_per_s,
            ops_running: self.order.running_count(),
            ops_held: self.order.held_count(),
            rereads_failing: self.mend.failing(),
            log: self.activity.writer().trust(),
            counters: Counters {
                frames: self.gather.frames_closed,
                log_writes: self.activity.writer().writes,
                ..self.counters
            },
        }
    }

    /// Age of the last restorable record by the steady clock, in nanoseconds.
    pub(super) fn rpo_ns(&self, now: Now) -> Option<u64> {
        self.restorable_made.map(|made| now.mono.since(made))
    }

    /// Tells when what the group is doing has changed.
    pub(super) fn tell_state(&mut self) {
        let to = self.state();
        let from = std::mem::replace(&mut self.told_state, to);
        if from != to {
            self.events.push_back(Event::State { from, to });
        }
    }
}
