//! Stamps and epochs: both clocks of the source, and what to do when the wall clock steps.
//!
//! Inside an epoch a stamp is max(previous stamp, wall clock). The wall clock is compared with the steady one since the last
//! time record (at most [`TIME_RECORD_NS_MAX`] ago, so slewing never adds up to a step); more than [`STEP_NS`] apart is a step
//! and begins a new epoch.

use crate::types::{ClockEpoch, MonoTime, Now, WallTime};

/// A difference between the clocks that is a step, in nanoseconds (more than).
pub const STEP_NS: u64 = 1_000_000_000;
/// The shortest time between two time records, in nanoseconds.
pub const TIME_RECORD_NS_MIN: u64 = 250_000_000;
/// The longest time between two time records, in nanoseconds.
pub const TIME_RECORD_NS_MAX: u64 = 10_000_000_000;

/// How often a time record goes out at this RPO: every eighth of it, clamped.
#[must_use]
pub fn time_record_period_ns(rpo_ns: u64) -> u64 {
    (rpo_ns / 8).clamp(TIME_RECORD_NS_MIN, TIME_RECORD_NS_MAX)
}

/// The source's clock as records see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    epoch: ClockEpoch,
    last: WallTime,
    /// Both clocks at the last time record.
    reference: Now,
    period_ns: u64,
}

impl Clock {
    /// A clock whose first epoch is the one after `before`.
    pub(super) fn new(before: Option<ClockEpoch>, rpo_ns: u64, now: Now) -> Self {
        let epoch = ClockEpoch(before.map_or(1, |epoch| epoch.0 + 1));
        Self { epoch, last: now.wall, reference: now, period_ns: time_record_period_ns(rpo_ns) }
    }

    pub(super) fn set_rpo(&mut self, rpo_ns: u64) {
        self.period_ns = time_record_period_ns(rpo_ns);
    }

    pub(super) fn epoch(&self) -> ClockEpoch {
        self.epoch
    }

    /// Whether the wall clock stepped since the last time record.
    pub(super) fn stepped(&self, now: Now) -> bool {
        let expected = self.reference.wall.0.saturating_add(now.mono.since(self.reference.mono));
        now.wall.0.abs_diff(expected) > STEP_NS
    }

    /// Begins the next epoch at `now`.
    pub(super) fn begin_epoch(&mut self, now: Now) {
        self.epoch = ClockEpoch(self.epoch.0 + 1);
        self.last = now.wall;
        self.reference = now;
    }

    /// The stamp of a record made now.
    pub(super) fn stamp(&mut self, now: Now) -> WallTime {
        self.last = self.last.max(now.wall);
        self.last
    }

    /// A time record goes out now: the clocks are compared from here on.
    pub(super) fn told(&mut self, now: Now) {
        self.reference = now;
    }

    /// When the next time record is due.
    pub(super) fn due(&self) -> MonoTime {
        self.reference.mono.after(self.period_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, mono: u64) -> Now {
        Now { wall: WallTime(wall), mono: MonoTime(mono) }
    }

    #[test]
    fn stamps_never_fall_inside_an_epoch() {
        let mut clock = Clock::new(None, 15_000_000_000, at(10_000_000_000, 0));
        assert_eq!(clock.epoch(), ClockEpoch(1));
        assert_eq!(clock.stamp(at(10_500_000_000, 500_000_000)), WallTime(10_500_000_000));
        let back = at(9_600_000_000, 600_000_000);
        assert!(!clock.stepped(back), "exactly one second is no step");
        assert_eq!(clock.stamp(back), WallTime(10_500_000_000));
        assert!(clock.stepped(at(9_599_999_999, 600_000_000)));
        assert!(clock.stepped(at(11_600_000_001, 600_000_000)));
    }

    #[test]
    fn slewing_is_no_step_because_each_time_record_is_a_new_reference() {
        let mut clock = Clock::new(Some(ClockEpoch(4)), 15_000_000_000, at(0, 0));
        assert_eq!(clock.epoch(), ClockEpoch(5));
        for tick in 1..10_000u64 {
            let now = at(tick * 10_005_000_000, tick * 10_000_000_000);
            assert!(!clock.stepped(now));
            clock.told(now);
        }
    }

    #[test]
    fn the_period_is_an_eighth_of_the_rpo_clamped() {
        assert_eq!(time_record_period_ns(15_000_000_000), 1_875_000_000);
        assert_eq!(time_record_period_ns(1), TIME_RECORD_NS_MIN);
        assert_eq!(time_record_period_ns(u64::MAX), TIME_RECORD_NS_MAX);
    }
}
