//! `cdp policy`: show or change which moments are kept.

use super::{Full, Keep};
use crate::ask::{access, ask};
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::json::Policy;
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::{format_bytes, format_duration, parse_bytes, parse_duration};
use cdp_net::owner::{PolicyChange, Request};
use cdp_net::report::{PointPolicy, WhenFull};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Show or durably change which moments are kept
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    flags: PolicyFlags,
    /// Rotate the key of a replica that is sealed at rest: from now on it opens with this one, and not with that of --key-file
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
}

/// Flags of the policy, for `protect` and `policy`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PolicyFlags {
    /// Close a point this often; 15s in a new replica
    #[arg(long, value_name = "D", value_parser = rpo)]
    rpo: Option<Duration>,
    /// Which moments can be restored: every write, or only one point in each RPO. What is written again before the point then need
    /// not be kept, nor sent to a remote replica; moments that are there already stay
    #[arg(long, value_enum, value_name = "every-write|per-point")]
    points: Option<Keep>,
    /// Keep every write so long, 4h in a new replica; what is older is merged into the base
    #[arg(long, value_name = "D", value_parser = span)]
    window: Option<Duration>,
    /// Let the journal take so much, such as 100GiB, even if that cuts the window; 0 for no bound
    #[arg(long, value_name = "N", value_parser = amount)]
    max_bytes: Option<u64>,
    /// Leave so much free on the replica's disk; 256MiB in a new replica
    #[arg(long, value_name = "N", value_parser = amount)]
    reserve: Option<u64>,
    /// Let the whole replica take so much, such as 500GiB: base, journal, long-term points, pins and sessions; 0 for no quota
    #[arg(long, value_name = "N", value_parser = amount)]
    quota: Option<u64>,
    /// What to do when there is no room left, on the replica's disk or within the quota. By default the oldest history goes, which is
    /// announced before: a machine without a replica of its last minutes is worse off than one that can go back less far. What is
    /// pinned, long-term points and sessions stay in either case
    #[arg(long, value_enum, value_name = "shorten|stop")]
    when_full: Option<Full>,
    /// Make a long-term point this often, such as 8h; off for none
    #[arg(long, value_name = "D", value_parser = span_or_off)]
    long_term: Option<Duration>,
    /// Keep long-term points so long; 7d in a new replica
    #[arg(long, value_name = "D", value_parser = span)]
    keep: Option<Duration>,
}

impl From<PolicyFlags> for PolicyChange {
    fn from(flags: PolicyFlags) -> Self {
        let ms = |span: Option<Duration>| span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        Self {
            rpo_ms: ms(flags.rpo),
            points: flags.points.map(Into::into),
            window_ms: ms(flags.window),
            max_bytes: flags.max_bytes,
            reserve_bytes: flags.reserve,
            long_term_ms: ms(flags.long_term),
            keep_ms: ms(flags.keep),
            when_full: flags.when_full.map(Into::into),
            quota: flags.quota,
        }
    }
}

/// The shortest and the longest RPO.
const RPO: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

fn rpo(text: &str) -> Result<Duration, String> {
    let rpo = parse_duration(text).map_err(|error| error.to_string())?;
    if RPO.contains(&rpo) { Ok(rpo) } else { Err("an RPO lies between 100ms and 1d".into()) }
}

fn span(text: &str) -> Result<Duration, String> {
    let span = parse_duration(text).map_err(|error| error.to_string())?;
    if span >= Duration::from_secs(1) { Ok(span) } else { Err("at least 1s is needed".into()) }
}

fn span_or_off(text: &str) -> Result<Duration, String> {
    if text == "off" { Ok(Duration::ZERO) } else { span(text) }
}

fn amount(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text).map_err(|error| error.to_string()) }
}

impl Arguments {
    /// Changes what was given and shows the whole.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let change: PolicyChange = self.flags.into();
        if let Some(file) = &self.new_key_file {
            let new = crate::key::read(file)?;
            if change != PolicyChange::default() {
                let message = "a key is rotated by itself: the replica opens with another key afterwards";
                return Err(Failure::new(Exit::Usage, "usage", message).hint("give the policy in a command of its own"));
            }
            let dir = self.place.as_directory()?;
            let rotated = engine.rotate_key(dir, access(dir)?, &new)?;
            output.answer(&Rotated { rotated }, |_| match rotated {
                true => "the key is rotated: from now on the replica opens with the new one\n".to_owned(),
                false => "the replica opens with the new key already: nothing was left to rotate\n".to_owned(),
            });
            return Ok(Exit::Done);
        }
        let policy: Policy = ask(engine, &self.place, Request::Policy { change })?;
        output.answer(&policy, for_people);
        policy.warnings.iter().for_each(|warning| output.note(&format!("cdp: {warning}")));
        Ok(Exit::Done)
    }
}

/// The answer to a rotation, for scripts.
#[derive(Serialize)]
struct Rotated {
    rotated: bool,
}

fn for_people(policy: &Policy) -> String {
    let kept = match policy.points {
        PointPolicy::EveryWrite => "every write",
        PointPolicy::PerPoint => "points only",
    };
    let span = |ms| format_duration(Duration::from_millis(ms));
    let bound = if policy.max_bytes == 0 { "no bound".into() } else { format_bytes(policy.max_bytes) };
    let long_term = match policy.long_term_ms {
        0 => "off".into(),
        ms => format!("every {}, kept for {}", span(ms), span(policy.keep_ms)),
    };
    let quota = if policy.quota == 0 { "none".into() } else { format_bytes(policy.quota) };
    let full = match policy.when_full {
        WhenFull::Shorten => "history is shortened",
        WhenFull::Stop => "the protection stops",
    };
    format!(
        "RPO        {}\npoints     {kept}\nwindow     {}\njournal    {bound}\nreserve    {}\nquota      {quota}\n\
         when full  {full}\nlong-term  {long_term}\n",
        span(policy.rpo_ms),
        span(policy.window_ms),
        format_bytes(policy.reserve_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_in_words() {
        let text = for_people(&Policy::default());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["RPO        15s", "points     every write", "window     4h"]);
        assert_eq!(lines[3..5], ["journal    no bound", "reserve    256 MiB"]);
        assert_eq!(lines[5..], ["quota      none", "when full  history is shortened", "long-term  off"]);
        let with = Policy { max_bytes: 1 << 30, long_term_ms: 8 * 3_600_000, ..Policy::default() };
        let with = for_people(&Policy { quota: 1 << 40, when_full: WhenFull::Stop, ..with });
        let end = "quota      1.00 TiB\nwhen full  the protection stops\nlong-term  every 8h, kept for 7d\n";
        assert!(with.contains("journal    1.00 GiB\n") && with.ends_with(end), "{with}");
    }

    #[test]
    fn an_rpo_has_bounds() {
        assert_eq!(rpo("15s"), Ok(Duration::from_secs(15)));
        for text in ["0s", "99ms", "2d", "x"] {
            assert!(rpo(text).is_err(), "{text}");
        }
        assert!(rpo("5").is_err_and(|said| said.starts_with("\"5\" ends without a unit: d, h,")));
    }

    #[test]
    fn what_no_policy_can_be_is_refused() {
        assert!(span("10ms").is_err() && amount("x").is_err());
        assert_eq!((span_or_off("off"), amount("0")), (Ok(Duration::ZERO), Ok(0)));
    }
}
