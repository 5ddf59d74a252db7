//! What can be wrong with bytes of a link, and what the other side is told.

use super::kind::{MessageKind, Party};
use crate::frame::FrameError;
use crate::link::message::{Code, Farewell, VERSION};

/// Why a message may not come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misplaced {
    /// Only the other party sends it.
    Party,
    /// It must be a connection's first message, or may not be.
    Order,
    /// It may come on the session's first connection only.
    Connection,
    /// The connection was ended by the message before.
    Ended,
}

/// What is wrong with bytes that should be messages. The connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// A kind that is not in the table.
    #[error("message kind {found} is not known")]
    Kind {
        /// What stands there.
        found: u8,
    },
    /// A kind that may not come here or now.
    #[error("a {kind} may not come from the {from} here: {}", misplaced(*.why))]
    Unexpected {
        /// What came.
        kind: MessageKind,
        /// From whom.
        from: Party,
        /// Why it may not.
        why: Misplaced,
    },
    /// A length above the bound of the kind.
    #[error("a {kind} of {found} bytes is longer than {max}")]
    TooLong {
        /// What came.
        kind: MessageKind,
        /// Bytes it says it has.
        found: u64,
        /// The most it may have.
        max: u64,
    },
    /// Not as many bytes as what is in it needs.
    #[error("a {kind} of {found} bytes, of which its fields need {expected}")]
    Length {
        /// What came.
        kind: MessageKind,
        /// Bytes that its fields have.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A field has a value that nobody gives it.
    #[error("field `{field}` of a {kind} has the impossible value {value}")]
    Field {
        /// What came.
        kind: MessageKind,
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A text is not UTF-8.
    #[error("field `{field}` of a {kind} is not UTF-8")]
    Text {
        /// What came.
        kind: MessageKind,
        /// Which field.
        field: &'static str,
    },
    /// There is no version that both speak.
    #[error(
        "the other side speaks versions up to {found} of the link; this one speaks {VERSION}: upgrade the older side"
    )]
    Version {
        /// The highest of the other side.
        found: u16,
    },
    /// A frame does not verify.
    #[error("frame {number}: {error}")]
    Frame {
        /// Its number in the session.
        number: u64,
        /// What is wrong with it.
        error: FrameError,
    },
    /// A MAC does not verify: the message was not made with the session's key, or not for this place.
    #[error("the MAC of message {count} of this connection does not verify")]
    Mac {
        /// Messages before it.
        count: u64,
    },
}

fn misplaced(why: Misplaced) -> &'static str {
    match why {
        Misplaced::Party => "only the other side sends it",
        Misplaced::Order => "a connection begins with hello and welcome, and each comes once",
        Misplaced::Connection => "it belongs on the session's first connection",
        Misplaced::Ended => "the message before it was the last",
    }
}

impl WireError {
    /// What the other side is told.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        let (code, expected, found) = match *self {
            Self::Kind { found } => (Code::Unexpected, 0, found.into()),
            Self::Unexpected { kind, .. } => (Code::Unexpected, 0, kind as u64),
            Self::TooLong { found, max, .. } => (Code::TooLong, max, found),
            Self::Length { expected, found, .. } => (Code::Malformed, expected, found),
            Self::Field { value, .. } => (Code::Malformed, 0, value),
            Self::Text { .. } => (Code::Malformed, 0, 0),
            Self::Version { found } => (Code::Version, VERSION.into(), found.into()),
            Self::Frame { number, .. } => (Code::Damaged, 0, number),
            Self::Mac { count } => (Code::Damaged, 0, count),
        };
        Farewell::new(code, self.to_string()).with(expected, found)
    }
}

/// A message that has no form on the wire: its maker broke a bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("field `{field}` of a {kind} has {found} bytes, and at most {max} can be sent")]
pub struct Unsendable {
    /// What should be sent.
    pub kind: MessageKind,
    /// Which field.
    pub field: &'static str,
    /// Bytes it has.
    pub found: u64,
    /// The most it may have.
    pub max: u64,
}
