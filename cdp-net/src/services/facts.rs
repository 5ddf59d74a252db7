//! How all roles of the process stand, taken once a second: what metrics are made of.

use super::role::Report;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper ends of the buckets that RPOs are counted in, in seconds; the last bucket has none.
pub const RPO_SECONDS: [f64; 15] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Looks at a group's RPO by how large it was: how much of the time it was met.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Spread {
    /// Looks by bucket of [`RPO_SECONDS`], the last one without an end.
    pub counts: [u64; RPO_SECONDS.len() + 1],
    /// The sum of all, in seconds.
    pub sum: f64,
}

impl Spread {
    /// Counts one.
    pub fn add(&mut self, rpo: Duration) {
        let seconds = rpo.as_secs_f64();
        let bucket = RPO_SECONDS.iter().position(|end| seconds <= *end).unwrap_or(RPO_SECONDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}

/// How a role stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RoleFacts {
    /// As its table is called.
    pub name: &'static str,
    /// Why it does not work any more.
    pub failed: Option<String>,
    /// What it said last.
    pub report: Report,
    /// The RPOs of its groups, by tenant and group. Forgotten with the group.
    pub rpos: BTreeMap<(String, String), Spread>,
}

impl RoleFacts {
    /// Takes a new report.
    pub fn take(&mut self, report: Report) {
        let mut rpos = std::mem::take(&mut self.rpos);
        for group in &report.groups {
            let key = (group.tenant.clone(), group.group.clone());
            let spread = rpos.remove(&key);
            if spread.is_some() || group.rpo.is_some() {
                let mut spread = spread.unwrap_or_default();
                group.rpo.into_iter().for_each(|rpo| spread.add(rpo));
                self.rpos.insert(key, spread);
            }
        }
        self.report = report;
    }
}

/// How the process stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facts {
    /// Its roles, in the order in which they were started.
    pub roles: Vec<RoleFacts>,
    /// How often a new file was taken.
    pub reloads: u64,
    /// How often one was refused.
    pub refused_reloads: u64,
}

/// The facts as they are now, for whoever asks. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Arc<Facts>>>);

impl Board {
    /// Puts up new ones.
    pub fn set(&self, facts: Facts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
    }

    /// Those that are up.
    #[must_use]
    pub fn get(&self) -> Arc<Facts> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::role::GroupReport;

    #[test]
    fn rpos_are_counted_by_size_and_forgotten_with_their_group() {
        let group = |name: &str, millis: Option<u64>| GroupReport {
            group: name.into(),
            rpo: millis.map(Duration::from_millis),
            ..GroupReport::default()
        };
        let report = |groups: Vec<GroupReport>| Report { groups, ..Report::default() };
        let mut facts = RoleFacts::default();
        facts.take(report(vec![group("a", Some(100)), group("b", Some(200)), group("c", None)]));
        facts.take(report(vec![group("a", Some(7_200_000)), group("b", None)]));
        let spread = |name: &str| facts.rpos.get(&(String::new(), name.to_owned()));
        let a = spread("a").unwrap();
        assert_eq!((a.counts[0], a.counts[15], a.counts.iter().sum()), (1, 1, 2));
        assert!((a.sum - 7200.1).abs() < 1e-6);
        assert_eq!(spread("b").unwrap().counts[1], 1, "a look without an RPO counts for nothing");
        assert_eq!(spread("c"), None);
        facts.take(report(vec![group("b", Some(1))]));
        assert_eq!(facts.rpos.keys().map(|(_, group)| group.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
