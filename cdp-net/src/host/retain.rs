//! Retention at work: what is past the window or the bound goes into the bases, and what nothing holds any more goes.
//!
//! One at a time in a process, piece by piece, at most half of the time, so that guests' writes have the other half of the disk; without
//! that where the journal is above its bound. No lock is held while anything is read or written but the one that keeps
//! readers of everything out.

use super::brake::{Relief, Relieving};
use super::room::{Above, Weights};
use super::watch::Elapsed;
use super::{Change, Host, document, lock};
use crate::clock;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{Arrival, CutBy, CutInfo, KeptInfo, Manifest, Retention, StampedMoment};
use cdp_core::media::Storage;
use cdp_core::policy::retention::{self as policy, Due, Reason};
use cdp_core::policy::room::{Shorten, Trial};
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::{self, Merge, MergeError};
use cdp_core::replica::retention::{self, Held};
use cdp_core::replica::{
    JOURNAL_DIRECTORY, Replica, ReplicaError, check_bases, is_unseeded, merge_limit, remove_bases_but,
};
use cdp_core::types::{Lsn, Timeline};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::{Duration, Instant};

/// Bytes that are merged in one piece, about: between two syncs of what is kept.
const PIECE: u64 = 8 << 20;
/// How often it is looked whether a pause has ended.
const PAUSE_LOOK: Duration = Duration::from_millis(20);

/// What may be kept for readers alone where the journal has no bound, in bytes; else a quarter of that.
const FOR_READERS_MAX: u64 = 16 << 30;

/// How long it is waited for files that were removed to be gone, and how often that is looked at.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);
const REMOVAL_LOOK: Duration = Duration::from_millis(5);

/// What is merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// What is past the window or the bound, when it is worth its while.
    Worthwhile,
    /// That, and what lack of room asks for.
    WithRoom,
    /// All that is past the window or the bound.
    AtOnce,
}

/// What there is before a merge for room, and the segments that go with it: their numbers and bytes.
struct Before {
    account: super::room::Account,
    going: Vec<(u64, u64)>,
}

/// What waits, and says whether to go on.
pub(super) type Pace<'a> = &'a dyn Fn(Duration) -> bool;

/// The next merge.
struct Plan {
    to: StampedMoment,
    keep: Option<KeptInfo>,
    /// The manifest names it already: it was cut off.
    begun: bool,
    reason: Option<Reason>,
}

/// What retention has done, for status and for who asks.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// One at a time.
    pub(super) working: Mutex<()>,
    /// Why it cannot go on, if so.
    pub(super) problem: Mutex<Option<String>>,
    /// What was held while history was merged for room, and what came of it.
    pub(super) trial: Mutex<Option<(Held, Trial)>>,
    /// What was decided when there was last hardly any room.
    pub(super) shortage: Mutex<Option<Shorten>>,
    /// Whether a merge makes room.
    pub(super) relief: Relief,
    /// What kept moments take.
    pub(super) weights: Mutex<Weights>,
    /// How far above its quota the replica is.
    pub(super) above: Mutex<Above>,
    /// A change found no room and is stored later, by itself: until then nobody knows what the manifest will say.
    unstored: AtomicBool,
    /// How fast the journal grows, in bytes a second, over a while; none while that is not known.
    pub(super) growth: Mutex<Option<u64>>,
    /// How long owners before watched, as it was found, in milliseconds.
    pub(super) watched_ms: u64,
    /// Since when who reads everything keeps it out.
    pub(super) kept_out: Mutex<Option<Instant>>,
    /// Set by who watches.
    pub(super) elapsed: OnceLock<Elapsed>,
    /// What was durable when, of late, with what the manifest was not told yet. Bound: that of the manifest's list.
    pub(super) arrived: Mutex<Vec<Arrival>>,
}

impl Retained {
    /// Of a replica as it is found.
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self { watched_ms: policy::watched_ms(manifest), ..Self::default() }
    }
}

/// What there was no room in, where that is the reason of a merge.
fn cut_by(reason: Reason) -> Option<CutBy> {
    match reason {
        Reason::Window => None,
        Reason::Bytes => Some(CutBy::Bytes),
        Reason::Room => Some(CutBy::Room),
        Reason::Quota => Some(CutBy::Quota),
    }
}

