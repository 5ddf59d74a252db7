//! The owner of a replica directory: answers what can be asked of it, and does what may be changed.
//!
//! The same [`Host`] answers a command that owns the directory for a moment and a protecting process that owns it for months;
//! the one has an idle store, the other hands edits to the pump of its journal ([`Store`], [`Live`]).

pub(crate) mod disks;
pub mod document;
mod idle;
pub(crate) mod place;
mod sessions;

pub use idle::IdleStore;
pub use sessions::{OpenedSession, SESSIONS_DIRECTORY, session_directory};

use crate::owner::{Connection, Handler, PinReply, PolicyChange, Request, Side, reply};
use crate::report::{DiskChanged, PointPolicy, Problem, ProblemClass, Session, Space, State, Status};
use cdp_core::journal::{Looked, Manifest, PointsMode, look};
use cdp_core::media::Storage;
use cdp_core::replica::catalogue::{Catalogue, Moment};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, ReplicaError, ResolveError};
use cdp_core::types::{Lsn, Timeline, WallTime};
use cdp_core::when::{Label, When};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// The shortest and the longest RPO, in milliseconds.
pub const RPO_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;

/// A change of the manifest.
pub type Edit = Box<dyn FnOnce(&mut Manifest) + Send>;

/// How changes of a directory's manifest become durable.
pub trait Store: Send + Sync {
    /// Makes the change and returns when it is durable, with the manifest that holds it.
    ///
    /// # Errors
    /// When the media do not take it.
    fn edit(&self, change: Edit) -> Result<Manifest, Problem>;
}

/// A protection that is going on, as the host asks it.
pub trait Live: Send + Sync {
    /// Makes a point and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    fn mark(&self, label: &Label) -> Result<Lsn, Problem>;

    /// Adds what only the protection knows.
    fn describe(&self, status: &mut Status);

    /// A disk joins the group.
    ///
    /// # Errors
    /// When it cannot.
    fn add_disk(&self, name: &str, source: &std::path::Path) -> Result<DiskChanged, Problem>;

    /// A disk leaves the group.
    ///
    /// # Errors
    /// When it is not there, or the last one.
    fn remove_disk(&self, name: &str) -> Result<DiskChanged, Problem>;

    /// A disk gets another size.
    ///
    /// # Errors
    /// When it cannot have it, or data would be lost and that is not forced.
    fn resize_disk(&self, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem>;

    /// The policy was changed durably.
    fn policy_changed(&self, policy: &cdp_core::journal::Policy);
}

/// The owner's side of a replica directory.
pub struct Host {
    replica: RwLock<Replica>,
    store: Box<dyn Store>,
    live: RwLock<Option<Arc<dyn Live>>>,
    pins: Arc<AtomicU32>,
    open_sessions: Arc<Mutex<BTreeSet<Timeline>>>,
    /// Held while a session is opened or dropped.
    opening: Mutex<()>,
    /// For what is given out and comes back by being dropped.
    me: Weak<Host>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("pins", &self.pins).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a reader for as long as it lives.
struct Pin(Arc<AtomicU32>);

impl Pin {
    fn new(pins: &Arc<AtomicU32>) -> Self {
        pins.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(pins))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    /// A host of a replica that was loaded.
    #[must_use]
    pub fn new(replica: Replica, store: Box<dyn Store>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            replica: RwLock::new(replica),
            store,
            live: RwLock::new(None),
            pins: Arc::default(),
            open_sessions: Arc::default(),
            opening: Mutex::default(),
            me: Weak::clone(me),
        })
    }

    /// Hosts a directory that nobody protects: everything that was written is restorable.
    ///
    /// # Errors
    /// When there is no replica, or it cannot be read.
    pub fn idle(storage: Arc<dyn Storage>) -> Result<Arc<Self>, Problem> {
        let replica = load_idle(&storage).map_err(|error| document::unreadable(&error))?;
        Ok(Self::new(replica, Box::new(IdleStore::new(storage))))
    }

