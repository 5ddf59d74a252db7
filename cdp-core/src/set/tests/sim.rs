//! Whole sets in virtual time: hosts whose clocks disagree, a network that delays, loses and doubles, parts that stall and are started again,
//! and causal writers: each writes to one host, and after it was told that this is done, to another.
//!
//! Every write carries what its writer knew to be done, by hosts. A common point in which a write is in and something that it knew of is not is
//! what must never be. `CDP_SET_SEEDS` says how many worlds are run; `CDP_SET_SEED` runs one.

mod parts;
mod world;

use crate::mistakes::{self, Mistake};
use parts::{Config, Outcome};
use world::run;

/// Worlds that are bad in every way, and some that are calm.
fn config(seed: u64) -> Config {
    if seed.is_multiple_of(8) { Config::calm() } else { Config::rough(seed) }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs worlds until one shows a fault, which it gives with its seed.
fn fault(seeds: impl Iterator<Item = u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| run(seed, &config(seed)).err().map(|fault| (seed, fault)))
}

fn share(outcome: &Outcome) -> f64 {
    outcome.common as f64 / outcome.begun as f64
}

#[test]
fn no_common_point_holds_an_effect_without_its_cause() {
    if let Some(seed) = number("CDP_SET_SEED") {
        run(seed, &config(seed)).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        return;
    }
    let mut total = Outcome::default();
    for seed in 0..number("CDP_SET_SEEDS").unwrap_or(60) {
        let outcome = run(seed, &config(seed));
        total.add(&outcome.unwrap_or_else(|fault| panic!("CDP_SET_SEED={seed} runs it alone: {fault}")));
    }
    println!(
        "rough and calm worlds: {} of {} cuts are common points, {} writes",
        total.common, total.begun, total.writes
    );
    assert!(total.common > 0 && total.common < total.begun, "the worlds show both ends of a cut: {total:?}");
}

#[test]
fn on_a_calm_network_nearly_every_cut_holds() {
    let mut total = Outcome::default();
    for seed in 0..20 {
        total.add(&run(seed, &Config::calm()).unwrap_or_else(|fault| panic!("seed {seed}: {fault}")));
    }
    let share = share(&total);
    println!(
        "calm worlds: {} of {} cuts are common points ({:.1} %); {} of {} completions were withheld, for {} us at the 99th percentile, {} us at most",
        total.common,
        total.begun,
        share * 100.0,
        total.held,
        total.writes,
        total.held_ns(0.99) / 1_000,
        total.held_ns(1.0) / 1_000,
    );
    assert!(share > 0.97, "only {share} of the cuts held");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in [1, 8] {
        assert_eq!(run(seed, &config(seed)), run(seed, &config(seed)));
    }
}

/// Each fault is found, or the simulation would not find what it is there for.
#[test]
fn deliberate_faults_are_found() {
    let faults = [
        Mistake::TimerIsGo,
        Mistake::CutBeforeHold,
        Mistake::GoEarly,
        Mistake::AboveLetThrough,
        Mistake::KeepUnchecked,
    ];
    for mistake in faults {
        mistakes::make(Some(mistake));
        let found = fault(0..1_000);
        mistakes::make(None);
        let (seed, said) = found.unwrap_or_else(|| panic!("{mistake:?} is not found by 1,000 worlds"));
        println!("{mistake:?} is found by seed {seed}: {said}");
    }
}
