//! Watching over a replica that is being protected: how old its history is, when a long-term point is due, when history is to be
//! merged.

use super::retain::{Scope, journal_bytes};
use super::{Host, lock};
use crate::report::{History, Limit, Problem};
use cdp_core::frame::PointKinds;
use cdp_core::journal::WhenFull;
use cdp_core::journal::{Arrival, LayerInfo, Policy};
use cdp_core::policy::retention::{self as policy, Reason};
use cdp_core::policy::room;
use cdp_core::replica::Replica;
use cdp_core::types::Lsn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest between two looks.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// The least.
const LOOK_MIN: Duration = Duration::from_millis(25);
/// The longest while there is little room, or the journal is near its bound.
const LOOK_NEAR: Duration = Duration::from_millis(25);
/// How long it is left alone after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// The same where room was lacking: somebody may make some at any time.
const RETRY_ROOM: Duration = Duration::from_secs(2);
/// Nothing is merged for room before it was announced for so long: whoever listens has heard it.
const ANNOUNCED_FOR: Duration = Duration::from_millis(400);
/// The growth of the journal is a mean over so long, or an eighth of the window: what is shorter is a burst.
const GROWTH_OVER: Duration = Duration::from_secs(60);

/// Watches until it is told to stop.
pub struct Watch {
    host: Arc<Host>,
    stop: Arc<AtomicBool>,
    /// When elapsed time was last written down.
    noted: Instant,
    /// A failure is not tried again before.
    not_before: Option<Instant>,
    /// What is known to limit history, and since when that is announced.
    announced: Option<(Limit, Instant)>,
    growth: Growth,
}

/// How fast the journal grows: a mean that forgets.
struct Growth {
    since: Instant,
    last: Instant,
    bytes_per_s: f64,
}

impl Growth {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, last: now, bytes_per_s: 0.0 }
    }

    /// Takes the present rate; gives the mean, once it is one.
    fn take(&mut self, bytes_per_s: u64, over: Duration) -> Option<u64> {
        let part = (self.last.elapsed().as_secs_f64() / over.as_secs_f64()).min(1.0);
        self.last = Instant::now();
        self.bytes_per_s += (bytes_per_s as f64 - self.bytes_per_s) * part;
        (self.since.elapsed() >= over).then_some(self.bytes_per_s as u64)
    }
}

impl Watch {
    /// Of a host that has a live protection.
    #[must_use]
    pub fn new(host: &Arc<Host>, stop: &Arc<AtomicBool>) -> Self {
        let (host, stop) = (Arc::clone(host), Arc::clone(stop));
        Self { host, stop, noted: Instant::now(), not_before: None, announced: None, growth: Growth::new() }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs to the end; `cut` is called when it shows that history will be shorter than the window, and when it shows that it will not.
    pub fn run(mut self, cut: &dyn Fn(History)) {
        while !self.is_over() {
            let policy = self.host.replica().manifest().policy;
            let every = Duration::from_millis(policy::arrival_ms(&policy));
            let history = self.host.history();
            self.announce(&history, cut);
            if self.not_before.is_none_or(|at| at <= Instant::now()) {
                let done = self.look(&policy, every);
                *lock(&self.host.retained.problem) = done.as_ref().err().map(|problem| problem.message.clone());
                let retry = |problem: &Problem| if problem.code == "no-space" { RETRY_ROOM } else { RETRY };
                self.not_before = done.err().map(|problem| Instant::now() + retry(&problem));
            }
            let over = Duration::from_millis(policy.window_ms / 8).min(GROWTH_OVER);
            let growth = self.host.live().and_then(|live| self.growth.take(live.stored_bytes_per_s(), over));
            *lock(&self.host.retained.growth) = growth;
            let near = history.room_bytes.is_some();
            let rest = (every / 4).clamp(LOOK_MIN, if near { LOOK_NEAR } else { LOOK_MAX });
            self.wait(rest, &|| self.host.is_near_bound());
        }
    }

    /// Says what limits history, if that is something else than what was said last.
    fn announce(&mut self, history: &History, cut: &dyn Fn(History)) {
        let said = self.announced.map(|(limit, _)| limit);
        if history.limit == said {
            return;
        }
        self.announced = history.limit.map(|limit| (limit, Instant::now()));
        cut(history.clone());
    }

    fn look(&mut self, policy: &Policy, every: Duration) -> Result<(), Problem> {
        if self.noted.elapsed() >= every {
            self.note(policy)?;
        }
        let urgent = || self.host.is_urgent();
        let pace = |worked: Duration| {
            if !urgent() {
                self.wait(worked, &urgent);
            }
            !self.is_over()
        };
        let announced =
            self.announced.is_some_and(|(limit, since)| limit.is_room() && since.elapsed() >= ANNOUNCED_FOR);
        let scope = if announced { Scope::WithRoom } else { Scope::Worthwhile };
        self.host.retain(scope, &pace).map(drop)
    }

    /// Sleeps until it is time, or a little if there is a reason to go on; in pieces, so that the end is not held up.
    fn wait(&self, time: Duration, reason: &dyn Fn() -> bool) {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_MIN));
            if reason() {
                return;
            }
        }
    }

    /// Writes down how much time has passed and what is durable now, begins a new segment, and makes and drops layers.
    fn note(&mut self, policy: &Policy) -> Result<(), Problem> {
        let passed = u64::try_from(self.noted.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (durable, past) = {
            let replica = self.host.replica();
            let trunk = replica.catalogue().trunk();
            let durable = trunk.map_or(Lsn::ZERO, |trunk| super::safe(replica.catalogue(), trunk.timeline));
            (durable, replica.manifest().retention.clone())
        };
        let elapsed_ms = past.elapsed_ms.saturating_add(passed);
        let last = past.layers.last().map_or(0, |layer| layer.elapsed_ms);
        let wanted = policy.long_term_ms > 0 && elapsed_ms - last.min(elapsed_ms) >= policy.long_term_ms;
        let layer = wanted.then(|| self.long_term_point(elapsed_ms)).flatten();
        let keep_ms = policy.keep_ms;
        self.host.change(Box::new(move |writer| {
            writer.roll();
            writer.edit(|manifest| {
                let past = &mut manifest.retention;
                past.elapsed_ms = elapsed_ms;
                if past.arrivals.last().is_none_or(|last| last.lsn < durable) {
                    past.arrivals.push(Arrival { elapsed_ms, lsn: durable });
                }
                past.layers.extend(layer);
                past.layers.retain(|layer| elapsed_ms - layer.elapsed_ms.min(elapsed_ms) < keep_ms);
            })
        }))?;
        self.noted += Duration::from_millis(passed);
        Ok(())
    }

    /// A long-term point now; none where this moment cannot be restored: then it is made a little later.
    fn long_term_point(&self, elapsed_ms: u64) -> Option<LayerInfo> {
        let kinds = PointKinds { long: true, ..PointKinds::default() };
        let lsn = self.host.live()?.mark(kinds, "").ok()?;
        let replica = self.host.replica();
        let timeline = replica.catalogue().trunk()?.timeline;
        Some(LayerInfo { timeline, lsn, elapsed_ms })
    }
}

