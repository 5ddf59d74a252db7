//! `protect`: the protector, the server in front of it, and what people and scripts are told meanwhile.

use super::listen_at;
use crate::engine::{ProtectSpec, SourceTrust};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{Compared, Export, ProtectEvent, State, Stopped};
use crate::stop::Stop;
use cdp_core::capture::{self, Event, LogTrust};
use cdp_core::media::MediaErrorKind;
use cdp_core::replica::catalogue::Branch;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{Lsn, WallTime};
use cdp_net::host::document;
use cdp_net::nbd::Server;
use cdp_net::owner::{Owner, is_owned};
use cdp_net::protect::{Notice, ProtectError, ProtectOptions, Protector, SourceOptions};
use cdp_net::source::SourceError;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often the wish to end is looked at, and the progress of the first copy told.
const LOOK: Duration = Duration::from_millis(100);
/// How long requests that are under way at the end may take.
const CLOSE: Duration = Duration::from_secs(10);

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
    let began = cdp_net::clock::wall();
    // Before anything is made: clients that come too early wait.
    let listening = listen_at(Some(&spec.listen), spec.tls.as_deref());
    let listening = listening.map_err(|failure| owned(&spec.replica).unwrap_or(failure))?;
    let (notices, noticed) = channel();
    let protector = Protector::start(&ProtectOptions { key, ..options(spec) }, move |notice| {
        // Who showed them has ended: nobody misses the rest.
        let _ = notices.send(notice);
    })?;
    let opened = protector.opened();
    events(ProtectEvent::Opened {
        timeline: opened.timeline.into(),
        resumed: opened.resumed,
        clean: opened.clean,
        compared: match opened.compared {
            cdp_net::protect::Compared::Nothing => Compared::Nothing,
            cdp_net::protect::Compared::ActivityLog => Compared::ActivityLog,
            cdp_net::protect::Compared::Everything => Compared::Everything,
        },
    });
    let (server, exports) = match listening.serve(protector.exports().to_vec()) {
        Ok(served) => served,
        Err(failure) => {
            protector.stop(Duration::ZERO, &|| true);
            return Err(failure);
        }
    };
    protector.set_uris(exports.iter().map(|export| (export.name.clone(), export.uri.clone())).collect());
    events(ProtectEvent::Ready { exports });
    watch(&protector, &server, began, &noticed, stop, events);
    server.stop(CLOSE);
    let summary = protector.stop(spec.drain, &|| false);
    Ok(Stopped {
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
    })
}

