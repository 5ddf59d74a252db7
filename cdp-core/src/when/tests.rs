use super::*;
use proptest::prelude::*;

fn timeline() -> TimelineName {
    "00112233445566ff".parse().unwrap()
}

fn check(text: &str, expect: When) {
    assert_eq!(text.parse(), Ok(expect.clone()), "{text}");
    assert_eq!(expect.to_string().parse(), Ok(expect), "{text} printed and parsed");
}

#[test]
fn every_form_of_a_moment() {
    check("latest", When::Latest);
    check("lsn:0", When::Lsn { timeline: None, lsn: Lsn(0) });
    check("lsn:18446744073709551615", When::Lsn { timeline: None, lsn: Lsn(u64::MAX) });
    check("lsn:00112233445566ff-7", When::Lsn { timeline: Some(timeline()), lsn: Lsn(7) });
    check("lsn:00112233445566FF-7", When::Lsn { timeline: Some(timeline()), lsn: Lsn(7) });
    check("point:00112233445566ff-9", When::Point(PointName { timeline: timeline(), lsn: Lsn(9) }));
    check("label:before upgrade", When::Label("before upgrade".parse().unwrap()));
    check("label:2026-01-02", When::Label("2026-01-02".parse().unwrap()));
    check("-90s", When::Back(Duration::from_secs(90)));
    check("-15m", When::Back(Duration::from_secs(900)));
    check("-2h", When::Back(Duration::from_secs(7200)));
    check("-1h30m", When::Back(Duration::from_secs(5400)));
    check("-1ns", When::Back(Duration::from_nanos(1)));
    check("1970-01-01T00:00:00.000000001Z", When::Time(WallTime(1)));
    check("1970-01-01T02:00:00+02:00", When::Time(WallTime(0)));
    check("before-upgrade", When::Label("before-upgrade".parse().unwrap()));
    check("15m", When::Label("15m".parse().unwrap()));
    check("Latest", When::Label("Latest".parse().unwrap()));
}

#[test]
fn what_names_no_moment() {
    let timeline = |text: &str| WhenError::Timeline { text: text.into() };
    let lsn = |text: &str| WhenError::Lsn { text: text.into() };
    for (text, expect) in [
        ("", WhenError::Empty),
        ("lsn:", lsn("")),
        ("lsn:+5", lsn("+5")),
        ("lsn:5 ", lsn("5 ")),
        ("lsn:18446744073709551616", lsn("18446744073709551616")),
        ("lsn:-5", timeline("")),
        ("lsn:12-5", timeline("12")),
        ("lsn:+0112233445566ff-5", timeline("+0112233445566ff")),
        ("point:5", WhenError::Point { text: "5".into() }),
        ("point:00112233445566ff-", lsn("")),
        ("label:", WhenError::Label(LabelError::Empty)),
        ("label:latest", WhenError::Label(LabelError::Latest)),
        ("label:a:b", WhenError::Label(LabelError::Colon { text: "a:b".into() })),
        ("label:-x", WhenError::Label(LabelError::Hyphen { text: "-x".into() })),
        (" latest", WhenError::Label(LabelError::Invisible { text: " latest".into() })),
        ("alert:before", WhenError::Unknown { text: "alert:before".into(), source: TimeError::Form }),
        ("2026-01-02T03:04:05", WhenError::Unknown { text: "2026-01-02T03:04:05".into(), source: TimeError::Offset }),
    ] {
        assert_eq!(text.parse::<When>(), Err(expect), "{text}");
    }
    assert!(matches!("-5".parse::<When>(), Err(WhenError::Back { .. })));
    assert!(matches!("--5s".parse::<When>(), Err(WhenError::Back { .. })));
    assert!(matches!("-before".parse::<When>(), Err(WhenError::Back { .. })));
}

