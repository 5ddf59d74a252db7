//! Headers and entries of spool files for fuzzers.

use super::layout::{
    ENTRY_BYTES, ENTRY_MAGIC, EntryLayout, HEADER_BYTES, Header, HeaderLayout, Home, MAGIC, VERSION, decode_entry,
    encode_entry,
};
use crate::frame;
use crate::types::{GroupId, Timeline};
use bytes::Bytes;
use std::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

/// Whether the bytes begin with a file's header.
pub(crate) fn header(bytes: &[u8]) -> bool {
    let Ok(header) = Header::decode(bytes) else { return false };
    assert_eq!(header.encode(), bytes[..HEADER_BYTES as usize]);
    true
}

/// The header with magic, version and checksum made right.
pub(crate) fn seal_header(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(HEADER_BYTES as usize), 0);
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[offset_of!(HeaderLayout, version)..][..2].copy_from_slice(&VERSION.to_le_bytes());
    let at = offset_of!(HeaderLayout, crc);
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES as usize]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether the bytes begin with an entry of the group, timeline and place that it names itself.
pub(crate) fn entry(bytes: &[u8]) -> bool {
    let Ok((layout, rest)) = EntryLayout::read_from_prefix(bytes) else { return false };
    let group = rest.get(16..32).and_then(|group| GroupId::new(group.try_into().ok()?));
    let (Some(group), Some(timeline)) = (group, Timeline::new(layout.timeline)) else { return false };
    let home = Home { group, timeline, sequence: layout.sequence.get(), offset: layout.offset.get() };
    let Ok(frame) = decode_entry(home, &Bytes::copy_from_slice(bytes)) else { return false };
    let mut again = Vec::new();
    encode_entry(home, &frame, layout.flags.get() != 0, &mut again);
    let length = ENTRY_BYTES as usize + frame.len() as usize;
    assert_eq!(again.concat()[..length], bytes[..length]);
    true
}

/// The entry with magic, length and checksum made right, and a frame that is.
pub(crate) fn seal_entry(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(ENTRY_BYTES as usize), 0);
    let (head, frame) = bytes.split_at(ENTRY_BYTES as usize);
    let frame = frame::fuzz::seal(frame);
    let Ok((mut layout, _)) = EntryLayout::read_from_prefix(head) else { return bytes };
    layout.magic = ENTRY_MAGIC;
    layout.length = (frame.len() as u32).into();
    layout.flags = (layout.flags.get() & 1).into();
    layout.reserved.fill(0);
    layout.timeline.copy_from_slice(&frame[32..48]);
    layout.crc = crc32c::crc32c(&layout.as_bytes()[offset_of!(EntryLayout, length)..]).into();
    [layout.as_bytes(), &frame].concat()
}
