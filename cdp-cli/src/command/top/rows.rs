//! From the numbers of a process to a row for each of its groups.

use cdp_net::services::scrape::Sample;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a group stands at a role: a line of `top --json`. What is not known is left out. Fields may be added, never renamed or removed.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub(super) struct Row {
    /// Where the process has its metrics.
    pub(super) process: String,
    pub(super) role: String,
    pub(super) tenant: String,
    pub(super) group: String,
    pub(super) state: String,
    /// Sessions with the next hop hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) linked: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rpo_ms: Option<u64>,
    /// For 99 of 100 seconds since the start the RPO was no larger; left out: beyond the last bucket, or never known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rpo_p99_ms: Option<u64>,
    /// Seconds that the RPO was known since the start.
    pub(super) rpo_looks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) out_bytes_per_s: Option<u64>,
    /// Of what came since the start, what coalescing made unnecessary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) coalesced_percent: Option<f64>,
    /// Of what would have been sent since the start, what compressing made unnecessary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compressed_percent: Option<f64>,
    /// In memory and on disk.
    pub(super) spool_bytes: u64,
    /// What all groups of the role may hold together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spool_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tracking_in_ms: Option<u64>,
}

/// Role, tenant and group.
type Key<'a> = (&'a str, &'a str, &'a str);

#[derive(Default)]
struct Group<'a> {
    /// By name and, where there are several of one name, by what tells them apart.
    numbers: BTreeMap<(&'a str, &'a str), f64>,
    state: &'a str,
    /// Looks up to this many seconds, by that.
    looks: Vec<(f64, f64)>,
}

fn groups(samples: &[Sample]) -> BTreeMap<Key<'_>, Group<'_>> {
    let mut groups = BTreeMap::<Key<'_>, Group<'_>>::new();
    for sample in samples {
        let label = |name: &str| sample.labels.get(name).map(String::as_str);
        let (Some(role), Some(tenant), Some(group)) = (label("role"), label("tenant"), label("group")) else {
            continue;
        };
        let found = groups.entry((role, tenant, group)).or_default();
        match sample.name.as_str() {
            "cdp_group_state" if sample.value == 1.0 => found.state = label("state").unwrap_or_default(),
            "cdp_group_state" => {}
            "cdp_group_rpo_looks_seconds_bucket" => {
                let end = label("le").and_then(|end| end.parse().ok());
                found.looks.extend(end.map(|end| (end, sample.value)));
            }
            name => {
                let which = label("by").or(label("place")).unwrap_or_default();
                found.numbers.insert((name, which), sample.value);
            }
        }
    }
    groups
}

/// The rows of a process, with rates against an earlier look.
pub(super) fn rows(process: &str, now: &[Sample], before: Option<&[Sample]>, between: Duration) -> Vec<Row> {
    let before = before.map(groups).unwrap_or_default();
    let row = |(key, group): (Key<'_>, Group<'_>)| {
        let (role, tenant, name) = key;
        let number = |name, which| group.numbers.get(&(name, which)).copied();
        let bytes = |name, which| number(name, which).unwrap_or(0.0);
        let millis = |name| number(name, "").map(|seconds| (seconds * 1000.0) as u64);
        let rate = |name| {
            let (new, old) = (number(name, "")?, before.get(&key)?.numbers.get(&(name, ""))?);
            // A count that went back is of a process that was started anew.
            (new >= *old && !between.is_zero()).then(|| ((new - old) / between.as_secs_f64()) as u64)
        };
        let (came, went) = ("cdp_group_received_bytes_total", "cdp_group_sent_bytes_total");
        let saved = "cdp_group_saved_bytes_total";
        let percent = |part: f64, whole: f64| (part > 0.0 && whole > 0.0).then(|| (part / whole * 100.0).min(100.0));
        let zstd = bytes(saved, "zstd");
        let (rpo_p99, looks) = quantile(&group.looks, 0.99);
        Row {
            process: process.to_owned(),
            role: role.to_owned(),
            tenant: tenant.to_owned(),
            group: name.to_owned(),
            state: group.state.to_owned(),
            linked: number("cdp_group_linked", "").map(|linked| linked == 1.0),
            rpo_ms: millis("cdp_group_rpo_seconds"),
            rpo_p99_ms: rpo_p99.map(|seconds| (seconds * 1000.0) as u64),
            rpo_looks: looks as u64,
            lag_ms: millis("cdp_group_lag_seconds"),
            in_bytes_per_s: rate(came),
            out_bytes_per_s: rate(went),
            coalesced_percent: percent(bytes(saved, "coalescing"), bytes(came, "")),
            compressed_percent: percent(zstd, zstd + bytes(went, "")),
            spool_bytes: (bytes("cdp_group_spool_bytes", "memory") + bytes("cdp_group_spool_bytes", "disk")) as u64,
            spool_limit_bytes: limit(now, role),
            tracking_in_ms: millis("cdp_group_tracking_in_seconds"),
        }
    };
    groups(now).into_iter().map(row).collect()
}

