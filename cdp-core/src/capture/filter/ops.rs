//! The guest's path: submission, completion, flushes.

use super::{Doubt, Filter, Life};
use crate::capture::options::{NotOpen, PART_COST, SubmitError};
use crate::capture::order::{Op, Stage};
use crate::capture::output::{Event, Failed, FlushTicket, Submitted, Ticket};
use crate::frame::{Part, RecordKind, ResyncReason};
use crate::mistakes::{self, Mistake};
use crate::types::{DiskId, Extent, Lsn, Now, PART_MAX, SECTOR};

/// What an op costs of the queue's bound, in bytes.
fn cost(op: &Op) -> u64 {
    match op {
        Op::Write(payload) => payload.extent().length + payload.extent().length.div_ceil(PART_MAX) * PART_COST,
        Op::Zero(_) | Op::Discard(_) => PART_COST,
    }
}

impl Filter {
    /// Takes an op. `Go`: it has its place in the order, do it now. `Hold`: another op overlaps it, or the activity log has to
    /// mark its extent first; [`crate::capture::Output::Ready`] comes with its ticket.
    ///
    /// # Errors
    /// When the request is not one for this disk; nothing was taken then.
    pub fn submit(&mut self, now: Now, disk: DiskId, op: Op) -> Result<Submitted, SubmitError> {
        let at = self.find_disk(disk).filter(|at| !self.changes.is_leaving(*at));
        let at = at.ok_or(SubmitError::UnknownDisk { disk })?;
        let extent = op.extent();
        self.check_op(at, extent)?;
        if self.passes(now) {
            return Ok(Submitted::Go(self.pass(at, extent)));
        }
        let passes = mistakes::is(Mistake::OverlapsPass);
        let blockers = if passes { 0 } else { self.order.overlapping(at, extent) };
        let covered = self.activity.prepare(at, extent, now.mono);
        let writer = self.activity.writer();
        let wants_log = writer.holds() && !(covered && writer.is_ready());
        if blockers == 0 && !wants_log {
            let ticket = self.order.insert(at, extent, Stage::Going { recorded: true });
            self.go(now, ticket, at, op);
            return Ok(Submitted::Go(ticket));
        }
        self.counters.holds_overlap += u64::from(blockers > 0);
        self.counters.holds_log += u64::from(wants_log);
        let log_since = wants_log.then_some(now.mono);
        let ticket = self.order.insert(at, extent, Stage::Held { op: Box::new(op), blockers, log_since });
        if wants_log {
            self.kicked = true;
        }
        Ok(Submitted::Hold(ticket))
    }

    fn check_op(&self, disk: usize, extent: Extent) -> Result<(), SubmitError> {
        let size = self.changes.limit(disk, self.disks[disk].size);
        if extent.is_empty() || !extent.is_aligned(SECTOR) {
            return Err(SubmitError::Unaligned { extent });
        }
        if extent.length > size || extent.offset > size - extent.length {
            return Err(SubmitError::OutOfBounds { extent, size });
        }
        if matches!(self.life, Life::Closed { .. }) {
            return Err(SubmitError::Closed);
        }
        Ok(())
    }

    /// Gives an op its place in the order: a record, or only its extent while writes are tracked.
    fn go(&mut self, now: Now, ticket: Ticket, disk: usize, op: Op) {
        if self.passing {
            return self.passed(ticket);
        }
        let extent = op.extent();
        let cost = cost(&op);
        if self.gap.is_none() && self.gather.queued() + cost > self.limits.queue_bytes() {
            self.reach_bound(now, cost);
        }
        let lsn = if self.gap.is_some() {
            let lsn = self.give_lsn(now);
            self.order.started(ticket, lsn, false);
            self.mend.mark(disk, extent);
            self.counters.ops_tracked += 1;
            lsn
        } else {
            self.record_op(now, ticket, disk, op)
        };
        self.mend.touch(disk, extent);
        self.activity.touched(disk, extent, lsn, now.mono);
    }

    fn record_op(&mut self, now: Now, ticket: Ticket, disk: usize, op: Op) -> Lsn {
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        self.order.started(ticket, lsn, true);
        self.counters.ops_recorded += 1;
        let id = self.disks[disk].id;
        match op {
            Op::Write(payload) => {
                self.counters.bytes_recorded += payload.extent().length;
                payload.into_parts(RecordKind::Write, id, lsn, time).for_each(|part| self.gather(now, part));
            }
            Op::Zero(extent) => self.gather(now, Part::plain(RecordKind::Zero, Some(id), extent, lsn, time)),
            Op::Discard(extent) => self.gather(now, Part::plain(RecordKind::Discard, Some(id), extent, lsn, time)),
        }
        lsn
    }

