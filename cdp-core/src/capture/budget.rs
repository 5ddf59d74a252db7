//! Memory that the groups of a host share, so that a noisy one does not push the others into change tracking.
//!
//! What a filter may queue ([`Filter::set_bounds`](super::Filter)) is *lent* to it from one budget. The rule:
//!
//! * A group's **share** is the total divided by weight. A quarter of it, at least [`QUEUE_BYTES_MIN`], is its **reserve**.
//! * A reserve is never lent to another: a group gets up to its reserve at once, whatever the others do.
//! * All that is not somebody's reserve goes to who wants it: one busy group alone may have everything but the others' reserves.
//! * A group that wants more than there is and has less than its share is **hungry**. While anybody else is, a group above its share
//!   gets nothing more, and what it does not use goes back: it is the noisy one that tracks. So as what it has queued becomes durable
//!   the hungry ones come to their shares.
//!
//! Bounds: [`GROUPS_MAX`] groups, and a share is at least [`QUEUE_BYTES_MIN`]; what would break that is refused.

use super::options::QUEUE_BYTES_MIN;
use crate::types::GroupId;
use std::collections::BTreeMap;

/// Groups that share a budget, at most.
pub const GROUPS_MAX: usize = 1024;
/// The heaviest weight.
pub const WEIGHT_MAX: u32 = 1000;
/// This part of a share is its reserve.
const RESERVE_PART: u64 = 4;

/// Why a group does not take part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BudgetError {
    /// There are [`GROUPS_MAX`].
    #[error("{GROUPS_MAX} groups share the memory; there is no place for another one")]
    TooManyGroups,
    /// Not 1 to [`WEIGHT_MAX`].
    #[error("a weight of {weight} is none: it takes 1 to {WEIGHT_MAX}")]
    Weight {
        /// What was given.
        weight: u32,
    },
    /// Somebody's share would be less than a queue must have.
    #[error("{total} bytes are too few: the smallest share would be {share}, and it takes at least {QUEUE_BYTES_MIN}")]
    ShareTooSmall {
        /// The budget's, in bytes.
        total: u64,
        /// The smallest share, in bytes.
        share: u64,
    },
}

/// What a group has, and may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Portion {
    /// Its weight.
    pub weight: u32,
    /// What it has when all are busy, in bytes.
    pub share: u64,
    /// What it can have at any moment, in bytes.
    pub reserve: u64,
    /// What it has, in bytes.
    pub taken: u64,
    /// It has less than its share, and did not get what it wanted.
    pub hungry: bool,
}

impl Portion {
    /// What the others must leave to it.
    fn kept(&self) -> u64 {
        self.taken.max(self.reserve)
    }

    /// What those above their share must leave to it beside that.
    fn missing(&self) -> u64 {
        if self.hungry { self.share.saturating_sub(self.kept()) } else { 0 }
    }
}

/// A total, and who has how much of it.
#[derive(Clone, Debug)]
pub struct Budget {
    total: u64,
    /// At most [`GROUPS_MAX`].
    groups: BTreeMap<GroupId, Portion>,
    /// Sums over all groups, so that no question costs more with many of them.
    taken: u64,
    kept: u64,
    missing: u64,
}

