//! The driver on io_uring: one thread hands writes and syncs of files that have descriptors to the kernel, several at once, and
//! everything else goes to the [threads](Threads) of the other driver.
//!
//! Everything else is what io_uring would have done by a thread of the kernel's, which saves nothing: making a file is several
//! calls that depend on each other (remove, ask for room, open, look what it is, reserve) and end in one of a few errors; names and
//! directories are changed a few times for each segment. Storage without descriptors (in memory, simulated, failing on demand)
//! is written by those threads too.
//!
//! Bounds: of what was handed over ([the module](super) says how much that is) the kernel has [`DEPTH`] operations at most, and of
//! these [`PORTIONS`] portions of writes, each with up to a megabyte of memory that was gathered for it.

use super::gather::{Append, Gather, Together};
use super::helpers::{self, Work};
use super::{Done, Driver, Threads, Todo, Waker};
use crate::sys::ring::{Alarm, Answer, Operation, Ring as System, Write};
use bytes::Bytes;
use cdp_core::journal::{Effect, EffectId, Executor, Outcome};
use cdp_core::media::{self, Cut, File, MediaError, MediaErrorKind, Way};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Operations that the kernel has at once.
const DEPTH: usize = 32;

/// Of these, portions of writes: some megabytes keep a disk busy. The others are syncs.
const PORTIONS: usize = 8;

/// Writes that are cut into portions at once: one is gathered while the kernel works on the others.
const WRITES: usize = 4;

/// How often the kernel is asked again where it says that it was disturbed and has done nothing.
const ATTEMPTS: u32 = 100;

/// Writes and syncs by the kernel, the rest by threads.
#[derive(Debug)]
pub struct Ring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    beside: Threads,
}

/// Between the owner and the thread.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    alarm: Arc<Alarm>,
    done: Arc<Done>,
}

/// What is to be handed to the kernel; bounded as all that a driver is given.
#[derive(Debug, Default)]
struct Queue {
    gather: Gather,
    syncs: VecDeque<(EffectId, Arc<dyn File>)>,
    closed: bool,
    /// The thread waits for the kernel and has to be woken for what is new, for writes only if it takes another one.
    waits: bool,
    takes_writes: bool,
    /// Why the thread has ended and nothing is carried out any more.
    broken: Option<String>,
}

impl Ring {
    /// Starts the thread and those beside it.
    ///
    /// # Errors
    /// Where the kernel has no io_uring or does not let us use it, or the system has no threads to give.
    pub fn start(executor: Executor, wake: Waker) -> std::io::Result<Self> {
        Self::on(system()?, executor, wake)
    }

    pub(super) fn on(system: System<Tag>, executor: Executor, wake: Waker) -> std::io::Result<Self> {
        let beside = Threads::start(executor, wake)?;
        let shared = Shared { queue: Mutex::default(), alarm: system.alarm(), done: Arc::clone(&beside.done) };
        let shared = Arc::new(shared);
        let mut worker = Worker::new(Arc::clone(&shared), system);
        let run = move || {
            let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("the kernel does not go on with its io_uring: {error}"),
                Err(_) => "the thread of the io_uring panicked; this is a fault of the program".to_owned(),
            };
            worker.give_up(&why);
        };
        let thread = Some(Builder::new().name("cdp-ring".into()).spawn(run)?);
        Ok(Self { shared, thread, beside })
    }
}

/// The kernel's part, if there is one for us.
pub(super) fn system() -> std::io::Result<System<Tag>> {
    System::new(DEPTH)
}

impl Driver for Ring {
    fn start(&mut self, id: EffectId, effect: Effect) {
        match self.beside.files.resolve(effect) {
            Ok(Todo::Write { file, offset, data }) if file.raw().is_some() => {
                self.shared.write(Append { id, file, offset, data });
            }
            Ok(Todo::Other(Work::Sync(file))) if file.raw().is_some() => self.shared.sync(id, file),
            other => self.beside.carry_out(id, other),
        }
    }

    fn take(&mut self) -> Vec<(EffectId, Outcome)> {
        self.beside.take()
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.gather.close();
        drop(queue);
        self.shared.alarm.ring();
        self.thread.take().into_iter().for_each(helpers::end);
    }
}

impl Shared {
    fn write(&self, append: Append) {
        let mut queue = self.lock();
        if let Some(why) = &queue.broken {
            let error = broken(media::Operation::Write, append.file.as_ref(), why);
            drop(queue);
            return self.done.add([append.id], &Err(error));
        }
        queue.gather.push(append);
        if queue.takes_writes && queue.gather.is_worth_it() {
            self.wake(queue);
        }
    }

