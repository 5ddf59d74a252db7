//! The owner of a replica directory: answers what can be asked of it, and does what may be changed.
//!
//! The same [`Host`] answers a command that owns the directory for a moment and a protecting process that owns it for months;
//! the one has an idle store, the other hands edits to the pump of its journal ([`Store`], [`Live`]).

mod brake;
pub(crate) mod disks;
pub mod document;
mod holds;
mod idle;
mod looking;
mod pins;
pub(crate) mod place;
mod policy;
mod prune;
mod retain;
mod room;
mod rotate;
mod sessions;
mod space;
mod watch;

pub use idle::IdleStore;
pub use looking::{Looking, ReadWhole, read_only};
pub use policy::{RPO_MS, check_policy, check_policy_over};
pub use rotate::rotate_key;
pub use sessions::{OpenedSession, SESSIONS_DIRECTORY, session_directory};
pub use watch::Watch;

pub(crate) use self::holds::Hold;
use self::holds::Holds;
use crate::owner::{Connection, Handler, PinReply, Request, Side, reply};
use crate::report::{DiskChanged, Points, Problem, ProblemClass, Session, State, Status};
use cdp_core::frame::PointKinds;
use cdp_core::journal::{Generation, Looked, Manifest, Snapshot, Writer, look_through};
use cdp_core::media::Storage;
use cdp_core::replica::catalogue::{Catalogue, Moment};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, ReplicaError, ResolveError};
use cdp_core::trust::KeyHolder;
use cdp_core::types::{Lsn, Timeline, WallTime};
use cdp_core::when::{Label, When};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// A change of the manifest.
pub type Edit = Box<dyn FnOnce(&mut Manifest) + Send>;

/// A change of the store by its writer: the generation that has it.
pub type Change = Box<dyn FnOnce(&mut Writer) -> Generation + Send>;

/// How changes of a directory's store become durable.
pub trait Store: Send + Sync {
    /// Makes the change and returns when it is durable, with the manifest that holds it and the journal as it is then. Where
    /// somebody else brings the replica up to date, as the pump does, the change is in it by then.
    ///
    /// # Errors
    /// When the media do not take it.
    fn change(&self, change: Change) -> Result<(Manifest, Snapshot), Problem>;
}

/// A protection that is going on, as the host asks it.
pub trait Live: Send + Sync {
    /// Makes a point and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    fn mark(&self, kinds: PointKinds, label: &str) -> Result<Lsn, Problem>;

    /// How fast the journal grows, in bytes a second.
    fn stored_bytes_per_s(&self) -> u64;

    /// How large the journal's segments are made, in bytes.
    fn segment_bytes(&self) -> u64;

    /// Why nothing that guests write reaches the replica now, if so, and the last LSN that was given.
    fn unrecorded(&self) -> Option<(State, Lsn)>;

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
    /// What readers hold, and when retention may go on.
    holds: Arc<Holds>,
    retained: retain::Retained,
    open_sessions: Arc<Mutex<BTreeSet<Timeline>>>,
    /// Held while a session is opened or dropped.
    opening: Mutex<()>,
    /// Held while the disks of a group that nobody protects are changed.
    changing: Mutex<()>,
    /// The owner ends: what takes long ends at its next step.
    ending: AtomicBool,
    /// For what is given out and comes back by being dropped.
    me: Weak<Host>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("holds", &self.holds).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host of a replica that was loaded.
    #[must_use]
    pub fn new(replica: Replica, store: Box<dyn Store>) -> Arc<Self> {
        let retained = retain::Retained::of(replica.manifest());
        Arc::new_cyclic(|me| Self {
            holds: Holds::of(replica.storage().path().into()),
            replica: RwLock::new(replica),
            store,
            live: RwLock::new(None),
            retained,
            open_sessions: Arc::default(),
            opening: Mutex::default(),
            changing: Mutex::default(),
            ending: AtomicBool::new(false),
            me: Weak::clone(me),
        })
    }

    /// Hosts a directory that nobody protects: everything that was written is restorable.
    ///
    /// # Errors
    /// When there is no replica, or it cannot be read.
    pub fn idle(storage: Arc<dyn Storage>, key: &KeyHolder) -> Result<Arc<Self>, Problem> {
        let replica = load_idle(&storage, key).map_err(|error| document::unreadable(&error))?;
        let keys = Arc::clone(replica.keys());
        Ok(Self::new(replica, Box::new(IdleStore::new(storage, keys))))
    }

    /// From now on a protection is going on.
    pub fn set_live(&self, live: Option<Arc<dyn Live>>) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// The owner is going to end: a merge that somebody asked for stops at its next piece, and the next owner goes on with it.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
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
    pub fn edit(&self, edit: Edit) -> Result<(), Problem> {
        self.change(Box::new(move |writer| writer.edit(edit)))
    }

