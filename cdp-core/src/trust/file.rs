//! The keys of one segment, and what is sealed by them.

use super::derive::derive;
use super::wrap::{KEY_BYTES, aes};
use crate::types::SegmentId;
use ring::aead::quic::{AES_256, HeaderProtectionKey};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::hmac;

/// Bytes by which what is sealed is longer.
pub const TAG_BYTES: usize = 16;

/// The tag does not match: the bytes, their place, or the key are others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotOpened;

/// Which chunk it is, and as what it is read: all of it is bound to the tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChunkPlace {
    /// Its number in the segment: the nonce.
    pub(crate) number: u32,
    pub(crate) codec: u8,
    pub(crate) content: u8,
    pub(crate) plain_length: u32,
}

/// Seals and opens what is in one segment. `journal/FORMAT.md`, section 11, says what is sealed how.
pub struct FileKey {
    id: SegmentId,
    chunks: LessSafeKey,
    events: LessSafeKey,
    events_nonce: hmac::Key,
    parts: HeaderProtectionKey,
    #[cfg(feature = "sim")]
    recorder: Option<super::record::Book>,
}

impl std::fmt::Debug for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileKey of {}", self.id)
    }
}

impl FileKey {
    pub(in crate::trust) fn new(replica_key: &[u8; KEY_BYTES], id: SegmentId) -> Self {
        let key = |label: &[u8]| derive::<KEY_BYTES>(replica_key, &[], &[label, id.bytes()]);
        let parts = HeaderProtectionKey::new(&AES_256, &key(b"cdp parts"));
        Self {
            id,
            chunks: aes(&key(b"cdp chunks")),
            events: aes(&key(b"cdp events")),
            events_nonce: hmac::Key::new(hmac::HMAC_SHA256, &key(b"cdp events nonce")),
            parts: parts.expect("the key has as many bytes as the cipher takes"),
            #[cfg(feature = "sim")]
            recorder: None,
        }
    }

    /// Seals a chunk's stored bytes in place and appends the tag. Only who gives chunks of this segment their numbers may, and
    /// once for each: with other bytes under the same number both would be readable.
    pub(crate) fn seal_chunk(&self, place: ChunkPlace, bytes: &mut Vec<u8>) {
        let nonce = chunk_nonce(place.number);
        #[cfg(feature = "sim")]
        self.record("chunks", nonce, bytes);
        let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(self.bound(place)));
        self.chunks.seal_in_place_append_tag(nonce, aad, bytes).expect("a chunk is no more than AES-GCM takes");
    }

    /// Opens a chunk in place: how many bytes from the front are its own.
    pub(crate) fn open_chunk(&self, place: ChunkPlace, bytes: &mut [u8]) -> Result<usize, NotOpened> {
        let nonce = Nonce::assume_unique_for_key(chunk_nonce(place.number));
        let opened = self.chunks.open_in_place(nonce, Aad::from(self.bound(place)), bytes);
        opened.map(|plain| plain.len()).map_err(|_| NotOpened)
    }

    fn bound(&self, place: ChunkPlace) -> [u8; 26] {
        let mut bound = [0; 26];
        bound[..16].copy_from_slice(self.id.bytes());
        bound[16..20].copy_from_slice(&place.number.to_le_bytes());
        (bound[20], bound[21]) = (place.codec, place.content);
        bound[22..].copy_from_slice(&place.plain_length.to_le_bytes());
        bound
    }

    /// Masks, or unmasks, the checksum of the plain bytes at a place of a chunk.
    pub(crate) fn mask(&self, chunk: u32, offset: u32, crc: u32) -> u32 {
        let mut place = [0; 16];
        place[..4].copy_from_slice(&chunk.to_le_bytes());
        place[4..8].copy_from_slice(&offset.to_le_bytes());
        let [a, b, c, d, _] = self.parts.new_mask(&place).expect("a place has as many bytes as the cipher takes");
        crc ^ u32::from_le_bytes([a, b, c, d])
    }

    /// The events of the footer: nonce, ciphertext, tag. The same bytes always give the same.
    pub(crate) fn seal_events(&self, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hmac::sign(&self.events_nonce, plain).as_ref()[..NONCE_LEN]);
        #[cfg(feature = "sim")]
        self.record("events", nonce, plain);
        let mut sealed = plain.to_vec();
        let (unique, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(self.id.bytes()));
        self.events.seal_in_place_append_tag(unique, aad, &mut sealed).expect("events are no more than AES-GCM takes");
        let mut bytes = Vec::with_capacity(sealed.len() + NONCE_LEN);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        bytes
    }

    /// The events back.
    pub(crate) fn open_events(&self, bytes: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN).ok_or(NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
        let mut sealed = sealed.to_vec();
        let opened = self.events.open_in_place(nonce, Aad::from(self.id.bytes()), &mut sealed);
        let length = opened.map_err(|_| NotOpened)?.len();
        sealed.truncate(length);
        Ok(sealed)
    }

    #[cfg(feature = "sim")]
    pub(super) fn recorded(mut self, recorder: Option<super::Recorder>) -> Self {
        // The mask of a place that no chunk has tells keys apart without telling them.
        let name = self.mask(u32::MAX, u32::MAX, 0);
        self.recorder = recorder.map(|recorder| super::record::Book { recorder, id: self.id, key: name });
        self
    }

    #[cfg(feature = "sim")]
    fn record(&self, kind: &'static str, nonce: [u8; NONCE_LEN], plain: &[u8]) {
        if let Some(book) = &self.recorder {
            book.add(kind, nonce, plain);
        }
    }
}

fn chunk_nonce(number: u32) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    nonce
}
