//! What a filter says about itself.

use super::output::{Detached, LogTrust};
use crate::frame::{GapReason, ResyncReason};
use crate::types::Lsn;
use std::fmt;

/// What the group is doing, as people are told. Of several that hold it is the last in this order: protecting, resyncing,
/// seeding, tracking, paused, detached.
///
/// | from | event | to |
/// |---|---|---|
/// | (a first start) | | seeding |
/// | (a clean start) | | protecting; resyncing, if something is to be compared |
/// | (any other start) | | resyncing |
/// | seeding | the first copy is done, nothing is dirty | protecting |
/// | seeding | the first copy is done, something is dirty | resyncing |
/// | protecting | a write or flush of the source fails; a full check is asked for; the filter forks | resyncing |
/// | resyncing | nothing is dirty any more | protecting |
/// | seeding, protecting, resyncing | the queue reaches its bound and nothing more can be lent | tracking |
/// | tracking | the queue is half empty again, and the replica's side has room; where the gap before was followed by this one and by no end of a resync, a pause is over as well: 1 s, doubled up to the RPO | seeding, if that goes on; else resyncing |
/// | tracking | the filter forks: the queue is forgotten | seeding, if that goes on; else resyncing |
/// | all but paused and detached | `pause` | paused |
/// | paused | `resume` | tracking, until the queue is half empty |
/// | all but detached | `detach`, or replication is stuck ([`super::Stuck`]) | detached |
/// | detached | `attach` | paused, if it was paused; else tracking |
///
/// Nothing else changes the state: paused is left only by `resume` and detached only by `attach`, whatever fails, drains, is read
/// or forks meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The first copy of the disks is being made.
    Seeding,
    /// Every write is recorded; every settled, durable LSN can be restored.
    Protecting,
    /// Writes are not recorded, only which blocks they touch.
    Tracking,
    /// Blocks that may differ are read again.
    Resyncing,
    /// Somebody paused the protection; writes are tracked.
    Paused,
    /// Replication is out of the guest's path: nothing is recorded or tracked, everything is compared later.
    Detached,
}

impl State {
    /// The state as it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seeding => "seeding",
            Self::Protecting => "protecting",
            Self::Tracking => "tracking",
            Self::Resyncing => "resyncing",
            Self::Paused => "paused",
            Self::Detached => "detached",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was counted since the filter was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Ops that were recorded.
    pub ops_recorded: u64,
    /// Bytes of data that were recorded (without repairs).
    pub bytes_recorded: u64,
    /// Ops that were only tracked.
    pub ops_tracked: u64,
    /// Ops that passed while replication was out of the guest's path.
    pub ops_passed: u64,
    /// Ops that failed at the source.
    pub ops_failed: u64,
    /// Ops that waited for another that overlapped.
    pub holds_overlap: u64,
    /// Ops that waited for the activity log.
    pub holds_log: u64,
    /// Bytes of the source that were read again.
    pub bytes_reread: u64,
    /// Bytes of repairs that were recorded.
    pub bytes_repaired: u64,
    /// Re-reads that failed.
    pub rereads_failed: u64,
    /// Writes of the activity log.
    pub log_writes: u64,
    /// Frames that were closed.
    pub frames: u64,
    /// Gaps that were begun.
    pub gaps: u64,
    /// Resyncs that were begun.
    pub resyncs: u64,
    /// Timelines that this filter went on under.
    pub forks: u64,
}

/// A stage of what overload fills, one after the other: memory, then spool, then change tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stage {
    /// What it holds, in bytes of the queue; each stage is counted as filled before the next.
    pub bytes: u64,
    /// What it can hold; 0: it is not there.
    pub bytes_max: u64,
    /// At the rates of the last seconds, how long until the next stage begins, which is change tracking after the last one;
    /// `None`: not at these rates.
    pub time_until_full_ns: Option<u64>,
}

