//! Keeping one group's replica: its directory, its journal, its history, for one filter that writes to it.
//!
//! A [`Keeper`] owns the directory ([`Home`]) and is the [`Far`](crate::far::Far) of one filter for that filter's life, whether the filter is in this
//! process or at the other end of a link: it finds or makes the replica, opens the timeline, takes frames in their order, says what
//! became durable, and answers whatever else a filter asks. What people ask of the directory's owner is answered by its
//! [`Host`], which asks the filter, as a [`Near`], for what only that knows. The next filter gets a keeper of its own.
//!
//! Frames go to the `pump`, which packs those that are not and has the journal's driver append them; a sync makes them durable; that is
//! told to the filter.
//!
//! | thread | waits for |
//! |---|---|
//! | `cdp-pump` | frames and completions; owns the journal's writer |
//! | `cdp-pack`, half of the cores, two to eight | frames to pack, while the replica's disk is behind |
//! | those of the journal's [driver](crate::drive) | the replica's disk: the journal's writes, several put together, and syncs |
//! | `cdp-index` | time, and the replica's disk: merges of the journal's index |
//! | `cdp-merge` | time, and the replica's disk: what retention merges into bases |
//! | `cdp-base`, with a syncer, for each first copy | pieces of it, and the replica's disk |
//! | `cdp-place` | time: looks now and then whether the replica is still where it was |
//! | `cdp-control`, and one for each connection | other processes that ask or tell the owner something |

mod begin;
mod calls;
mod check;
mod compare;
mod condition;
mod ease;
mod far;
mod find;
mod home;
mod labels;
mod levels;
mod live;
mod make;
mod pack;
mod pump;
mod room;
mod seed;
mod store;

pub use calls::Calls;
pub use condition::Condition;
pub use home::{Home, HomeError};
pub use room::Lack;
#[cfg(test)]
pub(crate) use seed::{Job, begin as begin_seed};

use self::compare::Compare;
use self::find::Store;
use self::labels::Labels;
use self::pump::{Backlog, Message, Stored};
use self::store::PumpStore;
use crate::drive::Choice;
use crate::failure::Failure;
use crate::far::Near;
use crate::host::{Host, Live, Watch};
use crate::owner::{ControlServer, Owner};
use crate::report::{self, Problem, ProblemClass};
use crate::threads::Threads;
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::Options;
use cdp_core::media::Storage;
use cdp_core::replica::sidecar::Root;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{DiskId, GroupId, Position, ReplicaId, Timeline};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

/// How often it is looked whether the replica is still in its place.
const PLACE_LOOK: Duration = Duration::from_millis(250);

/// How a replica is kept.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// Segments of the journal are made this large, in bytes, at least 1 MiB.
    pub segment_bytes: u64,
    /// Frames wait for a merge as long as no more bytes do.
    pub waiting_bytes_max: u64,
    /// Seals a new replica at rest, and opens one that is sealed.
    pub key: KeyHolder,
    /// What carries out the journal's writes and syncs.
    pub driver: Choice,
    /// What the whole replica may take where its policy has no quota, in bytes: it becomes the policy's at the next start of a filter.
    /// 0: no bound.
    pub quota_bytes: u64,
    /// A first copy is synced, and can go on there, whenever so many bytes of it were written.
    pub seed_sync_bytes: u64,
}

impl Default for KeeperOptions {
    fn default() -> Self {
        Self {
            segment_bytes: Options::default().segment_bytes,
            waiting_bytes_max: 512 << 20,
            key: KeyHolder::default(),
            driver: Choice::default(),
            quota_bytes: 0,
            seed_sync_bytes: seed::SYNC_EVERY,
        }
    }
}

/// Keeps one group's replica for one filter. Dropping it stops at once, as a crash would, but for what is durable.
pub struct Keeper {
    options: KeeperOptions,
    storage: Arc<dyn Storage>,
    pump: Arc<PumpStore>,
    backlog: Arc<Backlog>,
    waiting: Mutex<Waiting>,
    running: OnceLock<Arc<Running>>,
    /// Dropped in this order: nobody asks any more, nothing runs any more, the directory is free.
    control: Mutex<Option<ControlServer>>,
    threads: Mutex<Option<Threads>>,
    owner: Mutex<Option<Arc<Owner>>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("storage", &self.storage).finish_non_exhaustive()
    }
}

