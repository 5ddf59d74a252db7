//! How much of the past is kept: a window in time and a bound in bytes.
//!
//! The window is a promise: what is younger is kept, unless the bound does not allow it; then the window is cut, and that is said
//! before ([`reach_ms`]) and after. What is older goes in pieces of an eighth of the window, so that merging is worth its while: with
//! segments that span a sixteenth, and ages that are known to a thirty-second part, at most a quarter more than the window is ever held.

use super::room::Limit;
use crate::journal::{Manifest, Options, Policy, Retention};
use crate::types::Lsn;

/// What is older than the window is merged when it is an eighth of it.
const SLACK: u64 = 8;
/// So often in a window at least the journal goes on in a new segment, and the manifest is told what was durable when.
const NOTES: u64 = 16;
/// Where history is so many windows old, merging must be waiting for something.
const WAITING_WINDOWS: u64 = 64;
/// Segments are so small a part of the quota: several are kept free for what comes and for merging.
const QUOTA_SEGMENTS: u64 = 32;
/// How long a merge of an eighth of the bound takes about, in seconds, its syncs and manifests with it.
const MERGE_S: u64 = 2;
/// A merge takes so many records at most, or one segment's: what stays of blocks that it changes in parts is in memory until its end, two
/// blocks a record at most in about 128 bytes each, which is 512 MiB. Records of 4 KiB are 8 GiB.
const MERGE_RECORDS: u64 = 2 << 20;
/// Whoever reads everything has so long at least, in milliseconds.
const PATIENCE_MS_MIN: u64 = 600_000;
/// The shortest time between two notes, in milliseconds; so often at most it is looked what is durable, whatever the window is.
pub const ARRIVAL_MS: u64 = 100;

/// Why history ends where it does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// It is older than the window.
    Window,
    /// The journal has reached its bound, or has nearly as many segments as it may have.
    Bytes,
    /// The media have no room but the reserve.
    Room,
    /// The replica has reached its quota.
    Quota,
}

impl Reason {
    /// For lack of room.
    #[must_use]
    pub fn of(limit: Limit) -> Self {
        match limit {
            Limit::Media => Self::Room,
            Limit::Quota => Self::Quota,
        }
    }
}

/// What is to be merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Everything up to here.
    pub upto: Lsn,
    /// Why.
    pub reason: Reason,
}

/// How far a merge from `merged` to `target` goes at once: no further than what it keeps in memory allows, and as far as the first moment
/// behind `merged` that can be restored. `ends`: the segments, oldest first, by the last moment up to their end that can be restored, and
/// how many entries their indexes have; the target may lie inside one.
#[must_use]
pub fn merge_end(merged: Lsn, target: Lsn, ends: impl IntoIterator<Item = (Lsn, u64)>) -> Lsn {
    let (mut end, mut all) = (merged, 0u64);
    for (last, records) in ends {
        all = all.saturating_add(records);
        if all > MERGE_RECORDS && end > merged {
            return end;
        }
        if last >= target {
            break;
        }
        end = end.max(last);
    }
    target
}

/// How long owners have watched at least, in milliseconds, by what they noted and, where the last ones came to an end before they noted it,
/// by what they recorded: the stamps of a segment whose clock nobody has set meanwhile. To be asked at a start, before anything is recorded.
#[must_use]
pub fn watched_ms(manifest: &Manifest) -> u64 {
    let past = &manifest.retention;
    let (noted, noted_ms) = past.arrivals.last().map_or((Lsn::ZERO, 0), |last| (last.lsn, last.elapsed_ms));
    let summaries = manifest.segments.iter().filter_map(|segment| segment.summary());
    let since = summaries.filter(|summary| summary.first_lsn > noted);
    let steady = since.filter(|summary| summary.first.epoch == summary.last.epoch);
    let ms = steady.map(|summary| summary.last.time.0.saturating_sub(summary.first.time.0) / 1_000_000);
    past.elapsed_ms.max(ms.fold(noted_ms, u64::saturating_add))
}

/// How long who reads everything may keep retention out, in milliseconds, where nothing is urgent: half of the window, so that no more
/// than that is held beside it, and ten minutes at least.
#[must_use]
pub fn patience_ms(policy: &Policy) -> u64 {
    (policy.window_ms / 2).max(PATIENCE_MS_MIN)
}