impl From<room::Limit> for Limit {
    fn from(limit: room::Limit) -> Self {
        match limit {
            room::Limit::Media => Self::Room,
            room::Limit::Quota => Self::Quota,
        }
    }
}

impl Host {
    /// Whether the journal has taken three quarters of its bound.
    fn is_near_bound(&self) -> bool {
        let replica = self.replica();
        let bound = replica.manifest().policy.max_bytes;
        bound > 0 && all_bytes(&replica) > bound / 4 * 3
    }

    /// Whether merging waits for nothing: the journal is above its bound or soon will be, or there is hardly any room.
    pub(super) fn is_urgent(&self) -> bool {
        let growth = self.live().map_or(0, |live| live.stored_bytes_per_s());
        let above = {
            let replica = self.replica();
            let bound = replica.manifest().policy.max_bytes;
            bound > 0 && {
                let (sealed, open_bytes) = journal_bytes(&replica);
                policy::Journal { sealed: &sealed, open_bytes, bytes_per_s: growth }.foreseen(bound) > bound
            }
        };
        above || self.room().is_some_and(|room| room.is_low())
    }

    /// How far back history goes, and will.
    #[must_use]
    pub fn history(&self) -> History {
        // Before the lock of the replica: what is held now is asked for too.
        let room = self.room();
        let problem = self.trouble(room.as_ref());
        let replica = self.replica();
        let manifest = replica.manifest();
        let (policy, past) = (&manifest.policy, &manifest.retention);
        let room = room.filter(|_| policy.when_full == WhenFull::Shorten);
        let by_policy = (policy.max_bytes > 0).then_some((policy.max_bytes, Limit::MaxBytes));
        let by_room = room.map(|room| (room.bound(all_bytes(&replica)), Limit::from(room.limit)));
        let bound = by_policy.into_iter().chain(by_room).min_by_key(|(bytes, _)| *bytes);
        let growth = *lock(&self.retained.growth);
        let reach = |bytes: u64, per_s: u64| policy::reach_ms(&Policy { max_bytes: bytes.max(1), ..*policy }, per_s);
        let forecast_ms = growth.zip(bound).map(|(per_s, (bytes, _))| reach(bytes, per_s));
        let short = forecast_ms.is_some_and(|ms| ms < policy.window_ms);
        let near = room.filter(room::Room::is_near);
        let limit = bound.filter(|_| short).map(|(_, limit)| limit).or(near.map(|room| room.limit.into()));
        let oldest = manifest.retention.oldest.map(|oldest| oldest.lsn);
        let cut_by = lock(&self.retained.cut_at).filter(|(lsn, _)| Some(*lsn) == oldest);
        let cut_by = cut_by.and_then(|(_, reason)| match reason {
            Reason::Window => None,
            Reason::Bytes => Some(Limit::MaxBytes),
            Reason::Room => Some(Limit::Room),
            Reason::Quota => Some(Limit::Quota),
        });
        History {
            window_ms: policy.window_ms,
            kept_ms: policy::age_ms(past),
            forecast_ms,
            limit,
            room_bytes: near.map(|room| room.free),
            cut: cut_by.is_some(),
            cut_by,
            problem,
        }
    }
}

/// All bytes of the journal.
pub(super) fn all_bytes(replica: &Replica) -> u64 {
    let (sealed, open) = journal_bytes(replica);
    sealed.iter().map(|segment| segment.bytes).sum::<u64>() + open
}
