//! Ending a protection: drain, close the log as clean if everything is safe, and let go of everything in order.

use super::open::ProtectError;
use super::pump::Message;
use super::{Protector, Shared, wall_seconds};
use crate::report::Lack;
use cdp_core::capture::{Closing, Drained, Status};
use cdp_core::journal::{Writer, WriterState};
use cdp_core::types::Lsn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Between two looks at whether everything is through.
const LOOK: Duration = Duration::from_millis(5);
/// How long the log's last word and the last manifest may take at least, however short the drain.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the pump may take for an answer before the time is looked at again.
const ASK_PATIENCE: Duration = Duration::from_secs(1);

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

impl Protector {
    /// Ends the protection; guests' connections should have ended before. Waits at most `patience` until everything is
    /// durable and the replica's files say that the stop was clean, or ten seconds for the latter; `hurry` ends the wait early.
    pub fn stop(self, patience: Duration, hurry: &dyn Fn() -> bool) -> Summary {
        // What ends asks for nothing more.
        let lacked = self.lacks_at_end();
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.stop_all();
        let deadline = Instant::now() + patience;
        let (engine, pump) = (&self.shared.engine, &self.shared.pump);
        engine.with(|filter, _| filter.request_drain());
        let drained = loop {
            // A pump that does not answer drains nothing: the deadline decides.
            let _ = pump.ask(Writer::request_sync, ASK_PATIENCE);
            match engine.with(|filter, _| filter.drained()) {
                Drained::Safe => break true,
                Drained::InDoubt => break false,
                Drained::NotYet => {}
            }
            // A first copy that was told to end is begun anew at the next start: there is nothing to wait for.
            let seeding = engine.with(|filter, _| filter.state()) == cdp_core::capture::State::Seeding;
            if seeding || Instant::now() > deadline || hurry() || self.shared.failure.get().is_some() {
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
        let stored = self.close_journal(clean, &over) && self.owner.is_in_place();
        let status = engine.with(|filter, now| filter.status(now));
        let lacks = if clean && stored { None } else { self.lacks_at_end().max(lacked) };
        self.summary(clean, stored, lacks, &status)
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

    /// Seals the journal; whether its manifest says so durably.
    fn close_journal(&self, clean: bool, over: &dyn Fn() -> bool) -> bool {
        let (pump, host) = (&self.shared.pump, &self.shared.host);
        // What became durable while it was waited for, too.
        host.arrive();
        let write_down = host.write_down(host.elapsed_ms());
        pump.send(Message::Call(Box::new(move |writer| {
            // In the same manifest: the next owner counts on from here, however short this run was.
            writer.edit(|manifest| write_down(&mut manifest.retention));
            writer.close(clean);
        })));
        loop {
            match pump.ask(|writer| writer.state(), ASK_PATIENCE) {
                // The pump ends when its writer is closed, or by a failure.
                Err(RecvTimeoutError::Disconnected) => break self.shared.closed.load(Ordering::Acquire),
                Ok(WriterState::Closed) => break true,
                Ok(WriterState::Failed(_)) => break false,
                _ if over() => break false,
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    /// What the journal, or the first copy, waits for.
    fn lacks_at_end(&self) -> Option<Lack> {
        let of_journal = self.shared.pump.ask(|writer| writer.lacks(), CLOSE_PATIENCE).ok().flatten();
        let needed_bytes = of_journal.max(self.shared.progress.lack.get())?;
        let free_bytes = self.shared.host.replica().storage().free_bytes().ok()?;
        Some(Lack { needed_bytes, free_bytes })
    }

    fn summary(self, clean: bool, manifest_stored: bool, lacks: Option<Lack>, status: &Status) -> Summary {
        let drained = clean && manifest_stored;
        let replica = self.shared.host.replica();
        let points = replica.catalogue().trunk().map_or(0, |branch| branch.points().len() as u64);
        drop(replica);
        Summary {
            drained,
            manifest_stored,
            lacks,
            lsn: status.lsn,
            durable: status.durable,
            written_bytes: status.counters.bytes_recorded,
            stored_bytes: self.shared.stored.bytes(),
            hot_bytes: if drained { 0 } else { status.hot_bytes },
            points,
            seconds: wall_seconds(self.started),
        }
    }
}

/// The threads of a protector: dropping this ends them, whatever started them and however far it came.
pub(super) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, handles: Vec::new() }
    }

    pub(super) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ProtectError> {
        let failure = Arc::clone(&self.shared.failure);
        let told = name.to_owned();
        let contained = move || {
            // A thread that panics takes its part of the protection along: that is told, and the guest goes on.
            if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                failure.set(&format!("the thread {told} ended by a panic"));
            }
        };
        let failed = |source| ProtectError::System { what: "start a thread", source };
        self.handles.push(Builder::new().name(name.to_owned()).spawn(contained).map_err(failed)?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.host.set_live(None);
        self.shared.stop_all();
        // Without anybody who orders copies their thread ends.
        *self.shared.copies.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.shared.engine.end();
        // The pump waits for its own queue, which the writer's driver and edits may still hold: it is told.
        let _ = self.shared.pump.send(Message::End);
        for handle in self.handles.drain(..) {
            // Panics are contained inside: there is nothing to hear.
            let _ = handle.join();
        }
    }
}
