//! A replica's whole life with retention: writes, holds that come and go, merges, crashes. Every moment that can be restored reads
//! as it did, whatever happened.

use super::corruption::{damage_one_of, read};
use super::kit::*;
use cdp_core::frame::{Compression, Note, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::base::BaseWriter;
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::merge::{self, Merge};
use cdp_core::replica::{Replica, retention};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// More than one page of checksums, and no whole block at the end.
const SIZE: u64 = (3 << 19) + 512;
const DISKS: u16 = 2;

fn now() -> Now {
    Now { wall: WallTime(1), mono: MonoTime(1) }
}

/// A replica, and everything that its disks should read as.
struct Life {
    rig: Rig,
    source: Source,
    first: Vec<Vec<u8>>,
    /// Pins that were told to be durable, and not taken back since.
    pinned: BTreeSet<Lsn>,
    ids: u64,
    /// Moments are looked at in the midst of merges too.
    looks: bool,
    /// A merge is left where it has written everything and is not named.
    stops: bool,
}

/// What the life does next; made of dice before it begins, so that every run does the same.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64),
    Pin(u64),
    Unpin(u64),
    Merge(u64),
    Release,
}

fn script(seed: u64, length: u64) -> Vec<Step> {
    let mut dice = Dice(seed ^ 0x5c21);
    let step = |_| match dice.below(10) {
        0..=3 => Step::Write(20 + dice.below(60)),
        4..=5 => Step::Pin(dice.next()),
        6 => Step::Unpin(dice.next()),
        7..=8 => Step::Merge(dice.next()),
        _ => Step::Release,
    };
    std::iter::once(Step::Write(60)).chain((0..length).map(step)).collect()
}

impl Life {
    fn new(storage: Arc<dyn Storage>, seed: u64, at_rest: &AtRest) -> Self {
        let mut rig = Rig::create_at_rest(Arc::clone(&storage), at_rest);
        let mut dice = Dice(seed);
        let mut first = Vec::new();
        let replica = rig.writer.manifest().replica;
        for number in 1..=DISKS {
            let mut content = vec![0; SIZE as usize];
            for _ in 0..6 {
                let (at, length) = (dice.below(SIZE / BLOCK) * BLOCK, (1 + dice.below(60)) * BLOCK);
                let end = (at + length).min(SIZE);
                content[at as usize..end as usize].fill(1 + dice.below(250) as u8);
            }
            let mut writer = BaseWriter::create(storage.as_ref(), replica, disk(number), SIZE).unwrap();
            if at_rest.key.is_some() {
                writer = writer.at_rest(&rig.keys).unwrap();
            }
            for (at, piece) in (0..).step_by(64 << 10).zip(content.chunks(64 << 10)) {
                assert_eq!(writer.position(), at);
                writer.data(piece, Lsn::ZERO).unwrap();
            }
            let root = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
            let base = root.named(Lsn::ZERO);
            let info = DiskInfo {
                id: disk(number),
                name: format!("disk{number}"),
                size: SIZE,
                source: String::new(),
                added: Lsn::ZERO,
                removed: None,
                stopped: None,
                base: Some(base),
            };
            rig.writer.edit(|manifest| manifest.disks.push(info));
            first.push(content);
        }
        rig.drain();
        rig.start(timeline(1), None, Lsn::ZERO);
        let mut source = Source::new(seed, timeline(1));
        source.size = SIZE / BLOCK * BLOCK;
        source.note(RecordKind::TimelineStart, None, Note::TimelineStart { parent: None, fork: Lsn::ZERO });
        Self { rig, source, first, pinned: BTreeSet::new(), ids: seed, looks: false, stops: false }
    }

    fn replica(&self) -> Result<Replica, String> {
        let (writer, storage) = (&self.rig.writer, Arc::clone(&self.rig.storage));
        let safe = writer.durable().lsn();
        let keys = Arc::clone(&self.rig.keys);
        Replica::load_with(storage, writer.manifest().clone(), writer.snapshot(), safe, keys).map_err(|e| e.to_string())
    }

