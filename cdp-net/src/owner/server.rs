//! The owner's side of the control socket: one thread that accepts, one for each connection.

use super::lines::{LineError, Lines, send};
use super::lock::Owner;
use super::message::{Answer, Hello, PROTOCOL, Request, VERSION, parse};
use super::socket;
use crate::report::{Problem, ProblemClass};
use rustix::net::Shutdown as SocketShutdown;
use serde_json::Value;
use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

/// Connections served at a time; one more is told `busy`.
const CONNECTIONS_MAX: usize = 64;
/// What one connection may hold at a time.
const HOLDS_MAX: usize = 64;
/// Bytes of a request.
const REQUEST_MAX: usize = 64 << 10;
/// Bytes of an answer: 100,000 points.
pub(super) const ANSWER_MAX: usize = 64 << 20;
/// From connecting to the greeting, and from the first byte of a request to its last.
const LINE_PATIENCE: Duration = Duration::from_secs(5);
/// From the first byte of an answer to its last.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Without a request and without holding anything. Who holds something may be silent for days.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// After `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the owner does when it is asked. Calls come from many threads at once; a panic is answered as `internal`.
pub trait Handler: Send + Sync + 'static {
    /// Does it and answers with a document ([`super::reply`]).
    ///
    /// # Errors
    /// Whatever the asker should be told.
    fn handle(&self, request: Request, connection: &Connection) -> Result<Value, Problem>;
}

/// Who asks, and what is held for him while his connection lives.
pub struct Connection {
    number: u64,
    peer_pid: u32,
    holds: Mutex<Holds>,
}

#[derive(Default)]
struct Holds {
    next: u64,
    held: BTreeMap<u64, Box<dyn Any + Send>>,
}

impl Connection {
    /// For an owner that asks itself, without a socket: number 0, and what it holds ends when it is dropped.
    #[must_use]
    pub fn local() -> Self {
        Self { number: 0, peer_pid: std::process::id(), holds: Mutex::default() }
    }

    /// Counted from 1 by this owner, never used again.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The asking process as it called itself: good for showing, not for believing.
    #[must_use]
    pub fn peer_pid(&self) -> u32 {
        self.peer_pid
    }

    /// Keeps `guard` until [`Connection::release`] or until the connection ends, also when its client is killed; then it is
    /// dropped, and its `Drop` gives back what it stands for.
    ///
    /// # Errors
    /// `too-many-holds` when the connection holds 64 things already; `guard` is dropped then.
    pub fn hold(&self, guard: impl Any + Send) -> Result<u64, Problem> {
        let mut holds = lock(&self.holds);
        if holds.held.len() >= HOLDS_MAX {
            let message = format!("this connection holds {HOLDS_MAX} things already, which is the most");
            return Err(Problem::new(ProblemClass::Refused, "too-many-holds", message).hint("release one first"));
        }
        holds.next += 1;
        let number = holds.next;
        holds.held.insert(number, Box::new(guard));
        Ok(number)
    }

    /// Gives back what `hold` numbered so; `None` if it does not hold that.
    pub fn release(&self, number: u64) -> Option<Box<dyn Any + Send>> {
        lock(&self.holds).held.remove(&number)
    }

    fn holds_anything(&self) -> bool {
        !lock(&self.holds).held.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    handler: Arc<dyn Handler>,
    hello: Hello,
    stopping: AtomicBool,
    /// The sockets of live connections, to wake their threads at the end.
    streams: Mutex<BTreeMap<u64, UnixStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Answers on the control socket until it is dropped.
pub struct ControlServer {
    shared: Arc<Shared>,
    listener: UnixListener,
    dir: OwnedFd,
    acceptor: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Begins to answer in the directory that `owner` owns.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn start(owner: &Owner, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let dir = owner.as_fd().try_clone_to_owned()?;
        let listener = socket::listen_in(dir.as_fd())?;
        let hello =
            Hello { protocol: PROTOCOL.into(), version: VERSION, pid: std::process::id(), since: Some(owner.since()) };
        let shared = Arc::new(Shared {
            handler,
            hello,
            stopping: AtomicBool::new(false),
            streams: Mutex::default(),
            threads: Mutex::default(),
        });
        let (for_thread, accepting) = (Arc::clone(&shared), listener.try_clone()?);
        let acceptor = Builder::new().name("cdp-control".into()).spawn(move || accept_all(&for_thread, &accepting))?;
        Ok(Self { shared, listener, dir, acceptor: Some(acceptor) })
    }
}

/// Ends every connection, waits for requests that are being handled, and removes the socket.
impl Drop for ControlServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Both may fail only for what is gone already.
        let _ = socket::remove(self.dir.as_fd());
        let _ = rustix::net::shutdown(&self.listener, SocketShutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        lock(&self.shared.streams).values().for_each(|stream| {
            let _ = stream.shutdown(Shutdown::Both);
        });
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        threads.into_iter().for_each(|thread| {
            let _ = thread.join();
        });
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &UnixListener) {
    let mut number = 0;
    while !shared.stopping.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                number += 1;
                begin(shared, stream, number);
            }
            Err(_) if shared.stopping.load(Ordering::SeqCst) => {}
            Err(_) => sleep(ACCEPT_PAUSE),
        }
    }
}