    /// What a recorded op left at the source is not known, and it still counts as running: no frame says that its LSN is settled.
    fn read_again(&mut self, now: Now, disk: usize, extent: Extent) {
        let oldest = self.order.oldest_lsn().unwrap_or(self.last_lsn.next());
        self.open_bracket(now, oldest, ResyncReason::WriteFailed);
        self.mend.fail(disk, extent);
        self.kicked = true;
    }

    /// An op that went is done at the source, well or not. Lets go those that waited for it. Gives its LSN, which a member of a consistency set goes
    /// by: the largest there is for an op that passed without one.
    ///
    /// # Errors
    /// When the ticket is not one of an op that runs.
    pub fn complete(&mut self, now: Now, ticket: Ticket, result: Result<(), Failed>) -> Result<Lsn, NotOpen> {
        let op = self.order.running(ticket).ok_or(NotOpen)?;
        match result {
            Ok(()) if op.recorded && op.lsn <= self.overtaken => self.read_again(now, op.disk, op.extent),
            Ok(()) if op.recorded => {
                if !self.mend.is_clean() {
                    self.mend.supersede(op.disk, op.extent);
                }
            }
            // At its end everything is compared.
            Ok(()) if self.passing => {}
            Ok(()) => self.mend.mark(op.disk, op.extent),
            Err(_) => {
                self.counters.ops_failed += 1;
                if mistakes::is(Mistake::FailureForgotten) {
                } else if op.recorded {
                    self.read_again(now, op.disk, op.extent);
                } else {
                    self.mend.mark(op.disk, op.extent);
                }
                self.kicked = true;
            }
        }
        self.activity.completed(op.disk, op.extent, now.mono);
        self.order.complete(ticket);
        self.kicked |= self.changes.is_pending();
        if self.order.held_count() > 0 {
            self.release(now);
        }
        if !op.recorded {
            // The resync may end with the last of them.
            self.kicked |= self.gap.is_none() && self.order.tracked_count() == 0;
        } else if self.tell_due.is_none() && self.gather.may_have_untold() {
            self.arm_tell(now);
        }
        Ok(op.lsn)
    }

    /// An op that is held will never be done (its client is gone).
    ///
    /// # Errors
    /// When it is not held: then it went, and is to be done and completed.
    pub fn withdraw(&mut self, now: Now, ticket: Ticket) -> Result<(), NotOpen> {
        self.order.withdraw(ticket).ok_or(NotOpen)?;
        self.kicked |= self.changes.is_pending();
        self.release(now);
        Ok(())
    }

    /// Lets go every held op that waits for nothing any more, in the order of submission.
    pub(super) fn release(&mut self, now: Now) {
        loop {
            let (activity, writer) = (&self.activity, self.activity.writer());
            let covers = |disk, extent| !writer.holds() || (writer.is_ready() && activity.covers(disk, extent));
            let Some((ticket, disk, op)) = self.order.release(now.mono, covers) else { break };
            self.go(now, ticket, disk, op);
            self.ready.push_back(ticket);
        }
        if self.order.log_wanted_since().is_some() {
            self.kicked = true;
        }
    }

