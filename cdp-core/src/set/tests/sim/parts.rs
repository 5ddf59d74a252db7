//! What a world is made of: its settings, chance and clocks, and what came of it.

use crate::types::{MonoTime, StartId};

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000 * US;

/// How a world is.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) hosts: usize,
    pub(super) writers: usize,
    pub(super) cuts: u64,
    /// In thousandths: messages that are lost, doubled, very late; disk writes that are slow.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) late: u64,
    pub(super) slow: u64,
    /// In thousandths of events: a host or taker that stalls, a member that is started again; a taker is a quarter as often.
    pub(super) stall: u64,
    pub(super) crash: u64,
    /// The usual time of a message is up to this.
    pub(super) delay: u64,
    /// Thousandths by which clocks go too fast, and up to half as slow: a guard that rests on clocks must not be the one that holds.
    pub(super) drift: u64,
}

impl Config {
    pub(super) fn calm() -> Self {
        Self {
            hosts: 3,
            writers: 12,
            cuts: 20,
            lost: 0,
            doubled: 0,
            late: 0,
            slow: 10,
            stall: 0,
            crash: 0,
            delay: 300 * US,
            drift: 0,
        }
    }

    pub(super) fn rough(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5e7);
        Self {
            hosts: random.between(2, 5) as usize,
            writers: random.between(4, 14) as usize,
            cuts: 12,
            lost: random.between(0, 300),
            doubled: random.between(0, 500),
            late: random.between(0, 400),
            slow: random.between(0, 50),
            stall: random.between(0, 3),
            crash: random.between(0, 8),
            delay: random.between(50, 2_000) * US,
            drift: random.between(0, 2_000),
        }
    }
}

/// What came of a world.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    pub(super) begun: u64,
    pub(super) common: u64,
    pub(super) writes: u64,
    pub(super) held: u64,
    times: Vec<u64>,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Outcome) {
        self.begun += other.begun;
        self.common += other.common;
        self.writes += other.writes;
        self.held += other.held;
        self.times.extend(&other.times);
    }

    /// A completion was withheld for so long.
    pub(super) fn withheld(&mut self, ns: u64) {
        self.times.push(ns);
    }

    /// How long completions were withheld: the quantile of those that were.
    pub(super) fn held_ns(&self, quantile: f64) -> u64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(((times.len().max(1) - 1) as f64 * quantile) as usize).copied().unwrap_or(0)
    }
}

/// Splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
    pub(super) fn thousandths(&mut self, of: u64) -> bool {
        self.next() % 1_000 < of
    }
    pub(super) fn start(&mut self) -> StartId {
        let mut bytes = [1; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        StartId::new(bytes).expect("not zero")
    }
}

/// A clock of its own: its zero and its rate are its own.
pub(super) struct Clock {
    zero: u64,
    rate: u64,
}

impl Clock {
    pub(super) fn new(random: &mut Random, config: &Config) -> Self {
        let rate = random.between(1_000 - config.drift.min(500), 1_000 + config.drift);
        Self { zero: random.between(0, 1 << 40), rate }
    }
    pub(super) fn at(&self, time: u64) -> MonoTime {
        MonoTime(self.zero + time * self.rate / 1_000)
    }
    /// When it will show this, rounded up.
    pub(super) fn when(&self, shown: MonoTime) -> u64 {
        (shown.0.saturating_sub(self.zero) * 1_000).div_ceil(self.rate)
    }
}
