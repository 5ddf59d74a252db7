//! Ending a protection: drain, close the log as clean if everything is safe, and let go of everything in order.

use super::engine::Engine;
use super::open::ProtectError;
use super::{Protection, Shared};
use crate::far::{Close, Closed};
use crate::report::Lack;
use crate::threads::Threads;
use cdp_core::capture::{Closing, Drained, Health};
use cdp_core::types::Lsn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at whether everything is through.
const LOOK: Duration = Duration::from_millis(5);
/// How long the log's last word and the last manifest may take at least, however short the drain.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

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
}

impl Protection {
    /// Ends the protection; guests' connections should have ended before. Waits at most `patience` until everything is
    /// durable and the replica's files say that the stop was clean, or ten seconds for the latter where the replica answers; `hurry`
    /// ends the wait early.
    pub fn stop(&self, patience: Duration, hurry: &dyn Fn() -> bool) -> Summary {
        let (engine, far) = (&self.shared.engine, &self.shared.far);
        far.patience(patience);
        // What ends asks for nothing more.
        let lacked = far.sums().lack;
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.stop_all();
        let deadline = Instant::now() + patience;
        if engine.look(|filter, _| filter.request_drain()).is_none() {
            // Somebody hangs in the filter: nothing drains, and the log is gone.
            return self.summary(false, false, lacked);
        }
        let drained = loop {
            // A replica that does not answer drains nothing: the deadline decides.
            far.sync();
            match engine.with(|filter, _| filter.drained()) {
                Drained::Safe => break true,
                Drained::InDoubt => break false,
                Drained::NotYet => {}
            }
            // A first copy that was told to end is begun anew at the next start: there is nothing to wait for.
            let seeding = engine.with(|filter, _| filter.state()) == cdp_core::capture::State::Seeding;
            if seeding || Instant::now() > deadline || hurry() || self.shared.failure().is_some() {
                break false;
            }
            std::thread::sleep(LOOK);
        };
        // What a drain left of its time is there for the rest.
        let least = Instant::now() + CLOSE_PATIENCE;
        let over = || Instant::now() > least && (Instant::now() > deadline || hurry());
        let facts = self.shared.sources.facts();
        let closing = engine.with(|filter, _| filter.close(facts));
        let clean = drained && closing == Closing::Clean && self.wait_for_log(&over);
        let manifest_stored = self.close_replica(clean, &over);
        self.summary(clean && manifest_stored, manifest_stored, lacked)
    }

    fn summary(&self, drained: bool, manifest_stored: bool, lacked: Option<Lack>) -> Summary {
        let (status, sums) = (self.shared.engine.status(), self.shared.far.sums());
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
        }
    }

    /// The log says `clean` when its last write came back.
    fn wait_for_log(&self, over: &dyn Fn() -> bool) -> bool {
        while !self.shared.engine.with(|filter, _| filter.is_closed()) {
            if over() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
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
            self.0.with(|filter, now| filter.watchdog(now, &Health { ended: true, ..Health::default() }));
        }
    }
}

/// The threads of a protection: dropping this ends them, whatever started them and however far it came.
pub(super) struct Ending {
    shared: Arc<Shared>,
    threads: Threads,
}

impl Ending {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let threads = Threads::new(Arc::clone(&shared.failure));
        Self { shared, threads }
    }

    pub(super) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ProtectError> {
        let engine = Arc::clone(&self.shared.engine);
        let watched = move || {
            let _watch = Watch(engine);
            run();
        };
        self.threads.spawn(name, watched).map_err(|source| ProtectError::System { what: "start a thread", source })
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // The other side may be out of reach: it lets go of everything as it is.
        self.shared.stop_here();
        // Without anybody who orders copies their thread ends.
        *self.shared.copies.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.engine.end();
        self.shared.far.end();
        self.threads.join();
    }
}
