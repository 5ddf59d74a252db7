//! What differs is found, whatever order answers come in, and what is equal costs a hash for each MiB.

use super::*;
use crate::types::{DiskId, Lsn, MonoTime};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;

const MIB: u64 = 1 << 20;

/// Bytes that know their zeros by the sector, and count what was read of them.
struct Bytes<'a>(&'a [u8], Cell<u64>);

impl Content for Bytes<'_> {
    type Error = Infallible;

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
        self.1.set(self.1.get() + out.len() as u64);
        Ok(())
    }

    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Infallible> {
        let bytes = &self.0[range.offset as usize..range.end() as usize];
        let sectors = bytes.chunks(SECTOR as usize).enumerate().map(|(number, sector)| {
            let extent = Extent::new(range.offset + number as u64 * SECTOR, sector.len() as u64);
            (extent, sector.iter().all(|byte| *byte == 0))
        });
        Ok(sectors.collect())
    }
}

fn disk(number: u16) -> DiskId {
    DiskId::new(number).unwrap()
}

fn hashes(bytes: &[u8], asked: Asked) -> Vec<Hash> {
    asked.hashes_in(&Bytes(bytes, Cell::new(0)), &mut Vec::new()).unwrap()
}

/// The extents of a disk that a full comparison asks for.
fn extents(size: u64) -> impl Iterator<Item = Extent> {
    (0..size.div_ceil(EXTENT_MAX)).map(move |at| Extent::new(at * MIB, MIB.min(size - at * MIB)))
}

/// Drives a comparison to its end with everybody answering at once.
fn run(source: &[u8], replica: &[u8], extents: impl Iterator<Item = Extent>) -> (BTreeMap<u64, Outcome>, Counted) {
    let mut compare = Compare::new(CompareOptions::default());
    let (mut waiting, mut outcomes) = (extents.peekable(), BTreeMap::new());
    let now = MonoTime(1);
    loop {
        while compare.has_room() {
            let Some(extent) = waiting.next() else { break };
            compare.begin(extent.offset, disk(1), extent, Lsn(7)).unwrap();
        }
        match compare.poll(now) {
            Some(Output::Hash(job)) => compare.hashed(job.id, Ok(hashes(source, job.asked))),
            Some(Output::Ask(ask)) => {
                assert_eq!((ask.disk, ask.at), (disk(1), Lsn(7)));
                let tail = tail_of(&hashes(replica, ask.asked));
                let answer = Answer::Hashes(ask.asked.hashes_from(&tail).unwrap());
                compare.answered(now, ask.id, answer).unwrap();
            }
            Some(Output::Done(done)) => assert_eq!(outcomes.insert(done.key, done.outcome), None),
            None => break,
        }
    }
    assert!(compare.is_idle() && waiting.peek().is_none());
    (outcomes, compare.counted())
}

/// What differs, by somebody who sees both: pieces of 4 KiB as far as the extent has them.
fn expected(source: &[u8], replica: &[u8], extent: Extent) -> Vec<Extent> {
    let at = |bytes: &[u8], piece: Extent| {
        let mut found = vec![0; piece.length as usize];
        let inside = (bytes.len() as u64).saturating_sub(piece.offset).min(piece.length) as usize;
        found[..inside].copy_from_slice(&bytes[(piece.offset as usize).min(bytes.len())..][..inside]);
        found
    };
    let pieces = Asked::new(extent, BLOCKS[2]).unwrap().pieces();
    let mut runs: Vec<Extent> = Vec::new();
    for piece in pieces.filter(|piece| at(source, *piece) != at(replica, *piece)) {
        match runs.last_mut().filter(|run| run.end() == piece.offset) {
            Some(run) => run.length += piece.length,
            None => runs.push(piece),
        }
    }
    runs
}

