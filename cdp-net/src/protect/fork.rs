//! Going on when the order cannot at the replica's side: a new timeline is begun there, under running guests.
//!
//! That is the case when the replica lost what it had acknowledged, or when nobody has any more what follows there: what would be the rest
//! of a write, say, within which it stopped. The filter keeps its order and forks ([`Filter::fork`](cdp_core::capture::Filter::fork)):
//! what is not at the replica is read again, and of the time between nothing can be restored. Only a replica whose open timeline is
//! one of this filter's own is forked from: where another filter writes it, this one is not the one that counts any more.

use super::found::new_disk;
use super::{Notice, Shared};
use crate::far::{Begin, Find, Found, FoundDisk, Near, NewDisk, Origin, SizeOf};
use crate::owner::PolicyChange;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::threads::pause;
use cdp_core::capture::{DiskSpec, Fork};
use cdp_core::types::{DiskId, Timeline};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often it is looked whether the order broke, and the time between two attempts to mend that.
const LOOK: Duration = Duration::from_millis(250);
/// Timelines that are remembered as this filter's own, at most: a replica is not rolled back behind so many breaks.
const OWN_MAX: usize = 256;

/// The timelines of this filter, and the one that it had when it began.
struct Own {
    written: VecDeque<Timeline>,
    /// What the next fork is called. One that was perhaps begun is not used again.
    next: Timeline,
}

fn fresh() -> Timeline {
    let Some(fresh) = Timeline::new(identity()) else { unreachable!("an identity is never zero") };
    fresh
}

impl Own {
    fn add(&mut self, timeline: Timeline) {
        if self.written.len() >= OWN_MAX {
            self.written.pop_front();
        }
        self.written.push_back(timeline);
    }
}

/// Looks after the order until the protection ends. `written` are the timeline of the start and the one it came from, if it did.
pub(super) fn run(shared: &Arc<Shared>, written: impl Iterator<Item = Timeline>) {
    let mut own = Own { written: written.collect(), next: fresh() };
    while !shared.is_over() {
        if let Some(why) = shared.far.broken()
            && let Err(Refusal::ForGood(problem)) = go_on(shared, &mut own)
        {
            shared.failure.set(&format!("{why}; and no new timeline can be begun: {}", problem.message));
        }
        pause(&shared.stop, LOOK);
    }
}

/// Why there is no new timeline.
enum Refusal {
    /// Nothing that this filter could do later would change it.
    ForGood(Problem),
    /// It is tried again.
    Now,
}

impl From<Problem> for Refusal {
    fn from(_: Problem) -> Self {
        // Who keeps the replica may be starting, without room, or out of reach.
        Self::Now
    }
}

fn for_good(message: String) -> Refusal {
    Refusal::ForGood(Problem::new(ProblemClass::Failed, "not-following", message))
}

fn go_on(shared: &Arc<Shared>, own: &mut Own) -> Result<(), Refusal> {
    // Without a witness: that something is lost is known, and everything is compared for it.
    let found = shared.far.find(&Find::default())?;
    let Some(found) = found else {
        return Err(for_good(
            "there is no replica any more whose first copy was whole: start the protection anew".into(),
        ));
    };
    let Some(parent) = found.open else {
        return Err(for_good("no timeline is open at the replica: start the protection anew".into()));
    };
    if parent == own.next {
        // It was begun, and the answer was lost.
        own.add(parent);
        own.next = fresh();
    }
    if !own.written.contains(&parent) {
        return Err(for_good(format!("another filter writes to the replica now, on timeline {parent}")));
    }
    begin(shared, &found, parent, own.next)?;
    let (timeline, at) = (own.next, found.durable);
    own.add(timeline);
    own.next = fresh();
    shared.policy(found.policy);
    let (durable, forked) = shared.engine.with(|filter, now| {
        let durable = filter.status(now).durable;
        let lost = if at < durable { Fork::Acknowledged } else { Fork::Lent };
        let had = |id| filter.disk_size(id).is_some() || filter.disk_left(id).is_some();
        let known: Vec<DiskSpec> = found.disks.into_iter().filter_map(|disk| known(disk, had)).collect();
        (durable, filter.fork(now, timeline, at, lost, &known))
    });
    // Only a filter that is being closed refuses now.
    if forked.is_ok() && at < durable {
        let lost = Notice::AcknowledgedLost { from: at.next(), to: durable };
        shared.alarms.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }
    Ok(())
}

/// A disk as the replica knows it. One that is only about to join it knows before the filter does: were the filter told of it, it would
/// record that the disk has left.
fn known(disk: FoundDisk, had: impl Fn(DiskId) -> bool) -> Option<DiskSpec> {
    (disk.complete || had(disk.id)).then_some(DiskSpec { id: disk.id, name: disk.name, size: disk.size })
}

/// How long a disk may get, or how short, by what is not recorded yet. What was announced stays so: else a start before the cut is durable
/// would take the source for one that lost its end.
fn size_to_be(disk: &FoundDisk, size: u64) -> Option<SizeOf> {
    let size = disk.announced.or((disk.size < size).then_some(size))?;
    Some(SizeOf { disk: disk.id, size })
}

/// Has the timeline opened, with the disks that the replica may not know any more.
fn begin(shared: &Arc<Shared>, found: &Found, parent: Timeline, timeline: Timeline) -> Result<(), Problem> {
    let next = shared.engine.with(|filter, now| filter.status(now)).lsn.next();
    let held = shared.sources.disks().into_iter().filter_map(|id| Some((id, shared.sources.get(id)?)));
    let (mut joining, mut sizes): (Vec<NewDisk>, Vec<SizeOf>) = Default::default();
    for (id, held) in held {
        match found.disks.iter().find(|disk| disk.id == id) {
            None => joining.push(new_disk(id, &held.name, &held.source, next)),
            Some(disk) => sizes.extend(size_to_be(disk, held.device.size())),
        }
    }
    let begin = Begin {
        new: None,
        timeline,
        origin: Origin::Fork { parent, at: found.durable },
        reserved: next,
        dropped: Vec::new(),
        joining,
        sizes,
        policy: PolicyChange::default(),
        stored: false,
    };
    shared.far.begin(&begin, Arc::clone(shared) as Arc<dyn Near>)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(complete: bool, announced: Option<u64>) -> FoundDisk {
        let id = DiskId::new(2).expect("not 0");
        FoundDisk { id, name: "disk".into(), size: 4096, complete, announced }
    }

    /// It would be said to have left before it joined, and a disk leaves once.
    #[test]
    fn a_disk_that_only_the_replica_knows_of_yet_is_not_said_to_have_left() {
        assert_eq!(known(disk(false, None), |_| false), None);
        assert!(known(disk(false, None), |_| true).is_some(), "one that is being copied");
        assert!(known(disk(true, None), |_| false).is_some(), "one that left while its order broke");
    }

    #[test]
    fn a_cut_that_was_announced_stays_so_over_a_fork() {
        let size = |found: &FoundDisk, size| size_to_be(found, size).map(|to| to.size);
        assert_eq!(size(&disk(true, Some(512)), 4096), Some(512));
        assert_eq!(size(&disk(true, Some(512)), 512), Some(512));
        assert_eq!(size(&disk(true, None), 8192), Some(8192));
        assert_eq!(size(&disk(true, None), 4096), None);
    }
}
