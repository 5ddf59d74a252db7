//! What somebody reads of a group from afar: moments that are open, and jobs.
//!
//! Whoever reads is, here, one more client of the directory's owner, in the owner's own process: a moment has the owner's pin and the
//! lock that outlasts him, a session its writer's lock. So a filter that comes or goes disturbs nobody who reads, and nobody who reads
//! keeps a filter from its replica. What is open has a lease and not a connection: a line that is cut, or a proxy on the way that is
//! started anew, ends nothing that is asked for again in time.

mod jobs;
mod views;

use self::jobs::JobEntry;
use self::views::{View, ViewEntry};
use super::lock;
use super::seat::Seat;
use crate::far::{
    self, CallKind, Job, JobStands, LEASE, NO_VIEW, OpenView, ReadName, Told, ViewName, ViewRange, WriteView, question,
    tell, tell_with,
};
use crate::report::{Problem, ProblemClass};
use cdp_core::link::message::{Answer, Call};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Moments of a group that are open at once, at most. One more is refused.
const VIEWS_MAX: usize = 16;
/// Jobs of a group at once, at most. One more is refused.
const JOBS_MAX: usize = 16;

/// See the module's text.
#[derive(Default)]
pub(super) struct Reads(Mutex<Open>);

#[derive(Default)]
struct Open {
    views: BTreeMap<ReadName, Arc<ViewEntry>>,
    jobs: BTreeMap<ReadName, Arc<JobEntry>>,
    /// The host ends.
    ended: bool,
}

/// When something was asked for last.
struct Lease(Mutex<Instant>);

impl Lease {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn renew(&self) {
        *lock(&self.0) = Instant::now();
    }

    fn is_over(&self) -> bool {
        lock(&self.0).elapsed() > LEASE
    }
}

/// Answers a call of somebody who reads. May wait for media, and for the directory's owner.
pub(super) fn answer(seat: &Arc<Seat>, kind: CallKind, call: &Call) -> Answer {
    far::answer(call, Some(told(seat, kind, call)))
}

fn told(seat: &Arc<Seat>, kind: CallKind, call: &Call) -> Told {
    let reads = &seat.reads;
    match kind {
        CallKind::Job => job(seat, question(call)?),
        CallKind::OpenView => open(seat, &question(call)?),
        CallKind::Extents => {
            let ViewRange { view, disk, range } = question(call)?;
            tell_with(&(), far::encode_runs(&reads.view(view)?.runs(disk, range)?))
        }
        CallKind::ReadView => {
            let ViewRange { view, disk, range } = question(call)?;
            tell_with(&(), reads.view(view)?.read(disk, range)?)
        }
        CallKind::WriteView => {
            let write: WriteView = question(call)?;
            tell(&reads.view(write.view)?.write(&write, &call.tail)?)
        }
        CallKind::TouchView => {
            let ViewName { view } = question(call)?;
            tell(&reads.view(view).map(drop)?)
        }
        CallKind::CloseView => {
            let ViewName { view } = question(call)?;
            let closed = lock(&reads.0).views.remove(&view);
            // With everything that was written in it. One that is closed already stays so.
            tell(&closed.map_or(Ok(()), |entry| entry.close())?)
        }
        kind => unreachable!("{kind:?} is not asked by readers"),
    }
}

fn busy(what: &str, most: usize) -> Problem {
    Problem::new(
        ProblemClass::Refused,
        "busy",
        format!("{most} {what} of the group are open already, which is the most"),
    )
    .hint("end one of them: one that was killed counts for a minute")
}

fn ending() -> Problem {
    Problem::new(ProblemClass::Failed, far::UNREACHABLE, "the replica host ends")
}

/// Why a name names nothing.
pub(super) fn unknown() -> Problem {
    let message = "the replica host does not know it any more: it was started anew, or heard nothing for too long";
    Problem::new(ProblemClass::Failed, NO_VIEW, message)
}

