//! What a replica has to offer, and nothing else, by what was done.

use super::super::points::check::{check_files, check_moment};
use super::super::points::life::{Life, Outcome, said};
use super::super::points::model::What;
use cdp_core::journal::DiskInfo;
use cdp_core::media::Storage;
use cdp_core::replica::catalogue::Role;
use cdp_core::replica::{BASE_DIRECTORY, Replica, ResolveError, is_unseeded, retention};
use cdp_core::types::*;
use cdp_core::when::When;
use std::collections::BTreeSet;

/// Restorable LSNs: timeline, first, last, whether it is one that is kept.
type Ranges = BTreeSet<(Timeline, Lsn, Lsn, bool)>;

/// By what was done.
fn ranges(life: &Life) -> Ranges {
    let (mut ranges, durable) = (Ranges::new(), life.rig.writer.durable().lsn());
    let oldest = life.oldest.unwrap_or(Lsn::ZERO);
    let mut next = life.past.0.iter().filter(|done| done.lsn > Lsn::ZERO && done.lsn <= durable).peekable();
    while let Some(first) = next.next() {
        let mut last = first;
        while let Some(done) = next.next_if(|done| done.timeline == first.timeline) {
            last = done;
        }
        if last.lsn >= oldest {
            ranges.insert((first.timeline, first.lsn.max(oldest), last.lsn, false));
        }
    }
    ranges.extend(life.kept.iter().map(|lsn| (life.timeline_of(*lsn), *lsn, *lsn, true)));
    ranges
}

fn offered(replica: &Replica) -> Ranges {
    let trunk = replica.catalogue().branches().into_iter().filter(|branch| branch.role == Role::Trunk);
    let ranges = |branch: &cdp_core::replica::catalogue::Branch| {
        let of = branch.timeline;
        branch.ranges().iter().map(|range| (of, range.from(), range.to(), range.only)).collect::<Vec<_>>()
    };
    trunk.flat_map(ranges).collect()
}

/// What is offered, what is held, which points there are, and which files.
fn expect_names(life: &Life, replica: &Replica) -> Outcome<()> {
    let (expected, found) = (ranges(life), offered(replica));
    if expected != found {
        return Err(format!("offered is {found:?}, not {expected:?}"));
    }
    let manifest = life.rig.writer.manifest();
    let (expected, found) = (life.held(), retention::held(manifest));
    if expected != found {
        return Err(format!("held is {found:?}, not {expected:?}"));
    }
    let (from, to) = life.span();
    let restorable = |lsn: &Lsn| (from..=to).contains(lsn) || life.kept.contains(lsn);
    let marks = life.past.0.iter().filter(|done| restorable(&done.lsn));
    let marks: BTreeSet<_> = marks
        .filter_map(|done| match &done.what {
            What::Mark(label) => Some((done.timeline, done.lsn, label.clone())),
            _ => None,
        })
        .collect();
    let branches = replica.catalogue().branches();
    let points = branches.iter().flat_map(|branch| {
        let here = branch.points().iter().filter(|point| branch.is_restorable(point.id.lsn));
        here.map(|point| (point.id.timeline, point.id.lsn, point.mark.label.clone()))
    });
    let points: BTreeSet<_> = points.collect();
    if points != marks {
        return Err(format!("the points are {points:?}, not {marks:?}"));
    }
    if is_unseeded(manifest) {
        return Err("it passes for one that was never copied".to_owned());
    }
    if manifest.merge.is_some() {
        // Disks that no moment has any more may just have been dropped.
        return Ok(());
    }
    let bases = life.disk.list(BASE_DIRECTORY).map_err(said)?;
    let of_none = |name: &&String| {
        let of = |info: &DiskInfo| name.starts_with(&format!("{}.", info.id));
        !manifest.disks.iter().any(of) && *name != "merge.rests"
    };
    bases.iter().find(of_none).map_or(Ok(()), |name| Err(format!("{name} belongs to no disk")))
}

/// A moment that is found by its LSN alone.
fn expect_moment(life: &Life, replica: &Replica, lsn: Lsn) -> Outcome<()> {
    let found = replica.resolve(&When::Lsn { timeline: None, lsn }).map_err(said)?;
    if (found.timeline, found.lsn) != (life.timeline_of(lsn), lsn) {
        return Err(format!("LSN {lsn} is found as {found:?}"));
    }
    check_moment(life, replica, lsn, &life.past.at(lsn)).map_err(|why| format!("LSN {lsn}: {why}"))
}

/// What is offered, and the oldest and the newest moment of it and those that are kept.
pub(super) fn expect_some(life: &Life) -> Outcome<()> {
    let replica = life.replica()?;
    expect_names(life, &replica)?;
    let (from, to) = life.span();
    let ends = life.past.lsns(from, to);
    let ends = ends.first().into_iter().chain(ends.last());
    ends.chain(&life.kept).try_for_each(|lsn| expect_moment(life, &replica, *lsn))
}

/// Every moment, every LSN that is none, every session and every file.
pub(super) fn expect_all(life: &mut Life) -> Outcome<()> {
    let replica = life.replica()?;
    expect_names(life, &replica)?;
    let (from, to) = life.span();
    let mut refused: BTreeSet<_> = [Lsn::ZERO, to.next(), Lsn(to.0 + 500), from.prev()].into_iter().collect();
    life.past.walk(|done, disks| {
        let (lsn, timeline) = (done.lsn, done.timeline);
        if (from..=to).contains(&lsn) || life.kept.contains(&lsn) {
            let stamp = replica.exact(timeline, lsn).map_err(said)?.stamp;
            if stamp != done.stamp {
                return Err(format!("the stamp of LSN {lsn} is {stamp:?}, not {:?}", done.stamp));
            }
            check_moment(life, &replica, lsn, disks).map_err(|why| format!("LSN {lsn}: {why}"))
        } else {
            // Merged, not yet durable, or before a timeline's first one.
            refused.extend([lsn, lsn.prev()]);
            Ok(())
        }
    })?;
    let known: BTreeSet<_> = life.past.lsns(from, to).into_iter().chain(life.kept.iter().copied()).collect();
    for lsn in refused.difference(&known) {
        match replica.resolve(&When::Lsn { timeline: None, lsn: *lsn }) {
            Err(ResolveError::NotRestorable(refused)) => {
                let before = known.range(..*lsn).next_back().copied();
                let found = refused.nearest.before.map(|moment| moment.lsn);
                if found != before {
                    return Err(format!("before LSN {lsn} is {found:?}, not {before:?}"));
                }
            }
            other => return Err(format!("LSN {lsn} is {other:?}")),
        }
    }
    check_files(life)?;
    life.check_sessions()
}
