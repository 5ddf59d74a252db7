//! One group of a filter: its disks, who serves them, and what protects them.

use super::lock;
use crate::nbd::{Place, Server, ServerOptions};
use crate::owner::PolicyChange;
use crate::protect::{Notice, Protection, ProtectionOptions, SharedBudget, SourceOptions};
use crate::services::config::{FilterConfig, FilterGroup, FilterPolicy};
use crate::services::far_link::{FarOptions, SpoolPlace};
use crate::services::remote::{PATIENCE, RemoteNotice, RemoteOptions, RemoteProtection};
use crate::services::role::{Context, GroupReport, Held, Notes};
use crate::services::traffic::Traffic;
use crate::services::url::CdpUrl;
use bytes::Bytes;
use cdp_core::capture::{self, Detached, Stuck};
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// After so long without a word the other side is taken for dead.
const SILENCE_MS: u32 = 5_000;
/// Threads that read sources again: each comparison waits for a network.
const REREAD_THREADS: usize = 4;
/// How long requests that are under way at the end may take.
const CLOSE: Duration = Duration::from_secs(10);

/// See the module's text.
pub(super) struct Group {
    config: FilterGroup,
    options: RemoteOptions,
    /// Source proxies or replica hosts.
    to: Mutex<Vec<String>>,
    /// For a gateway before them; empty: none.
    ticket: Mutex<Bytes>,
    /// What its spool takes on disk, at most.
    spool_bytes: AtomicU64,
    notes: Notes,
    /// Held as long as its disks are being opened.
    opening: Mutex<()>,
    /// Held for moments only: how it stands is asked any time.
    now: Mutex<Now>,
    /// There are other disks than those that are offered.
    disks: Arc<AtomicBool>,
    /// What is known to be durable of what guests wrote, in bytes: it only grows.
    out: AtomicU64,
}

#[derive(Default)]
struct Now {
    running: Option<Running>,
    /// Why it does not run.
    problem: Option<String>,
    closed: bool,
}

/// Clients end before what they write to.
struct Running {
    server: Server,
    remote: RemoteProtection,
}

fn places(to: &[CdpUrl]) -> Vec<String> {
    to.iter().map(CdpUrl::authority).collect()
}

fn change(policy: &FilterPolicy) -> PolicyChange {
    let ms = |span: Option<crate::services::config::Span>| {
        span.map(|span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX))
    };
    PolicyChange {
        rpo_ms: ms(policy.rpo),
        points: policy.points,
        window_ms: ms(policy.window),
        max_bytes: policy.max_bytes.map(|bytes| bytes.0),
        long_term_ms: ms(policy.long_term),
        keep_ms: ms(policy.keep),
        ..PolicyChange::default()
    }
}

/// What the spool of each group takes on disk, at most. Equal parts: files that are there take room that nobody else can have.
pub(super) fn spool_bytes(filter: &FilterConfig) -> u64 {
    filter.spool.disk.0 / filter.groups.len().max(1) as u64
}

