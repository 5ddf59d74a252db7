//! The fixed blocks of a segment: header, opening, envelope, trailer, and the frame that holds footer blocks together.
//!
//! `FORMAT.md` beside this code has the byte tables; nothing else of the crate knows these offsets.

use super::bytes::{FormatError, PREFIX, Put, Take};
use crate::buffer::PAGE;
use crate::types::{ClockEpoch, Extent, GroupId, Lsn, ReplicaId, SECTOR, SegmentId, Stamp, Timeline, WallTime};

/// Version of every block of a segment.
pub(super) const VERSION: u16 = 1;
/// Where the first envelope begins.
pub(super) const FRAMES_AT: u64 = 4096;
/// Where the opening stands.
pub(super) const OPENING_AT: u64 = 512;
/// Bytes of header, opening and trailer.
pub(super) const FIXED_BYTES: usize = 512;
/// Bytes of an envelope.
pub(super) const ENVELOPE_BYTES: usize = 64;
/// Bytes from which on a frame is a large one: padding to a page is a sixteenth of it at most.
pub(super) const LARGE_FRAME: u64 = 64 << 10;
/// Bytes of a footer block.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Bytes of a footer block before its entries.
pub(super) const BLOCK_HEADER_BYTES: usize = 48;
/// The most bytes of a segment file.
pub(super) const SEGMENT_MAX: u64 = 16 << 30;

/// Flag of a header: sealed at rest.
const SEALED: u16 = 1;

pub(super) const HEADER_MAGIC: [u8; 8] = *b"CDPSEGM\x01";
pub(super) const OPENING_MAGIC: [u8; 8] = *b"CDPOPEN\x01";
pub(super) const ENVELOPE_MAGIC: [u8; 8] = *b"CDPENVL\x01";
pub(super) const BLOCK_MAGIC: [u8; 8] = *b"CDPBLOK\x01";
pub(super) const TRAILER_MAGIC: [u8; 8] = *b"CDPTRLR\x01";

const _: () = assert!(FRAMES_AT.is_multiple_of(SECTOR) && OPENING_AT + FIXED_BYTES as u64 <= FRAMES_AT);
const _: () = assert!(BLOCK_HEADER_BYTES > PREFIX + 16 + 4 + 1 + 2 + 2 && ENVELOPE_BYTES == PREFIX + 48);

/// Identity of a segment file, written when it is prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whose journal.
    pub replica: ReplicaId,
    /// This file, and no other ever.
    pub id: SegmentId,
    /// Place among the segments, from 1.
    pub number: u64,
    /// Generation of the replica key that it is sealed by at rest; 0: it is not.
    pub key: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut put = Put::begin(HEADER_MAGIC, VERSION, if self.key == 0 { 0 } else { SEALED });
        put.bytes(self.replica.bytes()).bytes(self.id.bytes()).u64(self.number).u32(self.key);
        put.finish(FIXED_BYTES)
    }
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "segment header";
        let (mut take, flags) = Take::begin(what, fixed(what, bytes)?, HEADER_MAGIC, VERSION, SEALED)?;
        Ok(Self {
            replica: take.id("replica", ReplicaId::new)?,
            id: take.id("segment", SegmentId::new)?,
            number: take.u64_if("number", |value| value != 0)?,
            key: take.u32_if("key", |value| (value != 0) == (flags & SEALED != 0))?,
        })
    }
}

/// What a segment continues, written together with its first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// The file this stands in.
    pub id: SegmentId,
    /// Whose write order.
    pub group: GroupId,
    /// The one branch of history that the segment holds.
    pub timeline: Timeline,
    /// The last LSN with a part in any segment before; zero before the first.
    pub prev_lsn: Lsn,
    /// The segment before; none before the first.
    pub prev_segment: Option<SegmentId>,
    /// How many frames that segment has: a tail of it that was lost does not go unnoticed.
    pub prev_frames: u32,
    /// What was durable when this was written.
    pub durable: Lsn,
}

impl Opening {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut put = Put::begin(OPENING_MAGIC, VERSION, 0);
        put.bytes(self.id.bytes()).bytes(self.group.bytes()).bytes(self.timeline.bytes()).u64(self.prev_lsn.0);
        put.bytes(&self.prev_segment.map_or([0; 16], |id| *id.bytes()))
            .u32(self.prev_frames)
            .u32(0)
            .u64(self.durable.0);
        put.finish(FIXED_BYTES)
    }
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "segment opening";
        let (mut take, _) = Take::begin(what, fixed(what, bytes)?, OPENING_MAGIC, VERSION, 0)?;
        let id = take.id("segment", SegmentId::new)?;
        let group = take.id("group", GroupId::new)?;
        let timeline = take.id("timeline", Timeline::new)?;
        let prev_lsn = Lsn(take.u64()?);
        let prev_segment = SegmentId::new(take.array()?);
        let (prev_frames, _) = (take.u32()?, take.u32()?);
        Ok(Self { id, group, timeline, prev_lsn, prev_segment, prev_frames, durable: Lsn(take.u64()?) })
    }
}

