//! Disks that are protected into a replica at another site, and served whether that can be reached or not.
//!
//! The guest comes first. A start waits a few seconds for the other side; then the disks are served all the same (`early`): the
//! activity log is removed before, so that whatever happens next everything is compared, and the protection begins as soon as the other
//! side lets it, under the running guest. Who asks in the state directory is answered what this side knows (`answers`).

mod answers;
mod early;

use self::answers::Answers;
use self::early::{EarlyDisk, Gate, Gated};
use super::far_link::{FarLink, FarOptions, Road};
use crate::far::{Facts, Far, Remote, UNREACHABLE};
use crate::file_device::FileDevice;
use crate::link::identity::Identity;
use crate::nbd::Export;
use crate::owner::{ControlServer, Owner};
use crate::protect::{
    GivenSources, Notice, Opened, ProtectError, Protection, ProtectionOptions, SharedBudget, State, Summary, check,
    forget_log, refuse_replicas, refuse_twice,
};
use crate::report::{self, Problem, ProblemClass};
use crate::threads::pause;
use bytes::Bytes;
use cdp_core::media::{Disk, Storage};
use cdp_core::types::Lsn;
use cdp_core::when::Label;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long a start waits for the other side, before the disks are served without it.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked how the way to the other side stands.
const LOOK: Duration = Duration::from_millis(100);
/// Between two tries to begin, at first and at most: the other side says no, or went away in between.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What to protect, and where to.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// Who this side is.
    pub identity: Arc<Identity>,
    /// Where the replica is.
    pub link: FarOptions,
    /// The disks, and how they are protected.
    pub protection: ProtectionOptions,
    /// The directory of the activity log and of the control socket; made if it is not there.
    pub state: PathBuf,
    /// What it queues in memory is lent from there; none: it has a bound of its own, and may have as much.
    pub memory: Option<Arc<SharedBudget>>,
    /// How long the start waits for the other side.
    pub patience: Duration,
    /// Serve the disks also where the other side is there and refuses: what it says is told, and it is asked again. Else that is an
    /// error of the start.
    pub serve_refused: bool,
}

/// What happens, for whoever shows it.
#[derive(Clone, PartialEq, Debug)]
pub enum RemoteNotice {
    /// The disks are served, and the protection has not begun: why.
    Waiting(String),
    /// It has.
    Began(Opened),
    /// The protection says so.
    Protection(Notice),
    /// Who is spoken to is another one, or nobody, or somebody again.
    Road(String),
    /// There are other disks, or they have other sizes: [`RemoteProtection::exports`] has them.
    Disks,
}

type Notices = Arc<dyn Fn(RemoteNotice) + Send + Sync>;

/// Disks that are protected into a replica at another site. Dropping it stops at once, as a crash would.
pub struct RemoteProtection {
    inner: Arc<Inner>,
    /// Dropped in this order: nobody is answered, nothing is tried, the directory is free.
    control: Option<ControlServer>,
    thread: Option<JoinHandle<()>>,
    owner: Arc<Owner>,
}

impl std::fmt::Debug for RemoteProtection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteProtection").field("state", &self.inner.options.state).finish_non_exhaustive()
    }
}

/// What its thread and its callers share.
struct Inner {
    options: RemoteOptions,
    storage: Arc<dyn Storage>,
    /// The right to the directory of the state, as long as the whole has it.
    owner: Weak<Owner>,
    /// Keeps the sources locked, whatever is begun and ended over them.
    given: GivenSources,
    disks: Vec<(String, Arc<EarlyDisk>)>,
    notices: Notices,
    now: Mutex<Now>,
    /// Where the other side is.
    places: Mutex<Vec<String>>,
    /// What a gateway on the way is shown; empty: none is.
    ticket: Mutex<Bytes>,
    /// What files of the spool take at most, where there is one.
    spool_bytes: AtomicU64,
    stop: AtomicBool,
    draining: AtomicBool,
    started: Instant,
}