/// Tells what happens until the end is wished.
fn watch(
    protector: &Protector,
    server: &Server,
    began: WallTime,
    noticed: &Receiver<Notice>,
    stop: &Stop,
    events: &mut dyn FnMut(ProtectEvent),
) {
    let mut teller =
        Teller { started: Instant::now(), gaps: 0, done: 0, state: None, log_lost: false, disks: sizes(protector) };
    // What earlier starts lost they have told.
    teller.gaps = gaps_before(protector, began);
    // Before how far it is: a small first copy may be through already.
    teller.state(protector, protector.state(), None, events);
    while !stop.is_wished() {
        teller.seeding(protector, events);
        match noticed.recv_timeout(LOOK) {
            Ok(notice) => teller.notice(protector, &notice, events),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        // What no notice tells: that the disk is full, that the end of a resync has become durable, and how it all began.
        teller.state(protector, protector.state(), None, events);
        teller.gaps(protector, events);
        teller.disks(protector, server, events);
    }
}

/// How many gaps had ended by then.
fn gaps_before(protector: &Protector, then: WallTime) -> usize {
    let replica = protector.host().replica();
    let gaps = replica.catalogue().trunk().map_or(&[][..], |trunk| trunk.gaps());
    gaps.iter().filter(|gap| !gap.open && gap.to_time < then).count()
}

struct Teller {
    started: Instant,
    gaps: usize,
    done: u64,
    /// As it was last told.
    state: Option<State>,
    /// The activity log cannot be written, and that was told.
    log_lost: bool,
    /// Names and sizes of the disks that are served.
    disks: Vec<(String, u64)>,
}

fn sizes(protector: &Protector) -> Vec<(String, u64)> {
    protector.exports().iter().map(|export| (export.name.clone(), export.size())).collect()
}

impl Teller {
    fn seeding(&mut self, protector: &Protector, events: &mut dyn FnMut(ProtectEvent)) {
        let progress = protector.progress();
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        if total > 0 && done > self.done {
            self.done = done;
            let seconds = self.started.elapsed().as_secs_f64().max(0.001);
            events(ProtectEvent::Seeding { done, total, bytes_per_s: (done as f64 / seconds) as u64 });
        }
    }

    /// Serves the disks that there are now.
    fn disks(&mut self, protector: &Protector, server: &Server, events: &mut dyn FnMut(ProtectEvent)) {
        let disks = sizes(protector);
        if disks == self.disks || server.set_exports(protector.exports()).is_err() {
            return;
        }
        let uris = server.uris().into_iter().map(|uri| uri.to_string());
        let served = disks.iter().zip(uris).map(|((name, size), uri)| Export { name: name.clone(), uri, size: *size });
        let exports: Vec<_> = served.collect();
        protector.set_uris(exports.iter().map(|export| (export.name.clone(), export.uri.clone())).collect());
        self.disks = disks;
        events(ProtectEvent::Ready { exports });
    }

    fn notice(&mut self, protector: &Protector, notice: &Notice, events: &mut dyn FnMut(ProtectEvent)) {
        match notice {
            Notice::Filter(Event::PointDurable { lsn }) => self.point(protector, *lsn, events),
            Notice::Filter(Event::State { to, .. }) => self.state(protector, protector.state_of(*to), None, events),
            Notice::Filter(Event::Log(trust)) => self.log(protector, *trust, events),
            Notice::Filter(Event::GapBegan { reason, .. }) => {
                let reason = format!("writes are not recorded, only which blocks they touch: {}", reason.as_str());
                self.state(protector, protector.state_of(capture::State::Tracking), Some(reason), events);
            }
            Notice::Filter(Event::RpoViolated { rpo_ns }) => {
                let age = rpo_ns.map_or("nothing since the start can be restored yet".to_owned(), |age| {
                    format!("the last restorable record is {} old", human::span(Duration::from_nanos(age)))
                });
                self.state(protector, protector.state(), Some(format!("the RPO is not held: {age}")), events);
            }
            Notice::AcknowledgedLost { from, to } => {
                let reason = format!(
                    "the replica lost acknowledged data, LSN {from} to {to}: everything is compared with it, and nothing from \
                     there to the end of that can be restored"
                );
                self.state(protector, protector.state(), Some(reason), events);
            }
            Notice::ReplicaFailed(_) => self.state(protector, State::ReplicaLost, None, events),
            Notice::IndexTrouble(why) => {
                let reason = format!(
                    "the journal's index cannot be kept in order ({why}): nothing is lost, but opening a moment may be slow"
                );
                self.state(protector, protector.state(), Some(reason), events);
            }
            Notice::History(history) => events(ProtectEvent::History { history: history.clone() }),
            _ => {}
        }
    }

    /// The state, if it is another one or there is something to say about it.
    fn state(
        &mut self,
        protector: &Protector,
        state: State,
        reason: Option<String>,
        events: &mut dyn FnMut(ProtectEvent),
    ) {
        let new = self.state.replace(state) != Some(state);
        if !new && reason.is_none() {
            return;
        }
        let without_room = match state {
            State::NoSpace => Some("disk has no room"),
            State::Quota => Some("quota leaves no room"),
            _ => None,
        };
        let lacks = without_room.and_then(|_| protector.lacks());
        let no_room = |what: &str| {
            let amounts = lacks.map(|lacks| format!(" ({})", human::lack(&lacks))).unwrap_or_default();
            let why = protector.host().history().problem.map(|problem| format!("; {problem}")).unwrap_or_default();
            format!(
                "the replica's {what}{amounts}: the disks are served on, and it goes on by itself once there is room{why}"
            )
        };
        let lost = |why: String| format!("{why}; the disks are served on, a restart takes the protection up again");
        let failed =
            || matches!(state, State::ReplicaLost | State::Detached).then(|| protector.failure()).flatten().map(lost);
        let reason = reason.or_else(|| without_room.map(no_room)).or_else(failed);
        events(ProtectEvent::State { state, reason, lacks });
    }

    /// Whether a crash now would be a matter of a few extents or of everything.
    fn log(&mut self, protector: &Protector, trust: LogTrust, events: &mut dyn FnMut(ProtectEvent)) {
        let reason = match trust {
            LogTrust::Lost { error, .. } => {
                let why = error.map_or("it takes too long".to_owned(), |failed| {
                    std::io::Error::from_raw_os_error(failed.errno).to_string()
                });
                let then = "after a crash everything would be compared";
                format!("the activity log cannot be written ({why}): {then}, until it can")
            }
            LogTrust::Good { .. } if self.log_lost => "the activity log is written again".to_owned(),
            LogTrust::Good { .. } => return,
        };
        self.log_lost = matches!(trust, LogTrust::Lost { .. });
        self.state(protector, protector.state(), Some(reason), events);
    }

    fn point(&self, protector: &Protector, lsn: Lsn, events: &mut dyn FnMut(ProtectEvent)) {
        let replica = protector.host().replica();
        let find = |branch: &Branch| branch.points().iter().rev().find(|point| point.id.lsn == lsn).cloned();
        if let Some(point) = replica.catalogue().trunk().and_then(find) {
            let point = document::point(&replica, &point);
            drop(replica);
            events(ProtectEvent::Point { point });
        }
    }

    /// Gaps that ended since the last look.
    fn gaps(&mut self, protector: &Protector, events: &mut dyn FnMut(ProtectEvent)) {
        let replica = protector.host().replica();
        let Some(trunk) = replica.catalogue().trunk() else { return };
        let ended = trunk.gaps().iter().filter(|gap| !gap.open).count();
        let new: Vec<_> =
            trunk.gaps().iter().take(ended).skip(self.gaps).map(|gap| document::gap(trunk, gap)).collect();
        drop(replica);
        self.gaps = self.gaps.max(ended);
        new.into_iter().for_each(|gap| events(ProtectEvent::Gap { gap }));
    }
}
