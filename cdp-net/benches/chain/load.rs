//! The loads: our own client, one connection.

use super::image::{Pool, SOURCE_BYTES, next};
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use std::time::{Duration, Instant};

/// Where a load writes, and how much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) block: usize,
    pub(crate) depth: usize,
    pub(crate) random: bool,
}

/// Writes as fast as it goes for this long; the bytes that were written.
pub(crate) fn full(uri: &Uri, shape: Shape, time: Duration, pool: &Pool) -> Result<u64, ClientError> {
    let mut client = Client::connect(uri, &ClientOptions::default())?;
    let blocks = SOURCE_BYTES / shape.block as u64;
    let (mut random, mut submitted) = (0x9e37_79b9_7f4a_7c15, 0_u64);
    let begin = Instant::now();
    while begin.elapsed() < time {
        while client.in_flight() < shape.depth {
            let number = if shape.random { next(&mut random) } else { submitted } % blocks;
            let data = pool.piece(submitted, shape.block);
            client.submit(submitted, Command::Write { offset: number * shape.block as u64, data, flags: 0 })?;
            submitted += 1;
        }
        finish(&mut client)?;
    }
    while client.in_flight() > 0 {
        finish(&mut client)?;
    }
    client.disconnect()?;
    Ok(submitted * shape.block as u64)
}

fn finish(client: &mut Client) -> Result<(), ClientError> {
    match client.complete(true)? {
        Some(completion) => completion.result.map_err(ClientError::from),
        None => Ok(()),
    }
}

/// Random writes of 4 KiB, so many a second, each due at its own time whatever became of those before. What each took from then on,
/// in nanoseconds. Looks without sleeping: it has a core of its own.
pub(crate) fn open(uri: &Uri, rate: u64, time: Duration, pool: &Pool) -> Result<Vec<u64>, ClientError> {
    const BLOCK: usize = 4096;
    let mut client = Client::connect(uri, &ClientOptions::default())?;
    let blocks = SOURCE_BYTES / BLOCK as u64;
    let count = rate * time.as_secs();
    let (mut random, mut submitted, mut took) = (0x9e37_79b9_7f4a_7c15, 0_u64, Vec::with_capacity(count as usize));
    let begin = Instant::now();
    let due = |number: u64| Duration::from_nanos(number * 1_000_000_000 / rate);
    while (took.len() as u64) < count {
        while submitted < count && begin.elapsed() >= due(submitted) {
            let offset = next(&mut random) % blocks * BLOCK as u64;
            client.submit(submitted, Command::Write { offset, data: pool.piece(submitted, BLOCK), flags: 0 })?;
            client.send()?;
            submitted += 1;
        }
        if client.in_flight() == 0 {
            std::hint::spin_loop();
            continue;
        }
        while let Some(completion) = client.complete(false)? {
            let cookie = completion.cookie;
            completion.result.map_err(ClientError::from)?;
            took.push((begin.elapsed() - due(cookie)).as_nanos() as u64);
        }
    }
    client.disconnect()?;
    Ok(took)
}
