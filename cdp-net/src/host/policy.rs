//! What the owner of a replica wants to keep: shown, checked, changed.

use super::{Host, document};
use crate::owner::PolicyChange;
use crate::report::{PointPolicy, Problem, ProblemClass, WhenFull};
use cdp_core::journal::{self, PointsMode, Policy, Retention};
use cdp_core::policy::retention;
use cdp_core::when::format_bytes;
use std::ops::RangeInclusive;

/// The shortest and the longest RPO, in milliseconds.
pub const RPO_MS: RangeInclusive<u64> = 100..=86_400_000;
/// The shortest and the longest window, time between long-term points, and time for which those are kept, in milliseconds.
const WINDOW_MS: RangeInclusive<u64> = 1_000..=10 * 365 * 86_400_000;
/// The least bound of a journal: eight of the smallest segments.
const MAX_BYTES_MIN: u64 = 8 << 20;
/// The least quota of a replica: 32 of them.
const QUOTA_MIN: u64 = 32 << 20;

/// Refuses what cannot be followed.
///
/// # Errors
/// What is wrong with it.
pub fn check_policy(change: &PolicyChange) -> Result<(), Problem> {
    let usage = |code: &str, message: String| Err(Problem::new(ProblemClass::Usage, code, message));
    if let Some(ms) = change.rpo_ms.filter(|ms| !RPO_MS.contains(ms)) {
        return usage("rpo", format!("an RPO of {ms} ms is not between {} ms and a day", RPO_MS.start()));
    }
    let spans = [("window", change.window_ms, 1), ("long-term", change.long_term_ms, 0), ("keep", change.keep_ms, 1)];
    for (what, ms, least) in spans {
        if let Some(ms) = ms.filter(|ms| !WINDOW_MS.contains(ms) && (*ms, least) != (0, 0)) {
            return usage(what, format!("--{what} of {ms} ms is not between a second and ten years"));
        }
    }
    if let Some(bytes) = change.max_bytes.filter(|bytes| *bytes != 0 && *bytes < MAX_BYTES_MIN) {
        return usage("max-bytes", format!("a journal of {bytes} bytes is too small: {MAX_BYTES_MIN} are the least"));
    }
    if let Some(bytes) = change.quota.filter(|bytes| *bytes != 0 && *bytes < QUOTA_MIN) {
        return usage("quota", format!("a quota of {bytes} bytes is too small: {QUOTA_MIN} are the least"));
    }
    change.long_term_ms.zip(change.keep_ms).map_or(Ok(()), |(every, keep)| check_layers(every, keep))
}

/// Refuses what cannot be followed together with what is not changed.
///
/// # Errors
/// What is wrong with it.
pub fn check_policy_over(change: &PolicyChange, policy: &Policy) -> Result<(), Problem> {
    check_policy(change)?;
    // What was accepted once does not keep anything else from being changed.
    if (change.long_term_ms, change.keep_ms) == (None, None) {
        return Ok(());
    }
    let mut policy = *policy;
    change.apply(&mut policy);
    check_layers(policy.long_term_ms, policy.keep_ms)
}

/// Refuses more long-term points than a manifest lists.
fn check_layers(every: u64, keep: u64) -> Result<(), Problem> {
    let layers = retention::layers(&Policy { long_term_ms: every, keep_ms: keep, ..Policy::default() });
    let most = Retention::LAYERS_MAX as u64;
    if layers <= most {
        return Ok(());
    }
    let message = format!("long-term points every {every} ms, kept for {keep} ms, are {layers}: {most} are the most");
    let hint = "make them less often, or keep them for a shorter time";
    Err(Problem::new(ProblemClass::Usage, "long-term", message).hint(hint))
}

impl PolicyChange {
    /// Makes the change.
    pub fn apply(&self, policy: &mut Policy) {
        let set = |to: &mut u64, from: Option<u64>| *to = from.unwrap_or(*to);
        set(&mut policy.rpo_ms, self.rpo_ms);
        set(&mut policy.window_ms, self.window_ms);
        set(&mut policy.max_bytes, self.max_bytes);
        set(&mut policy.reserve_bytes, self.reserve_bytes);
        set(&mut policy.long_term_ms, self.long_term_ms);
        set(&mut policy.keep_ms, self.keep_ms);
        set(&mut policy.quota, self.quota);
        match self.when_full {
            Some(WhenFull::Shorten) => policy.when_full = journal::WhenFull::Shorten,
            Some(WhenFull::Stop) => policy.when_full = journal::WhenFull::Stop,
            None => {}
        }
        match self.points {
            Some(PointPolicy::EveryWrite) => policy.points = PointsMode::EveryWrite,
            Some(PointPolicy::PerPoint) => policy.points = PointsMode::PerPoint,
            None => {}
        }
    }
}

impl Host {
    pub(super) fn change_policy(&self, change: PolicyChange) -> Result<crate::report::Policy, Problem> {
        check_policy_over(&change, &self.replica().manifest().policy)?;
        if change != PolicyChange::default() {
            self.edit(Box::new(move |manifest| change.apply(&mut manifest.policy)))?;
        }
        let policy = self.replica().manifest().policy;
        if let Some(live) = self.live() {
            live.policy_changed(&policy);
        }
        Ok(crate::report::Policy { warnings: self.warnings(&change, &policy), ..document::policy(&policy) })
    }

