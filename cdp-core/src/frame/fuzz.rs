//! Frames and notes for fuzzers.

use super::layout::{
    CHUNK_BYTES, CODEC_RAW, ChunkEntry, HEADER_BYTES, Header, MAGIC, RECORD_BYTES, RecordEntry, VERSION,
};
use super::record::RecordKind;
use super::{Compression, Encoder, FrameHead, NOTES_MAX, note};
use bytes::Bytes;
use std::mem::offset_of;
use zerocopy::FromBytes;

/// Whether the bytes begin with a whole frame.
pub(crate) fn frame(bytes: &[u8]) -> bool {
    let Ok(head) = FrameHead::parse(bytes) else { return false };
    let body = Bytes::copy_from_slice(&bytes[head.info.head_bytes as usize..]);
    let notes = head.notes(&body);
    let Ok(raw) = head.unpack(&body) else { return false };
    assert_eq!(notes.map(|notes| notes.len()), Ok(raw.parts.iter().filter(|part| part.note.is_some()).count()));
    // What a newer version wrote and this one skips cannot be written again.
    let noted = raw.parts.iter().filter(|part| part.note.is_some()).count();
    if raw.parts.len() == head.records.len() && noted <= NOTES_MAX {
        let again = Encoder::new().encode(raw.clone(), head.info.group, Compression::None);
        let parsed = FrameHead::parse(&again.head).expect("what was read can be written");
        assert_eq!(parsed.unpack(&Bytes::from(again.body.concat())).as_ref(), Ok(&raw));
    }
    true
}

/// Whether the bytes behind the first are a note of the kind that it says.
pub(crate) fn note(bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let Some(kind) = RecordKind::from_number(*kind) else { return false };
    let Some(found) = note::decode(kind, bytes) else { return false };
    let mut again = Vec::new();
    note::encode(&found, &mut again);
    assert_eq!(note::decode(kind, &again), Some(found));
    true
}

/// A frame of these bytes with the right checksums wherever its tables lead to something.
pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(HEADER_BYTES), 0);
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    let put = |bytes: &mut [u8], at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(&mut bytes, offset_of!(Header, version), &VERSION.to_le_bytes());
    put(&mut bytes, offset_of!(Header, flags), &[0; 2]);
    let Ok(length) = FrameHead::length(&bytes) else { return bytes };
    bytes.resize(bytes.len().max(length), 0);
    let Ok((header, _)) = Header::read_from_prefix(&bytes) else { return bytes };
    let chunks_at = HEADER_BYTES + header.records.get() as usize * RECORD_BYTES;
    // Where a stored range lies, if it is there.
    let range = |bytes: &[u8], from: usize, length: u32| {
        let end = from.checked_add(length as usize)?;
        bytes.get(from..end).map(crc32c::crc32c)
    };
    let chunk = |bytes: &[u8], number: usize| {
        let at = chunks_at + number * CHUNK_BYTES;
        ChunkEntry::read_from_bytes(bytes.get(at..at + CHUNK_BYTES)?).ok()
    };
    for number in 0..header.records.get() as usize {
        let at = HEADER_BYTES + number * RECORD_BYTES;
        let Ok(entry) = RecordEntry::read_from_bytes(&bytes[at..at + RECORD_BYTES]) else { continue };
        let Some(place) = usize::from(entry.chunk.get()).checked_sub(1) else { continue };
        let inside =
            chunk(&bytes, place).filter(|chunk| place < header.chunks.get() as usize && chunk.codec == CODEC_RAW);
        let Some(inside) = inside else { continue };
        let from = length + inside.offset.get() as usize + entry.chunk_offset.get() as usize;
        if let Some(crc) = range(&bytes, from, entry.chunk_length.get()) {
            put(&mut bytes, at + offset_of!(RecordEntry, crc), &crc.to_le_bytes());
        }
    }
    for number in 0..header.chunks.get() as usize {
        let Some(entry) = chunk(&bytes, number) else { continue };
        if let Some(crc) = range(&bytes, length + entry.offset.get() as usize, entry.stored_length.get()) {
            let at = chunks_at + number * CHUNK_BYTES + offset_of!(ChunkEntry, crc);
            put(&mut bytes, at, &crc.to_le_bytes());
        }
    }
    put(&mut bytes, offset_of!(Header, crc), &[0; 4]);
    let crc = crc32c::crc32c(&bytes[..length]);
    put(&mut bytes, offset_of!(Header, crc), &crc.to_le_bytes());
    bytes
}
