//! Merging the journal's index in the background, so that a view stays quick to open however long the history is, and emptying
//! the footers that a run holds the indexes of.
//!
//! The thread wakes when a manifest became durable, asks the writer what is to be done, and does it a piece at a time, slower
//! than any disk: nothing waits for it. It holds no lock while it reads or writes. What cannot be read is left out or made
//! again, as the writer says; whatever else fails is left alone for a while: without it views are slower, and nothing else. The
//! first failure is told.

use super::store::PumpStore;
use crate::failure::Failure;
use cdp_core::journal::{
    EmptyTask, IndexEmptying, IndexMerge, IndexMergeError, IndexMergeTask, ReadError, Reader, RunInfo, Snapshot,
};
use cdp_core::media::Storage;
use cdp_core::replica::JOURNAL_DIRECTORY;
use cdp_core::trust::Keyring;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Bytes that are read and written in one piece, about.
const PIECE: u64 = 1 << 20;
/// Bytes that are read and written in a second, at most: three levels keep up with a gigabyte of small writes a second.
const PER_SECOND: u64 = 64 << 20;
/// Between two footers that are emptied: each is a sync.
const EMPTYING_PAUSE: Duration = Duration::from_millis(50);
/// How long the writer may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it is left alone after a failure.
const RETRY: Duration = Duration::from_secs(60);
/// Memory for what a merge reads more than once.
const CACHE_BYTES: u64 = 8 << 20;

/// What the thread works with.
pub(super) struct Levels {
    pub(super) pump: Arc<PumpStore>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) stop: Arc<AtomicBool>,
    /// What went wrong, for whoever tells people.
    pub(super) trouble: Arc<Failure>,
}

/// What is next.
enum Work {
    Empty(EmptyTask),
    Merge(IndexMergeTask, Snapshot, Arc<Keyring>),
}

/// Why the work stops for now.
enum Pause {
    /// Nothing is to be done.
    Done,
    /// It failed: later.
    Failed,
    /// The keeper ends.
    Ended,
}

impl Levels {
    /// Does what there is to do at each word that a manifest is durable, until nobody sends any.
    pub(super) fn run(&self, changed: &Receiver<()>) {
        let mut not_before: Option<Instant> = None;
        loop {
            let wait = not_before.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            match changed.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) => return,
                // What failed is not tried again before its time, whatever happens in between.
                Ok(()) if not_before.is_some_and(|at| at > Instant::now()) => continue,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            not_before = match self.work() {
                Pause::Done => None,
                Pause::Failed => Some(Instant::now() + RETRY),
                Pause::Ended => return,
            };
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn work(&self) -> Pause {
        // Room that is given back comes first: then there are never more footers to be emptied than a run has.
        let next = |writer: &mut cdp_core::journal::Writer| match writer.next_emptying() {
            Some(task) => Some(Work::Empty(task)),
            None => Some(Work::Merge(writer.next_index_merge()?, writer.snapshot(), Arc::clone(writer.keys()))),
        };
        loop {
            let went = match self.pump.ask(next, PATIENCE) {
                Ok(Some(Work::Empty(task))) => self.empty(task),
                Ok(Some(Work::Merge(task, snapshot, keys))) => match self.merge(task, &snapshot, keys) {
                    Err(error) => self.failed(error),
                    other => other.map_err(drop),
                },
                Ok(None) => return Pause::Done,
                Err(RecvTimeoutError::Timeout) => Err(()),
                Err(RecvTimeoutError::Disconnected) => return Pause::Ended,
            };
            match went {
                Ok(true) => {}
                Ok(false) => return Pause::Ended,
                Err(()) => return Pause::Failed,
            }
        }
    }

    /// Whether another merge may go better at once: what could not be read is left out or made again.
    fn failed(&self, error: IndexMergeError) -> Result<bool, ()> {
        match &error {
            // Retention took it away from under the merge; and lack of room is told by those who miss it.
            IndexMergeError::Gone { .. } => return Err(()),
            IndexMergeError::Media(error) if error.is_no_space() => return Err(()),
            _ => self.tell(&error),
        }
        match self.pump.ask(move |writer| writer.merge_failed(&error), PATIENCE) {
            Ok(true) => Ok(true),
            Ok(false) | Err(RecvTimeoutError::Timeout) => Err(()),
            Err(RecvTimeoutError::Disconnected) => Ok(false),
        }
    }

    fn tell(&self, error: &dyn Display) {
        self.trouble.set(&error);
    }

    /// Whether it came to its end, or the run is left as it is: nobody else waits for a footer that cannot be emptied.
    fn empty(&self, task: EmptyTask) -> Result<bool, ()> {
        let run = task.run;
        match self.empty_all(task) {
            Ok(done) => Ok(done),
            Err(error) => {
                self.tell(&error);
                match self.pump.ask(move |writer| writer.emptying_failed(run), PATIENCE) {
                    Ok(()) => Ok(true),
                    Err(RecvTimeoutError::Timeout) => Err(()),
                    Err(RecvTimeoutError::Disconnected) => Ok(false),
                }
            }
        }
    }

    fn empty_all(&self, task: EmptyTask) -> Result<bool, ReadError> {
        let reader = Arc::new(Reader::new(Arc::clone(&self.storage), JOURNAL_DIRECTORY, CACHE_BYTES));
        let mut emptying = IndexEmptying::new(&reader, task);
        while !self.is_over() {
            if emptying.step()? {
                let run = emptying.run();
                return Ok(self.pump.ask(move |writer| writer.emptied(run), PATIENCE).is_ok());
            }
            std::thread::sleep(EMPTYING_PAUSE);
        }
        Ok(false)
    }

    /// Whether it came to its end.
    fn merge(&self, task: IndexMergeTask, snapshot: &Snapshot, keys: Arc<Keyring>) -> Result<bool, IndexMergeError> {
        // One for each merge: what was merged is let go of.
        let reader = Reader::new(Arc::clone(&self.storage), JOURNAL_DIRECTORY, CACHE_BYTES);
        let reader = Arc::new(reader.with_keys(keys));
        let mut merge = IndexMerge::new(&reader, snapshot, task)?;
        let run = loop {
            if self.is_over() {
                merge.discard();
                return Ok(false);
            }
            match merge.step(PIECE) {
                Ok(Some(run)) => break run,
                Ok(None) => std::thread::sleep(Duration::from_nanos(PIECE * 1_000_000_000 / PER_SECOND)),
                Err(error) => {
                    merge.discard();
                    return Err(error);
                }
            }
        };
        Ok(self.publish(merge, run))
    }

    /// Has the run named. Where it is not known whether it is, its file stays: the next start knows.
    fn publish(&self, merge: IndexMerge, run: RunInfo) -> bool {
        match self.pump.ask(move |writer| writer.publish_run(run), PATIENCE) {
            Ok(_) => true,
            Err(RecvTimeoutError::Disconnected) => {
                merge.discard();
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}
