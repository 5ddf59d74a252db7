//! A replica at another site, as its filter has it: the filter's end of the chain.
//!
//! One task has two ends of links, each with its own session: one for calls, from the beginning on, and one for the frames of the
//! timeline, once that is begun. Both go to the first of the addresses that answers. What is asked waits on the asker's own thread;
//! frames and acks wait for nobody.

mod keep;
mod seeding;
mod task;

use self::keep::Keep;
use self::task::{Command, Task};
use crate::far::{
    Begin, CallKind, Caller, Found, Frames, Lends, Near, Origin, SeedBegin, SeedBegun, SeedHandle, SeedWay, Standing,
    Wire,
};
use crate::link::identity::Identity;
use crate::link::pin::Peers;
use crate::report::{Problem, ProblemClass};
use crate::services::traffic::Traffic;
use crate::threads::step_back;
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call, CallStatus};
use cdp_core::types::{GroupId, Lsn, Position, Timeline};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How long somebody who asks waits for the other end at most, the time to reach it included.
const CALL_WITHIN: Duration = Duration::from_secs(30);

/// How long the other side has at an end, at least, if it is there: enough to write down how it ended.
const CLOSE_LEAST: Duration = Duration::from_secs(10);

/// Where a replica is, and how it is reached.
#[derive(Clone, Debug)]
pub struct FarOptions {
    /// HOST:PORT of source proxies or of the replica host, the one that is wanted most first; at least one.
    pub to: Vec<String>,
    /// Those who may answer there.
    pub peers: Peers,
    /// Whose group; empty: as the other end knows this one.
    pub tenant: String,
    /// The group's name there.
    pub name: String,
    /// Memory for frames that are not durable, in bytes: above the filter's own bound, by an eighth at least.
    pub memory_bytes: u64,
    /// Where those are kept that have no room there; none: nowhere, and what has no room is only tracked.
    pub spool: Option<SpoolPlace>,
    /// After so long without a word the other end is taken for dead, in milliseconds.
    pub silence_ms: u32,
    /// Data connections beside the first one.
    pub connections: u16,
    /// What a gateway on the way lets in; empty: none.
    pub ticket: Bytes,
    /// Says what goes without TLS, from the next session on. Its limits are those of proxies.
    pub traffic: Traffic,
}

impl FarOptions {
    /// Memory for what a filter with this bound gives: frames and their chunks have heads, and one frame may be on its way beyond the
    /// bound.
    #[must_use]
    pub fn memory_for(queue_bytes: u64) -> u64 {
        queue_bytes.saturating_mul(2).saturating_add(64 << 20)
    }
}

/// How the way to the other end stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Road {
    /// Who is spoken to, or was tried last.
    pub address: String,
    /// The other end answers there.
    pub is_up: bool,
    /// What went wrong last, since it was up; where it answers and takes no records, why that is.
    pub why: Option<String>,
}

/// Room on disk for frames that are not durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolPlace {
    /// A directory for this group's files alone, made if it is not there. What is found in it of an earlier process is removed.
    pub directory: PathBuf,
    /// They take so much at most, in bytes.
    pub bytes: u64,
}

/// A replica at another site.
pub struct FarLink {
    shared: Arc<Shared>,
    /// Ends with it.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for FarLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FarLink").finish_non_exhaustive()
    }
}

/// What the task and its callers share.
struct Shared {
    /// What was given and is not carried out is bounded by the filter (frames), by callers that wait, and by first copies that wait.
    commands: UnboundedSender<Command>,
    near: Mutex<Option<Arc<dyn Near>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What was found, before it begins.
    found: Option<(GroupId, Lsn)>,
    /// What writes now.
    begun: Option<(GroupId, Timeline)>,
    standing: Standing,
    failure: Option<String>,
    road: Road,
    /// From then on nobody is asked any more.
    give_up: Option<Instant>,
    /// The protection over this link has ended, and no other one has begun.
    let_go: bool,
    /// Why what was begun cannot go on.
    broken: Option<String>,
    /// Sessions of frames so far, and whether the last one holds.
    session: u64,
    is_up: bool,
    /// Seeds that were given to this session, and of them those that the other end took.
    seeds_given: u64,
    seeds_taken: u64,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn near(&self) -> Option<Arc<dyn Near>> {
        lock(&self.near).clone()
    }

    fn fail(&self, why: String) {
        lock(&self.state).failure.get_or_insert(why);
    }

    fn breaks(&self, why: String) {
        lock(&self.state).broken = Some(why);
    }
}