/// A disk, and places where its replica is another.
fn two_disks() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let run = (prop_oneof![Just(0u8), any::<u8>()], 1usize..3000);
    let change = (any::<prop::sample::Index>(), 1usize..40, any::<u8>());
    (prop::collection::vec(run, 1..5), prop::collection::vec(change, 0..6), any::<bool>()).prop_map(
        |(runs, changes, shorter)| {
            let source: Vec<u8> =
                runs.into_iter().flat_map(|(fill, sectors)| std::iter::repeat_n(fill, sectors * 512)).collect();
            let mut replica = source.clone();
            for (at, sectors, byte) in changes {
                let at = at.index(replica.len() / 512) * 512;
                let end = replica.len().min(at + sectors * 512);
                replica[at..end].fill(byte);
            }
            if shorter {
                replica.truncate(replica.len() / 1024 * 512);
            }
            (source, replica)
        },
    )
}

/// What happens to what is under way.
#[derive(Clone, Debug)]
enum Op {
    Begin(prop::sample::Index, u64),
    Hash(prop::sample::Index),
    Answer(prop::sample::Index),
    /// The same answer comes twice.
    Twice(prop::sample::Index),
    Lose(prop::sample::Index),
    NotYet(prop::sample::Index),
    Wrong(prop::sample::Index),
    Cancel(prop::sample::Index),
    Pass(u64),
    Back,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (index(), 1..2048u64).prop_map(|(at, sectors)| Op::Begin(at, sectors)),
        8 => index().prop_map(Op::Hash),
        8 => index().prop_map(Op::Answer),
        2 => index().prop_map(Op::Twice),
        2 => index().prop_map(Op::Lose),
        1 => index().prop_map(Op::NotYet),
        1 => index().prop_map(Op::Wrong),
        1 => index().prop_map(Op::Cancel),
        2 => (0..8_000_000_000u64).prop_map(Op::Pass),
        1 => Just(Op::Back),
    ]
}

/// Drives a [`Compare`] as a network might, and remembers what is open.
struct World {
    compare: Compare<u32>,
    options: CompareOptions,
    now: MonoTime,
    jobs: Vec<Job>,
    asks: BTreeMap<AskId, Ask>,
    open: BTreeMap<u32, Extent>,
    done: BTreeMap<u32, (Extent, Outcome)>,
}

impl World {
    fn settle(&mut self) {
        while let Some(output) = self.compare.poll(self.now) {
            match output {
                Output::Hash(job) => self.jobs.push(job),
                // One that is asked again is the same.
                Output::Ask(ask) => assert!(self.asks.insert(ask.id, ask).is_none_or(|before| before == ask)),
                Output::Done(done) => {
                    let extent = self.open.remove(&done.key).expect("it was begun");
                    assert_eq!((extent, disk(1)), (done.extent, done.disk));
                    assert!(self.done.insert(done.key, (extent, done.outcome)).is_none());
                }
            }
        }
        assert!(self.jobs.len() <= self.options.jobs_max);
        assert!(self.compare.asks_out.len() <= self.options.asks_max);
        assert!(self.compare.looks.len() <= 9 * self.options.extents_max);
        assert_eq!(self.compare.next_deadline().is_some(), !self.compare.asks_out.is_empty());
    }

    fn ask(&self, at: &prop::sample::Index) -> Option<Ask> {
        let asks: Vec<Ask> = self.asks.values().copied().collect();
        (!asks.is_empty()).then(|| asks[at.index(asks.len())])
    }

    fn hash(&mut self, at: usize, source: &[u8]) {
        let job = self.jobs.swap_remove(at);
        self.compare.hashed(job.id, Ok(hashes(source, job.asked)));
    }

