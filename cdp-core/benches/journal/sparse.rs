//! Storage that leaves frames out: segments with real footers, and holes where frames would be. What is in holes reads as zeros, so
//! that records of zeros verify.

use cdp_core::media::{File, Result, Storage};
use cdp_core::types::Extent;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Syncs nothing either: the data is made to be read, not to last.
#[derive(Debug)]
pub(crate) struct Sparse {
    inner: Arc<dyn Storage>,
    /// From now on frames are written too.
    pub(crate) whole: Arc<AtomicBool>,
}

#[derive(Debug)]
struct SparseFile {
    inner: Arc<dyn File>,
    segment: bool,
    whole: Arc<AtomicBool>,
}

impl Sparse {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, whole: Arc::default() }
    }

    fn file(&self, name: &str, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(SparseFile { inner, segment: name.ends_with(".seg"), whole: Arc::clone(&self.whole) })
    }
}

impl Storage for Sparse {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        Ok(self.file(name, self.inner.create(name)?))
    }
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>> {
        Ok(self.file(name, self.inner.open(name, write)?))
    }
    fn length(&self, name: &str) -> Result<u64> {
        self.inner.length(name)
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
    fn sync_dir(&self, _: &str) -> Result<()> {
        Ok(())
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

impl File for SparseFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.inner.read_vectored_at(offset, out)
    }
    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        let begins = |magic: &[u8]| data.first().is_some_and(|piece| piece.starts_with(magic));
        if !self.segment || self.whole.load(Ordering::Relaxed) || begins(b"CDPSEGM") || begins(b"CDPBLOK") {
            self.inner.write_vectored_at(offset, data)
        } else if begins(b"CDPOPEN") {
            self.inner.write_vectored_at(offset, &data[..1])
        } else {
            Ok(())
        }
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> Result<()> {
        self.inner.set_len(length)
    }
    fn preallocate(&self, range: Extent) -> Result<()> {
        self.inner.set_len(range.end())
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