impl FarLink {
    /// Begins to reach for the other end.
    ///
    /// # Errors
    /// When the system has no thread to give, or the directory of the spool cannot be used.
    pub fn start(identity: Arc<Identity>, options: FarOptions) -> io::Result<Arc<Self>> {
        // One thread that serves no guest: TLS and checksums of messages run on it.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("cdp-link")
            .on_thread_start(step_back)
            .enable_all()
            .build()?;
        let (commands, queue) = unbounded_channel();
        let (near, state, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { commands, near, state, changed });
        let keep = Keep::new(&options, shared.commands.clone())?;
        let task = Task::new(Arc::clone(&shared), identity, options, keep);
        runtime.spawn(task.run(queue));
        Ok(Arc::new(Self { shared, runtime: Some(runtime) }))
    }

    /// How the way to the other end stands. Does not wait.
    #[must_use]
    pub fn road(&self) -> Road {
        lock(&self.shared.state).road.clone()
    }

    /// From now on the other end is to be found at these places; who is spoken to and is none of them is left. An empty list changes
    /// nothing.
    pub fn set_places(&self, to: Vec<String>) {
        // A task that has ended looks for nobody.
        let _ = self.shared.commands.send(Command::Places(to));
    }

    /// From now on whoever is dialled is shown this ticket; empty: none. Connections that are there stay.
    pub fn set_ticket(&self, ticket: Bytes) {
        // A task that has ended dials nobody.
        let _ = self.shared.commands.send(Command::Ticket(ticket));
    }

    /// From now on the files of the spool take so much at most; where there is no spool there is none after. What is there beyond it
    /// stays until it is durable.
    pub fn set_spool_bytes(&self, bytes: u64) {
        // A task that has ended keeps nothing.
        let _ = self.shared.commands.send(Command::SpoolBytes(bytes));
    }

    /// Nothing is sent or waited for any more: whoever asked something is told at once that nobody can be reached.
    pub fn abandon(&self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        let (said, _) = sync_channel(1);
        // A task that has ended is abandoned already.
        let _ = self.shared.commands.send(Command::Stop { said });
    }

    fn ask(&self, call: Call) -> Answer {
        let silent = |status| Answer { kind: call.kind, status, header: Bytes::new(), tail: Bytes::new() };
        let (now, give_up) = (Instant::now(), lock(&self.shared.state).give_up);
        if give_up.is_some_and(|at| at <= now) {
            return given_up(call.kind);
        }
        let within = give_up.map_or(CALL_WITHIN, |at| (at - now).min(CALL_WITHIN));
        let answered = self.begin_call(call.clone(), within);
        // The task answers in time; a moment more, so that its word is heard.
        answered.recv_timeout(within + Duration::from_secs(5)).unwrap_or_else(|why| match why {
            RecvTimeoutError::Timeout => silent(CallStatus::TimedOut),
            RecvTimeoutError::Disconnected => silent(CallStatus::Unreachable),
        })
    }

    /// Asks, and does not wait: the answer comes within this time, to reach the other end included, or nobody is left to give one.
    pub fn begin_call(&self, call: Call, within: Duration) -> Receiver<Answer> {
        let (reply, answered) = sync_channel(1);
        let until = Instant::now() + within;
        // A task that has ended drops it: who waits is told at once.
        let _ = self.shared.commands.send(Command::Call { call, until, reply });
        answered
    }

    /// What was found says which group this is.
    fn found(&self, answer: &Answer) {
        if let Ok(Some(found)) = serde_json::from_slice::<Option<Found>>(&answer.header) {
            lock(&self.shared.state).found = Some((found.group, found.durable));
        }
    }

    /// The timeline is open: its frames may go.
    fn begun(&self, call: &Call) {
        let Ok(begin) = serde_json::from_slice::<Begin>(&call.header) else { return };
        let mut state = lock(&self.shared.state);
        let found = state.found;
        let Some(group) = begin.new.as_ref().map(|new| new.group).or(found.map(|(group, _)| group)) else { return };
        let after = match begin.origin {
            Origin::GoesOn => found.map_or(Lsn::ZERO, |(_, durable)| durable),
            Origin::Resumes { at } => at,
            Origin::First | Origin::Fork { .. } => Lsn::ZERO,
        };
        state.begun = Some((group, begin.timeline));
        state.broken = None;
        drop(state);
        let command = Command::Begin { group, timeline: begin.timeline, start: Position::whole(after) };
        // A task that has ended takes no frames either.
        let _ = self.shared.commands.send(command);
    }
}

