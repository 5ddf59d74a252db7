//! Protecting disks: the filter's side, and all of it in one process.
//!
//! One write's way: a front end's thread checksums it and submits it to the filter (`engine`), writes the very same bytes to
//! the source, completes it, and answers. The filter's frames go to its replica, which it knows as a [`Far`] and nothing else: they
//! become durable there; that comes back to the filter, which frees its queue and, later, the activity log's bit. What a guest wrote
//! in pieces of 64 KiB and more is written to the journal from where it was received.
//!
//! A [`Protection`] is this side, wherever the replica is. A [`Protector`] is one whose replica is kept by the same process: by a
//! [`Keeper`](crate::keeper::Keeper), whose threads stand there.
//!
//! | thread | waits for |
//! |---|---|
//! | those of the front end | the source, an overlapping op, or one sync of the activity log |
//! | `cdp-frames` | the replica's side, to which it hands frames |
//! | `cdp-log` | the activity log's disk |
//! | `cdp-flush` | the source's flushes that the filter itself wants |
//! | `cdp-reread`, one or more | the source and the replica, for resyncs and repairs |
//! | `cdp-seed` | the source and the replica, for first copies: of the group, and of disks that join |
//! | `cdp-fork` | the replica's side, where the order cannot go on there |
//! | `cdp-timer` | time |
//! | `cdp-events` | what the filter has to tell |
//! | `cdp-watch` | time: it looks after the others, and after whoever is in the filter |
//!
//! # What a guest waits for
//! The disk, an op in flight that it overlaps, one sync of the activity log. All else is bounded by counted looks, whatever hangs:
//! where somebody hangs in the filter guests' ops go past it after ten seconds (`turns`). What the replica's side does is no guest's
//! business, and called by none. Not bounded is what waits for the source itself, and the op whose own thread hangs in the filter's code,
//! or in that of a set's [`SetOptions::reports`].
//!
//! # What the end waits for
//! Whoever ends a protection in which a thread hangs waits half a minute longer than he wished to, at the very most
//! ([`Protection::stop`]). The thread is named ([`Summary::hanging`]) and left, and with it the right to the directory of the state: it may
//! still write there when it comes back, so nobody begins there before. A process that ends takes it along. The next start finds the
//! activity log as it was left, or none, and compares.

mod budget;
mod copies;
mod disk;
mod disks;
mod engine;
mod fork;
mod found;
mod local;
mod log_file;
mod mark;
mod member;
mod near;
mod open;
mod reread;
mod same;
mod seed;
mod sources;
mod start;
mod stop;
mod turns;
mod watch;

pub use budget::SharedBudget;
pub use engine::AttachError;
pub use local::{ProtectOptions, Protector};
pub(crate) use log_file::witness;
pub use log_file::{ACTIVITY_LOG, LOG_BYTES_MAX};
pub use member::SetOptions;
pub use open::{GivenSources, ProtectError, ProtectionOptions, SourceOptions, State};
pub use seed::Progress;
pub use stop::Summary;
#[cfg(feature = "services")]
pub(crate) use {
    open::{check, forget_log},
    same::{refuse_replicas, refuse_twice},
};

use self::budget::Share;
use self::copies::CopyOrder;
use self::engine::Engine;
use self::mark::Marking;
use self::sources::Sources;
use self::stop::Ending;
use crate::failure::Failure;
use crate::far::{Facts, Far, MarkOrder, Near};
use crate::nbd::Export;
use crate::report::{self, Problem};
use cdp_core::capture;
use cdp_core::frame::PointKinds;
use cdp_core::types::{GroupId, Lsn, Timeline};
use cdp_core::when::Label;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at what another thread brings about.
const LOOK: Duration = Duration::from_millis(2);

/// What happens while a protector runs, for whoever shows it.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// The filter says so.
    Filter(capture::Event),
    /// The replica lost what it had called durable: these LSNs. Everything is compared with it, and of the time from the first of them
    /// to the end of that nothing can be restored.
    AcknowledgedLost {
        /// The first that is lost.
        from: Lsn,
        /// The last one.
        to: Lsn,
    },
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

