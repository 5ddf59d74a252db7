//! A cache bounded in bytes. A hit takes a shared lock and sets a mark, so that many readers do not wait for each other; what
//! was not asked for since a hand last came by goes first (second chance).

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// That a value was asked for since the hand came by. Who finds the value without the cache sets it himself.
#[derive(Clone, Default, Debug)]
pub(super) struct Used(Arc<AtomicBool>);

impl Used {
    pub(super) fn set(&self) {
        // Most often it is set: what many read is then not written.
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Held<V> {
    value: V,
    bytes: u64,
    used: Used,
}

#[derive(Debug)]
struct State<K, V> {
    held: BTreeMap<K, Held<V>>,
    bytes: u64,
    /// Where the hand stands: it goes on behind this key.
    hand: Option<K>,
}

/// Shared by many readers; values are cheap to clone.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    state: RwLock<State<K, V>>,
    bytes_max: u64,
}

impl<K: Ord + Copy, V: Clone> Cache<K, V> {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { state: RwLock::new(State { held: BTreeMap::new(), bytes: 0, hand: None }), bytes_max }
    }

    fn shared(&self) -> RwLockReadGuard<'_, State<K, V>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, State<K, V>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a value where it is. What looks at it must not wait for anybody who waits for this cache.
    pub(super) fn with<T>(&self, key: K, look: impl FnOnce(&V) -> T) -> Option<T> {
        let state = self.shared();
        let held = state.held.get(&key)?;
        held.used.set();
        Some(look(&held.value))
    }

    /// What to set for what is kept under a key, for who finds it without asking here.
    pub(super) fn used(&self, key: K) -> Option<Used> {
        self.shared().held.get(&key).map(|held| held.used.clone())
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        self.with(key, V::clone)
    }

    /// Lets go of what is kept under a key.
    pub(super) fn remove(&self, key: K) {
        let mut state = self.alone();
        if let Some(held) = state.held.remove(&key) {
            state.bytes -= held.bytes;
        }
    }

    /// Keeps a value that stands for so many bytes; one already there under the key wins and is given back.
    pub(super) fn put(&self, key: K, value: V, bytes: u64) -> V {
        let mut state = self.alone();
        if let Some(held) = state.held.get(&key) {
            return held.value.clone();
        }
        state.bytes += bytes;
        state.held.insert(key, Held { value: value.clone(), bytes, used: Used::default() });
        state.shrink(key, self.bytes_max);
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
        let mut state = self.alone();
        if let Some(held) = state.held.get_mut(&key) {
            let before = std::mem::replace(&mut held.bytes, bytes);
            state.bytes = state.bytes - before + bytes;
            state.shrink(key, self.bytes_max);
        }
    }

    /// What is kept under keys of a range.
    pub(super) fn range(&self, keys: impl RangeBounds<K>) -> Vec<(K, V)> {
        self.shared().held.range(keys).map(|(key, held)| (*key, held.value.clone())).collect()
    }
}

impl<K: Ord + Copy, V> State<K, V> {
    /// Lets go of values until the bound holds, but for the one that is wanted now.
    fn shrink(&mut self, keep: K, bytes_max: u64) {
        while self.bytes > bytes_max && self.held.len() > 1 {
            let behind = self.hand.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.held.range((behind, Bound::Unbounded)).next().or(self.held.first_key_value());
            let Some((&key, held)) = next else { break };
            self.hand = Some(key);
            if key == keep || held.used.0.swap(false, Ordering::Relaxed) {
                continue;
            }
            if let Some(held) = self.held.remove(&key) {
                self.bytes -= held.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Cache::new(10);
        for key in 0..5 {
            cache.put(key, key, 3);
            let _ = cache.get(0);
        }
        assert_eq!(cache.range(..).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!(cache.put(0, 9, 3), 0);
        assert_eq!(cache.get_or(7, || Ok::<_, ()>((7, 3))), Ok(7));
        assert_eq!(cache.get_or(8, || Err("no")), Err("no"));
        // What is let go of counts no more: all that is left stays when something comes in its place.
        let left: Vec<_> = cache.range(..).into_iter().map(|(key, _)| key).collect();
        cache.remove(left[0]);
        cache.remove(99);
        cache.put(20, 20, 3);
        let now: Vec<_> = cache.range(..).into_iter().map(|(key, _)| key).collect();
        assert_eq!(now, [&left[1..], &[20]].concat());
    }

    proptest! {
        /// Whatever is asked: what is kept was put, counts for what was said last, and is within the bound; what was put or
        /// recounted last stays even where it alone is beyond it.
        #[test]
        fn the_bound_holds(ops in prop::collection::vec((0u8..4, 0u8..20, 0u64..40), 1..200)) {
            let (cache, mut model) = (Cache::new(100), BTreeMap::new());
            for (op, key, bytes) in ops {
                match op {
                    0 | 1 => {
                        let was = cache.get(key);
                        prop_assert_eq!(cache.put(key, (key, bytes), bytes).0, key);
                        if was.is_none() {
                            model.insert(key, bytes);
                        }
                        prop_assert!(cache.get(key).is_some());
                    }
                    2 => {
                        cache.recount(key, bytes * 5);
                        model.entry(key).and_modify(|counted| *counted = bytes * 5);
                    }
                    _ => drop(cache.get(key)),
                }
                let state = cache.shared();
                model.retain(|key, _| state.held.contains_key(key));
                let counted = state.held.iter().map(|(key, held)| (*key, held.bytes)).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(&counted, &model);
                prop_assert_eq!(state.bytes, counted.values().sum::<u64>());
                prop_assert!(state.bytes <= 100 || counted.len() == 1, "{} bytes in {}", state.bytes, counted.len());
                prop_assert!(state.held.values().all(|held| held.value.1 <= 40));
            }
        }
    }
}
