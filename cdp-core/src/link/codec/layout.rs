//! Byte layout of the messages: the only place that knows their offsets, as `WIRE.md` has them. All integers are little endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of what stands before each message's payload.
pub const HEADER_BYTES: usize = 16;

/// What stands before each message's payload.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) length: U32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 2],
    pub(super) number: U64,
}

/// The fixed part of a hello; three short texts follow.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HelloFixed {
    pub(super) version_min: U16,
    pub(super) version_max: U16,
    pub(super) connection: U16,
    pub(super) connections: U16,
    pub(super) features: U64,
    pub(super) session: [u8; 16],
    pub(super) attempt: U64,
    pub(super) group: [u8; 16],
    pub(super) timeline: [u8; 16],
    pub(super) durable_seen: U64,
    pub(super) oldest_lsn: U64,
    pub(super) oldest_parts: U32,
    pub(super) silence_ms: U32,
    pub(super) purpose: u8,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 6],
}

/// Bit 0 of [`HelloFixed::flags`]: plain data connections are wished.
pub(super) const WISHES_PLAIN: u8 = 1;

/// A welcome.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WelcomeFixed {
    pub(super) version: U16,
    pub(super) connections: U16,
    pub(super) silence_ms: U32,
    pub(super) features: U64,
    pub(super) credit: U64,
    pub(super) have_lsn: U64,
    pub(super) have_parts: U32,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 3],
    pub(super) durable: U64,
    pub(super) lost_from: U64,
    pub(super) lost_to: U64,
    pub(super) data_key: [u8; 32],
}

/// Bit 0 of [`WelcomeFixed::flags`]: `have` holds.
pub(super) const HAS: u8 = 1;
/// Bit 1: plain data connections are granted.
pub(super) const GRANTS_PLAIN: u8 = 2;

/// An ack.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct AckFixed {
    pub(super) received: U64,
    pub(super) stored: U64,
    pub(super) durable: U64,
    pub(super) credit: U64,
    pub(super) seeds: U64,
    pub(super) room: u8,
    pub(super) reserved: [u8; 7],
}

/// A ping or a pong.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct PulseFixed {
    pub(super) sent_ns: U64,
    /// Of a ping: bytes held; of a pong: when the ping came.
    pub(super) second: U64,
    /// Of a ping: the newest record; of a pong: when it left.
    pub(super) third: U64,
    pub(super) reserved: [u8; 8],
}

/// The fixed part of a call or answer; header and tail follow.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CallFixed {
    pub(super) kind: U16,
    pub(super) status: U16,
    pub(super) header: U32,
}

/// The fixed part of an error or close; the text follows.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FarewellFixed {
    pub(super) code: U16,
    pub(super) reserved: [u8; 6],
    pub(super) expected: U64,
    pub(super) found: U64,
    pub(super) text: U16,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<HelloFixed>() == 104);
const _: () = assert!(size_of::<WelcomeFixed>() == 96);
const _: () = assert!(size_of::<AckFixed>() == 48);
const _: () = assert!(size_of::<PulseFixed>() == 32);
const _: () = assert!(size_of::<CallFixed>() == 8);
const _: () = assert!(size_of::<FarewellFixed>() == 26);
