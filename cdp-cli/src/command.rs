//! One file a command: its arguments, what it asks for, and how the answer looks to people.

pub mod demo;
pub mod diff;
pub mod disk;
pub mod identity;
pub mod inspect;
pub mod mark;
pub mod mount;
pub mod pin;
pub mod points;
pub mod policy;
pub mod protect;
pub mod prune;
pub mod restore;
pub mod serve;
pub mod status;
pub mod ticket;
pub mod top;
pub mod verify;

use crate::exit::Exit;
use crate::human;
use crate::output::Output;
use cdp_core::types::WallTime;
use cdp_net::owner::Side;
use cdp_net::report::{At, Gap, PointPolicy, Range, RangeKind, WhenFull};
use clap::ValueEnum;

/// `--nearest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Nearest {
    /// The last restorable moment before it
    Before,
    /// The first restorable moment after it
    After,
}

impl From<Nearest> for Side {
    fn from(nearest: Nearest) -> Self {
        match nearest {
            Nearest::Before => Self::Before,
            Nearest::After => Self::After,
        }
    }
}

/// `--points`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Keep {
    /// Any write can be restored
    EveryWrite,
    /// Only points can
    PerPoint,
}

impl From<Keep> for PointPolicy {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::EveryWrite => Self::EveryWrite,
            Keep::PerPoint => Self::PerPoint,
        }
    }
}

/// `--when-full`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Full {
    /// The oldest history is merged away, and the protection goes on
    Shorten,
    /// History stays, and the protection stops until there is room
    Stop,
}

impl From<Full> for WhenFull {
    fn from(full: Full) -> Self {
        match full {
            Full::Shorten => Self::Shorten,
            Full::Stop => Self::Stop,
        }
    }
}

/// How a command ends whose answer is whole but for what is damaged.
fn damage_said(damaged: Option<&str>, output: &mut Output<'_>) -> Exit {
    let Some(damaged) = damaged else { return Exit::Done };
    output.note(&format!("cdp: {damaged}\n     `cdp verify` says what is damaged and which moments are still good"));
    Exit::Damage
}

/// Says that the latest moment, which was asked for, is not the present.
fn behind_said(latest: &At, behind: Option<&Gap>, output: &mut Output<'_>) {
    let Some(gap) = behind else { return };
    let (time, why) = (human::local_time(latest.time), gap_reason(gap));
    output.note(&format!(
        "cdp: the latest moment is of {time}: nothing that the guest has written since can be restored now ({why})\n     \
         `cdp status` says how it stands"
    ));
}

/// A line about a restorable run.
fn range_line(range: &Range) -> String {
    let from = if range.from_time == WallTime(0) { "the beginning".into() } else { human::local_time(range.from_time) };
    let to = if range.to_time == WallTime(u64::MAX) { "the end".into() } else { human::local_time(range.to_time) };
    match range.kind {
        RangeKind::Every => format!("every write from {from} to {to} (lsn {}..{})\n", range.from_lsn, range.to_lsn),
        RangeKind::Only => format!("only {to} (lsn {})\n", range.to_lsn),
    }
}

/// A line about disks that were there, and of which nothing can be had at that moment.
fn incomplete_line(disks: &[String]) -> String {
    if disks.is_empty() {
        return String::new();
    }
    format!(
        "{} was not complete then: its first copy was not through, and nothing of it can be restored\n",
        disks.join(", ")
    )
}

/// A line about a gap.
fn gap_line(gap: &Gap) -> String {
    let (from, to, why) = (human::local_time(gap.from_time), human::local_time(gap.to_time), gap_reason(gap));
    match gap.open {
        true => format!("{why}: nothing since {from} (lsn {} on), and it has not ended\n", gap.from_lsn),
        false => format!("{why}: nothing from {from} to {to} (lsn {}..{})\n", gap.from_lsn, gap.to_lsn),
    }
}

fn gap_reason(gap: &Gap) -> String {
    let cause = gap.cause.as_ref().map(|cause| format!(" after {cause}")).unwrap_or_default();
    format!("{}{cause}", gap.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::{at, gap, range};
    use crate::output::tests::capture;

    #[test]
    fn ranges_without_an_end_say_so() {
        let open = Range { to_time: WallTime(u64::MAX), ..range() };
        assert_eq!(range_line(&open), "every write from the beginning to the end (lsn 1..9)\n");
        assert!(!range_line(&range()).contains("the end"));
    }

    #[test]
    fn a_gap_that_goes_on_has_no_end_and_is_behind_the_latest_moment() {
        let gap = Gap { reason: "no-space".into(), cause: None, open: true, ..gap() };
        let line = gap_line(&gap);
        assert!(
            line.starts_with("no-space: nothing since 19") && line.ends_with(" (lsn 1 on), and it has not ended\n"),
            "{line}"
        );
        let (out, err) = capture(true, |output| behind_said(&at(), Some(&gap), output));
        assert!(out.is_empty() && err.contains("since can be restored now (no-space)\n     `cdp status`"), "{err}");
        assert_eq!(capture(false, |output| behind_said(&at(), None, output)), Default::default());
    }
}