/// What stands before each frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The file this stands in.
    pub id: SegmentId,
    /// Place among the segment's frames, from 1.
    pub sequence: u32,
    /// How many chunks the frames before it have: chunk numbers run through the segment and are the sealing counter.
    pub first_chunk: u32,
    /// What was durable when this was written.
    pub durable: Lsn,
    /// Bytes of the frame, without padding.
    pub frame_bytes: u32,
    /// Bytes of the frame's head.
    pub head_bytes: u32,
    /// CRC32C of the head's bytes: binds this frame to this place.
    pub head_crc: u32,
}

impl Envelope {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut put = Put::begin(ENVELOPE_MAGIC, VERSION, 0);
        put.bytes(self.id.bytes()).u32(self.sequence).u32(self.first_chunk).u64(self.durable.0);
        put.u32(self.frame_bytes).u32(self.head_bytes).u32(self.head_crc);
        put.finish(ENVELOPE_BYTES)
    }
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "frame envelope";
        let found = bytes.len() as u64;
        let bytes = bytes.get(..ENVELOPE_BYTES).ok_or(FormatError::Short { what, expected: 64, found })?;
        let (mut take, _) = Take::begin(what, bytes, ENVELOPE_MAGIC, VERSION, 0)?;
        let id = take.id("segment", SegmentId::new)?;
        let sequence = take.u32_if("sequence", |value| value != 0)?;
        let first_chunk = take.u32()?;
        let durable = Lsn(take.u64()?);
        let max = crate::frame::FRAME_BYTES_MAX as u32;
        let frame_bytes = take.u32_if("frame_bytes", |value| value <= max)?;
        let head_bytes = take.u32_if("head_bytes", |value| value <= frame_bytes)?;
        Ok(Self { id, sequence, first_chunk, durable, frame_bytes, head_bytes, head_crc: take.u32()? })
    }
    /// Whether bytes look like the beginning of an envelope: what the search behind a damaged place goes by.
    pub(super) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&ENVELOPE_MAGIC)
    }
    /// Bytes from this envelope, which begins at `offset`, to the frame's body.
    pub(super) fn body_at(&self, offset: u64) -> u64 {
        body_at(offset, u64::from(self.head_bytes), u64::from(self.frame_bytes))
    }
    /// Bytes from this envelope, which begins at `offset`, to the next one.
    pub(super) fn stride(&self, offset: u64) -> u64 {
        stride(offset, u64::from(self.head_bytes), u64::from(self.frame_bytes))
    }
}

/// Bytes from a frame's envelope, which begins at `offset`, to its body. That of a large frame begins on a sector: what guests
/// wrote is then handed to the disk from where it was received. One of whole pages begins on a page, which costs nothing because the
/// next frame does too: what guests wrote by the page is then read by the page.
pub(super) fn body_at(offset: u64, head_bytes: u64, frame_bytes: u64) -> u64 {
    let head_ends = offset + ENVELOPE_BYTES as u64 + head_bytes;
    let unit = match frame_bytes - head_bytes {
        _ if frame_bytes < LARGE_FRAME => 1,
        body_bytes if body_bytes.is_multiple_of(PAGE as u64) => PAGE as u64,
        _ => SECTOR,
    };
    head_ends.next_multiple_of(unit) - offset
}

/// Bytes that a frame takes in a segment, with envelope and padding, when its envelope begins at `offset`. Behind a large frame
/// the next one begins on a page: file systems write several of those at once past the page cache, and others one by one.
pub(super) fn stride(offset: u64, head_bytes: u64, frame_bytes: u64) -> u64 {
    let unit = if frame_bytes >= LARGE_FRAME { PAGE as u64 } else { SECTOR };
    (offset + body_at(offset, head_bytes, frame_bytes) + frame_bytes - head_bytes).next_multiple_of(unit) - offset
}

/// What a footer block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum BlockKind {
    /// Index entries of at most 32 KiB each, sorted by disk, offset, LSN.
    Narrow = 1,
    /// Index entries of zeros and discards longer than that, sorted the same way.
    Wide = 2,
    /// First key and furthest end of each index block.
    Fences = 3,
    /// Where chunks are.
    Chunks = 4,
    /// Where frames are.
    Frames = 5,
    /// Which segments a run of the levelled index was made of.
    Segments = 6,
    /// First key and furthest end of each block of fences in a run.
    Tops = 7,
}

