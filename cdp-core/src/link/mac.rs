//! What guards the messages of a data connection without TLS: a keyed BLAKE3 over each, with its direction, its connection and
//! its place among the others, so that none can be changed, left out, repeated, moved or sent back.
//!
//! The key was agreed inside of TLS, on the session's first connection. Nobody who reads along is kept from reading.

use super::codec::{HEADER_BYTES, Party};
use super::message::DataKey;
use std::cell::RefCell;

/// What is hashed at once, in bytes: a power of two.
const TOGETHER_BYTES: usize = 32 << 10;
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
        let hash = hash(&self.key, &place, pieces);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hash.as_bytes()[..MAC_BYTES]);
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

/// The keyed hash of `front`, which is short, and these pieces one after another. What is hashed at once begins on a multiple of [`TOGETHER_BYTES`] and is as long,
/// whatever the pieces are: of what begins elsewhere no sixteen chunks can be hashed side by side, which takes half as long again.
fn hash<'a>(key: &DataKey, front: &[u8], pieces: impl Iterator<Item = &'a [u8]>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    GATHERED.with_borrow_mut(|gathered| {
        gathered.clear();
        gathered.extend_from_slice(front);
        for mut piece in pieces {
            if !gathered.is_empty() || piece.len() < TOGETHER_BYTES {
                let (front, rest) = piece.split_at(piece.len().min(TOGETHER_BYTES - gathered.len()));
                gathered.extend_from_slice(front);
                piece = rest;
                if gathered.len() < TOGETHER_BYTES {
                    continue;
                }
                hasher.update(gathered);
                gathered.clear();
            }
            let (whole, rest) = piece.split_at(piece.len() / TOGETHER_BYTES * TOGETHER_BYTES);
            hasher.update(whole);
            gathered.extend_from_slice(rest);
        }
        hasher.update(gathered);
    });
    hasher.finalize()
}

thread_local! {
    /// What does not begin or end where it should.
    static GATHERED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(TOGETHER_BYTES));
}

#[cfg(test)]
mod tests;
