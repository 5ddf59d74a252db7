//! Unpacking: from bytes, trusted for nothing, to records.

use super::info::FrameInfo;
use super::layout::{
    CHUNK_BYTES, CODEC_RAW, CODEC_ZSTD, CONTENT_DATA, CONTENT_NOTES, ChunkEntry, HEADER_BYTES, Header, MAGIC,
    MUST_UNDERSTAND, RECORD_BYTES, RecordEntry, SEALED, VERSION,
};
use super::note;
use super::pieces::Pieces;
use super::record::{Note, Part, RawFrame, RecordKind};
use crate::trust::TAG_BYTES;
use crate::types::{
    CHUNK_PLAIN_MAX, ClockEpoch, DISK_MAX, DiskId, Extent, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, GroupId, Lsn, PART_MAX,
    SECTOR, Timeline, WRITE_MAX, WallTime,
};
use bytes::Bytes;
use std::cell::RefCell;
use zerocopy::FromBytes;

/// The most chunks a frame may have.
const CHUNKS_MAX: usize = 64;
/// The most stored bytes of a chunk.
const STORED_MAX: u32 = CHUNK_PLAIN_MAX as u32 + 1024;
/// The most bytes of a frame's head.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES + FRAME_RECORDS_MAX * RECORD_BYTES + CHUNKS_MAX * CHUNK_BYTES;
/// The most bytes of a frame, head and body.
pub const FRAME_BYTES_MAX: usize = HEAD_BYTES_MAX + CHUNKS_MAX * STORED_MAX as usize;

/// What is wrong with bytes that should be a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame says it has.
    #[error("frame cut short: {found} bytes of {expected}")]
    Short {
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// The first bytes are not those of a frame.
    #[error("not a frame: the first bytes are {found:02x?}")]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// Made by a version of the software that this one does not read.
    #[error("frame format version {found}; this software reads version {VERSION}")]
    Version {
        /// What stands there.
        found: u16,
    },
    /// Header and tables are not what was written.
    #[error("frame head damaged: CRC32C {found:08x}, expected {expected:08x}")]
    HeadChecksum {
        /// What stands in the header.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A field has a value that no writer gives it.
    #[error("frame field `{field}` has the impossible value {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A record that must be understood has a kind this version does not know.
    #[error("record kind {kind} at LSN {lsn} is of a newer version and must not be skipped: upgrade this side")]
    UnknownKind {
        /// Its number.
        kind: u8,
        /// Where.
        lsn: Lsn,
    },
    /// A chunk's stored bytes are not what was written.
    #[error("chunk {chunk} damaged: CRC32C {found:08x}, expected {expected:08x}")]
    ChunkChecksum {
        /// Its number in the frame, from 1.
        chunk: u16,
        /// What the table says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A chunk cannot be inflated to the length it says.
    #[error("chunk {chunk} does not inflate to its {expected} bytes")]
    Inflate {
        /// Its number in the frame, from 1.
        chunk: u16,
        /// Plain length in the table.
        expected: u32,
    },
    /// A sealed chunk's bytes are what was written, as far as its checksum says, and do not open.
    #[error("chunk {chunk} does not open: its bytes, its place or its key are not those that it was sealed with")]
    NotOpened {
        /// Its number in the frame, from 1.
        chunk: u16,
    },
    /// A sealed chunk cannot be decoded without its key.
    #[error("chunk {chunk} is sealed at rest: only the journal that it is in can open it")]
    Sealed {
        /// Its number in the frame, from 1.
        chunk: u16,
    },
    /// The bytes of a record are not those that were captured.
    #[error("record at LSN {lsn} damaged: CRC32C {found:08x}, expected {expected:08x}")]
    PartChecksum {
        /// Whose.
        lsn: Lsn,
        /// Made at capture.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
}

/// One entry of the record table, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordInfo {
    /// Place in the write order.
    pub lsn: Lsn,
    /// Stamp in the frame's epoch.
    pub time: WallTime,
    /// What it is; `None`: of a newer version, and may be skipped.
    pub kind: Option<RecordKind>,
    /// The disk; none for the whole group.
    pub disk: Option<DiskId>,
    /// This part's range.
    pub extent: Extent,
    /// Which part, from 0.
    pub index: u16,
    /// Of how many.
    pub count: u16,
    /// CRC32C of the plain bytes.
    pub crc: u32,
    /// Number of the chunk that holds the bytes, from 1; 0: none.
    pub chunk: u16,
    /// Where in the chunk's plain bytes.
    pub chunk_offset: u32,
    /// How many bytes.
    pub chunk_length: u32,
}

/// One entry of the chunk table, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// Number in the frame, from 1.
    pub number: u16,
    /// Where the stored bytes begin in the body.
    pub offset: u32,
    /// How many.
    pub stored_length: u32,
    /// How many they inflate to.
    pub plain_length: u32,
    /// CRC32C of the stored bytes.
    pub crc: u32,
    /// Whether they are a zstd frame; else they are plain.
    pub compressed: bool,
    /// Whether they are notes; else bytes of disks.
    pub notes: bool,
    /// Whether the stored bytes are sealed at rest.
    pub sealed: bool,
}

/// A frame's head, checked against its checksum and against every limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHead {
    /// What the header says.
    pub info: FrameInfo,
    /// The record table, in LSN order.
    pub records: Vec<RecordInfo>,
    /// The chunk table, in order of their bytes.
    pub chunks: Vec<ChunkInfo>,
}

