//! Going on when the order cannot at the replica's side: a new timeline is begun there, under running guests.
//!
//! That is the case when the replica lost what it had acknowledged, or when nobody has any more what follows there: what would be the rest
//! of a write, say, within which it stopped. The filter keeps its order and forks ([`Filter::fork`](cdp_core::capture::Filter::fork)):
//! what is not at the replica is read again, and of the time between nothing can be restored. Only a replica whose open timeline is
//! one of this filter's own is forked from: where another filter writes it, this one is not the one that counts any more.

use super::found::new_disk;
use super::{Notice, Shared};
use crate::far::{Begin, Find, Found, Near, NewDisk, Origin, SizeOf};
use crate::owner::PolicyChange;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::threads::pause;
use cdp_core::capture::{DiskSpec, Fork};
use cdp_core::types::Timeline;
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
    let known: Vec<DiskSpec> =
        found.disks.into_iter().map(|disk| DiskSpec { id: disk.id, name: disk.name, size: disk.size }).collect();
    let (durable, forked) = shared.engine.with(|filter, now| {
        let durable = filter.status(now).durable;
        let lost = if at < durable { Fork::Acknowledged } else { Fork::Lent };
        (durable, filter.fork(now, timeline, at, lost, &known))
    });
    // Only a filter that is being closed refuses now.
    if forked.is_ok() && at < durable {
        let lost = Notice::AcknowledgedLost { from: at.next(), to: durable };
        shared.alarms.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }
    Ok(())
}

/// Has the timeline opened, with the disks that the replica may not know any more.
fn begin(shared: &Arc<Shared>, found: &Found, parent: Timeline, timeline: Timeline) -> Result<(), Problem> {
    let next = shared.engine.with(|filter, now| filter.status(now)).lsn.next();
    let held = shared.sources.disks().into_iter().filter_map(|id| Some((id, shared.sources.get(id)?)));
    let (mut joining, mut sizes): (Vec<NewDisk>, Vec<SizeOf>) = Default::default();
    for (id, held) in held {
        match found.disks.iter().find(|disk| disk.id == id) {
            None => joining.push(new_disk(id, &held.name, &held.source, next)),
            Some(disk) if disk.size < held.device.size() => sizes.push(SizeOf { disk: id, size: held.device.size() }),
            Some(_) => {}
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
