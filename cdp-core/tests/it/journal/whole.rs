//! A replica as a whole against a model of it: whatever is done, in whatever order, every moment that can be restored reads as it
//! did, and no other is offered.
//!
//! `CDP_MODEL_CASES` is how many lives are made up, from the `CDP_MODEL_FIRST`-th on; one that fails is told with that number and
//! with the fewest steps that still fail.

mod expect;
mod ops;

use super::kit::*;
use super::points::check::Found;
use super::points::life::{Life, Outcome};
use cdp_core::sim::Survival;
use cdp_core::types::*;
use expect::{expect_all, expect_some};
use ops::{Case, Op, case};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whole looks at a life, beside those after starts and at the end, at most.
const LOOKS: u32 = 3;

type Done = BTreeMap<&'static str, u32>;

/// Tells a life; what was done in it.
fn tell(case: &Case) -> Outcome<Done> {
    let at_rest = if case.sealed { AtRest::sealed() } else { AtRest::default() };
    let size = if case.large { 3 << 19 } else { 8 * BLOCK };
    let mut life = Life::new(1, size, &at_rest);
    life.looks = Some(expect_some);
    let (mut done, mut looks) = (Done::new(), 0);
    for (number, op) in case.ops.iter().enumerate() {
        let said = |why: String| format!("step {number}, {op:?}: {why}");
        match op {
            Op::Do(step) => match life.play(step) {
                Err(_) if life.disk.is_cut() => {
                    life = start(life, &mut done, (number, false), &at_rest).map_err(said)?
                }
                played => played.map_err(said)?,
            },
            Op::Cut { after } => life.disk.cut_at(life.disk.effects() + u64::from(*after) + 1),
            Op::Restart { clean } => {
                let clean = *clean && life.close().is_ok();
                life = start(life, &mut done, (number, clean), &at_rest).map_err(said)?;
            }
            Op::Look if looks < LOOKS => {
                looks += 1;
                match expect_all(&mut life) {
                    // Whoever opens a session writes.
                    Err(_) if life.disk.is_cut() => {}
                    looked => looked.map_err(said)?,
                }
            }
            Op::Look => {}
        }
        if !life.disk.is_cut() {
            expect_some(&life).map_err(said)?;
        }
    }
    if life.disk.is_cut() {
        life = start(life, &mut done, (case.ops.len(), false), &at_rest)?;
    }
    let ended = life.flush().and_then(|()| expect_all(&mut life));
    ended.or_else(|why| if life.disk.is_cut() { Ok(()) } else { Err(format!("at the end: {why}")) })?;
    at_rest.check()?;
    gather(&mut done, &life);
    Ok(done)
}

fn gather(done: &mut Done, life: &Life) {
    life.done.iter().for_each(|(what, times)| *done.entry(what).or_default() += times);
}

/// A stop, clean or not, and the next start.
fn start(life: Life, done: &mut Done, (number, clean): (usize, bool), at_rest: &AtRest) -> Outcome<Life> {
    gather(done, &life);
    *done.entry(if clean { "stopped" } else { "power cut" }).or_default() += 1;
    let survival = match number % 8 {
        0 => Survival::Nothing,
        1 => Survival::Everything,
        _ => Survival::Some(number as u64),
    };
    let Life { disk, past, belief, overlays, .. } = life;
    // After a clean stop the same media are opened again.
    let disk = if clean { disk.after_cut(Survival::Everything) } else { disk.after_cut(survival) };
    let found = Found { disk, past, belief, overlays };
    let opened = found.open(at_rest, number as u64 + 100, &mut Dice(number as u64), false)?;
    let mut life = opened.ok_or("the power went at a start")?;
    life.looks = Some(expect_some);
    expect_all(&mut life)?;
    Ok(life)
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// One made up life, and the shortest that fails if it does.
fn try_case(number: u64, done: &Mutex<Done>) -> Outcome<()> {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 1000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let tree = case().new_tree(&mut runner).map_err(|why| why.to_string())?;
    let told = runner.run_one(tree, |case| {
        let told = tell(&case).map_err(TestCaseError::fail)?;
        let mut done = done.lock().unwrap();
        told.into_iter().for_each(|(what, times)| *done.entry(what).or_default() += times);
        Ok(())
    });
    let named = |why: String| format!("CDP_MODEL_FIRST={number} CDP_MODEL_CASES=1: {why}");
    match told {
        Ok(_) => Ok(()),
        Err(TestError::Abort(why)) => Err(named(why.to_string())),
        Err(TestError::Fail(why, case)) => {
            let ops: Vec<_> = case.ops.iter().map(|op| format!("    {op:?}")).collect();
            let how = format!("sealed {}, large {}:\n{}", case.sealed, case.large, ops.join("\n"));
            Err(named(format!("{why}\n{how}")))
        }
    }
}

#[test]
fn whatever_is_done_every_restorable_moment_reads_as_it_did_and_no_other_is_offered() {
    let usual = if cfg!(debug_assertions) { 24 } else { 400 };
    let (cases, first) = (number("CDP_MODEL_CASES", usual), number("CDP_MODEL_FIRST", 0));
    let (next, done, wrong) = (AtomicU64::new(first), Mutex::new(Done::new()), Mutex::new(None));
    let work = || {
        while wrong.lock().unwrap().is_none() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= first + cases {
                break;
            }
            if let Err(why) = try_case(number, &done) {
                *wrong.lock().unwrap() = Some(why);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (wrong, done) = (wrong.into_inner().unwrap(), done.into_inner().unwrap());
    println!("{cases} lives, {done:?}");
    assert!(wrong.is_none(), "{}", wrong.unwrap());
    let all = super::points::ALL.into_iter().chain(["stopped", "power cut"]);
    let missing: Vec<_> = all.filter(|what| !done.contains_key(what)).collect();
    // A few lives need not have everything.
    assert!(cases < 20 || missing.is_empty(), "{missing:?} never happened: {done:?}");
}
