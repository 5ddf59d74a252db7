//! Storage in memory: sparse, so that tests may have large disks; bounded by a capacity, so that "full" can be tested.

use super::{File, MediaError, MediaErrorKind, Operation, Result, Storage, is_inside, join};
use crate::types::Extent;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Bytes of one run of memory.
const PAGE: u64 = 256 << 10;

type Files = Mutex<BTreeMap<String, Arc<MemoryFile>>>;

/// A directory in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    files: Arc<Files>,
    prefix: String,
    capacity: Arc<Mutex<u64>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with_capacity(u64::MAX)
    }
}

impl Memory {
    /// An empty directory without a bound.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory that holds at most `bytes` (lengths count, holes too).
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        Self { files: Arc::default(), prefix: String::new(), capacity: Arc::new(Mutex::new(bytes)) }
    }

    /// Changes the bound.
    pub fn set_capacity(&self, bytes: u64) {
        *lock(&self.capacity) = bytes;
    }

    fn full(&self, name: &str, operation: Operation) -> Result<String> {
        let full = join(&self.prefix, name);
        if is_inside(name) { Ok(full) } else { Err(error(MediaErrorKind::Io, operation, &full, "not a name")) }
    }

    fn room(&self) -> Room {
        Room { files: Arc::downgrade(&self.files), capacity: Arc::clone(&self.capacity) }
    }
}

/// What all files may take together. It does not keep them: a file that kept its directory would keep itself.
struct Room {
    files: Weak<Files>,
    capacity: Arc<Mutex<u64>>,
}

impl Room {
    fn free_bytes(&self) -> u64 {
        let capacity = *lock(&self.capacity);
        if capacity == u64::MAX {
            return capacity;
        }
        let used = |file: &Arc<MemoryFile>| file.read_pages().length;
        capacity.saturating_sub(self.files.upgrade().map_or(0, |files| lock(&files).values().map(used).sum()))
    }
}

impl Storage for Memory {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        let path = self.full(name, Operation::Create)?;
        let mut files = lock(&self.files);
        if files.contains_key(&path) {
            return Err(error(MediaErrorKind::Exists, Operation::Create, &path, "the name is taken"));
        }
        let file = Arc::new(MemoryFile { path: path.clone(), pages: RwLock::default(), room: self.room() });
        files.insert(path, Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str, _write: bool) -> Result<Arc<dyn File>> {
        let path = self.full(name, Operation::Open)?;
        match lock(&self.files).get(&path) {
            Some(file) => Ok(Arc::clone(file) as Arc<dyn File>),
            None => Err(error(MediaErrorKind::NotFound, Operation::Open, &path, "no such file")),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.full(from, Operation::Rename)?, self.full(to, Operation::Rename)?);
        let mut files = lock(&self.files);
        let missing = || error(MediaErrorKind::NotFound, Operation::Rename, &from, "no such file");
        let file = files.remove(&from).ok_or_else(missing)?;
        files.insert(to, file);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.full(name, Operation::Remove)?;
        let missing = || error(MediaErrorKind::NotFound, Operation::Remove, &path, "no such file");
        lock(&self.files).remove(&path).map(|_| ()).ok_or_else(missing)
    }

    fn sync_dir(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn remove_dir(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn list(&self, name: &str) -> Result<Vec<String>> {
        let directory = self.full(name, Operation::List)?;
        let prefix = if directory.is_empty() { directory } else { directory + "/" };
        let files = lock(&self.files);
        let below = files.keys().filter_map(|path| path.strip_prefix(&prefix));
        let mut names: Vec<_> = below.map(|rest| rest.split('/').next().unwrap_or(rest).to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.room().free_bytes())
    }

    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.look_in(name)
    }

    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self { prefix: self.full(name, Operation::Open)?, ..self.clone() }))
    }

    fn path(&self) -> String {
        join("memory:", &self.prefix)
    }
}

