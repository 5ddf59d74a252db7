//! One group at a replica host: its keeper, and the way to its filter.

use super::only::Only;
use super::reads::{self, Reads};
use super::traffic::Traffic;
use super::turns::TenantTurns;
use super::{Shared, frames, lock};
use crate::far::{Acks, Begin, CallKind, Caller, Far, Find, Found, Origin, RemoteNear};
use crate::host::Host;
use crate::keeper::{Calls, Home, Keeper, KeeperOptions};
use crate::link::accept::Accepted;
use crate::owner::{Access, AccessError, ClientError, ControlClient, Owner};
use crate::reading::{Owning, not_answered};
use crate::report::{Problem, ProblemClass, State};
use crate::services::role::{GroupReport, Held as OnTheWay};
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::journal::{MANIFEST_COPY, MANIFEST_NAME};
use cdp_core::link::message::{Answer, Call, CallStatus, Code, Farewell, Hello};
use cdp_core::media::Disk;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// How long an owner that begins is waited for, and how often it is looked.
const OWNER_WITHIN: Duration = Duration::from_secs(3);
const OWNER_LOOK: Duration = Duration::from_millis(20);

fn owned(error: &AccessError) -> Problem {
    Problem::new(ProblemClass::Refused, "owned", format!("the replica is in use: {error}"))
        .hint("try again in a moment")
}

/// How long a keeper waits for its filter's answer.
const NEAR_WITHIN: Duration = Duration::from_secs(10);
/// A filter that orders something has its session of frames here after so long, or not at all.
const COMES_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(10);

/// By what a group is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SeatKey {
    pub(super) tenant: String,
    pub(super) group: String,
}

/// What the task of a timeline's frames is told.
pub(super) enum ToFrames {
    Accepted(Box<Accepted>),
    Durable(Lsn),
    Room(Room),
    Call { call: Call, reply: SyncSender<Result<Answer, NotAsked>> },
    Seeded { session: u64, taken: u64 },
}

/// A timeline that is written, and how it was when that began.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub(super) timeline: Timeline,
    /// The place behind which frames were taken: it may be within a record.
    pub(super) have: Position,
    /// What was durable, whole records only.
    pub(super) durable: Lsn,
}

/// What is written, and what else the replica had when that began.
#[derive(Clone)]
struct Written {
    timeline: Timeline,
    group: GroupId,
    known: Arc<[Timeline]>,
}

impl Written {
    fn by(keeper: &Keeper, timeline: Timeline) -> Option<Self> {
        let (group, known) = keeper.timelines()?;
        Some(Self { timeline, group, known: known.into() })
    }

    /// What is said to who comes with another timeline. What nobody will ever take is dropped by who keeps it: only what is known here is
    /// said of it.
    fn refuses(&self, group: Option<GroupId>, timeline: Timeline) -> Farewell {
        if group != Some(self.group) {
            return absent("the replica here is of another group");
        }
        let is_known = self.known.contains(&timeline);
        let code = if is_known { Code::TimelineClosed } else { Code::TimelineUnknown };
        Farewell::new(code, "another timeline is written now")
    }
}

/// Nothing is here of what somebody wants to go on with. That its medium is not mounted looks the same, so he comes again.
fn absent(what: &str) -> Farewell {
    Farewell::new(Code::Unreachable, format!("{what}: is the volume of this group's replica mounted?"))
}

/// A keeper while it keeps the group's replica for one filter.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) keeper: Arc<Keeper>,
    pub(super) calls: Arc<Calls>,
    /// What writes, once that has begun.
    pub(super) begun: Option<Begun>,
    /// What was durable when it was found.
    found: Lsn,
}

/// Where a session of frames finds the replica.
pub(super) enum Resumed {
    /// It goes on from where it began.
    Held(Held, Begun),
    /// Less is there than was called durable.
    Lost { have: Position, lost: RangeInclusive<Lsn> },
}