impl Group {
    /// A group of the file, not opened yet.
    pub(super) fn new(
        filter: &FilterConfig,
        config: FilterGroup,
        context: &Context,
        memory: &Arc<SharedBudget>,
        traffic: &Traffic,
        ticket: Bytes,
    ) -> Self {
        let (queue, to) = (filter.spool.memory.0, places(&filter.to));
        let state = context.state.join("filter").join(&config.name);
        let disk = spool_bytes(filter);
        let source = |disk: &crate::services::config::DiskConfig| SourceOptions {
            name: disk.name.clone(),
            path: disk.source.clone(),
        };
        let options = RemoteOptions {
            identity: Arc::clone(&context.identity),
            link: FarOptions {
                to: to.clone(),
                peers: context.peers.pinned(),
                tenant: String::new(),
                name: config.name.clone(),
                memory_bytes: FarOptions::memory_for(queue),
                silence_ms: SILENCE_MS,
                connections: filter.connections - 1,
                ticket: ticket.clone(),
                traffic: traffic.clone(),
                spool: (disk > 0).then(|| SpoolPlace { directory: state.join("spool"), bytes: disk }),
            },
            protection: ProtectionOptions {
                sources: config.disks.iter().map(source).collect(),
                name: Some(config.name.clone()),
                policy: change(&config.policy),
                trust_source: false,
                full_check: false,
                queue_bytes: queue,
                reread_threads: REREAD_THREADS,
            },
            state,
            memory: Some(Arc::clone(memory)),
            patience: PATIENCE,
            serve_refused: true,
        };
        let (notes, disks, out) = (context.notes.clone(), Arc::default(), AtomicU64::new(0));
        Self {
            config,
            options,
            to: Mutex::new(to),
            ticket: Mutex::new(ticket),
            spool_bytes: AtomicU64::new(disk),
            notes,
            opening: Mutex::default(),
            now: Mutex::default(),
            disks,
            out,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Its replica is to be reached there from now on.
    pub(super) fn set_places(&self, to: &[CdpUrl]) {
        lock(&self.to).clone_from(&places(to));
        if let Some(running) = &lock(&self.now).running {
            running.remote.set_places(places(to));
        }
    }

    /// Gateways are shown this from now on.
    pub(super) fn set_ticket(&self, ticket: &Bytes) {
        lock(&self.ticket).clone_from(ticket);
        if let Some(running) = &lock(&self.now).running {
            running.remote.set_ticket(ticket.clone());
        }
    }

    /// There are more groups, or fewer: its spool has another part of the room for all.
    pub(super) fn set_spool_bytes(&self, bytes: u64) {
        // Under the lock under which it begins to run: then it asks again.
        let now = lock(&self.now);
        self.spool_bytes.store(bytes, Ordering::Relaxed);
        if let Some(running) = &now.running {
            running.remote.set_spool_bytes(bytes);
        }
    }

    /// What its spool takes on disk, at most.
    #[cfg(test)]
    pub(super) fn spool_bytes(&self) -> u64 {
        self.spool_bytes.load(Ordering::Relaxed)
    }

    /// Why its disks are not served, if so.
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.now).problem.clone()
    }

    /// Opens and serves its disks, if they are not.
    pub(super) fn open(&self) {
        let _opening = lock(&self.opening);
        let now = lock(&self.now);
        if now.running.is_some() || now.closed {
            return;
        }
        drop(now);
        let served = self.serve();
        let mut now = lock(&self.now);
        match served {
            // It was taken out of the file meanwhile.
            Ok(running) if now.closed => {
                drop(now);
                drop(running);
            }
            Ok(running) => {
                // It may be another list since it was read, another ticket, and another part of the room.
                running.remote.set_ticket(lock(&self.ticket).clone());
                running.remote.set_places(lock(&self.to).clone());
                running.remote.set_spool_bytes(self.spool_bytes.load(Ordering::Relaxed));
                now.running = Some(running);
                let before = now.problem.take();
                drop(now);
                if before.is_some() {
                    self.say("its disks are served now");
                }
            }
            Err(why) => {
                let before = now.problem.replace(why.clone());
                drop(now);
                if before.as_ref() != Some(&why) {
                    self.say(&format!("its disks are not served: {why}; that is tried again"));
                }
            }
        }
    }

    fn serve(&self) -> Result<Running, String> {
        if self.config.listen.tls {
            return Err(format!(
                "{}: a filter's file names no certificates: use nbd:// or nbd+unix://",
                self.config.listen
            ));
        }
        let state = &self.options.state;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.map_err(|error| format!("cannot make {}: {error}", state.display()))?;
        // Clients that come too early wait.
        let place = Place::take(&self.config.listen.address, false).map_err(|error| error.to_string())?;
        let (name, notes, disks) = (self.config.name.clone(), self.notes.clone(), Arc::clone(&self.disks));
        let tell = move |notice| {
            if notice == RemoteNotice::Disks {
                disks.store(true, Ordering::Relaxed);
            } else if let Some(text) = sentence(&notice) {
                notes.say(&format!("group {name}: {text}"));
            }
        };
        let mut options = self.options.clone();
        options.link.to.clone_from(&lock(&self.to));
        options.link.ticket.clone_from(&lock(&self.ticket));
        if let Some(spool) = &mut options.link.spool {
            spool.bytes = self.spool_bytes.load(Ordering::Relaxed);
        }
        let remote = RemoteProtection::start(options, tell).map_err(|error| error.to_string())?;
        let options = ServerOptions::new(self.config.listen.address.clone(), remote.exports());
        let server = Server::start_at(place, options).map_err(|error| error.to_string())?;
        tell_uris(&server, &remote);
        Ok(Running { server, remote })
    }

    fn say(&self, text: &str) {
        self.notes.say(&format!("group {}: {text}", self.config.name));
    }

    /// Offers the disks that there are now.
    pub(super) fn look(&self) {
        if !self.disks.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Some(Running { server, remote }) = &lock(&self.now).running {
            match server.set_exports(remote.exports()) {
                Ok(()) => tell_uris(server, remote),
                Err(error) => self.say(&format!("its disks are offered as they were: {error}")),
            }
        }
    }

