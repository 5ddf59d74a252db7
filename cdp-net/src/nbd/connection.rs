//! One client's thread: the handshake, then the transmission loop.
//!
//! The loop receives as much as there is, runs every complete request of it, and sends the collected replies when no further
//! request is ready. What is quick (writes into the cache, reads from it) runs right here, because handing it to another thread
//! would cost more than the request; what may wait for a disk goes to the workers, unless it is the only request there is.

mod receive;

use super::buffers::{Buffers, LARGE_BYTES};
use super::execute::{self, ShortReply};
use super::export::Export;
use super::handshake::{Handshake, Session, Step, Tls};
use super::limits::Limits;
use super::protocol::*;
use super::stats::Counters;
use super::tls::TlsServer;
use super::wire::{InFlight, Wire};
use super::workers::{self, Job, Work, Workers};
use crate::device::{Rest, Written};
use crate::sys::sched;
use bytes::Bytes;
use receive::{Limit, Next, Receiver};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// Reads up to this length are tried on the connection's thread, in bytes.
const INLINE_READ_MAX: u32 = 64 << 10;
/// Writes up to this length run on the connection's thread, in bytes: at 1 MiB that took 30 % less CPU than a hand-off.
const INLINE_WRITE_MAX: u32 = 1 << 20;
/// Room for replies that are sent together, in bytes.
const REPLIES_BYTES: usize = 256 << 10;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    exports: RwLock<Vec<Export>>,
    pub(crate) tls: Option<TlsServer>,
    pub(crate) limits: Limits,
    pub(crate) buffers: Buffers,
    pub(crate) counters: Counters,
    pub(crate) workers: Workers,
}

impl Shared {
    pub(crate) fn new(exports: Vec<Export>, tls: Option<TlsServer>, limits: Limits) -> Self {
        let workers = Workers::new(limits.workers_max, limits.jobs_max);
        let (buffers, counters) = (Buffers::new(), Counters::default());
        Self { exports: RwLock::new(exports), tls, limits, buffers, counters, workers }
    }

    /// What is offered now.
    pub(crate) fn exports(&self) -> Vec<Export> {
        self.exports.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Offers something else from the next client on.
    pub(crate) fn offer(&self, exports: Vec<Export>) {
        *self.exports.write().unwrap_or_else(PoisonError::into_inner) = exports;
    }
}

/// Serves one client until it leaves.
pub(crate) fn serve(shared: &Arc<Shared>, wire: &Arc<Wire>) {
    let mut receiver = Receiver::new(Arc::clone(wire), shared.buffers.receive(), shared.limits.spin);
    match handshake(shared, wire, &mut receiver) {
        Ok(Some((session, export))) => {
            let replies = Replies { bytes: vec![0; REPLIES_BYTES].into(), length: 0, count: 0 };
            let aside = Aside::default();
            let connection = Connection { shared, wire, session, export, receiver, replies, aside, complete_by: None };
            if connection.run().is_err() {
                shared.counters.connections_broken.add(1);
            }
        }
        Ok(None) => {}
        Err(_) => shared.counters.handshakes_failed.add(1),
    }
    wire.close();
}

/// Runs the handshake; `None` if the client took its leave.
fn handshake(shared: &Shared, wire: &Wire, receiver: &mut Receiver) -> io::Result<Option<(Session, Arc<Export>)>> {
    let deadline = Instant::now() + shared.limits.handshake;
    let tls = if shared.tls.is_some() { Tls::Required } else { Tls::Off };
    let mut out = Vec::new();
    // What is offered may change: this client sees what was offered when it came.
    let exports = shared.exports();
    let mut handshake = Handshake::new(&exports, tls, &mut out);
    loop {
        let handled = handshake.handle(receiver.unread(), &mut out);
        wire.send(&out);
        out.clear();
        let (used, step) = handled.map_err(io::Error::other)?;
        receiver.consume(used);
        match step {
            Step::Continue => {}
            Step::NeedInput => {
                wire.drain(Some(deadline))?;
                if !receiver.receive_until(&shared.buffers, deadline)? {
                    return if receiver.unread().is_empty() { Ok(None) } else { Err(truncated()) };
                }
            }
            Step::StartTls => {
                let Some(tls) = &shared.tls else { return Err(io::ErrorKind::InvalidInput.into()) };
                if !receiver.unread().is_empty() {
                    // Sent before TLS, it would be read as if it had come through TLS.
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "plain bytes after STARTTLS"));
                }
                wire.drain(Some(deadline))?;
                wire.upgrade(tls.connection().map_err(io::Error::other)?);
                handshake.tls_started();
            }
            Step::Transmission(session) => return Ok(Some((session, Arc::new(exports[session.export].clone())))),
            Step::Abort => return Ok(None),
        }
    }
}

