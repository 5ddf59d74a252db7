//! What capture costs a guest: a 4 KiB write through the filter against one copy and one CRC32C of 4 KiB.
//!
//! `capture-4k`: copy into a buffer of its own, `Payload` (checksum), `submit`, `complete`, and `poll` amortised over the
//! frames that come out; frames are acknowledged and dropped, as a replica would. Depth 1 and 32; random offsets in 1 GiB.
//! The limit is the same copy and checksum alone, into memory that is there already: buffers in turn, as many as a frame
//! holds, because a copy that is kept cannot stay in one place. Both sides alternate.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the crate does not")]

mod figure;

use bytes::Bytes;
use cdp_core::capture::*;
use cdp_core::frame::Payload;
use cdp_core::types::*;
use figure::{Figure, Reach, median};
use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

const WRITE: usize = 4096;
const WRITES: u64 = 400_000;
const RUNS: usize = 11;
const DISK: u64 = 1 << 30;

struct Bench {
    filter: Filter,
    now: u64,
    disk: DiskId,
    random: u64,
    frames: u64,
}

impl Bench {
    fn new() -> Self {
        let disk = DiskId::new(1).expect("not 0");
        let spec = DiskSpec { id: disk, name: "disk".into(), size: DISK };
        let (group, timeline) = (GroupId::new([1; 16]).expect("not 0"), Timeline::new([2; 16]).expect("not 0"));
        let options = FilterOptions::new(group, timeline, Start::First, vec![spec]);
        let mut bench =
            Self { filter: Filter::new(options, at(1)).expect("good options"), now: 1, disk, random: 7, frames: 0 };
        bench.filter.seed_done();
        bench.drain(&mut VecDeque::new());
        bench
    }

    fn offset(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % (DISK / WRITE as u64) * WRITE as u64
    }

    /// One write through everything, with `depth` of them open at once.
    fn writes(&mut self, source: &[u8], depth: usize, payload: impl Fn(u64, &[u8]) -> Payload) -> f64 {
        let mut open = VecDeque::with_capacity(depth);
        let begin = Instant::now();
        for at_byte in (0..WRITES as usize).map(|write| write * WRITE % (source.len() - WRITE)) {
            self.now += 1000;
            let offset = self.offset();
            let payload = payload(offset, &source[at_byte..at_byte + WRITE]);
            let submitted = self.filter.submit(at(self.now), self.disk, Op::Write(payload)).expect("a good op");
            open.push_back(submitted);
            self.drain(&mut open);
            if open.len() == depth
                && let Some(Submitted::Go(ticket)) = open.pop_front()
            {
                self.filter.complete(at(self.now), ticket, Ok(())).expect("it ran");
            }
        }
        let ns = begin.elapsed().as_nanos() as f64 / WRITES as f64;
        for submitted in open.drain(..) {
            self.filter.complete(at(self.now), submitted.ticket(), Ok(())).expect("it ran");
        }
        self.now += 1_000_000_000;
        self.drain(&mut open);
        ns
    }

    /// Does what the filter wants, at once; ops that were held go on.
    fn drain(&mut self, open: &mut VecDeque<Submitted>) {
        while let Some(output) = self.filter.poll(at(self.now)) {
            match output {
                Output::Ready(ticket) => {
                    open.iter_mut()
                        .filter(|held| held.ticket() == ticket)
                        .for_each(|held| *held = Submitted::Go(ticket));
                }
                Output::Frame(frame) => {
                    self.frames += 1;
                    self.filter.durable(frame.last_lsn());
                }
                Output::RemoveLog => self.filter.log_removed(at(self.now)).expect("under way"),
                Output::Log(write) => self.filter.log_written(at(self.now), write.token, Ok(())).expect("under way"),
                Output::Flush(_, ticket) => self.filter.flushed(at(self.now), ticket, Ok(())),
                _ => {}
            }
        }
    }
}

fn at(mono: u64) -> Now {
    Now { wall: WallTime(1_700_000_000_000_000_000 + mono), mono: MonoTime(mono) }
}

/// One copy and one checksum.
fn limit(source: &[u8], frame: &mut [u8]) -> f64 {
    let begin = Instant::now();
    for write in 0..WRITES as usize {
        let from = write * WRITE % (source.len() - WRITE);
        let to = write * WRITE % frame.len();
        let buffer = &mut frame[to..to + WRITE];
        buffer.copy_from_slice(black_box(&source[from..from + WRITE]));
        black_box(crc32c::crc32c(black_box(buffer)));
    }
    begin.elapsed().as_nanos() as f64 / WRITES as f64
}

fn copied(offset: u64, data: &[u8]) -> Payload {
    Payload::new(offset, Bytes::copy_from_slice(data)).expect("aligned")
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if !asked.is_empty() && !asked.iter().any(|arg| "capture-4k".starts_with(arg.as_str())) {
        return;
    }
    let source: Vec<u8> = (0..(1usize << 20) + WRITE).map(|at| ((at * 31) >> 3) as u8).collect();
    let mut frame = vec![0; FRAME_PLAIN_MAX as usize];
    let [mut ours, mut deep, mut bare, mut one_buffer, mut alone] = [const { Vec::new() }; 5];
    let mut bench = Bench::new();
    bench.writes(&source, 1, copied);
    for _ in 0..RUNS {
        bare.push(limit(&source, &mut frame));
        one_buffer.push(limit(&source, &mut frame[..WRITE]));
        ours.push(bench.writes(&source, 1, copied));
        deep.push(bench.writes(&source, 32, copied));
        // The same data each time, checksummed once: what is left is the bookkeeping.
        let ready = copied(0, &source[..WRITE]);
        let parts = std::cell::RefCell::new(ready);
        alone.push(bench.writes(&source, 1, |_, _| parts.borrow().clone()));
    }
    let status = bench.filter.status(at(bench.now));
    let recorded = status.counters.ops_tracked == 0 && status.counters.gaps == 0;
    let (bookkeeping, one) = (median(&alone), median(&one_buffer));
    println!("capture: bookkeeping alone {bookkeeping:.0} ns a write; {} frames", bench.frames);
    println!("capture: copy and checksum in one buffer {one:.0} ns, ours is {:.2} of it", median(&ours) / one);
    let figure = Figure {
        id: "capture-4k",
        unit: "ns",
        ours: &ours,
        limit: Some(median(&bare)),
        reach: Reach::AtMost(2.0),
        conditions: &[
            ("gaps", status.counters.gaps.to_string()),
            ("depth32", format!("{:.0}ns", median(&deep))),
            ("bookkeeping", format!("{bookkeeping:.0}ns")),
        ],
        conditions_hold: recorded,
    };
    println!("{figure}");
}
