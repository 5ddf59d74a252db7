//! `seed-peer`: the first copy of an image with holes over one hop, beside the quickest of those who copy over NBD.

use super::Plan;
use super::figure::{Figure, Reach, median};
use super::image::{self, MIB, program, settle};
use super::others::{EXPORT, Goes, Kind, Served, StorageDaemon, empty};
use super::parts::{Hop, Place, cpu_of_children};
use super::serve::PLAIN;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// Who copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    /// `nbdcopy --flush` to a file that is served.
    Nbdcopy(Kind),
    /// `blockdev-mirror` to a file that qemu-nbd serves.
    Mirror,
}

const PEERS: [Peer; 3] = [Peer::Nbdcopy(Kind::Nbdkit), Peer::Nbdcopy(Kind::QemuNbd), Peer::Mirror];

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Nbdcopy(Kind::Nbdkit) => "nbdcopy-nbdkit",
            Self::Nbdcopy(Kind::QemuNbd) => "nbdcopy-qemu-nbd",
            Self::Mirror => "blockdev-mirror",
        }
    }
}

/// What a copy took.
struct Copied {
    time: Duration,
    /// Seconds of processor time of who sends and who takes.
    cpu: [f64; 2],
}

pub(crate) fn run(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let image = image::sparse()?;
    let bytes = std::fs::metadata(&image)?.len();
    let ran = compare(place, plan, &image, bytes);
    std::fs::remove_file(image)?;
    ran
}

fn compare(place: &Place, plan: &Plan, image: &Path, bytes: u64) -> Result<(), Failure> {
    let mib = bytes as f64 / MIB as f64;
    let tell = |round: usize, name: &str, copied: &Copied| {
        let (rate, [from, to]) = (mib / copied.time.as_secs_f64(), copied.cpu);
        eprintln!("  seed-peer {round} {name}: {rate:.0} MiB/s; core-seconds: sender {from:.2}, taker {to:.2}");
        rate
    };
    let mut ours = Vec::new();
    let mut others = PEERS.map(|peer| (peer, Vec::new()));
    for round in 0..plan.rounds {
        settle();
        let hop = Hop::start(place, image, PLAIN)?;
        ours.push(tell(round, "ours", &Copied { time: hop.seeded, cpu: hop.cpu() }));
        hop.stop()?;
        place.clear();
        for (peer, rates) in &mut others {
            let copy = empty(place.root.join("copy.img"), bytes)?;
            settle();
            let copied = match peer {
                Peer::Nbdcopy(kind) => nbdcopy(*kind, image, &copy)?,
                Peer::Mirror => mirror(image, &copy)?,
            };
            rates.extend(copied.map(|copied| tell(round, peer.name(), &copied)));
            if round == 0 && !rates.is_empty() {
                same(image, &copy)?;
            }
            std::fs::remove_file(&copy)?;
        }
    }
    let others = others.iter().filter(|(_, rates)| !rates.is_empty()).map(|(peer, rates)| (peer, median(rates)));
    let best = others.max_by(|(_, one), (_, two)| one.total_cmp(two));
    let name = best.map_or("-", |(peer, _)| peer.name());
    let figure = Figure {
        id: "seed-peer",
        unit: "MiB/s",
        ours: &ours,
        limit: best.map(|(_, rate)| rate),
        reach: Reach::AtLeast(1.0),
        conditions: &[("peer", name.to_owned()), ("image", format!("{mib:.0}MiB"))],
        conditions_hold: true,
    };
    println!("{figure}");
    Ok(())
}

/// `None`: a program is not there.
fn nbdcopy(kind: Kind, image: &Path, copy: &Path) -> Result<Option<Copied>, Failure> {
    let (Some(nbdcopy), Some(served)) = (program("nbdcopy"), Served::start(kind, copy)?) else { return Ok(None) };
    let (of_server, of_children) = (served.cpu(), cpu_of_children());
    let begin = Instant::now();
    let mut command = Command::new(nbdcopy);
    // That the copy is empty is known to it, as it is to ours.
    command.args(["--flush", "--destination-is-zero"]).arg(image);
    if !command.arg(format!("nbd://127.0.0.1:{}/{EXPORT}", served.port)).status()?.success() {
        return Err(format!("nbdcopy to {} failed", kind.name()).into());
    }
    File::open(copy)?.sync_all()?;
    let time = begin.elapsed();
    Ok(Some(Copied { time, cpu: [cpu_of_children() - of_children, served.cpu() - of_server] }))
}

/// `None`: a program is not there.
fn mirror(image: &Path, copy: &Path) -> Result<Option<Copied>, Failure> {
    let Some(served) = Served::start(Kind::QemuNbd, copy)? else { return Ok(None) };
    let Some(mut daemon) = StorageDaemon::start(image, &Goes::Port(served.port), None)? else { return Ok(None) };
    let before = [daemon.cpu(), served.cpu()];
    let begin = Instant::now();
    daemon.mirror(false)?;
    daemon.ready()?;
    daemon.complete()?;
    File::open(copy)?.sync_all()?;
    let time = begin.elapsed();
    Ok(Some(Copied { time, cpu: [daemon.cpu() - before[0], served.cpu() - before[1]] }))
}

/// A peer that is quick because it copies something else is none.
fn same(image: &Path, copy: &Path) -> Result<(), Failure> {
    let status = Command::new("cmp").arg("--silent").arg(image).arg(copy).status()?;
    if status.success() { Ok(()) } else { Err("the peer's copy is another one".into()) }
}
