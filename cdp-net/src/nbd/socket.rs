//! One connected stream socket, TCP or unix, and the calls on it that the front end needs: never `SIGPIPE`, and never a wait
//! except in [`Socket::recv`] and [`Socket::wait`].

use super::uri::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Kernel buffer wanted for unix sockets, in bytes: a burst of 32 writes of 4 KiB fits with room to spare.
const UNIX_BUFFER_BYTES: usize = 1 << 20;
/// A peer that leaves sent data unacknowledged for this long is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected stream socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Connects; every address of a host name is tried.
    pub(crate) fn connect(address: &Address, limit: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::adopt(UnixStream::connect(path)?.into(), false)),
            Address::Tcp { host, port } => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for candidate in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&candidate, limit) {
                        Ok(stream) => return Ok(Self::adopt(stream.into(), true)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Takes over a connected socket and sets its options. An option that the kernel refuses costs speed or a later notice
    /// of a dead peer, nothing else, so refusals are ignored.
    pub(crate) fn adopt(fd: OwnedFd, tcp: bool) -> Self {
        use net::sockopt;
        if tcp {
            let _ = sockopt::set_tcp_nodelay(&fd, true);
            let _ = sockopt::set_socket_keepalive(&fd, true);
            let _ = sockopt::set_tcp_keepidle(&fd, Duration::from_secs(30));
            let _ = sockopt::set_tcp_keepintvl(&fd, Duration::from_secs(10));
            let _ = sockopt::set_tcp_keepcnt(&fd, 3);
            let _ = sockopt::set_tcp_user_timeout(&fd, u32::try_from(TCP_USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
        } else if sockopt::set_socket_send_buffer_size_force(&fd, UNIX_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, UNIX_BUFFER_BYTES);
        }
        Self { fd }
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` at the end of the stream.
    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.recv_with(buffer, RecvFlags::DONTWAIT)
    }

    /// Receives what is there into two buffers, one after the other.
    pub(crate) fn try_recv_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<Option<usize>> {
        let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
        loop {
            let none = &mut RecvAncillaryBuffer::default();
            match net::recvmsg(&self.fd, &mut slices, none, RecvFlags::DONTWAIT) {
                Ok(received) => return Ok(Some(received.bytes)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives, waiting for as long as it takes; 0 at the end of the stream.
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(count) = self.recv_with(buffer, RecvFlags::empty())? {
                return Ok(count);
            }
        }
    }

    fn recv_with(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
        loop {
            match net::recv(&self.fd, &mut *buffer, flags) {
                Ok((_, count)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends as much as the kernel takes now: 0 if it takes nothing.
    pub(crate) fn try_send(&self, parts: &[&[u8]]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let sent = match parts {
                [one] => net::send(&self.fd, one, flags),
                _ => {
                    let mut slices = [IoSlice::new(&[]); 4];
                    let used = parts.len().min(slices.len());
                    slices.iter_mut().zip(parts).for_each(|(slice, part)| *slice = IoSlice::new(part));
                    net::sendmsg(&self.fd, &slices[..used], &mut SendAncillaryBuffer::default(), flags)
                }
            };
            match sent {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the socket is ready for what is asked, or `also` is readable, or the deadline has passed (`false`).
    pub(crate) fn wait(
        &self,
        input: bool,
        output: bool,
        also: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<bool> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, input);
        events.set(PollFlags::OUT, output);
        let mut fds = [PollFd::new(&self.fd, events), PollFd::new(&self.fd, events)];
        let mut count = 1;
        if let Some(fd) = also {
            fds[1] = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            count = 2;
            if events.is_empty() {
                // Hang-ups are reported even when not asked for: leave the socket out lest this spins.
                fds.swap(0, 1);
                count = 1;
            }
        }
        wait_for(&mut fds[..count], deadline)
    }

    /// Ends one or both directions; who waits on the socket wakes up.
    pub(crate) fn shutdown(&self, how: net::Shutdown) {
        let _ = net::shutdown(&self.fd, how);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `poll` until one is ready (`true`) or the deadline has passed.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(fds, timeout.as_ref()) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
