//! Reading a moment of a replica: under the pin of its owner, or as the owner for the time being.

use crate::clock;
use crate::host::{Hold, Host, OpenedSession, document, load_idle, read_only, session_directory};
use crate::owner::{Access, ClientError, ControlClient, ControlServer, Owner, PinReply, Reader, Request, Side};
use crate::random::identity;
use crate::report::{At, Problem, ProblemClass, Session as SessionReport};
use cdp_core::frame::Compression;
use cdp_core::journal::{BaseInfo, Looked, Manifest, OpenError, ReadError, StampedMoment, look_with, read_manifest};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::catalogue::Moment;
use cdp_core::replica::session::{SEGMENT_BYTES, Session, SessionError, SessionOptions};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, ReplicaError, ReplicaView};
use cdp_core::trust::KeyHolder;
use cdp_core::types::{Lsn, Timeline};
use cdp_core::when::{TimelineName, When};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What keeps the moment from going away: dropped last.
enum Keep {
    /// This process owns the directory.
    Owner { _owning: Owning },
    /// The owner holds a pin, or a session, while this connection lives; locks of this process hold what it reads under the next owner.
    Client { client: ControlClient, _readers: Vec<Reader> },
}

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Owner { .. } => "Owner",
            Self::Client { .. } => "Client",
        })
    }
}

/// The directory as this process owns it. It answers others who ask, and what they ask for may end what is read here, if it is not
/// held. Let go of in this order.
pub(crate) struct Owning {
    /// None where no socket can be made.
    _control: Option<ControlServer>,
    _session: Option<OpenedSession>,
    _holds: Vec<Hold>,
    host: Arc<Host>,
    _owner: Owner,
}

/// Before the control server waits for what it was asked for.
impl Drop for Owning {
    fn drop(&mut self) {
        self.host.end();
    }
}

impl Owning {
    /// Answers from now on.
    ///
    /// # Errors
    /// When the control socket cannot be made.
    pub(crate) fn begin(
        owner: Owner,
        host: Arc<Host>,
        session: Option<OpenedSession>,
        holds: Vec<Hold>,
    ) -> Result<Self, Problem> {
        let start = || ControlServer::start(&owner, Arc::clone(&host) as _);
        // Where nobody can write nobody needs to ask: all who read have the lock.
        let control = (!owner.is_read_only()).then(start).transpose().map_err(|error| {
            Problem::new(ProblemClass::Failed, "control-socket", format!("cannot make the control socket: {error}"))
        })?;
        Ok(Self { _control: control, _session: session, _holds: holds, host, _owner: owner })
    }
}

fn keep(owner: Owner, host: Arc<Host>, session: Option<OpenedSession>, holds: Vec<Hold>) -> Result<Keep, Problem> {
    Ok(Keep::Owner { _owning: Owning::begin(owner, host, session, holds)? })
}

/// A moment that can be read for as long as this lives.
#[derive(Debug)]
pub struct Reading {
    /// The replica's files.
    pub replica: Replica,
    /// The moment.
    pub moment: Moment,
    /// The moment as it is shown.
    pub at: At,
    keep: Keep,
}

/// Why an owner's answer is none.
#[must_use]
pub fn not_answered(error: ClientError) -> Problem {
    match error {
        ClientError::Refused(problem) => problem,
        error => Problem::new(ProblemClass::Failed, "owner", error.to_string()),
    }
}

/// Has the owner pin a moment, and holds it under every owner from now on.
fn pin(
    client: &mut ControlClient,
    dir: &Path,
    when: &When,
    side: Option<Side>,
) -> Result<(At, Option<Reader>), Problem> {
    let request = Request::Pin { at: when.clone(), nearest: side };
    let PinReply { at, .. } = client.call(&request).map_err(not_answered)?;
    let reader = Reader::begin(dir, at.lsn);
    // Who answers still has the pin: it was held all the time, and no other owner has decided anything without seeing the lock.
    let () = client.call(&Request::Ping).map_err(not_answered)?;
    Ok((at, reader))
}

fn storage(dir: &Path) -> Result<Arc<dyn Storage>, Problem> {
    let disk = Disk::open(dir).map_err(|error| Problem::new(ProblemClass::Failed, "unreadable", error.to_string()))?;
    Ok(Arc::new(disk))
}

/// How often the files are looked at again when they changed in between.
const LOOKS_MAX: usize = 16;

/// The files under an owner who vouches for everything up to `safe`, and who goes on merging and removing what is old.
fn load_under_owner(storage: &Arc<dyn Storage>, safe: Lsn, key: &KeyHolder) -> Result<Replica, Problem> {
    let generation = || read_manifest(storage.as_ref()).map(|manifest| manifest.generation).ok();
    let mut looks = 0;
    loop {
        let before = generation();
        looks += 1;
        match look_under_owner(storage, safe, key) {
            Err(_) if looks < LOOKS_MAX && generation() != before => {}
            // A merge gives a base another table.
            Ok(replica) if replica.bases().check().is_err() && looks < LOOKS_MAX && generation() != before => {}
            done => return done,
        }
    }
}

