//! How a keeper does, from what it has in memory: for whoever looks once a second at many of them.

use super::Keeper;
use crate::report::State;
use cdp_core::replica::catalogue::{Branch, LossReason};

/// See the module's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    /// What the replica shows of the protection. That a filter cannot be reached is no matter of it.
    pub state: State,
    /// Bytes that the journal stored since the keeper began.
    pub stored_bytes: u64,
}

impl Keeper {
    /// How it does; none before a filter began.
    #[must_use]
    pub fn condition(&self) -> Option<Condition> {
        let running = self.running.get()?;
        let state = if running.failure.get().is_some() {
            State::ReplicaLost
        } else if running.is_quota() {
            State::Quota
        } else if running.lack.get().or(running.seed_lack.get()).is_some() {
            State::NoSpace
        } else {
            running.host.replica().catalogue().trunk().map_or(State::Seeding, of_branch)
        };
        Some(Condition { state, stored_bytes: running.stored.bytes() })
    }
}

/// As its end is.
fn of_branch(branch: &Branch) -> State {
    if branch.is_restorable(branch.frontier().lsn) {
        return State::Protecting;
    }
    match branch.gaps().last().filter(|gap| gap.open) {
        // Of a first timeline that had no moment yet it is the first copy.
        Some(gap) if matches!(gap.reason, LossReason::Resync(_)) && !branch.ranges().is_empty() => State::Resync,
        Some(gap) if matches!(gap.reason, LossReason::Gap(_)) => State::Tracking,
        _ if branch.parent.is_none() && branch.ranges().is_empty() => State::Seeding,
        _ => State::Resync,
    }
}
