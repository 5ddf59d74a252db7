//! `catch-up`: how fast what was written while the line was cut comes over it, of what the line takes.

use super::Plan;
use super::figure::{Figure, Reach, median};
use super::image::{MIB, settle};
use super::load::{self, Shape};
use super::parts::{Chain, Made, Place, USUAL};
use super::wan::{Wan, Weather};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// The line's rate, in bytes a second: 320 Mbit/s.
const RATE: u64 = 40_000_000;
/// What is written while it is cut, a second, as a part of that.
const WRITTEN: f64 = 0.2;

pub(crate) fn run(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let (mut ours, mut limits, mut gaps) = (Vec::new(), Vec::new(), 0);
    for round in 0..plan.rounds.min(3) {
        let mut wan = None;
        // Nothing is compressed: the line's bytes are the guest's.
        let made = Made { level: "pass", ..USUAL };
        let mut chain = Chain::start(place, made, |at| Ok(wan.insert(Wan::start(at)).address()))?;
        let wan = wan.ok_or("there is a line")?;
        wan.set(Weather { rate: RATE, ..Weather::default() });
        settle();
        wan.cut();
        let begin = Instant::now();
        while begin.elapsed() < plan.cut {
            let shape = Shape { block: 64 << 10, depth: 4, random: true };
            let goal = begin.elapsed().as_secs_f64() * RATE as f64 * WRITTEN;
            if (wan_written(&mut chain)? as f64) < goal {
                load::full(&chain.uri, shape, Duration::from_millis(20), &place.pool)?;
            } else {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let (before, _) = wan.bytes();
        wan.mend();
        let begin = Instant::now();
        let facts = chain.wait_durable()?;
        let (after, _) = wan.bytes();
        let rate = (after - before) as f64 / MIB as f64 / begin.elapsed().as_secs_f64();
        gaps += facts.gaps + facts.tracked;
        chain.stop()?;
        let limit = line_rate()?;
        eprintln!(
            "  catch-up {round}: {} MiB in {:.1} s, {rate:.1} MiB/s, the line {limit:.1} MiB/s",
            (after - before) / MIB as u64,
            begin.elapsed().as_secs_f64()
        );
        ours.push(rate);
        limits.push(limit);
    }
    let figure = Figure {
        id: "catch-up",
        unit: "MiB/s",
        ours: &ours,
        limit: Some(median(&limits)),
        reach: Reach::AtLeast(0.9),
        conditions: &[("gaps", gaps.to_string()), ("cut", format!("{}s", plan.cut.as_secs()))],
        conditions_hold: gaps == 0,
    };
    println!("{figure}");
    Ok(())
}

/// What the filter has and the other side has not, in bytes.
fn wan_written(chain: &mut Chain) -> Result<u64, Failure> {
    Ok(chain.facts()?.queued)
}

/// What the same line takes of bytes that nobody does anything with.
fn line_rate() -> Result<f64, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let wan = Wan::start(listener.local_addr()?);
    wan.set(Weather { rate: RATE, ..Weather::default() });
    let bytes = 3 * RATE as usize;
    let taking = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept()?;
        let (mut buffer, mut left) = (vec![0; 256 << 10], bytes);
        while left > 0 {
            left -= tcp.read(&mut buffer)?.min(left);
        }
        tcp.write_all(b"1")
    });
    let mut tcp = TcpStream::connect(wan.address())?;
    let begin = Instant::now();
    let piece = vec![7; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(piece.len());
        tcp.write_all(&piece[..count])?;
        left -= count;
    }
    tcp.read_exact(&mut [0])?;
    taking.join().map_err(|_| "the other end panicked")??;
    Ok(bytes as f64 / MIB as f64 / begin.elapsed().as_secs_f64())
}
