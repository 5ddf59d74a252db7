//! The roles that run, and what they stand on.

use super::{Config, Context, Drained, Event, Inbox, Kind, Report, Role, RunError, Supervisor};
use crate::link::identity::Identity;
use crate::owner::Owner;
use crate::services::facts::{Board, Facts, RoleFacts};
use crate::services::http::Endpoint;
use crate::services::peers::PeerBook;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// Each role has so long to drain, however long the others took: enough to write down what it has.
const DRAIN_MIN: Duration = Duration::from_secs(2);
/// A drain that takes so much longer than it may is not vouched for any more.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Tasks that are left at the end have so long.
const TASKS_END: Duration = Duration::from_secs(2);

/// A role, and whether it panicked when it was asked how it stands: then it is not asked again.
struct Running {
    role: Box<dyn Role>,
    panicked: bool,
}

/// See the module's text.
pub(super) struct Process {
    config: Config,
    context: Context,
    roles: Vec<Running>,
    facts: Facts,
    board: Board,
    endpoint: Option<Endpoint>,
    /// Nobody else uses the state directory meanwhile.
    _state: Owner,
    /// None once it is shut down.
    runtime: Option<Runtime>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Before the runtime that they stand on.
        self.endpoint = None;
        self.roles.clear();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(TASKS_END);
        }
    }
}

impl Process {
    /// Starts everything that the file names.
    pub(super) fn start(
        path: &Path,
        kinds: &[Kind],
        inbox: &Inbox,
        events: &mut dyn FnMut(Event),
    ) -> Result<Self, RunError> {
        let wrong = |source| RunError::Config { path: path.to_owned(), source };
        let config = Config::load(path).map_err(wrong)?;
        let wanted = config.roles();
        if let Some(role) = wanted.iter().find(|role| kinds.iter().all(|kind| kind.name != **role)) {
            return Err(RunError::NotBuilt { path: path.to_owned(), role });
        }
        let failed = |source| RunError::State { path: config.state.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&config.state).map_err(failed)?;
        let state = Owner::acquire(&config.state)?;
        let identity = Arc::new(Identity::open_or_make(&config.state, &format!("cdp {}", wanted.join(" ")))?);
        let runtime =
            Builder::new_multi_thread().thread_name("cdp-net").enable_all().build().map_err(RunError::Runtime)?;
        let context = Context {
            runtime: runtime.handle().clone(),
            identity,
            peers: PeerBook::new(&config.peers),
            state: config.state.clone(),
            notes: inbox.notes(),
        };
        let (facts, board) = (Facts::default(), Board::default());
        let (roles, runtime) = (Vec::new(), Some(runtime));
        let mut process = Self { config, context, roles, facts, board, endpoint: None, _state: state, runtime };
        process.start_metrics()?;
        for kind in kinds.iter().filter(|kind| wanted.contains(&kind.name)) {
            let started = (kind.start)(&process.config, &process.context);
            let role = started.map_err(|source| RunError::Role { role: kind.name, source })?;
            process.roles.push(Running { role, panicked: false });
            process.facts.roles.push(RoleFacts { name: kind.name, ..RoleFacts::default() });
            events(Event::Started { role: kind.name });
        }
        Ok(process)
    }

    fn start_metrics(&mut self) -> Result<(), RunError> {
        let Some(address) = self.config.metrics else { return Ok(()) };
        let endpoint = Endpoint::start(address, self.board.clone(), &self.context.runtime);
        self.endpoint = Some(endpoint.map_err(|source| RunError::Metrics { address, source })?);
        Ok(())
    }

    /// That all are started.
    pub(super) fn ready(&self) -> Event {
        Event::Ready {
            roles: self.facts.roles.iter().map(|role| role.name).collect(),
            fingerprint: self.context.identity.fingerprint().to_string(),
            metrics: self.endpoint.as_ref().map(|endpoint| endpoint.address),
        }
    }

    /// Looks how the roles stand.
    pub(super) fn look(&mut self, events: &mut dyn FnMut(Event)) {
        for (running, facts) in self.roles.iter_mut().zip(&mut self.facts.roles).filter(|(one, _)| !one.panicked) {
            let looked = contained(|| (running.role.failed(), running.role.report()));
            running.panicked = looked.is_err();
            let (failed, report) = looked.unwrap_or_else(|why| (Some(why), Report::default()));
            facts.take(report);
            if let Some(why) = failed.filter(|_| facts.failed.is_none()) {
                events(Event::Failed { role: facts.name, why: why.clone() });
                facts.failed = Some(why);
            }
        }
        self.board.set(self.facts.clone());
    }

