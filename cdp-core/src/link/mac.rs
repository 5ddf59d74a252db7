//! What guards the messages of a data connection without TLS: a keyed BLAKE3 over each, with its direction, its connection and
//! its place among the others, so that none can be changed, left out, repeated, moved or sent back.
//!
//! The key was agreed inside of TLS, on the session's first connection. Nobody who reads along is kept from reading.

use super::codec::{HEADER_BYTES, Party};
use super::message::DataKey;

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 16;

/// The MACs of one connection in one direction, one after another.
#[derive(Clone)]
pub struct MacChain {
    key: DataKey,
    from: Party,
    connection: u16,
    count: u64,
}

impl std::fmt::Debug for MacChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key: _, from, connection, count } = self;
        f.debug_struct("MacChain").field("from", from).field("connection", connection).field("count", count).finish()
    }
}

impl MacChain {
    /// That of what `from` sends on this connection.
    #[must_use]
    pub fn new(key: DataKey, from: Party, connection: u16) -> Self {
        Self { key, from, connection, count: 0 }
    }

    /// Messages so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The MAC of the next message, which is these pieces one after another.
    pub(super) fn next<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> [u8; MAC_BYTES] {
        let mut place = [0; HEADER_BYTES];
        place[0] = self.from as u8;
        place[2..4].copy_from_slice(&self.connection.to_le_bytes());
        place[8..].copy_from_slice(&self.count.to_le_bytes());
        self.count += 1;
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        hasher.update(&place);
        pieces.for_each(|piece| {
            hasher.update(piece);
        });
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }

    /// Whether `mac` is that of the next message. How long it takes says nothing about where they differ.
    pub(super) fn verify(&mut self, message: &[u8], mac: &[u8]) -> bool {
        let expected = self.next(std::iter::once(message));
        let Ok(found) = <[u8; MAC_BYTES]>::try_from(mac) else { return false };
        // Comparing hashes takes the same time whatever they are.
        let whole = |half: [u8; MAC_BYTES]| {
            let mut bytes = [0; blake3::OUT_LEN];
            bytes[..MAC_BYTES].copy_from_slice(&half);
            blake3::Hash::from_bytes(bytes)
        };
        whole(expected) == whole(found)
    }
}

#[cfg(test)]
mod tests;