/// How it stands.
#[derive(Default)]
struct Now {
    protection: Option<Arc<Protection>>,
    link: Option<Arc<FarLink>>,
    /// Why it has not begun.
    why: Option<String>,
    uris: BTreeMap<String, String>,
}

/// A protection that began, and whose sources are not read yet.
struct Begun {
    protection: Protection,
    gate: Arc<Gate>,
}

fn is_unreachable(error: &ProtectError) -> bool {
    matches!(error, ProtectError::Replica(problem) if problem.code == UNREACHABLE)
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> ProtectError {
    move |source| ProtectError::System { what, source }
}

impl RemoteProtection {
    /// Opens and locks the disks, and begins to protect them. When this returns the exports may be served. `notices` is called from
    /// several threads with what happens.
    ///
    /// # Errors
    /// What keeps the disks from being opened, or the state from being kept; where [`RemoteOptions::serve_refused`] is not set, also why the
    /// other side refuses.
    pub fn start(
        options: RemoteOptions,
        notices: impl Fn(RemoteNotice) + Send + Sync + 'static,
    ) -> Result<Self, ProtectError> {
        let sources = &options.protection.sources;
        check(&options.protection)?;
        refuse_twice(sources)?;
        refuse_replicas(sources)?;
        let given = GivenSources::open(sources)?;
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(&options.state)?);
        let owner = Arc::new(Owner::acquire(&options.state)?);
        let early = |(name, source): (&str, &crate::source::Source)| {
            let file = FileDevice::new(source.file().try_clone()?, false)?;
            Ok((name.to_owned(), Arc::new(EarlyDisk::new(Arc::new(file)))))
        };
        let disks = given.files().map(early).collect::<std::io::Result<_>>().map_err(system("open the source"))?;
        let inner = Arc::new(Inner {
            places: Mutex::new(options.link.to.clone()),
            ticket: Mutex::new(options.link.ticket.clone()),
            spool_bytes: AtomicU64::new(options.link.spool.as_ref().map_or(0, |spool| spool.bytes)),
            options,
            storage,
            owner: Arc::downgrade(&owner),
            given,
            disks,
            notices: Arc::new(notices),
            now: Mutex::default(),
            stop: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            started: Instant::now(),
        });
        // From here on what was begun ends when this is dropped.
        let mut remote = Self { inner, control: None, thread: None, owner };
        remote.inner.begin_or_wait()?;
        let answers = Arc::new(Answers(Arc::downgrade(&remote.inner)));
        let control = ControlServer::start(&remote.owner, answers).map_err(system("make the control socket"))?;
        remote.control = Some(control);
        let inner = Arc::clone(&remote.inner);
        let thread = Builder::new().name("cdp-remote".to_owned()).spawn(move || inner.run());
        remote.thread = Some(thread.map_err(system("start a thread"))?);
        Ok(remote)
    }

    /// The protection, once it has begun.
    #[must_use]
    pub fn protection(&self) -> Option<Arc<Protection>> {
        self.inner.protection()
    }

    /// Why it has not begun, if so.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.inner.now().why.clone()
    }

    /// What to serve: the same disks before and after it began, so that who has one keeps it.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        self.inner.exports()
    }

    /// Tells who asks where the disks are served, by their names.
    pub fn set_uris(&self, uris: BTreeMap<String, String>) {
        self.inner.now().uris.clone_from(&uris);
        if let Some(protection) = self.protection() {
            protection.set_uris(uris);
        }
    }

    /// From now on the other side is to be found at these places, the one that is wanted most first; at least one.
    pub fn set_places(&self, to: Vec<String>) {
        self.inner.places.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&to);
        if let Some(link) = &self.inner.now().link {
            link.set_places(to);
        }
    }

    /// From now on gateways on the way are shown this ticket; empty: none.
    pub fn set_ticket(&self, ticket: Bytes) {
        // As with the spool's bytes.
        let now = self.inner.now();
        self.inner.ticket.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&ticket);
        if let Some(link) = &now.link {
            link.set_ticket(ticket);
        }
    }

    /// From now on the files of its spool take so much at most, where it has one: see [`FarLink::set_spool_bytes`].
    pub fn set_spool_bytes(&self, bytes: u64) {
        // Under the lock under which a link begins: it is told, or begins with it.
        let now = self.inner.now();
        self.inner.spool_bytes.store(bytes, Ordering::Relaxed);
        if let Some(link) = &now.link {
            link.set_spool_bytes(bytes);
        }
    }

    /// How the way to the other side stands.
    #[must_use]
    pub fn road(&self) -> Road {
        self.inner.road()
    }

    /// What is being done, in one word.
    #[must_use]
    pub fn state(&self) -> report::State {
        self.inner.state()
    }

    /// Why replication stopped for good, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.protection().and_then(|protection| protection.failure())
    }

    /// Makes a point with this label and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    pub fn mark(&self, label: &Label) -> Result<Lsn, Problem> {
        self.inner.mark(label)
    }

    /// Ends it; guests' connections should have ended before. Waits at most `patience` until everything is durable; `hurry` ends the
    /// wait early.
    pub fn stop(&mut self, patience: Duration, hurry: &dyn Fn() -> bool) -> Summary {
        self.inner.draining.store(true, Ordering::Relaxed);
        self.end_thread();
        match self.protection() {
            Some(protection) => protection.stop(patience, hurry),
            None => self.inner.never_begun(),
        }
    }

    /// Nothing is tried any more.
    fn end_thread(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        let now = self.inner.now();
        if let Some(link) = now.link.as_ref().filter(|_| now.protection.is_none()) {
            link.abandon();
        }
        drop(now);
        // One that panicked has ended too.
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for RemoteProtection {
    fn drop(&mut self) {
        self.control = None;
        self.end_thread();
        let Now { protection, link, .. } = std::mem::take(&mut *self.inner.now());
        // Whoever still asks something is let go of first: threads that end wait for him.
        link.iter().for_each(|link| link.abandon());
        drop(protection);
        drop(link);
    }
}

impl Inner {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn protection(&self) -> Option<Arc<Protection>> {
        self.now().protection.clone()
    }

    fn say(&self, notice: RemoteNotice) {
        (self.notices)(notice);
    }

    fn road(&self) -> Road {
        self.now().link.as_ref().map(|link| link.road()).unwrap_or_default()
    }

    fn exports(&self) -> Vec<Export> {
        let early = |(name, disk): &(String, Arc<EarlyDisk>)| Export::new(name.clone(), Arc::clone(disk) as _);
        let Some(protection) = self.protection() else { return self.disks.iter().map(early).collect() };
        let mut exports = protection.exports();
        // The first one answers to the empty name too: it is the same before and after.
        let place = |export: &Export| self.disks.iter().position(|(name, _)| *name == export.name);
        exports.sort_by_key(|export| place(export).unwrap_or(usize::MAX));
        exports
    }

    fn state(&self) -> report::State {
        if self.draining.load(Ordering::Relaxed) {
            return report::State::Draining;
        }
        // Not even which blocks change is kept: everything will be compared.
        self.protection().map_or(report::State::Tracking, |protection| protection.state())
    }

    fn facts(&self) -> Facts {
        match self.protection() {
            Some(protection) => protection.facts(),
            None => Facts {
                state: self.state(),
                hot_bytes: self.bytes(),
                uris: self.now().uris.clone(),
                ..Facts::default()
            },
        }
    }

    /// Of all disks.
    fn bytes(&self) -> u64 {
        self.exports().iter().map(Export::size).sum()
    }

    fn mark(&self, label: &Label) -> Result<Lsn, Problem> {
        let Some(protection) = self.protection() else {
            let why = self.now().why.clone().unwrap_or_default();
            let message = format!("the protection has not begun, this moment is not kept: {why}");
            return Err(Problem::new(ProblemClass::Refused, "not-restorable-now", message)
                .hint("wait until `cdp status` says protecting"));
        };
        protection.mark(label)
    }

    fn never_begun(&self) -> Summary {
        Summary {
            drained: false,
            manifest_stored: false,
            lacks: None,
            lsn: Lsn::ZERO,
            durable: Lsn::ZERO,
            written_bytes: 0,
            stored_bytes: 0,
            hot_bytes: self.bytes(),
            points: 0,
            seconds: self.started.elapsed().as_secs(),
            hanging: Vec::new(),
        }
    }

    fn reach(&self) -> Result<Arc<FarLink>, ProtectError> {
        let to = self.places.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut options = FarOptions { to, ..self.options.link.clone() };
        let mut now = self.now();
        options.ticket.clone_from(&self.ticket.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(spool) = &mut options.spool {
            spool.bytes = self.spool_bytes.load(Ordering::Relaxed);
        }
        let link = FarLink::start(Arc::clone(&self.options.identity), options);
        let link = link.map_err(system("start a thread"))?;
        now.link = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Begins, if the other side lets us in time; else the disks may be served without it.
    fn begin_or_wait(self: &Arc<Self>) -> Result<(), ProtectError> {
        let link = self.reach()?;
        let (done, outcome) = channel();
        let (inner, for_thread) = (Arc::clone(self), Arc::clone(&link));
        let begin = move || {
            // Who asked waits for this.
            let _ = done.send(inner.begin(&for_thread, false));
        };
        Builder::new().name("cdp-begin".to_owned()).spawn(begin).map_err(system("start a thread"))?;
        let why = match outcome.recv_timeout(self.options.patience) {
            Ok(Ok(begun)) => {
                self.take_over(begun);
                return Ok(());
            }
            Ok(Err(error)) if is_unreachable(&error) => self.unreachable(),
            Ok(Err(error)) if self.options.serve_refused => error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {
                let why = self.unreachable();
                link.abandon();
                // It was asked with the activity log, which counts no more: nothing of it goes on.
                drop(outcome.recv());
                why
            }
            Err(RecvTimeoutError::Disconnected) => "the start ended by a panic".to_owned(),
        };
        self.now().link = None;
        drop(link);
        // Before a guest's first write. Where a medium does not take even that, its log takes no marks either, and the guest goes on.
        if let Err(error) = forget_log(self.storage.as_ref()) {
            self.say(RemoteNotice::Road(format!(
                "the activity log cannot be removed ({error}): after a crash now, start with --full-check"
            )));
        }
        self.wait_for(why);
        Ok(())
    }

    /// Why nothing has begun, told if it is another reason than before.
    fn wait_for(&self, why: String) {
        if self.now().why.replace(why.clone()).as_ref() != Some(&why) {
            self.say(RemoteNotice::Waiting(why));
        }
    }

    /// Why the other side cannot be reached, with what is most often to be done.
    fn unreachable(&self) -> String {
        let Road { address, why, .. } = self.road();
        let (why, own) = (why.unwrap_or_else(|| "it does not answer".to_owned()), self.options.identity.fingerprint());
        format!(
            "{address} cannot be reached: {why} (where this side is not listed yet: [[peer]] fingerprint = \"{own}\")"
        )
    }

    /// Begins a protection whose sources are not read yet. `everything`: nothing is known of them.
    fn begin(&self, link: &Arc<FarLink>, everything: bool) -> Result<Begun, ProtectError> {
        let far: Arc<dyn Far> = Arc::new(Remote::new(Arc::clone(link) as _));
        let gate = Arc::<Gate>::default();
        let state = State { storage: Arc::clone(&self.storage), owner: self.owner.upgrade() };
        let given = &self.options.protection;
        let options = ProtectionOptions {
            full_check: given.full_check || everything,
            trust_source: given.trust_source && !everything,
            ..given.clone()
        };
        let notices = Arc::clone(&self.notices);
        let tell = Box::new(move |notice| notices(RemoteNotice::Protection(notice)));
        let wrap = |_, source| Arc::new(Gated { source, gate: Arc::clone(&gate) }) as _;
        let protection = Protection::start_over(&options, self.given.again()?, state, &far, &wrap, tell)?;
        if let Some(memory) = &self.options.memory {
            // Where there are more groups than it has room for, this one keeps to the bound of one.
            let _ = protection.share(memory, 1);
        }
        Ok(Begun { protection, gate })
    }

    /// The disks go on behind the filter.
    fn take_over(&self, Begun { protection, gate }: Begun) {
        for Export { name, device, .. } in protection.exports() {
            if let Some((_, disk)) = self.disks.iter().find(|(known, _)| *known == name) {
                disk.hand_over(device);
            }
        }
        gate.open();
        let opened = protection.opened();
        let mut now = self.now();
        protection.set_uris(now.uris.clone());
        (now.protection, now.why) = (Some(Arc::new(protection)), None);
        drop(now);
        self.say(RemoteNotice::Began(opened));
    }

    fn is_ending(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Begins as soon as that is possible, and then tells how the way stands.
    fn run(&self) {
        // What went wrong since it began is told too.
        let (mut retry, mut told) = (RETRY.0, Road { why: None, ..self.road() });
        while self.protection().is_none() && !self.is_ending() {
            match self.try_again() {
                Ok(begun) => self.take_over(begun),
                Err(error) if self.is_ending() => drop(error),
                Err(error) => {
                    retry = if is_unreachable(&error) { RETRY.0 } else { (retry * 2).min(RETRY.1) };
                    self.wait_for(if is_unreachable(&error) { self.unreachable() } else { error.to_string() });
                    pause(&self.stop, retry);
                }
            }
        }
        let mut disks = sizes(&self.exports());
        while !self.is_ending() {
            self.tell_road(&mut told);
            let there = sizes(&self.exports());
            if there != disks {
                disks = there;
                self.say(RemoteNotice::Disks);
            }
            pause(&self.stop, LOOK);
        }
    }

    fn try_again(&self) -> Result<Begun, ProtectError> {
        let link = self.now().link.clone().filter(|link| {
            // One that was refused for good dials no more.
            crate::far::Wire::failure(link.as_ref()).is_none()
        });
        let link = link.map_or_else(|| self.reach(), Ok)?;
        while !link.road().is_up && !self.is_ending() {
            if let Some(why) = crate::far::Wire::failure(link.as_ref()) {
                return Err(Problem::new(ProblemClass::Refused, "refused", why).into());
            }
            if link.road().why.is_some() {
                self.wait_for(self.unreachable());
            }
            pause(&self.stop, LOOK);
        }
        if self.is_ending() {
            let message = "the protection ends before it began".to_owned();
            return Err(Problem::new(ProblemClass::Failed, "ending", message).into());
        }
        self.begin(&link, true)
    }

    /// Says who was lost and who was found, since it was told last.
    fn tell_road(&self, told: &mut Road) {
        let road = self.road();
        let text = match (told.is_up, road.is_up) {
            (true, false) => {
                let why = road.why.clone().unwrap_or_else(|| "it does not answer".to_owned());
                let next =
                    if road.address == told.address { String::new() } else { format!(", {} is tried", road.address) };
                format!("{} is lost: {why}{next}", told.address)
            }
            (_, true) if road.address != told.address => {
                format!("{} does not take records any more: {} does now", told.address, road.address)
            }
            (false, true) => format!("{} answers again", road.address),
            (true, true) if road.why != told.why => match &road.why {
                Some(why) => format!("{}: {why}", road.address),
                None => format!("{} takes records", road.address),
            },
            _ => return,
        };
        // Who was lost is named until another one answers.
        *told = if road.is_up { road } else { Road { is_up: false, ..told.clone() } };
        self.say(RemoteNotice::Road(text));
    }
}

fn sizes(exports: &[Export]) -> Vec<(String, u64)> {
    exports.iter().map(|export| (export.name.clone(), export.size())).collect()
}
