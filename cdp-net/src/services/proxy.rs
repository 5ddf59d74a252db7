//! The proxies: a relay for each timeline, between who sends its frames and the next hop.
//!
//! ```text
//!              accepted                 Relay                   dialled
//! filter ------> Hub ---> TargetEnd -> prepare -> Spool -> SourceEnd ---> Hub ------> next hop
//!                                        |          |
//!                                   pool of threads  disk of the cache (one driver for all)
//! ```
//!
//! A source proxy coalesces, leaves zeros out and compresses; a target proxy hands on what came, or unpacks it for who takes nothing
//! packed. What is not durable is kept: in memory first, in the cache on disk where there is one, and found there again after a
//! crash. Calls are passed on as they are.

mod disk;
mod pool;
mod prepared;
mod role;
mod shares;
mod task;

pub use role::{SourceProxy, TargetProxy};
pub(super) use shares::{DISK_MIN, MEMORY_MIN};

use self::disk::CacheDisk;
use self::pool::Pool;
use self::shares::Shares;
use self::task::{Begin, spool_options};
use super::door::BehindGateway;
use super::peers::PeerBook;
use super::role::Notes;
use super::traffic::{self, Traffic};
use crate::link::accept::{Accepted, Admission, Gate, LinkDoor};
use crate::link::identity::Identity;
use crate::link::listener::{AcceptOptions, AcceptStats, Listener};
use bytes::Bytes;
use cdp_core::link::message::{Code, DataKey, Farewell, Purpose};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::prepare::Stats;
use cdp_core::link::relay::RelayStatus;
use cdp_core::link::spool::Spool;
use cdp_core::policy::traffic::Rules;
use cdp_core::types::{GroupId, SessionId, Timeline, is_name};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Connections that were let in and wait to be looked at, at most.
const ACCEPTED_MAX: usize = 64;
/// How often it is looked where the next hops are.
const WAYS_EVERY: Duration = Duration::from_secs(30);
/// Sessions of calls at once, at most.
const CALLS_MAX: usize = 1024;
/// Groups of which it is told that they are refused, at most.
const TOLD_MAX: usize = 256;
/// The tenant whose name nobody has said.
const LOCAL: &str = "local";

/// What is made of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Coalesced where the policy says so, without zeros, compressed at this level of zstd at most.
    Compress {
        /// The hardest level.
        level: i32,
    },
    /// Handed on as they came.
    Pass,
    /// Unpacked: the next hop takes nothing compressed.
    Raw,
}

/// How a proxy is made.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// As its table is called; for sentences.
    pub name: &'static str,
    /// HOST:PORT to listen at.
    pub listen: String,
    /// HOST:PORT of the next hops, the one that is wanted most first.
    pub to: Vec<String>,
    /// For the gateway on the way; empty: there is none.
    pub ticket: Bytes,
    /// What is made of frames.
    pub mode: Mode,
    /// Where frames are kept that are not durable; none: in memory alone.
    pub cache: Option<PathBuf>,
    /// Bytes of memory for them, of all groups together.
    pub memory_bytes: u64,
    /// Bytes on disk for them, of all groups together; 0: none.
    pub disk_bytes: u64,
    /// Data connections of each group to the next hop; at least 1.
    pub connections: u16,
    /// Lets in by tickets too, where it stands directly behind a gateway; none: tickets are not looked at.
    pub tickets: Option<BehindGateway>,
    /// How many connections are let in.
    pub accept: AcceptOptions,
}

/// A relay is found by these. Of a session of calls only for people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RelayKey {
    tenant: String,
    group: String,
    timeline: Option<Timeline>,
}

impl RelayKey {
    /// Its frames in the cache.
    fn directory(&self) -> String {
        format!("{}/{}", self.tenant, self.group)
    }

    /// As the next hop is told: it may know better whose this is.
    fn tenant_below(&self) -> String {
        if self.tenant == LOCAL { String::new() } else { self.tenant.clone() }
    }
}

impl fmt::Display for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.group)
    }
}

/// What a relay's task is told.
enum ToRelay {
    Accepted(Box<Accepted>),
    Drain,
}

/// A next hop.
#[derive(Clone, Debug)]
struct Way {
    address: String,
    ticket: Bytes,
    /// Ours and its, as far as they are known.
    addresses: Option<(IpAddr, IpAddr)>,
}