impl Budget {
    /// So many bytes for all groups together.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { total, groups: BTreeMap::new(), taken: 0, kept: 0, missing: 0 }
    }

    /// A group takes part, or has another weight from now on. Nobody loses what he has; a group that comes while others have
    /// borrowed gets its reserve as they give it back.
    ///
    /// # Errors
    /// When there are too many for the total: nothing has changed then.
    pub fn set(&mut self, group: GroupId, weight: u32) -> Result<(), BudgetError> {
        if weight == 0 || weight > WEIGHT_MAX {
            return Err(BudgetError::Weight { weight });
        }
        if !self.groups.contains_key(&group) && self.groups.len() >= GROUPS_MAX {
            return Err(BudgetError::TooManyGroups);
        }
        let others = self.groups.iter().filter(|(other, _)| **other != group).map(|(_, portion)| portion.weight);
        let least = others.clone().min().unwrap_or(weight).min(weight);
        let weights = others.map(u64::from).sum::<u64>() + u64::from(weight);
        let share = share_of(self.total, least, weights);
        if share < QUEUE_BYTES_MIN {
            return Err(BudgetError::ShareTooSmall { total: self.total, share });
        }
        let new = Portion { weight, share: 0, reserve: 0, taken: 0, hungry: false };
        self.groups.entry(group).or_insert(new).weight = weight;
        self.divide();
        Ok(())
    }

    /// A group is gone, with what it had.
    pub fn remove(&mut self, group: GroupId) {
        self.groups.remove(&group);
        self.divide();
    }

    /// Lends so many bytes more, all or nothing.
    #[must_use]
    pub fn take(&mut self, group: GroupId, bytes: u64) -> bool {
        let Some(portion) = self.groups.get(&group).copied() else { return false };
        let taken = portion.taken.saturating_add(bytes);
        let granted = bytes <= self.free_for(&portion, taken);
        let hungry = !granted && portion.taken < portion.share;
        self.change(group, Portion { taken: if granted { taken } else { portion.taken }, hungry, ..portion });
        granted
    }

    /// A group gives so many bytes back, at most what it has.
    pub fn give(&mut self, group: GroupId, bytes: u64) {
        let Some(portion) = self.groups.get(&group).copied() else { return };
        let taken = portion.taken.saturating_sub(bytes);
        self.change(group, Portion { taken, hungry: false, ..portion });
    }

    /// How much a queue may hold of which `used` bytes are used: the bound of a filter from now on, to be asked for again after a
    /// few milliseconds. It is room for as much again as is used and for the reserve at least, if there is so much; never less than
    /// is used, if that is what was lent.
    #[must_use]
    pub fn lend(&mut self, group: GroupId, used: u64) -> u64 {
        let Some(portion) = self.groups.get(&group).copied() else { return 0 };
        let wanted = used.saturating_add(used.max(portion.reserve)).min(self.total);
        // What is above the share is not kept for later while somebody else has less than his.
        let others_hunger = self.missing > portion.missing();
        let most = if others_hunger { wanted.min(portion.share.max(used)) } else { wanted };
        let taken = if most > portion.taken {
            // In two steps: up to the share other rules hold than beyond.
            let within = most.min(portion.share).max(portion.taken);
            let reserve = (portion.reserve.min(most)).saturating_sub(portion.taken);
            let free = self.free_for(&portion, within).max(reserve.min(self.total.saturating_sub(self.taken)));
            let first = portion.taken + (within - portion.taken).min(free);
            if first < within { first } else { first + (most - first).min(self.beyond(&portion, first)) }
        } else {
            most.max(used.min(portion.taken))
        };
        let hungry = taken < wanted.min(portion.share);
        self.change(group, Portion { taken, hungry, ..portion });
        taken
    }

    /// What a group has.
    #[must_use]
    pub fn portion(&self, group: GroupId) -> Option<Portion> {
        self.groups.get(&group).copied()
    }

    /// All bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that somebody has.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// How much more a group can have that wants to come to `wanted`.
    fn free_for(&self, portion: &Portion, wanted: u64) -> u64 {
        if wanted <= portion.reserve {
            // Where groups came late the reserve may be somebody else's still.
            return self.total.saturating_sub(self.taken);
        }
        if wanted <= portion.share {
            return self.total.saturating_sub(self.kept - portion.kept() + portion.taken);
        }
        self.beyond(portion, portion.taken)
    }

    /// The same for more than its share, of which it has `taken`.
    fn beyond(&self, portion: &Portion, taken: u64) -> u64 {
        let others = self.kept - portion.kept() + self.missing - portion.missing();
        self.total.saturating_sub(others + taken)
    }

    fn change(&mut self, group: GroupId, new: Portion) {
        let Some(portion) = self.groups.get_mut(&group) else { return };
        let old = std::mem::replace(portion, new);
        self.taken = self.taken - old.taken + new.taken;
        self.kept = self.kept - old.kept() + new.kept();
        self.missing = self.missing - old.missing() + new.missing();
    }

    fn divide(&mut self) {
        let weights = self.groups.values().map(|portion| u64::from(portion.weight)).sum();
        (self.taken, self.kept, self.missing) = (0, 0, 0);
        for portion in self.groups.values_mut() {
            portion.share = share_of(self.total, portion.weight, weights);
            portion.reserve = (portion.share / RESERVE_PART).max(QUEUE_BYTES_MIN).min(portion.share);
            portion.hungry &= portion.taken < portion.share;
            self.taken += portion.taken;
            self.kept += portion.kept();
            self.missing += portion.missing();
        }
    }
}

fn share_of(total: u64, weight: u32, weights: u64) -> u64 {
    // At most the total: the weight is one of them.
    (u128::from(total) * u128::from(weight) / u128::from(weights.max(1))) as u64
}

#[cfg(test)]
mod tests;
