//! Runs the roles of one file in this process: starts them from the end of the chain to its beginning, looks at them once a second,
//! tells them a new file, and drains them the other way round, so that what one still sends finds the next one.
//!
//! The guest comes first: a role that fails does not take the others along. The process ends by itself only when all have failed.

mod event;
mod process;
#[cfg(test)]
mod tests;

pub use super::role::{
    Context, DoorReport, Drained, GroupReport, Held, Notes, Report, Role, RoleError, STATES, TenantReport,
};
pub use event::Event;

use super::config::{Config, ConfigError};
use super::inbox::{Inbox, Input};
use super::supervisor::Supervisor;
use crate::link::identity::IdentityError;
use crate::owner::OwnerError;
use process::Process;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How often it is looked how the roles stand.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts a role.
type Start = fn(&Config, &Context) -> Result<Box<dyn Role>, RoleError>;

/// A role that this process could run.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As its table is called.
    pub name: &'static str,
    start: Start,
}

impl Kind {
    /// The role `R`, whose table is called so.
    #[must_use]
    pub const fn of<R: Role + 'static>(name: &'static str) -> Self {
        Self { name, start: |config, context| Ok(Box::new(R::start(config, context)?)) }
    }
}

/// Why a process does not run its roles, or not any more.
#[derive(Debug, Error)]
pub enum RunError {
    /// The file cannot be meant.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// It names a role that this build does not have.
    #[error("{} has the table [{role}], and this build has no such role", path.display())]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// Which role.
        role: &'static str,
    },
    /// The state directory cannot be made.
    #[error("cannot make the state directory {}", path.display())]
    State {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the state directory.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// There is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The system gives no threads.
    #[error("cannot start the threads that carry connections")]
    Runtime(#[source] io::Error),
    /// Metrics cannot be served.
    #[error("cannot serve the metrics at {address}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A role does not start.
    #[error("the role {role} does not start: {source}")]
    Role {
        /// Which one.
        role: &'static str,
        /// Why.
        source: RoleError,
    },
    /// No role works any more.
    #[error("no role works any more: {why}")]
    Failed {
        /// What each of them said.
        why: String,
    },
}

/// Runs the roles of a file until the end is wished. `kinds` are those that there are, from the end of the chain to its beginning.
///
/// # Errors
/// Why nothing was started, or why nothing works any more.
pub fn serve(
    path: &Path,
    kinds: &[Kind],
    inbox: &Inbox,
    supervisor: &Supervisor,
    events: &mut dyn FnMut(Event),
) -> Result<(), RunError> {
    let mut process = Process::start(path, kinds, inbox, events)?;
    process.look(events);
    supervisor.ready(&process.summary());
    events(process.ready());
    let mut said = process.summary();
    let (mut look, mut alive) = (Instant::now() + LOOK_EVERY, Instant::now());
    let failed = loop {
        let now = Instant::now();
        if let Some(every) = supervisor.alive_every().filter(|_| now >= alive) {
            supervisor.alive();
            alive = now + every;
        }
        let next = if supervisor.alive_every().is_some() { look.min(alive) } else { look };
        match inbox.next(next.saturating_duration_since(now)) {
            Input::Stop => break None,
            Input::Note(text) => events(Event::Note { text }),
            Input::Reload => {
                supervisor.reloading();
                events(process.reload(path));
                supervisor.ready(&process.summary());
            }
            Input::Nothing => {}
        }
        if Instant::now() < look {
            continue;
        }
        look = Instant::now() + LOOK_EVERY;
        process.look(events);
        let summary = process.summary();
        if summary != said {
            supervisor.status(&summary);
            said = summary;
        }
        if let Some(why) = process.failed() {
            break Some(RunError::Failed { why });
        }
    };
    supervisor.stopping(if failed.is_some() { "no role works any more" } else { "draining" });
    process.drain(inbox, supervisor, events);
    failed.map_or(Ok(()), Err)
}