fn limit(samples: &[Sample], role: &str) -> Option<u64> {
    let of = |sample: &&Sample| {
        sample.name == "cdp_spool_limit_bytes" && sample.labels.get("role").is_some_and(|found| found == role)
    };
    let sum: f64 = samples.iter().filter(of).map(|sample| sample.value).sum();
    (sum > 0.0).then_some(sum as u64)
}

/// The end of the first bucket that holds so much of all, where it has one; and how many there are.
fn quantile(buckets: &[(f64, f64)], part: f64) -> (Option<f64>, f64) {
    let all = buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
    let mut ends: Vec<_> = buckets.iter().filter(|(_, count)| all > 0.0 && *count >= all * part).collect();
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    (ends.first().map(|(end, _)| *end).filter(|end| end.is_finite()), all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_net::services::scrape::parse;

    const HEAD: &str = "role=\"filter\",tenant=\"acme\",group=\"web\"";

    fn look(received: u64, more: &str) -> Vec<Sample> {
        let text = format!(
            "cdp_role_up{{role=\"filter\"}} 1\ncdp_spool_limit_bytes{{role=\"filter\",place=\"memory\"}} 100\n\
             cdp_group_state{{{HEAD},state=\"protecting\"}} 1\ncdp_group_state{{{HEAD},state=\"resync\"}} 0\n\
             cdp_group_received_bytes_total{{{HEAD}}} {received}\n{more}# EOF\n"
        );
        parse(&text).unwrap()
    }

    #[test]
    fn rates_are_between_two_looks_and_percents_of_all() {
        let more = format!(
            "cdp_group_linked{{{HEAD}}} 0\ncdp_group_rpo_seconds{{{HEAD}}} 1.5\ncdp_group_sent_bytes_total{{{HEAD}}} 300\n\
             cdp_group_saved_bytes_total{{{HEAD},by=\"coalescing\"}} 250\ncdp_group_saved_bytes_total{{{HEAD},by=\"zstd\"}} 100\n\
             cdp_group_spool_bytes{{{HEAD},place=\"memory\"}} 7\ncdp_group_spool_bytes{{{HEAD},place=\"disk\"}} 5\n"
        );
        let (before, now) = (look(500, ""), look(1000, &more));
        let [row] = rows("here", &now, Some(&before), Duration::from_secs(2)).try_into().unwrap();
        assert_eq!(
            (row.state.as_str(), row.linked, row.rpo_ms, row.lag_ms),
            ("protecting", Some(false), Some(1500), None)
        );
        assert_eq!(
            (row.in_bytes_per_s, row.out_bytes_per_s),
            (Some(250), None),
            "what was not known before has no rate"
        );
        assert_eq!((row.coalesced_percent, row.compressed_percent), (Some(25.0), Some(25.0)));
        assert_eq!((row.spool_bytes, row.spool_limit_bytes, row.tracking_in_ms), (12, Some(100), None));
        let anew = rows("here", &before, Some(&now), Duration::from_secs(2));
        assert_eq!(anew[0].in_bytes_per_s, None, "the process was started anew");
    }

    #[test]
    fn a_quantile_is_the_end_of_its_bucket() {
        let buckets = |counts: [f64; 3]| [(5.0, counts[0]), (1.0, counts[1]), (f64::INFINITY, counts[2])];
        assert_eq!(quantile(&buckets([99.0, 98.0, 100.0]), 0.99), (Some(5.0), 100.0));
        assert_eq!(quantile(&buckets([100.0, 99.0, 100.0]), 0.99), (Some(1.0), 100.0));
        assert_eq!(quantile(&buckets([98.0, 98.0, 100.0]), 0.99), (None, 100.0));
        assert_eq!(quantile(&[], 0.99), (None, 0.0));
    }
}
