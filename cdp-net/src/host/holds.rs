//! What readers hold: moments that retention must not end while they are read, and pauses for who reads everything.

use super::lock;
use crate::owner::Readers;
use cdp_core::replica::retention::Held;
use cdp_core::types::Lsn;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// The moments that readers hold now: by a connection to this owner, and by locks of their own, also where an owner before this one
/// pinned what they read.
#[derive(Debug)]
pub(super) struct Holds {
    state: Mutex<State>,
    locked: Readers,
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
    /// Of those that readers have locked: their locks hold nothing any more.
    given_up: Held,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What readers hold. One that only now begins to lock his moment is among those who hold it by their connection.
    fn held(&self, locked: &Readers) -> Held {
        let locked = locked.moments();
        self.readers.values().chain(locked.difference(&self.given_up)).copied().collect()
    }
}

/// The moments that readers hold, for as long as nobody may add one: what is decided meanwhile holds for the next one.
pub(super) struct Planning<'a> {
    holds: &'a Arc<Holds>,
    state: MutexGuard<'a, State>,
}

impl Planning<'_> {
    /// What readers hold.
    pub(super) fn held(&self) -> Held {
        self.state.held(&self.holds.locked)
    }

    /// Adds one.
    pub(super) fn add(mut self, lsn: Lsn) -> Hold {
        let number = self.state.number();
        self.state.readers.insert(number, lsn);
        self.state.given_up.remove(&lsn);
        Hold { holds: Arc::clone(self.holds), number }
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
    /// Of the replica in a directory.
    pub(super) fn of(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), locked: Readers::of(dir), changing: Mutex::default() })
    }

    /// Keeps moments from being taken while something is decided. Nobody who has the replica's lock calls this.
    pub(super) fn plan(self: &Arc<Self>) -> Planning<'_> {
        Planning { holds: self, state: lock(&self.state) }
    }

    /// Who is given a moment next can hold it beyond the life of this owner, if there is room for the file that takes.
    pub(super) fn let_outlast(&self) {
        self.locked.make();
    }

    /// Gives up the oldest moment that only readers hold: whoever reads it is told so. Whether there was one.
    pub(super) fn give_up_oldest(&self, durably: &Held) -> bool {
        let mut state = lock(&self.state);
        let Some(oldest) = state.held(&self.locked).into_iter().find(|lsn| !durably.contains(lsn)) else {
            return false;
        };
        state.readers.retain(|_, lsn| *lsn != oldest);
        let locked = self.locked.moments();
        state.given_up.insert(oldest);
        state.given_up.retain(|lsn| locked.contains(lsn));
        true
    }

    /// How many hold something by a connection, and the moments that others hold.
    pub(super) fn readers(&self) -> (usize, Held) {
        let state = lock(&self.state);
        let mut others = state.held(&self.locked);
        others.retain(|lsn| !state.readers.values().any(|connected| connected == lsn));
        (state.readers.len() + state.pauses.len(), others)
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
