//! The kinds of messages: who may send them, where, and how long they may be.

use super::layout::CallFixed;
use crate::link::message::{CALL_HEADER_MAX, CALL_TAIL_MAX, Message};
use std::fmt;

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Party {
    /// The end that dials and has the frames.
    Source = 1,
    /// The end that takes them.
    Target = 2,
}

impl Party {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source end",
            Self::Target => "target end",
        })
    }
}

/// What a message is. The numbers are those of the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum MessageKind {
    /// The source end's first.
    Hello = 1,
    /// The target end's first.
    Welcome = 2,
    /// A frame of the order.
    Frame = 3,
    /// A frame of a disk's first copy.
    Seed = 4,
    /// How far everything came.
    Ack = 5,
    /// A sign of life.
    Ping = 6,
    /// The answer to one.
    Pong = 7,
    /// A question.
    Call = 8,
    /// Its answer.
    Answer = 9,
    /// The end, because something is wrong.
    Error = 10,
    /// The end, in order.
    Close = 11,
}

impl MessageKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Hello,
        Self::Welcome,
        Self::Frame,
        Self::Seed,
        Self::Ack,
        Self::Ping,
        Self::Pong,
        Self::Call,
        Self::Answer,
        Self::Error,
        Self::Close,
    ];

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    pub(super) fn of(message: &Message) -> Self {
        match message {
            Message::Hello(_) => Self::Hello,
            Message::Welcome(_) => Self::Welcome,
            Message::Frame(..) => Self::Frame,
            Message::Seed(..) => Self::Seed,
            Message::Ack(_) => Self::Ack,
            Message::Ping(_) => Self::Ping,
            Message::Pong(_) => Self::Pong,
            Message::Call(..) => Self::Call,
            Message::Answer(..) => Self::Answer,
            Message::Error(_) => Self::Error,
            Message::Close(_) => Self::Close,
        }
    }

    /// The only party that may send it; none: both may.
    pub(super) fn sender(self) -> Option<Party> {
        match self {
            Self::Hello | Self::Frame | Self::Seed => Some(Party::Source),
            Self::Welcome | Self::Ack => Some(Party::Target),
            Self::Ping | Self::Pong | Self::Call | Self::Answer | Self::Error | Self::Close => None,
        }
    }

    /// It may come on a session's first connection only.
    pub(super) fn first_connection_only(self) -> bool {
        matches!(self, Self::Ack | Self::Call | Self::Answer)
    }

    /// It has a number of its own.
    pub(super) fn numbered(self) -> bool {
        matches!(self, Self::Frame | Self::Seed | Self::Call | Self::Answer)
    }

    /// The longest payload, in bytes.
    #[must_use]
    pub fn payload_max(self) -> usize {
        match self {
            Self::Hello => 1024,
            Self::Welcome => 256,
            Self::Frame | Self::Seed => 384 << 10,
            Self::Ack | Self::Ping | Self::Pong => 64,
            Self::Call | Self::Answer => CALL_TAIL_MAX + CALL_HEADER_MAX + size_of::<CallFixed>(),
            Self::Error | Self::Close => 1104,
        }
    }

    /// What `WIRE.md` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Welcome => "welcome",
            Self::Frame => "frame",
            Self::Seed => "seed",
            Self::Ack => "ack",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Call => "call",
            Self::Answer => "answer",
            Self::Error => "error",
            Self::Close => "close",
        }
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
