//! `cdp verify`: read and check everything.

use super::range_line;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{Damage, DiskVerified, Range, Verified};
use crate::output::Output;
use crate::place::Place;
use crate::progress::Meter;
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::types::WallTime;
use cdp_core::when::format_bytes;
use clap::Args;
use std::collections::BTreeSet;

/// Read everything, check every checksum and the chain
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
}

impl Arguments {
    /// Checks; status 5 when there is damage.
    ///
    /// # Errors
    /// What the owner or the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let stop = Stop::on_signals().context("cannot handle signals")?;
        let meter = Meter::new("verifying", output.shows_progress());
        let verified = engine.verify(self.place.way()?, &stop, &mut |progress| meter.set(progress))?;
        meter.finish();
        output.answer(&verified, |verified| for_people(&self.place, verified));
        Ok(match verified {
            Verified { stopped: true, .. } => Exit::Stopped,
            Verified { ok: true, .. } => Exit::Done,
            _ => Exit::Damage,
        })
    }
}

fn for_people(place: &Place, verified: &Verified) -> String {
    let read = format_bytes(verified.bytes);
    let places = human::count(verified.damage.len(), "damaged place");
    if verified.stopped {
        let mut text = format!("stopped before the end: {read} read, {places} in them; of the rest nothing is known\n");
        verified.damage.iter().for_each(|damage| text.push_str(&damage_place(damage)));
        return text;
    }
    if verified.ok {
        let shut = "; it is sealed at rest and no key was given, so nothing was opened";
        let early = "; the first copy is not through, so nothing can be restored yet";
        let shut = if verified.unopened { shut } else { "" };
        return format!("{read} read: every checksum is right{shut}{}\n", if verified.unseeded { early } else { "" });
    }
    if verified.unopened && verified.disks.is_empty() {
        let mut text =
            format!("{read} read: {places}; what they take, and what is still good, can be said with the key only\n");
        verified.damage.iter().for_each(|damage| text.push_str(&damage_place(damage)));
        return text;
    }
    let mut text = format!("{read} read: {places}, {}{}\n", how_bad(&verified.disks), of_sessions(&verified.damage));
    if let Some(error) = &verified.unreadable {
        text.push_str(&format!("no moment can be found in it: {error}\n"));
    }
    if verified.at_most {
        text.push_str("more is damaged than is told apart: some of what is called lost may still be good\n");
    }
    for damage in &verified.damage {
        text.push_str(&damage_place(damage));
        if damage.lost.is_empty() {
            text.push_str("  no moment that can be restored needs it\n");
        }
    }
    for disk in verified.disks.iter().filter(|disk| !disk.lost.is_empty()) {
        text.push_str(&format!("\nlost of {}:\n", disk.disk));
        disk.lost.iter().for_each(|range| text.push_str(&format!("  {}", lost_line(range, false))));
    }
    text.push_str("\nstill good:\n");
    if verified.disks.iter().all(|disk| disk.good.is_empty()) {
        text.push_str("  nothing\n");
        return text;
    }
    verified.good.iter().for_each(|range| text.push_str(&format!("  {}", range_line(range))));
    text.push_str(&match verified.good.first() {
        Some(range) => command(place, range, None),
        None => "  nothing of all disks together\n".to_owned(),
    });
    for disk in verified.disks.iter().filter(|disk| disk.good != verified.good) {
        text.push_str(&format!("\nstill good of {}:\n", disk.disk));
        disk.good.iter().for_each(|range| text.push_str(&format!("  {}", range_line(range))));
        text.push_str(&match disk.good.first() {
            Some(range) => command(place, range, Some(&disk.disk)),
            None => "  nothing\n".to_owned(),
        });
    }
    text
}

