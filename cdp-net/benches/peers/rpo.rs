//! `rpo`: how old the last restorable moment is, of a chain whose line is nearly full.

use super::Plan;
use super::figure::{Figure, Reach};
use super::image::{Pool, SOURCE_BYTES, next, settle};
use super::line::Line;
use super::parts::{Chain, Made, Place, USUAL};
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const LINE_BITS_PER_S: u64 = 1_000_000_000;
/// Of the line, written by the guest: what the line carries is more by the heads of records, TLS and packets.
const LOAD: f64 = 0.8;
/// Less of the wanted load is no steady state.
const LOAD_MIN: f64 = 0.97;
const BLOCK: usize = 16 << 10;
const DEPTH: usize = 32;
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(10);
/// Before that it is not steady.
const BEGINNING: Duration = Duration::from_secs(3);
/// In seconds.
const LIMIT: f64 = 1.0;

/// What a round gave.
struct Seen {
    /// In seconds, in their order.
    ages: Vec<f64>,
    /// Of what was to be written.
    load: f64,
    lost: u64,
}

impl Seen {
    fn quantile(&self, part: f64) -> f64 {
        let at = (self.ages.len() as f64 * part) as usize;
        self.ages.get(at.min(self.ages.len().saturating_sub(1))).copied().unwrap_or(f64::INFINITY)
    }
}

pub(crate) fn run(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let (mut ours, mut lost, mut least) = (Vec::new(), 0, f64::INFINITY);
    if let Some(line) = Line::new(LINE_BITS_PER_S) {
        for round in 0..plan.rounds.min(3) {
            let seen = seen(place, plan, &line, round)?;
            ours.push(seen.quantile(0.99));
            lost += seen.lost;
            least = least.min(seen.load);
        }
    }
    let figure = Figure {
        id: "rpo",
        unit: "s",
        ours: &ours,
        limit: (!ours.is_empty()).then_some(LIMIT),
        reach: Reach::AtMost(1.0),
        conditions: &[("gaps", lost.to_string()), ("load", format!("{:.0}%", least.min(1.0) * LOAD * 100.0))],
        conditions_hold: lost == 0 && least >= LOAD_MIN,
    };
    println!("{figure}");
    Ok(())
}

fn seen(place: &Place, plan: &Plan, line: &Line, round: usize) -> Result<Seen, Failure> {
    // Nothing is compressed: the line's bytes are the guest's.
    let made = Made { level: "pass", sides: Some(line.sides()), ..USUAL };
    let mut chain = Chain::start(place, made, Ok)?;
    settle();
    let (uri, time) = (chain.uri.clone(), BEGINNING + plan.paced);
    let mut seen = Seen { ages: Vec::new(), load: 0.0, lost: 0 };
    let (cpu, sent, begin) = (chain.cpu(), line.sent()?, Instant::now());
    let written = std::thread::scope(|scope| -> Result<u64, Failure> {
        let load = scope.spawn(|| paced(&uri, time, &place.pool));
        while !load.is_finished() {
            std::thread::sleep(LOOK);
            let facts = chain.facts()?;
            // What is asked when nothing more comes says nothing.
            if begin.elapsed() > BEGINNING && begin.elapsed() < time {
                seen.ages.push(facts.rpo.as_secs_f64());
            }
        }
        Ok(load.join().map_err(|_| "the load panicked")??)
    })?;
    let took = begin.elapsed().as_secs_f64();
    let wire = (line.sent()? - sent) as f64 * 8.0 / took / LINE_BITS_PER_S as f64;
    let gigabytes = written as f64 / 1e9;
    let after = chain.cpu();
    let each: Vec<f64> = after.iter().zip(cpu).map(|(after, before)| (after - before) / gigabytes).collect();
    seen.lost = chain.wait_durable()?.lost();
    chain.stop()?;
    seen.load = written as f64 / (rate() * took);
    seen.ages.sort_by(f64::total_cmp);
    eprintln!(
        "  rpo {round}: p50 {:.3} s, p99 {:.3} s, most {:.3} s of {} looks; {:.1} MB/s written, the line {:.0} % full, {} not in the \
         history; core-seconds a GB: filter {:.2}, source proxy {:.2}, target proxy {:.2}, replica host {:.2}",
        seen.quantile(0.5),
        seen.quantile(0.99),
        seen.quantile(1.0),
        seen.ages.len(),
        written as f64 / 1e6 / took,
        wire * 100.0,
        seen.lost,
        each[0],
        each[1],
        each[2],
        each[3]
    );
    Ok(seen)
}

/// Bytes a second that are written.
fn rate() -> f64 {
    LINE_BITS_PER_S as f64 / 8.0 * LOAD
}

/// Random writes at that rate, whatever became of those before, as long as no more than [`DEPTH`] are under way; the bytes.
fn paced(uri: &Uri, time: Duration, pool: &Pool) -> Result<u64, ClientError> {
    let mut client = Client::connect(uri, &ClientOptions::default())?;
    let blocks = SOURCE_BYTES / BLOCK as u64;
    let (mut random, mut submitted) = (0x9e37_79b9_7f4a_7c15, 0_u64);
    let begin = Instant::now();
    while begin.elapsed() < time {
        let due = (begin.elapsed().as_secs_f64() * rate()) as u64 / BLOCK as u64;
        while submitted < due {
            while client.in_flight() >= DEPTH {
                finish(&mut client)?;
            }
            let offset = next(&mut random) % blocks * BLOCK as u64;
            client.submit(submitted, Command::Write { offset, data: pool.piece(submitted, BLOCK), flags: 0 })?;
            submitted += 1;
        }
        while client.in_flight() > 0 {
            finish(&mut client)?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    client.disconnect()?;
    Ok(submitted * BLOCK as u64)
}

fn finish(client: &mut Client) -> Result<(), ClientError> {
    match client.complete(true)? {
        Some(completion) => completion.result.map_err(ClientError::from),
        None => Ok(()),
    }
}
