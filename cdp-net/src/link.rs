//! The link over TCP: TLS 1.3 with pinned certificates or, between private addresses, plain connections with a MAC on each message.
//!
//! What is said is decided by the machines of [`cdp_core::link`]; here connections are made ([`dial`]), let in ([`listener`], [`accept`]) and
//! carried ([`connection`]): one task reads and one writes for each. A machine has all of its connections in one [`hub`]. Everybody shows a certificate of his own ([`identity`]), and
//! everybody else's is known by its fingerprint ([`pin`]).

pub mod accept;
pub mod connection;
pub mod dial;
pub mod hub;
pub mod identity;
pub mod listener;
mod memory;
pub mod pin;
pub(crate) mod stream;