/// See the module's text.
pub(super) struct Seat {
    directory: PathBuf,
    options: KeeperOptions,
    held: Mutex<Option<Held>>,
    /// What is written, for who may not wait for `held`.
    written: Mutex<Option<Written>>,
    way: Arc<Way>,
    /// What is read of it from afar.
    pub(super) reads: Reads,
    /// When calls are answered.
    pub(super) turns: Arc<TenantTurns>,
    /// Answers while there is no keeper, and somebody reads.
    idle: Mutex<Option<Owning>>,
    /// Of the last task that has frames.
    traffic: Mutex<Arc<Traffic>>,
    /// When the last came that was seen to be durable and restorable.
    moment: Mutex<Option<MonoTime>>,
    /// Bytes that keepers before this one stored, and this one when it was looked at.
    stored: Mutex<(u64, u64)>,
}

/// A call was not sent: there is no session with the filter, or not yet.
pub(super) struct NotAsked;

/// The way to the filter: the task that has its frames, if there is one.
#[derive(Default)]
pub(super) struct Way(Mutex<Option<(Timeline, UnboundedSender<ToFrames>)>>);

impl Way {
    fn tell(&self, message: ToFrames) -> bool {
        lock(&self.0).as_ref().is_some_and(|(_, task)| task.send(message).is_ok())
    }
}

impl Caller for Way {
    fn call(&self, call: Call) -> Answer {
        let silent = |status| Answer { kind: call.kind, status, header: Bytes::new(), tail: Bytes::new() };
        // A filter orders these itself: its frames are on their way here, after a start for example.
        let is_order = [CallKind::NearMark, CallKind::NearDisk].iter().any(|kind| *kind as u16 == call.kind);
        let (begun, patience) = (Instant::now(), if is_order { COMES_WITHIN } else { Duration::ZERO });
        loop {
            let (reply, answered) = sync_channel(1);
            let asked = self.tell(ToFrames::Call { call: call.clone(), reply });
            match asked.then(|| answered.recv_timeout(NEAR_WITHIN)) {
                Some(Ok(Ok(answer))) => return answer,
                Some(Err(_)) => return silent(CallStatus::TimedOut),
                None | Some(Ok(Err(NotAsked))) if begun.elapsed() >= patience => {
                    return silent(CallStatus::Unreachable);
                }
                None | Some(Ok(Err(NotAsked))) => std::thread::sleep(LOOK),
            }
        }
    }
}

impl Acks for Way {
    fn durable(&self, lsn: Lsn) {
        // Where nobody takes it, it is asked for when somebody comes.
        self.tell(ToFrames::Durable(lsn));
    }

    fn room(&self, room: Room) {
        self.tell(ToFrames::Room(room));
    }
}

fn refused(call: &Call, problem: &Problem) -> Answer {
    let header = serde_json::to_vec(problem).unwrap_or_default().into();
    Answer { kind: call.kind, status: CallStatus::Refused, header, tail: Bytes::new() }
}

impl Seat {
    pub(super) fn new(directory: PathBuf, options: KeeperOptions, turns: Arc<TenantTurns>) -> Arc<Self> {
        Arc::new(Self {
            directory,
            options,
            held: Mutex::default(),
            written: Mutex::default(),
            way: Arc::default(),
            traffic: Mutex::default(),
            moment: Mutex::default(),
            stored: Mutex::default(),
            reads: Reads::default(),
            turns,
            idle: Mutex::default(),
        })
    }

    fn hold(&self) -> Result<Held, Problem> {
        let failed = |error: &dyn std::fmt::Display| {
            Problem::new(ProblemClass::Refused, "replica-directory", format!("{}: {error}", self.directory.display()))
        };
        // Who reads goes on: what he reads is held under every owner.
        drop(lock(&self.idle).take());
        let home = Home::acquire(&self.directory).map_err(|error| failed(&error))?;
        let keeper = Keeper::new(home, self.options.clone());
        let near = Arc::new(RemoteNear::new(Arc::clone(&self.way) as _));
        let calls = Arc::new(Calls::new(Arc::clone(&keeper), near));
        Ok(Held { keeper, calls, begun: None, found: Lsn::ZERO })
    }

    /// Answers a call of somebody who may ask about this group only. May wait: for threads that may.
    pub(super) fn answer_to(self: &Arc<Self>, only: Option<&Only>, call: &Call) -> Answer {
        match only.map_or(Ok(()), |only| only.judge(&self.directory, call)) {
            Ok(()) => self.answer(call),
            Err(problem) => refused(call, &problem),
        }
    }