impl FrameHead {
    /// How many bytes the head has whose first [`HEADER_BYTES`] these are. The checksum is not looked at yet.
    ///
    /// # Errors
    /// When they are not the beginning of a frame of this version within the limits.
    pub fn length(bytes: &[u8]) -> Result<usize, FrameError> {
        let header = header(bytes)?;
        Ok(HEADER_BYTES + header.records.get() as usize * RECORD_BYTES + header.chunks.get() as usize * CHUNK_BYTES)
    }

    /// Reads a head; bytes after it are not looked at.
    ///
    /// # Errors
    /// Whatever is wrong with it, by name.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let header = header(bytes)?;
        let length = Self::length(bytes)?;
        let head = bytes.get(..length).ok_or(FrameError::Short { expected: length, found: bytes.len() })?;
        check_head(head, header.crc.get())?;
        let group = GroupId::new(header.group).ok_or(field("group", 0))?;
        let timeline = Timeline::new(header.timeline).ok_or(field("timeline", 0))?;
        let tables = &head[HEADER_BYTES..];
        let (records, chunks) = tables.split_at(header.records.get() as usize * RECORD_BYTES);
        let chunks = chunk_table(chunks, header.body_bytes.get())?;
        let records = record_table(records, &header, &chunks)?;
        let (first, last) = (records[0], records[records.len() - 1]);
        let plain: u64 =
            records.iter().filter(|r| r.kind.is_some_and(RecordKind::has_data)).map(|r| r.extent.length).sum();
        check("plain_bytes", u64::from(header.plain_bytes.get()), |value| value == plain)?;
        check("last_lsn", header.last_lsn.get(), |value| value == last.lsn.0)?;
        check("prev_lsn", header.prev_lsn.get(), |value| value <= first.lsn.0)?;
        check("settled", header.settled.get(), |value| value <= last.lsn.0)?;
        let info = FrameInfo {
            group,
            timeline,
            prev_lsn: Lsn(header.prev_lsn.get()),
            first_lsn: first.lsn,
            last_lsn: last.lsn,
            first_index: first.index,
            last_parts: last.index + 1,
            last_whole: last.index + 1 == last.count,
            settled: Lsn(header.settled.get()),
            epoch: ClockEpoch(header.epoch.get()),
            first_time: first.time,
            last_time: last.time,
            records: header.records.get(),
            plain_bytes: header.plain_bytes.get(),
            head_bytes: length as u32,
            body_bytes: header.body_bytes.get(),
        };
        Ok(Self { info, records, chunks })
    }

    /// The chunk with this number, from 1.
    #[must_use]
    pub fn chunk(&self, number: u16) -> Option<&ChunkInfo> {
        self.chunks.get(usize::from(number).checked_sub(1)?)
    }

    /// Unpacks the records of a whole body; every chunk and every part is verified.
    ///
    /// # Errors
    /// Whatever does not verify.
    pub fn unpack(&self, body: &Bytes) -> Result<RawFrame, FrameError> {
        self.unpack_pieces(std::slice::from_ref(body))
    }

    /// The same, of a body in pieces however it is cut. Raw chunks that lie in one piece are not copied.
    ///
    /// # Errors
    /// Whatever does not verify.
    pub fn unpack_pieces(&self, body: &[Bytes]) -> Result<RawFrame, FrameError> {
        let (expected, found) = (self.info.body_bytes as usize, body.iter().map(Bytes::len).sum());
        if found < expected {
            return Err(FrameError::Short { expected, found });
        }
        let mut pieces = Pieces::new(body);
        let chunks = self.chunks.iter();
        let plain = chunks
            .map(|chunk| decode_chunk(chunk, &pieces.take(chunk.stored_length as usize)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut parts = Vec::with_capacity(self.records.len());
        for record in &self.records {
            let Some(kind) = record.kind else { continue };
            let mut part = Part::plain(kind, record.disk, record.extent, record.lsn, record.time);
            (part.index, part.count) = (record.index, record.count);
            if record.chunk != 0 {
                let from = record.chunk_offset as usize;
                let bytes = plain[usize::from(record.chunk) - 1].slice(from..from + record.chunk_length as usize);
                verify_part(record, &bytes)?;
                if kind.has_data() {
                    (part.crc, part.data) = (record.crc, bytes);
                } else {
                    part.note = Some(Box::new(decode_note(record, kind, &bytes)?));
                }
            }
            parts.push(part);
        }
        let FrameInfo { timeline, prev_lsn, settled, epoch, plain_bytes, .. } = self.info;
        Ok(RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes: u64::from(plain_bytes) })
    }

    /// The notes of the frame by LSN, read from the body that begins at `body[0]`.
    ///
    /// # Errors
    /// Whatever does not verify.
    pub fn notes(&self, body: &[u8]) -> Result<Vec<(RecordInfo, Note)>, FrameError> {
        let Some(chunk) = self.chunks.iter().find(|chunk| chunk.notes) else { return Ok(Vec::new()) };
        let (from, expected) = (chunk.offset as usize, (chunk.offset + chunk.stored_length) as usize);
        let stored = body.get(from..expected).ok_or(FrameError::Short { expected, found: body.len() })?;
        let plain = decode_chunk(chunk, &Bytes::copy_from_slice(stored))?;
        let mut notes = Vec::new();
        for record in self.records.iter().filter(|record| record.chunk == chunk.number) {
            let Some(kind) = record.kind else { continue };
            let from = record.chunk_offset as usize;
            let bytes = &plain[from..from + record.chunk_length as usize];
            verify_part(record, bytes)?;
            notes.push((*record, decode_note(record, kind, bytes)?));
        }
        Ok(notes)
    }
}

