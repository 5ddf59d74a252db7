//! Beginning to take a filter's records: the timeline is opened, the journal's writer and its threads are started.

use super::check::check_begin;
use super::compare::Compare;
use super::find::{Store, refused_by_media};
use super::levels::Levels;
use super::pack::{pack_threads, packers, run_packs};
use super::pump::{Message, Parts, Pump, Stored};
use super::room::Lack;
use super::{Keeper, PLACE_LOOK, Running, lock, make, room};
use crate::clock;
use crate::drive;
use crate::failure::Failure;
use crate::far::{Begin, Find, Near, NewDisk, Origin, Witness};
use crate::host::{Host, document};
use crate::owner::PolicyChange;
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::threads::{Threads, pause};
use cdp_core::capture::Room;
use cdp_core::journal::{
    DiskInfo, Executor, Generation, Manifest, Opened, Options, ResizeInfo, TimelineInfo, TimelineRole, TimelineState,
    Writer, WriterState, drain,
};
use cdp_core::media::Storage;
use cdp_core::policy::retention;
use cdp_core::replica::{Replica, remove_bases};
use cdp_core::types::{GroupId, Lsn, Position, Timeline};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

fn no_thread(error: &std::io::Error) -> Problem {
    Problem::new(ProblemClass::Failed, "protect", format!("cannot start a thread: {error}"))
}

impl Keeper {
    /// Goes on taking the records of a filter that writes on while this side was away: those behind the place that this gives come
    /// again, be that within a record; with it goes what is durable. `seen` is what that filter was told to be durable, the second witness for
    /// what this side's journal has to hold.
    ///
    /// # Errors
    /// `not-following` when the timeline is one of the replica's and not the open one, `unknown-timeline` when it is none of them, `broken` when
    /// nobody can tell with which part of a record it goes on; else what keeps the replica from being opened.
    pub fn resume(
        &self,
        group: GroupId,
        timeline: Timeline,
        seen: Option<Lsn>,
        near: Arc<dyn Near>,
    ) -> Result<(Position, Lsn), Problem> {
        // A log may be too old to be believed; somebody who heard it himself may not.
        let witness = seen.map(|durable| Witness { group, generation: u64::MAX, durable });
        // Also one whose first copy is not whole: that goes on where it is durable, and its records are kept.
        let found = self.find_store(&Find { witness, ..Find::default() }, |_| true)?;
        let Some(found) = found.filter(|found| found.group == group) else {
            let message = format!("there is no replica of the group {group} to go on with");
            return Err(Problem::new(ProblemClass::Failed, "not-found", message));
        };
        let at = found.durable;
        let begin = Begin {
            new: None,
            timeline,
            origin: Origin::Resumes { at },
            reserved: found.reserved,
            dropped: Vec::new(),
            joining: Vec::new(),
            sizes: Vec::new(),
            policy: PolicyChange::default(),
            stored: false,
        };
        let have = self.begin_store(&begin, near)?;
        Ok((have, at))
    }