    /// Opens what is sealed at rest, and is the replica's place.
    pub(super) fn place(&self) -> (&Path, &KeyHolder) {
        (&self.directory, &self.options.key)
    }

    /// A way to who owns the replica now. Where nobody keeps it that is this host itself, until its filter comes or nobody reads.
    pub(super) fn reach(&self) -> Result<ControlClient, Problem> {
        if !self.directory.join(MANIFEST_NAME).is_file() {
            let group = self.directory.file_name().unwrap_or_default().display();
            let message = format!("there is no replica of the group \"{group}\" here yet");
            return Err(Problem::new(ProblemClass::Failed, "no-replica", message).hint("look at the group's name"));
        }
        let held = lock(&self.held);
        if held.is_none() {
            let mut idle = lock(&self.idle);
            if idle.is_none() {
                match Access::open(&self.directory, Duration::ZERO) {
                    Ok(Access::Client(client)) => return Ok(client),
                    Ok(Access::Owner(owner)) => *idle = Some(self.own(owner)?),
                    Err(error) => return Err(owned(&error)),
                }
            }
        }
        drop(held);
        let deadline = Instant::now() + OWNER_WITHIN;
        loop {
            match ControlClient::connect(&self.directory) {
                // A filter begins, and is answered first.
                Err(ClientError::NoOwner { .. }) if Instant::now() < deadline => std::thread::sleep(OWNER_LOOK),
                connected => return connected.map_err(not_answered),
            }
        }
    }

    fn own(&self, owner: Owner) -> Result<Owning, Problem> {
        let storage = Disk::open(&self.directory);
        let storage = storage.map_err(|error| Problem::new(ProblemClass::Failed, "unreadable", error.to_string()))?;
        let host = Host::idle(Arc::new(storage), &self.options.key)?;
        // What a killed reader left takes room, and nothing else.
        let _ = host.clean_sessions();
        Owning::begin(owner, host, None, Vec::new())
    }

    /// Answers a call of a filter, or of somebody who reads. May wait: for threads that may.
    fn answer(self: &Arc<Self>, call: &Call) -> Answer {
        let kind = CallKind::of(call.kind);
        if let Some(kind) = kind.filter(|kind| kind.is_of_reader()) {
            return reads::answer(self, kind, call);
        }
        let mut held = lock(&self.held);
        if kind == Some(CallKind::Find) {
            // A filter that starts: whoever kept this for the one before lets go.
            // So does the task that has its frames: of the same timeline too the next ones are for the next keeper.
            *lock(&self.way.0) = None;
            *lock(&self.written) = None;
            if let Some(before) = held.take() {
                self.let_go_of(&before);
            }
            match self.hold() {
                Ok(new) => *held = Some(new),
                Err(problem) => return refused(call, &problem),
            }
        }
        let Some(now) = held.clone() else {
            // This host was started anew: it is held again when the filter's frames come back.
            let (kind, status) = (call.kind, CallStatus::Unreachable);
            return Answer { kind, status, header: Bytes::new(), tail: Bytes::new() };
        };
        if !matches!(kind, Some(CallKind::Find | CallKind::Begin)) {
            drop(held);
            return now.calls.answer(call);
        }
        let answer = now.calls.answer(call);
        if answer.status == CallStatus::Done
            && let Some(held) = held.as_mut()
        {
            held.note(call, &answer);
            *lock(&self.written) = held.begun.and_then(|begun| Written::by(&held.keeper, begun.timeline));
        }
        answer
    }

