//! What readers hold: moments that retention must not end while they are read, and pauses for who reads everything.

use super::lock;
use cdp_core::replica::retention::Held;
use cdp_core::types::Lsn;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// The moments that readers hold now.
#[derive(Debug, Default)]
pub(super) struct Holds {
    state: Mutex<State>,
    /// Held while bases or the manifest's word of them change.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By a number that is never used again.
    readers: BTreeMap<u64, Lsn>,
    /// By numbers of the same row.
    pauses: BTreeSet<u64>,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// The moments that readers hold, for as long as nobody may add one: what is decided meanwhile holds for the next one.
pub(super) struct Planning<'a>(MutexGuard<'a, State>);

impl Planning<'_> {
    /// What readers hold.
    pub(super) fn held(&self) -> Held {
        self.0.readers.values().copied().collect()
    }

    /// Adds one.
    pub(super) fn add(mut self, holds: &Arc<Holds>, lsn: Lsn) -> Hold {
        let number = self.0.number();
        self.0.readers.insert(number, lsn);
        Hold { holds: Arc::clone(holds), number }
    }
}

/// A moment that is held until this is dropped, or given up.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.holds.state).readers.remove(&self.number);
    }
}

/// Nothing is merged until this is dropped, or given up.
#[derive(Debug)]
pub(crate) struct Pause {
    holds: Arc<Holds>,
    number: u64,
}

impl Drop for Pause {
    fn drop(&mut self) {
        lock(&self.holds.state).pauses.remove(&self.number);
    }
}

/// Whether what a connection held was held to the end: retention gives up what keeps it from its work.
pub(super) fn was_held(guard: &(dyn Any + Send)) -> bool {
    if let Some(Hold { holds, number }) = guard.downcast_ref() {
        return lock(&holds.state).readers.contains_key(number);
    }
    guard.downcast_ref::<Pause>().is_none_or(|Pause { holds, number }| lock(&holds.state).pauses.contains(number))
}

impl Holds {
    /// Keeps moments from being taken while something is decided. Nobody who has the replica's lock calls this.
    pub(super) fn plan(&self) -> Planning<'_> {
        Planning(lock(&self.state))
    }

    /// Gives up the oldest moment that only readers hold: whoever reads it is told so. Whether there was one.
    pub(super) fn give_up_oldest(&self, durably: &Held) -> bool {
        let mut state = lock(&self.state);
        let oldest = state.readers.values().copied().filter(|lsn| !durably.contains(lsn)).min();
        state.readers.retain(|_, lsn| Some(*lsn) != oldest);
        oldest.is_some()
    }

    /// How many hold something.
    pub(super) fn readers(&self) -> u32 {
        let state = lock(&self.state);
        u32::try_from(state.readers.len() + state.pauses.len()).unwrap_or(u32::MAX)
    }

    /// Stops merging when the piece is done that is under way.
    pub(super) fn pause(self: &Arc<Self>) -> Pause {
        let number = {
            let mut state = lock(&self.state);
            let number = state.number();
            state.pauses.insert(number);
            number
        };
        let pause = Pause { holds: Arc::clone(self), number };
        drop(lock(&self.changing));
        pause
    }

    /// Gives up every pause: who reads everything is told so when he lets go of it.
    pub(super) fn give_up_pauses(&self) {
        lock(&self.state).pauses.clear();
    }

    /// For the next piece of a merge; none while there is a pause.
    pub(super) fn change(&self) -> Option<MutexGuard<'_, ()>> {
        let guard = match self.changing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        lock(&self.state).pauses.is_empty().then_some(guard)
    }
}