/// A segment of the journal, as retention sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The last LSN with a part in it.
    pub last: Lsn,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes of what was written, before compression.
    pub plain: u64,
}

/// How often the manifest is told what was durable when, in milliseconds.
#[must_use]
pub fn note_ms(policy: &Policy) -> u64 {
    (policy.window_ms / NOTES).max(ARRIVAL_MS)
}

/// Whether merging must be waiting for something: then the journal goes on in a new segment when one is full, and not before, or they
/// would become many.
#[must_use]
pub fn is_waiting(policy: &Policy, past: &Retention) -> bool {
    let age_ms = past.arrivals.first().map_or(0, |first| past.elapsed_ms.saturating_sub(first.elapsed_ms));
    age_ms > policy.window_ms.saturating_mul(WAITING_WINDOWS)
}

/// How many long-term points there are at once, at most.
#[must_use]
pub fn layers(policy: &Policy) -> u64 {
    policy.keep_ms.checked_div(policy.long_term_ms).map_or(0, |whole| whole.saturating_add(1))
}

/// The journal of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Journal<'a> {
    /// The segments that are sealed, oldest first.
    pub sealed: &'a [Held],
    /// What those take that are not, in bytes.
    pub open_bytes: u64,
    /// How fast it grows, in bytes a second.
    pub bytes_per_s: u64,
}

impl Journal<'_> {
    /// What it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sealed.iter().map(|segment| segment.bytes).sum::<u64>() + self.open_bytes
    }

    /// What it will take when a merge that begins now is through, in bytes: no more is foreseen than an eighth of the bound, which is
    /// what a merge makes room for.
    #[must_use]
    pub fn foreseen(&self, max_bytes: u64) -> u64 {
        self.bytes() + self.bytes_per_s.saturating_mul(MERGE_S).min(max_bytes / SLACK)
    }
}

/// What is to be merged now. `at_once`: also what would not be worth its while yet.
#[must_use]
pub fn due(policy: &Policy, past: &Retention, journal: &Journal<'_>, at_once: bool) -> Option<Due> {
    let merged = past.oldest.map_or(Lsn::ZERO, |oldest| oldest.lsn);
    let older_than = |ms: u64| {
        let then = past.elapsed_ms.checked_sub(ms)?;
        past.arrivals.iter().rfind(|arrival| arrival.elapsed_ms <= then).map(|arrival| arrival.lsn)
    };
    let slack = if at_once { 0 } else { policy.window_ms / SLACK };
    let worth = older_than(policy.window_ms + slack).is_some_and(|lsn| lsn > merged);
    let window = older_than(policy.window_ms).filter(|lsn| worth && *lsn > merged);
    let bytes = over_bound(policy.max_bytes, journal).max(over_count(journal)).filter(|lsn| *lsn > merged);
    let window = window.map(|upto| Due { upto, reason: Reason::Window });
    let bytes = bytes.map(|upto| Due { upto, reason: Reason::Bytes });
    [window, bytes].into_iter().flatten().max_by_key(|due| due.upto)
}

/// The last LSN of the oldest segments without which the journal is an eighth below its bound, if it is above or soon will be.
fn over_bound(max_bytes: u64, journal: &Journal<'_>) -> Option<Lsn> {
    let mut bytes = journal.foreseen(max_bytes);
    if max_bytes == 0 || bytes <= max_bytes {
        return None;
    }
    let mut upto = None;
    for segment in journal.sealed {
        if bytes <= max_bytes - max_bytes / SLACK {
            break;
        }
        bytes -= segment.bytes;
        upto = Some(segment.last);
    }
    upto
}

/// The last LSN of the oldest eighth of the segments, if there are nearly as many as there may be.
fn over_count(journal: &Journal<'_>) -> Option<Lsn> {
    let full = Options::SEGMENTS_MAX - Options::SEGMENTS_MAX / SLACK as usize;
    let oldest = journal.sealed.get(journal.sealed.len() / SLACK as usize)?;
    (journal.sealed.len() > full).then_some(oldest.last)
}

