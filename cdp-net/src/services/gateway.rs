//! The gateway: the provider's one open port. Lets in who has a ticket, and passes on what it cannot read.
//!
//! ```text
//!  dials with a ticket                                        judges the ticket again, and inside of
//!  in the clear, then TLS                                     TLS that the certificate is the ticket's
//!        |                                                                 ^
//!        v   preamble                           the same preamble          |
//!     listener --> judge: MAC, time, route --> limits --> dial by the route's name --> bytes both ways
//! ```
//!
//! A ticket's route is a name of `[gateway.to]`. Tickets, routes and limits are judged when a connection comes; one that was let in stays
//! until one of its sides ends it. Each costs a task, two descriptors and at most twice [`PIECE_BYTES`]; a tenant at its limits waits
//! alone.

mod limits;
mod relay;

pub use relay::PIECE_BYTES;

use self::limits::{Limits, Tenants};
use self::relay::Let;
use super::config::{Config, GatewayConfig};
use super::door::Judge;
use super::role::{Context, DoorReport, Drained, Notes, Report, Role, RoleError};
use super::tickets::TicketFileError;
use crate::link::listener::{AcceptOptions, Listener, OPENING_WITHIN, Opening, Slot, Turned, read_preamble};
use cdp_core::link::message::{Code, Farewell};
use cdp_core::link::preamble::{Preamble, ticket_farewell};
use cdp_core::policy::throttle::GROUPS_MAX;
use cdp_core::trust::ticket::{Ticket, TicketError};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Connections at once, at most: half a gigabyte where all of them are stuck both ways. Fewer where the process may not have two
/// descriptors for each. One more is refused as busy.
pub const CONNECTIONS_MAX: usize = 8192;
/// Of them those that have not shown a ticket. One more ends the oldest of them.
const OPENING_MAX: usize = 512;
/// Descriptors that are left to the rest of the process.
const OTHER_DESCRIPTORS: u64 = 256;
/// Connections that were let in and wait for their task, at most.
const LET_IN_MAX: usize = 64;

const _: () = assert!(2 * CONNECTIONS_MAX <= GROUPS_MAX, "two directions share a limit");

/// The role. Dropped, it cuts what it relays.
#[derive(Debug)]
pub struct Gateway {
    runtime: Handle,
    notes: Notes,
    shared: Arc<Shared>,
    /// As the file says it; where port 0 stands there the system chose another one.
    listen: SocketAddr,
    door: Mutex<Door>,
    ending: watch::Sender<bool>,
    relays: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Door {
    /// None: it drains.
    listener: Option<Listener>,
    address: SocketAddr,
    /// What it was when it was closed.
    last: DoorReport,
}

/// What connections are judged by.
#[derive(Debug)]
struct Shared {
    judge: Judge,
    /// HOST:PORT of the target proxies, by the names that tickets have.
    to: RwLock<BTreeMap<String, String>>,
    tenants: Arc<Tenants>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens connections as far as a ticket goes.
struct Entrance(Arc<Shared>);

impl Opening for Entrance {
    type Opened = Let;

    async fn open(&self, tcp: TcpStream, _: SocketAddr, slot: Slot) -> Result<Let, Turned> {
        let (tcp, preamble, _) = read_preamble(tcp).await?;
        match self.0.judge(&preamble) {
            Ok((ticket, to)) => match (self.0.tenants.enter(&ticket), preamble.encode()) {
                (Ok(place), Ok(preamble)) => Ok(Let { tcp, preamble, to, place, slot }),
                (Err(farewell), _) => Err(Turned::Away(tcp, farewell)),
                (_, Err(error)) => Err(Turned::Away(tcp, error.farewell())),
            },
            Err(farewell) => Err(Turned::Away(tcp, farewell)),
        }
    }
}

impl Shared {
    /// The ticket of a preamble, and where it leads.
    fn judge(&self, preamble: &Preamble) -> Result<(Ticket, String), Farewell> {
        let Preamble::Tls { ticket } = preamble else {
            return Err(Farewell::new(Code::Unauthorized, "through a gateway every connection is TLS"));
        };
        let judged = self.judge.verify(ticket).and_then(|ticket| {
            let to = self.to.read().unwrap_or_else(PoisonError::into_inner);
            let here = to.get(&ticket.route).cloned();
            let unknown = || TicketError::Route {
                expected: "a next hop of this gateway".to_owned(),
                found: ticket.route.clone(),
            };
            Ok((here.ok_or_else(unknown)?, ticket))
        });
        judged.map(|(to, ticket)| (ticket, to)).map_err(|error| ticket_farewell(&error))
    }
}

fn limits(config: &GatewayConfig) -> Limits {
    Limits { connections: config.connections_per_tenant, rate: config.rate_per_tenant.map(|rate| rate.0) }
}

fn wrong(error: TicketFileError) -> RoleError {
    let wrong = RoleError::new(format!("gateway.ticket-key: {error}"));
    if error.is_missing() { wrong.hint("`cdp ticket --new-key FILE` makes a file of keys") } else { wrong }
}

/// Its table. Only asked where the file has one.
fn table(config: &Config) -> Result<&GatewayConfig, RoleError> {
    config.gateway.as_ref().ok_or_else(|| RoleError::new("the file has no [gateway]"))
}

/// How many connections this process has descriptors for, once it may have all that the system lets it have.
fn connections_max() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = limit.maximum;
        }
    }
    let Some(descriptors) = limit.current else { return CONNECTIONS_MAX };
    let room = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(room).unwrap_or(CONNECTIONS_MAX).clamp(1, CONNECTIONS_MAX)
}

