//! The activity log's file: written in place and synced by a thread of its own, so that a batch is one wait; removed by another
//! one when that takes too long.

use super::engine::Engine;
use super::open::{ACTIVITY_LOG, open_log};
use cdp_core::capture::{Failed, LogWrite};
use cdp_core::media::{File, MediaError, MediaErrorKind, Storage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

/// The log's file, for the thread that writes it and the one that removes it.
pub(super) struct LogFile {
    storage: Arc<dyn Storage>,
    /// What is open has no name any more: the next write begins a new file.
    removed: AtomicBool,
}

impl LogFile {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, removed: AtomicBool::new(false) }
    }

    /// Carries out log writes until the queue is closed. `file` is what was opened at the start.
    pub(super) fn run_writes(&self, mut file: Arc<dyn File>, queue: &Receiver<LogWrite>, engine: &Engine) {
        for write in queue {
            let result = self.carry_out(&mut file, &write).map_err(|error| Failed { errno: errno(&error) });
            let known = engine.with(|filter, now| filter.log_written(now, write.token, result));
            debug_assert!(known.is_ok(), "a log write is answered once");
        }
    }

    /// Removes the file as often as it is asked for, until the queue is closed. Nothing is synced: guests wait for this, and a
    /// kill loses no name. That the log is not to be believed is kept at the replica for the case that power is lost.
    pub(super) fn run_removals(&self, queue: &Receiver<()>, engine: &Engine) {
        for () in queue {
            // One that cannot be removed is written on; its medium takes nothing else either.
            if super::make::remove(self.storage.as_ref(), ACTIVITY_LOG).is_ok() {
                self.removed.store(true, Ordering::Release);
            }
            let known = engine.with(|filter, now| filter.log_removed(now));
            debug_assert!(known.is_ok(), "a removal is answered once");
        }
    }

    /// Writes and syncs.
    fn carry_out(&self, file: &mut Arc<dyn File>, write: &LogWrite) -> Result<(), MediaError> {
        // Nothing is written while a removal is under way.
        if self.removed.load(Ordering::Acquire) {
            *file = open_log(self.storage.as_ref())?;
            self.removed.store(false, Ordering::Release);
        }
        write.writes.iter().try_for_each(|(offset, bytes)| file.write_all_at(*offset, bytes))?;
        file.sync()
    }
}

fn errno(error: &MediaError) -> i32 {
    match error.kind {
        MediaErrorKind::NoSpace => libc::ENOSPC,
        MediaErrorKind::ReadOnly => libc::EROFS,
        _ => libc::EIO,
    }
}