fn truncated() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

struct Connection<'a> {
    shared: &'a Arc<Shared>,
    wire: &'a Arc<Wire>,
    session: Session,
    export: Arc<Export>,
    receiver: Receiver,
    replies: Replies,
    aside: Aside,
    /// When the request that has begun to arrive must be complete.
    complete_by: Option<Instant>,
}

/// A thread of this connection for its writes that wait for something. It takes them in the order of their places, so that whoever is
/// waited for is under way or next at one of these threads: among the workers, which are few, those who wait could keep out whom they
/// wait for.
#[derive(Default)]
struct Aside(Option<Sender<Job>>);

impl Aside {
    /// Gives the job back where the caller must run it.
    fn put(&mut self, shared: &Arc<Shared>, job: Job) -> Option<Job> {
        if self.0.is_none() {
            let (sender, jobs) = channel::<Job>();
            let for_thread = Arc::clone(shared);
            let run = move || {
                sched::shorten();
                jobs.iter().for_each(|job| workers::run(&for_thread, job));
            };
            self.0 = std::thread::Builder::new().name("nbd-aside".into()).spawn(run).ok().map(|_| sender);
        }
        match &self.0 {
            // The thread ends with this.
            Some(sender) => sender.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        }
    }
}

/// Replies that wait to be sent together.
struct Replies {
    bytes: Box<[u8]>,
    length: usize,
    count: usize,
}

impl Replies {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self.count += 1;
    }

    /// Sends what the socket takes; the rest goes out whenever the connection's thread waits.
    fn hand_over(&mut self, wire: &Wire) {
        if self.length > 0 {
            wire.send(&self.bytes[..self.length]);
            self.length = 0;
            self.count = 0;
        }
    }

    fn send(&mut self, wire: &Wire) {
        if self.length > 0 {
            self.hand_over(wire);
            // Only a client that does not read its replies gets here more than once; the socket tells when it is gone.
            let _ = wire.drain(None);
        }
    }
}