/// Verifies a chunk's stored bytes and inflates them.
///
/// # Errors
/// When the checksum or the length does not hold.
pub fn decode_chunk(chunk: &ChunkInfo, stored: &Bytes) -> Result<Bytes, FrameError> {
    verify_chunk(chunk, stored)?;
    if chunk.sealed {
        return Err(FrameError::Sealed { chunk: chunk.number });
    }
    if !chunk.compressed {
        return Ok(stored.clone());
    }
    inflate(chunk, stored)
}

/// Verifies a part's plain bytes against the checksum made at capture.
///
/// # Errors
/// When they are not what was captured.
pub fn verify_part(record: &RecordInfo, bytes: &[u8]) -> Result<(), FrameError> {
    let found = crc32c::crc32c(bytes);
    let (lsn, expected) = (record.lsn, record.crc);
    if found == expected { Ok(()) } else { Err(FrameError::PartChecksum { lsn, expected, found }) }
}

pub(super) fn verify_chunk(chunk: &ChunkInfo, stored: &[u8]) -> Result<(), FrameError> {
    let found = crc32c::crc32c(stored);
    if found != chunk.crc {
        return Err(FrameError::ChunkChecksum { chunk: chunk.number, expected: chunk.crc, found });
    }
    Ok(())
}

thread_local! {
    /// Making one costs as much as inflating a few KiB; what it did before is nothing to the next chunk.
    static INFLATER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

pub(super) fn inflate(chunk: &ChunkInfo, stored: &[u8]) -> Result<Bytes, FrameError> {
    // Not filled with zeros first.
    let mut plain = Vec::with_capacity(chunk.plain_length as usize);
    let inflated = INFLATER.with_borrow_mut(|inflater| {
        let inflater = match inflater {
            Some(inflater) => inflater,
            None => inflater.insert(zstd::bulk::Decompressor::new()?),
        };
        // The output is bounded by what was allocated: a bomb ends in an error, not in memory.
        inflater.decompress_to_buffer(stored, &mut plain)
    });
    match inflated {
        Ok(length) if length == chunk.plain_length as usize => Ok(plain.into()),
        _ => Err(FrameError::Inflate { chunk: chunk.number, expected: chunk.plain_length }),
    }
}

fn decode_note(record: &RecordInfo, kind: RecordKind, bytes: &[u8]) -> Result<Note, FrameError> {
    note::decode(kind, bytes).ok_or(FrameError::Field { field: "note", value: record.lsn.0 })
}

fn field(field: &'static str, value: u64) -> FrameError {
    FrameError::Field { field, value }
}

fn check(name: &'static str, value: u64, holds: impl Fn(u64) -> bool) -> Result<(), FrameError> {
    if holds(value) { Ok(()) } else { Err(field(name, value)) }
}

/// The fixed header, with everything checked that decides how much more is read.
fn header(bytes: &[u8]) -> Result<Header, FrameError> {
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        return Err(FrameError::Short { expected: HEADER_BYTES, found: bytes.len() });
    };
    if header.magic != MAGIC {
        return Err(FrameError::Magic { found: header.magic });
    }
    if header.version.get() != VERSION {
        return Err(FrameError::Version { found: header.version.get() });
    }
    check("flags", u64::from(header.flags.get()), |value| value == 0)?;
    check("records", u64::from(header.records.get()), |value| (1..=FRAME_RECORDS_MAX as u64).contains(&value))?;
    check("chunks", u64::from(header.chunks.get()), |value| value <= CHUNKS_MAX as u64)?;
    let stored_max = u64::from(header.chunks.get()) * u64::from(STORED_MAX);
    check("body_bytes", u64::from(header.body_bytes.get()), |value| value <= stored_max)?;
    check("plain_bytes", u64::from(header.plain_bytes.get()), |value| value <= FRAME_PLAIN_MAX)?;
    check("epoch", u64::from(header.epoch.get()), |value| value != 0)?;
    Ok(header)
}

