//! Where a server listens: a TCP port or a unix socket's file, which lives exactly as long as the listener.

use super::socket::{Socket, wait_for};
use super::uri::Address;
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// How many ports are tried after one that is taken.
const PORTS_TRIED_MAX: u16 = 100;
const BACKLOG: i32 = 128;

/// Why a server cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("{address} is in use by another process")]
    InUse {
        /// Where.
        address: Address,
    },
    /// The path exists and is no socket; it is left alone.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener, Address),
    Unix { listener: UnixListener, path: PathBuf, inode: Option<(u64, u64)> },
}

impl Listener {
    /// Listens; with `next_free` a TCP port that is taken is replaced by one of the next hundred.
    pub(crate) fn bind(address: &Address, next_free: bool) -> Result<Self, ListenError> {
        match address {
            Address::Unix(path) => Self::bind_unix(path),
            Address::Tcp { host, port } => Self::bind_tcp(address, host, *port, next_free),
        }
    }

    fn bind_tcp(address: &Address, host: &str, port: u16, next_free: bool) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { address: address.clone(), source };
        let candidates: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
        let tries = if next_free && port != 0 { PORTS_TRIED_MAX } else { 0 };
        for step in 0..=tries {
            let Some(port) = port.checked_add(step) else { break };
            let ports = candidates.iter().map(|candidate| SocketAddr::new(candidate.ip(), port)).collect::<Vec<_>>();
            match TcpListener::bind(&ports[..]) {
                Ok(listener) => {
                    let port = listener.local_addr().map_err(failed)?.port();
                    listener.set_nonblocking(true).map_err(failed)?;
                    return Ok(Self::Tcp(listener, Address::Tcp { host: host.to_owned(), port }));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Err(ListenError::InUse { address: address.clone() })
    }

    fn bind_unix(path: &Path) -> Result<Self, ListenError> {
        let address = Address::Unix(path.to_owned());
        let failed = |source| ListenError::Io { address: address.clone(), source };
        let listener = match listen_unix(path) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_if_stale(path)?;
                listen_unix(path).map_err(failed)?
            }
            Err(source) => return Err(failed(source)),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        Ok(Self::Unix { listener, path: path.to_owned(), inode })
    }

    /// Where it listens, with the port that was found.
    pub(crate) fn address(&self) -> Address {
        match self {
            Self::Tcp(_, address) => address.clone(),
            Self::Unix { path, .. } => Address::Unix(path.clone()),
        }
    }

    /// Waits for a client; `None` when `stop` has become readable.
    pub(crate) fn accept(&self, stop: BorrowedFd<'_>) -> io::Result<Option<Socket>> {
        loop {
            let mut fds = [PollFd::new(self, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            wait_for(&mut fds, None)?;
            if !fds[1].revents().is_empty() {
                return Ok(None);
            }
            let accepted = match self {
                Self::Tcp(listener, _) => listener.accept().map(|(stream, _)| {
                    let _ = stream.set_nonblocking(false);
                    Socket::adopt(stream.into(), true)
                }),
                Self::Unix { listener, .. } => listener.accept().map(|(stream, _)| {
                    let _ = stream.set_nonblocking(false);
                    Socket::adopt(stream.into(), false)
                }),
            };
            match accepted {
                Ok(socket) => return Ok(Some(socket)),
                // The client has gone again before we got to it.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Self::Unix { path, inode, .. } = self else { return };
        // Only our own file: another server may have replaced it.
        let now = std::fs::symlink_metadata(&*path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if now.is_some() && now == *inode {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A unix listener whose file nobody else can ever open: the mode is set on the socket before it gets its name.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// Removes the file that a server left behind when it was killed; refuses when somebody answers, or it is no socket.
fn remove_if_stale(path: &Path) -> Result<(), ListenError> {
    let address = Address::Unix(path.to_owned());
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ListenError::Io { address, source })
        }
        _ => Err(ListenError::InUse { address }),
    }
}