fn failed(error: &MergeError) -> Problem {
    let code = if error.is_no_space() { "no-space" } else { "retention" };
    Problem::new(ProblemClass::Failed, code, error.to_string())
}

impl Host {
    /// Merges what is due; whether it came to the end. Who watches over a protection waits neither for who merges already nor for who
    /// reads everything: he has other things to do, and comes again.
    pub(super) fn retain(&self, scope: Scope, pace: Pace<'_>) -> Result<bool, Problem> {
        let _working = match self.retained.working.try_lock() {
            Ok(working) => working,
            Err(TryLockError::WouldBlock) if scope != Scope::AtOnce => return Ok(false),
            Err(_) => lock(&self.retained.working),
        };
        self.catch_up()?;
        if !self.release(scope, pace)? {
            return Ok(false);
        }
        while let Some(plan) = self.next_merge(scope)? {
            if !pace(Duration::ZERO) {
                return Ok(false);
            }
            // Before anything is hidden, as the store.
            self.check_bases()?;
            self.room_for_piece(PIECE)?;
            self.make_store(&plan)?;
            if !self.settle(&plan) {
                continue;
            }
            let before = self.before(&plan);
            let relieving = self.retained.relief.begin();
            let merged = self.merge(&plan, &relieving, scope, pace);
            drop(relieving);
            match merged {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // Readers do not keep retention, and so the guest's writes, from having room.
                Err(problem) if problem.code == "no-space" && self.give_up(0, scope, pace) => {}
                Err(problem) => return Err(problem),
            }
            while self.give_up(self.for_readers_max(), scope, pace) {}
            if !self.release(scope, pace)? {
                return Ok(false);
            }
            if let Some(before) = before {
                self.weigh_up(&before);
            }
        }
        *lock(&self.retained.kept_out) = None;
        Ok(true)
    }

    /// What a merge for room takes away, and what there is before.
    fn before(&self, plan: &Plan) -> Option<Before> {
        if !matches!(plan.reason, Some(Reason::Room | Reason::Quota)) {
            return None;
        }
        let going = |manifest: &Manifest| {
            let summaries = manifest.segments.iter().filter_map(|segment| Some((segment.number, segment.summary()?)));
            let whole = summaries.filter(|(_, summary)| summary.last_lsn <= plan.to.lsn);
            whole.map(|(number, summary)| (number, summary.file_bytes)).collect()
        };
        let going = going(self.replica().manifest());
        Some(Before { account: self.account(), going })
    }

    /// Waits until the files are gone that a merge for room gave up, and says whether it was worth it.
    fn weigh_up(&self, before: &Before) {
        let storage = self.storage();
        let until = Instant::now() + REMOVAL_PATIENCE;
        let name = |number: u64| format!("{JOURNAL_DIRECTORY}/{}", cdp_core::journal::segment_name(number));
        let is_there = |(number, _): &(u64, u64)| storage.length(&name(*number)).is_ok();
        while before.going.iter().any(is_there) && Instant::now() < until && !self.is_ending() {
            std::thread::sleep(REMOVAL_LOOK);
        }
        let (was, is) = (&before.account, self.account());
        let grown = (is.base + is.kept).saturating_sub(was.base + was.kept);
        let shrunk = before.going.iter().map(|(_, bytes)| bytes).sum();
        let held = self.held_now();
        let mut tried = lock(&self.retained.trial);
        let (_, trial) = match tried.as_mut() {
            Some(known) if known.0 == held => known,
            _ => tried.insert((held, Trial::default())),
        };
        trial.add(shrunk, grown);
    }