    /// From now on a protection is going on.
    pub fn set_live(&self, live: Option<Arc<dyn Live>>) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }

    fn live(&self) -> Option<Arc<dyn Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The replica as it is now.
    pub fn replica(&self) -> RwLockReadGuard<'_, Replica> {
        self.replica.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is. Who uses it holds no lock: whoever writes the journal needs that of the replica.
    fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(self.replica().storage())
    }

    /// The replica, to be brought up to date by whoever writes it.
    pub(crate) fn replica_mut(&self) -> RwLockWriteGuard<'_, Replica> {
        self.replica.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the manifest durably.
    ///
    /// # Errors
    /// When the media do not take it.
    pub fn edit(&self, change: Edit) -> Result<(), Problem> {
        let manifest = self.store.edit(change)?;
        let mut replica = self.replica_mut();
        let snapshot = replica.snapshot().clone();
        replica.update(Some(&manifest), snapshot).map_err(|error| document::unreadable(&error))
    }

    /// The moment that is meant, or the neighbour that was asked for.
    ///
    /// # Errors
    /// When there is none.
    pub fn moment(&self, at: &When, side: Option<Side>) -> Result<Moment, Problem> {
        let replica = self.replica();
        let error = match (replica.resolve(at), side) {
            (Ok(moment), _) => return Ok(moment),
            (Err(error), Some(side)) => {
                let nearest = match &error {
                    // Of a name that was mistyped nothing is the neighbour.
                    ResolveError::NotRestorable(lost) if !lost.unknown => lost.nearest,
                    ResolveError::Damaged { nearest, .. } => *nearest,
                    _ => return Err(document::unresolved(&replica, &error)),
                };
                let neighbour = match side {
                    Side::Before => nearest.before,
                    Side::After => nearest.after,
                };
                match neighbour.map(|moment| replica.exact(moment.timeline, moment.lsn)) {
                    Some(Ok(moment)) => return Ok(moment),
                    Some(Err(error)) => error,
                    None => error,
                }
            }
            (Err(error), _) => error,
        };
        Err(document::unresolved(&replica, &error))
    }

    fn time_of(&self, when: Option<When>) -> Result<Option<WallTime>, Problem> {
        match when {
            None => Ok(None),
            Some(When::Time(time)) => Ok(Some(time)),
            // Bounds of a list need not be restorable themselves.
            Some(When::Back(back)) => {
                let latest = self.replica().catalogue().latest().map_or(0, |moment| moment.stamp.time.0);
                Ok(Some(WallTime(latest.saturating_sub(u64::try_from(back.as_nanos()).unwrap_or(u64::MAX)))))
            }
            Some(other) => self.moment(&other, None).map(|moment| Some(moment.stamp.time)),
        }
    }

    /// How the replica is.
    ///
    /// # Errors
    /// When the media cannot be asked.
    pub fn status(&self) -> Result<Status, Problem> {
        let replica = self.replica();
        let (manifest, trunk) = (replica.manifest(), replica.catalogue().trunk());
        let (bases, storage) = (Arc::clone(replica.bases()), Arc::clone(replica.storage()));
        let mut status = Status {
            state: State::Stopped,
            group: manifest.name.clone(),
            disks: disks_now(&replica),
            timeline: trunk.map(|branch| branch.timeline.into()),
            lsn: replica.snapshot().written(),
            durable_lsn: trunk.map_or(Lsn::ZERO, |branch| safe(replica.catalogue(), branch.timeline)),
            ranges: document::ranges(&replica),
            pins: self.pins.load(Ordering::Relaxed),
            damaged: replica.damage().map(ToString::to_string),
            ..Status::default()
        };
        // The media are asked without the lock: who writes the journal needs it.
        drop(replica);
        let base = bases.stored_bytes().map_err(|error| document::unreadable(&error.into()))?;
        status.space = Space { base, segments: segment_bytes(storage.as_ref()), ..Space::default() };
        status.sessions = self.sessions()?;
        status.space.overlays = status.sessions.iter().map(|session| session.bytes).sum();
        if let Some(live) = self.live() {
            live.describe(&mut status);
            status.owner_pid = Some(std::process::id());
        }
        Ok(status)
    }

    fn change_policy(&self, change: PolicyChange) -> Result<crate::report::Policy, Problem> {
        if change.points == Some(PointPolicy::PerPoint) {
            return Err(no_coalescing());
        }
        if let Some(rpo_ms) = change.rpo_ms.filter(|rpo_ms| !RPO_MS.contains(rpo_ms)) {
            let message = format!("an RPO of {rpo_ms} ms is not between {} ms and a day", RPO_MS.start());
            return Err(Problem::new(ProblemClass::Usage, "rpo", message));
        }
        if change != PolicyChange::default() {
            self.edit(Box::new(move |manifest| {
                if let Some(rpo_ms) = change.rpo_ms {
                    manifest.policy.rpo_ms = rpo_ms;
                }
                if let Some(points) = change.points {
                    manifest.policy.points = match points {
                        PointPolicy::EveryWrite => PointsMode::EveryWrite,
                        PointPolicy::PerPoint => PointsMode::PerPoint,
                    };
                }
            }))?;
        }
        let policy = self.replica().manifest().policy;
        if let Some(live) = self.live() {
            live.policy_changed(&policy);
        }
        Ok(document::policy(&policy))
    }

    fn mark(&self, label: &Label, app_consistent: bool) -> Result<crate::report::At, Problem> {
        let refused = |code, message: &str| Problem::new(ProblemClass::Refused, code, message);
        if app_consistent {
            let message = "no hook is set that freezes applications: the point would not be what its name says";
            return Err(refused("no-hook", message).hint("mark without --app-consistent"));
        }
        if !self.replica().catalogue().labelled(label.as_str()).is_empty() {
            let message = format!("there is a point with the label {:?} already", label.as_str());
            return Err(refused("label-taken", &message).hint("take another label"));
        }
        let Some(live) = self.live() else {
            let message = "nobody protects this replica now: there is no present moment to mark";
            return Err(refused("not-protecting", message).hint("start `cdp protect`, then mark"));
        };
        let lsn = live.mark(label)?;
        let replica = self.replica();
        let trunk = replica.catalogue().trunk().map(|branch| branch.timeline);
        let moment = trunk.map(|timeline| replica.exact(timeline, lsn));
        match moment {
            Some(Ok(moment)) => Ok(document::at(&replica, &moment)),
            Some(Err(error)) => Err(document::unresolved(&replica, &error)),
            None => Err(refused("not-protecting", "the replica has no timeline")),
        }
    }
}

