//! The NBD protocol's numbers and the fixed layouts of its messages (big endian), without any I/O.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Decoders take slices and answer `None` for
//! "more bytes needed" or an error that names what was wrong; no length is believed before its reader has checked it.

mod error;

pub use error::{NbdError, ProtocolError};

/// `NBDMAGIC`, the first eight bytes of every server.
pub const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before every option and in the greeting.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Before every option's reply.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Before every simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flags of the server: fixed newstyle, and no 124 zeros after `EXPORT_NAME`.
pub const SERVER_FLAGS: u16 = 0b11;
/// Handshake flag of the client: it speaks fixed newstyle.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1;
/// Handshake flag of the client: it wants no 124 zeros after `EXPORT_NAME`.
pub const CLIENT_NO_ZEROES: u32 = 2;

/// Options of the handshake.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options; errors have the top bit set.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information in replies to `INFO` and `GO`.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod chunk {
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
    /// Set in the type of every chunk that tells of an error.
    pub const ERROR_BIT: u16 = 1 << 15;
}

/// The only metadata context that is served.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// `base:allocation`: nothing is allocated there.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: it reads as zeros.
pub const STATE_ZERO: u32 = 2;

/// The smallest unit of requests, in bytes.
pub const BLOCK_MIN: u32 = 512;
/// The unit in which requests are served best, in bytes.
pub const BLOCK_PREFERRED: u32 = 4096;
/// The most bytes in one read or write.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// The longest string the protocol allows (names, descriptions, contexts), in bytes.
pub const STRING_MAX: usize = 4096;

/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of the header of a structured reply's chunk.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of an option's header.
pub const OPTION_BYTES: usize = 16;
/// Bytes of the header of an option's reply.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Bytes of the greeting.
pub const GREETING_BYTES: usize = 18;

/// The header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// `command_flag`s.
    pub flags: u16,
    /// One of `command`.
    pub command: u16,
    /// Chosen by the client, sent back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; of a write also those of the payload that follows.
    pub length: u32,
}

impl Request {
    /// Reads a header.
    ///
    /// # Errors
    /// [`ProtocolError::Magic`].
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, ProtocolError> {
        let magic = be32(bytes, 0);
        if magic != MAGIC_REQUEST {
            return Err(ProtocolError::Magic { expected: MAGIC_REQUEST.into(), found: magic.into() });
        }
        Ok(Self {
            flags: be16(bytes, 4),
            command: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be32(bytes, 24),
        })
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Number of payload bytes that follow the header.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        if self.command == command::WRITE { self.length.into() } else { 0 }
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A simple reply's header; `error` 0 is success.
#[must_use]
pub fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&MAGIC_SIMPLE_REPLY.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a chunk of a structured reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// `chunk::FLAG_DONE` on the last one.
    pub flags: u16,
    /// One of `chunk`.
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// Number of bytes that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; CHUNK_BYTES] {
        let mut bytes = [0; CHUNK_BYTES];
        bytes[..4].copy_from_slice(&MAGIC_STRUCTURED_REPLY.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The header of any reply of the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyHeader {
    /// A simple reply; the data of a successful read follow.
    Simple {
        /// The request's cookie.
        cookie: u64,
        /// 0 or an error's number.
        error: u32,
    },
    /// A chunk of a structured reply; its payload follows.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Reads a header from the front of `bytes`; `None` if it is not complete. The second value is the header's length.
    ///
    /// # Errors
    /// [`ProtocolError::Magic`].
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        if bytes.len() < SIMPLE_REPLY_BYTES {
            return Ok(None);
        }
        match be32(bytes, 0) {
            MAGIC_SIMPLE_REPLY => {
                let header = Self::Simple { error: be32(bytes, 4), cookie: be64(bytes, 8) };
                Ok(Some((header, SIMPLE_REPLY_BYTES)))
            }
            MAGIC_STRUCTURED_REPLY if bytes.len() < CHUNK_BYTES => Ok(None),
            MAGIC_STRUCTURED_REPLY => {
                let header = ChunkHeader {
                    flags: be16(bytes, 4),
                    kind: be16(bytes, 6),
                    cookie: be64(bytes, 8),
                    length: be32(bytes, 16),
                };
                Ok(Some((Self::Chunk(header), CHUNK_BYTES)))
            }
            found => Err(ProtocolError::Magic { expected: MAGIC_SIMPLE_REPLY.into(), found: found.into() }),
        }
    }
}

/// The header of a reply to an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// One of `option_reply`.
    pub kind: u32,
    /// Number of bytes that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`ProtocolError::Magic`].
    pub fn decode(bytes: &[u8; OPTION_REPLY_BYTES]) -> Result<Self, ProtocolError> {
        let magic = be64(bytes, 0);
        if magic != MAGIC_OPTION_REPLY {
            return Err(ProtocolError::Magic { expected: MAGIC_OPTION_REPLY, found: magic });
        }
        Ok(Self { option: be32(bytes, 8), kind: be32(bytes, 12), length: be32(bytes, 16) })
    }
}

/// Appends a reply to an option, given as parts of its payload. The payload must be shorter than 4 GiB.
pub fn push_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends an option, given as parts of its payload. The payload must be shorter than 4 GiB.
pub fn push_option(out: &mut Vec<u8>, option: u32, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

/// Big-endian number at `at`; the caller has checked the length.
#[must_use]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Big-endian number at `at`; the caller has checked the length.
#[must_use]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Big-endian number at `at`; the caller has checked the length.
#[must_use]
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    (u64::from(be32(bytes, at)) << 32) | u64::from(be32(bytes, at + 4))
}

/// Takes values off the front of a payload; `None` when it is too short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|bytes| be16(bytes, 0))
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|bytes| be32(bytes, 0))
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes(8).map(|bytes| be64(bytes, 0))
    }
    /// A string behind its 32-bit length; `None` also where it is longer than the protocol allows or no UTF-8.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > STRING_MAX {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_request_survives_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn a_chunk_survives_the_wire(flags: u16, kind: u16, cookie: u64, length: u32) {
            let header = ChunkHeader { flags, kind, cookie, length };
            let decoded = ReplyHeader::decode(&header.encode());
            prop_assert_eq!(decoded, Ok(Some((ReplyHeader::Chunk(header), CHUNK_BYTES))));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ReplyHeader::decode(&bytes);
            let mut fields = Fields(&bytes);
            while fields.string().is_some() {}
            let _ = (fields.u16(), fields.u32(), fields.u64());
            if let Some(bytes) = bytes.first_chunk() {
                let _ = Request::decode(bytes);
            }
            if let Some(bytes) = bytes.first_chunk() {
                let _ = OptionReplyHeader::decode(bytes);
            }
        }
    }
}
