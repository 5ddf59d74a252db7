//! Storage that fails, or hangs, on demand: what a test wraps around another one to see what its errors do.

use super::{File, MediaError, MediaErrorKind, Operation, Result, Storage, join};
use crate::types::Extent;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Which operations fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// Only on files whose path holds this; empty: on all.
    pub path: String,
    /// Only where it touches this range; none: anywhere.
    pub range: Option<Extent>,
    /// So many matching operations succeed before the first that fails.
    pub after: u64,
    /// So many fail, then the fault is over; `u64::MAX`: for ever.
    pub count: u64,
    /// What the caller sees.
    pub kind: MediaErrorKind,
}

impl Fault {
    /// Every `operation` on paths that hold `path` fails as `kind`, from now on.
    #[must_use]
    pub fn always(operation: Operation, path: &str, kind: MediaErrorKind) -> Self {
        Self { operation, path: path.to_owned(), range: None, after: 0, count: u64::MAX, kind }
    }

    /// The next one fails, then no more.
    #[must_use]
    pub fn once(operation: Operation, path: &str, kind: MediaErrorKind) -> Self {
        Self { count: 1, ..Self::always(operation, path, kind) }
    }
}

/// The list of faults; clones share it, so that a test keeps one to change it.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    fired: u64,
    /// What hangs, by the numbers of their holds.
    held: Vec<(u64, Operation, String)>,
    holds: u64,
    hanging: usize,
}

/// As long as it is there, some operations hang.
#[derive(Debug)]
#[must_use = "what is held is released when this is dropped"]
pub struct Hang {
    faults: Faults,
    number: u64,
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.faults.lock().held.retain(|(number, ..)| *number != self.number);
        self.faults.0.released.notify_all();
    }
}

impl Faults {
    /// Adds one.
    pub fn add(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Everything works again.
    pub fn clear(&self) {
        self.lock().faults.clear();
    }

    /// How many operations failed so far: a test whose fault never met anything proves nothing.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.lock().fired
    }

    /// From now on every `operation` on paths that hold `path` hangs, until what this gives is dropped.
    pub fn hold(&self, operation: Operation, path: &str) -> Hang {
        let mut state = self.lock();
        state.holds += 1;
        let number = state.holds;
        state.held.push((number, operation, path.to_owned()));
        Hang { faults: self.clone(), number }
    }

    /// How many operations hang now.
    #[must_use]
    pub fn hanging(&self) -> usize {
        self.lock().hanging
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, operation: Operation, path: &str, touched: Extent) -> Result<()> {
        let mut state = self.lock();
        state.hanging += 1;
        while state.held.iter().any(|(_, held, of)| *held == operation && path.contains(of.as_str())) {
            state = self.0.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.hanging -= 1;
        let State { faults, fired, .. } = &mut *state;
        for fault in faults {
            let there = fault.range.is_none_or(|range| range.overlaps(&touched));
            if fault.operation != operation || !path.contains(&fault.path) || !there || fault.count == 0 {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.count = fault.count.saturating_sub(u64::from(fault.count != u64::MAX));
            *fired += 1;
            return Err(MediaError::new(fault.kind, operation, path, touched.offset, "injected by a test"));
        }
        Ok(())
    }
}

/// A storage whose operations fail as its [`Faults`] say.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    faults: Faults,
}

impl Faulty {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn check(&self, operation: Operation, name: &str) -> Result<()> {
        self.faults.check(operation, &join(&self.inner.path(), name), Extent::new(0, 0))
    }

    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner: file, faults: self.faults.clone() })
    }
}

impl Storage for Faulty {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        self.check(Operation::Create, name)?;
        self.inner.create(name).map(|file| self.wrap(file))
    }
    fn create_streamed(&self, name: &str) -> Result<Arc<dyn File>> {
        self.check(Operation::Create, name)?;
        self.inner.create_streamed(name).map(|file| self.wrap(file))
    }
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>> {
        self.check(Operation::Open, name)?;
        self.inner.open(name, write).map(|file| self.wrap(file))
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.check(Operation::Rename, from)?;
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.check(Operation::Remove, name)?;
        self.inner.remove(name)
    }
    fn remove_dir(&self, name: &str) -> Result<()> {
        self.check(Operation::Remove, name)?;
        self.inner.remove_dir(name)
    }
    fn sync_dir(&self, name: &str) -> Result<()> {
        self.check(Operation::SyncDir, name)?;
        self.inner.sync_dir(name)
    }
    fn list(&self, name: &str) -> Result<Vec<String>> {
        self.check(Operation::List, name)?;
        self.inner.list(name)
    }
    fn free_bytes(&self) -> Result<u64> {
        self.check(Operation::Free, "")?;
        self.inner.free_bytes()
    }
    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self { inner: self.inner.sub(name)?, faults: self.faults.clone() }))
    }
    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self { inner: self.inner.look_in(name)?, faults: self.faults.clone() }))
    }
    fn path(&self) -> String {
        self.inner.path()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    faults: Faults,
}

impl FaultyFile {
    fn check(&self, operation: Operation, offset: u64, length: u64) -> Result<()> {
        self.faults.check(operation, self.inner.path(), Extent::new(offset, length))
    }
}

impl File for FaultyFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.check(Operation::Read, offset, out.iter().map(|slice| slice.len() as u64).sum())?;
        self.inner.read_vectored_at(offset, out)
    }
    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        self.check(Operation::Write, offset, data.iter().map(|slice| slice.len() as u64).sum())?;
        self.inner.write_vectored_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        self.check(Operation::Sync, 0, 0)?;
        self.inner.sync()
    }
    fn len(&self) -> Result<u64> {
        self.check(Operation::Length, 0, 0)?;
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> Result<()> {
        self.check(Operation::SetLength, length, 0)?;
        self.inner.set_len(length)
    }
    fn preallocate(&self, range: Extent) -> Result<()> {
        self.check(Operation::Preallocate, range.offset, range.length)?;
        self.inner.preallocate(range)
    }
    fn punch(&self, range: Extent) -> Result<()> {
        self.check(Operation::Punch, range.offset, range.length)?;
        self.inner.punch(range)
    }
    fn will_need(&self, range: Extent) {
        self.inner.will_need(range);
    }

    fn will_sync(&self, range: Extent) {
        self.inner.will_sync(range);
    }
    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        self.check(Operation::Seek, offset, 0)?;
        self.inner.next_data(offset)
    }
    fn path(&self) -> &str {
        self.inner.path()
    }
}
