//! The replica's half of a first copy: pieces are checksummed and written straight into base and sidecar.
//!
//! One thread takes the pieces, another keeps syncing what was written, so that the last sync finds little. Holes and zeros cost nothing.

use super::lock;
use super::room::{Lack, Patient, RETRY, Waiting};
use crate::far::{SeedEnd, SeedHandle, Seeding};
use crate::report::{Problem, ProblemClass};
use crate::threads::pause;
use bytes::Bytes;
use cdp_core::media::{MediaError, MediaErrorKind, Operation, Storage};
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::sidecar::Root;
use cdp_core::trust::{KeyError, Keyring};
use cdp_core::types::{DiskId, Lsn, ReplicaId};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Pieces between reader and writer: what is read ahead.
const PIECES: usize = 8;
/// Bytes written between two syncs.
const SYNC_EVERY: u64 = 128 << 20;
/// How often it is looked whether the end is wished, while nothing comes.
const STOP_LOOK: Duration = Duration::from_millis(100);
/// Bytes written between two looks at the room that is left.
const ROOM_EVERY: u64 = 16 << 20;

/// A disk to be seeded.
pub(crate) struct Job {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) replica: ReplicaId,
    pub(crate) disk: DiskId,
    pub(crate) size: u64,
    /// Stays free on the replica's media, in bytes.
    pub(crate) reserve: u64,
    /// What the quota leaves, in bytes; none: there is no quota.
    pub(crate) quota_left: Box<dyn Fn() -> Option<u64> + Send>,
    /// Those of the journal's writer, if the base is to be sealed at rest.
    pub(crate) keys: Option<Arc<Keyring>>,
    /// What has to be free before it goes on, by itself: while the replica's media have no more room than the reserve.
    pub(crate) lack: Arc<Lack>,
    /// Where what became of it is kept until the manifest names it.
    pub(crate) roots: Arc<Mutex<BTreeMap<DiskId, Root>>>,
    /// Held as long as anything is written.
    pub(crate) alive: Arc<()>,
    pub(crate) handle: SeedHandle,
}

enum Piece {
    Data(Vec<Bytes>, Lsn),
    Zeros(u64, Lsn),
}

type Written = Result<Option<Root>, MediaError>;

/// A first copy as who reads the disk has it.
struct Writing {
    disk: DiskId,
    roots: Arc<Mutex<BTreeMap<DiskId, Root>>>,
    handle: SeedHandle,
    /// None when nothing more comes.
    pieces: Option<SyncSender<Piece>>,
    writer: Option<JoinHandle<Written>>,
}

/// Begins to write.
///
/// # Errors
/// When the system has no thread to give.
pub(crate) fn begin(job: Job) -> Result<Box<dyn Seeding>, Problem> {
    let (pieces, incoming) = sync_channel(PIECES);
    let (disk, roots, handle) = (job.disk, Arc::clone(&job.roots), job.handle.clone());
    let writer = Builder::new().name("cdp-base".into()).spawn(move || {
        let written = write(&job, &incoming);
        drop(job.alive);
        written
    });
    let writer = writer
        .map_err(|error| Problem::new(ProblemClass::Failed, "protect", format!("cannot start a thread: {error}")))?;
    let (pieces, writer) = (Some(pieces), Some(writer));
    Ok(Box::new(Writing { disk, roots, handle, pieces, writer }))
}

impl Writing {
    /// The writer has ended where it takes nothing any more.
    fn send(&self, piece: Piece) -> bool {
        self.pieces.as_ref().is_some_and(|pieces| pieces.send(piece).is_ok())
    }

