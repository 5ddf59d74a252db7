//! Seeding: the first copy of a disk, straight into base and sidecar while the guest goes on writing.
//!
//! One thread reads the source ahead, another checksums and writes, a third keeps syncing what was written, so that the last
//! sync finds little. Holes and zeros cost nothing. What the guest writes meanwhile is in the journal, above the base.

use super::room::{Lack, Patient, RETRY, Waiting, pause};
use crate::device::Device;
use cdp_core::media::{MediaError, MediaErrorKind, Operation, Storage};
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::sidecar::Root;
use cdp_core::trust::{KeyError, Keyring};
use cdp_core::types::{BLOCK, DiskId, Lsn, ReplicaId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

#[cfg(test)]
mod tests;

/// Bytes of one read.
const PIECE: u64 = 1 << 20;
/// Pieces between reader and writer: what is read ahead.
const PIECES: usize = 8;
/// Bytes written between two syncs.
const SYNC_EVERY: u64 = 128 << 20;
/// Bytes written between two looks at the room that is left.
const ROOM_EVERY: u64 = 16 << 20;

/// How far the seeding of a group is, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all disks.
    pub total: AtomicU64,
    /// Bytes that are done, holes counted.
    pub done: AtomicU64,
    /// Reads of a source that failed and are tried again.
    pub failing: AtomicU64,
    /// What has to be free before the copy goes on, by itself: while the replica's media have no more room than the reserve.
    pub lack: Arc<Lack>,
}

impl Progress {
    /// Whether a first copy is, or was, made since the start.
    pub(super) fn is_of_this_start(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }
}

/// A disk to be seeded.
pub(super) struct Seed<'a> {
    pub(super) replica: ReplicaId,
    pub(super) disk: DiskId,
    pub(super) source: &'a dyn Device,
    /// An LSN up to which everything is in what is read next: settled at the source.
    pub(super) lsn: &'a (dyn Fn() -> Lsn + Sync),
    /// Stays free on the replica's media, in bytes.
    pub(super) reserve: u64,
    /// What the quota leaves, in bytes; none: there is no quota.
    pub(super) quota_left: &'a (dyn Fn() -> Option<u64> + Sync),
    /// Those of the journal's writer, if the base is to be sealed at rest.
    pub(super) keys: Option<&'a Arc<Keyring>>,
    pub(super) progress: &'a Progress,
    /// Set when the protector is to end; the seeding is then begun anew at the next start.
    pub(super) stop: &'a Arc<AtomicBool>,
}

enum Piece {
    Data(Vec<u8>, usize, Lsn),
    Zeros(u64, Lsn),
}

/// Copies the disk. `None`: it was stopped.
///
/// # Errors
/// When the replica's media fail. A failing source, and room, are waited for.
pub(super) fn run(storage: &Arc<dyn Storage>, seed: &Seed<'_>) -> Result<Option<Root>, MediaError> {
    let waiting = Waiting { lack: Arc::clone(&seed.progress.lack), stop: Arc::clone(seed.stop) };
    let patient: Arc<dyn Storage> = Arc::new(Patient { inner: Arc::clone(storage), waiting });
    let before = seed.progress.done.load(Ordering::Relaxed);
    loop {
        match copy(&patient, seed) {
            // Writes wait until the end is wished.
            Err(error) if error.is_no_space() && seed.stop.load(Ordering::Relaxed) => return Ok(None),
            // A sync found no room: what it dropped is not known, and the copy begins anew.
            Err(error) if error.is_no_space() => {
                seed.progress.done.store(before, Ordering::Relaxed);
                pause(seed.stop, RETRY);
            }
            ended => return ended,
        }
    }
}

