//! First copies that are cut short, go on, and are the source in the end: also when the source crashed and began a new timeline,
//! with writes that nobody ever recorded.

use super::kit::{AtRest, Dice, Rig, Source, disk, options, timeline};
use cdp_core::frame::Compression;
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::base::{Adoption, BaseWriter, file_names};
use cdp_core::replica::compare::{Answer, Compare, CompareOptions, Outcome, Output};
use cdp_core::replica::content::DiskView;
use cdp_core::replica::seeding::is_begun;
use cdp_core::replica::{Replica, ViewDisk};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::sync::Arc;

const SIZE: u64 = 6 << 20;
const COPIES: u64 = 24;

/// A source, its filter's records, and the replica host.
struct World {
    dice: Dice,
    media: SimDisk,
    rig: Rig,
    records: Source,
    disk: Vec<u8>,
    attempt: u64,
    copy: Option<BaseWriter>,
}

impl World {
    fn new(seed: u64, at_rest: &AtRest) -> Self {
        let media = SimDisk::new();
        let mut rig = Rig::create_at_rest(Arc::new(media.clone()), at_rest);
        let (name, source, size) = ("disk".to_owned(), String::new(), SIZE);
        let (id, added, removed, stopped, base) = (disk(1), Lsn::ZERO, None, None, None);
        rig.writer.edit(|manifest| {
            manifest.disks.push(DiskInfo { id, name, size, source, added, removed, stopped, base });
        });
        rig.start(timeline(1), None, Lsn::ZERO);
        let mut disk = vec![0; SIZE as usize];
        let mut dice = Dice(seed);
        for block in disk.chunks_mut(BLOCK as usize).filter(|_| dice.below(4) > 0) {
            block.fill(seed as u8 | 1);
        }
        let records = Source::new(seed, timeline(1));
        let mut world = Self { dice, media, rig, records, disk, attempt: 0, copy: None };
        world.go_on();
        world
    }

    fn is_at_rest(&self) -> bool {
        self.rig.at_rest.key.is_some()
    }

    /// The copy begins, or goes on where the manifest says.
    fn go_on(&mut self) {
        let (keys, at_rest) = (Arc::clone(&self.rig.keys), self.is_at_rest());
        let keys = at_rest.then_some(keys.as_ref());
        let found = self.rig.writer.manifest().seeding_of(disk(1)).copied();
        let fresh = SeedingInfo { at_rest, ..SeedingInfo::new(disk(1), SIZE, self.records.timeline) };
        let info = found.unwrap_or(fresh);
        let mut attempt = None;
        self.rig.writer.edit(|manifest| attempt = manifest.begin_seeding(info));
        self.rig.drain();
        let (storage, replica) = (Arc::clone(&self.rig.storage), self.rig.writer.manifest().replica);
        let copy = match found {
            Some(info) => BaseWriter::resume(storage.as_ref(), replica, &info, SIZE, keys).unwrap(),
            None => {
                let begun = BaseWriter::create(storage.as_ref(), replica, disk(1), SIZE).unwrap();
                match keys {
                    Some(keys) => begun.at_rest(keys).unwrap(),
                    None => begun,
                }
            }
        };
        (self.attempt, self.copy) = (attempt.unwrap(), Some(copy));
    }

    fn write(&mut self) {
        let offset = self.dice.below(SIZE / 512) * 512;
        let length = ((1 + self.dice.below(64)) * 512).min(SIZE - offset) as usize;
        let bytes = vec![self.dice.next() as u8; length];
        self.disk[offset as usize..][..length].copy_from_slice(&bytes);
        self.records.bytes(1, offset, &bytes);
    }

    /// Records reach the replica; or are lost with the source, or with the link.
    fn send(&mut self) {
        for frame in self.records.frames(Compression::None) {
            self.rig.append(frame);
        }
        self.rig.sync();
    }

    fn copy(&mut self) {
        let length = (1 + self.dice.below(60)) * BLOCK;
        let (lsn, copy) = (self.records.lsn, self.copy.as_mut().unwrap());
        let at = copy.position();
        let end = (at + length).min(SIZE);
        copy.data(&self.disk[at as usize..end as usize], lsn).unwrap();
    }

    fn checkpoint(&mut self) {
        let point = self.copy.as_mut().unwrap().checkpoint().unwrap().sync().unwrap();
        let attempt = self.attempt;
        let mut noted = false;
        self.rig.writer.edit(|manifest| noted = manifest.note_seeding(disk(1), attempt, point));
        self.rig.drain();
        assert!(noted);
        // What seals it outlives this process.
        let keys = &self.rig.writer.manifest().keys;
        assert!(keys.last().is_none_or(|newest| newest.bases));
    }

    fn step(&mut self, sends: bool) {
        match self.dice.below(10) {
            0..5 => self.write(),
            5..8 if self.copy.as_ref().unwrap().position() < SIZE => self.copy(),
            8 if sends => self.send(),
            9 => self.checkpoint(),
            _ => {}
        }
    }

