//! Protecting disks in one process: filter, journal and replica, with a thread for each kind of waiting.
//!
//! One write's way: a front end's thread checksums it and submits it to the filter (`engine`), writes the very same bytes to
//! the source, completes it, and answers. The filter's frames go to the `pump`, which packs them and
//! has the journal's driver append them; a sync makes them durable; that comes back to the filter, which frees its queue and, later,
//! the activity log's bit. What a guest wrote in pieces of 64 KiB and more is written to the journal from where it was received.
//!
//! | thread | waits for |
//! |---|---|
//! | those of the front end | the source, an overlapping op, or one sync of the activity log |
//! | `cdp-pump` | frames and completions; owns the journal's writer |
//! | `cdp-pack`, half of the cores, two to eight | frames to pack, while the replica's disk is behind |
//! | those of the journal's [driver](crate::drive) | the replica's disk: the journal's writes, several put together, and syncs |
//! | `cdp-log` | the activity log's disk |
//! | `cdp-flush` | the source's flushes that the filter itself wants |
//! | `cdp-reread` | the source, for resyncs and repairs |
//! | `cdp-index` | time, and the replica's disk: merges of the journal's index |
//! | `cdp-seed`, with a reader and a syncer for each disk | the source and the replica's disk, for first copies: of the group, and of disks that join |
//! | `cdp-timer` | time |
//! | `cdp-events` | what the filter has to tell; looks now and then whether the replica is still where it was |
//! | `cdp-control`, and one for each connection | other processes that ask or tell the owner something |

mod copies;
mod disk;
mod disks;
mod ease;
mod engine;
mod failure;
mod found;
mod labels;
mod levels;
mod log_file;
mod make;
mod open;
mod pack;
mod pump;
mod reread;
mod room;
mod same;
mod seed;
mod sources;
mod start;
mod stop;

pub(crate) use open::witness;
pub use open::{LOG_BYTES_MAX, ProtectError, ProtectOptions, SourceOptions};
pub use room::Lack;
pub use seed::Progress;
pub use stop::Summary;

use self::copies::CopyOrder;
use self::engine::Engine;
use self::failure::Failure;
use self::labels::Labels;
use self::pump::{Message, Stored};
use self::sources::Sources;
use self::stop::Threads;
use crate::host::{Change, Host, Live, Store};
use crate::nbd::Export;
use crate::owner::{ControlServer, Owner};
use crate::report::{self, DiskChanged, Problem, ProblemClass};
use cdp_core::capture::{self, MarkError};
use cdp_core::frame::{Mark, PointKinds};
use cdp_core::journal::{Manifest, Policy, Snapshot};
use cdp_core::types::{Lsn, Timeline};
use cdp_core::when::Label;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a change of the manifest may take before its caller is told that it is not stored.
const EDIT_PATIENCE: Duration = Duration::from_secs(20);
/// The same where there is no room for it: long enough for a moment's lack.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a mark may take to become durable before its caller is told.
const MARK_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what another thread brings about.
const LOOK: Duration = Duration::from_millis(2);

/// What happens while a protector runs, for whoever shows it.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// The filter says so.
    Filter(capture::Event),
    /// The replica's side cannot go on; the guest can.
    ReplicaFailed(String),
    /// The journal's index cannot be kept as it should be. Nothing is lost; views may be slow to open.
    IndexTrouble(String),
    /// It shows that the journal's bound will cut the window, or that it will not after all.
    History(report::History),
}

/// How much of the sources is compared with the replica after a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// Nothing: the replica is new, or the stop was clean and the sources are as they were left.
    Nothing,
    /// What the activity log names.
    ActivityLog,
    /// Everything.
    Everything,
}

/// What was found at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The branch of history that writes are on.
    pub timeline: Timeline,
    /// There was a replica.
    pub resumed: bool,
    /// The last stop was clean.
    pub clean: bool,
    /// What is compared.
    pub compared: Compared,
}

