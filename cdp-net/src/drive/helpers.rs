//! Threads for what waits for a disk and is no write of frames.

use super::Done;
use super::gather::Together;
use cdp_core::journal::{Effect, EffectId, Executor, Outcome};
use cdp_core::media::{File, MediaError, MediaErrorKind, Operation};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

/// At a gigabyte a second a segment is made and another sealed four times a second, each with a handful of syncs; the sync that
/// makes frames durable must not wait behind them.
const HELPERS: usize = 3;

/// What a thread does. Files were looked up when it was handed out: by the time it is carried out another thread may have closed
/// them.
#[derive(Debug)]
pub(super) enum Work {
    /// What the executor does with names, and to make and close files.
    Names(Effect),
    Sync(Arc<dyn File>),
    SetLength(Arc<dyn File>, u64),
}

impl Work {
    fn run(&self, executor: &Executor) -> Outcome {
        match self {
            Self::Names(effect) => contained(what(effect), || executor.run(effect)),
            Self::Sync(file) => contained((Operation::Sync, file.path()), || file.sync()),
            Self::SetLength(file, length) => contained((Operation::SetLength, file.path()), || file.set_len(*length)),
        }
    }
}

#[derive(Debug)]
struct Job {
    id: EffectId,
    work: Work,
}

/// The threads. Their queue holds what was given and not begun, which who gives it bounds, see [the driver](super). Dropping this waits until all is done that was pushed.
#[derive(Debug)]
pub(super) struct Helpers {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Helpers {
    pub(super) fn start(executor: &Arc<Executor>, done: &Arc<Done>) -> std::io::Result<Self> {
        let (queue, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut helpers = Self { queue: Some(queue), threads: Vec::with_capacity(HELPERS) };
        for _ in 0..HELPERS {
            let (executor, jobs, done) = (Arc::clone(executor), Arc::clone(&jobs), Arc::clone(done));
            helpers.threads.push(Builder::new().name("cdp-sync".into()).spawn(move || run(&executor, &jobs, &done))?);
        }
        Ok(helpers)
    }

    pub(super) fn push(&self, id: EffectId, work: Work) {
        // The threads end only when the queue does, which is what is dropped first.
        let _ = self.queue.as_ref().map(|queue| queue.send(Job { id, work }));
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.queue = None;
        self.threads.drain(..).for_each(end);
    }
}

fn run(executor: &Executor, queue: &Mutex<Receiver<Job>>, done: &Done) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { id, work }) = next else { return };
        let outcome = work.run(executor);
        drop(work);
        done.add([id], &outcome);
    }
}

/// Writes what was put together.
pub(super) fn write(together: &Together) -> Outcome {
    let Together { file, offset, data, .. } = together;
    contained((Operation::Write, file.path()), || file.write_at(*offset, data))
}

/// Waits for a thread. Its work is contained: there is no panic to hear of.
pub(super) fn end(thread: JoinHandle<()>) {
    let _ = thread.join();
}

/// A panic of a storage ends the effect that met it, not the thread, which others wait for.
fn contained((operation, path): (Operation, &str), work: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message =
            "the storage panicked; this is a fault of the program, and what was touched is in an unknown state";
        Err(MediaError::new(MediaErrorKind::Io, operation, path, 0, message))
    })
}

/// How an effect is called in an error.
fn what(effect: &Effect) -> (Operation, &str) {
    match effect {
        Effect::Create { name, .. } => (Operation::Create, name),
        Effect::Read { name, .. } => (Operation::Read, name),
        Effect::Rename { from, .. } => (Operation::Rename, from),
        Effect::Remove { name } => (Operation::Remove, name),
        Effect::SyncDir { name } => (Operation::SyncDir, name),
        Effect::Write { .. } => (Operation::Write, ""),
        Effect::SetLength { .. } => (Operation::SetLength, ""),
        Effect::Sync { .. } => (Operation::Sync, ""),
        Effect::Close { .. } => (Operation::Open, ""),
    }
}