#[derive(Default)]
struct Pages {
    length: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

struct MemoryFile {
    path: String,
    pages: RwLock<Pages>,
    room: Room,
}

impl std::fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl MemoryFile {
    fn write_pages(&self) -> std::sync::RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_pages(&self) -> std::sync::RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses growth past the capacity.
    fn check_room(&self, end: u64, operation: Operation) -> Result<()> {
        let length = self.read_pages().length;
        if end > length && end - length > self.room.free_bytes() {
            return Err(error(MediaErrorKind::NoSpace, operation, &self.path, "no space left"));
        }
        Ok(())
    }
}

/// The page, the offset in it and the count of bytes for the next step of a transfer.
fn step(at: u64, left: usize) -> (u64, usize, usize) {
    let inside = (at % PAGE) as usize;
    (at / PAGE, inside, left.min(PAGE as usize - inside))
}

impl File for MemoryFile {
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let pages = self.read_pages();
        let mut at = offset;
        for buffer in out {
            let mut done = 0;
            while done < buffer.len() && at < pages.length {
                let left = (buffer.len() - done).min((pages.length - at) as usize);
                let (page, inside, count) = step(at, left);
                let to = &mut buffer[done..done + count];
                match pages.pages.get(&page) {
                    Some(bytes) => to.copy_from_slice(&bytes[inside..inside + count]),
                    None => to.fill(0),
                }
                done += count;
                at += count as u64;
            }
        }
        Ok((at - offset) as usize)
    }

    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        let total: usize = data.iter().map(|slice| slice.len()).sum();
        self.check_room(offset + total as u64, Operation::Write)?;
        let mut pages = self.write_pages();
        let mut at = offset;
        for buffer in data {
            let mut done = 0;
            while done < buffer.len() {
                let (page, inside, count) = step(at, buffer.len() - done);
                let bytes = pages.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
                bytes[inside..inside + count].copy_from_slice(&buffer[done..done + count]);
                done += count;
                at += count as u64;
            }
        }
        pages.length = pages.length.max(at);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.read_pages().length)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.check_room(length, Operation::SetLength)?;
        let cut = self.read_pages().length;
        if length < cut {
            self.punch(Extent::new(length, cut - length))?;
        }
        self.write_pages().length = length;
        Ok(())
    }

    fn preallocate(&self, range: Extent) -> Result<()> {
        self.check_room(range.end(), Operation::Preallocate)?;
        let mut pages = self.write_pages();
        pages.length = pages.length.max(range.end());
        Ok(())
    }

    fn punch(&self, range: Extent) -> Result<()> {
        let mut pages = self.write_pages();
        let whole = range.offset.div_ceil(PAGE)..range.end() / PAGE;
        let mut touched: Vec<u64> =
            pages.pages.range(range.offset / PAGE..range.end().div_ceil(PAGE)).map(|(n, _)| *n).collect();
        touched.retain(|number| {
            let inside = whole.contains(number);
            if inside {
                pages.pages.remove(number);
            }
            !inside
        });
        for number in touched {
            let page = Extent::new(number * PAGE, PAGE);
            if let (Some(part), Some(bytes)) = (page.intersect(&range), pages.pages.get_mut(&number)) {
                let from = (part.offset - page.offset) as usize;
                bytes[from..from + part.length as usize].fill(0);
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        let pages = self.read_pages();
        let Some((&first, _)) = pages.pages.range(offset / PAGE..).next() else { return Ok(None) };
        let mut end = first;
        while pages.pages.contains_key(&end) {
            end += 1;
        }
        let start = (first * PAGE).max(offset);
        let end = (end * PAGE).min(pages.length);
        Ok((start < end).then(|| Extent::new(start, end - start)))
    }

    fn path(&self) -> &str {
        &self.path
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(kind: MediaErrorKind, operation: Operation, path: &str, message: &str) -> MediaError {
    MediaError::new(kind, operation, path, 0, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_any_more_is_gone() {
        let storage = Memory::with_capacity(1 << 20);
        let file = storage.create("file").unwrap();
        file.write_all_at(0, &[1; 512]).unwrap();
        assert_eq!(storage.free_bytes().unwrap(), (1 << 20) - 512);
        let left = Arc::downgrade(&storage.files);
        drop((file, storage));
        assert!(left.upgrade().is_none(), "its files hold it");
    }
}