    /// Waits until the manifest is stored that an earlier change found no room for: what is planned must not be planned twice.
    fn catch_up(&self) -> Result<(), Problem> {
        if !self.retained.unstored.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.change(Box::new(|writer| writer.manifest().generation))?;
        self.retained.unstored.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A change that merges need, now or later: where there is no room for it, nothing goes on before it is stored.
    pub(super) fn change_for_merge(&self, change: Change) -> Result<(), Problem> {
        let changed = self.change(change);
        if changed.is_err() {
            self.retained.unstored.store(true, Ordering::Relaxed);
        }
        changed
    }

    /// What pins, layers, sessions and readers hold.
    pub(super) fn held(replica: &Replica, readers: Held) -> Held {
        let manifest = replica.manifest();
        let readers = readers.into_iter().filter(|lsn| is_there(manifest, *lsn));
        retention::held(manifest).into_iter().chain(readers).collect()
    }

    fn next_merge(&self, scope: Scope) -> Result<Option<Plan>, Problem> {
        if let Some(to) = self.replica().manifest().merge {
            return Ok(Some(Plan { to, keep: None, begun: true, reason: None }));
        }
        let planned = |due: Due| {
            let readers = self.holds.plan().held();
            let replica = self.replica();
            plan(&replica, &Self::held(&replica, readers), due).map_err(|error| document::unreadable(&error))
        };
        // Who asks for it wants the policy applied to what there is.
        let live = self.live().filter(|_| scope != Scope::AtOnce);
        let growth = live.map_or(0, |live| live.stored_bytes_per_s());
        let due = {
            let replica = self.replica();
            let past = self.past(&replica.manifest().retention);
            due(replica.manifest(), &past, (unsealed_bytes(&replica), growth), scope == Scope::AtOnce)
        };
        if let Some(plan) = due.map(planned).transpose()?.flatten() {
            return Ok(Some(plan));
        }
        if scope != Scope::WithRoom {
            return Ok(None);
        }
        let Some(due) = self.due_for_room() else { return Ok(None) };
        let plan = planned(due)?;
        *lock(&self.retained.shortage) = if plan.is_none() { Some(Shorten::Nothing) } else { None };
        Ok(plan)
    }

    /// Looks whether the bases are where they are looked for: one that was removed is still open here, and can be merged into, and the
    /// manifest that says so is of files that are not there.
    pub(super) fn check_bases(&self) -> Result<(), Problem> {
        let (manifest, keys) = {
            let replica = self.replica();
            (replica.manifest().clone(), Arc::clone(replica.keys()))
        };
        check_bases(&self.storage(), &manifest, &keys).map_err(|error| document::unreadable(&error.into()))
    }

    /// Makes the store of the moment that is to be kept: before anything is hidden, because there may be no room for it.
    fn make_store(&self, plan: &Plan) -> Result<(), Problem> {
        let Some(keep) = &plan.keep else { return Ok(()) };
        let Some(timeline) = Timeline::new(identity()) else { unreachable!("an identity is never zero") };
        let manifest = self.replica().manifest().clone();
        kept::create(self.storage().as_ref(), &manifest, keep.number, timeline, clock::now())
            .map_err(|error| document::unreadable(&error.into()))
    }

    /// Has nobody given a moment any more that the merge takes; whether the plan still holds. Who wants to hold a moment waits
    /// until it is decided, and finds what is left.
    fn settle(&self, plan: &Plan) -> bool {
        if plan.begun {
            return true;
        }
        let planning = self.holds.plan();
        let mut replica = self.replica_mut();
        let held = Self::held(&replica, planning.held());
        let keep = retention::to_keep(replica.manifest(), &held, replica.catalogue());
        let stop = retention::stop(replica.manifest(), &held, plan.to.lsn);
        if stop != Some(plan.to.lsn) || keep != plan.keep {
            return false;
        }
        let kept: Vec<_> = replica.manifest().kept.iter().chain(&plan.keep).cloned().collect();
        replica.begin_at(Some(plan.to), kept);
        true
    }

    /// One merge; whether it came to its end.
    fn merge(&self, plan: &Plan, relieving: &Relieving<'_>, scope: Scope, pace: Pace<'_>) -> Result<bool, Problem> {
        let storage = self.storage();
        let changing = || {
            self.change_now().or_else(|| {
                relieving.goes_on(false);
                self.changing(scope, pace)
            })
        };
        // Nothing is opened for who cannot go on.
        if plan.begun && changing().is_none() {
            return Ok(false);
        }
        if !plan.begun {
            let (to, keep) = (plan.to, plan.keep.clone());
            let point = retention::point_at(self.replica().catalogue(), &to);
            // How old the moment is where it ends must be known when it has ended.
            let write_down = self.write_down(self.elapsed_ms());
            let cut = plan.reason.and_then(cut_by).map(|by| CutInfo { lsn: to.lsn, by });
            self.change_for_merge(Box::new(move |writer| {
                writer.edit(|manifest| {
                    write_down(&mut manifest.retention);
                    manifest.cut = cut;
                });
                retention::begin(writer, to, point, keep)
            }))?;
        } else if !self.replica().keys().is_empty() {
            // Who goes on with a merge seals with a key of its own: the first change is what has one drawn.
            self.edit(Box::new(|_| {}))?;
        }
        let mut merge = self.open_merge(&storage, plan.to)?;
        loop {
            let Some(changing) = changing() else { return Ok(false) };
            let begun = Instant::now();
            relieving.goes_on(true);
            let piece = self.room_for_piece(PIECE)?;
            if !merge.step(clock::now(), piece).map_err(|error| failed(&error))? {
                return self.end_merge(&storage, merge).map(|()| true);
            }
            drop(changing);
            if !pace(begun.elapsed()) {
                return Ok(false);
            }
        }
    }

    /// Keeps out who reads everything, unless he was first.
    fn change_now(&self) -> Option<MutexGuard<'_, ()>> {
        let changing = self.holds.change()?;
        *lock(&self.retained.kept_out) = None;
        Some(changing)
    }

