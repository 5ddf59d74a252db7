//! Times of the week at which something holds.

use crate::types::WallTime;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const MINUTE_NS: u64 = 60_000_000_000;
const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// 1970-01-01 was a Thursday.
const FIRST_DAY: i64 = 3;

/// A moment by the clock on the wall of a place: minutes since the last Monday began there, and what has passed of the minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalTime {
    minute: u32,
    passed_ns: u64,
}

impl LocalTime {
    /// The local time where clocks are so many seconds ahead of UTC now. Offsets change with the seasons: ask anew each time.
    #[must_use]
    pub fn new(wall: WallTime, utc_offset_s: i32) -> Self {
        let ns = i128::from(wall.0) + i128::from(utc_offset_s) * 1_000_000_000;
        let minutes = ns.div_euclid(i128::from(MINUTE_NS)) + i128::from(FIRST_DAY) * i128::from(DAY);
        // Both remainders are not negative and below their divisors.
        let minute = minutes.rem_euclid(i128::from(WEEK)) as u32;
        Self { minute, passed_ns: ns.rem_euclid(i128::from(MINUTE_NS)) as u64 }
    }
}

/// From a minute to another one, of some days of the week: `mon-fri 08:00-18:00`, `sat,sun 22:00-06:00`, `daily 00:00-24:00`. Where it ends before
/// it begins it goes over midnight, and belongs to the day on which it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// A bit for each day from Monday; at least one.
    days: u8,
    /// Below a day.
    from: u32,
    /// A day at most; never `from`.
    to: u32,
}

/// Why a text is no window.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WindowError {
    /// Not of the form at all.
    #[error("{text:?} is no window of time: write it as mon-fri 08:00-18:00, sat,sun 22:00-06:00 or daily 00:00-24:00")]
    Form {
        /// The text.
        text: String,
    },
    /// A day that no week has.
    #[error("{day:?} in {text:?} is no day: mon, tue, wed, thu, fri, sat, sun and daily are")]
    Day {
        /// The text.
        text: String,
        /// What stood where a day was expected.
        day: String,
    },
    /// A time that no day has.
    #[error("{time:?} in {text:?} is no time of a day: 00:00 to 23:59 are, and 24:00 as an end")]
    Time {
        /// The text.
        text: String,
        /// What stood where a time was expected.
        time: String,
    },
    /// It has no length.
    #[error("{text:?} ends when it begins: the whole day is 00:00-24:00")]
    Empty {
        /// The text.
        text: String,
    },
}

impl Window {
    /// Whether it holds at this time.
    #[must_use]
    pub fn contains(&self, at: LocalTime) -> bool {
        let (day, minute) = (at.minute / DAY, at.minute % DAY);
        let on = |day: u32| self.days >> (day % 7) & 1 == 1;
        if self.from < self.to {
            on(day) && (self.from..self.to).contains(&minute)
        } else {
            on(day) && minute >= self.from || on(day + 6) && minute < self.to
        }
    }

    /// Nanoseconds until it begins or ends next, of some day; more than none.
    #[must_use]
    pub fn next_edge_ns(&self, at: LocalTime) -> u64 {
        let end = if self.from < self.to { self.to } else { self.to + DAY };
        let edges =
            (0..7).filter(|day| self.days >> day & 1 == 1).flat_map(|day| [day * DAY + self.from, day * DAY + end]);
        let minutes = edges.map(|edge| (edge % WEEK + WEEK - at.minute - 1) % WEEK + 1).min().unwrap_or(WEEK);
        u64::from(minutes) * MINUTE_NS - at.passed_ns
    }
}

fn time(text: &str, time: &str, end: bool) -> Result<u32, WindowError> {
    let wrong = || WindowError::Time { text: text.into(), time: time.into() };
    let number = |digits: &str| match digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse::<u32>().ok(),
        false => None,
    };
    let (hour, minute) = time.split_once(':').ok_or_else(wrong)?;
    let (hour, minute) = number(hour).zip(number(minute)).filter(|(_, minute)| *minute < 60).ok_or_else(wrong)?;
    let minutes = hour * 60 + minute;
    if minutes < DAY || end && minutes == DAY { Ok(minutes) } else { Err(wrong()) }
}

fn days(text: &str, days: &str) -> Result<u8, WindowError> {
    if days == "daily" {
        return Ok(0x7f);
    }
    let number = |day: &str| NAMES.iter().position(|name| *name == day);
    let mut bits = 0;
    for item in days.split(',') {
        let wrong = |day: &str| WindowError::Day { text: text.into(), day: day.into() };
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let mut day = number(first).ok_or_else(|| wrong(first))?;
        let last = number(last).ok_or_else(|| wrong(last))?;
        // From Saturday to Monday are three days.
        bits |= 1 << day;
        while day != last {
            day = (day + 1) % 7;
            bits |= 1 << day;
        }
    }
    Ok(bits)
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let form = || WindowError::Form { text: text.into() };
        let (on, times) = text.split_once(' ').ok_or_else(form)?;
        let (from, to) = times.split_once('-').ok_or_else(form)?;
        let window = Self { days: days(text, on)?, from: time(text, from, false)?, to: time(text, to, true)? };
        if window.from == window.to { Err(WindowError::Empty { text: text.into() }) } else { Ok(window) }
    }
}

