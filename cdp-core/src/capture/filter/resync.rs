//! Reading again what may differ: what to read, what of it to record, seeding and full checks.

use super::{Filter, Life, Wait};
use crate::capture::mend::Active;
use crate::capture::options::{PART_COST, REREAD_BYTES_MAX};
use crate::capture::output::{Event, Failed, Reread, RereadToken};
use crate::frame::{Part, Payload, RecordKind, ResyncReason};
use crate::mistakes::{self, Mistake};
use crate::types::{Extent, Lsn, MonoTime, Now, PART_MAX, WallTime};
use bytes::Bytes;

/// What a re-read came back with does not fit what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RereadError {
    /// No such re-read is under way.
    #[error("no such re-read is under way")]
    NotOpen,
    /// Data of a range that was not asked for: the whole re-read is repeated.
    #[error("{found} (offset+bytes) was handed back for a re-read of {asked}")]
    Outside {
        /// What was asked for.
        asked: Extent,
        /// What came.
        found: Extent,
    },
}

/// The worst that a re-read adds to the queue: every part cut by sectors that ops touched costs one part more.
const REREAD_COST: u64 = REREAD_BYTES_MAX + REREAD_BYTES_MAX / PART_MAX * 2 * PART_COST;

/// How long re-reads of whole disks wait until they can be compared, in nanoseconds.
const FLOOR_WAIT_NS: u64 = 10_000_000_000;

impl Filter {
    /// The next re-read, if work, rate and queue allow one: re-reads leave a quarter of the queue's memory, and the spool, to
    /// the guests.
    pub(super) fn next_reread(&mut self, now: Now) -> Option<Reread> {
        self.reread_wait = None;
        let under_way = self.mend.active_bytes() + REREAD_COST;
        let room = self.gather.queued() + under_way <= self.limits.memory_bytes / 4 * 3;
        let closed = matches!(self.life, Life::Closed { .. });
        let wanted = self.bracket.is_some() || self.changes.reads();
        if !wanted || self.gap.is_some() || !room || closed || self.mend.is_clean() {
            return None;
        }
        let due = self.mend.resume_at().map_or(self.reread_due, |at| at.max(self.reread_due));
        if now.mono < due {
            self.reread_wait = Some(due);
            return None;
        }
        if let Some(until) = self.waits_for_floor(now) {
            self.reread_wait = Some(until);
            return None;
        }
        let Some((token, disk, extent)) = self.mend.begin(now.mono, self.limits.rereads_max) else {
            self.reread_wait = self.mend.resume_at();
            return None;
        };
        for running in self.order.running_on(disk) {
            self.mend.touch(disk, running);
        }
        let pause = u128::from(extent.length) * 1_000_000_000 / u128::from(self.limits.reread_bytes_per_s_max);
        self.reread_due = self.reread_due.max(now.mono).after(u64::try_from(pause).unwrap_or(u64::MAX));
        let records = self.activity.last_touch(disk, extent).max(self.compare_floor);
        // What touched the range has to lie before an open period, in which the replica's content is of no moment. What it has of the
        // range is the same at any later LSN.
        let exact = self.periods.exact(self.durable);
        let compare_at = (records <= exact).then_some(exact);
        Some(Reread { token, disk: self.disks[disk].id, extent, compare_at })
    }

    /// Until when re-reads wait for the replica to have what was recorded before everything was to be compared. Read before, all of it
    /// would be recorded and sent, also what is the same; and a replica that does not keep up takes no re-reads either.
    fn waits_for_floor(&mut self, now: Now) -> Option<MonoTime> {
        let wait = self.compare_wait?;
        let until = match wait {
            Wait::Wanted => now.mono.after(FLOOR_WAIT_NS),
            Wait::Until(until) => until,
        };
        let waits = self.compare_floor > self.periods.exact(self.durable) && now.mono < until;
        self.compare_wait = waits.then_some(Wait::Until(until));
        waits.then_some(until)
    }

