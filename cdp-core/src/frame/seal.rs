//! Frames as a journal that is sealed at rest keeps them: each chunk sealed, the checksums of parts masked. On the wire no frame
//! looks like that. What is sealed how is in `journal/FORMAT.md`, section 11.

use super::decode::{ChunkInfo, FrameError, FrameHead, inflate, verify_chunk};
use super::encode::EncodedFrame;
use super::layout::{CHUNK_BYTES, CODEC_RAW, CODEC_ZSTD, CONTENT_DATA, CONTENT_NOTES, ChunkEntry, HEADER_BYTES};
use super::layout::{Header, RECORD_BYTES, RecordEntry, SEALED};
use crate::trust::{ChunkPlace, FileKey, TAG_BYTES};
use bytes::Bytes;
use std::mem::offset_of;

impl EncodedFrame {
    /// The frame as the segment with these keys keeps it, when its first chunk gets that number; with its head read again. Copies
    /// the data once.
    pub(crate) fn sealed(
        &self,
        head: &FrameHead,
        key: &FileKey,
        first_chunk: u32,
    ) -> Result<(FrameHead, Self), FrameError> {
        let mut bytes = self.head.to_vec();
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for (number, record) in head.records.iter().enumerate().filter(|(_, record)| record.chunk != 0) {
            let chunk = first_chunk + u32::from(record.chunk) - 1;
            let at = HEADER_BYTES + number * RECORD_BYTES + offset_of!(RecordEntry, crc);
            put(at, key.mask(chunk, record.chunk_offset, record.crc));
        }
        let table = HEADER_BYTES + head.records.len() * RECORD_BYTES;
        let mut pieces = self.body.iter();
        let (mut body, mut body_bytes) = (Vec::with_capacity(head.chunks.len()), 0);
        for (number, chunk) in head.chunks.iter().enumerate() {
            let plain = chunk.stored_length as usize;
            let mut stored = Vec::with_capacity(plain + TAG_BYTES);
            // A chunk is one piece or several, and none is of two chunks.
            while stored.len() < plain {
                let found = stored.len();
                stored.extend_from_slice(pieces.next().ok_or(FrameError::Short { expected: plain, found })?);
            }
            key.seal_chunk(chunk.place(first_chunk + number as u32), &mut stored);
            let at = table + number * CHUNK_BYTES;
            put(at + offset_of!(ChunkEntry, offset), body_bytes);
            put(at + offset_of!(ChunkEntry, stored_length), stored.len() as u32);
            put(at + offset_of!(ChunkEntry, crc), crc32c::crc32c(&stored));
            body_bytes += stored.len() as u32;
            body.push(Bytes::from(stored));
        }
        put(offset_of!(Header, body_bytes), body_bytes);
        put(offset_of!(Header, crc), 0);
        for number in 0..head.chunks.len() {
            bytes[table + number * CHUNK_BYTES + offset_of!(ChunkEntry, flags)] = SEALED;
        }
        let crc = crc32c::crc32c(&bytes);
        bytes[offset_of!(Header, crc)..][..4].copy_from_slice(&crc.to_le_bytes());
        let head = FrameHead::parse(&bytes)?;
        let info = head.info;
        Ok((head, Self { info, head: bytes.into(), body }))
    }
}

impl FrameHead {
    /// Whether the frame is one of a journal that is sealed at rest, and cannot be unpacked as it is. One without chunks is the
    /// same either way.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.sealed)
    }

    /// The frame as it was before it was sealed: its head, and the stored bytes of its body; every chunk is verified.
    pub(crate) fn unsealed(&self, body: &[u8], key: &FileKey, first_chunk: u32) -> Result<(Self, Bytes), FrameError> {
        let mut head = self.clone();
        for record in head.records.iter_mut().filter(|record| record.chunk != 0) {
            record.crc = key.mask(first_chunk + u32::from(record.chunk) - 1, record.chunk_offset, record.crc);
        }
        let mut plain = Vec::with_capacity(body.len());
        for (number, chunk) in (first_chunk..).zip(&mut head.chunks) {
            let expected = (chunk.offset + chunk.stored_length) as usize;
            let found = body.len();
            let stored = body.get(chunk.offset as usize..expected).ok_or(FrameError::Short { expected, found })?;
            verify_chunk(chunk, stored)?;
            let offset = plain.len();
            plain.extend_from_slice(stored);
            let length = open(chunk, number, &mut plain[offset..], key)?;
            plain.truncate(offset + length);
            let crc = crc32c::crc32c(&plain[offset..]);
            *chunk = ChunkInfo { offset: offset as u32, stored_length: length as u32, crc, sealed: false, ..*chunk };
        }
        head.info.body_bytes = plain.len() as u32;
        Ok((head, plain.into()))
    }
}

impl ChunkInfo {
    /// What the tag of the chunk is bound to, when it has that number in its segment.
    fn place(&self, number: u32) -> ChunkPlace {
        let codec = if self.compressed { CODEC_ZSTD } else { CODEC_RAW };
        let content = if self.notes { CONTENT_NOTES } else { CONTENT_DATA };
        ChunkPlace { number, codec, content, plain_length: self.plain_length }
    }
}

/// Opens a chunk in place: how many bytes from the front are left.
fn open(chunk: &ChunkInfo, number: u32, stored: &mut [u8], key: &FileKey) -> Result<usize, FrameError> {
    if !chunk.sealed {
        return Err(FrameError::Field { field: "chunk.flags", value: 0 });
    }
    key.open_chunk(chunk.place(number), stored).map_err(|_| FrameError::NotOpened { chunk: chunk.number })
}

/// Verifies the stored bytes of a sealed chunk that has this number in its segment, opens and inflates them.
pub(crate) fn open_chunk(chunk: &ChunkInfo, number: u32, stored: Bytes, key: &FileKey) -> Result<Bytes, FrameError> {
    verify_chunk(chunk, &stored)?;
    let mut bytes = Vec::from(stored);
    let length = open(chunk, number, &mut bytes, key)?;
    bytes.truncate(length);
    if !chunk.compressed {
        return Ok(bytes.into());
    }
    inflate(chunk, &bytes)
}