/// The form that is read back to the same window.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days == 0x7f {
            f.write_str("daily")?;
        } else {
            let mut day = 0;
            let mut comma = "";
            while day < 7 {
                let length = (day..7).take_while(|day| self.days >> day & 1 == 1).count();
                match length {
                    0 => {}
                    1 => write!(f, "{comma}{}", NAMES[day])?,
                    _ => write!(f, "{comma}{}-{}", NAMES[day], NAMES[day + length - 1])?,
                }
                comma = if length > 0 { "," } else { comma };
                day += length.max(1);
            }
        }
        let (from, to) = (self.from, self.to);
        write!(f, " {:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(text: &str) -> Window {
        text.parse().expect(text)
    }

    /// A time in UTC, as RFC 3339 has it, where clocks are so many minutes ahead.
    fn at(text: &str, ahead: i32) -> LocalTime {
        LocalTime::new(text.parse().expect(text), ahead * 60)
    }

    #[test]
    fn days_and_minutes_are_those_of_the_place() {
        let office = window("mon-fri 08:00-18:00");
        // 2026-11-23 is a Monday.
        assert!(office.contains(at("2026-11-23T08:00:00Z", 0)));
        assert!(office.contains(at("2026-11-23T17:59:59Z", 0)));
        assert!(!office.contains(at("2026-11-23T18:00:00Z", 0)));
        assert!(!office.contains(at("2026-11-22T12:00:00Z", 0)));
        assert!(!office.contains(at("2026-11-23T08:00:00Z", -60)));
        // It is Monday there already.
        assert!(office.contains(at("2026-11-22T21:30:00Z", 12 * 60)));
        assert!(!office.contains(at("1970-01-01T00:00:00Z", -60)));
    }

    #[test]
    fn over_midnight_belongs_to_the_day_on_which_it_begins() {
        let night = window("sun 22:00-06:00");
        assert!(night.contains(at("2026-11-22T22:00:00Z", 0)));
        assert!(night.contains(at("2026-11-23T05:59:00Z", 0)));
        assert!(!night.contains(at("2026-11-23T06:00:00Z", 0)));
        assert!(!night.contains(at("2026-11-22T05:00:00Z", 0)));
        assert!(!night.contains(at("2026-11-23T22:00:00Z", 0)));
        let late = window("fri 22:00-00:00");
        assert!(late.contains(at("2026-11-27T23:59:00Z", 0)) && !late.contains(at("2026-11-28T00:00:00Z", 0)));
    }

    #[test]
    fn windows_are_written_as_they_are_read() {
        for (text, back) in [
            ("mon-fri 08:00-18:00", "mon-fri 08:00-18:00"),
            ("sun,sat 22:00-06:00", "sat-sun 22:00-06:00"),
            ("sat-mon 00:00-24:00", "mon,sat-sun 00:00-24:00"),
            ("mon-sun 00:00-24:00", "daily 00:00-24:00"),
            ("mon,wed,fri 01:02-03:04", "mon,wed,fri 01:02-03:04"),
        ] {
            assert_eq!(window(text).to_string(), back);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            (
                "08:00-18:00",
                "\"08:00-18:00\" is no window of time: write it as mon-fri 08:00-18:00, sat,sun 22:00-06:00 or daily 00:00-24:00",
            ),
            (
                "mo 08:00-18:00",
                "\"mo\" in \"mo 08:00-18:00\" is no day: mon, tue, wed, thu, fri, sat, sun and daily are",
            ),
            (
                "mon 8:00-18:00",
                "\"8:00\" in \"mon 8:00-18:00\" is no time of a day: 00:00 to 23:59 are, and 24:00 as an end",
            ),
            (
                "mon 24:00-18:00",
                "\"24:00\" in \"mon 24:00-18:00\" is no time of a day: 00:00 to 23:59 are, and 24:00 as an end",
            ),
            (
                "mon 08:00-24:01",
                "\"24:01\" in \"mon 08:00-24:01\" is no time of a day: 00:00 to 23:59 are, and 24:00 as an end",
            ),
            (
                "mon 00:60-08:00",
                "\"00:60\" in \"mon 00:60-08:00\" is no time of a day: 00:00 to 23:59 are, and 24:00 as an end",
            ),
            ("mon 08:00-08:00", "\"mon 08:00-08:00\" ends when it begins: the whole day is 00:00-24:00"),
        ] {
            assert_eq!(text.parse::<Window>().expect_err(text).to_string(), said);
        }
    }

    fn any_window() -> impl Strategy<Value = Window> {
        (1..128u8, 0..DAY, 0..=DAY)
            .prop_filter_map("no length", |(days, from, to)| (from != to).then_some(Window { days, from, to }))
    }

    proptest! {
        #[test]
        fn windows_are_read_back(window in any_window()) {
            prop_assert_eq!(window.to_string().parse(), Ok(window));
        }

        #[test]
        fn any_text_is_a_window_or_an_error(text in "[a-z,-]{0,12} [0-9:-]{0,12}|\\PC{0,30}") {
            let _ = text.parse::<Window>();
        }

        /// Against every minute on the way: nothing changes before the next edge, which is ahead.
        #[test]
        fn nothing_changes_before_the_next_edge(window in any_window(), start in 0..u64::from(WEEK), passed in 0..MINUTE_NS) {
            let now = start * MINUTE_NS + passed;
            let local = |ns: u64| LocalTime::new(WallTime(ns), 0);
            let edge = window.next_edge_ns(local(now));
            prop_assert!(edge > 0 && edge <= u64::from(WEEK) * MINUTE_NS);
            prop_assert_eq!((now + edge) % MINUTE_NS, 0);
            let held = window.contains(local(now));
            let mut minute = start + 1;
            while minute * MINUTE_NS < now + edge {
                prop_assert_eq!(window.contains(local(minute * MINUTE_NS)), held);
                minute += 1;
            }
        }
    }
}
