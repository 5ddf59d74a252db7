//! `READERS`: which moments are read, whoever owns the replica.
//!
//! The pin of a connection ends with the owner that gave it. So a reader also locks the byte of `READERS` whose number is the LSN of
//! his moment: the kernel keeps the lock as long as he lives and no longer, and every owner that comes finds it. The file is always
//! empty, is made by an owner before he answers the first who wants a pin, and never goes.

use crate::sys::lock;
use cdp_core::types::Lsn;
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The file whose locked bytes are the moments that are read.
pub const READERS_FILE: &str = "READERS";

/// The last byte that can be locked. It holds no moment: a lock on it looks like one without an end.
const LAST: i64 = i64::MAX;

fn open_in(dir: &Path, create: OFlags) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | create;
    // As the control socket: nobody else keeps history from its end.
    open(dir.join(READERS_FILE), flags, Mode::from_raw_mode(0o600)).ok().map(Into::into)
}

/// A moment that every owner keeps for this reader, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Reader {
    /// Its open file description carries the lock. One for each: locks of one description that touch become one.
    _locked: File,
}

impl Reader {
    /// Begins to hold what the present owner has pinned. None where there is no such file or no such locks, as where the owner found
    /// no room to make it: then there is the pin alone.
    #[must_use]
    pub fn begin(dir: &Path, lsn: Lsn) -> Option<Self> {
        let locked = open_in(dir, OFlags::empty())?;
        let byte = i64::try_from(lsn.0).ok().filter(|byte| *byte < LAST)?;
        lock::take(locked.as_fd(), lock::Kind::Shared, byte).ok()?;
        Some(Self { _locked: locked })
    }
}

/// The owner's look at who reads.
#[derive(Debug)]
pub(crate) struct Readers {
    dir: PathBuf,
    /// Once it is there.
    file: OnceLock<File>,
}

impl Readers {
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self { dir, file: OnceLock::new() }
    }

    fn file(&self, create: OFlags) -> Option<&File> {
        if self.file.get().is_none() {
            let _ = self.file.set(open_in(&self.dir, create)?);
        }
        self.file.get()
    }

    /// Makes the file, if there is room: who is pinned a moment next may lock it.
    pub(crate) fn make(&self) {
        let _ = self.file(OFlags::CREATE);
    }

    /// The moments that are read now, by readers that this owner or one before it pinned them for.
    pub(crate) fn moments(&self) -> BTreeSet<Lsn> {
        let mut moments = BTreeSet::new();
        let Some(file) = self.file(OFlags::empty()) else { return moments };
        // Between the locks that were found: never more than one more than there are, and each is a file that somebody has open.
        let mut between = vec![(0, LAST)];
        while let Some((first, last)) = between.pop() {
            let length = if last == LAST { 0 } else { last - first + 1 };
            // Where there are no such locks nobody has one.
            let found = lock::found(file.as_fd(), lock::Kind::Exclusive, first, length);
            let Ok(Some((start, length))) = found else { continue };
            let end = if length == 0 { LAST } else { start.saturating_add(length - 1) };
            // A longer one is none of ours.
            if length == 1 {
                moments.extend(u64::try_from(start).map(Lsn));
            }
            if start > first {
                between.push((first, start - 1));
            }
            if end < last {
                between.push((end + 1, last));
            }
        }
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_finds_whoever_reads_and_nobody_who_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Reader::begin(dir.path(), Lsn(5)).is_none(), "there is nothing to lock");
        let readers = Readers::of(dir.path().to_owned());
        assert!(readers.moments().is_empty());
        readers.make();
        let numbers = [7, 0, 6, 1 << 40, 7, 5].map(Lsn);
        let mut reading: Vec<_> = numbers.iter().map(|lsn| Reader::begin(dir.path(), *lsn).unwrap()).collect();
        let next = Readers::of(dir.path().to_owned());
        for owner in [&readers, &next] {
            assert_eq!(owner.moments(), BTreeSet::from(numbers), "neighbours are two");
        }
        // Of two who read the same one does not end it for the other.
        drop(reading.remove(0));
        assert_eq!(next.moments(), BTreeSet::from(numbers));
        drop(reading.remove(3));
        assert_eq!(next.moments(), BTreeSet::from([0, 6, 1 << 40, 5].map(Lsn)));
        drop(reading);
        assert!(next.moments().is_empty());
        for beyond in [LAST as u64, u64::MAX] {
            assert!(Reader::begin(dir.path(), Lsn(beyond)).is_none(), "no byte has that number");
        }
    }

    #[test]
    fn locks_that_no_reader_takes_hold_nothing_and_hide_nobody_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let readers = Readers::of(dir.path().to_owned());
        readers.make();
        let stranger = open_in(dir.path(), OFlags::empty()).unwrap();
        (20..30).for_each(|byte| lock::take(stranger.as_fd(), lock::Kind::Shared, byte).unwrap());
        lock::take(stranger.as_fd(), lock::Kind::Shared, LAST).unwrap();
        let numbers = [19, 30, LAST as u64 - 1].map(Lsn);
        let _reading = numbers.map(|lsn| Reader::begin(dir.path(), lsn).unwrap());
        assert_eq!(readers.moments(), BTreeSet::from(numbers));
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join(READERS_FILE)).unwrap();
        let readers = Readers::of(dir.path().to_owned());
        readers.make();
        assert!(Reader::begin(dir.path(), Lsn(1)).is_none() && readers.moments().is_empty());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