    /// Why no role works any more.
    pub(super) fn failed(&self) -> Option<String> {
        let each = self.facts.roles.iter().map(|role| Some(format!("{}: {}", role.name, role.failed.as_ref()?)));
        each.collect::<Option<Vec<_>>>().map(|all| all.join("; "))
    }

    /// How they stand, in a line.
    pub(super) fn summary(&self) -> String {
        let role = |facts: &RoleFacts| {
            if facts.failed.is_some() {
                return format!("{}: failed", facts.name);
            }
            let mut states: BTreeMap<&str, usize> = BTreeMap::new();
            facts.report.groups.iter().for_each(|group| *states.entry(group.state).or_default() += 1);
            let states: Vec<_> = states.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
            if states.is_empty() { facts.name.to_owned() } else { format!("{}: {}", facts.name, states.join(", ")) }
        };
        self.facts.roles.iter().map(role).collect::<Vec<_>>().join("; ")
    }

    /// Reads the file again and tells it to all.
    pub(super) fn reload(&mut self, path: &Path) -> Event {
        let mut config = match Config::load(path) {
            Ok(config) => config,
            Err(error) => {
                self.facts.refused_reloads += 1;
                return Event::NotReloaded { why: format!("{}: {error}", path.display()) };
            }
        };
        let (mut unchanged, mut refused) = (Vec::new(), Vec::new());
        if std::mem::replace(&mut config.state, self.config.state.clone()) != self.config.state {
            unchanged.push("state".to_owned());
        }
        if std::mem::replace(&mut config.metrics, self.config.metrics) != self.config.metrics {
            unchanged.push("metrics".to_owned());
        }
        let running: Vec<_> = self.facts.roles.iter().map(|role| role.name).collect();
        let wanted = config.roles();
        let new = wanted.iter().filter(|role| !running.contains(role));
        unchanged.extend(new.map(|role| format!("[{role}], which is not started")));
        let gone = running.iter().filter(|role| !wanted.contains(role));
        unchanged.extend(gone.map(|role| format!("[{role}], which is not ended")));
        self.context.peers.set(&config.peers);
        for (one, name) in self.roles.iter().zip(running).filter(|(_, name)| wanted.contains(name)) {
            match contained(|| one.role.reload(&config)) {
                Ok(Ok(fixed)) => unchanged.extend(fixed),
                Ok(Err(error)) => refused.push(format!("{name}: {error}")),
                Err(why) => refused.push(format!("{name}: {why}")),
            }
        }
        self.config = config;
        let counted = if refused.is_empty() { &mut self.facts.reloads } else { &mut self.facts.refused_reloads };
        *counted += 1;
        Event::Reloaded { unchanged, refused }
    }

    /// Drains the roles, the beginning of the chain first, and ends.
    pub(super) fn drain(self, inbox: &Inbox, supervisor: &Supervisor, events: &mut dyn FnMut(Event)) {
        events(Event::Draining { within_s: self.config.drain.0.as_secs() });
        let deadline = Instant::now() + self.config.drain.0;
        let names: Vec<_> = self.facts.roles.iter().map(|role| role.name).collect();
        for (running, name) in self.roles.iter().zip(names).rev() {
            let within = deadline.saturating_duration_since(Instant::now()).max(DRAIN_MIN);
            let mut wait = |waited: Duration| {
                if waited < within + DRAIN_GRACE {
                    supervisor.draining();
                }
                std::iter::from_fn(|| inbox.note()).for_each(|text| events(Event::Note { text }));
            };
            let drained = drain_one(&*running.role, within, &mut wait);
            match drained {
                Ok(drained) => events(Event::Drained { role: name, left_bytes: drained.left_bytes }),
                Err(why) => events(Event::Failed { role: name, why }),
            }
        }
        drop(self);
        events(Event::Stopped);
    }
}

/// Drains a role on a thread of its own. `wait` is told every second, or half of it, how long it takes.
fn drain_one(role: &dyn Role, within: Duration, wait: &mut dyn FnMut(Duration)) -> Result<Drained, String> {
    const STEP: Duration = Duration::from_millis(500);
    let begin = Instant::now();
    thread::scope(|scope| {
        let (done, outcome) = sync_channel(1);
        let thread = thread::Builder::new().name("cdp-drain".into());
        let spawned = thread.spawn_scoped(scope, move || {
            let _ = done.send(contained(|| role.drain(within)));
        });
        if spawned.is_err() {
            return contained(|| role.drain(within));
        }
        loop {
            wait(begin.elapsed());
            match outcome.recv_timeout(STEP) {
                Ok(drained) => return drained,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("its drain ended without a word".into()),
            }
        }
    })
}

/// What a role answers, unless it panics: that stays its own.
fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| "it ended by a panic".to_owned())
}
