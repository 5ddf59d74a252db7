//! The activity log's file: written in place and synced by a thread of its own, so that a batch is one wait.

use super::engine::Engine;
use cdp_core::capture::{Failed, LogWrite};
use cdp_core::media::{File, MediaError, MediaErrorKind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Carries out log writes until the queue is closed.
pub(super) fn run(file: &Arc<dyn File>, queue: &Receiver<LogWrite>, engine: &Engine) {
    for write in queue {
        let result = carry_out(file.as_ref(), &write).map_err(|error| Failed { errno: errno(&error) });
        let known = engine.with(|filter, now| filter.log_written(now, write.token, result));
        debug_assert!(known.is_ok(), "a log write is answered once");
    }
}

fn errno(error: &MediaError) -> i32 {
    match error.kind {
        MediaErrorKind::NoSpace => libc::ENOSPC,
        MediaErrorKind::ReadOnly => libc::EROFS,
        _ => libc::EIO,
    }
}

/// Writes and syncs.
pub(super) fn carry_out(file: &dyn File, write: &LogWrite) -> Result<(), MediaError> {
    write.writes.iter().try_for_each(|(offset, bytes)| file.write_all_at(*offset, bytes))?;
    file.sync()
}