/// Disks that are being protected. Dropping it stops at once, as a crash would, but for what is durable.
pub struct Protector {
    opened: Opened,
    shared: Arc<Shared>,
    started: Instant,
    /// Dropped in this order: nobody asks any more, nothing runs any more, the directory is free.
    _control: ControlServer,
    _threads: Threads,
    owner: Arc<Owner>,
}

impl std::fmt::Debug for Protector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protector").field("opened", &self.opened).finish_non_exhaustive()
    }
}

/// What the protector's threads and its callers share.
struct Shared {
    engine: Arc<Engine>,
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
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    draining: AtomicBool,
    /// The journal's last word is on the media.
    closed: Arc<AtomicBool>,
    uris: Mutex<BTreeMap<String, String>>,
    sources: Sources,
    /// What is to be copied; none when the end has begun.
    copies: Mutex<Option<Sender<CopyOrder>>>,
    /// Held while a disk joins, changes or leaves.
    changing: Mutex<()>,
    /// Those of marks that are made and not yet durable.
    labels: Labels,
    /// News of how far back history will go, for the thread that tells.
    history: Mutex<Option<report::History>>,
}

/// Edits of the manifest on their way through the pump, whose writer owns it.
struct PumpStore {
    pump: Mutex<Sender<Message>>,
}

impl PumpStore {
    fn send(&self, message: Message) -> bool {
        self.pump.lock().unwrap_or_else(PoisonError::into_inner).send(message).is_ok()
    }

    /// Asks the pump's writer and waits for the answer. `Disconnected`: the pump has ended; `Timeout`: it takes too long.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut cdp_core::journal::Writer) -> T + Send + 'static,
        patience: Duration,
    ) -> Result<T, RecvTimeoutError> {
        let (answer, answered) = sync_channel(1);
        let call = Message::Call(Box::new(move |writer| {
            // Who asked may have given up.
            let _ = answer.send(question(writer));
        }));
        // Where nobody takes the question it is dropped, and that is the answer.
        self.send(call);
        answered.recv_timeout(patience)
    }
}

impl Store for Arc<PumpStore> {
    fn change(&self, change: Change) -> Result<(Manifest, Snapshot), Problem> {
        let not_stored = |message: &str| Problem::new(ProblemClass::Failed, "not-stored", message);
        let begun = Instant::now();
        let Ok(generation) = self.ask(change, EDIT_PATIENCE) else {
            return Err(not_stored("the replica's journal has stopped: the change was not stored"));
        };
        loop {
            let look = move |writer: &mut cdp_core::journal::Writer| {
                if writer.manifest_durable() >= generation {
                    Ok((writer.manifest().clone(), writer.snapshot()))
                } else {
                    Err(writer.lacks())
                }
            };
            match self.ask(look, EDIT_PATIENCE) {
                Ok(Ok(stored)) => return Ok(stored),
                Ok(Err(Some(_))) if begun.elapsed() >= ROOM_PATIENCE => {
                    let message = "the replica's disk has no room for the change: it is not stored";
                    return Err(Problem::new(ProblemClass::Failed, "no-space", message).hint(
                        "make room: the change is kept in mind and stored then, if the protection still goes on",
                    ));
                }
                Ok(Err(_)) if begun.elapsed() < EDIT_PATIENCE => std::thread::sleep(LOOK),
                _ => return Err(not_stored("the replica's media do not take the change")),
            }
        }
    }
}

