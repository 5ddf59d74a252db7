//! A connection as a client's one thread uses it: plain or encrypted, blocking with a deadline.

use super::socket::Socket;
use super::tls;
use super::uri::{Address, Uri};
use rustix::net::Shutdown;
use std::io;
use std::time::{Duration, Instant};

/// A connection whose bytes the caller chooses: what hostile tests are made of, and what [`Client`](super::Client) stands on.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    tls: Option<Box<rustls::Connection>>,
    /// Encrypted bytes that the socket did not take yet.
    cipher: Vec<u8>,
}

impl Channel {
    /// Connects, and does nothing else: the server's greeting is the first thing to be received.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(uri: &Uri, limit: Duration) -> io::Result<Self> {
        Ok(Self { socket: Socket::connect(&uri.address, limit)?, tls: None, cipher: Vec::new() })
    }

    /// Runs the TLS handshake.
    pub(crate) fn upgrade(&mut self, connection: rustls::Connection, deadline: Instant) -> io::Result<()> {
        let tls = self.tls.insert(Box::new(connection));
        while tls.is_handshaking() {
            while tls.wants_write() {
                tls.write_tls(&mut self.cipher)?;
            }
            while !self.cipher.is_empty() {
                let sent = self.socket.try_send(&[&self.cipher])?;
                self.cipher.drain(..sent);
                if sent == 0 && !self.socket.wait(false, true, None, Some(deadline))? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            if !tls.is_handshaking() {
                break;
            }
            match tls::fill(tls, &self.socket, &mut self.cipher)? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                None if !self.socket.wait(true, false, None, Some(deadline))? => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                _ => {}
            }
        }
        self.try_send(&[]).map(|_| ())
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` at the end.
    pub(crate) fn try_recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match &mut self.tls {
            None => self.socket.try_recv(buffer),
            Some(tls) => tls::try_recv(tls, &self.socket, buffer, &mut self.cipher),
        }
    }

    /// Sends as much as is taken now; with TLS all is taken, and sent by and by.
    pub(crate) fn try_send(&mut self, parts: &[&[u8]]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.try_send(parts) };
        tls::encrypt(tls, parts, &mut self.cipher)?;
        while !self.cipher.is_empty() {
            match self.socket.try_send(&[&self.cipher])? {
                0 => break,
                sent => drop(self.cipher.drain(..sent)),
            }
        }
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    /// Whether encrypted bytes wait to be sent.
    pub(crate) fn owes(&self) -> bool {
        !self.cipher.is_empty()
    }

    /// Waits until there is input, or room for output if wanted; `false` at the deadline.
    pub(crate) fn wait(&self, input: bool, output: bool, deadline: Option<Instant>) -> io::Result<bool> {
        self.socket.wait(input, output, None, deadline)
    }

    /// Sends everything.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; what the system says.
    pub fn send_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() || self.owes() {
            let sent = self.try_send(&[rest])?;
            rest = &rest[sent..];
            if (sent == 0 || self.owes()) && !self.wait(false, true, Some(deadline))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Receives at least one byte, or 0 at the end of the stream.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; what the system says.
    pub fn recv(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            if let Some(count) = self.try_recv(buffer)? {
                return Ok(count);
            }
            let owes = self.owes();
            if !self.wait(true, owes, Some(deadline))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if owes {
                self.try_send(&[])?;
            }
        }
    }

    /// Fills the whole buffer.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the stream; `TimedOut` at the deadline; what the system says.
    pub fn recv_exact(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut have = 0;
        while have < buffer.len() {
            match self.recv(&mut buffer[have..], deadline)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => have += count,
            }
        }
        Ok(())
    }

    /// Tells the server that nothing more will be sent; replies can still be received.
    pub fn finish_sending(&self) {
        self.socket.shutdown(Shutdown::Write);
    }
}

/// The host that a server's certificate must name.
pub(crate) fn host(address: &Address) -> &str {
    match address {
        Address::Tcp { host, .. } => host,
        Address::Unix(_) => "localhost",
    }
}
