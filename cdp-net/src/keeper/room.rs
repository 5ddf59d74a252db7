//! Lack of room at the replica: how much is needed, and media that are waited for.
//!
//! The journal waits by itself; the first copy writes through a [`Patient`] storage, whose writes are tried again until there
//! is room. The same bytes go to the same place, and nothing of them was synced before, so nothing can have been dropped. A
//! sync is never tried again: one that finds no room is an error here as elsewhere.

use crate::host::Host;
use crate::threads::pause;
use cdp_core::media::{File, MediaError, MediaErrorKind, Operation, Result, Storage};
use cdp_core::types::Extent;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long media without room, or a read that failed, are left alone.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// How many bytes have to be free before something goes on, while it waits.
#[derive(Debug, Default)]
pub struct Lack {
    needed: AtomicU64,
    /// It was the quota that left no room for so much.
    of_quota: AtomicU64,
}

impl Lack {
    /// It waits until so much is free.
    pub(super) fn set(&self, bytes: u64) {
        self.needed.store(bytes.max(1), Ordering::Relaxed);
    }

    /// It goes on.
    pub(super) fn clear(&self) {
        self.needed.store(0, Ordering::Relaxed);
    }

    /// The quota leaves no room for so much, or does for what was asked last: 0.
    pub(super) fn set_of_quota(&self, bytes: u64) {
        self.of_quota.store(bytes, Ordering::Relaxed);
    }

    /// What the quota leaves no room for, in bytes; 0: it is not the quota.
    pub(super) fn of_quota(&self) -> u64 {
        self.of_quota.load(Ordering::Relaxed)
    }

    /// What has to be free, in bytes; `None`: nothing waits for room.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        Some(self.needed.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

/// Refuses a segment for which the quota has no room.
pub(super) fn admit(host: &Host, lack: &Lack, name: &str, bytes: u64) -> Result<()> {
    let left = host.quota_left().filter(|left| *left < bytes);
    lack.set_of_quota(if left.is_some() { bytes } else { 0 });
    let Some(left) = left else { return Ok(()) };
    let message = format!("the quota leaves {left} bytes, {bytes} are needed");
    Err(MediaError::new(MediaErrorKind::NoSpace, Operation::Create, name, 0, &message))
}

/// Who waits, and for how long: until the end is wished.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) lack: Arc<Lack>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Waiting {
    /// Tries until there is room for `bytes`, or the end is wished.
    fn until_room<T>(&self, bytes: u64, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match attempt() {
                Err(error) if error.is_no_space() && !self.stop.load(Ordering::Relaxed) => {
                    self.lack.set(bytes);
                    pause(&self.stop, RETRY);
                }
                outcome => {
                    self.lack.clear();
                    return outcome;
                }
            }
        }
    }
}

/// A storage whose writes wait for room.
#[derive(Debug)]
pub(super) struct Patient {
    pub(super) inner: Arc<dyn Storage>,
    pub(super) waiting: Waiting,
}

impl Patient {
    fn wrap(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(PatientFile { inner, waiting: self.waiting.clone() })
    }
}

impl Storage for Patient {
    fn create_streamed(&self, name: &str) -> Result<Arc<dyn File>> {
        self.waiting.until_room(1, || self.inner.create_streamed(name)).map(|file| self.wrap(file))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        self.waiting.until_room(1, || self.inner.create(name)).map(|file| self.wrap(file))
    }
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>> {
        self.inner.open(name, write).map(|file| self.wrap(file))
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.waiting.until_room(1, || self.inner.rename(from, to))
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
        let inner = self.inner.sub(name)?;
        Ok(Arc::new(Self { inner, waiting: self.waiting.clone() }))
    }
    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        let inner = self.inner.look_in(name)?;
        Ok(Arc::new(Self { inner, waiting: self.waiting.clone() }))
    }
    fn path(&self) -> String {
        self.inner.path()
    }
}

#[derive(Debug)]
struct PatientFile {
    inner: Arc<dyn File>,
    waiting: Waiting,
}

impl File for PatientFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        // What a first copy reads back may be long, and nobody wants it when the end is wished.
        if self.waiting.stop.load(Ordering::Relaxed) {
            let message = "the first copy is to end";
            return Err(MediaError::new(MediaErrorKind::Io, Operation::Read, self.path(), offset, message));
        }
        self.inner.read_vectored_at(offset, out)
    }
    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        let bytes = data.iter().map(|slice| slice.len() as u64).sum();
        self.waiting.until_room(bytes, || self.inner.write_vectored_at(offset, data))
    }
    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> Result<()> {
        self.waiting.until_room(1, || self.inner.set_len(length))
    }
    fn preallocate(&self, range: Extent) -> Result<()> {
        self.waiting.until_room(range.length, || self.inner.preallocate(range))
    }
    fn punch(&self, range: Extent) -> Result<()> {
        self.inner.punch(range)
    }
    fn will_need(&self, range: Extent) {
        self.inner.will_need(range);
    }
    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        self.inner.next_data(offset)
    }
    fn path(&self) -> &str {
        self.inner.path()
    }
}