/// A relay as the proxy knows it.
struct Known {
    queue: UnboundedSender<ToRelay>,
    stand: Arc<Stand>,
}

/// How a relay stands, for reports.
#[derive(Debug, Default)]
struct Stand(Mutex<Standing>);

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    status: RelayStatus,
    stats: Stats,
    is_drained: bool,
    is_draining: bool,
    has_ended: bool,
}

impl Stand {
    fn set(&self, status: &RelayStatus, stats: &Stats, is_drained: bool, is_draining: bool) {
        let mut held = lock(&self.0);
        *held = Standing { status: *status, stats: *stats, is_drained, is_draining, ..*held };
    }

    fn end(&self) {
        lock(&self.0).has_ended = true;
    }

    fn get(&self) -> Standing {
        *lock(&self.0)
    }
}

/// What the tasks of a proxy share.
struct Shared {
    name: &'static str,
    identity: Arc<Identity>,
    peers: PeerBook,
    notes: Notes,
    mode: Mode,
    connections: u16,
    ways: Mutex<Arc<Vec<Way>>>,
    tickets: Option<BehindGateway>,
    traffic: Traffic,
    shares: Shares,
    disk: Option<Arc<CacheDisk>>,
    pool: Pool,
    /// Timelines that have a task; bounded by their shares.
    relays: Mutex<BTreeMap<RelayKey, Known>>,
    /// Keys of data connections without TLS, by session, and whose each is: one for each relay.
    keys: Mutex<BTreeMap<SessionId, (RelayKey, DataKey)>>,
    /// Sessions of calls that may come beside those that are there.
    calls: Arc<tokio::sync::Semaphore>,
    /// Bytes that were kept here and belonged to nobody any more.
    /// Groups of which it was told that they are refused.
    told: Mutex<BTreeSet<String>>,
    dropped_bytes: AtomicU64,
    /// Whether the proxy ends: who begins late is told too.
    ending: watch::Sender<bool>,
    /// Nothing new is taken any more. Set with `relays` locked.
    is_draining: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy at work. Dropping it ends it at once; [`Proxy::stop`] waits for what is under way.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Mutex<Option<Listener>>,
    stats: Mutex<AcceptStats>,
    tasks: [JoinHandle<()>; 2],
    runtime: Handle,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("name", &self.shared.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// Lets in who is listed.
struct Doorkeeper(Arc<Shared>);

impl Gate for Doorkeeper {
    fn admit(&self, preamble: &Preamble, _: SocketAddr, _: SocketAddr) -> Result<Admission, Farewell> {
        match preamble {
            Preamble::Plain { session, .. } => {
                let key = lock(&self.0.keys).get(session).map(|(_, key)| key.clone());
                key.map(Admission::Plain).ok_or_else(|| Farewell::new(Code::Unexpected, "there is no such session"))
            }
            _ => {
                let by_ticket = self.0.tickets.as_ref().map(|tickets| tickets.admit(preamble)).transpose()?.flatten();
                Ok(by_ticket.unwrap_or_else(|| Admission::Tls(self.0.peers.pinned())))
            }
        }
    }
}

impl Proxy {
    /// Finds what its cache has, listens, and passes on what comes. Blocks, not for a thread of `runtime`.
    ///
    /// # Errors
    /// When the cache cannot be used, or it cannot listen there.
    pub fn start(
        runtime: &Handle,
        identity: Arc<Identity>,
        peers: PeerBook,
        notes: Notes,
        rules: Rules,
        options: ProxyOptions,
    ) -> io::Result<Self> {
        let ProxyOptions {
            name,
            listen,
            to,
            ticket,
            mode,
            cache,
            memory_bytes,
            disk_bytes,
            connections,
            tickets,
            accept,
        } = options;
        let disk = match cache.filter(|_| disk_bytes > 0) {
            Some(root) => {
                let opened = CacheDisk::open(&root, runtime);
                Some(opened.map_err(|error| with(&error, format!("cannot use the cache in {}", root.display())))?)
            }
            None => None,
        };
        let disk_bytes = if disk.is_some() { disk_bytes } else { 0 };
        let shared = Arc::new(Shared {
            name,
            identity: Arc::clone(&identity),
            peers,
            notes,
            mode,
            connections: connections.max(1),
            ways: Mutex::default(),
            tickets,
            traffic: Traffic::new(rules),
            shares: Shares::new(memory_bytes, disk_bytes),
            disk,
            pool: Pool::start()?,
            relays: Mutex::default(),
            keys: Mutex::default(),
            calls: Arc::new(tokio::sync::Semaphore::new(CALLS_MAX)),
            told: Mutex::default(),
            dropped_bytes: AtomicU64::new(0),
            ending: watch::channel(false).0,
            is_draining: AtomicBool::new(false),
        });
        shared.set_ways(&to, &ticket);
        let _context = runtime.enter();
        shared.recover().map_err(|error| with(&error, "cannot read what is in the cache".into()))?;
        let (sender, accepted) = channel(ACCEPTED_MAX);
        let door = LinkDoor::new(identity, Arc::new(Doorkeeper(Arc::clone(&shared))));
        let listening = runtime.block_on(Listener::listen(&listen, door, accept, sender));
        let listener = listening.map_err(|error| with(&error, format!("cannot listen at {listen}")))?;
        let address = listener.address;
        let weak = Arc::downgrade(&shared);
        let looking = runtime.spawn(async move {
            loop {
                tokio::time::sleep(WAYS_EVERY).await;
                let Some(shared) = weak.upgrade() else { return };
                // The resolver may take its time.
                let _ = tokio::task::spawn_blocking(move || shared.look_at_ways()).await;
            }
        });
        let tasks = [runtime.spawn(dispatch(Arc::clone(&shared), accepted)), looking];
        let (listener, stats) = (Mutex::new(Some(listener)), Mutex::default());
        Ok(Self { shared, address, listener, stats, tasks, runtime: runtime.clone() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Other next hops and rules from the next connection on.
    fn set(&self, to: &[String], ticket: &Bytes, rules: Rules) {
        self.shared.set_ways(to, ticket);
        self.shared.traffic.set(rules);
    }

    /// Connections that came.
    fn door(&self) -> AcceptStats {
        let mut stats = lock(&self.stats);
        if let Some(listener) = &*lock(&self.listener) {
            *stats = listener.stats();
        }
        *stats
    }

    /// The last LSN of a group that is synced in the cache, or durable; none: nothing of the group is here.
    #[must_use]
    pub fn stored(&self, group: &str) -> Option<cdp_core::types::Lsn> {
        let of = |(key, standing): (RelayKey, Standing)| (key.group == group).then_some(standing.status.stored);
        self.standings().into_iter().filter_map(of).max()
    }

    /// Bytes that were kept since the start and dropped, as no next hop will ever take them.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.shared.dropped_bytes.load(Ordering::Relaxed)
    }

    fn standings(&self) -> Vec<(RelayKey, Standing)> {
        lock(&self.shared.relays).iter().map(|(key, known)| (key.clone(), known.stand.get())).collect()
    }

    /// Takes nothing new, and sends on what it has, at most so long; bytes that are not durable then. They are in the cache where it
    /// is on disk, and with whoever sent them. Blocks, not for a thread of the runtime.
    pub fn stop(&self, within: Duration) -> u64 {
        self.door();
        drop(lock(&self.listener).take());
        let until = Instant::now() + within;
        let tell = |what: fn() -> ToRelay| {
            let relays = lock(&self.shared.relays);
            self.shared.is_draining.store(true, Ordering::Relaxed);
            // One that has ended has nothing left.
            relays.values().for_each(|known| drop(known.queue.send(what())));
        };
        let all = |is: fn(&Standing) -> bool| self.standings().iter().all(|(_, standing)| is(standing));
        tell(|| ToRelay::Drain);
        while !all(|standing| standing.is_draining && standing.is_drained) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = self.standings().iter().map(|(_, standing)| standing.left_bytes()).sum();
        self.shared.ending.send_replace(true);
        let until = Instant::now() + Duration::from_secs(2);
        while !all(|standing| standing.has_ended) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        left
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _context = self.runtime.enter();
        drop(lock(&self.listener).take());
        self.shared.ending.send_replace(true);
        lock(&self.shared.relays).clear();
    }
}

impl Standing {
    fn left_bytes(&self) -> u64 {
        if self.is_drained { 0 } else { self.status.held_bytes + self.status.waiting_bytes }
    }
}

/// Brings each connection to its relay.
async fn dispatch(shared: Arc<Shared>, mut accepted: Receiver<Accepted>) {
    while let Some(accepted) = accepted.recv().await {
        let key = match shared.key_of(&accepted) {
            Ok(key) => key,
            Err(farewell) => {
                tokio::spawn(accepted.opened.refuse(farewell));
                continue;
            }
        };
        let (opened, farewell) = match accepted.hello.purpose {
            Purpose::Calls => match shared.begin_calls(key, accepted) {
                Ok(()) => continue,
                Err(refused) => *refused,
            },
            Purpose::Frames => match shared.begin_frames(key, accepted) {
                Ok(()) => continue,
                Err(refused) => *refused,
            },
        };
        tokio::spawn(opened.opened.refuse(farewell));
    }
}

type Refused = Box<(Accepted, Farewell)>;

/// Where they are, in their order.
fn places(ways: &[Way]) -> Vec<&str> {
    ways.iter().map(|way| way.address.as_str()).collect()
}

impl Shared {
    fn ways(&self) -> Arc<Vec<Way>> {
        Arc::clone(&lock(&self.ways))
    }

    fn set_ways(&self, to: &[String], ticket: &Bytes) {
        let way = |address: &String| Way { address: address.clone(), ticket: ticket.clone(), addresses: None };
        *lock(&self.ways) = Arc::new(to.iter().map(way).collect());
        self.look_at_ways();
    }

    /// What is known stays where the resolver knows nothing now.
    fn look_at_ways(&self) {
        let looked = |way: &Way| Way { addresses: traffic::addresses(&way.address).or(way.addresses), ..way.clone() };
        let before = self.ways();
        let after = Arc::new(before.iter().map(looked).collect::<Vec<_>>());
        let mut ways = lock(&self.ways);
        // A new file may have come meanwhile.
        if Arc::ptr_eq(&before, &ways) {
            *ways = after;
        }
    }

    /// The group that a connection is for, if its peer may name it.
    fn key_of(&self, accepted: &Accepted) -> Result<RelayKey, Farewell> {
        let hello = &accepted.hello;
        let holder = self.tickets.as_ref().map(|tickets| tickets.holder(accepted)).transpose()?.flatten();
        if hello.purpose == Purpose::Calls && holder.as_ref().is_some_and(|holder| holder.group.is_some()) {
            // Calls name their group by its name, and here nobody knows which one has it.
            let text = "a ticket for one group is for a replica host that stands directly behind the gateway";
            return Err(Farewell::new(Code::TicketInvalid, text));
        }
        let own = match accepted.opened.peer() {
            _ if holder.is_some() => holder.map(|holder| holder.tenant),
            Some(peer) => {
                let known = self.peers.who(&peer);
                known.ok_or_else(|| Farewell::new(Code::Unauthorized, "this certificate is not let in"))?.tenant
            }
            // A data connection: its MAC proves of which session it is, and that one's peer was asked.
            None => {
                let known = lock(&self.keys).get(&hello.session).map(|(key, _)| key.clone());
                let key = known.filter(|key| key.group == hello.name && key.timeline == hello.timeline);
                return key.ok_or_else(|| Farewell::new(Code::Unexpected, "there is no such session"));
            }
        };
        let named = if hello.tenant.is_empty() { LOCAL } else { &hello.tenant };
        let tenant = match &own {
            Some(own) if !hello.tenant.is_empty() && *own != hello.tenant => {
                let text = format!("this certificate speaks for {own:?}, not for {:?}", hello.tenant);
                return Err(Farewell::new(Code::OtherTenant, text));
            }
            Some(own) => own,
            None => named,
        };
        if !is_name(tenant) || !is_name(&hello.name) {
            return Err(Farewell::new(Code::UnknownGroup, "the names of tenant and group are no names of directories"));
        }
        Ok(RelayKey { tenant: tenant.to_owned(), group: hello.name.clone(), timeline: hello.timeline })
    }

    /// A session of calls has a task of its own, as long as it holds.
    fn begin_calls(self: &Arc<Self>, key: RelayKey, accepted: Accepted) -> Result<(), Refused> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Box::new((accepted, Farewell::new(Code::Stopping, "this proxy ends"))));
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            let farewell = Farewell::new(Code::Busy, format!("{CALLS_MAX} sessions of calls are open"));
            return Err(Box::new((accepted, farewell)));
        };
        let (queue, told) = unbounded_channel();
        // It is there to take it.
        let _ = queue.send(ToRelay::Accepted(Box::new(accepted)));
        let stand = Arc::default();
        let begin = Begin { key, group: None, timeline: None, spool: None, place: None, share: None, stand };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            task::run(shared, begin, told).await;
            drop((queue, permit));
        });
        Ok(())
    }

    fn begin_frames(self: &Arc<Self>, key: RelayKey, accepted: Accepted) -> Result<(), Refused> {
        let refuse = |accepted, code, text: String| Err(Box::new((accepted, Farewell::new(code, text))));
        let (Some(group), Some(timeline)) = (accepted.hello.group, key.timeline) else {
            return refuse(accepted, Code::Malformed, "frames need a group and a timeline".into());
        };
        let mut relays = lock(&self.relays);
        if self.is_draining.load(Ordering::Relaxed) {
            return refuse(accepted, Code::Stopping, "this proxy ends".into());
        }
        let told = ToRelay::Accepted(Box::new(accepted));
        let Some(ToRelay::Accepted(accepted)) = (match relays.get(&key) {
            Some(known) => known.queue.send(told).err().map(|error| error.0),
            None => Some(told),
        }) else {
            return Ok(());
        };
        if accepted.hello.connection != 0 {
            return refuse(*accepted, Code::Unexpected, "a data connection of a session that is not here".into());
        }
        let name = key.to_string();
        match self.begin(&mut relays, key, group, timeline, None) {
            Ok(queue) => {
                lock(&self.told).remove(&name);
                // It is there to take it.
                let _ = queue.send(ToRelay::Accepted(accepted));
                Ok(())
            }
            Err(text) => {
                self.say_refused(name, &text);
                refuse(*accepted, Code::Busy, text)
            }
        }
    }

    /// Who is refused comes again and again: its operator is told once, until it is taken.
    fn say_refused(&self, name: String, why: &str) {
        let mut told = lock(&self.told);
        if told.len() < TOLD_MAX && !told.contains(&name) {
            self.notes.say(&format!("{}: the records of {name} are not taken: {why}", self.name));
            told.insert(name);
        }
    }

    /// Starts the task of a timeline, with what was found of it.
    fn begin(
        self: &Arc<Self>,
        relays: &mut BTreeMap<RelayKey, Known>,
        key: RelayKey,
        group: GroupId,
        timeline: Timeline,
        found: Option<cdp_core::link::spool::Recovered>,
    ) -> Result<UnboundedSender<ToRelay>, String> {
        let share = self.shares.take()?;
        let place = match &self.disk {
            Some(disk) => Some(disk.place().ok_or("no more timelines can have a place in the cache")?),
            None => None,
        };
        let spool = found.map(|found| {
            let frames = found.frames.clone();
            (found.into_spool(spool_options(&key, place.as_ref())), frames)
        });
        let (queue, told) = unbounded_channel();
        let stand = Arc::<Stand>::default();
        relays.insert(key.clone(), Known { queue: queue.clone(), stand: Arc::clone(&stand) });
        let (group, timeline, share) = (Some(group), Some(timeline), Some(share));
        tokio::spawn(task::run(Arc::clone(self), Begin { key, group, timeline, spool, place, share, stand }, told));
        Ok(queue)
    }

    /// Starts the relays of what the cache has.
    fn recover(self: &Arc<Self>) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        for tenant in names(&disk.root)? {
            for group in names(&disk.root.join(&tenant))? {
                let directory = format!("{tenant}/{group}");
                let recovery = Spool::recover(disk.storage.as_ref(), &directory).map_err(io::Error::other)?;
                for dropped in recovery.dropped {
                    let text = format!(
                        "{}: {directory}: {} at {} is damaged ({}): what followed {} is asked for again",
                        self.name, dropped.file, dropped.offset, dropped.why, dropped.after
                    );
                    self.notes.say(&text);
                }
                for found in recovery.found {
                    let (of, timeline) = (found.group, found.timeline);
                    let key = RelayKey { tenant: tenant.clone(), group: group.clone(), timeline: Some(timeline) };
                    if let Err(why) = self.begin(&mut lock(&self.relays), key, of, timeline, Some(found)) {
                        let text =
                            format!("{}: what {directory} has of timeline {timeline} stays there: {why}", self.name);
                        self.notes.say(&text);
                    }
                }
            }
        }
        Ok(())
    }
}

/// An error of the same kind that says what it was about.
fn with(error: &io::Error, what: String) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The directories in a directory.
fn names(path: &std::path::Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // What was made here has a name that is one.
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}
