//! Merging into the bases: what is read stays what it was, whatever happens in between.

use super::kit::*;
use cdp_core::frame::Compression;
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::Bases;
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::merge::{Merge, clean_up, expect_torn};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::sync::Arc;

/// More than one page of checksums, and no whole block at the end.
const SIZE: u64 = (3 << 19) + 512;
const DISKS: u16 = 2;

fn replica() -> ReplicaId {
    ReplicaId::new([5; 16]).unwrap()
}

/// A replica with bases, and everything that its disks should read as.
struct World {
    rig: Rig,
    source: Source,
    first: Vec<Vec<u8>>,
    /// The last LSN that was merged or begun to be.
    floor: Lsn,
}

impl World {
    fn new(storage: Arc<dyn Storage>, seed: u64, at_rest: &AtRest) -> Self {
        let mut rig = Rig::create_at_rest(Arc::clone(&storage), at_rest);
        let mut dice = Dice(seed);
        let mut first = Vec::new();
        for number in 1..=DISKS {
            let mut content = vec![0; SIZE as usize];
            // Some data, some holes.
            for _ in 0..6 {
                let (at, length) = (dice.below(SIZE / BLOCK) * BLOCK, (1 + dice.below(60)) * BLOCK);
                let end = (at + length).min(SIZE);
                content[at as usize..end as usize].fill(1 + dice.below(250) as u8);
            }
            let mut writer = BaseWriter::create(storage.as_ref(), replica(), disk(number), SIZE).unwrap();
            if at_rest.key.is_some() {
                writer = writer.at_rest(&rig.keys).unwrap();
            }
            let mut at = 0;
            while at < content.len() {
                let end = (at + (64 << 10)).min(content.len());
                writer.data(&content[at..end], Lsn::ZERO).unwrap();
                at = end;
            }
            let root = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
            let base = root.named(Lsn::ZERO);
            rig.writer.edit(|manifest| {
                manifest.disks.push(DiskInfo {
                    id: disk(number),
                    name: format!("disk{number}"),
                    size: SIZE,
                    source: String::new(),
                    added: Lsn::ZERO,
                    removed: None,
                    stopped: None,
                    base: Some(base),
                });
            });
            first.push(content);
        }
        rig.drain();
        rig.start(timeline(1), None, Lsn::ZERO);
        let mut source = Source::new(seed, timeline(1));
        source.size = SIZE / BLOCK * BLOCK;
        Self { rig, source, first, floor: Lsn::ZERO }
    }

    fn write(&mut self, records: u64, dice: &mut Dice) {
        for _ in 0..records {
            self.source.any();
            if dice.below(12) == 0 {
                for frame in self.source.frames(Compression::Zstd(1)) {
                    self.rig.append(frame);
                }
            }
            if dice.below(40) == 0 {
                self.rig.writer.roll();
                self.rig.drain();
            }
        }
        self.source.frames(Compression::None).into_iter().for_each(|frame| drop(self.rig.append(frame)));
        self.rig.writer.roll();
        self.rig.sync();
        self.rig.drain();
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

    fn merge(&mut self, upto: Lsn, mut between: impl FnMut(&Self, &Bases)) -> Result<(), String> {
        let info = MergeInfo { timeline: timeline(1), upto };
        self.rig.writer.edit(|manifest| manifest.merge = Some(info));
        self.rig.drain();
        let bases = bases(&self.rig)?;
        self.go_on(info, &bases, &mut between)
    }

    /// The merge that the manifest names, to its end.
    fn go_on(
        &mut self,
        info: MergeInfo,
        bases: &Arc<Bases>,
        between: &mut dyn FnMut(&Self, &Bases),
    ) -> Result<(), String> {
        let path = path(&self.rig.reader(), &self.rig.writer.snapshot(), &[(info.timeline, info.upto)]);
        let storage = Arc::clone(&self.rig.storage);
        let merge = Merge::begin(&storage, self.rig.writer.manifest(), info, &path, bases);
        let mut merge = merge.map_err(|e| e.to_string())?;
        while merge.step(100 << 10).map_err(|e| e.to_string())? {
            between(self, bases);
        }
        between(self, bases);
        let done = merge.finish().map_err(|e| e.to_string())?;
        self.rig.writer.edit(|manifest| {
            manifest.merge = None;
            for (id, base) in done {
                manifest.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.base = Some(base));
            }
        });
        let merged = |segment: &SegmentInfo| {
            segment.summary().is_some_and(|summary| summary.last_lsn <= info.upto).then_some(segment.number)
        };
        self.rig.drain();
        let numbers: Vec<_> = self.rig.writer.manifest().segments.iter().filter_map(merged).collect();
        self.rig.writer.forget(&numbers);
        self.rig.drain();
        if let WriterState::Failed(error) = self.rig.writer.state() {
            return Err(error.to_string());
        }
        clean_up(storage.as_ref()).map_err(|e| e.to_string())
    }
}