    /// The power of the replica host goes, and it starts anew: of what it did not have durably, it has anything.
    fn restart(&mut self) {
        self.media = self.media.after_cut(Survival::Some(self.dice.next()));
        let storage: Arc<dyn Storage> = Arc::new(self.media.clone());
        let at_rest = self.rig.at_rest.clone();
        let opened = at_rest.open(storage.as_ref(), None).unwrap();
        self.copy = None;
        self.rig = Rig::with_at_rest(storage, opened, self.dice.next(), options(), &at_rest);
        self.rig.drain();
    }

    fn replica(&self) -> Replica {
        let (manifest, snapshot) = (self.rig.writer.manifest().clone(), self.rig.writer.snapshot());
        let (storage, keys) = (Arc::clone(&self.rig.storage), Arc::clone(&self.rig.keys));
        Replica::load_with(storage, manifest, snapshot, Lsn(u64::MAX), keys).unwrap()
    }

    /// The copy is through: its base is named.
    fn finish(&mut self) {
        while self.copy.as_ref().unwrap().position() < SIZE {
            self.step(true);
        }
        self.send();
        let root = self.copy.take().unwrap().finish(self.rig.storage.as_ref(), self.records.lsn).unwrap();
        let (attempt, mut named) = (self.attempt, false);
        self.rig.writer.edit(|manifest| named = manifest.end_seeding(disk(1), attempt, root.named(Lsn::ZERO)));
        self.rig.drain();
        assert!(named);
    }

    /// What the replica's disk is now.
    fn restored(&self) -> Vec<u8> {
        let view = self.replica().view(self.records.timeline, self.records.lsn).unwrap();
        let mut found = vec![0; SIZE as usize];
        view.read(disk(1), 0, &mut found).unwrap();
        found
    }

    /// Compares ranges with the replica as it is now, and records what differs.
    fn compare(&mut self, ranges: &[Extent]) -> u64 {
        let view = self.replica().view(self.records.timeline, self.records.lsn).unwrap();
        let there = DiskView::new(&view, ViewDisk { id: disk(1), name: "disk".into(), size: SIZE });
        let mut compare = Compare::new(CompareOptions::default());
        let pieces = |range: &Extent| {
            let range = *range;
            let starts = (range.offset..range.end()).step_by(1 << 20);
            starts.map(move |at| Extent::new(at, (range.end() - at).min(1 << 20))).collect::<Vec<_>>()
        };
        let mut waiting = ranges.iter().flat_map(pieces).peekable();
        let (now, mut buffer, mut differs) = (MonoTime(1), Vec::new(), Vec::new());
        loop {
            while let Some(extent) = waiting.next_if(|_| compare.has_room()) {
                compare.begin(extent.offset, disk(1), extent, self.records.lsn).unwrap();
            }
            match compare.poll(now) {
                Some(Output::Hash(job)) => {
                    let Extent { offset, length } = job.asked.extent();
                    let bytes = &self.disk[offset as usize..][..length as usize];
                    compare.hashed(job.id, Ok(job.asked.hashes_of(bytes).unwrap()));
                }
                Some(Output::Ask(ask)) => {
                    let answer = Answer::Hashes(ask.asked.hashes_in(&there, &mut buffer).unwrap());
                    compare.answered(now, ask.id, answer).unwrap();
                }
                Some(Output::Done(done)) => {
                    let Outcome::Differs(runs) = done.outcome else { panic!("{done:?}") };
                    differs.extend(runs);
                }
                None => break,
            }
        }
        assert!(waiting.peek().is_none() && compare.is_idle());
        for run in differs {
            let bytes = self.disk[run.offset as usize..][..run.length as usize].to_vec();
            self.records.bytes(1, run.offset, &bytes);
        }
        self.send();
        compare.counted().bytes_different
    }

    /// The source crashes: what the replica did not get, nobody has. It goes on in another timeline.
    fn crash(&mut self, next: Timeline) {
        // The last records never arrive; some of their bytes did not reach the source's media either.
        self.records.frames(Compression::None);
        if self.dice.below(2) == 0 {
            let at = self.dice.below(SIZE / BLOCK) * BLOCK;
            self.disk[at as usize..][..512].fill(0xdd);
        }
        let (parent, fork) = (self.records.timeline, self.rig.writer.snapshot().durable().lsn());
        self.records.fork(next, self.records.lsn);
        self.rig.start(next, Some(parent), fork);
        self.go_on();
    }
}

