//! `cdp points`: what can be restored, and what cannot.

use super::{damage_said, gap_line, range_line};
use crate::ask::ask;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{Point, PointKind, Points};
use crate::output::Output;
use crate::place::Place;
use crate::table::{Side, Table};
use cdp_core::when::When;
use cdp_net::owner::Request;
use clap::Args;
use std::collections::BTreeSet;

/// Points in one answer where `--limit` says nothing.
const LIMIT_DEFAULT: u32 = 1000;

/// List restorable ranges, points and gaps, newest first
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Only from this moment on
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    since: Option<When>,
    /// Only up to this moment
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    until: Option<When>,
    /// At most so many points
    #[arg(long, value_name = "N", default_value_t = LIMIT_DEFAULT)]
    limit: u32,
}

impl Arguments {
    /// Lists them.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let selects = self.since.is_some() || self.until.is_some();
        let request = Request::Points { since: self.since, until: self.until, limit: Some(self.limit) };
        let points: Points = ask(engine, &self.place, request)?;
        output
            .answer(&points, |points| for_people(points, if selects { "nothing in this time" } else { "nothing yet" }));
        Ok(damage_said(points.damaged.as_deref(), output))
    }
}

fn for_people(points: &Points, nothing: &str) -> String {
    let mut text = format!("group {}\n\nrestorable:\n", points.group);
    if points.ranges.is_empty() {
        text.push_str(&format!("  {nothing}\n"));
    }
    points.ranges.iter().for_each(|range| text.push_str(&format!("  {}", range_line(range))));
    if !points.gaps.is_empty() {
        text.push_str("\nnot restorable:\n");
        points.gaps.iter().for_each(|gap| text.push_str(&format!("  {}", gap_line(gap))));
    }
    if !points.points.is_empty() {
        text.push_str(&format!("\n{}", table(&points.points, &points.disks).render()));
    }
    if let Some(next) = &points.next {
        text.push_str(&format!("\nolder points: --until {next}\n"));
    }
    text
}

/// With the disks that are complete in each point, where that is not all of them in all points.
fn table(points: &[Point], disks: &[String]) -> Table {
    let of_group: BTreeSet<&String> = disks.iter().collect();
    let several = points.iter().any(|point| point.disks.iter().collect::<BTreeSet<_>>() != of_group);
    let mut columns = vec![("TIME", Side::Left), ("POINT", Side::Left), ("KIND", Side::Left), ("LABEL", Side::Left)];
    if several {
        columns.insert(LABEL, ("DISKS", Side::Left));
    }
    let mut table = Table::new(&columns);
    for point in points {
        let mut kinds: Vec<&str> = point.kinds.iter().map(|kind| word(*kind)).collect();
        kinds.extend(
            [(point.set_consistent, "set"), (point.on_barrier, "flushed"), (point.pinned, "pinned")]
                .iter()
                .filter_map(|(on, word)| on.then_some(*word)),
        );
        let label = point.label.clone().unwrap_or_default();
        let mut row = vec![human::local_time(point.time), point.id.to_string(), kinds.join(","), label];
        if several {
            row.insert(LABEL, point.disks.join(","));
        }
        table.row(row);
    }
    table
}

/// Where the label stands in a row: last, since it may be long.
const LABEL: usize = 3;

fn word(kind: PointKind) -> &'static str {
    match kind {
        PointKind::Short => "short",
        PointKind::Long => "long",
        PointKind::Mark => "mark",
        PointKind::App => "app",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::{gap, point, range};

    #[test]
    fn everything_has_its_place() {
        let points = Points {
            group: "web".into(),
            ranges: vec![range()],
            points: vec![point()],
            disks: point().disks,
            gaps: vec![gap()],
            next: Some(cdp_core::types::WallTime(0)),
            ..Points::default()
        };
        let text = for_people(&points, "nothing yet");
        for part in [
            "group web\n",
            "every write from ",
            "(lsn 1..9)",
            "resync after unclean-stop: nothing from ",
            "mark,flushed  before upgrade",
            "--until 1970-01-01T00:00:00.000000000Z",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(for_people(&Points::default(), "nothing yet").contains("nothing yet"));
    }
    #[test]
    fn disks_that_a_point_lacks_are_seen() {
        let with = |disks: &[&str]| Point { disks: disks.iter().map(ToString::to_string).collect(), ..point() };
        let group = ["root".to_owned(), "data".to_owned()];
        let all = table(&[with(&["root", "data"]), with(&["data", "root"])], &group).render();
        assert!(!all.contains("DISKS"), "{all}");
        let text = table(&[with(&["root", "data"]), with(&["root"])], &group).render();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("KIND          DISKS      LABEL"), "{text}");
        assert!(lines[1].ends_with("mark,flushed  root,data  before upgrade"), "{text}");
        assert!(lines[2].ends_with("mark,flushed  root       before upgrade"), "{text}");
        assert!(table(&[with(&["root", "old"])], &group).render().contains("root,old"), "of one that left, too");
    }
}