    fn join(&mut self) -> Option<Written> {
        self.pieces = None;
        let joined = self.writer.take()?.join();
        // Its panic is that of who waits for it.
        Some(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Seeding for Writing {
    fn position(&self) -> u64 {
        0
    }

    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        self.send(Piece::Data(data, lsn))
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.send(Piece::Zeros(length, lsn))
    }

    fn end(mut self: Box<Self>) -> Result<SeedEnd, Problem> {
        match self.join() {
            Some(Ok(Some(root))) => {
                lock(&self.roots).insert(self.disk, root);
                Ok(SeedEnd::Whole)
            }
            // Writes wait until the end is wished.
            Some(Err(error)) if error.is_no_space() && self.handle.stop.load(Ordering::Relaxed) => Ok(SeedEnd::Stopped),
            // A sync found no room: what it dropped is not known.
            Some(Err(error)) if error.is_no_space() => Ok(SeedEnd::Again),
            Some(Err(error)) => Err(super::find::refused_by_media(&error)),
            Some(Ok(None)) | None => Ok(SeedEnd::Stopped),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.pieces = None;
        // Nobody writes to the directory when its keeper has let go of it. What went wrong is nobody's any more.
        self.writer.take().map(JoinHandle::join);
    }
}

/// Writes what comes. `None`: less came than the disk has.
fn write(job: &Job, incoming: &Receiver<Piece>) -> Written {
    let waiting = Waiting { lack: Arc::clone(&job.lack), stop: Arc::clone(&job.handle.stop) };
    let storage = Patient { inner: Arc::clone(&job.storage), waiting };
    let mut writer = BaseWriter::create(&storage, job.replica, job.disk, job.size)?;
    if let Some(keys) = &job.keys {
        let no_key = |error: KeyError| {
            MediaError::new(MediaErrorKind::Io, Operation::Create, &storage.path(), 0, &error.to_string())
        };
        writer = writer.at_rest(keys).map_err(no_key)?;
    }
    let (sync, syncs) = sync_channel::<()>(1);
    let image = writer.image();
    std::thread::scope(|scope| {
        let syncer = scope.spawn(move || syncs.into_iter().try_for_each(|()| image.sync()));
        let (mut synced, mut checked) = (0, None);
        loop {
            let piece = match incoming.recv_timeout(STOP_LOOK) {
                // Whoever gives the pieces may not know yet.
                _ if job.handle.stop.load(Ordering::Relaxed) => return Ok(None),
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let before = writer.position();
            match piece {
                Piece::Data(data, lsn) => {
                    if checked.is_none_or(|checked| writer.stored_bytes() - checked >= ROOM_EVERY) {
                        wait_for_room(&storage, job)?;
                        checked = Some(writer.stored_bytes());
                    }
                    data.iter().try_for_each(|data| writer.data(data, lsn))?;
                }
                Piece::Zeros(length, lsn) => writer.zeros(length, lsn)?,
            }
            job.handle.done.fetch_add(writer.position() - before, Ordering::Relaxed);
            if writer.stored_bytes() - synced >= SYNC_EVERY && sync.try_send(()).is_ok() {
                synced = writer.stored_bytes();
            }
        }
        drop(sync);
        // A sync that failed says all there is to know: asking again would prove nothing.
        syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if writer.position() < job.size {
            return Ok(None);
        }
        // Nothing is left that this could be the LSN of: all was written with its own.
        writer.finish(&storage, Lsn::ZERO).map(Some)
    })
}

/// Returns when there is more room than the reserve, and within the quota, so that our copy never takes the guest's own.
fn wait_for_room(storage: &dyn Storage, job: &Job) -> Result<(), MediaError> {
    let (within, beside) = (2 * ROOM_EVERY, job.reserve.saturating_add(2 * ROOM_EVERY));
    let (lack, stop) = (&job.lack, &job.handle.stop);
    while !stop.load(Ordering::Relaxed) {
        let by_quota = (job.quota_left)().is_some_and(|left| left < within);
        lack.set_of_quota(if by_quota { within } else { 0 });
        if !by_quota && storage.free_bytes()? >= beside {
            break;
        }
        lack.set(if by_quota { within } else { beside });
        pause(stop, RETRY);
    }
    lack.set_of_quota(0);
    lack.clear();
    Ok(())
}
