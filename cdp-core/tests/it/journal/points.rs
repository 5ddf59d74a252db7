//! A power cut after every change of the media in lives in which everything happens, with many outcomes for each: what was told
//! is true, every moment reads as it did, and life goes on, to the next power cut.
//!
//! A life is told once, on media that remember themselves after every change; each way in which a power cut may leave them is a
//! crash point. One that was looked at already is not counted again.

pub(crate) mod check;
mod grown;
pub(crate) mod life;
mod mistakes;
pub(crate) mod model;
pub(crate) mod step;

use super::kit::*;
use cdp_core::sim::Survival;
use cdp_core::trust::Recorder;
use cdp_core::types::*;
use check::{Found, check};
use life::{Belief, Life, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use step::Step;

/// Ways in which the power goes after one change, at most; many are the same.
const WAYS: u64 = 12;

/// What happens in lives, if there are enough of them.
pub(crate) const ALL: [&str; 18] = [
    "sealed",
    "index merged",
    "emptied",
    "merged",
    "merge left",
    "kept",
    "released",
    "layer",
    "expired",
    "session",
    "session open",
    "sessions open",
    "session dropped",
    "grown",
    "cut",
    "added",
    "removed",
    "rotated",
];

type Seals = BTreeMap<((Option<SegmentId>, &'static str, u32), [u8; 12]), [u8; 32]>;

/// A life that was told to its end.
struct Told {
    seed: u64,
    life: Life,
    /// Every seal of it.
    seals: Seals,
}

fn at_rest_of(seed: u64) -> AtRest {
    if seed % 4 == 3 { AtRest::sealed() } else { AtRest::default() }
}

fn tell(seed: u64) -> Outcome<Told> {
    let (at_rest, mut dice) = (at_rest_of(seed), Dice(seed ^ 0x7e11));
    // One in sixteen has several pages of checksums.
    let size = if seed % 16 == 5 { 3 << 19 } else { 8 * BLOCK };
    let mut life = Life::new(seed, size, &at_rest);
    life.disk.remember();
    for step in Step::script(&mut dice) {
        life.play(&step).map_err(|why| format!("{step:?}: {why}"))?;
    }
    let mut seals = Seals::new();
    add_seals(&mut seals, &at_rest)?;
    Ok(Told { seed, life, seals })
}

/// No nonce comes twice with a key, but for the same bytes.
fn add_seals(seals: &mut Seals, at_rest: &AtRest) -> Outcome<()> {
    for call in at_rest.recorder.calls() {
        if *seals.entry((call.key, call.nonce)).or_insert(call.plain) != call.plain {
            return Err(format!("two contents under nonce {:?} of {:?}", call.nonce, call.key));
        }
    }
    Ok(())
}

/// What comes of one way to lose power: a start, sometimes a life with another power cut, and a start again. Gives how many cuts.
fn story(told: &Told, mut found: Found, mut dice: Dice) -> Outcome<u64> {
    let at_rest = AtRest { recorder: Recorder::default(), ..at_rest_of(told.seed) };
    let again = dice.below(4) == 0;
    if again {
        found.disk.cut_at(1 + dice.below(250));
        let (seed, all) = (dice.next(), false);
        if let Some(mut life) = found.open(&at_rest, seed, &mut dice, all)? {
            for step in (0..4).map(|_| Step::any(&mut dice)) {
                match life.play(&step) {
                    Err(_) if found.disk.is_cut() => break,
                    Err(why) => return Err(format!("going on with {step:?}: {why}")),
                    Ok(()) => {}
                }
            }
            let disk = found.disk;
            found = Found { disk, past: life.past, belief: life.belief, overlays: life.overlays };
        }
        found.disk = found.disk.after_cut(survival(&mut dice));
    }
    let (seed, all) = (dice.next(), dice.below(32) == 0);
    let Some(mut life) = found.open(&at_rest, seed, &mut dice, all)? else { return Err("no power".to_owned()) };
    if dice.below(8) == 0 {
        let merge = Step::Merge { to: dice.next() as u16, pieces: None };
        life.play(&merge).map_err(|why| format!("a merge after it: {why}"))?;
        check(&life, &mut dice, all).map_err(|why| format!("after a merge after it: {why}"))?;
    }
    let mut seals = Seals::new();
    add_seals(&mut seals, &at_rest)?;
    if let Some((name, _)) = seals.iter().find(|(name, plain)| told.seals.get(*name).is_some_and(|was| was != *plain)) {
        return Err(format!("two contents under nonce {:?} of {:?}, before and after a start", name.1, name.0));
    }
    Ok(1 + u64::from(again))
}

fn survival(dice: &mut Dice) -> Survival {
    match dice.below(8) {
        0 => Survival::Nothing,
        1 => Survival::Everything,
        _ => Survival::Some(dice.next()),
    }
}

/// Every change of a life, from the `first`-th on in strides; gives how many cuts, and says which went wrong.
fn enumerate(told: &Told, ways: u64, (first, stride): (u64, usize)) -> Outcome<u64> {
    let (life, mut points, mut seen) = (&told.life, 0, BTreeSet::new());
    for change in (first..=life.disk.remembered()).step_by(stride) {
        let by_then = life.beliefs.partition_point(|belief| belief.changes <= change);
        let belief = by_then.checked_sub(1).map_or_else(Belief::default, |at| life.beliefs[at].clone());
        for way in 0..ways {
            let mut dice = Dice(told.seed << 40 ^ change << 8 ^ way);
            let survival = match way {
                0 => Survival::Everything,
                1 => Survival::Nothing,
                _ => Survival::Some(dice.next()),
            };
            let disk = life.disk.past(change, survival).expect("it remembers");
            if !seen.insert((disk.digest(), belief.durable, belief.generation, belief.sessions.clone())) {
                continue;
            }
            let (past, belief, overlays) = (life.past.clone(), belief.clone(), life.overlays.clone());
            let found = Found { disk, past, belief, overlays };
            points += story(told, found, dice).map_err(|why| {
                format!("seed {}, power cut after change {change}, {survival:?} (way {way}): {why}", told.seed)
            })?;
        }
    }
    Ok(points)
}

/// At least `CDP_CRASH_POINTS` crash points, of as many seeds as that takes from `CDP_CRASH_FIRST` on: a seed that fails is told,
/// and fails again with that.
#[test]
#[allow(clippy::disallowed_methods, reason = "how long it took is told")]
fn a_power_cut_after_any_change_of_any_life_costs_nothing_that_was_told() {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (wanted, first) = (number("CDP_CRASH_POINTS", 500), number("CDP_CRASH_FIRST", 0));
    let (began, next, points) = (Instant::now(), AtomicU64::new(first), AtomicU64::new(0));
    let (done, wrong) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    // A few points of each of some lives, where not all are wanted.
    let stride = if wanted < 10_000 { 97 } else { 1 };
    let work = || {
        while points.load(Ordering::Relaxed) < wanted && wrong.lock().unwrap().is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let counted = tell(seed).map_err(|why| format!("seed {seed}: {why}")).and_then(|told| {
                let mut done = done.lock().unwrap();
                told.life.done.iter().for_each(|(what, times)| *done.entry(*what).or_insert(0) += times);
                drop(done);
                enumerate(&told, if stride == 1 { WAYS } else { 3 }, (seed % stride as u64, stride))
            });
            match counted {
                Ok(counted) => drop(points.fetch_add(counted, Ordering::Relaxed)),
                Err(why) => wrong.lock().unwrap().push(why),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (points, next, seconds) = (points.into_inner(), next.into_inner(), began.elapsed().as_secs());
    println!("{points} crash points, seeds {first}..{next}, {seconds} s");
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let done = done.into_inner().unwrap();
    let missing: Vec<_> = ALL.into_iter().filter(|what| !done.contains_key(what)).collect();
    // A few lives need not have everything.
    assert!(next - first < 16 || missing.is_empty(), "{missing:?} never happened: {done:?}");
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in [1, 3] {
        let told = || tell(seed).map(|told| (told.life.disk.trace(), told.life.disk.digest(), told.life.beliefs.len()));
        assert_eq!(told().unwrap(), told().unwrap(), "seed {seed}");
    }
}