    /// Whether who reads everything has kept retention out for long enough.
    fn is_out_of_patience(&self) -> bool {
        let patience = Duration::from_millis(policy::patience_ms(&self.replica().manifest().policy));
        lock(&self.retained.kept_out).get_or_insert_with(Instant::now).elapsed() >= patience
    }

    /// Keeps out who reads everything, or waits until he is through; none where it is not to go on now.
    pub(super) fn changing(&self, scope: Scope, pace: Pace<'_>) -> Option<MutexGuard<'_, ()>> {
        loop {
            if let Some(changing) = self.change_now() {
                return Some(changing);
            }
            // Who reads everything keeps neither the journal from its bound nor the guest's writes from having room; and history is
            // not kept for ever because he was stopped in the middle.
            if self.live().is_some() && (self.is_urgent() || self.is_out_of_patience()) {
                self.holds.give_up_pauses();
            } else if scope != Scope::AtOnce {
                return None;
            }
            // Also who is in a hurry waits here, and does not spin.
            std::thread::sleep(PAUSE_LOOK);
            if !pace(Duration::ZERO) {
                return None;
            }
        }
    }

    fn open_merge(&self, storage: &Arc<dyn Storage>, to: StampedMoment) -> Result<Merge, Problem> {
        let (manifest, path, bases, keys) = {
            let replica = self.replica();
            let path = replica.path(to.timeline, to.lsn).map_err(|error| document::unreadable(&error))?;
            let (bases, keys) = (Arc::clone(replica.bases()), Arc::clone(replica.keys()));
            (replica.manifest().clone(), path, bases, keys)
        };
        let open = |kept: &KeptInfo| {
            let bounds = self.bounds_of_kept(manifest.policy.reserve_bytes);
            Space::open(storage.as_ref(), kept.number, bounds, (&keys, Box::new(identity)), clock::now())
        };
        let space = manifest.kept.last().map(open).transpose();
        let merge = space
            .map_err(MergeError::from)
            .and_then(|space| Merge::begin(storage, &manifest, to, &path, &bases, space));
        merge.map_err(|error| failed(&error))
    }

    /// Called while nobody reads everything.
    fn end_merge(&self, storage: &Arc<dyn Storage>, merge: Merge) -> Result<(), Problem> {
        let bases = merge.finish(clock::now()).map_err(|error| failed(&error))?;
        // What was merged into files that are gone by now is nowhere else than in the journal.
        self.check_bases()?;
        self.change_for_merge(Box::new(move |writer| retention::end(writer, &bases)))?;
        // What cannot be removed now is found by the next owner.
        let _ = merge::clean_up(storage.as_ref());
        self.remove_bases();
        Ok(())
    }

    /// Gives up the oldest moment that only readers hold, if what is kept for readers takes more than this; whether it did.
    fn give_up(&self, bytes_max: u64, scope: Scope, pace: Pace<'_>) -> bool {
        let (kept, durably) = {
            let replica = self.replica();
            (replica.manifest().kept.clone(), retention::held(replica.manifest()))
        };
        // What is kept since a moment that is held durably is kept for that.
        let for_readers = kept.iter().take_while(|kept| !durably.contains(&kept.moment.lsn));
        let count = for_readers.count();
        let numbers: Vec<_> = kept.iter().map(|kept| kept.number).collect();
        let bytes: u64 = self.retained.weigh(self.storage().as_ref(), &numbers).iter().take(count).sum();
        bytes > bytes_max && self.holds.give_up_oldest(&durably) && matches!(self.release(scope, pace), Ok(true))
    }

    /// What may be kept for readers alone, in bytes.
    fn for_readers_max(&self) -> u64 {
        match self.replica().manifest().policy.max_bytes {
            0 => FOR_READERS_MAX,
            bound => bound / 4,
        }
    }

    /// Lets go of kept moments that nothing holds; whether it came to that.
    fn release(&self, scope: Scope, pace: Pace<'_>) -> Result<bool, Problem> {
        let is_free = |replica: &Replica, held: &Held| {
            replica.manifest().kept.first().is_some_and(|kept| !held.contains(&kept.moment.lsn))
        };
        let held = self.held_now();
        if !is_free(&self.replica(), &held) {
            return Ok(true);
        }
        // Who reads everything reads what is kept too, and the bases of disks that only that still has.
        let Some(_changing) = self.changing(scope, pace) else { return Ok(false) };
        let held = {
            let planning = self.holds.plan();
            let mut replica = self.replica_mut();
            let held = Self::held(&replica, planning.held());
            if !is_free(&replica, &held) {
                return Ok(true);
            }
            // From here on nobody is given one of them.
            let needed = replica.manifest().kept.iter().skip_while(|kept| !held.contains(&kept.moment.lsn));
            let (needed, oldest): (Vec<_>, _) = (needed.cloned().collect(), replica.manifest().oldest());
            replica.begin_at(oldest, needed);
            held
        };
        let numbers = Arc::new(Mutex::new(Vec::new()));
        let found = Arc::clone(&numbers);
        self.change_for_merge(Box::new(move |writer| match retention::release(writer, &held) {
            Some((generation, numbers)) => {
                *lock(&found) = numbers;
                generation
            }
            None => writer.manifest_durable(),
        }))?;
        let storage = self.storage();
        for number in std::mem::take(&mut *lock(&numbers)) {
            // What cannot be removed now is found by the next owner.
            let _ = kept::remove(storage.as_ref(), number);
        }
        self.remove_bases();
        Ok(true)
    }

    /// Removes the files of disks that no moment has any more.
    fn remove_bases(&self) {
        // A whole image goes at once, which takes its time: whoever writes the journal needs the lock meanwhile.
        let is_named = |disk| self.replica().manifest().disk(disk).is_some();
        // What cannot be removed now is found by the next owner.
        let _ = remove_bases_but(self.storage().as_ref(), is_named);
    }
}

/// Whether a moment has not ended yet that a reader has locked: one whose moment an owner before this one gave up may not know it yet.
pub(super) fn is_there(manifest: &Manifest, lsn: Lsn) -> bool {
    let merged = manifest.retention.oldest.is_some_and(|oldest| lsn < oldest.lsn);
    !merged || manifest.kept.iter().any(|kept| kept.moment.lsn == lsn)
}

/// The journal's sealed segments, and the bytes of everything else of it.
pub(super) fn journal_bytes(replica: &Replica) -> (Vec<policy::Held>, u64) {
    let manifest = replica.manifest();
    (sealed(manifest), run_bytes(manifest) + unsealed_bytes(replica))
}

fn sealed(manifest: &Manifest) -> Vec<policy::Held> {
    let held = |summary: &cdp_core::journal::Summary| policy::Held {
        last: summary.last_lsn,
        bytes: summary.file_bytes,
        plain: summary.plain_bytes,
    };
    manifest.segments.iter().filter_map(|segment| segment.summary()).map(held).collect()
}

/// Bytes of the runs of the index.
fn run_bytes(manifest: &Manifest) -> u64 {
    manifest.runs.iter().map(|run| run.totals.file_bytes).sum()
}

/// Bytes of the segments that are not sealed: the media are asked.
pub(super) fn unsealed_bytes(replica: &Replica) -> u64 {
    let length = |number: u64| {
        let name = format!("{JOURNAL_DIRECTORY}/{}", cdp_core::journal::segment_name(number));
        replica.storage().length(&name).unwrap_or(0)
    };
    let open = replica.manifest().segments.iter().filter(|segment| segment.summary().is_none());
    open.map(|segment| length(segment.number)).sum()
}

/// What is due by a manifest and what is known of the past, beside whose segments others that are not sealed take so much.
pub(super) fn due(
    manifest: &Manifest,
    past: &Retention,
    (unsealed_bytes, bytes_per_s): (u64, u64),
    at_once: bool,
) -> Option<Due> {
    // Below a base that is not there yet nothing can be merged.
    if is_unseeded(manifest) {
        return None;
    }
    let (sealed, open_bytes) = (sealed(manifest), run_bytes(manifest) + unsealed_bytes);
    let journal = policy::Journal { sealed: &sealed, open_bytes, bytes_per_s };
    policy::due(&manifest.policy, past, &journal, at_once)
}

/// The last moment up to an LSN that can be restored and merged; zero if there is none.
pub(super) fn restorable(replica: &Replica, upto: Lsn) -> Lsn {
    // Records of a disk that is being copied have no base to go to.
    let upto = merge_limit(replica.manifest()).map_or(upto, |limit| upto.min(limit));
    let catalogue = replica.catalogue();
    let Some(trunk) = catalogue.trunk() else { return Lsn::ZERO };
    // The newest moment stays: the bases are never ahead of what can be restored.
    catalogue.neighbours(trunk.timeline, upto.next()).before.map_or(Lsn::ZERO, |moment| moment.lsn)
}

/// The moment up to which is merged. Where nothing up to there can be restored but what is merged already, as in a gap that is larger than
/// a segment, it is the next one that can be: unless that is younger than the window, which alone is no reason to end it.
fn target(replica: &Replica, manifest: &Manifest, due: Due) -> Lsn {
    let merged = manifest.retention.oldest.map_or(Lsn::ZERO, |oldest| oldest.lsn);
    let found = restorable(replica, due.upto);
    if found > merged || due.reason == Reason::Window {
        return found;
    }
    let sealed = sealed(manifest);
    let further =
        sealed.iter().filter(|segment| segment.last > due.upto).map(|segment| restorable(replica, segment.last));
    further.into_iter().find(|next| *next > merged).unwrap_or(found)
}

/// The same, or less: as far as one merge goes at once.
fn near(replica: &Replica, manifest: &Manifest, target: Lsn) -> Lsn {
    let merged = manifest.retention.oldest.map_or(Lsn::ZERO, |oldest| oldest.lsn);
    let usual = cdp_core::journal::Options::default().segment_records;
    // One that is not sealed may get as many records as any.
    let ends = manifest
        .segments
        .iter()
        .map(|segment| segment.summary().map(|summary| (summary.last_lsn, u64::from(summary.entries))));
    let ends = ends.map(|sealed| sealed.unwrap_or((Lsn(u64::MAX), usual))).filter(|(last, _)| *last > merged);
    policy::merge_end(merged, target, ends.map(|(last, records)| (restorable(replica, last.min(target)), records)))
}

/// Where the next merge of what is due ends; none where there is nothing to merge. `manifest`: the replica's, or what it would become.
pub(super) fn next_stop(
    replica: &Replica,
    manifest: &Manifest,
    held: &Held,
    due: Due,
) -> Result<Option<StampedMoment>, ReplicaError> {
    let target = near(replica, manifest, target(replica, manifest, due));
    let Some(lsn) = retention::stop(manifest, held, target) else { return Ok(None) };
    let Some(branch) = replica.catalogue().on_path(lsn) else { return Ok(None) };
    let timeline = branch.timeline;
    let Ok(moment) = replica.exact(timeline, lsn) else {
        return Err(ReplicaError::Merged { timeline, lsn });
    };
    Ok(Some(StampedMoment { timeline, lsn, stamp: moment.stamp }))
}

fn plan(replica: &Replica, held: &Held, due: Due) -> Result<Option<Plan>, ReplicaError> {
    let Some(to) = next_stop(replica, replica.manifest(), held, due)? else { return Ok(None) };
    let keep = retention::to_keep(replica.manifest(), held, replica.catalogue());
    Ok(Some(Plan { to, keep, begun: false, reason: Some(due.reason) }))
}
