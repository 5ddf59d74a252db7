//! `cdp status`: how a replica is.

use super::{damage_said, range_line};
use crate::ask::ask;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{History, Hold, Range, Session, State, Status};
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::format_bytes;
use cdp_net::owner::Request;
use cdp_net::report::RangeKind;
use clap::Args;
use std::collections::BTreeMap;
use std::time::Duration;

/// Show state, RPO, ranges, space, rates and holds
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
}

impl Arguments {
    /// Shows it.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let status: Status = ask(engine, &self.place, Request::Status)?;
        output.answer(&status, for_people);
        Ok(damage_said(status.damaged.as_deref(), output))
    }
}

/// So many moments of a kind are listed, and no more.
const FEW: usize = 8;

fn for_people(status: &Status) -> String {
    let owner = status.owner_pid.map(|pid| format!(" by process {pid}")).unwrap_or_default();
    let rpo = status.rpo_ms.map_or_else(|| "-".into(), |ms| human::span(Duration::from_millis(ms)));
    let mut text = format!(
        "state   {}{owner}\ngroup   {}\nRPO     {rpo}\ndurable LSN {} of {}\n",
        status.state.as_str(),
        status.group,
        status.durable_lsn,
        status.lsn,
    );
    text.push_str(&match status.remote {
        // What is stored is known where the replica is.
        Some(_) => format!("rates   {} written\n", human::rate(status.rates.write_bytes_per_s)),
        None => stored_lines(status),
    });
    if let Some(remote) = &status.remote {
        let linked = if remote.linked { "linked" } else { "not reached" };
        let problem = remote.problem.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        text.push_str(&format!("replica at {}, {linked}{problem}\n", remote.address));
    }
    if let Some(journal) = &status.journal {
        text.push_str(&format!("journal written by {}\n", journal.driver));
    }
    if status.sealed_at_rest {
        text.push_str("sealed  at rest: nobody reads it without its key\n");
    }
    if let Some(why) = &status.failure {
        text.push_str(&format!("failed  {why}: nothing is recorded, and a restart takes the protection up again\n"));
    } else if let Some(why) = &status.detached {
        text.push_str(&format!("detached {why}: nothing is recorded, and everything is compared once it is back\n"));
    }
    if let Some(lacks) = &status.lacks {
        // Else what is free of it and what is used would not be the whole.
        let of_quota = if status.state == State::Quota { " within the quota, less what merging needs" } else { "" };
        text.push_str(&format!("lacks   {}{of_quota}; it goes on by itself then\n", human::lack(lacks)));
        text.push_str(&pins_line(status));
    }
    for disk in &status.disks {
        let place = disk.uri.as_ref().map(|uri| format!(", served at {uri}")).unwrap_or_default();
        let copied = if disk.incomplete { ", being copied: it cannot be restored yet" } else { "" };
        text.push_str(&format!("disk    {} ({}){place}{copied}\n", disk.name, format_bytes(disk.size)));
    }
    text.push_str(&ranges_lines(&status.ranges, status.ranges_left_off));
    if status.remote.is_none() {
        text.push_str(&history_lines(&status.history));
    }
    // A session's line says what it holds.
    let (of_sessions, holds): (Vec<_>, Vec<_>) = status.holds.iter().cloned().partition(|hold| hold.by == "session");
    status.sessions.iter().for_each(|session| text.push_str(&session_line(session, &of_sessions)));
    text.push_str(&holds_lines(&holds));
    if status.pins > 0 {
        text.push_str(&format!("held    by {}\n", human::count(status.pins as usize, "reader")));
    }
    text
}

fn stored_lines(status: &Status) -> String {
    let space = &status.space;
    let quota = space.quota.map(|quota| format!(" of {}", format_bytes(quota))).unwrap_or_default();
    let all = space.base + space.layers + space.segments + space.overlays + space.pinned;
    format!(
        "space   {}{quota}: base {}, layers {}, segments {}, overlays {}, pinned {}\nrates   {} written, {} stored\n",
        format_bytes(all),
        format_bytes(space.base),
        format_bytes(space.layers),
        format_bytes(space.segments),
        format_bytes(space.overlays),
        format_bytes(space.pinned),
        human::rate(status.rates.write_bytes_per_s),
        human::rate(status.rates.stored_bytes_per_s),
    )
}

