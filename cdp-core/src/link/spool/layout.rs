//! Byte layout of a spool's files: the only place that knows its offsets. See `SPOOL.md`.

use crate::frame::{EncodedFrame, FrameError};
use crate::types::{GroupId, Lsn, Position, Timeline};
use bytes::Bytes;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a file.
pub(super) const MAGIC: [u8; 8] = *b"CDPSPOL\x01";
/// First bytes of an entry.
pub(super) const ENTRY_MAGIC: [u8; 8] = *b"CDPSPEN\x01";
/// Version of the format.
pub(super) const VERSION: u16 = 1;
/// Bytes of a file's header; entries begin on multiples of it.
pub(super) const HEADER_BYTES: u64 = 512;
/// Bytes of an entry before its frame.
pub(super) const ENTRY_BYTES: u64 = 64;
/// The longest frame that a spool takes: the longest that the link carries.
pub const SPOOL_FRAME_MAX: u64 = 384 << 10;

/// Bit 0 of [`EntryLayout::flags`].
const ALONE: u32 = 1;

/// The header of a file.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HeaderLayout {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) reserved: [u8; 2],
    pub(super) crc: U32,
    pub(super) group: [u8; 16],
    pub(super) timeline: [u8; 16],
    pub(super) sequence: U64,
    pub(super) first_lsn: U64,
    pub(super) first_parts: U32,
    pub(super) rest: [u8; 444],
}

/// What stands before a frame.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct EntryLayout {
    pub(super) magic: [u8; 8],
    pub(super) crc: U32,
    pub(super) length: U32,
    pub(super) sequence: U64,
    pub(super) offset: U64,
    pub(super) timeline: [u8; 16],
    pub(super) flags: U32,
    pub(super) reserved: [u8; 12],
}

const _: () = assert!(size_of::<HeaderLayout>() == HEADER_BYTES as usize);
const _: () = assert!(size_of::<EntryLayout>() == ENTRY_BYTES as usize);

