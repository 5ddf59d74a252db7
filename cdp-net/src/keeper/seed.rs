//! The replica's half of a first copy: pieces are checksummed and written straight into base and sidecar.
//!
//! One thread takes the pieces, another keeps syncing what was written and has the manifest say how far that is, so that the last sync
//! finds little, and a copy goes on there that a cut, or a crash of this side, ended. Holes and zeros cost nothing.

use super::check::nothing_to_copy;
use super::lock;
use super::room::{Lack, Patient, RETRY, Waiting};
use crate::far::{SeedEnd, SeedHandle, Seeding, UNREACHABLE};
use crate::host::Edit;
use crate::report::{Problem, ProblemClass};
use crate::threads::pause;
use bytes::Bytes;
use cdp_core::journal::SeedingInfo;
use cdp_core::media::{MediaError, MediaErrorKind, Operation, Storage};
use cdp_core::replica::base::{BaseWriter, Checkpoint, ResumeError, is_piece};
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
/// Zeros between two looks whether the end is wished, in bytes: their pages are counted one by one.
const ZEROS_AT_ONCE: u64 = 64 << 30;
/// How long who begins waits to hear whether what was copied can be gone on with: most copies are read back sooner. He may be at the
/// other end of a link, and nobody waits there for long: where it lasts, his pieces come meanwhile.
const READ_BACK_WITHIN: Duration = Duration::from_secs(1);

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
    Data(Vec<Bytes>),
    Zeros(u64),
}

/// A piece, and where it belongs.
struct Given {
    offset: u64,
    piece: Piece,
    lsn: Lsn,
}

type Written = Result<Option<Root>, MediaError>;

/// A first copy as who reads the disk has it.
struct Writing {
    disk: DiskId,
    size: u64,
    roots: Arc<Mutex<BTreeMap<DiskId, Root>>>,
    handle: SeedHandle,
    /// Where the next piece belongs.
    position: u64,
    /// None when nothing more comes.
    pieces: Option<SyncSender<Given>>,
    writer: Option<JoinHandle<Written>>,
}

/// Begins to write, or goes on.
///
/// # Errors
/// When the media or the manifest do not take it, there is nothing to copy, or the system has no thread to give.
pub(crate) fn begin(job: Job) -> Result<Box<dyn Seeding>, Problem> {
    let (pieces, incoming) = sync_channel(PIECES);
    let (disk, size, roots, handle) = (job.disk, job.size, Arc::clone(&job.roots), job.handle.clone());
    let waiting = Waiting { lack: Arc::clone(&job.lack), stop: Arc::clone(&job.handle.stop) };
    let storage = Patient { inner: Arc::clone(&job.storage), waiting };
    let known = job.known();
    let attempt = count(&job, known)?;
    let (told, heard) = sync_channel(1);
    let writer = Builder::new().name("cdp-base".into()).spawn(move || {
        let written = run(&job, &storage, attempt, &told, &incoming);
        drop(job.alive);
        written
    });
    let writer = writer
        .map_err(|error| Problem::new(ProblemClass::Failed, "protect", format!("cannot start a thread: {error}")))?;
    let (pieces, writer) = (Some(pieces), Some(writer));
    let mut writing = Writing { disk, size, roots, handle, position: 0, pieces, writer };
    writing.position = match heard.recv_timeout(READ_BACK_WITHIN) {
        Ok(position) => position,
        // Where it turns out not to be so, the copy ends, and the next attempt is told.
        Err(RecvTimeoutError::Timeout) => known.point.done,
        Err(RecvTimeoutError::Disconnected) => return Err(writing.not_begun()),
    };
    Ok(Box::new(writing))
}

impl Job {
    fn fresh(&self) -> SeedingInfo {
        let at_rest = self.keys.is_some();
        SeedingInfo { at_rest, ..SeedingInfo::new(self.disk, self.size, self.info.since) }
    }

    /// How it stands, if what is there of it can be gone on with.
    fn known(&self) -> SeedingInfo {
        let is_some = (1..=self.size).contains(&self.info.point.done);
        if is_some { SeedingInfo { size: self.size, ..self.info } } else { self.fresh() }
    }
}

/// Counts an attempt, durably: before anything of it is taken that is durable. Else that could be taken for the attempt before.
fn count(job: &Job, info: SeedingInfo) -> Result<u64, Problem> {
    let attempt = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&attempt);
    let count: Edit =
        Box::new(move |manifest| counted.store(manifest.begin_seeding(info).unwrap_or(0), Ordering::Relaxed));
    // It is tried again, as without anybody there.
    (job.edit)(count).map_err(|problem| Problem::new(ProblemClass::Failed, UNREACHABLE, problem.message))?;
    match attempt.load(Ordering::Relaxed) {
        0 => Err(nothing_to_copy(job.disk)),
        attempt => Ok(attempt),
    }
}