    /// A guest's flush of a disk begins. The ticket vouches for what completed before this call.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn flush_begin(&mut self, disk: DiskId) -> Result<FlushTicket, SubmitError> {
        let at = self.find_disk(disk).ok_or(SubmitError::UnknownDisk { disk })?;
        Ok(self.flush_ticket(at, true))
    }

    /// A flush ended. A guest's flush that ended well is recorded as a barrier, and may close the period's point. After one
    /// that failed the source may have lost what was written since the last good one: it is read again. The same goes for a
    /// write that was to be durable at once and failed: its ticket is taken before it begins, and reported only then.
    pub fn flushed(&mut self, now: Now, ticket: FlushTicket, result: Result<(), Failed>) {
        self.kicked = true;
        if self.changes.is_gone(ticket.disk) {
            return;
        }
        match result {
            Ok(()) => {
                self.activity.flush_ended(ticket.disk, ticket.generation);
                if ticket.guest && self.gap.is_none() && !matches!(self.life, Life::Closed { .. }) {
                    self.barrier(now, ticket.disk);
                }
            }
            Err(error) => {
                let disk = self.disks[ticket.disk].id;
                self.mention(Event::FlushFailed { disk, error });
                self.flush_failed(now, ticket);
            }
        }
    }

    fn barrier(&mut self, now: Now, disk: usize) {
        let id = self.disks[disk].id;
        let time = self.stamp(now);
        let lsn = self.give_lsn(now);
        self.gather(now, Part::plain(RecordKind::Barrier, Some(id), Extent::new(0, 0), lsn, time));
        if self.is_protecting() && self.points.barrier_closes(now.mono) && self.points.has_room() {
            self.short_point(now, true);
            self.points.close();
        }
    }

    fn flush_failed(&mut self, now: Now, FlushTicket { disk, flushed, .. }: FlushTicket) {
        if self.doubt.is_some() {
            self.doubt = Some(Doubt::Forever);
        }
        let lost = self.activity.flush_failed(disk, flushed, self.order.running_on(disk));
        if lost.is_empty() || matches!(self.life, Life::Closed { .. }) {
            return;
        }
        // What runs now may have reached the disk before the flush and been lost with it, and complete well all the same.
        self.order.distrust(disk);
        if self.passing {
            return;
        }
        self.compare_floor = self.last_lsn;
        lost.iter().for_each(|extent| self.mend.mark(disk, *extent));
        let oldest = self.order.oldest_lsn().unwrap_or(self.last_lsn.next());
        self.open_bracket(now, oldest, ResyncReason::WriteFailed);
    }
}

#[cfg(test)]
mod tests {
    use crate::capture::{DiskSpec, Failed, Filter, FilterOptions, Op, Output, Start};
    use crate::frame::Payload;
    use crate::types::{DiskId, Extent, GroupId, MonoTime, Now, Timeline, WallTime};
    use bytes::Bytes;

    fn now(seconds: u64) -> Now {
        Now { mono: MonoTime(seconds * 1_000_000_000), wall: WallTime(seconds * 1_000_000_000) }
    }

    /// Carries out what the filter wants, the frames durable at once; gives the ranges that were read again.
    fn drive(filter: &mut Filter, at: Now) -> Vec<Extent> {
        let mut reread = Vec::new();
        while let Some(output) = filter.poll(at) {
            match output {
                Output::Log(write) => filter.log_written(at, write.token, Ok(())).expect("open"),
                Output::RemoveLog => filter.log_removed(at).expect("open"),
                Output::Flush(_, ticket) => filter.flushed(at, ticket, Ok(())),
                Output::Frame(frame) => filter.durable(frame.last_lsn()),
                Output::Reread(read) => {
                    reread.push(read.extent);
                    filter.reread_done(at, read.token, Ok(Vec::new())).expect("open");
                }
                Output::Ready(_) | Output::Event(_) | Output::Lend(_) => {}
            }
        }
        reread
    }

    /// The write was in the disk's cache when the flush failed, and is lost with it; its own call returns well.
    #[test]
    fn a_write_that_runs_while_a_flush_fails_is_read_again() {
        let disk = DiskId::new(1).expect("not zero");
        let spec = DiskSpec { id: disk, name: "disk".into(), size: 64 << 20 };
        let (group, timeline) = (GroupId::new([1; 16]).expect("id"), Timeline::new([2; 16]).expect("id"));
        let options = FilterOptions::new(group, timeline, Start::First, vec![spec]);
        let mut filter = Filter::new(options, now(1)).expect("good options");
        drive(&mut filter, now(1));
        filter.seed_done();
        drive(&mut filter, now(1));
        let payload = Payload::new(8192, Bytes::from(vec![1; 4096])).expect("aligned");
        let ticket = filter.submit(now(1), disk, Op::Write(payload)).expect("inside").ticket();
        drive(&mut filter, now(1));
        let flush = filter.flush_begin(disk).expect("known");
        filter.flushed(now(1), flush, Err(Failed { errno: 5 }));
        drive(&mut filter, now(1));
        filter.complete(now(1), ticket, Ok(())).expect("runs");
        let written = Extent::new(8192, 4096);
        let reread: Vec<_> = (2..12).flat_map(|second| drive(&mut filter, now(second))).collect();
        assert!(reread.iter().any(|extent| extent.contains(&written)), "read again were {reread:?}");
    }
}
