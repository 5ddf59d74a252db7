//! The replica host: takes the records of many groups over links, and keeps a replica of each.
//!
//! A group is found by its tenant and its name; its replica is the directory of these two names, and whoever asks that directory's
//! owner is answered as by any other owner. What a filter asks comes in sessions of their own; the frames of its timeline have
//! one task that hands them to the group's keeper, says what became durable, and asks the filter what the keeper wants to know.

mod frames;
mod only;
mod questions;
mod reads;
pub mod role;
mod seat;
mod traffic;
mod turns;

use self::only::Only;
use self::seat::{Seat, SeatKey};
use self::turns::Turns;
use super::door::BehindGateway;
use crate::clock::mono;
use crate::keeper::KeeperOptions;
use crate::link::accept::{Accepted, Admission, Gate, LinkDoor};
use crate::link::identity::Identity;
use crate::link::listener::{AcceptOptions, AcceptStats, Listener};
use crate::link::pin::Peers;
use crate::services::peers::PeerBook;
use crate::services::role::GroupReport;
use cdp_core::link::message::{Code, DataKey, Farewell, Purpose};
use cdp_core::link::preamble::Preamble;
use cdp_core::types::{SessionId, is_name};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Connections that were let in and wait to be looked at, at most.
const ACCEPTED_MAX: usize = 64;

/// How often it is looked for what nobody reads any more.
const SWEEP: Duration = Duration::from_secs(5);

/// How replicas are kept for others.
#[derive(Clone, Debug)]
pub struct ReplicaHostOptions {
    /// HOST:PORT to listen at.
    pub listen: String,
    /// Holds a directory for each tenant, and in it one for each group.
    pub directory: PathBuf,
    /// Who is let in, and whose groups he may name. What changes in it holds from the next handshake on.
    pub peers: PeerBook,
    /// Lets in by tickets too, where this host stands directly behind a gateway; none: tickets are not looked at.
    pub tickets: Option<BehindGateway>,
    /// Groups at once, at most.
    pub groups_max: usize,
    /// How each replica is kept.
    pub keeper: KeeperOptions,
    /// How many connections are let in.
    pub accept: AcceptOptions,
}

/// A replica host at work. Dropping it lets go of every replica.
pub struct ReplicaHost {
    listener: Listener,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    sweeper: JoinHandle<()>,
}

impl std::fmt::Debug for ReplicaHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaHost").field("address", &self.listener.address).finish_non_exhaustive()
    }
}

/// What its tasks share.
struct Shared {
    options: ReplicaHostOptions,
    identity: Arc<Identity>,
    /// Groups that were named since the start; at most [`ReplicaHostOptions::groups_max`].
    seats: Mutex<BTreeMap<SeatKey, Arc<Seat>>>,
    turns: Arc<Turns>,
    /// Keys of data connections without TLS, by session.
    keys: Mutex<BTreeMap<SessionId, (Arc<Seat>, DataKey)>>,
    /// Told something when the host ends.
    ending: watch::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets in who is listed.
struct Doorkeeper {
    peers: Peers,
    shared: Arc<Shared>,
}

impl Gate for Doorkeeper {
    fn admit(&self, preamble: &Preamble, _: SocketAddr, _: SocketAddr) -> Result<Admission, Farewell> {
        if let Some(tickets) = &self.shared.options.tickets
            && let Some(admission) = tickets.admit(preamble)?
        {
            return Ok(admission);
        }
        match preamble {
            Preamble::Plain { session, .. } => {
                let key = lock(&self.shared.keys).get(session).map(|(_, key)| key.clone());
                key.map(Admission::Plain).ok_or_else(|| Farewell::new(Code::Unexpected, "there is no such session"))
            }
            _ => Ok(Admission::Tls(self.peers.clone())),
        }
    }
}

impl ReplicaHost {
    /// Listens, and keeps what comes.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn start(identity: Arc<Identity>, options: ReplicaHostOptions) -> std::io::Result<Self> {
        let peers = options.peers.pinned();
        let (accept, listen) = (options.accept, options.listen.clone());
        let (seats, keys) = (Mutex::default(), Mutex::default());
        let (ending, _) = watch::channel(());
        let (own, turns) = (Arc::clone(&identity), Turns::new());
        let shared = Arc::new(Shared { options, identity: own, seats, turns, keys, ending });
        let gate = Arc::new(Doorkeeper { peers, shared: Arc::clone(&shared) });
        let (sender, accepted) = channel(ACCEPTED_MAX);
        let listener = Listener::listen(&listen, LinkDoor::new(identity, gate), accept, sender).await?;
        let task = tokio::spawn(dispatch(Arc::clone(&shared), accepted));
        let sweeper = tokio::spawn(sweep(Arc::clone(&shared)));
        Ok(Self { listener, shared, task, sweeper })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Who came to where it listens.
    #[must_use]
    pub fn door(&self) -> AcceptStats {
        self.listener.stats()
    }