/// Refuses another key than that of the replica, or none: before anything is asked for, and not by the first read.
fn check_key(manifest: &Manifest, key: &KeyHolder) -> Result<(), Problem> {
    key.unlock(manifest.replica, &manifest.keys).map(drop).map_err(|error| document::locked(&error))
}

fn look_under_owner(storage: &Arc<dyn Storage>, safe: Lsn, key: &KeyHolder) -> Result<Replica, Problem> {
    let failed = |error: cdp_core::replica::ReplicaError| document::unreadable(&error);
    // The owner is the witness.
    let looked = look_with(storage.as_ref(), JOURNAL_DIRECTORY, None, key).map_err(|error| failed(error.into()))?;
    let Looked { manifest, snapshot, damage, keys, .. } = looked;
    check_key(&manifest, key)?;
    if let Some(damage) = damage.filter(|damage| damage.good < safe) {
        return Err(failed(OpenError::Damaged(Box::new(damage)).into()));
    }
    if snapshot.written() < safe {
        // No torn tail either: the owner has seen it durable.
        let (path, written) = (storage.path(), snapshot.written());
        let message = format!("{path} holds LSNs up to {written} that can be read, and up to {safe} were made durable");
        return Err(document::damaged(message));
    }
    Replica::load_to_read(Arc::clone(storage), manifest, snapshot, safe, keys).map_err(failed)
}

/// What tells whether a moment stands where it stood: how far the bases are, and what is kept.
type Place = (Option<StampedMoment>, Vec<Option<BaseInfo>>, Vec<u64>);

fn place_of(manifest: &Manifest) -> Place {
    let bases = manifest.disks.iter().map(|disk| disk.base).collect();
    (manifest.oldest(), bases, manifest.kept.iter().map(|kept| kept.number).collect())
}

/// A view of a moment that is held, while its owner merges what is behind it.
fn view_under_owner(replica: &Replica, (timeline, lsn): (Timeline, Lsn)) -> Result<ReplicaView, Problem> {
    let view = replica.view(timeline, lsn).map_err(|error| document::unreadable(&error))?;
    let (storage, known) = (Arc::clone(replica.storage()), Mutex::new(place_of(replica.manifest())));
    let key = replica.keys().of_stores();
    Ok(view.renewed_by(Box::new(move || {
        let replica = load_under_owner(&storage, lsn, &key).ok()?;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place_of(replica.manifest());
        // While a merge goes on, what it changes is kept piece by piece.
        if *known == place && replica.manifest().merge.is_none() {
            return None;
        }
        match replica.ground(timeline, lsn) {
            // Each who reads from now on is told, not only the first.
            Err(ReplicaError::Merged { .. }) => Some(Err(ReadError::GivenUp { timeline, lsn })),
            ground => {
                *known = place;
                // What is wrong in its new place is found again by who reads there.
                ground.ok().map(Ok)
            }
        }
    })))
}

/// The moment that the owner has found.
fn moment_of(replica: &Replica, at: &At) -> Result<Moment, Problem> {
    let timeline = timeline_named(replica, at.timeline)?;
    replica.exact(timeline, at.lsn).map_err(|error| document::unresolved(replica, &error))
}

fn timeline_named(replica: &Replica, name: TimelineName) -> Result<Timeline, Problem> {
    let found = replica.catalogue().branches().into_iter().find(|branch| name.matches(&branch.timeline));
    found.map(|branch| branch.timeline).ok_or_else(|| {
        let message = format!("the owner names the timeline {name}, which its files do not have");
        Problem::new(ProblemClass::Failed, "unreadable", message)
    })
}

impl Reading {
    /// Finds the moment and holds it. `key` opens a replica that is sealed at rest.
    ///
    /// # Errors
    /// When it is not restorable or the replica cannot be read.
    pub fn open(dir: &Path, access: Access, when: &When, side: Option<Side>, key: &KeyHolder) -> Result<Self, Problem> {
        match access {
            Access::Client(mut client) => {
                let (at, reader) = pin(&mut client, dir, when, side)?;
                let replica = load_under_owner(&storage(dir)?, at.lsn, key)?;
                let moment = moment_of(&replica, &at)?;
                Ok(Self { replica, moment, at, keep: Keep::Client { client, _readers: Vec::from_iter(reader) } })
            }
            Access::Owner(owner) => {
                let storage = storage(dir)?;
                let host = Host::idle(Arc::clone(&storage), key)?;
                let (moment, hold) = host.hold(when, side)?;
                let at = document::at(&host.replica(), &moment);
                let replica = load_idle(&storage, key).map_err(|error| document::unreadable(&error))?;
                Ok(Self { replica, moment, at, keep: keep(owner, host, None, vec![hold])? })
            }
        }
    }