    fn sync(&self, id: EffectId, file: Arc<dyn File>) {
        let mut queue = self.lock();
        if let Some(why) = &queue.broken {
            let error = broken(media::Operation::Sync, file.as_ref(), why);
            drop(queue);
            return self.done.add([id], &Err(error));
        }
        queue.syncs.push_back((id, file));
        self.wake(queue);
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.waits) {
            drop(queue);
            self.alarm.ring();
        }
    }

    /// Whole at every step.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken(operation: media::Operation, file: &dyn File, why: &str) -> MediaError {
    MediaError::new(MediaErrorKind::Io, operation, file.path(), 0, why)
}

/// What an operation of the kernel's is for.
#[derive(Debug)]
pub(super) enum Tag {
    /// A portion of a write, and how often it was disturbed.
    Write {
        job: u64,
        disturbed: u32,
    },
    Sync(EffectId),
}

/// A write that is being cut and written.
#[derive(Debug)]
struct Job {
    ids: Vec<EffectId>,
    file: Arc<dyn File>,
    data: Arc<Vec<Bytes>>,
    /// None when there is nothing left to cut, or nothing more is written after a failure.
    cut: Option<Cut>,
    /// Portions that the kernel has.
    underway: usize,
    failed: Option<MediaError>,
}

/// The thread.
struct Worker {
    shared: Arc<Shared>,
    system: System<Tag>,
    jobs: BTreeMap<u64, Job>,
    next: u64,
    /// Portions that the kernel has.
    portions: usize,
    /// Syncs that the kernel has, and their files.
    syncs: BTreeMap<EffectId, Arc<dyn File>>,
    /// Writes that are through and that the queue was not told of.
    written: usize,
}

impl Worker {
    fn new(shared: Arc<Shared>, system: System<Tag>) -> Self {
        Self { shared, system, jobs: BTreeMap::new(), next: 0, portions: 0, syncs: BTreeMap::new(), written: 0 }
    }

    /// Runs until nothing more comes and all is carried out.
    fn run(&mut self) -> std::io::Result<()> {
        let mut done = Vec::new();
        while self.fetch() {
            self.feed();
            if self.written > 0 {
                // Through already: what waits for the disk to be idle need not.
                continue;
            }
            self.system.wait(&mut done)?;
            for (tag, operation, answer) in done.drain(..) {
                match (tag, operation) {
                    (Tag::Sync(id), Operation::Sync(file)) => self.synced(id, file.as_ref(), answer),
                    (Tag::Write { job, disturbed }, Operation::Write(write)) => {
                        self.answered(job, disturbed, write, answer);
                    }
                    (tag, operation) => unreachable!("{operation:?} was never handed over as {tag:?}"),
                }
            }
        }
        Ok(())
    }

    /// Takes what is new and can be begun; whether there is anything to wait for.
    fn fetch(&mut self) -> bool {
        let mut queue = self.shared.lock();
        for _ in 0..std::mem::take(&mut self.written) {
            queue.gather.written();
        }
        let mut taken = Vec::new();
        while self.jobs.len() + taken.len() < WRITES
            && let Some(together) = queue.gather.take()
        {
            taken.push(together);
        }
        let room = (DEPTH - PORTIONS).saturating_sub(self.syncs.len()).min(queue.syncs.len());
        let syncs: Vec<_> = queue.syncs.drain(..room).collect();
        queue.waits = true;
        queue.takes_writes = self.jobs.len() + taken.len() < WRITES;
        let over = queue.closed && queue.gather.is_over() && queue.syncs.is_empty();
        drop(queue);
        for (id, file) in syncs {
            self.syncs.insert(id, Arc::clone(&file));
            if self.system.start(Tag::Sync(id), Operation::Sync(Arc::clone(&file))).is_err() {
                self.synced(id, file.as_ref(), Err(libc::EBADF));
            }
        }
        taken.into_iter().for_each(|together| self.begin(together));
        !(over && self.jobs.is_empty() && self.system.is_idle())
    }

    fn begin(&mut self, together: Together) {
        let Together { ids, file, offset, data } = together;
        let bytes = data.iter().map(Bytes::len).sum();
        let cut = file.raw().map(|raw| raw.cut(offset, bytes));
        let lost = || said(file.as_ref(), libc::EBADF, media::Operation::Write, offset);
        let failed = if cut.is_none() { Some(lost()) } else { None };
        self.jobs.insert(self.next, Job { ids, file, data: Arc::new(data), cut, underway: 0, failed });
        self.next += 1;
    }

