//! Sealing at rest: which replica key new segments are sealed by.

use super::Writer;
use crate::journal::manifest::{DiskInfo, Generation};
use crate::trust::{KEYS_MAX, KeyError, Keyring, NewKey};
use std::sync::Arc;

impl Writer {
    /// Seals at rest what is appended from now on, by this key, which was drawn just now and never used: every start that is to
    /// append takes a new one, so that no clone of the directory has it. Whatever is appended later goes to segments of its own.
    ///
    /// # Errors
    /// When the manifest can hold no more keys; nothing was changed then.
    pub fn seal_at_rest(&mut self, key: NewKey) -> Result<Generation, KeyError> {
        self.drop_unused_keys();
        if self.manifest.keys.len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let newest = self.manifest.keys.last().map_or(0, |key| key.generation);
        let generation = newest.checked_add(1).ok_or(KeyError::TooMany)?;
        self.manifest.keys.push(key.name(generation, &self.keys));
        self.key = generation;
        // A merge that was found under way is done again by it.
        self.keep_keys_of_bases();
        self.roll();
        Ok(self.catalog.touch(&mut self.manifest))
    }

    /// Keys that blocks of bases are sealed by stay. Of a merge that is before the manifest says so: what it writes is needed after
    /// a crash, whatever else of it is there.
    pub(super) fn keep_keys_of_bases(&mut self) {
        let at_rest = |disk: &DiskInfo| disk.base.is_some_and(|base| base.at_rest);
        let merges = self.manifest.merge.is_some() && self.manifest.disks.iter().any(at_rest);
        for key in &mut self.manifest.keys {
            key.bases |= self.keys.seals_bases(key.generation) || merges && key.generation == self.key;
        }
    }

    pub(super) fn drop_unused_keys(&mut self) {
        self.keep_keys_of_bases();
        self.manifest.drop_unused_keys();
    }

    /// The keys of the store, those that were drawn since it was opened too: for readers of this process.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.keys
    }

    /// The generation of the replica key that new segments are sealed by; none: they are not.
    #[must_use]
    pub fn key_generation(&self) -> Option<u32> {
        (self.key != 0).then_some(self.key)
    }
}
