//! A unix socket inside a directory whose path may be longer than a socket's address can hold.

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, unlinkat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The socket's name inside the replica directory.
pub const SOCKET_FILE: &str = "control.sock";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The socket's address by way of the opened directory: short however deep the directory lies.
fn address(dir: BorrowedFd<'_>) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()))?)
}

fn stream_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Listens in `dir`. Only the owner may call it: a socket that is already there is a dead owner's and is replaced.
pub(super) fn listen_in(dir: BorrowedFd<'_>) -> io::Result<UnixListener> {
    remove(dir)?;
    let socket = stream_socket()?;
    // Before `bind`, which gives the file the mode of the socket: it is never open to others, not for a moment.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address(dir)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes the socket file, if it is there.
pub(super) fn remove(dir: BorrowedFd<'_>) -> io::Result<()> {
    match unlinkat(dir, SOCKET_FILE, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Connects to the socket in `dir`, waiting at most `patience` for room in the listener's queue.
pub(super) fn connect_in(dir: &Path, patience: Duration) -> io::Result<UnixStream> {
    let dir_fd = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let socket = stream_socket()?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    connect(&socket, &address(std::os::fd::AsFd::as_fd(&dir_fd))?)?;
    Ok(socket.into())
}