    /// Where a session of frames may begin, as the keeper has it; the replica is opened again where this host was started anew.
    pub(super) fn resume(&self, hello: &Hello) -> Result<Resumed, Farewell> {
        let (Some(group), Some(timeline)) = (hello.group, hello.timeline) else {
            return Err(Farewell::new(Code::Malformed, "frames are of a group and a timeline"));
        };
        let mut held = lock(&self.held);
        if let Some(held) = held.as_ref() {
            return match (held.begun, &*lock(&self.written)) {
                (Some(begun), _) if begun.timeline == timeline => Ok(Resumed::Held(held.clone(), begun)),
                (_, Some(written)) => Err(written.refuses(Some(group), timeline)),
                // Its filter has found the replica, and says in a moment what it goes on with.
                _ => Err(Farewell::new(Code::Busy, "a filter begins, and has not said what")),
            };
        }
        // Before a directory is made where its volume may be missing.
        if ![MANIFEST_NAME, MANIFEST_COPY].iter().any(|name| self.directory.join(name).exists()) {
            return Err(absent("there is no replica of this group here"));
        }
        let shut = |text: String| Farewell::new(Code::Unreachable, text);
        let mut new = self.hold().map_err(|problem| shut(problem.message))?;
        let near = Arc::new(RemoteNear::new(Arc::clone(&self.way) as _));
        let resumed = new.keeper.resume(group, timeline, Some(hello.durable_seen), near);
        let begun = match resumed {
            Ok((have, durable)) => Begun { timeline, have, durable },
            Err(problem) => {
                // What is there without the witness of who heard it acknowledged: the loss is his to know.
                let found = new.keeper.find(&Find::default()).ok().flatten().map(|found| found.durable);
                let lost = found.filter(|durable| problem.code == "damaged" && *durable < hello.durable_seen);
                new.keeper.let_go();
                return match (lost, problem.code.as_str()) {
                    (Some(at), _) => {
                        let lost = at.next()..=hello.durable_seen;
                        Ok(Resumed::Lost { have: Position::whole(at), lost })
                    }
                    (None, "not-following") => Err(Farewell::new(Code::TimelineClosed, problem.message)),
                    (None, "unknown-timeline") => Err(Farewell::new(Code::TimelineUnknown, problem.message)),
                    (None, "broken") => Err(Farewell::new(Code::Torn, problem.message)),
                    (None, "not-found") => Err(absent(&problem.message)),
                    // What cannot be opened now is there all the same.
                    (None, _) => Err(shut(problem.message)),
                };
            }
        };
        new.begun = Some(begun);
        *lock(&self.written) = Written::by(&new.keeper, timeline);
        // Without its control socket it is kept all the same.
        let _ = new.keeper.serve();
        *held = Some(new.clone());
        Ok(Resumed::Held(new, begun))
    }

    /// A connection of the timeline's frames.
    pub(super) fn frames(self: &Arc<Self>, shared: &Arc<Shared>, accepted: Accepted) {
        let Some(timeline) = accepted.hello.timeline else {
            tokio::spawn(accepted.opened.refuse(Farewell::new(Code::Malformed, "frames are of a timeline")));
            return;
        };
        let other = lock(&self.written).as_ref().filter(|written| written.timeline != timeline).cloned();
        if let Some(written) = other {
            // A proxy that still has some of it: who writes now is not disturbed.
            tokio::spawn(accepted.opened.refuse(written.refuses(accepted.hello.group, timeline)));
            return;
        }
        let mut way = lock(&self.way.0);
        let mut message = ToFrames::Accepted(Box::new(accepted));
        if let Some((of, task)) = way.as_ref().filter(|(of, _)| *of == timeline) {
            match task.send(message) {
                Ok(()) => return,
                Err(unsent) => message = unsent.0,
            }
            debug_assert_eq!(*of, timeline);
        }
        let (task, queue) = tokio::sync::mpsc::unbounded_channel();
        // It is its own queue's first word.
        let _ = task.send(message);
        *way = Some((timeline, task.clone()));
        tokio::spawn(frames::run(Arc::clone(shared), Arc::clone(self), timeline, task.downgrade(), queue));
    }

    /// Lets go of what nobody has read for too long; it may wait for media.
    pub(super) fn sweep(&self) {
        if self.reads.sweep() {
            drop(lock(&self.idle).take());
        }
    }

    /// Whether nobody keeps, reads or owns anything here.
    pub(super) fn is_vacant(&self) -> bool {
        lock(&self.held).is_none() && lock(&self.idle).is_none() && self.reads.is_empty()
    }

    /// For a task that begins.
    pub(super) fn next_traffic(&self) -> Arc<Traffic> {
        let mut traffic = lock(&self.traffic);
        *traffic = Arc::new(traffic.goes_on());
        Arc::clone(&traffic)
    }

