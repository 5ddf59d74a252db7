//! Memory that the groups of a process share: see [`cdp_core::capture::Budget`] for the rule.
//!
//! A filter's timer asks for its bound again every few milliseconds. What a filter has beyond that is not taken away: its next op is
//! lent room elsewhere, or tracked.

use cdp_core::capture::{Budget, BudgetError, Filter, QUEUE_BYTES_MIN};
use cdp_core::types::GroupId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A total for what all groups of a process have queued in memory.
#[derive(Debug)]
pub struct SharedBudget(Mutex<Budget>);

impl SharedBudget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Budget::new(bytes))))
    }

    /// Bytes that some group has now.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.lock().taken()
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        // Whole between calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group's part in one; given back when it is dropped.
pub(super) struct Share {
    budget: Arc<SharedBudget>,
    group: GroupId,
}

impl Share {
    pub(super) fn new(budget: &Arc<SharedBudget>, group: GroupId, weight: u32) -> Result<Self, BudgetError> {
        budget.lock().set(group, weight)?;
        Ok(Self { budget: Arc::clone(budget), group })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.lock().remove(self.group);
    }
}

/// What a filter may queue.
pub(super) struct Bounds {
    /// In memory, at most, in bytes.
    memory: u64,
    /// In memory and on disk, where there is a disk.
    capacity: Option<u64>,
    share: Option<Share>,
    /// In memory, as the filter was told.
    told: u64,
}

impl Bounds {
    pub(super) fn new(memory: u64) -> Self {
        Self { memory, capacity: None, share: None, told: memory }
    }

    pub(super) fn set_capacity(&mut self, filter: &mut Filter, bytes: u64) {
        self.capacity = Some(bytes);
        self.apply(filter, self.told);
    }

    pub(super) fn set_share(&mut self, filter: &mut Filter, share: Share) {
        self.share = Some(share);
        self.renew(filter);
    }

    /// Asks for what the group may have now, if it shares with others.
    pub(super) fn renew(&mut self, filter: &mut Filter) {
        let Some(Share { budget, group }) = &self.share else { return };
        let used = filter.queued_bytes().min(self.told);
        let lent = budget.lock().lend(*group, used).min(self.memory).max(QUEUE_BYTES_MIN);
        if lent != self.told {
            self.apply(filter, lent);
        }
    }

    fn apply(&mut self, filter: &mut Filter, memory: u64) {
        self.told = memory;
        let spool = self.capacity.map_or(0, |capacity| capacity.saturating_sub(memory));
        let set = filter.set_bounds(memory, spool);
        debug_assert!(set.is_ok(), "a filter was made with at least so much memory");
    }
}
