//! Whole chains in virtual time: guests and filter, source end, proxies, target end, journal and bases. All machines are the real
//! ones; disks, network, clocks and people are simulated, and everything follows from a seed. A chain begins with the first copies of
//! its disks, over the link, while guests write; in some, disks join, change their size and leave. What is asked beside the link is lost
//! and comes twice like everything else.
//!
//! `CDP_CHAIN_SEEDS=N` is how many seeds are run, from `CDP_CHAIN_FIRST` on. One seed again, with everything that happens in it:
//! `CDP_CHAIN_SEED=1234 cargo test --release -p cdp-core --features sim --test it chain::replay -- --nocapture`.

mod calls;
mod check;
mod host;
mod part;
mod plan;
mod proxy;
mod replica;
mod world;

use part::S;
use plan::Plan;
use std::cell::Cell;
use std::sync::Once;
use world::World;

/// What a seed came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Told {
    trace: u64,
    looks: u64,
    ops: u64,
    forks: u64,
    /// How often a replica went on within a write.
    within: u64,
    lends: u64,
    /// Disks that joined, changed their size or left.
    changes: u64,
    /// From the last fault to the end, in milliseconds, and how long that may take.
    took_ms: u64,
    may_take_ms: u64,
}

fn run(seed: u64) -> Told {
    let plan = Plan::of(seed);
    let (active, rate) = (plan.active_ns, plan.hops.iter().map(|hop| hop.bytes_per_second).min().expect("a hop"));
    let lasts = plan.faults.iter().map(|(after, fault)| after + fault.lasts_ns()).max().unwrap_or(0);
    let mut world = plan.build(seed);
    let (end, over) = (world.now + active, world.now + lasts);
    world.run(end, |_| false);
    world.heal();
    let there = world.run(end + 30 * S, |world| world.mending == 0);
    assert!(there, "what was down did not come back");
    converge(&mut world, over, rate)
}

/// What differs is made equal, and everything is durable. The last fault is over then.
fn converge(world: &mut World, over: u64, rate: u64) -> Told {
    let healed = over.max(world.now);
    let status = |group: &world::Group| group.host.world().map(|world| world.filter.status(world.both()));
    let left: u64 = world
        .groups
        .iter()
        .filter_map(status)
        .map(|status| status.dirty_bytes + status.queued_bytes + status.lent_bytes)
        .sum();
    let left = left + world.groups.iter().map(|group| group.host.uncopied_bytes()).sum::<u64>();
    let may_take = 2 * left * S / rate + 5 * S;
    let is_done = |group: &world::Group| group.host.world().is_some_and(|world| world.is_converged());
    let done = |group: &world::Group| is_done(group) && group.host.is_settled();
    let converged = world.run(healed + 4 * may_take + 60 * S, |world| world.groups.iter().all(done));
    if let Some((at, group)) = world.groups.iter().enumerate().find(|(_, group)| !done(group)) {
        let world = group.host.any_world();
        let said = world.filter.status(world.both());
        let waits = group.host.changes();
        panic!("group {at} did not converge: durable there {}: {said:?}, {waits:?}", group.replica.durable());
    }
    assert!(converged);
    let (mut ops, mut forks, mut lends, mut within, mut changes) = (0, 0, 0, 0, 0);
    for group in &world.groups {
        check::look(group, &mut world.rng);
        let host = group.host.any_world();
        let replica = group.replica.look();
        let lsn = host.filter.status(host.both()).restorable;
        check::compare(&replica, host.options.timeline, lsn, &host.seen());
        let histories = group.host.histories.iter().map(|history| history.changes.len() as u64).sum::<u64>();
        ops += host.changes.len() as u64 + histories;
        forks += u64::from(group.host.forks);
        lends += group.host.lends();
        changes += group.host.changes().made;
        within += u64::from(group.replica.within_times);
        let torn = group.replica.torn_times;
        assert!(lends > 0 || group.host.forks <= torn, "{} new timelines, and {torn} were due", group.host.forks);
    }
    let (took_ms, may_take_ms) = (world.now.saturating_sub(healed) / 1_000_000, may_take / 1_000_000);
    Told { trace: world.trace, looks: world.looks, ops, forks, within, lends, changes, took_ms, may_take_ms }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_breaks_what_is_durable_can_be_restored_and_the_replica_becomes_the_source() {
    let first = number("CDP_CHAIN_FIRST").unwrap_or(0);
    let seeds = number("CDP_CHAIN_SEEDS").unwrap_or(if cfg!(debug_assertions) { 60 } else { 200 });
    let (mut sum, mut late) = (Told::default(), 0);
    let (mut failed, most) = (Vec::new(), number("CDP_CHAIN_FAILURES").unwrap_or(1) as usize);
    for seed in first..first + seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(told) => {
                sum.trace = sum.trace.rotate_left(1) ^ told.trace;
                (sum.looks, sum.ops) = (sum.looks + told.looks, sum.ops + told.ops);
                (sum.forks, sum.lends) = (sum.forks + told.forks, sum.lends + told.lends);
                (sum.within, sum.changes) = (sum.within + told.within, sum.changes + told.changes);
                sum.took_ms = sum.took_ms.max(told.took_ms);
                if told.took_ms > told.may_take_ms {
                    println!("CDP_CHAIN_SEED={seed} is late: {told:?}");
                    late += 1;
                }
            }
            Err(_) => {
                println!("failed with CDP_CHAIN_SEED={seed}");
                failed.push(seed);
                if failed.len() >= most {
                    break;
                }
            }
        }
    }
    println!("{seeds} seeds: {sum:?}, {late} late");
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert_eq!(late, 0, "the replica became the source too late");
    assert!(seeds < 60 || (sum.within > 0 && sum.forks > 0 && sum.changes > 0), "{sum:?}");
}

#[test]
fn replay() {
    let seed = number("CDP_CHAIN_SEED").unwrap_or(7);
    println!("{:?}", run(seed));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..8 {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(one, other);
        println!("seed {seed}: trace {:016x}", one.trace);
    }
    assert_ne!(run(1).trace, run(2).trace);
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics of this thread are not told from now on, or are again; those of other tests, beside which it runs, always are.
fn hush(quiet: bool) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A thread that is gone so far that it has none of this is not the one.
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                told(panic);
            }
        }));
    });
    QUIET.set(quiet);
}

/// Whether the simulation would notice: one thing is done wrong, and within a thousand seeds it is seen.
#[test]
fn each_deliberate_fault_is_noticed() {
    use cdp_core::mistakes::{self, Mistake};
    let all = [
        Mistake::OverlapsPass,
        Mistake::GapUnsaid,
        Mistake::ResyncEndsEarly,
        Mistake::StoredIsDurable,
        Mistake::FailureForgotten,
        Mistake::CopyOverWrites,
        Mistake::LentForgotten,
        Mistake::GrowthUnread,
        Mistake::CutUnderOps,
    ];
    hush(true);
    let found = all.map(|mistake| {
        mistakes::make(Some(mistake));
        let seed = (0..1000).find(|seed| std::panic::catch_unwind(|| run(*seed)).is_err());
        mistakes::make(None);
        (mistake, seed)
    });
    hush(false);
    for (mistake, seed) in found {
        println!("{mistake:?} is caught by seed {seed:?}");
        assert!(seed.is_some(), "{mistake:?} is not noticed in a thousand seeds");
    }
}