/// Opened as everybody opens them.
fn bases(rig: &Rig) -> Result<Arc<Bases>, String> {
    let (storage, manifest, mut bases) = (rig.storage.as_ref(), rig.writer.manifest(), Bases::default());
    for info in &manifest.disks {
        let (root, keys) = (info.base.unwrap().into(), Arc::clone(&rig.keys));
        let base = Base::open_with(storage, replica(), info.id, root, keys).map_err(|e| e.to_string())?;
        bases.insert(info.id, Arc::new(base));
    }
    if let Some(merge) = manifest.merge {
        expect_torn(storage, &bases, merge).map_err(|e| e.to_string())?;
    }
    Ok(Arc::new(bases))
}

/// Every disk at some moments from `floor` on.
fn check(
    world: &World,
    reader: &Arc<Reader>,
    snapshot: &Snapshot,
    bases: &Bases,
    floor: Lsn,
    dice: &mut Dice,
) -> Result<(), String> {
    let last = snapshot.durable().lsn();
    for _ in 0..2 {
        let lsn = Lsn(floor.0 + dice.below(last.0 - floor.0 + 1));
        let view = View::open(&path(reader, snapshot, &[(timeline(1), lsn)]), 1 << 20).map_err(|e| e.to_string())?;
        for number in 1..=DISKS {
            let mut found = vec![0xee; SIZE as usize];
            view.read(disk(number), 0, &mut found, bases).map_err(|e| format!("LSN {lsn}: {e}"))?;
            let expected = world.expected(number, lsn);
            if found != expected
                && let Some(at) = (0..found.len()).find(|at| found[*at] != expected[*at])
            {
                let why = format!("disk {number} at LSN {lsn}, byte {at}: {} is not {}", found[at], expected[at]);
                return Err(why);
            }
        }
    }
    Ok(())
}

#[test]
fn every_moment_that_stays_reads_the_same_before_during_and_after_merges() {
    for seed in 0..4 {
        let (mut dice, at_rest) = (Dice(seed), &AtRest::both()[seed as usize % 2]);
        let mut world = World::new(Arc::new(SimDisk::new()), seed, at_rest);
        for _ in 0..4 {
            world.write(60 + dice.below(60), &mut dice);
            let durable = world.rig.writer.durable().lsn();
            let upto = Lsn(world.floor.0 + 1 + dice.below(durable.0 - world.floor.0));
            let mut looks = Dice(dice.next());
            let merged = world.merge(upto, |world, bases| {
                let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
                check(world, &reader, &snapshot, bases, upto, &mut looks).unwrap();
            });
            merged.unwrap();
            world.floor = upto;
            let after = bases(&world.rig).unwrap();
            let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
            check(&world, &reader, &snapshot, &after, upto, &mut dice).unwrap();
            let left = world.rig.writer.manifest().segments.iter().filter_map(SegmentInfo::summary);
            assert!(left.clone().all(|summary| summary.last_lsn > upto), "merged segments are gone");
        }
        at_rest.check().unwrap();
    }
}

