//! Byte layout of a frame: the only place that knows its offsets. All integers are little endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every frame.
pub(super) const MAGIC: [u8; 8] = *b"CDPFRAM\x01";
/// Version of the frame format.
pub(super) const VERSION: u16 = 1;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of one entry of the record table.
pub const RECORD_BYTES: usize = 48;
/// Bytes of one entry of the chunk table.
pub(super) const CHUNK_BYTES: usize = 24;

/// The fixed header. `crc` covers header (with `crc` as zero), record table and chunk table.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) flags: U16,
    pub(super) crc: U32,
    pub(super) group: [u8; 16],
    pub(super) timeline: [u8; 16],
    pub(super) prev_lsn: U64,
    pub(super) first_lsn: U64,
    pub(super) last_lsn: U64,
    pub(super) settled: U64,
    pub(super) base_time: U64,
    pub(super) epoch: U32,
    pub(super) records: U32,
    pub(super) chunks: U32,
    pub(super) plain_bytes: U32,
    pub(super) body_bytes: U32,
    pub(super) reserved: [u8; 20],
}

/// One part of a record.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RecordEntry {
    /// Added to the header's `first_lsn`.
    pub(super) lsn_delta: U32,
    /// Nanoseconds added to the header's `base_time`.
    pub(super) time_delta: U32,
    pub(super) offset: U64,
    pub(super) length: U64,
    /// CRC32C of the plain bytes; of the note's bytes for records with a note.
    pub(super) crc: U32,
    /// 0: the record is about the whole group.
    pub(super) disk: U16,
    pub(super) kind: u8,
    /// Bit 0: a reader that does not know `kind` must refuse the frame.
    pub(super) flags: u8,
    pub(super) index: U16,
    pub(super) count: U16,
    /// Number of the chunk that holds the bytes, from 1; 0: none.
    pub(super) chunk: U16,
    pub(super) reserved: U16,
    /// Where in the chunk's plain bytes.
    pub(super) chunk_offset: U32,
    /// Bytes in the chunk.
    pub(super) chunk_length: U32,
}

/// One independently decodable run of stored bytes.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkEntry {
    /// Where the stored bytes begin, from the end of the tables.
    pub(super) offset: U32,
    pub(super) stored_length: U32,
    pub(super) plain_length: U32,
    /// CRC32C of the stored bytes.
    pub(super) crc: U32,
    /// 1 raw, 2 zstd.
    pub(super) codec: u8,
    /// 1 data of disks, 2 notes.
    pub(super) content: u8,
    /// Bit 0: sealed at rest.
    pub(super) flags: u8,
    pub(super) reserved: [u8; 5],
}

/// Bit 0 of [`RecordEntry::flags`].
pub(super) const MUST_UNDERSTAND: u8 = 1;

/// Stored bytes are the plain ones.
pub(super) const CODEC_RAW: u8 = 1;
/// Stored bytes are one zstd frame.
pub(super) const CODEC_ZSTD: u8 = 2;
/// Bytes of disks.
pub(super) const CONTENT_DATA: u8 = 1;
/// Notes.
pub(super) const CONTENT_NOTES: u8 = 2;
/// Bit 0 of [`ChunkEntry::flags`].
pub(super) const SEALED: u8 = 1;

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<RecordEntry>() == RECORD_BYTES);
const _: () = assert!(size_of::<ChunkEntry>() == CHUNK_BYTES);
