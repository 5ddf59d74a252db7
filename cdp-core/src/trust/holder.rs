//! Who opens the stores of a replica: whoever was given its wrapping key, or nobody.

use super::keyring::Keyring;
use super::wrap::{KeyError, NewKey, Wrap, WrappedKey, WrappingKey};
use crate::mistakes::{self, Mistake};
use crate::types::{ReplicaId, WallTime};
use std::sync::Arc;

/// The wrapping key, if there is one. Clones share it.
#[derive(Clone, Default)]
pub struct KeyHolder {
    key: Option<Arc<WrappingKey>>,
    #[cfg(feature = "sim")]
    pub(super) recorder: Option<super::Recorder>,
}

impl std::fmt::Debug for KeyHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.key.is_some() { "KeyHolder with a key" } else { "KeyHolder without a key" })
    }
}

impl From<Option<WrappingKey>> for KeyHolder {
    fn from(key: Option<WrappingKey>) -> Self {
        Self {
            key: key.map(Arc::new),
            #[cfg(feature = "sim")]
            recorder: None,
        }
    }
}

impl KeyHolder {
    /// Whether there is a key.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether this is the key.
    #[must_use]
    pub fn holds(&self, key: &WrappingKey) -> bool {
        self.key.as_deref() == Some(key)
    }

    /// The replica keys of a manifest, unlocked. Of one that has none the ring is empty, whether there is a key or not.
    ///
    /// # Errors
    /// When there is no key, or another one than they are wrapped with, or a wrap is damaged.
    pub fn unlock(&self, replica: ReplicaId, keys: &[WrappedKey]) -> Result<Arc<Keyring>, KeyError> {
        let keyring = Keyring::of(self.clone());
        if let (None, false) = (&self.key, keys.is_empty()) {
            return Err(KeyError::Missing);
        }
        for (key, wrapped) in self.key.iter().flat_map(|key| keys.iter().map(move |wrapped| (key, wrapped))) {
            keyring.add(wrapped.generation, key.unwrap(replica, wrapped)?);
        }
        Ok(Arc::new(keyring))
    }

    /// A new replica key, for [`Writer::seal_at_rest`](crate::journal::Writer::seal_at_rest); none where there is no key to wrap
    /// it. `random` draws 128 bits, never twice the same, that nobody else can know.
    pub fn draw(&self, replica: ReplicaId, random: &mut dyn FnMut() -> [u8; 16], created: WallTime) -> Option<NewKey> {
        let wrapping = self.key.as_ref()?;
        let mut key = [0; 32];
        key[..16].copy_from_slice(&random());
        key[16..].copy_from_slice(&random());
        if mistakes::is(Mistake::KeyUsedAgain) {
            key = [0; 32];
        }
        Some(wrapping.new_key(replica, key, Wrap { salt: random(), created }))
    }

    /// The same replica keys, wrapped with another wrapping key; none if they are wrapped with that one already.
    ///
    /// # Errors
    /// As [`Self::unlock`]: then nothing is rewrapped.
    pub fn rewrap(
        &self,
        replica: ReplicaId,
        keys: &[WrappedKey],
        with: &WrappingKey,
        random: &mut dyn FnMut() -> [u8; 16],
    ) -> Result<Option<Vec<WrappedKey>>, KeyError> {
        if keys.iter().all(|key| with.unwrap(replica, key).is_ok()) {
            return Ok(None);
        }
        let own = self.key.as_ref().ok_or(KeyError::Missing)?;
        own.rewrap(replica, keys, with, random).map(Some)
    }

    /// The same, with every seal written down: for tests that look for a nonce that came twice.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn recorded(self, recorder: super::Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }
}
