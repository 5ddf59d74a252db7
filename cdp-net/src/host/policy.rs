//! What the owner of a replica wants to keep: shown, checked, changed.

use super::{Host, document};
use crate::owner::PolicyChange;
use crate::report::{PointPolicy, Problem, ProblemClass, WhenFull};
use cdp_core::journal::{self, PointsMode, Policy};
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
    if change.points == Some(PointPolicy::PerPoint) {
        // A policy that is stored and not followed would be worse.
        let message = "this version keeps every write: it does not coalesce the writes between points";
        let problem = Problem::new(ProblemClass::Refused, "no-coalescing", message);
        return Err(problem.hint("leave --points out, or give every-write"));
    }
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
    Ok(())
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
        check_policy(&change)?;
        if change != PolicyChange::default() {
            self.edit(Box::new(move |manifest| change.apply(&mut manifest.policy)))?;
        }
        let policy = self.replica().manifest().policy;
        if let Some(live) = self.live() {
            live.policy_changed(&policy);
        }
        Ok(document::policy(&policy))
    }
}
