//! `mirror-peer`: random writes of 4 KiB with journal and history at a replica host, beside a mirror that QEMU keeps.

use super::Plan;
use super::figure::{Figure, Reach, median};
use super::image::{SOURCE_BYTES, settle};
use super::load::{self, Shape};
use super::others::{EXPORT, Goes, StorageDaemon, empty};
use super::parts::{Facts, Hop, Place};
use super::serve::TLS;
use cdp_net::nbd::Uri;
use std::fs::File;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const SHAPE: Shape = Shape { block: 4096, depth: 32, random: true };
/// Ours is loaded for so long at once.
const SLICE: Duration = Duration::from_millis(200);
/// Above so many bytes that the replica has not, the next slice waits: what is measured is what is kept up, and not how long a spool
/// takes to fill.
const BEHIND: u64 = 192 << 20;

/// What a run gave.
struct Loaded {
    /// Writes a second, up to where the last one was durable at the copy.
    rate: f64,
    /// Writes.
    writes: u64,
    lost: u64,
}

pub(crate) fn run(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let (mut ours, mut peers, mut lost) = (Vec::new(), Vec::new(), 0);
    for round in 0..plan.rounds {
        let loaded = protected(place, plan, round)?;
        ours.push(loaded.rate);
        lost += loaded.lost;
        peers.extend(mirrored(place, plan, round)?);
    }
    let figure = Figure {
        id: "mirror-peer",
        unit: "IOPS",
        ours: &ours,
        limit: (!peers.is_empty()).then(|| median(&peers)),
        reach: Reach::AtLeast(2.0),
        conditions: &[("gaps", lost.to_string())],
        conditions_hold: lost == 0,
    };
    println!("{figure}");
    Ok(())
}

fn protected(place: &Place, plan: &Plan, round: usize) -> Result<Loaded, Failure> {
    let mut hop = Hop::start(place, &place.source, TLS)?;
    settle();
    let before = hop.cpu();
    let (mut bytes, mut written) = (0, Duration::ZERO);
    let begin = Instant::now();
    while begin.elapsed() < plan.load {
        let slice = Instant::now();
        bytes += load::full(&hop.uri, SHAPE, SLICE, &place.pool)?;
        written += slice.elapsed();
        while Facts::of(&mut hop.filter)?.queued > BEHIND {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let facts = Facts::when_durable(&mut hop.filter)?;
    let time = begin.elapsed();
    let after = hop.cpu();
    let writes = bytes / SHAPE.block as u64;
    let loaded = Loaded { rate: writes as f64 / time.as_secs_f64(), writes, lost: facts.lost() };
    let each = |at: usize| (after[at] - before[at]) / (bytes as f64 / 1e9);
    eprintln!(
        "  mirror-peer {round} ours: {:.0} IOPS ({:.0} while it writes), {} not in the history; core-seconds a GB: filter {:.2}, \
         replica host {:.2}",
        loaded.rate,
        loaded.writes as f64 / written.as_secs_f64(),
        loaded.lost,
        each(0),
        each(1)
    );
    hop.stop()?;
    place.clear();
    Ok(loaded)
}

/// Writes a second; `None`: the program is not there.
fn mirrored(place: &Place, plan: &Plan, round: usize) -> Result<Option<f64>, Failure> {
    let copy = empty(place.root.join("mirror.img"), SOURCE_BYTES)?;
    let socket = place.root.join("mirror.sock");
    // To a file of its own, without a hop between: that is the quickest mirror there is.
    let Some(mut daemon) = StorageDaemon::start(&place.source, &Goes::File(&copy), Some(&socket))? else {
        std::fs::remove_file(copy)?;
        return Ok(None);
    };
    daemon.mirror(true)?;
    daemon.ready()?;
    settle();
    let before = daemon.cpu();
    let begin = Instant::now();
    let bytes = load::full(&Uri::unix(&socket).with_export(EXPORT), SHAPE, plan.load, &place.pool)?;
    let written = begin.elapsed();
    // Durable at the copy, as ours is.
    File::open(&copy)?.sync_all()?;
    let time = begin.elapsed();
    let writes = (bytes / SHAPE.block as u64) as f64;
    let rate = writes / time.as_secs_f64();
    eprintln!(
        "  mirror-peer {round} blockdev-mirror: {rate:.0} IOPS ({:.0} while it writes); core-seconds a GB: {:.2}",
        writes / written.as_secs_f64(),
        (daemon.cpu() - before) / (bytes as f64 / 1e9)
    );
    drop(daemon);
    std::fs::remove_file(copy)?;
    Ok(Some(rate))
}
