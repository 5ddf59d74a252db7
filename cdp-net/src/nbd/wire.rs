//! One connection's socket as the connection's thread and the workers share it.
//!
//! The connection's thread alone receives; everybody sends. Nobody ever waits for the peer while holding the lock: what the
//! socket does not take at once is queued, and the connection's thread, which reads no further request until the queue is
//! empty, sends it when the peer makes room. So a client that does not read its replies holds up its own thread only, and
//! the queue is bounded by the requests that are in flight.

use super::socket::Socket;
use super::tls;
use bytes::{Buf, Bytes};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::Shutdown;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    /// Set once, when the connection upgrades; spares plain connections the lock.
    encrypted: AtomicBool,
    /// Wakes the connection's thread when it sleeps in [`Wire::wait`].
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the socket did not take yet.
    queue: VecDeque<Bytes>,
    tls: Option<Box<rustls::Connection>>,
    /// Encrypted bytes on their way to the socket or the queue.
    cipher: Vec<u8>,
    /// Requests that workers have, and their bytes.
    requests: usize,
    bytes: usize,
    /// The connection's thread sleeps, or is about to.
    waiting: bool,
    /// Sending failed: there is nobody left to reply to.
    broken: bool,
}

/// How much the workers have in hand for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct InFlight {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
    /// Replies wait for the peer to read.
    pub(crate) stalled: bool,
    /// There is nobody to reply to.
    pub(crate) broken: bool,
}