#[test]
fn times_of_the_calendar() {
    for (text, seconds, nanos) in [
        ("1970-01-01T00:00:00Z", 0, 0),
        ("1970-01-01 00:00:01z", 1, 0),
        ("2000-02-29t12:00:00Z", 951_825_600, 0),
        ("2024-12-31T23:59:59.999999999Z", 1_735_689_599, 999_999_999),
        ("2026-07-01T02:30:00.25+02:30", 1_782_864_000, 250_000_000),
        ("2026-06-30T23:00:00-01:00", 1_782_864_000, 0),
        ("2026-07-01T00:00:00-00:00", 1_782_864_000, 0),
        ("2026-07-01 02:30:00.25 +02:30", 1_782_864_000, 250_000_000),
        ("2026-07-01 00:00:00 Z", 1_782_864_000, 0),
    ] {
        assert_eq!(text.parse(), Ok(WallTime(seconds * 1_000_000_000 + nanos)), "{text}");
    }
    assert_eq!(WallTime(1_782_864_000_250_000_000).to_string(), "2026-07-01T00:00:00.250000000Z");
    for (text, expect) in [
        ("2026-07-01", TimeError::Form),
        ("2026-07-01T00:00Z", TimeError::Form),
        ("2026-07-01T00:00:00.Z", TimeError::Form),
        ("2026-07-01T00:00:00Z ", TimeError::Form),
        ("2026-07-01T00:00:00+0200", TimeError::Form),
        ("2026-07-01T00:00:00", TimeError::Offset),
        ("2026-07-01T00:00:00 ", TimeError::Offset),
        ("2026-07-01T00:00:00  Z", TimeError::Form),
        ("2026-07-01T00:00:00.0123456789Z", TimeError::Fraction),
        ("2026-13-01T00:00:00Z", TimeError::Calendar("month")),
        ("2026-02-29T00:00:00Z", TimeError::Calendar("day")),
        ("2100-02-29T00:00:00Z", TimeError::Calendar("day")),
        ("2026-07-01T24:00:00Z", TimeError::Calendar("hour")),
        ("2026-07-01T00:60:00Z", TimeError::Calendar("minute")),
        ("2026-06-30T23:59:60Z", TimeError::Calendar("second")),
        ("2026-07-01T00:00:00+24:00", TimeError::Calendar("offset")),
        ("1969-12-31T23:59:59Z", TimeError::Range),
        ("1970-01-01T00:00:00+00:01", TimeError::Range),
        ("9999-01-01T00:00:00Z", TimeError::Range),
    ] {
        assert_eq!(text.parse::<WallTime>(), Err(expect), "{text}");
    }
}

#[test]
fn durations() {
    for (text, nanos) in [
        ("0s", 0),
        ("15s", 15_000_000_000),
        ("500ms", 500_000_000),
        ("4h", 14_400_000_000_000),
        ("7d", 604_800_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1m1us", 60_000_001_000),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
    }
    for text in ["", "5", "s", "-5s", "1.5h", "5 s", "5s ", "5min", "1m1h", "5s5s", "999999999999d", "é", "5é"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
    assert_eq!(format_duration(Duration::from_millis(5_400_500)), "1h30m500ms");
}

#[test]
fn bytes() {
    for (text, expect) in [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("64KiB", 65_536),
        ("1GiB", 1 << 30),
        ("2T", 2 << 40),
        ("10GB", 10_000_000_000),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(parse_bytes(text), Ok(expect), "{text}");
    }
    for text in ["", "GiB", "-1", "1.5GiB", "1 GiB", "1gib", "1GiB5", "1KiB1", "17179869184GiB", "é1"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
    for (value, expect) in
        [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536 << 20, "1.50 GiB"), (123 << 30, "123 GiB")]
    {
        assert_eq!(format_bytes(value), expect);
    }
}

proptest! {
    #[test]
    fn a_time_survives_print_and_parse(nanos: u64) {
        prop_assert_eq!(WallTime(nanos).to_string().parse(), Ok(WallTime(nanos)));
    }

    #[test]
    fn a_duration_survives_print_and_parse(nanos: u64) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn whatever_is_a_moment_prints_as_itself(text in "(latest|lsn:|point:|label:|-)?[ -~é]{0,24}") {
        if let Ok(when) = text.parse::<When>() {
            prop_assert_eq!(when.to_string().parse(), Ok(when));
        }
    }

    #[test]
    fn every_label_is_found_again_by_its_text_alone(text in "[ -~é]{1,24}") {
        if let Ok(label) = text.parse::<Label>() {
            prop_assert_eq!(text.parse(), Ok(When::Label(label)));
        }
    }

    #[test]
    fn garbage_never_panics(text in ".*") {
        let _ = text.parse::<When>();
        let _ = text.parse::<WallTime>();
        let _ = parse_duration(&text);
        let _ = parse_bytes(&text);
    }
}