    /// Every group that was named since the start.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupReport> {
        let now = mono();
        // Their list is not held while they are asked: who is let in needs it.
        let seats: Vec<_> =
            lock(&self.shared.seats).iter().map(|(key, seat)| (key.clone(), Arc::clone(seat))).collect();
        seats.into_iter().map(|(key, seat)| seat.report(key, now)).collect()
    }

    /// Lets go of every replica: what is not durable comes again.
    pub async fn stop(self) {
        self.task.abort();
        self.sweeper.abort();
        self.shared.ending.send_replace(());
        let seats = std::mem::take(&mut *lock(&self.shared.seats));
        let ended = tokio::task::spawn_blocking(move || seats.values().for_each(|seat| seat.let_go()));
        // One that panicked has let go too.
        let _ = ended.await;
    }
}

impl Drop for ReplicaHost {
    fn drop(&mut self) {
        self.task.abort();
        self.sweeper.abort();
        self.shared.ending.send_replace(());
    }
}

/// Lets go, now and then, of what nobody reads any more, and of groups that were named and never begun.
async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let seats: Vec<_> = lock(&shared.seats).values().cloned().collect();
        // One that panicked is looked at again.
        let _ = tokio::task::spawn_blocking(move || seats.iter().for_each(|seat| seat.sweep())).await;
        // Whoever has one has a clone, and who asks for one waits for this.
        lock(&shared.seats).retain(|_, seat| Arc::strong_count(seat) > 1 || !seat.is_vacant());
    }
}

/// Brings each connection to its group.
async fn dispatch(shared: Arc<Shared>, mut accepted: Receiver<Accepted>) {
    while let Some(accepted) = accepted.recv().await {
        match shared.seat_of(&accepted) {
            Ok((seat, only)) if accepted.hello.purpose == Purpose::Calls => {
                tokio::spawn(questions::run(Arc::clone(&shared), seat, only, accepted));
            }
            Ok((seat, _)) => seat.frames(&shared, accepted),
            Err(farewell) => {
                tokio::spawn(accepted.opened.refuse(farewell));
            }
        }
    }
}

impl Shared {
    /// The group that a connection is for, if its peer may name it; and the only one that this name may be of.
    fn seat_of(&self, accepted: &Accepted) -> Result<(Arc<Seat>, Option<Only>), Farewell> {
        let hello = &accepted.hello;
        let Some(peer) = accepted.opened.peer() else {
            // A data connection: its MAC proves whose session it is of, whatever names it says, or says not.
            let of = lock(&self.keys).get(&hello.session).map(|(seat, _)| (Arc::clone(seat), None));
            return of.ok_or_else(|| Farewell::new(Code::Unexpected, "there is no such session"));
        };
        let tickets = self.options.tickets.as_ref();
        let holder = tickets.map(|tickets| tickets.holder(accepted)).transpose()?.flatten();
        let tenant = match &holder {
            Some(holder) => holder.tenant.clone(),
            None => {
                let known = self.options.peers.who(&peer);
                let known = known.ok_or_else(|| Farewell::new(Code::Unauthorized, "this certificate is not let in"))?;
                known
                    .tenant
                    .unwrap_or_else(|| if hello.tenant.is_empty() { "local".to_owned() } else { hello.tenant.clone() })
            }
        };
        if !hello.tenant.is_empty() && tenant != hello.tenant {
            let text = format!("this certificate speaks for {tenant:?}, not for {:?}", hello.tenant);
            return Err(Farewell::new(Code::OtherTenant, text));
        }
        if !is_name(&tenant) || !is_name(&hello.name) {
            return Err(Farewell::new(Code::UnknownGroup, "the names of tenant and group are no names of directories"));
        }
        let key = SeatKey { tenant, group: hello.name.clone() };
        let mut seats = lock(&self.seats);
        if !seats.contains_key(&key) && seats.len() >= self.options.groups_max {
            return Err(Farewell::new(Code::Busy, format!("{} groups are kept here already", seats.len())));
        }
        let directory = self.options.directory.join(&key.tenant).join(&key.group);
        let seat = match seats.get(&key) {
            Some(seat) => Arc::clone(seat),
            None => {
                let first = SeatKey { tenant: key.tenant.clone(), group: String::new() };
                let mut others = seats.range(first..).take_while(|(other, _)| other.tenant == key.tenant);
                let turns = others.next().map_or_else(|| self.turns.of_tenant(), |(_, seat)| Arc::clone(&seat.turns));
                let seat = Seat::new(directory, self.options.keeper.clone(), turns);
                seats.insert(key, Arc::clone(&seat));
                seat
            }
        };
        Ok((seat, holder.as_ref().and_then(|holder| holder.group).map(Only::new)))
    }
}
