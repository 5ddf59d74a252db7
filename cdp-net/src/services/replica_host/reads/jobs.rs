//! What takes its time and is asked for from afar: it runs here, and whoever wants to know asks how it stands.

use super::super::lock;
use super::super::seat::Seat;
use super::Lease;
use crate::diff::{self, differences, digests};
use crate::far::{DiffOrder, DigestOrder, JobLine, JobStands, Order, VIEW_BYTES_MAX};
use crate::owner::{PolicyChange, Request};
use crate::reading::not_answered;
use crate::report::{Problem, ProblemClass};
use crate::verify::verify_beside_owner;
use cdp_core::media::{Disk, Storage};
use serde::Serialize;
use serde_json::Value;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that a job has told and nobody has taken: beyond it the job waits. One line may be longer.
const TOLD_MAX: usize = 4 << 20;
/// How long somebody who asks waits for news, at most.
const NEWS_WITHIN: Duration = Duration::from_millis(500);
/// How long the directory's owner may take to answer, and for what takes its time.
const ANSWER: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A job, for its thread and for who asks.
pub(super) struct JobEntry {
    lease: Lease,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What it told, from the byte `taken` on.
    told: Vec<u8>,
    taken: u64,
    done: u64,
    total: u64,
    ended: bool,
    stop: bool,
    forgotten: bool,
}

impl JobEntry {
    /// Begins it, on a thread of its own.
    pub(super) fn start(seat: &Arc<Seat>, order: Order) -> Result<Arc<Self>, Problem> {
        check(&order)?;
        let entry = Arc::new(Self { lease: Lease::new(), state: Mutex::default(), changed: Condvar::new() });
        let (seat, for_thread) = (Arc::clone(seat), Arc::clone(&entry));
        let work = move || {
            let mut ending = Ending { entry: for_thread, line: None };
            let came = ending.entry.carry_out(&seat, order);
            ending.line = Some(came.map_or_else(JobLine::Error, JobLine::Ok));
        };
        std::thread::Builder::new().name("cdp-job".into()).spawn(work).map_err(|error| {
            Problem::new(ProblemClass::Failed, "thread", format!("cannot start a thread for the job: {error}"))
        })?;
        Ok(entry)
    }

    pub(super) fn is_over(&self) -> bool {
        self.lease.is_over()
    }

    /// Nobody asks any more.
    pub(super) fn forget(&self) {
        lock(&self.state).forgotten = true;
        self.changed.notify_all();
    }

    /// How it stands, and what it told from byte `taken` on. Waits a moment for news.
    pub(super) fn poll(&self, taken: u64, stop: bool) -> Result<(JobStands, Vec<u8>), Problem> {
        self.lease.renew();
        let mut state = lock(&self.state);
        state.stop |= stop;
        let known = state.taken..=state.taken + state.told.len() as u64;
        if !known.contains(&taken) {
            let message = format!("byte {taken} was not told, or was taken already");
            return Err(Problem::new(ProblemClass::Usage, "call", message));
        }
        let gone = (taken - state.taken) as usize;
        state.told.drain(..gone);
        state.taken = taken;
        self.changed.notify_all();
        let nothing = |state: &mut State| state.told.is_empty() && !state.ended && !state.forgotten;
        let waited = self.changed.wait_timeout_while(state, NEWS_WITHIN, nothing);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let bytes = state.told[..state.told.len().min(VIEW_BYTES_MAX as usize)].to_vec();
        let ended = state.ended && bytes.len() == state.told.len();
        Ok((JobStands { done: state.done, total: state.total, ended }, bytes))
    }

    /// Whether to go on.
    fn progress(&self, done: u64, total: u64) -> bool {
        let mut state = lock(&self.state);
        (state.done, state.total) = (done, total);
        !state.stop && !state.forgotten
    }

