//! What a seed makes of a world: how it is built, and what goes wrong in it.

use super::host::Host;
use super::part::{MS, S, WRITE, window};
use super::proxy::Proxy;
use super::replica::ReplicaHost;
use crate::capture::PEACE;
use crate::capture::crash::End;
use crate::capture::disk::{SimDisk, bytes_of};
use crate::capture::rng::Rng;
use crate::capture::world::{self, Hostility};
use bytes::Bytes;
use cdp_core::capture::{FilterOptions, QUEUE_BYTES_MIN, Start};
use cdp_core::journal::PointsMode;
use cdp_core::types::{GroupId, SECTOR, Timeline};

/// How a hop is.
#[derive(Clone, Copy, Debug)]
pub struct HopPlan {
    pub delay_ns: u64,
    pub jitter_ns: u64,
    pub bytes_per_second: u64,
}

/// No disk that joins or grows gets more sectors: no more than the longest write of a guest has.
const SECTORS_CHANGED: u64 = 400;

/// A disk with so many sectors begins empty.
const VAST: u64 = 20_000;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A hop's connections break, or one of them.
    Cut { hop: usize, one: bool },
    /// A hop swallows everything for a while.
    Dark { hop: usize, ns: u64 },
    /// The filter's machine ends.
    Host { group: usize, end: End },
    /// A proxy ends, and comes back with or without what its disk kept.
    Proxy { hop: usize, keeps: bool },
    /// The replica's host loses power.
    Replica { group: usize },
    /// A write or sync of the journal fails: the one after so many.
    ReplicaWrite { group: usize, after: u64 },
    /// There is no room for another segment, nor for what a first copy brings, or for a manifest either.
    ReplicaFull { group: usize, ns: u64, at_all: bool },
    /// A proxy's disk fails.
    ProxyDisk { hop: usize, ns: u64, ill: Ill },
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug)]
pub enum Ill {
    Reads,
    Writes,
    Full,
}

pub struct Plan {
    /// Frames are lent, if somebody has stored them.
    pub lends: bool,
    pub hops: Vec<HopPlan>,
    pub faults: Vec<(u64, Fault)>,
    pub looks: Vec<(u64, usize)>,
    pub active_ns: u64,
    /// Of each group, the sizes of its disks in sectors.
    pub disks: Vec<Vec<u64>>,
    pub hostility: Hostility,
    pub connections: u16,
}