/// The filter at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Why writes are tracked, while they are.
    pub gap: Option<GapReason>,
    /// Why replication is out of the guest's path, while it is.
    pub detached: Option<Detached>,
    /// Why a resync is open, while one is.
    pub resync: Option<ResyncReason>,
    /// The last LSN that was given.
    pub lsn: Lsn,
    /// How far the frames that were closed say that the order is settled.
    pub settled: Lsn,
    /// How far a proxy has synced everything, if not further durable.
    pub stored: Lsn,
    /// The last LSN that is lent: recorded, synced by a proxy, not durable, and kept nowhere here. `None`: nothing is.
    pub lent: Option<Lsn>,
    /// What is lent, in bytes of the disks (whole 64 KiB blocks): what a fork reads again beside what is queued.
    pub lent_bytes: u64,
    /// How far the replica is durable.
    pub durable: Lsn,
    /// How far any LSN can be restored now: settled, durable, outside gap and resync.
    pub restorable: Lsn,
    /// Recorded and neither durable nor lent, in bytes of data plus part costs.
    pub queued_bytes: u64,
    /// The bound of it: memory and spool.
    pub queue_bytes_max: u64,
    /// The first stage of it.
    pub memory: Stage,
    /// The second: what does not fit into memory.
    pub spool: Stage,
    /// What has to be read again, in bytes (whole 64 KiB blocks, exact for failed writes), re-reads under way included.
    pub dirty_bytes: u64,
    /// Marked in the activity log, in bytes: what a crash now would make the next start compare.
    pub hot_bytes: u64,
    /// Age of the last restorable record by the steady clock; `None` before the first.
    pub rpo_ns: Option<u64>,
    /// At the rates of the last seconds, how long until writes are tracked instead of recorded; `None`: not at these rates.
    pub time_until_tracking_ns: Option<u64>,
    /// What the guests wrote lately, in bytes a second.
    pub write_bytes_per_s: u64,
    /// What became durable lately, in bytes a second.
    pub durable_bytes_per_s: u64,
    /// Ops that run at the disks.
    pub ops_running: usize,
    /// Ops that wait.
    pub ops_held: usize,
    /// Re-reads that failed since the last complete pass over what is dirty.
    pub rereads_failing: u64,
    /// Whether the activity log is trusted; `None` before its first write.
    pub log: Option<LogTrust>,
    /// Since the filter was made.
    pub counters: Counters,
}

const SAMPLE_NS: u64 = 500_000_000;

/// Rates over the last seconds: a mean that forgets half of itself every half second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    since: u64,
    recorded: u64,
    drained: u64,
    durable: u64,
    pub(super) write_bytes_per_s: u64,
    pub(super) durable_bytes_per_s: u64,
    /// What left the queue: durable or lent.
    drained_bytes_per_s: u64,
}

impl Rates {
    pub(super) fn new(mono_ns: u64) -> Self {
        Self { since: mono_ns, ..Self::default() }
    }

    /// Counting begins anew; the rates stay what they were.
    pub(super) fn restart(&mut self, mono_ns: u64) {
        (self.since, self.recorded, self.drained, self.durable) = (mono_ns, 0, 0, 0);
    }

    /// Takes a sample if the last one is old enough. All three only grow: what was recorded, what of it left the queue, and what
    /// of it is durable.
    pub(super) fn sample(&mut self, mono_ns: u64, recorded: u64, drained: u64, durable: u64) {
        let elapsed = mono_ns.saturating_sub(self.since);
        if elapsed < SAMPLE_NS {
            return;
        }
        let per_second = |bytes: u64| (u128::from(bytes) * 1_000_000_000 / u128::from(elapsed)) as u64;
        self.write_bytes_per_s = self.write_bytes_per_s.midpoint(per_second(recorded - self.recorded));
        self.drained_bytes_per_s = self.drained_bytes_per_s.midpoint(per_second(drained - self.drained));
        self.durable_bytes_per_s = self.durable_bytes_per_s.midpoint(per_second(durable - self.durable));
        (self.since, self.recorded, self.drained, self.durable) = (mono_ns, recorded, drained, durable);
    }

    /// How long `room` bytes last at these rates.
    pub(super) fn lasts_ns(&self, room: u64) -> Option<u64> {
        let surplus = self.write_bytes_per_s.checked_sub(self.drained_bytes_per_s).filter(|&rate| rate > 0)?;
        Some(u64::try_from(u128::from(room) * 1_000_000_000 / u128::from(surplus)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_leaves_the_queue_and_is_not_durable() {
        let mut rates = Rates::new(0);
        rates.sample(SAMPLE_NS, 4000, 2000, 1000);
        assert_eq!((rates.write_bytes_per_s, rates.durable_bytes_per_s), (4000, 1000));
        assert_eq!(rates.lasts_ns(4000), Some(2_000_000_000));
        rates.restart(SAMPLE_NS);
        rates.sample(2 * SAMPLE_NS, 2000, 4000, 500);
        assert_eq!((rates.write_bytes_per_s, rates.durable_bytes_per_s), (4000, 1000));
        assert_eq!(rates.lasts_ns(4000), None, "it empties");
    }
}
