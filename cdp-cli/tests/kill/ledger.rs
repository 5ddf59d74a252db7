//! Writers whose every write is recognised on the disk, so that its state at any LSN tells which writes it holds.
//!
//! Each writer has one op at a time, numbered from 1 in each round, a region of its own and a part in one that all write.
//! Every sector of a write names round, writer, number and place. Odd ops write a run of the own region that holds its middle
//! sector, which so names the last of them; even ones write in the shared region, or trim or zero what the one before wrote.
//! So every op changes what is read, and an op that is there is seen, unless others wrote over it in the shared region.

use crate::Dice;
use cdp_net::device::ZeroFlags;
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Where on the disk it lies: behind what other writers use.
pub(crate) const LEDGER_AT: u64 = 8 << 20;
/// How many bytes it has.
pub(crate) const LEDGER: usize = WRITERS * OWN + SHARED;
const WRITERS: usize = 3;
/// Longer than a frame holds.
const OWN: usize = 320 << 10;
const SHARED: usize = 64 << 10;
const SECTOR: usize = 512;
const MAGIC: u64 = 0x6c65_6467_6572_0a01;

/// What an op does to its run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Write { fua: bool },
    Zero { trim: bool },
}

/// An op that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    run: Range<usize>,
    kind: Kind,
    pub(crate) sent: Instant,
    pub(crate) answered: Option<Instant>,
}

/// Names an op of a round: its writer, and its number from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Name {
    pub(crate) writer: usize,
    pub(crate) number: usize,
}

/// What was sent in one round.
pub(crate) struct Round {
    round: u64,
    pub(crate) ops: Vec<Vec<Op>>,
    /// What the disk held before.
    begin: Vec<u8>,
}

/// Writers that write.
pub(crate) struct Writing {
    round: u64,
    begin: Vec<u8>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Op>>>,
}

fn own(writer: usize) -> Range<usize> {
    writer * OWN..(writer + 1) * OWN
}

const SHARED_AT: usize = WRITERS * OWN;

/// The sector that every odd op writes.
fn middle(writer: usize) -> usize {
    own(writer).start + OWN / 2
}

/// A sector as an op writes it.
fn fill(round: u64, name: Name, at: usize, sector: &mut [u8]) {
    let head = [MAGIC, round, name.writer as u64, name.number as u64, at as u64];
    for (word, number) in sector.chunks_exact_mut(8).zip(head) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    // Half of it compresses.
    let mut dice = Dice::new(head.iter().fold(0, |all, part| all.wrapping_mul(0x100_0000_01b3) ^ part));
    sector[40..].fill(name.number as u8);
    for word in sector[40..SECTOR / 2].chunks_exact_mut(8) {
        word.copy_from_slice(&dice.below(u64::MAX).to_le_bytes());
    }
}

/// The first sector that differs.
pub(crate) fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    // Whole regions are compared at once: this is done for every LSN.
    let begin =
        one.chunks(64 * SECTOR).zip(other.chunks(64 * SECTOR)).position(|(one, other)| one != other)? * 64 * SECTOR;
    let mut sectors = one[begin..].chunks(SECTOR).zip(other[begin..].chunks(SECTOR));
    sectors.position(|(one, other)| one != other).map(|sector| begin + sector * SECTOR)
}

/// Which op of the round wrote a sector, by its own word.
fn read_name(round: u64, sector: &[u8]) -> Option<Name> {
    let number = |at: usize| u64::from_le_bytes(sector[at * 8..at * 8 + 8].try_into().unwrap());
    let ours = number(0) == MAGIC && number(1) == round;
    ours.then(|| Name { writer: number(2) as usize, number: number(3) as usize })
}

/// Begins a round on a disk whose ledger is `begin`, with nobody else writing there.
pub(crate) fn begin(uri: &Uri, round: u64, seed: u64, begin: Vec<u8>) -> Writing {
    let stop = Arc::new(AtomicBool::new(false));
    let threads = (0..WRITERS).map(|writer| {
        let (uri, stop) = (uri.clone(), Arc::clone(&stop));
        let dice = Dice::new(seed ^ round << 8 ^ writer as u64);
        std::thread::spawn(move || {
            let mut scribe = Scribe { round, writer, dice, ops: Vec::new() };
            // The server is killed while it is spoken to.
            let _ = scribe.write(&uri, &stop);
            scribe.ops
        })
    });
    Writing { round, begin, threads: threads.collect(), stop }
}