    /// Disks that were there, and whose first copy was not through: nothing of them can be restored.
    #[must_use]
    pub fn incomplete(&self) -> Vec<String> {
        incomplete(&self.replica, &self.moment)
    }

    /// Refuses a disk of which nothing can be restored at the moment, and names those next to it at which it can.
    ///
    /// # Errors
    /// When it is such a disk. One that nobody knows is not.
    pub fn check_disk(&mut self, name: Option<&str>) -> Result<(), Problem> {
        let Err(problem) = check_disk(&self.replica, &self.moment, name) else { return Ok(()) };
        let Keep::Client { client, .. } = &mut self.keep else { return Err(problem) };
        // Under an owner only what is up to the moment was loaded: the others are known with the latest one.
        let latest = Request::Pin { at: When::Latest, nearest: None };
        let PinReply { at, .. } = client.call(&latest).map_err(not_answered)?;
        let replica = load_under_owner(self.replica.storage(), at.lsn, &self.replica.keys().of_stores())?;
        check_disk(&replica, &self.moment, name)
    }

    /// The disks at the moment.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn view(&self) -> Result<cdp_core::replica::ReplicaView, Problem> {
        view_under_owner(&self.replica, (self.moment.timeline, self.moment.lsn))
    }
}

fn incomplete(replica: &Replica, moment: &Moment) -> Vec<String> {
    let there = replica.disks_at(moment.timeline, moment.lsn).into_iter();
    there.filter(|found| !found.complete).map(|found| found.disk.name).collect()
}

fn check_disk(replica: &Replica, moment: &Moment, name: Option<&str>) -> Result<(), Problem> {
    let known = |name: &&str| replica.manifest().disks.iter().any(|disk| disk.name == **name);
    let Some(name) = name.filter(known) else { return Ok(()) };
    if replica.complete_disks(moment.timeline, moment.lsn).iter().any(|disk| disk.name == name) {
        return Ok(());
    }
    let why = if incomplete(replica, moment).iter().any(|disk| disk == name) {
        "was not complete at that moment: its first copy was not through"
    } else {
        "was not there at that moment"
    };
    let nearest = replica.nearest_with_disk(name, moment);
    let sides = [nearest.before, nearest.after];
    // It lies in the midst of a range, of whose ends the times are known.
    let exact = |moment: &Moment| replica.exact(moment.timeline, moment.lsn).unwrap_or(*moment);
    let nearest: Vec<_> = sides.iter().flatten().map(|moment| document::at(replica, &exact(moment))).collect();
    let problem = Problem::new(ProblemClass::NotRestorable, "disk-incomplete", format!("the disk {name:?} {why}"));
    Err(if nearest.is_empty() { problem } else { problem.hint("take one of the nearest moments").nearest(nearest) })
}

/// Two moments of one replica that can be read for as long as this lives.
#[derive(Debug)]
pub struct ReadingTwo {
    replica: Replica,
    moments: [Moment; 2],
    /// The moments as they are shown.
    pub at: [At; 2],
    _keep: Keep,
}

impl ReadingTwo {
    /// Refuses a disk whose first copy was not through at one of the moments. One that was not there has no bytes there.
    ///
    /// # Errors
    /// When it is such a disk.
    pub fn check_disk(&self, name: Option<&str>) -> Result<(), Problem> {
        let is = |moment: &&Moment| incomplete(&self.replica, moment).iter().any(|disk| Some(disk.as_str()) == name);
        self.moments.iter().find(is).map_or(Ok(()), |moment| check_disk(&self.replica, moment, name))
    }

    /// Finds both moments and holds them. Of one that is not restorable its neighbour on `side` is taken.
    ///
    /// # Errors
    /// When one is not restorable or the replica cannot be read.
    pub fn open(
        dir: &Path,
        access: Access,
        when: [&When; 2],
        side: Option<Side>,
        key: &KeyHolder,
    ) -> Result<Self, Problem> {
        match access {
            Access::Client(mut client) => {
                let mut pin = |when: &When| pin(&mut client, dir, when, side);
                let ((one, reader_one), (two, reader_two)) = (pin(when[0])?, pin(when[1])?);
                let (at, readers) = ([one, two], reader_one.into_iter().chain(reader_two).collect());
                // LSNs grow on the trunk from timeline to timeline: who has the later one has both.
                let later = if at[0].lsn > at[1].lsn { &at[0] } else { &at[1] };
                let replica = load_under_owner(&storage(dir)?, later.lsn, key)?;
                let moments = [moment_of(&replica, &at[0])?, moment_of(&replica, &at[1])?];
                Ok(Self { replica, moments, at, _keep: Keep::Client { client, _readers: readers } })
            }
            Access::Owner(owner) => {
                let storage = storage(dir)?;
                let host = Host::idle(Arc::clone(&storage), key)?;
                let ((one, hold_one), (two, hold_two)) = (host.hold(when[0], side)?, host.hold(when[1], side)?);
                let (moments, holds) = ([one, two], vec![hold_one, hold_two]);
                let at = [0, 1].map(|which: usize| document::at(&host.replica(), &moments[which]));
                let replica = load_idle(&storage, key).map_err(|error| document::unreadable(&error))?;
                Ok(Self { replica, moments, at, _keep: keep(owner, host, None, holds)? })
            }
        }
    }

