//! What the replica offers, against what the guests did.

use super::world::Group;
use crate::capture::disk::{Tags, tags_of};
use crate::capture::model;
use crate::capture::rng::Rng;
use crate::capture::world::History;
use cdp_core::frame::{Part, ResyncReason};
use cdp_core::journal::PointsMode;
use cdp_core::replica::catalogue::LossReason;
use cdp_core::replica::{Replica, ReplicaView};
use cdp_core::types::{DiskId, Lsn, SECTOR, Timeline};

/// Moments of one range that are read.
const SAMPLES: u64 = 2;

/// Looks at the replica as a reader sees it now; gives how many moments were read.
pub fn look(group: &Group, rng: &mut Rng) -> u64 {
    let replica = group.replica.look();
    let now = group.host.any_world();
    let current = now.history_so_far();
    let mut looked = 0;
    for branch in replica.catalogue().branches() {
        let mut histories = group.host.histories.iter().chain(Some(&current));
        let Some(history) = histories.find(|history| history.timeline == branch.timeline) else {
            assert!(branch.ranges().is_empty(), "nobody wrote timeline {}", branch.timeline);
            continue;
        };
        if group.host.forked.contains(&branch.timeline) && branch.frontier().lsn > Lsn::ZERO {
            let reason = branch.gaps().first().map(|gap| gap.reason);
            let said = reason == Some(LossReason::Resync(ResyncReason::LentLost));
            assert!(said, "what was lost with a proxy is said to be {reason:?}");
        }
        let mut lsns: Vec<Lsn> = Vec::new();
        for range in branch.ranges() {
            let (from, to) = (range.from(), range.to());
            lsns.extend([from, to]);
            lsns.extend((0..SAMPLES).map(|_| Lsn(rng.between(from.0, to.0))));
            let gap = branch.gaps().iter().find(|gap| gap.from <= to && from <= gap.to);
            assert!(gap.is_none(), "{from} to {to} lies in {gap:?}");
        }
        let points = branch.points().iter().map(|point| point.id.lsn).filter(|lsn| branch.is_restorable(*lsn));
        lsns.extend(points);
        lsns.sort_unstable();
        lsns.dedup();
        if now.options.points == PointsMode::EveryWrite {
            check_whole(branch, history);
        }
        looked += check_moments(&replica, history, (branch.frontier().lsn, &lsns));
    }
    if let Some(world) = group.host.world().filter(|_| !group.host.forking) {
        let said = world.filter.status(world.both()).restorable;
        let branch = replica.catalogue().branch(world.options.timeline);
        // Where nothing of the timeline can be restored yet it says what lies before.
        let known = branch.is_some_and(|branch| said < world.filter.first_lsn() || branch.is_restorable(said));
        assert!(known || said == Lsn::ZERO, "the filter says that {said} can be restored: {branch:?}");
    }
    looked
}

/// Every record that is durable and settled can be restored, or lies in a gap that says so.
fn check_whole(branch: &cdp_core::replica::catalogue::Branch, history: &History) {
    let end = branch.frontier().lsn;
    let made = history.frames.iter().flat_map(|frame| &frame.parts).map(|part| part.lsn).next();
    // Where disks are copied first, nothing is said of what comes before they are.
    let mut next = made.filter(|first| branch.parent.is_some() && *first <= end);
    let ranges = branch.ranges().iter().map(|range| (range.from(), range.to()));
    let mut pieces: Vec<(Lsn, Lsn)> = ranges.chain(branch.gaps().iter().map(|gap| (gap.from, gap.to))).collect();
    pieces.sort_unstable();
    for (from, to) in pieces {
        let events = history.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.note.is_some());
        let near = |part: &&Part| part.lsn >= from.min(next.unwrap_or(from)) && part.lsn <= to.next();
        let said = || events.clone().filter(near).map(|part| (part.lsn, part.note.clone())).collect::<Vec<_>>();
        let follows = next.is_none_or(|next| from <= next);
        assert!(follows, "between {next:?} and {from} nothing is said: {:?}, {:?}", said(), branch.frontier());
        next = Some(to.next());
    }
    assert!(next.is_none_or(|next| next > end), "{end} is durable, and what can be restored ends before {next:?}");
}

fn check_moments(replica: &Replica, history: &History, (durable, lsns): (Lsn, &[Lsn])) -> u64 {
    // A record that is not durable yet may begin a window before it. What is durable and settled may end within a frame.
    let mut there = history.frames.clone();
    there.retain_mut(|frame| {
        frame.parts.retain(|part| part.lsn <= durable);
        !frame.parts.is_empty()
    });
    let windows = model::windows(&there);
    let expected = history.at(lsns);
    for (lsn, expected) in lsns.iter().zip(&expected) {
        let window = windows.iter().find(|(from, end)| from <= lsn && lsn < end);
        assert!(window.is_none(), "{lsn} can be restored and lies in {window:?}");
        assert!(*lsn <= history.made(), "{lsn} can be restored and was never made");
        compare(replica, history.timeline, *lsn, expected);
    }
    lsns.len() as u64
}

/// The replica at a moment is what the guests would have read.
pub fn compare(replica: &Replica, timeline: Timeline, lsn: Lsn, expected: &[(DiskId, Tags)]) {
    let ground = replica.ground(timeline, lsn).expect("a moment that can be restored");
    let disks = replica.complete_disks(timeline, lsn);
    // Of a first copy of the group that goes on after a start no record says when it is whole.
    let waits = |disk: &DiskId| {
        let info = replica.manifest().disk(*disk);
        info.is_some_and(|info| info.added == Lsn::ZERO && info.base.is_none())
    };
    let expected: Vec<_> = expected.iter().filter(|(disk, _)| !waits(disk)).collect();
    let found: Vec<_> = disks.iter().map(|disk| (disk.id, disk.size)).collect();
    let there: Vec<_> = expected.iter().map(|(disk, tags)| (*disk, tags.len() as u64 * SECTOR)).collect();
    assert!(found == there, "at {lsn} the disks are {found:?}, and were {there:?}");
    let view = ReplicaView::open(ground, disks).expect("a moment that can be restored");
    for (disk, (_, expected)) in view.disks().to_vec().iter().zip(expected) {
        let mut bytes = vec![0; expected.len() * SECTOR as usize];
        view.read(disk.id, 0, &mut bytes).expect("a moment that can be restored is read");
        let found = tags_of(&bytes);
        let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
        if let Some(sector) = wrong {
            let (found, expected) = (found[sector], expected[sector]);
            panic!("at {lsn} sector {sector} of disk {} is {found:x}, and was {expected:x}", disk.id);
        }
    }
}
