//! Packing: from a raw frame to the bytes that are sent and appended.

use super::info::FrameInfo;
use super::layout::{
    CHUNK_BYTES, CODEC_RAW, CODEC_ZSTD, CONTENT_DATA, CONTENT_NOTES, ChunkEntry, HEADER_BYTES, Header,
};
use super::layout::{MAGIC, MUST_UNDERSTAND, RECORD_BYTES, RecordEntry, VERSION};
use super::record::{Part, RawFrame};
use super::{crc, note};
use crate::types::{CHUNK_PLAIN_MAX, GroupId};
use bytes::Bytes;
use zerocopy::{FromZeros, IntoBytes};

/// A frame as bytes: the head, and the body as a list to be written one after another without copying.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// What the head says.
    pub info: FrameInfo,
    /// Header, record table and chunk table.
    pub head: Bytes,
    /// The stored bytes of all chunks in order; a raw chunk is as many pieces as it has parts.
    pub body: Vec<Bytes>,
}

impl EncodedFrame {
    /// Bytes of head and body together.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::from(self.info.head_bytes) + u64::from(self.info.body_bytes)
    }

    /// Never: a frame has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// How hard to compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Store chunks as they are.
    None,
    /// zstd at this level (-7 to 19); a chunk that would not shrink by a sixteenth is stored raw.
    Zstd(i32),
    /// The same, but a chunk of which a sample does not shrink at all is stored raw without another try.
    Sampled(i32),
    /// The same, but only chunks of which a sample shrinks well: most of what there is to save, for half of the time.
    Promising(i32),
}

impl Compression {
    /// The same, but not harder than this level.
    #[must_use]
    pub fn at_most(self, max: i32) -> Self {
        match self {
            Self::None => self,
            Self::Zstd(level) => Self::Zstd(level.min(max)),
            Self::Sampled(level) => Self::Sampled(level.min(max)),
            Self::Promising(level) => Self::Promising(level.min(max)),
        }
    }
}

/// Room for so many chunks is made at once: those of a frame of small writes, and its notes.
const CHUNKS_USUAL: usize = 8;
/// Of a chunk's sample: two pieces of so many bytes, which must shrink to so much of themselves.
const SAMPLE_BYTES: usize = 1 << 10;
const PROMISING_PERCENT: usize = 60;
/// Where it does not even shrink to so much it is noise: compressed or encrypted before.
const NOISE_PERCENT: usize = 96;