/// Starts each relay, until nobody can be let in any more and all have ended.
async fn relays(mut let_in: mpsc::Receiver<Let>, ending: watch::Receiver<bool>) {
    // As many as were let in: the listener's bound.
    let mut all = JoinSet::new();
    loop {
        tokio::select! {
            next = let_in.recv() => match next {
                Some(next) => drop(all.spawn(relay::run(next, ending.clone()))),
                None => break,
            },
            Some(_) = all.join_next() => {}
        }
    }
    while all.join_next().await.is_some() {}
}

impl Gateway {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        lock(&self.door).address
    }
}

impl Role for Gateway {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        let config = table(config)?;
        let judge = Judge::read(&config.ticket_key).map_err(wrong)?;
        let tenants = Arc::new(Tenants::new(limits(config)));
        let shared = Arc::new(Shared { judge, to: RwLock::new(config.to.clone()), tenants });
        let connections_max = connections_max();
        if connections_max < CONNECTIONS_MAX {
            context.notes.say(&format!(
                "the gateway takes {connections_max} connections at once: the system gives this process no more descriptors"
            ));
        }
        let opening_max = OPENING_MAX.min(connections_max.div_ceil(2));
        let accept = AcceptOptions { connections_max, opening_max, opening_within: OPENING_WITHIN };
        let (sender, let_in) = mpsc::channel(LET_IN_MAX);
        let (address, how) = (config.listen.to_string(), Entrance(Arc::clone(&shared)));
        let listening = context.runtime.block_on(Listener::listen(&address, how, accept, sender));
        let listener = listening.map_err(|error| {
            RoleError::new(format!("cannot listen at {address}: {error}"))
                .hint("stop what listens there, or give another place in [gateway] listen")
        })?;
        context.notes.say(&format!("gateway: listens at {}", listener.address));
        let (ending, ends) = watch::channel(false);
        let task = context.runtime.spawn(relays(let_in, ends));
        let door = Door { address: listener.address, listener: Some(listener), last: DoorReport::default() };
        Ok(Self {
            runtime: context.runtime.clone(),
            notes: context.notes.clone(),
            shared,
            listen: config.listen,
            door: Mutex::new(door),
            ending,
            relays: Mutex::new(Some(task)),
        })
    }

    fn name(&self) -> &'static str {
        "gateway"
    }

    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        let config = table(config)?;
        self.shared.judge.read_again(&config.ticket_key).map_err(wrong)?;
        *self.shared.to.write().unwrap_or_else(PoisonError::into_inner) = config.to.clone();
        let rate = |error| RoleError::new(format!("gateway.rate-per-tenant: {error}"));
        self.shared.tenants.set(limits(config)).map_err(rate)?;
        Ok(if config.listen == self.listen { Vec::new() } else { vec!["gateway.listen".to_owned()] })
    }

    fn drain(&self, within: Duration) -> Drained {
        lock(&self.door).close();
        self.ending.send_replace(true);
        let relays = lock(&self.relays).take();
        if let Some(mut task) = relays {
            let ended = async { tokio::time::timeout(within, &mut task).await };
            if self.runtime.block_on(ended).is_err() {
                task.abort();
                self.notes.say("connections through the gateway were cut: what was on its way comes again");
            }
        }
        // What it passes on is kept by whoever sent it until it is durable.
        Drained::default()
    }

    fn report(&self) -> Report {
        let door = Some(lock(&self.door).report());
        Report { door, tenants: self.shared.tenants.report(), ..Report::default() }
    }
}

impl Door {
    fn report(&self) -> DoorReport {
        let Some(listener) = &self.listener else { return self.last };
        let stats = listener.stats();
        DoorReport { let_in: stats.let_in, refused: stats.refused, dawdled: stats.dawdled, errors: stats.errors }
    }

    fn close(&mut self) {
        self.last = self.report();
        self.listener = None;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        lock(&self.door).close();
        if let Some(task) = lock(&self.relays).take() {
            task.abort();
        }
    }
}
