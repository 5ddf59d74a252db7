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
    fn new(storage: Arc<dyn Storage>, seed: u64) -> Self {
        let mut rig = Rig::create(Arc::clone(&storage));
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
            let mut at = 0;
            while at < content.len() {
                let end = (at + (64 << 10)).min(content.len());
                writer.data(&content[at..end], Lsn::ZERO).unwrap();
                at = end;
            }
            let root = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
            let base = BaseInfo { lsn: Lsn::ZERO, generation: root.generation, size: SIZE, root: root.digest };
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
        let bases = bases(self.rig.storage.as_ref(), self.rig.writer.manifest())?;
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
fn bases(storage: &dyn Storage, manifest: &Manifest) -> Result<Arc<Bases>, String> {
    let mut bases = Bases::default();
    for info in &manifest.disks {
        let base = Base::open(storage, replica(), info.id, info.base.unwrap().into()).map_err(|e| e.to_string())?;
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
        let mut dice = Dice(seed);
        let mut world = World::new(Arc::new(SimDisk::new()), seed);
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
            let after = bases(world.rig.storage.as_ref(), world.rig.writer.manifest()).unwrap();
            let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
            check(&world, &reader, &snapshot, &after, upto, &mut dice).unwrap();
            let left = world.rig.writer.manifest().segments.iter().filter_map(SegmentInfo::summary);
            assert!(left.clone().all(|summary| summary.last_lsn > upto), "merged segments are gone");
        }
    }
}

/// One story: two merges, the power goes at the `cut`-th effect of the second one, what is found is looked at, the merge is done
/// to its end. Gives how many effects the second merge has.
fn story(seed: u64, cut: Option<u64>) -> Result<u64, String> {
    let mut dice = Dice(seed);
    let disk = SimDisk::new();
    let mut world = World::new(Arc::new(disk.clone()), seed);
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
    let opened = open(found.as_ref(), DIRECTORY, None).map_err(|e| e.to_string())?;
    let mut rig = Rig::on(found.clone(), opened, seed + 1);
    rig.drain();
    let floor = match rig.writer.manifest().merge {
        Some(info) => info.upto,
        None => rig.writer.manifest().disks[0].base.unwrap().lsn,
    };
    let World { source, first, .. } = world;
    let mut world = World { rig, source, first, floor };
    let old = bases(world.rig.storage.as_ref(), world.rig.writer.manifest())?;
    let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
    check(&world, &reader, &snapshot, &old, floor, &mut dice).map_err(|e| format!("found: {e}"))?;
    if let Some(info) = world.rig.writer.manifest().merge {
        world.go_on(info, &old, &mut |_, _| {}).map_err(|e| format!("done again: {e}"))?;
    }
    let after = bases(world.rig.storage.as_ref(), world.rig.writer.manifest())?;
    let (reader, snapshot) = (world.rig.reader(), world.rig.writer.snapshot());
    check(&world, &reader, &snapshot, &after, floor, &mut dice).map_err(|e| format!("after it: {e}"))?;
    Ok(effects)
}

#[test]
fn a_cut_at_every_effect_of_a_merge_changes_no_moment() {
    let seeds: u64 = std::env::var("CDP_MERGE_SEEDS").map_or(1, |text| text.parse().expect("a number"));
    let mut points = 0;
    for seed in 0..seeds {
        let effects = story(seed, None).unwrap();
        for cut in 1..=effects {
            story(seed, Some(cut)).unwrap_or_else(|why| panic!("seed {seed}, cut {cut}: {why}"));
            points += 1;
        }
    }
    println!("{points} crash points");
}