    /// How the group stands. While somebody opens or lets go of the replica nothing but its traffic is known.
    pub(super) fn report(&self, key: SeatKey, now: MonoTime) -> GroupReport {
        let seen = lock(&self.traffic).seen(now);
        let keeper = self.held.try_lock().ok().and_then(|held| Some(Arc::clone(&held.as_ref()?.keeper)));
        let condition = keeper.and_then(|keeper| keeper.condition());
        let protecting = condition.is_some_and(|condition| condition.state == State::Protecting);
        let mut moment = lock(&self.moment);
        if let Some(age) = seen.durable_age.filter(|_| protecting) {
            *moment = Some(MonoTime(now.0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX))));
        }
        GroupReport {
            tenant: key.tenant,
            group: key.group,
            state: condition.map_or("waiting", |condition| condition.state.as_str()),
            rpo: moment.map(|moment| Duration::from_nanos(now.since(moment))),
            lag: Some(seen.lag),
            in_bytes: seen.in_bytes,
            out_bytes: self.stored(condition.map(|condition| condition.stored_bytes)),
            held: OnTheWay { memory: seen.held_bytes, disk: 0 },
            ..GroupReport::default()
        }
    }

    /// Bytes that all keepers since the start stored, with so many of the one that keeps now.
    fn stored(&self, now: Option<u64>) -> u64 {
        let mut stored = lock(&self.stored);
        if let Some(bytes) = now {
            if bytes < stored.1 {
                // Another keeper: what the one before stored at its end, after it was looked at, is not known.
                stored.0 += stored.1;
            }
            stored.1 = bytes;
        }
        stored.0 + stored.1
    }

    /// Ends the keeper, and all reading; it may wait for its media.
    pub(super) fn let_go(&self) {
        self.reads.end();
        drop(lock(&self.idle).take());
        let held = lock(&self.held).take();
        *lock(&self.written) = None;
        // Nobody is left to take frames either where nothing was held.
        *lock(&self.way.0) = None;
        held.iter().for_each(|held| self.let_go_of(held));
    }

    fn let_go_of(&self, held: &Held) {
        // The task of the frames has this keeper: who goes on with the very timeline gets another task.
        *lock(&self.way.0) = None;
        held.calls.end();
        held.keeper.let_go();
    }
}

impl Held {
    fn note(&mut self, call: &Call, answer: &Answer) {
        if CallKind::of(call.kind) == Some(CallKind::Find) {
            let found: Option<Option<Found>> = serde_json::from_slice(&answer.header).ok();
            self.found = found.flatten().map_or(Lsn::ZERO, |found| found.durable);
            return;
        }
        let Ok(begin) = serde_json::from_slice::<Begin>(&call.header) else { return };
        if self.begun.is_none() {
            let durable = match begin.origin {
                Origin::GoesOn => self.found,
                Origin::Resumes { at } => at,
                Origin::First | Origin::Fork { .. } => Lsn::ZERO,
            };
            let have = self.keeper.began_at();
            self.begun = have.map(|have| Begun { timeline: begin.timeline, have, durable });
            // Without its control socket it is kept all the same.
            let _ = self.keeper.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    fn call(kind: CallKind) -> Call {
        Call { kind: kind as u16, header: Bytes::new(), tail: Bytes::new() }
    }

    /// It ordered a mark at once, before its frames had their session.
    #[test]
    fn a_filter_that_has_just_begun_is_waited_for_and_one_that_is_away_is_not() {
        let way = Way::default();
        assert_eq!(way.call(call(CallKind::NearFacts)).status, CallStatus::Unreachable, "at once");
        let (task, mut queue) = unbounded_channel();
        std::thread::scope(|scope| {
            let marked = scope.spawn(|| way.call(call(CallKind::NearMark)).status);
            std::thread::sleep(3 * LOOK);
            *lock(&way.0) = Some((Timeline::new([1; 16]).expect("not 0"), task));
            let mut next = || loop {
                if let Some(ToFrames::Call { call, reply }) = queue.blocking_recv() {
                    return (call, reply);
                }
            };
            // The task is there, and the session is not.
            drop(next().1.send(Err(NotAsked)));
            let (call, reply) = next();
            let answer = Answer { kind: call.kind, status: CallStatus::Done, header: Bytes::new(), tail: Bytes::new() };
            drop(reply.send(Ok(answer)));
            assert_eq!(marked.join().expect("no panic"), CallStatus::Done);
        });
    }
}