impl Writing {
    pub(crate) fn end(self) -> Round {
        self.stop.store(true, Ordering::SeqCst);
        let ops = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        Round { round: self.round, ops, begin: self.begin }
    }
}

struct Scribe {
    round: u64,
    writer: usize,
    dice: Dice,
    ops: Vec<Op>,
}

impl Scribe {
    fn write(&mut self, uri: &Uri, stop: &AtomicBool) -> Result<(), ClientError> {
        let mut client = Client::connect(uri, &ClientOptions::default())?;
        while !stop.load(Ordering::SeqCst) {
            let (run, kind) = self.next();
            let name = Name { writer: self.writer, number: self.ops.len() + 1 };
            let (offset, length) = (LEDGER_AT + run.start as u64, run.len() as u32);
            let data = bytes_of(self.round, name, run.clone(), kind);
            self.ops.push(Op { run, kind, sent: Instant::now(), answered: None });
            match kind {
                Kind::Write { fua } => client.write(offset, &data, fua)?,
                Kind::Zero { trim: true } => client.trim(offset, length, false)?,
                Kind::Zero { trim: false } => client.write_zeroes(offset, length, ZeroFlags::default())?,
            }
            self.ops.last_mut().unwrap().answered = Some(Instant::now());
            if self.dice.below(40) == 0 {
                client.flush()?;
            }
        }
        client.disconnect()
    }

    fn next(&mut self) -> (Range<usize>, Kind) {
        let fua = self.dice.below(20) == 0;
        if self.ops.len().is_multiple_of(2) {
            // Now and then of more parts than a frame holds.
            let reach = if self.dice.below(25) == 0 { OWN / 2 } else { 12 << 10 };
            let mut side = || self.dice.below((reach / SECTOR) as u64) as usize * SECTOR;
            let (before, behind) = (side(), side() + SECTOR);
            return (middle(self.writer) - before..middle(self.writer) + behind, Kind::Write { fua });
        }
        if self.dice.below(3) == 0 {
            let last = &self.ops[self.ops.len() - 1].run;
            // Not the middle, which stays to be read.
            let behind = middle(self.writer) + SECTOR..last.end;
            if !behind.is_empty() {
                return (behind, Kind::Zero { trim: self.dice.below(2) == 0 });
            }
        }
        let sectors = 1 + self.dice.below(16) as usize;
        let at = self.dice.below((SHARED / SECTOR - sectors) as u64 + 1) as usize;
        let start = SHARED_AT + at * SECTOR;
        (start..start + sectors * SECTOR, Kind::Write { fua })
    }
}

fn bytes_of(round: u64, name: Name, run: Range<usize>, kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0; run.len()];
    if let Kind::Write { .. } = kind {
        for (at, sector) in run.step_by(SECTOR).zip(bytes.chunks_mut(SECTOR)) {
            fill(round, name, at, sector);
        }
    }
    bytes
}

impl Round {
    pub(crate) fn op(&self, name: Name) -> Option<&Op> {
        self.ops[name.writer].get(name.number.checked_sub(1)?)
    }

    /// Carries out an op.
    pub(crate) fn apply(&self, name: Name, content: &mut [u8]) {
        let op = self.op(name).unwrap();
        content[op.run.clone()].copy_from_slice(&bytes_of(self.round, name, op.run.clone(), op.kind));
    }

    /// How far each writer was in a content that was never looked at before, and whether one more op of it may be there unseen.
    pub(crate) fn recognise(&self, content: &[u8]) -> Vec<(usize, bool)> {
        (0..self.ops.len()).map(|writer| self.recognise_writer(writer, content)).collect()
    }

