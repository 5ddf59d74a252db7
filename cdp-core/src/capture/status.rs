//! What a filter says about itself.

use super::output::LogTrust;
use crate::frame::{GapReason, ResyncReason};
use crate::types::Lsn;
use std::fmt;

/// What the group is doing, as people are told.
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
}

/// The filter at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Why writes are tracked, while they are.
    pub gap: Option<GapReason>,
    /// Why a resync is open, while one is.
    pub resync: Option<ResyncReason>,
    /// The last LSN that was given.
    pub lsn: Lsn,
    /// How far the frames that were closed say that the order is settled.
    pub settled: Lsn,
    /// How far the replica is durable.
    pub durable: Lsn,
    /// How far any LSN can be restored now: settled, durable, outside gap and resync.
    pub restorable: Lsn,
    /// Recorded and not durable, in bytes of data plus part costs.
    pub queued_bytes: u64,
    /// The bound of it.
    pub queue_bytes_max: u64,
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
    pub(super) write_bytes_per_s: u64,
    pub(super) durable_bytes_per_s: u64,
}

impl Rates {
    pub(super) fn new(mono_ns: u64) -> Self {
        Self { since: mono_ns, ..Self::default() }
    }

    /// Takes a sample if the last one is old enough. `recorded` only grows; `drained` may step back, because what waits counts
    /// the cost of each part beside its bytes.
    pub(super) fn sample(&mut self, mono_ns: u64, recorded: u64, drained: u64) {
        let drained = drained.max(self.drained);
        let elapsed = mono_ns.saturating_sub(self.since);
        if elapsed < SAMPLE_NS {
            return;
        }
        let per_second = |bytes: u64| (u128::from(bytes) * 1_000_000_000 / u128::from(elapsed)) as u64;
        self.write_bytes_per_s = self.write_bytes_per_s.midpoint(per_second(recorded - self.recorded));
        self.durable_bytes_per_s = self.durable_bytes_per_s.midpoint(per_second(drained - self.drained));
        (self.since, self.recorded, self.drained) = (mono_ns, recorded, drained);
    }

    /// How long `room` bytes last at these rates.
    pub(super) fn lasts_ns(&self, room: u64) -> Option<u64> {
        let surplus = self.write_bytes_per_s.checked_sub(self.durable_bytes_per_s).filter(|&rate| rate > 0)?;
        Some(u64::try_from(u128::from(room) * 1_000_000_000 / u128::from(surplus)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drained_may_step_back() {
        let mut rates = Rates::new(0);
        rates.sample(SAMPLE_NS, 1000, 1000);
        rates.sample(2 * SAMPLE_NS, 1100, 900);
        assert_eq!(rates.durable_bytes_per_s, 500);
        rates.sample(3 * SAMPLE_NS, 1300, 1200);
        assert_eq!(rates.durable_bytes_per_s, 450);
    }
}
