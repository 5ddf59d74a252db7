//! Orders and reports as headers of calls: JSON, with the fields of `set/SET.md`.

use bytes::Bytes;
use cdp_core::set::{CutId, How, Order, OrderKind, Place, Report, ReportKind};
use cdp_core::types::{GroupId, Lsn, SetId, StartId, Timeline};
use serde::{Deserialize, Serialize};

/// The kind of the calls.
pub const CALL: u16 = 32;
pub(super) const VERSION: u64 = 1;

/// The most bytes of a header; what is said takes about 400.
pub const WORDS_MAX: usize = 4096;

/// Every field that there is; which have to be there depends on `say`.
#[derive(Serialize, Deserialize, Default)]
struct Words {
    v: u64,
    set: String,
    taker: String,
    cut: u64,
    say: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    members: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lsn: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    how: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recorded: Option<bool>,
}

/// An identity in hexadecimal digits.
pub(super) fn id(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

impl Words {
    fn new(set: SetId, cut: CutId, say: &str) -> Self {
        let (set, taker) = (set.to_string(), cut.taker.to_string());
        Self { v: VERSION, set, taker, cut: cut.number, say: say.to_owned(), ..Self::default() }
    }

    fn at(&mut self, place: Place) {
        (self.timeline, self.lsn) = (Some(place.timeline.to_string()), Some(place.lsn.0));
    }

    fn to_bytes(&self) -> Bytes {
        // Strings and numbers: there is nothing in it that JSON does not have.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let words: Self = serde_json::from_slice(bytes.get(..bytes.len().min(WORDS_MAX + 1))?).ok()?;
        (bytes.len() <= WORDS_MAX && words.v == VERSION).then_some(words)
    }

    fn cut(&self) -> Option<(SetId, CutId)> {
        let taker = StartId::new(id(&self.taker)?)?;
        Some((SetId::new(id(&self.set)?)?, CutId { taker, number: self.cut }))
    }

    fn start(&self) -> Option<StartId> {
        StartId::new(id(self.start.as_deref()?)?)
    }

    fn place(&self) -> Option<Place> {
        let timeline = Timeline::new(id(self.timeline.as_deref()?)?)?;
        Some(Place { timeline, lsn: Lsn(self.lsn?) })
    }
}

/// An order as a header.
#[must_use]
pub fn order_to_bytes(order: &Order) -> Bytes {
    let say = match order.kind {
        OrderKind::Prepare => "prepare",
        OrderKind::Go => "go",
        OrderKind::Cancel => "cancel",
        OrderKind::Keep { .. } => "keep",
    };
    let mut words = Words::new(order.set, order.cut, say);
    if let OrderKind::Keep { members, start, place } = order.kind {
        (words.members, words.start) = (Some(members), Some(start.to_string()));
        words.at(place);
    }
    words.to_bytes()
}

/// The order in a header; none where there is none in it.
#[must_use]
pub fn order_of(bytes: &[u8]) -> Option<Order> {
    let words = Words::of(bytes)?;
    let (set, cut) = words.cut()?;
    let kind = match words.say.as_str() {
        "prepare" => OrderKind::Prepare,
        "go" => OrderKind::Go,
        "cancel" => OrderKind::Cancel,
        "keep" => OrderKind::Keep {
            members: words.members.filter(|members| (1..=256).contains(members))?,
            start: words.start()?,
            place: words.place()?,
        },
        _ => return None,
    };
    Some(Order { set, cut, kind })
}

/// A report as a header.
#[must_use]
pub fn report_to_bytes(report: &Report) -> Bytes {
    let say = match report.kind {
        ReportKind::Prepared(_) => "prepared",
        ReportKind::Released { .. } => "released",
        ReportKind::Kept { .. } => "kept",
    };
    let mut words = Words::new(report.set, report.cut, say);
    (words.group, words.start) = (Some(report.group.to_string()), Some(report.start.to_string()));
    match report.kind {
        ReportKind::Prepared(place) => words.at(place),
        ReportKind::Released { how, place } => {
            words.how = Some(how.as_str().to_owned());
            place.into_iter().for_each(|place| words.at(place));
        }
        ReportKind::Kept { recorded } => words.recorded = Some(recorded),
    }
    words.to_bytes()
}

/// The report in a header; none where there is none in it.
#[must_use]
pub fn report_of(bytes: &[u8]) -> Option<Report> {
    let words = Words::of(bytes)?;
    let (set, cut) = words.cut()?;
    let group = GroupId::new(id(words.group.as_deref()?)?)?;
    let kind = match words.say.as_str() {
        "prepared" => ReportKind::Prepared(words.place()?),
        "released" => {
            let how = How::from_word(words.how.as_deref()?)?;
            // Who says where has to say it whole.
            let place = if words.timeline.is_none() && words.lsn.is_none() { None } else { Some(words.place()?) };
            ReportKind::Released { how, place }
        }
        "kept" => ReportKind::Kept { recorded: words.recorded? },
        _ => return None,
    };
    Some(Report { set, cut, group, start: words.start()?, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::set::Refusal;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Place> {
        (any::<u8>(), any::<u64>()).prop_map(|(timeline, lsn)| Place {
            timeline: Timeline::new([timeline | 1; 16]).expect("not zero"),
            lsn: Lsn(lsn),
        })
    }

    fn cut() -> impl Strategy<Value = (SetId, CutId)> {
        (any::<u8>(), any::<u8>(), any::<u64>()).prop_map(|(set, taker, number)| {
            let taker = StartId::new([taker | 1; 16]).expect("not zero");
            (SetId::new([set | 1; 16]).expect("not zero"), CutId { taker, number })
        })
    }

    fn start() -> StartId {
        StartId::new([5; 16]).expect("not zero")
    }

    fn order() -> impl Strategy<Value = Order> {
        let kind = prop_oneof![
            Just(OrderKind::Prepare),
            Just(OrderKind::Go),
            Just(OrderKind::Cancel),
            (1u16..=256, place()).prop_map(|(members, place)| OrderKind::Keep { members, start: start(), place }),
        ];
        (cut(), kind).prop_map(|((set, cut), kind)| Order { set, cut, kind })
    }

    fn report() -> impl Strategy<Value = Report> {
        let how = prop_oneof![
            Just(How::Go),
            Just(How::Timer),
            Just(How::Cancelled),
            Just(How::Full),
            Just(How::Refused(Refusal::NotProtecting)),
            Just(How::Refused(Refusal::TooSoon)),
        ];
        let kind = prop_oneof![
            place().prop_map(ReportKind::Prepared),
            (how, proptest::option::of(place())).prop_map(|(how, place)| ReportKind::Released { how, place }),
            any::<bool>().prop_map(|recorded| ReportKind::Kept { recorded }),
        ];
        let group = GroupId::new([6; 16]).expect("not zero");
        (cut(), kind).prop_map(move |((set, cut), kind)| Report { set, cut, group, start: start(), kind })
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(order in order(), report in report()) {
            prop_assert_eq!(order_of(&order_to_bytes(&order)), Some(order));
            prop_assert_eq!(report_of(&report_to_bytes(&report)), Some(report));
            prop_assert_eq!(order_of(&report_to_bytes(&report)), None);
            prop_assert_eq!(report_of(&order_to_bytes(&order)), None);
        }

        #[test]
        fn what_is_damaged_is_nothing_or_something_whole(report in report(), at in any::<prop::sample::Index>(), bit in 0u8..8, length in 0usize..400) {
            let mut bytes = report_to_bytes(&report).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Some(heard) = report_of(&bytes) {
                prop_assert_eq!(report_of(&report_to_bytes(&heard)), Some(heard));
            }
            bytes.truncate(length);
            if length < report_to_bytes(&report).len() {
                prop_assert_eq!(report_of(&bytes), None);
            }
        }

        #[test]
        fn garbage_is_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(order_of(&bytes), None);
            prop_assert_eq!(report_of(&bytes), None);
        }
    }

    #[test]
    fn another_version_what_is_missing_and_what_is_too_long_are_nothing() {
        let cut = CutId { taker: start(), number: 1 };
        let order = Order { set: SetId::new([1; 16]).expect("not zero"), cut, kind: OrderKind::Go };
        let text = String::from_utf8(order_to_bytes(&order).to_vec()).expect("JSON");
        assert!(order_of(text.as_bytes()).is_some());
        assert!(order_of(text.replace('}', ",\"more\":[1]}").as_bytes()).is_some(), "an unknown field is passed over");
        for (from, to) in
            [("\"v\":1", "\"v\":2"), ("\"go\"", "\"gone\""), ("\"go\"", "\"keep\""), ("\"cut\"", "\"cat\"")]
        {
            assert_eq!(order_of(text.replace(from, to).as_bytes()), None, "{from} as {to}");
        }
        let long = format!("{text}{}", " ".repeat(WORDS_MAX));
        assert_eq!(order_of(long.as_bytes()), None);
    }
}
