//! Ending a protection: drain, close the log as clean if everything is safe, and let go of everything in order.
//!
//! Nobody who ends one waits for a thread that hangs, for ever: after [`END_PATIENCE`] it is left, and named. What it may still change
//! once it comes back stays owned until then: the next start in the directory of the state is refused as long, and compares.

use super::engine::Engine;
use super::open::ProtectError;
use super::{Protection, Shared};
use crate::far::{Close, Closed};
use crate::owner::Owner;
use crate::report::Lack;
use crate::threads::Threads;
use cdp_core::capture::{Closing, Drained, Health, State, Status};
use cdp_core::types::Lsn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at whether everything is through.
const LOOK: Duration = Duration::from_millis(5);
/// How long the log's last word and the last manifest may take at least, however short the drain.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How long threads are waited for that are to end: those that wait for a disk may take that.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Named in place of threads that cannot end before somebody in the filter comes back.
const IN_FILTER: &str = "the filter";

/// How a protection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Everything is durable; else the rest is left in the activity log.
    pub drained: bool,
    /// The replica's manifest says how it ended; else the next start takes it for a crash.
    pub manifest_stored: bool,
    /// What would have to be free on the replica's media for the rest, if room was lacking.
    pub lacks: Option<Lack>,
    /// The last LSN that was given.
    pub lsn: Lsn,
    /// The last durable one.
    pub durable: Lsn,
    /// Bytes that guests wrote.
    pub written_bytes: u64,
    /// Bytes that the journal stored for them.
    pub stored_bytes: u64,
    /// Bytes that the next start reads again.
    pub hot_bytes: u64,
    /// Points that can be restored.
    pub points: u64,
    /// How long it lasted, in seconds.
    pub seconds: u64,
    /// Threads that hang and were left as they are; `the filter`: one that hangs in that. As long as they do the directory of the
    /// state is not free.
    pub hanging: Vec<String>,
}

