//! The filter in a simulated world: random ops, failures, tears, stalls, clock steps, crashes.
//!
//! Each run is a function of its seed. `CDP_SEEDS=N` runs N seeds of each kind, `CDP_SEED=X` one of them.

pub mod crash;
pub mod disk;
pub mod model;
pub mod rng;
pub mod world;

use cdp_core::capture::*;
use cdp_core::types::*;
use crash::{End, crash};
use disk::SimDisk;
use rng::Rng;
use world::{Hostility, MS, S, World, spec};

pub const PEACE: Hostility = Hostility {
    clients: 6,
    op_fails_one_in: 0,
    log_fails_one_in: 0,
    reread_fails_one_in: 0,
    flush_fails_one_in: 0,
    durable_ns_max: 3 * MS,
    stall_one_in: 0,
    clock_steps: false,
    large_one_in: 0,
    sectors_max: u64::MAX,
    disks_change: false,
    disk_sectors: 20 << 11,
    forks_one_in: 0,
    detaches: false,
    periods: false,
    far: false,
};

fn first_world(seed: u64, hostility: Hostility) -> World {
    first_world_with(seed, hostility, false)
}

/// One whose replica is behind proxies.
fn first_far_world(seed: u64, hostility: Hostility) -> World {
    first_world_with(seed, hostility, seed % 5 != 4)
}

fn first_world_with(seed: u64, hostility: Hostility, keeps_ranges: bool) -> World {
    let mut rng = Rng::new(seed);
    let count = rng.between(1, 3) as usize;
    let sizes: Vec<u64> = (0..count).map(|_| rng.between(3 << 11, 24 << 11) * SECTOR).collect();
    let disks: Vec<SimDisk> = sizes.iter().map(|size| SimDisk::new(*size, &mut rng)).collect();
    let base = disks.iter().map(|disk| vec![0; disk.content.len()]).collect();
    let group = GroupId::new(rng.identity()).expect("not 0");
    let timeline = Timeline::new(rng.identity()).expect("not 0");
    let specs = sizes.iter().enumerate().map(|(at, size)| spec(at, *size)).collect();
    let options = FilterOptions {
        rpo_ns: 2 * S,
        // A proxy that coalesces holds records back.
        queue_bytes_max: if hostility.periods { 16 * QUEUE_BYTES_MIN } else { QUEUE_BYTES_MIN },
        hot_ns_min: S / 5,
        keeps_ranges,
        points: if hostility.periods { PointsMode::PerPoint } else { PointsMode::EveryWrite },
        ..FilterOptions::new(group, timeline, Start::First, specs)
    };
    World::new(rng, hostility, disks, base, options)
}