    /// Changes the store durably.
    fn change(&self, change: Change) -> Result<(), Problem> {
        let (manifest, snapshot) = self.store.change(change)?;
        let mut replica = self.replica_mut();
        // Whoever brought it here before had this change too, and may have had more: what others have changed since shares the
        // generation as long as it is not written.
        if manifest.generation <= replica.manifest().generation {
            return Ok(());
        }
        // Whoever writes the journal may have shown more of it since.
        let newer = snapshot.written() >= replica.snapshot().written();
        let snapshot = if newer { snapshot } else { replica.snapshot().clone() };
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

    /// The moment that is meant, held for a reader until what this gives is dropped.
    pub(crate) fn hold(&self, at: &When, side: Option<Side>) -> Result<(Moment, Hold), Problem> {
        let planning = self.holds.plan();
        let moment = self.moment(at, side)?;
        let hold = planning.add(moment.lsn);
        Ok((moment, hold))
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
        let ((connected, others), history) = (self.holds.readers(), self.history());
        let replica = self.replica();
        let (manifest, trunk) = (replica.manifest(), replica.catalogue().trunk());
        let bases = Arc::clone(replica.bases());
        let others = others.into_iter().filter(|lsn| retain::is_there(manifest, *lsn));
        let (ranges, left_off) = document::ranges(&replica);
        let mut status = Status {
            state: State::Stopped,
            group: manifest.name.clone(),
            disks: disks_now(&replica),
            timeline: trunk.map(|branch| branch.timeline.into()),
            lsn: replica.snapshot().written(),
            durable_lsn: trunk.map_or(Lsn::ZERO, |branch| safe(replica.catalogue(), branch.timeline)),
            ranges,
            ranges_left_off: (left_off > 0).then_some(left_off),
            pins: u32::try_from(connected + others.count()).unwrap_or(u32::MAX),
            history,
            holds: space::holds(&replica),
            damaged: document::damage_of(&replica),
            sealed_at_rest: !manifest.keys.is_empty(),
            ..Status::default()
        };
        let manifest = manifest.clone();
        // The media are asked without the lock: who writes the journal needs it.
        drop(replica);
        let base = bases.stored_bytes().map_err(|error| document::unreadable(&error.into()))?;
        status.sessions = self.sessions()?;
        status.space = space::account(self, &manifest, base);
        space::weigh(self, &manifest, &mut status.holds);
        status.space.overlays = status.sessions.iter().map(|session| session.bytes).sum();
        if let Some(live) = self.live() {
            live.describe(&mut status);
            status.owner_pid = Some(std::process::id());
        }
        Ok(status)
    }

    /// What can be restored and what cannot, newest first. What cannot be written to the journal cannot be read from it: of that the
    /// protection is asked.
    fn points(&self, since: Option<WallTime>, until: Option<WallTime>, limit: Option<u32>) -> Points {
        let unrecorded = self.live().and_then(|live| live.unrecorded());
        let replica = self.replica();
        let mut points = document::points(&replica, since, until, limit);
        let gap = unrecorded.and_then(|(state, lsn)| document::open_gap(&replica, state, (lsn, crate::clock::wall())));
        if let Some(gap) = gap.filter(|gap| until.is_none_or(|until| gap.from_time <= until)) {
            points.gaps.iter_mut().for_each(|listed| listed.open = false);
            points.gaps.insert(0, gap);
        }
        points
    }

    fn mark(&self, label: &Label, app_consistent: bool) -> Result<crate::report::At, Problem> {
        let refused = |code, message: &str| Problem::new(ProblemClass::Refused, code, message);
        if app_consistent {
            return Err(no_hook());
        }
        // Who protects looks again, at those too that are not durable yet.
        if !self.replica().catalogue().labelled(label.as_str()).is_empty() {
            return Err(label_taken(label.as_str()));
        }
        let Some(live) = self.live() else {
            let message = "nobody protects this replica now: there is no present moment to mark";
            return Err(refused("not-protecting", message).hint("start `cdp protect`, then mark"));
        };
        let kinds = PointKinds { mark: true, ..PointKinds::default() };
        let lsn = live.mark(kinds, label.as_str())?;
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

/// Why no point is called application-consistent.
pub(crate) fn no_hook() -> Problem {
    let message = "no hook is set that freezes applications: the point would not be what its name says";
    Problem::new(ProblemClass::Refused, "no-hook", message).hint("mark without --app-consistent")
}

/// Why a label cannot be given.
pub(crate) fn label_taken(label: &str) -> Problem {
    let message = format!("there is a point with the label {label:?} already");
    Problem::new(ProblemClass::Refused, "label-taken", message).hint("take another label")
}

impl Handler for Host {
    fn handle(&self, request: Request, connection: &Connection) -> Result<Value, Problem> {
        match request {
            Request::Ping => Ok(Value::Null),
            Request::Status => reply(self.status()?),
            Request::Points { since, until, limit } => {
                reply(self.points(self.time_of(since)?, self.time_of(until)?, limit))
            }
            Request::Mark { label, app_consistent } => reply(self.mark(&label, app_consistent)?),
            Request::Pin { at, nearest } => {
                self.holds.let_outlast();
                let (moment, hold) = self.hold(&at, nearest)?;
                let pin = connection.hold(hold)?;
                reply(PinReply { pin, at: document::at(&self.replica(), &moment) })
            }
            Request::PinAll => {
                let pause = self.holds.pause();
                let moment = self.moment(&When::Latest, None)?;
                let pin = connection.hold(pause)?;
                reply(PinReply { pin, at: document::at(&self.replica(), &moment) })
            }
            Request::Keep { at, nearest, label } => reply(self.keep(&at, nearest, label.as_ref())?),
            Request::LetGo { at, nearest } => reply(self.let_go(&at, nearest)?),
            Request::Prune { dry_run } => reply(self.prune(dry_run)?),
            Request::Compact => reply(self.compact()?),
            Request::Unpin { pin } => reply(connection.release(pin).is_some_and(|held| holds::was_held(held.as_ref()))),
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

/// A replica that nobody owns but the caller, read without changing it: what a power cut tore is not in it, nor after a start.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn load_idle(storage: &Arc<dyn Storage>, key: &KeyHolder) -> Result<Replica, ReplicaError> {
    let witness = crate::protect::witness(storage.as_ref());
    let looked = look_through(storage.as_ref(), JOURNAL_DIRECTORY, witness, key)?;
    let Looked { manifest, snapshot, damage, keys, .. } = looked;
    let written = snapshot.written();
    Ok(Replica::load_to_read(Arc::clone(storage), manifest, snapshot, written, keys)?.with_damage(damage))
}