impl BlockKind {
    /// Whether blocks of this kind go from a footer once a run has what they hold.
    pub(super) fn is_index(self) -> bool {
        matches!(self, Self::Narrow | Self::Wide | Self::Fences)
    }

    fn from_number(number: u8) -> Option<Self> {
        let footer = [Self::Narrow, Self::Wide, Self::Fences, Self::Chunks, Self::Frames];
        footer.into_iter().chain([Self::Segments, Self::Tops]).find(|kind| *kind as u8 == number)
    }
}

/// Encodes a footer block of equally long entries.
pub(super) fn encode_block(
    id: SegmentId,
    number: u32,
    kind: BlockKind,
    disk: u16,
    entries: &[u8],
    count: u16,
) -> Vec<u8> {
    let mut put = Put::begin(BLOCK_MAGIC, VERSION, 0);
    put.bytes(id.bytes()).u32(number).u8(kind as u8).u8(0).u16(disk).u16(count).bytes(&[0; 6]).bytes(entries);
    put.finish(BLOCK_BYTES)
}

/// Checks that a footer block is the one expected here; gives its disk and the bytes of its entries.
pub(super) fn decode_block(
    bytes: &[u8],
    id: SegmentId,
    number: u32,
    kind: BlockKind,
    entry_bytes: usize,
) -> Result<(u16, &[u8]), FormatError> {
    let what = "footer block";
    let (mut take, _) = Take::begin(what, bytes, BLOCK_MAGIC, VERSION, 0)?;
    let found = take.id("segment", SegmentId::new)?;
    if found != id {
        return Err(foreign(what, "segment", id, found));
    }
    let found = take.u32()?;
    if found != number {
        return Err(foreign(what, "number", number, found));
    }
    let found = take.kind("kind", BlockKind::from_number)?;
    if found != kind {
        return Err(foreign(what, "kind", kind as u8, found as u8));
    }
    let _ = take.u8()?;
    let disk = take.u16()?;
    let count = usize::from(take.u16()?);
    if count > (BLOCK_BYTES - BLOCK_HEADER_BYTES) / entry_bytes {
        return Err(take.field("count", count as u64));
    }
    let _ = take.bytes(6)?;
    Ok((disk, take.bytes(count * entry_bytes)?))
}

/// Everything about a sealed segment that is needed without opening it: the trailer, and the manifest's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Whose write order.
    pub group: GroupId,
    /// The one branch of history that the segment holds.
    pub timeline: Timeline,
    /// The last LSN with a part in a segment before this one.
    pub prev_lsn: Lsn,
    /// The first LSN that has a part here.
    pub first_lsn: Lsn,
    /// The last LSN that has a part here.
    pub last_lsn: Lsn,
    /// The last LSN that is whole in this and earlier segments.
    pub whole_lsn: Lsn,
    /// `settled` of the last frame.
    pub settled: Lsn,
    /// Stamp of the first record.
    pub first: Stamp,
    /// Stamp of the last record.
    pub last: Stamp,
    /// Where the frames end and the footer begins.
    pub frames_end: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Frames.
    pub frames: u32,
    /// Chunks of all frames.
    pub chunks: u32,
    /// Entries of the index.
    pub entries: u32,
    /// Parts and records of all frames.
    pub records: u64,
    /// Bytes of disk data before compression.
    pub plain_bytes: u64,
    /// Footer blocks in their order: narrow, wide, fences, chunks, frames.
    pub blocks: [u32; 5],
    /// Bytes of the events, which follow the blocks.
    pub events_bytes: u32,
    /// CRC32C over the blocks of chunks and frames and the events.
    pub footer_crc: u32,
}

/// Bytes of a summary.
const SUMMARY_BYTES: usize = 168;