/// What is wrong with bytes of a spool's file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpoolFormatError {
    /// Fewer bytes than it takes.
    #[error("cut short: {found} bytes of {expected}")]
    Short {
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The first bytes are not those of a header or entry.
    #[error("the first bytes are {found:02x?}")]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// Made by a version of the software that this one does not read.
    #[error("spool format version {found}; this software reads version {VERSION}")]
    Version {
        /// What stands there.
        found: u16,
    },
    /// The bytes are not what was written.
    #[error("damaged: CRC32C {found:08x}, expected {expected:08x}")]
    Checksum {
        /// What stands there.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A field has a value that no writer gives it.
    #[error("field `{field}` has the impossible value {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The frame is none, or is not whole.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// What a file's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) group: GroupId,
    pub(super) timeline: Timeline,
    pub(super) sequence: u64,
    pub(super) first: Position,
}

impl Header {
    pub(super) fn encode(&self) -> Bytes {
        let mut layout = HeaderLayout::new_zeroed();
        layout.magic = MAGIC;
        layout.version = VERSION.into();
        layout.group = *self.group.bytes();
        layout.timeline = *self.timeline.bytes();
        layout.sequence = self.sequence.into();
        layout.first_lsn = self.first.lsn.0.into();
        layout.first_parts = self.first.parts.into();
        layout.crc = crc32c::crc32c(layout.as_bytes()).into();
        Bytes::copy_from_slice(layout.as_bytes())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SpoolFormatError> {
        let Ok((mut layout, _)) = HeaderLayout::read_from_prefix(bytes) else {
            return Err(SpoolFormatError::Short { expected: HEADER_BYTES, found: bytes.len() as u64 });
        };
        check_magic(layout.magic, MAGIC)?;
        if layout.version.get() != VERSION {
            return Err(SpoolFormatError::Version { found: layout.version.get() });
        }
        let expected = layout.crc.get();
        layout.crc = 0.into();
        check_crc(expected, layout.as_bytes())?;
        check("reserved", 0, layout.reserved == [0; 2] && layout.rest.iter().all(|byte| *byte == 0))?;
        let group = GroupId::new(layout.group).ok_or(field("group", 0))?;
        let timeline = Timeline::new(layout.timeline).ok_or(field("timeline", 0))?;
        check("sequence", layout.sequence.get(), layout.sequence.get() != 0)?;
        check("first_parts", layout.first_parts.get().into(), layout.first_parts.get() != 0)?;
        let first = Position { lsn: Lsn(layout.first_lsn.get()), parts: layout.first_parts.get() };
        Ok(Self { group, timeline, sequence: layout.sequence.get(), first })
    }
}

/// Where an entry belongs: what binds it to its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Home {
    pub(super) group: GroupId,
    pub(super) timeline: Timeline,
    pub(super) sequence: u64,
    pub(super) offset: u64,
}

/// Bytes that an entry with such a frame takes.
pub(super) fn entry_bytes(frame: u64) -> u64 {
    (ENTRY_BYTES + frame).next_multiple_of(HEADER_BYTES)
}

/// The pieces of an entry, to be written one after another. `alone`: everything before this frame is released.
pub(super) fn encode_entry(home: Home, frame: &EncodedFrame, alone: bool, out: &mut Vec<Bytes>) {
    const ZEROS: Bytes = Bytes::from_static(&[0; HEADER_BYTES as usize]);
    let mut layout = EntryLayout::new_zeroed();
    layout.magic = ENTRY_MAGIC;
    layout.length = (frame.len() as u32).into();
    layout.sequence = home.sequence.into();
    layout.offset = home.offset.into();
    layout.timeline = *home.timeline.bytes();
    layout.flags = if alone { ALONE } else { 0 }.into();
    layout.crc = crc32c::crc32c(&layout.as_bytes()[offset_of!(EntryLayout, length)..]).into();
    out.push(Bytes::copy_from_slice(layout.as_bytes()));
    out.push(frame.head.clone());
    out.extend(frame.body.iter().cloned());
    let rest = entry_bytes(frame.len()) - ENTRY_BYTES - frame.len();
    if rest > 0 {
        out.push(ZEROS.slice(..rest as usize));
    }
}

/// How long the frame is whose entry begins so, and whether everything before it is released.
pub(super) fn entry_head(home: Home, bytes: &[u8]) -> Result<(u64, bool), SpoolFormatError> {
    let Ok((layout, _)) = EntryLayout::read_from_prefix(bytes) else {
        return Err(SpoolFormatError::Short { expected: ENTRY_BYTES, found: bytes.len() as u64 });
    };
    check_magic(layout.magic, ENTRY_MAGIC)?;
    check_crc(layout.crc.get(), &layout.as_bytes()[offset_of!(EntryLayout, length)..])?;
    check("sequence", layout.sequence.get(), layout.sequence.get() == home.sequence)?;
    check("offset", layout.offset.get(), layout.offset.get() == home.offset)?;
    check("timeline", 0, layout.timeline == *home.timeline.bytes())?;
    let flags = layout.flags.get();
    check("flags", flags.into(), flags & !ALONE == 0)?;
    check("reserved", 0, layout.reserved == [0; 12])?;
    let length = u64::from(layout.length.get());
    check("length", length, length <= SPOOL_FRAME_MAX)?;
    Ok((length, flags == ALONE))
}

/// The entry at the beginning of these bytes: its frame, with head and chunks verified.
pub(super) fn decode_entry(home: Home, bytes: &Bytes) -> Result<EncodedFrame, SpoolFormatError> {
    let (length, _) = entry_head(home, bytes)?;
    let (expected, found) = (ENTRY_BYTES + length, bytes.len() as u64);
    if found < expected {
        return Err(SpoolFormatError::Short { expected, found });
    }
    let frame = bytes.slice(ENTRY_BYTES as usize..expected as usize);
    let (head, frame) = EncodedFrame::whole(&frame)?;
    check("group", 0, frame.info.group == home.group)?;
    check("timeline", 0, frame.info.timeline == home.timeline)?;
    head.verify_stored(&frame.body)?;
    Ok(frame)
}

fn field(field: &'static str, value: u64) -> SpoolFormatError {
    SpoolFormatError::Field { field, value }
}

fn check(name: &'static str, value: u64, holds: bool) -> Result<(), SpoolFormatError> {
    if holds { Ok(()) } else { Err(field(name, value)) }
}

fn check_magic(found: [u8; 8], expected: [u8; 8]) -> Result<(), SpoolFormatError> {
    if found == expected { Ok(()) } else { Err(SpoolFormatError::Magic { found }) }
}

fn check_crc(expected: u32, bytes: &[u8]) -> Result<(), SpoolFormatError> {
    let found = crc32c::crc32c(bytes);
    if found == expected { Ok(()) } else { Err(SpoolFormatError::Checksum { expected, found }) }
}

/// What a file of this timeline and sequence is called.
pub(super) fn file_name(timeline: Timeline, sequence: u64) -> String {
    format!("{timeline}-{sequence:016x}.spool")
}

/// The timeline and sequence of a file that is called so.
pub(super) fn parse_name(name: &str) -> Option<(Timeline, u64)> {
    let (timeline, sequence) = name.strip_suffix(".spool")?.split_once('-')?;
    let sequence = u64::from_str_radix(sequence, 16).ok().filter(|sequence| *sequence != 0)?;
    let bytes = (0..16).map(|at| u8::from_str_radix(timeline.get(at * 2..at * 2 + 2)?, 16).ok());
    let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
    let timeline = Timeline::new(bytes.try_into().ok()?)?;
    // Only what we would write ourselves: no other spelling of the same.
    (file_name(timeline, sequence) == name).then_some((timeline, sequence))
}
