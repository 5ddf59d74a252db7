//! What holds for any ops: see the checks in the parts; and after the last fault everything becomes durable.

use super::middle::Middle;
use super::{MS, Network, SECOND, World};
use crate::types::Lsn;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// So many records are made.
    Write(u64),
    /// So many milliseconds pass.
    Wait(u64),
    /// A hop's connections break, or one of them.
    Cut(usize, Option<u64>),
    /// A hop swallows everything for so many milliseconds.
    Dark(usize, u64),
    /// A relay comes back with what its disk kept, or with an empty one.
    CrashMiddle(usize, bool),
    /// The replica comes back with what was durable, and perhaps some more.
    CrashReplica,
    /// It comes back with less.
    LoseAtReplica,
    /// The source lends what is stored.
    Lend,
    /// It has no room for what is lent.
    Forfeit,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1u64..40).prop_map(Op::Write),
        6 => prop_oneof![0u64..20, 0u64..400, 0u64..8_000].prop_map(Op::Wait),
        2 => (0usize..3, prop::option::of(any::<u64>())).prop_map(|(hop, only)| Op::Cut(hop, only)),
        1 => (0usize..3, 1u64..10_000).prop_map(|(hop, ms)| Op::Dark(hop, ms)),
        1 => Just(Op::CrashReplica),
        1 => (0usize..3, any::<bool>()).prop_map(|(number, keeps)| Op::CrashMiddle(number, keeps)),
    ]
}

/// Ops of which no relay loses what it stored.
fn kind() -> impl Strategy<Value = Op> {
    op().prop_map(|op| if let Op::CrashMiddle(number, _) = op { Op::CrashMiddle(number, true) } else { op })
}

fn network() -> impl Strategy<Value = Network> {
    (0u64..60, 0u64..40, prop_oneof![Just(30_000u64), Just(1_000_000), Just(1_000_000_000)])
        .prop_map(|(ms, jitter, rate)| Network { delay_ns: ms * MS, jitter_ns: jitter * MS, bytes_per_second: rate })
}

fn apply(world: &mut World, op: &Op) {
    let hops = world.parts() - 1;
    match op {
        Op::Write(records) => {
            let clock = world.clock(0);
            world.origin.write(clock, &mut world.random, *records);
        }
        Op::Lend => world.origin.lend(),
        Op::Forfeit => {
            let clock = world.clock(0);
            world.origin.forfeit(clock);
        }
        Op::Wait(ms) => world.run(ms * MS),
        Op::Cut(hop, only) => world.cut(hop % hops, *only),
        Op::Dark(hop, ms) => world.darken(hop % hops, ms * MS),
        Op::CrashMiddle(number, keeps_disk) => {
            let Some(number) = number.checked_rem(world.middles.len()) else { return };
            let clock = world.clock(number + 1);
            world.middles[number].crash(clock, *keeps_disk);
            world.crashed(number + 1);
        }
        Op::CrashReplica | Op::LoseAtReplica => {
            world.replica.crash(&mut world.random, matches!(op, Op::LoseAtReplica));
            world.crashed(hops);
        }
    }
}

/// After the last fault: as long as anything may be dark, taken for alive, or waited for, and the time that the bytes take.
fn converge(world: &mut World) {
    let bytes = world.origin.end.status(world.clock(0)).bytes;
    let way = 2 * bytes * SECOND / world.network.bytes_per_second;
    world.run(40 * SECOND + way * world.parts() as u64);
    let origin = &world.origin;
    let (last, durable) = (origin.last(), origin.acked.durable);
    let made = origin.made.last().map_or(Lsn::ZERO, |piece| Lsn(piece.0));
    assert!(durable == made, "{durable} of {last} is durable: {:?}", origin.end.status(world.now));
    assert!(origin.frames.is_empty() && (origin.made.is_empty() || world.replica.taken == origin.made));
}

fn run(seed: u64, network: Network, middles: usize, connections: u16, ops: &[Op]) -> World {
    let middles: Vec<Middle> = (0..middles).map(|number| Middle::new(seed ^ number as u64)).collect();
    let mut world = World::new(seed, middles, connections, network);
    ops.iter().for_each(|op| apply(&mut world, op));
    converge(&mut world);
    world
}

/// How many chains each property is tried on.
fn cases() -> u32 {
    std::env::var("CDP_CHAIN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Source end and target end, whatever breaks, but nothing that was durable.
    #[test]
    fn everything_becomes_durable_once_and_in_order(
        seed: u64,
        network in network(),
        connections in 0u16..4,
        ops in prop::collection::vec(op(), 1..30),
    ) {
        let world = run(seed, network, 0, connections, &ops);
        prop_assert_eq!((world.origin.lost, world.origin.broken), (0, 0));
    }

    /// The same where the replica also loses what was durable: it is said, and a new timeline goes on.
    #[test]
    fn what_is_lost_is_said_and_a_new_timeline_goes_on(
        seed: u64,
        network in network(),
        connections in 0u16..3,
        ops in prop::collection::vec(prop_oneof![6 => op(), 1 => Just(Op::LoseAtReplica)], 1..30),
    ) {
        let world = run(seed, network, 0, connections, &ops);
        prop_assert!(world.origin.lost >= world.origin.broken);
    }

    /// The same over relays, which come back with and without what they kept.
    #[test]
    fn relays_lose_nothing_that_the_source_cannot_send_again(
        seed: u64,
        network in network(),
        middles in 1usize..4,
        connections in 0u16..3,
        ops in prop::collection::vec(op(), 1..25),
    ) {
        let world = run(seed, network, middles, connections, &ops);
        prop_assert_eq!((world.origin.lost, world.origin.broken), (0, 0));
        prop_assert!(world.middles.iter().all(|middle| middle.relay.is_drained()));
    }

    /// What a relay has stored and keeps need not be kept at the source.
    #[test]
    fn what_is_lent_to_relays_that_come_back_with_it_becomes_durable(
        seed: u64,
        network in network(),
        middles in 1usize..3,
        ops in prop::collection::vec(prop_oneof![4 => kind(), 1 => Just(Op::Lend)], 1..25),
    ) {
        let world = run(seed, network, middles, 1, &ops);
        prop_assert_eq!((world.origin.lost, world.origin.broken), (0, 0));
    }

    /// Where one comes back without it, or there was no room to wait for its successor, a new timeline goes on.
    #[test]
    fn what_is_lent_to_relays_that_are_lost_breaks_the_timeline_and_a_new_one_goes_on(
        seed: u64,
        network in network(),
        middles in 1usize..3,
        ops in prop::collection::vec(prop_oneof![6 => op(), 2 => Just(Op::Lend), 1 => Just(Op::Forfeit)], 1..25),
    ) {
        let world = run(seed, network, middles, 1, &ops);
        prop_assert_eq!(world.origin.lost, 0);
    }

    #[test]
    fn what_is_lost_behind_relays_is_said_and_a_new_timeline_goes_on(
        seed: u64,
        network in network(),
        middles in 1usize..3,
        ops in prop::collection::vec(prop_oneof![6 => op(), 1 => Just(Op::LoseAtReplica)], 1..25),
    ) {
        run(seed, network, middles, 1, &ops);
    }

    #[test]
    fn the_same_seed_gives_the_same_trace(
        seed: u64,
        network in network(),
        ops in prop::collection::vec(op(), 1..20),
    ) {
        let run = || run(seed, network, 1, 2, &ops).trace.finalize();
        prop_assert_eq!(run(), run());
    }
}