    fn answer(&mut self, ask: Ask, replica: &[u8]) {
        self.compare.answered(self.now, ask.id, Answer::Hashes(hashes(replica, ask.asked))).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_differs_is_found_in_any_order_of_answers((source, replica) in two_disks(), ops in prop::collection::vec(op(), 1..80)) {
        let options = CompareOptions { extents_max: 4, asks_max: 3, jobs_max: 2, patience_ns: 1_000_000_000 };
        let (jobs, asks, open, done) = Default::default();
        let mut world = World { compare: Compare::new(options), options, now: MonoTime(1), jobs, asks, open, done };
        let (mut keys, mut cancelled) = (0, 0);
        for op in &ops {
            match op {
                Op::Begin(at, sectors) => {
                    let offset = at.index(source.len() / 512) as u64 * 512;
                    let extent = Extent::new(offset, (sectors * 512).min(source.len() as u64 - offset));
                    keys += 1;
                    let room = world.compare.has_room();
                    prop_assert_eq!(room, world.open.len() < options.extents_max);
                    let begun = world.compare.begin(keys, disk(1), extent, Lsn(3));
                    match room {
                        true => {
                            prop_assert_eq!(begun, Ok(()));
                            world.open.insert(keys, extent);
                        }
                        false => prop_assert_eq!(begun, Err(BeginError::Full { count: 4 })),
                    }
                }
                Op::Hash(at) if !world.jobs.is_empty() => world.hash(at.index(world.jobs.len()), &source),
                Op::Answer(at) => {
                    if let Some(ask) = world.ask(at) {
                        world.asks.remove(&ask.id);
                        world.answer(ask, &replica);
                    }
                }
                Op::Twice(at) => {
                    if let Some(ask) = world.ask(at) {
                        world.answer(ask, &replica);
                    }
                }
                Op::Lose(at) => {
                    if let Some(ask) = world.ask(at) {
                        world.asks.remove(&ask.id);
                    }
                }
                Op::NotYet(at) => {
                    if let Some(ask) = world.ask(at) {
                        world.compare.answered(world.now, ask.id, Answer::NotYet).unwrap();
                    }
                }
                Op::Wrong(at) => {
                    if let Some(ask) = world.ask(at) {
                        let _ = world.compare.answered(world.now, ask.id, Answer::Hashes(Vec::new()));
                    }
                }
                Op::Cancel(at) if !world.open.is_empty() => {
                    let key = *world.open.keys().nth(at.index(world.open.len())).unwrap();
                    prop_assert!(world.compare.cancel(key) && !world.compare.cancel(key));
                    world.open.remove(&key);
                    cancelled += 1;
                }
                Op::Pass(ns) => world.now = world.now.after(*ns),
                Op::Back => world.compare.ask_again(world.now),
                Op::Hash(_) | Op::Cancel(_) => {}
            }
            world.settle();
        }
        // Everybody answers in the end, and what was lost is asked again.
        for _ in 0..10_000 {
            while !world.jobs.is_empty() {
                world.hash(0, &source);
            }
            for ask in std::mem::take(&mut world.asks).into_values() {
                world.answer(ask, &replica);
            }
            world.settle();
            if world.compare.is_idle() {
                break;
            }
            if world.jobs.is_empty() && world.asks.is_empty() {
                world.now = world.compare.next_deadline().expect("something is waited for");
                world.settle();
            }
        }
        prop_assert!(world.compare.is_idle() && world.open.is_empty() && world.compare.looks.is_empty());
        prop_assert_eq!(world.compare.counted().ranges as usize, world.done.len());
        prop_assert!(cancelled == 0 || world.done.len() < keys as usize);
        for (extent, outcome) in world.done.into_values() {
            prop_assert_eq!(outcome, Outcome::Differs(expected(&source, &replica, extent)));
        }
    }

    #[test]
    fn pieces_cover_the_range_and_no_more(offset in 0..5000u64, sectors in 1..2049u64, level in 0..3usize) {
        let extent = Extent::new(offset * SECTOR, sectors * SECTOR);
        let asked = Asked::new(extent, BLOCKS[level]).unwrap();
        let pieces: Vec<Extent> = asked.pieces().collect();
        prop_assert!(pieces.len() == asked.count() && pieces.len() <= 257);
        prop_assert_eq!(pieces.iter().map(|piece| piece.length).sum::<u64>(), extent.length);
        prop_assert!(pieces.windows(2).all(|pair| pair[0].end() == pair[1].offset));
        prop_assert!(pieces[1..].iter().all(|piece| piece.offset.is_multiple_of(BLOCKS[level])));
        let bytes: Vec<u8> = (0..extent.length).map(|at| (at / 700) as u8).collect();
        let found = asked.hashes_of(&bytes).unwrap();
        let by_the_text: Vec<Hash> = pieces.iter().map(|piece| {
            *blake3::hash(&bytes[(piece.offset - extent.offset) as usize..][..piece.length as usize]).as_bytes()
        }).collect();
        prop_assert_eq!(&found, &by_the_text);
        prop_assert_eq!(asked.hashes_from(&tail_of(&found)), Some(found));
    }
}

#[test]
fn what_is_equal_costs_a_hash_for_each_mib() {
    let source: Vec<u8> = (0..64 * MIB + 5120).map(|at| (at / 512 % 251) as u8).collect();
    let mut replica = source.clone();
    let (outcomes, counted) = run(&source, &replica, extents(source.len() as u64));
    assert!(outcomes.into_values().all(|outcome| outcome == Outcome::Differs(Vec::new())));
    let asked = counted.hashes * size_of::<Hash>() as u64;
    println!("64 MiB that are equal: {} questions, {asked} bytes of hashes", counted.asks);
    assert_eq!((counted.asks, counted.hashes, counted.bytes_hashed), (65, 65, source.len() as u64));
    // One sector of them differs: three questions more or less, and one block of 4 KiB.
    replica[(33 * MIB + 77 * 4096) as usize + 5] ^= 1;
    let (outcomes, counted) = run(&source, &replica, extents(source.len() as u64));
    let asked = counted.hashes * size_of::<Hash>() as u64;
    println!("and one sector that is not: {} questions, {asked} bytes of hashes", counted.asks);
    assert_eq!(outcomes[&(33 * MIB)], Outcome::Differs(vec![Extent::new(33 * MIB + 77 * 4096, 4096)]));
    assert_eq!((counted.asks, counted.hashes), (67, 65 + 16 + 16));
    assert_eq!((counted.bytes, counted.bytes_different), (source.len() as u64, 4096));
    assert_eq!(counted.bytes_hashed, source.len() as u64 + MIB + (64 << 10));
}

#[test]
fn zeros_are_not_read() {
    let mut bytes = vec![0; 3 * MIB as usize];
    bytes[MIB as usize + 9000] = 1;
    let content = Bytes(&bytes, Cell::new(0));
    let mut buffer = Vec::new();
    for extent in extents(4 * MIB) {
        let asked = Asked::new(extent, BLOCKS[1]).unwrap();
        let mut read = vec![0; MIB as usize];
        let inside = (bytes.len() as u64).saturating_sub(extent.offset).min(MIB) as usize;
        read[..inside].copy_from_slice(&bytes[(extent.offset as usize).min(bytes.len())..][..inside]);
        assert_eq!(asked.hashes_in(&content, &mut buffer).unwrap(), asked.hashes_of(&read).unwrap());
    }
    assert_eq!(content.1.get(), 512);
    let asked = Asked::new(Extent::new(512, 9 * 512), BLOCKS[2]).unwrap();
    assert_eq!(asked.hashes_of_zeros(), asked.hashes_of(&[0; 9 * 512]).unwrap());
}

#[test]
fn what_is_no_range_is_refused() {
    let bad = |offset, length| Asked::new(Extent::new(offset, length), BLOCKS[0]).is_err();
    assert!(
        bad(0, 0)
            && bad(0, MIB + 512)
            && bad(100, 512)
            && bad(0, 100)
            && bad(DISK_MAX, 512)
            && bad(u64::MAX - 511, 512)
    );
    assert!(!bad(DISK_MAX - 512, 512) && !bad(512, MIB));
    for block in [0, 1, 512, 8192, u64::MAX] {
        assert_eq!(Asked::new(Extent::new(0, 512), block), Err(BadAsk::Block { block }));
    }
    let asked = Asked::new(Extent::new(0, 8192), BLOCKS[2]).unwrap();
    for length in [0, 32, 63, 65, 96] {
        assert_eq!(asked.hashes_from(&vec![0; length]), None);
    }
}

#[test]
fn what_is_lost_after_a_side_was_not_there_yet_for_long_is_asked_again_as_soon_as_at_first() {
    let options = CompareOptions::default();
    let mut compare = Compare::new(options);
    let mut now = MonoTime(1);
    compare.begin(0, disk(1), Extent::new(0, 4096), Lsn(1)).unwrap();
    for _ in 0..20 {
        let ask = std::iter::from_fn(|| compare.poll(now)).find_map(|output| match output {
            Output::Ask(ask) => Some(ask),
            _ => None,
        });
        compare.answered(now, ask.expect("it is asked again").id, Answer::NotYet).unwrap();
        now = compare.next_deadline().expect("it is to be asked again");
    }
    while compare.poll(now).is_some() {}
    assert_eq!(compare.next_deadline(), Some(now.after(options.patience_ns)));
}

#[test]
fn a_side_that_cannot_read_ends_the_range() {
    let mut compare = Compare::new(CompareOptions::default());
    let now = MonoTime(1);
    let extent = Extent::new(0, MIB);
    for key in 0..2 {
        compare.begin(key, disk(1), extent, Lsn(1)).unwrap();
    }
    assert_eq!(compare.begin(1, disk(1), extent, Lsn(1)), Err(BeginError::Twice));
    let Some(Output::Ask(first)) = compare.poll(now) else { panic!() };
    compare.answered(now, first.id, Answer::Unreadable).unwrap();
    let Some(Output::Done(done)) = compare.poll(now) else { panic!() };
    assert_eq!((done.key, done.outcome), (0, Outcome::Unknown));
    let Some(Output::Ask(_)) = compare.poll(now) else { panic!() };
    let Some(Output::Hash(job)) = compare.poll(now) else { panic!() };
    compare.hashed(job.id, Err(5));
    let Some(Output::Done(done)) = compare.poll(now) else { panic!() };
    assert_eq!((done.key, done.outcome), (1, Outcome::Failed { errno: 5 }));
    assert!(compare.is_idle() && compare.next_deadline().is_none());
    assert_eq!(compare.counted().bytes_different, 2 * MIB);
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again_after_twice_as_long() {
    let options = CompareOptions { patience_ns: 1_000, ..CompareOptions::default() };
    let mut compare = Compare::new(options);
    compare.begin(1, disk(1), Extent::new(0, MIB), Lsn(1)).unwrap();
    let Some(Output::Ask(ask)) = compare.poll(MonoTime(0)) else { panic!() };
    let Some(Output::Hash(_)) = compare.poll(MonoTime(0)) else { panic!() };
    for due in [1_000, 3_000, 7_000] {
        assert_eq!(compare.next_deadline(), Some(MonoTime(due)));
        assert_eq!(compare.poll(MonoTime(due - 1)), None);
        assert_eq!(compare.poll(MonoTime(due)), Some(Output::Ask(ask)));
    }
    compare.ask_again(MonoTime(7_001));
    assert_eq!(compare.poll(MonoTime(7_001)), Some(Output::Ask(ask)));
    assert_eq!(compare.next_deadline(), Some(MonoTime(8_001)), "another far side is not judged by the one before");
    let wrong = compare.answered(MonoTime(7_002), ask.id, Answer::Hashes(vec![[0; 32]; 2]));
    assert_eq!(wrong, Err(BadAnswer { expected: 1, found: 2 }));
    assert_eq!(compare.next_deadline(), Some(MonoTime(7_002 + 100_000_000)));
    assert_eq!(compare.counted().asked_again, 4);
}
