//! NBD: a server for [`Device`](crate::device::Device)s that every real client can use, and a client for tests, benches and
//! the demonstration.
//!
//! No runtime: every connection has a thread that serves quick requests itself, because a hand-off between threads costs
//! more than such a request; what may wait for a disk goes to a few workers. What the protocol says is kept apart from all
//! sockets ([`protocol`], [`handshake`]) and is tested without them.
//!
//! **Invariants.** A client can never end the process or hold up another client: its mistakes are answered or cost it the
//! connection, its slowness fills its own queues only. A write is passed to the device whole or not at all.

mod buffers;
mod channel;
pub mod client;
mod connection;
mod execute;
mod export;
pub mod handshake;
mod limits;
mod listener;
pub mod protocol;
mod server;
mod socket;
mod spin;
mod stats;
mod tls;
mod uri;
mod wire;
mod workers;

pub use channel::Channel;
pub use client::{Client, ClientError, ClientOptions};
pub use export::Export;
pub use limits::Limits;
pub use listener::ListenError;
pub use protocol::NbdError;
pub use server::{Place, ServeError, Server, ServerOptions};
pub use stats::Stats;
pub use tls::{TlsClient, TlsError, TlsServer};
pub use uri::{Address, Uri, UriError};