/// One story: two merges, the power goes at the `cut`-th effect of the second one, what is found is looked at, the merge is done
/// to its end. Gives how many effects the second merge has.
fn story(seed: u64, cut: Option<u64>, at_rest: &AtRest) -> Result<u64, String> {
    let mut dice = Dice(seed);
    let disk = SimDisk::new();
    let mut world = World::new(Arc::new(disk.clone()), seed, at_rest);
    world.write(80, &mut dice);
    let half = Lsn(world.rig.writer.durable().lsn().0 / 2);
    world.merge(half, |_, _| {})?;
    world.floor = half;
    world.write(60, &mut dice);
    let upto = Lsn(world.rig.writer.durable().lsn().0 - dice.below(10));
    let before = disk.effects();
    if let Some(cut) = cut {
        disk.cut_at(before + cut);
    }
    let merged = world.merge(upto, |_, _| {});
    let effects = disk.effects() - before;
    if cut.is_none() {
        merged?;
        return Ok(effects);
    }
    let found = Arc::new(disk.after_cut(Survival::Some(seed ^ cut.unwrap_or(0))));
    let opened = at_rest.open(found.as_ref(), None).map_err(|e| e.to_string())?;
    let mut rig = Rig::with_at_rest(found.clone(), opened, seed + 100, options(), at_rest);
    rig.drain();
    let floor = match rig.writer.manifest().merge {
        Some(info) => info.upto,
        None => rig.writer.manifest().disks[0].base.unwrap().lsn,
    };
    let World { source, first, .. } = world;
    let mut world = World { rig, source, first, floor };
    let old = bases(&world.rig)?;
    let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
    check(&world, &reader, &snapshot, &old, floor, &mut dice).map_err(|e| format!("found: {e}"))?;
    if let Some(info) = world.rig.writer.manifest().merge {
        world.go_on(info, &old, &mut |_, _| {}).map_err(|e| format!("done again: {e}"))?;
    }
    let after = bases(&world.rig)?;
    let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
    check(&world, &reader, &snapshot, &after, floor, &mut dice).map_err(|e| format!("after it: {e}"))?;
    at_rest.check()?;
    Ok(effects)
}

#[test]
fn a_cut_at_every_effect_of_a_merge_changes_no_moment() {
    let seeds: u64 = std::env::var("CDP_MERGE_SEEDS").map_or(1, |text| text.parse().expect("a number"));
    let mut points = 0;
    for (seed, sealed) in (0..seeds).flat_map(|seed| [(seed, false), (seed, true)]) {
        let told = |cut| story(seed, cut, &if sealed { AtRest::sealed() } else { AtRest::default() });
        let effects = told(None).unwrap();
        for cut in 1..=effects {
            told(Some(cut)).unwrap_or_else(|why| panic!("seed {seed}, sealed {sealed}, cut {cut}: {why}"));
            points += 1;
        }
    }
    println!("{points} crash points");
}

/// Everything under `base/`, while a merge is under way and after it.
fn base_files(storage: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let names = storage.list("base").unwrap().into_iter().map(|name| format!("base/{name}"));
    let read = |name: String| {
        let file = storage.open(&name, false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        (name, bytes)
    };
    names.map(read).collect()
}

/// What a merge writes is sealed, also what it keeps of blocks that it changes in parts; and when such a block is torn, what stays
/// of it is read from there.
#[test]
fn what_a_merge_keeps_of_a_block_is_sealed_and_used_when_it_is_torn() {
    for at_rest in AtRest::both() {
        let storage = SimDisk::new();
        let mut world = World::new(Arc::new(storage.clone()), 3, &at_rest);
        let secret = |number: u64| vec![b'a' + number as u8; 64];
        // Blocks that hold little but a secret, merged; then a sector of each is changed.
        for number in 0..10 {
            let bytes = secret(number).repeat(64);
            world.source.bytes(1, number * 8 * BLOCK, &bytes);
        }
        world.write(0, &mut Dice(1));
        world.merge(world.rig.writer.durable().lsn(), |_, _| {}).unwrap();
        for number in 0..10 {
            world.source.bytes(1, number * 8 * BLOCK + SECTOR, &[7; SECTOR as usize]);
        }
        world.write(0, &mut Dice(2));
        let upto = world.rig.writer.durable().lsn();
        let mut seen = (0, 0);
        let merged = world.merge(upto, |world, _| {
            for (name, bytes) in base_files(&storage) {
                for number in 0..10 {
                    let found = bytes.windows(64).filter(|window| *window == secret(number)).count();
                    assert!(found == 0 || at_rest.key.is_none(), "{name} says {number}");
                    seen.0 += found;
                }
            }
            // Whoever opens the bases now finds each of these blocks torn, its first bytes as if they were not written.
            let image = storage.open("base/1.img", true).unwrap();
            let mut kept = [0; 8];
            for number in 0..10 {
                let at = number * 8 * BLOCK + if at_rest.key.is_some() { 0 } else { SECTOR };
                image.read_exact_at(at, &mut kept).unwrap();
                image.write_all_at(at, &[0x5a; 8]).unwrap();
                let torn = bases(&world.rig).unwrap();
                let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
                check(world, &reader, &snapshot, &torn, upto, &mut Dice(number)).unwrap();
                image.write_all_at(at, &kept).unwrap();
                seen.1 += 1;
            }
        });
        merged.unwrap();
        assert!(seen.1 >= 10 && (seen.0 > 0) == at_rest.key.is_none(), "{seen:?}");
    }
}
