//! Disks that come, grow, are cut and go: every moment has the disks that it had, with the sizes and bytes that they had,
//! before and after merges, on one timeline and the next.

use super::kit::*;
use cdp_core::frame::{Compression, Note, RecordKind, ResyncReason};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::{Merge, clean_up};
use cdp_core::replica::{Replica, is_unseeded, merge_limit, remove_bases, retention};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A little more than a page of checksums holds would take too long at every LSN: some blocks and a part of one.
const SIZE: u64 = (24 << 12) + 512;
/// Disks grow up to here.
const SIZE_MAX: u64 = 3 * SIZE / 512 * 512;

const NOW: Now = Now { wall: WallTime(1), mono: MonoTime(1) };

fn replica_id() -> ReplicaId {
    ReplicaId::new([5; 16]).unwrap()
}

/// A disk of the source.
struct Disk {
    content: Arc<Vec<u8>>,
    /// Its first copy, while that is being made.
    copy: Option<BaseWriter>,
    complete: bool,
}

/// What a moment holds: number, bytes (size included), complete.
type State = Vec<(u16, Arc<Vec<u8>>, bool)>;

struct World {
    rig: Rig,
    source: Source,
    dice: Dice,
    disks: BTreeMap<u16, Disk>,
    states: Vec<(Lsn, Timeline, State)>,
    /// Where the timeline before ended.
    fork: Lsn,
    /// How often each of the things was done that are to be tested.
    done: BTreeMap<&'static str, u32>,
}

/// Sealed at rest where the store is.
fn base_writer(rig: &Rig, disk: DiskId) -> BaseWriter {
    let writer = BaseWriter::create(rig.storage.as_ref(), replica_id(), disk, SIZE).unwrap();
    if rig.at_rest.key.is_some() { writer.at_rest(&rig.keys).unwrap() } else { writer }
}

impl World {
    fn new(storage: Arc<dyn Storage>, seed: u64, at_rest: &AtRest) -> Self {
        let mut rig = Rig::create_at_rest(Arc::clone(&storage), at_rest);
        let mut disks = BTreeMap::new();
        for number in 1..=2 {
            let content = Arc::new(vec![number as u8; SIZE as usize]);
            let mut writer = base_writer(&rig, disk(number));
            writer.data(&content, Lsn::ZERO).unwrap();
            let root = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
            let base = root.named(Lsn::ZERO);
            rig.writer.edit(|manifest| manifest.disks.push(info(number, Lsn::ZERO, Some(base))));
            disks.insert(number, Disk { content, copy: None, complete: true });
        }
        rig.start(timeline(1), None, Lsn::ZERO);
        let source = Source::new(seed, timeline(1));
        let (states, done) = (Vec::new(), BTreeMap::new());
        Self { rig, source, dice: Dice(seed ^ 77), disks, states, fork: Lsn::ZERO, done }
    }