fn copy(storage: &Arc<dyn Storage>, seed: &Seed<'_>) -> Result<Option<Root>, MediaError> {
    let size = seed.source.size();
    let mut writer = BaseWriter::create(storage.as_ref(), seed.replica, seed.disk, size)?;
    if let Some(keys) = seed.keys {
        let no_key = |error: KeyError| {
            MediaError::new(MediaErrorKind::Io, Operation::Create, &storage.path(), 0, &error.to_string())
        };
        writer = writer.at_rest(keys).map_err(no_key)?;
    }
    let (pieces, incoming) = sync_channel(PIECES);
    let (spent, buffers) = sync_channel(PIECES + 2);
    let (sync, syncs) = sync_channel::<()>(1);
    let image = writer.image();
    std::thread::scope(|scope| {
        scope.spawn(move || read(seed, size, pieces, &buffers));
        let syncer = scope.spawn(move || syncs.into_iter().try_for_each(|()| image.sync()));
        let (mut synced, mut checked) = (0, None);
        for piece in incoming {
            let before = writer.position();
            match piece {
                Piece::Data(buffer, length, lsn) => {
                    if checked.is_none_or(|checked| writer.stored_bytes() - checked >= ROOM_EVERY) {
                        wait_for_room(storage.as_ref(), seed)?;
                        checked = Some(writer.stored_bytes());
                    }
                    writer.data(&buffer[..length], lsn)?;
                    // The reader may have ended: it needs no more buffers then.
                    let _ = spent.try_send(buffer);
                }
                Piece::Zeros(length, lsn) => writer.zeros(length, lsn)?,
            }
            seed.progress.done.fetch_add(writer.position() - before, Ordering::Relaxed);
            if writer.stored_bytes() - synced >= SYNC_EVERY && sync.try_send(()).is_ok() {
                synced = writer.stored_bytes();
            }
        }
        drop(sync);
        // A sync that failed says all there is to know: asking again would prove nothing.
        syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if writer.position() < size {
            return Ok(None);
        }
        writer.finish(storage.as_ref(), (seed.lsn)()).map(Some)
    })
}

/// Returns when there is more room than the reserve, and within the quota, so that our copy never takes the guest's own.
fn wait_for_room(storage: &dyn Storage, seed: &Seed<'_>) -> Result<(), MediaError> {
    let (within, beside) = (2 * ROOM_EVERY, seed.reserve.saturating_add(2 * ROOM_EVERY));
    let lack = &seed.progress.lack;
    while !seed.stop.load(Ordering::Relaxed) {
        let by_quota = (seed.quota_left)().is_some_and(|left| left < within);
        lack.set_of_quota(if by_quota { within } else { 0 });
        if !by_quota && storage.free_bytes()? >= beside {
            break;
        }
        lack.set(if by_quota { within } else { beside });
        pause(seed.stop, RETRY);
    }
    lack.set_of_quota(0);
    lack.clear();
    Ok(())
}

/// Reads the source from the first byte to the last; ends early when told to stop.
fn read(seed: &Seed<'_>, size: u64, pieces: SyncSender<Piece>, buffers: &Receiver<Vec<u8>>) {
    let mut at = 0;
    while at < size && !seed.stop.load(Ordering::Relaxed) {
        let Some(run) = next_run(seed, at, size) else { continue };
        // A piece ends with a block: what remains of one at a run's end is read with the next.
        let lsn = (seed.lsn)();
        let piece = if run.zero {
            at += run.length;
            Piece::Zeros(run.length, lsn)
        } else {
            let length = run.length.min(PIECE) as usize;
            let mut buffer = buffers.try_recv().unwrap_or_else(|_| vec![0; PIECE as usize]);
            if seed.source.read(at, &mut buffer[..length]).is_err() {
                wait(seed);
                continue;
            }
            at += length as u64;
            Piece::Data(buffer, length, lsn)
        };
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

struct Run {
    length: u64,
    zero: bool,
}

/// What comes at `at`: whole blocks, or everything up to the disk's end.
fn next_run(seed: &Seed<'_>, at: u64, size: u64) -> Option<Run> {
    let Ok(found) = seed.source.block_status(at, size - at, 1) else {
        wait(seed);
        return None;
    };
    let first = found.first()?;
    let end = (at + first.length).min(size);
    let whole = if end == size { end } else { end / BLOCK * BLOCK };
    if first.zero && whole > at {
        return Some(Run { length: whole - at, zero: true });
    }
    // A hole that is no whole block is read like data, up to the end of its block.
    let end = if end == size { end } else { end.next_multiple_of(BLOCK).min(size) };
    Some(Run { length: end - at, zero: false })
}

/// A read failed: it is tried again after a while.
fn wait(seed: &Seed<'_>) {
    seed.progress.failing.fetch_add(1, Ordering::Relaxed);
    pause(seed.stop, RETRY);
}
