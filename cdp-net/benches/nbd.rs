//! Figures of the protected NBD server, beside `qemu-nbd` and `nbdkit` on the same file: `nbd-qemu-*`, `nbd-nbdkit-*`, `seed`.
//!
//! `cargo bench -p cdp-net --bench nbd` prints all of them in about twenty minutes; `-- ID` those whose id begins so; `-- --quick` runs
//! everything once and shortly, for whoever changes the code. README.md beside this file says what was found.

#[path = "nbd/cpu.rs"]
mod cpu;
#[path = "../../cdp-core/benches/figure/mod.rs"]
mod figure;
#[path = "nbd/image.rs"]
mod image;
#[path = "nbd/load.rs"]
mod load;
#[path = "nbd/rows.rs"]
mod rows;
#[path = "nbd/seed.rs"]
mod seed;
#[path = "nbd/servers.rs"]
mod servers;
#[path = "nbd/verify.rs"]
mod verify;

use figure::{Figure, median};
use image::{MIB, Pool, settle};
use rows::{Pattern, Peer, ROWS, Row};
use servers::{Other, Ours};
use std::path::{Path, PathBuf};
use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// Everything must be durable so long after the last write.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// How long and how often.
pub(crate) struct Plan {
    write: Duration,
    peer_write: Duration,
    write_rounds: usize,
    read: Duration,
    read_rounds: usize,
    pub(crate) seed_rounds: usize,
}

const FULL: Plan = Plan {
    write: Duration::from_secs(20),
    peer_write: Duration::from_secs(6),
    write_rounds: 5,
    read: Duration::from_secs(3),
    read_rounds: 5,
    seed_rounds: 5,
};

const QUICK: Plan = Plan {
    write: Duration::from_secs(4),
    peer_write: Duration::from_secs(2),
    write_rounds: 1,
    read: Duration::from_secs(1),
    read_rounds: 1,
    seed_rounds: 2,
};

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if servers::serve_if_told(&arguments)? {
        return Ok(());
    }
    let plan = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let chosen: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |id: &str| chosen.is_empty() || chosen.iter().any(|prefix| id.starts_with(prefix.as_str()));
    let rows: Vec<_> = ROWS.iter().filter(|row| Peer::ALL.iter().any(|peer| wanted(&row.id(*peer)))).collect();
    if !rows.is_empty() {
        let (source, pool) = image::source()?;
        let place = Place { replica: image::directory().join("replica"), source, pool };
        for row in rows {
            let peers = Peer::ALL.into_iter().filter(|peer| wanted(&row.id(*peer))).collect();
            let measured =
                if row.pattern.writes() { place.writes(row, &plan, peers) } else { place.reads(row, &plan, peers) };
            measured?.print(row);
        }
        std::fs::remove_file(&place.source)?;
        seed::remove(&place.replica);
    }
    if wanted("seed") {
        seed::run(&plan)?;
    }
    Ok(())
}

/// What is served and where its replica is.
struct Place {
    source: PathBuf,
    replica: PathBuf,
    pool: Pool,
}

/// What one row gave.
struct Measured {
    ours: Vec<f64>,
    /// Empty rates: the program is not there.
    peers: Vec<(Peer, Vec<f64>)>,
    conditions: Vec<Conditions>,
    disk: Vec<f64>,
}

/// What must hold of a run that writes.
struct Conditions {
    gaps: u64,
    durable_after: Duration,
    equal: bool,
    /// Stored bytes of a written one.
    stored: f64,
}

impl Measured {
    fn new(peers: Vec<Peer>) -> Self {
        let peers = peers.into_iter().map(|peer| (peer, Vec::new())).collect();
        Self { ours: Vec::new(), peers, conditions: Vec::new(), disk: Vec::new() }
    }

