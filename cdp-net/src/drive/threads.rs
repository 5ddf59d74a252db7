//! The driver that has threads wait in system calls: four write, three do everything else.

use super::gather::{Append, Gather, Together};
use super::helpers::{self, Helpers};
use super::{Done, Driver, Files, Todo, Waker};
use cdp_core::journal::{Effect, EffectId, Executor, Outcome};
use cdp_core::media::MediaError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// So many threads write at once: one gathers while the disk works for the others.
const WRITERS: usize = 4;

/// Threads for writes, and threads for what else waits for a disk. Works on any storage.
#[derive(Debug)]
pub struct Threads {
    pub(super) files: Files,
    pub(super) done: Arc<Done>,
    queue: Arc<Queue>,
    writers: Vec<JoinHandle<()>>,
    helpers: Helpers,
}

/// What is to be written, between the owner and the threads.
#[derive(Debug, Default)]
struct Queue {
    gather: Mutex<Gather>,
    changed: Condvar,
}

impl Threads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn start(executor: Executor, wake: Waker) -> std::io::Result<Self> {
        let (files, done) = (Files::new(executor), Done::new(wake));
        let helpers = Helpers::start(&files.executor, &done)?;
        let mut threads = Self { files, done, queue: Arc::default(), writers: Vec::with_capacity(WRITERS), helpers };
        for _ in 0..WRITERS {
            let (queue, done) = (Arc::clone(&threads.queue), Arc::clone(&threads.done));
            threads.writers.push(Builder::new().name("cdp-append".into()).spawn(move || run(&queue, &done))?);
        }
        Ok(threads)
    }
}

impl Driver for Threads {
    fn start(&mut self, id: EffectId, effect: Effect) {
        let todo = self.files.resolve(effect);
        self.carry_out(id, todo);
    }

    fn take(&mut self) -> Vec<(EffectId, Outcome)> {
        self.done.take()
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}

impl Threads {
    pub(super) fn carry_out(&self, id: EffectId, todo: Result<Todo, MediaError>) {
        match todo {
            Ok(Todo::Write { file, offset, data }) => self.queue.push(Append { id, file, offset, data }),
            Ok(Todo::Other(work)) => self.helpers.push(id, work),
            Err(error) => self.done.add([id], &Err(error)),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.lock().close();
        self.queue.changed.notify_all();
        self.writers.drain(..).for_each(helpers::end);
    }
}

impl Queue {
    fn push(&self, append: Append) {
        let mut gather = self.lock();
        gather.push(append);
        if gather.is_worth_it() {
            self.changed.notify_one();
        }
    }

    /// Waits for something to write; none when all is written and nothing more comes.
    fn next(&self) -> Option<Together> {
        let mut gather = self.lock();
        loop {
            if let Some(together) = gather.take() {
                if gather.is_worth_it() {
                    self.changed.notify_one();
                }
                return Some(together);
            }
            if gather.is_over() {
                return None;
            }
            gather = self.changed.wait(gather).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self) {
        let mut gather = self.lock();
        gather.written();
        if gather.is_worth_it() {
            self.changed.notify_one();
        }
    }

    /// Whole at every step.
    fn lock(&self) -> MutexGuard<'_, Gather> {
        self.gather.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes until nothing more comes. What the journal hands out may be written in any order and at once.
fn run(queue: &Queue, done: &Done) {
    while let Some(together) = queue.next() {
        let outcome = helpers::write(&together);
        let Together { ids, file, data, .. } = together;
        // Their memory may be wanted by whom the completion wakes.
        drop((file, data));
        queue.written();
        done.add(ids, &outcome);
    }
}
