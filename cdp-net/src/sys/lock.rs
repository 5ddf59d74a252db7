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

fn flock(kind: Kind, byte: i64) -> libc::flock {
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    };
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Takes a lock on `byte`, held until the open file is closed; never waits.
///
/// # Errors
/// `WouldBlock` when somebody else holds it in a way that excludes this.
pub fn take(file: BorrowedFd<'_>, kind: Kind, byte: i64) -> io::Result<()> {
    let lock = flock(kind, byte);
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
    let mut lock = flock(kind, byte);
    // SAFETY: the descriptor is open for the length of the borrow, and `lock` is ours alone while the call writes to it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as i16)
}