/// Packs frames; keeps the compressor and its buffers between calls.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    level: i32,
    gathered: Vec<u8>,
    /// What is being compressed; none before the first chunk.
    packed: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder with its own compressor.
    #[must_use]
    pub fn new() -> Self {
        Self { zstd: zstd::bulk::Compressor::default(), level: 0, gathered: Vec::new(), packed: Vec::new() }
    }

    /// Packs `raw` as a frame of `group`. Its data goes into the frame: nothing is copied where it is stored as it is.
    ///
    /// # Panics
    /// When `raw` holds no part, or stamps or LSNs further apart than the format has bits for, or (in debug builds) more notes
    /// than a chunk has room for, which [`NOTES_MAX`](super::NOTES_MAX) of any length are not: nobody makes such a frame.
    #[must_use]
    pub fn encode(&mut self, raw: RawFrame, group: GroupId, compression: Compression) -> EncodedFrame {
        let mut raw = raw;
        let first = raw.parts.first().expect("a frame holds at least one record");
        let (first_lsn, first_time) = (first.lsn, first.time);
        if let Compression::Zstd(level) | Compression::Sampled(level) | Compression::Promising(level) = compression {
            self.set_level(level);
        }
        let mut packer = Packer {
            encoder: self,
            compression,
            entries: Vec::with_capacity(CHUNKS_USUAL),
            body: Vec::with_capacity(raw.parts.len()),
            body_bytes: 0,
            open: 0..0,
            open_bytes: 0,
        };
        let mut head = Vec::with_capacity(HEADER_BYTES + raw.parts.len() * RECORD_BYTES + CHUNKS_USUAL * CHUNK_BYTES);
        head.resize(HEADER_BYTES, 0);
        let mut notes = Vec::new();
        let mut noted = Vec::new();
        for number in 0..raw.parts.len() {
            let chunk = packer.place(&mut raw.parts, number);
            let part = &raw.parts[number];
            let mut entry = RecordEntry::new_zeroed();
            let delta = |from: u64, to: u64| u32::try_from(to.saturating_sub(from)).expect("a frame spans 32 bits");
            entry.lsn_delta.set(delta(first_lsn.0, part.lsn.0));
            entry.time_delta.set(delta(first_time.0, part.time.0));
            entry.offset.set(part.extent.offset);
            entry.length.set(part.extent.length);
            entry.crc.set(part.crc);
            entry.disk.set(part.disk.map_or(0, crate::types::DiskId::get));
            entry.kind = part.kind as u8;
            entry.flags = if part.kind.must_understand() { MUST_UNDERSTAND } else { 0 };
            entry.index.set(part.index);
            entry.count.set(part.count);
            if let Some((chunk, offset)) = chunk {
                entry.chunk.set(chunk);
                entry.chunk_offset.set(offset);
                entry.chunk_length.set(part.data.len() as u32);
            } else if let Some(value) = &part.note {
                let offset = notes.len();
                note::encode(value, &mut notes);
                entry.chunk_offset.set(offset as u32);
                entry.chunk_length.set((notes.len() - offset) as u32);
                entry.crc.set(crc32c::crc32c(&notes[offset..]));
                noted.push(number);
            }
            head.extend_from_slice(entry.as_bytes());
        }
        packer.close(&mut raw.parts);
        if !notes.is_empty() {
            let chunk = packer.push_notes(notes);
            for number in noted {
                let at = HEADER_BYTES + number * RECORD_BYTES + std::mem::offset_of!(RecordEntry, chunk);
                head[at..at + 2].copy_from_slice(&chunk.to_le_bytes());
            }
        }
        let Packer { entries, body, body_bytes, .. } = packer;
        entries.iter().for_each(|entry| head.extend_from_slice(entry.as_bytes()));
        let info = FrameInfo::of(&raw, group, entries.len(), body_bytes);
        header(&raw, &info, entries.len()).write_to_prefix(&mut head).expect("the head is longer than its header");
        let crc = crc32c::crc32c(&head);
        let at = std::mem::offset_of!(Header, crc);
        head[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        EncodedFrame { info, head: head.into(), body }
    }

    /// Whether a sample of a chunk shrinks to so much of itself.
    fn promises<'a>(&mut self, parts: impl Iterator<Item = &'a Part> + Clone, plain: usize, percent: usize) -> bool {
        self.gathered.clear();
        for at in [plain / 4, plain / 4 * 3] {
            self.gathered.extend_from_slice(piece(parts.clone(), at, SAMPLE_BYTES));
        }
        let room = self.gathered.len() * percent / 100;
        self.zstd.compress_to_buffer(self.gathered.as_slice(), room_in(&mut self.packed, room)).is_ok()
    }

    fn set_level(&mut self, level: i32) {
        if self.level != level {
            // Refused levels leave the one before, which is valid: zstd clamps, so this cannot matter.
            let _ = self.zstd.set_compression_level(level);
            self.level = level;
        }
    }
}

/// Room for so much of a chunk.
fn room_in(packed: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    packed.resize(CHUNK_PLAIN_MAX as usize, 0);
    &mut packed[..bytes]
}

/// What lies at a place of the parts' joint data, in one part and at most `length` bytes.
fn piece<'a>(parts: impl Iterator<Item = &'a Part>, mut at: usize, length: usize) -> &'a [u8] {
    for part in parts {
        if let Some(rest) = part.data.get(at..).filter(|rest| !rest.is_empty()) {
            return &rest[..rest.len().min(length)];
        }
        at -= part.data.len();
    }
    &[]
}

fn header(raw: &RawFrame, info: &FrameInfo, chunks: usize) -> Header {
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version.set(VERSION);
    header.group = *info.group.bytes();
    header.timeline = *raw.timeline.bytes();
    header.prev_lsn.set(raw.prev_lsn.0);
    header.first_lsn.set(info.first_lsn.0);
    header.last_lsn.set(info.last_lsn.0);
    header.settled.set(raw.settled.0);
    header.base_time.set(info.first_time.0);
    header.epoch.set(raw.epoch.0);
    header.records.set(raw.parts.len() as u32);
    header.chunks.set(chunks as u32);
    header.plain_bytes.set(info.plain_bytes);
    header.body_bytes.set(info.body_bytes);
    header
}