/// Where room is lacking: that pins keep some, and how to let go. Where retention does not go on it says so itself.
fn pins_line(status: &Status) -> String {
    let pins = || status.holds.iter().filter(|hold| hold.by == "pin" && hold.bytes > 0);
    let Some(most) = pins().max_by_key(|hold| hold.bytes).filter(|_| status.history.problem.is_none()) else {
        return String::new();
    };
    let (bytes, lsn) = (format_bytes(pins().map(|hold| hold.bytes).sum()), most.at.lsn);
    let label = most.label.as_ref().map(|label| format!(" {label:?}")).unwrap_or_default();
    format!("        pins hold {bytes}, that{label} of LSN {lsn} most: `cdp unpin DIR --at lsn:{lsn}` lets go of it\n")
}

fn history_lines(history: &History) -> String {
    let span = |ms| human::span(Duration::from_millis(ms));
    let cut = history.cut_by.map(|by| format!(", cut by {}", human::limit(Some(by)))).unwrap_or_default();
    let mut text = format!("window  {} of {}{cut}\n", span(history.kept_ms), span(history.window_ms));
    if let Some(ms) = history.forecast_ms.filter(|_| history.cut_forecast()) {
        text.push_str(&format!("        at this rate {} will leave {} of it\n", human::limit(history.limit), span(ms)));
    }
    if let Some(bytes) = history.room_bytes {
        let (limit, bytes) = (human::limit(history.limit), format_bytes(bytes));
        let then = if history.problem.is_some() { "" } else { "; the oldest goes before that is used up" };
        text.push_str(&format!("        {limit} leaves {bytes} more{then}\n"));
    }
    if let Some(problem) = &history.problem {
        let problem = problem.replace("; ", "\n          ");
        text.push_str(&format!("        retention does not go on: {problem}\n"));
    }
    text
}

/// Ranges, and single moments where they are few; else how many there are.
fn ranges_lines(ranges: &[Range], left_off: Option<u64>) -> String {
    let (single, whole): (Vec<_>, Vec<_>) = ranges.iter().partition(|range| range.kind == RangeKind::Only);
    let line = |range: &&Range| format!("keeps   {}", range_line(range));
    let mut text: String = whole.iter().map(line).collect();
    // The newest stands first.
    match (single.first(), single.last()) {
        (Some(newest), Some(oldest)) if single.len() > FEW => text.push_str(&format!(
            "keeps   only {} from {} to {}: `cdp points` lists them\n",
            human::count(single.len().saturating_add(left_off.unwrap_or(0) as usize), "moment"),
            human::local_time(oldest.to_time),
            human::local_time(newest.to_time)
        )),
        _ => text.extend(single.iter().map(line)),
    }
    text
}

/// What holds moments; each for itself where it holds few.
fn holds_lines(holds: &[Hold]) -> String {
    let mut by: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    holds.iter().for_each(|hold| by.entry(&hold.by).or_default().push(hold));
    let of = |(by, holds): (&str, Vec<&Hold>)| match holds.as_slice() {
        [oldest, .., newest] if holds.len() > FEW => format!(
            "kept    {} by {by}: {} since {}, the last is {}\n",
            human::count(holds.len(), "moment"),
            format_bytes(holds.iter().map(|hold| hold.bytes).sum()),
            human::moment(&oldest.at),
            human::moment(&newest.at)
        ),
        _ => holds.into_iter().map(hold_line).collect(),
    };
    by.into_iter().map(of).collect()
}

fn hold_line(hold: &Hold) -> String {
    let label = hold.label.as_ref().map(|label| format!(" {label:?}")).unwrap_or_default();
    format!("kept    {} by {}{label}: {}\n", human::moment(&hold.at), hold.by, format_bytes(hold.bytes))
}

