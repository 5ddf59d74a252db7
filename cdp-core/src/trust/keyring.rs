//! Replica keys in memory, by generation.

use super::file::FileKey;
use super::wrap::{KEY_BYTES, KeyError};
use crate::types::SegmentId;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// Replica keys that were unlocked: at most [`KEYS_MAX`](super::KEYS_MAX), as the manifest. Shared by a store's writer, which adds
/// to it, and its readers. An empty one is that of a store that is not sealed, or whose key nobody gave.
#[derive(Default)]
pub struct Keyring {
    /// Whole at every step.
    keys: RwLock<BTreeMap<u32, [u8; KEY_BYTES]>>,
    #[cfg(feature = "sim")]
    recorder: Option<super::Recorder>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(keys.keys()).finish()
    }
}

impl Keyring {
    /// Whether no key is on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn add(&self, generation: u32, key: [u8; KEY_BYTES]) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(generation, key);
    }

    /// The keys of a segment that is sealed by the replica key of this generation.
    pub(crate) fn segment(&self, generation: u32, id: SegmentId) -> Result<FileKey, KeyError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let none = if keys.is_empty() { KeyError::Missing } else { KeyError::Unknown { generation } };
        let key = FileKey::new(keys.get(&generation).ok_or(none)?, id);
        #[cfg(feature = "sim")]
        let key = key.recorded(self.recorder.clone());
        Ok(key)
    }

    /// The same, with every seal written down: for tests that look for a nonce that came twice.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn recorded(self: std::sync::Arc<Self>, recorder: super::Recorder) -> std::sync::Arc<Self> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        std::sync::Arc::new(Self { keys: RwLock::new(keys), recorder: Some(recorder) })
    }
}
