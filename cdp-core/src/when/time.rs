//! RFC 3339 times, strictly: with an offset, to the nanosecond, from 1970 to 2554 (what 64 bits of nanoseconds hold). One
//! thing more is taken, because people paste what lists show them: a space before the offset.

use crate::types::WallTime;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

const SECOND: u64 = 1_000_000_000;

/// Why a text is no time that a record can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TimeError {
    /// Not of the form at all.
    #[error("a time has the form 2026-01-31T23:59:59.5+02:00")]
    Form,
    /// A local time: nobody knows which moment is meant.
    #[error("the time has no offset: end it with Z for UTC, or with one such as +02:00")]
    Offset,
    /// More than nine digits after the point.
    #[error("the time is finer than a nanosecond: at most nine digits may follow the point")]
    Fraction,
    /// A month, day, hour, minute, second or offset that no calendar has.
    #[error("no calendar has that {0}")]
    Calendar(&'static str),
    /// Before 1970 or after 2554.
    #[error("the time lies outside the years 1970 to 2554")]
    Range,
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year and eras of 400 years are all alike
/// (<https://howardhinnant.github.io/date_algorithms.html>, `days_from_civil`).
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that many days after 1970-01-01: year, month, day.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn digits(&mut self, count: usize) -> Result<i64, TimeError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(TimeError::Form)?;
        if !head.iter().all(u8::is_ascii_digit) {
            return Err(TimeError::Form);
        }
        self.0 = rest;
        Ok(head.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn one_of(&mut self, allowed: &[u8]) -> Result<u8, TimeError> {
        match self.0.split_first() {
            Some((byte, rest)) if allowed.contains(byte) => {
                self.0 = rest;
                Ok(*byte)
            }
            _ => Err(TimeError::Form),
        }
    }

    /// Nanoseconds after an optional point.
    fn fraction(&mut self) -> Result<i64, TimeError> {
        if self.one_of(b".").is_err() {
            return Ok(0);
        }
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        match count {
            0 => Err(TimeError::Form),
            1..=9 => Ok(self.digits(count)? * 10_i64.pow(9 - count as u32)),
            _ => Err(TimeError::Fraction),
        }
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i64, TimeError> {
        self.0 = self.0.strip_prefix(b" ").unwrap_or(self.0);
        if self.0.is_empty() {
            return Err(TimeError::Offset);
        }
        let sign = match self.one_of(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Ok(0),
        };
        let hours = within(self.digits(2)?, 0, 23, "offset")?;
        self.one_of(b":")?;
        let minutes = within(self.digits(2)?, 0, 59, "offset")?;
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}

fn within(value: i64, low: i64, high: i64, what: &'static str) -> Result<i64, TimeError> {
    if (low..=high).contains(&value) { Ok(value) } else { Err(TimeError::Calendar(what)) }
}

/// Parses an RFC 3339 time with an offset. A leap second (`:60`) is refused: no clock that stamps records has one.
impl FromStr for WallTime {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let mut rest = Cursor(text.as_bytes());
        let year = rest.digits(4)?;
        rest.one_of(b"-")?;
        let month = within(rest.digits(2)?, 1, 12, "month")?;
        rest.one_of(b"-")?;
        let day = within(rest.digits(2)?, 1, days_in(year, month), "day")?;
        rest.one_of(b"Tt ")?;
        let hour = within(rest.digits(2)?, 0, 23, "hour")?;
        rest.one_of(b":")?;
        let minute = within(rest.digits(2)?, 0, 59, "minute")?;
        rest.one_of(b":")?;
        let second = within(rest.digits(2)?, 0, 59, "second")?;
        let nanos = rest.fraction()?;
        let offset = rest.offset()?;
        if !rest.0.is_empty() {
            return Err(TimeError::Form);
        }
        let seconds = days_of(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
        let seconds = u64::try_from(seconds).map_err(|_| TimeError::Range)?;
        let total = seconds.checked_mul(SECOND).and_then(|whole| whole.checked_add(nanos.cast_unsigned()));
        total.map(WallTime).ok_or(TimeError::Range)
    }
}

/// RFC 3339 in UTC with nine digits: the one form in which times leave this project.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / SECOND;
        let (year, month, day) = date_of((seconds / 86_400).cast_signed());
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let nanos = self.0 % SECOND;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}