fn check_head(head: &[u8], expected: u32) -> Result<(), FrameError> {
    let at = std::mem::offset_of!(Header, crc);
    let found = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head[..at]), &[0; 4]), &head[at + 4..]);
    if found == expected { Ok(()) } else { Err(FrameError::HeadChecksum { expected, found }) }
}

fn chunk_table(bytes: &[u8], body_bytes: u32) -> Result<Vec<ChunkInfo>, FrameError> {
    let mut chunks = Vec::with_capacity(bytes.len() / CHUNK_BYTES);
    let mut end = 0;
    for (number, bytes) in (1..).zip(bytes.chunks_exact(CHUNK_BYTES)) {
        let entry = ChunkEntry::read_from_bytes(bytes).map_err(|_| field("chunk", number))?;
        let (stored_length, plain_length) = (entry.stored_length.get(), entry.plain_length.get());
        check("chunk.offset", u64::from(entry.offset.get()), |value| value == u64::from(end))?;
        check("chunk.stored_length", u64::from(stored_length), |value| (1..=u64::from(STORED_MAX)).contains(&value))?;
        check("chunk.plain_length", u64::from(plain_length), |value| (1..=CHUNK_PLAIN_MAX).contains(&value))?;
        check("chunk.codec", u64::from(entry.codec), |value| matches!(value as u8, CODEC_RAW | CODEC_ZSTD))?;
        check("chunk.content", u64::from(entry.content), |value| matches!(value as u8, CONTENT_DATA | CONTENT_NOTES))?;
        check("chunk.flags", u64::from(entry.flags), |value| value & !u64::from(SEALED) == 0)?;
        let sealed = entry.flags & SEALED != 0;
        let tag = if sealed { TAG_BYTES as u32 } else { 0 };
        check("chunk.stored_length", u64::from(stored_length), |value| value > u64::from(tag))?;
        if entry.codec == CODEC_RAW {
            check("chunk.plain_length", u64::from(plain_length), |value| value == u64::from(stored_length - tag))?;
        }
        chunks.push(ChunkInfo {
            number: number as u16,
            offset: entry.offset.get(),
            stored_length,
            plain_length,
            crc: entry.crc.get(),
            compressed: entry.codec == CODEC_ZSTD,
            notes: entry.content == CONTENT_NOTES,
            sealed,
        });
        end += stored_length;
    }
    check("body_bytes", u64::from(body_bytes), |value| value == u64::from(end))?;
    Ok(chunks)
}

