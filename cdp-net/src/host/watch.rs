//! Watching over a replica that is being protected: how old its history is, when a long-term point is due, when history is to be
//! merged.

use super::retain::journal_bytes;
use super::{Host, lock};
use crate::report::{History, Problem};
use cdp_core::frame::PointKinds;
use cdp_core::journal::{Arrival, LayerInfo, Policy};
use cdp_core::policy::retention as policy;
use cdp_core::types::Lsn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest between two looks.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// The least.
const LOOK_MIN: Duration = Duration::from_millis(25);
/// How long it is left alone after a failure.
const RETRY: Duration = Duration::from_secs(10);
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
    announced: bool,
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
        Self { host, stop, noted: Instant::now(), not_before: None, announced: false, growth: Growth::new() }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs to the end; `cut` is called when it shows that the bound will cut the window, and when it shows that it will not.
    pub fn run(mut self, cut: &dyn Fn(History)) {
        while !self.is_over() {
            let policy = self.host.replica().manifest().policy;
            let every = Duration::from_millis(policy::arrival_ms(&policy));
            if self.not_before.is_none_or(|at| at <= Instant::now()) {
                let done = self.look(&policy, every);
                *lock(&self.host.retained.problem) = done.as_ref().err().map(|problem| problem.message.clone());
                self.not_before = done.is_err().then(|| Instant::now() + RETRY);
            }
            let over = Duration::from_millis(policy.window_ms / 8).min(GROWTH_OVER);
            let growth = self.host.live().and_then(|live| self.growth.take(live.stored_bytes_per_s(), over));
            *lock(&self.host.retained.growth) = growth;
            let history = self.host.history();
            if history.cut_forecast() != self.announced {
                self.announced = !self.announced;
                cut(history);
            }
            self.wait((every / 4).clamp(LOOK_MIN, LOOK_MAX));
        }
    }

    fn look(&mut self, policy: &Policy, every: Duration) -> Result<(), Problem> {
        if self.noted.elapsed() >= every {
            self.note(policy)?;
        }
        let urgent = || policy.max_bytes > 0 && self.host.is_over_bound();
        let pace = |worked: Duration| {
            if !urgent() {
                self.wait(worked);
            }
            !self.is_over()
        };
        self.host.retain(false, &pace).map(drop)
    }

    /// Sleeps in pieces, so that the end is not held up.
    fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_MIN));
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

impl Host {
    fn is_over_bound(&self) -> bool {
        let replica = self.replica();
        let (sealed, open) = journal_bytes(&replica);
        let bytes = sealed.iter().map(|segment| segment.bytes).sum::<u64>() + open;
        bytes > replica.manifest().policy.max_bytes
    }

    /// How far back history goes, and will.
    pub(super) fn history(&self) -> History {
        let replica = self.replica();
        let manifest = replica.manifest();
        let (policy, past) = (&manifest.policy, &manifest.retention);
        let kept_ms = policy::age_ms(past);
        let growth = lock(&self.retained.growth).filter(|_| policy.max_bytes > 0);
        let forecast_ms = growth.map(|bytes_per_s| policy::reach_ms(policy, bytes_per_s));
        let oldest = manifest.retention.oldest.map_or(0, |oldest| oldest.lsn.0);
        let cut = oldest > 0 && self.retained.cut_at.load(Ordering::Relaxed) == oldest;
        let problem = lock(&self.retained.problem).clone();
        History { window_ms: policy.window_ms, kept_ms, forecast_ms, cut, problem }
    }
}
