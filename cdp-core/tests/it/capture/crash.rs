//! The end of the machine: what is left of disks, activity log and replica, and the next filter on top of it.

use super::disk::{SimDisk, Tags};
use super::model;
use super::world::*;
use cdp_core::capture::*;
use cdp_core::types::*;

/// How the machine ended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum End {
    /// The process was killed: memory of the kernel stays.
    Kill,
    /// Power was lost: what was not flushed may be gone, page by page.
    PowerCut,
}

/// What the next start finds.
pub struct Left {
    world: World,
    /// Of the replica at the fork.
    pub base: Vec<Tags>,
    pub fork: Lsn,
    /// If there is one and it is to be believed.
    pub log: Option<LogContents>,
}

/// Ends a world at once, checks that the log left behind covers every difference, and says what is left.
pub fn crash(mut world: World, end: End) -> Left {
    fall(&mut world, end);
    let frames = &world.frames[..world.taken];
    // Both are forks that a replica may choose: all that is durable, or all that can be restored.
    let durable = model::whole(frames).max(world.applied_through);
    let restorable = if frames.is_empty() { durable } else { model::restorable(frames) };
    let log = log_of(&world);
    check_cover(&world, (&at(&world, restorable), restorable), log.as_ref());
    check_cover(&world, (&at(&world, durable), durable), log.as_ref());
    let fork = if world.rng.one_in(2) { restorable } else { durable };
    left(world, fork)
}

/// The log that the next start believes, if there is one.
fn log_of(world: &World) -> Option<LogContents> {
    LogContents::read(&world.log_file, world.options.group).ok().filter(|log| log.generation >= world.least)
}

/// What is left of a world that fell, where the replica goes on from `fork`.
pub fn left(world: World, fork: Lsn) -> Left {
    let (base, log) = (at(&world, fork), log_of(&world));
    check_cover(&world, (&base, fork), log.as_ref());
    Left { base, fork, log, world }
}

/// Ends a world at once: its disks and its log are what is found next.
pub fn fall(world: &mut World, end: End) {
    world.check();
    for (_, op) in std::mem::take(&mut world.ops) {
        if op.running {
            world.land_some_of(&op);
        }
    }
    if end == End::PowerCut {
        let rng = &mut world.rng;
        world.disks.iter_mut().for_each(|disk| disk.power_cut(rng));
        // Not promised is only this: power is lost between the loss of the log and the replica's knowing it.
        world.least = world.told;
    }
    world.disks.iter_mut().for_each(|disk| disk.running.clear());
    world.disks.iter_mut().for_each(SimDisk::reopen);
    tear_log(world);
}

/// The disks of a start whose replica is elsewhere.
pub struct Disks {
    /// Those that are there, as large as their sources.
    pub there: Vec<DiskId>,
    /// Of these, those that join with this start, and the number that each had before.
    pub joining: Vec<(DiskId, DiskId)>,
    /// Those that are gone with this start.
    pub leaving: Vec<DiskId>,
}

/// The replica at an LSN.
fn at(world: &World, lsn: Lsn) -> Vec<Tags> {
    let mut disks = world.base.clone();
    model::apply(&mut disks, &world.frames, (Lsn::ZERO, lsn), &world.left_out, index);
    disks
}

/// Every sector in which source and replica, at an LSN, differ is marked in the log, or beyond what that knows of the disk.
fn check_cover(world: &World, (replica, lsn): (&[Tags], Lsn), log: Option<&LogContents>) {
    let Some(log) = log.filter(|log| log.state != LogState::AllUnknown) else { return };
    let known = world.known_at(lsn);
    for at in known.shown() {
        let disk = &world.disks[at];
        let Some(logged) = log.disks.iter().find(|logged| logged.id == spec(at, 0).id) else { continue };
        let both = known.sizes[at].min(world.source_sizes[at]).min((logged.size / SECTOR) as usize);
        let differs = |sector: &usize| disk.content[*sector] != replica[at][*sector];
        for sector in (0..both).filter(differs) {
            let offset = sector as u64 * SECTOR;
            let marked = logged.hot.iter().any(|run| run.offset <= offset && offset < run.end());
            assert!(marked, "sector {sector} of disk {at} differs, unmarked in {log:?}: {}", world.history(at, sector));
        }
    }
}

