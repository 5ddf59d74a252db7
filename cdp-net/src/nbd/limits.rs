//! The bounds of a server. Each says what happens when it is reached.

use std::time::Duration;

/// Bounds of one server; the defaults suit a machine's own clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed at once.
    pub connections_max: usize,
    /// Time for the whole handshake; then the connection is closed.
    pub handshake: Duration,
    /// Time in which a request that has begun to arrive must be complete; then the connection is closed.
    pub request: Duration,
    /// Time without a request after which a connection is closed. `None`: clients may rest for ever.
    pub idle: Option<Duration>,
    /// Requests that one connection may have with the workers; at the bound nothing more is read from it.
    pub requests_max: usize,
    /// Bytes of those requests (payloads and replies); at the bound nothing more is read. One request is always admitted.
    pub bytes_max: usize,
    /// Threads for requests that may wait for a disk, for the whole server.
    pub workers_max: usize,
    /// Requests that wait for one of those threads; at the bound a connection's own thread runs them.
    pub jobs_max: usize,
    /// How long a connection's thread waits awake for the next request before it sleeps; zero: not at all.
    pub spin: Duration,
    /// Replies that are sent together at most while more requests are at hand.
    pub replies_together: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            handshake: Duration::from_secs(10),
            request: Duration::from_secs(60),
            idle: None,
            requests_max: 1024,
            bytes_max: 64 << 20,
            workers_max: 16,
            jobs_max: 4096,
            spin: Duration::from_micros(30),
            replies_together: 16,
        }
    }
}
