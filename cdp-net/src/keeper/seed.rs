//! The replica's half of a first copy: pieces are checksummed and written straight into base and sidecar.
//!
//! One thread takes the pieces, another keeps syncing what was written and has the manifest say how far that is, so that the last sync
//! finds little, and a copy goes on there that a cut, or a crash of this side, ended. Holes and zeros cost nothing.

use super::lock;
use super::room::{Lack, Patient, RETRY, Waiting};
use crate::far::{SeedEnd, SeedHandle, Seeding, UNREACHABLE};
use crate::host::Edit;
use crate::report::{Problem, ProblemClass};
use crate::threads::pause;
use bytes::Bytes;
use cdp_core::journal::SeedingInfo;
use cdp_core::media::{MediaError, MediaErrorKind, Operation, Storage};
use cdp_core::replica::base::{BaseWriter, Checkpoint, ResumeError};
use cdp_core::replica::sidecar::Root;
use cdp_core::trust::{KeyError, Keyring};
use cdp_core::types::{DiskId, Lsn, ReplicaId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Pieces between reader and writer: what is read ahead.
const PIECES: usize = 8;
/// Bytes written between two syncs: what a crash of this side has sent again at most, but for what is being synced.
pub(super) const SYNC_EVERY: u64 = 64 << 20;
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
    /// How it stands if it is begun; where it goes on if that is in the timeline in which it was begun.
    pub(crate) info: SeedingInfo,
    /// Changes the manifest durably.
    pub(crate) edit: Arc<dyn Fn(Edit) -> Result<(), Problem> + Send + Sync>,
    /// Bytes written between two syncs.
    pub(crate) sync_every: u64,
}

/// Who may say how far a copy is.
struct Notes {
    disk: DiskId,
    attempt: u64,
    edit: Arc<dyn Fn(Edit) -> Result<(), Problem> + Send + Sync>,
}

impl Notes {
    /// Everything up to there becomes durable, and then the manifest says so.
    fn note(&self, checkpoint: Checkpoint) -> Result<(), MediaError> {
        let point = checkpoint.sync()?;
        let (disk, attempt) = (self.disk, self.attempt);
        // Where it cannot be stored a copy that is cut goes on at the one before.
        let _ = (self.edit)(Box::new(move |manifest| _ = manifest.note_seeding(disk, attempt, point)));
        Ok(())
    }
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
    /// Where the next piece belongs.
    position: u64,
    /// None when nothing more comes.
    pieces: Option<SyncSender<Piece>>,
    writer: Option<JoinHandle<Written>>,
}

/// Begins to write, or goes on.
///
/// # Errors
/// When the media or the manifest do not take it, or the system has no thread to give.
pub(crate) fn begin(job: Job) -> Result<Box<dyn Seeding>, Problem> {
    let (pieces, incoming) = sync_channel(PIECES);
    let (disk, roots, handle) = (job.disk, Arc::clone(&job.roots), job.handle.clone());
    let waiting = Waiting { lack: Arc::clone(&job.lack), stop: Arc::clone(&job.handle.stop) };
    let storage = Patient { inner: Arc::clone(&job.storage), waiting };
    let (begun, notes) = go_on(&job, &storage)?;
    let position = begun.as_ref().map_or(0, BaseWriter::position);
    let writer = Builder::new().name("cdp-base".into()).spawn(move || {
        let begun = begun.map_or_else(|| create(&job, &storage), Ok);
        let written = begun.and_then(|writer| write(&job, &storage, writer, notes, &incoming));
        drop(job.alive);
        written
    });
    let writer = writer
        .map_err(|error| Problem::new(ProblemClass::Failed, "protect", format!("cannot start a thread: {error}")))?;
    let (pieces, writer) = (Some(pieces), Some(writer));
    Ok(Box::new(Writing { disk, roots, handle, position, pieces, writer }))
}

