//! The in-order driver: carries out a writer's effects one after another. For tests, simulation, and whoever has no threads.

use super::effect::{Effect, EffectId, FileId, Landing, Outcome};
use super::writer::Writer;
use crate::media::{File, MediaError, MediaErrorKind, Operation, Storage};
use crate::types::{Extent, MonoTime};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Carries out effects on a storage, from as many threads as the driver has: only the table of open files is locked, never
/// while the media are at work. Any driver may use [`Executor::run`] for the effects that it does not do otherwise.
pub struct Executor {
    storage: Arc<dyn Storage>,
    files: Mutex<BTreeMap<FileId, Arc<dyn File>>>,
    admit: Option<Admit>,
}

/// Is asked before room is reserved, with the file's name and the bytes; may refuse with `NoSpace` what the media would give.
pub type Admit = Box<dyn Fn(&str, u64) -> Outcome + Send + Sync>;

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("storage", &self.storage).field("files", &self.files).finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor on a store's directory.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, files: Mutex::default(), admit: None }
    }

    /// With somebody who says whether there is room: a quota.
    #[must_use]
    pub fn admitted_by(self, admit: Admit) -> Self {
        Self { admit: Some(admit), ..self }
    }

    /// An open file, for drivers that write and sync on threads of their own.
    ///
    /// # Errors
    /// When it was never opened, or is closed.
    pub fn file(&self, file: FileId) -> Result<Arc<dyn File>, MediaError> {
        let name = || format!("file {}", file.0);
        let why = "it was never opened, or is closed";
        let lost = || MediaError::new(MediaErrorKind::NotFound, Operation::Open, &name(), 0, why);
        self.files().get(&file).cloned().ok_or_else(lost)
    }

    /// Carries out one effect.
    ///
    /// # Errors
    /// Whatever the media say; the writer decides what that means.
    pub fn run(&self, effect: &Effect) -> Outcome {
        match effect {
            Effect::Create { file, name, preallocate, keep_free, replace } => {
                self.create(*file, name, *preallocate, *keep_free, *replace)
            }
            Effect::Write { file, offset, data } => self.file(*file)?.write_at(*offset, data),
            Effect::Read { name, offset, into } => self.read(name, *offset, into),
            Effect::SetLength { file, length } => self.file(*file)?.set_len(*length),
            Effect::Sync { file } => self.file(*file)?.sync(),
            Effect::Close { file } => {
                self.files().remove(file);
                Ok(())
            }
            Effect::Rename { from, to } => self.storage.rename(from, to),
            Effect::Remove { name } => self.remove(name),
            Effect::SyncDir { name } => self.storage.sync_dir(name),
        }
    }

    /// Every step under this lock leaves the table whole.
    fn files(&self) -> MutexGuard<'_, BTreeMap<FileId, Arc<dyn File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, name: &str) -> Outcome {
        match self.storage.remove(name) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn read(&self, name: &str, offset: u64, into: &Landing) -> Outcome {
        let mut bytes = vec![0; into.length()];
        self.storage.open(name, false)?.read_exact_at(offset, &mut bytes)?;
        into.fill(bytes.into());
        Ok(())
    }

    fn create(&self, file: FileId, name: &str, preallocate: u64, keep_free: u64, replace: bool) -> Outcome {
        // What lies there takes room too.
        if replace {
            self.remove(name)?;
        }
        if let Some(admit) = self.admit.as_ref().filter(|_| preallocate > 0) {
            admit(name, preallocate)?;
        }
        let free = if keep_free == 0 { u64::MAX } else { self.storage.free_bytes()? };
        if free < preallocate.saturating_add(keep_free) {
            let message = format!("{free} bytes are free, {preallocate} are needed and {keep_free} must be left");
            return Err(MediaError::new(MediaErrorKind::NoSpace, Operation::Create, name, 0, &message));
        }
        // Room is reserved for segments, which are written from front to back and read when somebody looks back.
        let made = if preallocate > 0 { self.storage.create_streamed(name) } else { self.storage.create(name) }?;
        let reserved = if preallocate > 0 { made.preallocate(Extent::new(0, preallocate)) } else { Ok(()) };
        if let Err(error) = reserved {
            // Best effort: what stays is removed at the next start, and the error is told either way.
            let _ = self.storage.remove(name);
            return Err(error);
        }
        self.files().insert(file, made);
        Ok(())
    }
}

/// Bytes of writes that are made one, about: a large write costs media less than many small ones.
const GATHER_BYTES: u64 = 4 << 20;

/// Writes that follow each other in a file.
#[derive(Default)]
struct Gathered {
    ids: Vec<EffectId>,
    write: Option<(FileId, u64, Vec<Bytes>)>,
    bytes: u64,
}

impl Gathered {
    /// Takes a write that goes on where the others end, or is the first; any other effect is given back.
    fn take(&mut self, id: EffectId, effect: Effect) -> Option<Effect> {
        let bytes = effect.bytes();
        let Effect::Write { file, offset, data } = effect else { return Some(effect) };
        match &mut self.write {
            None => self.write = Some((file, offset, data)),
            Some((of, from, held)) if *of == file && *from + self.bytes == offset && self.bytes < GATHER_BYTES => {
                held.extend(data);
            }
            Some(_) => return Some(Effect::Write { file, offset, data }),
        }
        self.ids.push(id);
        self.bytes += bytes;
        None
    }
}

/// Carries out everything that the writer wants now, in the order it wants it; writes that follow each other as one.
pub fn drain(writer: &mut Writer, executor: &Executor, now: MonoTime) {
    let mut gathered = Gathered::default();
    loop {
        let next = writer.poll(now);
        let ended = next.is_none();
        let Some((id, effect)) = next.and_then(|(id, effect)| Some((id, gathered.take(id, effect)?))) else {
            if ended && !flush(writer, executor, now, &mut gathered) {
                return;
            }
            continue;
        };
        flush(writer, executor, now, &mut gathered);
        let outcome = executor.run(&effect);
        writer.completed(now, id, outcome);
    }
}

/// Makes the write; whether there was one.
fn flush(writer: &mut Writer, executor: &Executor, now: MonoTime, gathered: &mut Gathered) -> bool {
    let Gathered { ids, write, .. } = std::mem::take(gathered);
    let Some((file, offset, data)) = write else { return false };
    let outcome = executor.run(&Effect::Write { file, offset, data });
    ids.into_iter().for_each(|id| writer.completed(now, id, outcome.clone()));
    true
}
