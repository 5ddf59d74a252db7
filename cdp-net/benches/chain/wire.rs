//! `wire-*`: bytes on the wire for each byte that the guest writes.

use super::Plan;
use super::figure::{Figure, Reach};
use super::image::{SOURCE_BYTES, next, settle};
use super::parts::{Chain, Made, Place, USUAL};
use super::wan::Wan;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientError, ClientOptions};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const PAGE: usize = 8192;
/// Of a database's pages, which are written again and again.
const TABLE: u64 = 64 << 20;
/// Behind the table; written in a circle.
const LOG: u64 = 64 << 20;
/// Bytes a second that are written.
const RATE: f64 = 24e6;
/// As many seconds as the rest of the plan's times: a period of per-point restore is longer than most loads.
const PERIODS: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Rewrite,
    Noise,
}

impl Kind {
    pub(crate) const ALL: [Kind; 2] = [Self::Rewrite, Self::Noise];

    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Rewrite => "wire-rewrite",
            Self::Noise => "wire-noise",
        }
    }
}

pub(crate) fn run(place: &Place, plan: &Plan, kind: Kind) -> Result<(), Failure> {
    let (mut ours, mut lost) = (Vec::new(), 0);
    for round in 0..plan.rounds.min(3) {
        let mut wan = None;
        let points = if kind == Kind::Rewrite { "per-point" } else { "every-write" };
        let made = Made { level: "3", points, ..USUAL };
        let mut chain = Chain::start(place, made, |at| Ok(wan.insert(Wan::start(at)).address()))?;
        let wan = wan.ok_or("there is a line")?;
        settle();
        let (before, back) = wan.bytes();
        let written = match kind {
            Kind::Rewrite => rewrite(place, &chain, plan.load * PERIODS)?,
            Kind::Noise => noise(&chain, plan.load)?,
        };
        let facts = chain.wait_durable()?;
        // What was only tracked was written and is not sent: it would pass for what is saved.
        lost += facts.lost();
        let (after, back_after) = wan.bytes();
        // Both directions: acks are on the wire too.
        let sent = after - before + back_after - back;
        let passed = chain.passed()?;
        chain.stop()?;
        ours.push(sent as f64 / written as f64);
        eprintln!("  {} {round}: {written} bytes written, {sent} sent, {passed:?}, {facts:?}", kind.id());
    }
    let most = if kind == Kind::Rewrite { 0.35 } else { 1.02 };
    let policy = if kind == Kind::Rewrite { "per-point,15s" } else { "every-write" };
    let figure = Figure {
        id: kind.id(),
        unit: "",
        ours: &ours,
        limit: Some(1.0),
        reach: Reach::AtMost(most),
        conditions: &[("policy", policy.to_owned()), ("gaps", lost.to_string())],
        conditions_hold: lost == 0,
    };
    println!("{figure}");
    Ok(())
}

/// As a database writes: most writes go to few of its pages, of each a few rows change; what changed goes to a log as well. The bytes
/// written.
fn rewrite(place: &Place, chain: &Chain, time: Duration) -> Result<u64, ClientError> {
    let mut client = Client::connect(&chain.uri, &ClientOptions::default())?;
    let pages = TABLE / PAGE as u64;
    // Each page has the content of a real file.
    let mut table: Vec<Vec<u8>> = (0..pages).map(|page| place.pool.piece(page, PAGE).to_vec()).collect();
    let (mut random, mut written, mut log, mut cookie) = (0x2545_f491_4f6c_dd1d, 0_u64, 0_u64, 0_u64);
    let begin = Instant::now();
    while begin.elapsed() < time {
        if written as f64 > begin.elapsed().as_secs_f64() * RATE {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // Four of five to a fifth of the pages.
        let page = match next(&mut random) % 5 {
            0 => next(&mut random) % pages,
            _ => next(&mut random) % (pages / 5) * 5,
        };
        let content = &mut table[page as usize];
        // The page's own LSN, and a row of 100 bytes somewhere in it.
        content[..8].copy_from_slice(&cookie.to_le_bytes());
        let at = next(&mut random) as usize % (PAGE - 108) + 8;
        (0..12).for_each(|word| content[at + word * 8..][..8].copy_from_slice(&next(&mut random).to_le_bytes()));
        client.submit(cookie, Command::Write { offset: page * PAGE as u64, data: content, flags: 0 })?;
        cookie += 1;
        written += PAGE as u64;
        // The log has the rows: a page of it for every forty.
        if cookie % 40 == 0 {
            let data = place.pool.piece(cookie, PAGE);
            let offset = TABLE + log % LOG;
            client.submit(cookie, Command::Write { offset, data, flags: 0 })?;
            cookie += 1;
            (log, written) = (log + PAGE as u64, written + PAGE as u64);
        }
        while client.in_flight() > 16 {
            finish(&mut client)?;
        }
    }
    while client.in_flight() > 0 {
        finish(&mut client)?;
    }
    client.disconnect()?;
    Ok(written)
}

/// What nobody can compress.
fn noise(chain: &Chain, time: Duration) -> Result<u64, ClientError> {
    const BLOCK: usize = 64 << 10;
    let mut client = Client::connect(&chain.uri, &ClientOptions::default())?;
    let (mut random, mut written, mut cookie) = (0x9e37_79b9_7f4a_7c15, 0_u64, 0_u64);
    let mut data = vec![0; BLOCK];
    let begin = Instant::now();
    while begin.elapsed() < time {
        if written as f64 > begin.elapsed().as_secs_f64() * RATE {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        data.chunks_mut(8).for_each(|word| word.copy_from_slice(&next(&mut random).to_le_bytes()));
        let offset = cookie * BLOCK as u64 % SOURCE_BYTES;
        client.submit(cookie, Command::Write { offset, data: &data, flags: 0 })?;
        cookie += 1;
        written += BLOCK as u64;
        while client.in_flight() > 8 {
            finish(&mut client)?;
        }
    }
    while client.in_flight() > 0 {
        finish(&mut client)?;
    }
    client.disconnect()?;
    Ok(written)
}

fn finish(client: &mut Client) -> Result<(), ClientError> {
    match client.complete(true)? {
        Some(completion) => completion.result.map_err(ClientError::from),
        None => Ok(()),
    }
}