/// The worst that is true of all disks together.
fn how_bad(disks: &[DiskVerified]) -> String {
    let names = |is: &dyn Fn(&DiskVerified) -> bool| {
        disks.iter().filter(|disk| is(disk)).map(|disk| disk.disk.as_str()).collect::<Vec<_>>()
    };
    if disks.iter().all(|disk| disk.good.is_empty()) {
        return "and no moment can be restored".into();
    }
    let gone = names(&|disk| disk.good.is_empty() && !disk.lost.is_empty());
    let some = names(&|disk| !disk.good.is_empty() && !disk.lost.is_empty());
    match (gone.is_empty(), some.is_empty()) {
        (true, true) => "and every moment can still be restored".into(),
        (true, false) => format!("some moments of {} are lost", some.join(", ")),
        (false, true) => format!("every moment of {} is lost", gone.join(", ")),
        (false, false) => format!("every moment of {} and some of {} are lost", gone.join(", "), some.join(", ")),
    }
}

/// The sessions in which something that was written is lost: the disks' history is whole without them.
fn of_sessions(damage: &[Damage]) -> String {
    let lost = damage.iter().filter(|damage| !damage.lost.is_empty());
    let names: BTreeSet<_> = lost.filter_map(|damage| damage.session.as_deref()).collect();
    if names.is_empty() {
        return String::new();
    }
    let names: Vec<_> = names.into_iter().map(|name| format!("{name:?}")).collect();
    format!("; of what was written in the session {} some is lost", names.join(", "))
}

/// A damaged place, and what it holds.
fn damage_place(damage: &Damage) -> String {
    let (file, end) = (damage.file.display(), damage.offset.saturating_add(damage.length));
    let mut text = format!("\n{file}, bytes {} to {end}: {}\n", damage.offset, damage.what);
    if let Some(session) = &damage.session {
        text.push_str(&format!("  of what was written in the session {session:?}\n"));
    }
    if let Some(records) = damage.records {
        text.push_str(&format!("  lsn {} to {} are written there\n", records.from_lsn, records.to_lsn));
    }
    for extent in &damage.extents {
        let disk = extent.disk.as_deref().unwrap_or("any disk");
        let bytes = extent.length.map_or("any of its bytes".into(), |length| {
            format!("bytes {} to {}", extent.offset, extent.offset.saturating_add(length))
        });
        let by = if extent.lsn.0 == 0 { String::new() } else { format!(", written by lsn {}", extent.lsn) };
        text.push_str(&format!("  takes from {disk}: {bytes}{by}\n"));
    }
    if damage.more > 0 {
        text.push_str(&format!("  and {}\n", human::count(damage.more as usize, "more run")));
    }
    let lost = |range| format!("  lost: {}", lost_line(range, damage.session.is_some()));
    damage.lost.iter().for_each(|range| text.push_str(&lost(range)));
    text
}

/// A line about moments that are lost. Of what lies behind the end of what can be read nobody knows when it was.
/// A session's end is its own, and not the newest moment.
fn lost_line(range: &Range, of_session: bool) -> String {
    if range.to_time == WallTime(u64::MAX) && !of_session {
        return format!("every write from lsn {} to the newest\n", range.from_lsn);
    }
    if range.from_time == WallTime(0) {
        return format!("every write from lsn {} to lsn {}\n", range.from_lsn, range.to_lsn);
    }
    range_line(range)
}