/// Disks that are being protected, into a replica wherever that is. Dropping it stops at once, as a crash would, but for what is
/// durable.
pub struct Protection {
    opened: Opened,
    group: GroupId,
    shared: Arc<Shared>,
    started: Instant,
    /// When it is dropped nothing runs any more, and the directory of the state is free: but for threads that hang.
    ending: Mutex<Ending>,
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protection").field("opened", &self.opened).finish_non_exhaustive()
    }
}

/// What the threads of the filter's side and its callers share.
struct Shared {
    engine: Arc<Engine>,
    far: Arc<dyn Far>,
    marking: Marking,
    /// What is to be told; soon taken, and few.
    alarms: Mutex<Vec<Notice>>,
    /// Of this side; the replica's side tells its own.
    failure: Arc<Failure>,
    progress: Progress,
    stop: AtomicBool,
    draining: AtomicBool,
    uris: Mutex<BTreeMap<String, String>>,
    sources: Sources,
    /// What is to be copied; none when the end has begun.
    copies: Mutex<Option<Sender<CopyOrder>>>,
    /// Held while a disk joins, changes or leaves.
    changing: Mutex<()>,
}

impl Protection {
    /// What was found at the start.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.opened
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

    /// How far the first copy is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// The filter as it is now.
    #[must_use]
    pub fn status(&self) -> capture::Status {
        self.shared.engine.status()
    }

    /// Takes replication out of the guests' path until [`Protection::attach`]: guests are served on, nothing is recorded or tracked.
    pub fn detach(&self) {
        self.shared.engine.detach();
    }

    /// Puts replication back into the guests' path, after it was detached by order or because it was stuck: everything is compared.
    ///
    /// # Errors
    /// When it is not detached, or cannot be put back now.
    pub fn attach(&self) -> Result<(), AttachError> {
        self.shared.engine.attach()
    }

    /// What only this side knows of the protection.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Near::facts(self.shared.as_ref())
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

    /// Why the replica's side stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// Makes a point with this label and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    pub fn mark(&self, label: &Label) -> Result<Lsn, Problem> {
        let kinds = PointKinds { mark: true, ..PointKinds::default() };
        self.shared.order_mark(&MarkOrder { kinds, label: label.as_str().to_owned() })
    }

    /// From here on the group has memory from this budget, by its weight among the others, and at most what it was started with.
    ///
    /// # Errors
    /// When there are too many groups for the budget.
    pub fn share(&self, budget: &Arc<SharedBudget>, weight: u32) -> Result<(), capture::BudgetError> {
        self.shared.engine.set_share(Share::new(budget, self.group, weight)?);
        Ok(())
    }

    /// Whatever goes on in the background ends; frames still go. Nobody at the replica's side waits for one that hangs in the filter.
    pub fn quiesce(&self) {
        self.shared.engine.end_is_near();
        self.shared.stop_all();
    }
}

impl Shared {
    /// Whatever goes on in the background ends, on both sides.
    fn stop_all(&self) {
        self.stop_here();
        self.far.quiesce();
    }

    /// The same of this side: waits for nobody.
    fn stop_here(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.sources.stop_copies();
    }

    fn order_copy(&self, order: CopyOrder) {
        // Without a thread that copies, the protection is ending.
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.as_ref().map(|copies| copies.send(order));
    }

    /// Why nothing goes on, if so.
    fn failure(&self) -> Option<String> {
        self.failure.get().or_else(|| self.far.failure())
    }

    /// What it is called when there is no room.
    fn without_room(&self) -> report::State {
        if self.far.standing().quota { report::State::Quota } else { report::State::NoSpace }
    }

    fn state(&self, state: capture::State) -> report::State {
        use report::State;
        if self.draining.load(Ordering::Relaxed) {
            return State::Draining;
        }
        // Why is a failure of this side, where a thread has ended.
        if state == capture::State::Detached {
            return State::Detached;
        }
        if self.failure().is_some() {
            return State::ReplicaLost;
        }
        let looked =
            self.engine.look(|filter, now| (filter.room(), filter.is_whole(), filter.status(now).rpo_ns.is_some()));
        // Somebody hangs in the filter.
        let Some((room, whole, begun)) = looked else { return State::Detached };
        // Whether the filter still has memory to record into or not: nothing reaches the replica now.
        if room == capture::Room::NoSpace || self.far.standing().seed_waits {
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
            capture::State::Detached => State::Detached,
        }
    }
}