    fn recognise_writer(&self, writer: usize, content: &[u8]) -> (usize, bool) {
        let sector = &content[middle(writer)..middle(writer) + SECTOR];
        let last = read_name(self.round, sector).map_or(0, |name| name.number);
        let mut model = self.begin.clone();
        let is_own = |number: &usize| own(writer).contains(&self.ops[writer][number - 1].run.start);
        (1..=last).filter(is_own).for_each(|number| self.apply(Name { writer, number }, &mut model));
        let next = Name { writer, number: last + 1 };
        let same = |model: &[u8]| model[own(writer)] == content[own(writer)];
        match self.op(next) {
            Some(op) if matches!(op.kind, Kind::Write { .. }) => {
                assert!(same(&model), "writer {writer}: its region is not what its ops up to {last} make");
                let seen = content[SHARED_AT..].chunks(SECTOR).any(|s| read_name(self.round, s) == Some(next));
                let even = next.number.is_multiple_of(2);
                (if seen { next.number } else { last }, even && !seen)
            }
            Some(_) if !same(&model) => {
                self.apply(next, &mut model);
                assert!(same(&model), "writer {writer}: its region is not what its ops up to {last} make, or the next");
                (next.number, false)
            }
            _ => {
                assert!(same(&model), "writer {writer}: its region is not what its ops up to {last} make");
                (last, false)
            }
        }
    }

    /// Every shared sector is what one of the ops that may be there wrote, or what was there before.
    pub(crate) fn check_shared(&self, content: &[u8], reached: &[(usize, bool)]) {
        let mut expected = vec![0; SECTOR];
        for at in (SHARED_AT..LEDGER).step_by(SECTOR) {
            let sector = &content[at..at + SECTOR];
            let Some(name) = read_name(self.round, sector) else {
                assert!(sector == &self.begin[at..at + SECTOR], "the sector at {at} is no op's");
                continue;
            };
            fill(self.round, name, at, &mut expected);
            let op = self.op(name).filter(|op| op.run.contains(&at));
            assert!(op.is_some() && sector == expected, "the sector at {at} says {name:?}, which did not write it");
            assert!(name.number <= reached[name.writer].0, "{name:?} is there, and not all before it");
        }
    }

    /// The op that makes `content` of `model`, as the first sector that differs names it; zeros in a writer's own region are
    /// its next op. `None` when they are the same, or when no op makes such a sector.
    pub(crate) fn next_op(&self, model: &[u8], content: &[u8], reached: &[(usize, bool)]) -> Option<Name> {
        let at = first_difference(model, content)?;
        let by_place = || {
            let writer = at / OWN;
            (at < SHARED_AT).then(|| Name { writer, number: reached[writer].0 + 1 })
        };
        read_name(self.round, &content[at..at + SECTOR]).or_else(by_place)
    }

    /// The disk after a kill: every op that was answered is there, or one that may have come after it.
    pub(crate) fn check_source(&self, content: &[u8]) {
        for at in (0..LEDGER).step_by(SECTOR) {
            let sector = &content[at..at + SECTOR];
            let writers = self.ops.iter().enumerate();
            let covering: Vec<(Name, &Op)> = writers
                .flat_map(|(writer, ops)| {
                    let named = ops.iter().enumerate().map(move |(at, op)| (Name { writer, number: at + 1 }, op));
                    named.filter(|(_, op)| op.run.contains(&at))
                })
                .collect();
            let last_begun = covering.iter().filter(|(_, op)| op.answered.is_some()).map(|(_, op)| op.sent).max();
            // What was over before the last one that was answered was sent lies below it.
            let possible = |op: &Op| op.answered.is_none_or(|answered| last_begun.is_none_or(|last| answered >= last));
            let makes = |(name, op): &(Name, &Op)| {
                bytes_of(self.round, *name, at..at + SECTOR, op.kind) == sector && possible(op)
            };
            let untouched = last_begun.is_none() && sector == &self.begin[at..at + SECTOR];
            assert!(
                untouched || covering.iter().any(makes),
                "the sector at {at} of the ledger is not what was answered"
            );
        }
    }
}
