//! What the groups of a proxy may hold of its memory and of its disk: lent by need, so that a noisy one takes what the others leave, and
//! no more.

use cdp_core::capture::Budget;
use cdp_core::link::relay::{RelayBounds, RelayStatus};
use cdp_core::types::GroupId;
use cdp_core::when::format_bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Length of a file of a spool, in bytes.
pub(super) const FILE_BYTES: u64 = 16 << 20;
/// Read ahead of a spool at most, in bytes.
const AHEAD_MAX: u64 = 16 << 20;
/// The least share of memory where there is no disk, and the least of disk: the longest write and two frames have room in what is held.
pub(in crate::services) const MEMORY_MIN: u64 = 64 << 20;
pub(in crate::services) const DISK_MIN: u64 = 80 << 20;
/// Credit of a source at most, in bytes: more than any window of what is coalesced takes.
const WINDOW_MAX: u64 = 256 << 20;

/// See the module's text. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Shares(Arc<Mutex<Budgets>>);

#[derive(Debug)]
struct Budgets {
    memory: Budget,
    disk: Option<Budget>,
    /// Accounts so far: each share has one of its own, so that one that is given back late takes nothing from another.
    accounts: u128,
}

/// One relay's share; given back when it goes.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    account: GroupId,
}

impl Shares {
    /// So many bytes of memory, and of disk; 0: none is used.
    pub(super) fn new(memory: u64, disk: u64) -> Self {
        let disk = (disk > 0).then(|| Budget::new(disk));
        Self(Arc::new(Mutex::new(Budgets { memory: Budget::new(memory), disk, accounts: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Budgets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share for a relay.
    ///
    /// # Errors
    /// Why there are too many for what there is.
    pub(super) fn take(&self) -> Result<Share, String> {
        let mut held = self.lock();
        held.accounts += 1;
        let account = GroupId::new(held.accounts.to_be_bytes()).ok_or("no more timelines can have a share")?;
        held.memory.set(account, 1).map_err(|error| format!("the memory of the cache: {error}"))?;
        if let Some(disk) = &mut held.disk
            && let Err(error) = disk.set(account, 1)
        {
            held.memory.remove(account);
            return Err(format!("the disk of the cache: {error}"));
        }
        // What is less than this holds a long write up for ever.
        let least = |budget: &Budget, place: &str, least: u64| {
            let share = budget.portion(account).map_or(0, |portion| portion.share);
            let (total, share_text, least_text) =
                (format_bytes(budget.total()), format_bytes(share), format_bytes(least));
            match share < least {
                true => Err(format!(
                    "the cache has {total} {place} for all timelines: one more would have {share_text} and needs {least_text}"
                )),
                false => Ok(()),
            }
        };
        let fits = match &held.disk {
            Some(disk) => least(disk, "on disk", DISK_MIN),
            None => least(&held.memory, "in memory", MEMORY_MIN),
        };
        drop(held);
        // One that does not fit gives back what it was given as it goes.
        let share = Share { shares: self.clone(), account };
        fits.map(|()| share)
    }
}

impl Share {
    /// What holds from now on for a relay that stands like this; to be asked for again every few milliseconds while it is busy.
    pub(super) fn bounds(&self, status: &RelayStatus) -> RelayBounds {
        let mut held = self.shares.lock();
        let memory = held.memory.lend(self.account, status.memory_bytes + status.waiting_bytes);
        let disk =
            held.disk.as_mut().map_or(0, |disk| disk.lend(self.account, status.disk_bytes.max(status.held_bytes)));
        drop(held);
        let window = (memory / 4).min(WINDOW_MAX);
        let (spool, disk) = (memory - window, disk / FILE_BYTES * FILE_BYTES);
        RelayBounds {
            // Files at both ends of what is held are not full.
            held_bytes_max: disk.saturating_sub(2 * FILE_BYTES).max(spool / 4 * 3),
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
        held.memory.remove(self.account);
        if let Some(disk) = &mut held.disk {
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
        let [first, second] = [(); 2].map(|()| shares.take().unwrap());
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

    /// A share that is given back late, as by a relay that ends, takes nothing from the one of the relay that came after it.
    #[test]
    fn a_share_that_goes_takes_nothing_from_another() {
        let shares = Shares::new(1 << 30, 0);
        let (old, new) = (shares.take().unwrap(), shares.take().unwrap());
        drop(old);
        assert!(new.bounds(&RelayStatus::default()).window_bytes > 0);
    }

    /// With less than the longest write takes, nothing would ever move.
    #[test]
    fn who_would_get_too_little_is_refused_and_takes_nothing() {
        for (memory, disk, most) in [(256 << 20, 0, 4), (1 << 30, 400 << 20, 5), (16 << 20, 1 << 30, 4)] {
            let shares = Shares::new(memory, disk);
            let taken: Vec<_> = std::iter::from_fn(|| shares.take().ok()).take(100).collect();
            assert_eq!(taken.len(), most, "{memory} {disk}");
            drop(taken);
            assert!(shares.take().is_ok(), "what was refused is kept");
        }
    }
}
