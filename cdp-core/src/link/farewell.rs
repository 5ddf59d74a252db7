//! How a connection ends, and what its end asks of whoever dialled.

use super::message::{Code, Farewell, Message};

/// The longest text of a farewell, in bytes of UTF-8.
pub const TEXT_MAX: usize = 1024;

/// What a source end does about a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// It dials again, later.
    Retry,
    /// It dials again, later; another proxy or another ticket would help sooner.
    Elsewhere,
    /// It waits until somebody has changed something and says so.
    Never,
}

impl Code {
    /// What is to be done about it.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Malformed | Self::Unexpected | Self::TooLong | Self::OutOfOrder | Self::Damaged | Self::Credit => {
                Class::Retry
            }
            // Whoever says `broken` starts anew, and says at the next hello what it needs.
            Self::Busy | Self::Silent | Self::Internal | Self::Broken | Self::Done => Class::Retry,
            Self::TicketExpired | Self::Stopping | Self::Unreachable => Class::Elsewhere,
            Self::Version | Self::Unauthorized | Self::TicketInvalid | Self::UnknownGroup | Self::OtherTenant => {
                Class::Never
            }
            Self::TimelineClosed | Self::TimelineUnknown | Self::Superseded | Self::Torn => Class::Never,
        }
    }

    /// Whether a refusal is of the group or the timeline, and not of whoever hears it.
    #[must_use]
    pub fn is_of_the_source(self) -> bool {
        matches!(
            self,
            Self::UnknownGroup | Self::OtherTenant | Self::TimelineClosed | Self::TimelineUnknown | Self::Torn
        )
    }

    /// Whether the other side did something wrong or cannot be served; else it is an end in order.
    fn is_error(self) -> bool {
        !matches!(self, Self::Superseded | Self::Stopping | Self::Broken | Self::Done | Self::Torn)
    }
}

impl Farewell {
    /// A last word, its text cut to what the wire takes.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        Self { code, expected: 0, found: 0, text }
    }

    /// The same with the two numbers.
    #[must_use]
    pub fn with(self, expected: u64, found: u64) -> Self {
        Self { expected, found, ..self }
    }

    /// The message that says it.
    #[must_use]
    pub fn message(self) -> Message {
        if self.code.is_error() { Message::Error(self) } else { Message::Close(self) }
    }
}

impl std::fmt::Display for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.text)?;
        if self.expected != 0 || self.found != 0 {
            write!(f, " (expected {}, found {})", self.expected, self.found)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        let long = Farewell::new(Code::Internal, "ä".repeat(1000));
        assert_eq!(long.text.len(), TEXT_MAX);
        assert_eq!(Farewell::new(Code::Internal, format!("x{}", "ä".repeat(1000))).text.len(), TEXT_MAX - 1);
    }

    #[test]
    fn ends_in_order_are_no_errors() {
        assert!(matches!(Farewell::new(Code::Done, "").message(), Message::Close(_)));
        assert!(matches!(Farewell::new(Code::Credit, "").message(), Message::Error(_)));
    }
}
