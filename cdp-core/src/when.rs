//! How a person names a moment, an amount of time and an amount of bytes: the syntax, without a clock and without a replica.
//!
//! A [`When`] is only what was typed. Which LSN it means, and whether that is restorable, the replica's catalogue says. The
//! forms are tried in a fixed order and every new one begins with a word and a colon, which no label may hold, so that a
//! script's `--at` never changes its meaning.

mod amount;
mod label;
mod time;

pub use amount::{AmountError, format_bytes, format_duration, parse_bytes, parse_duration};
pub use label::{Label, LabelError};
pub use time::TimeError;

use crate::types::{Lsn, PointId, Timeline, WallTime};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// A moment as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum When {
    /// `latest`: the last restorable LSN.
    Latest,
    /// `lsn:N` on the path of `latest`; `lsn:TIMELINE-N` anywhere.
    Lsn {
        /// The branch of history, if it was named.
        timeline: Option<TimelineName>,
        /// The last record that the moment holds.
        lsn: Lsn,
    },
    /// `point:ID`.
    Point(PointName),
    /// `label:TEXT`, or the text alone.
    Label(Label),
    /// `-90s`: so long before the last durable time record.
    Back(Duration),
    /// An RFC 3339 time.
    Time(WallTime),
}

/// The first 64 bits of a timeline's identity, as they stand in point ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineName([u8; 8]);

impl TimelineName {
    /// Whether `timeline` is called so.
    #[must_use]
    pub fn matches(&self, timeline: &Timeline) -> bool {
        timeline.bytes().starts_with(&self.0)
    }
}

impl From<Timeline> for TimelineName {
    fn from(timeline: Timeline) -> Self {
        let mut name = [0; 8];
        name.copy_from_slice(&timeline.bytes()[..8]);
        Self(name)
    }
}

impl fmt::Display for TimelineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for TimelineName {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        let wrong = || WhenError::Timeline { text: text.into() };
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        u64::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| wrong())
    }
}

/// A point's id, `<16 hex digits of the timeline>-<lsn>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PointName {
    /// The branch of history.
    pub timeline: TimelineName,
    /// The last record that the point holds.
    pub lsn: Lsn,
}

impl From<PointId> for PointName {
    fn from(id: PointId) -> Self {
        Self { timeline: id.timeline.into(), lsn: id.lsn }
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.timeline, self.lsn)
    }
}

impl FromStr for PointName {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        let (timeline, lsn) = text.split_once('-').ok_or_else(|| WhenError::Point { text: text.into() })?;
        Ok(Self { timeline: timeline.parse()?, lsn: number(lsn)? })
    }
}

/// Why a text names no moment.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WhenError {
    /// Nothing was given.
    #[error("the moment is empty: give latest, a time, -15m, lsn:N, point:ID or a label")]
    Empty,
    /// No decimal number that an LSN can have.
    #[error("{text:?} is no LSN: a decimal number was expected")]
    Lsn {
        /// What stood there.
        text: String,
    },
    /// Not 16 hex digits.
    #[error("{text:?} is no timeline: 16 hex digits were expected, as they stand in the ids of points")]
    Timeline {
        /// What stood there.
        text: String,
    },
    /// Not `TIMELINE-LSN`.
    #[error("{text:?} is no point id: TIMELINE-LSN was expected, as the list of points shows it")]
    Point {
        /// What stood there.
        text: String,
    },
    /// After a `-` no duration.
    #[error("{text:?} begins with a hyphen and is no relative time such as -90s, -15m or -2h: {source}")]
    Back {
        /// What stood there.
        text: String,
        /// What was wrong with the duration.
        source: AmountError,
    },
    /// It has a colon, and is neither of a known form nor a time.
    #[error("{text:?} is neither lsn:N, point:ID nor label:TEXT, nor an RFC 3339 time: {source}")]
    Unknown {
        /// What stood there.
        text: String,
        /// Why it is no time.
        source: TimeError,
    },
    /// A label that no point can have.
    #[error(transparent)]
    Label(#[from] LabelError),
}

fn number(text: &str) -> Result<Lsn, WhenError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.map(Lsn).ok_or_else(|| WhenError::Lsn { text: text.into() })
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        if text.is_empty() {
            return Err(WhenError::Empty);
        }
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(rest) = text.strip_prefix("lsn:") {
            return Ok(match rest.split_once('-') {
                Some((timeline, lsn)) => Self::Lsn { timeline: Some(timeline.parse()?), lsn: number(lsn)? },
                None => Self::Lsn { timeline: None, lsn: number(rest)? },
            });
        }
        if let Some(id) = text.strip_prefix("point:") {
            return id.parse().map(Self::Point);
        }
        if let Some(label) = text.strip_prefix("label:") {
            return Ok(Self::Label(label.parse()?));
        }
        if let Some(back) = text.strip_prefix('-') {
            let back = parse_duration(back).map_err(|source| WhenError::Back { text: text.into(), source })?;
            return Ok(Self::Back(back));
        }
        match text.parse::<WallTime>() {
            Ok(time) => Ok(Self::Time(time)),
            Err(source) if text.contains(':') => Err(WhenError::Unknown { text: text.into(), source }),
            Err(_) => Ok(Self::Label(text.parse()?)),
        }
    }
}

/// The form that is parsed back to the same value.
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Lsn { timeline: None, lsn } => write!(f, "lsn:{lsn}"),
            Self::Lsn { timeline: Some(timeline), lsn } => write!(f, "lsn:{timeline}-{lsn}"),
            Self::Point(id) => write!(f, "point:{id}"),
            Self::Label(label) => write!(f, "label:{label}"),
            Self::Back(back) => write!(f, "-{}", format_duration(*back)),
            Self::Time(time) => write!(f, "{time}"),
        }
    }
}

#[cfg(test)]
mod tests;
