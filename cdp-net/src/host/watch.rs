//! Watching over a replica that is being protected: how old its history is, when a long-term point is due, when history is to be
//! merged.

use super::retain::{Scope, journal_bytes};
use super::{Host, lock};
use crate::report::{History, Limit, Problem, ProblemClass};
use cdp_core::frame::PointKinds;
use cdp_core::journal::WhenFull;
use cdp_core::journal::{Arrival, CutBy, LayerInfo, Policy, Retention};
use cdp_core::policy::retention as policy;
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
/// Elapsed time is written down so often at least: what a crash forgets of it.
const ELAPSED_MS_MAX: u64 = 10 * 60_000;
/// The growth of the journal is a mean over so long, or an eighth of the window: what is shorter is a burst.
const GROWTH_OVER: Duration = Duration::from_secs(60);

/// Watches until it is told to stop.
pub struct Watch {
    host: Arc<Host>,
    stop: Arc<AtomicBool>,
    noted: Noted,
    /// An owner before came to an end before he noted how long he watched: that is noted at once, or the next one could not know it.
    owed: bool,
    /// A long-term point that was made and may not be in the manifest: that one is noted, and no other made, until it is.
    pending: Option<LayerInfo>,
    /// A failure is not tried again before.
    not_before: Option<Instant>,
    /// A long-term point that could not be made is not tried again before.
    point_not_before: Option<Instant>,
    /// What is known to limit history, and since when that is announced.
    announced: Option<(Limit, Instant)>,
    growth: Growth,
}

/// What elapsed was when something was last noted, in milliseconds. It goes on from what an earlier owner noted: many short runs are as
/// long as one.
#[derive(Clone, Copy, Debug)]
struct Noted {
    /// What was durable when.
    arrivals: u64,
    /// A long-term point.
    layer: u64,
    /// Elapsed itself.
    elapsed: u64,
}

impl Noted {
    fn of(past: &Retention) -> Self {
        let arrivals = past.arrivals.last().map_or(0, |last| last.elapsed_ms);
        let layer = past.layers.last().map_or(0, |last| last.elapsed_ms);
        Self { arrivals, layer, elapsed: past.elapsed_ms }
    }
}