/// Runs a property for many seeds; says which one failed.
fn for_seeds(default: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("CDP_SEED") {
        return run(seed);
    }
    for seed in 0..number("CDP_SEEDS").unwrap_or(default) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("failed with CDP_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn hostility_of(seed: u64) -> Hostility {
    let mut rng = Rng::new(!seed);
    let mut maybe = |one_in: u64| if rng.one_in(2) { one_in } else { 0 };
    Hostility {
        clients: 1 + maybe(12),
        op_fails_one_in: maybe(25),
        log_fails_one_in: maybe(12),
        reread_fails_one_in: maybe(8),
        flush_fails_one_in: maybe(10),
        durable_ns_max: if maybe(2) > 0 { 3 * MS } else { 120 * MS },
        stall_one_in: maybe(40),
        clock_steps: maybe(2) > 0,
        large_one_in: maybe(3),
        sectors_max: u64::MAX,
        disks_change: false,
        disk_sectors: PEACE.disk_sectors,
        forks_one_in: 0,
        detaches: false,
        periods: maybe(2) > 0,
        far: false,
    }
}

#[test]
fn in_peace_every_lsn_is_a_moment_of_the_source() {
    for_seeds(6, |seed| {
        let mut world = first_world(seed, PEACE);
        world.run_for(4 * S);
        world.converge();
        assert!(world.check() > 50, "there was something to check");
        world.stop();
    });
}

#[test]
fn in_peace_the_close_of_each_period_is_a_moment_of_the_source() {
    for_seeds(6, |seed| {
        let mut world = first_world(seed, Hostility { periods: true, durable_ns_max: 200 * MS, ..PEACE });
        world.run_for(12 * S);
        world.converge();
        assert!(world.check() > 3, "there was something to check");
        assert!(world.left_out.len() > 20, "a proxy left {} records out", world.left_out.len());
        world.stop();
    });
}

#[test]
fn after_a_crash_inside_a_period_the_log_covers_what_a_proxy_left_out() {
    for_seeds(12, |seed| {
        let hostility = Hostility { periods: true, durable_ns_max: 200 * MS, ..PEACE };
        let mut world = first_world(seed, hostility);
        world.converge();
        for _ in 0..3 {
            // So long that extents cool down and are forgotten.
            world.go_on();
            world.run_for(world.rng.clone().between(4 * S, 9 * S));
            world = crash(world, End::Kill).restart(hostility);
            world.converge();
        }
    });
}

#[test]
fn whatever_fails_the_replica_becomes_the_source_and_every_restorable_lsn_is_a_moment() {
    for_seeds(12, |seed| {
        let mut world = first_world(seed, hostility_of(seed));
        world.run_for(8 * S);
        world.check();
        world.converge();
        // A failed flush leaves pages in doubt that only the next start compares.
        if !world.events.iter().any(|event| matches!(event, Event::FlushFailed { .. })) {
            world.stop();
        }
    });
}

#[test]
fn after_any_crash_the_log_covers_what_differs_and_a_restart_repairs_it() {
    for_seeds(12, |seed| {
        let hostility = hostility_of(seed);
        let mut world = first_world(seed, hostility);
        for life in 0..4 {
            let ns = [S / 100, S, 6 * S][world.rng.below(3) as usize];
            world.run_for(world.rng.clone().between(1, ns));
            let end = if world.rng.one_in(2) { End::Kill } else { End::PowerCut };
            world = crash(world, end).restart(hostility);
            if life == 2 {
                world.run_for(S / 2);
                world.converge();
            }
        }
        world.converge();
    });
}

/// The log's write is late or fails, ops go on, and the kill comes before the replica knows of it.
#[test]
fn a_kill_right_after_the_log_was_lost_leaves_no_log_that_could_be_believed() {
    for_seeds(6, |seed| {
        let hostility = Hostility { log_fails_one_in: 2, durable_ns_max: 120 * MS, ..PEACE };
        let mut world = first_world(seed, hostility);
        let mut lost = 0;
        for _ in 0..8 {
            // Until everything is compared, the log says that all is unknown; then until no extent is marked.
            world.converge();
            world.run_for(15 * S);
            let before = world.events.len();
            world.go_on();
            world.run_for(world.rng.clone().between(5 * MS, 250 * MS));
            let is_loss = |event: &Event| matches!(event, Event::Log(LogTrust::Lost { .. }));
            lost += world.events[before..].iter().filter(|event| is_loss(event)).count();
            world = crash(world, End::Kill).restart(hostility);
        }
        assert!(lost > 0, "the log was never lost");
    });
}

#[test]
fn a_restart_reads_only_what_was_hot() {
    for_seeds(10, |seed| {
        let mut world = first_world(seed, PEACE);
        world.run_for(3 * S);
        world.converge();
        world.calm = false;
        world.run_for(12 * S);
        let left = crash(world, End::Kill);
        let hot = left.log.as_ref().filter(|log| log.state == LogState::Open).map(LogContents::hot_bytes);
        let mut world = left.restart(Hostility { clients: 0, ..PEACE });
        world.converge();
        if let Some(hot) = hot {
            assert!(world.bytes_reread <= hot, "{} bytes were read, {hot} were hot", world.bytes_reread);
        }
    });
}

#[test]
fn a_clean_stop_is_resumed_on_the_same_timeline_without_reading() {
    for_seeds(4, |seed| {
        let mut world = first_world(seed, PEACE);
        world.run_for(3 * S);
        world.converge();
        let log = world.stop();
        let after = world.filter.status(world.both()).lsn;
        let epoch = world.frames.last().expect("frames").epoch;
        let options = FilterOptions { start: Start::Clean { after, epoch, log }, ..world.options };
        let (log_file, least) = (world.log_file, world.told);
        let mut world = World::new(world.rng, PEACE, world.disks, world.applied, options);
        (world.log_file, world.least, world.told) = (log_file, least, least);
        world.run_for(3 * S);
        world.check();
        assert_eq!(world.bytes_reread, 0);
        world = crash(world, End::PowerCut).restart(PEACE);
        world.converge();
    });
}

#[test]
fn disks_join_change_and_leave_and_every_moment_stays_one_of_the_source() {
    for_seeds(12, |seed| {
        let hostility = if seed % 3 == 0 { PEACE } else { hostility_of(seed) };
        let mut world = first_world(seed, Hostility { disks_change: true, ..hostility });
        world.run_for(12 * S);
        world.check();
        world.converge();
        let changed = |event: &&Event| {
            matches!(event, Event::DiskResized { .. } | Event::DiskComplete { .. } | Event::DiskRemoved { .. })
        };
        assert!(world.events.iter().filter(changed).count() > 3, "disks changed");
    });
}

#[test]
fn the_filter_forks_at_any_moment_and_every_moment_stays_one_of_the_source() {
    let (mut forks, mut lent) = (0, 0);
    let counts = std::sync::Mutex::new((&mut forks, &mut lent));
    for_seeds(12, |seed| {
        let hostility = if seed % 3 == 0 { PEACE } else { hostility_of(seed) };
        let disks_change = seed % 2 == 0;
        let mut world = first_far_world(seed, Hostility { disks_change, forks_one_in: 2, ..hostility });
        world.run_for(14 * S);
        world.check();
        world.converge();
        let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *counts.0 += world.filter.status(world.both()).counters.forks;
        *counts.1 += world.lends;
    });
    let one_seed = std::env::var_os("CDP_SEED").is_some();
    assert!(one_seed || forks > 20 && lent > 0, "{forks} forks, {lent} lent");
}

#[test]
fn a_crash_around_a_fork_leaves_a_log_that_covers_what_differs() {
    for_seeds(8, |seed| {
        let hostility = Hostility { forks_one_in: 2, ..hostility_of(seed) };
        let mut world = first_far_world(seed, hostility);
        for _ in 0..4 {
            let ns = [S / 100, S, 6 * S][world.rng.below(3) as usize];
            world.run_for(world.rng.clone().between(1, ns));
            if world.rng.one_in(2) {
                world.fork();
                world.run_for(world.rng.clone().between(1, 150 * MS));
            }
            let end = if world.rng.one_in(2) { End::Kill } else { End::PowerCut };
            world = crash(world, end).restart(hostility);
        }
        world.converge();
    });
}

#[test]
fn replication_leaves_the_path_and_comes_back_and_every_moment_is_one_of_the_source() {
    for_seeds(8, |seed| {
        let hostility = if seed % 3 == 0 { PEACE } else { hostility_of(seed) };
        let hostility = Hostility { detaches: true, forks_one_in: seed % 2 * 3, ..hostility };
        let mut world = first_world(seed, hostility);
        for life in 0..3 {
            world.run_for(world.rng.clone().between(1, 8 * S));
            world.check();
            if life < 2 && world.rng.one_in(2) {
                let end = if world.rng.one_in(2) { End::Kill } else { End::PowerCut };
                world = crash(world, end).restart(hostility);
            }
        }
        world.converge();
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut world = first_world(seed, hostility_of(seed));
        world.run_for(4 * S);
        world.trace
    };
    for_seeds(3, |seed| assert_eq!(trace(seed), trace(seed)));
    assert_ne!(trace(1), trace(2));
}