/// The thread that writes: takes up what is there, and says where that ends; then it writes what comes.
fn run(job: &Job, storage: &Patient, attempt: u64, told: &SyncSender<u64>, incoming: &Receiver<Given>) -> Written {
    let known = match take_up(job, storage) {
        // Nobody waits for what was to be read back.
        Err(_) if job.handle.stop.load(Ordering::Relaxed) => return Ok(None),
        known => known?,
    };
    // Who no longer listens has taken it to be where what is durable ends.
    let tell = |position| _ = told.try_send(position);
    let notes = |attempt| Notes { disk: job.disk, attempt, edit: Arc::clone(&job.edit) };
    if let Some(writer) = known {
        tell(writer.position());
        return write(job, storage, writer, notes(attempt), incoming);
    }
    let attempt = match job.known().point.done {
        0 => attempt,
        _ => match count(job, job.fresh()) {
            Ok(attempt) => attempt,
            Err(_) => return Ok(None),
        },
    };
    tell(0);
    write(job, storage, create(job, storage)?, notes(attempt), incoming)
}

/// What is there of the copy, if that is of use.
fn take_up(job: &Job, storage: &Patient) -> Result<Option<BaseWriter>, MediaError> {
    if job.known().point.done == 0 {
        return Ok(None);
    }
    match BaseWriter::resume(storage, job.replica, &job.info, job.size, job.keys.as_deref()) {
        Ok(writer) => Ok(Some(writer)),
        Err(error) if error.begins_anew() => Ok(None),
        Err(ResumeError::Media(error)) => Err(error),
        Err(error) => Err(MediaError::new(MediaErrorKind::Io, Operation::Open, &storage.path(), 0, &error.to_string())),
    }
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
    /// Whether more is of use: the writer has ended where it takes nothing any more. What is no piece of the disk is passed over: the
    /// copy is judged at its end.
    fn send(&mut self, piece: Piece, lsn: Lsn) -> bool {
        let mut end = self.position;
        let mut follows = |length: u64| {
            let fits = is_piece(self.size, end, length);
            end = end.saturating_add(length);
            fits
        };
        let fits = match &piece {
            Piece::Data(data) => data.iter().all(|data| follows(data.len() as u64)),
            Piece::Zeros(length) => follows(*length),
        };
        if !fits {
            return true;
        }
        let given = Given { offset: std::mem::replace(&mut self.position, end), piece, lsn };
        self.pieces.as_ref().is_some_and(|pieces| pieces.send(given).is_ok())
    }

    /// The writer ended before it said where.
    fn not_begun(mut self) -> Problem {
        match self.join() {
            Some(Err(error)) => super::find::refused_by_media(&error),
            _ => Problem::new(ProblemClass::Failed, UNREACHABLE, "the first copy ended before it had begun"),
        }
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
        self.send(Piece::Data(data), lsn)
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.send(Piece::Zeros(length), lsn)
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
fn write(job: &Job, storage: &Patient, mut writer: BaseWriter, notes: Notes, incoming: &Receiver<Given>) -> Written {
    let (sync, syncs) = sync_channel::<Checkpoint>(1);
    let began = writer.position();
    std::thread::scope(|scope| {
        let syncer = scope.spawn(move || {
            syncs.into_iter().try_for_each(|checkpoint| notes.note(checkpoint))?;
            Ok::<_, MediaError>(notes)
        });
        let (mut synced, mut checked) = (0, None);
        loop {
            let Given { offset, piece, lsn } = match incoming.recv_timeout(STOP_LOOK) {
                // Whoever gives the pieces may not know yet.
                _ if job.handle.stop.load(Ordering::Relaxed) => break,
                Ok(given) => given,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let before = writer.position();
            // What was copied could not be gone on with, and was taken to be there: only the next attempt gives what is missing.
            if offset != before {
                break;
            }
            match piece {
                Piece::Data(data) => {
                    if checked.is_none_or(|checked| writer.stored_bytes() - checked >= ROOM_EVERY) {
                        wait_for_room(storage, job)?;
                        checked = Some(writer.stored_bytes());
                    }
                    data.iter().try_for_each(|data| writer.data(data, lsn))?;
                }
                Piece::Zeros(length) => {
                    while writer.position() - before < length && !job.handle.stop.load(Ordering::Relaxed) {
                        let left = length - (writer.position() - before);
                        writer.zeros(left.min(ZEROS_AT_ONCE), lsn)?;
                    }
                }
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