impl Protector {
    /// What was found at the start.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// What carries out the journal's writes and syncs: "threads" or "io_uring".
    #[must_use]
    pub fn driver(&self) -> &'static str {
        self.shared.driver.get().copied().unwrap_or_default()
    }

    /// The disks that are protected now, for a front end to serve. They may be others later.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        self.shared.sources.exports()
    }

    /// Tells `status` where the disks are served, by their names.
    pub fn set_uris(&self, uris: BTreeMap<String, String>) {
        *self.shared.uris.lock().unwrap_or_else(PoisonError::into_inner) = uris;
    }

    /// The owner's side of the replica: points, moments, sessions.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.shared.host
    }

    /// How far the first copy is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// The filter as it is now.
    #[must_use]
    pub fn status(&self) -> capture::Status {
        self.shared.engine.with(|filter, now| filter.status(now))
    }

    /// What is being done, in one word.
    #[must_use]
    pub fn state(&self) -> report::State {
        self.state_of(self.status().state)
    }

    /// The same for a state that the filter told of.
    #[must_use]
    pub fn state_of(&self, filter: capture::State) -> report::State {
        self.shared.state(filter)
    }

    /// What has to be free on the replica's media or within its quota, and what is, while the state is `no-space` or `quota`.
    #[must_use]
    pub fn lacks(&self) -> Option<report::Lack> {
        is_lack(self.state()).then(|| self.shared.lacks()).flatten()
    }

    /// Why the replica's side stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.get()
    }

    /// Makes a point with this label and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    pub fn mark(&self, label: &Label) -> Result<Lsn, Problem> {
        let kinds = PointKinds { mark: true, ..PointKinds::default() };
        self.shared.mark(kinds, label.as_str())
    }
}