/// What there is before a filter begins.
struct Waiting {
    /// What the pump will read.
    queue: Option<Receiver<Message>>,
    /// What was found.
    found: Option<Store>,
}

/// What the keeper's threads and its callers share from the beginning on.
struct Running {
    storage: Arc<dyn Storage>,
    replica: ReplicaId,
    /// The place behind which the filter's frames began.
    have: Position,
    host: Arc<Host>,
    pump: Arc<PumpStore>,
    failure: Arc<Failure>,
    /// The first thing that went wrong with the journal's index.
    index: Arc<Failure>,
    stored: Arc<Stored>,
    /// What the journal's driver is called, from when it is started.
    driver: OnceLock<&'static str>,
    /// How large segments are made where the policy has no smaller bound.
    segment_bytes: u64,
    /// What has to be free before the journal goes on.
    lack: Arc<Lack>,
    /// The same for first copies.
    seed_lack: Arc<Lack>,
    /// Whatever goes on in the background ends.
    stop: Arc<AtomicBool>,
    /// The journal's last word is on the media.
    closed: Arc<AtomicBool>,
    /// It was asked for.
    closing: AtomicBool,
    /// Those of marks that are made and not yet durable.
    labels: Labels,
    /// First copies that are whole and not yet named in the manifest; at most one for each disk.
    roots: Arc<Mutex<BTreeMap<DiskId, Root>>>,
    /// What ends first copies that are being written; those that have ended are forgotten with the next one.
    copies: Mutex<Vec<Weak<AtomicBool>>>,
    /// Held by each thread that writes one.
    writers: Arc<()>,
    compare: Compare,
    /// News of how far back history will go, for who tells.
    history: Mutex<Option<report::History>>,
    /// None when the end has come.
    near: RwLock<Option<Arc<dyn Near>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn near(&self) -> Option<Arc<dyn Near>> {
        self.near.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has to be free, and what is.
    fn lacks(&self) -> Option<report::Lack> {
        let needed_bytes = self.lack.get().max(self.seed_lack.get())?;
        if let Some(free_bytes) = self.is_quota().then(|| self.host.quota_left()).flatten() {
            return Some(report::Lack {
                needed_bytes: self.lack.of_quota().max(self.seed_lack.of_quota()),
                free_bytes,
            });
        }
        Some(report::Lack { needed_bytes, free_bytes: self.storage.free_bytes().ok()? })
    }

    /// Whether it is the quota that leaves no room.
    fn is_quota(&self) -> bool {
        self.lack.of_quota().max(self.seed_lack.of_quota()) > 0
    }
}

impl Keeper {
    /// Of a directory that is owned.
    #[must_use]
    pub fn new(home: Home, options: KeeperOptions) -> Arc<Self> {
        let (pump, queue) = channel();
        Arc::new(Self {
            options,
            storage: home.storage,
            pump: Arc::new(PumpStore::new(pump)),
            backlog: Arc::default(),
            waiting: Mutex::new(Waiting { queue: Some(queue), found: None }),
            running: OnceLock::new(),
            control: Mutex::default(),
            threads: Mutex::default(),
            owner: Mutex::new(Some(home.owner)),
        })
    }

    fn running(&self) -> Result<&Arc<Running>, Problem> {
        self.running
            .get()
            .ok_or_else(|| Problem::new(ProblemClass::Failed, "not-begun", "the replica has not begun to take records"))
    }

    /// The owner's side of the replica, once a filter has begun: points, moments, sessions.
    #[must_use]
    pub fn host(&self) -> Option<&Arc<Host>> {
        self.running.get().map(|running| &running.host)
    }

    /// The place behind which the filter's frames began, once it has.
    #[must_use]
    pub fn began_at(&self) -> Option<Position> {
        self.running.get().map(|running| running.have)
    }