/// Any subset of the sectors of the write under way landed, one of them may be torn; and once in a while a byte is flipped.
fn tear_log(world: &mut World) {
    if let Some((_, writes)) = world.log_pending.take().filter(|_| !world.log_orphaned) {
        let (keep, torn) = (world.rng.next(), world.rng.below(64));
        let before = world.log_file.clone();
        world.log_lands(&writes, |at| keep >> (at % 64) & 1 == 1);
        let begin = torn as usize * SECTOR as usize;
        if let (Some(now), Some(old)) = (world.log_file.get_mut(begin..begin + 100), before.get(begin..begin + 100)) {
            now.copy_from_slice(old);
        }
    }
    if world.rng.one_in(4) && !world.log_file.is_empty() {
        let at = world.rng.below(world.log_file.len() as u64) as usize;
        world.log_file[at] ^= 1 << world.rng.below(8);
    }
}

/// The machine comes back, and nothing is at the replica: the group begins again, whatever log lies around.
pub fn begin_again(world: World, hostility: Hostility, timeline: Timeline) -> World {
    let base = world.disks.iter().map(|disk| vec![0; disk.content.len()]).collect();
    let options = FilterOptions { timeline, start: Start::First, log_generation_least: 0, ..world.options };
    World::new(world.rng, hostility, world.disks, base, options)
}

impl Left {
    /// The machine comes back: a new filter on a new timeline.
    pub fn restart(mut self, hostility: Hostility) -> World {
        let timeline = Timeline::new(self.world.rng.identity()).expect("not 0");
        let parent = self.world.options.timeline;
        let disks = Disks {
            there: self.world.options.disks.iter().map(|disk| disk.id).collect(),
            joining: Vec::new(),
            leaving: Vec::new(),
        };
        self.restart_on(hostility, (timeline, parent), &disks)
    }

    /// The same, on a timeline that the replica has opened already, and with the disks that there are.
    pub fn restart_on(self, hostility: Hostility, (timeline, parent): (Timeline, Timeline), disks: &Disks) -> World {
        let Self { world: mut old, mut base, fork, log } = self;
        let mut known = old.known_at(fork);
        for (new, before) in disks.joining.iter().map(|(new, before)| (index(*new), index(*before))) {
            // What was recorded of it before is nobody's any more.
            old.disks.swap(new, before);
            (old.source_sizes[new], known.sizes[before]) = (old.source_sizes[before], 0);
            base[new] = vec![0; old.source_sizes[new]];
        }
        let sizes: Vec<usize> = (0..old.disks.len())
            .map(|disk| if disks.there.contains(&spec(disk, 0).id) { old.source_sizes[disk] } else { 0 })
            .collect();
        let specs = disks.there.iter().map(|disk| spec(index(*disk), sizes[index(*disk)] as u64 * SECTOR)).collect();
        let is_joining = |disk: usize| disks.joining.iter().any(|(new, _)| index(*new) == disk);
        let resized = disks.there.iter().filter(|disk| !is_joining(index(**disk)));
        let resized = resized.map(|disk| (*disk, known.sizes[index(*disk)]));
        let resized = resized.filter(|(disk, size)| *size != sizes[index(*disk)]);
        let resized = resized.map(|(disk, size)| (disk, size as u64 * SECTOR)).collect();
        let epoch = old.frames.last().map_or(ClockEpoch(1), |frame| frame.epoch);
        let given = old.frames.last().map_or(old.forked_at, |frame| frame.last_lsn());
        let above = old.filter.first_lsn();
        let start = Start::Unclean { parent, fork, above, epoch, log };
        let options = FilterOptions {
            timeline,
            start,
            log_generation_least: old.least,
            disks: specs,
            joining: disks.joining.iter().map(|(disk, _)| *disk).collect(),
            leaving: disks.leaving.clone(),
            resized,
            ..old.options
        };
        let mut world = World::new(old.rng, hostility, old.disks, base, options);
        world.left = (0..sizes.len()).filter(|disk| sizes[*disk] == 0).collect();
        world.changing = (0..sizes.len()).filter(|disk| is_joining(*disk)).collect();
        (world.sizes, world.source_sizes) = (sizes.clone(), sizes);
        world.begin_with(known);
        (world.log_file, world.least, world.told) = (old.log_file, old.least, old.least);
        let first = world.filter.status(world.both()).lsn;
        assert!(first > given, "LSNs of the child lie above all that left the parent");
        world
    }
}
