//! Reading what [`metrics`](super::metrics) writes, of this process or of another one.

use std::collections::BTreeMap;
use thiserror::Error;

/// The most samples that are taken.
const SAMPLES_MAX: usize = 1 << 18;

/// One number.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

/// What was read is no text of metrics.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ScrapeError {
    /// A line is none that metrics have.
    #[error("line {number} is no metric: {line:?}")]
    Line {
        /// Counted from 1.
        number: usize,
        /// How it begins.
        line: String,
    },
    /// There are too many.
    #[error("it has more than {SAMPLES_MAX} numbers")]
    TooMany,
    /// Its end is missing.
    #[error("its end is missing: it was cut off, or is no OpenMetrics text")]
    CutOff,
}

/// The numbers of a text.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Sample>, ScrapeError> {
    let mut samples = Vec::new();
    let mut lines = text.lines().enumerate();
    for (index, line) in &mut lines {
        if line == "# EOF" {
            return Ok(samples);
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let wrong = || ScrapeError::Line { number: index + 1, line: line.chars().take(80).collect() };
        samples.push(sample(line).ok_or_else(wrong)?);
        if samples.len() > SAMPLES_MAX {
            return Err(ScrapeError::TooMany);
        }
    }
    Err(ScrapeError::CutOff)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    // A stamp or an exemplar may follow.
    let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// What stands before the quote that ends it, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::facts::{Facts, RoleFacts};
    use crate::services::metrics::text;
    use crate::services::role::{GroupReport, Report};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn what_is_no_text_of_metrics_is_said() {
        let line = |text: &str| parse(text).unwrap_err();
        assert_eq!(line("a 1\n"), ScrapeError::CutOff);
        assert_eq!(line("<html>"), ScrapeError::Line { number: 1, line: "<html>".into() });
        for wrong in ["a{b=\"c} 1", "a{b} 1", "a{b=\"c\"}1", "a{b=\"c\"", "a x", "{} 1", "a", "a{b=\"\\"] {
            assert!(matches!(line(&format!("# x\n{wrong}\n")), ScrapeError::Line { number: 2, .. }), "{wrong}");
        }
        let many = "a 1\n".repeat(SAMPLES_MAX + 1) + "# EOF\n";
        assert_eq!(line(&many), ScrapeError::TooMany);
        assert_eq!(parse("a{} +Inf 12\n\n# EOF\nleft alone").unwrap()[0].value, f64::INFINITY);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(tenant: String, group: String, bytes in 0u64..1 << 53, millis: u32) {
            let report = GroupReport {
                tenant: tenant.clone(),
                group: group.clone(),
                in_bytes: bytes,
                lag: Some(Duration::from_millis(millis.into())),
                ..GroupReport::default()
            };
            let mut role = RoleFacts { name: "filter", ..RoleFacts::default() };
            role.take(Report { groups: vec![report], ..Report::default() });
            let samples = parse(&text(&Arc::new(Facts { roles: vec![role], ..Facts::default() }))).unwrap();
            let find = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap();
            let came = find("cdp_group_received_bytes_total");
            prop_assert_eq!((&came.labels["tenant"], &came.labels["group"]), (&tenant, &group));
            prop_assert_eq!(came.value, bytes as f64);
            prop_assert_eq!(find("cdp_group_lag_seconds").value, Duration::from_millis(millis.into()).as_secs_f64());
        }

        #[test]
        fn garbage_is_an_answer(text: String) {
            let _ = parse(&text);
        }
    }
}
