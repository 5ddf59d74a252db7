//! What is done about lack of room: the oldest history goes before the journal would have to stop.
//!
//! The journal stops when a segment finds no room: on the media beside the reserve, or within the quota. Where the policy allows it,
//! history is shortened before, at [`LOW`] segments; that is announced before, at [`NEAR`] segments or when the rate shows it.
//!
//! Merging takes room itself, for blocks that bases do not have yet and for what kept moments need of those that they have, and gives back
//! what the segments took. Most often that is more; where bases grow by as much as the journal shrinks it is not, and history would be lost
//! for nothing. That it is not is known beforehand when everything that can grow is less than what merging all gives. Else it is tried,
//! a segment at a time: the first pieces after a moment that is held give little and later ones more, so it takes a few to tell ([`Trial`]).

use super::retention::{Due, Held, Reason};
use crate::journal::{Policy, Retention, WhenFull};
use crate::types::Lsn;

/// History is shortened when there is room for fewer segments: the one that is made ahead, and three that are written while a merge is
/// at work.
const LOW: u64 = 4;
/// And until there is room for so many.
const ENOUGH: u64 = 6;
/// It is announced when there is room for fewer.
const NEAR: u64 = 8;
/// Merging was in vain that gave less than this part of what the journal shrank by,
const WORTH: u64 = 4;
/// after so many segments.
const TRIED: u64 = 8;

/// What leaves no room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Limit {
    /// The media are full but for the reserve.
    Media,
    /// The quota is used up.
    Quota,
}

/// The room that there is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// What allows less.
    pub limit: Limit,
    /// The journal stops when it has taken so much more.
    pub free: u64,
    /// What a segment takes.
    pub segment: u64,
    /// What a merge may take before it is through.
    pub for_merging: u64,
    /// Bases, and what is kept of old moments, can grow by so much and no more, however much is merged.
    pub growth_max: u64,
    /// What was tried gave too little ([`Trial::is_in_vain`]), and nothing has changed since.
    pub in_vain: bool,
}

/// What came of merging for room since there was last room, or something else was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trial {
    /// Bytes by which the journal shrank.
    pub shrunk: u64,
    /// Bytes by which everything else grew.
    pub grown: u64,
}

impl Trial {
    /// Adds a merge.
    pub fn add(&mut self, shrunk: u64, grown: u64) {
        self.shrunk = self.shrunk.saturating_add(shrunk);
        self.grown = self.grown.saturating_add(grown);
    }

    /// Whether it was tried for long enough, with segments of so many bytes, and gave too little.
    #[must_use]
    pub fn is_in_vain(&self, segment: u64) -> bool {
        let tried = self.shrunk >= TRIED.saturating_mul(segment);
        tried && self.shrunk.saturating_sub(self.grown) < self.shrunk / WORTH
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shorten {
    /// There is room, or the policy wants history to stay.
    No,
    /// This much is to be merged.
    Merge(Due),
    /// There is history that could be merged, and that would give no room.
    InVain,
    /// There is no history left that could be merged.
    Nothing,
}

impl Room {
    fn is_below(&self, segments: u64) -> bool {
        self.free < segments.saturating_mul(self.segment)
    }

    /// Whether the journal will have to stop soon.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.is_below(LOW)
    }

    /// Whether it is time to say so.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.is_below(NEAR)
    }

    /// How large a journal of so many bytes may become before history is shortened.
    #[must_use]
    pub fn bound(&self, journal_bytes: u64) -> u64 {
        journal_bytes.saturating_add(self.free.saturating_sub(LOW.saturating_mul(self.segment)))
    }
}

