//! Byte-range locks that belong to an open file (`F_OFD_SETLK`), as QEMU takes them on disk images.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A lock on one byte of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Others may hold it as well.
    Shared,
    /// Nobody else may hold it.
    Exclusive,
}

fn flock(kind: Kind, start: i64, length: i64) -> libc::flock {
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    };
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

/// Takes a lock on `byte`, held until the open file is closed; never waits.
///
/// # Errors
/// `WouldBlock` when somebody else holds it in a way that excludes this.
pub fn take(file: BorrowedFd<'_>, kind: Kind, byte: i64) -> io::Result<()> {
    let lock = flock(kind, byte, 1);
    // SAFETY: the descriptor is open for the length of the borrow, and `lock` outlives the call, which only reads it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(if error.raw_os_error() == Some(libc::EACCES) { io::ErrorKind::WouldBlock.into() } else { error })
}

/// Whether somebody else holds a lock on `byte` that excludes one of this kind.
///
/// # Errors
/// When the file system has no such locks.
pub fn is_held(file: BorrowedFd<'_>, kind: Kind, byte: i64) -> io::Result<bool> {
    found(file, kind, byte, 1).map(|found| found.is_some())
}

/// A lock that somebody else holds among these bytes (length 0: all from `start` on) and that excludes one of this kind: where it
/// begins and its length, 0 if it has no end. Which one of several is not said.
///
/// # Errors
/// When the file system has no such locks.
pub fn found(file: BorrowedFd<'_>, kind: Kind, start: i64, length: i64) -> io::Result<Option<(i64, i64)>> {
    let mut lock = flock(kind, start, length);
    // SAFETY: the descriptor is open for the length of the borrow, and `lock` is ours alone while the call writes to it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((lock.l_type != libc::F_UNLCK as i16).then_some((lock.l_start, lock.l_len)))
}