/// Fills chunks one after another; a part goes into the open one if it still fits.
struct Packer<'a> {
    encoder: &'a mut Encoder,
    compression: Compression,
    entries: Vec<ChunkEntry>,
    body: Vec<Bytes>,
    body_bytes: u32,
    /// Numbers of the parts of the open chunk (parts without data in between do not count).
    open: std::ops::Range<usize>,
    open_bytes: u32,
}

impl Packer<'_> {
    /// Puts the data of part `number`, if it has any, into a chunk: the chunk's number from 1, and where in its plain bytes.
    fn place(&mut self, parts: &mut [Part], number: usize) -> Option<(u16, u32)> {
        let length = parts[number].data.len() as u32;
        if length == 0 {
            return None;
        }
        if self.open_bytes + length > CHUNK_PLAIN_MAX as u32 {
            self.close(parts);
        }
        if self.open_bytes == 0 {
            self.open.start = number;
        }
        self.open.end = number + 1;
        let offset = self.open_bytes;
        self.open_bytes += length;
        Some((self.entries.len() as u16 + 1, offset))
    }

    /// Packs the open chunk; its parts' data goes into the body.
    fn close(&mut self, parts: &mut [Part]) {
        if self.open_bytes == 0 {
            return;
        }
        let plain = self.open_bytes;
        self.open_bytes = 0;
        let open = &mut parts[self.open.clone()];
        let parts = open.iter().filter(|part| !part.data.is_empty());
        let worth_it = match self.compression {
            Compression::None => false,
            Compression::Zstd(_) => true,
            Compression::Sampled(_) => self.encoder.promises(parts.clone(), plain as usize, NOISE_PERCENT),
            Compression::Promising(_) => self.encoder.promises(parts.clone(), plain as usize, PROMISING_PERCENT),
        };
        if worth_it {
            let Encoder { zstd, gathered, packed, .. } = &mut *self.encoder;
            let mut data = parts.clone().map(|part| &part.data[..]);
            let plain_bytes = match (data.next(), data.next()) {
                (Some(whole), None) => whole,
                _ => {
                    gathered.clear();
                    parts.clone().for_each(|part| gathered.extend_from_slice(&part.data));
                    gathered
                }
            };
            // The output has no room for more than fifteen sixteenths: what does not fit is not worth inflating later.
            let room = plain_bytes.len() - plain_bytes.len() / 16;
            let packed = room_in(packed, room);
            if let Ok(length) = zstd.compress_to_buffer(plain_bytes, packed) {
                // In memory of its own: frames wait long, each for its own way, and bounds count what a frame has.
                let stored = Bytes::copy_from_slice(&packed[..length]);
                let crc = crc32c::crc32c(&stored);
                self.push(CODEC_ZSTD, CONTENT_DATA, plain, length as u32, crc);
                self.body.push(stored);
                return;
            }
        }
        // The stored bytes are the parts': what was made at capture is joined, and the bytes, long out of the cache, are not
        // read again.
        let crc = parts.clone().fold(0, |crc, part| crc::joined(crc, part.crc, part.data.len() as u32));
        self.push(CODEC_RAW, CONTENT_DATA, plain, plain, crc);
        let data = open.iter_mut().map(|part| std::mem::take(&mut part.data));
        self.body.extend(data.filter(|data| !data.is_empty()));
    }

    fn push_notes(&mut self, notes: Vec<u8>) -> u16 {
        debug_assert!(notes.len() as u64 <= CHUNK_PLAIN_MAX, "{} bytes of notes", notes.len());
        let length = notes.len() as u32;
        self.push(CODEC_RAW, CONTENT_NOTES, length, length, crc32c::crc32c(&notes));
        self.body.push(notes.into());
        self.entries.len() as u16
    }

    fn push(&mut self, codec: u8, content: u8, plain: u32, stored: u32, crc: u32) {
        let mut entry = ChunkEntry::new_zeroed();
        entry.offset.set(self.body_bytes);
        entry.stored_length.set(stored);
        entry.plain_length.set(plain);
        entry.crc.set(crc);
        entry.codec = codec;
        entry.content = content;
        self.body_bytes += stored;
        self.entries.push(entry);
    }
}
