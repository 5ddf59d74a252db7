use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn rule(name: &str, source: &str, target: &str, encrypt: Option<bool>, limit: Option<(u64, &[&str])>) -> Rule {
    let limit = limit.map(|(bytes_per_s, windows)| Limit {
        bytes_per_s,
        windows: windows.iter().map(|window| window.parse().expect(window)).collect(),
    });
    let range = |text: &str| text.parse().expect(text);
    Rule { name: name.into(), enabled: true, source: range(source), target: range(target), encrypt, limit }
}

fn rules(rules: &[Rule]) -> Rules {
    Rules::new(rules.to_vec()).expect("a good set")
}

fn flow(source: &str, target: &str) -> Flow {
    let address = |text: &str| text.parse().expect(text);
    Flow { source: address(source), target: address(target), gateway: false }
}

/// A Monday, at noon.
fn noon() -> LocalTime {
    LocalTime::new("2026-11-23T12:00:00Z".parse().expect("a time"), 0)
}

#[test]
fn without_rules_what_leaves_private_networks_is_encrypted() {
    let none = Rules::default();
    let decide = |source, target| none.decide(flow(source, target), noon());
    assert_eq!(decide("10.0.0.1", "192.168.0.1").traffic, Traffic { encrypt: false, limit: None });
    assert_eq!(decide("fd00::1", "fe80::1").encrypt, Why::Default);
    assert_eq!(decide("10.0.0.1", "8.8.8.8").encrypt, Why::Must(Must::PublicTarget));
    assert_eq!(decide("2001:db8::1", "fd00::1").encrypt, Why::Must(Must::PublicSource));
    let gateway = Flow { gateway: true, ..flow("10.0.0.1", "10.0.0.2") };
    assert_eq!(none.decide(gateway, noon()).encrypt, Why::Must(Must::Gateway));
}

#[test]
fn a_no_is_refused_where_plain_is_not_possible() {
    let rules = rules(&[rule("plain", "any", "any", Some(false), None)]);
    let refused = |flow| {
        let decision = rules.decide(flow, noon());
        (decision.traffic.encrypt, decision.refused)
    };
    assert_eq!(refused(flow("10.0.0.1", "10.0.0.2")), (false, None));
    assert_eq!(refused(flow("10.0.0.1", "8.8.8.8")), (true, Some(0)));
    assert_eq!(refused(flow("::ffff:8.8.8.8", "10.0.0.2")), (true, Some(0)));
    assert_eq!(refused(Flow { gateway: true, ..flow("10.0.0.1", "10.0.0.2") }), (true, Some(0)));
}

#[test]
fn of_rules_that_overlap_yes_and_the_lowest_win() {
    let rules = rules(&[
        rule("plain", "10.0.0.0/8", "any", Some(false), Some((20 * MIB, &[]))),
        rule("secret", "10.1.0.0/16", "any", Some(true), None),
        rule("slow", "10.1.0.0/16", "10.0.0.0/8", None, Some((5 * MIB, &["mon-fri 08:00-18:00"]))),
        rule("slow too", "any", "any", None, Some((5 * MIB, &[]))),
    ]);
    let decision = rules.decide(flow("10.1.2.3", "10.0.0.1"), noon());
    let expected = Traffic { encrypt: true, limit: Some(5 * MIB) };
    assert_eq!((decision.traffic, decision.encrypt, decision.limit), (expected, Why::Rule(1), Some(2)));
    let night = LocalTime::new("2026-11-23T20:00:00Z".parse().expect("a time"), 0);
    assert_eq!(rules.decide(flow("10.1.2.3", "10.0.0.1"), night).limit, Some(3));
    let other = rules.decide(flow("10.2.2.3", "10.0.0.1"), noon());
    assert_eq!((other.traffic.encrypt, other.encrypt), (false, Why::Rule(0)));
    // The window ends at six.
    assert_eq!(rules.next_change_ns(noon()), Some(6 * 3_600_000_000_000));
}

#[test]
fn every_rule_is_explained() {
    let mut off = rule("off", "any", "any", Some(true), None);
    off.enabled = false;
    let rules = rules(&[
        rule("plain", "10.0.0.0/8", "any", Some(false), Some((20 * MIB, &[]))),
        off,
        rule("v6", "::/0", "any", Some(true), None),
        rule("elsewhere", "any", "10.9.0.0/16", Some(true), None),
        rule("weekend", "any", "any", None, Some((MIB, &["sat,sun 00:00-24:00"]))),
        rule("fast", "any", "any", None, Some((100 * MIB, &[]))),
    ]);
    let said = rules.explain(flow("10.0.0.1", "8.8.8.8"), noon()).to_string();
    let expected = "encrypted: its target is not in a private network
limited to 20.0 MiB/s: rule \"plain\"
  \"plain\": matches; encrypt: refused; limit: decides
  \"off\": disabled
  \"v6\": another source
  \"elsewhere\": another target
  \"weekend\": matches; encrypt: not said; limit: not at this time
  \"fast\": matches; encrypt: not said; limit: overruled";
    assert_eq!(said, expected);
    let none = Rules::default().explain(flow("10.0.0.1", "10.0.0.2"), noon()).to_string();
    assert_eq!(none, "plain, with a MAC: it stays in private networks, and no rule says otherwise\nnot limited");
}

