//! The bytes of a connection: TCP, with or without TLS.

use super::memory;
use cdp_core::buffer::PooledBuffer;
use cdp_core::link::preamble::{CONTENT_MAX, PREAMBLE_BYTES, Preamble};
use cdp_core::policy::traffic::is_private;
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A connection on which nothing is said is asked for after so long, so often.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(4);
/// What was sent and is not acknowledged after so long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Small messages go at once, and a machine that is gone is noticed.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Whether a connection between these may do without TLS, as far as addresses say.
pub(super) fn may_be_plain(one: SocketAddr, other: SocketAddr) -> bool {
    is_private(one.ip()) && is_private(other.ip())
}

/// TCP below TLS that notices when the answer to a preamble is not TLS but a refusal: its first byte tells them apart. TLS asks for
/// 4 KiB at a time; as much as there is is read for it.
pub(super) struct Tcp {
    tcp: TcpStream,
    answer: Answer,
    ahead: Option<Ahead>,
}

/// What was read and TLS has not taken. Not kept while there is nothing to read.
struct Ahead {
    buffer: PooledBuffer,
    taken: usize,
    filled: usize,
}

enum Answer {
    /// Nothing came yet.
    Awaited,
    /// TLS, or nobody looks.
    Tls,
    /// Something else: at most a whole preamble of it is kept.
    Other(Vec<u8>),
}

impl Tcp {
    /// For who dialled.
    pub(super) fn awaiting(tcp: TcpStream) -> Self {
        Self { tcp, answer: Answer::Awaited, ahead: None }
    }

    /// For who was dialled.
    pub(super) fn accepted(tcp: TcpStream) -> Self {
        Self { tcp, answer: Answer::Tls, ahead: None }
    }

    /// What came in place of TLS.
    pub(super) fn refusal(&self) -> Option<cdp_core::link::message::Farewell> {
        let Answer::Other(bytes) = &self.answer else { return None };
        match Preamble::decode(bytes) {
            Ok(Preamble::Refusal(farewell)) => Some(farewell),
            _ => None,
        }
    }

    fn poll_read_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let unused = || Ahead { buffer: memory::ahead().take(), taken: 0, filled: 0 };
        let mut ahead = self.ahead.take().unwrap_or_else(unused);
        if ahead.taken == ahead.filled {
            let mut read = ReadBuf::new(&mut ahead.buffer);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            (ahead.taken, ahead.filled) = (0, read.filled().len());
        }
        let came = &ahead.buffer[ahead.taken..ahead.filled];
        let taken = came.len().min(buf.remaining());
        buf.put_slice(&came[..taken]);
        ahead.taken += taken;
        self.ahead = Some(ahead);
        Poll::Ready(Ok(()))
    }
}

/// First byte of a refusal; a TLS record begins with its type, 20 to 24.
const NOT_TLS: u8 = b'C';

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.answer, Answer::Tls) {
            return this.poll_read_ahead(cx, buf);
        }
        loop {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
            let came = &buf.filled()[before..];
            match &mut this.answer {
                Answer::Awaited if came.first().is_none_or(|first| *first != NOT_TLS) => {
                    this.answer = Answer::Tls;
                    return Poll::Ready(Ok(()));
                }
                Answer::Awaited => this.answer = Answer::Other(came.to_vec()),
                Answer::Other(bytes) => {
                    let room = PREAMBLE_BYTES + CONTENT_MAX - bytes.len();
                    let end = came.is_empty() || came.len() >= room;
                    bytes.extend_from_slice(&came[..came.len().min(room)]);
                    if end {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::ConnectionRefused,
                            "refused before TLS",
                        )));
                    }
                }
                Answer::Tls => return Poll::Ready(Ok(())),
            }
            // TLS sees nothing of it.
            buf.set_filled(before);
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// A connection that messages go over.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<Tcp>>),
}

macro_rules! either {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_between_private_addresses_can_a_connection_be_plain() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 7440);
        let private = ["10.1.2.3", "192.168.0.1", "127.0.0.1", "fd00::1", "::ffff:10.1.2.3"];
        let public = ["203.0.113.5", "100.64.0.1", "2001:db8::1", "::ffff:203.0.113.5"];
        for one in private {
            assert!(private.iter().all(|other| may_be_plain(at(one), at(other))));
            assert!(public.iter().all(|other| !may_be_plain(at(one), at(other)) && !may_be_plain(at(other), at(one))));
        }
    }
}