fn session_line(session: &Session, holds: &[Hold]) -> String {
    let name = session.name.as_deref().unwrap_or("(temporary)");
    let open = if session.open { ", open" } else { "" };
    let of_it = |hold: &&Hold| hold.at == session.at && hold.label == session.name && hold.bytes > 0;
    let held = holds.iter().find(of_it).map(|hold| format!(", and {} are kept for it", format_bytes(hold.bytes)));
    let (bytes, at) = (format_bytes(session.bytes), human::moment(&session.at));
    format!("session {name}: {bytes} since {at}{open}{}\n", held.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::{at, range};
    use crate::json::{Disk, Journal, Lack, Space};
    use cdp_net::report::RemoteReplica;

    #[test]
    fn many_moments_are_counted_and_few_are_listed() {
        let hold = |by: &str| Hold { at: at(), by: by.to_owned(), label: None, bytes: 1 << 20 };
        let only = || Range { kind: RangeKind::Only, ..range() };
        let holds: Vec<_> = (0..3).map(|_| hold("pin")).chain((0..1000).map(|_| hold("long"))).collect();
        let text = holds_lines(&holds);
        assert_eq!(text.matches(" by pin: 1.00 MiB\n").count(), 3, "{text}");
        assert!(text.contains("kept    1000 moments by long: 1000 MiB since point 0011"), "{text}");
        assert_eq!(text.lines().count(), 4);
        let mut short = Status { holds, lacks: Some(Lack::default()), ..Status::default() };
        let text = for_people(&short);
        assert!(text.contains("        pins hold 3.00 MiB, that of LSN 7 most: `cdp unpin DIR --at lsn:7`"), "{text}");
        short.history.problem = Some("no history is left; held since old moments".into());
        short.state = State::Quota;
        short.history.room_bytes = Some(0);
        let text = for_people(&short);
        assert!(!text.contains("pins hold") && text.contains("leaves 0 B more\n"), "{text}");
        assert!(text.contains(" go on: no history is left\n          held since old moments\n"), "{text}");
        assert!(text.contains("are free within the quota, less what merging needs; it goes on"), "{text}");
        let ranges = |count: usize| {
            ranges_lines(&std::iter::once(range()).chain((0..count).map(|_| only())).collect::<Vec<_>>(), None)
        };
        assert_eq!(ranges(8).lines().count(), 9);
        let text = ranges(900);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("keeps   only 900 moments from "), "{text}");
        let text = ranges_lines(&vec![only(); 30], Some(870));
        assert!(text.contains("keeps   only 900 moments from "), "{text}");
    }

    #[test]
    fn a_status_in_words() {
        let at = at();
        let session =
            Session { name: Some("lab".into()), timeline: at.timeline, at: at.clone(), bytes: 4096, open: true };
        let status = Status {
            state: State::Protecting,
            group: "web".into(),
            rpo_ms: Some(1500),
            owner_pid: Some(7),
            sealed_at_rest: true,
            journal: Some(Journal { driver: "io_uring".into() }),
            pins: 2,
            lacks: Some(Lack { needed_bytes: 512 << 20, free_bytes: 12 << 10 }),
            space: Space { base: 1 << 30, quota: Some(2 << 30), ..Space::default() },
            disks: vec![Disk { name: "root".into(), size: 1 << 30, uri: Some("nbd://h".into()), incomplete: false }],
            ranges: vec![range()],
            sessions: vec![session],
            holds: vec![Hold { at, by: "session".into(), label: Some("lab".into()), bytes: 8192 }],
            ..Status::default()
        };
        let text = for_people(&status);
        assert!(!text.contains("by session"), "once: {text}");
        for part in [
            "state   protecting by process 7\n",
            "RPO     1.5 s\n",
            "journal written by io_uring\n",
            "sealed  at rest",
            "space   1.00 GiB of 2.00 GiB: base 1.00 GiB,",
            "disk    root (1.00 GiB), served at nbd://h\n",
            "keeps   every write",
            "session lab: 4.00 KiB since point 0011",
            ", open, and 8.00 KiB are kept for it\n",
            "held    by 2 readers\n",
            "lacks   512 MiB are needed, 12.0 KiB are free; it goes on by itself then\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    /// What a thread of ours did nobody does any more: it comes back with another process only.
    #[test]
    fn what_has_ended_for_good_is_not_said_to_come_back() {
        let detached = Status { state: State::Detached, detached: Some("stuck".into()), ..Status::default() };
        let text = for_people(&detached);
        assert!(
            text.contains("detached stuck: nothing is recorded, and everything is compared once it is back\n"),
            "{text}"
        );
        let text = for_people(&Status { failure: Some("the thread x ended by a panic".into()), ..detached });
        assert!(text.contains("failed  the thread x ended by a panic: nothing is recorded, and a restart"), "{text}");
        assert!(!text.contains("once it is back"), "{text}");
    }

    /// Where the replica is elsewhere, its numbers are not known, and zeros would be taken for them.
    #[test]
    fn the_status_of_a_filters_side_says_nothing_of_what_is_stored() {
        let remote = Some(RemoteReplica { address: "h:1".into(), linked: false, problem: Some("no".into()) });
        let text = for_people(&Status { remote, ..Status::default() });
        assert!(
            text.contains("replica at h:1, not reached: no\n") && text.contains("rates   0 B/s written\n"),
            "{text}"
        );
        assert!(!["space", "window", "stored"].iter().any(|part| text.contains(part)), "{text}");
        assert!(for_people(&Status::default()).contains("window"));
    }
}
