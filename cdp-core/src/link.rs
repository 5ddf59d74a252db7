//! The link: how the records of a group get over one hop, in order, without loss, whatever breaks.
//!
//! The bytes and the rules are in `WIRE.md`.

pub mod calls;
pub mod codec;
mod draw;
pub mod farewell;
pub mod mac;
pub mod message;
pub mod preamble;
pub mod prepare;
pub mod pulse;
pub mod relay;
#[cfg(test)]
mod sample;
pub mod source;
pub mod spool;
pub mod target;
#[cfg(test)]
mod world;
