//! The lock of a replica directory.

use crate::clock;
use cdp_core::types::WallTime;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use thiserror::Error;

/// The file whose lock makes a process the owner.
pub const LOCK_FILE: &str = "LOCK";

/// How often and how long to wait for a lock that somebody may only be looking at ([`is_owned`] holds it for microseconds).
const RETRIES: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(10), Duration::from_millis(20)];

/// The most bytes of `LOCK` that are read to name its owner.
const LOCK_TEXT_MAX: u64 = 512;

/// The right to change a replica directory, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Owner {
    dir: PathBuf,
    dir_fd: OwnedFd,
    since: WallTime,
    /// Nobody writes to the directory's media: it is shared with others who read there.
    read_only: bool,
    /// Its open file description carries the lock.
    lock: File,
}

/// Why a process cannot be the owner.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// Another process is.
    #[error("{} belongs to {}{}", dir.display(), owner_text(*pid), since_text(*since))]
    Owned {
        /// The replica directory.
        dir: PathBuf,
        /// Its owner, if the lock file says it (an owner that has just begun may not have written it yet).
        pid: Option<u32>,
        /// When the owner took the lock.
        since: Option<WallTime>,
    },
    /// The directory or the lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn owner_text(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

fn since_text(since: Option<WallTime>) -> String {
    since.map_or_else(String::new, |since| format!(" since {since}"))
}

impl Owner {
    /// Takes the lock of `dir`, which must exist. Waits a few hundredths of a second at most.
    ///
    /// # Errors
    /// [`OwnerError::Owned`] when another process (or another `Owner` of this one) has it.
    pub fn acquire(dir: &Path) -> Result<Self, OwnerError> {
        let (dir_fd, mut lock) = open(dir, OFlags::CREATE)?;
        if !try_lock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|source| io_error(dir, source))? {
            let (pid, since) = read_text(&mut lock);
            return Err(OwnerError::Owned { dir: dir.to_owned(), pid, since });
        }
        let since = clock::wall();
        match write_text(&mut lock, since) {
            // The lock is what counts. Where there is no room for its owner's name, it has none.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
            written => written.map_err(|source| io_error(dir, source))?,
        }
        Ok(Self { dir: dir.to_owned(), dir_fd, since, read_only: false, lock })
    }

    /// Takes the lock of `dir`, on media that nobody writes to, to read there. Others who read have it too; who may change the
    /// directory by another mount of it has not. Waits as [`Owner::acquire`] does.
    ///
    /// # Errors
    /// [`OwnerError::Owned`] when somebody may change it.
    pub fn acquire_to_read(dir: &Path) -> Result<Self, OwnerError> {
        let (dir_fd, mut lock) = match open(dir, OFlags::empty()) {
            // A copy may have come there without it: then the directory itself is as good.
            Err(OwnerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let dir_fd = open_directory(dir)?;
                let lock = dir_fd.try_clone().map_err(|source| io_error(dir, source))?;
                (dir_fd, lock.into())
            }
            opened => opened?,
        };
        if !try_lock(&lock, FlockOperation::NonBlockingLockShared).map_err(|source| io_error(dir, source))? {
            let (pid, since) = read_text(&mut lock);
            return Err(OwnerError::Owned { dir: dir.to_owned(), pid, since });
        }
        Ok(Self { dir: dir.to_owned(), dir_fd, since: clock::wall(), read_only: true, lock })
    }

    /// Whether the right is only to read: nothing can be written there, not even a socket to be asked by.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The replica directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the lock that is held is the one that others find: not after somebody removed, replaced or renamed the directory.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let held = rustix::fs::fstat(&self.lock);
        let found = rustix::fs::stat(self.dir.join(LOCK_FILE));
        matches!((held, found), (Ok(held), Ok(found)) if (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino))
    }

    /// When the lock was taken, by the wall clock.
    #[must_use]
    pub fn since(&self) -> WallTime {
        self.since
    }
}

impl AsFd for Owner {
    /// The directory, opened: paths through it stay right when somebody renames it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir_fd.as_fd()
    }
}

/// Whether `dir` has an owner now. The answer may be old when it arrives: to act on a directory, acquire it.
///
/// # Errors
/// When the directory or its lock file cannot be opened; a directory without a lock file has no owner.
pub fn is_owned(dir: &Path) -> Result<bool, OwnerError> {
    match open(dir, OFlags::empty()) {
        // A shared lock, so that two who look do not see each other.
        Ok((_, lock)) => {
            try_lock(&lock, FlockOperation::NonBlockingLockShared).map(|free| !free).map_err(|e| io_error(dir, e))
        }
        Err(OwnerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && dir.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

impl OwnerError {
    /// Whether there is no lock because nobody writes to these media.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

fn io_error(dir: &Path, source: io::Error) -> OwnerError {
    OwnerError::Io { path: dir.join(LOCK_FILE), source }
}

fn open_directory(dir: &Path) -> Result<OwnedFd, OwnerError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|errno| OwnerError::Io { path: dir.to_owned(), source: errno.into() })
}

fn open(dir: &Path, create: OFlags) -> Result<(OwnedFd, File), OwnerError> {
    let dir_fd = open_directory(dir)?;
    // Whoever only looks (no CREATE) may not be allowed to write.
    let access = if create.is_empty() { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | create;
    let lock =
        openat(&dir_fd, LOCK_FILE, flags, Mode::from_raw_mode(0o644)).map_err(|errno| io_error(dir, errno.into()))?;
    Ok((dir_fd, lock.into()))
}

fn try_lock(lock: &File, operation: FlockOperation) -> io::Result<bool> {
    for wait in RETRIES.into_iter().map(Some).chain([None]) {
        match flock(lock, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        wait.into_iter().for_each(sleep);
    }
    Ok(false)
}

fn write_text(lock: &mut File, since: WallTime) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    // One write, so that a reader sees all of it or nothing.
    lock.write_all(format!("pid {}\nsince {since}\n", std::process::id()).as_bytes())
}

fn read_text(lock: &mut File) -> (Option<u32>, Option<WallTime>) {
    let mut text = String::new();
    if lock.take(LOCK_TEXT_MAX).read_to_string(&mut text).is_err() {
        return (None, None);
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    (field("pid ").and_then(|pid| pid.parse().ok()), field("since ").and_then(|since| since.parse().ok()))
}