impl Summary {
    pub(super) fn put(&self, put: &mut Put) {
        put.bytes(self.group.bytes()).bytes(self.timeline.bytes());
        for lsn in [self.prev_lsn, self.first_lsn, self.last_lsn, self.whole_lsn, self.settled] {
            put.u64(lsn.0);
        }
        for stamp in [self.first, self.last] {
            put.u32(stamp.epoch.0).u64(stamp.time.0);
        }
        put.u64(self.frames_end).u64(self.file_bytes).u32(self.frames).u32(self.chunks).u32(self.entries);
        put.u64(self.records).u64(self.plain_bytes);
        self.blocks.iter().for_each(|count| {
            put.u32(*count);
        });
        put.u32(self.events_bytes).u32(self.footer_crc);
    }
    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        // At once: a manifest has thousands.
        let take = &mut take.part(SUMMARY_BYTES)?;
        let group = take.id("group", GroupId::new)?;
        let timeline = take.id("timeline", Timeline::new)?;
        let mut lsns = [Lsn::ZERO; 5];
        for lsn in &mut lsns {
            *lsn = Lsn(take.u64()?);
        }
        let [prev_lsn, first_lsn, last_lsn, whole_lsn, settled] = lsns;
        if first_lsn == Lsn::ZERO || last_lsn < first_lsn || whole_lsn > last_lsn || prev_lsn > first_lsn {
            return Err(take.field("last_lsn", last_lsn.0));
        }
        let first = stamp(take)?;
        let last = stamp(take)?;
        let aligned = |value: u64| value.is_multiple_of(SECTOR) && (FRAMES_AT..=SEGMENT_MAX).contains(&value);
        let frames_end = take.u64_if("frames_end", aligned)?;
        let file_bytes = take.u64_if("file_bytes", |value| aligned(value) && value > frames_end)?;
        let (frames, chunks, entries) = (take.u32()?, take.u32()?, take.u32()?);
        let (records, plain_bytes) = (take.u64()?, take.u64()?);
        let mut blocks = [0; 5];
        for count in &mut blocks {
            *count = take.u32()?;
        }
        let summary = Self {
            group,
            timeline,
            prev_lsn,
            first_lsn,
            last_lsn,
            whole_lsn,
            settled,
            first,
            last,
            frames_end,
            file_bytes,
            frames,
            chunks,
            entries,
            records,
            plain_bytes,
            blocks,
            events_bytes: take.u32()?,
            footer_crc: take.u32()?,
        };
        if summary.trailer_at() + FIXED_BYTES as u64 != file_bytes {
            return Err(take.field("file_bytes", file_bytes));
        }
        Ok(summary)
    }
    /// All footer blocks.
    pub(super) fn block_count(&self) -> u64 {
        self.blocks.iter().map(|count| u64::from(*count)).sum()
    }
    /// The blocks that are emptied once a run has what they hold.
    pub(super) fn index_extent(&self) -> Extent {
        let count: u64 = self.blocks[..3].iter().map(|count| u64::from(*count)).sum();
        Extent::new(self.frames_end, count * BLOCK_BYTES as u64)
    }
    /// Where events begin.
    pub(super) fn events_at(&self) -> u64 {
        self.frames_end + self.block_count() * BLOCK_BYTES as u64
    }
    /// Where the trailer stands.
    pub(super) fn trailer_at(&self) -> u64 {
        self.events_at() + u64::from(self.events_bytes).next_multiple_of(SECTOR)
    }
    /// Where a footer block stands: the `index`-th of its kind; with its number.
    pub(super) fn block_at(&self, kind: BlockKind, index: u32) -> (u64, u32) {
        let before: u32 = self.blocks[..kind as usize - 1].iter().sum();
        let number = before + index;
        (self.frames_end + u64::from(number) * BLOCK_BYTES as u64, number)
    }
}

pub(super) fn stamp(take: &mut Take<'_>) -> Result<Stamp, FormatError> {
    let epoch = take.u32_if("epoch", |value| value != 0)?;
    Ok(Stamp { epoch: ClockEpoch(epoch), time: WallTime(take.u64()?) })
}

/// The last block of a sealed segment.
pub(super) fn encode_trailer(id: SegmentId, summary: &Summary) -> Vec<u8> {
    let mut put = Put::begin(TRAILER_MAGIC, VERSION, 0);
    put.bytes(id.bytes());
    summary.put(&mut put);
    put.finish(FIXED_BYTES)
}

pub(super) fn decode_trailer(bytes: &[u8]) -> Result<(SegmentId, Summary), FormatError> {
    let what = "segment trailer";
    let (mut take, _) = Take::begin(what, fixed(what, bytes)?, TRAILER_MAGIC, VERSION, 0)?;
    let id = take.id("segment", SegmentId::new)?;
    Ok((id, Summary::take(&mut take)?))
}

pub(super) fn fixed<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
    let found = bytes.len() as u64;
    bytes.get(..FIXED_BYTES).ok_or(FormatError::Short { what, expected: FIXED_BYTES as u64, found })
}

pub(super) fn foreign(
    what: &'static str,
    field: &'static str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> FormatError {
    FormatError::Foreign { what, field, expected: expected.to_string(), found: found.to_string() }
}