impl Connection<'_> {
    /// Serves until the client leaves; an error if it left in the middle of something or broke the protocol. Whatever was
    /// received completely is carried out all the same.
    fn run(mut self) -> io::Result<()> {
        let ended = self.transmission();
        self.send_replies();
        self.wire.wait_until(None, |now| now.requests == 0 && !now.stalled)?;
        ended
    }

    fn transmission(&mut self) -> io::Result<()> {
        loop {
            let next = self.receiver.next().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if !matches!(next, Next::Incomplete) {
                self.complete_by = None;
            }
            match next {
                Next::Request(request, payload) if request.command == command::DISC => {
                    drop(payload);
                    return Ok(());
                }
                Next::Request(request, payload) => self.request(&request, payload)?,
                Next::Large(request) => {
                    self.admit(request.length as usize)?;
                    let Self { shared, wire, receiver, replies, .. } = self;
                    let deadline = Instant::now() + shared.limits.request;
                    let payload =
                        receiver.receive_large(&request, &shared.buffers, deadline, || replies.hand_over(wire))?;
                    self.request(&request, payload)?;
                }
                Next::Skip(request) => {
                    self.send_replies();
                    let deadline = Instant::now() + self.shared.limits.request;
                    self.receiver.skip(&request, &self.shared.buffers, deadline)?;
                    self.refuse(&request, NbdError::Inval);
                }
                Next::Incomplete => {
                    self.send_replies();
                    self.admit(0)?;
                    let begun = !self.receiver.unread().is_empty();
                    if !self.receive(begun)? {
                        return if begun { Err(truncated()) } else { Ok(()) };
                    }
                }
            }
        }
    }

    /// Receives more; `false` at the end of the stream.
    fn receive(&mut self, begun: bool) -> io::Result<bool> {
        let in_flight = self.wire.in_flight();
        if in_flight.broken {
            // Nobody is there to reply to: what has arrived is carried out, nothing is waited for.
            return self.receiver.receive_now(&self.shared.buffers);
        }
        let limits = &self.shared.limits;
        let limit = if begun {
            // Counted from the first byte, or a client could send one byte a minute.
            let deadline = *self.complete_by.get_or_insert_with(|| Instant::now() + limits.request);
            Limit::At(deadline)
        } else {
            limits.idle.map_or(Limit::None, Limit::Idle)
        };
        self.receiver.receive(&self.shared.buffers, in_flight.requests > 0, limit)
    }

    /// Waits until `bytes` more may be in flight, and until the client has taken its replies: the promised bounds.
    fn admit(&mut self, bytes: usize) -> io::Result<()> {
        let limits = &self.shared.limits;
        let admitted = |now: InFlight| {
            let room = now.requests < limits.requests_max && now.bytes + bytes <= limits.bytes_max;
            !now.stalled && (room || now.requests == 0)
        };
        if !admitted(self.wire.in_flight()) {
            self.replies.send(self.wire);
            self.wire.wait_until(None, admitted)?;
        }
        Ok(())
    }

    fn request(&mut self, request: &Request, payload: Bytes) -> io::Result<()> {
        let export = self.export.as_ref();
        if let Err(error) = execute::check(request, export, self.session) {
            self.refuse(request, error);
            return Ok(());
        }
        match request.command {
            command::WRITE if request.length <= INLINE_WRITE_MAX && !request.has(command_flag::FUA) => {
                match execute::write_now(request.offset, payload, export, &self.shared.counters) {
                    Ok(Written::Waits(rest)) => self.put_aside(request, rest),
                    result => {
                        self.answer(request, result.map(|_| ()));
                        Ok(())
                    }
                }
            }
            command::READ if request.length <= INLINE_READ_MAX && self.read_inline(request) => Ok(()),
            _ => self.slow(request, payload),
        }
    }

    /// Tries to read from memory, straight into the replies.
    fn read_inline(&mut self, request: &Request) -> bool {
        let header = execute::read_header_bytes(self.session);
        let length = request.length as usize;
        self.reserve(header + length);
        let export = self.export.as_ref();
        let at = self.replies.length;
        let data = &mut self.replies.bytes[at + header..at + header + length];
        match execute::read_now(request.offset, data, export, &self.shared.counters) {
            Ok(true) => {
                let mut space = [0; execute::READ_HEADER_MAX];
                let used = execute::read_header(request, self.session, &mut space);
                self.replies.bytes[at..at + header].copy_from_slice(&space[space.len() - used..]);
                self.replies.length += header + length;
                self.replies.count += 1;
                self.shared.counters.requests.add(1);
                self.send_when_due(false);
                true
            }
            Ok(false) => false,
            Err(error) => {
                self.refuse(request, error);
                true
            }
        }
    }

    /// Runs a request that may wait: here if there is no other, else on a worker.
    fn slow(&mut self, request: &Request, payload: Bytes) -> io::Result<()> {
        let bytes = match request.command {
            command::READ | command::WRITE => request.length as usize,
            _ => 0,
        };
        let alone =
            self.receiver.unread().is_empty() && self.wire.in_flight().requests == 0 && !self.wire.input_ready();
        self.send_replies();
        self.admit(bytes)?;
        self.wire.begin(bytes);
        let (wire, session, request) = (Arc::clone(self.wire), self.session, *request);
        let export = Arc::clone(&self.export);
        let job = Job { wire, session, export, request, work: Work::Request(payload), charge: bytes };
        let here = if alone { Some(job) } else { self.shared.workers.submit(self.shared, job) };
        if let Some(job) = here {
            workers::run(self.shared, job);
        }
        Ok(())
    }

    /// Leaves a write that waits for something to another thread: the others of this client do not wait for it.
    fn put_aside(&mut self, request: &Request, rest: Rest) -> io::Result<()> {
        let charge = request.length as usize;
        self.wire.begin(charge);
        let (wire, session, request) = (Arc::clone(self.wire), self.session, *request);
        let job = Job { wire, session, export: Arc::clone(&self.export), request, work: Work::Rest(rest), charge };
        if let Some(job) = self.aside.put(self.shared, job) {
            self.send_replies();
            workers::run(self.shared, job);
        }
        // It has its place already; the bounds hold for those behind it.
        self.admit(0)
    }

    fn refuse(&mut self, request: &Request, error: NbdError) {
        self.answer(request, Err(error));
    }

    fn answer(&mut self, request: &Request, result: Result<(), NbdError>) {
        self.shared.counters.requests.add(1);
        self.shared.counters.errors.add(result.is_err().into());
        let reply = ShortReply::new(request, self.session, result);
        self.reserve(reply.as_bytes().len());
        self.replies.push(reply.as_bytes());
        // After a large one the client is better at its next request: a call is little beside what this one took.
        self.send_when_due(request.length as usize >= LARGE_BYTES);
    }

    fn reserve(&mut self, bytes: usize) {
        if self.replies.bytes.len() - self.replies.length < bytes {
            self.send_replies();
        }
    }

    /// Sends what has collected, if that is wished now or there is enough: a client at depth begins to work on the first
    /// replies while we go on with the rest.
    fn send_when_due(&mut self, now: bool) {
        if now || self.replies.count >= self.shared.limits.replies_together {
            self.send_replies();
        }
    }

    fn send_replies(&mut self) {
        self.replies.send(self.wire);
    }
}
