//! What is said on a link, as values. The bytes are in `WIRE.md`.

use crate::frame::EncodedFrame;
use crate::types::{GroupId, Lsn, Position, SessionId, Timeline};
use bytes::Bytes;
use std::fmt;
use std::ops::RangeInclusive;

/// The version that this library speaks.
pub const VERSION: u16 = 1;
/// Data connections of a session, at most.
pub const DATA_CONNECTIONS_MAX: u16 = 15;
/// Calls of a session that are open at once, at most.
pub const CALLS_MAX: usize = 256;
/// The longest header of a call or answer, in bytes.
pub const CALL_HEADER_MAX: usize = 64 << 10;
/// The longest tail of a call or answer, in bytes.
pub const CALL_TAIL_MAX: usize = 1 << 20;
/// After how long a silence a connection may be taken for dead, in milliseconds.
pub const SILENCE_MS: RangeInclusive<u32> = 1_000..=60_000;

/// What both sides can do beside the least: a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u64);

impl Features {
    /// Chunks that are compressed by zstd.
    pub const ZSTD: Features = Features(1);
    /// Seeds.
    pub const SEED: Features = Features(2);
    /// All that this library knows.
    pub const ALL: Features = Features(3);

    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// Whether all of `other` are in it.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Purpose {
    /// Frames, seeds and calls of one group and timeline.
    Frames = 1,
    /// Calls only.
    Calls = 2,
}

/// The first message of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Versions that are spoken.
    pub versions: RangeInclusive<u16>,
    /// Which connection of the session this is; 0: the first.
    pub connection: u16,
    /// Data connections that are wished.
    pub connections: u16,
    /// Data connections are wished to be plain.
    pub plain: bool,
    /// What is spoken beside the least.
    pub features: Features,
    /// The session.
    pub session: SessionId,
    /// Higher than that of every earlier session of this source end.
    pub attempt: u64,
    /// What for.
    pub purpose: Purpose,
    /// The group; none where calls name it by its name.
    pub group: Option<GroupId>,
    /// The timeline of the frames; none where there are none.
    pub timeline: Option<Timeline>,
    /// The highest durable LSN of the timeline that anybody has told the source end.
    pub durable_seen: Lsn,
    /// From here on the source end has everything.
    pub oldest: Position,
    /// After so long without a word the connection is taken for dead, in milliseconds.
    pub silence_ms: u32,
    /// Whose group it is; empty: not known.
    pub tenant: String,
    /// The group's name; may be empty where `group` is there.
    pub name: String,
    /// Who speaks, for people.
    pub software: String,
}

/// The target end's answer to a hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that is spoken.
    pub version: u16,
    /// Data connections that may come.
    pub connections: u16,
    /// The key of the MACs of plain data connections; none: they are TLS.
    pub data_key: Option<DataKey>,
    /// What both speak beside the least.
    pub features: Features,
    /// Bytes of frames and seeds that may be sent in this session from its beginning.
    pub credit: u64,
    /// Up to where the target end has the timeline; none: nothing of it.
    pub have: Option<Position>,
    /// Up to where it is durable.
    pub durable: Lsn,
    /// What was acknowledged as durable and is lost.
    pub lost: Option<RangeInclusive<Lsn>>,
    /// The smaller wish of both, in milliseconds.
    pub silence_ms: u32,
}

/// The key of the MACs of a session's plain data connections. Not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(pub [u8; 32]);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// Whether the far side takes everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum FarRoom {
    /// It does.
    #[default]
    Ok = 1,
    /// Its media are full.
    NoSpace = 2,
    /// It failed or cannot be reached.
    Lost = 3,
    /// Its quota is used up.
    Quota = 4,
}

/// How far everything came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// Whole and in order, in memory at least.
    pub received: Lsn,
    /// Synced in a proxy's disk cache, or durable.
    pub stored: Lsn,
    /// Synced by the replica host.
    pub durable: Lsn,
    /// Bytes that may be sent in this session from its beginning.
    pub credit: u64,
    /// Seeds that were taken, counted.
    pub seeds: u64,
    /// Whether more is taken.
    pub room: FarRoom,
}

/// A sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ping {
    /// The sender's steady clock.
    pub sent_ns: u64,
    /// Bytes of frames that it holds and that are not durable.
    pub held_bytes: u64,
    /// The source's steady clock at its newest record that the sender knows; 0: none.
    pub newest_ns: u64,
}

/// The answer to a ping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pong {
    /// Of the ping.
    pub sent_ns: u64,
    /// The answerer's steady clock when the ping came.
    pub came_ns: u64,
    /// The same when the pong left.
    pub left_ns: u64,
}