    /// What protects it, once that has begun.
    pub(super) fn protection(&self) -> Option<Arc<Protection>> {
        lock(&self.now).running.as_ref().and_then(|running| running.remote.protection())
    }

    /// Ends it; gives how many bytes of its disks the next start reads again.
    pub(super) fn close(&self, within: Duration) -> u64 {
        let mut now = lock(&self.now);
        now.closed = true;
        let Some(Running { server, mut remote }) = now.running.take() else { return 0 };
        // How it stands is asked meanwhile.
        drop(now);
        let until = Instant::now() + within;
        server.stop(CLOSE.min(within));
        let summary = remote.stop(until.saturating_duration_since(Instant::now()), &|| false);
        if !summary.hanging.is_empty() {
            self.say(&format!("what hangs was not waited for: {}", summary.hanging.join(", ")));
        }
        if summary.drained {
            return 0;
        }
        let next = match summary.hot_bytes {
            0 if !summary.manifest_stored => "takes this stop for a crash".to_owned(),
            0 => "copies or compares its disks again".to_owned(),
            hot => format!("reads {} again", cdp_core::when::format_bytes(hot)),
        };
        let (durable, lsn) = (summary.durable, summary.lsn);
        self.say(&format!("not all is known to be durable (LSN {durable} of {lsn}): the next start {next}"));
        summary.hot_bytes.max(1)
    }

    /// How it stands, and the most that it may hold.
    pub(super) fn report(&self) -> GroupReport {
        let mut report = GroupReport { group: self.config.name.clone(), state: "stopped", ..GroupReport::default() };
        let now = lock(&self.now);
        if now.closed {
            report.state = "draining";
        }
        let Some(Running { remote, .. }) = &now.running else { return report };
        report.state = remote.state().as_str();
        report.linked = Some(remote.road().is_up);
        let Some(protection) = remote.protection() else { return report };
        let capture::Status {
            counters, rpo_ns, queued_bytes, memory, spool, time_until_tracking_ns, lsn, durable, ..
        } = protection.status();
        let age = rpo_ns.map(Duration::from_nanos);
        report.rpo = age;
        report.lag = if durable >= lsn { Some(Duration::ZERO) } else { age };
        report.in_bytes = counters.bytes_recorded;
        let durable_bytes = counters.bytes_recorded.saturating_sub(queued_bytes);
        report.out_bytes = self.out.fetch_max(durable_bytes, Ordering::Relaxed).max(durable_bytes);
        report.held = Held { memory: memory.bytes, disk: spool.bytes };
        report.tracking_in = time_until_tracking_ns.map(Duration::from_nanos);
        report
    }
}

fn tell_uris(server: &Server, remote: &RemoteProtection) {
    let names = remote.exports().into_iter().map(|export| export.name);
    remote.set_uris(names.zip(server.uris().iter().map(ToString::to_string)).collect());
}

/// What people are told of it; what only counts is not.
fn sentence(notice: &RemoteNotice) -> Option<String> {
    match notice {
        RemoteNotice::Waiting(why) => {
            Some(format!("its disks are served and not protected: {why}; all of them are compared once that is over"))
        }
        RemoteNotice::Began(opened) => {
            Some(format!("protected on timeline {}", cdp_core::when::TimelineName::from(opened.timeline)))
        }
        RemoteNotice::Road(text) => Some(text.clone()),
        RemoteNotice::Protection(Notice::ReplicaFailed(why)) => {
            Some(format!("{why}; its disks are served on, a restart takes the protection up again"))
        }
        RemoteNotice::Protection(Notice::Filter(capture::Event::GapBegan { reason, .. })) => {
            Some(format!("writes are not recorded, only which blocks they touch: {}", reason.as_str()))
        }
        RemoteNotice::Protection(Notice::Filter(capture::Event::Detached(why @ Detached::Stuck(Stuck::Ended)))) => {
            Some(format!(
                "replication is out of the guests' path ({why}): its disks are served on, a restart takes the protection up again"
            ))
        }
        RemoteNotice::Protection(Notice::Filter(capture::Event::Detached(why))) => {
            Some(format!("replication is out of the guests' path ({why}): everything is compared once it is back"))
        }
        RemoteNotice::Protection(Notice::Filter(capture::Event::State { to, .. })) => Some(format!("{to}")),
        RemoteNotice::Protection(_) | RemoteNotice::Disks => None,
    }
}
