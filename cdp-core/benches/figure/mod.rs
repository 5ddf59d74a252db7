//! One figure of a bench as one line that people and scripts read, and the median of alternated runs behind it.
//!
//! `figure <id> ours=<n><unit> limit=<n><unit>|- ratio=<n>|- reach=>=<n>|<=<n> runs=<n> spread=<percent> cond=<...> ok|short|skipped`

use std::fmt;

/// What the ratio of ours to the limit has to be.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "each bench uses the direction of its own figures")]
pub enum Reach {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

/// The runs of one side.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<f64>);

impl Runs {
    /// Takes a run's result.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle run.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// How far apart the runs lie, in percent of the median.
    pub fn spread_percent(&self) -> f64 {
        let (low, high) = self.0.iter().fold((f64::MAX, f64::MIN), |(low, high), &run| (low.min(run), high.max(run)));
        (high - low) / self.median() * 100.0
    }
}

/// A figure with its limit, measured in the same runs.
#[derive(Clone, Debug)]
pub struct Figure<'a> {
    /// As the issue names it.
    pub id: &'a str,
    /// Ours.
    pub ours: &'a Runs,
    /// The physical limit, or the peer.
    pub limit: &'a Runs,
    /// Of both.
    pub unit: &'a str,
    /// What ours / limit has to be.
    pub reach: Reach,
    /// What must also hold, `key:value` with commas; and whether it did.
    pub cond: (&'a str, bool),
}

impl fmt::Display for Figure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.ours.median() / self.limit.median();
        let (reach, reached) = match self.reach {
            Reach::AtLeast(least) => (format!(">={least}"), ratio >= least),
            Reach::AtMost(most) => (format!("<={most}"), ratio <= most),
        };
        let (id, unit, (cond, holds)) = (self.id, self.unit, self.cond);
        let verdict = if reached && holds { "ok" } else { "short" };
        write!(f, "figure {id} ours={:.1}{unit} limit={:.1}{unit} ", self.ours.median(), self.limit.median())?;
        write!(
            f,
            "ratio={ratio:.2} reach={reach} runs={} spread={:.0} ",
            self.ours.0.len(),
            self.ours.spread_percent()
        )?;
        write!(f, "cond={cond} {verdict}")
    }
}
