//! What a role of `cdp serve` is to the process that runs it: started, told a new configuration, asked how it stands, drained.
//!
//! The calls come from threads of [`run`](super::run), never from a task of the runtime: they may block, and may wait for tasks
//! with [`Handle::block_on`](tokio::runtime::Handle::block_on).

use super::config::Config;
use super::peers::PeerBook;
use super::tickets::read_ticket;
use crate::link::identity::Identity;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Handle;

/// What the roles of a process share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where tasks run.
    pub runtime: Handle,
    /// Who this process is.
    pub identity: Arc<Identity>,
    /// Whom it knows. It changes at a reload by itself.
    pub peers: PeerBook,
    /// The state directory. What a role keeps there is in a directory with its name.
    pub state: PathBuf,
    /// Where sentences for people go.
    pub notes: Notes,
}

/// Sentences for people: what happened that somebody may want to know, one at a time, without a line's end.
#[derive(Clone)]
pub struct Notes(Arc<dyn Fn(&str) + Send + Sync>);

impl Notes {
    /// They go there.
    pub fn new(to: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(to))
    }

    /// Says one.
    pub fn say(&self, sentence: &str) {
        (self.0)(sentence);
    }
}

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}

/// Why a role does not start, or does not take a new configuration.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct RoleError {
    /// What, where and why.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl RoleError {
    /// An error with what, where and why.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The ticket for a gateway that a role's table names; empty: it names none.
pub(super) fn ticket_of(table: &str, path: Option<&Path>) -> Result<Bytes, RoleError> {
    let read = path.map(read_ticket).transpose().map_err(|error| {
        RoleError::new(format!("{table}.ticket: {error}")).hint("whoever has the gateway makes one with `cdp ticket`")
    })?;
    Ok(read.unwrap_or_default().into())
}

/// How a drain ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Bytes that are not known to be durable; all bits set: nobody knows how many. They are not lost: a proxy has them in its cache on
    /// disk, or whoever sent them still has them; a filter reads them from its disks again at its next start.
    pub left_bytes: u64,
}

/// One role of a process.
pub trait Role: Send + Sync {
    /// Starts it: everything that can fail because of its configuration or its files has been tried when this returns. Only called
    /// where the file has its table.
    ///
    /// # Errors
    /// Why it cannot start; nothing of it is left running then.
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError>
    where
        Self: Sized;

    /// As its table is called.
    fn name(&self) -> &'static str;

    /// Takes what a new file says. The file has its table, is checked, and its peers are known already. Returns the names of what
    /// differs and stays as it was until the process is started again: `gateway.listen`.
    ///
    /// # Errors
    /// Why it cannot be taken; then everything stays as it was.
    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError>;

    /// Takes nothing new any more, and waits until what it has is safe, at most so long. It is dropped after.
    fn drain(&self, within: Duration) -> Drained;

    /// How it stands. Asked once a second: it is quick, and waits for no I/O. Where it does not return, the watchdog is not fed.
    fn report(&self) -> Report;

    /// Why it does not work any more, and will not by itself. The process then drains the others and ends.
    fn failed(&self) -> Option<String> {
        None
    }
}

/// How a role stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Its groups. As many as it serves, which has a bound of its own.
    pub groups: Vec<GroupReport>,
    /// The most that all groups together may hold on their way.
    pub held_max: Held,
    /// Who came to where it listens; none: it does not.
    pub door: Option<DoorReport>,
    /// Bytes that it kept since the start and dropped, as no next hop will ever take them; none: it drops nothing.
    pub dropped_bytes: Option<u64>,
    /// What it relays for tenants without a look at groups (the gateway).
    pub tenants: Vec<TenantReport>,
}

/// Bytes on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// In memory.
    pub memory: u64,
    /// On disk.
    pub disk: u64,
}

/// How a group stands at a role. Counts are since the start of the process, and only grow. What a role does not know it leaves out.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GroupReport {
    /// Whose it is; empty: this part does not know.
    pub tenant: String,
    /// Its name.
    pub group: String,
    /// A word of [`STATES`].
    pub state: &'static str,
    /// Age of the last moment that could be restored now.
    pub rpo: Option<Duration>,
    /// Since the oldest that is not durable was taken here; zero: all is.
    pub lag: Option<Duration>,
    /// Sessions with the next hop hold.
    pub linked: Option<bool>,
    /// Bytes that came: of guests, or of the hop before.
    pub in_bytes: u64,
    /// Bytes that went to the next hop, or to the journal.
    pub out_bytes: u64,
    /// Bytes that coalescing made unnecessary.
    pub coalesced_bytes: u64,
    /// Bytes that compressing made unnecessary.
    pub compressed_bytes: u64,
    /// What it holds on its way.
    pub held: Held,
    /// At the rates of the last seconds, until changes are only tracked; none: not at these rates.
    pub tracking_in: Option<Duration>,
}

/// The words of [`GroupReport::state`]: those of [`State`](crate::report::State), and of a group that is only passed on.
pub const STATES: [&str; 12] = [
    "stopped",
    "seeding",
    "protecting",
    "resync",
    "tracking",
    "no-space",
    "quota",
    "replica-lost",
    "draining",
    "detached",
    "passing",
    "waiting",
];

/// Connections that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DoorReport {
    /// They said who they are.
    pub let_in: u64,
    /// They were refused.
    pub refused: u64,
    /// They gave way, or took too long.
    pub dawdled: u64,
    /// Those that could not be accepted.
    pub errors: u64,
}

/// What is relayed for a tenant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TenantReport {
    /// Whose.
    pub tenant: String,
    /// Connections that are open.
    pub connections: u64,
    /// Bytes to the provider.
    pub in_bytes: u64,
    /// Bytes back.
    pub out_bytes: u64,
    /// Connections that were refused because of a limit.
    pub limited: u64,
}
