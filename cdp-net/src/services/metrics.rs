//! The facts as Prometheus reads them, in OpenMetrics text.
//!
//! Names begin with `cdp_` and end in their unit, counts in `_total`. Labels: `role`; of groups also `tenant` and `group`. What is not
//! known is left out, so that no graph shows a made-up zero. There are as many series as groups times some 25.

use super::facts::{Facts, RPO_SECONDS, RoleFacts, Spread};
use super::role::{GroupReport, Held, STATES};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What the text is, for the header of an answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The facts as text.
#[must_use]
pub fn text(facts: &Arc<Facts>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(Arc::clone(facts))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

/// A number.
#[derive(Clone, Copy)]
enum Value {
    Count(u64),
    Gauge(u64),
    Time(Duration),
}

#[derive(Debug)]
struct Collected(Arc<Facts>);

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let facts = &*self.0;
        let mut page = Page { encoder, facts };
        page.process()?;
        page.groups()?;
        page.rpos()?;
        page.doors()?;
        page.tenants()
    }
}

struct Page<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    facts: &'a Facts,
}

impl<'a> Page<'a, '_> {
    fn process(&mut self) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let mut metric =
            self.encoder.encode_descriptor("cdp_build", "Which version this is.", None, MetricType::Info)?;
        metric.encode_info(&version)?;
        let facts = self.facts;
        let reloads = [("taken", facts.reloads), ("refused", facts.refused_reloads)];
        let reloads = reloads.map(|(outcome, count)| (vec![("outcome", outcome)], Value::Count(count)));
        self.family("cdp_reloads", "New files by what became of them.", None, reloads)?;
        let up = facts.roles.iter().map(|role| (vec![("role", role.name)], Value::Gauge(role.failed.is_none().into())));
        self.family("cdp_role_up", "1: the role works; 0: it has failed.", None, up)?;
        let limits = facts.roles.iter().flat_map(|role| held(vec![("role", role.name)], role.report.held_max));
        let text = "The most that all groups of a role may hold on their way.";
        self.family("cdp_spool_limit", text, Some(Unit::Bytes), limits.filter(|(_, limit)| limit.is_some_gauge()))?;
        let dropped = facts.roles.iter().filter_map(|role| Some((role.name, role.report.dropped_bytes?)));
        let dropped = dropped.map(|(role, bytes)| (vec![("role", role)], Value::Count(bytes)));
        let text = "Bytes that were kept and dropped: no next hop will ever take them.";
        self.family("cdp_spool_dropped", text, Some(Unit::Bytes), dropped)
    }

    /// One number of each group, where it has it.
    fn each(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: impl Fn(&'a GroupReport) -> Option<Value>,
    ) -> fmt::Result {
        let all = groups(self.facts).filter_map(|(labels, group)| Some((labels, value(group)?)));
        self.family(name, help, unit, all)
    }

    fn groups(&mut self) -> fmt::Result {
        let states = groups(self.facts).flat_map(|(labels, group)| {
            STATES.into_iter().map(move |state| {
                let mut labels = labels.clone();
                labels.push(("state", state));
                (labels, Value::Gauge((state == group.state).into()))
            })
        });
        self.family("cdp_group_state", "1: the group is in this state.", None, states)?;
        let (bytes, seconds) = (|| Some(Unit::Bytes), || Some(Unit::Seconds));
        let linked = |group: &GroupReport| group.linked.map(|linked| Value::Gauge(linked.into()));
        self.each("cdp_group_linked", "1: a session with the next hop holds.", None, linked)?;
        let rpo = |group: &GroupReport| group.rpo.map(Value::Time);
        self.each("cdp_group_rpo", "Age of the last moment that can be restored.", seconds(), rpo)?;
        let lag = |group: &GroupReport| group.lag.map(Value::Time);
        self.each("cdp_group_lag", "Since the oldest that is not durable was taken.", seconds(), lag)?;
        let tracking = |group: &GroupReport| group.tracking_in.map(Value::Time);
        let text = "At the rates of now, until changes are only tracked; left out: not at these rates.";
        self.each("cdp_group_tracking_in", text, seconds(), tracking)?;
        let came = |group: &GroupReport| Some(Value::Count(group.in_bytes));
        self.each("cdp_group_received", "Bytes that came from guests or from the hop before.", bytes(), came)?;
        let went = |group: &GroupReport| Some(Value::Count(group.out_bytes));
        self.each("cdp_group_sent", "Bytes that went to the next hop or to the journal.", bytes(), went)?;
        let saved = groups(self.facts).flat_map(|(labels, group)| {
            let by = [("coalescing", group.coalesced_bytes), ("zstd", group.compressed_bytes)];
            by.into_iter().map(move |(by, bytes)| {
                let mut labels = labels.clone();
                labels.push(("by", by));
                (labels, Value::Count(bytes))
            })
        });
        self.family("cdp_group_saved", "Bytes that need not be sent.", bytes(), saved)?;
        let spooled = groups(self.facts).flat_map(|(labels, group)| held(labels, group.held));
        self.family("cdp_group_spool", "Bytes that are held on their way.", bytes(), spooled)
    }

    fn rpos(&mut self) -> fmt::Result {
        let text = "The RPO, looked at once a second: how much of the time it was met.";
        let facts = self.facts;
        let mut metric =
            self.encoder.encode_descriptor("cdp_group_rpo_looks", text, Some(&Unit::Seconds), MetricType::Histogram)?;
        for role in &facts.roles {
            for ((tenant, group), spread) in &role.rpos {
                let labels = vec![("role", role.name), ("tenant", tenant.as_str()), ("group", group.as_str())];
                metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    spread.sum,
                    spread.counts.iter().sum(),
                    &buckets(spread),
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn doors(&mut self) -> fmt::Result {
        let doors = self.facts.roles.iter().filter_map(|role| Some((role.name, role.report.door?)));
        let all = doors.flat_map(|(role, door)| {
            let by = [
                ("let-in", door.let_in),
                ("refused", door.refused),
                ("dawdled", door.dawdled),
                ("not-accepted", door.errors),
            ];
            by.map(|(outcome, count)| (vec![("role", role), ("outcome", outcome)], Value::Count(count)))
        });
        self.family("cdp_connections", "Connections that came, by what became of them.", None, all)
    }

    fn tenants(&mut self) -> fmt::Result {
        let of = |value: fn(&super::role::TenantReport) -> Value| {
            let roles = self.facts.roles.iter();
            let all = roles.flat_map(|role| role.report.tenants.iter().map(|tenant| (role.name, tenant)));
            let all =
                all.map(|(role, tenant)| (vec![("role", role), ("tenant", tenant.tenant.as_str())], value(tenant)));
            all.collect::<Vec<_>>()
        };
        let open = of(|tenant| Value::Gauge(tenant.connections));
        let limited = of(|tenant| Value::Count(tenant.limited));
        let (up, down) = (of(|tenant| Value::Count(tenant.in_bytes)), of(|tenant| Value::Count(tenant.out_bytes)));
        let relayed = [("up", up), ("down", down)].into_iter().flat_map(|(direction, all)| {
            all.into_iter().map(move |(mut labels, value)| {
                labels.push(("direction", direction));
                (labels, value)
            })
        });
        let relayed: Vec<_> = relayed.collect();
        self.family("cdp_tenant_connections", "Connections of a tenant that are open.", None, open)?;
        self.family("cdp_tenant_limited", "Connections that a limit of the tenant refused.", None, limited)?;
        let text = "Bytes relayed for a tenant: up to the provider, down to the tenant.";
        self.family("cdp_tenant_relayed", text, Some(Unit::Bytes), relayed)
    }

    /// All numbers of one name. Without any there is no name either.
    fn family<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (Labels<'l>, Value)>,
    ) -> fmt::Result {
        let mut values = values.into_iter().peekable();
        let Some((_, first)) = values.peek() else { return Ok(()) };
        let kind = if matches!(first, Value::Count(_)) { MetricType::Counter } else { MetricType::Gauge };
        let mut metric = self.encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        values.try_for_each(|(labels, value)| write(&mut metric, &labels, value))
    }
}

impl Value {
    /// A bound of 0 is none that is meant.
    fn is_some_gauge(self) -> bool {
        !matches!(self, Self::Gauge(0))
    }
}

fn write(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: Value) -> fmt::Result {
    let mut metric = metric.encode_family(labels)?;
    match value {
        Value::Count(count) => metric.encode_counter::<NoLabelSet, _, f64>(&count, None),
        Value::Gauge(value) => metric.encode_gauge(&value),
        Value::Time(time) => metric.encode_gauge(&time.as_secs_f64()),
    }
}

fn groups(facts: &Facts) -> impl Iterator<Item = (Labels<'_>, &GroupReport)> {
    let of = |role: &'_ RoleFacts| role.name;
    facts.roles.iter().flat_map(move |role| {
        role.report.groups.iter().map(move |group| {
            let labels = vec![("role", of(role)), ("tenant", group.tenant.as_str()), ("group", group.group.as_str())];
            (labels, group)
        })
    })
}

fn held(labels: Labels<'_>, held: Held) -> impl Iterator<Item = (Labels<'_>, Value)> {
    [("memory", held.memory), ("disk", held.disk)].into_iter().map(move |(place, bytes)| {
        let mut labels = labels.clone();
        labels.push(("place", place));
        (labels, Value::Gauge(bytes))
    })
}

fn buckets(spread: &Spread) -> Vec<(f64, u64)> {
    RPO_SECONDS.into_iter().chain([f64::INFINITY]).zip(spread.counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::role::{DoorReport, Report, TenantReport};

    pub(crate) fn facts() -> Arc<Facts> {
        let group = GroupReport {
            tenant: "acme".into(),
            group: "we\"b".into(),
            state: "protecting",
            rpo: Some(Duration::from_millis(1500)),
            lag: Some(Duration::ZERO),
            linked: Some(true),
            in_bytes: 1 << 40,
            out_bytes: 7,
            coalesced_bytes: 5,
            compressed_bytes: 6,
            held: Held { memory: 10, disk: 20 },
            tracking_in: None,
        };
        let mut filter = RoleFacts { name: "filter", ..RoleFacts::default() };
        let held_max = Held { memory: 100, disk: 0 };
        filter.take(Report { groups: vec![group], held_max, ..Report::default() });
        let tenant = TenantReport { tenant: "acme".into(), connections: 2, in_bytes: 3, out_bytes: 4, limited: 1 };
        let door = Some(DoorReport { let_in: 9, refused: 8, dawdled: 0, errors: 0 });
        let report = Report { tenants: vec![tenant], door, ..Report::default() };
        let gateway = RoleFacts { name: "gateway", failed: Some("gone".into()), report, ..RoleFacts::default() };
        Arc::new(Facts { roles: vec![filter, gateway], reloads: 3, refused_reloads: 1 })
    }

    #[test]
    fn names_end_in_their_units_and_labels_hold() {
        let text = text(&facts());
        let group = "role=\"filter\",tenant=\"acme\",group=\"we\\\"b\"";
        for line in [
            "cdp_build_info{version=\"0.0.1\"} 1".to_owned(),
            "cdp_reloads_total{outcome=\"refused\"} 1".to_owned(),
            "cdp_role_up{role=\"filter\"} 1".to_owned(),
            "cdp_role_up{role=\"gateway\"} 0".to_owned(),
            "cdp_spool_limit_bytes{role=\"filter\",place=\"memory\"} 100".to_owned(),
            format!("cdp_group_state{{{group},state=\"protecting\"}} 1"),
            format!("cdp_group_state{{{group},state=\"tracking\"}} 0"),
            format!("cdp_group_linked{{{group}}} 1"),
            format!("cdp_group_rpo_seconds{{{group}}} 1.5"),
            format!("cdp_group_lag_seconds{{{group}}} 0.0"),
            format!("cdp_group_received_bytes_total{{{group}}} 1099511627776"),
            format!("cdp_group_sent_bytes_total{{{group}}} 7"),
            format!("cdp_group_saved_bytes_total{{{group},by=\"zstd\"}} 6"),
            format!("cdp_group_spool_bytes{{{group},place=\"disk\"}} 20"),
            format!("cdp_group_rpo_looks_seconds_bucket{{le=\"2.5\",{group}}} 1"),
            format!("cdp_group_rpo_looks_seconds_bucket{{le=\"1.0\",{group}}} 0"),
            "cdp_connections_total{role=\"gateway\",outcome=\"refused\"} 8".to_owned(),
            "cdp_tenant_relayed_bytes_total{role=\"gateway\",tenant=\"acme\",direction=\"down\"} 4".to_owned(),
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        for unknown in ["cdp_group_tracking_in_seconds", "limit_bytes{role=\"filter\",place=\"disk\"}"] {
            assert!(!text.contains(unknown), "{unknown} is not known\n{text}");
        }
    }

    #[test]
    fn each_name_stands_once_with_its_help_and_type() {
        let text = text(&facts());
        let heads: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let mut names: Vec<_> = heads.iter().map(|head| head.split(' ').next().unwrap()).collect();
        assert_eq!(names.len(), text.matches("# HELP ").count());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), heads.len(), "{heads:?}");
    }
}