/// What is to be merged for room. `sealed`: the segments that are, oldest first; what cannot be merged is not among them.
#[must_use]
pub fn shorten(policy: &Policy, past: &Retention, room: &Room, sealed: &[Held]) -> Shorten {
    if policy.when_full == WhenFull::Stop || !room.is_low() {
        return Shorten::No;
    }
    let merged = past.oldest.map_or(Lsn::ZERO, |oldest| oldest.lsn);
    let left: Vec<_> = sealed.iter().filter(|segment| segment.last > merged).collect();
    let all: u64 = left.iter().map(|segment| segment.bytes).sum();
    let helps = room.growth_max < all;
    if left.is_empty() {
        return Shorten::Nothing;
    }
    if room.in_vain && !helps {
        return Shorten::InVain;
    }
    let wanted = ENOUGH.saturating_mul(room.segment).saturating_sub(room.free);
    let (mut upto, mut bytes, mut plain) = (None, 0, 0u64);
    for segment in left {
        plain = plain.saturating_add(segment.plain);
        // A block that changes is kept once more where something holds the moment before.
        let fits = plain.saturating_mul(2).min(room.growth_max) <= room.for_merging;
        // Where it is not known to help, and where it may not fit, with one piece.
        if bytes >= wanted || (upto.is_some() && !(helps && fits)) {
            break;
        }
        bytes += segment.bytes;
        upto = Some(segment.last);
    }
    let reason = Reason::of(room.limit);
    upto.map_or(Shorten::Nothing, |upto| Shorten::Merge(Due { upto, reason }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::StampedMoment;
    use crate::types::{ClockEpoch, Stamp, Timeline, WallTime};
    use proptest::prelude::*;

    fn past(merged: u64) -> Retention {
        let timeline = Timeline::new([1; 16]).unwrap();
        let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(0) };
        let oldest = (merged > 0).then_some(StampedMoment { timeline, lsn: Lsn(merged), stamp });
        Retention { oldest, ..Retention::default() }
    }

    fn segments(count: u64, bytes: u64) -> Vec<Held> {
        (1..=count).map(|n| Held { last: Lsn(n * 10), bytes, plain: bytes }).collect()
    }

    fn room(free: u64) -> Room {
        let (limit, for_merging) = (Limit::Media, 1000);
        Room { limit, free, segment: 100, for_merging, growth_max: 0, in_vain: false }
    }

    #[test]
    fn history_is_shortened_before_the_journal_stops_and_announced_before_that() {
        let policy = Policy::default();
        let done = |free| shorten(&policy, &past(0), &room(free), &segments(10, 100));
        assert_eq!((done(800), room(800).is_near(), room(799).is_near()), (Shorten::No, false, true));
        assert_eq!(done(400), Shorten::No);
        let merge = |upto| Shorten::Merge(Due { upto: Lsn(upto), reason: Reason::Room });
        assert_eq!((done(399), done(0)), (merge(30), merge(60)), "until there is room for six");
        let stop = Policy { when_full: WhenFull::Stop, ..policy };
        assert_eq!(shorten(&stop, &past(0), &room(0), &segments(10, 100)), Shorten::No);
        assert_eq!((room(900).bound(50), room(300).bound(50)), (550, 50));
    }

    #[test]
    fn without_history_or_without_use_nothing_is_lost() {
        let policy = Policy::default();
        let done = |merged, room: &Room| shorten(&policy, &past(merged), room, &segments(3, 100));
        assert_eq!(done(30, &room(0)), Shorten::Nothing);
        let merge = |upto| Shorten::Merge(Due { upto: Lsn(upto), reason: Reason::Quota });
        let growing = |growth_max, in_vain| Room { limit: Limit::Quota, growth_max, in_vain, ..room(0) };
        assert_eq!(done(0, &growing(299, false)), merge(30), "at the end there is room");
        assert_eq!(done(0, &growing(299, true)), merge(30), "however the first pieces go");
        assert_eq!(done(0, &growing(300, false)), merge(10), "it is tried");
        assert_eq!(done(0, &growing(300, true)), Shorten::InVain);
        assert_eq!(done(0, &Room { for_merging: 10, ..growing(200, false) }), merge(10), "a piece at a time");
        let in_vain = |shrunk, grown| Trial { shrunk, grown }.is_in_vain(100);
        assert!(in_vain(800, 800) && in_vain(800, 601) && in_vain(800, 900));
        assert!(!in_vain(800, 600) && !in_vain(799, 900) && !in_vain(0, 0));
    }

    /// A journal on small media, whose oldest segments go into bases that grow to a size and no further.
    struct Small {
        total: u64,
        base: u64,
        base_max: u64,
        journal: Vec<Held>,
        next: u64,
        merged: u64,
        trial: Trial,
    }

    impl Small {
        fn free(&self) -> u64 {
            self.total - self.base - self.journal.iter().map(|held| held.bytes).sum::<u64>()
        }

        /// Shortens history as long as that is to be done.
        fn shorten(&mut self) -> Shorten {
            loop {
                let growth_max = self.base_max - self.base;
                let (free, in_vain) = (self.free(), self.trial.is_in_vain(100));
                let room = Room { free, for_merging: free + 100, growth_max, in_vain, ..room(0) };
                match shorten(&Policy::default(), &past(self.merged), &room, &self.journal) {
                    Shorten::Merge(due) => {
                        assert!(due.upto.0 > self.merged, "it goes on");
                        let upto = self.journal.partition_point(|held| held.last <= due.upto);
                        let gone: u64 = self.journal.drain(..upto).map(|held| held.bytes).sum();
                        let grown = growth_max.min(gone);
                        self.base += grown;
                        self.merged = due.upto.0;
                        self.trial.add(gone, grown);
                    }
                    Shorten::No => {
                        self.trial = Trial::default();
                        return Shorten::No;
                    }
                    other => return other,
                }
            }
        }
    }

    proptest! {
        /// Whatever the media hold besides: a load that overwrites a disk which fits never stops, and history is as long as there is room.
        #[test]
        fn a_disk_that_fits_is_protected_without_end(base in 0u64..500, base_max in 500u64..1500, spare in 600u64..3000) {
            let total = base_max + spare;
            let mut small = Small { total, base, base_max, journal: Vec::new(), next: 0, merged: 0, trial: Trial::default() };
            for _ in 0..300 {
                prop_assert!(small.free() >= 100, "the journal stops");
                small.next += 10;
                small.journal.push(Held { last: Lsn(small.next), bytes: 100, plain: 100 });
                let free = small.free();
                let ended = small.shorten();
                prop_assert!(free >= 400 || ended != Shorten::InVain || small.base < base_max);
            }
            prop_assert_eq!(small.base, base_max);
            let kept = small.journal.len() as u64 * 100;
            prop_assert!(kept + 700 > spare, "{} kept of {}", kept, spare);
        }

        /// What a decision says is of use: some of what is there, no more than is wanted, and never more than fits but for one.
        #[test]
        fn what_is_due_is_bounded(
            free in 0u64..1000,
            growth_max in 0u64..3000,
            for_merging in 0u64..2000,
            in_vain: bool,
            merged in 0u64..200,
            count in 0u64..20,
        ) {
            let room = Room { limit: Limit::Media, free, segment: 100, for_merging, growth_max, in_vain };
            let sealed = segments(count, 100);
            let left = sealed.iter().filter(|held| held.last.0 > merged).count() as u64;
            match shorten(&Policy::default(), &past(merged), &room, &sealed) {
                Shorten::No => prop_assert!(free >= 400),
                Shorten::Nothing => prop_assert!(left == 0 && free < 400),
                Shorten::InVain => prop_assert!(in_vain && growth_max >= left * 100 && left > 0),
                Shorten::Merge(due) => {
                    prop_assert!(free < 400 && due.reason == Reason::Room);
                    let taken = sealed.iter().filter(|held| held.last.0 > merged && held.last <= due.upto).count() as u64;
                    prop_assert!(taken >= 1 && sealed.iter().any(|held| held.last == due.upto));
                    prop_assert!((taken - 1) * 100 + free < 600, "no more than is wanted");
                    prop_assert!(taken == 1 || (taken * 200).min(growth_max) <= for_merging);
                    prop_assert!(taken == 1 || growth_max < left * 100);
                }
            }
        }
    }
}
