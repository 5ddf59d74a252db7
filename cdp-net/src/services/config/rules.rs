//! The network traffic rules of a file as what they mean.

use super::{Config, ConfigError, Rule as Written};
use cdp_core::policy::traffic::{Limit, Range, Rule, Rules, Window};

impl Config {
    /// Its network traffic rules.
    ///
    /// # Errors
    /// Which rule cannot be meant, and why: never of a file that was checked.
    pub fn traffic(&self) -> Result<Rules, ConfigError> {
        let rules: Result<Vec<_>, _> = self.rules.iter().map(rule).collect();
        Rules::new(rules?).map_err(|error| ConfigError::Value { place: "rule".into(), what: error.to_string() })
    }
}

fn rule(rule: &Written) -> Result<Rule, ConfigError> {
    let wrong = |what: String| ConfigError::Value { place: format!("rule {:?}", rule.name), what };
    let range = |text: &str| text.parse::<Range>().map_err(|error| wrong(error.to_string()));
    let window = |text: &String| text.parse::<Window>().map_err(|error| wrong(error.to_string()));
    let limit = match rule.limit {
        Some(limit) => {
            let windows: Result<Vec<_>, _> = rule.times.iter().map(window).collect();
            Some(Limit { bytes_per_s: limit.0, windows: windows? })
        }
        None if rule.times.is_empty() => None,
        None => return Err(wrong("it has times, and no limit that could hold then".into())),
    };
    Ok(Rule {
        name: rule.name.clone(),
        enabled: rule.enabled,
        source: range(&rule.from)?,
        target: range(&rule.to)?,
        encrypt: rule.encrypt,
        limit,
    })
}
