//! Threads for requests that may wait for a disk: flushes, large transfers, everything that is not served from memory.
//!
//! Bounds: at most `threads_max` threads, started when needed, and at most `jobs_max` waiting jobs; a connection that finds
//! the queue full runs its job itself. Jobs never wait for a client (see `wire`).

use super::connection::Shared;
use super::execute::{self, ShortReply};
use super::export::Export;
use super::handshake::Session;
use super::protocol::*;
use super::wire::Wire;
use crate::device::Rest;
use crate::sys::sched;
use bytes::Bytes;
use cdp_core::buffer::PAGE;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// A device is asked for its holes only for reads from this length on, where skipping them pays.
const HOLES_FROM_BYTES: u32 = 64 << 10;
/// The most pieces that one read is answered in.
const READ_PIECES_MAX: usize = 16;

/// One request on its way to the device.
pub(crate) struct Job {
    pub(crate) wire: Arc<Wire>,
    pub(crate) session: Session,
    pub(crate) export: Arc<Export>,
    pub(crate) request: Request,
    pub(crate) work: Work,
    /// What was counted by `Wire::begin`.
    pub(crate) charge: usize,
}

/// What is to be done for a request.
pub(crate) enum Work {
    /// All of it, with what a write brought along.
    Request(Bytes),
    /// What is left of a write that waits for something. It has its place among the others: it is never dropped.
    Rest(Rest),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("request", &self.request).field("charge", &self.charge).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Workers {
    threads_max: usize,
    jobs_max: usize,
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stop: bool,
}

impl Workers {
    pub(crate) fn new(threads_max: usize, jobs_max: usize) -> Self {
        let state = State { jobs: VecDeque::with_capacity(jobs_max), ..State::default() };
        Self { threads_max, jobs_max, state: Mutex::new(state), ready: Condvar::new() }
    }

    /// Queues a job; gives it back where the caller must run it.
    pub(crate) fn submit(&self, shared: &Arc<Shared>, job: Job) -> Option<Job> {
        let mut state = self.lock();
        if state.stop || state.jobs.len() >= self.jobs_max {
            return Some(job);
        }
        if state.idle <= state.jobs.len() && state.threads < self.threads_max {
            // Weak: a worker must not keep its own pool alive.
            let weak = Arc::downgrade(shared);
            let started = std::thread::Builder::new().name("nbd-worker".into()).spawn(move || work(&weak));
            state.threads += usize::from(started.is_ok());
        }
        if state.threads == 0 {
            return Some(job);
        }
        state.jobs.push_back(job);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        None
    }

    /// Lets the threads end once the queue is empty.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.ready.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.stop {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Devices' panics are contained before they get here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Weak<Shared>) {
    let Some(shared) = shared.upgrade() else { return };
    // A guest waits for what it does.
    sched::shorten();
    while let Some(job) = shared.workers.next() {
        run(&shared, job);
    }
}

/// Runs a job and sends its reply.
pub(crate) fn run(shared: &Shared, job: Job) {
    let Job { wire, session, export, request, work, charge } = job;
    let (export, counters) = (export.as_ref(), &shared.counters);
    let short = |()| Bytes::copy_from_slice(ShortReply::new(&request, session, Ok(())).as_bytes());
    let result = match (request.command, work) {
        (_, Work::Rest(rest)) => execute::finish(rest, counters).map(short),
        (command::READ, _) => read(shared, &wire, &request, (session, export)),
        (command::BLOCK_STATUS, _) => execute::block_status_reply(&request, export, counters).map(Bytes::from),
        (_, Work::Request(payload)) => execute::apply(&request, export, payload, counters).map(short),
    };
    shared.counters.requests.add(1);
    let reply = result.unwrap_or_else(|error| {
        shared.counters.errors.add(1);
        Bytes::copy_from_slice(ShortReply::new(&request, session, Err(error)).as_bytes())
    });
    wire.complete(reply, charge);
}

/// Reads into a buffer whose data begin on a page; the header lies directly before them, so that one send does.
fn read(
    shared: &Shared,
    wire: &Wire,
    request: &Request,
    (session, export): (Session, &Export),
) -> Result<Bytes, NbdError> {
    let may_split = session.structured && request.length >= HOLES_FROM_BYTES && !request.has(command_flag::DF);
    if may_split && let Some(reply) = read_around_holes(shared, wire, request, export)? {
        return Ok(reply);
    }
    let length = request.length as usize;
    let mut buffer = shared.buffers.large(length);
    execute::read(request.offset, &mut buffer[PAGE..PAGE + length], export, &shared.counters)?;
    let header = match buffer[..PAGE].last_chunk_mut() {
        Some(space) => execute::read_header(request, session, space),
        None => return Err(NbdError::Io),
    };
    let _ = buffer.freeze_front(PAGE - header);
    Ok(buffer.freeze(header + length))
}

/// A reply in several chunks where the range has holes; `None` if it has none. All but the last chunk are sent here. A read
/// that fails in between ends in an error chunk, which voids the others.
fn read_around_holes(
    shared: &Shared,
    wire: &Wire,
    request: &Request,
    export: &Export,
) -> Result<Option<Bytes>, NbdError> {
    let length = u64::from(request.length);
    // A device that cannot tell is read.
    let extents = execute::block_status(request.offset, length, READ_PIECES_MAX, export, &shared.counters);
    let extents = extents.unwrap_or_default();
    if !extents.iter().any(|extent| extent.hole && extent.zero) {
        return Ok(None);
    }
    let mut offset = request.offset;
    let end = offset + length;
    let told = extents.iter().map(|extent| (extent.length, extent.hole && extent.zero));
    // What did not fit into the answer is read.
    let rest = length - extents.iter().map(|extent| extent.length).sum::<u64>();
    for (piece, hole) in told.chain([(rest, false)]).filter(|(piece, _)| *piece > 0) {
        let piece_bytes = u32::try_from(piece).map_err(|_| NbdError::Io)?;
        let last = offset + piece == end;
        let chunk = if hole {
            Bytes::copy_from_slice(&execute::hole_chunk(request, offset, piece_bytes, last))
        } else {
            let length = piece_bytes as usize;
            let mut buffer = shared.buffers.large(length);
            execute::read(offset, &mut buffer[PAGE..PAGE + length], export, &shared.counters)?;
            let Some(space) = buffer[..PAGE].last_chunk_mut() else { return Err(NbdError::Io) };
            execute::data_chunk(request, offset, piece_bytes, last, space);
            let _ = buffer.freeze_front(PAGE - execute::READ_HEADER_MAX);
            buffer.freeze(execute::READ_HEADER_MAX + length)
        };
        if last {
            return Ok(Some(chunk));
        }
        wire.send_shared(chunk);
        offset += piece;
    }
    Err(NbdError::Io)
}
