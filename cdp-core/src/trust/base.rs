//! Sealing the blocks of bases: by the key that this process drew, under a counter that never goes back.

use super::derive::derive;
use super::file::NotOpened;
use super::wrap::{KEY_BYTES, aes};
use crate::types::{DiskId, Lsn};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a block is sealed: what opens it, if its place is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSeal {
    /// Generation of the replica key.
    pub generation: u32,
    /// How many blocks the process had sealed with it: the nonce.
    pub counter: u64,
    /// Proves that the bytes are the ones that were sealed.
    pub tag: [u8; 16],
}

/// Which block it is, and who wrote it: all of it is bound to the tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockPlace {
    pub(crate) disk: DiskId,
    pub(crate) block: u64,
    pub(crate) lsn: Lsn,
}

/// What one replica key gives for bases.
pub(super) struct BaseKey {
    key: LessSafeKey,
    #[cfg(feature = "sim")]
    name: u32,
}

impl BaseKey {
    pub(super) fn new(replica_key: &[u8; KEY_BYTES]) -> Self {
        let key: [u8; KEY_BYTES] = derive(replica_key, &[], &[b"cdp base"]);
        Self {
            #[cfg(feature = "sim")]
            name: crc32c::crc32c(blake3::hash(&key).as_bytes()),
            key: aes(&key),
        }
    }

    #[cfg(feature = "sim")]
    fn name(&self) -> u32 {
        self.name
    }

    /// Seals in place.
    fn seal(&self, place: BlockPlace, counter: u64, bytes: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(bound(place)), bytes);
        let mut out = [0; 16];
        out.copy_from_slice(tag.expect("a block is no more than AES-GCM takes").as_ref());
        out
    }

    /// Opens in place; what `bytes` holds otherwise means nothing.
    pub(super) fn open(&self, place: BlockPlace, seal: &BlockSeal, bytes: &mut [u8]) -> Result<(), NotOpened> {
        let nonce = Nonce::assume_unique_for_key(nonce(seal.counter));
        let opened =
            self.key.open_in_place_separate_tag(nonce, Aad::from(bound(place)), Tag::from(seal.tag), bytes, 0..);
        opened.map(drop).map_err(|_| NotOpened)
    }
}

/// Seals blocks by one key. Clones, and others of the same process, share the counter.
#[derive(Clone)]
pub(crate) struct BlockSealer {
    pub(super) generation: u32,
    pub(super) key: Arc<BaseKey>,
    pub(super) counter: Arc<AtomicU64>,
    #[cfg(feature = "sim")]
    pub(super) recorder: Option<super::Recorder>,
}

impl std::fmt::Debug for BlockSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockSealer of generation {}", self.generation)
    }
}

impl BlockSealer {
    /// Seals a block in place.
    pub(crate) fn seal(&self, place: BlockPlace, bytes: &mut [u8]) -> BlockSeal {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        #[cfg(feature = "sim")]
        if let Some(recorder) = &self.recorder {
            recorder.add((None, "base", self.key.name()), nonce(counter), bytes);
        }
        BlockSeal { generation: self.generation, counter, tag: self.key.seal(place, counter, bytes) }
    }
}

fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn bound(place: BlockPlace) -> [u8; 18] {
    let mut bound = [0; 18];
    bound[..2].copy_from_slice(&place.disk.get().to_le_bytes());
    bound[2..10].copy_from_slice(&place.block.to_le_bytes());
    bound[10..].copy_from_slice(&place.lsn.0.to_le_bytes());
    bound
}