/// A question from end to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// What is asked: see whoever answers.
    pub kind: u16,
    /// JSON.
    pub header: Bytes,
    /// Bytes that need no words.
    pub tail: Bytes,
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum CallStatus {
    /// Well.
    Done = 1,
    /// Whoever was asked does not know this kind.
    UnknownKind = 2,
    /// Refused; the header says why.
    Refused = 3,
    /// The next hop cannot be reached.
    Unreachable = 4,
    /// No answer came in time.
    TimedOut = 5,
}

impl CallStatus {
    /// The one with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        let all = [Self::Done, Self::UnknownKind, Self::Refused, Self::Unreachable, Self::TimedOut];
        all.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The answer to a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Of the call.
    pub kind: u16,
    /// How it ended.
    pub status: CallStatus,
    /// JSON.
    pub header: Bytes,
    /// Bytes that need no words.
    pub tail: Bytes,
}

/// Why a connection ends. The numbers are those of the wire and are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum Code {
    /// No common version.
    Version = 1,
    /// A message is not one.
    Malformed = 2,
    /// A kind that may not come here or now.
    Unexpected = 3,
    /// A length above its bound.
    TooLong = 4,
    /// The certificate is not let in.
    Unauthorized = 5,
    /// The ticket's MAC, route or certificate is wrong.
    TicketInvalid = 6,
    /// The ticket is too old.
    TicketExpired = 7,
    /// Nobody here knows the group.
    UnknownGroup = 8,
    /// The group is another tenant's.
    OtherTenant = 9,
    /// Records of the timeline are taken no more.
    TimelineClosed = 10,
    /// The timeline was never opened.
    TimelineUnknown = 11,
    /// A newer session of the same source end is there.
    Superseded = 12,
    /// A frame does not continue what was sent.
    OutOfOrder = 13,
    /// A frame or MAC does not verify.
    Damaged = 14,
    /// More was sent than granted.
    Credit = 15,
    /// A bound of the other side is reached.
    Busy = 16,
    /// The other side ends in order.
    Stopping = 17,
    /// The next hop cannot be reached.
    Unreachable = 18,
    /// Nothing was heard for too long.
    Silent = 19,
    /// A fault of the other side.
    Internal = 20,
    /// The source end no longer has what would follow.
    Broken = 21,
    /// Nothing more comes.
    Done = 22,
    /// The timeline ends within a record, of which the rest is lost.
    Torn = 23,
}

impl Code {
    /// All of them, by their numbers.
    pub const ALL: [Self; 23] = [
        Self::Version,
        Self::Malformed,
        Self::Unexpected,
        Self::TooLong,
        Self::Unauthorized,
        Self::TicketInvalid,
        Self::TicketExpired,
        Self::UnknownGroup,
        Self::OtherTenant,
        Self::TimelineClosed,
        Self::TimelineUnknown,
        Self::Superseded,
        Self::OutOfOrder,
        Self::Damaged,
        Self::Credit,
        Self::Busy,
        Self::Stopping,
        Self::Unreachable,
        Self::Silent,
        Self::Internal,
        Self::Broken,
        Self::Done,
        Self::Torn,
    ];

    /// The code with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The last message of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Farewell {
    /// Why.
    pub code: Code,
    /// What the code says it should be; else 0.
    pub expected: u64,
    /// What it is; else 0.
    pub found: u64,
    /// For people, at most 1,024 bytes.
    pub text: String,
}

/// A message.
#[derive(Clone, Debug)]
pub enum Message {
    /// The first of a connection, from the source end.
    Hello(Box<Hello>),
    /// The answer to it.
    Welcome(Box<Welcome>),
    /// The session's frame with this number, from 1.
    Frame(u64, EncodedFrame),
    /// The session's seed with this number, from 1.
    Seed(u64, EncodedFrame),
    /// How far everything came.
    Ack(Ack),
    /// A sign of life.
    Ping(Ping),
    /// The answer to one.
    Pong(Pong),
    /// A question with its number.
    Call(u64, Call),
    /// Its answer.
    Answer(u64, Answer),
    /// The other side did something wrong, or cannot be served.
    Error(Farewell),
    /// An end in order.
    Close(Farewell),
}

impl Message {
    /// How many bytes of payload it is, as far as that counts for what waits in a driver: frames, seeds, calls and answers.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        match self {
            Self::Frame(_, frame) | Self::Seed(_, frame) => frame.len(),
            Self::Call(_, Call { header, tail, .. }) | Self::Answer(_, Answer { header, tail, .. }) => {
                (header.len() + tail.len()) as u64
            }
            _ => 0,
        }
    }
}
