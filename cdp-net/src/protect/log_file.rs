//! The activity log's file: written in place and synced by a thread of its own, so that a batch is one wait; removed by another
//! one when that takes too long.

use super::engine::Engine;
use super::open::{ACTIVITY_LOG, open_log};
use bytes::Bytes;
use cdp_core::capture::{Failed, LogWrite};
use cdp_core::media::{File, MediaError, MediaErrorKind, Storage};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Carries out log writes until the queue is closed. `file` is what was opened at the start.
pub(super) fn run_log_writes(storage: &dyn Storage, file: Arc<dyn File>, queue: &Receiver<LogWrite>, engine: &Engine) {
    let mut file = file;
    for write in queue {
        let LogWrite { token, begins, writes } = write;
        let result = carry_out(storage, &mut file, begins, &writes).map_err(|error| Failed { errno: errno(&error) });
        let known = engine.with(|filter, now| filter.log_written(now, token, result));
        debug_assert!(known.is_ok(), "a log write is answered once");
    }
}

/// Removes the file as often as it is asked for, until the queue is closed. Nothing is synced: guests wait for this, and a
/// kill loses no name. That the log is not to be believed is kept at the replica for the case that power is lost.
pub(super) fn run_log_removals(storage: &dyn Storage, queue: &Receiver<()>, engine: &Engine) {
    for () in queue {
        // One that cannot be removed is written on; its medium takes nothing else either.
        let _ = super::make::remove(storage, ACTIVITY_LOG);
        let known = engine.with(|filter, now| filter.log_removed(now));
        debug_assert!(known.is_ok(), "a removal is answered once");
    }
}

/// Writes and syncs. What was to be written before a removal and comes to it after goes where nobody finds it: it says nothing of
/// what runs since.
fn carry_out(
    storage: &dyn Storage,
    file: &mut Arc<dyn File>,
    begins: bool,
    writes: &[(u64, Bytes)],
) -> Result<(), MediaError> {
    if begins {
        *file = open_log(storage)?;
    }
    writes.iter().try_for_each(|(offset, bytes)| file.write_all_at(*offset, bytes))?;
    file.sync()
}

fn errno(error: &MediaError) -> i32 {
    match error.kind {
        MediaErrorKind::NoSpace => libc::ENOSPC,
        MediaErrorKind::ReadOnly => libc::EROFS,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::media::Memory;

    #[test]
    fn a_write_that_was_queued_before_a_removal_makes_no_log() {
        let storage = Memory::new();
        let mut file = open_log(&storage).unwrap();
        let writes = [(0, vec![7; 512].into())];
        carry_out(&storage, &mut file, false, &writes).unwrap();
        assert_eq!(storage.length(ACTIVITY_LOG).unwrap(), 512);
        super::super::make::remove(&storage, ACTIVITY_LOG).unwrap();
        carry_out(&storage, &mut file, false, &writes).unwrap();
        assert!(storage.length(ACTIVITY_LOG).is_err(), "a header that says too little would be believed");
        carry_out(&storage, &mut file, true, &writes).unwrap();
        assert_eq!(storage.length(ACTIVITY_LOG).unwrap(), 512);
    }
}
