//! The server: listens, gives each client a thread, stops gracefully.

use super::connection::{self, Shared};
use super::export::Export;
use super::limits::Limits;
use super::listener::{ListenError, Listener};
use super::protocol::STRING_MAX;
use super::socket::Socket;
use super::stats::Stats;
use super::tls::TlsServer;
use super::uri::{Address, Uri};
use super::wire::Wire;
use crate::sys::sched;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::Shutdown;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, io};
use thiserror::Error;

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen; the export's name and scheme of the URI do not matter, `tls` below decides.
    pub address: Address,
    /// At least one, with different names.
    pub exports: Vec<Export>,
    /// With it, clients that do not upgrade are refused.
    pub tls: Option<TlsServer>,
    /// If the TCP port is taken, try the following hundred.
    pub next_free: bool,
    /// Bounds.
    pub limits: Limits,
}

impl ServerOptions {
    /// Serves `exports` at `address` without TLS, with default limits.
    #[must_use]
    pub fn new(address: Address, exports: Vec<Export>) -> Self {
        Self { address, exports, tls: None, next_free: false, limits: Limits::default() }
    }
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// There is nothing to serve.
    #[error("no export to serve")]
    NoExports,
    /// A name or description is too long, or given twice.
    #[error("the export name {name:?} is given twice or is longer than {STRING_MAX} bytes")]
    Name {
        /// The name.
        name: String,
    },
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refuses a thread or descriptor.
    #[error("cannot start the server's thread: {0}")]
    Thread(#[source] io::Error),
}

/// Where a server is going to serve: taken from now on, and nobody is answered yet. Clients that come meanwhile wait.
#[derive(Debug)]
pub struct Place(Listener);

impl Place {
    /// Listens at `address`; with `next_free`, if the TCP port is taken, at one of the following hundred.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn take(address: &Address, next_free: bool) -> Result<Self, ServeError> {
        Ok(Self(Listener::bind(address, next_free)?))
    }
}

/// A running server. Dropping it stops it, giving what is in flight five seconds.
pub struct Server {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    address: Address,
    stop: Arc<OwnedFd>,
    acceptor: Option<JoinHandle<()>>,
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
    closed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    wires: BTreeMap<u64, Arc<Wire>>,
    stopping: bool,
}