    /// Hands as many portions over as the kernel may have.
    fn feed(&mut self) {
        let mut cut = Vec::new();
        for (number, job) in &mut self.jobs {
            while self.portions < PORTIONS
                && let Some(portions) = &mut job.cut
            {
                let (way, next) = (portions.way(), portions.next(job.data.as_slice()));
                let Some(portion) = next else {
                    job.cut = None;
                    break;
                };
                let (file, data) = (Arc::clone(&job.file), Arc::clone(&job.data));
                let write = Write { file, way, portion, data, done: 0 };
                let tag = Tag::Write { job: *number, disturbed: 0 };
                job.underway += 1;
                self.portions += 1;
                if let Err(Operation::Write(write)) = self.system.start(tag, Operation::Write(write)) {
                    job.fail(&write, libc::EBADF);
                    job.underway -= 1;
                    self.portions -= 1;
                }
            }
            if job.is_through() {
                cut.push(*number);
            }
        }
        // Empty writes, and those that could not be begun.
        cut.into_iter().for_each(|number| self.tell(number));
    }

    /// The kernel is through with a portion, or with some of it.
    fn answered(&mut self, number: u64, disturbed: u32, mut write: Write, answer: Answer) {
        let again = match answer {
            Ok(0) => Err(libc::ENOSPC),
            Ok(bytes) => {
                write.done += bytes;
                Ok((write.done < write.portion.bytes()).then_some(0))
            }
            // What is below may have changed, or said more than it can do: the cache takes the same bytes to the same place.
            Err(libc::EINVAL) if write.way == Way::Direct => {
                write.file.raw().into_iter().for_each(media::Raw::give_up_direct);
                write.way = Way::Cached;
                Ok(Some(0))
            }
            Err(libc::EINTR | libc::EAGAIN) if disturbed < ATTEMPTS => Ok(Some(disturbed + 1)),
            Err(errno) => Err(errno),
        };
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let through = match again {
            Ok(None) => true,
            Ok(Some(disturbed)) => {
                let tag = Tag::Write { job: number, disturbed };
                match self.system.start(tag, Operation::Write(write)) {
                    Err(Operation::Write(write)) => {
                        job.fail(&write, libc::EBADF);
                        true
                    }
                    _ => false,
                }
            }
            Err(errno) => {
                job.fail(&write, errno);
                true
            }
        };
        if through {
            job.underway -= 1;
            self.portions -= 1;
            if job.is_through() {
                self.tell(number);
            }
        }
    }

    /// A write is through.
    fn tell(&mut self, number: u64) {
        let Some(Job { ids, file, data, failed, .. }) = self.jobs.remove(&number) else { return };
        // Their memory may be wanted by whom the completion wakes.
        drop((file, data));
        self.written += 1;
        self.shared.done.add(ids, &failed.map_or(Ok(()), Err));
    }

    fn synced(&mut self, id: EffectId, file: &dyn File, answer: Answer) {
        self.syncs.remove(&id);
        let outcome = answer.map(drop).map_err(|errno| said(file, errno, media::Operation::Sync, 0));
        self.shared.done.add([id], &outcome);
    }

    /// Tells that nothing of what was handed over is carried out any more. Nobody knows how much of it was.
    fn give_up(mut self, why: &str) {
        let mut queue = self.shared.lock();
        queue.broken = Some(why.to_owned());
        queue.gather.close();
        let mut writes = Vec::new();
        while let Some(Together { ids, file, .. }) = queue.gather.take() {
            writes.push((ids, file));
        }
        let mut syncs: Vec<_> = queue.syncs.drain(..).collect();
        drop(queue);
        writes.extend(std::mem::take(&mut self.jobs).into_values().map(|job| (job.ids, job.file)));
        syncs.extend(std::mem::take(&mut self.syncs));
        for (ids, file) in writes {
            self.shared.done.add(ids, &Err(broken(media::Operation::Write, file.as_ref(), why)));
        }
        for (id, file) in syncs {
            self.shared.done.add([id], &Err(broken(media::Operation::Sync, file.as_ref(), why)));
        }
    }
}

impl Job {
    /// The first failure is told; nothing more is cut.
    fn fail(&mut self, write: &Write, errno: i32) {
        let at = write.portion.offset() + write.done as u64;
        self.failed.get_or_insert_with(|| said(write.file.as_ref(), errno, media::Operation::Write, at));
        self.cut = None;
    }

    fn is_through(&self) -> bool {
        self.cut.is_none() && self.underway == 0
    }
}

/// What the kernel said, as the file says it.
fn said(file: &dyn File, errno: i32, operation: media::Operation, offset: u64) -> MediaError {
    let message =
        || MediaError::new(MediaErrorKind::Io, operation, file.path(), offset, "it has no descriptor any more");
    file.raw().map_or_else(message, |raw| raw.error(errno, operation, offset))
}

#[cfg(test)]
mod tests;
