//! What every connection begins with, in the clear: what a gateway needs to let it in, or which session a plain data connection
//! belongs to.

use super::codec::{self, WireError};
use super::message::{Code, DATA_CONNECTIONS_MAX, Farewell};
use crate::trust::ticket::TicketError;
use crate::types::SessionId;
use bytes::Bytes;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every connection.
const MAGIC: [u8; 8] = *b"CDPLINK\x01";
/// Bytes before the content.
pub const PREAMBLE_BYTES: usize = 16;
/// The longest content, in bytes.
pub const CONTENT_MAX: usize = 1024;
/// The longest text of a refusal, in bytes: what is too long of it is left out.
const REFUSAL_TEXT_MAX: usize = 900;
/// Content of a plain data connection.
const PLAIN_BYTES: usize = 24;

const KIND_TLS: u8 = 1;
const KIND_PLAIN: u8 = 2;
const KIND_REFUSAL: u8 = 3;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    kind: u8,
    reserved: u8,
    length: U16,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PlainFixed {
    session: [u8; 16],
    connection: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<Fixed>() == PREAMBLE_BYTES);
const _: () = assert!(size_of::<PlainFixed>() == PLAIN_BYTES);

/// What a connection says about itself before anything else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preamble {
    /// TLS follows.
    Tls {
        /// The bytes of a ticket, at most [`CONTENT_MAX`]; empty: none.
        ticket: Bytes,
    },
    /// A data connection without TLS.
    Plain {
        /// Of this session.
        session: SessionId,
        /// Which of its connections, from 1.
        connection: u16,
    },
    /// The answer of who does not let the connection in. Nothing proves who said it.
    Refusal(Farewell),
}

/// What is wrong with bytes that should be a preamble.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PreambleError {
    /// The first bytes are others: whoever dials speaks something else.
    #[error("not a link: the first bytes are {found:02x?}")]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// More content than there may be.
    #[error("a preamble with {found} bytes of content, at most {CONTENT_MAX} are taken")]
    TooLong {
        /// Bytes it says it has.
        found: u16,
    },
    /// Fewer or more bytes than it says.
    #[error("a preamble of {found} bytes, it says {expected}")]
    Length {
        /// Bytes it says it has.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// It is not what was sent.
    #[error("preamble damaged: CRC32C {found:08x}, expected {expected:08x}")]
    Checksum {
        /// What stands there.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// What a refusal says is not said in the right way.
    #[error("the refusal says nothing: {0}")]
    Refusal(WireError),
    /// A field has a value that nobody gives it.
    #[error("field `{field}` of a preamble has the impossible value {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
}

impl PreambleError {
    /// What the other side is told, where it can be told anything.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        let (code, expected, found) = match *self {
            Self::TooLong { found } => (Code::TooLong, CONTENT_MAX as u64, found.into()),
            Self::Length { expected, found } => (Code::Malformed, expected as u64, found as u64),
            Self::Checksum { expected, found } => (Code::Malformed, expected.into(), found.into()),
            Self::Magic { .. } | Self::Refusal(_) => (Code::Malformed, 0, 0),
            Self::Field { value, .. } => (Code::Malformed, 0, value),
        };
        Farewell::new(code, self.to_string()).with(expected, found)
    }
}

/// What the other side is told about its ticket.
#[must_use]
pub fn ticket_farewell(error: &TicketError) -> Farewell {
    let (code, expected, found) = match *error {
        TicketError::Early { not_before, now } => (Code::TicketExpired, not_before, now),
        TicketError::Expired { not_after, now } => (Code::TicketExpired, not_after, now),
        TicketError::Tenant { .. } => (Code::OtherTenant, 0, 0),
        _ => (Code::TicketInvalid, 0, 0),
    };
    Farewell::new(code, error.to_string()).with(expected, found)
}

impl Preamble {
    /// How many bytes of content follow the first [`PREAMBLE_BYTES`], which these are.
    ///
    /// # Errors
    /// When they are not the beginning of a preamble, or say more than may be.
    pub fn content_length(start: &[u8; PREAMBLE_BYTES]) -> Result<usize, PreambleError> {
        Ok(fixed(start)?.length.get().into())
    }