/// Takes the connection off the list when its thread ends, also by a panic in what it held.
struct Registered<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.shared.streams).remove(&self.number);
    }
}

/// Gives the connection a thread. One that cannot be served is closed, which its client sees.
fn begin(shared: &Arc<Shared>, stream: UnixStream, number: u64) {
    lock(&shared.threads).retain(|thread| !thread.is_finished());
    let Ok(for_end) = stream.try_clone() else { return };
    {
        let mut streams = lock(&shared.streams);
        if streams.len() >= CONNECTIONS_MAX {
            let message = format!("the owner serves {CONNECTIONS_MAX} connections already, which is the most");
            let problem = Problem::new(ProblemClass::Refused, "busy", message).hint("try again in a moment");
            // The queue of a new socket takes so short a line at once.
            let _ = answer(&stream, 0, Err(problem));
            return;
        }
        streams.insert(number, for_end);
    }
    let for_thread = Arc::clone(shared);
    let thread = Builder::new().name(format!("cdp-control-{number}")).spawn(move || {
        let _registered = Registered { shared: &for_thread, number };
        serve(&for_thread, stream, number);
    });
    match thread {
        Ok(thread) => lock(&shared.threads).push(thread),
        Err(_) => {
            lock(&shared.streams).remove(&number);
        }
    }
}

fn serve(shared: &Shared, stream: UnixStream, number: u64) {
    let Ok(for_lines) = stream.try_clone() else { return };
    let mut lines = Lines::new(for_lines, REQUEST_MAX);
    let Some(peer_pid) = greet(shared, &stream, &mut lines) else { return };
    let connection = Connection { number, peer_pid, holds: Mutex::default() };
    loop {
        let idle = if connection.holds_anything() { None } else { Some(IDLE_MAX) };
        let line = match lines.next(idle, LINE_PATIENCE) {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => return refuse(&stream, &error),
        };
        let (id, request) = parse(&line);
        let result = request.and_then(|request| {
            catch_unwind(AssertUnwindSafe(|| shared.handler.handle(request, &connection))).unwrap_or_else(|_| {
                let message = "the owner met an error of its own while it handled the request";
                Err(Problem::new(ProblemClass::Failed, "internal", message).hint("see the owner's output"))
            })
        });
        if answer(&stream, id, result).is_err() || shared.stopping.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Exchanges greetings: the client's process, or `None` when the connection is over.
fn greet(shared: &Shared, stream: &UnixStream, lines: &mut Lines) -> Option<u32> {
    let line = match lines.next(Some(LINE_PATIENCE), LINE_PATIENCE) {
        Ok(line) => line?,
        Err(error) => {
            refuse(stream, &error);
            return None;
        }
    };
    let usage = |code: &str, message: String| Err(Problem::new(ProblemClass::Usage, code, message));
    let (peer_pid, result) = match serde_json::from_slice::<Hello>(&line) {
        Ok(hello) if hello.protocol == PROTOCOL && hello.version >= 1 => {
            let ours = Hello { version: VERSION.min(hello.version), ..shared.hello.clone() };
            (Some(hello.pid), super::message::reply(ours))
        }
        Ok(hello) => {
            let Hello { protocol, version, .. } = hello;
            (None, usage("version", format!("the owner speaks {PROTOCOL} 1 to {VERSION}, not {protocol} {version}")))
        }
        Err(error) => (None, usage("bad-request", format!("the first line is no greeting: {error}"))),
    };
    answer(stream, 0, result).ok()?;
    peer_pid
}

/// Tells, if it can be told, why the connection ends.
fn refuse(stream: &UnixStream, error: &LineError) {
    if matches!(error, LineError::TooLong { .. } | LineError::Timeout) {
        let problem = Problem::new(ProblemClass::Usage, "bad-request", format!("the connection ends: {error}"));
        let _ = answer(stream, 0, Err(problem));
    }
}

fn answer(stream: &UnixStream, id: u64, result: Result<Value, Problem>) -> Result<(), LineError> {
    let line = serde_json::to_vec(&Answer::new(id, result)).map_err(io::Error::from)?;
    if line.len() <= ANSWER_MAX {
        return send(stream, &line, ANSWER_PATIENCE);
    }
    let message = format!("the answer of {} bytes is longer than the {ANSWER_MAX} that a line may have", line.len());
    let problem =
        Problem::new(ProblemClass::Failed, "too-large", message).hint("ask for less, with --limit or --since");
    let line = serde_json::to_vec(&Answer::new(id, Err(problem))).map_err(io::Error::from)?;
    send(stream, &line, ANSWER_PATIENCE)
}
