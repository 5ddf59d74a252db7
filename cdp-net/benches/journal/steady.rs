//! Ingest while history is merged away behind it, against ingest alone: the whole product in one process, with a bound on its journal
//! and without.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, noise};
use crate::{Failure, Plan, Scratch};
use bytes::Bytes;
use cdp_core::capture::State;
use cdp_core::types::Lsn;
use cdp_net::device::Device;
use cdp_net::owner::PolicyChange;
use cdp_net::protect::{ProtectOptions, Protector, SourceOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the disk.
const DISK: u64 = 2 << 30;
/// A piece of the disk is written at random places, so that each block is written so often, before the next piece is.
const PIECE: u64 = 32 << 20;
const TIMES: u64 = 4;
/// Bytes of a write.
const WRITE: u64 = 64 << 10;
/// Bytes of data that are written again and again.
const POOL: u64 = 64 << 20;
/// What the journal may take, in bytes.
const BOUND: u64 = 4 << 30;
/// Ingest counts from here on: the bound is reached and merging has begun.
const WARM: u64 = BOUND + BOUND / 4;
/// As much as that is written and not durable at most, in bytes: nothing is tracked instead of recorded, and nothing gets ahead.
const BACKLOG: u64 = 256 << 20;
/// More than is ever written without a bound, in bytes: it all stays.
const MOST: u64 = 16 << 30;

/// What a run found.
struct Found {
    mb_per_s: f64,
    /// The largest journal against its bound.
    largest: f64,
    /// Every write was recorded.
    whole: bool,
}

/// Protects a new disk under load for so long.
fn run(path: &Path, pool: &Bytes, bound: Option<u64>, time: Duration) -> Result<Found, Failure> {
    std::fs::create_dir(path)?;
    let source = path.join("disk");
    std::fs::File::create(&source)?.set_len(DISK)?;
    let sources = vec![SourceOptions { name: "disk".to_owned(), path: source }];
    let policy = PolicyChange { max_bytes: bound, reserve_bytes: Some(0), ..PolicyChange::default() };
    let options = ProtectOptions {
        policy,
        // The same in both runs: it is merging that is compared.
        segment_bytes: 256 << 20,
        ..ProtectOptions::new(sources, path.join("replica"))
    };
    let protector = Protector::start(&options, |_| {})?;
    while protector.status().state != State::Protecting {
        std::thread::sleep(Duration::from_millis(5));
    }
    let device = Arc::clone(&protector.exports()[0].device);
    let over = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&protector, &over));
        let loaded = load(&protector, device.as_ref(), pool, time);
        over.store(true, Ordering::Relaxed);
        let (largest, whole) = watching.join().map_err(|_| "the watch panicked")??;
        Ok::<_, Failure>(Found { mb_per_s: loaded?, largest: largest as f64 / BOUND as f64, whole })
    })?;
    drop(device);
    protector.stop(Duration::from_secs(60), &|| false);
    std::fs::remove_dir_all(path)?;
    Ok(found)
}

/// Writes as fast as it becomes durable; gives MB/s from the warm state on.
fn load(protector: &Protector, device: &dyn Device, pool: &Bytes, time: Duration) -> Result<f64, Failure> {
    let (mut dice, mut piece, mut written) = (Dice(8), 0, 0);
    let mut begin = None;
    while begin.is_none_or(|(begin, _): (Instant, u64)| begin.elapsed() < time) && written < MOST {
        let base = piece % (DISK / PIECE) * PIECE;
        piece += 1;
        // Each block as often as any other, in another order each time.
        for _ in 0..TIMES {
            let mut places: Vec<u64> = (0..PIECE / WRITE).collect();
            while !places.is_empty() {
                let place = places.swap_remove(dice.below(places.len() as u64) as usize);
                let from = dice.below(POOL / WRITE) * WRITE;
                let data = pool.slice(from as usize..(from + WRITE) as usize);
                device.write(base + place * WRITE, data, false)?;
                written += WRITE;
                while backlog(protector) > BACKLOG {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        if written >= WARM && begin.is_none() {
            begin = Some((Instant::now(), written));
        }
    }
    let last = protector.status().lsn;
    while protector.status().durable < last {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (begin, before) = begin.ok_or("it was over before it was warm")?;
    Ok((written - before) as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

/// Bytes that were written and are not durable, about: other records are few.
fn backlog(protector: &Protector) -> u64 {
    let status = protector.status();
    let Lsn(lsn) = status.lsn;
    lsn.saturating_sub(status.durable.0) * WRITE
}

/// The largest journal, in bytes, and whether every write was recorded.
fn watch(protector: &Protector, over: &AtomicBool) -> Result<(u64, bool), String> {
    let (mut largest, mut whole) = (0, true);
    while !over.load(Ordering::Relaxed) {
        let status = protector.host().status().map_err(|problem| problem.message)?;
        largest = largest.max(status.space.segments);
        whole &= protector.status().state == State::Protecting;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok((largest, whole))
}

/// `steady`: MB/s of a load that writes each block four times while the journal is held to its bound, against the same load without a
/// bound.
pub(crate) fn steady(plan: &Plan) -> Result<(), Failure> {
    let (pool, scratch) = (noise(POOL), Scratch::new()?);
    let (rounds, time) = if plan.rounds > 3 { (4, 30) } else { (2, 8) };
    let (mut ours, mut alone, mut largest, mut whole) = (Vec::new(), Vec::new(), Vec::new(), true);
    for round in 0..rounds {
        for bound in [None, Some(BOUND)] {
            let path = scratch.path(&format!("{round}-{}", bound.unwrap_or(0)));
            let found = run(&path, &pool, bound, Duration::from_secs(time))?;
            eprintln!("  bound {}: {:.0} MB/s, journal {:.2}", bound.is_some(), found.mb_per_s, found.largest);
            whole &= found.whole;
            if bound.is_some() {
                ours.push(found.mb_per_s);
                largest.push(found.largest);
            } else {
                alone.push(found.mb_per_s);
            }
        }
    }
    let most = largest.iter().copied().fold(0.0, f64::max);
    let conditions = [("journal", format!("{most:.2}_of_its_bound")), ("recorded", whole.to_string())];
    let (id, unit, reach) = ("steady", "MB/s", Reach::AtLeast(0.8));
    let (limit, conditions_hold) = (Some(median(&alone)), most < 1.25 && whole);
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold });
    Ok(())
}
