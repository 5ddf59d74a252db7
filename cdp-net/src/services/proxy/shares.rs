//! What the groups of a proxy may hold of its memory and of its disk: lent by need, so that a noisy one takes what the others leave, and
//! no more.

use cdp_core::capture::{Budget, BudgetError};
use cdp_core::link::relay::{RelayBounds, RelayStatus};
use cdp_core::types::{GroupId, Timeline};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Length of a file of a spool, in bytes.
pub(super) const FILE_BYTES: u64 = 16 << 20;
/// Read ahead of a spool at most, in bytes.
const AHEAD_MAX: u64 = 16 << 20;
/// Credit of a source at most, in bytes: more fills no line that there is.
const WINDOW_MAX: u64 = 64 << 20;

/// See the module's text. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Shares(Arc<Mutex<(Budget, Option<Budget>)>>);

/// One relay's share; given back when it goes.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    /// The account of a timeline: two of a group may be there at once.
    account: GroupId,
}

impl Shares {
    /// So many bytes of memory, and of disk; 0: none is used.
    pub(super) fn new(memory: u64, disk: u64) -> Self {
        Self(Arc::new(Mutex::new((Budget::new(memory), (disk > 0).then(|| Budget::new(disk))))))
    }

    fn lock(&self) -> MutexGuard<'_, (Budget, Option<Budget>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share for a relay.
    ///
    /// # Errors
    /// When there are too many for what there is.
    pub(super) fn take(&self, timeline: Timeline) -> Result<Share, BudgetError> {
        // Identities are never all zeros.
        let account = GroupId::new(*timeline.bytes()).ok_or(BudgetError::TooManyGroups)?;
        let mut held = self.lock();
        held.0.set(account, 1)?;
        if let Some(disk) = &mut held.1
            && let Err(error) = disk.set(account, 1)
        {
            held.0.remove(account);
            return Err(error);
        }
        Ok(Share { shares: self.clone(), account })
    }
}

impl Share {
    /// What holds from now on for a relay that stands like this; to be asked for again every few milliseconds while it is busy.
    pub(super) fn bounds(&self, status: &RelayStatus) -> RelayBounds {
        let mut held = self.shares.lock();
        let memory = held.0.lend(self.account, status.memory_bytes + status.waiting_bytes);
        let disk = held.1.as_mut().map_or(0, |disk| disk.lend(self.account, status.disk_bytes.max(status.held_bytes)));
        drop(held);
        let window = (memory / 4).min(WINDOW_MAX);
        let (spool, disk) = (memory - window, disk / FILE_BYTES * FILE_BYTES);
        RelayBounds {
            // Files at both ends of what is held are not full.
            held_bytes_max: disk.saturating_sub(2 * FILE_BYTES).max(spool / 2),
            window_bytes: window,
            memory_bytes: spool,
            ahead_bytes: (spool / 4).min(AHEAD_MAX),
            disk_bytes: disk,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        held.0.remove(self.account);
        if let Some(disk) = &mut held.1 {
            disk.remove(self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_has_nearly_all_and_gives_it_back() {
        let shares = Shares::new(256 << 20, 1 << 30);
        let [first, second] = [1, 2].map(|n| shares.take(Timeline::new([n; 16]).unwrap()).unwrap());
        let mut status = RelayStatus::default();
        for _ in 0..20 {
            let bounds = first.bounds(&status);
            assert!(bounds.memory_bytes + bounds.window_bytes <= 256 << 20);
            status.held_bytes = bounds.held_bytes_max;
            (status.memory_bytes, status.disk_bytes) = (bounds.memory_bytes, bounds.disk_bytes);
        }
        assert!(status.memory_bytes > 128 << 20 && status.held_bytes > 600 << 20, "{status:?}");
        let own = second.bounds(&RelayStatus::default());
        assert!(own.memory_bytes + own.window_bytes >= 32 << 20, "its reserve was lent: {own:?}");
        drop(first);
        let status = RelayStatus { memory_bytes: 100 << 20, ..RelayStatus::default() };
        assert!(second.bounds(&status).memory_bytes > 100 << 20);
    }
}