fn proxies(rng: &mut Rng) -> usize {
    [0, 1, 1, 1, 1, 2, 2, 3][rng.below(8) as usize]
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0c4a_17f3);
        let groups = [1, 1, 1, 1, 2, 3][rng.below(6) as usize];
        let (source_side, target_side) = (proxies(&mut rng), proxies(&mut rng));
        // Now and then so much is written and so little taken that what a proxy has stored is lent.
        let lends = rng.one_in(10);
        let source_side = if lends { 1 } else { source_side };
        let hops = source_side + target_side + 1;
        let mut plan = Self {
            lends,
            hops: (0..hops).map(|hop| HopPlan::of(&mut rng, hop == source_side)).collect(),
            faults: Vec::new(),
            looks: Vec::new(),
            active_ns: rng.between(if lends { 3 } else { 1 }, 5) * S,
            disks: Vec::new(),
            hostility: hostility(&mut rng),
            connections: rng.below(3) as u16,
        };
        if lends {
            plan.hops[source_side].bytes_per_second = 300_000;
            plan.hostility.clients += 4;
            plan.faults.push((rng.between(plan.active_ns / 2, plan.active_ns), Fault::Proxy { hop: 1, keeps: false }));
        }
        let rate = plan.hops[source_side].bytes_per_second;
        plan.disks = (0..groups).map(|_| disks(&mut rng, lends, rate)).collect();
        if lends && rng.one_in(3) {
            // So large that most of what is lent is not written again.
            plan.disks[0] = vec![rng.between(VAST, 2 * VAST)];
        }
        let count = [0, 1, 1, 2, 2, 3, 4, 6][rng.below(8) as usize];
        for _ in 0..count {
            let after = rng.between(1, plan.active_ns);
            let fault = Fault::of(&mut rng, groups, hops);
            plan.faults.push((after, fault));
        }
        let look = (rng.between(1, plan.active_ns * 2), rng.below(groups as u64) as usize);
        plan.looks.push(look);
        match seed % 4 {
            3 => plan.with_long_writes(&mut rng, groups),
            1 => plan.with_changes(&mut rng, groups),
            _ => {}
        }
        plan
    }

    /// Guests write what fills several frames, and the replica's host ends again and again.
    fn with_long_writes(&mut self, rng: &mut Rng, groups: usize) {
        let sectors = rng.between(1024, 2560);
        self.hostility.sectors_max = sectors;
        self.disks.iter_mut().for_each(|disks| disks[0] = sectors);
        self.hostility.large_one_in = 1;
        self.active_ns = self.active_ns.max(3 * S);
        // Not so slow that one write is all there is.
        self.hops.iter_mut().for_each(|hop| hop.bytes_per_second = hop.bytes_per_second.max(2_000_000));
        for _ in 0..rng.between(4, 12) {
            let after = rng.between(1, self.active_ns);
            self.faults.push((after, Fault::Replica { group: rng.below(groups as u64) as usize }));
        }
    }

    /// Disks join, change their size and leave.
    fn with_changes(&mut self, rng: &mut Rng, groups: usize) {
        if rng.one_in(2) {
            // Orders break.
            self.with_long_writes(rng, groups);
        }
        self.hostility.disks_change = true;
        // First copies of the group come first.
        self.active_ns = self.active_ns.max(rng.between(3, 8) * S);
        self.hops.iter_mut().for_each(|hop| hop.bytes_per_second = hop.bytes_per_second.max(300_000));
        for _ in 0..rng.below(4) {
            let group = rng.below(groups as u64) as usize;
            let end = if rng.one_in(2) { End::Kill } else { End::PowerCut };
            self.faults.push((rng.between(1, self.active_ns), Fault::Host { group, end }));
        }
    }

    /// The world as it begins.
    pub fn build(self, seed: u64) -> super::world::World {
        let mut rng = Rng::new(seed);
        let groups = (0..self.disks.len()).map(|group| self.group(group, seed, &mut rng)).collect();
        super::world::World::new(self, groups, rng)
    }

    fn group(&self, group: usize, seed: u64, rng: &mut Rng) -> (Host, Vec<Proxy>, ReplicaHost) {
        let id = GroupId::new(rng.identity()).expect("not 0");
        let timeline = Timeline::new(rng.identity()).expect("not 0");
        let sizes: Vec<u64> = self.disks[group].iter().map(|sectors| sectors * SECTOR).collect();
        let disk = |size: &u64| {
            let mut disk = SimDisk::new(*size, rng);
            if *size >= VAST * SECTOR {
                // Its first copy is soon through.
                disk.put(0, &vec![0; (*size / SECTOR) as usize]);
            }
            disk
        };
        let disks: Vec<SimDisk> = sizes.iter().map(disk).collect();
        let mut bring =
            |(at, disk): (usize, &SimDisk)| rng.one_in(8).then(|| (world::spec(at, 0).id, older(disk, rng)));
        let brought = disks.iter().enumerate().filter_map(&mut bring).collect();
        let base = disks.iter().map(|disk| vec![0; disk.content.len()]).collect();
        let specs = sizes.iter().enumerate().map(|(at, size)| world::spec(at, *size)).collect();
        let per_point = self.hostility.periods;
        let options = FilterOptions {
            rpo_ns: S,
            queue_bytes_max: QUEUE_BYTES_MIN,
            hot_ns_min: S / 5,
            keeps_ranges: self.lends || seed.is_multiple_of(3),
            points: if per_point { PointsMode::PerPoint } else { PointsMode::EveryWrite },
            ..FilterOptions::new(id, timeline, Start::First, specs)
        };
        let world = world::World::new(Rng::new(rng.next()), self.hostility, disks, base, options);
        let host = Host::new(world, self.hostility, self.connections, rng.next());
        let window = window(sizes.iter().copied().max().unwrap_or(0));
        let proxies = (1..self.hops.len()).map(|_| Proxy::new(id, timeline, window, Rng::new(rng.next()))).collect();
        let replica = ReplicaHost::new(id, timeline, &sizes, brought, Rng::new(rng.next()));
        (host, proxies, replica)
    }
}