    /// The disks at both moments.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn views(&self) -> Result<[cdp_core::replica::ReplicaView; 2], Problem> {
        let view = |moment: &Moment| view_under_owner(&self.replica, (moment.timeline, moment.lsn));
        Ok([view(&self.moments[0])?, view(&self.moments[1])?])
    }
}

/// A writable session that is open in this process.
#[derive(Debug)]
pub struct Writing {
    /// The session's disks.
    pub session: Arc<Session>,
    /// What the session is.
    pub report: SessionReport,
    /// Disks that were there when it began, and of which nothing could be restored.
    pub incomplete: Vec<String>,
    /// The session's directory is this process's as long as it writes there, whoever owns the replica meanwhile.
    _writer: Owner,
    _keep: Keep,
}

impl Writing {
    /// Makes or opens a session and becomes its writer.
    ///
    /// # Errors
    /// When somebody else has it open, the moment is not restorable, or the media do not take it.
    pub fn open(
        dir: &Path,
        access: Access,
        at: Option<&When>,
        side: Option<Side>,
        name: Option<String>,
        key: &KeyHolder,
    ) -> Result<Self, Problem> {
        let (replica, report, kept) = match access {
            Access::Client(mut client) => {
                let manifest = read_manifest(storage(dir)?.as_ref());
                check_key(&manifest.map_err(|error| document::unreadable(&error.into()))?, key)?;
                let request = Request::OpenSession { at: at.cloned(), nearest: side, name };
                let report: SessionReport = client.call(&request).map_err(not_answered)?;
                let replica = load_under_owner(&storage(dir)?, report.at.lsn, key)?;
                (replica, report, Keep::Client { client, _readers: Vec::new() })
            }
            Access::Owner(owner) if owner.is_read_only() => return Err(read_only(dir)),
            Access::Owner(owner) => {
                let storage = storage(dir)?;
                let host = Host::idle(Arc::clone(&storage), key)?;
                host.clean_sessions()?;
                let opened = host.open_session(at, side, name)?;
                let replica = load_idle(&storage, key).map_err(|error| document::unreadable(&error))?;
                let report = opened.report.clone();
                (replica, report, keep(owner, host, Some(opened), Vec::new())?)
            }
        };
        let timeline = timeline_named(&replica, report.timeline)?;
        let writer = Owner::acquire(&dir.join(session_directory(timeline))).map_err(|error| {
            let message = format!("the session is open in another process: {error}");
            Problem::new(ProblemClass::Refused, "session-open", message).hint("end that mount first")
        })?;
        let session = open_session(&replica, &report)?;
        let incomplete = incomplete(&replica, &moment_of(&replica, &report.at)?);
        Ok(Self { session: Arc::new(session), report, incomplete, _writer: writer, _keep: kept })
    }
}

fn open_session(replica: &Replica, report: &SessionReport) -> Result<Session, Problem> {
    let timeline = timeline_named(replica, report.timeline)?;
    let unknown = || Problem::new(ProblemClass::Failed, "unreadable", "the manifest does not name the session");
    let info = replica.manifest().sessions.iter().find(|info| info.timeline == timeline).ok_or_else(unknown)?;
    let store = replica.storage().sub(&session_directory(timeline));
    let failed = |error: SessionError| match error {
        SessionError::Open(error) => document::unreadable(&error.into()),
        SessionError::Read(error) => document::unreadable(&error.into()),
        SessionError::AtRest(error) => document::locked(&error),
        error => Problem::new(ProblemClass::Failed, "session", error.to_string()),
    };
    let moment = view_under_owner(replica, (info.parent, info.fork))?;
    let keep_free_bytes = replica.manifest().policy.reserve_bytes;
    let (compression, keys) = (Compression::None, replica.keys().of_stores());
    let options = SessionOptions { moment, keep_free_bytes, segment_bytes: SEGMENT_BYTES, compression, keys };
    let store = store.map_err(|error| failed(SessionError::Open(error.into())))?;
    Session::open(&store, options, Box::new(identity), clock::now()).map_err(failed)
}