/// How far back history will go at this rate of stored bytes a second: the window, or what the bound leaves of it.
#[must_use]
pub fn reach_ms(policy: &Policy, bytes_per_s: u64) -> u64 {
    if policy.max_bytes == 0 || bytes_per_s == 0 {
        return policy.window_ms;
    }
    let ms = u128::from(policy.max_bytes) * 1000 / u128::from(bytes_per_s);
    u64::try_from(ms).unwrap_or(u64::MAX).min(policy.window_ms)
}

/// How long segments are filled at most, in bytes: eight of them are within the bound, and 32 within the quota.
#[must_use]
pub fn segment_bytes(policy: &Policy, usual: u64) -> u64 {
    let part = |of: u64, parts: u64| if of == 0 { u64::MAX } else { of / parts };
    usual.min(part(policy.max_bytes, SLACK)).min(part(policy.quota, QUOTA_SEGMENTS))
}

/// How old the oldest moment is at least when so much has elapsed, in milliseconds: where nothing was merged yet, as old as the replica.
#[must_use]
pub fn age_ms(past: &Retention, elapsed_ms: u64) -> u64 {
    let merged = past.oldest.is_some();
    let since = past.arrivals.first().filter(|_| merged).map(|first| first.elapsed_ms);
    match since {
        Some(since) => elapsed_ms.saturating_sub(since),
        None if merged => 0,
        None => elapsed_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Arrival, SegmentInfo, SegmentState, StampedMoment, Summary};
    use crate::types::{ClockEpoch, GroupId, ReplicaId, SegmentId, Stamp, Timeline, WallTime};

    fn past(elapsed_ms: u64, merged: u64) -> Retention {
        let arrivals = (0..=elapsed_ms / 100).map(|at| Arrival { elapsed_ms: at * 100, lsn: Lsn(at * 10) });
        let timeline = Timeline::new([1; 16]).unwrap();
        let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(0) };
        let oldest = (merged > 0).then_some(StampedMoment { timeline, lsn: Lsn(merged), stamp });
        Retention { elapsed_ms, oldest, arrivals: arrivals.collect(), layers: Vec::new() }
    }

    fn policy(window_ms: u64, max_bytes: u64) -> Policy {
        Policy { window_ms, max_bytes, ..Policy::default() }
    }

    #[test]
    fn the_window_is_kept_and_little_more() {
        let policy = policy(1600, 0);
        for elapsed in (0..20_000).step_by(50) {
            for merged in (0..2_000).step_by(130) {
                let past = past(elapsed, merged);
                match due(&policy, &past, &Journal::default(), false) {
                    // Ten LSNs are a tenth of a second.
                    Some(Due { upto, reason }) => {
                        assert_eq!(reason, Reason::Window);
                        assert!(upto.0 > merged && upto.0 * 10 + 1600 <= elapsed, "{elapsed} {merged} {upto}");
                        assert!(upto.0 * 10 + 1600 + 100 > elapsed, "all that is older: {elapsed} {upto}");
                    }
                    None => assert!(elapsed < merged * 10 + 1600 + 200 + 100, "{elapsed} {merged}"),
                }
            }
        }
    }

    #[test]
    fn at_once_means_all_that_is_older() {
        let past = past(1_700, 0);
        assert_eq!(due(&policy(1600, 0), &past, &Journal::default(), false), None);
        assert_eq!(
            due(&policy(1600, 0), &past, &Journal::default(), true),
            Some(Due { upto: Lsn(10), reason: Reason::Window })
        );
    }

    /// What an owner knows after so long, who was told ten times a second what is durable: ten LSNs are a tenth of a second.
    fn told(elapsed_ms: u64) -> Retention {
        let mut past = Retention { elapsed_ms, ..Retention::default() };
        let arrivals =
            (1..=elapsed_ms / ARRIVAL_MS).map(|at| Arrival { elapsed_ms: at * ARRIVAL_MS, lsn: Lsn(at * 10) });
        arrivals.for_each(|arrival| past.arrive(&[arrival]));
        past
    }

    #[test]
    fn a_window_of_any_length_is_known_to_a_thirty_second_part() {
        // Three hours, whatever the window was meanwhile.
        let past = told(3 * 3_600_000);
        assert!(past.arrivals.len() < 600, "{}", past.arrivals.len());
        for window_ms in (1_000..3 * 3_600_000 - 100_000).step_by(7_777) {
            let due = due(&policy(window_ms, 0), &past, &Journal::default(), true).unwrap();
            let age_ms = past.elapsed_ms - due.upto.0 * 10;
            assert!(age_ms >= window_ms, "{window_ms} {age_ms}");
            assert!(age_ms <= window_ms + ARRIVAL_MS + window_ms / 32, "{window_ms} {age_ms}");
        }
    }

    #[test]
    fn a_list_of_arrivals_is_bounded_for_all_time() {
        let mut past = Retention::default();
        let (mut at, mut most, mut lsn) = (0u64, 0, 0);
        // From every millisecond to once in some years: no rhythm makes it long.
        for apart in (0..58).map(|power| 1u64 << power) {
            for _ in 0..if apart < 1 << 20 { 700 } else { 40 } {
                (at, lsn) = (at.saturating_add(apart), lsn + 1);
                past.arrive(&[Arrival { elapsed_ms: at, lsn: Lsn(lsn) }]);
                most = most.max(past.arrivals.len());
            }
        }
        assert!(most > 100 && most < 3000, "{most}");
        assert!(
            past.arrivals.windows(2).all(|pair| pair[0].lsn < pair[1].lsn && pair[0].elapsed_ms <= pair[1].elapsed_ms)
        );
        assert_eq!((past.arrivals[0].lsn, past.arrivals[past.arrivals.len() - 1].lsn), (Lsn(1), Lsn(lsn)));
    }

    #[test]
    fn a_merge_takes_no_more_records_than_its_memory_allows() {
        let mib = |n: u64| n << 20;
        let end = |target: u64, ends: &[(u64, u64)]| {
            merge_end(Lsn(10), Lsn(target), ends.iter().map(|(last, records)| (Lsn(*last), *records)))
        };
        let segments = [(20, mib(1)), (30, mib(1)), (40, mib(1)), (50, 1), (60, 1)];
        assert_eq!(end(30, &segments), Lsn(30));
        assert_eq!(end(31, &segments), Lsn(30), "it would have three");
        assert_eq!(end(90, &segments), Lsn(30));
        assert_eq!(end(25, &segments), Lsn(25));
        // Whatever one segment has goes at once, and so do those that end where nothing can be restored.
        assert_eq!(end(90, &[(20, mib(9)), (30, 1)]), Lsn(20));
        assert_eq!(end(90, &[(10, mib(9)), (10, 5), (30, 1), (40, 1)]), Lsn(30));
        assert_eq!(end(90, &[(20, 1), (30, 1)]), Lsn(90), "inside one that is not sealed");
        assert_eq!(end(90, &[]), Lsn(90));
    }

    #[test]
    fn who_merges_nothing_for_long_is_waiting() {
        let past = told(64_000);
        assert!(!is_waiting(&policy(1_000, 0), &past));
        assert!(is_waiting(&policy(990, 0), &past));
        assert!(!is_waiting(&policy(1, 0), &Retention::default()));
    }

    #[test]
    fn the_bound_cuts_the_window() {
        let sealed: Vec<_> = (1..=10).map(|n| Held { last: Lsn(n * 100), bytes: 100, plain: 100 }).collect();
        let at_rate = |max, open_bytes, bytes_per_s| {
            let journal = Journal { sealed: &sealed, open_bytes, bytes_per_s };
            due(&policy(1 << 40, max), &past(900, 0), &journal, false)
        };
        let due = |max, open| at_rate(max, open, 0);
        assert_eq!(due(0, 50), None);
        assert_eq!(due(1050, 50), None);
        assert_eq!(due(1049, 50), Some(Due { upto: Lsn(200), reason: Reason::Bytes }), "918 or fewer stay");
        assert_eq!(due(10, 50), Some(Due { upto: Lsn(1000), reason: Reason::Bytes }), "what is not sealed stays");
        let bytes = |upto| Some(Due { upto: Lsn(upto), reason: Reason::Bytes });
        assert_eq!((at_rate(1190, 50, 70), at_rate(1190, 50, 71)), (None, bytes(200)), "1050, and 142 by then");
        assert_eq!(at_rate(1200, 50, 1 << 40), None, "no further ahead than 150");
        assert_eq!(at_rate(0, 50, 1 << 40), None);
    }

    #[test]
    fn nearly_as_many_segments_as_there_may_be_are_merged() {
        let held = |n: usize| Held { last: Lsn(n as u64 * 10), bytes: 1 << 20, plain: 1 << 20 };
        let sealed: Vec<_> = (1..=Options::SEGMENTS_MAX).map(held).collect();
        let due = |count: usize| {
            let journal = Journal { sealed: &sealed[..count], ..Journal::default() };
            due(&policy(1 << 40, 0), &past(900, 0), &journal, false)
        };
        let full = Options::SEGMENTS_MAX / 8 * 7;
        assert_eq!(due(full), None);
        let upto = sealed[(full + 1) / 8].last;
        assert_eq!(due(full + 1), Some(Due { upto, reason: Reason::Bytes }));
    }

    #[test]
    fn what_crashed_owners_recorded_counts_as_watched() {
        let of = |number: u64, first_lsn: u64, (epoch, from): (u32, u64), (epoch_then, to): (u32, u64)| {
            let stamp = |epoch, ms: u64| Stamp { epoch: ClockEpoch(epoch), time: WallTime(ms * 1_000_000) };
            let summary = Summary {
                group: GroupId::new([1; 16]).unwrap(),
                timeline: Timeline::new([1; 16]).unwrap(),
                prev_lsn: Lsn(first_lsn - 1),
                first_lsn: Lsn(first_lsn),
                last_lsn: Lsn(first_lsn + 9),
                whole_lsn: Lsn(first_lsn + 9),
                settled: Lsn(first_lsn),
                first: stamp(epoch, from),
                last: stamp(epoch_then, to),
                frames_end: 8192,
                file_bytes: 16384,
                frames: 1,
                chunks: 1,
                entries: 1,
                records: 1,
                plain_bytes: 4096,
                blocks: [1, 0, 1, 1, 1],
                events_bytes: 0,
                footer_crc: 0,
            };
            let (id, state) = (SegmentId::new([number as u8; 16]).unwrap(), SegmentState::Sealed(summary));
            SegmentInfo { number, id, state, key: 0 }
        };
        let mut manifest = Manifest::new(ReplicaId::new([1; 16]).unwrap(), GroupId::new([1; 16]).unwrap(), "group");
        manifest.segments = vec![of(1, 1, (1, 1000), (1, 4000)), of(2, 11, (1, 9000), (1, 9700))];
        assert_eq!(watched_ms(&manifest), 3700, "not what lies between them");
        manifest.retention.arrive(&[Arrival { elapsed_ms: 5000, lsn: Lsn(5) }]);
        manifest.retention.elapsed_ms = 5000;
        assert_eq!(watched_ms(&manifest), 5700, "the first was noted");
        manifest.segments.push(of(3, 21, (1, 9_800), (2, 1 << 40)));
        assert_eq!(watched_ms(&manifest), 5700, "a clock was set");
        manifest.segments.push(of(4, 31, (2, 9_800), (2, 9_700)));
        manifest.retention.elapsed_ms = 6000;
        assert_eq!(watched_ms(&manifest), 6000, "that was noted later");
    }

    #[test]
    fn history_is_as_old_as_the_replica_until_something_is_merged() {
        let young = Retention { arrivals: Vec::new(), ..past(500, 0) };
        assert_eq!((age_ms(&young, 700), age_ms(&past(500, 0), 700)), (700, 700));
        let mut merged = past(500, 20);
        merged.arrivals.retain(|arrival| arrival.lsn > Lsn(20));
        assert_eq!(age_ms(&merged, 700), 400, "since the first arrival behind it");
        merged.arrivals.clear();
        assert_eq!(age_ms(&merged, 700), 0);
    }

    #[test]
    fn a_bound_tells_how_far_back_it_reaches() {
        assert_eq!(reach_ms(&policy(10_000, 0), 1 << 30), 10_000);
        assert_eq!(reach_ms(&policy(10_000, 4_000), 1_000), 4_000);
        assert_eq!(reach_ms(&policy(10_000, 4_000), 10), 10_000);
        assert_eq!(segment_bytes(&policy(1, 800), 256), 100);
        assert_eq!(segment_bytes(&policy(1, 0), 256), 256);
        assert_eq!(segment_bytes(&Policy { quota: 3200, ..policy(1, 800) }, 256), 100);
        assert_eq!(segment_bytes(&Policy { quota: 640, ..policy(1, 800) }, 256), 20);
    }
}
