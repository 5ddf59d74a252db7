//! Values as people read them.

use cdp_core::types::WallTime;
use cdp_core::when::format_bytes;
use cdp_net::report::{At, Lack, Limit};
use std::time::Duration;

/// A time in the machine's own zone, with its offset: `2026-01-31 23:59:59.500000000 +02:00`. To the nanosecond, so that
/// `--at` takes it for the very record it stands beside, and not for the one before.
#[must_use]
pub fn local_time(time: WallTime) -> String {
    time_in(time, jiff::tz::TimeZone::system())
}

fn time_in(time: WallTime, zone: jiff::tz::TimeZone) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time.0)) {
        Ok(timestamp) => timestamp.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S.%9f %:z").to_string(),
        Err(_) => time.to_string(),
    }
}

/// Bytes a second: `1.50 GiB/s`.
#[must_use]
pub fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", format_bytes(bytes_per_s))
}

/// Bytes over a time as a rate; 0 for no time.
#[must_use]
pub fn bytes_per_s(bytes: u64, time: Duration) -> u64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 }
}

/// A duration with at most two units, as long as people care about: `2 h 05 min`, `1.5 s`, `12 ms`.
#[must_use]
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        86_400.. => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
        3600.. => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        60.. => format!("{} min {:02} s", seconds / 60, seconds % 60),
        1.. => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{} ms", time.as_millis()),
    }
}

/// A moment: its point or its LSN, and its time.
#[must_use]
pub fn moment(at: &At) -> String {
    let time = local_time(at.time);
    match &at.point {
        Some(point) => format!("point {point} ({time})"),
        None => format!("LSN {} ({time})", at.lsn),
    }
}

/// What is lacking: `512 MiB are needed, 12.0 KiB are free`.
#[must_use]
pub fn lack(lack: &Lack) -> String {
    format!("{} are needed, {} are free", format_bytes(lack.needed_bytes), format_bytes(lack.free_bytes))
}

/// What limits history.
#[must_use]
pub fn limit(limit: Option<Limit>) -> &'static str {
    match limit {
        Some(Limit::MaxBytes) => "the journal's bound",
        Some(Limit::Room) => "the room on the replica's disk",
        Some(Limit::Quota) => "the replica's quota",
        None => "the window",
    }
}

/// `1 disk`, `2 disks`.
#[must_use]
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_people_read_it() {
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time_in(WallTime(1_782_864_000_250_999_999), zone), "2026-07-01 02:00:00.250999999 +02:00");
        assert_eq!(rate(3 << 29), "1.50 GiB/s");
        assert_eq!(bytes_per_s(100, Duration::ZERO), 0);
        for (millis, expect) in [
            (12, "12 ms"),
            (1_500, "1.5 s"),
            (125_000, "2 min 05 s"),
            (7_500_000, "2 h 05 min"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), expect);
        }
    }

    proptest! {
        #[test]
        fn a_time_that_is_shown_can_be_asked_for(nanos: u64, quarters in -48i32..=56) {
            let zone = jiff::tz::TimeZone::fixed(jiff::tz::Offset::from_seconds(quarters * 900).unwrap());
            let shown = time_in(WallTime(nanos), zone);
            prop_assert_eq!(shown.parse::<cdp_core::when::When>(), Ok(cdp_core::when::When::Time(WallTime(nanos))));
        }

        /// Our own reading and writing of RFC 3339, against another's.
        #[test]
        fn times_agree_with_jiff(nanos: u64) {
            let theirs = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap();
            prop_assert_eq!(WallTime(nanos).to_string().parse::<jiff::Timestamp>().unwrap(), theirs);
            prop_assert_eq!(theirs.to_string().parse::<WallTime>().unwrap(), WallTime(nanos));
        }
    }
}