    /// What was changed and leaves the journal no room now. It is accepted: room may be made later.
    fn warnings(&self, change: &PolicyChange, policy: &Policy) -> Vec<String> {
        let mut warnings = Vec::new();
        if change.quota.is_some() && self.quota_left() == Some(0) {
            let (quota, takes) = (format_bytes(policy.quota), format_bytes(self.account().all()));
            let then = match policy.when_full {
                journal::WhenFull::Shorten => "history is shortened as far as that makes room, and where it does not",
                journal::WhenFull::Stop => "until something is let go",
            };
            let message = format!(
                "the quota of {quota} leaves the journal nothing, the replica takes {takes} now: {then}, nothing is recorded"
            );
            warnings.push(message);
        }
        // What cannot be asked now is told by `status`.
        let free = self.storage().free_bytes().unwrap_or(u64::MAX);
        if change.reserve_bytes.is_some_and(|reserve| reserve > free) {
            let (reserve, free) = (format_bytes(policy.reserve_bytes), format_bytes(free));
            let message = format!(
                "the reserve of {reserve} is more than the {free} that are free on the replica's disk: where the segments that \
                 are there are full, nothing is recorded until so much is free"
            );
            warnings.push(message);
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::journal::{Arrival, LayerInfo, Manifest};
    use cdp_core::types::{GroupId, Lsn, ReplicaId, Timeline};

    /// What the manifest is when nothing was ever merged, after so many notes that far apart, each with a layer.
    fn manifest(policy: &Policy, notes: u64, apart_ms: u64) -> Manifest {
        let id = [1; 16];
        let mut manifest = Manifest::new(ReplicaId::new(id).unwrap(), GroupId::new(id).unwrap(), "group");
        let timeline = Timeline::new(id).unwrap();
        for note in 1..=notes {
            let (elapsed_ms, lsn) = (note * apart_ms, Lsn(note));
            let layer = LayerInfo { timeline, lsn, elapsed_ms };
            let past = &mut manifest.retention;
            past.elapsed_ms = elapsed_ms;
            past.arrive(&[Arrival { elapsed_ms, lsn }]);
            past.add_layer(layer);
            past.expire_layers(policy.keep_ms);
        }
        manifest
    }

    #[test]
    fn no_policy_that_is_accepted_makes_a_manifest_that_is_refused() {
        const DAY: u64 = 86_400_000;
        let notes = Retention::LAYERS_MAX as u64 + 3000;
        let spans = [
            (30_000, 30 * DAY, false),
            (1000, Retention::LAYERS_MAX as u64 * 1000, false),
            (1000, Retention::LAYERS_MAX as u64 * 1000 - 1, true),
            (3_600_000, 10 * 365 * DAY, false),
            (8 * 3_600_000, 10 * 365 * DAY, true),
            (DAY, DAY, true),
        ];
        for (long_term_ms, keep_ms, accepted) in spans {
            let change =
                PolicyChange { long_term_ms: Some(long_term_ms), keep_ms: Some(keep_ms), ..Default::default() };
            let half = PolicyChange { keep_ms: None, ..change };
            let held = Policy { keep_ms, ..Policy::default() };
            for (change, held) in [(change, Policy::default()), (half, held)] {
                let checked = check_policy_over(&change, &held);
                assert_eq!(checked.is_ok(), accepted, "{long_term_ms} {keep_ms}");
                let said =
                    |problem: Problem| problem.message.contains(&format!("{} are the most", Retention::LAYERS_MAX));
                assert!(checked.err().is_none_or(said));
            }
            let mut policy = Policy::default();
            change.apply(&mut policy);
            // Also one that an earlier version accepted.
            let manifest = manifest(&policy, notes, long_term_ms);
            let layers = manifest.retention.layers.len() as u64;
            assert!(layers <= retention::layers(&policy), "{layers} with {policy:?}");
            assert_eq!(manifest.retention.layers.last().map(|layer| layer.lsn), Some(Lsn(notes)));
            assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(&manifest), "{policy:?}");
            assert_eq!(
                check_policy_over(&PolicyChange { window_ms: Some(1000), ..Default::default() }, &policy),
                Ok(())
            );
        }
    }

    #[test]
    fn arrivals_that_are_thinned_say_nothing_younger_than_it_is() {
        // As while a first copy lasts for hours, with a window of a second.
        let notes = 100_000;
        let manifest = manifest(&Policy::default(), notes, 100);
        let past = &manifest.retention;
        assert!(past.arrivals.len() <= 600, "{}", past.arrivals.len());
        assert!(retention::is_waiting(&Policy { window_ms: 1000, ..Policy::default() }, past));
        let of = |at: u64| (at * 100, Lsn(at));
        let all: Vec<_> = past.arrivals.iter().map(|arrival| (arrival.elapsed_ms, arrival.lsn)).collect();
        assert_eq!((all[0], all[all.len() - 1]), (of(1), of(notes)), "the age of the oldest, and the newest");
        assert!(all.iter().all(|arrival| *arrival == of(arrival.1.0)), "none is another than it was");
    }
}
