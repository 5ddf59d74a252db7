//! A cache bounded in bytes; what was used longest ago goes first.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
struct Held<V> {
    value: V,
    bytes: u64,
    used: u64,
}

#[derive(Debug)]
struct State<K, V> {
    held: BTreeMap<K, Held<V>>,
    by_use: BTreeMap<u64, K>,
    bytes: u64,
    clock: u64,
}

/// Shared by many readers; values are cheap to clone.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    state: Mutex<State<K, V>>,
    bytes_max: u64,
}

impl<K: Ord + Copy, V: Clone> Cache<K, V> {
    pub(super) fn new(bytes_max: u64) -> Self {
        let state = State { held: BTreeMap::new(), by_use: BTreeMap::new(), bytes: 0, clock: 0 };
        Self { state: Mutex::new(state), bytes_max }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        let mut guard = self.state();
        let state = &mut *guard;
        let held = state.held.get_mut(&key)?;
        state.clock += 1;
        state.by_use.remove(&held.used);
        held.used = state.clock;
        state.by_use.insert(held.used, key);
        Some(held.value.clone())
    }

    /// Lets go of what is kept under a key.
    pub(super) fn remove(&self, key: K) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(held) = state.held.remove(&key) {
            state.by_use.remove(&held.used);
            state.bytes -= held.bytes;
        }
    }

    /// Keeps a value that stands for so many bytes; one already there under the key wins and is given back.
    pub(super) fn put(&self, key: K, value: V, bytes: u64) -> V {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(held) = state.held.get(&key) {
            return held.value.clone();
        }
        state.clock += 1;
        let used = state.clock;
        state.by_use.insert(used, key);
        state.bytes += bytes;
        state.held.insert(key, Held { value: value.clone(), bytes, used });
        while state.bytes > self.bytes_max && state.held.len() > 1 {
            let Some((_, key)) = state.by_use.pop_first() else { break };
            if let Some(held) = state.held.remove(&key) {
                state.bytes -= held.bytes;
            }
        }
        value
    }

    /// The value, made if it is not there. Two callers may make it at once; one of the two is kept.
    pub(super) fn get_or<E>(&self, key: K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<V, E> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let (value, bytes) = make()?;
        Ok(self.put(key, value, bytes))
    }

    /// Changes what a value counts for.
    pub(super) fn recount(&self, key: K, bytes: u64) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(held) = state.held.get_mut(&key) {
            state.bytes = state.bytes - held.bytes + bytes;
            held.bytes = bytes;
        }
    }

    /// All values.
    pub(super) fn values(&self) -> Vec<(K, V)> {
        self.state().held.iter().map(|(key, held)| (*key, held.value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Cache::new(10);
        for key in 0..5 {
            cache.put(key, key, 3);
            let _ = cache.get(0);
        }
        assert_eq!(cache.values().into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!(cache.put(0, 9, 3), 0);
        assert_eq!(cache.get_or(7, || Ok::<_, ()>((7, 3))), Ok(7));
        assert_eq!(cache.get_or(8, || Err("no")), Err("no"));
        // What is let go of counts no more: all that is left stays when something comes in its place.
        let left: Vec<_> = cache.values().into_iter().map(|(key, _)| key).collect();
        cache.remove(left[0]);
        cache.remove(99);
        cache.put(20, 20, 3);
        let now: Vec<_> = cache.values().into_iter().map(|(key, _)| key).collect();
        assert_eq!(now, [&left[1..], &[20]].concat());
    }
}