fn record_table(bytes: &[u8], header: &Header, chunks: &[ChunkInfo]) -> Result<Vec<RecordInfo>, FrameError> {
    let mut records: Vec<RecordInfo> = Vec::with_capacity(bytes.len() / RECORD_BYTES);
    for bytes in bytes.chunks_exact(RECORD_BYTES) {
        let entry = RecordEntry::read_from_bytes(bytes).map_err(|_| field("record", 0))?;
        let record = record(&entry, header)?;
        if record.kind.is_none() && entry.flags & MUST_UNDERSTAND != 0 {
            return Err(FrameError::UnknownKind { kind: entry.kind, lsn: record.lsn });
        }
        check_place(&record, chunks)?;
        if let Some(before) = records.last() {
            let goes_on = record.lsn == before.lsn && record.index == before.index + 1 && record.count == before.count;
            let begins = record.lsn > before.lsn && record.index == 0 && before.index + 1 == before.count;
            check("lsn", record.lsn.0, |_| goes_on || begins)?;
            check("time", record.time.0, |value| value >= before.time.0)?;
        }
        records.push(record);
    }
    check("first_lsn", header.first_lsn.get(), |value| value != 0 && value == records[0].lsn.0)?;
    Ok(records)
}

fn record(entry: &RecordEntry, header: &Header) -> Result<RecordInfo, FrameError> {
    let lsn = header.first_lsn.get().checked_add(u64::from(entry.lsn_delta.get()));
    let time = header.base_time.get().checked_add(u64::from(entry.time_delta.get()));
    let extent = Extent::new(entry.offset.get(), entry.length.get());
    check("offset", extent.offset, |value| value.is_multiple_of(SECTOR) && value <= DISK_MAX)?;
    check("length", extent.length, |value| value.is_multiple_of(SECTOR) && value <= DISK_MAX - extent.offset)?;
    let (index, count) = (entry.index.get(), entry.count.get());
    check("count", u64::from(count), |value| (1..=WRITE_MAX / PART_MAX).contains(&value))?;
    check("index", u64::from(index), |value| value < u64::from(count))?;
    let kind = RecordKind::from_number(entry.kind);
    let disk = DiskId::new(entry.disk.get());
    if kind.is_some_and(RecordKind::changes_disk) {
        check("disk", u64::from(entry.disk.get()), |value| value != 0)?;
        check("length", extent.length, |value| value != 0)?;
    }
    if kind.is_some_and(RecordKind::has_data) {
        check("length", extent.length, |value| value <= PART_MAX && value == u64::from(entry.chunk_length.get()))?;
        check("chunk", u64::from(entry.chunk.get()), |value| value != 0)?;
    } else if kind != Some(RecordKind::Zero) {
        check("count", u64::from(count), |value| value == 1)?;
    }
    Ok(RecordInfo {
        lsn: Lsn(lsn.ok_or(field("lsn_delta", u64::from(entry.lsn_delta.get())))?),
        time: WallTime(time.ok_or(field("time_delta", u64::from(entry.time_delta.get())))?),
        kind,
        disk,
        extent,
        index,
        count,
        crc: entry.crc.get(),
        chunk: entry.chunk.get(),
        chunk_offset: entry.chunk_offset.get(),
        chunk_length: entry.chunk_length.get(),
    })
}

/// A record's bytes lie inside a chunk of the right content.
fn check_place(record: &RecordInfo, chunks: &[ChunkInfo]) -> Result<(), FrameError> {
    if record.chunk == 0 {
        return Ok(());
    }
    let chunk = chunks.get(usize::from(record.chunk) - 1).ok_or(field("chunk", u64::from(record.chunk)))?;
    let end = u64::from(record.chunk_offset) + u64::from(record.chunk_length);
    check("chunk_length", end, |value| value <= u64::from(chunk.plain_length))?;
    if record.kind.is_some() {
        let data = record.kind.is_some_and(RecordKind::has_data);
        check("chunk.content", u64::from(record.chunk), |_| chunk.notes != data)?;
        check("chunk_offset", u64::from(record.chunk_offset), |value| !data || value.is_multiple_of(SECTOR))?;
    }
    Ok(())
}
