//! One line per figure, the same for every bench, so that a script can read them; and the statistics behind them.

use std::fmt;

/// What must be reached, of `ours / limit`.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(dead_code, reason = "each bench uses the kind that its figures have")]
pub(crate) enum Reach {
    /// The ratio is at least this.
    AtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
}

impl Reach {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">={least}"),
            Self::AtMost(most) => write!(f, "<={most}"),
        }
    }
}

/// A figure, measured or not.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Figure<'a> {
    /// The row of the table that it belongs to.
    pub(crate) id: &'a str,
    /// Unit of both `ours` and `limit`.
    pub(crate) unit: &'a str,
    /// What each of our runs gave.
    pub(crate) ours: &'a [f64],
    /// The peer or physical limit, measured in the same run; `None` where it is not there.
    pub(crate) limit: Option<f64>,
    /// What the ratio must reach.
    pub(crate) reach: Reach,
    /// What must also hold and was looked at: name and value.
    pub(crate) conditions: &'a [(&'a str, String)],
    /// Whether all of them held in every run.
    pub(crate) conditions_hold: bool,
}

impl fmt::Display for Figure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, unit, runs) = (self.id, self.unit, self.ours.len());
        let (ours, spread) = (median(self.ours), spread_percent(self.ours));
        let number = |value: f64| if value < 100.0 { format!("{value:.2}{unit}") } else { format!("{value:.0}{unit}") };
        let ratio = self.limit.map(|limit| ours / limit);
        let verdict = match ratio {
            _ if runs == 0 => "skipped",
            None => "skipped",
            Some(ratio) if self.reach.holds(ratio) && self.conditions_hold => "ok",
            Some(_) => "short",
        };
        let shown_ours = if runs == 0 { "-".to_owned() } else { number(ours) };
        let limit = self.limit.map_or("-".to_owned(), number);
        let ratio = ratio.filter(|_| runs > 0).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let conditions: Vec<_> = self.conditions.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        let conditions = if conditions.is_empty() { "-".to_owned() } else { conditions.join(",") };
        write!(
            f,
            "figure {id} ours={shown_ours} limit={limit} ratio={ratio} reach={} runs={runs} spread={spread:.0}% \
             cond={conditions} {verdict}",
            self.reach
        )
    }
}

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
#[must_use]
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Distance between the largest and the smallest value, in percent of the median.
#[must_use]
pub(crate) fn spread_percent(values: &[f64]) -> f64 {
    let middle = median(values);
    if middle == 0.0 {
        return 0.0;
    }
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
    (most - least) / middle * 100.0
}