impl Protection {
    /// Ends the protection; guests' connections should have ended before. Waits at most `patience` until everything is
    /// durable and the replica's files say that the stop was clean, or ten seconds for the latter where the replica answers; `hurry`
    /// ends the wait early. Whatever hangs on this side, it takes half a minute longer at the very most.
    pub fn stop(&self, patience: Duration, hurry: &dyn Fn() -> bool) -> Summary {
        let (engine, far) = (&self.shared.engine, &self.shared.far);
        let deadline = Instant::now() + patience;
        let left = || if hurry() { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
        far.patience(left());
        self.shared.draining.store(true, Ordering::Relaxed);
        let until = deadline.max(Instant::now() + CLOSE_PATIENCE);
        let asked = engine.look_until(until, |filter, _| filter.request_drain());
        if asked.is_none() {
            // Nor does anybody at the replica's side wait for one that hangs in the filter.
            engine.end_is_near();
        }
        // What ends asks for nothing more.
        let lacked = if hurry() { None } else { far.sums().lack };
        match hurry() {
            // A replica that cannot be reached would be waited for.
            true => self.shared.stop_here(),
            false => self.shared.stop_all(),
        }
        let drained = asked.and_then(|()| self.drain(deadline, hurry));
        // What a drain left of its time is there for the rest.
        far.patience(left());
        let least = Instant::now() + CLOSE_PATIENCE;
        let over = || Instant::now() > least && (Instant::now() > deadline || hurry());
        let facts = self.shared.sources.facts();
        let closing = drained.and_then(|_| engine.look_until(least, |filter, _| filter.close(facts)));
        let clean = drained == Some(true) && closing == Some(Closing::Clean) && self.wait_for_log(&over);
        let mut manifest_stored = false;
        let status = match closing {
            Some(_) => {
                manifest_stored = self.close_replica(clean, &over);
                engine.status()
            }
            // Somebody hangs in the filter: nothing drains, and the log is gone, or as he left it.
            None => {
                engine.end_is_near();
                engine.last_status()
            }
        };
        let summary = self.summary(&status, clean && manifest_stored, manifest_stored, lacked);
        Summary { hanging: self.end(), ..summary }
    }

    /// Whether everything is durable in time; none where somebody hangs in the filter.
    fn drain(&self, deadline: Instant, hurry: &dyn Fn() -> bool) -> Option<bool> {
        loop {
            if !hurry() {
                // A replica that does not answer drains nothing: the deadline decides.
                self.shared.far.sync();
            }
            let until = deadline.max(Instant::now() + CLOSE_PATIENCE);
            let looked = self.shared.engine.look_until(until, |filter, _| (filter.drained(), filter.state()));
            let (drained, state) = looked?;
            match drained {
                Drained::Safe => return Some(true),
                Drained::InDoubt => return Some(false),
                Drained::NotYet => {}
            }
            // A first copy that was told to end is begun anew at the next start: there is nothing to wait for.
            let seeding = state == State::Seeding;
            if seeding || Instant::now() > deadline || hurry() || self.shared.failure().is_some() {
                return Some(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends its threads; gives the names of those that hang. Once is enough.
    fn end(&self) -> Vec<String> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).end()
    }

    fn summary(&self, status: &Status, drained: bool, manifest_stored: bool, lacked: Option<Lack>) -> Summary {
        let sums = self.shared.far.sums();
        Summary {
            drained,
            manifest_stored,
            lacks: if drained { None } else { sums.lack.max(lacked) },
            lsn: status.lsn,
            durable: status.durable,
            written_bytes: status.counters.bytes_recorded,
            stored_bytes: sums.stored_bytes,
            hot_bytes: if drained { 0 } else { status.hot_bytes },
            points: sums.points,
            seconds: self.started.elapsed().as_secs(),
            hanging: Vec::new(),
        }
    }

    /// The log says `clean` when its last write came back.
    fn wait_for_log(&self, over: &dyn Fn() -> bool) -> bool {
        loop {
            let until = Instant::now() + CLOSE_PATIENCE;
            match self.shared.engine.look_until(until, |filter, _| filter.is_closed()) {
                Some(true) => return true,
                Some(false) if !over() => std::thread::sleep(LOOK),
                Some(false) | None => return false,
            }
        }
    }

    /// Has the replica sealed; whether its manifest says so durably.
    fn close_replica(&self, clean: bool, over: &dyn Fn() -> bool) -> bool {
        loop {
            match self.shared.far.close(&Close { clean }) {
                Closed::Stored => break true,
                Closed::Failed => break false,
                Closed::NotYet if over() => break false,
                Closed::NotYet => {}
            }
        }
    }
}

/// Takes replication out of the guest's path when the thread that has this ends by a panic: what it did, nobody does any more.
struct Watch(Arc<Engine>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let health = Health { ended: true, ..Health::default() };
            let _ = self.0.with_before_end(|filter, now| filter.watchdog(now, &health));
        }
    }
}

/// The threads of a protection: dropping this ends them, whatever started them and however far it came.
pub(super) struct Ending {
    shared: Arc<Shared>,
    threads: Threads,
    /// The right to the directory of the state. Each of them has it, too: nobody else begins there before the last one is gone.
    owner: Option<Arc<Owner>>,
    tried: bool,
}

impl Ending {
    pub(super) fn new(shared: Arc<Shared>, owner: Option<Arc<Owner>>) -> Self {
        let threads = Threads::new(Arc::clone(&shared.failure));
        Self { shared, threads, owner, tried: false }
    }

    pub(super) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ProtectError> {
        let (engine, owner) = (Arc::clone(&self.shared.engine), self.owner.clone());
        let watched = move || {
            let _owner = owner;
            let _watch = Watch(engine);
            run();
        };
        self.threads.spawn(name, watched).map_err(|source| ProtectError::System { what: "start a thread", source })
    }

    /// Ends everything; gives the names of the threads that hang.
    fn end(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.tried, true) {
            return self.threads.join_within(Duration::ZERO);
        }
        // The other side may be out of reach: it lets go of everything as it is.
        self.shared.stop_here();
        // Without anybody who orders copies their thread ends.
        *self.shared.copies.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let ended = self.shared.engine.end();
        self.shared.far.end();
        let hanging = self.threads.join_within(END_PATIENCE);
        self.owner = None;
        match hanging.is_empty() || ended {
            true => hanging,
            // All of them wait for him, or for work that only he can end.
            false => vec![IN_FILTER.to_owned()],
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end();
    }
}