/// The answer to what nobody is asked any more.
fn given_up(kind: u16) -> Answer {
    let message = "the protection ends, and does not wait for the other side any more";
    let problem = Problem::new(ProblemClass::Failed, "given-up", message);
    let header = serde_json::to_vec(&problem).unwrap_or_default().into();
    Answer { kind, status: CallStatus::Refused, header, tail: Bytes::new() }
}

impl Caller for FarLink {
    fn call(&self, call: Call) -> Answer {
        if CallKind::of(call.kind) == Some(CallKind::Find) {
            let mut state = lock(&self.shared.state);
            // Another protection begins over this link. One that looks for a way to go on while it is stopped has no more time for that.
            if std::mem::take(&mut state.let_go) {
                state.give_up = None;
            }
        }
        let answer = self.ask(call.clone());
        if answer.status == CallStatus::Done {
            match CallKind::of(call.kind) {
                Some(CallKind::Find) => self.found(&answer),
                Some(CallKind::Begin) => self.begun(&call),
                _ => {}
            }
        }
        answer
    }
}

impl Wire for FarLink {
    fn frames(&self) -> Frames {
        let commands = self.shared.commands.clone();
        Box::new(move |frame| {
            // A task that has ended belongs to a link that is being dropped.
            let _ = commands.send(Command::Frame(frame));
        })
    }

    fn lends(&self) -> Lends {
        let commands = self.shared.commands.clone();
        Box::new(move |through| {
            // As with frames.
            let _ = commands.send(Command::Lend(through));
        })
    }

    fn listen(&self, near: Option<Arc<dyn Near>>) {
        let ends = near.is_none();
        *lock(&self.shared.near) = near;
        if ends {
            let mut state = lock(&self.shared.state);
            (state.give_up, state.let_go) = (Some(Instant::now()), true);
            drop(state);
            // A task that has ended has let go of everybody.
            let _ = self.shared.commands.send(Command::LetGo);
        }
    }

    fn patience(&self, patience: Duration) {
        let mut state = lock(&self.shared.state);
        let least = if state.road.is_up { CLOSE_LEAST } else { Duration::ZERO };
        state.give_up = Some(Instant::now() + patience.max(least));
    }

    fn next_seed(&self) -> u64 {
        lock(&self.shared.state).seeds_given + 1
    }

    fn seed(&self, seed: &SeedBegin, begun: &SeedBegun, handle: SeedHandle) -> Box<dyn SeedWay> {
        Box::new(seeding::Way::new(Arc::clone(&self.shared), seed.disk, begun.position, handle))
    }

    fn standing(&self) -> Standing {
        lock(&self.shared.state).standing
    }

    fn failure(&self) -> Option<String> {
        lock(&self.shared.state).failure.clone()
    }

    fn broken(&self) -> Option<String> {
        lock(&self.shared.state).broken.clone()
    }
}

impl Drop for FarLink {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        // Says its last word first, if there is somebody to hear it.
        let (said, end) = sync_channel(1);
        if self.shared.commands.send(Command::Stop { said }).is_ok() {
            let _ = end.recv_timeout(Duration::from_secs(2));
        }
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn ask(link: &FarLink, kind: CallKind) -> CallStatus {
        link.call(Call { kind: kind as u16, header: Bytes::from_static(b"null"), tail: Bytes::new() }).status
    }

    /// The order breaks while the protection is stopped, and the replica cannot be reached.
    #[test]
    fn a_stop_keeps_its_patience_whoever_looks_for_the_replica_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::open_or_make(directory.path(), "filter").unwrap());
        // Takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = FarOptions {
            to: vec![silent.local_addr().unwrap().to_string()],
            peers: Peers::new([]),
            tenant: String::new(),
            name: "machine".into(),
            memory_bytes: 4 << 20,
            spool: None,
            silence_ms: 1000,
            connections: 0,
            ticket: Bytes::new(),
            traffic: Traffic::encrypted(),
        };
        let link = FarLink::start(identity, options).unwrap();
        link.patience(Duration::from_millis(200));
        let begun = Instant::now();
        // Who forks looks for the replica; who stops asks what it all came to, has it synced and closed.
        for kind in [CallKind::Find, CallKind::Sums, CallKind::Sync, CallKind::Close] {
            assert_ne!(ask(&link, kind), CallStatus::Done);
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        // The next protection has all its time.
        link.listen(None);
        std::thread::scope(|scope| {
            let found = scope.spawn(|| ask(&link, CallKind::Find));
            while lock(&link.shared.state).give_up.is_some() {
                assert!(!found.is_finished(), "it was not asked at all");
                std::thread::sleep(Duration::from_millis(1));
            }
            link.abandon();
            assert_ne!(found.join().unwrap(), CallStatus::Done);
        });
    }
}
