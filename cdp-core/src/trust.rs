//! Keys: who can read what lies on media.
//!
//! A [`WrappingKey`] is kept by somebody outside; who was given it is a [`KeyHolder`]. It wraps replica keys, which the manifest
//! holds as [`WrappedKey`]s; unlocked they are a [`Keyring`]. The keys of a file are derived from one of them: a [`FileKey`] for a segment. What is sealed by what,
//! and why no nonce is ever used twice, is in `journal/FORMAT.md`, section 11.
//!
//! A [`Ticket`](ticket::Ticket) lets a connection through a gateway; its bytes are in `TICKET.md`.
//!
//! Cryptography is that of `ring`. Randomness comes in as an argument, as everywhere in this crate: 128 or 256 bits from the
//! system's own source, never anything that could come twice.

mod base;
mod derive;
mod file;
mod holder;
mod keyring;
#[cfg(feature = "sim")]
mod record;
#[cfg(test)]
mod tests;
pub mod ticket;
mod wrap;

pub use base::BlockSeal;
pub(crate) use base::{BlockPlace, BlockSealer};
pub(crate) use file::ChunkPlace;
pub use file::{FileKey, TAG_BYTES};
pub use holder::KeyHolder;
pub use keyring::Keyring;
#[cfg(feature = "sim")]
pub use record::{Recorder, SealCall};
pub use wrap::{KEYS_MAX, KeyError, NewKey, Wrap, WrappedKey, WrappingKey};

/// The keys of some segment, for tests of other rooms.
#[cfg(test)]
pub(crate) fn test_keys() -> FileKey {
    FileKey::new(&[7; 32], crate::types::SegmentId::new([8; 16]).expect("not zero"))
}
