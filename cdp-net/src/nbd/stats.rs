//! What a server has done so far, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the server's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_open: u64,
    /// Connections that were closed at once because there were too many.
    pub connections_refused: u64,
    /// Connections that ended in the handshake: garbage, time-outs, refused names, TLS failures.
    pub handshakes_failed: u64,
    /// Connections that ended in transmission because the client broke the protocol or stopped in the middle of a request.
    pub connections_broken: u64,
    /// Requests that were answered, with or without an error.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Panics of a device that were contained.
    pub panics: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written (payload only, zeroes and trims not counted).
    pub bytes_written: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) connections_open: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) connections_broken: Counter,
    pub(crate) requests: Counter,
    pub(crate) errors: Counter,
    pub(crate) panics: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) bytes_written: Counter,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            connections: self.connections.get(),
            connections_open: self.connections_open.get(),
            connections_refused: self.connections_refused.get(),
            handshakes_failed: self.handshakes_failed.get(),
            connections_broken: self.connections_broken.get(),
            requests: self.requests.get(),
            errors: self.errors.get(),
            panics: self.panics.get(),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
        }
    }
}

/// A number that many threads change.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
    pub(crate) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
