//! The activity log's file: written in place and synced by a thread of its own, so that a batch is one wait; removed by another
//! one when that takes too long.

use super::engine::Engine;
use super::watch::Inbox;
use bytes::Bytes;
use cdp_core::capture::{Failed, LogContents, LogWrite};
use cdp_core::journal;
use cdp_core::media::{File, MediaError, MediaErrorKind, Storage};
use cdp_core::types::Lsn;
use std::sync::Arc;

/// The activity log's file inside the directory of the filter's state.
pub const ACTIVITY_LOG: &str = "state/activity.log";

/// The most bytes of an activity log that are read: 64 disks of a PiB have fewer.
pub const LOG_BYTES_MAX: u64 = 4 << 30;

/// Whether nothing of ours is there: no file, or one that a log cannot be.
fn is_no_log(error: &MediaError) -> bool {
    matches!(error.kind, MediaErrorKind::NotFound | MediaErrorKind::NotAFile)
}

/// What the activity log says, whosever it is; none where there is none, or it is damaged.
pub(super) fn read_log(storage: &dyn Storage) -> Result<Option<LogContents>, MediaError> {
    let file = match storage.open(ACTIVITY_LOG, false) {
        Err(error) if is_no_log(&error) => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; file.len()?.min(LOG_BYTES_MAX) as usize];
    if file.read_exact_at(0, &mut bytes).is_err() {
        return Ok(None);
    }
    Ok(LogContents::read_any(&bytes).ok())
}

/// Up to where the journal was durable when the activity log in the replica's own directory was last written: the witness for a last
/// frame that was acknowledged and is damaged, which by itself looks like one that was never whole. Asked before the journal is looked at.
pub(crate) fn witness(storage: &dyn Storage) -> Option<Lsn> {
    // A log that cannot be read is no witness; whether it is needed is the business of who takes the store over.
    let manifest = journal::read_manifest(storage).ok()?;
    let log = read_log(storage).ok()??;
    (log.group == manifest.group && log.generation >= manifest.activity_generation).then_some(log.durable)
}

/// The activity log's file, made if it is not there, or if what is there is a pipe, a device or a link to one.
pub(super) fn open_log(storage: &dyn Storage) -> Result<Arc<dyn File>, MediaError> {
    match storage.open(ACTIVITY_LOG, true) {
        Err(error) if is_no_log(&error) => {
            remove(storage, ACTIVITY_LOG)?;
            let file = storage.create(ACTIVITY_LOG)?;
            storage.sync_dir("state")?;
            Ok(file)
        }
        other => other,
    }
}

/// Removes a name, if it is there.
pub(super) fn remove(storage: &dyn Storage, name: &str) -> Result<(), MediaError> {
    match storage.remove(name) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// For ops that run past the filter: nobody believes the log any more when `done` is called. Guests wait for that, and not for the sync.
pub(super) fn forget_at_once(storage: &dyn Storage, done: &dyn Fn()) {
    // One that cannot be removed is on a medium that takes nothing at all.
    let _ = remove(storage, ACTIVITY_LOG);
    done();
    // So that a power cut does not bring the name back: the filter cannot tell the replica now.
    let _ = storage.sync_dir("state");
}

/// Carries out log writes until the queue is closed. `file` is what was opened at the start.
pub(super) fn run_log_writes(storage: &dyn Storage, file: Arc<dyn File>, queue: &Inbox<LogWrite>, engine: &Engine) {
    let mut file = file;
    while let Some((write, _taken)) = queue.take() {
        let LogWrite { token, begins, writes } = write;
        let result = carry_out(storage, &mut file, begins, &writes).map_err(|error| Failed { errno: errno(&error) });
        let known = engine.with(|filter, now| filter.log_written(now, token, result));
        debug_assert!(known.is_ok(), "a log write is answered once");
    }
}

/// Removes the file as often as it is asked for, until the queue is closed. Nothing is synced: guests wait for this, and a
/// kill loses no name. That the log is not to be believed is kept at the replica for the case that power is lost.
pub(super) fn run_log_removals(storage: &dyn Storage, queue: &Inbox<()>, engine: &Engine) {
    while let Some(((), _taken)) = queue.take() {
        // One that cannot be removed is written on; its medium takes nothing else either.
        let _ = remove(storage, ACTIVITY_LOG);
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
    use crate::protect::{ProtectOptions, Protector, SourceOptions};
    use cdp_core::media::{Disk, Memory};
    use std::time::Duration;

    #[test]
    fn a_write_that_was_queued_before_a_removal_makes_no_log() {
        let storage = Memory::new();
        let mut file = open_log(&storage).unwrap();
        let writes = [(0, vec![7; 512].into())];
        carry_out(&storage, &mut file, false, &writes).unwrap();
        assert_eq!(storage.length(ACTIVITY_LOG).unwrap(), 512);
        remove(&storage, ACTIVITY_LOG).unwrap();
        carry_out(&storage, &mut file, false, &writes).unwrap();
        assert!(storage.length(ACTIVITY_LOG).is_err(), "a header that says too little would be believed");
        carry_out(&storage, &mut file, true, &writes).unwrap();
        assert_eq!(storage.length(ACTIVITY_LOG).unwrap(), 512);
    }

    #[test]
    fn the_activity_log_remembers_what_was_durable() {
        let directory = tempfile::tempdir().unwrap();
        let (source, replica) = (directory.path().join("disk"), directory.path().join("replica"));
        std::fs::write(&source, vec![7; 1 << 20]).unwrap();
        let sources = vec![SourceOptions { name: "disk".to_owned(), path: source }];
        let protector = Protector::start(&ProtectOptions::new(sources, replica.clone()), |_| {}).unwrap();
        while protector.status().state != cdp_core::capture::State::Protecting {
            std::thread::sleep(Duration::from_millis(5));
        }
        protector.exports()[0].device.write(4096, vec![1; 4096].into(), false).unwrap();
        let stopped = protector.stop(Duration::from_secs(30), &|| false);
        assert!(stopped.drained && stopped.durable > Lsn::ZERO, "{stopped:?}");
        let storage = Disk::open(&replica).unwrap();
        assert_eq!(witness(&storage), Some(stopped.durable));
        storage.remove(ACTIVITY_LOG).unwrap();
        assert_eq!(witness(&storage), None);
    }
}