    /// Reads a whole preamble.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, PreambleError> {
        let fixed = fixed(bytes)?;
        let (expected, found) = (PREAMBLE_BYTES + usize::from(fixed.length.get()), bytes.len());
        if found != expected {
            return Err(PreambleError::Length { expected, found });
        }
        let (expected, found) = (fixed.crc.get(), checksum(bytes));
        if found != expected {
            return Err(PreambleError::Checksum { expected, found });
        }
        let content = &bytes[PREAMBLE_BYTES..];
        match fixed.kind {
            KIND_TLS => Ok(Self::Tls { ticket: Bytes::copy_from_slice(content) }),
            KIND_PLAIN => {
                let length = field("length", content.len() as u64);
                let plain = PlainFixed::read_from_bytes(content).map_err(|_| length)?;
                let session = SessionId::new(plain.session).ok_or(field("session", 0))?;
                let connection = plain.connection.get();
                if !(1..=DATA_CONNECTIONS_MAX).contains(&connection) {
                    return Err(field("connection", connection.into()));
                }
                if plain.reserved != [0; 6] {
                    return Err(field("content.reserved", plain.reserved[0].into()));
                }
                Ok(Self::Plain { session, connection })
            }
            KIND_REFUSAL => codec::read_farewell(content).map(Self::Refusal).map_err(PreambleError::Refusal),
            kind => Err(field("kind", kind.into())),
        }
    }

    /// The bytes.
    ///
    /// # Errors
    /// When the ticket is longer than [`CONTENT_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, PreambleError> {
        let mut plain = PlainFixed::new_zeroed();
        let mut refusal = Vec::new();
        let (kind, content) = match self {
            Self::Tls { ticket } => (KIND_TLS, &ticket[..]),
            Self::Plain { session, connection } => {
                plain.session = *session.bytes();
                plain.connection.set(*connection);
                (KIND_PLAIN, plain.as_bytes())
            }
            Self::Refusal(farewell) => {
                codec::write_farewell(farewell, REFUSAL_TEXT_MAX, &mut refusal);
                (KIND_REFUSAL, &refusal[..])
            }
        };
        if content.len() > CONTENT_MAX {
            return Err(PreambleError::TooLong { found: content.len().min(usize::from(u16::MAX)) as u16 });
        }
        let mut fixed = Fixed::new_zeroed();
        fixed.magic = MAGIC;
        fixed.kind = kind;
        fixed.length.set(content.len() as u16);
        let mut bytes = [fixed.as_bytes(), content].concat();
        put_checksum(&mut bytes);
        Ok(bytes)
    }
}

fn field(field: &'static str, value: u64) -> PreambleError {
    PreambleError::Field { field, value }
}

fn fixed(bytes: &[u8]) -> Result<Fixed, PreambleError> {
    let short = PreambleError::Length { expected: PREAMBLE_BYTES, found: bytes.len() };
    let (fixed, _) = Fixed::read_from_prefix(bytes).map_err(|_| short)?;
    if fixed.magic != MAGIC {
        return Err(PreambleError::Magic { found: fixed.magic });
    }
    if usize::from(fixed.length.get()) > CONTENT_MAX {
        return Err(PreambleError::TooLong { found: fixed.length.get() });
    }
    if fixed.reserved != 0 {
        return Err(field("reserved", fixed.reserved.into()));
    }
    Ok(fixed)
}

/// CRC32C of everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..offset_of!(Fixed, crc)]), &bytes[PREAMBLE_BYTES..])
}

fn put_checksum(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    bytes[offset_of!(Fixed, crc)..PREAMBLE_BYTES].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests;

/// Preambles for fuzzers.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{Fixed, MAGIC, PREAMBLE_BYTES, Preamble, put_checksum};
    use std::mem::offset_of;

    /// Whether the bytes are a preamble; one that is must be written as it was.
    pub(crate) fn preamble(bytes: &[u8]) -> bool {
        let Ok(found) = Preamble::decode(bytes) else { return false };
        assert_eq!(found.encode().as_deref(), Ok(bytes));
        true
    }

    /// These bytes with magic, length and checksum made right.
    pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().max(PREAMBLE_BYTES), 0);
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        let length = (bytes.len() - PREAMBLE_BYTES).min(usize::from(u16::MAX)) as u16;
        bytes[offset_of!(Fixed, length)..][..2].copy_from_slice(&length.to_le_bytes());
        put_checksum(&mut bytes);
        bytes
    }
}
