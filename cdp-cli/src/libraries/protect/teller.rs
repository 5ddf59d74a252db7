//! What people and scripts are told while disks are protected, wherever their replica is.

use super::shown::{Shown, Told};
use crate::human;
use crate::json::{Compared, Export, ProtectEvent, State};
use cdp_core::capture::{self, Detached, Event, LogTrust, Stuck};
use cdp_net::nbd::Server;
use cdp_net::protect::{Notice, Opened};
use std::time::{Duration, Instant};

/// What was found at the start.
pub(super) fn opened(opened: Opened) -> ProtectEvent {
    ProtectEvent::Opened {
        timeline: opened.timeline.into(),
        resumed: opened.resumed,
        clean: opened.clean,
        compared: match opened.compared {
            cdp_net::protect::Compared::Nothing => Compared::Nothing,
            cdp_net::protect::Compared::ActivityLog => Compared::ActivityLog,
            cdp_net::protect::Compared::Everything => Compared::Everything,
        },
    }
}

/// What was told so far.
pub(super) struct Teller {
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

fn sizes(shown: &dyn Shown) -> Vec<(String, u64)> {
    shown.exports().iter().map(|export| (export.name.clone(), export.size())).collect()
}

impl Teller {
    /// Nothing was told yet, but for so many gaps.
    pub(super) fn new(shown: &dyn Shown, gaps: usize) -> Self {
        Self { started: Instant::now(), gaps, done: 0, state: None, log_lost: false, disks: sizes(shown) }
    }

    /// Tells what was told.
    pub(super) fn told(&mut self, shown: &dyn Shown, told: &Told, events: &mut dyn FnMut(ProtectEvent)) {
        match told {
            Told::Notice(notice) => self.notice(shown, notice, events),
            Told::Began(found) => events(opened(*found)),
            Told::Because(why) => self.state(shown, shown.state(), Some(why.clone()), events),
        }
    }

    pub(super) fn seeding(&mut self, shown: &dyn Shown, events: &mut dyn FnMut(ProtectEvent)) {
        let (done, total) = shown.progress();
        if total > 0 && done > self.done {
            self.done = done;
            let seconds = self.started.elapsed().as_secs_f64().max(0.001);
            events(ProtectEvent::Seeding { done, total, bytes_per_s: (done as f64 / seconds) as u64 });
        }
    }

    /// Serves the disks that there are now.
    pub(super) fn disks(&mut self, shown: &dyn Shown, server: &Server, events: &mut dyn FnMut(ProtectEvent)) {
        let disks = sizes(shown);
        if disks == self.disks || server.set_exports(shown.exports()).is_err() {
            return;
        }
        let uris = server.uris().into_iter().map(|uri| uri.to_string());
        let served = disks.iter().zip(uris).map(|((name, size), uri)| Export { name: name.clone(), uri, size: *size });
        let exports: Vec<_> = served.collect();
        shown.set_uris(exports.iter().map(|export| (export.name.clone(), export.uri.clone())).collect());
        self.disks = disks;
        events(ProtectEvent::Ready { exports });
    }

    fn notice(&mut self, shown: &dyn Shown, notice: &Notice, events: &mut dyn FnMut(ProtectEvent)) {
        match notice {
            Notice::Filter(Event::PointDurable { lsn }) => {
                shown.point(*lsn).into_iter().for_each(|point| events(ProtectEvent::Point { point }));
            }
            Notice::Filter(Event::State { to, .. }) => self.state(shown, shown.state_of(*to), None, events),
            // Why a thread ended is told with the state.
            Notice::Filter(Event::Detached(why)) if *why != Detached::Stuck(Stuck::Ended) => {
                let reason = format!(
                    "replication is out of the guests' path ({why}): the disks are served on, and everything is compared once it is \
                     back"
                );
                self.state(shown, State::Detached, Some(reason), events);
            }
            Notice::Filter(Event::Log(trust)) => self.log(shown, *trust, events),
            Notice::Filter(Event::GapBegan { reason, .. }) => {
                let reason = format!("writes are not recorded, only which blocks they touch: {}", reason.as_str());
                self.state(shown, shown.state_of(capture::State::Tracking), Some(reason), events);
            }
            Notice::Filter(Event::RpoViolated { rpo_ns }) => {
                let age = rpo_ns.map_or("nothing since the start can be restored yet".to_owned(), |age| {
                    format!("the last restorable record is {} old", human::span(Duration::from_nanos(age)))
                });
                self.state(shown, shown.state(), Some(format!("the RPO is not held: {age}")), events);
            }
            Notice::AcknowledgedLost { from, to } => {
                let reason = format!(
                    "the replica lost acknowledged data, LSN {from} to {to}: everything is compared with it, and nothing from \
                     there to the end of that can be restored"
                );
                self.state(shown, shown.state(), Some(reason), events);
            }
            Notice::ReplicaFailed(_) => self.state(shown, State::ReplicaLost, None, events),
            Notice::IndexTrouble(why) => {
                let reason = format!(
                    "the journal's index cannot be kept in order ({why}): nothing is lost, but opening a moment may be slow"
                );
                self.state(shown, shown.state(), Some(reason), events);
            }
            Notice::History(history) => events(ProtectEvent::History { history: history.clone() }),
            _ => {}
        }
    }

    /// The state, if it is another one or there is something to say about it.
    pub(super) fn state(
        &mut self,
        shown: &dyn Shown,
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
        let lacks = without_room.and_then(|_| shown.lacks());
        let no_room = |what: &str| {
            let amounts = lacks.map(|lacks| format!(" ({})", human::lack(&lacks))).unwrap_or_default();
            let why = shown.history_problem().map(|problem| format!("; {problem}")).unwrap_or_default();
            format!(
                "the replica's {what}{amounts}: the disks are served on, and it goes on by itself once there is room{why}"
            )
        };
        let lost = |why: String| format!("{why}; the disks are served on, a restart takes the protection up again");
        let failed =
            || matches!(state, State::ReplicaLost | State::Detached).then(|| shown.failure()).flatten().map(lost);
        let reason = reason.or_else(|| without_room.map(no_room)).or_else(failed);
        events(ProtectEvent::State { state, reason, lacks });
    }

    /// Whether a crash now would be a matter of a few extents or of everything.
    fn log(&mut self, shown: &dyn Shown, trust: LogTrust, events: &mut dyn FnMut(ProtectEvent)) {
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
        self.state(shown, shown.state(), Some(reason), events);
    }

    /// Gaps that ended since the last look.
    pub(super) fn gaps(&mut self, shown: &dyn Shown, events: &mut dyn FnMut(ProtectEvent)) {
        let new = shown.gaps_after(self.gaps);
        self.gaps += new.len();
        new.into_iter().for_each(|gap| events(ProtectEvent::Gap { gap }));
    }
}