    fn did(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn any_disk(&mut self) -> u16 {
        let at = self.dice.below(self.disks.len() as u64) as usize;
        *self.disks.keys().nth(at).unwrap()
    }

    /// What is true from the last LSN on.
    fn note_state(&mut self) {
        let state = self.disks.iter().map(|(number, disk)| (*number, Arc::clone(&disk.content), disk.complete));
        self.states.push((self.source.lsn, self.source.timeline, state.collect()));
    }

    fn resize(&mut self, number: u16, to: u64) {
        let from = self.disks[&number].content.len() as u64;
        self.rig.writer.edit(|manifest| manifest.resizing.push(ResizeInfo { disk: disk(number), size: to }));
        self.rig.drain();
        if to > from {
            // What is new was read before, and lies beyond the end until the record comes.
            let new = Extent::new(from, (to - from).min(8 * SECTOR));
            self.write(number, new);
            self.note_state();
        }
        self.source.note(RecordKind::Resize, Some(number), Note::Resize { from, to });
        let content = Arc::make_mut(&mut self.disks.get_mut(&number).unwrap().content);
        content.resize(to as usize, 0);
        if to > from {
            let (.., data) = self.source.model.history.last().unwrap();
            let data = data.clone().unwrap();
            content[from as usize..from as usize + data.len()].copy_from_slice(&data);
        }
        self.flush();
        self.rig.writer.edit(|manifest| {
            manifest.resizing.clear();
            manifest.disks.iter_mut().filter(|info| info.id == disk(number)).for_each(|info| info.size = to);
        });
        self.did(if to > from { "grown" } else { "cut" });
    }

    /// A write, wherever it is; the source's bytes are the caller's.
    fn write(&mut self, number: u16, extent: Extent) -> bytes::Bytes {
        let fill = self.dice.next() as u8;
        self.source.write(number, extent, fill);
        self.source.model.history.last().unwrap().4.clone().unwrap()
    }

    fn op(&mut self) {
        let number = self.any_disk();
        let size = self.disks[&number].content.len() as u64;
        let start = self.dice.below(size / SECTOR) * SECTOR;
        let length = ((1 + self.dice.below(40)) * SECTOR).min(size - start);
        let extent = Extent::new(start, length);
        let range = start as usize..(start + length) as usize;
        if self.dice.below(5) == 0 {
            self.source.clear(RecordKind::Discard, number, extent);
            Arc::make_mut(&mut self.disks.get_mut(&number).unwrap().content)[range].fill(0);
        } else {
            let data = self.write(number, extent);
            Arc::make_mut(&mut self.disks.get_mut(&number).unwrap().content)[range].copy_from_slice(&data);
        }
    }

    fn add(&mut self) {
        let number = self.rig.writer.manifest().free_disk().unwrap().get();
        let added = self.source.lsn.next();
        self.rig.writer.edit(|manifest| manifest.disks.push(info(number, added, None)));
        self.rig.drain();
        let noise = self.dice.next() as u8;
        let content: Vec<u8> = (0..SIZE).map(|at| (at >> 10) as u8 ^ noise).collect();
        let note = Note::DiskAdded { name: format!("disk{number}"), size: SIZE };
        let from = self.source.note(RecordKind::DiskAdded, Some(number), note);
        let copy = base_writer(&self.rig, disk(number));
        self.disks.insert(number, Disk { content: Arc::new(content), copy: Some(copy), complete: false });
        self.note_state();
        let reason = ResyncReason::Seeding;
        self.source.note(RecordKind::ResyncBegin, Some(number), Note::ResyncBegin { from, reason });
        self.did("added");
    }

    /// The next piece of every first copy; the last one makes the disk complete.
    fn copy(&mut self) {
        let storage = Arc::clone(&self.rig.storage);
        let lsn = self.source.lsn;
        for number in self.disks.keys().copied().collect::<Vec<_>>() {
            let disk_now = self.disks.get_mut(&number).unwrap();
            let Some(mut copy) = disk_now.copy.take() else { continue };
            // As large as it was when the copy began; what lies behind is in the journal.
            let at = copy.position() as usize;
            let end = (at + (8 << 10)).min(SIZE as usize);
            let mut piece = vec![0; end - at];
            let there = disk_now.content.get(at..end.min(disk_now.content.len())).unwrap_or_default();
            piece[..there.len()].copy_from_slice(there);
            copy.data(&piece, lsn).unwrap();
            if end < SIZE as usize {
                disk_now.copy = Some(copy);
                continue;
            }
            let root = copy.finish(storage.as_ref(), lsn).unwrap();
            disk_now.complete = true;
            let base = root.named(Lsn::ZERO);
            self.rig.writer.edit(|manifest| {
                let named = manifest.disks.iter_mut().filter(|info| info.id == disk(number));
                named.for_each(|info| info.base = Some(base));
            });
            self.rig.drain();
            let note = Note::ResyncEnd { bytes_read: 0, bytes_changed: 0 };
            self.source.note(RecordKind::ResyncEnd, Some(number), note);
            self.note_state();
            self.did("completed");
        }
    }

    fn remove(&mut self, number: u16) {
        self.disks.remove(&number);
        let empty = cdp_core::frame::Part::plain(
            RecordKind::DiskRemoved,
            Some(disk(number)),
            Extent::new(0, 0),
            Lsn(0),
            WallTime(0),
        );
        let lsn = self.source.plain(empty);
        self.flush();
        self.rig.writer.edit(|manifest| {
            let gone = manifest.disks.iter_mut().filter(|info| info.id == disk(number));
            gone.for_each(|info| info.removed = Some(lsn));
        });
        self.did("removed");
    }

    fn flush(&mut self) {
        self.source.frames(Compression::None).into_iter().for_each(|frame| drop(self.rig.append(frame)));
        self.rig.sync();
    }

    fn fork(&mut self) {
        self.flush();
        self.fork = self.rig.writer.durable().lsn();
        self.rig.start(timeline(2), Some(timeline(1)), self.fork);
        self.source.fork(timeline(2), self.fork);
    }

    /// Something happens to some disk.
    fn step(&mut self) {
        match self.dice.below(30) {
            0 | 1 => {
                let number = self.any_disk();
                let to = SECTOR * (8 + self.dice.below(SIZE_MAX / SECTOR - 8));
                if to != self.disks[&number].content.len() as u64 {
                    self.resize(number, to);
                } else {
                    self.op();
                }
            }
            2 if self.disks.len() < 4 => self.add(),
            3 if self.disks.len() > 1 => {
                let number = self.any_disk();
                self.remove(number);
            }
            _ => self.op(),
        }
        self.note_state();
        if self.dice.below(3) == 0 {
            self.copy();
        }
    }

    /// Holds a moment, or lets go of one.
    fn pin(&mut self) {
        let pins = self.rig.writer.manifest().pins.len() as u64;
        if pins > 2 {
            let gone = self.dice.below(pins) as usize;
            self.rig.writer.edit(|manifest| drop(manifest.pins.remove(gone)));
        } else if let Some((lsn, timeline, _)) = self.states.last().cloned() {
            let pin = PinInfo { label: String::new(), timeline, lsn, created: WallTime(1) };
            self.rig.writer.edit(|manifest| manifest.pins.push(pin));
        }
        self.flush();
        let held = retention::held(self.rig.writer.manifest());
        if let Some((_, numbers)) = retention::release(&mut self.rig.writer, &held) {
            self.rig.drain();
            numbers.into_iter().for_each(|number| kept::remove(self.rig.storage.as_ref(), number).unwrap());
        }
        self.clean_up();
    }

    fn clean_up(&mut self) {
        let storage = Arc::clone(&self.rig.storage);
        remove_bases(storage.as_ref(), self.rig.writer.manifest()).unwrap();
        let listed = storage.list("base").unwrap();
        for name in &listed {
            let of = |info: &DiskInfo| name.starts_with(&format!("{}.", info.id));
            assert!(self.rig.writer.manifest().disks.iter().any(of), "{name} belongs to no disk: {listed:?}");
        }
        self.forget_states();
    }

    /// Merges up to some moment, stopping at those that are held.
    fn merge(&mut self) {
        self.flush();
        self.rig.writer.roll();
        self.rig.drain();
        let limit = merge_limit(self.rig.writer.manifest()).unwrap_or(Lsn(u64::MAX));
        let moments: Vec<_> = self.states.iter().map(|(lsn, ..)| *lsn).filter(|lsn| *lsn <= limit).collect();
        if moments.is_empty() {
            return;
        }
        let target = moments[self.dice.below(moments.len() as u64) as usize];
        let beyond =
            retention::stop(self.rig.writer.manifest(), &retention::held(self.rig.writer.manifest()), Lsn(u64::MAX));
        assert_eq!(beyond.is_none(), limit != Lsn(u64::MAX), "no merge goes where a disk has no base");
        self.advance(target).unwrap();
        self.clean_up();
        self.did("merged");
    }

    /// The effects that were wished for are done, unless the power went.
    fn settle(&mut self) -> Result<(), String> {
        self.rig.drain();
        match self.rig.writer.state() {
            WriterState::Failed(error) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Merges up to a moment as an owner does, one that was cut off first.
    fn advance(&mut self, target: Lsn) -> Result<(), String> {
        loop {
            if let Some(to) = self.rig.writer.manifest().merge {
                self.merge_to(to)?;
            }
            let held = retention::held(self.rig.writer.manifest());
            let Some(lsn) = retention::stop(self.rig.writer.manifest(), &held, target) else { return Ok(()) };
            let replica = self.load();
            let on = self.states.iter().find(|(at, ..)| *at >= lsn).unwrap().1;
            let stamp = replica.exact(on, lsn).map_err(|e| e.to_string())?.stamp;
            let keep = retention::to_keep(self.rig.writer.manifest(), &held, replica.catalogue());
            if let Some(keep) = &keep {
                let timeline = timeline(100 + keep.number as u8);
                let storage = self.rig.storage.as_ref();
                kept::create(storage, self.rig.writer.manifest(), keep.number, timeline, NOW)
                    .map_err(|e| e.to_string())?;
                self.did("kept");
            }
            let to = StampedMoment { timeline: on, lsn, stamp };
            let point = retention::point_at(replica.catalogue(), &to);
            retention::begin(&mut self.rig.writer, to, point, keep);
            self.settle()?;
        }
    }

    fn merge_to(&mut self, to: StampedMoment) -> Result<(), String> {
        let (storage, replica) = (Arc::clone(&self.rig.storage), self.load());
        let manifest = self.rig.writer.manifest().clone();
        let mut dice = Dice(self.dice.next());
        let space = manifest.kept.last().map(|kept| {
            let ids = Box::new(move || std::array::from_fn(|_| dice.next() as u8));
            Space::open(storage.as_ref(), kept.number, (0, u64::MAX), (&self.rig.keys, ids), NOW)
        });
        let space = space.transpose().map_err(|e| e.to_string())?;
        let path = replica.path(to.timeline, to.lsn).map_err(|e| e.to_string())?;
        let merge = Merge::begin(&storage, &manifest, to, &path, replica.bases(), space);
        let mut merge = merge.map_err(|e| e.to_string())?;
        while merge.step(NOW, 16 << 10).map_err(|e| e.to_string())? {}
        let bases = merge.finish(NOW).map_err(|e| e.to_string())?;
        retention::end(&mut self.rig.writer, &bases);
        self.settle()?;
        clean_up(storage.as_ref()).map_err(|e| e.to_string())
    }

    /// Only what is behind the oldest moment, or kept, can be restored.
    fn forget_states(&mut self) {
        let manifest = self.rig.writer.manifest();
        let oldest = manifest.oldest().map_or(Lsn::ZERO, |oldest| oldest.lsn);
        let kept = |lsn: &Lsn| manifest.kept.iter().any(|kept| kept.moment.lsn == *lsn);
        self.states.retain(|(lsn, ..)| *lsn >= oldest || kept(lsn));
    }

    fn load(&self) -> Replica {
        let (manifest, snapshot) = (self.rig.writer.manifest().clone(), self.rig.writer.snapshot());
        let (storage, keys) = (Arc::clone(&self.rig.storage), Arc::clone(&self.rig.keys));
        Replica::load_with(storage, manifest, snapshot, self.rig.writer.durable().lsn(), keys).unwrap()
    }

    fn check(&mut self) {
        self.flush();
        self.look(1);
    }

    /// One moment in so many reads as it did.
    fn look(&mut self, one_in: u64) {
        let replica = self.load();
        let last = self.states.len() - 1;
        for (number, (lsn, timeline, state)) in self.states.iter().enumerate() {
            if number > 0 && number < last && self.dice.below(one_in) > 0 {
                continue;
            }
            let found = replica.disks_at(*timeline, *lsn);
            let found: Vec<_> = found.iter().map(|at| (at.disk.id.get(), at.disk.size, at.complete)).collect();
            // Of a moment that is kept, only what can be restored is said.
            let kept = replica.manifest().oldest().is_some_and(|oldest| *lsn < oldest.lsn);
            let there = state.iter().filter(|(.., complete)| *complete || !kept);
            let expected: Vec<_> =
                there.map(|(number, content, complete)| (*number, content.len() as u64, *complete)).collect();
            assert_eq!(found, expected, "the disks at LSN {lsn}");
            let view = replica.view(*timeline, *lsn).unwrap();
            for (number, content, _) in state.iter().filter(|(.., complete)| *complete) {
                assert!(view.disks().iter().any(|found| found.id == disk(*number)));
                let mut read = vec![0xee; content.len()];
                view.read(disk(*number), 0, &mut read).unwrap();
                let differs = (0..read.len()).find(|at| read[*at] != content[*at]);
                assert_eq!(differs, None, "disk {number} at LSN {lsn}");
            }
        }
        assert!(!is_unseeded(self.rig.writer.manifest()));
    }
}

fn info(number: u16, added: Lsn, base: Option<BaseInfo>) -> DiskInfo {
    DiskInfo {
        id: disk(number),
        name: format!("disk{number}"),
        size: SIZE,
        source: String::new(),
        added,
        removed: None,
        stopped: None,
        base,
    }
}

#[test]
fn every_moment_has_the_disks_that_it_had() {
    let mut done = BTreeMap::new();
    for (seed, at_rest) in (0..2).zip(AtRest::both().iter().cycle()) {
        let mut world = World::new(Arc::new(Memory::new()), seed, at_rest);
        for step in 0..180 {
            world.step();
            match world.dice.below(40) {
                0 => world.merge(),
                1 => world.check(),
                5..8 => world.pin(),
                2..5 => world.flush(),
                _ => {}
            }
            if step == 100 {
                world.fork();
            }
        }
        world.check();
        world.merge();
        world.check();
        world.done.iter().for_each(|(what, times)| *done.entry(*what).or_default() += times);
    }
    for what in ["grown", "cut", "added", "completed", "removed", "merged", "kept"] {
        assert!(done.get(what).is_some_and(|times: &u32| *times > 2), "{what} too rarely: {done:?}");
    }
}

/// One story: a group changes, and the power goes at the `cut`-th effect of the merge of all that. What is found is looked at, the
/// merge is done to its end. Gives how many effects the merge has.
fn story(seed: u64, cut: Option<u64>) -> Result<u64, String> {
    let power = SimDisk::new();
    let at_rest = &AtRest::both()[0];
    let mut world = World::new(Arc::new(power.clone()), seed, at_rest);
    for step in 0..70 {
        world.step();
        if step == 30 {
            world.pin();
            world.fork();
        }
    }
    // Whatever is being copied has its base by now.
    (0..20).for_each(|_| world.copy());
    world.flush();
    world.rig.writer.roll();
    world.rig.drain();
    let target = world.states[world.states.len() * 3 / 4].0;
    let before = power.effects();
    if let Some(cut) = cut {
        power.cut_at(before + cut);
    }
    let merged = world.advance(target);
    let effects = power.effects() - before;
    let Some(cut) = cut else { return merged.map(|()| effects) };
    let found = Arc::new(power.after_cut(Survival::Some(seed ^ cut)));
    let opened = open(found.as_ref(), DIRECTORY, None).map_err(|e| e.to_string())?;
    world.rig = Rig::on(found, opened, seed + 1);
    world.rig.drain();
    retention::clean_up(world.rig.storage.as_ref(), world.rig.writer.manifest()).map_err(|e| e.to_string())?;
    world.forget_states();
    world.look(12);
    world.advance(target).map_err(|e| format!("done again: {e}"))?;
    world.clean_up();
    world.look(12);
    Ok(effects)
}

#[test]
fn a_cut_at_any_effect_of_the_merge_of_changed_disks_changes_no_moment() {
    let seeds: u64 = std::env::var("CDP_MERGE_SEEDS").map_or(1, |text| text.parse().expect("a number"));
    let mut points = 0;
    for seed in 0..seeds {
        let effects = story(seed, None).unwrap();
        // All of them where somebody has the time.
        for cut in (1..=effects).step_by(if seeds > 1 { 1 } else { 16 }) {
            story(seed, Some(cut)).unwrap_or_else(|why| panic!("seed {seed}, cut {cut}: {why}"));
            points += 1;
        }
    }
    println!("{points} crash points");
    assert!(points > 5);
}
