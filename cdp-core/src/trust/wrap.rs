//! Wrapping: replica keys under a key that somebody outside keeps.

use super::derive::derive;
use super::keyring::Keyring;
use crate::types::{ReplicaId, WallTime};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Bytes of every key.
pub(super) const KEY_BYTES: usize = 32;
/// The most replica keys of one store: each start that appends takes one, and old ones go with what they sealed.
pub const KEYS_MAX: usize = 1 << 16;

/// Why sealed bytes cannot be opened. None of it is damage of data.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// No key was given.
    #[error("the replica is sealed at rest, and no key was given: give the key that it was sealed with")]
    Missing,
    /// Another key was given.
    #[error(
        "the replica is sealed at rest with another key than the one that was given: give the key that it was sealed with"
    )]
    Wrong,
    /// The key is the right one, and what it should open is not what was written.
    #[error("the wrapped key of generation {generation} in the manifest is damaged: restore the manifest from a copy")]
    Damaged {
        /// Which of the replica keys.
        generation: u32,
    },
    /// The manifest that the keys came from does not have this one.
    #[error("it is sealed at rest by the replica key of generation {generation}, which the manifest does not have")]
    Unknown {
        /// Which of the replica keys.
        generation: u32,
    },
    /// What was given is no key.
    #[error("a key is 32 bytes, or 64 hexadecimal digits; this has {found} bytes and is neither")]
    Malformed {
        /// Bytes that were given.
        found: usize,
    },
    /// There are as many replica keys as a store can have.
    #[error(
        "the manifest holds {KEYS_MAX} replica keys, the most that it can: drop old history, whose segments need \
         them, or begin a new replica where its bases do"
    )]
    TooMany,
}

/// What a wrap needs besides the keys: randomness that never comes twice, and the time.
#[derive(Clone, Copy, Debug)]
pub struct Wrap {
    /// Random, drawn for this wrap.
    pub salt: [u8; 16],
    /// By the replica host's clock.
    pub created: WallTime,
}

/// A replica key as the manifest holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrappedKey {
    /// Which of the replica's keys, from 1.
    pub generation: u32,
    /// When it was drawn.
    pub created: WallTime,
    /// Blocks of bases may be sealed by it.
    pub bases: bool,
    /// Tells which wrapping key it takes.
    pub check: [u8; 8],
    /// Drawn for this wrap.
    pub salt: [u8; 16],
    /// Ciphertext and tag.
    pub sealed: [u8; 48],
}

/// The key that somebody outside keeps.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappingKey([u8; KEY_BYTES]);

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WrappingKey")
    }
}

impl WrappingKey {
    /// The key of a file or a variable: 32 bytes as they are, or 64 hexadecimal digits and white space around them.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = bytes.try_into() {
            return Ok(Self(key));
        }
        let digits = bytes.trim_ascii();
        let malformed = KeyError::Malformed { found: bytes.len() };
        if digits.len() != 2 * KEY_BYTES {
            return Err(malformed);
        }
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let mut key = [0; KEY_BYTES];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(malformed) };
            *byte = high << 4 | low;
        }
        Ok(Self(key))
    }

    /// Wraps a replica key that was drawn just now.
    #[must_use]
    pub fn new_key(&self, replica: ReplicaId, key: [u8; KEY_BYTES], wrap: Wrap) -> NewKey {
        NewKey { key, wrapping: self.clone(), replica, wrap }
    }

    /// The same replica keys, wrapped with another wrapping key. `salt` draws one for each wrap.
    ///
    /// # Errors
    /// When this is not the key that they are wrapped with, or a wrap is damaged: then nothing is rewrapped.
    pub fn rewrap(
        &self,
        replica: ReplicaId,
        keys: &[WrappedKey],
        with: &Self,
        salt: &mut dyn FnMut() -> [u8; 16],
    ) -> Result<Vec<WrappedKey>, KeyError> {
        let one = |wrapped: &WrappedKey| {
            let key = self.unwrap(replica, wrapped)?;
            let wrap = Wrap { salt: salt(), created: wrapped.created };
            Ok(WrappedKey { bases: wrapped.bases, ..with.wrap(replica, wrapped.generation, &key, wrap) })
        };
        keys.iter().map(one).collect()
    }

    fn wrap(&self, replica: ReplicaId, generation: u32, key: &[u8; KEY_BYTES], wrap: Wrap) -> WrappedKey {
        let mut bytes = key.to_vec();
        let sealing = self.sealing_key(replica, generation, &wrap.salt);
        let sealed = sealing.seal_in_place_append_tag(nonce(), Aad::empty(), &mut bytes);
        sealed.expect("32 bytes are no more than AES-GCM takes");
        let mut sealed = [0; 48];
        sealed.copy_from_slice(&bytes);
        let check = self.check(replica);
        WrappedKey { generation, created: wrap.created, bases: false, check, salt: wrap.salt, sealed }
    }

    pub(super) fn unwrap(&self, replica: ReplicaId, wrapped: &WrappedKey) -> Result<[u8; KEY_BYTES], KeyError> {
        if wrapped.check != self.check(replica) {
            return Err(KeyError::Wrong);
        }
        let mut bytes = wrapped.sealed;
        let sealing = self.sealing_key(replica, wrapped.generation, &wrapped.salt);
        let damaged = KeyError::Damaged { generation: wrapped.generation };
        let plain = sealing.open_in_place(nonce(), Aad::empty(), &mut bytes).map_err(|_| damaged.clone())?;
        (&*plain).try_into().map_err(|_| damaged)
    }

    fn check(&self, replica: ReplicaId) -> [u8; 8] {
        derive(&self.0, &[], &[b"cdp key check", replica.bytes()])
    }

    fn sealing_key(&self, replica: ReplicaId, generation: u32, salt: &[u8; 16]) -> LessSafeKey {
        aes(&derive(&self.0, salt, &[b"cdp wrap", replica.bytes(), &generation.to_le_bytes()]))
    }
}

/// The salt makes a key that seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// AES-256-GCM with this key.
pub(super) fn aes(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has as many bytes as the cipher takes"))
}

/// A replica key that was drawn just now, on its way into a manifest.
pub struct NewKey {
    key: [u8; KEY_BYTES],
    wrapping: WrappingKey,
    replica: ReplicaId,
    wrap: Wrap,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewKey")
    }
}

impl NewKey {
    /// Names it by a generation and puts it on the ring.
    pub(crate) fn name(self, generation: u32, keyring: &Keyring) -> WrappedKey {
        keyring.add_own(generation, self.key, &self.wrapping);
        self.wrapping.wrap(self.replica, generation, &self.key, self.wrap)
    }
}
