//! What carries out the effects of a journal's writer beside whoever owns it, so that packing, writing and syncing overlap.
//!
//! A [`Driver`] takes effects and gives completions, in any order; the writer alone decides what may be under way at the same
//! time. There are two, and the one of the core that does everything in turn ([`cdp_core::journal::drain`]); `tests/it/drivers`
//! is what all of them must hold to.
//!
//! | driver | writes and syncs of files | everything else |
//! |---|---|---|
//! | [`Threads`] | threads that wait in system calls | the same |
//! | `Ring`, with the feature `uring` | the kernel, by io_uring | the threads of the other one |
//!
//! Which one runs is the owner's [`Choice`], and [`Driver::name`] says which it was. Threads are what is chosen by itself, also where
//! both are there: measured (`ingest-file` in `benches/journal.rs`), neither is quicker nor cheaper, because both copy what is not
//! aligned and then wait for the same disk; and threads need nothing of the kernel that containers forbid. The ring is for machines
//! on which threads that wait are dear.
//!
//! Bound: a driver keeps what it was given until it is carried out, and that is bounded by who gives it: a writer hands out
//! [`Options::in_flight_bytes`](cdp_core::journal::Options::in_flight_bytes) of frames and the one that exceeds them at most, a
//! footer for each segment that is sealed, and a handful of other effects.

mod gather;
mod helpers;
#[cfg(feature = "uring")]
mod ring;
mod threads;

#[cfg(feature = "uring")]
pub use ring::Ring;
pub use threads::Threads;

use self::helpers::Work;
use bytes::Bytes;
use cdp_core::journal::{Effect, EffectId, Executor, FileId, Outcome};
use cdp_core::media::{File, MediaError};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Carries out effects while its owner does something else. Each effect gives one completion, whatever happens to it.
///
/// Dropping a driver waits until everything that it was given is carried out, and ends its threads.
pub trait Driver: Send + fmt::Debug {
    /// Takes an effect. A sync covers the writes whose completions were there to be taken before this was called.
    fn start(&mut self, id: EffectId, effect: Effect);

    /// What came of effects since the last call, in no order; never waits.
    fn take(&mut self) -> Vec<(EffectId, Outcome)>;

    /// What people call it.
    fn name(&self) -> &'static str;
}

/// Which driver is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// Threads that wait in system calls.
    #[default]
    Threads,
    /// io_uring, where it was built in (the feature `uring`) and the kernel gives it to us; else threads.
    Uring,
}

/// Starts the driver that is wanted, or threads where there is no such.
///
/// # Errors
/// When the system has no threads to give.
pub fn start(choice: Choice, executor: Executor, wake: Waker) -> std::io::Result<Box<dyn Driver>> {
    #[cfg(feature = "uring")]
    if choice == Choice::Uring
        && let Ok(system) = ring::system()
    {
        return Ok(Box::new(Ring::on(system, executor, wake)?));
    }
    let _ = choice;
    Ok(Box::new(Threads::start(executor, wake)?))
}

/// Is called, on any thread, when there is something to take and there was nothing before.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// Completions that were not taken yet: one for each effect that was given and not told, which is bounded as those are.
struct Done {
    list: Mutex<Vec<(EffectId, Outcome)>>,
    wake: Waker,
}

impl Done {
    fn new(wake: Waker) -> Arc<Self> {
        Arc::new(Self { list: Mutex::default(), wake })
    }

    /// The same came of all of these.
    fn add(&self, ids: impl IntoIterator<Item = EffectId>, outcome: &Outcome) {
        let mut list = self.list();
        let first = list.is_empty();
        list.extend(ids.into_iter().map(|id| (id, outcome.clone())));
        drop(list);
        // Who was woken before has not taken them: it will find these too.
        if first {
            (self.wake)();
        }
    }

    fn take(&self) -> Vec<(EffectId, Outcome)> {
        std::mem::take(&mut self.list())
    }

    /// Whole at every step.
    fn list(&self) -> MutexGuard<'_, Vec<(EffectId, Outcome)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").field("waiting", &self.list().len()).finish_non_exhaustive()
    }
}

/// The open files (a segment that is filled, one that is prepared, those that are sealed), and the one that was asked for last: frames go to the same for a long time, and the lock on all of them
/// is not taken for each.
#[derive(Debug)]
struct Files {
    executor: Arc<Executor>,
    last: Option<(FileId, Arc<dyn File>)>,
}

/// An effect with the file that it is done to.
enum Todo {
    Write { file: Arc<dyn File>, offset: u64, data: Vec<Bytes> },
    Other(Work),
}

impl Files {
    fn new(executor: Executor) -> Self {
        Self { executor: Arc::new(executor), last: None }
    }

    fn resolve(&mut self, effect: Effect) -> Result<Todo, MediaError> {
        Ok(match effect {
            Effect::Write { file, offset, data } => Todo::Write { file: self.get(file)?, offset, data },
            Effect::Sync { file } => Todo::Other(Work::Sync(self.get(file)?)),
            Effect::SetLength { file, length } => Todo::Other(Work::SetLength(self.get(file)?, length)),
            effect => {
                if let Effect::Close { file } = &effect {
                    // What is closed is not kept open here.
                    self.last.take_if(|(id, _)| id == file);
                }
                Todo::Other(Work::Names(effect))
            }
        })
    }

    fn get(&mut self, file: FileId) -> Result<Arc<dyn File>, MediaError> {
        if let Some((_, open)) = self.last.as_ref().filter(|(id, _)| *id == file) {
            return Ok(Arc::clone(open));
        }
        let open = self.executor.file(file)?;
        self.last = Some((file, Arc::clone(&open)));
        Ok(open)
    }
}