impl Handler for Host {
    fn handle(&self, request: Request, connection: &Connection) -> Result<Value, Problem> {
        match request {
            Request::Ping => Ok(Value::Null),
            Request::Status => reply(self.status()?),
            Request::Points { since, until, limit } => {
                let (since, until) = (self.time_of(since)?, self.time_of(until)?);
                reply(document::points(&self.replica(), since, until, limit))
            }
            Request::Mark { label, app_consistent } => reply(self.mark(&label, app_consistent)?),
            Request::Pin { at, nearest } => {
                let moment = self.moment(&at, nearest)?;
                let pin = connection.hold(Pin::new(&self.pins))?;
                reply(PinReply { pin, at: document::at(&self.replica(), &moment) })
            }
            Request::PinAll => {
                let moment = self.moment(&When::Latest, None)?;
                let pin = connection.hold(Pin::new(&self.pins))?;
                reply(PinReply { pin, at: document::at(&self.replica(), &moment) })
            }
            Request::Unpin { pin } => reply(connection.release(pin).is_some()),
            Request::Policy { change } => reply(self.change_policy(change)?),
            Request::OpenSession { at, nearest, name } => {
                let opened = self.open_session(at.as_ref(), nearest, name)?;
                let session: Session = opened.report.clone();
                connection.hold(opened)?;
                reply(session)
            }
            Request::AddDisk { name, source } => reply(self.add_disk(&name, &source)?),
            Request::RemoveDisk { name } => reply(self.remove_disk(&name)?),
            Request::ResizeDisk { name, size, force } => reply(self.resize_disk(&name, size, force)?),
            Request::DropSession { name } => reply(self.drop_session(&name)?),
        }
    }
}

/// Why per-point coalescing is refused: a policy that is stored and not followed would be worse.
#[must_use]
pub fn no_coalescing() -> Problem {
    let message = "this version keeps every write: it does not coalesce the writes between points";
    Problem::new(ProblemClass::Refused, "no-coalescing", message).hint("leave --points out, or give every-write")
}

/// The group's disks.
fn disks_now(replica: &Replica) -> Vec<crate::report::Disk> {
    let Some(trunk) = replica.catalogue().trunk() else { return Vec::new() };
    let disks = replica.disks_at(trunk.timeline, Lsn(u64::MAX)).into_iter();
    let report = |found: cdp_core::replica::DiskAt| crate::report::Disk {
        name: found.disk.name,
        size: found.disk.size,
        uri: None,
        incomplete: !found.complete,
    };
    disks.map(report).collect()
}

/// How far records are safe on the way to a timeline's end. What the journal has beyond, behind a write that is in flight, is
/// synced too, and cannot be restored if that write never ends.
fn safe(catalogue: &Catalogue, timeline: Timeline) -> Lsn {
    let path = catalogue.path(timeline);
    path.iter().map(|(branch, upto)| branch.frontier().lsn.min(*upto)).max().unwrap_or(Lsn::ZERO)
}

/// Bytes of the segments' files, reserved ones included.
fn segment_bytes(storage: &dyn Storage) -> u64 {
    let directory = cdp_core::replica::JOURNAL_DIRECTORY;
    let names = storage.list(directory).unwrap_or_default();
    let lengths = names.iter().filter_map(|name| storage.open(&format!("{directory}/{name}"), false).ok()?.len().ok());
    lengths.sum()
}

/// A replica that nobody protects, read without changing it.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn load_idle(storage: &Arc<dyn Storage>) -> Result<Replica, ReplicaError> {
    let witness = crate::protect::witness(storage.as_ref());
    let Looked { manifest, snapshot, damage, .. } = look(storage.as_ref(), JOURNAL_DIRECTORY, witness)?;
    let written = snapshot.written();
    Ok(Replica::load(Arc::clone(storage), manifest, snapshot, written)?.with_damage(damage))
}