    /// The effects that were wished for are done, unless the power went.
    fn settle(&mut self) -> Result<(), String> {
        self.rig.drain();
        match self.rig.writer.state() {
            WriterState::Failed(error) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn play(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Write(records) => self.write(records),
            Step::Pin(dice) => {
                let Some(lsn) = self.any_of(dice) else { return Ok(()) };
                let timeline = self.timeline_of(lsn);
                let pin = PinInfo { label: String::new(), timeline, lsn, created: WallTime(1) };
                self.rig.writer.edit(|manifest| manifest.pins.push(pin));
                self.settle()?;
                self.pinned.insert(lsn);
                Ok(())
            }
            Step::Unpin(dice) => {
                let chosen = self.pinned.iter().nth(dice as usize % self.pinned.len().max(1)).copied();
                let Some(lsn) = chosen else { return Ok(()) };
                self.pinned.remove(&lsn);
                self.rig.writer.edit(|manifest| manifest.pins.retain(|pin| pin.lsn != lsn));
                self.settle()
            }
            Step::Merge(dice) => self.any_of(dice).map_or(Ok(()), |lsn| self.advance(lsn)),
            Step::Release => self.release(),
        }
    }

    /// The oldest and the newest moment of the trunk that can be restored.
    fn span(&self) -> Option<(Lsn, Lsn)> {
        let oldest = self.rig.writer.manifest().oldest().map(|oldest| oldest.lsn);
        let first = self.source.model.history.first().map(|record| record.0);
        let newest = self.rig.writer.durable().lsn();
        oldest.or(first).filter(|from| *from <= newest).map(|from| (from, newest))
    }

    /// One of them that is some record's.
    fn any_of(&self, dice: u64) -> Option<Lsn> {
        let (from, to) = self.span()?;
        let inside = self.source.model.history.iter().map(|record| record.0).filter(|lsn| (from..=to).contains(lsn));
        let inside: Vec<_> = inside.collect();
        inside.get(dice as usize % inside.len().max(1)).copied()
    }

    fn timeline_of(&self, lsn: Lsn) -> Timeline {
        self.source.model.history.iter().find(|record| record.0 >= lsn).map_or(self.source.timeline, |record| record.1)
    }

    fn write(&mut self, records: u64) -> Result<(), String> {
        for number in 0..records {
            self.source.any();
            if number % 12 == 11 || number + 1 == records {
                for frame in self.source.frames(Compression::Zstd(1)) {
                    self.append(frame)?;
                }
            }
            if number % 35 == 34 {
                self.rig.writer.roll();
            }
        }
        self.rig.writer.roll();
        self.rig.writer.request_sync();
        self.settle()
    }

    fn append(&mut self, mut frame: cdp_core::frame::EncodedFrame) -> Result<(), String> {
        loop {
            match self.rig.writer.append(self.rig.now, frame) {
                Ok(_) => return Ok(()),
                Err(refused) => frame = refused.frame,
            }
            self.settle()?;
        }
    }

    fn ids(&mut self) -> IdSource {
        self.ids += 1;
        let mut dice = Dice(self.ids << 20);
        Box::new(move || std::array::from_fn(|_| dice.next() as u8))
    }

    /// Merges up to `target` as an owner does, stopping at what is held.
    fn advance(&mut self, target: Lsn) -> Result<(), String> {
        loop {
            if let Some(to) = self.rig.writer.manifest().merge {
                self.merge(to)?;
                continue;
            }
            let held = retention::held(self.rig.writer.manifest());
            let Some(lsn) = retention::stop(self.rig.writer.manifest(), &held, target) else { return Ok(()) };
            let replica = self.replica()?;
            let timeline = self.timeline_of(lsn);
            let moment = replica.exact(timeline, lsn).map_err(|e| e.to_string())?;
            let keep = retention::to_keep(self.rig.writer.manifest(), &held, replica.catalogue());
            if let Some(keep) = &keep {
                let timeline = Timeline::new(self.ids()()).unwrap();
                let storage = self.rig.storage.as_ref();
                kept::create(storage, self.rig.writer.manifest(), keep.number, timeline, now())
                    .map_err(|e| e.to_string())?;
            }
            let to = StampedMoment { timeline, lsn, stamp: moment.stamp };
            let point = retention::point_at(replica.catalogue(), &to);
            retention::begin(&mut self.rig.writer, to, point, keep);
            self.settle()?;
        }
    }

    fn merge(&mut self, to: StampedMoment) -> Result<(), String> {
        let storage = Arc::clone(&self.rig.storage);
        let replica = self.replica()?;
        let manifest = self.rig.writer.manifest().clone();
        let newest = manifest.kept.last().map(|kept| kept.number);
        let ids = self.ids();
        let space = newest
            .map(|number| Space::open(storage.as_ref(), number, (0, u64::MAX), (&self.rig.keys, ids), now()))
            .transpose();
        let space = space.map_err(|e| e.to_string())?;
        let path = replica.path(to.timeline, to.lsn).map_err(|e| e.to_string())?;
        let mut merge =
            Merge::begin(&storage, &manifest, to, &path, replica.bases(), space).map_err(|e| e.to_string())?;
        while merge.step(now(), 300 << 10).map_err(|e| e.to_string())? {
            if self.looks {
                self.check(&mut Dice(self.ids), 1).map_err(|why| format!("in the midst of a merge: {why}"))?;
            }
        }
        if self.stops {
            return Err("stopped".to_owned());
        }
        let bases = merge.finish(now()).map_err(|e| e.to_string())?;
        retention::end(&mut self.rig.writer, &bases);
        self.settle()?;
        merge::clean_up(storage.as_ref()).map_err(|e| e.to_string())
    }

    fn release(&mut self) -> Result<(), String> {
        let held = retention::held(self.rig.writer.manifest());
        let Some((_, numbers)) = retention::release(&mut self.rig.writer, &held) else { return Ok(()) };
        self.settle()?;
        numbers
            .into_iter()
            .try_for_each(|number| kept::remove(self.rig.storage.as_ref(), number))
            .map_err(|e| e.to_string())
    }

    fn expected(&self, number: u16, lsn: Lsn) -> Vec<u8> {
        let mut bytes = self.first[usize::from(number) - 1].clone();
        for (at, _, of, extent, data) in &self.source.model.history {
            if *of != number || *at > lsn {
                continue;
            }
            let range = extent.offset as usize..extent.end() as usize;
            match data {
                Some(data) => bytes[range].copy_from_slice(data),
                None => bytes[range].fill(0),
            }
        }
        bytes
    }

    /// Every kept and pinned moment, and some of the others, as a reader finds them.
    fn check(&self, dice: &mut Dice, others: u64) -> Result<(), String> {
        let replica = self.replica()?;
        let manifest = self.rig.writer.manifest();
        let pinned: BTreeSet<_> = manifest.pins.iter().map(|pin| pin.lsn).collect();
        if let Some(lost) = self.pinned.difference(&pinned).next() {
            return Err(format!("the pin of LSN {lost} is forgotten"));
        }
        let Some((from, to)) = self.span() else { return Ok(()) };
        let others = (0..others).filter_map(|_| self.any_of(dice.next()));
        let moments: BTreeSet<_> = others.chain(pinned).chain([from]).collect();
        for lsn in moments {
            let timeline = self.timeline_of(lsn);
            let restorable = replica.catalogue().branch(timeline).is_some_and(|branch| branch.is_restorable(lsn));
            if !restorable {
                return Err(format!("LSN {lsn} of {from} to {to} is not restorable"));
            }
            let moment = replica.exact(timeline, lsn).map_err(|e| e.to_string())?;
            let stamp = self.source.stamps.iter().rfind(|(at, _)| *at <= lsn).map(|(_, stamp)| *stamp);
            if stamp.is_some_and(|stamp| stamp != moment.stamp) {
                return Err(format!("the stamp of LSN {lsn} is {:?}, not {stamp:?}", moment.stamp));
            }
            let view = replica.view(timeline, lsn).map_err(|e| format!("LSN {lsn}: {e}"))?;
            for number in 1..=DISKS {
                let mut found = vec![0xee; SIZE as usize];
                view.read(disk(number), 0, &mut found).map_err(|e| format!("LSN {lsn}: {e}"))?;
                let expected = self.expected(number, lsn);
                if found != expected
                    && let Some(at) = (0..found.len()).find(|at| found[*at] != expected[*at])
                {
                    let why = format!("disk {number} at LSN {lsn}, byte {at}: {} is not {}", found[at], expected[at]);
                    return Err(why);
                }
            }
        }
        if let Some(merged) = manifest.oldest().map(|oldest| oldest.lsn.prev()) {
            let kept = manifest.kept.iter().any(|kept| kept.moment.lsn == merged);
            let found = replica.catalogue().branches().iter().any(|branch| branch.is_restorable(merged));
            if found && !kept {
                return Err(format!("LSN {merged} is offered, and the oldest is {from}"));
            }
        }
        Ok(())
    }

    /// After a crash: what is there is taken over, and goes on on a timeline of its own.
    fn recover(self, found: Arc<dyn Storage>) -> Result<Self, String> {
        let at_rest = self.rig.at_rest.clone();
        let opened = at_rest.open(found.as_ref(), None).map_err(|e| e.to_string())?;
        let parent = opened.manifest.timelines.last().map(|info| info.id);
        let durable = opened.durable.lsn();
        retention::clean_up(found.as_ref(), &opened.manifest).map_err(|e| e.to_string())?;
        let rig = Rig::with_at_rest(found, opened, self.ids + 77, options(), &at_rest);
        let Self { mut source, first, pinned, ids, looks, stops, .. } = self;
        source.model.history.retain(|record| record.0 <= durable);
        source.stamps.retain(|(lsn, _)| *lsn <= durable);
        let number = rig.writer.manifest().timelines.last().map_or(0, |info| info.number) + 1;
        let next = timeline(number as u8);
        source.fork(next, durable.max(source.lsn));
        source.note(RecordKind::TimelineStart, None, Note::TimelineStart { parent, fork: durable });
        let mut life = Self { rig, source, first, pinned, ids, looks, stops };
        let info = TimelineInfo {
            id: next,
            number,
            parent,
            fork: durable,
            last: None,
            state: TimelineState::Open,
            role: TimelineRole::Trunk,
            opened: WallTime(1),
        };
        life.rig.writer.open_timeline(info);
        life.settle()?;
        Ok(life)
    }
}

#[test]
fn every_moment_that_is_kept_reads_as_it_did() {
    let mut kept = 0;
    for seed in 0..3 {
        let (mut dice, at_rest) = (Dice(seed), &AtRest::both()[seed as usize % 2]);
        let mut life = Life::new(Arc::new(SimDisk::new()), seed, at_rest);
        life.looks = true;
        for step in script(seed, 20) {
            life.play(step)
                .and_then(|()| life.check(&mut dice, 2))
                .unwrap_or_else(|why| panic!("seed {seed}, {step:?}: {why}"));
        }
        kept += life.rig.writer.manifest().next_kept - 1;
        at_rest.check().unwrap();
    }
    assert!(kept > 0, "nothing is kept");
}

/// One life, whose power goes at the `cut`-th effect; then what is left of its script. Gives how many effects it has.
fn story(seed: u64, cut: Option<u64>, at_rest: &AtRest) -> Result<u64, String> {
    let mut dice = Dice(seed ^ cut.unwrap_or(0));
    let disk = SimDisk::new();
    let mut life = Life::new(Arc::new(disk.clone()), seed, at_rest);
    let before = disk.effects();
    if let Some(cut) = cut {
        disk.cut_at(before + cut);
    }
    let mut steps = script(seed, 14).into_iter();
    let mut cut_short = None;
    for step in steps.by_ref() {
        if let Err(why) = life.play(step) {
            cut_short = Some((step, why));
            break;
        }
    }
    let effects = disk.effects() - before;
    let Some((step, why)) = cut_short else { return Ok(effects) };
    if cut.is_none() {
        return Err(format!("{step:?}: {why}"));
    }
    let found = Arc::new(disk.after_cut(Survival::Some(seed ^ cut.unwrap_or(0))));
    let mut life = life.recover(found)?;
    life.check(&mut dice, 1).map_err(|why| format!("found after {step:?}: {why}"))?;
    for step in [Step::Write(12), Step::Merge(dice.next())].into_iter().chain(steps.take(2)) {
        life.play(step).map_err(|why| format!("going on with {step:?}: {why}"))?;
    }
    life.check(&mut dice, 1).map_err(|why| format!("after it: {why}"))?;
    at_rest.check().map(|_| effects)
}

/// So many cuts of each life, evenly, or all (`CDP_LIFE_CUTS=0`); so many lives (`CDP_LIFE_SEEDS`).
#[test]
fn a_cut_at_any_effect_of_a_life_changes_no_moment() {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (seeds, cuts) = (number("CDP_LIFE_SEEDS", 1), number("CDP_LIFE_CUTS", 25));
    let mut points = 0;
    for (seed, sealed) in (0..seeds).flat_map(|seed| [(seed, false), (seed, true)]) {
        let told = |cut| story(seed, cut, &if sealed { AtRest::sealed() } else { AtRest::default() });
        let effects = told(None).unwrap_or_else(|why| panic!("seed {seed}, sealed {sealed}: {why}"));
        let stride = effects.checked_div(cuts).unwrap_or(1).max(1);
        for cut in (1 + seed % stride..=effects).step_by(stride as usize) {
            told(Some(cut)).unwrap_or_else(|why| panic!("seed {seed}, sealed {sealed}, cut {cut}: {why}"));
            points += 1;
        }
    }
    println!("{points} crash points");
}

/// Every file of the directory, also of the stores inside it.
fn contents(storage: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let of = |directory: &str| {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let names = storage.list(directory).unwrap_or_default().into_iter();
        names.map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
    };
    let mut names: Vec<_> = of("").into_iter().chain(of("journal")).chain(of("base")).collect();
    names.extend(of("kept").iter().flat_map(|directory| of(directory)));
    let read = |name: String| {
        let file = storage.open(&name, false).ok()?;
        let mut bytes = vec![0; file.len().ok()? as usize];
        file.read_exact_at(0, &mut bytes).ok()?;
        Some((name, bytes))
    };
    names.into_iter().filter_map(read).collect()
}

/// Blocks that say a secret are in a base, then changed in parts while their moment is kept: nothing of it is plain in any file, in
/// the midst of the merge too; and a block that is torn then is read from where the merge keeps it.
#[test]
fn what_a_merge_keeps_is_sealed_and_used_when_a_block_is_torn() {
    for at_rest in AtRest::both() {
        let disk_of_test = SimDisk::new();
        let mut life = Life::new(Arc::new(disk_of_test.clone()), 3, &at_rest);
        let secret = |number: u64| [b'a' + number as u8; 64];
        (0..10).for_each(|number| life.source.bytes(1, number * 8 * BLOCK, &secret(number).repeat(64)));
        life.write(1).unwrap();
        let first = life.source.lsn;
        life.advance(first).unwrap();
        let timeline = life.source.timeline;
        let pin = PinInfo { label: String::new(), timeline, lsn: first, created: WallTime(1) };
        life.rig.writer.edit(|manifest| manifest.pins.push(pin));
        life.pinned.insert(first);
        (0..10).for_each(|number| life.source.bytes(1, number * 8 * BLOCK + SECTOR, &[7; SECTOR as usize]));
        life.write(1).unwrap();
        let upto = life.source.lsn;
        // As an owner does it, up to where the merge has written everything and the manifest does not say so.
        life.stops = true;
        life.advance(upto).unwrap_err();
        let said = |life: &Life| {
            let files = contents(&disk_of_test);
            let windows = files.iter().flat_map(|(_, bytes)| bytes.windows(64));
            let found = windows.filter(|window| (0..10).any(|number| *window == secret(number)));
            let (found, kept) = (found.count(), life.rig.writer.manifest().kept.len());
            assert_eq!((found > 0, kept), (at_rest.key.is_none(), 1));
        };
        said(&life);
        let image = disk_of_test.open("base/1.img", true).unwrap();
        for number in 0..10 {
            let at = number * 8 * BLOCK + if at_rest.key.is_some() { 0 } else { SECTOR };
            image.write_all_at(at, &[0x5a; 8]).unwrap();
        }
        life.check(&mut Dice(1), 4).unwrap();
        life.stops = false;
        life.advance(upto).unwrap();
        said(&life);
        life.check(&mut Dice(2), 4).unwrap();
        at_rest.check().unwrap();
    }
}

/// Every file of a store, whatever directory it is in.
fn files(storage: &Memory) -> Vec<String> {
    let mut names = vec!["MANIFEST".to_owned()];
    let kept = storage.list(kept::KEPT_DIRECTORY).unwrap().into_iter();
    let kept = kept.map(|name| format!("{}/{name}", kept::KEPT_DIRECTORY));
    for directory in [DIRECTORY.to_owned(), "base".to_owned()].into_iter().chain(kept) {
        names.extend(storage.list(&directory).unwrap().into_iter().map(|name| format!("{directory}/{name}")));
    }
    names
}

/// What is read of a damaged store: the right bytes, or an error.
fn read_damaged(life: &Life, storage: &Memory, moments: &BTreeSet<Lsn>) -> Result<(), String> {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    let Ok(looked) = life.rig.at_rest.look(storage.as_ref(), None) else { return Ok(()) };
    let safe = looked.snapshot.durable().lsn();
    let Ok(replica) = Replica::load_with(storage, looked.manifest, looked.snapshot, safe, looked.keys) else {
        return Ok(());
    };
    for lsn in moments {
        let timeline = life.timeline_of(*lsn);
        let offered = replica.catalogue().branch(timeline).is_some_and(|branch| branch.is_restorable(*lsn));
        let Some(Ok(view)) = offered.then(|| replica.view(timeline, *lsn)) else { continue };
        for number in 1..=DISKS {
            let mut found = vec![0xee; SIZE as usize];
            if view.read(disk(number), 0, &mut found).is_ok() && found != life.expected(number, *lsn) {
                return Err(format!("wrong bytes of disk {number} at LSN {lsn}"));
            }
        }
    }
    Ok(())
}

#[test]
fn whatever_is_done_to_any_file_no_wrong_byte_is_given() {
    AtRest::both().iter().for_each(no_wrong_byte_is_given);
}

fn no_wrong_byte_is_given(at_rest: &AtRest) {
    let storage = Memory::new();
    let mut life = Life::new(Arc::new(storage.clone()), 2, at_rest);
    let mut steps = Dice(3);
    while life.rig.writer.manifest().kept.len() < 2 {
        for step in [Step::Write(40), Step::Pin(steps.next()), Step::Merge(steps.next())] {
            life.play(step).unwrap();
        }
    }
    let (from, to) = life.span().unwrap();
    let moments: BTreeSet<_> = life.pinned.iter().copied().chain([from, to]).collect();
    let mut dice = Dice(5);
    let rounds = std::env::var("CDP_CORRUPTIONS").map_or(40, |text| text.parse::<u64>().expect("a number").min(400));
    for round in 0..rounds {
        let copy = Memory::new();
        for name in files(&storage) {
            copy.create(&name).unwrap().write_all_at(0, &read(&storage, &name)).unwrap();
        }
        // As many of each kind: there are far more segments than others.
        let kinds = ["MANIFEST", DIRECTORY, "base/", kept::KEPT_DIRECTORY];
        let kind = kinds[dice.below(4) as usize];
        let names: Vec<_> = files(&copy).into_iter().filter(|name| name.starts_with(kind)).collect();
        let names: Vec<_> = names.into_iter().filter(|name| !read(&copy, name).is_empty()).collect();
        let (what, _) = damage_one_of(&copy, &names, &mut dice);
        read_damaged(&life, &copy, &moments).unwrap_or_else(|why| panic!("round {round}, {what}: {why}"));
    }
}