impl Wire {
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { socket, encrypted: AtomicBool::new(false), wake, state: Mutex::default() })
    }

    /// From here on everything is encrypted.
    pub(crate) fn upgrade(&self, tls: rustls::Connection) {
        self.lock().tls = Some(Box::new(tls));
        self.encrypted.store(true, Ordering::Release);
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` at the end. Only for the connection's thread.
    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.encrypted.load(Ordering::Acquire) {
            return self.socket.try_recv(buffer);
        }
        let state = &mut *self.lock();
        let Some(connection) = &mut state.tls else { return Ok(None) };
        let received = tls::try_recv(connection, &self.socket, buffer, &mut state.cipher);
        state.send_cipher(&self.socket);
        received
    }

    /// As [`Self::try_recv`], into `first`, and what is there beyond it into `second`, if that takes no more work.
    pub(crate) fn try_recv_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<Option<usize>> {
        if self.encrypted.load(Ordering::Acquire) {
            self.try_recv(first)
        } else {
            self.socket.try_recv_two(first, second)
        }
    }

    /// Receives, waiting for as long as it takes. Only for the connection's thread, and only while nothing is in flight.
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.encrypted.load(Ordering::Acquire) {
            return self.socket.recv(buffer);
        }
        loop {
            if let Some(count) = self.try_recv(buffer)? {
                return Ok(count);
            }
            self.wait(None)?;
        }
    }

    /// Sends, or queues what the peer has no room for. Failures are kept, not told: the receiving side learns of the end.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.send(&self.socket, bytes);
    }

    /// Counts a request that goes to a worker.
    pub(crate) fn begin(&self, bytes: usize) {
        let mut state = self.lock();
        state.requests += 1;
        state.bytes += bytes;
    }

    /// Sends the reply to a request that a worker had, and counts it off.
    pub(crate) fn complete(&self, reply: Bytes, bytes: usize) {
        let mut state = self.lock();
        state.send_shared(&self.socket, reply);
        state.requests = state.requests.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(bytes);
        if state.waiting {
            state.waiting = false;
            // Cannot fail but for a counter at its end, and then the thread is awake anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Sends a part of a reply whose request goes on. Only for workers.
    pub(crate) fn send_shared(&self, part: Bytes) {
        self.lock().send_shared(&self.socket, part);
    }

    /// What is in flight.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.lock().in_flight()
    }

    /// Whether there is something to receive right now.
    pub(crate) fn input_ready(&self) -> bool {
        self.socket.wait(true, false, None, Some(Instant::now())).unwrap_or(true)
    }

    /// Sleeps until there is input, a worker completed something, the queue could move on, or the deadline has passed
    /// (`false`). Sends from the queue. Only for the connection's thread.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        self.sleep(true, deadline, |_| false)
    }

    /// Sleeps until `done`, sending from the queue meanwhile, or until the deadline has passed (`false`). Only for the
    /// connection's thread.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>, done: impl Fn(InFlight) -> bool) -> io::Result<bool> {
        while !done(self.in_flight()) {
            if !self.sleep(false, deadline, &done)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sleeps once, unless `done` holds already. That is looked at under the lock under which workers look at `waiting`, so
    /// that no wake-up is lost in between.
    fn sleep(&self, input: bool, deadline: Option<Instant>, done: impl Fn(InFlight) -> bool) -> io::Result<bool> {
        let output = {
            let mut state = self.lock();
            state.flush(&self.socket);
            if done(state.in_flight()) {
                return Ok(true);
            }
            state.waiting = true;
            !state.queue.is_empty()
        };
        let ready = self.socket.wait(input, output, Some(self.wake.as_fd()), deadline);
        let mut state = self.lock();
        state.waiting = false;
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        state.flush(&self.socket);
        ready
    }

    /// Sleeps until everything is sent. Only for the connection's thread.
    pub(crate) fn drain(&self, deadline: Option<Instant>) -> io::Result<()> {
        if self.wait_until(deadline, |now| !now.stalled)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) {
        self.socket.shutdown(how);
    }

    /// Says farewell where the protocol has one (TLS), and closes both directions.
    pub(crate) fn close(&self) {
        let state = &mut *self.lock();
        if let Some(connection) = &mut state.tls {
            connection.send_close_notify();
            while connection.wants_write() && connection.write_tls(&mut state.cipher).is_ok() {}
            state.send_cipher(&self.socket);
        }
        self.socket.shutdown(Shutdown::Both);
    }

    /// Every step under this lock leaves the state whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn in_flight(&self) -> InFlight {
        let stalled = !self.queue.is_empty();
        InFlight { requests: self.requests, bytes: self.bytes, stalled, broken: self.broken }
    }

    fn send(&mut self, socket: &Socket, bytes: &[u8]) {
        if let Some(connection) = &mut self.tls {
            if tls::encrypt(connection, &[bytes], &mut self.cipher).is_err() {
                self.broken = true;
            }
            return self.send_cipher(socket);
        }
        let sent = self.send_now(socket, bytes);
        if sent < bytes.len() && !self.broken {
            self.queue.push_back(Bytes::copy_from_slice(&bytes[sent..]));
        }
    }

    /// As `send`, but what has to be queued is shared rather than copied.
    fn send_shared(&mut self, socket: &Socket, mut bytes: Bytes) {
        if self.tls.is_some() {
            return self.send(socket, &bytes);
        }
        bytes.advance(self.send_now(socket, &bytes));
        if !bytes.is_empty() && !self.broken {
            self.queue.push_back(bytes);
        }
    }

    fn send_cipher(&mut self, socket: &Socket) {
        if self.cipher.is_empty() {
            return;
        }
        let cipher = std::mem::take(&mut self.cipher);
        let sent = self.send_now(socket, &cipher);
        if sent < cipher.len() && !self.broken {
            self.queue.push_back(Bytes::copy_from_slice(&cipher[sent..]));
        }
        self.cipher = cipher;
        self.cipher.clear();
    }

    /// How much the socket took: nothing while something is queued before it.
    fn send_now(&mut self, socket: &Socket, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while self.queue.is_empty() && !self.broken && sent < bytes.len() {
            match socket.try_send(&[&bytes[sent..]]) {
                Ok(0) => break,
                Ok(count) => sent += count,
                Err(_) => self.broken = true,
            }
        }
        sent
    }

    fn flush(&mut self, socket: &Socket) {
        while let Some(front) = self.queue.front_mut() {
            match socket.try_send(&[front]) {
                Ok(0) => return,
                Ok(count) if count == front.len() => drop(self.queue.pop_front()),
                Ok(count) => front.advance(count),
                Err(_) => {
                    self.broken = true;
                    self.queue.clear();
                }
            }
        }
    }
}
