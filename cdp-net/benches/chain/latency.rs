//! `latency*`: what a guest waits longer because it is replicated, at rates that are far from the limit; with the far side there, cut off,
//! and catching up.

use super::Plan;
use super::figure::{Figure, Reach};
use super::image::settle;
use super::load;
use super::parts::{Chain, Facts, Made, Part, Place, Run, USUAL, text};
use super::serve::CUT;
use cdp_net::nbd::Uri;

type Failure = Box<dyn std::error::Error>;

const RATES: [u64; 2] = [5_000, 20_000];
/// Quantiles, their names, and what may be added, in microseconds.
const QUANTILES: [(f64, &str, f64); 3] = [(0.5, "p50", 5.0), (0.99, "p99", 50.0), (0.999, "p99.9", 1000.0)];
/// While the far side catches up, the line takes this part of what is written: less than it is with compression, so that there is
/// something to catch up to the end, and enough that what waits is not more than is kept.
const LINE: f64 = 0.75;
/// A write.
const BLOCK: f64 = 4096.0;
/// The server's core, and the client's.
const SERVER: u8 = 0;
const CLIENT: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Steady,
    Cut,
    CatchUp,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Self::Steady, Self::Cut, Self::CatchUp];

    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Steady => "latency",
            Self::Cut => "latency-cut",
            Self::CatchUp => "latency-catchup",
        }
    }
}

/// Microseconds at each quantile.
fn quantiles(mut took: Vec<u64>) -> [f64; 3] {
    took.sort_unstable();
    QUANTILES.map(|(part, ..)| {
        let at = ((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1));
        took.get(at).copied().unwrap_or(0) as f64 / 1000.0
    })
}

pub(crate) fn run(place: &Place, plan: &Plan, kind: Kind) -> Result<(), Failure> {
    // This process is the client.
    let pinned = std::process::Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", &CLIENT.to_string(), &std::process::id().to_string()])
        .stdout(std::process::Stdio::null())
        .status()?;
    if !pinned.success() {
        return Err("taskset does not pin this process".into());
    }
    for rate in RATES {
        let mut added = [Vec::new(), Vec::new(), Vec::new()];
        let (mut lost, mut behind) = (0, u64::MAX);
        for round in 0..plan.rounds {
            let off = plain(place, plan, rate)?;
            let (on, facts) = replicated(place, plan, kind, rate)?;
            lost += facts.lost();
            behind = behind.min(facts.lsn - facts.durable);
            eprintln!("  {} {rate} {round}: off {off:.1?} us, on {on:.1?} us", kind.id());
            (0..3).for_each(|at| added[at].push(on[at] - off[at]));
        }
        for ((_, name, most), added) in QUANTILES.iter().zip(&added) {
            let id = format!("{}-{rate}-{name}", kind.id());
            let figure = Figure {
                id: &id,
                unit: "us",
                ours: added,
                limit: Some(*most),
                reach: Reach::AtMost(1.0),
                conditions: &[("lost", lost.to_string()), ("behind", behind.to_string())],
                // Where it is cut or catches up, a second's writes at least are still on their way at the end.
                conditions_hold: lost == 0 && (kind == Kind::Steady || behind >= rate),
            };
            println!("{figure}");
        }
    }
    Ok(())
}

/// The same server on the same file, with nothing captured.
fn plain(place: &Place, plan: &Plan, rate: u64) -> Result<[f64; 3], Failure> {
    let socket = place.root.join("plain.sock");
    let words = ["plain", text(&place.source)?, text(&socket)?];
    let mut server = Part::start(&place.root, &words, Run::Pinned(SERVER))?;
    server.line()?;
    settle();
    let took = load::open(&Uri::unix(&socket), rate, plan.paced, &place.pool)?;
    server.stop()?;
    Ok(quantiles(took))
}

fn replicated(place: &Place, plan: &Plan, kind: Kind, rate: u64) -> Result<([f64; 3], Facts), Failure> {
    // The client looks without sleeping: what shared its core would hold it up, and it is not what is measured. So the line is a part
    // like the others, too.
    let made = Made { filter: Run::Pinned(SERVER), others: Run::IdleOn(SERVER), ..USUAL };
    let mut line = None;
    let mut chain = Chain::start(place, made, |at| {
        let line = line.insert(Part::start(&place.root, &["line", &at.to_string()], made.others)?);
        Ok(line.line()?.parse()?)
    })?;
    let mut line = line.ok_or("there is a line")?;
    settle();
    if kind != Kind::Steady {
        line.ask(CUT)?;
    }
    if kind == Kind::CatchUp {
        load::open(&chain.uri, rate, plan.paced, &place.pool)?;
        line.ask(&((rate as f64 * BLOCK * LINE) as u64).to_string())?;
    }
    let took = load::open(&chain.uri, rate, plan.paced, &place.pool)?;
    let facts = chain.facts()?;
    eprintln!("    {} writes waited for the activity log; {} are not durable", facts.held, facts.lsn - facts.durable);
    line.ask("0")?;
    chain.wait_durable()?;
    chain.stop()?;
    line.stop()?;
    Ok((quantiles(took), facts))
}
