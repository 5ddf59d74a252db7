//! How fast first copies may go, and how far they are.

use crate::types::{DiskId, MonoTime};
use std::collections::{BTreeMap, VecDeque};

/// The rate is that of so many nanoseconds before.
const WINDOW_NS: u64 = 10_000_000_000;
/// What was done is noted so often, in nanoseconds: 41 notes at most.
const NOTED_NS: u64 = WINDOW_NS / 40;

/// A bound on bytes a second that all who ask share. In any time t from the first piece on no more goes than rate x t and one piece; what
/// nobody used is not saved up.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_s: Option<u64>,
    due: MonoTime,
}

impl Pace {
    /// So many bytes a second, at least 1; none: there is no bound.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s, due: MonoTime(0) }
    }

    /// Another rate from now on. What was let go under the one before is waited for at most a second longer.
    pub fn set(&mut self, now: MonoTime, bytes_per_s: Option<u64>) {
        self.bytes_per_s = bytes_per_s;
        self.due = self.due.min(now.after(1_000_000_000));
    }

    /// Takes a piece of so many bytes, if it may go now.
    ///
    /// # Errors
    /// When it may go at the earliest.
    pub fn take(&mut self, now: MonoTime, bytes: u64) -> Result<(), MonoTime> {
        let Some(rate) = self.bytes_per_s else { return Ok(()) };
        if now < self.due {
            return Err(self.due);
        }
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        self.due = now.after(u64::try_from(ns).unwrap_or(u64::MAX));
        Ok(())
    }
}

/// How far first copies are.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes of each disk, and how many of them are done. At most as many as a group has disks.
    disks: BTreeMap<DiskId, (u64, u64)>,
    /// When so much was done, oldest first, since the disks are these: what was found done says nothing of the rate.
    notes: VecDeque<(MonoTime, u64)>,
}

impl Progress {
    /// A disk's copy begins or goes on: so much of it is done.
    pub fn begin(&mut self, disk: DiskId, size: u64, done: u64) {
        self.disks.insert(disk, (size, done.min(size)));
        self.notes.clear();
    }

    /// A disk's copy is at this place.
    pub fn advance(&mut self, now: MonoTime, disk: DiskId, done: u64) {
        if let Some((size, at)) = self.disks.get_mut(&disk) {
            *at = done.min(*size);
        }
        if self.notes.back().is_none_or(|(noted, _)| now.since(*noted) >= NOTED_NS) {
            self.notes.push_back((now, self.done()));
        }
        while self.notes.get(1).is_some_and(|(noted, _)| now.since(*noted) >= WINDOW_NS) {
            self.notes.pop_front();
        }
    }

    /// A disk is not counted any more.
    pub fn end(&mut self, disk: DiskId) {
        self.disks.remove(&disk);
        self.notes.clear();
    }

    /// Bytes of all disks.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.disks.values().map(|(size, _)| size).sum()
    }

    /// Bytes that are done, holes counted.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.disks.values().map(|(_, done)| done).sum()
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.total() - self.done()
    }

    /// Bytes a second in the last 10 s, holes counted; none before there is anything to tell it from.
    #[must_use]
    pub fn bytes_per_s(&self, now: MonoTime) -> Option<u64> {
        let (since, then) = self.notes.front()?;
        let ns = u128::from(now.since(*since));
        let bytes = u128::from(self.done().saturating_sub(*then));
        (ns > 0).then(|| u64::try_from(bytes * 1_000_000_000 / ns).unwrap_or(u64::MAX))
    }

    /// Seconds until all is done at that rate; none where nothing moves.
    #[must_use]
    pub fn seconds_left(&self, now: MonoTime) -> Option<u64> {
        let rate = self.bytes_per_s(now).filter(|rate| *rate > 0)?;
        Some(self.left().div_ceil(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    proptest! {
        #[test]
        fn no_more_goes_than_the_rate_and_one_piece(
            rate in 1..1_000_000u64,
            pieces in prop::collection::vec((0..3 * S, 1..1_000_000u64), 1..60),
        ) {
            let mut pace = Pace::new(Some(rate));
            let (mut now, mut taken) = (MonoTime(5), Vec::new());
            for (wait, bytes) in pieces {
                now = now.after(wait);
                if let Err(due) = pace.take(now, bytes) {
                    prop_assert!(due > now, "it is known when");
                    now = due;
                    prop_assert_eq!(pace.take(now, bytes), Ok(()), "and then it goes");
                }
                taken.push((now, bytes));
            }
            for (first, (since, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (until, bytes) in &taken[first..] {
                    let allowed = u128::from(until.since(*since)) * u128::from(rate) / u128::from(S) + 1;
                    // Before the last one no more than the time allows, rounding of each left alone.
                    prop_assert!(u128::from(sum) <= allowed + taken.len() as u128);
                    sum += bytes;
                }
            }
        }
    }

    #[test]
    fn without_a_bound_everything_goes_and_a_new_bound_holds_at_once() {
        let mut pace = Pace::new(None);
        assert!((0..9).all(|_| pace.take(MonoTime(1), u64::MAX).is_ok()));
        pace.set(MonoTime(1), Some(1));
        assert_eq!(pace.take(MonoTime(1), 3600), Ok(()));
        assert_eq!(pace.take(MonoTime(2), 1), Err(MonoTime(3600 * S + 1)));
        pace.set(MonoTime(2), Some(1 << 20));
        assert_eq!(
            pace.take(MonoTime(2), 1),
            Err(MonoTime(S + 2)),
            "an hour is not waited for what a slow rate let go"
        );
        pace.set(MonoTime(2), Some(0));
        assert_eq!(pace.take(MonoTime(S + 2), u64::MAX), Ok(()), "a rate of nothing is one byte a second");
    }

    #[test]
    fn the_rate_is_of_what_was_copied_and_not_of_what_was_found() {
        let disk = |number| DiskId::new(number).unwrap();
        let mut progress = Progress::default();
        assert_eq!((progress.bytes_per_s(MonoTime(9)), progress.seconds_left(MonoTime(9))), (None, None));
        progress.begin(disk(1), 10_000, 4_000);
        progress.begin(disk(2), 10_000, 0);
        for second in 0..=100 {
            progress.advance(MonoTime(second * S), disk(1), 4_000 + second * 10);
        }
        let now = MonoTime(100 * S);
        assert_eq!((progress.total(), progress.done(), progress.left()), (20_000, 5_000, 15_000));
        assert_eq!((progress.bytes_per_s(now), progress.seconds_left(now)), (Some(10), Some(1_500)));
        for quarter in 0..400 {
            progress.advance(MonoTime(100 * S + quarter * S / 4), disk(2), 0);
        }
        let later = MonoTime(200 * S);
        assert_eq!((progress.bytes_per_s(later), progress.seconds_left(later)), (Some(0), None), "it stands");
        assert!(progress.notes.len() <= 42);
        progress.end(disk(2));
        assert_eq!((progress.total(), progress.left(), progress.bytes_per_s(later)), (10_000, 5_000, None));
    }
}