#[test]
fn after_a_crash_of_the_source_a_first_copy_goes_on_and_what_was_wrong_of_it_is_mended() {
    let (mut needed, mut found, mut looked) = (0, 0, 0);
    for seed in 0..COPIES {
        let at_rest = &AtRest::both()[(seed % 4 == 3) as usize];
        let mut world = World::new(seed, at_rest);
        let mut ranges = Vec::new();
        for life in 2..4 {
            for _ in 0..world.dice.below(60) {
                world.step(true);
            }
            // What comes now is not sent any more.
            for _ in 0..world.dice.below(12) {
                world.step(false);
            }
            if world.dice.below(3) == 0 {
                world.restart();
            }
            world.crash(timeline(life));
            ranges = world.replica().to_compare(disk(1)).unwrap();
            let begun = world.rig.writer.manifest().seeding_of(disk(1)).unwrap().point.done > 0;
            assert_eq!(is_begun(world.rig.writer.manifest()), begun);
        }
        world.finish();
        needed += u64::from(world.restored() != world.disk);
        found += world.compare(&ranges);
        looked += ranges.iter().map(|range| range.length).sum::<u64>();
        let restored = world.restored();
        let wrong = restored.iter().zip(&world.disk).position(|(kept, source)| kept != source);
        assert_eq!(wrong, None, "seed {seed}: the replica is not the source");
        assert_eq!(world.replica().to_compare(disk(1)).unwrap(), [], "it has its base");
        at_rest.check().unwrap();
    }
    println!("{needed} of {COPIES} copies were wrong before {looked} bytes were compared; {found} bytes differed");
    assert!(needed > COPIES / 4, "without the comparison nothing was wrong in {} of {COPIES}", COPIES - needed);
}

#[test]
fn after_a_crash_of_the_replica_host_alone_nothing_has_to_be_compared() {
    for seed in 0..12 {
        let mut world = World::new(seed, &AtRest::both()[(seed % 2) as usize]);
        for _ in 0..40 {
            world.step(true);
        }
        // The source sends again what is not durable; its timeline goes on.
        world.send();
        world.checkpoint();
        let copied = world.rig.writer.manifest().seeding_of(disk(1)).unwrap().point.done;
        world.restart();
        world.go_on();
        assert_eq!(world.copy.as_ref().unwrap().position(), copied);
        assert_eq!(world.attempt, 2, "what was sent to the first one is known by that");
        assert_eq!(world.replica().to_compare(disk(1)).unwrap(), []);
        world.finish();
        assert!(world.restored() == world.disk, "seed {seed}: the replica is not the source");
    }
}

#[test]
fn a_copy_that_begins_anew_is_compared_where_older_records_lie_over_it() {
    let mut world = World::new(1, &AtRest::default());
    world.records.bytes(1, 5 << 20, &[1; 4096]);
    world.send();
    // Never recorded.
    world.disk[5 << 20..][..4096].fill(2);
    world.rig.writer.edit(|manifest| manifest.seeding.clear());
    world.crash(timeline(2));
    let ranges = world.replica().to_compare(disk(1)).unwrap();
    assert_eq!(ranges, [Extent::new(5 << 20, 64 << 10)]);
    while world.copy.as_ref().unwrap().position() < SIZE {
        world.copy();
    }
    world.finish();
    assert!(world.restored() != world.disk, "an older record lies over what is read now");
    world.compare(&ranges);
    assert!(world.restored() == world.disk);
}

#[test]
fn an_older_copy_that_somebody_brought_is_compared_in_full_and_little_of_it_is_sent() {
    let mut world = World::new(4, &AtRest::default());
    world.copy = None;
    // What was brought: the disk as it was, beside writes since then that are recorded, and some that nobody saw.
    let image = world.rig.storage.open(&file_names(disk(1)).0, true).unwrap();
    image.set_len(SIZE).unwrap();
    image.write_all_at(0, &world.disk).unwrap();
    world.disk[3 << 20..][..8192].fill(0xcc);
    world.disk[512..1024].fill(0xcc);
    let info = SeedingInfo { adopted: true, ..SeedingInfo::new(disk(1), SIZE, timeline(1)) };
    let mut attempt = None;
    world.rig.writer.edit(|manifest| attempt = manifest.begin_seeding(info));
    let replica = world.rig.writer.manifest().replica;
    let storage = Arc::clone(&world.rig.storage);
    let mut adoption = Adoption::begin(storage.as_ref(), replica, disk(1), SIZE).unwrap();
    let mut at = 1 << 20;
    while adoption.step().unwrap() {
        world.disk[at..at + 1024].fill(0xab);
        world.records.bytes(1, at as u64, &[0xab; 1024]);
        at += 2048;
    }
    world.send();
    let ranges = world.replica().to_compare(disk(1)).unwrap();
    assert_eq!(ranges, [Extent::new(0, SIZE)]);
    let base = adoption.finish(storage.as_ref()).unwrap().named(Lsn::ZERO);
    world.rig.writer.edit(|manifest| assert!(manifest.end_seeding(disk(1), attempt.unwrap(), base)));
    world.rig.drain();
    assert!(world.restored() != world.disk);
    assert_eq!(world.compare(&ranges), 8192 + 4096);
    assert!(world.restored() == world.disk);
}
