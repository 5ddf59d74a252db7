//! Merging the journal's index in the background, so that a view stays quick to open however long the history is.
//!
//! The thread wakes when a manifest became durable, asks the writer what is to be merged, and does it a piece at a time, slower
//! than any disk: nothing waits for it. It holds no lock while it reads or writes. A merge that fails is left alone for a while:
//! without it views are slower, and nothing else.

use super::PumpStore;
use cdp_core::journal::{IndexMerge, IndexMergeError, IndexMergeTask, Reader, RunInfo, Snapshot};
use cdp_core::media::Storage;
use cdp_core::replica::JOURNAL_DIRECTORY;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Bytes that are read and written in one piece, about.
const PIECE: u64 = 1 << 20;
/// Bytes that are read and written in a second, at most: three levels keep up with a gigabyte of small writes a second.
const PER_SECOND: u64 = 64 << 20;
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
}

/// Why merging stops for now.
enum Pause {
    /// Nothing is to be done.
    Done,
    /// It failed: later.
    Failed,
    /// The protector ends.
    Ended,
}

impl Levels {
    /// Merges what there is to merge at each word that a manifest is durable, until nobody sends any.
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
            not_before = match self.merge_all() {
                Pause::Done => None,
                Pause::Failed => Some(Instant::now() + RETRY),
                Pause::Ended => return,
            };
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn merge_all(&self) -> Pause {
        loop {
            let next = |writer: &mut cdp_core::journal::Writer| Some((writer.next_index_merge()?, writer.snapshot()));
            let (task, snapshot) = match self.pump.ask(next, PATIENCE) {
                Ok(Some(found)) => found,
                Ok(None) => return Pause::Done,
                Err(RecvTimeoutError::Timeout) => return Pause::Failed,
                Err(RecvTimeoutError::Disconnected) => return Pause::Ended,
            };
            match self.merge(task, &snapshot) {
                Ok(true) => {}
                Ok(false) => return Pause::Ended,
                // Taken away from under it by retention, without room, or damaged: the footers say the same.
                Err(_) => return Pause::Failed,
            }
        }
    }

    /// Whether it came to its end.
    fn merge(&self, task: IndexMergeTask, snapshot: &Snapshot) -> Result<bool, IndexMergeError> {
        // One for each merge: what was merged is let go of.
        let reader = Arc::new(Reader::new(Arc::clone(&self.storage), JOURNAL_DIRECTORY, CACHE_BYTES));
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
