//! A protection whose replica is kept by the same process.

use super::open::{GivenSources, ProtectError, ProtectionOptions, SourceOptions, State, check};
use super::{Notice, Opened, Progress, Protection, Summary};
use crate::device::Device;
use crate::drive::Choice;
use crate::far::Far;
use crate::host::Host;
use crate::keeper::{Home, Keeper, KeeperOptions, ServeError};
use crate::nbd::Export;
use crate::owner::PolicyChange;
use crate::report::{self, Problem};
use cdp_core::capture;
use cdp_core::journal::Options;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{DiskId, Lsn};
use cdp_core::when::Label;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What to protect, and how.
#[derive(Clone, Debug)]
pub struct ProtectOptions {
    /// The disks, in their order; at least one.
    pub sources: Vec<SourceOptions>,
    /// The replica's directory, made if it is not there.
    pub replica: PathBuf,
    /// The group's name, if it is a new one or to be checked.
    pub name: Option<String>,
    /// What of the policy is to be changed.
    pub policy: PolicyChange,
    /// Believe that nobody changed the sources since the last clean stop.
    pub trust_source: bool,
    /// Compare everything with the replica in the background.
    pub full_check: bool,
    /// Bound of what was captured and is not yet durable, in bytes.
    pub queue_bytes: u64,
    /// Segments of the journal are made this large, in bytes, at least 1 MiB.
    pub segment_bytes: u64,
    /// Seals a new replica at rest, and opens one that is sealed.
    pub key: KeyHolder,
    /// What carries out the journal's writes and syncs.
    pub driver: Choice,
}

impl ProtectOptions {
    /// The usual options for these sources.
    #[must_use]
    pub fn new(sources: Vec<SourceOptions>, replica: PathBuf) -> Self {
        Self {
            sources,
            replica,
            name: None,
            policy: PolicyChange::default(),
            trust_source: false,
            full_check: false,
            queue_bytes: 1 << 30,
            segment_bytes: Options::default().segment_bytes,
            key: KeyHolder::default(),
            driver: Choice::default(),
        }
    }

    /// What of it the filter's side is told.
    fn of_filter(&self) -> ProtectionOptions {
        ProtectionOptions {
            sources: self.sources.clone(),
            name: self.name.clone(),
            policy: self.policy,
            trust_source: self.trust_source,
            full_check: self.full_check,
            queue_bytes: self.queue_bytes,
            reread_threads: 1,
        }
    }

    /// And what the replica's is.
    fn of_keeper(&self) -> KeeperOptions {
        KeeperOptions {
            segment_bytes: self.segment_bytes,
            waiting_bytes_max: self.queue_bytes / 2,
            key: self.key.clone(),
            driver: self.driver,
            ..KeeperOptions::default()
        }
    }
}

/// Disks that are being protected. Dropping it stops at once, as a crash would, but for what is durable.
#[derive(Debug)]
pub struct Protector {
    /// Dropped in this order: the filter lets go of the replica, then that is let go of.
    protection: Protection,
    keeper: Kept,
    host: Arc<Host>,
}

/// A keeper that ends with who has this, whoever else still knows it.
#[derive(Debug)]
struct Kept(Arc<Keeper>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl From<ServeError> for ProtectError {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::NotBegun(problem) => Self::Replica(problem),
            ServeError::Thread(source) => Self::System { what: "start a thread", source },
            ServeError::Socket(source) => Self::System { what: "make the control socket", source },
        }
    }
}

impl Protector {
    /// Opens sources and replica and begins to protect. When this returns the exports may be served. `notices` is called from
    /// a thread of its own with what happens.
    ///
    /// # Errors
    /// What keeps the disks from being protected.
    pub fn start(options: &ProtectOptions, notices: impl Fn(Notice) + Send + 'static) -> Result<Self, ProtectError> {
        Self::start_over(options, |_, device| device, notices)
    }

    /// Like [`Protector::start`], with each source's device replaced by what `wrap` makes of it: for tests whose sources fail.
    ///
    /// # Errors
    /// As [`Protector::start`].
    pub fn start_over(
        options: &ProtectOptions,
        wrap: impl Fn(DiskId, Arc<dyn Device>) -> Arc<dyn Device>,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Self, ProtectError> {
        let of_filter = options.of_filter();
        check(&of_filter)?;
        super::same::refuse_twice(&options.sources)?;
        super::same::refuse_replicas(&options.sources)?;
        // Nothing is made for sources that cannot be protected. Where a replica may be, its owner is to be named first: it has them.
        let of_new = if options.replica.exists() { None } else { Some(GivenSources::open(&options.sources)?) };
        let home = Home::acquire(&options.replica)?;
        let given = of_new.map_or_else(|| GivenSources::open(&options.sources), Ok)?;
        let state = State { storage: Arc::clone(home.storage()), owner: Some(Arc::clone(home.owner())) };
        let keeper = Kept(Keeper::new(home, options.of_keeper()));
        let far: Arc<dyn Far> = Arc::clone(&keeper.0) as _;
        let protection = Protection::start_over(&of_filter, given, state, &far, &wrap, Box::new(notices))?;
        let host = keeper.0.serve()?;
        Ok(Self { protection, keeper, host })
    }

    /// The filter's side of it.
    #[must_use]
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// What was found at the start.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.protection.opened()
    }

    /// What carries out the journal's writes and syncs: "threads" or "io_uring".
    #[must_use]
    pub fn driver(&self) -> &'static str {
        self.keeper.0.driver()
    }

    /// The disks that are protected now, for a front end to serve. They may be others later.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        self.protection.exports()
    }

    /// Tells `status` where the disks are served, by their names.
    pub fn set_uris(&self, uris: BTreeMap<String, String>) {
        self.protection.set_uris(uris);
    }

    /// The owner's side of the replica: points, moments, sessions.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// How far the first copy is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        self.protection.progress()
    }

    /// The filter as it is now.
    #[must_use]
    pub fn status(&self) -> capture::Status {
        self.protection.status()
    }

    /// What is being done, in one word.
    #[must_use]
    pub fn state(&self) -> report::State {
        self.protection.state()
    }

    /// The same for a state that the filter told of.
    #[must_use]
    pub fn state_of(&self, filter: capture::State) -> report::State {
        self.protection.state_of(filter)
    }

    /// What has to be free on the replica's media or within its quota, and what is, while the state is `no-space` or `quota`.
    #[must_use]
    pub fn lacks(&self) -> Option<report::Lack> {
        self.state().is_lack().then(|| self.keeper.0.lacks()).flatten()
    }

    /// Why the replica's side stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.protection.failure()
    }

    /// Makes a point with this label and returns its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    pub fn mark(&self, label: &Label) -> Result<Lsn, Problem> {
        self.protection.mark(label)
    }

    /// Ends the protection; guests' connections should have ended before. Waits at most `patience` until everything is
    /// durable and the replica's files say that the stop was clean, or ten seconds for the latter; `hurry` ends the wait early. As to what
    /// hangs: [`Protection::stop`].
    pub fn stop(self, patience: Duration, hurry: &dyn Fn() -> bool) -> Summary {
        self.protection.stop(patience, hurry)
    }
}

impl Drop for Protector {
    fn drop(&mut self) {
        // Who waits for something through the control socket lets go of it first.
        self.protection.quiesce();
        self.keeper.0.hush();
    }
}
