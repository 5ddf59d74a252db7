//! `chain`: from the guest to durable at the replica host. `saturation`: what the guest gets while it writes as fast as it can.

use super::Plan;
use super::costs::Costs;
use super::figure::{Figure, Reach, median};
use super::image::{MIB, settle};
use super::load::{self, Shape};
use super::parts::{Chain, Part, Place, Run, USUAL, text};
use cdp_net::nbd::Uri;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const SHAPE: Shape = Shape { block: 64 << 10, depth: 16, random: false };
const CORES: f64 = 2.0;

pub(crate) fn chain(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let (mut ours, mut limits, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    let mut gaps = 0;
    for round in 0..plan.rounds {
        let mut chain = Chain::start(place, USUAL, Ok)?;
        settle();
        let before = chain.cpu();
        let begin = Instant::now();
        let mut bytes = 0;
        while begin.elapsed() < plan.load {
            // Within the spool's bound: what is measured is what the chain takes, and not how long a spool takes to fill.
            bytes += load::full(&chain.uri, SHAPE, Duration::from_millis(200), &place.pool)?;
            while chain.facts()?.queued > 192 << 20 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let facts = chain.wait_durable()?;
        let rate = bytes as f64 / MIB as f64 / begin.elapsed().as_secs_f64();
        let gigabytes = bytes as f64 / 1e9;
        let after = chain.cpu();
        let each: Vec<f64> = after.iter().zip(before).map(|(after, before)| (after - before) / gigabytes).collect();
        let passed = chain.passed()?;
        let ratio = passed.went as f64 / passed.came.max(1) as f64;
        chain.stop()?;
        let costs = Costs::measure(&place.pool, ratio)?;
        let limit = CORES / costs.sum() * 1e9 / MIB as f64;
        eprintln!(
            "  chain {round}: {rate:.0} MiB/s, limit {limit:.0} MiB/s ({costs}); core-seconds a GB: filter {:.2}, source \
             proxy {:.2}, target proxy {:.2}, replica host {:.2}; of the bytes {ratio:.2} were sent",
            each[0], each[1], each[2], each[3]
        );
        ours.push(rate);
        limits.push(limit);
        spent.push(each.iter().sum::<f64>());
        gaps += facts.gaps + facts.tracked + u64::from(!facts.protecting);
    }
    let figure = Figure {
        id: "chain",
        unit: "MiB/s",
        ours: &ours,
        limit: Some(median(&limits)),
        reach: Reach::AtLeast(0.75),
        conditions: &[("gaps", gaps.to_string()), ("core-s/GB", format!("{:.2}", median(&spent)))],
        conditions_hold: gaps == 0,
    };
    println!("{figure}");
    Ok(())
}

pub(crate) fn saturation(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let mut chain = Chain::start(place, super::parts::Made { others: Run::Idle, ..USUAL }, Ok)?;
        settle();
        let begin = Instant::now();
        let bytes = load::full(&chain.uri, SHAPE, plan.load, &place.pool)?;
        ours.push(bytes as f64 / MIB as f64 / begin.elapsed().as_secs_f64());
        let facts = chain.facts()?;
        chain.stop()?;
        // Capture into a link that takes everything at once and sends it nowhere.
        let socket = place.root.join("null.sock");
        let mut null = Part::start(&place.root, &["null", text(&place.source)?, text(&socket)?], Run::Usual)?;
        null.line()?;
        settle();
        let begin = Instant::now();
        let bytes = load::full(&Uri::unix(&socket), SHAPE, plan.load, &place.pool)?;
        limits.push(bytes as f64 / MIB as f64 / begin.elapsed().as_secs_f64());
        null.stop()?;
        eprintln!("  saturation {round}: {:.0} MiB/s, null {:.0} MiB/s, {facts:?}", ours[round], limits[round]);
    }
    let figure = Figure {
        id: "saturation",
        unit: "MiB/s",
        ours: &ours,
        limit: Some(median(&limits)),
        reach: Reach::AtLeast(0.9),
        conditions: &[],
        conditions_hold: true,
    };
    println!("{figure}");
    Ok(())
}