    fn tell(&self, line: &JobLine, ended: bool) {
        // What has a JSON form is all that is told.
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        let full = |state: &mut State| state.told.len() >= TOLD_MAX && !state.forgotten && !state.stop && !ended;
        let state = self.changed.wait_while(lock(&self.state), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if !state.forgotten {
            state.told.extend_from_slice(&bytes);
        }
        state.ended |= ended;
        drop(state);
        self.changed.notify_all();
    }

    fn found(&self, found: &impl Serialize) {
        if let Ok(value) = serde_json::to_value(found) {
            self.tell(&JobLine::Found(value), false);
        }
    }

    fn carry_out(&self, seat: &Arc<Seat>, order: Order) -> Result<Value, Problem> {
        let mut progress = |done, total| self.progress(done, total);
        match order {
            Order::Ask(request) => {
                let mut client = seat.reach()?;
                let patient = matches!(request, Request::Prune { .. } | Request::Compact);
                client.set_patience(if patient { PATIENCE } else { ANSWER });
                client.call(&request).map_err(not_answered)
            }
            Order::Verify => {
                let (dir, key) = seat.place();
                let mut client = seat.reach()?;
                let storage = Disk::open(dir)
                    .map_err(|error| Problem::new(ProblemClass::Failed, "unreadable", error.to_string()))?;
                let storage: Arc<dyn Storage> = Arc::new(storage);
                value(&verify_beside_owner(&storage, &mut client, key, &mut progress)?)
            }
            Order::Diff(DiffOrder { from, to, disk }) => {
                let (from, to) = (seat.reads.view(from)?, seat.reads.view(to)?);
                let mut found = |difference: diff::Difference| self.found(&difference);
                let (one, two) = (from.moment()?, to.moment()?);
                value(&differences(&one, &two, disk.as_deref(), &mut progress, &mut found)?)
            }
            Order::Digest(DigestOrder { view, of, disk }) => {
                let view = seat.reads.view(view)?;
                let at = &view.document().at;
                let made = digests(view.moment()?.as_ref(), (of, at), disk.as_deref(), &mut progress)?;
                made.iter().for_each(|digest| self.found(digest));
                value(&())
            }
        }
    }
}

fn value(document: &impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(document).map_err(|error| {
        Problem::new(ProblemClass::Failed, "internal", format!("the result has no JSON form: {error}"))
    })
}

/// Says the last line whatever happens.
struct Ending {
    entry: Arc<JobEntry>,
    line: Option<JobLine>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let met = || Problem::new(ProblemClass::Failed, "internal", "the replica host met an error of its own");
        let line = self.line.take().unwrap_or_else(|| JobLine::Error(met()));
        self.entry.tell(&line, true);
    }
}

/// Refuses what is not asked from afar.
fn check(order: &Order) -> Result<(), Problem> {
    let Order::Ask(request) = order else { return Ok(()) };
    let refused =
        |message: &str, hint: &str| Err(Problem::new(ProblemClass::Refused, "not-from-afar", message).hint(hint));
    match request {
        Request::Policy { change: PolicyChange { quota, reserve_bytes, .. } }
            if quota.is_some() || reserve_bytes.is_some() =>
        {
            refused("quota and reserve are the replica host's own", "change them there, on the replica's directory")
        }
        Request::AddDisk { .. } | Request::RemoveDisk { .. } | Request::ResizeDisk { .. } => {
            refused("disks are changed where they are", "use the directory of `--state` of `cdp protect`")
        }
        Request::Pin { .. } | Request::PinAll | Request::Unpin { .. } | Request::OpenSession { .. } => {
            refused("what is read from afar is held by being open", "open a moment instead")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Arc<JobEntry> {
        Arc::new(JobEntry { lease: Lease::new(), state: Mutex::default(), changed: Condvar::new() })
    }

    fn line(bytes: usize) -> Value {
        Value::String("x".repeat(bytes))
    }

    #[test]
    fn what_is_told_is_kept_until_it_is_taken_and_the_job_waits_beyond_the_bound() {
        let entry = entry();
        let telling = Arc::clone(&entry);
        let count = 24;
        let thread = std::thread::spawn(move || {
            (0..count).for_each(|_| telling.found(&line(1 << 20)));
            drop(Ending { entry: telling, line: Some(JobLine::Ok(line(0))) });
        });
        let (mut taken, mut text) = (0, Vec::new());
        loop {
            let (stands, bytes) = entry.poll(taken, false).unwrap();
            assert!(lock(&entry.state).told.len() <= TOLD_MAX + (1 << 20) + 64);
            // The same is told again, and more, to who asks again.
            assert!(entry.poll(taken, false).unwrap().1.starts_with(&bytes) && bytes.len() <= VIEW_BYTES_MAX as usize);
            taken += bytes.len() as u64;
            text.extend(bytes);
            if stands.ended {
                break;
            }
        }
        thread.join().unwrap();
        assert_eq!(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), count + 1);
        assert!(entry.poll(taken, false).unwrap().1.is_empty());
        for wrong in [0, taken - 1, taken + 1] {
            assert_eq!(entry.poll(wrong, false).unwrap_err().code, "call", "{wrong}");
        }
    }

    #[test]
    fn a_job_is_told_to_stop_and_one_that_is_forgotten_waits_for_nobody() {
        let entry = entry();
        assert!(entry.progress(1, 2));
        let (stands, _) = entry.poll(0, true).unwrap();
        assert_eq!((stands.done, stands.total, stands.ended), (1, 2, false));
        assert!(!entry.progress(2, 2));
        let other = self::entry();
        other.forget();
        (0..8).for_each(|_| other.found(&line(1 << 20)));
        assert!(lock(&other.state).told.is_empty() && !other.progress(0, 0));
    }

    #[test]
    fn a_job_that_panics_says_that_it_has_ended() {
        let entry = entry();
        drop(Ending { entry: Arc::clone(&entry), line: None });
        let (stands, bytes) = entry.poll(0, false).unwrap();
        assert!(stands.ended && String::from_utf8(bytes).unwrap().contains("internal"));
    }
}
