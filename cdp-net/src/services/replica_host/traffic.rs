//! What came of a group and how far of it is safe: counted by the task that has its frames, read by whoever looks.

use super::lock;
use cdp_core::types::{Lsn, MonoTime};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

/// A frame, or the frames of a moment, that is not durable.
struct Underway {
    last: Lsn,
    came: MonoTime,
    bytes: u64,
}

#[derive(Default)]
struct Counts {
    in_bytes: u64,
    linked: bool,
    /// Bounded by what is granted to the other end.
    underway: VecDeque<Underway>,
    underway_bytes: u64,
    seed_bytes: u64,
    /// When the last frame came that is durable now.
    durable_came: Option<MonoTime>,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Traffic(Mutex<Counts>);

/// What it shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) in_bytes: u64,
    pub(super) linked: bool,
    pub(super) held_bytes: u64,
    /// Since the oldest came that is not durable.
    pub(super) lag: Duration,
    /// Since the newest came that is durable; none: nothing did since the start.
    pub(super) durable_age: Option<Duration>,
}

impl Traffic {
    /// A session holds, or none any more.
    pub(super) fn linked(&self, linked: bool) {
        lock(&self.0).linked = linked;
    }

    /// A frame came.
    pub(super) fn frame(&self, now: MonoTime, last: Lsn, bytes: u64) {
        let mut counts = lock(&self.0);
        counts.in_bytes += bytes;
        counts.underway_bytes += bytes;
        counts.underway.push_back(Underway { last, came: now, bytes });
    }

    /// Everything up to there is durable.
    pub(super) fn durable(&self, lsn: Lsn) {
        let mut counts = lock(&self.0);
        while let Some(frame) = counts.underway.pop_front_if(|frame| frame.last <= lsn) {
            counts.underway_bytes -= frame.bytes;
            counts.durable_came = Some(frame.came);
        }
    }

    /// A piece of a first copy came.
    pub(super) fn seed(&self, bytes: u64) {
        let mut counts = lock(&self.0);
        counts.in_bytes += bytes;
        counts.seed_bytes += bytes;
    }

    /// Pieces of first copies were taken, or given up.
    pub(super) fn seeded(&self, bytes: u64) {
        lock(&self.0).seed_bytes -= bytes;
    }

    /// Bytes that came and are not safe.
    pub(super) fn held(&self) -> u64 {
        let counts = lock(&self.0);
        counts.underway_bytes + counts.seed_bytes
    }

    pub(super) fn seen(&self, now: MonoTime) -> Seen {
        let counts = lock(&self.0);
        let age = |came: MonoTime| Duration::from_nanos(now.since(came));
        Seen {
            in_bytes: counts.in_bytes,
            linked: counts.linked,
            held_bytes: counts.underway_bytes + counts.seed_bytes,
            lag: counts.underway.front().map_or(Duration::ZERO, |frame| age(frame.came)),
            durable_age: counts.durable_came.map(age),
        }
    }

    /// Where another task goes on: what was under way is not its.
    pub(super) fn goes_on(&self) -> Self {
        let counts = lock(&self.0);
        let (in_bytes, durable_came) = (counts.in_bytes, counts.durable_came);
        Self(Mutex::new(Counts { in_bytes, durable_came, ..Counts::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn lag_is_of_the_oldest_that_is_not_durable_and_the_age_of_the_newest_that_is() {
        let traffic = Traffic::default();
        let at = |seconds: u64| MonoTime(seconds * SECOND);
        let seen = traffic.seen(at(1));
        assert_eq!((seen.lag, seen.durable_age, seen.linked), (Duration::ZERO, None, false));
        traffic.linked(true);
        for (second, lsn) in [(1, 10), (2, 20), (4, 30)] {
            traffic.frame(at(second), Lsn(lsn), 100);
        }
        traffic.seed(7);
        let seen = traffic.seen(at(5));
        assert_eq!((seen.lag, seen.durable_age), (Duration::from_secs(4), None));
        assert_eq!((seen.in_bytes, seen.held_bytes, traffic.held(), seen.linked), (307, 307, 307, true));
        traffic.durable(Lsn(25));
        traffic.seeded(7);
        let seen = traffic.seen(at(5));
        assert_eq!((seen.lag, seen.durable_age), (Duration::from_secs(1), Some(Duration::from_secs(3))));
        assert_eq!((seen.in_bytes, seen.held_bytes), (307, 100));
        let next = traffic.goes_on();
        let seen = next.seen(at(5));
        assert_eq!((seen.in_bytes, seen.held_bytes, seen.linked), (307, 0, false));
        assert_eq!(seen.durable_age, Some(Duration::from_secs(3)));
        traffic.durable(Lsn(30));
        assert_eq!((traffic.held(), traffic.seen(at(6)).lag), (0, Duration::ZERO));
    }
}