/// Takes up what is there of the copy, if that is of use, and counts the attempt: before anything of it is taken that is durable.
fn go_on(job: &Job, storage: &Patient) -> Result<(Option<BaseWriter>, Notes), Problem> {
    let keys = job.keys.as_deref();
    let begun = match job.info.point.done {
        0 => None,
        _ => match BaseWriter::resume(storage, job.replica, &job.info, job.size, keys) {
            Ok(writer) => Some(writer),
            Err(error) if error.begins_anew() => None,
            Err(ResumeError::Media(error)) => return Err(super::find::refused_by_media(&error)),
            Err(error) => return Err(Problem::new(ProblemClass::Failed, "protect", error.to_string())),
        },
    };
    let fresh = SeedingInfo { at_rest: keys.is_some(), ..SeedingInfo::new(job.disk, job.size, job.info.since) };
    let info = if begun.is_some() { SeedingInfo { size: job.size, ..job.info } } else { fresh };
    let attempt = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&attempt);
    // Of a disk that left meanwhile nothing is noted.
    let count: Edit =
        Box::new(move |manifest| counted.store(manifest.begin_seeding(info).unwrap_or(0), Ordering::Relaxed));
    // Else it could be taken for the attempt before. It is tried again, as without anybody there.
    (job.edit)(count).map_err(|problem| Problem::new(ProblemClass::Failed, UNREACHABLE, problem.message))?;
    let notes = Notes { disk: job.disk, attempt: attempt.load(Ordering::Relaxed), edit: Arc::clone(&job.edit) };
    Ok((begun, notes))
}

fn create(job: &Job, storage: &Patient) -> Result<BaseWriter, MediaError> {
    let writer = BaseWriter::create(storage, job.replica, job.disk, job.size)?;
    let Some(keys) = &job.keys else { return Ok(writer) };
    let no_key = |error: KeyError| {
        MediaError::new(MediaErrorKind::Io, Operation::Create, &storage.path(), 0, &error.to_string())
    };
    writer.at_rest(keys).map_err(no_key)
}

impl Writing {
    /// The writer has ended where it takes nothing any more.
    fn send(&mut self, piece: Piece, length: u64) -> bool {
        self.position += length;
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
        self.position
    }

    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        let length = data.iter().map(|data| data.len() as u64).sum();
        self.send(Piece::Data(data, lsn), length)
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.send(Piece::Zeros(length, lsn), length)
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

/// Writes what comes. `None`: less came than the disk has; what came stays.
fn write(job: &Job, storage: &Patient, mut writer: BaseWriter, notes: Notes, incoming: &Receiver<Piece>) -> Written {
    let (sync, syncs) = sync_channel::<Checkpoint>(1);
    let began = writer.position();
    std::thread::scope(|scope| {
        let syncer = scope.spawn(move || {
            syncs.into_iter().try_for_each(|checkpoint| notes.note(checkpoint))?;
            Ok::<_, MediaError>(notes)
        });
        let (mut synced, mut checked) = (0, None);
        loop {
            let piece = match incoming.recv_timeout(STOP_LOOK) {
                // Whoever gives the pieces may not know yet.
                _ if job.handle.stop.load(Ordering::Relaxed) => break,
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let before = writer.position();
            match piece {
                Piece::Data(data, lsn) => {
                    if checked.is_none_or(|checked| writer.stored_bytes() - checked >= ROOM_EVERY) {
                        wait_for_room(storage, job)?;
                        checked = Some(writer.stored_bytes());
                    }
                    data.iter().try_for_each(|data| writer.data(data, lsn))?;
                }
                Piece::Zeros(length, lsn) => writer.zeros(length, lsn)?,
            }
            job.handle.done.fetch_add(writer.position() - before, Ordering::Relaxed);
            if writer.stored_bytes() - synced >= job.sync_every {
                let checkpoint = writer.checkpoint()?;
                if sync.try_send(checkpoint).is_ok() {
                    synced = writer.stored_bytes();
                }
            }
        }
        drop(sync);
        // A sync that failed says all there is to know: asking again would prove nothing.
        let notes = syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if writer.position() < job.size || job.handle.stop.load(Ordering::Relaxed) {
            if writer.position() > began {
                // Where this fails the copy goes on at the place before.
                let _ = writer.checkpoint().and_then(|checkpoint| notes.note(checkpoint));
            }
            return Ok(None);
        }
        // Nothing is left that this could be the LSN of: all was written with its own.
        writer.finish(storage, Lsn::ZERO).map(Some)
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
