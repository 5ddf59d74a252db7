//! Storage that says what is done to it, and holds it up or panics where it is told to.

use cdp_core::media::{File, Operation, Result, Storage};
use cdp_core::types::Extent;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a test tells and is told. One that is dropped lets everything go: a test that fails must not wait for ever.
#[derive(Debug, Default)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

#[derive(Debug, Default)]
struct State {
    /// Files whose path ends so are held up at this operation.
    held: Vec<(Operation, &'static str)>,
    panics: Vec<(Operation, &'static str)>,
    /// How many are held up now.
    waiting: usize,
}

impl Gate {
    pub(crate) fn before(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(Watched { inner, gate: Arc::clone(&self.0) })
    }

    pub(crate) fn hold(&self, operation: Operation, path: &'static str) {
        self.0.lock().held.push((operation, path));
    }

    pub(crate) fn panic(&self, operation: Operation, path: &'static str) {
        self.0.lock().panics.push((operation, path));
    }

    pub(crate) fn release(&self) {
        self.0.lock().held.clear();
        self.0.changed.notify_all();
    }

    /// Waits until so many are held up.
    pub(crate) fn wait_for(&self, count: usize) {
        let state = self.0.lock();
        let (state, waited) =
            self.0.changed.wait_timeout_while(state, super::PATIENCE, |state| state.waiting < count).unwrap();
        assert!(!waited.timed_out(), "{} of {count} came", state.waiting);
    }
}

impl Shared {
    /// Whole at every step, also when a test fails.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, operation: Operation, path: &str) {
        let is_named =
            |list: &[(Operation, &str)]| list.iter().any(|(of, end)| *of == operation && path.ends_with(end));
        let mut state = self.lock();
        if is_named(&state.panics) {
            drop(state);
            panic!("the storage was told to panic");
        }
        state.waiting += 1;
        self.changed.notify_all();
        while is_named(&state.held) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }
}

/// A storage behind a gate.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Storage>,
    gate: Arc<Shared>,
}

#[derive(Debug)]
struct WatchedFile {
    inner: Arc<dyn File>,
    gate: Arc<Shared>,
}

impl Watched {
    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(WatchedFile { inner, gate: Arc::clone(&self.gate) })
    }
}

impl Storage for Watched {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        self.gate.pass(Operation::Create, name);
        Ok(self.file(self.inner.create(name)?))
    }
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>> {
        Ok(self.file(self.inner.open(name, write)?))
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }
    fn remove_dir(&self, name: &str) -> Result<()> {
        self.inner.remove_dir(name)
    }
    fn sync_dir(&self, name: &str) -> Result<()> {
        self.inner.sync_dir(name)
    }
    fn list(&self, name: &str) -> Result<Vec<String>> {
        self.inner.list(name)
    }
    fn free_bytes(&self) -> Result<u64> {
        self.inner.free_bytes()
    }
    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.inner.sub(name)
    }
    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.inner.look_in(name)
    }
    fn path(&self) -> String {
        self.inner.path()
    }
}

impl File for WatchedFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.inner.read_vectored_at(offset, out)
    }
    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        self.gate.pass(Operation::Write, self.path());
        self.inner.write_vectored_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        self.gate.pass(Operation::Sync, self.path());
        self.inner.sync()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> Result<()> {
        self.inner.set_len(length)
    }
    fn preallocate(&self, range: Extent) -> Result<()> {
        self.inner.preallocate(range)
    }
    fn punch(&self, range: Extent) -> Result<()> {
        self.inner.punch(range)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        self.inner.next_data(offset)
    }
    fn path(&self) -> &str {
        self.inner.path()
    }
}