/// The same answer as often as the same is asked.
fn open(seat: &Arc<Seat>, order: &OpenView) -> Told {
    let entry = {
        let mut open = lock(&seat.reads.0);
        if open.ended {
            return Err(ending());
        }
        let count = open.views.len();
        match open.views.get(&order.view) {
            Some(known) => Arc::clone(known),
            None if count >= VIEWS_MAX => return Err(busy("moments", VIEWS_MAX)),
            None => Arc::clone(open.views.entry(order.view).or_insert_with(ViewEntry::new)),
        }
    };
    let opened = entry.open(|| View::open(seat, order));
    if opened.is_err() {
        lock(&seat.reads.0).views.remove(&order.view);
    }
    let document = serde_json::to_vec(opened?.document());
    let document = document.map_err(|error| Problem::new(ProblemClass::Failed, "internal", error.to_string()))?;
    tell_with(&(), document)
}

/// Begins a job, or tells what became of it.
fn job(seat: &Arc<Seat>, job: Job) -> Told {
    let known = lock(&seat.reads.0).jobs.get(&job.job).cloned();
    if job.forget {
        let known = lock(&seat.reads.0).jobs.remove(&job.job);
        known.into_iter().for_each(|known| known.forget());
        return tell(&JobStands { ended: true, ..JobStands::default() });
    }
    let entry = match (known, job.order) {
        (Some(known), _) => known,
        (None, Some(order)) => {
            let mut open = lock(&seat.reads.0);
            if open.ended {
                return Err(ending());
            }
            // The same call may have come twice.
            match open.jobs.get(&job.job) {
                Some(known) => Arc::clone(known),
                None if open.jobs.len() >= JOBS_MAX => return Err(busy("jobs", JOBS_MAX)),
                None => {
                    let entry = JobEntry::start(seat, order)?;
                    open.jobs.insert(job.job, Arc::clone(&entry));
                    entry
                }
            }
        }
        (None, None) => return Err(unknown()),
    };
    let (stands, bytes) = entry.poll(job.taken, job.stop)?;
    tell_with(&stands, bytes)
}

impl Reads {
    /// A view, and its lease is renewed.
    fn view(&self, name: ReadName) -> Result<Arc<View>, Problem> {
        let entry = lock(&self.0).views.get(&name).cloned();
        entry.and_then(|entry| entry.opened()).ok_or_else(unknown)
    }

    /// Lets go of what nobody has asked for, for too long; whether nothing is left.
    pub(super) fn sweep(&self) -> bool {
        let mut over = Open::default();
        let mut open = lock(&self.0);
        over.views = open.views.extract_if(.., |_, entry| entry.is_over()).collect();
        over.jobs = open.jobs.extract_if(.., |_, entry| entry.is_over()).collect();
        drop(open);
        over.let_go();
        self.is_empty()
    }

    /// Whether nothing is open.
    pub(super) fn is_empty(&self) -> bool {
        let open = lock(&self.0);
        open.views.is_empty() && open.jobs.is_empty()
    }

    /// Lets go of everything, for good.
    pub(super) fn end(&self) {
        let all = std::mem::replace(&mut *lock(&self.0), Open { ended: true, ..Open::default() });
        all.let_go();
    }
}

impl Open {
    fn let_go(self) {
        self.jobs.into_values().for_each(|entry| entry.forget());
        // Nobody is left who could be told that what was written last is not durable: it never was said to be.
        self.views.into_values().for_each(|entry| drop(entry.close()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_nobody_asks_for_is_let_go_of_after_its_lease() {
        let Some(long_ago) = Instant::now().checked_sub(LEASE + Duration::from_secs(1)) else { return };
        let (reads, forgotten, read) = (Reads::default(), ReadName::draw(), ReadName::draw());
        assert!(reads.sweep());
        for name in [forgotten, read] {
            lock(&reads.0).views.insert(name, ViewEntry::since(long_ago));
        }
        // That is not open: it is asked for all the same.
        assert!(reads.view(read).is_err());
        assert!(!reads.sweep());
        let left: Vec<_> = lock(&reads.0).views.keys().copied().collect();
        assert_eq!(left, [read]);
        reads.end();
        assert!(reads.sweep() && lock(&reads.0).ended);
    }
}
