//! `protect`: what protects the disks, the server in front of it, and what people and scripts are told meanwhile.

mod shown;
mod teller;
mod there;

use self::shown::{Shown, Told};
use self::teller::Teller;
use super::listen_at;
use crate::engine::{ProtectSpec, SourceTrust};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{ProtectEvent, State, Stopped};
use crate::stop::Stop;
use cdp_core::media::MediaErrorKind;
use cdp_core::trust::KeyHolder;
use cdp_net::nbd::Server;
use cdp_net::owner::{Owner, is_owned};
use cdp_net::protect::{ProtectError, ProtectOptions, Protector, SourceOptions, Summary};
use cdp_net::source::SourceError;
use std::cell::RefCell;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often the wish to end is looked at, and the progress of the first copy told.
const LOOK: Duration = Duration::from_millis(100);
/// How long requests that are under way at the end may take.
const CLOSE: Duration = Duration::from_secs(10);
/// An end that takes no longer needs no words.
const SOON: Duration = Duration::from_secs(1);

impl From<ProtectError> for Failure {
    fn from(error: ProtectError) -> Self {
        match error {
            ProtectError::Owner(error) => error.into(),
            ProtectError::Replica(problem) => problem.into(),
            ProtectError::OtherDisks { .. } => Self::new(Exit::Refused, "other-disks", error.to_string())
                .hint("give the same disks under the same names (`cdp disk` changes the group), or another directory"),
            ProtectError::Cut { ref disk, found, .. } => {
                let hint = format!(
                    "give the source its size back, or let the disk be cut: `cdp disk DIR grow {disk} --size {found} --force`"
                );
                Self::new(Exit::Refused, "source-cut", error.to_string()).hint(hint)
            }
            ProtectError::Swapped { .. } => Self::new(Exit::Refused, "sources-swapped", error.to_string()).hint(
                "give each source under the name of its disk (`cdp status` lists them); if a disk really is to go on with the \
                 other's content, --full-check compares it wholly",
            ),
            ProtectError::Media(ref media) if media.is_no_space() => {
                Self::new(Exit::Failed, "no-space", error.to_string()).hint("make room on the replica's disk")
            }
            ProtectError::Media(ref media) if media.kind == MediaErrorKind::ReadOnly => {
                Self::new(Exit::Refused, "read-only", error.to_string())
                    .hint("give a directory on media that can be written to")
            }
            ProtectError::Occupied { .. } => Self::new(Exit::Refused, "replica-occupied", error.to_string())
                .hint("give a new or an empty directory, or that of a replica"),
            ProtectError::Source(SourceError::InReplica { .. }) => {
                Self::new(Exit::Refused, "source-in-replica", error.to_string())
                    .hint("restore that replica to a file and protect that")
            }
            ProtectError::Source(SourceError::Twice { .. }) => Self::new(Exit::Usage, "source-twice", error.to_string()),
            ProtectError::Source(SourceError::Locked { .. }) => {
                Self::new(Exit::Refused, "source-in-use", error.to_string())
            }
            ProtectError::Source(_) => Self::new(Exit::Failed, "source", error.to_string()),
            error => Self::new(Exit::Failed, "protect", error.to_string()),
        }
    }
}

fn options(spec: &ProtectSpec) -> ProtectOptions {
    let source =
        |source: &crate::engine::SourceSpec| SourceOptions { name: source.name.clone(), path: source.path.clone() };
    let mut options = ProtectOptions::new(spec.sources.iter().map(source).collect(), spec.replica.clone());
    options.name.clone_from(&spec.name);
    options.policy = spec.policy;
    options.queue_bytes = spec.memory;
    options.trust_source = spec.trust == SourceTrust::Trust;
    options.full_check = spec.trust == SourceTrust::Check;
    options.segment_bytes = spec.segment_bytes.unwrap_or(options.segment_bytes);
    if cfg!(feature = "uring") {
        // Who builds it in wants it.
        options.driver = cdp_net::drive::Choice::Uring;
    }
    options
}

/// Says that the replica has an owner, if it has: who listens where we cannot may be that one.
fn owned(replica: &Path) -> Option<Failure> {
    let owned = is_owned(replica).unwrap_or(false);
    owned.then(|| Owner::acquire(replica).err().map(Failure::from)).flatten()
}