    /// Gives the place behind which frames are taken.
    pub(super) fn begin_store(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<Position, Problem> {
        let mut waiting = lock(&self.waiting);
        let begun = || Problem::new(ProblemClass::Failed, "begun", "a filter writes to this replica already");
        let Some(queue) = waiting.queue.take() else { return Err(begun()) };
        let found = waiting.found.take();
        drop(waiting);
        let (writer, executor, replica, have) = self.open(begin, found)?;
        let running = self.share(&writer, replica, (near, have))?;
        self.running.set(Arc::clone(&running)).map_err(|_| begun())?;
        self.launch(&running, writer, executor, queue)?;
        Ok(have)
    }

    /// Opens the timeline and writes down what the filter wants known before it gives a record.
    fn open(&self, begin: &Begin, found: Option<Store>) -> Result<(Writer, Executor, Replica, Position), Problem> {
        let storage = &self.storage;
        let resumed = found.is_some();
        check_begin(begin, found.as_ref().map(|store| noted(&store.replica)).as_ref())?;
        let Store { opened, replica } = match (found, &begin.new) {
            (Some(store), _) => store,
            (None, Some(new)) => Store::load(storage, make::create(storage.as_ref(), new, &self.options.key)?)?,
            (None, None) => {
                let message = format!("there is no replica in {} to go on with", storage.path());
                return Err(Problem::new(ProblemClass::Failed, "not-found", message));
            }
        };
        let manifest = opened.manifest.clone();
        check_origin(begin, &manifest, opened.durable.lsn())?;
        let have = first_place(begin, &opened)?;
        let options = self.writer_options(&manifest, &begin.policy);
        let mut writer = Writer::new(opened, options, Box::new(identity));
        // Of this start, whatever the starts before sealed with: a copy of the directory may be going on elsewhere.
        if let Some(key) = self.options.key.draw(manifest.replica, &mut identity, clock::wall()) {
            writer.seal_at_rest(key).map_err(|error| document::locked(&error))?;
        }
        let executor = Executor::new(Arc::clone(storage));
        match begin.origin {
            Origin::GoesOn | Origin::Resumes { .. } => writer.edit(Manifest::goes_on),
            Origin::First | Origin::Fork { .. } => writer.open_timeline(new_timeline(&manifest, begin)),
        };
        let quota = self.options.quota_bytes;
        let generation = writer.edit(|manifest| {
            begin.policy.apply(&mut manifest.policy);
            if manifest.policy.quota == 0 {
                manifest.policy.quota = quota;
            }
            // Before anything of this filter is kept: where its LSNs begin, so that no later start begins below.
            manifest.reserved = manifest.reserved.max(begin.reserved);
            match begin.origin {
                // Nothing became of the disks that is not in the records.
                Origin::Resumes { .. } => replica.note_disks(manifest),
                _ if resumed => note(&replica, manifest, begin),
                _ => {}
            }
        });
        let stored = store(&mut writer, &executor, generation)?;
        if stored {
            // Of copies that were never complete, and of disks that are forgotten.
            remove_bases(storage.as_ref(), writer.manifest()).map_err(|error| refused_by_media(&error))?;
        }
        if !stored && begin.stored {
            return Err(no_room(storage.as_ref(), &writer));
        }
        Ok((writer, executor, replica, have))
    }

    fn writer_options(&self, manifest: &Manifest, change: &PolicyChange) -> Options {
        let mut policy = manifest.policy;
        change.apply(&mut policy);
        Options {
            segment_bytes: retention::segment_bytes(&policy, self.options.segment_bytes),
            keep_free_bytes: policy.reserve_bytes,
            // Syncs that follow each other closely write the same pages of metadata again and again.
            commit_bytes: 32 << 20,
            commit_ns: 100_000_000,
            ..Options::default()
        }
    }

    fn share(
        &self,
        writer: &Writer,
        mut replica: Replica,
        (near, have): (Arc<dyn Near>, Position),
    ) -> Result<Arc<Running>, Problem> {
        let updated = replica.update(Some(writer.manifest()), writer.snapshot());
        updated.map_err(|error| document::unreadable(&error))?;
        let replica_id = writer.manifest().replica;
        let host = Host::new(replica, Box::new(Arc::clone(&self.pump)));
        Ok(Arc::new(Running {
            storage: Arc::clone(&self.storage),
            replica: replica_id,
            have,
            compare: Compare::new(&host),
            host,
            pump: Arc::clone(&self.pump),
            failure: Arc::default(),
            index: Arc::<Failure>::default(),
            stored: Arc::<Stored>::default(),
            driver: OnceLock::new(),
            segment_bytes: self.options.segment_bytes,
            lack: Arc::<Lack>::default(),
            seed_lack: Arc::<Lack>::default(),
            stop: Arc::new(AtomicBool::new(false)),
            closed: Arc::default(),
            closing: AtomicBool::new(false),
            labels: super::Labels::default(),
            roots: Arc::default(),
            copies: Mutex::default(),
            writers: Arc::default(),
            history: Mutex::default(),
            near: RwLock::new(Some(near)),
        }))
    }

    fn launch(
        &self,
        running: &Arc<Running>,
        writer: Writer,
        executor: Executor,
        queue: Receiver<Message>,
    ) -> Result<(), Problem> {
        let Some(near) = running.near() else { return Ok(()) };
        // Kept from the first thread on: whatever fails here, those that run are ended with the keeper.
        let mut held = lock(&self.threads);
        let threads = held.insert(Threads::new(Arc::clone(&running.failure)));
        let (packers, pack_work) = packers();
        let (named, manifests) = sync_channel(1);
        // What an earlier start left to be merged.
        let _ = named.try_send(());
        let group = writer.manifest().group;
        let for_driver = self.pump.sender();
        let wake = Box::new(move || {
            // A pump that has ended takes nothing any more.
            let _ = for_driver.send(Message::Done);
        });
        let (for_room, lack) = (Arc::clone(&running.host), Arc::clone(&running.lack));
        let admit = move |name: &str, bytes| room::admit(&for_room, &lack, name, bytes);
        let driver = drive::start(self.options.driver, executor.admitted_by(Box::new(admit)), wake)
            .map_err(|error| no_thread(&error))?;
        running.driver.get_or_init(|| driver.name());
        let for_place = Arc::clone(&near);
        let parts = Parts {
            group,
            writer,
            driver,
            packers,
            near,
            host: Arc::clone(&running.host),
            backlog: Arc::clone(&self.backlog),
            failure: Arc::clone(&running.failure),
            stored: Arc::clone(&running.stored),
            lack: Arc::clone(&running.lack),
            waiting_bytes_max: self.options.waiting_bytes_max,
            named,
            closed: Arc::clone(&running.closed),
        };
        let mut spawn =
            |name: &str, run: Box<dyn FnOnce() + Send>| threads.spawn(name, run).map_err(|error| no_thread(&error));
        spawn("cdp-pump", Box::new(move || Pump::new(parts).run(&queue)))?;
        for _ in 0..pack_threads() {
            let (work, pump) = (pack_work.clone(), self.pump.sender());
            spawn("cdp-pack", Box::new(move || run_packs(&work, group, &pump)))?;
        }
        let (pump, stop) = (Arc::clone(&running.pump), Arc::clone(&running.stop));
        let trouble = Arc::clone(&running.index);
        let levels = Levels { pump, storage: Arc::clone(&self.storage), stop, trouble };
        spawn("cdp-index", Box::new(move || levels.run(&manifests)))?;
        let owner = lock(&self.owner).as_ref().map(Arc::downgrade);
        let for_look = Arc::clone(running);
        spawn(
            "cdp-place",
            Box::new(move || {
                while !for_look.stop.load(Ordering::Relaxed) {
                    let Some(owner) = owner.as_ref().and_then(std::sync::Weak::upgrade) else { return };
                    // What is written to files that nobody finds any more is kept for nobody.
                    if !owner.is_in_place() {
                        let directory = owner.dir().display();
                        let why = format!("{directory} was removed, replaced or renamed while it was the replica");
                        for_look.failure.set(&why);
                        return for_place.room(Room::Lost);
                    }
                    drop(owner);
                    pause(&for_look.stop, PLACE_LOOK);
                }
            }),
        )
    }
}

/// Writes the manifest that has this edit; whether there was room for it. Without room the guest is served all the same: the
/// writer takes no frame before the manifest that names their timeline is there, and asks again by itself.
fn store(writer: &mut Writer, executor: &Executor, generation: Generation) -> Result<bool, Problem> {
    drain(writer, executor, clock::mono());
    match writer.state() {
        WriterState::Failed(error) => Err(refused_by_media(&error)),
        _ => Ok(writer.manifest_durable() >= generation),
    }
}

/// The manifest could not be written, and without it nobody could tell later what was not recorded: manifest and log may go on
/// saying that the stop was clean.
fn no_room(storage: &dyn Storage, writer: &Writer) -> Problem {
    let needed = writer.lacks().unwrap_or(0);
    let free = match storage.free_bytes() {
        Ok(free) => free,
        Err(error) => return refused_by_media(&error),
    };
    let path = storage.path();
    let message = format!("{path} has no room for the replica's manifest: {needed} bytes are needed, {free} are free");
    Problem::new(ProblemClass::Failed, "no-space", message)
        .hint("make room on the replica's disk; without --trust-source the disks would be served meanwhile")
}

/// Refuses records that do not follow what is here: who sends them has found something else.
fn check_origin(begin: &Begin, manifest: &Manifest, durable: Lsn) -> Result<(), Problem> {
    let open = manifest.timelines.iter().rev().find(|info| info.state == TimelineState::Open).map(|info| info.id);
    let follows = match begin.origin {
        Origin::First => open.is_none(),
        Origin::GoesOn => manifest.clean && open == Some(begin.timeline),
        Origin::Resumes { at } => open == Some(begin.timeline) && at == durable,
        Origin::Fork { parent, at } => open == Some(parent) && at == durable,
    };
    let is_new = matches!(begin.origin, Origin::First | Origin::Fork { .. });
    let known = manifest.timelines.iter().any(|info| info.id == begin.timeline);
    if matches!(begin.origin, Origin::Resumes { .. }) && !known {
        let message = format!("the replica has no timeline {}, or has it no more", begin.timeline);
        return Err(Problem::new(ProblemClass::Failed, "unknown-timeline", message).hint("begin again"));
    }
    if !follows || (is_new && known) {
        let message = "the replica is not as it was found: its records would not follow each other";
        return Err(Problem::new(ProblemClass::Failed, "not-following", message).hint("begin again"));
    }
    if is_new { check_timelines(manifest) } else { Ok(()) }
}

/// The place behind which frames are taken: at the beginning of a new timeline, else to the part where the journal ends. Another record
/// behind the first parts of one would make that look whole.
fn first_place(begin: &Begin, opened: &Opened) -> Result<Position, Problem> {
    if matches!(begin.origin, Origin::First | Origin::Fork { .. }) {
        return Ok(Position::whole(Lsn::ZERO));
    }
    opened.tail.position().ok_or_else(|| {
        let lsn = opened.last_lsn;
        let message =
            format!("the journal ends within the write {lsn}, and is damaged there: its timeline cannot go on");
        Problem::new(ProblemClass::Failed, "broken", message).hint("begin a timeline of its own")
    })
}

/// Refuses one more timeline where a manifest with it might be read by nobody: each unclean stop leaves one, and merging takes them away.
fn check_timelines(manifest: &Manifest) -> Result<(), Problem> {
    let found = manifest.timelines.len();
    if found < Manifest::TIMELINES_OPENED {
        return Ok(());
    }
    let message = format!("the replica has {found} timelines, one for each unclean stop, and takes no more");
    let problem = Problem::new(ProblemClass::Refused, "timelines", message);
    Err(problem.hint("`cdp prune` drops those that are older than the window; else protect into a new directory"))
}

fn new_timeline(manifest: &Manifest, begin: &Begin) -> TimelineInfo {
    let (parent, fork) = match begin.origin {
        Origin::Fork { parent, at } => (Some(parent), at),
        _ => (None, Lsn::ZERO),
    };
    TimelineInfo {
        id: begin.timeline,
        number: manifest.timelines.iter().map(|info| info.number).max().unwrap_or(0) + 1,
        parent,
        fork,
        last: None,
        state: TimelineState::Open,
        role: TimelineRole::Trunk,
        opened: clock::wall(),
    }
}

/// A disk that joins, as the manifest has it.
pub(super) fn info(disk: &NewDisk) -> DiskInfo {
    let NewDisk { id, name, size, source, added } = disk.clone();
    DiskInfo { id, name, size, source, added, removed: None, stopped: None, base: None }
}

/// The manifest with what records say of disks, which may not have been written down.
pub(super) fn noted(replica: &Replica) -> Manifest {
    let mut manifest = replica.manifest().clone();
    replica.note_disks(&mut manifest);
    manifest
}

/// Writes down what is known of the disks before anything is recorded.
fn note(replica: &Replica, manifest: &mut Manifest, begin: &Begin) {
    // What was recorded at the end of the last life may not have been written down.
    replica.note_disks(manifest);
    name_disks(manifest, begin);
}

/// Which disks there are from here on, and how long they may get.
pub(super) fn name_disks(manifest: &mut Manifest, begin: &Begin) {
    begin.dropped.iter().for_each(|disk| manifest.drop_disk(*disk));
    manifest.disks.extend(begin.joining.iter().map(info));
    manifest.resizing = begin.sizes.iter().map(|to| ResizeInfo { disk: to.disk, size: to.size }).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use cdp_core::frame::{Compression, Encoder, Payload, RawFrame, RecordKind};
    use cdp_core::journal::{self, Tail, create};
    use cdp_core::media::Memory;
    use cdp_core::replica::JOURNAL_DIRECTORY;
    use cdp_core::types::{ClockEpoch, DiskId, MonoTime, PART_MAX, ReplicaId, WallTime};

    fn begin(timeline: Timeline, origin: Origin) -> Begin {
        Begin {
            new: None,
            timeline,
            origin,
            reserved: Lsn(1),
            dropped: Vec::new(),
            joining: Vec::new(),
            sizes: Vec::new(),
            policy: PolicyChange::default(),
            stored: false,
        }
    }

    fn timeline(number: u8) -> Timeline {
        Timeline::new([number; 16]).unwrap()
    }

    fn manifest() -> Manifest {
        let id = [1; 16];
        Manifest::new(ReplicaId::new(id).unwrap(), GroupId::new(id).unwrap(), "group")
    }

    #[test]
    fn a_manifest_that_is_full_of_timelines_takes_no_more() {
        let mut manifest = manifest();
        let info = new_timeline(&manifest, &begin(timeline(1), Origin::First));
        manifest.timelines.resize(Manifest::TIMELINES_OPENED - 1, info);
        check_timelines(&manifest).unwrap();
        manifest.timelines.push(info);
        assert_eq!(check_timelines(&manifest).unwrap_err().code, "timelines");
        assert_eq!(manifest.too_long(), None);
    }

    #[test]
    fn records_that_do_not_follow_what_is_there_are_refused() {
        let (old, new, other) = (timeline(1), timeline(2), timeline(3));
        let mut manifest = manifest();
        let durable = Lsn(7);
        let refused = |manifest: &Manifest, timeline, origin| {
            check_origin(&begin(timeline, origin), manifest, durable).is_err_and(|error| error.code == "not-following")
        };
        let fork = |parent, at| Origin::Fork { parent, at: Lsn(at) };
        assert!(!refused(&manifest, old, Origin::First));
        assert!(refused(&manifest, old, Origin::GoesOn) && refused(&manifest, new, fork(old, 7)));
        manifest.timelines.push(new_timeline(&manifest, &begin(old, Origin::First)));
        manifest.clean = false;
        assert!(refused(&manifest, new, Origin::First), "there is a past");
        assert!(refused(&manifest, old, Origin::GoesOn), "the stop was not clean");
        assert!(!refused(&manifest, new, fork(old, 7)));
        assert!(refused(&manifest, new, fork(other, 7)), "another parent");
        assert!(refused(&manifest, new, fork(old, 6)) && refused(&manifest, new, fork(old, 8)));
        assert!(refused(&manifest, old, fork(old, 7)), "the timeline is there already");
        let resumes = |at| Origin::Resumes { at: Lsn(at) };
        assert!(!refused(&manifest, old, resumes(7)) && refused(&manifest, old, resumes(6)));
        // Nothing is said of one that is not known here.
        let unknown = check_origin(&begin(new, resumes(7)), &manifest, durable).unwrap_err();
        assert_eq!(unknown.code, "unknown-timeline");
        manifest.timelines[0].state = TimelineState::Closed;
        manifest.timelines.push(new_timeline(&manifest, &begin(new, fork(old, 7))));
        assert!(refused(&manifest, old, resumes(7)), "another one is open");
        assert!(!refused(&manifest, new, resumes(7)));
        manifest.timelines.pop();
        manifest.timelines[0].state = TimelineState::Open;
        manifest.clean = true;
        assert!(!refused(&manifest, old, Origin::GoesOn) && refused(&manifest, new, Origin::GoesOn));
    }

    /// A store whose journal ends behind the first 5 of 24 parts of the write 2.
    fn cut_within(storage: &Arc<dyn Storage>) -> Opened {
        let opened = create(storage.as_ref(), manifest()).unwrap();
        let mut ids = 0u8;
        let draw = move || {
            ids += 1;
            [ids; 16]
        };
        let options = Options { keep_free_bytes: 0, segment_bytes: 1 << 20, ..Options::default() };
        let (mut writer, executor) = (Writer::new(opened, options, Box::new(draw)), Executor::new(Arc::clone(storage)));
        writer.open_timeline(new_timeline(&manifest(), &begin(timeline(1), Origin::First)));
        drain(&mut writer, &executor, MonoTime(1));
        let mut parts = Vec::new();
        for (lsn, count) in [(1, 1), (2, 24)] {
            let payload = Payload::new(0, Bytes::from(vec![7; count * PART_MAX as usize])).unwrap();
            parts.extend(payload.into_parts(RecordKind::Write, DiskId::new(1).unwrap(), Lsn(lsn), WallTime(lsn)));
        }
        parts.truncate(6);
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let (timeline, epoch) = (timeline(1), ClockEpoch(1));
        let raw = RawFrame { timeline, prev_lsn: Lsn(0), settled: Lsn(1), epoch, parts, plain_bytes };
        let frame = Encoder::new().encode(raw, manifest().group, Compression::None);
        writer.append(MonoTime(1), frame).unwrap();
        writer.request_sync();
        drain(&mut writer, &executor, MonoTime(1));
        assert_eq!(writer.durable().lsn(), Lsn(1));
        drop(writer);
        journal::open(storage.as_ref(), JOURNAL_DIRECTORY, None).unwrap()
    }

    #[test]
    fn a_timeline_that_ends_within_a_write_is_resumed_at_the_next_part_of_it() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let mut opened = cut_within(&storage);
        let resumes = begin(timeline(1), Origin::Resumes { at: Lsn(1) });
        assert_eq!(first_place(&resumes, &opened).unwrap(), Position { lsn: Lsn(2), parts: 5 });
        let fork = begin(timeline(2), Origin::Fork { parent: timeline(1), at: Lsn(1) });
        assert_eq!(first_place(&fork, &opened).unwrap(), Position::whole(Lsn::ZERO));
        // As it is found where the last frame's head is damaged.
        opened.tail = Tail::Lost(Lsn(2));
        assert_eq!(first_place(&resumes, &opened).unwrap_err().code, "broken");
        assert_eq!(first_place(&fork, &opened).unwrap(), Position::whole(Lsn::ZERO));
    }
}