impl Server {
    /// Listens and serves, on threads of its own.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn start(options: ServerOptions) -> Result<Self, ServeError> {
        check_names(&options.exports)?;
        let place = Place::take(&options.address, options.next_free)?;
        Self::start_at(place, options)
    }

    /// Like [`Server::start`], at a place that was taken before: the options' address says nothing then.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn start_at(place: Place, options: ServerOptions) -> Result<Self, ServeError> {
        check_names(&options.exports)?;
        let (Place(listener), ServerOptions { exports, tls, limits, .. }) = (place, options);
        let address = listener.address();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| ServeError::Thread(errno.into()))?);
        let shared = Arc::new(Shared::new(exports, tls, limits));
        let connections = Arc::new(Connections::default());
        let acceptor = {
            let (shared, connections, stop) = (Arc::clone(&shared), Arc::clone(&connections), Arc::clone(&stop));
            let thread = std::thread::Builder::new().name("nbd-accept".into());
            thread.spawn(move || accept(&listener, &shared, &connections, &stop)).map_err(ServeError::Thread)?
        };
        let for_memory = Arc::clone(&shared);
        // Where the system has no thread to give guests wait for memory themselves.
        let _ = std::thread::Builder::new().name("nbd-memory".into()).spawn(move || for_memory.buffers.tend());
        Ok(Self { shared, connections, address, stop, acceptor: Some(acceptor) })
    }

    /// Where it listens, with the port that was found.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// One URI for each export, the first without a name.
    #[must_use]
    pub fn uris(&self) -> Vec<Uri> {
        let base = Uri { tls: self.shared.tls.is_some(), address: self.address.clone(), export: String::new() };
        self.shared.exports().into_iter().map(|export| base.with_export(export.name)).collect()
    }

    /// Offers something else: clients that come from now on see it; those that are here keep what they have.
    ///
    /// # Errors
    /// [`ServeError`], as [`Server::start`].
    pub fn set_exports(&self, exports: Vec<Export>) -> Result<(), ServeError> {
        check_names(&exports)?;
        self.shared.offer(exports);
        Ok(())
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Stops: no new connections, requests that have arrived are completed and answered, then everything is closed.
    /// Connections that are not done after `deadline` are cut; whether there were none is the second value. A device call
    /// that hangs keeps its thread.
    pub fn stop(mut self, deadline: Duration) -> (Stats, bool) {
        let clean = self.shut_down(deadline);
        (self.stats(), clean)
    }

    fn shut_down(&mut self, limit: Duration) -> bool {
        let Some(acceptor) = self.acceptor.take() else { return true };
        let until = Instant::now() + limit;
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        let _ = acceptor.join();
        let mut open = self.connections.lock();
        open.stopping = true;
        // Ends the reading side only: what has arrived can still be read, and replies still leave.
        open.wires.values().for_each(|wire| wire.shutdown(Shutdown::Read));
        open = self.connections.wait_for_none(open, until);
        let clean = open.wires.is_empty();
        open.wires.values().for_each(|wire| wire.shutdown(Shutdown::Both));
        // Those that were only held up by their client end now.
        drop(self.connections.wait_for_none(open, Instant::now() + Duration::from_millis(500)));
        self.shared.workers.stop();
        self.shared.buffers.end();
        clean
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down(Duration::from_secs(5));
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_none<'a>(&self, mut open: MutexGuard<'a, Open>, until: Instant) -> MutexGuard<'a, Open> {
        while !open.wires.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            open = self.closed.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        open
    }
}

fn check_names(exports: &[Export]) -> Result<(), ServeError> {
    if exports.is_empty() {
        return Err(ServeError::NoExports);
    }
    for (index, export) in exports.iter().enumerate() {
        let twice = exports[..index].iter().any(|other| other.name == export.name);
        if twice || export.name.len() > STRING_MAX || export.description.len() > STRING_MAX {
            return Err(ServeError::Name { name: export.name.clone() });
        }
    }
    Ok(())
}

fn accept(listener: &Listener, shared: &Arc<Shared>, connections: &Arc<Connections>, stop: &OwnedFd) {
    loop {
        match listener.accept(stop.as_fd()) {
            Ok(Some(socket)) => admit(socket, shared, connections),
            Ok(None) => return,
            // Out of descriptors or memory, most likely: it passes, and must not become a busy loop.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Gives a client its thread, or closes the connection where there is no room.
fn admit(socket: Socket, shared: &Arc<Shared>, connections: &Arc<Connections>) {
    let counters = &shared.counters;
    let mut open = connections.lock();
    let room = !open.stopping && open.wires.len() < shared.limits.connections_max;
    let wire = if room { Wire::new(socket).ok() } else { None };
    let Some(wire) = wire.map(Arc::new) else { return counters.connections_refused.add(1) };
    let id = open.next;
    open.next += 1;
    open.wires.insert(id, Arc::clone(&wire));
    drop(open);
    counters.connections.add(1);
    counters.connections_open.add(1);
    let guard = OnClose { id, shared: Arc::clone(shared), connections: Arc::clone(connections) };
    // If no thread can be had, the closure with its guard is dropped, and so is the connection.
    let _ = std::thread::Builder::new().name("nbd-client".into()).spawn(move || {
        sched::shorten();
        connection::serve(&guard.shared, &wire);
        drop(guard);
    });
}

/// Strikes a connection off the list, however its thread ends.
struct OnClose {
    id: u64,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
}

impl Drop for OnClose {
    fn drop(&mut self) {
        self.shared.counters.connections_open.subtract(1);
        self.connections.lock().wires.remove(&self.id);
        self.connections.closed.notify_all();
    }
}