/// The time that owners have watched: it goes on from what the manifest says, and never by a clock that can be set.
#[derive(Debug)]
pub(super) struct Elapsed {
    before_ms: u64,
    since: Instant,
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
        let noted = Noted::of(&host.replica().manifest().retention);
        let before_ms = host.retained.watched_ms.max(noted.elapsed);
        host.retained.elapsed.get_or_init(|| Elapsed { before_ms, since: Instant::now() });
        let (host, stop) = (Arc::clone(host), Arc::clone(stop));
        Self {
            host,
            stop,
            noted,
            owed: before_ms > noted.elapsed,
            pending: None,
            not_before: None,
            point_not_before: None,
            announced: None,
            growth: Growth::new(),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs to the end; `cut` is called when it shows that history will be shorter than the window, and when it shows that it will not.
    pub fn run(mut self, cut: &dyn Fn(History)) {
        while !self.is_over() {
            let policy = self.host.replica().manifest().policy;
            let long_term = Some(policy.long_term_ms).filter(|ms| *ms > 0);
            let every = long_term.into_iter().chain([policy::note_ms(&policy)]).min().map(Duration::from_millis);
            let history = self.host.history();
            self.announce(&history, cut);
            if self.not_before.is_none_or(|at| at <= Instant::now()) {
                let done = self.look(&policy);
                *lock(&self.host.retained.problem) = done.as_ref().err().map(|problem| problem.message.clone());
                let retry = |problem: &Problem| if problem.code == "no-space" { RETRY_ROOM } else { RETRY };
                self.not_before = done.err().map(|problem| Instant::now() + retry(&problem));
            }
            let over = Duration::from_millis(policy.window_ms / 8).min(GROWTH_OVER);
            let growth = self.host.live().and_then(|live| self.growth.take(live.stored_bytes_per_s(), over));
            *lock(&self.host.retained.growth) = growth;
            let near = history.room_bytes.is_some();
            let rest = (every.unwrap_or(LOOK_MAX) / 4).clamp(LOOK_MIN, if near { LOOK_NEAR } else { LOOK_MAX });
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

    fn look(&mut self, policy: &Policy) -> Result<(), Problem> {
        let elapsed_ms = self.host.elapsed_ms();
        self.host.arrive();
        self.note(policy, elapsed_ms)?;
        let urgent = || self.host.is_urgent();
        let pace = |worked: Duration| {
            self.host.arrive();
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
            self.host.arrive();
            if reason() {
                return;
            }
        }
    }

    /// Writes down what is due of how much time has passed: what was durable when, with which the journal goes on in a new segment, and
    /// which layers come and go.
    fn note(&mut self, policy: &Policy, elapsed_ms: u64) -> Result<(), Problem> {
        let since = |then: u64| elapsed_ms.saturating_sub(then);
        let arrived = self.owed || since(self.noted.arrivals) >= policy::note_ms(policy);
        let wanted = policy.long_term_ms > 0 && since(self.noted.layer) >= policy.long_term_ms;
        if wanted && self.pending.is_none() {
            self.pending = self.long_term_point(elapsed_ms);
        }
        let layer = self.pending;
        if !arrived && layer.is_none() && since(self.noted.elapsed) < ELAPSED_MS_MAX {
            return Ok(());
        }
        let policy = *policy;
        // Where it fails, what it notes may be stored later, or not: nothing is merged before that is known, and noting it again changes
        // nothing.
        let write_down = self.host.write_down(elapsed_ms);
        self.host.change_for_merge(Box::new(move |writer| {
            if arrived && !policy::is_waiting(&policy, &writer.manifest().retention) {
                writer.roll();
            }
            writer.edit(|manifest| {
                let past = &mut manifest.retention;
                write_down(past);
                layer.into_iter().for_each(|layer| past.add_layer(layer));
                past.expire_layers(policy.keep_ms);
            })
        }))?;
        self.noted.elapsed = elapsed_ms;
        self.owed = false;
        if arrived {
            self.noted.arrivals = elapsed_ms;
        }
        if let Some(layer) = self.pending.take() {
            self.noted.layer = layer.elapsed_ms;
        }
        Ok(())
    }

    /// A long-term point now; none where this moment cannot be restored: then it is made a little later.
    fn long_term_point(&mut self, elapsed_ms: u64) -> Option<LayerInfo> {
        if self.point_not_before.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let kinds = PointKinds { long: true, ..PointKinds::default() };
        let made = self.host.live()?.mark(kinds, "");
        // What is refused leaves nothing; else a mark was made that cannot be restored, and those should be few.
        let retry = |problem: &Problem| if problem.class == ProblemClass::Refused { RETRY_ROOM } else { RETRY };
        self.point_not_before = made.as_ref().err().map(|problem| Instant::now() + retry(problem));
        let timeline = self.host.replica().catalogue().trunk()?.timeline;
        Some(LayerInfo { timeline, lsn: made.ok()?, elapsed_ms })
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
    /// How long owners have watched over the replica by now, in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.watched_ms().unwrap_or_else(|| self.replica().manifest().retention.elapsed_ms)
    }

    /// The same where somebody watches: else no time passes.
    fn watched_ms(&self) -> Option<u64> {
        self.retained.elapsed.get().map(|elapsed| {
            let now = u64::try_from(elapsed.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            elapsed.before_ms.saturating_add(now)
        })
    }

    /// Looks what is durable now. That is kept in memory until the manifest is written anyway: a crash forgets of it what it forgets of
    /// elapsed time.
    pub(crate) fn arrive(&self) {
        let last = lock(&self.retained.arrived).last().map(|last| last.elapsed_ms);
        if last.is_some_and(|last| self.elapsed_ms() < last.saturating_add(policy::ARRIVAL_MS)) {
            return;
        }
        let lsn = {
            let replica = self.replica();
            let trunk = replica.catalogue().trunk();
            trunk.map_or(Lsn::ZERO, |trunk| super::safe(replica.catalogue(), trunk.timeline))
        };
        // After that: what is noted later than it came is kept longer, and never shorter.
        let elapsed_ms = self.elapsed_ms();
        if lsn > Lsn::ZERO {
            Arrival { elapsed_ms, lsn }.join(&mut lock(&self.retained.arrived));
        }
    }

    /// What tells a manifest how much time has passed, and what was durable when.
    pub(crate) fn write_down(&self, elapsed_ms: u64) -> impl FnOnce(&mut Retention) + Send + use<> {
        let arrived = lock(&self.retained.arrived).clone();
        move |past| {
            past.elapsed_ms = past.elapsed_ms.max(elapsed_ms);
            past.arrive(&arrived);
        }
    }

    /// The past by a manifest and by what that was not told yet; layers are not in it.
    pub(super) fn past(&self, told: &Retention) -> Retention {
        let (oldest, arrivals) = (told.oldest, told.arrivals.clone());
        let mut past = Retention { elapsed_ms: told.elapsed_ms, oldest, arrivals, layers: Vec::new() };
        // What is in it already is passed over: when it was told of is no matter. Who asks has the lock of the replica.
        self.write_down(self.watched_ms().unwrap_or(0))(&mut past);
        past
    }

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
        let (problem, elapsed_ms) = (self.trouble(room.as_ref()), self.elapsed_ms());
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
        let oldest = manifest.oldest().map(|oldest| oldest.lsn);
        let cut_by = manifest.cut.filter(|cut| Some(cut.lsn) == oldest).map(|cut| match cut.by {
            CutBy::Bytes => Limit::MaxBytes,
            CutBy::Room => Limit::Room,
            CutBy::Quota => Limit::Quota,
        });
        History {
            window_ms: policy.window_ms,
            kept_ms: policy::age_ms(past, elapsed_ms),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Change, IdleStore, Store, load_idle};
    use crate::protect::{ProtectOptions, Protector, SourceOptions};
    use crate::report::{DiskChanged, Status};
    use cdp_core::journal::{Manifest, Snapshot};
    use cdp_core::media::{Disk, Storage};
    use cdp_core::trust::KeyHolder;
    use std::path::Path;
    use std::sync::{Mutex, OnceLock, Weak};

    /// A store that, while it fails, makes changes and says that it did not, or keeps them until it is asked again.
    struct Unsure {
        store: IdleStore,
        fails: Mutex<Option<Fails>>,
        kept: Mutex<Vec<Change>>,
        host: OnceLock<Weak<Host>>,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Fails {
        Stored,
        Later,
    }

    impl Store for Arc<Unsure> {
        fn change(&self, change: Change) -> Result<(Manifest, Snapshot), Problem> {
            let failed = Problem::new(ProblemClass::Failed, "no-space", "the change is kept in mind");
            match *self.fails.lock().unwrap() {
                Some(Fails::Stored) => {
                    let (manifest, snapshot) = self.store.change(change)?;
                    // As whoever writes the journal does when it is stored.
                    let host = self.host.get().and_then(Weak::upgrade).unwrap();
                    host.replica_mut().update(Some(&manifest), snapshot).unwrap();
                    Err(failed)
                }
                Some(Fails::Later) => {
                    self.kept.lock().unwrap().push(change);
                    Err(failed)
                }
                None => {
                    for kept in std::mem::take(&mut *self.kept.lock().unwrap()) {
                        self.store.change(kept)?;
                    }
                    self.store.change(change)
                }
            }
        }
    }

    /// A protection whose marks are all durable at once.
    struct Marking(Mutex<u64>);

    impl crate::host::Live for Marking {
        fn mark(&self, _: PointKinds, _: &str) -> Result<Lsn, Problem> {
            let mut made = self.0.lock().unwrap();
            *made += 1;
            Ok(Lsn(1_000_000 + *made))
        }
        fn stored_bytes_per_s(&self) -> u64 {
            0
        }
        fn segment_bytes(&self) -> u64 {
            1 << 20
        }
        fn unrecorded(&self) -> Option<(crate::report::State, Lsn)> {
            None
        }
        fn describe(&self, _: &mut Status) {}
        fn add_disk(&self, _: &str, _: &Path) -> Result<DiskChanged, Problem> {
            unreachable!("no disks here")
        }
        fn remove_disk(&self, _: &str) -> Result<DiskChanged, Problem> {
            unreachable!("no disks here")
        }
        fn resize_disk(&self, _: &str, _: Option<u64>, _: bool) -> Result<DiskChanged, Problem> {
            unreachable!("no disks here")
        }
        fn policy_changed(&self, _: &Policy) {}
    }

    struct Scene {
        watch: Watch,
        store: Arc<Unsure>,
        live: Arc<Marking>,
        _directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (path, replica) = (directory.path().join("disk.img"), directory.path().join("replica"));
            std::fs::write(&path, vec![7; 8192]).unwrap();
            let options = ProtectOptions::new(vec![SourceOptions { name: "disk".to_owned(), path }], replica.clone());
            let protector = Protector::start(&options, |_| {}).unwrap();
            assert!(protector.stop(Duration::from_secs(20), &|| false).manifest_stored);
            let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
            let loaded = load_idle(&storage, &KeyHolder::default()).unwrap();
            let store = IdleStore::new(storage, Arc::clone(loaded.keys()));
            let store =
                Arc::new(Unsure { store, fails: Mutex::default(), kept: Mutex::default(), host: OnceLock::new() });
            let host = Host::new(loaded, Box::new(Arc::clone(&store)));
            store.host.set(Arc::downgrade(&host)).unwrap();
            let live = Arc::new(Marking(Mutex::new(0)));
            host.set_live(Some(Arc::clone(&live) as _));
            let watch = Watch::new(&host, &Arc::default());
            Self { watch, store, live, _directory: directory }
        }

        fn past(&self) -> Retention {
            self.watch.host.replica().manifest().retention.clone()
        }
    }

    /// Somebody who reads everything may have been stopped in the middle: he is given up, and told, when he lets go.
    #[test]
    fn who_reads_everything_keeps_retention_out_for_half_a_window() {
        let scene = Scene::new();
        let host = &scene.watch.host;
        let window_ms = host.replica().manifest().policy.window_ms;
        let since = |ms| *lock(&host.retained.kept_out) = Instant::now().checked_sub(Duration::from_millis(ms));
        let changes = || host.changing(Scope::Worthwhile, &|_| true).is_some();
        assert!(changes());
        let reader: Box<dyn std::any::Any + Send> = Box::new(host.holds.pause());
        assert!(!changes(), "nothing is urgent");
        since(window_ms.max(1_200_000) / 2 - 5_000);
        assert!(!changes() && crate::host::holds::was_held(reader.as_ref()));
        since(window_ms.max(1_200_000) / 2 + 1);
        // The next look has it.
        changes();
        assert!(changes() && !crate::host::holds::was_held(reader.as_ref()));
        drop(reader);
        // The next one has as long as the first.
        let next: Box<dyn std::any::Any + Send> = Box::new(host.holds.pause());
        assert!(!changes() && crate::host::holds::was_held(next.as_ref()));
    }

    #[test]
    fn what_a_failed_note_leaves_to_be_stored_later_is_counted_once() {
        for fails in [Fails::Stored, Fails::Later] {
            let mut scene = Scene::new();
            let begun = scene.past().elapsed_ms;
            let policy = Policy { window_ms: 16_000, long_term_ms: 1000, ..Policy::default() };
            *scene.store.fails.lock().unwrap() = Some(fails);
            for passed in [1000, 1100, 1900, 2500] {
                scene.watch.note(&policy, begun + passed).unwrap_err();
            }
            assert_eq!(*scene.live.0.lock().unwrap(), 1, "a point with each try");
            *scene.store.fails.lock().unwrap() = None;
            scene.watch.note(&policy, begun + 2600).unwrap();
            let past = scene.past();
            assert_eq!(past.elapsed_ms, begun + 2600, "time is counted twice");
            let layers: Vec<_> = past.layers.iter().map(|layer| (layer.lsn.0, layer.elapsed_ms)).collect();
            assert_eq!(layers, [(1_000_001, begun + 1000)]);
            assert!(past.arrivals.windows(2).all(|pair| pair[0].lsn < pair[1].lsn), "{past:?}");
            scene.watch.note(&policy, begun + 2700).unwrap();
            assert_eq!(scene.past().layers.len(), 2, "it goes on");
        }
    }
}
