//! Amounts of time and of bytes as people type and read them.

use std::time::Duration;
use thiserror::Error;

/// Units of time with their nanoseconds, from the longest.
const TIME_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of bytes. A bare letter is binary, as `qemu-img` and `lvcreate` read it; `KB` and the like are decimal.
const BYTE_UNITS: [(&str, u64); 17] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("P", 1 << 50),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
];

/// Why a text is no amount.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AmountError {
    /// No number where one was expected.
    #[error("{text:?} must begin with a whole number, such as 15s or 4GiB")]
    Number {
        /// The text.
        text: String,
    },
    /// A unit that is not known, or none where one is needed, or units not from the longest to the shortest.
    #[error("{}: {known}", unit_said(text, unit))]
    Unit {
        /// The text.
        text: String,
        /// What stood in the unit's place.
        unit: String,
        /// What may stand there.
        known: &'static str,
    },
    /// Larger than 64 bits of nanoseconds (584 years) or of bytes.
    #[error("{text:?} is too large")]
    TooLarge {
        /// The text.
        text: String,
    },
}

fn unit_said(text: &str, unit: &str) -> String {
    match unit {
        "" => format!("{text:?} ends without a unit"),
        unit => format!("{unit:?} in {text:?} is no unit that may stand there"),
    }
}

/// The number at the beginning and the unit after it.
fn split(rest: &str) -> (&str, &str, &str) {
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = rest.split_at(digits);
    let letters = rest.bytes().take_while(|byte| !byte.is_ascii_digit()).count();
    let (unit, rest) = rest.split_at(letters);
    (number, unit, rest)
}

/// A duration such as `15s`, `500ms`, `4h`, `7d` or `1h30m`: whole numbers, longest unit first, each unit once.
///
/// # Errors
/// When the text is not of that form or is longer than 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, AmountError> {
    let mut units = TIME_UNITS.iter();
    let mut total = 0_u64;
    let mut rest = text;
    loop {
        let (number, unit, after) = split(rest);
        if number.is_empty() {
            return Err(AmountError::Number { text: text.into() });
        }
        let (_, nanos) = units.by_ref().find(|(name, _)| *name == unit).ok_or_else(|| AmountError::Unit {
            text: text.into(),
            unit: unit.into(),
            known: "d, h, m, s, ms, us or ns, each once and the longest first",
        })?;
        let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*nanos));
        let sum = value.and_then(|value| total.checked_add(value));
        total = sum.ok_or_else(|| AmountError::TooLarge { text: text.into() })?;
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_nanos(total));
        }
    }
}

/// A duration in the form that [`parse_duration`] reads, exact to the nanosecond: `1h30m`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, nanos) in TIME_UNITS {
        if rest >= nanos {
            text.push_str(&format!("{}{unit}", rest / nanos));
            rest %= nanos;
        }
    }
    text
}

/// A number of bytes such as `4096`, `64KiB`, `10G` (binary) or `10GB` (decimal).
///
/// # Errors
/// When the text is not of that form or does not fit into 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, AmountError> {
    let (number, unit, rest) = split(text);
    if number.is_empty() {
        return Err(AmountError::Number { text: text.into() });
    }
    let factor = BYTE_UNITS.iter().find(|(name, _)| *name == unit && rest.is_empty());
    let (_, factor) = factor.ok_or_else(|| AmountError::Unit {
        text: text.into(),
        unit: format!("{unit}{rest}"),
        known: "KiB, MiB, GiB, TiB, PiB (or K, M, G, T, P), or decimal KB, MB, GB, TB, PB",
    })?;
    let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    value.ok_or_else(|| AmountError::TooLarge { text: text.into() })
}

/// A number of bytes for people, three digits: `1.50 GiB`, `512 B`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let Some((unit, factor)) = BYTE_UNITS[2..7].iter().rev().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    let value = bytes as f64 / *factor as f64;
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}