/// A copy of a disk that somebody made before: some of it has changed since.
fn older(disk: &SimDisk, rng: &mut Rng) -> Bytes {
    let mut tags = disk.content.clone();
    for _ in 0..rng.below(4) {
        let at = rng.below(tags.len() as u64) as usize;
        tags[at] = rng.next();
    }
    bytes_of(&tags)
}

fn disks(rng: &mut Rng, lends: bool, rate: u64) -> Vec<u64> {
    let count = [1, 1, 1, 2, 2, 3, 5, 8][rng.below(8) as usize];
    // Some are so large that queues fill, a few so large that first copies are noted in the middle.
    let most = if lends || rng.one_in(10) { 512 } else { 48 };
    let mut sizes: Vec<u64> = (0..count).map(|_| rng.between(1, most)).collect();
    if rate > 1_000_000 && rng.one_in(12) {
        sizes[0] = rng.between(3_000, 9_000);
    }
    sizes
}

fn hostility(rng: &mut Rng) -> Hostility {
    let mut maybe = |one_in: u64, of: u64| if rng.one_in(of) { one_in } else { 0 };
    Hostility {
        far: true,
        sectors_max: WRITE / SECTOR,
        disk_sectors: SECTORS_CHANGED,
        clients: 1 + maybe(2, 2) + maybe(4, 4),
        op_fails_one_in: maybe(25, 4),
        log_fails_one_in: maybe(12, 4),
        reread_fails_one_in: maybe(8, 4),
        flush_fails_one_in: maybe(10, 6),
        clock_steps: maybe(1, 3) > 0,
        detaches: maybe(1, 8) > 0,
        periods: maybe(1, 4) > 0,
        ..PEACE
    }
}

impl HopPlan {
    fn of(rng: &mut Rng, is_wide: bool) -> Self {
        let (delay_ns, jitter_ns) = if is_wide { (rng.below(60 * MS), rng.below(30 * MS)) } else { (MS / 5, MS) };
        let slow = [60_000, 300_000, 2_000_000, 20_000_000];
        let bytes_per_second = if is_wide { slow[rng.below(4) as usize] } else { 50_000_000 };
        Self { delay_ns, jitter_ns, bytes_per_second }
    }
}

impl Fault {
    /// How long it goes on.
    pub fn lasts_ns(&self) -> u64 {
        match *self {
            Self::Dark { ns, .. } | Self::ReplicaFull { ns, .. } | Self::ProxyDisk { ns, .. } => ns,
            Self::Cut { .. }
            | Self::Host { .. }
            | Self::Proxy { .. }
            | Self::Replica { .. }
            | Self::ReplicaWrite { .. } => 0,
        }
    }

    fn of(rng: &mut Rng, groups: usize, hops: usize) -> Self {
        let hop = rng.below(hops as u64) as usize;
        let group = rng.below(groups as u64) as usize;
        // A proxy is named by the hop below it.
        let proxy = 1 + rng.below(hops.max(2) as u64 - 1) as usize;
        let most = [20, 400, 4_000][rng.below(3) as usize];
        let ns = rng.between(1, most) * MS;
        match rng.below(if hops > 1 { 14 } else { 10 }) {
            0 => Self::Cut { hop, one: true },
            1 => Self::Cut { hop, one: false },
            2 | 3 => Self::Dark { hop, ns },
            4 => Self::Host { group, end: End::Kill },
            5 => Self::Host { group, end: End::PowerCut },
            6 | 7 => Self::Replica { group },
            8 => Self::ReplicaWrite { group, after: rng.between(1, 60) },
            9 => Self::ReplicaFull { group, ns, at_all: rng.one_in(2) },
            10 | 11 => Self::Proxy { hop: proxy, keeps: true },
            12 => Self::Proxy { hop: proxy, keeps: false },
            _ => Self::ProxyDisk { hop: proxy, ns, ill: [Ill::Reads, Ill::Writes, Ill::Full][rng.below(3) as usize] },
        }
    }
}