    /// The group and the timelines that are known of it, closed ones too, once a filter has begun.
    #[must_use]
    pub fn timelines(&self) -> Option<(GroupId, Vec<Timeline>)> {
        let replica = self.running.get()?.host.replica();
        let manifest = replica.manifest();
        Some((manifest.group, manifest.timelines.iter().map(|info| info.id).collect()))
    }

    /// What carries out the journal's writes and syncs: "threads" or "io_uring".
    #[must_use]
    pub fn driver(&self) -> &'static str {
        self.running.get().and_then(|running| running.driver.get().copied()).unwrap_or_default()
    }

    /// Takes a frame that is packed already, in its order: what came over a link. Never waits; what was given and is not durable is
    /// bounded by the link's credit.
    pub fn packed(&self, frame: EncodedFrame) {
        self.backlog.add(frame.info.plain_bytes.into());
        // A pump that has ended belongs to a keeper that is being dropped.
        self.pump.send(Message::Packed(frame));
    }

    /// From now on whoever asks the directory's owner is answered, and history is merged as the policy wants. Comes when the filter is
    /// ready to be asked in turn.
    ///
    /// # Errors
    /// When the socket cannot be made, or nothing has begun.
    pub fn serve(&self) -> Result<Arc<Host>, ServeError> {
        let running = self.running().map_err(ServeError::NotBegun)?;
        let host = &running.host;
        let live: Arc<dyn Live> = Arc::clone(running) as _;
        host.set_live(Some(live));
        // What a killed mount, or a merge that was cut off, left takes room, and nothing else.
        let _ = host.clean_sessions();
        let _ = cdp_core::replica::retention::clean_up(self.storage.as_ref(), host.replica().manifest());
        let (watch, for_watch) = (Watch::new(host, &running.stop), Arc::clone(running));
        let tell = move |history| *lock(&for_watch.history) = Some(history);
        let mut threads = lock(&self.threads);
        if let Some(threads) = threads.as_mut() {
            threads.spawn("cdp-merge", move || watch.run(&tell)).map_err(ServeError::Thread)?;
        }
        drop(threads);
        let owner = lock(&self.owner).clone();
        if let Some(owner) = owner {
            let control = ControlServer::start(&owner, Arc::clone(host) as _).map_err(ServeError::Socket)?;
            *lock(&self.control) = Some(control);
        }
        Ok(Arc::clone(host))
    }

    /// Nobody is answered any more.
    pub fn hush(&self) {
        let control = lock(&self.control).take();
        drop(control);
    }

    /// Ends everything, waits for its threads, and lets go of the directory. What is not durable stays so.
    pub fn let_go(&self) {
        self.hush();
        self.end_all();
        let threads = lock(&self.threads).take();
        threads.into_iter().for_each(|mut threads| threads.join());
        // Of first copies whoever gives their pieces may still know: nobody writes to a directory that was let go of.
        while self.running.get().is_some_and(|running| Arc::strong_count(&running.writers) > 1) {
            std::thread::sleep(store::LOOK);
        }
        lock(&self.waiting).found = None;
        let owner = lock(&self.owner).take();
        drop(owner);
    }

    /// Tells every thread to end, and waits for none.
    fn end_all(&self) {
        if let Some(running) = self.running.get() {
            running.host.set_live(None);
            running.stop.store(true, Ordering::Relaxed);
            running.host.end();
            *running.near.write().unwrap_or_else(PoisonError::into_inner) = None;
            lock(&running.copies).iter().filter_map(Weak::upgrade).for_each(|stop| stop.store(true, Ordering::Relaxed));
        }
        // The pump waits for its own queue, which the writer's driver and edits may still hold: it is told.
        self.pump.send(Message::End);
    }

    fn is_in_place(&self) -> bool {
        lock(&self.owner).as_ref().is_some_and(|owner| owner.is_in_place())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Why nobody is answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No filter has begun.
    #[error("{0}")]
    NotBegun(Problem),
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The control socket.
    #[error("cannot make the control socket: {0}")]
    Socket(std::io::Error),
}
