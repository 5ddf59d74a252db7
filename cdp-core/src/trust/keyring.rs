//! Replica keys in memory, by generation.

use super::base::{BaseKey, BlockPlace, BlockSeal, BlockSealer};
use super::file::{FileKey, NotOpened};
use super::holder::KeyHolder;
use super::wrap::{KEY_BYTES, KeyError, WrappingKey};
use crate::types::SegmentId;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Replica keys that were unlocked: at most [`KEYS_MAX`](super::KEYS_MAX), as the manifest. Shared by a store's writer, which adds
/// to it, and its readers. An empty one is that of a store that is not sealed, or whose key nobody gave.
#[derive(Default)]
pub struct Keyring {
    keys: RwLock<Keys>,
    /// Blocks of bases that were sealed with keys that this process drew. It never goes back, also not for another key.
    sealed_blocks: Arc<AtomicU64>,
}

/// Whole at every step.
#[derive(Default)]
struct Keys {
    replica: BTreeMap<u32, [u8; KEY_BYTES]>,
    /// Those of the same generations that were needed so far.
    bases: BTreeMap<u32, Arc<BaseKey>>,
    /// Those that this process drew, and whether it seals blocks of bases with them: it seals with no others.
    own: BTreeMap<u32, bool>,
    /// Who unlocked them, or drew the first.
    holder: KeyHolder,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.read().replica.keys()).finish()
    }
}

impl Keyring {
    /// An empty one of whoever has the wrapping key.
    pub(super) fn of(holder: KeyHolder) -> Self {
        Self { keys: RwLock::new(Keys { holder, ..Keys::default() }), ..Self::default() }
    }

    /// Who opens and seals the stores inside the replica's directory: they are sealed where the replica is.
    #[must_use]
    pub fn of_stores(&self) -> KeyHolder {
        if self.is_empty() { KeyHolder::default() } else { self.read().holder.clone() }
    }

    /// Whether no key is on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().replica.is_empty()
    }

    fn read(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, generation: u32, key: [u8; KEY_BYTES]) {
        self.write().replica.insert(generation, key);
    }

    /// Adds one that was drawn just now.
    pub(super) fn add_own(&self, generation: u32, key: [u8; KEY_BYTES], wrapping: &WrappingKey) {
        let mut keys = self.write();
        if !keys.holder.has_key() {
            keys.holder = Some(wrapping.clone()).into();
        }
        keys.replica.insert(generation, key);
        keys.own.insert(generation, false);
    }

    /// The keys of a segment that is sealed by the replica key of this generation.
    pub(crate) fn segment(&self, generation: u32, id: SegmentId) -> Result<FileKey, KeyError> {
        let key = FileKey::new(self.read().get(generation)?, id);
        #[cfg(feature = "sim")]
        let key = key.recorded(self.read().holder.recorder.clone());
        Ok(key)
    }

    /// What seals blocks of bases: the key of this generation, or the newest, if this process drew it.
    pub(crate) fn block_sealer(&self, generation: Option<u32>) -> Result<BlockSealer, KeyError> {
        let newest = || self.read().own.last_key_value().map(|(generation, _)| *generation);
        let generation = generation.or_else(newest).ok_or(KeyError::Missing)?;
        let key = self.base(generation)?;
        *self.write().own.get_mut(&generation).ok_or(KeyError::Unknown { generation })? = true;
        Ok(BlockSealer {
            generation,
            key,
            counter: Arc::clone(&self.sealed_blocks),
            #[cfg(feature = "sim")]
            recorder: self.read().holder.recorder.clone(),
        })
    }

    /// Whether blocks of bases may have been sealed by the key of this generation, by this process.
    pub(crate) fn seals_bases(&self, generation: u32) -> bool {
        self.read().own.get(&generation).is_some_and(|seals| *seals)
    }

    /// Opens a block of a base in place; what `bytes` holds otherwise means nothing.
    pub(crate) fn open_block(
        &self,
        place: BlockPlace,
        seal: &BlockSeal,
        bytes: &mut [u8],
    ) -> Result<Result<(), NotOpened>, KeyError> {
        Ok(self.base(seal.generation)?.open(place, seal, bytes))
    }

    fn base(&self, generation: u32) -> Result<Arc<BaseKey>, KeyError> {
        if let Some(key) = self.read().bases.get(&generation) {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(BaseKey::new(self.read().get(generation)?));
        self.write().bases.insert(generation, Arc::clone(&key));
        Ok(key)
    }
}

impl Keys {
    fn get(&self, generation: u32) -> Result<&[u8; KEY_BYTES], KeyError> {
        let none = || if self.replica.is_empty() { KeyError::Missing } else { KeyError::Unknown { generation } };
        self.replica.get(&generation).ok_or_else(none)
    }
}
