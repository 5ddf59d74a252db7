//! The rule of one owner: a replica directory has at most one process that changes it, and everybody else asks that one.
//!
//! [`Owner::acquire`] takes the lock, [`ControlServer`] lets the owner answer on `control.sock`, [`ControlClient`] asks, and
//! [`Access::open`] is what a command uses that works either way. The lock is the kernel's (`flock`): a killed owner leaves
//! it free by construction, and the text inside `LOCK` is only for people and error messages. A resource that a reader
//! needs ([`Connection::hold`]) lives as long as its connection, so a killed reader leaves nothing behind either. A moment that is read
//! outlasts the owner too, by a lock of the reader's own that each owner finds ([`Reader`]). On media that
//! are mounted read-only nobody changes anything, and all who read share the lock ([`Owner::acquire_to_read`]).
//!
//! The conversation is one JSON document a line. The client greets with its version, the owner answers with the version
//! that both speak; then each request `{"id", "op", ...}` gets exactly one answer, `{"id", "ok"}` or `{"id", "error"}`.

mod access;
mod client;
mod lines;
mod lock;
mod message;
mod readers;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessError};
pub use client::{ClientError, ControlClient};
pub use lock::{LOCK_FILE, Owner, OwnerError, is_owned};
pub use message::{Hello, PROTOCOL, PinReply, PolicyChange, Request, Side, VERSION, reply};
pub(crate) use readers::Readers;
pub use readers::{READERS_FILE, Reader};
pub use server::{Connection, ControlServer, Handler};
pub use socket::SOCKET_FILE;