    /// A re-read ended. `Ok` holds what differs from the replica, or all of it where the driver did not compare, in ascending
    /// order. What ops touched meanwhile is left out of the repair: they carry their own records.
    ///
    /// # Errors
    /// When the token is unknown, or data lies outside of what was asked (then it is read again).
    pub fn reread_done(
        &mut self,
        now: Now,
        token: RereadToken,
        result: Result<Vec<Payload>, Failed>,
    ) -> Result<(), RereadError> {
        let active = self.mend.end(token).ok_or(RereadError::NotOpen)?;
        self.kicked = true;
        if matches!(self.life, Life::Closed { .. }) || self.changes.is_gone(active.disk) {
            return Ok(());
        }
        match result {
            Err(error) => {
                self.counters.rereads_failed += 1;
                self.mend.failed(&active);
                let disk = self.disks[active.disk].id;
                self.mention(Event::RereadFailed { disk, extent: active.extent, error });
            }
            // Guests took the room meanwhile: later.
            Ok(_) if self.gap.is_some() || self.gather.queued() + REREAD_COST > self.limits.queue_bytes() => {
                self.mend.put_back(&active);
            }
            Ok(changed) => {
                let outside = changed.iter().map(Payload::extent).find(|extent| !active.extent.contains(extent));
                if let Some(found) = outside {
                    self.mend.put_back(&active);
                    return Err(RereadError::Outside { asked: active.extent, found });
                }
                self.repair(now, &active, changed);
            }
        }
        Ok(())
    }

    fn repair(&mut self, now: Now, active: &Active, changed: Vec<Payload>) {
        let id = self.disks[active.disk].id;
        let mut bytes_changed = 0;
        for payload in changed {
            let extent = payload.extent();
            let parts = payload.into_parts(RecordKind::Repair, id, Lsn::ZERO, WallTime(0));
            let untouched = match mistakes::is(Mistake::CopyOverWrites) {
                true => vec![extent],
                false => active.untouched(extent),
            };
            let records = if untouched == [extent] { vec![parts.collect()] } else { cut(parts, &untouched) };
            for parts in records {
                let time = self.stamp(now);
                let lsn = self.give_lsn(now);
                let count = parts.len() as u16;
                for (index, part) in parts.into_iter().enumerate() {
                    bytes_changed += part.extent.length;
                    self.gather(now, Part { lsn, time, index: index as u16, count, ..part });
                }
            }
        }
        self.counters.bytes_reread += active.extent.length;
        self.counters.bytes_repaired += bytes_changed;
        if let Some(bracket) = &mut self.bracket {
            bracket.bytes_read += active.extent.length;
            bracket.bytes_changed += bytes_changed;
        }
    }

    /// The driver's copy of the disks into the replica is complete and durable there: the seeding ends as soon as nothing else
    /// is in doubt, and its end is the first LSN that can be restored. No-op when the filter does not seed.
    pub fn seed_done(&mut self) {
        self.seeding = false;
        self.kicked = true;
    }

    /// Compares everything with the replica, in the background.
    pub fn full_check(&mut self, now: Now) {
        let oldest = self.order.oldest_lsn().unwrap_or(self.last_lsn.next());
        self.compare_everything(now, oldest, ResyncReason::FullCheck);
        self.kicked = true;
    }
}

/// Cuts a repair's parts so that only `untouched` runs are left, each run one record. A part that is cut gets the checksum of
/// what is left of it; the others keep theirs.
fn cut(parts: impl Iterator<Item = Part>, untouched: &[Extent]) -> Vec<Vec<Part>> {
    let mut records: Vec<Vec<Part>> = vec![Vec::new(); untouched.len()];
    for part in parts {
        for (run, record) in untouched.iter().zip(&mut records) {
            let Some(left) = part.extent.intersect(run) else { continue };
            let begin = (left.offset - part.extent.offset) as usize;
            let data: Bytes = part.data.slice(begin..begin + left.length as usize);
            let crc = if left == part.extent { part.crc } else { crc32c::crc32c(&data) };
            record.push(Part { extent: left, data, crc, ..part.clone() });
        }
    }
    records
}