/// How the newest moment of a range is brought back.
fn command(place: &Place, range: &Range, disk: Option<&str>) -> String {
    let disk = disk.map(|name| format!(" --disk {name}")).unwrap_or_default();
    format!("  cdp restore {} --at lsn:{}-{}{disk} --output ...\n", place, range.timeline, range.to_lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::range;
    use crate::json::{LostExtent, Records};
    use cdp_core::types::Lsn;
    use std::path::Path;

    fn said(verified: &Verified) -> String {
        for_people(&Place::directory(Path::new("/backup")), verified)
    }

    #[test]
    fn damage_is_named_with_what_is_lost_and_what_is_good() {
        let extent = LostExtent { disk: Some("root".into()), lsn: Lsn(8), offset: 4096, length: Some(512) };
        let damage = Damage {
            file: "journal/1.seg".into(),
            offset: 512,
            length: 64,
            what: "the checksum of a chunk is wrong".into(),
            records: Some(Records { from_lsn: Lsn(7), to_lsn: Lsn(9) }),
            extents: vec![extent],
            more: 2,
            lost: vec![range()],
            ..Damage::default()
        };
        let root = DiskVerified { disk: "root".into(), lost: vec![range()], good: vec![] };
        let data = DiskVerified { disk: "data".into(), lost: vec![], good: vec![range()] };
        let verified = Verified { damage: vec![damage.clone()], disks: vec![root, data], ..Verified::default() };
        let text = said(&verified);
        assert!(text.contains(
            "1 damaged place, every moment of root is lost\n\njournal/1.seg, bytes 512 to 576: the checksum"
        ));
        for line in [
            "  lsn 7 to 9 are written there\n",
            "  takes from root: bytes 4096 to 4608, written by lsn 8\n  and 2 more runs\n",
            "  lost: every write",
            "\nlost of root:\n  every write",
            "still good:\n  nothing of all disks together\n",
            "still good of data:\n  every write",
            " --disk data --output ...\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let stopped =
            said(&Verified { stopped: true, ok: false, bytes: 1024, damage: vec![damage], ..Verified::default() });
        assert!(stopped.starts_with("stopped before the end: 1.00 KiB read, 1 damaged place in them"), "{stopped}");
    }

    #[test]
    fn what_is_right_says_so_and_what_it_is_worth() {
        assert!(said(&Verified { ok: true, ..Verified::default() }).ends_with("every checksum is right\n"));
        let shut = Verified { ok: true, unopened: true, ..Verified::default() };
        assert!(said(&shut).ends_with("no key was given, so nothing was opened\n"));
        let damage = vec![Damage::default()];
        let shut = said(&Verified { unopened: true, damage, ..Verified::default() });
        assert!(shut.contains("1 damaged place; what they take") && !shut.contains("still good:"), "{shut}");
        let early = Verified { ok: true, unseeded: true, ..Verified::default() };
        assert!(said(&early).ends_with("nothing can be restored yet\n"));
    }

    #[test]
    fn what_is_lost_of_a_session_is_not_of_the_disks_and_not_hidden() {
        let open = Range { from_time: WallTime(0), to_time: WallTime(u64::MAX), ..range() };
        let (lost, session) = (vec![open], Some("lab".to_owned()));
        let damage = vec![Damage { session, lost, ..Damage::default() }];
        let disks = vec![DiskVerified { disk: "root".into(), lost: vec![], good: vec![range()] }];
        let text = said(&Verified { damage, disks, good: vec![range()], ..Verified::default() });
        let first = "1 damaged place, and every moment can still be restored; of what was written in the session \"lab\" \
                     some is lost\n";
        assert!(text.contains(first), "{text}");
        let named = format!(
            "  of what was written in the session \"lab\"\n  lost: every write from lsn 1 to lsn {}\n",
            range().to_lsn
        );
        assert!(text.contains(&named) && !text.contains("newest"), "{text}");
    }

    #[test]
    fn what_cannot_be_loaded_says_why() {
        let unreadable = Some("the base of \"root\" is gone".to_owned());
        let text = said(&Verified { unreadable, damage: vec![Damage::default()], ..Verified::default() });
        assert!(text.contains("no moment can be restored\nno moment can be found in it: the base of"), "{text}");
    }

    #[test]
    fn what_has_no_end_says_so() {
        let open = Range { to_time: WallTime(u64::MAX), ..range() };
        assert_eq!(lost_line(&open, false), "every write from lsn 1 to the newest\n");
        let timed = Range { from_time: WallTime(0), ..range() };
        assert_eq!(lost_line(&timed, false), format!("every write from lsn 1 to lsn {}\n", timed.to_lsn));
        let damage = Damage { lost: vec![open.clone()], ..Damage::default() };
        let disk = DiskVerified { disk: "root".into(), lost: vec![open], good: vec![range()] };
        let text =
            said(&Verified { damage: vec![damage], good: vec![range()], disks: vec![disk], ..Verified::default() });
        assert!(text.contains("some moments of root are lost") && !text.contains(&u64::MAX.to_string()), "{text}");
    }
}