/// Protects until `stop` is wished.
pub(super) fn run(
    spec: &ProtectSpec,
    key: KeyHolder,
    stop: &Stop,
    events: &mut dyn FnMut(ProtectEvent),
) -> Result<Stopped, Failure> {
    if let Some(there) = &spec.there {
        if key.has_key() {
            let message = "a replica at another site is sealed at rest by who keeps it, not by this command";
            return Err(Failure::new(Exit::Usage, "usage", message)
                .hint("leave --key-file out; `key-file` of [replica-host] seals it there"));
        }
        return there::run(spec, there, stop, events);
    }
    let began = cdp_net::clock::wall();
    // Before anything is made: clients that come too early wait.
    let listening = listen_at(Some(&spec.listen), spec.tls.as_deref());
    let listening = listening.map_err(|failure| owned(&spec.replica).unwrap_or(failure))?;
    let (notices, noticed) = channel();
    let protector = Protector::start(&ProtectOptions { key, ..options(spec) }, move |notice| {
        // Who showed them has ended: nobody misses the rest.
        let _ = notices.send(Told::Notice(notice));
    })?;
    events(teller::opened(protector.opened()));
    let (server, exports) = match listening.serve(protector.exports()) {
        Ok(served) => served,
        Err(failure) => {
            protector.stop(Duration::ZERO, &|| true);
            return Err(failure);
        }
    };
    protector.set_uris(exports.iter().map(|export| (export.name.clone(), export.uri.clone())).collect());
    events(ProtectEvent::Ready { exports });
    // What earlier starts lost they have told.
    let gaps = shown::gaps_before(&protector, began);
    watch(&protector, Teller::new(&protector, gaps), &server, &noticed, stop, events);
    server.stop(CLOSE);
    let waits = Waits::new(spec.drain, events);
    Ok(stopped(&protector.stop(spec.drain, &|| waits.looked())))
}

/// An end that takes its time: that is told once, as nobody knows else for what he waits.
struct Waits<'a> {
    drain: Duration,
    begun: Instant,
    events: RefCell<Option<&'a mut dyn FnMut(ProtectEvent)>>,
}

impl<'a> Waits<'a> {
    fn new(drain: Duration, events: &'a mut dyn FnMut(ProtectEvent)) -> Self {
        Self { drain, begun: Instant::now(), events: RefCell::new(Some(events)) }
    }

    /// Asked again and again while it waits. Whether it is to hurry: a second signal ends the process itself.
    fn looked(&self) -> bool {
        let untold = if self.begun.elapsed() > SOON { self.events.take() } else { None };
        if let Some(events) = untold {
            let most = human::span(self.drain);
            let reason = format!("waits {most} at most until everything is durable; a second signal ends it at once");
            events(ProtectEvent::State { state: State::Draining, reason: Some(reason), lacks: None });
        }
        false
    }
}

fn stopped(summary: &Summary) -> Stopped {
    Stopped {
        drained: summary.drained,
        lsn: summary.lsn,
        durable_lsn: summary.durable,
        written_bytes: summary.written_bytes,
        stored_bytes: summary.stored_bytes,
        hot_bytes: summary.hot_bytes,
        points: summary.points,
        seconds: summary.seconds,
        manifest_stored: summary.manifest_stored,
        lacks: summary.lacks,
        hanging: summary.hanging.clone(),
    }
}

/// Tells what happens until the end is wished.
fn watch(
    shown: &dyn Shown,
    mut teller: Teller,
    server: &Server,
    told: &Receiver<Told>,
    stop: &Stop,
    events: &mut dyn FnMut(ProtectEvent),
) {
    // Before how far it is: a small first copy may be through already.
    teller.state(shown, shown.state(), None, events);
    while !stop.is_wished() {
        teller.seeding(shown, events);
        match told.recv_timeout(LOOK) {
            Ok(told) => teller.told(shown, &told, events),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        // What no notice tells: that the disk is full, that the end of a resync has become durable, and how it all began.
        teller.state(shown, shown.state(), None, events);
        teller.gaps(shown, events);
        teller.disks(shown, server, events);
    }
}