    fn print(&self, row: &Row) {
        let most = |of: fn(&Conditions) -> f64| self.conditions.iter().map(of).fold(0.0, f64::max);
        let gaps: u64 = self.conditions.iter().map(|run| run.gaps).sum();
        let durable = most(|run| run.durable_after.as_secs_f64());
        let equal = self.conditions.iter().all(|run| run.equal);
        let stored = median(&self.conditions.iter().map(|run| run.stored).collect::<Vec<_>>());
        let mut conditions = Vec::new();
        if row.pattern.writes() {
            conditions.push(("gaps", gaps.to_string()));
            conditions.push(("durable", format!("{durable:.1}s")));
            conditions.push(("restore", if equal { "equal" } else { "differs" }.to_owned()));
            conditions.push(("stored", format!("{stored:.2}")));
        }
        let hold = gaps == 0 && durable <= DURABLE_WITHIN.as_secs_f64() && equal;
        for (peer, rates) in &self.peers {
            let mut conditions = conditions.clone();
            let mut limit = (!rates.is_empty()).then(|| median(rates));
            if row.pattern == Pattern::SequentialWrite && *peer == Peer::Nbdkit {
                let disk = median(&self.disk);
                conditions.push(("disk", format!("{disk:.0}MiB/s")));
                conditions.push(("peer", limit.map_or("-".to_owned(), |rate| format!("{rate:.0}MiB/s"))));
                limit = limit.map(|rate| (0.7 * rate).min(disk / (1.0 + stored)));
            }
            let (id, unit, reach) = (row.id(*peer), row.unit(), row.reach(*peer));
            let (id, conditions) = (id.as_str(), conditions.as_slice());
            println!("{}", Figure { id, unit, ours: &self.ours, limit, reach, conditions, conditions_hold: hold });
        }
    }

    /// Every peer, once.
    fn run_peers(&mut self, place: &Place, row: &Row, time: Duration) -> Result<(), Failure> {
        for (peer, rates) in &mut self.peers {
            let Some(other) = Other::start(*peer, &place.source)? else { continue };
            if row.pattern.writes() {
                settle();
            }
            let loaded = load::run(&other.uri, other.process(), row, time, &place.pool)?;
            let rate = row.in_unit(loaded.rate);
            eprintln!("  {} {}: {rate:.0} {}, {}", row.name, peer.name(), row.unit(), loaded.cpu);
            rates.push(rate);
        }
        Ok(())
    }
}

impl Place {
    fn reads(&self, row: &Row, plan: &Plan, peers: Vec<Peer>) -> Result<Measured, Failure> {
        let mut measured = Measured::new(peers);
        seed::remove(&self.replica);
        let ours = Ours::start(&self.source, &self.replica)?;
        settle();
        for _ in 0..plan.read_rounds {
            let loaded = load::run(&ours.uri, ours.process(), row, plan.read, &self.pool)?;
            let rate = row.in_unit(loaded.rate);
            eprintln!("  {} ours: {rate:.0} {}, {}", row.name, row.unit(), loaded.cpu);
            measured.ours.push(rate);
            measured.run_peers(self, row, plan.read)?;
        }
        ours.stop()?;
        seed::remove(&self.replica);
        Ok(measured)
    }

    fn writes(&self, row: &Row, plan: &Plan, peers: Vec<Peer>) -> Result<Measured, Failure> {
        let mut measured = Measured::new(peers);
        for _ in 0..plan.write_rounds {
            self.write(row, plan, &mut measured)?;
            measured.run_peers(self, row, plan.peer_write)?;
            if row.pattern == Pattern::SequentialWrite {
                settle();
                measured.disk.push(load::disk_rate(&image::directory(), &self.pool)? / MIB as f64);
            }
        }
        Ok(measured)
    }

    /// One run of ours, and what must hold of it.
    fn write(&self, row: &Row, plan: &Plan, measured: &mut Measured) -> Result<(), Failure> {
        seed::remove(&self.replica);
        let mut ours = Ours::start(&self.source, &self.replica)?;
        settle();
        let loaded = load::run(&ours.uri, ours.process(), row, plan.write, &self.pool)?;
        let rate = row.in_unit(loaded.rate);
        let queued = ours.facts()?.queued;
        let (durable_after, facts) = ours.wait_durable()?;
        let ended = ours.stop()?;
        let found = verify::compare(Path::new(&self.replica), &self.source)?;
        seed::remove(&self.replica);
        let stored = ended.stored_bytes as f64 / ended.written_bytes.max(1) as f64;
        eprintln!(
            "  {} ours: {rate:.0} {}, durable after {:.2} s, {} MiB queued, stored {stored:.2}, {} waited for the log, \
             {found:?}, {}",
            row.name,
            row.unit(),
            durable_after.as_secs_f64(),
            queued / MIB as u64,
            facts.holds_log,
            loaded.cpu
        );
        measured.ours.push(rate);
        measured.conditions.push(Conditions {
            gaps: facts.gaps + facts.tracked + found.gaps + u64::from(!facts.protecting),
            durable_after,
            equal: found.equal && ended.drained && found.lsn >= facts.lsn,
            stored,
        });
        Ok(())
    }
}