#[test]
fn sets_out_of_bounds_are_refused_and_say_why() {
    let good = |name: &str| rule(name, "any", "any", Some(true), None);
    let refused = |rules: Vec<Rule>| Rules::new(rules).expect_err("refused");
    let many = (0..=RULES_MAX).map(|number| good(&number.to_string())).collect();
    assert_eq!(refused(many), RulesError::TooMany { found: RULES_MAX + 1 });
    for name in ["", "a\nb", &"x".repeat(NAME_MAX + 1)] {
        assert_eq!(refused(vec![good("a"), good(name)]), RulesError::Name { number: 2, name: name.into() });
    }
    assert_eq!(refused(vec![good("a"), good("a")]), RulesError::Twice { name: "a".into() });
    assert_eq!(refused(vec![rule("a", "any", "any", None, None)]), RulesError::Silent { name: "a".into() });
    let slow = rule("a", "any", "any", None, Some((RATE_MIN - 1, &[])));
    assert_eq!(refused(vec![slow]), RulesError::Rate { name: "a".into(), bytes_per_s: RATE_MIN - 1 });
    let busy = rule("a", "any", "any", None, Some((MIB, &["daily 00:00-24:00"; WINDOWS_MAX + 1])));
    assert_eq!(refused(vec![busy]), RulesError::Windows { name: "a".into(), found: WINDOWS_MAX + 1 });
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let range = prop::sample::select(vec![
        "any",
        "10.0.0.0/8",
        "10.1.0.0-10.1.0.5",
        "8.8.0.0/16",
        "fd00::/8",
        "2001:db8::/32",
        "10.1.0.3",
    ])
    .prop_map(|text| text.parse().expect("a range"));
    let windows = prop::collection::vec(
        prop::sample::select(vec!["daily 08:00-18:00", "mon 22:00-06:00", "sat,sun 00:00-24:00"]),
        0..3,
    );
    let limit = prop::option::of((prop::sample::select(vec![RATE_MIN, MIB, 2 * MIB]), windows));
    (any::<bool>(), range.clone(), range, any::<Option<bool>>(), limit).prop_map(
        |(enabled, source, target, encrypt, limit)| {
            let limit = limit.map(|(bytes_per_s, windows)| Limit {
                bytes_per_s,
                windows: windows.into_iter().map(|window| window.parse().expect("a window")).collect(),
            });
            let encrypt = if limit.is_none() { encrypt.or(Some(true)) } else { encrypt };
            Rule { name: String::new(), enabled, source, target, encrypt, limit }
        },
    )
}

proptest! {
    /// Against the sentences of the module, each as one line over all rules; and the order of rules changes no traffic.
    #[test]
    fn decisions_are_those_of_the_sentences(
        mut all in prop::collection::vec(any_rule(), 0..8),
        source in prop::sample::select(vec!["10.1.0.3", "10.1.0.9", "8.8.8.8", "fd00::1", "2001:db8::7", "100.64.0.1", "::ffff:10.1.0.3"]),
        target in prop::sample::select(vec!["10.1.0.3", "192.168.7.7", "8.8.4.4", "fd00::2", "2001:db8::8"]),
        gateway: bool,
        hour in 0..24 * 7u64,
    ) {
        for (number, rule) in all.iter_mut().enumerate() {
            rule.name = number.to_string();
        }
        let flow = Flow { gateway, ..flow(source, target) };
        let at = LocalTime::new(crate::types::WallTime(hour * 3_600_000_000_000), 0);
        let matching: Vec<_> = all.iter().filter(|rule| rule.enabled && rule.source.contains(flow.source) && rule.target.contains(flow.target)).collect();
        let direct = !gateway && is_private(flow.source) && is_private(flow.target);
        let yes = matching.iter().any(|rule| rule.encrypt == Some(true));
        let limits = matching.iter().filter_map(|rule| rule.limit.as_ref());
        let limit = limits.filter(|limit| limit.windows.is_empty() || limit.windows.iter().any(|window| window.contains(at))).map(|limit| limit.bytes_per_s).min();
        let decision = rules(&all).decide(flow, at);
        prop_assert_eq!(decision.traffic, Traffic { encrypt: !direct || yes, limit });
        prop_assert_eq!(decision.refused.is_some(), !direct && matching.iter().any(|rule| rule.encrypt == Some(false)));
        prop_assert_eq!(decision.limit.map(|rule| all[rule].limit.as_ref().map(|limit| limit.bytes_per_s)), limit.map(Some));
        let explained = rules(&all).explain(flow, at);
        prop_assert_eq!(explained.decision, decision);
        let decides = explained.rules.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Matches { limit: Effect::Decides, .. })).count();
        prop_assert_eq!(decides, usize::from(decision.limit.is_some()));
        all.reverse();
        prop_assert_eq!(rules(&all).decide(flow, at).traffic, decision.traffic);
    }
}