impl Live for Shared {
    fn mark(&self, kinds: PointKinds, label: &str) -> Result<Lsn, Problem> {
        if self.engine.with(|filter, _| filter.room()) == capture::Room::NoSpace {
            let place = if self.is_quota() { "quota leaves" } else { "disk has" };
            let message = format!("the replica's {place} no room: this moment would not be kept");
            return Err(Problem::new(ProblemClass::Refused, "not-restorable-now", message)
                .hint("make room; the protection then goes on by itself"));
        }
        let mark = || {
            let mark = Mark { kinds, on_barrier: false, label: label.to_owned() };
            self.engine.with(|filter, now| filter.mark(now, mark)).map_err(|error| match error {
                MarkError::NotRestorable { .. } => {
                    Problem::new(ProblemClass::Refused, "not-restorable-now", error.to_string())
                        .hint("wait until `cdp status` says protecting")
                }
                error => Problem::new(ProblemClass::Refused, "not-marked", error.to_string()),
            })
        };
        let lsn = self.labels.take(label, &self.host, mark)?;
        let deadline = Instant::now() + MARK_PATIENCE;
        // A pump that has ended made nothing durable, which is seen below.
        let _ = self.pump.ask(|writer| writer.request_sync(), MARK_PATIENCE);
        loop {
            let replica = self.host.replica();
            let branch = replica.catalogue().trunk();
            let (frontier, restorable) =
                branch.map_or((Lsn::ZERO, false), |branch| (branch.frontier().lsn, branch.is_restorable(lsn)));
            drop(replica);
            if restorable {
                return Ok(lsn);
            }
            let lost = frontier >= lsn;
            if lost || Instant::now() > deadline {
                let message = if lost {
                    "a write before the mark failed: this moment cannot be restored"
                } else {
                    "the mark was made and is not durable yet: the replica does not keep up"
                };
                return Err(Problem::new(ProblemClass::Failed, "not-durable", message).hint("see `cdp status`"));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn add_disk(&self, name: &str, source: &std::path::Path) -> Result<DiskChanged, Problem> {
        Shared::add_disk(self, name, source)
    }

    fn remove_disk(&self, name: &str) -> Result<DiskChanged, Problem> {
        Shared::remove_disk(self, name)
    }

    fn resize_disk(&self, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem> {
        Shared::resize_disk(self, name, size, force)
    }

    fn stored_bytes_per_s(&self) -> u64 {
        self.stored.per_second()
    }

    fn segment_bytes(&self) -> u64 {
        let policy = self.host.replica().manifest().policy;
        cdp_core::policy::retention::segment_bytes(&policy, self.segment_bytes)
    }

    fn unrecorded(&self) -> Option<(report::State, Lsn)> {
        let (room, lsn) = self.engine.with(|filter, now| (filter.room(), filter.status(now).lsn));
        let state = match room {
            _ if self.failure.get().is_some() => report::State::ReplicaLost,
            capture::Room::NoSpace => self.without_room(),
            _ => return None,
        };
        Some((state, lsn))
    }

    fn describe(&self, status: &mut report::Status) {
        let now = self.engine.with(|filter, now| filter.status(now));
        status.state = self.state(now.state);
        status.lacks = is_lack(status.state).then(|| self.lacks()).flatten();
        status.lsn = now.lsn;
        status.hot_bytes = now.hot_bytes;
        status.reread_bytes = now.counters.bytes_reread;
        status.rpo_ms = now.rpo_ns.map(|age| age / 1_000_000);
        status.journal = self.driver.get().map(|driver| report::Journal { driver: (*driver).to_owned() });
        status.rates.write_bytes_per_s = now.write_bytes_per_s;
        status.rates.stored_bytes_per_s = self.stored.per_second();
        let uris = self.uris.lock().unwrap_or_else(PoisonError::into_inner);
        status.disks.iter_mut().for_each(|disk| disk.uri = uris.get(&disk.name).cloned());
    }

    fn policy_changed(&self, policy: &Policy) {
        let segment_bytes = cdp_core::policy::retention::segment_bytes(policy, self.segment_bytes);
        let reserve_bytes = policy.reserve_bytes;
        // A pump that has ended makes no segments.
        let _ = self.pump.ask(move |writer| writer.set_bounds(segment_bytes, reserve_bytes), EDIT_PATIENCE);
        let rpo_ns = policy.rpo_ms * 1_000_000;
        self.engine.with(|filter, now| filter.set_rpo(now, rpo_ns));
    }
}

impl Drop for Protector {
    fn drop(&mut self) {
        // Who waits for something through the control socket lets go of it first.
        self.shared.stop_all();
    }
}

impl Shared {
    /// Whatever goes on in the background ends.
    fn stop_all(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.host.end();
        self.sources.stop_copies();
    }

    fn order_copy(&self, order: CopyOrder) {
        // Without a thread that copies, the protection is ending.
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.as_ref().map(|copies| copies.send(order));
    }

    fn tell_history(&self, history: report::History) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = Some(history);
    }

    /// What has to be free, and what is.
    fn lacks(&self) -> Option<report::Lack> {
        let needed_bytes = self.lack.get().max(self.progress.lack.get())?;
        if let Some(free_bytes) = self.is_quota().then(|| self.host.quota_left()).flatten() {
            return Some(report::Lack {
                needed_bytes: self.lack.of_quota().max(self.progress.lack.of_quota()),
                free_bytes,
            });
        }
        let storage = Arc::clone(self.host.replica().storage());
        Some(report::Lack { needed_bytes, free_bytes: storage.free_bytes().ok()? })
    }

    /// Whether it is the quota that leaves no room.
    fn is_quota(&self) -> bool {
        self.lack.of_quota().max(self.progress.lack.of_quota()) > 0
    }

    /// What it is called when there is no room.
    fn without_room(&self) -> report::State {
        if self.is_quota() { report::State::Quota } else { report::State::NoSpace }
    }

    fn state(&self, state: capture::State) -> report::State {
        use report::State;
        if self.draining.load(Ordering::Relaxed) {
            return State::Draining;
        }
        if self.failure.get().is_some() {
            return State::ReplicaLost;
        }
        let (room, whole, begun) =
            self.engine.with(|filter, now| (filter.room(), filter.is_whole(), filter.status(now).rpo_ns.is_some()));
        // Whether the filter still has memory to record into or not: nothing reaches the replica now.
        if room == capture::Room::NoSpace || self.progress.lack.get().is_some() {
            return self.without_room();
        }
        match state {
            capture::State::Seeding => State::Seeding,
            // The end of the resync is recorded and not durable: `latest` is still what was before it.
            capture::State::Protecting if !whole && !begun && self.progress.is_of_this_start() => State::Seeding,
            capture::State::Protecting if !whole => State::Resync,
            capture::State::Protecting => State::Protecting,
            capture::State::Resyncing => State::Resync,
            capture::State::Tracking | capture::State::Paused => State::Tracking,
        }
    }
}

/// Whether a state is a lack of room.
fn is_lack(state: report::State) -> bool {
    matches!(state, report::State::NoSpace | report::State::Quota)
}

fn wall_seconds(since: Instant) -> u64 {
    since.elapsed().as_secs()
}
