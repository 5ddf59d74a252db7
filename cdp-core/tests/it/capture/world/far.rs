//! The world as somebody else drives it, who has the replica: step by step, with what is durable told from there.

use super::*;

/// What guests did on one timeline: what each LSN of it has to be.
pub struct History {
    pub timeline: Timeline,
    pub start: Vec<Tags>,
    pub changes: Vec<Change>,
    pub lsn_after_call: Vec<Lsn>,
    /// Every record of it.
    pub frames: Vec<RawFrame>,
}

impl World {
    /// When something happens here, if nothing comes from outside.
    pub fn next_time(&self) -> u64 {
        let event = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        let timer = self.filter.next_deadline().map_or(u64::MAX, |at| at.0);
        event.min(timer).max(self.now)
    }

    /// What happens until `now`.
    pub fn step(&mut self, now: u64) {
        self.drain();
        let mut stuck = 0;
        while self.next_time() <= now {
            let next = self.next_time();
            stuck = if next > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "time stands still at {}: {:#?}", self.now, self.filter);
            self.now = next;
            if self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= next) {
                let (_, event) = self.queue.pop_first().expect("an event");
                self.happen(event);
            }
            self.drain();
        }
        self.now = now;
    }

    /// The replica has everything up to here.
    pub fn far_durable(&mut self, lsn: Lsn) {
        if lsn <= self.applied_through {
            return;
        }
        let run = (self.applied_through, lsn);
        let first = self.frames.partition_point(|frame| frame.last_lsn() <= run.0);
        self.taken = self.frames.partition_point(|frame| frame.parts[0].lsn <= lsn);
        model::apply(&mut self.applied, &self.frames[first..self.taken], run, &self.left_out, index);
        self.applied_through = lsn;
        self.filter.durable(lsn);
        self.drain();
    }

    /// What happened on the timeline so far.
    pub fn history_so_far(&self) -> History {
        History {
            timeline: self.options.timeline,
            start: self.start_content.clone(),
            changes: self.changes.clone(),
            lsn_after_call: self.lsn_after_call.clone(),
            frames: self.frames.clone(),
        }
    }

    /// The replica is what the source is, and the filter knows. Records that only tell the time are always under way.
    pub fn is_converged(&self) -> bool {
        let status = self.filter.status(self.both());
        self.ops.is_empty()
            && status.state == State::Protecting
            && status.dirty_bytes == 0
            && self.filter.is_whole()
            && status.restorable >= self.last_change()
    }
}

impl History {
    /// The last LSN that was made.
    pub fn made(&self) -> Lsn {
        self.frames.last().map_or(Lsn::ZERO, |frame| frame.last_lsn())
    }

    /// What the disks were at these LSNs, which ascend.
    pub fn at(&self, lsns: &[Lsn]) -> Vec<Vec<Tags>> {
        let mut state = self.start.clone();
        let mut changes = self.changes.iter().peekable();
        let mut states = Vec::with_capacity(lsns.len());
        for lsn in lsns {
            let call = self.lsn_after_call.partition_point(|last| last < lsn) as u64;
            // What went unrecorded in a call went after the records of that call.
            let happened = |change: &&Change| change.lsn.map_or(change.call < call, |own| own <= *lsn);
            while let Some(change) = changes.next_if(happened) {
                for (at, sector) in sectors(change.extent).enumerate() {
                    state[change.disk][sector] = change.tags.get(at).copied().unwrap_or(0);
                }
            }
            states.push(state.clone());
        }
        states
    }
}
